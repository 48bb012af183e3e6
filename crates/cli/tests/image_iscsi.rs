//! `vireo image` on logical units of iSCSI targets, with QEMU's initiator on the same ones.

#[path = "../../iscsi/tests/tgt/mod.rs"]
mod tgt;

use std::path::Path;
use std::process::Command;
use tgt::Target;

/// Runs a line of a shell: whether it succeeds, and what it says.
fn sh(folder: &Path, line: &str) -> (bool, String) {
    let line = line.replace("VIREO", env!("CARGO_BIN_EXE_vireo"));
    let output = Command::new("sh").args(["-c", &line]).current_dir(folder).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn does(folder: &Path, line: &str) -> String {
    let (good, text) = sh(folder, line);
    assert!(good, "{line}: {text}");
    text
}

#[test]
fn images_are_converted_compared_and_mapped_from_and_to_units() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let Some(mut target) = Target::start(folder) else { return };
    does(
        folder,
        "truncate -s 32M a.raw b.raw; head -c 3M /dev/urandom | dd of=a.raw conv=notrunc status=none",
    );
    does(folder, "yes | head -c 2M | dd of=a.raw bs=1M seek=20 conv=notrunc status=none");
    target.unit(1, &folder.join("b.raw"), 512, true);
    does(folder, "truncate -s 40M c.raw");
    target.unit(2, &folder.join("c.raw"), 4096, false);
    let uri = target.uri("", 1, "");
    let info = does(folder, &format!("VIREO image info --json '{uri}'"));
    assert!(info.contains("\"virtual-size\": 33554432"), "{info}");
    does(folder, &format!("VIREO image convert -n -f raw -O raw a.raw '{uri}'"));
    does(folder, "cmp a.raw b.raw");
    does(folder, &format!("VIREO image compare -f raw -F raw a.raw '{uri}'"));
    does(folder, &format!("VIREO image convert -f raw -O qcow2 '{uri}' copy.qcow2"));
    does(folder, "VIREO image compare a.raw copy.qcow2");
    // Formats inside of a unit, which both sides' tools know.
    does(folder, &format!("VIREO image convert -n -f raw -O raw copy.qcow2 '{}'", target.uri("", 2, "")));
    let info = does(folder, &format!("VIREO image info -f qcow2 '{}'", target.uri("", 2, "")));
    assert!(info.contains("32 MiB"), "{info}");
    does(folder, &format!("VIREO image dd -f raw -O raw bs=1M count=2 skip=19 'if={uri}' of=part.raw"));
    does(folder, "dd if=a.raw bs=1M count=2 skip=19 status=none | cmp - part.raw");
    let map = does(folder, &format!("VIREO image map -f raw --json '{uri}'"));
    let hole = r#"{"start":3145728,"length":17825792,"depth":0,"present":false,"zero":true"#;
    assert!(map.contains(hole), "{map}");
    let (good, text) = sh(folder, &format!("VIREO image convert -O qcow2 a.raw '{uri}'"));
    assert!(!good && text.contains("with -n"), "{text}");
    let (good, text) = sh(folder, "VIREO image info iscsi://me%hidden@h/x/1");
    assert!(!good && text.contains("no target's name") && !text.contains("hidden"), "{text}");
}
