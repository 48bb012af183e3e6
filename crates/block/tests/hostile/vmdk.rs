//! Images of vmdk: sparse extents, stream-optimized ones, descriptors.

use super::mapped::{fill, made, made_over};
use super::memory::Memory;
use super::program::{CHANGE, Seed};
use super::text;
use block::BlockBackend;

/// A disk whose extents are no files.
const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
createType=\"monolithicFlat\"\n\n# Extent description\nRW 128 ZERO\nRW 64 ZERO\n\n# The Disk Data Base\n#DDB\n\n\
ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"1\"\nddb.geometry.heads = \"16\"\n\
ddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n";

pub fn seeds() -> Vec<Seed> {
    let sparse = made("vmdk", 4 << 20, &[], fill);
    let zeroed = made("vmdk", 4 << 20, &[("zeroed_grain", "on")], |image| {
        fill(image);
        image.write_zeroes(0, 1 << 17, false).unwrap();
    });
    let stream = made("vmdk", 4 << 20, &[("subformat", "streamOptimized")], fill);
    let over = made_over("vmdk", 4 << 20, &[], fill);
    let mut seeds: Vec<Seed> = [sparse, zeroed, stream, over].into_iter().map(seed).collect();
    seeds.push(Seed { change, ..Seed::new("vmdk", DESCRIPTOR.to_vec(), vec![0..128, 0..DESCRIPTOR.len()]) });
    seeds
}

fn seed(bytes: Vec<u8>) -> Seed {
    let sector = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize * 512;
    let len = bytes.len();
    let mut fields = vec![0..80, 0..80, sector(28)..sector(28) + 1024];
    // The header of a stream is at its end.
    let end = len.saturating_sub(1024);
    fields.push(end..end + 80);
    let directory = |at: usize| sector(at).min(len).saturating_sub(0);
    for at in [directory(48), directory(56), end.saturating_sub(512 * 6)] {
        let table =
            bytes.get(at..at + 4).map_or(0, |n| u32::from_le_bytes(n.try_into().unwrap()) as usize) * 512;
        fields.extend([at..at + 64, table..table + 256]);
    }
    // Markers and grains.
    fields.push((128 * 512).min(end)..len);
    fields.retain(|range| range.start < range.end && range.end <= len);
    Seed { change, ..Seed::new("vmdk", bytes, fields) }
}

/// A word of the descriptor becomes another.
fn change(_seed: &Seed, file: &Memory, change: &[u8; CHANGE]) -> bool {
    if change[0] < 0xb0 {
        return false;
    }
    let mut head = [0; 44];
    let _ = file.read_bytes(0, &mut head);
    let sectors = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap()).min(1 << 20);
    let embedded = head.starts_with(b"KDMV");
    let (at, room) = if embedded {
        (sectors(28) * 512, sectors(36).min(20) as usize * 512)
    } else {
        (0, file.size() as usize)
    };
    let mut text = vec![0; room.min(1 << 14)];
    let _ = file.read_bytes(at, &mut text);
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let mut new = text::change(&text[..end], change);
    if embedded {
        new.resize(room.min(1 << 14), 0);
    }
    let _ = file.write_bytes(at, &new);
    if !embedded {
        let _ = file.resize(new.len() as u64);
    }
    true
}
