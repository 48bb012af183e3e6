//! Changed images of every format. `VIREO_HOSTILE_ROUNDS=100000` makes it longer.

#[path = "hostile/body.rs"]
mod body;

fn noise(format: &str, seed: u64) {
    let rounds =
        std::env::var("VIREO_HOSTILE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3000);
    let mut state = 88_172_645_463_325_252 ^ seed;
    for _ in 0..rounds {
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut program = vec![next() as u8, next() as u8];
        for _ in 0..1 + next() % 4 {
            // A table more often than any place.
            program.push(if next() % 4 == 0 { next() as u8 } else { (next() % 8) as u8 });
            program.extend_from_slice(&(next() as u16).to_le_bytes());
            program.push(next() as u8);
            // Small numbers and single bits are more telling than noise.
            let value = match next() % 3 {
                0 => next() % 512,
                1 => 1 << (next() % 64),
                _ => next(),
            };
            program.extend_from_slice(&value.to_le_bytes());
        }
        body::run(format, &program);
    }
}

/// Tables as large as a header can make them, in files that are sparse.
#[test]
fn largest_tables() {
    body::largest();
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

/// The seeds are valid: nothing below would be tried with others.
#[test]
fn seeds_open() {
    for format in body::FORMATS {
        body::seeds_open(format);
    }
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
