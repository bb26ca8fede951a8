// SPDX-License-Identifier: GPL-2.0

//! CRC-32C (Castagnoli), reflected, with initial value and final XOR of all
//! ones: `crc32c(b"123456789") == 0xE306_9283`.
//!
//! The kernel's own `crc32c()` does neither inversion; whoever uses it for
//! pre-images inverts before and after, so that the store has one convention.

const POLY: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLY } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// Goes on with `crc`, the value for what came before (0 at the start).
pub fn update(crc: u32, bytes: &[u8]) -> u32 {
    let mut state = !crc;
    for &byte in bytes {
        state = TABLE[((state ^ u32::from(byte)) & 0xff) as usize] ^ (state >> 8);
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

    #[test]
    fn update_continues() {
        let whole = crc32c(b"pre-image");
        assert_eq!(update(crc32c(b"pre-"), b"image"), whole);
    }
}
