//! One execution: a small pool, some bytes of its metadata changed, checksums made right again.

#[path = "allocations.rs"]
mod allocations;
#[path = "checksums.rs"]
mod checksums;
#[path = "memory.rs"]
mod memory;

use block::BlockBackend;
use block::pool::{CHUNK_MIN, Layout, OpenPool, Pool, Provisioning};
use checksums::crc32c;
use memory::Memory;
use std::io::Result;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

const CHUNK: usize = CHUNK_MIN as usize;
const HEAD: usize = 16;

fn open(members: &[Arc<Memory>], options: OpenPool) -> Option<Arc<Pool>> {
    let offered = members.iter().enumerate().map(|(number, file)| {
        let file: Arc<dyn BlockBackend> = file.clone();
        (PathBuf::from(format!("m{number}")), Ok(file))
    });
    Pool::open(offered.collect(), options).ok()
}

/// Two members with something of everything, checkpoint and log.
static MEMBERS: LazyLock<Vec<Arc<Vec<u8>>>> = LazyLock::new(|| {
    let members: Vec<(PathBuf, Arc<Memory>)> = (0..2)
        .map(|number| (PathBuf::from(format!("m{number}")), Memory::new(vec![0; 40 * CHUNK], false)))
        .collect();
    let disks: Vec<_> =
        members.iter().map(|(path, file)| (path.clone(), file.clone() as Arc<dyn BlockBackend>)).collect();
    Pool::create(&disks, CHUNK_MIN).unwrap();
    let make = || {
        let offered = disks.iter().map(|(path, file)| (path.clone(), Ok(file.clone())));
        Pool::open(offered.collect(), OpenPool::default()).unwrap()
    };
    let change = |pool: &Arc<Pool>, name: &str| {
        let volume = pool.volume(name, false).unwrap();
        volume.write_bytes(100, &[3; 100_000]).unwrap();
        pool.create_snapshot(name, "s1").unwrap();
        volume.write_bytes(0, &[4; 512]).unwrap();
        volume.discard(0, CHUNK_MIN).unwrap();
        pool.create_snapshot(name, "s2").unwrap();
        volume.write_bytes(1 << 17, &[5; 512]).unwrap();
        volume.flush().unwrap();
    };
    let pool = make();
    pool.create_volume("a", 5 * CHUNK_MIN, Layout::Mirrored(2), Provisioning::Thin, &[]).unwrap();
    pool.create_volume("b", 5 * CHUNK_MIN, Layout::Striped, Provisioning::Lazy, &[]).unwrap();
    pool.set_checksums("a", true, &|_| ()).unwrap();
    change(&pool, "a");
    drop(pool);
    let pool = make();
    change(&pool, "b");
    pool.clone_volume("a@s1", "c").unwrap();
    pool.clone_volume("a@s1", "d").unwrap();
    pool.volume("c", false).unwrap().write_bytes(0, &[6; 512]).unwrap();
    pool.set_template("c", true).unwrap();
    pool.flatten("d", &|_| ()).unwrap();
    pool.delete_snapshot("a", "s1").unwrap();
    // The log must not end in a checkpoint.
    std::mem::forget(pool);
    let content = |file: &Memory| {
        let mut bytes = vec![0; file.size() as usize];
        file.read_bytes(0, &mut bytes).unwrap();
        Arc::new(bytes)
    };
    members.iter().map(|(_, file)| content(file)).collect()
});

/// Where boxes begin that are not empty.
static BOXES: LazyLock<Vec<(usize, usize)>> = LazyLock::new(|| {
    let mut boxes = Vec::new();
    for (number, member) in MEMBERS.iter().enumerate() {
        let starts = (0..member.len() - HEAD).step_by(4096).filter(|at| member[*at..].starts_with(b"VIREOP"));
        boxes.extend(starts.map(|at| (number, at)));
    }
    boxes
});

/// Makes a box's checksum right, so that its content is looked at.
fn seal(file: &Memory, at: u64) -> Result<()> {
    let mut head = [0; HEAD];
    file.read_bytes(at, &mut head)?;
    let len = length(&head);
    if at + HEAD as u64 + u64::from(len) > file.size() {
        return Ok(());
    }
    let mut content = vec![0; len as usize];
    file.read_bytes(at + HEAD as u64, &mut content)?;
    let sum = crc32c(&head[..12]).rotate_left(1) ^ crc32c(&content);
    file.write_bytes(at + 12, &sum.to_le_bytes())
}

/// Bytes in a box, as it says.
fn length(head: &[u8; HEAD]) -> u32 {
    u32::from_le_bytes([head[8], head[9], head[10], head[11]])
}

/// Changes a box; beyond the end of the member nothing.
fn patch(file: &Memory, at: u64, patch: &[u8; 6]) -> Result<()> {
    let mut head = [0; HEAD];
    file.read_bytes(at, &mut head)?;
    let len = u64::from(length(&head).clamp(1, 1 << 12));
    let place = u64::from(u16::from_le_bytes([patch[1], patch[2]])) % (len + 4);
    // The length, or something in the content.
    let place = at + if place < 4 { 8 + place } else { HEAD as u64 + place - 4 };
    file.write_bytes(place, &patch[3..4])?;
    if patch[4] & 1 != 0 {
        file.write_bytes(place + 1, &patch[5..])?;
    }
    if patch[4] & 0xf0 != 0 { seal(file, at) } else { Ok(()) }
}

/// The first byte says how the pool is opened; each six of the rest change a box.
pub fn run(program: &[u8]) {
    let Some((how, patches)) = program.split_first() else { return };
    let boxes = &*BOXES;
    allocations::begin();
    let forged = || -> Vec<Arc<Memory>> {
        let mut members: Vec<_> = MEMBERS.iter().map(|bytes| Memory::new(bytes.clone(), false)).collect();
        for change in patches.as_chunks::<6>().0.iter().take(16) {
            let (member, at) = boxes[usize::from(change[0]) % boxes.len()];
            let _ = patch(&members[member], at as u64, change);
        }
        if how & 1 != 0 {
            members.truncate(1);
        }
        members
    };
    for read_only in [true, false] {
        if let Some(pool) = open(&forged(), OpenPool { read_only, degraded: how & 2 == 0 }) {
            exercise(&pool);
        }
    }
}

/// Results do not matter.
fn exercise(pool: &Arc<Pool>) {
    let mut buffer = vec![0; 1 << 16];
    for volume in pool.info().volumes {
        let Ok(disk) = pool.volume(&volume.name, false) else { continue };
        let size = disk.size();
        for at in [0, 4096, size / 2, size.saturating_sub(1 << 16)] {
            let _ = disk.read_bytes(at, &mut buffer);
            let _ = disk.block_status(at, 1 << 16);
        }
        let _ = disk.write_bytes(700, &buffer[..9000]);
        let _ = disk.discard(0, 1 << 17);
        let _ = disk.flush();
        let _ = pool.create_snapshot(&volume.name, "t");
        let _ = disk.write_bytes(0, &buffer[..512]);
        let _ = pool.revert(&volume.name, "s2");
        let _ = pool.delete_snapshot(&volume.name, "s2");
        let _ = disk.resize(1 << 18);
        let _ = pool.clone_volume(&format!("{}@t", volume.name), "new");
        let _ = pool.set_checksums(&volume.name, true, &|_| ());
        let _ = pool.set_template(&volume.name, true);
        let _ = pool.flatten(&volume.name, &|_| ());
        let _ = pool.delete_volume("a", true);
    }
    let _ = pool.scrub(true, &|_| ());
    let _ = pool.rebuild(&|_| ());
    let _ = pool.remove_member("0", &|_| ());
}
