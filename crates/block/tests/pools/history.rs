//! Random histories against a plain copy of the content.

use crate::random::Random;
use crate::setup::{self, CHUNK, cases, content, layout, members, same, text};
use block::BlockBackend;
use block::pool::{Pool, PoolVolume};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct History {
    random: Random,
    now: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
    named: u32,
}

impl History {
    fn change(&mut self, volume: &PoolVolume) -> Result<(), String> {
        let random = &mut self.random;
        let at = random.below((self.now.len() / 512) as u64) as usize * 512;
        let most = if random.chance(20) { 400 } else { 20 };
        let len = ((1 + random.below(most)) as usize * 512).min(self.now.len() - at);
        match random.below(10) {
            0 => {
                volume.write_zeroes(at as u64, len as u64, random.chance(50)).map_err(text)?;
                self.now[at..at + len].fill(0);
            }
            1 => {
                volume.discard(at as u64, len as u64).map_err(text)?;
                // Old data or zeros, sector by sector; from then on always the same.
                let mut found = vec![0; len];
                volume.read_bytes(at as u64, &mut found).map_err(text)?;
                for (found, old) in found.chunks(512).zip(self.now[at..at + len].chunks_mut(512)) {
                    if found != old && found.iter().any(|byte| *byte != 0) {
                        return Err(format!("discarded bytes after {at:#x} are neither old nor zeros"));
                    }
                    old.copy_from_slice(found);
                }
            }
            2 => volume.flush().map_err(text)?,
            3 | 4 => {
                let mut found = vec![0; len];
                volume.read_bytes(at as u64, &mut found).map_err(text)?;
                same(&format!("read at {at:#x}"), &found, &self.now[at..at + len])?;
            }
            _ => {
                let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
                let (one, two) = data.split_at(len / 3);
                let parts = [std::io::IoSlice::new(one), std::io::IoSlice::new(two)];
                volume.write_at(at as u64, &parts).map_err(text)?;
                self.now[at..at + len].copy_from_slice(&data);
            }
        }
        Ok(())
    }

    fn manage(&mut self, pool: &Pool, volume: &PoolVolume) -> Result<(), String> {
        let names: Vec<String> = self.snapshots.keys().cloned().collect();
        let some = names.get(self.random.below(names.len() as u64) as usize).cloned();
        match (self.random.below(4), some) {
            (0, Some(name)) => {
                pool.revert("v", &name).map_err(text)?;
                self.now.clone_from(&self.snapshots[&name]);
            }
            (1, Some(name)) => {
                pool.delete_snapshot("v", &name).map_err(text)?;
                self.snapshots.remove(&name);
            }
            (2, _) => {
                let size = CHUNK * 4 + 512 * self.random.below(600) as usize;
                volume.resize(size as u64).map_err(text)?;
                self.now.resize(size, 0);
            }
            _ => {
                let name = format!("s{}", self.named);
                self.named += 1;
                pool.create_snapshot("v", &name).map_err(text)?;
                self.snapshots.insert(name, self.now.clone());
            }
        }
        Ok(())
    }

    fn check(&self, pool: &Arc<Pool>) -> Result<(), String> {
        let volume = pool.volume("v", true).map_err(text)?;
        same("the volume", &content(&volume)?, &self.now)?;
        let info = pool.info();
        let listed = &info.volumes[0].snapshots;
        if listed.len() != self.snapshots.len() {
            return Err(format!("{} snapshots instead of {}", listed.len(), self.snapshots.len()));
        }
        for (name, expected) in &self.snapshots {
            let snapshot = pool.volume(&format!("v@{name}"), true).map_err(text)?;
            same(&format!("snapshot {name}"), &content(&snapshot)?, expected)?;
            if snapshot.write_bytes(0, &[1; 512]).is_ok() {
                return Err("a snapshot was written to".to_owned());
            }
        }
        Ok(())
    }
}

fn history(seed: u64) -> (History, Vec<usize>) {
    let mut random = Random(seed);
    let sizes = (0..1 + random.below(4)).map(|_| 80 + random.below(40) as usize).collect();
    let size = CHUNK * 4 + 512 * random.below(600) as usize;
    (History { random, now: vec![0; size], snapshots: BTreeMap::new(), named: 0 }, sizes)
}

/// One thread; opened anew now and then.
fn alone(seed: u64) -> Result<(), String> {
    let (mut history, sizes) = history(seed);
    let members = members(&sizes, seed);
    setup::create(&members)?;
    let layout = layout(&mut history.random, sizes.len());
    let provisioning = setup::provisioning(&mut history.random);
    let size = history.now.len() as u64;
    {
        let pool = setup::open(&members)?;
        pool.create_volume("v", size, layout, provisioning, &[]).map_err(text)?;
        pool.set_checksums("v", history.random.chance(50), &|_| ()).map_err(text)?;
    }
    for _ in 0..4 {
        let pool = setup::open(&members)?;
        let volume = pool.volume("v", false).map_err(text)?;
        for _ in 0..60 {
            let done = if history.random.chance(15) {
                history.manage(&pool, &volume)
            } else {
                history.change(&volume)
            };
            match done {
                Err(error) if error.contains("No chunk is free") => {
                    // What did not fit may have been written in part.
                    history.now = content(&volume)?;
                }
                done => done?,
            }
        }
        history.check(&pool)?;
    }
    let pool = setup::open(&members)?;
    history.check(&pool)?;
    // Everything that was taken is given back with the last owner.
    pool.delete_volume("v", true).map_err(text)?;
    let used: u64 = pool.info().members.iter().map(|member| member.used).sum();
    let lost = pool.info().members.iter().any(|member| member.free + CHUNK as u64 * 20 < member.size);
    if used != 0 || lost { Err(format!("space is lost: {:?}", pool.info().members)) } else { Ok(()) }
}

/// A writer, while its chunks are moved, copied, and compared, and members come and go.
fn together(seed: u64) -> Result<(), String> {
    let (mut history, mut sizes) = history(seed);
    sizes.push(120);
    sizes.push(120);
    let all = members(&sizes, seed);
    let (spare, members) = all.split_last().ok_or("no members")?;
    setup::create(members)?;
    let layout = layout(&mut history.random, members.len());
    let pool = setup::open(members)?;
    pool.create_volume("v", history.now.len() as u64, layout, setup::provisioning(&mut history.random), &[])
        .map_err(text)?;
    let volume = pool.volume("v", false).map_err(text)?;
    for _ in 0..3 {
        for _ in 0..10 {
            history.change(&volume)?;
        }
        pool.create_snapshot("v", &format!("s{}", history.named)).map_err(text)?;
        history.snapshots.insert(format!("s{}", history.named), history.now.clone());
        history.named += 1;
    }
    let done = AtomicBool::new(false);
    let mut moves = Random(seed);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let result = shuffle(&pool, spare, members.len(), layout.copies(), &mut moves);
            done.store(true, Ordering::SeqCst);
            result
        });
        let mut result = Ok(());
        while result.is_ok() && !done.load(Ordering::SeqCst) {
            result = history.change(&volume);
        }
        result.and(mover.join().map_err(|_| "the mover panicked".to_owned())?)
    })?;
    history.check(&pool)?;
    let report = pool.scrub(false, &|_| ()).map_err(text)?;
    if !report.is_clean() {
        return Err(format!("{report:?}"));
    }
    drop((pool, volume));
    let pool = setup::open(&all[1..])?;
    history.check(&pool)
}

fn shuffle(
    pool: &Pool,
    spare: &Arc<crate::recorder::Recorder>,
    count: usize,
    copies: usize,
    random: &mut Random,
) -> Result<(), String> {
    for _ in 0..4 {
        let mut names: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        while names.len() > copies && random.chance(60) {
            names.remove(random.below(names.len() as u64) as usize);
        }
        pool.move_volume("v", &names, &|_| ()).map_err(text)?;
        pool.set_checksums("v", random.chance(60), &|_| ()).map_err(text)?;
        pool.scrub(true, &|_| ()).map_err(text)?;
        pool.rebuild(&|_| ()).map_err(text)?;
    }
    pool.add_member(&setup::name(9), spare.clone()).map_err(text)?;
    pool.remove_member("0", &|_| ()).map_err(text)?;
    pool.rebuild(&|_| ()).map(drop).map_err(text)
}

#[test]
fn histories_are_those_of_a_plain_disk() {
    cases(16, alone);
}

#[test]
fn chunks_move_while_they_are_written() {
    cases(8, together);
}
