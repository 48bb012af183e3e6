//! The disk against a target that does what few do.

use crate::exercise::{Behaviour, SIZE, Target, open};
use block::BlockBackend;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that differ from place to place.
fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + seed * 7 + at / 509) as u8).collect()
}

/// Writes, zeroes and discards all over the disk, reads it back, and answers what must be there.
fn fill(disk: &dyn BlockBackend) -> Vec<u8> {
    let mut model = vec![0; SIZE];
    for number in 0..40 {
        let (offset, len) = (number * 20_011 % (SIZE - 60_000), number * 1531 % 60_000 + 1);
        match number % 5 {
            4 => {
                disk.write_zeroes(offset as u64, len as u64, true).unwrap();
                model[offset..offset + len].fill(0);
            }
            _ => {
                let data = bytes(number, len);
                disk.write_bytes(offset as u64, &data).unwrap();
                model[offset..offset + len].copy_from_slice(&data);
            }
        }
        let mut back = vec![0; len];
        disk.read_bytes(offset as u64, &mut back).unwrap();
        assert!(back == model[offset..offset + len], "write {number}");
    }
    model
}

fn holds(behaviour: Behaviour) -> Target {
    let target = Target::new(behaviour);
    let disk = open(&target, PATIENCE).unwrap();
    let model = fill(&*disk);
    let mut all = vec![0; SIZE];
    disk.read_bytes(0, &mut all).unwrap();
    assert!(all == model);
    disk.flush().unwrap();
    assert!(target.memory.lock().stored == model);
    target
}

#[test]
fn data_go_in_the_pieces_that_a_target_wants() {
    for burst in [512, 1536, 8192, 256 << 10] {
        holds(Behaviour { burst, ..Behaviour::default() });
    }
}

#[test]
fn commands_wait_for_the_targets_window() {
    holds(Behaviour { window: 1, ..Behaviour::default() });
}

#[test]
fn busy_targets_are_asked_again() {
    holds(Behaviour { busy: 3, ..Behaviour::default() });
}

#[test]
fn pings_are_answered() {
    let target = holds(Behaviour { pings: true, ..Behaviour::default() });
    let pongs = target.memory.lock().pongs;
    assert!(pongs > 40, "{pongs}");
}

#[test]
fn lost_connections_are_made_again() {
    let target = holds(Behaviour { drops: 71, ..Behaviour::default() });
    let connections = target.memory.lock().connections;
    assert!(connections > 2, "{connections}");
}

/// The target forgets what was not flushed; whoever wrote it does not notice.
#[test]
fn writes_that_no_flush_covers_are_repeated() {
    let target = holds(Behaviour { drops: 73, forgets: true, ..Behaviour::default() });
    let connections = target.memory.lock().connections;
    assert!(connections > 2, "{connections}");
}

#[test]
fn another_disk_in_the_place_of_the_old_one_is_refused() {
    let target = Target::new(Behaviour { swaps: true, drops: 20, ..Behaviour::default() });
    let disk = open(&target, PATIENCE).unwrap();
    let error = (0..100).find_map(|_| disk.write_bytes(0, &[1; 512]).err()).unwrap();
    assert!(error.to_string().contains("another one since the connection broke"), "{error}");
    assert_eq!(target.memory.lock().stored, vec![0; SIZE]);
}

#[test]
fn a_target_that_falls_silent_is_an_error_in_time() {
    let behaviour = Behaviour { falls_silent: Some(12), ..Behaviour::default() };
    let disk = open(&Target::new(behaviour), Duration::from_millis(400)).unwrap();
    let begin = Instant::now();
    let error = (0..100).find_map(|_| disk.write_bytes(0, &[1; 512]).err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

#[test]
fn a_target_that_never_speaks_is_an_error_in_time() {
    let behaviour = Behaviour { falls_silent: Some(0), ..Behaviour::default() };
    let error = open(&Target::new(behaviour), Duration::from_millis(300)).err().unwrap();
    let words = block::with_causes(&error);
    assert!(words.contains("the login failed: no answer for 300ms"), "{words}");
}
