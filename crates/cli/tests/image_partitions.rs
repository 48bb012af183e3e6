//! `vireo image partitions` beside `sfdisk` and `blkid`.

use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

const SECTOR: u64 = 512;

fn has(program: &str, option: &str) -> bool {
    let found =
        Command::new(program).arg(option).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

fn ours(folder: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_vireo"))
        .args(["image", "partitions", "--json"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A disk of `size` MiB with the table that `script` describes.
fn partitioned(folder: &Path, size: u64, script: &str) {
    let file = std::fs::File::create(folder.join("disk.raw")).unwrap();
    file.set_len(size << 20).unwrap();
    let mut sfdisk = Command::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel", "disk.raw"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
}

fn sfdisk(folder: &Path) -> Value {
    let output = Command::new("sfdisk").args(["--json", "disk.raw"]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table: Value = serde_json::from_slice(&output.stdout).unwrap();
    table["partitiontable"].clone()
}

/// What both say of a table, field by field.
fn compare(ours: &Value, theirs: &Value) {
    for field in ["label", "id"] {
        assert_eq!(ours[field], theirs[field], "{field}");
    }
    let (ours, theirs) = (ours["partitions"].as_array().unwrap(), theirs["partitions"].as_array().unwrap());
    assert_eq!(ours.len(), theirs.len(), "{ours:?} {theirs:?}");
    for (our, their) in ours.iter().zip(theirs) {
        for field in ["start", "size", "type", "uuid", "name", "bootable"] {
            assert_eq!(our[field], their[field], "{field} of {our} and {their}");
        }
        let node = their["node"].as_str().unwrap();
        assert_eq!(format!("disk.raw{}", our["number"]), node);
    }
}

const GPT: &str = "label: gpt\n\
    size=8MiB, type=uefi, name=\"EFI system\"\n\
    size=16MiB, type=linux, name=root\n\
    start=81920, size=4MiB, type=swap, uuid=01234567-89AB-CDEF-0123-456789ABCDEF\n";

#[test]
fn tables_are_those_that_sfdisk_reads() {
    if !has("sfdisk", "--version") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let dos = "label: dos\nlabel-id: 0x1badb002\n\
        size=4MiB, type=83, bootable\nsize=2MiB, type=c\nsize=32MiB, type=5\nsize=3MiB, type=82\n\
        size=4MiB, type=83\nsize=5MiB, type=8e\nsize=6MiB, type=fd\n";
    for script in [dos, GPT, "label: dos\nsize=8MiB, type=83\n", "label: dos\nsize=8MiB, type=f\n"] {
        partitioned(folder, 64, script);
        let found = ours(folder, &["-f", "raw", "disk.raw"]);
        compare(&found["partitiontable"], &sfdisk(folder));
        assert_eq!(found["partitiontable"]["problems"], Value::Null);
        // The same through a format.
        let convert = "image convert -f raw -O qcow2 disk.raw disk.qcow2".split(' ');
        assert!(
            Command::new(env!("CARGO_BIN_EXE_vireo"))
                .args(convert)
                .current_dir(folder)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(ours(folder, &["disk.qcow2"]), found);
    }
}

#[test]
fn a_damaged_gpt_is_read_from_its_copy() {
    if !has("sfdisk", "--version") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    partitioned(folder, 64, GPT);
    let whole = ours(folder, &["-f", "raw", "disk.raw"]);
    let disk = std::fs::File::options().write(true).open(folder.join("disk.raw")).unwrap();
    disk.write_all_at(&[0xff; 8], SECTOR + 72).unwrap();
    let found = ours(folder, &["-f", "raw", "disk.raw"]);
    assert_eq!(found["partitiontable"]["partitions"], whole["partitiontable"]["partitions"]);
    assert_eq!(found["partitiontable"]["problems"][0], "the first GPT header has a wrong checksum");
    compare(&found["partitiontable"], &sfdisk(folder));
}

#[test]
fn what_partitions_hold_is_what_blkid_says() {
    if !has("sfdisk", "--version") || !has("blkid", "--version") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    partitioned(folder, 400, "label: gpt\nsize=340MiB, type=linux\n");
    let table = sfdisk(folder);
    let partition = &table["partitions"][0];
    let (start, len) =
        (partition["start"].as_u64().unwrap() * SECTOR, partition["size"].as_u64().unwrap() * SECTOR);
    let disk = std::fs::File::options().write(true).open(folder.join("disk.raw")).unwrap();
    let mut names = Vec::new();
    for line in [
        "mkfs.ext2 -q -F part",
        "mkfs.ext3 -q -F part",
        "mkfs.ext4 -q -F part",
        "mkfs.vfat -F 32 part",
        "mkfs.vfat -F 16 part",
        "mkfs.xfs -q -f part",
        "mkfs.btrfs -q -f part",
        "mkswap -q part",
    ] {
        let part = folder.join("part");
        std::fs::File::create(&part).unwrap().set_len(len).unwrap();
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        match command.args(words).current_dir(folder).stdout(Stdio::null()).status() {
            Ok(status) if status.success() => {}
            other => {
                eprintln!("skipped: {line}: {other:?}");
                continue;
            }
        }
        disk.write_all_at(&std::fs::read(&part).unwrap(), start).unwrap();
        let blkid =
            Command::new("blkid").args(["-p", "-o", "value", "-s", "TYPE"]).arg(&part).output().unwrap();
        let expected = String::from_utf8(blkid.stdout).unwrap().trim().to_owned();
        let found = ours(folder, &["-f", "raw", "disk.raw"]);
        assert_eq!(found["partitiontable"]["partitions"][0]["filesystem"], expected.as_str(), "{line}");
        // The same without a table.
        assert_eq!(ours(folder, &["-f", "raw", "part"])["filesystem"], expected.as_str(), "{line}");
        names.push(expected);
    }
    eprintln!("compared: {names:?}");
}
