//! Seeded noise in the metadata of small images. `VIREO_HOSTILE_ROUNDS=100000` makes it longer.

#[path = "hostile/body.rs"]
mod body;

#[test]
fn wrong_metadata_end_in_errors() {
    let rounds =
        std::env::var("VIREO_HOSTILE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3000);
    let mut state = 88_172_645_463_325_252_u64;
    for _ in 0..rounds {
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut program = vec![next() as u8];
        for _ in 0..1 + next() % 4 {
            program.extend_from_slice(&(next() as u16).to_le_bytes());
            program.push(next() as u8);
            // Small numbers and single bits are more telling than noise.
            let value = match next() % 3 {
                0 => next() % 512,
                1 => 1 << (next() % 64),
                _ => next(),
            };
            program.extend_from_slice(&value.to_be_bytes());
        }
        body::run(&program);
    }
}
