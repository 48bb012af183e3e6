use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

fn port() -> (Arc<PvPanic>, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    (
        PvPanic::new(Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        })),
        count,
    )
}

/// QEMU's `docs/specs/pvpanic`, "ISA Interface": software reads which of bits 0 and 1 the device understands.
#[test]
fn a_read_tells_the_events_understood() {
    let (port, count) = port();
    for width in [1, 2, 4] {
        let mut data = vec![0xff; width];
        port.read(0, 0, &mut data);
        assert_eq!(data[0], 0b11);
        assert!(data[1..].iter().all(|&byte| byte == 0));
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

/// "Bit Definition": bit 0 asks the host, bit 1 does not; others are reserved.
#[test]
fn only_a_panic_is_told() {
    for (events, told) in [(0_u8, 0), (1, 1), (2, 0), (3, 1), (0xfc, 0), (0xff, 1)] {
        let (port, count) = port();
        port.write(0, 0, &[events]);
        assert_eq!(count.load(Ordering::Relaxed), told, "{events:#x}");
    }
    let (port, count) = port();
    port.write(0, 0, &[]);
    port.write(0, 0, &[0, 1]);
    assert_eq!(count.load(Ordering::Relaxed), 0);
}
