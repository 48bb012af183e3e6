//! Images of vhdx: headers, region tables, the log, metadata, the table of blocks.

use super::checksums::crc32c;
use super::mapped::{fill, made, made_over};
use super::memory::Memory;
use super::program::Seed;
use block::BlockBackend;

const LOG: usize = 1 << 20;
const METADATA: usize = 2 << 20;
const TABLE: usize = 3 << 20;
const GUID: [u8; 16] = [0x5A; 16];

pub fn seeds() -> Vec<Seed> {
    let dynamic = made("vhdx", 4 << 20, &[("block_size", "1M")], fill);
    let fixed = made("vhdx", 1 << 20, &[("block_size", "1M"), ("subformat", "fixed")], fill);
    let over = made_over("vhdx", 4 << 20, &[("block_size", "1M")], fill);
    let large = made("vhdx", 1 << 34, &[("block_size", "32M"), ("logical_sector_size", "4096")], |_| ());
    let mut logged = dynamic.clone();
    add_log(&mut logged);
    [dynamic, logged, over, large, fixed].into_iter().map(seed).collect()
}

fn seed(bytes: Vec<u8>) -> Seed {
    let fields = vec![
        0x10000..0x10050,
        0x20000..0x20050,
        0x30000..0x30060,
        METADATA..METADATA + 0x100,
        METADATA + 0x10000..METADATA + 0x10100,
        TABLE..TABLE + 0x40,
        TABLE..TABLE + 0x4000,
        LOG..LOG + 0x80,
        LOG..LOG + 0x4000,
    ];
    Seed { seal, ..Seed::new("vhdx", bytes, fields) }
}

/// Something to replay: a page of the table, and zeros where nobody looks (MS-VHDX section 2.3).
fn add_log(bytes: &mut [u8]) {
    let page = bytes[TABLE..TABLE + 4096].to_vec();
    let size = (bytes.len() as u64).to_le_bytes();
    for at in [0x10000, 0x20000] {
        bytes[at + 48..at + 64].copy_from_slice(&GUID);
    }
    let mut entry = vec![0; 8192];
    let mut put = |at: usize, what: &[u8]| entry[at..at + what.len()].copy_from_slice(what);
    put(0, b"loge");
    put(8, &8192_u32.to_le_bytes());
    put(16, &1_u64.to_le_bytes());
    put(24, &2_u32.to_le_bytes());
    put(32, &GUID);
    put(48, &size);
    put(56, &size);
    put(64, b"zero");
    put(72, &4096_u64.to_le_bytes());
    put(80, &(METADATA as u64 + 0x80000).to_le_bytes());
    put(88, &1_u64.to_le_bytes());
    put(96, b"desc");
    put(100, &page[4092..]);
    put(104, &page[..8]);
    put(112, &(TABLE as u64).to_le_bytes());
    put(120, &1_u64.to_le_bytes());
    put(4096, b"data");
    put(4096 + 8, &page[8..4092]);
    put(8188, &1_u32.to_le_bytes());
    bytes[LOG..LOG + 8192].copy_from_slice(&entry);
    let file = Memory::new(bytes.to_vec(), true);
    for (at, len) in [(0x10000, 4096), (0x20000, 4096), (LOG, 8192)] {
        seal_at(&file, at, len);
        file.read_bytes(at as u64, &mut bytes[at..at + len]).unwrap();
    }
}

fn seal_at(file: &Memory, at: usize, len: usize) {
    let mut bytes = vec![0; len];
    if file.read_bytes(at as u64, &mut bytes).is_ok() {
        bytes[4..8].fill(0);
        let _ = file.write_bytes(at as u64 + 4, &crc32c(&bytes).to_le_bytes());
    }
}

fn seal(file: &Memory) {
    for (at, len) in [(0x10000, 4096), (0x20000, 4096), (0x30000, 0x10000), (0x40000, 0x10000)] {
        if file.differs(at..at + len) {
            seal_at(file, at, len);
        }
    }
    for at in (LOG..LOG + 0x4000).step_by(4096) {
        let mut head = [0; 12];
        let _ = file.read_bytes(at as u64, &mut head);
        let len = u32::from_le_bytes(head[8..].try_into().unwrap()) as usize;
        if head.starts_with(b"loge") && (4096..=1 << 16).contains(&len) && file.differs(at..at + len) {
            seal_at(file, at, len);
        }
    }
}
