//! Noise on the wire: whatever a target says, nothing panics, and every request comes to its end.

#[path = "../../block/tests/random/mod.rs"]
mod random;

use iscsi::exercise::talk;
use random::Random;

#[test]
fn requests_end_whatever_the_target_says() {
    let rounds = std::env::var("VIREO_ISCSI_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    let mut random = Random(1);
    // Without noise all is done: the noise is in a real dialogue.
    assert_eq!(talk(&[]), 8);
    for _ in 0..rounds {
        let most = if random.chance(20) { 20 } else { 4 };
        let changes = 1 + random.below(most);
        let input: Vec<u8> = (0..changes)
            .flat_map(|_| {
                let far = random.pick(&[60, 400, 3000, 40_000]);
                let [a, b] = (random.below(far) as u16).to_be_bytes();
                [a, b, random.next() as u8]
            })
            .collect();
        talk(&input);
    }
}
