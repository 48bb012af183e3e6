//! What `vireo ctl` does with the disks of a running machine.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::Value;
use vm_tests::{Material, TestVm, TinyGuest};

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
    let socket = folder.path().join("ctl");
    let text = socket.display().to_string();
    let options = ["--engine", "software", "--disk", &disk, "--control", &text];
    // Linux reads the disk when it finds it; the test reads 1 MiB of it, for which the limit takes minutes.
    let mut vm = material.boot("vireo.test=block quiet", &options)?;
    vm.wait_for("VIREO-BLOCK-SIZE", 240)?;
    let machine = Controlled { material: &material, vm, socket };
    machine.answer(&["pause"])?;
    machine.answer(&["throttle", "disk0", "none"])?;
    machine.answer(&["resume"])?;
    let mut vm = machine.vm;
    vm.wait_for("VIREO-BLOCK-OK", 240)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    Ok(())
}
