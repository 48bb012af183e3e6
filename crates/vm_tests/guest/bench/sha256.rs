//! SHA-256 in plain integer code (FIPS 180-4).

const ROUNDS: [u32; 64] = constants();

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
const fn constants() -> [u32; 64] {
    let mut out = [0; 64];
    let (mut candidate, mut found) = (2_u128, 0);
    while found < 64 {
        let mut divisor = 2;
        let mut prime = true;
        while divisor * divisor <= candidate {
            if candidate % divisor == 0 {
                prime = false;
            }
            divisor += 1;
        }
        if prime {
            out[found] = cube_root_fraction(candidate);
            found += 1;
        }
        candidate += 1;
    }
    out
}

/// Low 32 bits of floor(cbrt(n) * 2^32): the greatest r with r^3 <= n * 2^96.
const fn cube_root_fraction(n: u128) -> u32 {
    let (mut low, mut high) = (0_u128, 1 << 36);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if middle * middle * middle <= n << 96 { low = middle } else { high = middle }
    }
    low as u32
}

/// One block of the compression function.
pub fn compress(state: &mut [u32; 8], block: &[u8; 64]) {
    let mut words = [0_u32; 64];
    for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
        *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    for i in 16..64 {
        let (x, y) = (words[i - 15], words[i - 2]);
        let s0 = x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3;
        let s1 = y.rotate_right(17) ^ y.rotate_right(19) ^ y >> 10;
        words[i] = words[i - 16].wrapping_add(s0).wrapping_add(words[i - 7]).wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for i in 0..64 {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = e & f ^ !e & g;
        let t1 = h.wrapping_add(s1).wrapping_add(choice).wrapping_add(ROUNDS[i]).wrapping_add(words[i]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(add);
    }
}

/// A digest over `count` blocks derived from `seed`.
pub fn digest(seed: u64, count: u32) -> u64 {
    let mut state = [seed as u32, 1, 2, 3, 4, 5, 6, (seed >> 32) as u32];
    let mut block = [0_u8; 64];
    for number in 0..count {
        block[..4].copy_from_slice(&number.to_le_bytes());
        compress(&mut state, &block);
    }
    u64::from(state[0]) << 32 | u64::from(state[7])
}
