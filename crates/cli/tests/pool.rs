//! `vireo pool`, and volumes as images: what goes in must come out, whatever the pool does meanwhile.

use std::path::Path;
use std::process::{Command, Output};

fn run(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vireo"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap()
}

/// It has to succeed.
fn vireo(folder: &Path, line: &str) -> String {
    let output = run(folder, line);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "vireo {line}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// It has to fail, and say so.
fn refused(folder: &Path, line: &str, reason: &str) {
    let output = run(folder, line);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains(reason), "vireo {line}: {text}");
}

fn json(folder: &Path, line: &str) -> serde_json::Value {
    serde_json::from_str(&vireo(folder, line)).unwrap()
}

fn sparse(path: &Path, size: u64) {
    std::fs::File::create(path).unwrap().set_len(size).unwrap();
}

/// 5 MiB and a sector of data and zeros.
fn content() -> Vec<u8> {
    let mut seed = 1_u32;
    let byte = |at: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if at >> 18 & 1 == 0 { (seed >> 24) as u8 } else { 0 }
    };
    (0..(5 << 20) + 512).map(byte).collect()
}

fn pool(members: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for member in members {
        sparse(&folder.path().join(member), 32 << 20);
    }
    let members: String = members.iter().map(|member| format!(" --member {member}")).collect();
    vireo(folder.path(), &format!("pool create web.pool{members} --chunk 256k"));
    std::fs::write(folder.path().join("a.raw"), content()).unwrap();
    folder
}

fn same(folder: &Path, volume: &str) {
    vireo(folder, &format!("image convert -O raw web.pool/{volume} out.raw"));
    assert!(std::fs::read(folder.join("out.raw")).unwrap() == content(), "{volume} has other content");
}

#[test]
fn volumes_keep_their_content() {
    let folder = pool(&["a.img", "b.img", "c.img"]);
    let folder = folder.path();
    vireo(folder, "image convert -O pool -o layout=striped a.raw web.pool/s");
    vireo(folder, "image convert -O pool -o layout=mirrored,provisioning=lazy a.raw web.pool/m");
    vireo(folder, "pool volume create web.pool l --size 6M --on b.img");
    vireo(folder, "image convert -n -O pool a.raw web.pool/l");
    vireo(folder, "pool volume resize web.pool l --shrink 5243392");
    for volume in ["s", "m", "l"] {
        same(folder, volume);
    }
    vireo(folder, "pool volume snapshot web.pool s monday");
    vireo(folder, "image dd if=web.pool/m of=zero.raw bs=512 count=1");
    vireo(folder, "image create -f raw zero.raw 5243392");
    vireo(folder, "image convert -n -O pool zero.raw web.pool/s");
    same(folder, "s@monday");
    vireo(folder, "pool volume revert web.pool s monday");
    same(folder, "s");
    vireo(folder, "pool volume move web.pool l --to c.img");
    sparse(&folder.join("d.img"), 40 << 20);
    vireo(folder, "pool add web.pool d.img");
    vireo(folder, "pool remove web.pool a.img");
    refused(folder, "pool volume delete web.pool s", "has snapshots");
    vireo(folder, "pool volume delete web.pool s@monday");
    for volume in ["s", "m", "l"] {
        same(folder, volume);
    }
    let info = json(folder, "pool info --json web.pool");
    let members: Vec<&str> =
        info["members"].as_array().unwrap().iter().map(|member| member["path"].as_str().unwrap()).collect();
    assert_eq!(members, ["b.img", "c.img", "d.img"]);
    assert_eq!(json(folder, "pool volume list --json web.pool")[0]["layout"], "striped");
    vireo(folder, "pool scrub web.pool");
}

#[test]
fn clones_and_templates_outlive_their_sources() {
    let folder = pool(&["a.img", "b.img"]);
    let folder = folder.path();
    vireo(folder, "image convert -O pool a.raw web.pool/golden");
    refused(folder, "pool volume clone web.pool golden web", "is no template");
    vireo(folder, "pool volume snapshot web.pool golden v1");
    vireo(folder, "pool volume clone web.pool golden@v1 web");
    vireo(folder, "pool volume template web.pool golden");
    refused(folder, "image convert -n -O pool a.raw web.pool/golden", "read-only");
    vireo(folder, "pool volume clone web.pool golden mail");
    let volumes = json(folder, "pool volume list --json web.pool");
    assert_eq!((&volumes[1]["origin"], &volumes[1]["allocated"]), (&"golden@v1".into(), &0.into()));
    assert_eq!(
        (&volumes[0]["template"], &volumes[0]["snapshots"][0]["clones"][1]),
        (&true.into(), &"mail".into())
    );
    assert!(vireo(folder, "pool info web.pool").contains("shared with golden@v1"));
    let copied = json(folder, "pool volume flatten --json web.pool mail");
    assert_eq!(copied["chunks-copied"].as_u64().map(|chunks| chunks << 18), volumes[1]["shared"].as_u64());
    vireo(folder, "pool volume template --off web.pool golden");
    vireo(folder, "pool volume delete --with-snapshots web.pool golden");
    for volume in ["web", "mail"] {
        same(folder, volume);
    }
    vireo(folder, "pool scrub web.pool");
}

#[test]
fn rot_is_found_by_checksums() {
    let folder = pool(&["a.img", "b.img"]);
    let folder = folder.path();
    vireo(folder, "image convert -O pool -o layout=mirrored,checksums=on a.raw web.pool/m");
    vireo(folder, "pool volume create web.pool l --size 5243392 --checksums");
    vireo(folder, "image convert -n -O pool a.raw web.pool/l");
    let volumes = json(folder, "pool volume list --json web.pool");
    assert_eq!((&volumes[1]["checksums"], &volumes[1]["unchecked"]), (&true.into(), &0.into()));
    // The first bytes of the content, wherever a member has them.
    let member = folder.join("a.img");
    let mut bytes = std::fs::read(&member).unwrap();
    let begin = content()[..64].to_vec();
    let places: Vec<usize> =
        (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(&begin)).collect();
    assert_eq!(places.len(), 2);
    places.iter().for_each(|at| bytes[at + 1000] ^= 4);
    std::fs::write(&member, bytes).unwrap();
    same(folder, "m");
    refused(folder, "image convert -O raw web.pool/l out.raw", "The checksum of volume l at byte 0 is wrong");
    let report = run(folder, "pool scrub --repair --json web.pool");
    assert_eq!(report.status.code(), Some(2));
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["rotten"], &report["repaired"], &report["lost"]), (&1.into(), &1.into(), &1.into()));
    vireo(folder, "image convert -n -O pool a.raw web.pool/l");
    vireo(folder, "pool scrub web.pool");
    let forgotten = json(folder, "pool volume checksums --json web.pool l off");
    assert_eq!(forgotten["chunks-summed"], 0);
    assert_ne!(json(folder, "pool volume checksums --json web.pool l on")["chunks-summed"], 0);
    same(folder, "l");
}

#[test]
fn a_lost_member_is_replaced() {
    let folder = pool(&["a.img", "b.img"]);
    let folder = folder.path();
    vireo(folder, "image convert -O pool -o layout=mirrored a.raw web.pool/m");
    std::fs::rename(folder.join("a.img"), folder.join("gone.img")).unwrap();
    refused(folder, "pool info web.pool", "--degraded");
    let info = json(folder, "pool info --json --degraded web.pool");
    assert_eq!(info["members"][0]["state"], "missing");
    sparse(&folder.join("c.img"), 32 << 20);
    vireo(folder, "pool add --degraded web.pool c.img");
    let copied = json(folder, "pool rebuild --degraded --json web.pool");
    assert!(copied["chunks-copied"].as_u64().unwrap() > 0);
    vireo(folder, "pool remove web.pool 0");
    same(folder, "m");
    let report = json(folder, "pool scrub --json web.pool");
    assert_eq!((report["differing"].as_u64(), report["degraded"].as_u64()), (Some(0), Some(0)));
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = pool(&["a.img", "b.img"]);
    let folder = folder.path();
    refused(folder, "pool create other.pool --member a.img", "belongs to a pool already");
    refused(folder, "pool create other.pool --member none.img", "none.img");
    refused(folder, "pool volume create web.pool x --size 1M --layout mirrored --copies 3", "3 copies need");
    refused(folder, "pool volume create web.pool ../x --size 1M", "is no name of a volume");
    refused(folder, "pool volume create web.pool x --size 1000", "multiple of 512");
    vireo(folder, "pool volume create web.pool x --size 1M");
    refused(folder, "pool volume create web.pool x --size 1M", "already");
    refused(folder, "pool volume resize web.pool x 512k", "--shrink");
    refused(folder, "pool volume revert web.pool x monday", "no snapshot");
    refused(folder, "image info -f pool web.pool/y", "no volume");
    refused(folder, "image info -f pool a.raw", "POOL-FILE/VOLUME");
    std::fs::write(folder.join("web.pool"), "members = 3").unwrap();
    refused(folder, "pool info web.pool", "no pool file");
}
