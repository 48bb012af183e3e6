//! Pools whose members have forged metadata: whatever they say, opening and using the pool ends with success or an error,
//! without a panic, a loop or a huge allocation. `VIREO_HOSTILE_ROUNDS=100000` makes it longer.

#[path = "hostile/noise.rs"]
mod noise;
#[path = "hostile/pool.rs"]
mod pool;

#[test]
fn forged_metadata_end_in_errors() {
    pool::run(&[0]);
    let mut noise = noise::Noise::new(11);
    for _ in 0..noise::rounds(150) {
        let mut program = vec![noise.next() as u8];
        for _ in 0..1 + noise.next() % 4 {
            program.extend([noise.next() as u8, noise.next() as u8, noise.next() as u8]);
            program.extend([noise.value(256) as u8, noise.next() as u8, noise.next() as u8]);
        }
        pool::run(&program);
    }
}
