//! Random images with random histories, made by two programs in turn: this crate and QEMU's tools. Whatever one wrote,
//! the other has to read bit for bit, and both have to find the image in order.

use crate::random::Random;
use block::{
    BackingPolicy, BlockBackend, CreateOptions, DiskImage, OpenOptions, Repair, Snapshots, create, open,
    with_causes,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn tool(name: &str, arguments: &[String]) -> Result<String, String> {
    let output = Command::new(name).args(arguments).output().map_err(|error| format!("{name}: {error}"))?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // qemu-io says failures of its commands only in words.
    if output.status.success() && !text.contains("failed") {
        Ok(text)
    } else {
        Err(format!("{name} {arguments:?}: {text}"))
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A change of the disk.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write { at: u64, len: u64, pattern: u8 },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
}

struct Case {
    random: Random,
    path: PathBuf,
    folder: PathBuf,
    model: Vec<u8>,
    cluster: u64,
    version2: bool,
    backed: bool,
    compressed_ok: bool,
    snapshots_ok: bool,
    kept: Vec<(String, Vec<u8>)>,
    log: Vec<String>,
}

/// Runs the case of a seed; the error tells the history.
pub fn run(seed: u64, folder: &Path) -> Result<(), String> {
    let mut case = Case::new(seed, folder)?;
    let steps = 3 + case.random.below(5);
    for _ in 0..steps {
        if let Err(error) = case.step() {
            return Err(format!("seed {seed}: {error}\nhistory:\n{}", case.log.join("\n")));
        }
    }
    Ok(())
}

impl Case {
    fn new(seed: u64, folder: &Path) -> Result<Case, String> {
        let mut random = Random(seed);
        let path = folder.join(format!("case{seed}.qcow2"));
        let version2 = random.chance(15);
        let extended = !version2 && random.chance(25);
        let cluster = 1 << if extended { 14 + random.below(5) } else { 9 + random.below(13) };
        let size = (1 + random.below((cluster * 300).clamp(1 << 20, 24 << 20) / 512)) * 512;
        let mut options = vec![
            format!("cluster_size={cluster}"),
            format!("compat={}", if version2 { "0.10" } else { "1.1" }),
        ];
        let mut refcount_bits = 16;
        let external = !version2 && random.chance(10);
        if !version2 {
            refcount_bits = 1 << random.below(7);
            options.push(format!("refcount_bits={refcount_bits}"));
            options.push(format!("extended_l2={}", if extended { "on" } else { "off" }));
            options.push(format!("lazy_refcounts={}", random.pick(&["on", "off"])));
            options.push(format!("compression_type={}", random.pick(&["zlib", "zstd"])));
        }
        if external {
            options.push(format!("data_file={}", folder.join(format!("case{seed}.data")).display()));
            if random.chance(50) {
                options.push("data_file_raw=on".to_owned());
            }
        }
        let mut case = Case {
            path,
            folder: folder.to_owned(),
            model: vec![0; size as usize],
            cluster,
            version2,
            backed: !external && random.chance(35),
            compressed_ok: !external,
            snapshots_ok: !external && refcount_bits >= 8,
            kept: Vec::new(),
            log: Vec::new(),
            random,
        };
        case.make(seed, size, options)?;
        Ok(case)
    }

    fn make(&mut self, seed: u64, size: u64, mut options: Vec<String>) -> Result<(), String> {
        let mut backing = None;
        if self.backed {
            // Shorter, equal or longer than the image.
            let len = (1 + self.random.below(size / 512 * 5 / 4)) * 512;
            let base: Vec<u8> =
                (0..len).map(|at| if at / 30000 % 3 == 0 { 0 } else { (at / 700) as u8 | 1 }).collect();
            let raw = self.folder.join(format!("case{seed}.base.raw"));
            std::fs::write(&raw, &base).map_err(|error| error.to_string())?;
            for (to, from) in self.model.iter_mut().zip(&base) {
                *to = *from;
            }
            let mut name = (raw.display().to_string(), "raw".to_owned());
            if self.random.chance(50) {
                let converted = self.folder.join(format!("case{seed}.base.qcow2"));
                let text = format!("convert -O qcow2 {} {}", raw.display(), converted.display());
                tool("qemu-img", &words(&text))?;
                name = (converted.display().to_string(), "qcow2".to_owned());
            }
            backing = Some(name);
        } else if self.random.chance(30) {
            options.push(format!("preallocation={}", self.random.pick(&["metadata", "falloc", "full"])));
        }
        let path = self.path.display().to_string();
        if self.random.chance(50) {
            let mut text = format!("create -q -f qcow2 -o {} ", options.join(","));
            if let Some((name, format)) = &backing {
                text += &format!("-b {name} -F {format} ");
            }
            self.log.push(format!("qemu-img {text} {path} {size}"));
            tool("qemu-img", &words(&format!("{text} {path} {size}")))?;
        } else {
            self.log.push(format!("our create {options:?} {backing:?} {size}"));
            let split = |option: &String| {
                option.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
            };
            let options = options.iter().filter_map(split).collect();
            let wanted = CreateOptions { size, options, backing, ..CreateOptions::default() };
            create(&self.path, "qcow2", wanted).map_err(|error| with_causes(&error))?;
        }
        self.verify()
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn DiskImage>, String> {
        let options = OpenOptions { read_only, backing: BackingPolicy::Anywhere, ..OpenOptions::default() };
        open(&self.path, "qcow2", &options).map_err(|error| format!("our open: {}", with_causes(&error)))
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(10) {
            0..=2 => self.our_changes()?,
            3..=5 => self.their_changes()?,
            6 if self.snapshots_ok => self.snapshot()?,
            7 => self.resize()?,
            8 if self.compressed_ok => self.compress()?,
            _ => self.parallel_changes()?,
        }
        self.verify()
    }

    /// Both programs find the image in order and read what it should hold.
    fn verify(&mut self) -> Result<(), String> {
        let path = self.path.display().to_string();
        tool("qemu-img", &words(&format!("check -q {path}")))?;
        let out = self.path.with_extension("out");
        tool("qemu-img", &words(&format!("convert -O raw {path} {}", out.display())))?;
        let theirs = std::fs::read(&out).map_err(|error| error.to_string())?;
        let image = self.open(true)?;
        let mut ours = vec![0xee; image.size() as usize];
        image.read_bytes(0, &mut ours).map_err(|error| format!("our read: {error}"))?;
        let report = image.check(Repair::Nothing).map_err(|error| with_causes(&error))?;
        if !report.is_clean() {
            return Err(format!("our check: {report:?}"));
        }
        self.same("our read", &ours)?;
        self.same("their read", &theirs)
    }

    fn same(&self, who: &str, content: &[u8]) -> Result<(), String> {
        if content.len() != self.model.len() {
            return Err(format!("{who}: {} bytes instead of {}", content.len(), self.model.len()));
        }
        match content.iter().zip(&self.model).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => {
                Err(format!("{who}: offset {at:#x} has {:#x} instead of {:#x}", content[at], self.model[at]))
            }
        }
    }

    fn change(&mut self) -> Change {
        let size = self.model.len() as u64;
        let sector = |random: &mut Random, end: u64| random.below(end / 512 + 1) * 512;
        let longest = if self.random.chance(80) { self.cluster * 2 } else { self.cluster * 40 };
        let at = sector(&mut self.random, size - 512);
        let len = (512 + sector(&mut self.random, longest.min(4 << 20))).min(size - at);
        let aligned = self.random.chance(40);
        let (at, len) = if aligned {
            let start = at - at % self.cluster;
            (start, len.next_multiple_of(self.cluster).min(size - start))
        } else {
            (at, len)
        };
        match self.random.below(10) {
            0 | 1 => Change::Zero { at, len, unmap: self.random.chance(50) },
            2 => Change::Discard { at, len },
            _ => Change::Write { at, len, pattern: 1 + self.random.below(255) as u8 },
        }
    }

    fn apply(model: &mut [u8], change: Change, cluster: u64, keeps: bool) {
        let (at, len, value) = match change {
            Change::Write { at, len, pattern } => (at, len, pattern),
            Change::Zero { at, len, .. } => (at, len, 0),
            // Whole clusters only; none where zeros cannot be said.
            Change::Discard { .. } if keeps => return,
            Change::Discard { at, len } => {
                let size = model.len() as u64;
                let end = if at + len == size { size } else { (at + len) / cluster * cluster };
                let start = at.next_multiple_of(cluster).min(end);
                (start, end - start, 0)
            }
        };
        model[at as usize..(at + len) as usize].fill(value);
    }

    fn make_change(image: &dyn BlockBackend, change: Change) -> Result<(), String> {
        let done = match change {
            Change::Write { at, len, pattern } => image.write_bytes(at, &vec![pattern; len as usize]),
            Change::Zero { at, len, unmap } => image.write_zeroes(at, len, unmap),
            Change::Discard { at, len } => image.discard(at, len),
        };
        done.map_err(|error| format!("our {change:x?}: {}", with_causes(&error)))
    }

    fn our_changes(&mut self) -> Result<(), String> {
        let image = self.open(false)?;
        for _ in 0..1 + self.random.below(30) {
            let change = self.change();
            self.log.push(format!("our {change:x?}"));
            Self::make_change(&*image, change)?;
            Self::apply(&mut self.model, change, self.cluster, self.version2 && self.backed);
            if self.random.chance(10) {
                image.flush().map_err(|error| error.to_string())?;
            }
            if self.random.chance(10) {
                let mut all = vec![0; self.model.len()];
                image.read_bytes(0, &mut all).map_err(|error| error.to_string())?;
                self.same("our read while open", &all)?;
            }
        }
        Ok(())
    }

    /// Threads write to their own stripes of the same clusters.
    fn parallel_changes(&mut self) -> Result<(), String> {
        const THREADS: u64 = 4;
        let stripe = 512 * (1 + self.random.below(9));
        let size = self.model.len() as u64;
        let mut work: Vec<Vec<Change>> = vec![Vec::new(); THREADS as usize];
        for thread in 0..THREADS {
            for _ in 0..25 {
                let number = self.random.below(size / stripe / THREADS + 1) * THREADS + thread;
                let at = number * stripe;
                if at >= size {
                    continue;
                }
                let len = stripe.min(size - at);
                let change = if self.random.chance(20) {
                    Change::Zero { at, len, unmap: true }
                } else {
                    Change::Write { at, len, pattern: 1 + self.random.below(255) as u8 }
                };
                Self::apply(&mut self.model, change, self.cluster, false);
                work[thread as usize].push(change);
            }
        }
        self.log.push(format!("our parallel {work:x?}"));
        let image = self.open(false)?;
        std::thread::scope(|scope| {
            let run = |changes: &Vec<Change>| {
                let (image, changes) = (image.clone(), changes.clone());
                scope.spawn(move || {
                    for (number, change) in changes.iter().enumerate() {
                        Self::make_change(&*image, *change)?;
                        if number % 9 == 8 {
                            image.flush().map_err(|error| error.to_string())?;
                        }
                    }
                    Ok::<(), String>(())
                })
            };
            let threads: Vec<_> = work.iter().map(run).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
        })
    }

    fn their_changes(&mut self) -> Result<(), String> {
        let mut arguments = words("-d unmap -f qcow2");
        for _ in 0..1 + self.random.below(30) {
            let change = self.change();
            let text = match change {
                Change::Write { at, len, pattern } => format!("write -P {pattern} {at} {len}"),
                Change::Zero { at, len, unmap } => {
                    format!("write -z {} {at} {len}", if unmap { "-u" } else { "" })
                }
                // What QEMU does with parts of clusters is its own matter.
                Change::Discard { at, len } if at % self.cluster != 0 || len % self.cluster != 0 => {
                    let _ = (at, len);
                    continue;
                }
                Change::Discard { at, len } => format!("discard {at} {len}"),
            };
            arguments.extend(["-c".to_owned(), text]);
            Self::apply(&mut self.model, change, self.cluster, self.version2 && self.backed);
        }
        self.log.push(format!("qemu-io {arguments:?}"));
        arguments.push(self.path.display().to_string());
        tool("qemu-io", &arguments).map(drop)
    }

    fn snapshot(&mut self) -> Result<(), String> {
        let theirs = self.random.chance(50);
        let what = self.random.below(4);
        let number = self.log.len();
        let (flag, name) = match what {
            0 | 1 if self.kept.len() < 3 => ("-c", format!("s{number}")),
            _ if self.kept.is_empty() => return Ok(()),
            2 => ("-a", self.kept[self.random.below(self.kept.len() as u64) as usize].0.clone()),
            _ => ("-d", self.kept[self.random.below(self.kept.len() as u64) as usize].0.clone()),
        };
        self.log.push(format!("{} snapshot {flag} {name}", if theirs { "their" } else { "our" }));
        if theirs {
            tool("qemu-img", &words(&format!("snapshot {flag} {name} {}", self.path.display())))?;
        } else {
            let image = self.open(false)?;
            let snapshots: &dyn Snapshots = image.snapshots().ok_or("no snapshots")?;
            let done = match flag {
                "-c" => snapshots.create(&name).map(drop),
                "-a" => snapshots.revert(&name),
                _ => snapshots.delete(&name),
            };
            done.map_err(|error| format!("our snapshot: {}", with_causes(&error)))?;
        }
        match flag {
            "-c" => self.kept.push((name, self.model.clone())),
            "-a" => {
                if let Some((_, content)) = self.kept.iter().find(|(kept, _)| *kept == name) {
                    self.model.clone_from(content);
                }
            }
            _ => self.kept.retain(|(kept, _)| *kept != name),
        }
        Ok(())
    }

    fn resize(&mut self) -> Result<(), String> {
        if self.version2 && (self.backed || !self.kept.is_empty()) {
            return Ok(());
        }
        let old = self.model.len() as u64;
        let size = (1 + self.random.below(old * 3 / 2 / 512)) * 512;
        let theirs = self.random.chance(50);
        self.log.push(format!("{} resize {size}", if theirs { "their" } else { "our" }));
        if theirs {
            tool("qemu-img", &words(&format!("resize -q --shrink {} {size}", self.path.display())))?;
        } else {
            self.open(false)?.resize(size).map_err(|error| format!("our resize: {}", with_causes(&error)))?;
        }
        self.model.resize(size as usize, 0);
        Ok(())
    }

    /// Writes some clusters compressed.
    fn compress(&mut self) -> Result<(), String> {
        let size = self.model.len() as u64;
        let clusters = size / self.cluster;
        if clusters == 0 {
            return Ok(());
        }
        let theirs = self.random.chance(40);
        let mut arguments = words("-f qcow2");
        let image = if theirs { None } else { Some(self.open(false)?) };
        let mut asked: Vec<(u64, Vec<u8>)> = Vec::new();
        for _ in 0..1 + self.random.below(20) {
            let at = self.random.below(clusters) * self.cluster;
            let range = at as usize..(at + self.cluster) as usize;
            let pattern = 1 + self.random.below(255) as u8;
            self.log.push(format!("{} compressed {at:#x} {pattern}", if theirs { "their" } else { "our" }));
            let mut data = vec![pattern; self.cluster as usize];
            match &image {
                Some(image) => {
                    // Some that compress badly, or not at all.
                    let noisy = self.random.below(self.cluster) as usize;
                    data[..noisy].iter_mut().for_each(|byte| *byte = self.random.next() as u8);
                    image
                        .write_compressed(at, &data)
                        .map_err(|error| format!("compressed: {}", with_causes(&error)))?;
                }
                None => {
                    arguments
                        .extend(["-c".to_owned(), format!("write -c -P {pattern} {at} {}", self.cluster)]);
                    asked.push((at, data));
                    continue;
                }
            }
            self.model[range].copy_from_slice(&data);
        }
        if theirs {
            // It refuses clusters that are allocated, and so every second write to the same one.
            arguments.push(self.path.display().to_string());
            let output =
                Command::new("qemu-io").args(&arguments).output().map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout);
            let done =
                text.lines().filter_map(|line| line.rsplit_once(" bytes at offset ")?.1.parse::<u64>().ok());
            for at in done {
                let (_, data) =
                    asked.iter().find(|(asked, _)| *asked == at).ok_or("an offset nobody asked for")?;
                self.model[at as usize..(at + self.cluster) as usize].copy_from_slice(data);
            }
        }
        Ok(())
    }
}
