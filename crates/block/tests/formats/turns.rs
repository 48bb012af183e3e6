//! Two tools, one image.

use crate::cases::{range, run, seeds, tool};
use crate::random::Random;
use block::{BackingPolicy, CreateOptions, OpenOptions, Repair};
use std::collections::BTreeMap;
use std::path::Path;

fn options(rng: &mut Random, format: &str) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    let mut maybe = |rng: &mut Random, name: &str, values: &[&str]| {
        if !rng.chance(33) {
            options.insert(name.to_owned(), rng.pick(values).to_owned());
        }
    };
    match format {
        "vdi" => maybe(rng, "static", &["on", "off"]),
        "vpc" => {
            maybe(rng, "subformat", &["dynamic", "dynamic", "fixed"]);
            maybe(rng, "force_size", &["on", "off"]);
        }
        "vhdx" => {
            maybe(rng, "subformat", &["dynamic", "dynamic", "fixed"]);
            maybe(rng, "block_size", &["1M", "2M", "8M", "16M", "64M"]);
            maybe(rng, "log_size", &["1M", "2M"]);
        }
        "vmdk" => {
            maybe(
                rng,
                "subformat",
                &[
                    "monolithicSparse",
                    "monolithicSparse",
                    "monolithicFlat",
                    "twoGbMaxExtentSparse",
                    "twoGbMaxExtentFlat",
                ],
            );
            maybe(rng, "adapter_type", &["ide", "lsilogic", "buslogic", "legacyESX"]);
            maybe(rng, "hwversion", &["4", "14"]);
            let sparse = options
                .get("subformat")
                .is_none_or(|name: &String| name.contains("Sparse") || name.contains("stream"));
            if sparse {
                options.insert("zeroed_grain".into(), rng.pick(&["on", "off"]).into());
            }
        }
        other => panic!("no options are known for {other}"),
    }
    options
}

fn opening(read_only: bool) -> OpenOptions {
    OpenOptions { read_only, backing: BackingPolicy::Anywhere, ..OpenOptions::default() }
}

/// Random requests with our code; `model` follows.
fn ours(rng: &mut Random, path: &Path, format: &str, model: &mut Vec<u8>) {
    let image = block::open(path, format, &opening(false)).unwrap();
    assert_eq!(image.size(), model.len() as u64, "size we see");
    for _ in 0..rng.below(24) {
        let (start, len) = range(rng, model.len() as u64);
        let range = start as usize..(start + len) as usize;
        match rng.below(10) {
            0 => image.flush().unwrap(),
            1 | 2 => {
                image.write_zeroes(start, len, rng.chance(50)).unwrap();
                model[range].fill(0);
            }
            3 => {
                image.discard(start, len).unwrap();
                let mut now = vec![1; len as usize];
                image.read_bytes(start, &mut now).unwrap();
                for (now, old) in now.chunks(512).zip(model[range.clone()].chunks(512)) {
                    assert!(now == old || now.iter().all(|&byte| byte == 0), "a discard made something up");
                }
                model[range].copy_from_slice(&now);
            }
            4 => {
                let mut now = vec![1; len as usize];
                image.read_bytes(start, &mut now).unwrap();
                assert!(now == model[range], "read at {start:#x} + {len:#x}");
            }
            _ => {
                let data: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
                image.write_bytes(start, &data).unwrap();
                model[range].copy_from_slice(&data);
            }
        }
    }
    if rng.chance(25) && format != "vmdk" || rng.chance(25) {
        let more = (1 + rng.below(8000)) * 512;
        match image.resize(model.len() as u64 + more) {
            Ok(()) => model.resize(image.size() as usize, 0),
            // Sizes that no geometry says; several extents, or a longer backing file.
            Err(error) => {
                use std::io::ErrorKind::{InvalidInput, Unsupported};
                assert!(matches!(error.kind(), InvalidInput | Unsupported), "{error}");
            }
        }
    }
}

/// Random requests with `qemu-io`.
fn theirs(rng: &mut Random, path: &Path, format: &str, model: &mut [u8]) {
    let mut commands = Vec::new();
    for _ in 0..1 + rng.below(16) {
        let (start, len) = range(rng, model.len() as u64);
        let range = start as usize..(start + len) as usize;
        if rng.chance(20) {
            commands.push(format!("write -z {start} {len}"));
            model[range].fill(0);
        } else {
            let byte = rng.next() as u8;
            commands.push(format!("write -P {byte} {start} {len}"));
            model[range].fill(byte);
        }
    }
    let mut arguments = vec!["-f", format];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(path.to_str().unwrap());
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
}

/// Both tools see what `model` says, and their checks find nothing.
fn compare(path: &Path, format: &str, model: &[u8]) {
    let name = path.to_str().unwrap();
    let image = block::open(path, format, &opening(true)).unwrap();
    assert_eq!(image.size(), model.len() as u64, "size we see");
    let mut content = vec![1; model.len()];
    image.read_bytes(0, &mut content).unwrap();
    assert!(content == model, "we read something else from byte {:?}", difference(&content, model));
    let report = image.check(Repair::Nothing).unwrap();
    assert!(report.is_clean(), "our check: {report:?}");
    let mut at = 0;
    while at < image.size() {
        let extent = image.block_status(at, image.size() - at).unwrap();
        assert!(extent.start == at && extent.length > 0 && extent.length <= image.size() - at, "{extent:?}");
        let content = &model[at as usize..(at + extent.length) as usize];
        assert!(!extent.zero || content.iter().all(|&byte| byte == 0), "{extent:?} is not zeros");
        at += extent.length;
    }
    drop(image);
    let raw = path.with_extension("raw");
    run("qemu-img", &["convert", "-f", format, "-O", "raw", name, raw.to_str().unwrap()]);
    let content = std::fs::read(&raw).unwrap();
    assert_eq!(content.len(), model.len(), "size qemu-img sees");
    assert!(content == model, "qemu-img reads something else from byte {:?}", difference(&content, model));
    let check = tool("qemu-img", &["check", "-f", format, name]).unwrap();
    // 63: the format has no check.
    assert!(check.status.success() || check.status.code() == Some(63), "{check:?}");
}

fn difference(one: &[u8], other: &[u8]) -> Option<usize> {
    one.iter().zip(other).position(|(one, other)| one != other)
}

fn virtual_size(path: &Path, format: &str) -> u64 {
    let info = run("qemu-img", &["info", "-f", format, "--output=json", path.to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

/// A backing file in the same format, with random content; sometimes shorter.
fn backing(rng: &mut Random, path: &Path, format: &str, size: u64) -> Vec<u8> {
    let size = if rng.chance(33) { (1 + rng.below(size / 512)) * 512 } else { size };
    block::create(path, format, CreateOptions { size, ..CreateOptions::default() }).unwrap();
    let mut model = vec![0; size as usize];
    {
        let image = block::open(path, format, &opening(false)).unwrap();
        for _ in 0..12 {
            let (start, len) = range(rng, size);
            let data: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
            image.write_bytes(start, &data).unwrap();
            model[start as usize..(start + len) as usize].copy_from_slice(&data);
        }
    }
    model
}

/// Overlays; the other tool joins in where it can: it has no differencing vhd and vhdx.
fn overlay(seed: u64, format: &str, with_theirs: bool) {
    let mut rng = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base.img"), folder.path().join("top.img"));
    let size = (1 + rng.below(12 << 11)) * 512;
    let mut model = backing(&mut rng, &base, format, size);
    model.resize(size as usize, 0);
    println!("seed {seed}: {format}, {size} bytes over {}", base.metadata().unwrap().len());
    if with_theirs && rng.chance(50) {
        let (name, base, size) = (path.to_str().unwrap(), base.to_str().unwrap(), size.to_string());
        run("qemu-img", &["create", "-q", "-f", format, "-b", base, "-F", format, name, &size]);
    } else {
        let backing = Some(("base.img".to_owned(), format.to_owned()));
        block::create(&path, format, CreateOptions { size, backing, ..CreateOptions::default() }).unwrap();
    }
    if with_theirs && virtual_size(&path, format) != size {
        // It takes the size of the backing file.
        return;
    }
    for _ in 0..4 {
        let before = std::fs::read(&base).unwrap();
        if with_theirs && rng.chance(50) {
            theirs(&mut rng, &path, format, &mut model);
        } else {
            ours(&mut rng, &path, format, &mut model);
        }
        assert!(std::fs::read(&base).unwrap() == before, "the backing file was written");
        if with_theirs {
            compare(&path, format, &model);
        }
        let image = block::open(&path, format, &opening(true)).unwrap();
        let mut content = vec![1; model.len()];
        image.read_bytes(0, &mut content).unwrap();
        assert!(content == model, "difference at {:?}", difference(&content, &model));
        let report = image.check(Repair::Nothing).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
    // Without permission nothing is read from the backing file.
    assert!(block::open(&path, format, &OpenOptions::reading()).is_err());
    // A parent that changed is noticed.
    let image = block::open(&base, format, &opening(false)).unwrap();
    image.write_bytes(0, &[7; 512]).unwrap();
    drop(image);
    let noticed = block::open(&path, format, &opening(true)).is_err();
    assert_eq!(noticed, format != "vpc", "vhd has no mark of its content");
}

#[test]
fn overlays() {
    for seed in seeds(6) {
        overlay(seed, "vhdx", false);
        overlay(seed, "vpc", false);
        overlay(seed, "vmdk", tool("qemu-img", &["--version"]).is_some());
    }
}

#[test]
fn vmdk() {
    cases("vmdk", 8);
}

fn case(seed: u64, format: &str) {
    let mut rng = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let options = options(&mut rng, format);
    let size = (1 + rng.below(24 << 11)) * 512;
    let we_make_it = rng.chance(50);
    println!("seed {seed}: {format}, {size} bytes, {options:?}, made by us: {we_make_it}");
    // The other tool cannot write grains of a stream twice.
    let stream = options.get("subformat").is_some_and(|name| name == "streamOptimized");
    if we_make_it {
        let create = CreateOptions { size, options, ..CreateOptions::default() };
        block::create(&path, format, create).unwrap();
    } else {
        let options: Vec<String> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut arguments = vec!["create", "-q", "-f", format];
        let options = options.join(",");
        if !options.is_empty() {
            arguments.extend(["-o", &options]);
        }
        let size = size.to_string();
        arguments.extend([path.to_str().unwrap(), &size]);
        run("qemu-img", &arguments);
    }
    let seen = virtual_size(&path, format);
    assert!(seen >= size && seen < size + (1 << 20), "size is {seen}");
    let mut model = vec![0; seen as usize];
    for _ in 0..4 {
        if stream || rng.chance(50) {
            ours(&mut rng, &path, format, &mut model);
        } else {
            theirs(&mut rng, &path, format, &mut model);
        }
        compare(&path, format, &model);
    }
}

fn cases(format: &str, default: u64) {
    if tool("qemu-img", &["--version"]).is_some() && tool("qemu-io", &["--version"]).is_some() {
        seeds(default).for_each(|seed| case(seed, format));
    }
}

#[test]
fn vdi() {
    cases("vdi", 6);
}

#[test]
fn vpc() {
    cases("vpc", 6);
}

#[test]
fn vhdx() {
    cases("vhdx", 6);
}
