//! Several volumes, clones of each other: random histories against plain copies of their contents, with and without a power
//! loss at any write.

use crate::model::{Model, SECTOR};
use crate::random::Random;
use crate::recorder::Recorder;
use crate::setup::{self, CHUNK, cases, content, layout, members, same, text};
use block::BlockBackend;
use block::pool::{Layout, Pool};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone)]
struct Disk {
    model: Model,
    snapshots: BTreeMap<String, Vec<u8>>,
    template: bool,
}

/// All volumes by their names.
type World = BTreeMap<String, Disk>;

/// Everything in it is durable.
fn flushed(mut world: World) -> World {
    world.values_mut().for_each(|disk| disk.model.flush());
    world
}

/// Whether the pool may hold this, or does exactly.
fn compare(world: &World, pool: &Arc<Pool>, exactly: bool) -> Result<(), String> {
    let info = pool.info();
    let there: Vec<&String> = info.volumes.iter().map(|volume| &volume.name).collect();
    if there.len() != world.len() || !world.keys().all(|name| there.contains(&name)) {
        return Err(format!("volumes {there:?} instead of {:?}", world.keys()));
    }
    for volume in &info.volumes {
        let disk = &world[&volume.name];
        let found = content(&pool.volume(&volume.name, true).map_err(text)?)?;
        if found.len() != disk.model.now.len() || volume.template != disk.template {
            let (is, size) = (found.len(), disk.model.now.len());
            return Err(format!(
                "{}: {is} bytes instead of {size}, template: {}",
                volume.name, volume.template
            ));
        }
        if exactly {
            same(&volume.name, &found, &disk.model.now)?;
        }
        disk.model.check(&found).map_err(|error| format!("{}: {error}", volume.name))?;
        let snapshots: Vec<&String> = volume.snapshots.iter().map(|snapshot| &snapshot.name).collect();
        if snapshots.len() != disk.snapshots.len() {
            return Err(format!("{} has snapshots {snapshots:?}", volume.name));
        }
        for (name, expected) in &disk.snapshots {
            let name = format!("{}@{name}", volume.name);
            same(&name, &content(&pool.volume(&name, true).map_err(text)?)?, expected)?;
        }
    }
    Ok(())
}

struct Case {
    random: Random,
    members: Vec<Arc<Recorder>>,
    layout: Layout,
    world: World,
    /// What it may be after what is under way.
    next: Vec<World>,
    named: u32,
    broken: bool,
}

impl Case {
    fn one_of(&mut self, names: Vec<String>) -> Option<String> {
        let number = self.random.below(names.len() as u64) as usize;
        names.into_iter().nth(number)
    }

    fn new_name(&mut self, letter: char) -> String {
        self.named += 1;
        format!("{letter}{}", self.named)
    }

    /// Something that is done whole or not at all, and makes durable all that was before.
    fn change(
        &mut self,
        pool: &Arc<Pool>,
        change: impl FnOnce(&mut World),
        act: impl FnOnce(&Arc<Pool>) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut next = flushed(self.world.clone());
        change(&mut next);
        self.next = vec![next];
        act(pool)?;
        self.world = self.next.pop().ok_or("no next world")?;
        Ok(())
    }

    fn write(&mut self, pool: &Arc<Pool>, name: &str) -> Result<(), String> {
        let volume = pool.volume(name, false).map_err(text)?;
        let Some(disk) = self.world.get_mut(name) else { return Err("no such disk".to_owned()) };
        let size = disk.model.now.len();
        let at = self.random.below((size / SECTOR) as u64) as usize * SECTOR;
        let len = ((1 + self.random.below(100)) as usize * SECTOR).min(size - at);
        if disk.template {
            let refused = volume.write_bytes(at as u64, &vec![1; len]);
            return refused.err().map(drop).ok_or_else(|| "a template was written to".to_owned());
        }
        match self.random.below(8) {
            0 => {
                disk.model.write(at, len, 0);
                volume.write_zeroes(at as u64, len as u64, self.random.chance(50)).map_err(text)
            }
            1 => {
                let start = at / CHUNK * CHUNK;
                let len = (CHUNK * (1 + self.random.below(2) as usize)).min(size - start);
                disk.model.write(start, len, 0);
                volume.discard(start as u64, len as u64).map_err(text)
            }
            2 => {
                let mut found = vec![0; len];
                volume.read_bytes(at as u64, &mut found).map_err(text)?;
                same("what was read", &found, &disk.model.now[at..at + len])
            }
            _ => {
                let value = self.random.next() as u8;
                disk.model.write(at, len, value);
                volume.write_bytes(at as u64, &vec![value; len]).map_err(text)
            }
        }
    }

    fn snapshot(&mut self, pool: &Arc<Pool>, name: String) -> Result<(), String> {
        let disk = &self.world[&name];
        let names: Vec<String> = disk.snapshots.keys().cloned().collect();
        let may_revert = !disk.template;
        match (self.random.below(4), self.one_of(names)) {
            (0, Some(snapshot)) if may_revert => {
                let reverted = disk_after_revert(&self.world[&name], &snapshot);
                self.change(
                    pool,
                    |world| drop(world.insert(name.clone(), reverted)),
                    |pool| pool.revert(&name, &snapshot).map_err(text),
                )
            }
            (1, Some(snapshot)) => {
                let gone = |world: &mut World| {
                    world.get_mut(&name).and_then(|disk| disk.snapshots.remove(&snapshot));
                };
                match self.change(pool, gone, |pool| pool.delete_snapshot(&name, &snapshot).map_err(text)) {
                    Err(error) if error.contains("template is made of") => {
                        self.next.clear();
                        Ok(())
                    }
                    done => done,
                }
            }
            _ => {
                let snapshot = self.new_name('s');
                let keep = |world: &mut World| {
                    if let Some(disk) = world.get_mut(&name) {
                        disk.snapshots.insert(snapshot.clone(), disk.model.now.clone());
                    }
                };
                self.change(pool, keep, |pool| pool.create_snapshot(&name, &snapshot).map_err(text))
            }
        }
    }

    fn clone_one(&mut self, pool: &Arc<Pool>, source: String) -> Result<(), String> {
        let disk = &self.world[&source];
        let snapshots: Vec<String> = disk.snapshots.keys().cloned().collect();
        let by_name = disk.template && self.random.chance(50);
        let now = disk.model.now.clone();
        let (path, content) = match self.one_of(snapshots) {
            Some(snapshot) if !by_name => {
                (format!("{source}@{snapshot}"), self.world[&source].snapshots[&snapshot].clone())
            }
            _ if by_name => (source, now),
            _ => return Ok(()),
        };
        let name = self.new_name('c');
        let disk = Disk { model: Model::of(content), snapshots: BTreeMap::new(), template: false };
        self.change(
            pool,
            |world| drop(world.insert(name.clone(), disk)),
            |pool| pool.clone_volume(&path, &name).map_err(text),
        )
    }

    fn set_template(&mut self, pool: &Arc<Pool>, name: &str) -> Result<(), String> {
        let disk = &self.world[name];
        let on = !disk.template;
        // Which snapshot it is made of, or whether one is made, is for the pool to know; one that is equal must be there.
        let before: Vec<String> = disk.snapshots.keys().cloned().collect();
        if on && before.contains(&"template".to_owned()) {
            return Ok(());
        }
        let mut next = flushed(self.world.clone());
        if let Some(disk) = next.get_mut(name) {
            disk.template = on;
        }
        let mut with_snapshot = next.clone();
        if let Some(disk) = with_snapshot.get_mut(name) {
            disk.snapshots.insert("template".to_owned(), disk.model.now.clone());
        }
        self.next = if on { vec![next.clone(), with_snapshot.clone()] } else { vec![next.clone()] };
        pool.set_template(name, on).map_err(text)?;
        self.next.clear();
        let made = on && pool.volume(&format!("{name}@template"), true).is_ok();
        self.world = if made { with_snapshot } else { next };
        Ok(())
    }

    fn resize(&mut self, pool: &Arc<Pool>, name: &str) -> Result<(), String> {
        if self.world[name].template {
            return Ok(());
        }
        let size = CHUNK * 3 + SECTOR * self.random.below(600) as usize;
        let resized = |world: &mut World| {
            if let Some(disk) = world.get_mut(name) {
                let mut now = disk.model.now.clone();
                now.resize(size, 0);
                disk.model = Model::of(now);
            }
        };
        let act = |pool: &Arc<Pool>| {
            pool.volume(name, false).and_then(|volume| volume.resize(size as u64)).map_err(text)
        };
        self.change(pool, resized, act)
    }

    fn step(&mut self, pool: &Arc<Pool>) -> Result<(), String> {
        let names: Vec<String> = self.world.keys().cloned().collect();
        let count = names.len();
        let name = self.one_of(names).ok_or("no volume is left")?;
        match self.random.below(30) {
            0..3 => {
                let volume = pool.volume(&name, false).map_err(text)?;
                volume.flush().map_err(text)?;
                self.world = flushed(std::mem::take(&mut self.world));
                Ok(())
            }
            3 | 4 => self.snapshot(pool, name),
            5 | 6 if count < 6 => self.clone_one(pool, name),
            7 if count > 2 => self.change(
                pool,
                |world| drop(world.remove(&name)),
                |pool| pool.delete_volume(&name, true).map_err(text),
            ),
            8 => match pool.flatten(&name, &|_| ()).map_err(text) {
                Err(error) if error.contains("is no clone") => Ok(()),
                done => done.map(drop),
            },
            9 => self.set_template(pool, &name),
            10 => self.resize(pool, &name),
            13 => match pool.set_checksums(&name, self.random.chance(70), &|_| ()).map_err(text) {
                Err(error) if error.contains("turn checksums on again") => Ok(()),
                done => done.map(drop),
            },
            11 if self.random.chance(30) => {
                let on = setup::some_members(&mut self.random, self.members.len(), self.layout.copies());
                pool.move_volume(&name, &on, &|_| ()).map(drop).map_err(text)
            }
            12 if self.random.chance(20) => {
                setup::break_one(&mut self.random, pool, self.layout, &self.members, &mut self.broken);
                Ok(())
            }
            _ => self.write(pool, &name),
        }
    }

    /// After something failed for want of space or a member: it was done in part, whole, or not at all.
    fn settle(&mut self, pool: &Arc<Pool>) -> Result<(), String> {
        let volumes = pool.info().volumes.len();
        let done = std::mem::take(&mut self.next).into_iter();
        let mut done = done.filter(|next| next.len() == volumes && compare(next, pool, false).is_ok());
        if let Some(next) = done.next() {
            self.world = next;
        }
        for (name, disk) in &mut self.world {
            let found = content(&pool.volume(name, true).map_err(text)?)?;
            let sectors =
                found.chunks(SECTOR).zip(disk.model.now.chunks(SECTOR)).zip(&mut disk.model.possible);
            for ((found, now), possible) in sectors {
                if found != now {
                    possible.push(found[0]);
                }
            }
            disk.model.now = found;
        }
        compare(&self.world, pool, false)
    }

    fn round(&mut self, lose_power: bool) -> Result<(), String> {
        let pool = setup::open(&self.members)?;
        compare(&self.world, &pool, true)?;
        if lose_power {
            self.members[0].lose_power_after(self.random.below(700) as i64);
        }
        for _ in 0..50 + self.random.below(150) {
            let done = self.step(&pool);
            if !self.members[0].has_power() {
                break;
            }
            match done {
                Err(error) if may_happen(&error) => self.settle(&pool)?,
                done => done?,
            }
        }
        if !lose_power {
            compare(&self.world, &pool, true)?;
            drop(pool);
            self.members.iter().for_each(|member| member.set_broken(false));
        } else {
            let mut after: Vec<Recorder> =
                self.members.iter().map(|member| member.after_power_loss()).collect();
            std::mem::forget(pool);
            let (first, others) = after.split_first_mut().ok_or("no members")?;
            others.iter_mut().for_each(|other| other.share_power(first));
            self.members = after.into_iter().map(Arc::new).collect();
        }
        self.broken = false;
        self.after(lose_power)
    }

    fn after(&mut self, lost_power: bool) -> Result<(), String> {
        let pool = setup::open(&self.members)?;
        let found = compare(&self.world, &pool, !lost_power);
        let next = std::mem::take(&mut self.next).into_iter().filter(|_| lost_power).map(flushed);
        if let Err(mut error) = found {
            let done = next.into_iter().find(|next| match compare(next, &pool, true) {
                Ok(()) => true,
                Err(other) => {
                    error += &format!("; after it was done: {other}");
                    false
                }
            });
            self.world = done.ok_or(error)?;
        }
        // From here on, what was found is what there is.
        for (name, disk) in &mut self.world {
            disk.model.now = content(&pool.volume(name, true).map_err(text)?)?;
            disk.model.flush();
        }
        let rebuilt = match pool.rebuild(&|_| ()).map_err(text) {
            Err(error) if error.contains("free on") => false,
            done => done.map(|_| true)?,
        };
        compare(&self.world, &pool, true)?;
        let report = pool.scrub(false, &|_| ()).map_err(text)?;
        if !report.findings.is_empty() || rebuilt && !report.is_clean() {
            return Err(format!("{report:?}"));
        }
        Ok(())
    }
}

/// A full pool, or a member that broke, are no reason to lose anything.
fn may_happen(error: &str) -> bool {
    ["free on", "No member that works", "broken"].iter().any(|part| error.contains(part))
}

fn disk_after_revert(disk: &Disk, snapshot: &str) -> Disk {
    Disk { model: Model::of(disk.snapshots[snapshot].clone()), ..disk.clone() }
}

fn case(seed: u64, lose_power: bool) -> Result<(), String> {
    let mut random = Random(seed);
    let count = 1 + random.below(3) as usize;
    let sizes: Vec<usize> = (0..count).map(|_| 50 + random.below(60) as usize).collect();
    let layout = layout(&mut random, count);
    let members = members(&sizes, seed);
    setup::create(&members)?;
    let size = CHUNK * 4 + SECTOR * random.below(256) as usize;
    let provisioning = setup::provisioning(&mut random);
    {
        let pool = setup::open(&members)?;
        pool.create_volume("v", size as u64, layout, provisioning, &[]).map_err(text)?;
        pool.set_checksums("v", random.chance(50), &|_| ()).map_err(text)?;
    }
    let disk = Disk { model: Model::of(vec![0; size]), snapshots: BTreeMap::new(), template: false };
    let world = World::from([("v".to_owned(), disk)]);
    let mut case = Case { random, members, layout, world, next: Vec::new(), named: 0, broken: false };
    for _ in 0..3 {
        case.round(lose_power)?;
    }
    // Everything that was taken is given back with the last owner, whoever goes first.
    let pool = setup::open(&case.members)?;
    while let Some(name) = case.one_of(case.world.keys().cloned().collect()) {
        pool.delete_volume(&name, true).map_err(text)?;
        case.world.remove(&name);
        compare(&case.world, &pool, true)?;
    }
    let used: u64 = pool.info().members.iter().map(|member| member.used).sum();
    let lost = pool.info().members.iter().any(|member| member.free + CHUNK as u64 * 20 < member.size);
    if used != 0 || lost { Err(format!("space is lost: {:?}", pool.info().members)) } else { Ok(()) }
}

#[test]
fn histories_of_clones_are_those_of_plain_disks() {
    cases(16, |seed| case(seed, false));
}

#[test]
fn clones_bear_a_power_loss_at_any_write() {
    cases(24, |seed| case(seed, true));
}
