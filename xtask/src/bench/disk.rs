//! `cargo xtask bench disk`: conversion and requests past the page cache beside `qemu-img`, random requests over NBD
//! beside `qemu-nbd`.
//!
//! Both programs take the same options and files, in turns, with the same content in the host's page cache. `-t unsafe`
//! keeps the host's disk out of the conversions: what is compared is the programs. Every figure is the best of the turns;
//! ratios are our speed over QEMU's. On a busy host the processor time that a program takes says more than how soon it ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::guests;
use crate::{command, workspace};

/// Least ratio of every row.
const BOUND: f64 = 1.0;
/// Seconds of requests before those that count.
const RAMP: u64 = 1;
/// Requests of a turn past the page cache.
const DIRECT_REQUESTS: &str = "40000";
/// Size of the disk behind the servers.
const SERVED: &str = "1G";

/// Options of `cargo xtask bench disk`.
#[derive(Args)]
pub struct DiskOptions {
    /// Size of the image that is converted, in MiB
    #[arg(long, default_value_t = 8192)]
    size: u64,
    /// Turns of each program a row
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Seconds of each turn of random requests
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Folder for the images, which go afterwards; without, one in the cache of the guests
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    rows: String,
    /// Do not fail when a bound is not kept
    #[arg(long)]
    no_bounds: bool,
}

/// What has been measured.
struct Bench<'a> {
    options: &'a DiskOptions,
    vireo: PathBuf,
    folder: PathBuf,
    below: Vec<String>,
}

/// Measures and prints.
pub fn run(options: &DiskOptions) -> Result<()> {
    guests::need("qemu-img", "qemu-utils")?;
    guests::need("fio", "fio")?;
    let vireo = workspace::build_vireo()?;
    let folder = match &options.folder {
        Some(folder) => folder.clone(),
        None => guests::cache()?.join("bench-disk"),
    };
    std::fs::create_dir_all(&folder)?;
    let mut bench = Bench { options, vireo, folder, below: Vec::new() };
    let measured = bench.conversions().and_then(|()| bench.requests()).and_then(|()| bench.direct());
    for name in ["direct.raw", "mixed.raw", "mixed.qcow2", "out", "served.qcow2", "nbd.sock"] {
        let _ = std::fs::remove_file(bench.folder.join(name));
    }
    measured?;
    if !bench.below.is_empty() && !options.no_bounds {
        bail!("Below {BOUND}: {}", bench.below.join(", "));
    }
    Ok(())
}

impl Bench<'_> {
    fn wants(&self, row: &str) -> bool {
        row.contains(&self.options.rows)
    }

    fn note(&mut self, row: &str, unit: &str, ours: f64, theirs: f64) {
        let ratio = ours / theirs;
        println!("disk: {row:<34} vireo {ours:>10.0} {unit}, QEMU {theirs:>10.0} {unit}, ratio {ratio:.2}");
        if ratio < BOUND {
            self.below.push(row.to_owned());
        }
    }

    fn conversions(&mut self) -> Result<()> {
        let rows = [
            ("convert raw to qcow2", "mixed.raw", "raw", "qcow2", &[][..]),
            ("convert qcow2 to raw", "mixed.qcow2", "qcow2", "raw", &[]),
            (
                "convert raw to compressed qcow2",
                "mixed.raw",
                "raw",
                "qcow2",
                &["-c", "-o", "compression_type=zstd"],
            ),
        ];
        if !rows.iter().any(|(row, ..)| self.wants(row)) {
            return Ok(());
        }
        let source = self.folder.join("mixed.raw");
        let size = self.options.size;
        mixed_content(&source, size)?;
        let second = self.folder.join("mixed.qcow2");
        command::run(
            Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&source).arg(&second),
        )?;
        println!("disk: {size} MiB, a quarter each of noise, text, zeros and holes; -t unsafe");
        for (row, source, from, to, more) in rows {
            if !self.wants(row) {
                continue;
            }
            let source = self.folder.join(source);
            let out = self.folder.join("out");
            let vireo = self.vireo.clone();
            let convert = |program: &mut Command| {
                program.args(["convert", "-t", "unsafe", "-f", from, "-O", to]).args(more);
                program.arg(&source).arg(&out);
                let took = time(program);
                std::fs::remove_file(&out)?;
                took
            };
            let (mut ours, mut theirs) = ([Duration::MAX; 2], [Duration::MAX; 2]);
            let least =
                |one: [Duration; 2], other: [Duration; 2]| [one[0].min(other[0]), one[1].min(other[1])];
            for _ in 0..self.options.turns {
                theirs = least(theirs, convert(&mut Command::new("qemu-img"))?);
                ours = least(ours, convert(Command::new(&vireo).arg("image"))?);
            }
            let speed = |time: Duration| size as f64 / time.as_secs_f64();
            self.note(row, "MiB/s", speed(ours[0]), speed(theirs[0]));
            let [ours, theirs] = [ours[1], theirs[1]].map(|time| time.as_secs_f64());
            println!("disk: {row:<34} processor time: {ours:.2} and {theirs:.2} s");
        }
        Ok(())
    }

    fn requests(&mut self) -> Result<()> {
        let rows: Vec<(String, &str, u32)> =
            [("randread", 1), ("randwrite", 1), ("randread", 32), ("randwrite", 32)]
                .map(|(kind, depth)| (format!("nbd {kind} 4k, depth {depth}"), kind, depth))
                .into_iter()
                .filter(|(row, ..)| self.wants(row))
                .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let image = self.folder.join("served.qcow2");
        // Every cluster is there and in the page cache: the servers are compared, not the host's disk.
        command::run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg(SERVED))?;
        let fill = format!("write -P 5 0 {SERVED}");
        command::run(
            Command::new("qemu-io").args(["-f", "qcow2", "-c", &fill]).arg(&image).stdout(Stdio::null()),
        )?;
        let socket = self.folder.join("nbd.sock");
        for (row, kind, depth) in rows {
            let (mut ours, mut theirs) = (Rate::default(), Rate::default());
            for _ in 0..self.options.turns {
                let mut qemu = Command::new("qemu-nbd");
                qemu.args(["-t", "-f", "qcow2", "-k"]).arg(&socket).arg(&image);
                theirs = theirs.better(self.fio(&mut qemu, &socket, kind, depth)?);
                let mut vireo = Command::new(&self.vireo);
                vireo.args(["image", "serve", "-q", "-t", "-f", "qcow2", "-k"]).arg(&socket).arg(&image);
                ours = ours.better(self.fio(&mut vireo, &socket, kind, depth)?);
            }
            self.note(&row, "IOPS", ours.requests, theirs.requests);
            println!(
                "disk: {row:<34} processor time of a request: {:.1} and {:.1} us",
                ours.cost, theirs.cost
            );
        }
        Ok(())
    }

    /// Requests past the page cache: `vireo image bench` with io_uring and one by one, beside `qemu-img bench`.
    fn direct(&mut self) -> Result<()> {
        let image = self.folder.join("direct.raw");
        let mut made = false;
        for (kind, depth) in [("read", "1"), ("write", "1"), ("read", "32"), ("write", "32")] {
            let row = format!("cache=none {kind} 4k, depth {depth}");
            if !self.wants(&row) {
                continue;
            }
            if !made {
                mixed_content(&image, self.options.size.min(1024))?;
                made = true;
            }
            let bench = |program: &Path, aio: &str| -> Result<f64> {
                let mut command = Command::new(program);
                if program == self.vireo {
                    command.arg("image");
                }
                command.args(["bench", "-q", "-f", "raw", "-t", "none", "-i", aio, "-d", depth, "-S", "68k"]);
                // Each 4 KiB of another place, so that the host's disk cannot put neighbours together.
                command.args(["-c", DIRECT_REQUESTS]).args((kind == "write").then_some("-w")).arg(&image);
                command.stdout(Stdio::null());
                let [took, _] = time(&mut command)?;
                Ok(DIRECT_REQUESTS.parse::<f64>()? / took.as_secs_f64())
            };
            let (mut ours, mut single, mut theirs) = (0.0_f64, 0.0_f64, 0.0_f64);
            for _ in 0..self.options.turns {
                theirs = theirs.max(bench(Path::new("qemu-img"), "io_uring")?);
                ours = ours.max(bench(&self.vireo, "io_uring")?);
                single = single.max(bench(&self.vireo, "threads")?);
            }
            self.note(&row, "IOPS", ours, theirs);
            println!("disk: {row:<34} without io_uring vireo {single:.0} IOPS, {:.2} of it", single / ours);
        }
        Ok(())
    }

    /// What `fio` gets from a server.
    fn fio(&self, server: &mut Command, socket: &Path, kind: &str, depth: u32) -> Result<Rate> {
        let server = Server::start(server, socket)?;
        let seconds = self.options.seconds;
        let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
        let text = command::output(
            Command::new("fio")
                .args(["--name=bench", "--ioengine=nbd", "--bs=4k", "--time_based", "--output-format=json"])
                .args([&uri, &format!("--rw={kind}"), &format!("--iodepth={depth}")])
                .args([&format!("--runtime={seconds}"), &format!("--size={SERVED}")])
                .args([&format!("--ramp_time={RAMP}"), "--randrepeat=1", "--norandommap"]),
        )?;
        // Notes may stand in front of the result.
        let start = text.find('{').context("fio printed no result")?;
        let result: serde_json::Value = serde_json::from_str(&text[start..])?;
        let job = &result["jobs"][0];
        let sum =
            |field: &str| ["read", "write"].iter().filter_map(|kind| job[kind][field].as_f64()).sum::<f64>();
        let requests = sum("iops");
        if requests <= 0.0 {
            bail!("fio did no request");
        }
        // The time before the ramp's end is in it as well, as its requests are.
        let all = requests * (seconds + RAMP) as f64;
        Ok(Rate { requests, cost: server.processor_time()?.as_secs_f64() * 1e6 / all })
    }
}

/// What a server did.
#[derive(Clone, Copy, Default)]
struct Rate {
    /// Requests a second.
    requests: f64,
    /// Processor time of a request in microseconds, about.
    cost: f64,
}

impl Rate {
    fn better(self, other: Rate) -> Rate {
        if other.requests > self.requests { other } else { self }
    }
}

/// A server that ends with its value.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, socket: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(socket);
        let server = Server(command.spawn().context("Cannot start the NBD server")?);
        for _ in 0..1000 {
            if socket.exists() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("The NBD server makes no socket")
    }

    /// What it has taken until now.
    fn processor_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let after_name = stat.rsplit_once(')').context("/proc has no statistics")?.1;
        let ticks =
            after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
        Ok(Duration::from_millis(10 * ticks.sum::<u64>()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two neighbouring fields of `/proc/PROCESS/stat`, which are times in hundredths of a second (proc(5)): 14 and 15 are
/// its own in user and system mode, 16 and 17 those of its children that have ended.
fn processor_time(process: &str, field: usize) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field, a name in parentheses, can have spaces.
    let rest = stat.rsplit_once(')').context("/proc has no statistics")?.1;
    let ticks = rest.split_whitespace().skip(field - 3).take(2).filter_map(|field| field.parse::<u64>().ok());
    Ok(Duration::from_millis(10 * ticks.sum::<u64>()))
}

/// How long a program takes, and how much processor time.
fn time(command: &mut Command) -> Result<[Duration; 2]> {
    let before = processor_time("self", 16)?;
    let began = Instant::now();
    let status = command.status()?;
    let took = began.elapsed();
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok([took, processor_time("self", 16)?.saturating_sub(before)])
}

/// A raw image of `size` MiB in runs of 1 MiB: noise, text, zeros that are stored, holes.
fn mixed_content(path: &Path, size: u64) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.set_len(size << 20)?;
    let mut state = 1_u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let words = ["disk", "image", "cluster", "table", "offset", "request", "server", "the", "of", "a"];
    for at in 0..size {
        let mut part = Vec::with_capacity((1 << 20) + 64);
        match at % 4 {
            0 => (0..1 << 18).for_each(|_| part.extend_from_slice(&word().to_le_bytes())),
            1 => {
                while part.len() < 1 << 20 {
                    let number = word();
                    part.extend_from_slice(words[number as usize % words.len()].as_bytes());
                    part.extend_from_slice(format!(" {} ", number >> 20).as_bytes());
                }
            }
            2 => part.resize(1 << 20, 0),
            _ => {
                std::io::Seek::seek_relative(&mut file, 1 << 20)?;
                continue;
            }
        }
        part.truncate(1 << 20);
        file.write_all(&part)?;
    }
    file.sync_all()?;
    Ok(())
}
