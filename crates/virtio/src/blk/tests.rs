//! Requests laid out by hand after virtio 5.2.6, against a real file.

use super::*;
use crate::queue::{Buffer, Chain};
use std::io::Write;

const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x3000;

struct Bench {
    file: tempfile::NamedTempFile,
    memory: GuestMemory,
    disk: Arc<dyn BlockBackend>,
}

fn bench() -> Bench {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0x5a; 8192]).unwrap();
    let disk = Arc::new(block::RawFile::open(file.path(), false).unwrap());
    Bench { file, memory: GuestMemory::new(&[(0, 0x1_0000)]).unwrap(), disk }
}

impl Bench {
    fn run(&self, kind: u32, sector: u64, readable: u32, writable: u32) -> (u8, u32) {
        self.memory.write(HEADER, &kind.to_le_bytes()).unwrap();
        self.memory.write(HEADER + 8, &sector.to_le_bytes()).unwrap();
        let data = |len| Buffer { address: DATA, len };
        let chain = Chain {
            head: 0,
            readable: vec![Buffer { address: HEADER, len: 16 }, data(readable)],
            writable: vec![data(writable), Buffer { address: STATUS, len: 1 }],
        };
        let written =
            request::execute(self.disk.as_ref(), b"vireo-test-serial-00", &self.memory, chain).unwrap();
        let mut status = [0xff];
        self.memory.read(STATUS, &mut status).unwrap();
        (status[0], written)
    }
}

#[test]
fn reads_writes_and_ranges_reach_the_file() {
    let bench = bench();
    assert_eq!(bench.run(bits::request::READ, 1, 0, 512), (0, 513));
    let mut data = [0; 512];
    bench.memory.read(DATA, &mut data).unwrap();
    assert_eq!(data, [0x5a; 512]);
    bench.memory.write(DATA, &[7; 512]).unwrap();
    assert_eq!(bench.run(bits::request::WRITE, 2, 512, 0), (0, 1));
    let file = std::fs::read(bench.file.path()).unwrap();
    assert_eq!((file[1023], file[1024], file[1535], file[1536]), (0x5a, 7, 7, 0x5a));
    bench.memory.write(DATA, &[3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(bench.run(bits::request::WRITE_ZEROES, 0, 16, 0), (0, 1));
    let file = std::fs::read(bench.file.path()).unwrap();
    assert_eq!((file[1535], file[1536], file[2047], file[2048]), (7, 0, 0, 0x5a));
    assert_eq!(bench.run(bits::request::GET_ID, 0, 0, 20), (0, 21));
    assert_eq!(bench.run(bits::request::FLUSH, 0, 0, 0), (0, 1));
}

#[test]
fn requests_that_cannot_be_done_are_answered_so() {
    let bench = bench();
    assert_eq!(bench.run(bits::request::READ, 16, 0, 512).0, 1);
    assert_eq!(bench.run(bits::request::READ, u64::MAX, 0, 512).0, 1);
    assert_eq!(bench.run(bits::request::READ, 0, 0, 100).0, 1);
    assert_eq!(bench.run(77, 0, 0, 0).0, 2);
    bench.memory.write(DATA, &[0xff; 16]).unwrap();
    assert_eq!(bench.run(bits::request::DISCARD, 0, 16, 0).0, 1);
}
