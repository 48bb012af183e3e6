//! A disk on a local web server.

mod server;

use block::BlockBackend;
use http_disk::{HttpDisk, is_address};
use server::Site;
use std::io::IoSliceMut;
use std::path::Path;
use std::sync::atomic::Ordering;

/// More than the cache keeps.
const SIZE: usize = (20 << 20) + 100;

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 5 % 251) as u8).collect()
}

#[test]
fn any_part_reads_as_the_file() {
    let content = content();
    let (site, address) = Site::new(content.clone()).start();
    let disk = HttpDisk::open(&address).unwrap();
    assert_eq!(disk.size(), SIZE as u64);
    assert!(disk.is_read_only());
    let mut seed = 3_u64;
    for _ in 0..200 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (seed >> 20) as usize % SIZE;
        let len = ((seed >> 45) as usize % 600_000).min(SIZE - offset);
        let mut found = vec![0xee; len];
        let (one, two) = found.split_at_mut(len / 3);
        disk.read_at(offset as u64, &mut [IoSliceMut::new(one), IoSliceMut::new(two)]).unwrap();
        assert!(found == content[offset..offset + len], "{len} bytes at {offset}");
    }
    // The end of the last sector.
    let mut last = [0xee; 512];
    disk.read_bytes(SIZE as u64 - 100, &mut last).unwrap();
    assert!(last[..100] == content[SIZE - 100..] && last[100..] == [0; 412]);
    // Who reads on gets much with few requests, and what was read is there.
    let fresh = HttpDisk::open(&address).unwrap();
    site.requests.store(0, Ordering::Relaxed);
    let mut sector = [0; 4096];
    for at in (0..10 << 20).step_by(4096) {
        fresh.read_bytes(at, &mut sector).unwrap();
    }
    assert!(site.requests.load(Ordering::Relaxed) <= 8, "{:?}", site.requests);
}

#[test]
fn a_broken_connection_is_tried_again_and_not_for_ever() {
    let (site, address) = Site::new(content()).start();
    let disk = HttpDisk::open(&address).unwrap();
    let mut found = [0; 512];
    site.broken.store(2, Ordering::Relaxed);
    disk.read_bytes(512, &mut found).unwrap();
    assert_eq!(found, content()[512..1024]);
    site.broken.store(100, Ordering::Relaxed);
    let error = disk.read_bytes(9 << 20, &mut found).unwrap_err().to_string();
    assert!(error.contains(&address), "{error}");
}

#[test]
fn what_is_no_such_disk_is_an_error_that_says_why() {
    let opened = |site: Site| HttpDisk::open(&site.start().1).map(|_| ()).unwrap_err().to_string();
    let whole = opened(Site { ranges: false, ..Site::new(content()) });
    assert!(whole.contains("no range requests"), "{whole}");
    let empty = opened(Site::new(Vec::new()));
    assert!(empty.contains("empty file"), "{empty}");
    let (_site, address) = Site::new(content()).start();
    let missing = HttpDisk::open(&address.replace("disk.img", "other")).map(|_| ()).unwrap_err().to_string();
    assert!(missing.contains("404"), "{missing}");
    let nobody = HttpDisk::open("http://127.0.0.1:1/disk.img").map(|_| ()).unwrap_err().to_string();
    assert!(nobody.contains("Cannot read http://127.0.0.1:1/disk.img"), "{nobody}");
}

#[test]
fn a_file_that_changes_is_no_disk_any_more() {
    for change in [(|site: &Site| *site.tag.lock().unwrap() = "\"two\"".to_owned()) as fn(&Site), |site| {
        site.content.lock().unwrap().truncate(12 << 20)
    }] {
        let (site, address) = Site::new(content()).start();
        let disk = HttpDisk::open(&address).unwrap();
        let mut found = [0; 512];
        disk.read_bytes(0, &mut found).unwrap();
        change(&site);
        let error = disk.read_bytes(8 << 20, &mut found).unwrap_err().to_string();
        assert!(error.contains("has changed on the server"), "{error}");
    }
}

#[test]
fn addresses_are_told_from_paths() {
    for (path, expected) in [
        ("http://host/a.img", true),
        ("HTTPS://host/a.img", true),
        ("nbd://host/a", false),
        ("/images/http/a.img", false),
        ("http:a", false),
    ] {
        assert_eq!(is_address(Path::new(path)), expected, "{path}");
    }
}
