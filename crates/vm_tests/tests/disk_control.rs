//! What `vireo ctl` does with the disks of a running machine.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use vm_tests::{Material, Shell, TestVm, TinyGuest};

/// A machine with a control socket in a folder of its own.
struct Controlled<'a> {
    material: &'a Material,
    vm: TestVm,
    socket: PathBuf,
}

impl<'a> Controlled<'a> {
    /// A machine of a few bytes with these disks.
    fn tiny(material: &'a Material, folder: &Path, disks: &[String]) -> Result<Self> {
        let socket = folder.join("ctl");
        let text = socket.display().to_string();
        let mut options = vec!["--control", &text];
        disks.iter().for_each(|disk| options.extend(["--disk", disk]));
        let vm = TestVm::start(material.tiny(TinyGuest::Echo, folder, &options)?)?;
        let mut machine = Controlled { material, vm, socket };
        machine.vm.wait_for("R", 60)?;
        Ok(machine)
    }

    /// The busybox guest with a disk, up to its first words about it.
    fn boot(material: &'a Material, folder: &Path, words: &str, disk: &str) -> Result<Self> {
        let socket = folder.join("ctl");
        let text = socket.display().to_string();
        let options = ["--engine", "software", "--disk", disk, "--control", &text];
        let mut vm = material.boot(words, &options)?;
        vm.wait_for("VIREO-BLOCK-SIZE", 240)?;
        Ok(Controlled { material, vm, socket })
    }

    /// `vireo ctl`: its status, and what it said.
    fn ask(&self, words: &[&str]) -> Result<(Option<i32>, String)> {
        let command =
            self.material.command(&["ctl", &self.socket.display().to_string()]).args(words).output()?;
        Ok((command.status.code(), String::from_utf8([command.stdout, command.stderr].concat())?))
    }

    /// The machine's answer, which has to be no refusal.
    fn answer(&self, words: &[&str]) -> Result<Value> {
        let (code, said) = self.ask(&[words, &["--json"]].concat())?;
        ensure!(code == Some(0), "{words:?}: {said}");
        Ok(serde_json::from_str(&said)?)
    }
}

/// A raw disk of zeros.
fn raw(folder: &Path, name: &str, size: u64) -> Result<String> {
    let path = folder.join(name);
    std::fs::File::create(&path)?.set_len(size)?;
    Ok(path.display().to_string())
}

#[test]
fn limits_are_listed_and_changed_for_a_whole_group() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let disk = |name: &str| raw(folder.path(), name, 1 << 20);
    let disks = [
        format!("{},iops=200/1000,bps=20M,burst=30,group=web", disk("a")?),
        format!("{},group=web", disk("b")?),
        format!("{},readonly=on", disk("c")?),
    ];
    let machine = Controlled::tiny(&material, folder.path(), &disks)?;
    let (_, text) = machine.ask(&["disks"])?;
    let limits = "  limits (group web): iops=200/1000,bps=20M,burst=30";
    assert_eq!(text.lines().filter(|line| *line == limits).count(), 2, "{text}");
    assert!(text.contains("disk2 raw 1M read-only"), "{text}");
    machine.answer(&["throttle", "disk1", "bps-wr=1M/2M,burst=5"])?;
    machine.answer(&["throttle", "disk2", "iops=7"])?;
    let listed = machine.answer(&["disks"])?;
    for disk in [0, 1] {
        let wanted = serde_json::json!({ "bps-wr": { "average": 1 << 20, "burst": 2 << 20 }, "burst": 5 });
        assert_eq!(listed[disk]["limits"], wanted, "{listed}");
    }
    assert_eq!(listed[2]["limits"]["iops"]["average"], 7, "{listed}");
    machine.answer(&["throttle", "disk2", "none"])?;
    assert_eq!(machine.answer(&["disks"])?[2]["limits"], serde_json::json!({ "burst": 1 }));
    for (words, wanted) in [
        (["throttle", "disk9", "iops=1"], "disk0, disk1, disk2"),
        (["throttle", "disk0", "iops=1M"], "100 or 100/500"),
        (["throttle", "disk0", "group=x"], "no limit"),
    ] {
        let (code, said) = machine.ask(&words)?;
        assert!(code == Some(2) && said.contains(wanted), "{words:?}: {said}");
    }
    Ok(())
}

/// A request that waits for its limits holds up neither a pause nor the end.
#[test]
fn a_pause_waits_for_no_limit() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let disk = format!("{},bps=8K", raw(folder.path(), "slow", 16 << 20)?);
    // Linux reads the disk when it finds it; the test reads 1 MiB of it, for which the limit takes minutes.
    let machine = Controlled::boot(&material, folder.path(), "vireo.test=block quiet", &disk)?;
    machine.answer(&["pause"])?;
    machine.answer(&["throttle", "disk0", "none"])?;
    machine.answer(&["resume"])?;
    let mut vm = machine.vm;
    vm.wait_for("VIREO-BLOCK-OK", 240)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    Ok(())
}

/// What happens to a machine, from a connection of its own.
struct Events(BufReader<UnixStream>);

impl Events {
    fn listen(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(300)))?;
        stream.write_all(b"{\"version\":1,\"command\":\"events\"}\n")?;
        let mut events = Events(BufReader::new(stream));
        events.next()?;
        Ok(events)
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn wait_for(&mut self, event: &str) -> Result<Value> {
        loop {
            let next = self.next()?;
            if next["event"] == event {
                return Ok(next);
            }
            ensure!(next["event"] != "ended", "ended before {event}: {next}");
        }
    }
}

/// The numbers that `vireo.test=block` writes, as in `xtask/src/guests/init.sh`.
fn numbers() -> Vec<u8> {
    let numbers: String = (1..700_000).map(|number| format!("{number}\n")).collect();
    numbers.into_bytes()[..4 << 20].to_vec()
}

/// A file system of our own in memory; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, said on standard error, where the user may not mount.
    fn mount(folder: PathBuf, size: &str) -> Result<Option<Self>> {
        std::fs::create_dir(&folder)?;
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder).output()?;
        if !mounted.status.success() {
            eprintln!("skipped: no right to mount a tmpfs: {}", String::from_utf8_lossy(&mounted.stderr));
            return Ok(None);
        }
        Ok(Some(Tmpfs(folder)))
    }

    fn resize(&self, size: &str) -> Result<()> {
        let options = format!("remount,size={size}");
        ensure!(Command::new("mount").args(["-o", &options]).arg(&self.0).status()?.success());
        Ok(())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The file system below an image is full in the middle of the guest's writes: the machine stands, and when there is
/// space again, it goes on as if nothing had been.
#[test]
fn a_full_host_pauses_the_machine_and_loses_nothing() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let Some(small) = Tmpfs::mount(folder.path().join("small"), "2m")? else { return Ok(()) };
    let image = small.0.join("disk.qcow2").display().to_string();
    ensure!(material.command(&["image", "create", "-q", "-f", "qcow2", &image, "16M"]).status()?.success());
    let disk = format!("{image},format=qcow2");
    let machine = Controlled::boot(&material, folder.path(), "vireo.test=block quiet", &disk)?;
    let mut events = Events::listen(&machine.socket)?;
    for _ in 0..2 {
        // The second time the space is still missing.
        let failure = events.wait_for("io-error")?;
        assert_eq!((&failure["disk"], &failure["no_space"]), (&"disk0".into(), &true.into()), "{failure}");
        let status = machine.ask(&["status"])?.1;
        assert!(status.contains("paused (disk0: write failed"), "{status}");
        machine.answer(&["resume"])?;
    }
    events.wait_for("io-error")?;
    small.resize("32m")?;
    machine.answer(&["resume"])?;
    let mut vm = machine.vm;
    vm.wait_for("VIREO-BLOCK-OK", 240)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    let copy = folder.path().join("copy.raw");
    let qemu_img = |words: &[&str]| Command::new("qemu-img").args(words).status();
    match qemu_img(&["check", "-q", &image]) {
        Ok(checked) => {
            ensure!(checked.success(), "qemu-img check: {checked}");
            ensure!(qemu_img(&["convert", "-O", "raw", &image, &copy.display().to_string()])?.success());
        }
        Err(error) => {
            eprintln!("without qemu-img as a second opinion: {error}");
            let words = ["image", "convert", "-O", "raw", &image, &copy.display().to_string()];
            ensure!(material.command(&words).status()?.success());
        }
    }
    let content = std::fs::read(copy)?;
    let written = content.get(1 << 20..5 << 20).unwrap_or_default();
    assert!(content.len() == 16 << 20 && written == numbers(), "the disk does not hold what the guest wrote");
    Ok(())
}

/// A failing disk by order: the operator resumes, and the guest never learns of it.
#[test]
fn injected_errors_stop_the_machine_until_it_is_resumed() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = raw(folder.path(), "disk", 16 << 20)?;
    let rules = "inject=write:error=EIO:after=1:times=2,inject=read:error=EIO:at=300k-400k:times=1";
    let disk = format!("{path},werror=stop,rerror=stop,{rules}");
    let machine = Controlled::boot(&material, folder.path(), "vireo.test=block quiet", &disk)?;
    let mut events = Events::listen(&machine.socket)?;
    // The read may have been before there was anybody to listen.
    let mut failures = 0;
    while failures < 3 {
        if machine.answer(&["status"])?["state"] == "paused" {
            failures += 1;
            let counts = machine.answer(&["disks"])?;
            let sum = |name: &str| counts[0][name].as_u64().unwrap_or_default();
            ensure!(sum("read-errors") + sum("write-errors") == failures, "{counts}");
            machine.answer(&["resume"])?;
        } else {
            events.wait_for("io-error")?;
        }
    }
    let mut vm = machine.vm;
    vm.wait_for("VIREO-BLOCK-OK", 240)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    assert!(std::fs::read(path)?[1 << 20..5 << 20] == numbers());
    Ok(())
}

/// `vireo image`, which has to succeed.
fn image(material: &Material, words: &[&str]) -> Result<()> {
    let output = material.command(&["image"]).args(words).output()?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The whole content of an image, by `qemu-img` where there is one, whose check has to be clean then.
fn content(material: &Material, path: &str, format: &str) -> Result<Vec<u8>> {
    let copy = format!("{path}.copy");
    let words = ["convert", "-f", format, "-O", "raw", path, &copy];
    match Command::new("qemu-img").args(words).output() {
        Ok(output) => {
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            if format == "qcow2" {
                let check = Command::new("qemu-img").args(["check", "-q", path]).status()?;
                ensure!(check.success(), "qemu-img check {path}: {check}");
            }
        }
        Err(error) => {
            eprintln!("without qemu-img as a second opinion: {error}");
            image(material, &words)?;
        }
    }
    Ok(std::fs::read(copy)?)
}

/// Waits until the guest has written something to its disk.
fn wait_for_writes(machine: &Controlled) -> Result<()> {
    while machine.answer(&["disks"])?[0]["counts"]["writes"].as_u64().unwrap_or_default() == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn job_ends(events: &mut Events, status: &str) -> Result<()> {
    let event = events.wait_for("job")?;
    ensure!(event["status"] == status, "{event}");
    Ok(())
}

/// A guest writes, slowly; meanwhile its disk gets a backup, an overlay, is committed, and moves to another image.
#[test]
fn a_disk_moves_under_a_guest_that_writes() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [source, overlay, target, backup] = ["source", "overlay", "target.raw", "backup"].map(path);
    image(&material, &["create", "-q", "-f", "qcow2", &source, "16M"])?;
    let disk = format!("{source},format=qcow2,bps-wr=64K");
    let machine = Controlled::boot(&material, folder.path(), "vireo.test=block quiet", &disk)?;
    let mut events = Events::listen(&machine.socket)?;
    wait_for_writes(&machine)?;
    machine.answer(&["disk", "overlay", "disk0", &overlay])?;
    let (code, said) = machine.ask(&["disk", "overlay", "disk0", &source])?;
    assert!(code == Some(2) && said.contains("exists already"), "{said}");
    assert_eq!(machine.answer(&["disks"])?[0]["path"], overlay.as_str());
    let started = machine.answer(&["disk", "backup", "disk0", &backup])?;
    assert_eq!(started["job"], "job0");
    job_ends(&mut events, "completed")?;
    machine.answer(&["disk", "commit", "disk0"])?;
    job_ends(&mut events, "ready")?;
    machine.answer(&["job", "complete", "job1"])?;
    job_ends(&mut events, "completed")?;
    assert_eq!(machine.answer(&["disks"])?[0]["path"], source.as_str());
    machine.answer(&["disk", "snapshot-create", "disk0", "before"])?;
    assert_eq!(machine.answer(&["disk", "snapshots", "disk0"])?[0]["name"], "before");
    machine.answer(&["disk", "mirror", "disk0", &target, "-O", "raw"])?;
    let (code, said) = machine.ask(&["disk", "resize", "disk0", "32M"])?;
    assert!(code == Some(2) && said.contains("job"), "{said}");
    job_ends(&mut events, "ready")?;
    machine.answer(&["job", "complete", "job2"])?;
    job_ends(&mut events, "completed")?;
    let listed = machine.ask(&["disks"])?.1;
    assert!(listed.contains("disk0 raw 16M") && listed.contains("target.raw"), "{listed}");
    let jobs = machine.ask(&["jobs"])?.1;
    assert!(jobs.starts_with("job2 disk0 mirror completed"), "{jobs}");
    machine.answer(&["throttle", "disk0", "none"])?;
    let mut vm = machine.vm;
    vm.wait_for("VIREO-BLOCK-OK", 240)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    let wanted = numbers();
    let after = std::fs::read(&target)?;
    ensure!(
        after.len() == 16 << 20 && after[1 << 20..5 << 20] == wanted,
        "the target lacks the guest's writes"
    );
    // Older images hold some of what was written, and nothing else.
    for older in [&source, &backup] {
        let content = content(&material, older, "qcow2")?;
        let sectors = content[1 << 20..5 << 20].chunks(512).zip(wanted.chunks(512));
        let strange =
            sectors.filter(|(found, wanted)| found != wanted && found.iter().any(|byte| *byte != 0));
        assert_eq!((content.len(), strange.count()), (16 << 20, 0), "{older}");
    }
    Ok(())
}

/// The file system that a mirror writes to is full, really: the job fails with the file and the offset, the guest goes on
/// without hearing of it, and a later mirror with space takes over.
#[test]
fn a_mirror_onto_a_full_file_system_fails_and_the_guest_goes_on() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let Some(small) = Tmpfs::mount(folder.path().join("small"), "3m")? else { return Ok(()) };
    let source = folder.path().join("source");
    // What is behind the guest's writes alone is more than there is space for.
    let mut before = vec![0; 16 << 20];
    before[8 << 20..14 << 20].fill(0x5a);
    std::fs::write(&source, &before)?;
    let disk = format!("{},bps-wr=128K", source.display());
    let machine = Controlled::boot(&material, folder.path(), "vireo.test=block quiet", &disk)?;
    let mut events = Events::listen(&machine.socket)?;
    wait_for_writes(&machine)?;
    let target = small.0.join("target").display().to_string();
    for (format, job) in [("raw", "job0"), ("qcow2", "job1")] {
        machine.answer(&["disk", "mirror", "disk0", &target, "-O", format])?;
        job_ends(&mut events, "failed")?;
        let jobs = machine.ask(&["jobs"])?.1;
        let line = jobs.lines().find(|line| line.starts_with(job)).unwrap_or_default().to_owned();
        let named = [target.as_str(), "offset 0x", "No space left on device"];
        assert!(line.contains("failed") && named.iter().all(|part| line.contains(part)), "{jobs}");
        let (free, left) = (std::fs::remove_file(&target), machine.answer(&["disks"])?);
        free?;
        assert_eq!(left[0]["path"], source.display().to_string(), "{left}");
        assert_eq!(machine.answer(&["status"])?["state"], "running");
    }
    small.resize("32m")?;
    machine.answer(&["disk", "mirror", "disk0", &target, "-O", "raw"])?;
    job_ends(&mut events, "ready")?;
    machine.answer(&["job", "complete", "job2"])?;
    job_ends(&mut events, "completed")?;
    assert_eq!(machine.answer(&["disks"])?[0]["path"], target.as_str());
    machine.answer(&["throttle", "disk0", "none"])?;
    let mut vm = machine.vm;
    vm.wait_for("VIREO-BLOCK-OK", 240)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    before[1 << 20..5 << 20].copy_from_slice(&numbers());
    assert!(std::fs::read(&target)? == before, "the target lacks something");
    Ok(())
}

/// An incremental backup over the full one before it is the disk again.
#[test]
fn backups_in_steps_restore_a_disk() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [source, monday, tuesday, socket] = ["source", "monday", "tuesday", "ctl"].map(path);
    image(&material, &["create", "-q", "-f", "qcow2", &source, "16M"])?;
    let disk = format!("{source},format=qcow2");
    let mut shell = Shell::boot(&material, "quiet", &["--disk", &disk, "--control", &socket])?;
    shell.run("modprobe virtio_pci; modprobe virtio_blk; seq 1 700000 | head -c 4194304 > /tmp/numbers")?;
    let write = |shell: &mut Shell, at: u32| {
        shell.run(&format!("dd if=/tmp/numbers of=/dev/vda bs=64k count=32 seek={at} conv=fsync"))
    };
    write(&mut shell, 16)?;
    let mut machine = Controlled { material: &material, vm: shell.vm, socket: socket.into() };
    let mut events = Events::listen(&machine.socket)?;
    machine.answer(&["disk", "bitmap-add", "disk0", "daily"])?;
    machine.answer(&["disk", "backup", "disk0", &monday, "--bitmap", "daily", "--full"])?;
    job_ends(&mut events, "completed")?;
    let empty = machine.answer(&["disk", "bitmaps", "disk0"])?;
    assert_eq!(empty[0]["dirty"], 0, "{empty}");
    machine
        .vm
        .send("dd if=/tmp/numbers of=/dev/vda bs=64k count=32 seek=100 conv=fsync; echo BACK-$((1 + 1))\n")?;
    machine.vm.wait_for("BACK-2", 240)?;
    let marked = machine.answer(&["disk", "bitmaps", "disk0"])?;
    assert_eq!(marked[0]["dirty"], 32 << 16, "{marked}");
    machine.answer(&["disk", "backup", "disk0", &tuesday, "--bitmap", "daily", "--backing", "monday"])?;
    job_ends(&mut events, "completed")?;
    machine.answer(&["stop"])?;
    assert_eq!(machine.vm.wait(60)?.code, Some(10));
    let mut wanted = vec![0; 16 << 20];
    for at in [16, 100] {
        wanted[at << 16..(at + 32) << 16].copy_from_slice(&numbers()[..32 << 16]);
    }
    assert!(content(&material, &source, "qcow2")? == wanted, "the disk");
    assert!(content(&material, &tuesday, "qcow2")? == wanted, "the last backup over the first");
    wanted[100 << 16..132 << 16].fill(0);
    assert!(content(&material, &monday, "qcow2")? == wanted, "the first backup");
    Ok(())
}

/// Linux is the oracle: it says and uses the new capacity.
#[test]
fn a_guest_is_told_of_a_larger_disk() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let disk = format!("{},bps-wr=64K", raw(folder.path(), "disk", 16 << 20)?);
    let machine = Controlled::boot(&material, folder.path(), "vireo.test=block loglevel=6", &disk)?;
    wait_for_writes(&machine)?;
    for (words, wanted) in [("8M", "only grows"), ("16777217", "whole sectors")] {
        let (code, said) = machine.ask(&["disk", "resize", "disk0", words])?;
        assert!(code == Some(2) && said.contains(wanted), "{said}");
    }
    machine.answer(&["disk", "resize", "disk0", "24M"])?;
    let mut vm = machine.vm;
    // What Linux's driver says when it has read the new capacity.
    vm.wait_for("new size: 49152 512-byte logical blocks", 240)?;
    Ok(())
}
