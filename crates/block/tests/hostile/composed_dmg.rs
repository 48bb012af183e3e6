//! Apple disk images as their tools make them, with chunks of every kind.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Types of chunks.
pub const ZERO: u32 = 0;
pub const RAW: u32 = 1;
pub const UNUSED: u32 = 2;
pub const ADC: u32 = 0x8000_0004;
pub const ZLIB: u32 = 0x8000_0005;
pub const BZIP2: u32 = 0x8000_0006;
pub const LZFSE: u32 = 0x8000_0007;
pub const XZ: u32 = 0x8000_0008;
const COMMENT: u32 = 0x7FFF_FFFE;
const END: u32 = 0xFFFF_FFFF;

/// A chunk and what is stored of it.
pub struct Piece {
    pub kind: u32,
    pub sectors: u64,
    pub stored: Vec<u8>,
}

/// What the data fork's checksum is.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let step = |crc: u32| crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
    })
}

/// A file with a table for each list of chunks, one behind the other on the disk.
pub fn composed(tables: &[Vec<Piece>]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut xml =
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist>\n<plist version=\"1.0\">\n<dict>\n\t\
                   <key>resource-fork</key>\n\t<dict>\n\t\t<key>blkx</key>\n\t\t<array>\n"
            .to_owned();
    let mut first = 0;
    for (number, pieces) in tables.iter().enumerate() {
        let sectors: u64 = pieces.iter().map(|piece| piece.sectors).sum();
        let mut table = b"mish\0\0\0\x01".to_vec();
        table.extend_from_slice(&u64::to_be_bytes(first));
        table.extend_from_slice(&sectors.to_be_bytes());
        table.resize(200, 0);
        table.extend_from_slice(&(pieces.len() as u32 + 2).to_be_bytes());
        let mut line = |kind: u32, sector: u64, sectors: u64, at: usize, len: usize| {
            table.extend_from_slice(&kind.to_be_bytes());
            table.extend_from_slice(&[0; 4]);
            for value in [sector, sectors, at as u64, len as u64] {
                table.extend_from_slice(&value.to_be_bytes());
            }
        };
        line(COMMENT, 0, 0, data.len(), 0);
        let mut sector = 0;
        for piece in pieces {
            line(piece.kind, sector, piece.sectors, data.len(), piece.stored.len());
            data.extend_from_slice(&piece.stored);
            sector += piece.sectors;
        }
        line(END, sector, 0, data.len(), 0);
        first += sectors;
        let text = STANDARD.encode(&table);
        xml += &format!(
            "\t\t<dict>\n\t\t\t<key>Attributes</key>\n\t\t\t<string>0x0050</string>\n\t\t\t<key>CFName</key>\n\t\t\t\
             <string>disk (Apple_HFS : {number})</string>\n\t\t\t<key>Data</key>\n\t\t\t<data>\n\t\t\t{text}\n\t\t\t</data>\n\t\t\t\
             <key>ID</key>\n\t\t\t<string>{number}</string>\n\t\t\t<key>Name</key>\n\t\t\t\
             <string>disk (Apple_HFS : {number})</string>\n\t\t</dict>\n"
        );
    }
    xml += "\t\t</array>\n\t\t<key>plst</key>\n\t\t<array/>\n\t</dict>\n</dict>\n</plist>\n";
    let mut end = b"koly\0\0\0\x04\0\0\x02\0\0\0\0\x01".to_vec();
    end.resize(512, 0);
    let mut put = |at: usize, bytes: &[u8]| end[at..at + bytes.len()].copy_from_slice(bytes);
    put(32, &(data.len() as u64).to_be_bytes());
    put(56, &[0, 0, 0, 1, 0, 0, 0, 1]);
    put(80, &[0, 0, 0, 2, 0, 0, 0, 32]);
    put(88, &crc32(&data).to_be_bytes());
    put(216, &(data.len() as u64).to_be_bytes());
    put(224, &(xml.len() as u64).to_be_bytes());
    put(488, &[0, 0, 0, 1]);
    put(492, &first.to_be_bytes());
    data.extend_from_slice(xml.as_bytes());
    data.extend_from_slice(&end);
    data
}
