//! Members whose metadata were forged: whatever they say, opening and using the pool ends with success or an error,
//! without a panic or a loop. `VIREO_HOSTILE_ROUNDS=100000` makes it longer.

#[path = "hostile/body.rs"]
mod body;

use crate::random::Random;

#[test]
fn forged_metadata_end_in_errors() {
    let rounds =
        std::env::var("VIREO_HOSTILE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(150);
    let mut random = Random(11);
    for _ in 0..rounds {
        let program: Vec<u8> = (0..1 + 6 * (1 + random.below(4))).map(|_| random.next() as u8).collect();
        body::run(&program);
    }
}
