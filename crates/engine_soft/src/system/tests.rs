use super::deliver::{Combined, combine};
use x86::Vector;

/// SDM 3A table 6-5, over the classes of table 6-4.
#[test]
fn second_exceptions_combine_by_the_table() {
    use Vector as V;
    let benign = [
        V::Debug,
        V::Nmi,
        V::Breakpoint,
        V::Overflow,
        V::Bound,
        V::InvalidOpcode,
        V::DeviceNotAvailable,
        V::X87,
        V::Alignment,
        V::MachineCheck,
        V::Simd,
    ];
    let contributory = [V::Divide, V::InvalidTss, V::SegmentNotPresent, V::Stack, V::GeneralProtection];
    let class = |v: V| {
        if benign.contains(&v) {
            0
        } else if contributory.contains(&v) {
            1
        } else {
            2
        }
    };
    let table = [
        [Combined::Second, Combined::Second, Combined::Second],
        [Combined::Second, Combined::Double, Combined::Second],
        [Combined::Second, Combined::Double, Combined::Double],
    ];
    let all: Vec<V> = benign.into_iter().chain(contributory).chain([V::PageFault]).collect();
    for &first in &all {
        for &second in &all {
            assert_eq!(
                combine(first, second),
                table[class(first)][class(second)],
                "{first:?} then {second:?}"
            );
        }
    }
    for second in contributory.into_iter().chain([V::PageFault]) {
        assert_eq!(combine(V::DoubleFault, second), Combined::Triple);
    }
}
