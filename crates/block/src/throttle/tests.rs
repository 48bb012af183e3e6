//! Limits on a clock that only the test moves; the arithmetic of the book is the oracle.

use super::bucket::Picoseconds;
use super::scheduler::{Direction, Member, Scheduler, Ticket};
use super::*;
use crate::RawFile;
use std::collections::BTreeMap;

const SECOND: Picoseconds = 1_000_000_000_000;

fn rate(average: u64, burst: u64) -> Option<Rate> {
    Some(Rate { average, burst: (burst > 0).then_some(burst) })
}

/// A disk that always has so many requests of one kind waiting.
struct Load {
    member: Member,
    direction: Direction,
    bytes: u64,
    depth: usize,
}

struct World {
    scheduler: Scheduler,
    now: Picoseconds,
    waiting: BTreeMap<Ticket, usize>,
    loads: Vec<Load>,
    /// Requests that went, by load.
    went: Vec<u64>,
}

impl World {
    fn new(limits: Limits) -> Self {
        limits.validate().unwrap();
        let scheduler = Scheduler::new(limits);
        World { scheduler, now: 0, waiting: BTreeMap::new(), loads: Vec::new(), went: Vec::new() }
    }

    fn load(&mut self, direction: Direction, bytes: u64, depth: usize) -> usize {
        let member = self.scheduler.join();
        self.loads.push(Load { member, direction, bytes, depth });
        self.went.push(0);
        self.loads.len() - 1
    }

    /// Keeps all loads going until `end`.
    fn run(&mut self, end: Picoseconds) {
        loop {
            for (index, load) in self.loads.iter().enumerate() {
                let have = self.waiting.values().filter(|owner| **owner == index).count();
                for _ in have..load.depth {
                    let ticket = self.scheduler.arrive(load.member, load.direction, load.bytes);
                    self.waiting.insert(ticket, index);
                }
            }
            let turn = self.scheduler.turn(self.now);
            let idle = turn.admitted.is_empty();
            for ticket in turn.admitted {
                self.went[self.waiting.remove(&ticket).unwrap()] += 1;
            }
            match turn.next {
                Some(next) if idle && next > end => break,
                Some(next) if idle => {
                    assert!(next > self.now, "asked to come back in the past");
                    self.now = next;
                }
                None if idle => break,
                _ => {}
            }
        }
        self.now = end;
    }
}

#[test]
fn the_average_is_kept_exactly() {
    for average in [1, 7, 100, 12_345] {
        let mut world = World::new(Limits { iops: rate(average, 0), ..Limits::default() });
        let load = world.load(Direction::Read, 4096, 4);
        for seconds in [1, 10, 100] {
            world.run(seconds * SECOND);
            // What passes at once when idle is a tenth of a second of the rate, at least one request.
            let (went, flows) = (world.went[load], average * seconds as u64);
            assert!(
                went >= flows && went <= flows + (average / 10).max(1),
                "{average}: {went} in {seconds} s"
            );
        }
    }
}

#[test]
fn bytes_are_kept_with_requests_of_any_size() {
    for bytes in [512, 4096, 1 << 20, 16 << 20] {
        let limit = 8 << 20;
        let mut world = World::new(Limits { bps: rate(limit, 0), ..Limits::default() });
        let load = world.load(Direction::Write, bytes, 1);
        world.run(100 * SECOND);
        let went = world.went[load] * bytes;
        assert!(
            went >= 100 * limit - bytes && went <= 100 * limit + (limit / 10).max(bytes),
            "{bytes}: {went}"
        );
    }
}

#[test]
fn a_burst_lasts_as_long_as_was_asked_and_comes_back_after_idleness() {
    let limits = Limits { iops: rate(100, 1000), burst: 5, ..Limits::default() };
    let mut world = World::new(limits);
    let load = world.load(Direction::Read, 512, 8);
    let mut before = 0;
    // In units a second: the burst for 5 s, then the average, then after 45 s without load (4500 flowed out, which is
    // what the bucket holds) the burst again.
    for (from, to, expected) in [(0, 5, 1000), (6, 20, 100), (65, 70, 1000), (71, 80, 100)] {
        world.loads[load].depth = 0;
        world.waiting.clear();
        world.scheduler.leave(world.loads[load].member);
        world.loads[load].member = world.scheduler.join();
        world.now = from * SECOND;
        world.loads[load].depth = 8;
        world.run(to * SECOND);
        let went = world.went[load] - before;
        before = world.went[load];
        let wanted = expected * (to - from) as u64;
        // A second between the phases, and what passes at once.
        assert!(went + 1 >= wanted && went <= wanted + 201, "{from}..{to}: {went}, not {wanted}");
    }
}

#[test]
fn each_direction_has_its_own_limit_and_holds_up_no_other() {
    let mut world =
        World::new(Limits { iops_rd: rate(10, 0), bps_wr: rate(1 << 20, 0), ..Limits::default() });
    let reads = world.load(Direction::Read, 1 << 30, 4);
    let writes = world.load(Direction::Write, 1 << 10, 4);
    world.run(50 * SECOND);
    assert!((500..=501).contains(&world.went[reads]), "{}", world.went[reads]);
    assert!((51_200..=51_303).contains(&world.went[writes]), "{}", world.went[writes]);
}

#[test]
fn disks_of_a_group_get_equal_shares_whatever_they_ask_for() {
    let mut world = World::new(Limits { bps: rate(10 << 20, 0), ..Limits::default() });
    let large = world.load(Direction::Write, 1 << 20, 32);
    let small = world.load(Direction::Read, 4096, 1);
    let middle = world.load(Direction::Write, 64 << 10, 4);
    world.run(300 * SECOND);
    let bytes: Vec<u64> =
        [large, small, middle].iter().map(|load| world.went[*load] * world.loads[*load].bytes).collect();
    let third = 1000 << 20;
    assert!(bytes.iter().all(|bytes| bytes.abs_diff(third) <= 3 << 20), "{bytes:?}");
    // By number of requests where that is what is limited.
    let mut world = World::new(Limits { iops: rate(100, 0), ..Limits::default() });
    let (many, few) = (world.load(Direction::Write, 512, 64), world.load(Direction::Write, 1 << 20, 1));
    world.run(100 * SECOND);
    // But for what goes at once at the start, when the other one has nothing waiting yet.
    assert!(world.went[many].abs_diff(world.went[few]) <= 10, "{:?}", world.went);
}

#[test]
fn a_disk_that_slept_does_not_starve_the_others() {
    let mut world = World::new(Limits { iops: rate(100, 0), ..Limits::default() });
    let (busy, late) = (world.load(Direction::Read, 512, 4), world.load(Direction::Read, 512, 0));
    world.run(1000 * SECOND);
    world.loads[late].depth = 4;
    let before = world.went[busy];
    world.run(1010 * SECOND);
    let (busy, late) = (world.went[busy] - before, world.went[late]);
    assert!(busy.abs_diff(late) <= 12 && busy + late >= 999, "{busy} and {late}");
}

#[test]
fn new_limits_hold_at_once_and_forgive_nothing() {
    let mut world = World::new(Limits { bps: rate(1000, 0), ..Limits::default() });
    let load = world.load(Direction::Write, 5000, 1);
    world.run(0);
    assert_eq!(world.went[load], 1);
    // The 5000 bytes take their 5 seconds; then it goes on at the new rate.
    world.scheduler.set_limits(Limits { bps: rate(50_000, 0), ..Limits::default() });
    world.run(5 * SECOND - 1);
    assert_eq!(world.went[load], 1);
    world.run(15 * SECOND);
    assert!((100..=102).contains(&world.went[load]), "{}", world.went[load]);
    world.scheduler.set_limits(Limits::default());
    let mut turns = 0;
    while turns < 5 {
        world.scheduler.arrive(world.loads[load].member, Direction::Write, 5000);
        assert!(!world.scheduler.turn(world.now).admitted.is_empty());
        turns += 1;
    }
}

#[test]
fn wrong_limits_are_refused() {
    for limits in [
        Limits { iops: rate(0, 0), ..Limits::default() },
        Limits { bps_rd: rate(100, 100), ..Limits::default() },
        Limits { burst: 0, ..Limits::default() },
        Limits { burst: 90_000, ..Limits::default() },
    ] {
        assert!(ThrottleGroup::new(limits.clone()).is_err(), "{limits:?}");
    }
}

/// No rate is too large or small for the arithmetic.
#[test]
fn extremes_do_not_overflow() {
    let mut world = World::new(Limits { bps: rate(1, u64::MAX), burst: 86_400, ..Limits::default() });
    world.load(Direction::Write, u64::MAX, 1);
    world.run(3600 * SECOND);
    assert!(world.went[0] >= 1);
}

/// Real threads: whoever waits for hours goes at once when the disk is drained.
#[test]
fn a_drained_disk_waits_for_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let raw: Arc<dyn BlockBackend> = Arc::new(RawFile::open(file.path(), false).unwrap());
    let slow = Limits { bps: rate(1, 0), ..Limits::default() };
    let group = ThrottleGroup::new(slow).unwrap();
    let disk = Throttled::new(raw.clone(), group.clone());
    let other = Throttled::new(raw, group.clone());
    std::thread::scope(|scope| {
        for at in 0..8_u64 {
            let disk = &disk;
            scope.spawn(move || disk.write_bytes(at * 4096, &[at as u8 + 1; 4096]).unwrap());
        }
        let waiting = scope.spawn(|| other.write_bytes(9 * 4096, &[9; 4096]).unwrap());
        disk.drain(true);
        disk.write_bytes(8 * 4096, &[9; 4096]).unwrap();
        disk.drain(false);
        // The other one of the group is let go by an end of the limits.
        group.set_limits(Limits::default()).unwrap();
        waiting.join().unwrap();
    });
    let content = std::fs::read(file.path()).unwrap();
    assert!((0..8).all(|at| content[at * 4096] == at as u8 + 1));
}
