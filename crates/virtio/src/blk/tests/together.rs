//! Requests that the disk gets together.

use super::*;

/// What the driver has made available together is done together, up to what is no read or write, and answered as if
/// it had been done one by one.
#[test]
fn reads_and_writes_are_given_to_the_disk_together() {
    for packed in [false, true] {
        let disk = MemoryDisk::new(64);
        *disk.batches.lock() = Some(Vec::new());
        let bench = bench_of(disk.clone());
        let mut queue = bench.start(Wish { packed, ..WISH }, RINGS).remove(0);
        // Five writes and four reads; a flush; three writes and a read beyond the end; a read.
        let write = |sector: u64| (request::WRITE, sector, status::OK);
        let read = |sector: u64| (request::READ, sector, status::OK);
        let mut requests: Vec<(u32, u64, u8)> = (0..5).map(write).collect();
        requests.extend((10..14).map(read));
        requests.push((request::FLUSH, 0, status::OK));
        requests.extend([write(20), write(21), write(22), (request::READ, 64, status::IO_ERROR), read(30)]);
        disk.content.lock()[10 * 512..14 * 512].fill(0x77);
        let mut ids = Vec::new();
        for (at, (kind, sector, _)) in (0_u64..).zip(&requests) {
            let (header, data) = (HEADER + 32 * at, DATA + 512 * at);
            put(&bench.memory, header, &kind.to_le_bytes());
            put(&bench.memory, header + 8, &sector.to_le_bytes());
            put(&bench.memory, data, &[at as u8 + 1; 512]);
            put(&bench.memory, STATUS + at, &[UNANSWERED]);
            let mut pieces = vec![readable(header, 16)];
            match *kind {
                request::WRITE => pieces.push(readable(data, 512)),
                request::READ => pieces.push(writable(data, 512)),
                _ => {}
            }
            pieces.push(writable(STATUS + at, 1));
            ids.push(bench.offer(&mut queue, &pieces, None).unwrap());
        }
        bench.settle();
        for (at, ((kind, sector, expected), id)) in (0_u64..).zip(requests.iter().zip(ids)) {
            let used = if *kind == request::READ && *expected == status::OK { 513 } else { 1 };
            let used = if *expected == status::OK { used } else { 0 };
            assert_eq!(queue.ring.take_used(&bench.memory), Some((id, used)), "request {at}");
            assert_eq!(get::<1>(&bench.memory, STATUS + at), [*expected], "request {at}");
            let first = *sector as usize * 512;
            match *kind {
                request::WRITE => assert_eq!(disk.content.lock()[first..first + 512], [at as u8 + 1; 512]),
                request::READ if (10..14).contains(sector) => {
                    assert_eq!(get::<512>(&bench.memory, DATA + 512 * at), [0x77; 512]);
                }
                _ => {}
            }
        }
        assert_eq!(*disk.flushes.lock(), 1);
        // The flush, the wrong request and the single one behind it were no batches.
        assert_eq!(*disk.batches.lock(), Some(vec![9, 3]));
    }
}
