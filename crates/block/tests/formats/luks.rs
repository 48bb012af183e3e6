//! LUKS containers against `qemu-img` and `cryptsetup`.

use crate::cases::{range, run, seeds, tool};
use crate::random::Random;
use block::luks::{Kdf, add_key, remove_key, slots};
use block::{CreateOptions, DiskImage, ImageResult, OpenOptions, RawFile};
use std::path::Path;
use std::sync::Arc;

const PASSPHRASE: &str = "correct horse";

fn open(path: &Path, passphrase: &str) -> ImageResult<Arc<dyn DiskImage>> {
    let passphrase = Some(Arc::from(passphrase.as_bytes()));
    block::open(path, "luks", &OpenOptions { passphrase, ..OpenOptions::default() })
}

fn create(path: &Path, size: u64, options: &[(&str, &str)]) {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let passphrase = Some(Arc::from(PASSPHRASE.as_bytes()));
    block::create(path, "luks", CreateOptions { size, options, passphrase, ..CreateOptions::default() })
        .unwrap();
}

fn write_something(rng: &mut Random, image: &dyn DiskImage, model: &mut [u8]) {
    for _ in 0..8 {
        let (start, len) = range(rng, model.len() as u64);
        let data: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
        image.write_bytes(start, &data).unwrap();
        model[start as usize..(start + len) as usize].copy_from_slice(&data);
    }
}

fn content(path: &Path) -> Vec<u8> {
    let image = open(path, PASSPHRASE).unwrap();
    let mut content = vec![0; image.size() as usize];
    image.read_bytes(0, &mut content).unwrap();
    content
}

/// What `qemu-img` reads.
fn theirs(folder: &Path, path: &Path) -> Vec<u8> {
    let raw = folder.join("raw");
    let secret = format!("secret,id=s,data={PASSPHRASE}");
    let file = format!("driver=luks,key-secret=s,file.filename={}", path.display());
    run(
        "qemu-img",
        &["convert", "--object", &secret, "--image-opts", &file, "-O", "raw", raw.to_str().unwrap()],
    );
    std::fs::read(raw).unwrap()
}

#[test]
fn version_1_with_qemu() {
    if tool("qemu-img", &["--version"]).is_none() {
        return;
    }
    for seed in seeds(3) {
        let mut rng = Random(seed);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.luks");
        let size = (1 + rng.below(5000)) * 512;
        if rng.chance(50) {
            let (mode, vector) = rng.pick(&[("xts", "plain64"), ("cbc", "essiv"), ("cbc", "plain64")]);
            let algorithm = rng.pick(&["aes-128", "aes-256"]);
            let algorithm = if vector == "essiv" { "aes-256" } else { algorithm };
            let options = [("cipher-alg", algorithm), ("cipher-mode", mode), ("ivgen-alg", vector)];
            create(&path, size, &[&options[..], &[("iter-time", "10")]].concat());
        } else {
            let secret = format!("secret,id=s,data={PASSPHRASE}");
            let (mode, vector) = if rng.chance(50) { ("xts", "plain64") } else { ("cbc", "essiv") };
            let options = format!(
                "key-secret=s,iter-time=10,cipher-mode={mode},ivgen-alg={vector},ivgen-hash-alg=sha256"
            );
            let (size, name) = (size.to_string(), path.to_str().unwrap());
            run(
                "qemu-img",
                &["create", "-q", "--object", &secret, "-f", "luks", "-o", &options, name, &size],
            );
        }
        let mut model = content(&path);
        assert_eq!(model.len() as u64, size);
        assert!(theirs(folder.path(), &path) == model, "seed {seed}: a new container");
        write_something(&mut rng, &*open(&path, PASSPHRASE).unwrap(), &mut model);
        assert!(
            content(&path) == model && theirs(folder.path(), &path) == model,
            "seed {seed}: a written one"
        );
    }
}

fn test_passphrase(path: &Path, passphrase: &str) -> bool {
    let key = path.with_extension("key");
    std::fs::write(&key, passphrase).unwrap();
    let arguments =
        ["open", "--test-passphrase", "--key-file", key.to_str().unwrap(), path.to_str().unwrap()];
    tool("cryptsetup", &arguments).unwrap().status.success()
}

#[test]
fn key_slots_with_cryptsetup() {
    if tool("cryptsetup", &["--version"]).is_none() {
        return;
    }
    let kdf = Kdf::Argon2id { time: 4, memory_kib: 32 << 10, lanes: 1 };
    for (version, kdf) in [("1", Kdf::Pbkdf2(10)), ("2", kdf)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.luks");
        if version == "1" {
            create(&path, 1 << 20, &[("version", version), ("iter-time", "10")]);
        } else {
            create(&path, 1 << 20, &[("version", version), ("memory", "32M")]);
        }
        assert!(test_passphrase(&path, PASSPHRASE), "cryptsetup opens what we made, version {version}");
        assert!(!test_passphrase(&path, "wrong"));
        let wrong = open(&path, "wrong").err().unwrap().to_string();
        assert!(wrong.contains("no key slot"), "{wrong}");
        {
            let file = RawFile::open_storage(&path, &OpenOptions::default()).unwrap();
            add_key(&file, &path, PASSPHRASE.as_bytes(), b"second", kdf).unwrap();
            assert_eq!(slots(&file, &path).unwrap().len(), 2);
        }
        assert!(test_passphrase(&path, "second") && open(&path, "second").is_ok());
        {
            let file = RawFile::open_storage(&path, &OpenOptions::default()).unwrap();
            remove_key(&file, &path, PASSPHRASE.as_bytes()).unwrap();
            assert!(remove_key(&file, &path, b"second").is_err(), "the last slot stays");
        }
        assert!(!test_passphrase(&path, PASSPHRASE) && open(&path, PASSPHRASE).is_err());
        assert!(test_passphrase(&path, "second") && open(&path, "second").is_ok());
    }
}

#[test]
fn containers_of_cryptsetup() {
    if tool("cryptsetup", &["--version"]).is_none() {
        return;
    }
    for (kind, more) in [
        ("luks1", &["--pbkdf-force-iterations", "1000"][..]),
        ("luks2", &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]),
        (
            "luks2",
            &[
                "--pbkdf",
                "argon2id",
                "--pbkdf-memory",
                "32768",
                "--pbkdf-force-iterations",
                "4",
                "--sector-size",
                "4096",
            ],
        ),
        ("luks2", &["--pbkdf", "argon2i", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.luks");
        let key = folder.path().join("key");
        std::fs::write(&key, PASSPHRASE).unwrap();
        std::fs::File::create(&path).unwrap().set_len(18 << 20).unwrap();
        let mut arguments = vec!["luksFormat", "-q", "--type", kind, "--key-file", key.to_str().unwrap()];
        arguments.extend(more);
        arguments.push(path.to_str().unwrap());
        run("cryptsetup", &arguments);
        let mut model = content(&path);
        assert!(!model.is_empty());
        write_something(&mut Random(1), &*open(&path, PASSPHRASE).unwrap(), &mut model);
        assert!(content(&path) == model, "{kind} {more:?}");
        assert!(test_passphrase(&path, PASSPHRASE), "{kind} {more:?}: the header is as it was");
    }
}

/// Reads an image of `qemu-img`'s with the passphrase.
fn qcow2_content(path: &Path) -> Vec<u8> {
    let image = open_qcow2(path, Some(PASSPHRASE)).unwrap();
    let mut content = vec![0; image.size() as usize];
    image.read_bytes(0, &mut content).unwrap();
    content
}

fn open_qcow2(path: &Path, passphrase: Option<&str>) -> ImageResult<Arc<dyn DiskImage>> {
    let passphrase = passphrase.map(|passphrase| Arc::from(passphrase.as_bytes()));
    block::open(path, "qcow2", &OpenOptions { passphrase, ..OpenOptions::default() })
}

/// Both tools make the image in turns, both write, and each reads what the other wrote.
#[test]
fn encrypted_qcow2_with_qemu() {
    if tool("qemu-img", &["--version"]).is_none() || tool("qemu-io", &["--version"]).is_none() {
        return;
    }
    let secret = format!("secret,id=s,data={PASSPHRASE}");
    for seed in seeds(4) {
        let mut rng = Random(seed);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let name = path.to_str().unwrap();
        let size = (1 + rng.below(5000)) * 512;
        let cluster = rng.pick(&["4096", "65536"]);
        let extended = rng.pick(&["on", "off"]);
        let extended = if cluster == "4096" { "off" } else { extended };
        let shape =
            format!("cluster_size={cluster},extended_l2={extended},encrypt.format=luks,encrypt.iter-time=10");
        if rng.chance(50) {
            let pairs = shape.split(',').filter_map(|pair| pair.split_once('='));
            let options = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let passphrase = Some(Arc::from(PASSPHRASE.as_bytes()));
            let options = CreateOptions { size, options, passphrase, ..CreateOptions::default() };
            block::create(&path, "qcow2", options).unwrap();
        } else {
            let options = format!("{shape},encrypt.key-secret=s");
            let size = size.to_string();
            run(
                "qemu-img",
                &["create", "-q", "--object", &secret, "-f", "qcow2", "-o", &options, name, &size],
            );
        }
        let mut model = vec![0; size as usize];
        assert!(qcow2_content(&path) == model, "seed {seed}: a new image reads as zeros");
        write_something(&mut rng, &*open_qcow2(&path, Some(PASSPHRASE)).unwrap(), &mut model);
        assert!(qcow2_content(&path) == model, "seed {seed}: ours");
        let opened = format!("driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename={name}");
        let (start, len) = range(&mut rng, size);
        let command = format!("write -P 0x5a {start} {len}");
        run("qemu-io", &["--object", &secret, "--image-opts", "-c", &command, &opened]);
        model[start as usize..(start + len) as usize].fill(0x5a);
        assert!(qcow2_content(&path) == model, "seed {seed}: what qemu-io wrote");
        let raw = folder.path().join("raw");
        run(
            "qemu-img",
            &["convert", "--object", &secret, "--image-opts", &opened, "-O", "raw", raw.to_str().unwrap()],
        );
        assert!(std::fs::read(raw).unwrap() == model, "seed {seed}: what qemu-img reads");
        run("qemu-img", &["check", "-q", "--object", &secret, "--image-opts", &opened]);
        let wrong = open_qcow2(&path, Some("wrong")).err().unwrap().to_string();
        assert!(wrong.contains("no key slot"), "{wrong}");
        let missing = open_qcow2(&path, None).err().unwrap().to_string();
        assert!(missing.contains("is needed"), "{missing}");
        let plain = std::fs::read(&path).unwrap();
        assert!(
            !plain.windows(64).any(|window| window == [0x5a; 64]),
            "seed {seed}: nothing is stored plain"
        );
    }
}

/// A header that asks for years of work is refused at once; so is one that asks for much memory.
#[test]
fn hostile_costs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.luks");
    create(&path, 1 << 20, &[("iter-time", "1")]);
    let mut bytes = std::fs::read(&path).unwrap();
    // Iterations of the first slot ("LUKS1 On-Disk Format Specification", section 3.1).
    bytes[212..216].copy_from_slice(&u32::MAX.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = open(&path, PASSPHRASE).err().unwrap().to_string();
    assert!(error.contains("iterations"), "{error}");
    create(&path, 1 << 20, &[("version", "2"), ("memory", "1M")]);
    for (name, value) in [("time", u32::MAX), ("memory", u32::MAX), ("cpus", u32::MAX)] {
        let wrong = folder.path().join("wrong.luks");
        let bytes = with_kdf_field(&std::fs::read(&path).unwrap(), name, value);
        std::fs::write(&wrong, bytes).unwrap();
        let error = open(&wrong, PASSPHRASE).err().unwrap().to_string();
        assert!(error.contains("kdf"), "{name}: {error}");
    }
}

/// Both copies of a LUKS2 header with another number in its slot's kdf, and their checksums made right
/// ("LUKS2 On-Disk Format Specification", section 2.1).
fn with_kdf_field(image: &[u8], name: &str, value: u32) -> Vec<u8> {
    use sha2::Digest;
    const SIZE: usize = 16 << 10;
    let mut image = image.to_vec();
    for copy in image.chunks_mut(SIZE).take(2) {
        let text = copy[4096..].split(|&byte| byte == 0).next().unwrap();
        let mut text: serde_json::Value = serde_json::from_slice(text).unwrap();
        text["keyslots"]["0"]["kdf"][name] = value.into();
        let text = text.to_string();
        copy[4096..].fill(0);
        copy[4096..4096 + text.len()].copy_from_slice(text.as_bytes());
        copy[448..512].fill(0);
        let sum = sha2::Sha256::digest(&*copy);
        copy[448..480].copy_from_slice(&sum);
    }
    image
}
