//! `vireo image … --json`: every subcommand prints JSON and nothing else.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

const VIREO: &str = env!("CARGO_BIN_EXE_vireo");

/// The subcommands that the help lists.
fn subcommands() -> Vec<String> {
    let output = Command::new(VIREO).args(["image", "--help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let list = text.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = list.take_while(|line| !line.is_empty()).filter_map(|line| {
        let name = line.strip_prefix("  ")?.split(' ').next()?;
        (!name.is_empty() && name != "help").then(|| name.to_owned())
    });
    names.collect()
}

fn json(folder: &Path, line: &str, status: i32) -> Value {
    let output = Command::new(VIREO)
        .arg("image")
        .args(line.split_whitespace())
        .arg("--json")
        .current_dir(folder)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "vireo image {line}: {error}");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{line}: {error}: {}", String::from_utf8_lossy(&output.stdout)))
}

#[test]
fn every_subcommand_prints_json() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut content = vec![0; 4 << 20];
    content[70_000..200_000].fill(0x5a);
    std::fs::write(folder.join("a.raw"), content).unwrap();
    // Each with a field that has to be there, as a JSON pointer, and its value.
    let cases: &[(&str, i32, &str, Value)] = &[
        ("create -f qcow2 empty.qcow2 8M", 0, "/virtual-size", (8 << 20).into()),
        ("convert -f raw -O qcow2 a.raw a.qcow2", 0, "/virtual-size", (4 << 20).into()),
        ("info a.qcow2", 0, "/format", "qcow2".into()),
        ("check a.qcow2", 0, "/corruptions", 0.into()),
        ("map a.qcow2", 0, "/0/start", 0.into()),
        ("measure --size 1G -O raw", 0, "/fully-allocated", (1 << 30).into()),
        ("compare -f raw a.raw a.qcow2", 0, "/identical", true.into()),
        ("compare -f raw a.raw empty.qcow2", 1, "/offset", 70_000.into()),
        ("create -f qcow2 -b a.qcow2 -F qcow2 top.qcow2", 0, "/format", "qcow2".into()),
        ("snapshot -c one top.qcow2", 0, "/0/name", "one".into()),
        ("snapshot -l top.qcow2", 0, "/0/name", "one".into()),
        ("snapshot -d one top.qcow2", 0, "", Value::Array(Vec::new())),
        ("bitmap --add top.qcow2 changes", 0, "/0/name", "changes".into()),
        ("bitmap --list top.qcow2", 0, "/0/enabled", true.into()),
        ("bitmap --remove top.qcow2 changes", 0, "", Value::Array(Vec::new())),
        ("commit top.qcow2", 0, "/filename", "top.qcow2".into()),
        ("rebase --backing= -u top.qcow2", 0, "/backing-filename", Value::Null),
        ("resize empty.qcow2 +1M", 0, "/virtual-size", (9 << 20).into()),
        ("dd -f raw if=a.raw of=part.raw bs=4k skip=1 count=16", 0, "/bytes", (64 << 10).into()),
        ("bench -f raw -c 100 -d 8 a.raw", 0, "/requests", 100.into()),
        ("partitions -f raw a.raw", 0, "/partitiontable", Value::Null),
    ];
    let mut seen: Vec<&str> = vec!["serve"];
    for (line, status, pointer, expected) in cases {
        let found = json(folder, line, *status);
        assert_eq!(found.pointer(pointer), Some(expected), "{line}: {found}");
        seen.extend(line.split(' ').next());
    }
    serve(folder);
    for name in subcommands() {
        assert!(seen.contains(&name.as_str()), "no case for: vireo image {name}");
    }
}

/// The server says where it listens, then serves until it is told to end.
fn serve(folder: &Path) {
    let mut server = Command::new(VIREO)
        .args(["image", "serve", "--json", "-f", "raw", "-r", "-k", "socket", "a.raw"])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap());
    let mut text = String::new();
    while !text.ends_with("\n}\n") {
        assert_ne!(lines.read_line(&mut text).unwrap(), 0, "the server ended: {text}");
    }
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found.pointer("/exports/0/filename"), Some(&"a.raw".into()));
    let uri = found.pointer("/exports/0/uri").and_then(Value::as_str).unwrap();
    assert_eq!(json(folder, &format!("info {uri}"), 0).pointer("/virtual-size"), Some(&(4 << 20).into()));
    // The last client has left: it ends by itself.
    assert!(server.wait().unwrap().success());
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}
