// SPDX-License-Identifier: GPL-2.0

//! Texts for people: names made harmless for a terminal, sizes, identities.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bdsnap_abi::format::Id;

/// Makes an untrusted name harmless and unambiguous on a terminal.
///
/// Printable UTF-8 stays; control, bidirectional and invisible characters
/// become `\u{…}`, bytes that are no UTF-8 `\x…`, a backslash is doubled.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if is_treacherous(c) => {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{{{:x}}}", c as u32);
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Whether a terminal would act on the character or not show it.
pub(crate) fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{3164}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}'
            | '\u{f0000}'..='\u{10ffff}')
}

/// [`escape`] for a path.
pub fn path(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

/// A name for JSON: as it is if it is UTF-8, else with U+FFFD in it (then
/// documents carry the bytes as well, see [`raw_hex`]).
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The bytes of a name in hexadecimal digits if it is no UTF-8.
pub fn raw_hex(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).is_err().then(|| hex(bytes))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// An identity in digits, or `None` if it is [`bdsnap_abi::format::NO_ID`].
pub fn id(id: &Id) -> Option<String> {
    (*id != bdsnap_abi::format::NO_ID).then(|| hex(id))
}

/// An identity from its digits.
pub fn parse_id(digits: &str) -> Option<Id> {
    bdsnap_abi::name::unhex(digits.as_bytes().try_into().ok()?)
}

/// A size in binary units with one digit after the point: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = 0;
    tenths = (tenths + 512) / 1024;
    while tenths >= 10_235 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A number with its noun: `1 session`, `2 sessions`.
pub fn count(n: u64, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

/// A time span: `45s`, `3m 05s`, `2h 14m`, `6d 03h`.
pub fn span(ns: u64) -> String {
    let s = ns / 1_000_000_000;
    match s {
        0..=59 => format!("{s}s"),
        60..=3599 => format!("{}m {:02}s", s / 60, s % 60),
        3600..=86_399 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// A time in UTC as RFC 3339 writes it, with whole seconds.
pub fn rfc3339(ns: u64) -> String {
    let t = bdsnap_abi::name::Utc::from_unix(ns / 1_000_000_000);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        t.year, t.month, t.day, t.hour, t.minute, t.second
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        for (from, to) in [
            (&b"/dev/vdb1"[..], "/dev/vdb1"),
            ("/srv/Bücher.img".as_bytes(), "/srv/Bücher.img"),
            (b"a\x1b[31mred", "a\\u{1b}[31mred"),
            (b"line\nfeed\ttab\r", "line\\nfeed\\ttab\\r"),
            ("x\u{202e}gmi".as_bytes(), "x\\u{202e}gmi"),
            ("x\u{2066}y\u{200b}z\u{feff}".as_bytes(), "x\\u{2066}y\\u{200b}z\\u{feff}"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"\x7f", "\\u{7f}"),
            (b"a\\x20b", "a\\\\x20b"),
            (b"", ""),
        ] {
            assert_eq!(escape(from), to);
        }
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (10 * (1 << 30), "10.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn spans_and_times() {
        assert_eq!(span(59_999_999_999), "59s");
        assert_eq!(span(185 * 1_000_000_000), "3m 05s");
        assert_eq!(span(8040 * 1_000_000_000), "2h 14m");
        assert_eq!(span(6 * 86_400 * 1_000_000_000), "6d 00h");
        assert_eq!(rfc3339(1_795_219_199_999_999_999), "2026-11-20T23:59:59Z");
    }
}
