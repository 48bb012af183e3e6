//! Volumes with checksums, and bits of their members that change.

use crate::recorder::Recorder;
use crate::setup::{self, CHUNK, content, members, same, text};
use block::BlockBackend;
use block::pool::{Layout, Pool, Provisioning};
use std::sync::Arc;

const SIZE: usize = 6 * CHUNK;
const BLOCK: usize = 4096;

/// Every block is unlike any other.
fn data() -> Vec<u8> {
    (0..SIZE / 4).flat_map(|word| (word as u32 ^ 0x5a5a_0000).to_le_bytes()).collect()
}

/// A pool of three members with a volume `v` that has checksums and this content.
fn pool(layout: Layout) -> (Vec<Arc<Recorder>>, Arc<Pool>) {
    let members = members(&[60, 60, 60], 3);
    setup::create(&members).unwrap();
    let pool = setup::open(&members).unwrap();
    pool.create_volume("v", SIZE as u64, layout, Provisioning::Thin, &[]).unwrap();
    assert_eq!(pool.set_checksums("v", true, &|_| ()).unwrap(), 0);
    pool.volume("v", false).unwrap().write_bytes(0, &data()).unwrap();
    pool.volume("v", false).unwrap().flush().unwrap();
    (members, pool)
}

/// Where the members have these bytes.
fn places(members: &[Arc<Recorder>], bytes: &[u8]) -> Vec<(usize, usize)> {
    let find = |(number, member): (usize, &Arc<Recorder>)| {
        let found = member.bytes().chunks(BLOCK).position(|block| block.starts_with(bytes));
        found.map(|block| (number, block * BLOCK))
    };
    members.iter().enumerate().filter_map(find).collect()
}

/// Changes a bit of the block at a byte of the volume, in so many of its copies, and tells where the block is.
fn rot(members: &[Arc<Recorder>], at: usize, first: usize, copies: usize) -> Vec<(usize, usize)> {
    let places = places(members, &data()[at..at + 16]);
    for (member, byte) in places.iter().skip(first).take(copies) {
        members[*member].flip(byte + 100);
    }
    places
}

fn refused(result: std::io::Result<()>, parts: &[&str]) {
    let error = text(result.unwrap_err());
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn rot_without_another_copy_is_an_error_that_names_the_place() {
    let (members, pool) = pool(Layout::Striped);
    let at = 2 * CHUNK + 3 * BLOCK;
    let (member, byte) = rot(&members, at, 0, 1)[0];
    let volume = pool.volume("v", false).unwrap();
    let named = ["volume v", &at.to_string(), &format!("byte {byte} of member m{member}")];
    let mut bytes = [0; 512];
    refused(volume.read_bytes(at as u64 + 1024, &mut bytes), &named);
    refused(volume.read_bytes(0, &mut vec![0; SIZE]), &named);
    refused(volume.write_bytes(at as u64 + 1024, &bytes), &named);
    for around in [at - 512, at + BLOCK] {
        volume.read_bytes(around as u64, &mut bytes).unwrap();
        assert_eq!(bytes, data()[around..around + 512]);
    }
    for repair in [false, true] {
        let report = pool.scrub(repair, &|_| ()).unwrap();
        assert!(!report.is_clean() && (report.lost, report.repaired) == (1, 0), "{report:?}");
        assert!(report.findings[0].contains("chunk 2 of volume v is wrong by its checksum"), "{report:?}");
    }
    // Moving it, or a clone that gets its own copy, does not make it right.
    pool.move_volume("v", &["1".to_owned(), "2".to_owned()], &|_| ()).unwrap();
    refused(volume.read_bytes(at as u64, &mut bytes), &["volume v", &at.to_string()]);
    pool.create_snapshot("v", "s").unwrap();
    pool.clone_volume("v@s", "w").unwrap();
    pool.flatten("w", &|_| ()).unwrap();
    refused(pool.volume("w", false).unwrap().read_bytes(at as u64, &mut bytes), &["volume w"]);
    refused(volume.write_bytes(at as u64 + 8, &bytes), &["volume v"]);
    // Who writes all of it does.
    volume.write_bytes(at as u64, &data()[at..at + BLOCK]).unwrap();
    same("the volume", &content(&volume).unwrap(), &data()).unwrap();
    assert_eq!(pool.scrub(false, &|_| ()).unwrap().lost, 2, "the snapshot and the clone still have it");
}

#[test]
fn a_mirror_reads_the_right_copy_and_repairs_the_other() {
    for (layout, copies) in [(Layout::Mirrored(2), 2), (Layout::Mirrored(3), 3)] {
        for first in 0..copies {
            // All but one copy: a vote would choose the wrong one.
            let (members, pool) = pool(layout);
            let before: Vec<Vec<u8>> = members.iter().map(|member| member.bytes()).collect();
            let at = CHUNK + 5 * BLOCK;
            let bad = if first == 0 { (1, copies - 1) } else { (0, copies - 1) };
            assert_eq!(rot(&members, at, bad.0, bad.1).len(), copies);
            let volume = pool.volume("v", false).unwrap();
            same("the volume", &content(&volume).unwrap(), &data()).unwrap();
            for chunk in 0..(SIZE / CHUNK) as u64 {
                // Neighbours read from different copies.
                let mut part = vec![0; CHUNK];
                volume.read_bytes(chunk * CHUNK as u64, &mut part).unwrap();
            }
            let report = pool.scrub(true, &|_| ()).unwrap();
            assert!(report.is_clean(), "{report:?}");
            let after: Vec<Vec<u8>> = members.iter().map(|member| member.bytes()).collect();
            assert!(before == after, "the copies are as they were");
        }
    }
}

#[test]
fn a_scrub_knows_by_checksums_which_copy_is_right() {
    for first in [0, 1] {
        let (members, pool) = pool(Layout::Mirrored(2));
        let before: Vec<Vec<u8>> = members.iter().map(|member| member.bytes()).collect();
        rot(&members, 3 * CHUNK + BLOCK, first, 1);
        rot(&members, 3 * CHUNK + 2 * BLOCK, 1 - first, 1);
        let report = pool.scrub(false, &|_| ()).unwrap();
        assert!(
            (report.rotten, report.differing, report.lost) == (1, 0, 0) && !report.is_clean(),
            "{report:?}"
        );
        let report = pool.scrub(true, &|_| ()).unwrap();
        assert!(report.is_clean() && report.repaired == 1, "{report:?}");
        assert!(before == members.iter().map(|member| member.bytes()).collect::<Vec<_>>());
        assert_eq!(pool.scrub(false, &|_| ()).unwrap().findings, Vec::<String>::new());
    }
}

/// A volume that has content already, its snapshot, and a member that returns.
#[test]
fn checksums_come_and_go() {
    let members = members(&[60, 60], 3);
    setup::create(&members).unwrap();
    let pool = setup::open(&members).unwrap();
    pool.create_volume("v", SIZE as u64, Layout::Linear, Provisioning::Eager, &[]).unwrap();
    let volume = pool.volume("v", false).unwrap();
    volume.write_bytes(0, &data()).unwrap();
    pool.create_snapshot("v", "s").unwrap();
    volume.write_bytes(0, &[9; 512]).unwrap();
    let unchecked = || pool.info().volumes[0].unchecked / CHUNK as u64;
    assert_eq!(unchecked(), 7);
    assert_eq!(pool.set_checksums("v", true, &|_| ()).unwrap(), 7);
    volume.resize(SIZE as u64 + 2 * CHUNK as u64).unwrap();
    assert_eq!((unchecked(), pool.info().volumes[0].checksums), (0, true));
    drop(volume);
    let at = CHUNK + BLOCK;
    rot(&members, at, 0, 1);
    let mut bytes = [0; 512];
    refused(pool.volume("v@s", true).unwrap().read_bytes(at as u64, &mut bytes), &["volume v"]);
    drop(pool);
    let pool = setup::open(&members).unwrap();
    refused(pool.volume("v", true).unwrap().read_bytes(at as u64, &mut bytes), &["volume v"]);
    pool.set_checksums("v", false, &|_| ()).unwrap();
    pool.volume("v", true).unwrap().read_bytes(at as u64, &mut bytes).unwrap();
    assert_ne!(bytes, data()[at..at + 512], "nobody knows better any more");
}

/// What rots while the pool is closed is found after a power loss too, where nothing was written to.
#[test]
fn a_power_loss_does_not_hide_rot() {
    let (members, pool) = pool(Layout::Linear);
    pool.create_snapshot("v", "s").unwrap();
    let volume = pool.volume("v", false).unwrap();
    volume.write_bytes(0, &[7; BLOCK]).unwrap();
    std::mem::forget((pool, volume));
    let at = 4 * CHUNK;
    rot(&members, at, 0, 1);
    let after: Vec<Arc<Recorder>> =
        members.iter().map(|member| Arc::new(member.after_power_loss())).collect();
    let pool = setup::open(&after).unwrap();
    let volume = pool.volume("v", false).unwrap();
    let mut block = [0; BLOCK];
    refused(volume.read_bytes(at as u64, &mut block), &["volume v"]);
    volume.read_bytes(0, &mut block).unwrap();
    assert!(block == [7; BLOCK] || block == data()[..BLOCK]);
}

/// The power goes in the middle of writes, and a member is away when the pool is opened again: what it has gets right
/// checksums when it returns, although the others were written to and closed in order meanwhile.
#[test]
fn a_member_that_was_away_after_a_power_loss_is_put_in_order() {
    for seed in 0..12 {
        let members = members(&[60, 60], seed);
        setup::create(&members).unwrap();
        let pool = setup::open(&members).unwrap();
        pool.create_volume("v", SIZE as u64, Layout::Striped, Provisioning::Thin, &[]).unwrap();
        pool.set_checksums("v", true, &|_| ()).unwrap();
        let volume = pool.volume("v", false).unwrap();
        volume.write_bytes(0, &vec![1; SIZE]).unwrap();
        volume.flush().unwrap();
        for at in (0..SIZE).step_by(3 * BLOCK) {
            volume.write_bytes(at as u64, &[2; BLOCK]).unwrap();
        }
        std::mem::forget((pool, volume));
        let after: Vec<_> = members.iter().map(|member| Some(Arc::new(member.after_power_loss()))).collect();
        let pool = setup::open_some(&[None, after[1].clone()], true).unwrap();
        let volume = pool.volume("v", false).unwrap();
        volume.write_bytes(CHUNK as u64, &[3; BLOCK]).unwrap();
        volume.flush().unwrap();
        volume.flush().unwrap();
        drop((pool, volume));
        let pool = setup::open_some(&after, false).unwrap();
        pool.rebuild(&|_| ()).unwrap();
        let found = content(&pool.volume("v", false).unwrap()).unwrap();
        assert!(found.iter().all(|byte| (1..=3).contains(byte)), "seed {seed}");
        let report = pool.scrub(false, &|_| ()).unwrap();
        assert!(report.is_clean(), "seed {seed}: {report:?}");
    }
}

/// A chunk of a thick volume that was discarded keeps its place, and until the next commit the log still says that it has
/// data: what is written into it must not look like rot after a power loss, nor leave copies that differ.
#[test]
fn a_discarded_chunk_may_be_written_to_before_the_power_goes() {
    for (seed, layout) in (0..12).zip([Layout::Linear, Layout::Mirrored(2)].into_iter().cycle()) {
        let members = members(&[60, 60], seed);
        setup::create(&members).unwrap();
        let pool = setup::open(&members).unwrap();
        pool.create_volume("v", SIZE as u64, layout, Provisioning::Lazy, &[]).unwrap();
        pool.set_checksums("v", true, &|_| ()).unwrap();
        let volume = pool.volume("v", false).unwrap();
        volume.write_bytes(0, &data()).unwrap();
        // The second one finds that nobody writes: the regions are clean.
        volume.flush().unwrap();
        pool.create_snapshot("v", "s").unwrap();
        pool.delete_snapshot("v", "s").unwrap();
        volume.discard(CHUNK as u64, CHUNK as u64).unwrap();
        volume.write_bytes(CHUNK as u64 + 8192, &[7; 20_480]).unwrap();
        let mut after: Vec<Recorder> = members.iter().map(|member| member.after_power_loss()).collect();
        std::mem::forget((pool, volume));
        let (first, others) = after.split_first_mut().unwrap();
        others.iter_mut().for_each(|other| other.share_power(first));
        let members: Vec<Arc<Recorder>> = after.into_iter().map(Arc::new).collect();
        let pool = setup::open(&members).unwrap();
        let found = content(&pool.volume("v", false).unwrap()).unwrap();
        same("what is beside it", &found[..CHUNK], &data()[..CHUNK]).unwrap();
        same("what is behind it", &found[2 * CHUNK..], &data()[2 * CHUNK..]).unwrap();
        let report = pool.scrub(false, &|_| ()).unwrap();
        assert!(report.is_clean(), "seed {seed}: {report:?}");
    }
}
