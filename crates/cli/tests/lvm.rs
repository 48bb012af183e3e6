//! `vireo lvm`, and `lvm:GROUP/VOLUME` as a disk's place: with the real tools on a loop device, as far as a kernel without
//! device-mapper lets them, and with a tool that stands in for them where volumes must become active.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a line of a shell in a folder, where `VIREO` is the program.
fn sh(folder: &Path, environment: &[(&str, &str)], line: &str) -> Output {
    let line = line.replace("VIREO", env!("CARGO_BIN_EXE_vireo"));
    let mut command = Command::new("sh");
    command.args(["-c", &line]).current_dir(folder).envs(environment.iter().copied());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// A volume group on a loop device.
struct Group {
    folder: tempfile::TempDir,
    device: String,
}

impl Group {
    fn make() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let line = "truncate -s 256M pv.img && losetup -f --show pv.img";
        let device = sh(folder.path(), &[], line);
        if !device.status.success() {
            eprintln!("skipped: no loop device can be had: {}", text(&device));
            return None;
        }
        let group = Group { folder, device: text(&device).trim().to_owned() };
        group.configure(false);
        let made = group.sh(&format!("lvm pvcreate -q {0} && lvm vgcreate -q vireotest {0}", group.device));
        if !made.status.success() {
            eprintln!("skipped: no volume group can be made (package lvm2): {}", text(&made));
            return None;
        }
        Some(group)
    }

    /// With `kernel`, the tools ask the kernel's device-mapper; without, they only change metadata.
    fn configure(&self, kernel: bool) {
        let (device, folder) = (&self.device, self.folder.path().display());
        let kernel = u8::from(kernel);
        let text = format!(
            "devices {{ dir=\"/dev\" scan=[\"/dev\"] filter=[\"a|^{device}$|\",\"r|.*|\"] use_devicesfile=0 \
             external_device_info_source=\"none\" obtain_device_list_from_udev=0 }}\n\
             global {{ activation={kernel} use_lvmlockd=0 use_lvmpolld=0 locking_dir=\"{folder}/lock\" }}\n\
             activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}\nbackup {{ backup=0 archive=0 }}\n"
        );
        std::fs::write(self.folder.path().join("lvm.conf"), text).unwrap();
    }

    fn sh(&self, line: &str) -> Output {
        sh(self.folder.path(), &[("LVM_SYSTEM_DIR", &self.folder.path().display().to_string())], line)
    }

    fn does(&self, line: &str) -> String {
        let output = self.sh(line);
        assert!(output.status.success(), "{line}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn fails(&self, line: &str) -> String {
        let output = self.sh(line);
        assert!(!output.status.success(), "{line} succeeds");
        text(&output)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

#[test]
fn volumes_are_made_listed_grown_and_removed_by_the_real_tools() {
    let Some(group) = Group::make() else { return };
    // 10 MB are three extents of 4 MiB.
    group.does("VIREO lvm create vireotest/web --size 10M");
    let theirs = "lvm lvs --noheadings --nosuffix --units b -o lv_size vireotest/web 2>/dev/null";
    assert_eq!(group.does(theirs).trim(), (12 << 20).to_string());
    group.does("VIREO lvm grow vireotest/web --size 40M");
    assert_eq!(group.does(theirs).trim(), (40 << 20).to_string());
    let list = group.does("VIREO lvm list vireotest");
    assert!(
        list.contains("vireotest: 252 MiB, 212 MiB free") && list.contains("  web: 40 MiB, linear"),
        "{list}"
    );
    let list: serde_json::Value = serde_json::from_str(&group.does("VIREO lvm list --json")).unwrap();
    assert_eq!(list["volumes"][0]["name"], "web");
    assert_eq!(list["volumes"][0]["size"], 40 << 20);
    assert_eq!(list["groups"][0]["free"], 212 << 20);
    for (line, words) in [
        ("VIREO lvm create vireotest/web --size 1M", "already exists"),
        ("VIREO lvm create vireotest/big --size 1T", "vgextend"),
        ("VIREO lvm grow vireotest/web --size 1M", "not larger"),
        ("VIREO lvm remove vireotest/none", "vireo lvm list"),
        ("VIREO lvm list none", "not found"),
        ("VIREO lvm create 'vireotest/a;b' --size 1M", "letters, digits"),
        ("VIREO lvm create vireotest/-y --size 1M", "does not begin with -"),
        ("VIREO lvm snapshot vireotest/web now", "needs --size"),
    ] {
        let said = group.fails(line);
        assert!(said.contains(words), "{line}: {said}");
    }
    group.does("VIREO lvm remove vireotest/web");
    assert_eq!(group.does(theirs.replace("vireotest/web", "vireotest").as_str()).trim(), "");
}

#[test]
fn a_kernel_without_device_mapper_is_said_so() {
    if std::fs::read_to_string("/proc/misc").is_ok_and(|misc| misc.contains("device-mapper")) {
        eprintln!("skipped: this kernel has a device-mapper");
        return;
    }
    let Some(group) = Group::make() else { return };
    group.does("VIREO lvm create vireotest/web --size 8M");
    group.configure(true);
    for line in ["VIREO image info -f raw lvm:vireotest/web", "VIREO lvm create vireotest/b --size 8M"] {
        let said = group.fails(line);
        assert!(said.contains("this kernel has no device-mapper"), "{line}: {said}");
    }
}

/// What the tools would be asked to do, and in which order; the device is a file.
#[test]
fn a_volume_is_active_while_its_disk_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let stand_in = format!(
        r#"#!/bin/sh
echo "$*" >> {0}/calls
case "$1 $*" in
lvs*) state=$(cat {0}/state); echo '{{"report":[{{"lv":[{{"vg_name":"vg","lv_name":"web","lv_size":"1048576","lv_layout":"linear",'
  echo '"lv_active":"'$state'","lv_path":"{0}/device","pool_lv":"","origin":"","data_percent":""}}]}}]}}';;
lvchange*"--activate ey"*) mv {0}/inactive {0}/device; printf active > {0}/state;;
lvchange*"--activate n"*) mv {0}/device {0}/inactive; printf "" > {0}/state;;
*) echo "unknown: $*" >&2; exit 5;;
esac
"#,
        folder.path().display()
    );
    std::fs::create_dir(at("bin")).unwrap();
    std::fs::write(at("bin/lvm"), stand_in).unwrap();
    std::fs::set_permissions(at("bin/lvm"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(at("inactive"), vec![0; 1 << 20]).unwrap();
    std::fs::write(at("state"), "").unwrap();
    std::fs::write(at("a.raw"), vec![7; 1 << 20]).unwrap();
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
    let does = |line: &str| {
        let output = sh(folder.path(), &[("PATH", &path)], line);
        assert!(output.status.success(), "{line}: {}", text(&output));
        let calls = std::fs::read_to_string(at("calls")).unwrap_or_default();
        let _ = std::fs::remove_file(at("calls"));
        calls
            .lines()
            .filter_map(|call| call.split(" --options").next())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let calls = does("VIREO image convert -n -f raw -O raw a.raw lvm:vg/web");
    let (begin, end) =
        ("lvchange --yes --ignoreactivationskip --activate ey vg/web", "lvchange --yes --activate n vg/web");
    assert_eq!(calls.iter().filter(|call| *call == begin).count(), 1, "{calls:?}");
    assert_eq!(calls.last().map(String::as_str), Some(end), "{calls:?}");
    assert!(std::fs::read(at("inactive")).unwrap() == vec![7; 1 << 20]);
    // Who found it active leaves it so.
    std::fs::rename(at("inactive"), at("device")).unwrap();
    std::fs::write(at("state"), "active").unwrap();
    let calls = does("VIREO image compare -f raw -F raw a.raw lvm:vg/web");
    assert!(calls.iter().all(|call| call.starts_with("lvs ")), "{calls:?}");
}
