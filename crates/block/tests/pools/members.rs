//! Members that are lost, return, fail, or say something else than their fellows.

use crate::recorder::Recorder;
use crate::setup::{self, CHUNK, content, open, open_some};
use block::BlockBackend;
use block::pool::{Layout, OpenPool, Pool, Provisioning};
use std::sync::Arc;

const THIN: Provisioning = Provisioning::Thin;

/// A pool of so many members with a volume "v" of four chunks, all 1, 2, 3 and 4.
fn pool(count: usize, layout: Layout) -> Vec<Arc<Recorder>> {
    let members = setup::members(&vec![40; count], 7);
    setup::create(&members).unwrap();
    let pool = open(&members).unwrap();
    pool.create_volume("v", 4 * CHUNK as u64, layout, THIN, &[]).unwrap();
    pool.volume("v", false).unwrap().write_bytes(0, &expected()).unwrap();
    members
}

fn expected() -> Vec<u8> {
    (1..=4).flat_map(|value| vec![value; CHUNK]).collect()
}

/// All but one.
fn without(members: &[Arc<Recorder>], missing: usize) -> Vec<Option<Arc<Recorder>>> {
    let kept = |(number, member): (usize, &Arc<Recorder>)| (number != missing).then(|| member.clone());
    members.iter().enumerate().map(kept).collect()
}

fn states(pool: &Pool) -> Vec<&'static str> {
    pool.info().members.iter().map(|member| member.state).collect()
}

/// Where a member holds a chunk that begins with this.
fn find(member: &Recorder, content: &[u8]) -> Option<u64> {
    let bytes = member.bytes();
    let at = bytes.chunks(CHUNK).position(|chunk| chunk.starts_with(content))?;
    Some((at * CHUNK) as u64)
}

#[test]
fn a_lost_member_is_missed_and_may_return() {
    let members = pool(2, Layout::Mirrored(2));
    let error = open_some(&without(&members, 1), false).err().unwrap();
    assert!(error.contains("missing") && error.contains("--degraded"), "{error}");
    let mut now = expected();
    {
        let pool = open_some(&without(&members, 1), true).unwrap();
        assert_eq!(states(&pool), ["ok", "missing"]);
        let volume = pool.volume("v", false).unwrap();
        assert_eq!(content(&volume).unwrap(), now);
        volume.write_bytes(10, b"written to one").unwrap();
        now[10..24].copy_from_slice(b"written to one");
    }
    // It comes back: what it missed must not be read from it.
    let pool = open(&members).unwrap();
    assert_eq!(states(&pool), ["ok", "failed"]);
    let volume = pool.volume("v", false).unwrap();
    assert_eq!(content(&volume).unwrap(), now);
    assert!(pool.info().volumes[0].degraded_chunks > 0);
    pool.rebuild(&|_| ()).unwrap();
    assert_eq!((states(&pool), pool.info().volumes[0].degraded_chunks), (vec!["ok", "ok"], 0));
    drop((pool, volume));
    // Each of them has it all.
    for missing in 0..2 {
        let copies: Vec<Arc<Recorder>> =
            members.iter().map(|member| Arc::new(Recorder::new(member.bytes(), 1))).collect();
        let pool = open_some(&without(&copies, missing), true).unwrap();
        assert_eq!(content(&pool.volume("v", true).unwrap()).unwrap(), now);
    }
}

#[test]
fn another_member_takes_the_place_of_a_lost_one() {
    let members = pool(2, Layout::Mirrored(2));
    let spare = setup::members(&[60], 9).remove(0);
    let pool = open_some(&without(&members, 0), true).unwrap();
    let error = pool.rebuild(&|_| ()).unwrap_err();
    assert!(error.to_string().contains("No member that works"), "{error}");
    pool.add_member(&setup::name(2), spare.clone()).unwrap();
    assert_eq!(pool.rebuild(&|_| ()).unwrap(), 4);
    pool.remove_member("0", &|_| ()).unwrap();
    drop(pool);
    let pool = open_some(&[Some(members[1].clone()), Some(spare.clone())], false).unwrap();
    assert_eq!(states(&pool), ["ok", "ok"]);
    assert!(pool.scrub(false, &|_| ()).unwrap().is_clean());
    drop(pool);
    let pool = open_some(&[Some(spare)], true).unwrap();
    assert_eq!(content(&pool.volume("v", true).unwrap()).unwrap(), expected());
}

#[test]
fn a_chunk_without_a_copy_names_its_member() {
    let members = pool(2, Layout::Striped);
    let pool = open_some(&without(&members, 1), true).unwrap();
    let volume = pool.volume("v", false).unwrap();
    let mut chunk = vec![0; CHUNK];
    volume.read_bytes(0, &mut chunk).unwrap();
    assert_eq!(chunk, vec![1; CHUNK]);
    for error in [
        volume.read_bytes(CHUNK as u64, &mut chunk).unwrap_err(),
        volume.write_bytes(CHUNK as u64, &[1; 512]).unwrap_err(),
        pool.remove_member("1", &|_| ()).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("volume v") && text.contains("number 1"), "{text}");
    }
    drop((pool, volume));
    // Nothing was lost: with the member, all is there again.
    let pool = open(&members).unwrap();
    pool.rebuild(&|_| ()).unwrap();
    assert_eq!(content(&pool.volume("v", true).unwrap()).unwrap(), expected());
}

#[test]
fn a_member_that_breaks_is_given_up_before_the_write_is_acknowledged() {
    let members = pool(3, Layout::Mirrored(2));
    let mut now = expected();
    {
        let pool = open(&members).unwrap();
        let volume = pool.volume("v", false).unwrap();
        volume.write_bytes(0, &[8; 512]).unwrap();
        volume.flush().unwrap();
        members[1].set_broken(true);
        for chunk in 0..4 {
            volume.write_bytes((chunk * CHUNK) as u64, &[9; 1024]).unwrap();
            now[chunk * CHUNK..][..1024].fill(9);
        }
        // Without a flush, and without being closed: only what was durable before the write's end counts.
        assert_eq!(content(&volume).unwrap(), now);
        std::mem::forget((pool, volume));
    }
    members[1].set_broken(false);
    let pool = open(&members).unwrap();
    assert_eq!(states(&pool), ["ok", "failed", "ok"]);
    assert_eq!(content(&pool.volume("v", true).unwrap()).unwrap(), now);
    pool.rebuild(&|_| ()).unwrap();
    assert!(pool.scrub(false, &|_| ()).unwrap().is_clean());
}

#[test]
fn members_that_went_different_ways_are_refused() {
    let members = pool(2, Layout::Mirrored(2));
    let copies: Vec<Arc<Recorder>> =
        members.iter().map(|member| Arc::new(Recorder::new(member.bytes(), 1))).collect();
    for missing in 0..2 {
        let pool = open_some(&without(&copies, missing), true).unwrap();
        pool.volume("v", false).unwrap().write_bytes(0, &[missing as u8; 512]).unwrap();
    }
    let error = open(&copies).err().unwrap();
    assert!(error.contains("without each other"), "{error}");
    // Members of two pools, and one member twice.
    let others = pool_of_another_kind();
    let error = open_some(&[Some(members[0].clone()), Some(others[0].clone())], true).err().unwrap();
    assert!(error.contains("another pool"), "{error}");
    let error = open_some(&[Some(members[0].clone()), Some(members[0].clone())], true).err().unwrap();
    assert!(error.contains("named twice"), "{error}");
}

fn pool_of_another_kind() -> Vec<Arc<Recorder>> {
    pool(1, Layout::Linear)
}

#[test]
fn scrub_finds_and_repairs_what_differs() {
    let members = pool(3, Layout::Mirrored(3));
    let at = find(&members[1], &[3; 64]).unwrap();
    members[1].write_bytes(at + 5, &[0x55]).unwrap();
    let pool = open(&members).unwrap();
    let report = pool.scrub(false, &|_| ()).unwrap();
    assert_eq!((report.chunks, report.differing, report.repaired), (4, 1, 0), "{report:?}");
    assert_eq!(report.findings, ["chunk 2 of volume v has copies that differ"]);
    let report = pool.scrub(true, &|_| ()).unwrap();
    assert_eq!((report.differing, report.repaired), (1, 1));
    assert!(pool.scrub(false, &|_| ()).unwrap().findings.is_empty());
    assert_eq!(find(&members[1], &[3; CHUNK]), Some(at));
}

#[test]
fn new_chunks_never_show_what_another_volume_left() {
    let members = setup::members(&[40], 3);
    setup::create(&members).unwrap();
    let pool = open(&members).unwrap();
    let size = 20 * CHUNK as u64;
    pool.create_volume("old", size, Layout::Linear, THIN, &[]).unwrap();
    pool.volume("old", false).unwrap().write_bytes(0, &vec![0xbb; size as usize]).unwrap();
    pool.delete_volume("old", false).unwrap();
    for provisioning in [Provisioning::Thin, Provisioning::Lazy, Provisioning::Eager] {
        pool.create_volume("new", size, Layout::Linear, provisioning, &[]).unwrap();
        let volume = pool.volume("new", false).unwrap();
        for chunk in 0..20 {
            volume.write_bytes(chunk * CHUNK as u64 + 1024, &[1; 512]).unwrap();
        }
        let mut expected = vec![0; size as usize];
        expected.chunks_mut(CHUNK).for_each(|chunk| chunk[1024..1536].fill(1));
        assert!(content(&volume).unwrap() == expected, "{provisioning:?}");
        drop(volume);
        pool.delete_volume("new", false).unwrap();
    }
}

#[test]
fn snapshots_cost_what_only_they_have() {
    let members = pool(1, Layout::Linear);
    let pool = open(&members).unwrap();
    let volume = pool.volume("v", false).unwrap();
    let costs = || {
        let volume = pool.info().volumes.remove(0);
        let chunk = CHUNK as u64;
        let snapshots: Vec<u64> =
            volume.snapshots.iter().map(|snapshot| snapshot.exclusive / chunk).collect();
        (volume.allocated / chunk, volume.redirected / chunk, snapshots)
    };
    pool.create_snapshot("v", "a").unwrap();
    assert_eq!(costs(), (4, 0, vec![0]));
    volume.write_bytes(0, &[9; 512]).unwrap();
    volume.write_bytes(CHUNK as u64, &[9; 512]).unwrap();
    pool.create_snapshot("v", "b").unwrap();
    volume.write_bytes(0, &[8; 512]).unwrap();
    assert_eq!(costs(), (7, 1, vec![2, 1]));
    pool.revert("v", "b").unwrap();
    assert_eq!(costs(), (6, 0, vec![2, 0]));
    pool.delete_snapshot("v", "a").unwrap();
    assert_eq!(costs(), (4, 0, vec![0]));
    let mut now = expected();
    now[..512].fill(9);
    now[CHUNK..][..512].fill(9);
    assert_eq!(content(&volume).unwrap(), now);
}

#[test]
fn a_pool_that_is_only_read_is_not_written_to() {
    let members = pool(2, Layout::Mirrored(2));
    let before: Vec<Vec<u8>> = members.iter().map(|member| member.bytes()).collect();
    let offered = members.iter().map(|member| (setup::name(0), Ok(member.clone() as Arc<dyn BlockBackend>)));
    let pool = Pool::open(offered.collect(), OpenPool { read_only: true, degraded: false }).unwrap();
    let volume = pool.volume("v", false).unwrap();
    assert_eq!(content(&volume).unwrap(), expected());
    assert!(volume.write_bytes(0, &[1; 512]).is_err() && pool.create_snapshot("v", "s").is_err());
    drop((pool, volume));
    assert!(before.iter().zip(&members).all(|(before, member)| *before == member.bytes()));
}

/// Where both members have the second chunk.
fn second_chunk(members: &[Arc<Recorder>]) -> Vec<usize> {
    members.iter().map(|member| find(member, &[2; 64]).unwrap() as usize).collect()
}

fn are_equal(members: &[Arc<Recorder>], places: &[usize]) -> bool {
    let copy = |n: usize| members[n].bytes()[places[n]..places[n] + CHUNK].to_vec();
    copy(0) == copy(1)
}

#[test]
fn a_write_that_finds_a_member_full_leaves_copies_equal() {
    const KIB: usize = 1024;
    let holes: [(&[usize], usize); 4] = [(&[0], 9), (&[1], 9), (&[0, 1], 12), (&[1, 0], 8)];
    for (full, (summed, (full_members, start))) in
        [false, true].into_iter().flat_map(|summed| holes.map(|hole| (summed, hole))).enumerate()
    {
        let members = pool(2, Layout::Mirrored(2));
        let pool = open(&members).unwrap();
        if summed {
            pool.set_checksums("v", true, &|_| ()).unwrap();
        }
        let volume = pool.volume("v", false).unwrap();
        let places = second_chunk(&members);
        // Where two are full, the one runs out of space earlier than the other.
        for (number, member) in full_members.iter().enumerate() {
            let at = places[*member] + (start + 8 * number) * KIB;
            members[*member].set_no_space(at..at + 12 * KIB);
        }
        let error = volume.write_bytes(CHUNK as u64 + 512, &[9; 30 * KIB]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{full}");
        assert!(are_equal(&members, &places), "case {full}: checksums {summed}, {full_members:?} full");
        // What is beside it is as it was, and the region is what it was.
        let mut now = content(&volume).unwrap();
        now[CHUNK + 512..][..30 * KIB].fill(2);
        assert_eq!(now, expected());
        members.iter().for_each(|member| member.set_no_space(0..0));
        assert!(pool.scrub(false, &|_| ()).unwrap().is_clean(), "case {full}");
        volume.write_bytes(CHUNK as u64 + 512, &[9; 30 * KIB]).unwrap();
        now[CHUNK + 512..][..30 * KIB].fill(9);
        assert_eq!(content(&volume).unwrap(), now);
    }
}

/// Copies that cannot be made equal are so later, without anybody asking: the region stays dirty when the pool is closed.
#[test]
fn copies_of_full_members_are_made_equal_when_the_pool_is_opened() {
    let members = pool(2, Layout::Mirrored(2));
    let places = second_chunk(&members);
    {
        let pool = open(&members).unwrap();
        let volume = pool.volume("v", false).unwrap();
        for (member, start) in [(0, 4608), (1, 4096)] {
            let at = places[member] + start;
            members[member].set_no_space(at..at + 16384);
        }
        assert!(volume.write_bytes(CHUNK as u64, &[9; 16384]).is_err());
        volume.flush().unwrap();
        volume.flush().unwrap();
    }
    // One has a sector of it that the other has no space for.
    assert!(!are_equal(&members, &places));
    {
        // Still full: the pool opens all the same.
        let pool = open(&members).unwrap();
        assert!(!are_equal(&members, &places));
        assert!(!pool.scrub(true, &|_| ()).unwrap().is_clean());
    }
    members.iter().for_each(|member| member.set_no_space(0..0));
    let pool = open(&members).unwrap();
    assert!(are_equal(&members, &places));
    assert!(pool.scrub(false, &|_| ()).unwrap().is_clean());
}
