//! Power loss: of all that was not flushed, on every member, any subset may be lost.

use crate::model::{Model, SECTOR};
use crate::random::Random;
use crate::recorder::Recorder;
use crate::setup::{self, CHUNK, cases, content, layout, members, same, text};
use block::BlockBackend;
use block::pool::{Layout, Pool, PoolVolume};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was under way when the power went.
enum Doing {
    Nothing,
    Create(String),
    Delete(String),
    Revert(String),
}

struct Case {
    random: Random,
    members: Vec<Arc<Recorder>>,
    model: Model,
    snapshots: BTreeMap<String, Vec<u8>>,
    doing: Doing,
    named: u32,
    layout: Layout,
    broken: bool,
}

impl Case {
    fn write(&mut self, volume: &PoolVolume) -> Result<(), String> {
        let size = self.model.now.len();
        let at = self.random.below((size / SECTOR) as u64) as usize * SECTOR;
        let len = ((1 + self.random.below(60)) as usize * SECTOR).min(size - at);
        match self.random.below(8) {
            0 => {
                self.model.write(at, len, 0);
                volume.write_zeroes(at as u64, len as u64, self.random.chance(50)).map_err(text)
            }
            1 | 2 => {
                let start = at / CHUNK * CHUNK;
                let len = (CHUNK * (1 + self.random.below(2) as usize)).min(size - start);
                self.model.write(start, len, 0);
                volume.discard(start as u64, len as u64).map_err(text)
            }
            _ => {
                let value = self.random.next() as u8;
                self.model.write(at, len, value);
                volume.write_bytes(at as u64, &vec![value; len]).map_err(text)
            }
        }
    }

    fn snapshot(&mut self, pool: &Pool) -> Result<(), String> {
        let names: Vec<String> = self.snapshots.keys().cloned().collect();
        let some = names.get(self.random.below(names.len() as u64) as usize).cloned();
        match some {
            Some(name) if names.len() > 2 || self.random.chance(40) => {
                if self.random.chance(50) {
                    self.doing = Doing::Revert(name.clone());
                    pool.revert("v", &name).map_err(text)?;
                    self.model.now.clone_from(&self.snapshots[&name]);
                } else {
                    self.doing = Doing::Delete(name.clone());
                    pool.delete_snapshot("v", &name).map_err(text)?;
                    self.snapshots.remove(&name);
                }
            }
            _ => {
                let name = format!("s{}", self.named);
                self.named += 1;
                self.doing = Doing::Create(name.clone());
                pool.create_snapshot("v", &name).map_err(text)?;
                self.snapshots.insert(name, self.model.now.clone());
            }
        }
        self.model.flush();
        self.doing = Doing::Nothing;
        Ok(())
    }

    fn step(&mut self, pool: &Pool, volume: &PoolVolume) -> Result<(), String> {
        match self.random.below(24) {
            0..3 => {
                volume.flush().map_err(text)?;
                self.model.flush();
                Ok(())
            }
            3 => self.snapshot(pool),
            4 if self.random.chance(30) => {
                let least = self.layout.copies().max(2);
                let on = setup::some_members(&mut self.random, self.members.len(), least);
                pool.move_volume("v", &on, &|_| ()).map(drop).map_err(text)
            }
            5 if self.random.chance(20) => {
                setup::break_one(&mut self.random, pool, self.layout, &self.members, &mut self.broken);
                Ok(())
            }
            _ => self.write(volume),
        }
    }

    /// After something failed, which may have been done in part: what is there counts.
    fn settle(&mut self, pool: &Pool, volume: &PoolVolume) -> Result<(), String> {
        let Ok(found) = content(volume) else { return self.without_power() };
        let sectors = found.chunks(SECTOR).zip(self.model.now.chunks(SECTOR)).zip(&mut self.model.possible);
        for ((found, now), possible) in sectors {
            if found != now {
                possible.push(found[0]);
            }
        }
        let there: Vec<String> =
            pool.info().volumes[0].snapshots.iter().map(|snapshot| snapshot.name.clone()).collect();
        if let Doing::Create(name) = &self.doing
            && there.contains(name)
        {
            self.snapshots.insert(name.clone(), self.model.now.clone());
        }
        self.snapshots.retain(|name, _| there.contains(name));
        self.model.now = found;
        Ok(())
    }

    fn without_power(&self) -> Result<(), String> {
        if self.members[0].has_power() { Err("a volume cannot be read".to_owned()) } else { Ok(()) }
    }

    /// After the power came back.
    fn check(&mut self, pool: &Arc<Pool>, volume: &PoolVolume) -> Result<(), String> {
        let found = content(volume)?;
        match &self.doing {
            Doing::Revert(name) if found == self.snapshots[name] => {}
            _ => self.model.check(&found)?,
        }
        let there: Vec<String> =
            pool.info().volumes[0].snapshots.iter().map(|snapshot| snapshot.name.clone()).collect();
        for (name, expected) in &self.snapshots {
            if !there.contains(name) {
                if matches!(&self.doing, Doing::Delete(gone) if gone == name) {
                    continue;
                }
                return Err(format!("snapshot {name} is gone"));
            }
            let snapshot = pool.volume(&format!("v@{name}"), true).map_err(text)?;
            same(&format!("snapshot {name}"), &content(&snapshot)?, expected)?;
        }
        match &self.doing {
            Doing::Create(name) if there.contains(name) => {
                let snapshot = pool.volume(&format!("v@{name}"), true).map_err(text)?;
                same("the snapshot under way", &content(&snapshot)?, &self.model.now)?;
                self.snapshots.insert(name.clone(), self.model.now.clone());
            }
            _ => {}
        }
        self.snapshots.retain(|name, _| there.contains(name));
        self.doing = Doing::Nothing;
        // From here on, what was found is what there is.
        self.model.now = found;
        self.model.flush();
        Ok(())
    }

    /// Works until the power goes; then the members are what is left of them.
    fn until_power_is_lost(&mut self) -> Result<(), String> {
        let pool = setup::open(&self.members)?;
        let volume = pool.volume("v", false).map_err(text)?;
        let before = content(&volume)?;
        same("before anything is done", &before, &self.model.now)?;
        self.members[0].lose_power_after(self.random.below(500) as i64);
        for _ in 0..40 + self.random.below(200) {
            let done = self.step(&pool, &volume);
            if !self.members[0].has_power() {
                break;
            }
            match done {
                Err(error) if may_happen(&error) => self.settle(&pool, &volume)?,
                done => done?,
            }
        }
        let mut after: Vec<Recorder> = self.members.iter().map(|member| member.after_power_loss()).collect();
        std::mem::forget((pool, volume));
        self.broken = false;
        let (first, others) = after.split_first_mut().ok_or("no members")?;
        others.iter_mut().for_each(|other| other.share_power(first));
        self.members = after.into_iter().map(Arc::new).collect();
        Ok(())
    }
}

/// A full pool, or a member that broke, are no reason to lose anything.
fn may_happen(error: &str) -> bool {
    ["free on", "No member that works", "broken"].iter().any(|part| error.contains(part))
}

fn case(seed: u64) -> Result<(), String> {
    let mut random = Random(seed);
    let count = 1 + random.below(3) as usize;
    let sizes: Vec<usize> = (0..count).map(|_| 32 + random.below(16) as usize).collect();
    let layout = layout(&mut random, count);
    let members = members(&sizes, seed);
    setup::create(&members)?;
    let size = CHUNK * 6 + SECTOR * random.below(256) as usize;
    {
        let pool = setup::open(&members)?;
        let provisioning = setup::provisioning(&mut random);
        pool.create_volume("v", size as u64, layout, provisioning, &[]).map_err(text)?;
        pool.set_checksums("v", random.chance(50), &|_| ()).map_err(text)?;
        pool.create_volume("other", CHUNK as u64 * 2, Layout::Linear, Default::default(), &[])
            .map_err(text)?;
        let other = pool.volume("other", false).map_err(text)?;
        other.write_bytes(0, &[0x77; CHUNK * 2]).map_err(text)?;
        other.flush().map_err(text)?;
    }
    let model = Model::of(vec![0; size]);
    let mut case = Case {
        random,
        members,
        model,
        snapshots: BTreeMap::new(),
        doing: Doing::Nothing,
        named: 0,
        layout,
        broken: false,
    };
    for _ in 0..3 {
        case.until_power_is_lost()?;
        let pool = setup::open(&case.members)?;
        let volume = pool.volume("v", false).map_err(text)?;
        case.check(&pool, &volume)?;
        // In a full pool, some chunks stay on fewer members than they should be.
        let rebuilt = match pool.rebuild(&|_| ()).map_err(text) {
            Err(error) if error.contains("free on") => false,
            done => done.map(|_| true)?,
        };
        let other = content(&pool.volume("other", true).map_err(text)?)?;
        same("the other volume", &other, &[0x77; CHUNK * 2])?;
        same("after the rebuild", &content(&volume)?, &case.model.now)?;
        let report = pool.scrub(false, &|_| ()).map_err(text)?;
        if !report.findings.is_empty() || rebuilt && !report.is_clean() {
            return Err(format!("{report:?}"));
        }
    }
    Ok(())
}

#[test]
fn any_unflushed_subset_may_be_lost_on_every_member() {
    cases(24, case);
}
