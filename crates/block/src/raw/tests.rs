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

/// Every way of opening a file, and what it needs of the host.
fn ways() -> Vec<OpenOptions> {
    let caches = [CacheMode::WriteBack, CacheMode::None];
    let all = caches.into_iter().flat_map(|cache| [Aio::Threads, Aio::IoUring].map(|aio| (cache, aio)));
    all.map(|(cache, aio)| OpenOptions { cache, aio, ..OpenOptions::default() }).collect()
}

/// A batch with transfers inside, across and beyond the end, with any alignment, reads what single reads do.
#[test]
fn a_batch_does_what_single_transfers_do() {
    for options in ways() {
        let file = image(1 << 20);
        let reference =
            RawFile::open_disk(file.path(), &OpenOptions { ignore_locks: true, ..OpenOptions::default() });
        let reference = reference.unwrap();
        let disk =
            match RawFile::open_disk(file.path(), &OpenOptions { ignore_locks: true, ..options.clone() }) {
                Ok(disk) => disk,
                Err(error) => {
                    eprintln!("skipped {:?} {:?}: {error}", options.cache, options.aio);
                    continue;
                }
            };
        assert_eq!(disk.batches(), options.aio == Aio::IoUring);
        let bytes: Vec<Vec<u8>> =
            (0..200_u8).map(|number| vec![number; 512 * (1 + number as usize % 9)]).collect();
        let place = |number: usize| 5200 * number as u64 + [0, 120, 512][number % 3];
        let mut writes: Vec<Transfer<'_>> = (0..200)
            .map(|number| Transfer::new(place(number), Buffers::Write(vec![IoSlice::new(&bytes[number])])))
            .collect();
        writes.push(Transfer::new((1 << 20) - 100, Buffers::Write(vec![IoSlice::new(&bytes[1])])));
        disk.transfer(&mut writes.iter_mut().collect::<Vec<_>>());
        assert!(writes.pop().unwrap().result.is_err(), "beyond the end");
        for (number, write) in writes.iter().enumerate() {
            assert!(write.result.is_ok(), "{number}: {:?}", write.result);
            let mut found = vec![0; bytes[number].len()];
            reference.read_bytes(place(number), &mut found).unwrap();
            assert!(found == bytes[number], "write {number}");
        }
        let mut found = vec![[0; 4096]; 200];
        let mut reads: Vec<Transfer<'_>> = found
            .iter_mut()
            .enumerate()
            .map(|(number, buffer)| {
                let (one, two) = buffer.split_at_mut(512 * (number % 8));
                let buffers = vec![IoSliceMut::new(one), IoSliceMut::new(two)];
                Transfer::new(512 * number as u64, Buffers::Read(buffers))
            })
            .collect();
        disk.transfer(&mut reads.iter_mut().collect::<Vec<_>>());
        assert!(reads.iter().all(|read| read.result.is_ok()));
        for (number, buffer) in found.iter().enumerate() {
            let mut single = [0; 4096];
            reference.read_bytes(512 * number as u64, &mut single).unwrap();
            assert!(*buffer == single, "read {number}");
        }
    }
}
