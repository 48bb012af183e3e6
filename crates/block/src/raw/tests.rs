use super::*;
use std::io::Write;
use std::process::Command;

fn image(size: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0xaa; size]).unwrap();
    file
}

#[test]
fn what_is_written_is_read_and_zeroes_are_zero() {
    let file = image(8192);
    let disk = RawFile::open(file.path(), false).unwrap();
    disk.write_at(510, &[IoSlice::new(&[1, 2]), IoSlice::new(&[]), IoSlice::new(&[3])]).unwrap();
    disk.write_zeroes(4096, 1024, false).unwrap();
    let (mut a, mut b) = ([0; 4], [9; 2]);
    disk.read_at(509, &mut [IoSliceMut::new(&mut a)]).unwrap();
    disk.read_at(5119, &mut [IoSliceMut::new(&mut b)]).unwrap();
    assert_eq!((a, b), ([0xaa, 1, 2, 3], [0, 0xaa]));
    assert!(disk.read_at(8191, &mut [IoSliceMut::new(&mut b)]).is_err());
    assert!(disk.write_at(u64::MAX, &[IoSlice::new(&b)]).is_err());
}

#[test]
fn sizes_and_kinds_that_are_no_disks_are_refused_with_the_reason() {
    let odd = image(1000);
    let error = RawFile::open(odd.path(), false).unwrap_err().to_string();
    assert!(error.contains("1000 bytes") && error.contains("truncate -s 1024"), "{error}");
    assert!(RawFile::open(Path::new("/"), true).unwrap_err().to_string().contains("a directory"));
    assert!(RawFile::open(Path::new("/nonexistent/disk"), true).is_err());
}

#[test]
fn one_writer_or_many_readers() {
    let file = image(512);
    let writer = RawFile::open(file.path(), false).unwrap();
    assert!(matches!(RawFile::open(file.path(), true), Err(BlockError::InUse { .. })));
    drop(writer);
    let reader = RawFile::open(file.path(), true).unwrap();
    let _other = RawFile::open(file.path(), true).unwrap();
    assert!(matches!(RawFile::open(file.path(), false), Err(BlockError::InUse { .. })));
    drop(reader);
}

/// The oracle of the lock bytes is `qemu-img`.
#[test]
fn qemu_img_respects_our_lock() {
    let file = image(512);
    let target = tempfile::NamedTempFile::new().unwrap();
    let convert = |path: &Path| {
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", "raw"]).arg(path).arg(target.path()).output()
    };
    let Ok(before) = convert(file.path()) else {
        eprintln!("skipped: qemu-img is not installed");
        return;
    };
    assert!(before.status.success());
    let _disk = RawFile::open(file.path(), false).unwrap();
    let during = convert(file.path()).unwrap();
    assert!(!during.status.success());
    assert!(String::from_utf8_lossy(&during.stderr).contains("lock"));
}
