// SPDX-License-Identifier: GPL-2.0

//! Names: of devices in the store, of sessions, and the time in them.

use super::format::Id;

/// Longest reduced device name in a session's name, in bytes.
pub const STEM_MAX: usize = 200;
/// Longest session name: stem, `_`, 16 bytes of time, `-` and 10 digits.
pub const SESSION_MAX: usize = STEM_MAX + 1 + 16 + 11;

/// A byte string of at most `N` bytes, without allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShortString<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> ShortString<N> {
    /// The empty string.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Adds `more`; what does not fit is left out.
    pub fn push(&mut self, more: &[u8]) {
        let n = more.len().min(N - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&more[..n]);
        self.len += n;
    }

    /// Adds a number in decimal digits, with zeros in front up to `width`.
    pub fn push_decimal(&mut self, value: u64, width: usize) {
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        let mut rest = value;
        while rest > 0 || digits.len() - at < width.clamp(1, 20) {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.push(&digits[at..]);
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<const N: usize> Default for ShortString<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> core::fmt::Write for ShortString<N> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        if s.len() > N - self.len {
            return Err(core::fmt::Error);
        }
        self.push(s.as_bytes());
        Ok(())
    }
}

/// Sixteen bytes as hexadecimal digits.
pub fn hex(id: &Id) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [0; 32];
    for (i, byte) in id.iter().enumerate() {
        out[2 * i] = DIGITS[usize::from(byte >> 4)];
        out[2 * i + 1] = DIGITS[usize::from(byte & 15)];
    }
    out
}

/// The other way; `None` for anything but lower-case hexadecimal digits.
pub fn unhex(digits: &[u8; 32]) -> Option<Id> {
    let mut id = [0; 16];
    for (i, byte) in id.iter_mut().enumerate() {
        *byte = (nibble(digits[2 * i])? << 4) | nibble(digits[2 * i + 1])?;
    }
    Some(id)
}

/// The value of one lower-case hexadecimal digit.
pub fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// The part of a session's name that comes from its device: the last path
/// component, bytes other than `[A-Za-z0-9._-]` replaced by `_`, no dot or
/// dash in front, at most [`STEM_MAX`] bytes (with a hash where cut).
pub fn stem(device: &[u8]) -> ShortString<STEM_MAX> {
    let trimmed = match device.iter().rposition(|&b| b != b'/') {
        Some(last) => &device[..=last],
        None => &[][..],
    };
    let start = trimmed.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
    let last = &trimmed[start..];
    let mut out = ShortString::new();
    let keep = if last.len() > STEM_MAX { STEM_MAX - 9 } else { last.len() };
    for (i, &b) in last[..keep].iter().enumerate() {
        let plain = b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && (b == b'.' || b == b'-'));
        out.push(&[if plain { b } else { b'_' }]);
    }
    if keep < last.len() {
        let crc = super::crc::crc32c(last).to_be_bytes();
        let mut id = [0; 16];
        id[..4].copy_from_slice(&crc);
        out.push(b"-");
        out.push(&hex(&id)[..8]);
    }
    if last.is_empty() {
        out.push(b"_");
    }
    out
}

/// A date and time of day in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utc {
    /// Year.
    pub year: u64,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, 1 to 31.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 59.
    pub second: u8,
}

impl Utc {
    /// From seconds since 1970 (proleptic Gregorian calendar, no leap
    /// seconds).
    pub fn from_unix(secs: u64) -> Self {
        let days = secs / 86_400;
        let of_day = secs % 86_400;
        // Days since 0000-03-01, so that the leap day is a year's last.
        let z = days + 719_468;
        let era = z / 146_097;
        let day_of_era = z % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// `yyyymmddThhmmssZ`.
    pub fn compact(&self) -> ShortString<32> {
        let mut s = ShortString::new();
        s.push_decimal(self.year, 4);
        s.push_decimal(self.month.into(), 2);
        s.push_decimal(self.day.into(), 2);
        s.push(b"T");
        s.push_decimal(self.hour.into(), 2);
        s.push_decimal(self.minute.into(), 2);
        s.push_decimal(self.second.into(), 2);
        s.push(b"Z");
        s
    }
}

/// A session's directory: `<stem>_<time>`, and `-<attempt>` from the second
/// attempt (1) on, when names of one second collide.
pub fn session_dir(device: &[u8], start_ns: u64, attempt: u32) -> ShortString<SESSION_MAX> {
    let mut s = ShortString::new();
    s.push(stem(device).as_bytes());
    s.push(b"_");
    s.push(Utc::from_unix(start_ns / 1_000_000_000).compact().as_bytes());
    if attempt > 0 {
        s.push(b"-");
        s.push_decimal(attempt.into(), 1);
    }
    s
}

/// What names a device's chain tail file: the first sixteen bytes of the
/// SHA-256 of its registered name, which the caller has computed.
pub fn chain_key(sha256_of_name: &[u8; 32]) -> [u8; 32] {
    let mut id = [0; 16];
    id.copy_from_slice(&sha256_of_name[..16]);
    hex(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stem_of(s: &str) -> String {
        String::from_utf8(stem(s.as_bytes()).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn stems() {
        assert_eq!(stem_of("/dev/vdb1"), "vdb1");
        assert_eq!(stem_of("/dev/mapper/vg-root"), "vg-root");
        assert_eq!(stem_of("/srv/disk image.raw"), "disk_image.raw");
        assert_eq!(stem_of("/srv/.hidden"), "_hidden");
        assert_eq!(stem_of("/srv/-rf"), "_rf");
        assert_eq!(stem_of("/srv/dir///"), "dir");
        assert_eq!(stem_of("///"), "_");
        assert_eq!(stem_of(""), "_");
        assert_eq!(stem(b"/srv/\xff\n.img").as_bytes(), b"__.img");
        let long = stem(&[b'x'; 300]);
        assert_eq!(long.as_bytes().len(), STEM_MAX);
        assert_ne!(long.as_bytes(), stem(&[b'x'; 301]).as_bytes());
        assert_eq!(stem(&[b'y'; 200]).as_bytes(), [b'y'; 200]);
    }

    #[test]
    fn dates() {
        let at = |secs| String::from_utf8(Utc::from_unix(secs).compact().as_bytes().to_vec());
        assert_eq!(at(0).unwrap(), "19700101T000000Z");
        assert_eq!(at(951_782_400).unwrap(), "20000229T000000Z");
        assert_eq!(at(1_795_219_199).unwrap(), "20261120T235959Z");
        assert_eq!(at(4_107_542_399).unwrap(), "21000228T235959Z");
        assert_eq!(at(4_107_542_400).unwrap(), "21000301T000000Z");
    }

    #[test]
    fn session_names_fit_a_directory_entry() {
        let longest = session_dir(&[b'z'; 4000], u64::MAX, u32::MAX);
        assert!(longest.as_bytes().len() <= 255);
        let s = session_dir(b"/dev/vdb", 1_795_219_199_999_999_999, 2);
        assert_eq!(s.as_bytes(), b"vdb_20261120T235959Z-2");
    }

    #[test]
    fn hex_both_ways() {
        let id: Id = core::array::from_fn(|i| (i * 17) as u8);
        assert_eq!(&hex(&id), b"00112233445566778899aabbccddeeff");
        assert_eq!(unhex(&hex(&id)), Some(id));
        assert_eq!(unhex(b"00112233445566778899AABBCCDDEEFF"), None);
    }
}
