//! Pools in memory.

use crate::random::Random;
use crate::recorder::Recorder;
use block::BlockBackend;
use block::pool::{CHUNK_MIN, Layout, OpenPool, Pool, Provisioning};
use std::path::PathBuf;
use std::sync::Arc;

/// Chunks of these pools.
pub const CHUNK: usize = CHUNK_MIN as usize;

/// Runs a case for each seed, and tells the first that failed.
pub fn cases(usual: u64, case: impl Fn(u64) -> Result<(), String>) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("VIREO_POOL_CASES").unwrap_or(usual);
    let first = number("VIREO_POOL_SEED").unwrap_or(1);
    let failed: Vec<String> = (first..first + count)
        .filter_map(|seed| case(seed).err().map(|error| format!("VIREO_POOL_SEED={seed}: {error}")))
        .collect();
    assert!(failed.is_empty(), "{} failed, first: {}", failed.len(), failed[0]);
}

pub fn text(error: std::io::Error) -> String {
    block::with_causes(&error)
}

/// Empty members of so many chunks each, one power supply for all.
pub fn members(sizes: &[usize], seed: u64) -> Vec<Arc<Recorder>> {
    let mut members: Vec<Arc<Recorder>> = Vec::new();
    for (number, chunks) in sizes.iter().enumerate() {
        // Old content must never be seen.
        let mut member = Recorder::new(vec![0xee; chunks * CHUNK], seed + 1000 * number as u64);
        if let Some(first) = members.first() {
            member.share_power(first);
        }
        members.push(Arc::new(member));
    }
    members
}

pub fn name(number: usize) -> PathBuf {
    PathBuf::from(format!("m{number}"))
}

pub fn create(members: &[Arc<Recorder>]) -> Result<(), String> {
    let disks: Vec<_> = members
        .iter()
        .enumerate()
        .map(|(number, member)| (name(number), member.clone() as Arc<dyn BlockBackend>))
        .collect();
    Pool::create(&disks, CHUNK as u64).map(drop).map_err(|error| block::with_causes(&error))
}

/// Opens the pool with those members that are there.
pub fn open_some(members: &[Option<Arc<Recorder>>], degraded: bool) -> Result<Arc<Pool>, String> {
    let offered = members
        .iter()
        .enumerate()
        .filter_map(|(number, member)| Some((name(number), Ok(member.clone()? as Arc<dyn BlockBackend>))));
    Pool::open(offered.collect(), OpenPool { read_only: false, degraded })
        .map_err(|error| block::with_causes(&error))
}

pub fn open(members: &[Arc<Recorder>]) -> Result<Arc<Pool>, String> {
    let members: Vec<_> = members.iter().cloned().map(Some).collect();
    open_some(&members, false)
}

/// A layout that fits the number of members.
pub fn layout(random: &mut Random, members: usize) -> Layout {
    match random.below(3) {
        0 => Layout::Linear,
        1 => Layout::Striped,
        _ if members > 2 && random.chance(25) => Layout::Mirrored(3),
        _ if members > 1 => Layout::Mirrored(2),
        _ => Layout::Linear,
    }
}

pub fn provisioning(random: &mut Random) -> Provisioning {
    random.pick(&[Provisioning::Thin, Provisioning::Thin, Provisioning::Lazy, Provisioning::Eager])
}

/// Whether chunks lack a copy, because there was no space for it.
fn is_degraded(pool: &Pool) -> bool {
    pool.info().volumes.iter().any(|volume| volume.degraded_chunks > 0)
}

/// Breaks a member of a mirror, if it can bear that: one only, and none when chunks lack a copy.
pub fn break_one(
    random: &mut Random,
    pool: &Pool,
    layout: Layout,
    members: &[Arc<Recorder>],
    broken: &mut bool,
) {
    if layout.copies() > 1 && !*broken && !is_degraded(pool) {
        *broken = true;
        members[random.below(members.len() as u64) as usize].set_broken(true);
    }
}

/// Names of at least so many of the members.
pub fn some_members(random: &mut Random, members: usize, least: usize) -> Vec<String> {
    let mut names: Vec<String> = (0..members).map(|number| number.to_string()).collect();
    while names.len() > least && random.chance(70) {
        names.remove(random.below(names.len() as u64) as usize);
    }
    names
}

pub fn content(disk: &dyn BlockBackend) -> Result<Vec<u8>, String> {
    let mut content = vec![0xaa; disk.size() as usize];
    disk.read_bytes(0, &mut content).map_err(text)?;
    Ok(content)
}

/// Where two contents differ first.
pub fn same(what: &str, found: &[u8], expected: &[u8]) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{what}: {} bytes instead of {}", found.len(), expected.len()));
    }
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        Some(at) => Err(format!("{what}: byte {at:#x} is {:#x} instead of {:#x}", found[at], expected[at])),
        None => Ok(()),
    }
}
