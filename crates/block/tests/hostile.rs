//! Changed images of every format. `VIREO_HOSTILE_ROUNDS=100000` makes it longer.

#[path = "hostile/body.rs"]
mod body;
#[path = "hostile/noise.rs"]
mod noise;

use noise::Noise;

fn noise(format: &str, seed: u64) {
    let mut noise = Noise::new(seed);
    for _ in 0..noise::rounds(3000) {
        let mut program = vec![noise.next() as u8, noise.next() as u8];
        for _ in 0..1 + noise.next() % 4 {
            // A table more often than any place.
            program.push(if noise.next().is_multiple_of(4) {
                noise.next() as u8
            } else {
                (noise.next() % 8) as u8
            });
            program.extend_from_slice(&(noise.next() as u16).to_le_bytes());
            program.push(noise.next() as u8);
            program.extend_from_slice(&noise.value(512).to_le_bytes());
        }
        body::run(format, &program);
    }
}

/// Tables as large as a header can make them, in files that are sparse.
#[test]
fn largest_tables() {
    body::largest();
}

#[test]
fn growing_vdi_of_the_largest_table() {
    body::huge::growing_vdi();
}

#[test]
fn snapshots_of_qcow2_with_the_largest_table() {
    body::huge::snapshots_of_the_largest_table();
}

#[test]
fn longest_list_of_dmg() {
    body::largest_dmg();
}

/// Bitmaps that mark more ranges than a person can wait for.
#[test]
fn largest_bitmaps() {
    body::largest_bitmaps();
}

/// A disk without a sector needs no directory, but its place is used all the same.
#[test]
fn empty_disk_with_an_impossible_directory() {
    body::empty_vmdk();
}

/// A snapshot of a disk of 8 EiB.
#[test]
fn snapshots_of_impossible_sizes() {
    body::impossible_snapshot();
}

/// The place of the key slots is added to, as are places inside them.
#[test]
fn key_slots_of_qcow2_at_impossible_places() {
    body::impossible_encryption_header();
}

/// The seeds are valid: nothing below would be tried with others.
#[test]
fn seeds_open() {
    for format in body::FORMATS {
        body::seeds_open(format);
    }
}

#[test]
fn dmg() {
    noise("dmg", 9);
}

#[test]
fn luks1() {
    noise("luks1", 1);
}

#[test]
fn luks2() {
    noise("luks2", 2);
}

#[test]
fn qcow2() {
    noise("qcow2", 3);
}

#[test]
fn raw() {
    noise("raw", 4);
}

#[test]
fn vdi() {
    noise("vdi", 5);
}

#[test]
fn vhd() {
    noise("vhd", 6);
}

#[test]
fn vhdx() {
    noise("vhdx", 7);
}

#[test]
fn vmdk() {
    noise("vmdk", 8);
}
