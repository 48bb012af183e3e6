//! What Linux's own drivers make of the devices.

use anyhow::Result;
use vm_tests::Material;

const BOOT: u64 = 240;
/// Bit of VIRTIO_F_RING_PACKED, and of features every driver takes, in sysfs's row of digits.
const RING_PACKED: usize = 34;
const VERSION_1: usize = 32;
const MULTI_QUEUE: usize = 12;

/// The rings that were negotiated are what the option says, with as many queues; the kernel is the judge.
#[test]
fn a_guest_takes_packed_rings_and_several_queues() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    for (options, packed, queues) in [(",packed=on,queues=2", true, 2), (",packed=off,queues=1", false, 1)] {
        let path = folder.path().join(format!("disk{queues}.raw"));
        std::fs::write(&path, vec![0x5a; 1 << 20])?;
        let disk = format!("{}{options}", path.display());
        let mut vm = material
            .boot("quiet", &["--engine", "software", "--cpus", "2", "--no-reboot", "--disk", &disk])?;
        vm.wait_for("VIREO-INIT-OK", BOOT)?;
        vm.wait_for("# ", 60)?;
        vm.send(
            "modprobe virtio_pci; modprobe virtio_blk; echo FEATURES=$(cat /sys/block/vda/device/features)\n",
        )?;
        vm.wait_for("\nFEATURES=", 60)?;
        let features = vm.wait_for("\n", 60)?;
        let bit = |at: usize| features.as_bytes().get(at) == Some(&b'1');
        assert!(bit(VERSION_1), "{features}");
        assert_eq!((bit(RING_PACKED), bit(MULTI_QUEUE)), (packed, queues > 1), "{features}");
        vm.send("echo QUEUES=$(ls /sys/block/vda/mq | wc -l)\n")?;
        vm.wait_for("\nQUEUES=", 60)?;
        assert_eq!(vm.wait_for("\n", 60)?.trim(), queues.to_string());
        vm.send("poweroff -f\n")?;
        assert_eq!(vm.wait(60)?.code, Some(0));
    }
    Ok(())
}

/// Discards reach the file as holes, and a disk in write-through mode says so.
#[test]
fn a_guest_discards_and_sets_the_cache_mode() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![0x5a; 4 << 20])?;
    let disk = format!("{},packed=on", path.display());
    let mut vm = material.boot("quiet", &["--engine", "software", "--no-reboot", "--disk", &disk])?;
    vm.wait_for("VIREO-INIT-OK", BOOT)?;
    vm.wait_for("# ", 60)?;
    vm.send("modprobe virtio_pci; modprobe virtio_blk; cd /sys/block/vda; echo MODE=$(cat cache_type)\n")?;
    vm.wait_for("\nMODE=write back", 60)?;
    vm.send("echo 'write through' > cache_type; echo MODE=$(cat cache_type)\n")?;
    vm.wait_for("\nMODE=write through", 60)?;
    vm.send("blkdiscard -o 1048576 -l 2097152 /dev/vda; echo STATUS=$?\n")?;
    vm.wait_for("\nSTATUS=0", 60)?;
    vm.send("cd /; poweroff -f\n")?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    let content = std::fs::read(&path)?;
    assert!(content[..1 << 20].iter().chain(&content[3 << 20..]).all(|byte| *byte == 0x5a));
    // A discarded range reads as old data or as zeros.
    assert!(content[1 << 20..3 << 20].iter().all(|byte| [0, 0x5a].contains(byte)));
    Ok(())
}

/// What the guest writes to `hvc0` comes out of `--console`, and nothing of it out of the serial port.
#[test]
fn the_virtio_console_speaks() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let serial = folder.path().join("serial");
    let options =
        ["--engine", "software", "--serial", &format!("file:{}", serial.display()), "--console", "stdio"];
    let mut vm = material.boot("vireo.test=console quiet", &options)?;
    vm.wait_for("VIREO-CONSOLE-OK", BOOT)?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    let serial = std::fs::read_to_string(serial)?;
    assert!(serial.contains("VIREO-INIT-OK") && !serial.contains("VIREO-CONSOLE-OK"), "{serial}");
    Ok(())
}

/// A machine whose only console is `hvc0` reaches the shell of the initramfs, which takes what is typed.
#[test]
fn a_shell_runs_on_the_virtio_console() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let options = ["--engine", "software", "--no-reboot", "--serial", "none", "--console", "stdio"];
    let mut vm = material.boot("console=hvc0 quiet", &options)?;
    vm.wait_for("VIREO-INIT-OK on hvc0", BOOT)?;
    vm.wait_for("# ", 60)?;
    vm.send("echo SUM=$((6 * 7))\n")?;
    vm.wait_for("\nSUM=42", 60)?;
    vm.send("poweroff -f\n")?;
    assert_eq!(vm.wait(60)?.code, Some(0));
    Ok(())
}
