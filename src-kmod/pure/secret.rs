// SPDX-License-Identifier: GPL-2.0

//! The line in `/etc/bdsnap/secret`:
//! `bdsnap1:pbkdf2-sha256:ITERATIONS:SALT_HEX:HASH_HEX`.

/// First field of the line.
pub const VERSION: &[u8] = b"bdsnap1";
/// Second field.
pub const SCHEME: &[u8] = b"pbkdf2-sha256";
/// Iterations that `bdsnap passwd` uses unless told otherwise.
pub const ITERATIONS_DEFAULT: u32 = 10_000;
/// Most iterations that are accepted: each check costs them.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Shortest and longest salt in bytes.
pub const SALT_MIN: usize = 8;
/// See [`SALT_MIN`].
pub const SALT_MAX: usize = 64;
/// Bytes of the hash.
pub const HASH_LEN: usize = 32;

/// What a password is checked against.
///
/// # Invariants
///
/// `1 <= iterations <= ITERATIONS_MAX`, `SALT_MIN <= salt_len <= SALT_MAX`.
#[derive(Clone)]
pub struct Secret {
    /// Rounds of PBKDF2.
    pub iterations: u32,
    salt: [u8; SALT_MAX],
    salt_len: usize,
    /// PBKDF2-HMAC-SHA-256 of the password.
    pub hash: [u8; HASH_LEN],
}

/// Which field of the line is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadField(pub &'static str);

impl core::fmt::Display for BadField {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "bad {} in the secret's line", self.0)
    }
}

impl Secret {
    /// Reads the line; a line feed at its end is allowed.
    pub fn parse(line: &[u8]) -> Result<Self, BadField> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut fields = line.split(|&b| b == b':');
        let mut next = |name| fields.next().ok_or(BadField(name));
        if next("version")? != VERSION {
            return Err(BadField("version"));
        }
        if next("scheme")? != SCHEME {
            return Err(BadField("scheme"));
        }
        let iterations = decimal(next("iterations")?).ok_or(BadField("iterations"))?;
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(BadField("iterations"));
        }
        let mut salt = [0; SALT_MAX];
        let salt_len = unhex(next("salt")?, &mut salt).ok_or(BadField("salt"))?;
        if salt_len < SALT_MIN {
            return Err(BadField("salt"));
        }
        let mut hash = [0; HASH_LEN];
        if unhex(next("hash")?, &mut hash) != Some(HASH_LEN) {
            return Err(BadField("hash"));
        }
        if fields.next().is_some() {
            return Err(BadField("end"));
        }
        Ok(Self { iterations, salt, salt_len, hash })
    }

    /// The salt.
    pub fn salt(&self) -> &[u8] {
        &self.salt[..self.salt_len]
    }
}

fn decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u32, |v, d| {
        let d = d.is_ascii_digit().then(|| u32::from(d - b'0'))?;
        v.checked_mul(10)?.checked_add(d)
    })
}

/// Decodes hexadecimal digits into the beginning of `out`; returns how many
/// bytes, or `None` if they are no digits, odd in number or too many.
fn unhex(digits: &[u8], out: &mut [u8]) -> Option<usize> {
    if digits.len() % 2 != 0 || digits.len() / 2 > out.len() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (super::name::nibble(pair[0])? << 4) | super::name::nibble(pair[1])?;
    }
    Some(digits.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "bdsnap1:pbkdf2-sha256:10000:00112233445566778899aabbccddeeff:\
        0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn good_line() {
        for line in [LINE.to_string(), format!("{LINE}\n")] {
            let s = Secret::parse(line.as_bytes()).unwrap();
            assert_eq!(s.iterations, 10_000);
            assert_eq!(s.salt().len(), 16);
            assert_eq!(s.hash[1], 0x23);
        }
    }

    #[test]
    fn bad_lines_name_the_field() {
        for (from, to, field) in [
            ("bdsnap1", "bdsnap2", "version"),
            ("sha256", "sha512", "scheme"),
            (":10000:", ":0:", "iterations"),
            (":10000:", "::", "iterations"),
            (":10000:", ":1000001:", "iterations"),
            (":10000:", ":99999999999:", "iterations"),
            (":10000:", ":+1:", "iterations"),
            ("00112233445566778899aabbccddeeff", "0011", "salt"),
            ("00112233445566778899aabbccddeeff", "001122334455667", "salt"),
            ("00112233", "0011223G", "salt"),
            (":0123", ":01", "hash"),
        ] {
            let line = LINE.replacen(from, to, 1);
            assert_eq!(Secret::parse(line.as_bytes()).err(), Some(BadField(field)), "{line}");
        }
        assert_eq!(Secret::parse(format!("{LINE}:x").as_bytes()).err(), Some(BadField("end")));
        assert_eq!(Secret::parse(b"").err(), Some(BadField("version")));
    }
}
