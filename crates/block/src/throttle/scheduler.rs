//! Who may go when: the state of a group, without threads and without a clock.
//!
//! The disks of a group wait in queues of their own, reads apart from writes. Of those that the limits of their
//! direction let go, the one whose disk had the least share of the group's rate goes first (start-time fair queuing),
//! and nobody overtakes it. A disk that was idle begins with the share of those who were not: idleness is not saved up.

use super::bucket::{Limiter, Limits, Picoseconds};
use std::collections::{BTreeMap, VecDeque};

/// Where data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// A disk of the group.
pub(super) type Member = u64;
/// A request that waits.
pub(super) type Ticket = u64;

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Queues {
    reads: VecDeque<Waiting>,
    writes: VecDeque<Waiting>,
    /// The share of the group's rate it had.
    share: Picoseconds,
    /// How many want its requests to go without waiting.
    drains: u32,
}

impl Queues {
    fn of(&self, direction: Direction) -> &VecDeque<Waiting> {
        match direction {
            Direction::Read => &self.reads,
            Direction::Write => &self.writes,
        }
    }

    fn pop(&mut self, direction: Direction) -> Option<Waiting> {
        match direction {
            Direction::Read => self.reads.pop_front(),
            Direction::Write => self.writes.pop_front(),
        }
    }
}

/// The limits of one kind of requests: their number and their bytes.
#[derive(Debug)]
struct Pair {
    requests: Limiter,
    bytes: Limiter,
}

impl Pair {
    fn wait(&self, now: Picoseconds, bytes: u64) -> Picoseconds {
        self.requests.wait(now, 1).max(self.bytes.wait(now, bytes))
    }

    fn pass(&mut self, now: Picoseconds, bytes: u64) {
        self.requests.pass(now, 1);
        self.bytes.pass(now, bytes);
    }

    fn share(&self, bytes: u64) -> Picoseconds {
        self.requests.share(1).max(self.bytes.share(bytes))
    }

    fn inherit(&mut self, other: &Pair) {
        self.requests.inherit(&other.requests);
        self.bytes.inherit(&other.bytes);
    }
}

/// A group's state.
#[derive(Debug)]
pub(super) struct Scheduler {
    limits: Limits,
    all: Pair,
    reads: Pair,
    writes: Pair,
    members: BTreeMap<Member, Queues>,
    /// The share with which the last one went.
    level: Picoseconds,
    next_member: Member,
    next_ticket: Ticket,
}

/// What may go, and when to look again if something still waits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    pub admitted: Vec<Ticket>,
    pub next: Option<Picoseconds>,
}

impl Scheduler {
    pub fn new(limits: Limits) -> Self {
        let [all, reads, writes] = pairs(&limits);
        let members = BTreeMap::new();
        Scheduler { limits, all, reads, writes, members, level: 0, next_member: 0, next_ticket: 0 }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn set_limits(&mut self, limits: Limits) {
        let [mut all, mut reads, mut writes] = pairs(&limits);
        all.inherit(&self.all);
        reads.inherit(&self.reads);
        writes.inherit(&self.writes);
        (self.limits, self.all, self.reads, self.writes) = (limits, all, reads, writes);
    }

    pub fn join(&mut self) -> Member {
        self.next_member += 1;
        self.members.insert(self.next_member, Queues { share: self.level, ..Queues::default() });
        self.next_member
    }

    pub fn leave(&mut self, member: Member) {
        self.members.remove(&member);
    }

    /// From now on (until as many calls with `false`) requests of a member do not wait.
    pub fn drain(&mut self, member: Member, begin: bool) {
        if let Some(queues) = self.members.get_mut(&member) {
            queues.drains = if begin { queues.drains + 1 } else { queues.drains.saturating_sub(1) };
        }
    }

    /// A request waits from now on.
    pub fn arrive(&mut self, member: Member, direction: Direction, bytes: u64) -> Ticket {
        self.next_ticket += 1;
        let waiting = Waiting { ticket: self.next_ticket, bytes };
        let queues = self.members.entry(member).or_default();
        if queues.reads.is_empty() && queues.writes.is_empty() {
            queues.share = queues.share.max(self.level);
        }
        match direction {
            Direction::Read => queues.reads.push_back(waiting),
            Direction::Write => queues.writes.push_back(waiting),
        }
        waiting.ticket
    }

    /// Lets go what may go now.
    pub fn turn(&mut self, now: Picoseconds) -> Turn {
        let mut turn = Turn::default();
        while let Some((member, direction, bytes)) = self.first(now, &mut turn.next) {
            let share = self.all.share(bytes).max(self.pair(direction).share(bytes));
            self.all.pass(now, bytes);
            match direction {
                Direction::Read => self.reads.pass(now, bytes),
                Direction::Write => self.writes.pass(now, bytes),
            }
            let Some(queues) = self.members.get_mut(&member) else { break };
            self.level = self.level.max(queues.share);
            queues.share += share;
            turn.admitted.extend(queues.pop(direction).map(|waiting| waiting.ticket));
        }
        turn
    }

    fn pair(&self, direction: Direction) -> &Pair {
        match direction {
            Direction::Read => &self.reads,
            Direction::Write => &self.writes,
        }
    }

    /// Whoever goes now; if nobody does, `next` is when to ask again.
    fn first(&self, now: Picoseconds, next: &mut Option<Picoseconds>) -> Option<(Member, Direction, u64)> {
        *next = None;
        let mut soonest: Option<Picoseconds> = None;
        let mut best: Option<(Picoseconds, Ticket, Member, Direction, u64)> = None;
        for (&member, queues) in &self.members {
            for direction in [Direction::Read, Direction::Write] {
                let Some(&Waiting { ticket, bytes }) = queues.of(direction).front() else { continue };
                if queues.drains > 0 {
                    return Some((member, direction, bytes));
                }
                let wait = self.pair(direction).wait(now, bytes);
                if wait > 0 {
                    soonest = Some(soonest.map_or(wait, |soonest| soonest.min(wait)));
                } else if best.is_none_or(|(share, first, ..)| (queues.share, ticket) < (share, first)) {
                    best = Some((queues.share, ticket, member, direction, bytes));
                }
            }
        }
        if let Some((_, _, member, direction, bytes)) = best {
            match self.all.wait(now, bytes) {
                0 => return Some((member, direction, bytes)),
                wait => soonest = Some(soonest.map_or(wait, |soonest| soonest.min(wait))),
            }
        }
        *next = soonest.map(|wait| now + wait);
        None
    }
}

/// For all requests, reads, writes.
fn pairs(limits: &Limits) -> [Pair; 3] {
    let Limits { iops, iops_rd, iops_wr, bps, bps_rd, bps_wr, burst } = *limits;
    [(iops, bps), (iops_rd, bps_rd), (iops_wr, bps_wr)].map(|(requests, bytes)| Pair {
        requests: Limiter::new(requests, burst),
        bytes: Limiter::new(bytes, burst),
    })
}
