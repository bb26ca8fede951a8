// SPDX-License-Identifier: GPL-2.0

//! CRC-32C (Castagnoli), reflected, with initial value and final XOR of all
//! ones: `crc32c(b"123456789") == 0xE306_9283`.
//!
//! The kernel's own `crc32c()` does neither inversion; whoever uses it for
//! pre-images inverts before and after, so that the store has one convention.

const POLY: u32 = 0x82f6_3b78;

/// `TABLES[n][b]`: what the byte `b` adds when `n` bytes come after it.
const TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLY } else { crc >> 1 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut i = 0;
        while i < 256 {
            let before = tables[n - 1][i];
            tables[n][i] = tables[0][(before & 0xff) as usize] ^ (before >> 8);
            i += 1;
        }
        n += 1;
    }
    tables
};

/// Goes on with `crc`, the value for what came before (0 at the start).
pub fn update(crc: u32, bytes: &[u8]) -> u32 {
    let mut state = !crc;
    // Eight bytes at a time: `list` reads thousands of headers.
    let mut eights = bytes.chunks_exact(8);
    for b in &mut eights {
        let s = state.to_le_bytes();
        state = TABLES[7][usize::from(b[0] ^ s[0])]
            ^ TABLES[6][usize::from(b[1] ^ s[1])]
            ^ TABLES[5][usize::from(b[2] ^ s[2])]
            ^ TABLES[4][usize::from(b[3] ^ s[3])]
            ^ TABLES[3][usize::from(b[4])]
            ^ TABLES[2][usize::from(b[5])]
            ^ TABLES[1][usize::from(b[6])]
            ^ TABLES[0][usize::from(b[7])];
    }
    for &byte in eights.remainder() {
        state = TABLES[0][((state ^ u32::from(byte)) & 0xff) as usize] ^ (state >> 8);
    }
    !state
}

/// The checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    update(0, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    /// Whatever the pieces, and against a division bit by bit.
    #[test]
    fn in_pieces_and_bit_by_bit() {
        let bytes: Vec<u8> = (0..100u32).map(|i| (i * 167 + i * i) as u8).collect();
        for end in 0..bytes.len() {
            let mut state = !0u32;
            for &byte in &bytes[..end] {
                state ^= u32::from(byte);
                for _ in 0..8 {
                    state = if state & 1 == 1 { (state >> 1) ^ POLY } else { state >> 1 };
                }
            }
            for cut in 0..=end {
                assert_eq!(update(crc32c(&bytes[..cut]), &bytes[cut..end]), !state);
            }
        }
    }
}
