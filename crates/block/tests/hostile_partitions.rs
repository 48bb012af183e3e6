//! Seeded noise in partition tables. `VIREO_HOSTILE_ROUNDS=100000` makes it longer.

#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/partitions.rs"]
mod partitions;

#[test]
fn no_table_is_believed() {
    let rounds =
        std::env::var("VIREO_HOSTILE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20_000);
    partitions::run(&[0]);
    partitions::run(&[1]);
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
            program.push(next() as u8);
            program.extend_from_slice(&(next() as u16).to_le_bytes());
            // Small numbers and single bits are more telling than noise.
            let value = match next() % 3 {
                0 => next() % 256,
                1 => 1 << (next() % 64),
                _ => next(),
            };
            program.extend_from_slice(&value.to_le_bytes());
        }
        partitions::run(&program);
    }
}
