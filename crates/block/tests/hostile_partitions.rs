//! Seeded noise in partition tables. `VIREO_HOSTILE_ROUNDS=100000` makes it longer.

#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/noise.rs"]
mod noise;
#[path = "hostile/partitions.rs"]
mod partitions;

#[test]
fn no_table_is_believed() {
    partitions::run(&[0]);
    partitions::run(&[1]);
    let mut noise = noise::Noise::new(0);
    for _ in 0..noise::rounds(20_000) {
        let mut program = vec![noise.next() as u8];
        for _ in 0..1 + noise.next() % 4 {
            program.push(noise.next() as u8);
            program.extend_from_slice(&(noise.next() as u16).to_le_bytes());
            program.extend_from_slice(&noise.value(256).to_le_bytes());
        }
        partitions::run(&program);
    }
}
