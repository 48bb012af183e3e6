//! Two threads. The harness runs these rows on a machine with two vCPUs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::{Row, sha256};

/// The rows of this group.
pub fn rows() -> Vec<Row> {
    let row = |name, prepare| Row { name, group: "smp", prepare };
    vec![
        row("parallel-1", || Some(Box::new(|| parallel(1)))),
        row("parallel-2", || Some(Box::new(|| parallel(2)))),
        row("atomic-add", || Some(Box::new(atomic_add))),
        row("mutex", || Some(Box::new(mutex))),
    ]
}

/// The same work by one thread or shared between two.
fn parallel(threads: u64) -> u64 {
    let parts: Vec<_> = (0..threads)
        .map(|part| {
            thread::spawn(move || {
                (0..8)
                    .filter(|number| number % threads == part)
                    .map(|n| sha256::digest(n, 100_000))
                    .sum::<u64>()
            })
        })
        .collect();
    parts.into_iter().map(|part| part.join().unwrap_or(0)).fold(0, u64::wrapping_add)
}

fn atomic_add() -> u64 {
    let cell = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..4_000_000 {
                    cell.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    cell.into_inner()
}

fn mutex() -> u64 {
    let cell = Mutex::new(0_u64);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..500_000 {
                    *cell.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += 1;
                }
            });
        }
    });
    cell.into_inner().unwrap_or(0)
}
