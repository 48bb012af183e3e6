//! Noise on the wire: a server must neither panic nor hang nor say more than was asked for.

#[path = "../../block/tests/random/mod.rs"]
mod random;

use nbd::exercise::{DISK, hear};
use random::Random;

const OPTION: u64 = 0x4948_4156_454f_5054;

/// A client's whole side that has every place where noise may hide: a handshake, then requests.
fn script(random: &mut Random) -> Vec<u8> {
    let mut out = 3_u32.to_be_bytes().to_vec();
    let mut option = |kind: u32, data: &[u8]| {
        out.extend_from_slice(&OPTION.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
    };
    if random.chance(70) {
        option(8, &[]);
    }
    for _ in 0..random.below(4) {
        let data: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
        // Neither EXPORT_NAME nor ABORT, after which there are no options.
        option(3 + random.below(10) as u32, &data);
    }
    if random.chance(60) {
        let name: &[u8] = b"base:allocation";
        option(10, &[&[0; 4][..], &1_u32.to_be_bytes(), &15_u32.to_be_bytes(), name].concat());
    }
    option(7, &[0; 6]);
    for _ in 0..random.below(12) {
        let command = random.pick(&[0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7, 8]);
        let flags = if random.chance(80) { 0 } else { random.below(64) as u16 };
        let offset = if random.chance(90) { random.below(DISK) & !511 } else { random.next() };
        let len = if random.chance(90) { random.below(1 << 17) as u32 & !511 } else { random.next() as u32 };
        out.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&u16::to_be_bytes(command));
        out.extend_from_slice(&random.next().to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        if command == 1 {
            out.resize(out.len() + len.min(1 << 17) as usize, 7);
        }
    }
    out
}

#[test]
fn a_server_stands_what_comes() {
    let rounds = std::env::var("VIREO_NBD_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    let mut random = Random(1);
    let mut heard = 0;
    for _ in 0..rounds {
        let mut input = script(&mut random);
        for _ in 0..random.below(4) {
            let at = random.below(input.len() as u64) as usize;
            input[at] = random.next() as u8;
        }
        if random.chance(20) {
            input.truncate(random.below(input.len() as u64) as usize);
        }
        heard += hear(&input);
    }
    // Most of it is understood, so that the noise reaches the requests.
    assert!(heard > rounds * 10_000, "the server has said {heard} bytes only");
}
