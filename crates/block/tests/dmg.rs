//! Apple disk images with chunks of every kind, read by us, by `qemu-img`, and by `dmg2img`.

#[path = "hostile/composed_dmg.rs"]
mod composed_dmg;
#[path = "random/mod.rs"]
mod random;

use block::{BlockBackend, DiskImage, OpenOptions, Repair};
use composed_dmg::{ADC, BZIP2, LZFSE, Piece, RAW, UNUSED, XZ, ZERO, ZLIB, composed};
use random::Random;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Bytes as disks have them: some noise, much text, zeros.
fn content(random: &mut Random, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < len {
        let run = 1 + random.below(4000) as usize;
        match random.chance(60) {
            true if random.chance(50) => out.extend((0..run).map(|_| random.next() as u8)),
            true => out.extend(b"all work and no play ".iter().cycle().take(run)),
            false => out.resize(out.len() + run, 0),
        }
    }
    out.truncate(len);
    out
}

/// Runs, copies of the byte before, and copies from farther away.
fn adc(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut at, mut run) = (0, 0);
    let put_run = |out: &mut Vec<u8>, bytes: &[u8]| {
        bytes.chunks(128).for_each(|run| {
            out.push(0x80 | (run.len() - 1) as u8);
            out.extend_from_slice(run);
        });
    };
    while at < bytes.len() {
        let same = |distance: usize, most: usize| {
            let matches =
                |len: &usize| at >= distance && bytes.get(at + len) == bytes.get(at + len - distance);
            (0..most.min(bytes.len() - at)).take_while(matches).count()
        };
        // The text's period needs two bytes or three, by its length.
        let (distance, len) =
            [1, 21].map(|distance| (distance, same(distance, 67))).into_iter().max_by_key(|m| m.1).unwrap();
        if len < 4 {
            (at, run) = (at + 1, run + 1);
            continue;
        }
        put_run(&mut out, &bytes[at - run..at]);
        run = 0;
        if len <= 18 {
            out.extend_from_slice(&[((len - 3) << 2) as u8, (distance - 1) as u8]);
        } else {
            out.extend_from_slice(&[0x40 | (len - 4) as u8, 0, (distance - 1) as u8]);
        }
        at += len;
    }
    put_run(&mut out, &bytes[at - run..at]);
    out
}

fn packed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match kind {
        ZERO | UNUSED => {}
        RAW => out.extend_from_slice(bytes),
        ADC => out = adc(bytes),
        ZLIB => {
            let packer = flate2::read::ZlibEncoder::new(bytes, flate2::Compression::default());
            { packer }.read_to_end(&mut out).unwrap();
        }
        BZIP2 => {
            let packer = bzip2::read::BzEncoder::new(bytes, bzip2::Compression::best());
            { packer }.read_to_end(&mut out).unwrap();
        }
        LZFSE => drop(lzfse_rust::encode_bytes(bytes, &mut out).unwrap()),
        XZ => {
            let mut xz = Command::new("xz")
                .args(["-c", "-1", "-Ccrc32"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = xz.stdin.take().unwrap();
            let bytes = bytes.to_vec();
            let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
            out = xz.wait_with_output().unwrap().stdout;
            writer.join().unwrap();
        }
        _ => panic!("{kind:#x}"),
    }
    out
}

/// An image with two tables of chunks of these kinds, and what its disk holds.
fn image(seed: u64, kinds: &[u32]) -> (Vec<u8>, Vec<u8>) {
    let mut random = Random(seed);
    let mut disk = Vec::new();
    let mut table = |pieces: usize| -> Vec<Piece> {
        (0..pieces)
            .map(|number| {
                let kind = kinds[number % kinds.len()];
                let sectors = {
                    let most = random.pick(&[8, 512, 2048]);
                    1 + random.below(most)
                };
                let mut bytes = content(&mut random, sectors as usize * 512);
                if matches!(kind, ZERO | UNUSED) {
                    bytes.fill(0);
                }
                let stored = packed(kind, &bytes);
                disk.append(&mut bytes);
                Piece { kind, sectors, stored }
            })
            .collect()
    };
    let tables = [table(kinds.len() * 3), table(kinds.len())];
    (composed(&tables), disk)
}

fn open(path: &Path) -> block::ImageResult<Arc<dyn DiskImage>> {
    block::open(path, "dmg", &OpenOptions::reading())
}

fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        eprintln!("not compared: {program} is not installed; `cargo xtask test` installs it");
    }
    there
}

fn all(image: &dyn BlockBackend) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_bytes(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn chunks_of_every_kind_are_read_as_others_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // QEMU's parts for bzip2 and LZFSE are not in every package of it.
    let of_qemu = vec![ZLIB, RAW, ZERO, UNUSED];
    let of_dmg2img = vec![ZLIB, RAW, ZERO, UNUSED, BZIP2, ADC];
    let mut kinds = vec![ZLIB, RAW, ZERO, UNUSED, BZIP2, ADC, LZFSE];
    if is_there("xz") {
        kinds.push(XZ);
    }
    for seed in 1..=4 {
        for (other, kinds) in [("", &kinds), ("qemu-img", &of_qemu), ("dmg2img", &of_dmg2img)] {
            let (bytes, disk) = image(seed, kinds);
            std::fs::write(at("a.dmg"), bytes).unwrap();
            assert_eq!(block::probe(&at("a.dmg")).unwrap(), "dmg");
            let image = open(&at("a.dmg")).unwrap();
            assert!(all(&*image) == disk, "{seed} {kinds:x?}");
            let report = image.check(Repair::Nothing).unwrap();
            assert!(report.is_clean(), "{report:?}");
            let mut command = Command::new(other);
            match other {
                "qemu-img" => {
                    command.args(["convert", "-f", "dmg", "-O", "raw"]).args([at("a.dmg"), at("out")])
                }
                "dmg2img" => command.args([at("a.dmg"), at("out")]),
                _ => continue,
            };
            if is_there(other) {
                let output = command.output().unwrap();
                assert!(output.status.success(), "{output:?}");
                assert!(std::fs::read(at("out")).unwrap() == disk, "{other} {seed}");
            }
        }
    }
}

#[test]
fn random_parts_are_those_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.dmg");
    let (bytes, disk) = image(9, &[ZLIB, RAW, ZERO, BZIP2, LZFSE, ADC]);
    std::fs::write(&path, bytes).unwrap();
    let image = open(&path).unwrap();
    let mut random = Random(3);
    for _ in 0..500 {
        let start = random.below(disk.len() as u64) as usize;
        let len = (random.below(300_000) as usize).min(disk.len() - start);
        let mut part = vec![1; len];
        image.read_bytes(start as u64, &mut part).unwrap();
        assert!(part == disk[start..start + len]);
        let extent = image.block_status(start as u64, (disk.len() - start) as u64).unwrap();
        let range = start..start + extent.length as usize;
        assert!(!extent.zero || disk[range].iter().all(|byte| *byte == 0));
    }
    assert!(image.write_bytes(0, &[1; 512]).is_err());
}

#[test]
fn damage_is_said_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.dmg");
    let (bytes, _) = image(5, &[ZLIB]);
    let end = bytes.len() - 512;
    let words = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        block::with_causes(&open(&path).err().expect("this must be refused"))
    };
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    assert!(words(&bytes[..end]).contains("koly trailer is not there"));
    assert!(words(&changed(end + 24, &[0xFF; 8])).contains("DataForkOffset"));
    assert!(words(&changed(end + 224, &[0, 0, 0, 0, 0xF0])).contains("XMLOffset"));
    assert!(words(&changed(end + 224, &[0; 8])).contains("resource fork"));
    assert!(words(&changed(end + 492, &[0, 0, 0, 0, 0, 0, 0, 1])).contains("SectorCount is 1"));
    assert!(words(&changed(end + 60, &[0, 0, 0, 3])).contains("other 2 segments"));
    let list = bytes.windows(5).position(|bytes| bytes == b"blkx<").unwrap();
    assert!(words(&changed(list, b"none")).contains("no table (blkx)"));
    // A byte of the first chunk: the checks see it, and whoever reads it.
    std::fs::write(&path, changed(40, &[bytes[40] ^ 0x55])).unwrap();
    let image = open(&path).unwrap();
    let report = image.check(Repair::Nothing).unwrap();
    assert!(report.corruptions >= 1, "{report:?}");
    assert!(report.findings.iter().any(|finding| finding.contains("DataChecksum")), "{report:?}");
    drop(image);
    // Nobody writes one.
    let options = OpenOptions::default();
    let error = block::open(&path, "dmg", &options).err().unwrap();
    assert!(error.to_string().contains("reading only"), "{error}");
}
