//! Disks: what the guest reads is what the file holds, what it writes is what the file gets.

use std::process::Command;

#[path = "../../iscsi/tests/tgt/mod.rs"]
mod tgt;

use anyhow::{Result, ensure};
use vm_tests::Material;

const BOOT: u64 = 240;
/// Size of the test disk in bytes.
const SIZE: usize = 16 << 20;

#[test]
fn a_guest_reads_and_writes_its_disk() -> Result<()> {
    read_and_write("")
}

#[test]
fn a_guest_reads_and_writes_its_disk_by_packed_rings() -> Result<()> {
    read_and_write(",packed=on,queues=2")
}

fn read_and_write(options: &str) -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, content())?;
    run_block_test(&material, &format!("{}{options}", path.display()))?;
    has_what_the_guest_wrote(&std::fs::read(&path)?);
    Ok(())
}

/// `qemu-img` makes the image and reads it afterwards.
#[test]
fn a_guest_reads_and_writes_an_image_of_every_format() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: no qemu-img; `cargo xtask test` installs it");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("raw"), content())?;
    std::fs::write(at("key"), "not a word")?;
    let secret = format!("secret,id=s,file={}", at("key"));
    for (format, making, running) in [
        ("qcow2", "", String::new()),
        (
            "qcow2",
            "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s",
            format!(",key-file={}", at("key")),
        ),
        ("luks", "iter-time=10,key-secret=s", format!(",key-file={}", at("key"))),
        ("vdi", "", String::new()),
        ("vmdk", "", String::new()),
        ("vpc", "force_size=on", String::new()),
        ("vhdx", "", String::new()),
    ] {
        let _ = std::fs::remove_file(at("image"));
        let mut make = qemu_img("convert", &secret);
        make.args(["-f", "raw", "-O", format, &at("raw"), &at("image")]);
        if !making.is_empty() {
            make.args(["-o", making]);
        }
        done(&mut make)?;
        run_block_test(&material, &format!("{},format={format}{running}", at("image")))?;
        let mut look = format!("driver={format},file.filename={}", at("image"));
        if let Some(key) = making.split(',').find(|option| option.ends_with("key-secret=s")) {
            look = format!("{look},{key}");
        }
        done(qemu_img("convert", &secret).args(["--image-opts", &look, "-O", "raw", &at("after")]))?;
        has_what_the_guest_wrote(&std::fs::read(at("after"))?);
    }
    Ok(())
}

/// Volumes of every layout, on one pool of two files.
#[test]
fn a_guest_reads_and_writes_the_volumes_of_a_pool() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("raw"), content())?;
    for member in ["a", "b"] {
        std::fs::File::create(at(member))?.set_len(4 * SIZE as u64)?;
    }
    let (pool, chunk) = (at("pool"), ["--chunk", "256K"]);
    let members = ["--member", &at("a"), "--member", &at("b")];
    done(material.command(&["pool", "create", &pool]).args(chunk).args(members))?;
    for layout in ["linear", "striped", "mirrored"] {
        let volume = format!("{pool}/{layout}");
        let option = format!("layout={layout}");
        let to = ["image", "convert", "-f", "raw", "-O", "pool", "-o", &option, &at("raw"), &volume];
        done(&mut material.command(&to))?;
        run_block_test(&material, &format!("{volume},format=pool"))?;
        let from = ["image", "convert", "-f", "pool", "-O", "raw", &volume, &at("after")];
        done(&mut material.command(&from))?;
        has_what_the_guest_wrote(&std::fs::read(at("after"))?);
    }
    // Both copies of every chunk are the same, also of those that the guests wrote.
    done(&mut material.command(&["pool", "scrub", &pool]))
}

/// `qemu-nbd` has the image; the machine has only its socket.
#[test]
fn a_guest_reads_and_writes_the_export_of_a_server() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (path, socket) = (folder.path().join("disk.raw"), folder.path().join("nbd.sock"));
    std::fs::write(&path, content())?;
    // Without -t, it ends with its only client: the machine.
    let server = Command::new("qemu-nbd").args(["-f", "raw", "-k"]).arg(&socket).arg(&path).spawn();
    let Ok(mut server) = server else {
        eprintln!("skipped: no qemu-nbd; `cargo xtask test` installs it");
        return Ok(());
    };
    let appears = (0..3000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        socket.exists()
    });
    let ran = run_block_test(&material, &format!("nbd+unix:///?socket={}", socket.display()));
    if !appears || ran.is_err() {
        server.kill()?;
    }
    server.wait()?;
    ran?;
    has_what_the_guest_wrote(&std::fs::read(&path)?);
    Ok(())
}

/// A target has the image; the machine has only the target's address.
#[test]
fn a_guest_reads_and_writes_a_unit_of_an_iscsi_target() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let Some(mut target) = tgt::Target::start(folder.path()) else { return Ok(()) };
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, content())?;
    target.unit(1, &path, 512, false);
    run_block_test(&material, &target.uri("", 1, ""))?;
    has_what_the_guest_wrote(&std::fs::read(&path)?);
    Ok(())
}

fn qemu_img(command: &str, secret: &str) -> Command {
    let mut qemu_img = Command::new("qemu-img");
    qemu_img.args([command, "--object", secret]);
    qemu_img
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What a disk holds before the guest comes.
fn content() -> Vec<u8> {
    (0..SIZE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A machine whose guest reads the first MiB of the disk and writes behind it.
fn run_block_test(material: &Material, disk: &str) -> Result<()> {
    let disk = format!("{disk},serial=VIREO42");
    let mut vm =
        material.boot("vireo.test=block quiet", &["--engine", "software", "--cpus", "2", "--disk", &disk])?;
    vm.wait_for("VIREO-BLOCK-SIZE 32768 ro=0 serial=VIREO42", BOOT)?;
    vm.wait_for("VIREO-BLOCK-READ ", 180)?;
    let digest = vm.wait_for("\n", 60)?;
    assert_eq!(digest.trim(), sha256(&content()[..1 << 20])?, "{disk}");
    vm.wait_for("VIREO-BLOCK-OK", 180)?;
    assert_eq!(vm.wait(60)?.code, Some(0), "{disk}");
    Ok(())
}

/// The guest wrote the numbers from 1 on, a line each, 1 MiB into the disk, and nothing else anywhere.
fn has_what_the_guest_wrote(after: &[u8]) {
    let before = content();
    let numbers: String = (1..700_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(after.len(), SIZE);
    assert!(after[1 << 20..5 << 20] == numbers.as_bytes()[..4 << 20], "not what the guest wrote");
    assert!(after[..1 << 20] == before[..1 << 20] && after[5 << 20..] == before[5 << 20..]);
}

#[test]
fn a_read_only_disk_stays_as_it_was() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![7; SIZE])?;
    let disk = format!("{},readonly=on", path.display());
    let mut vm = material.boot("vireo.test=block quiet", &["--engine", "software", "--disk", &disk])?;
    vm.wait_for("VIREO-BLOCK-SIZE 32768 ro=1", BOOT)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    assert!(std::fs::read(&path)? == vec![7; SIZE]);
    Ok(())
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), bytes)?;
    let output = Command::new("sha256sum").arg(file.path()).output()?;
    Ok(String::from_utf8(output.stdout)?.split_whitespace().next().unwrap_or_default().to_owned())
}
