// SPDX-License-Identifier: GPL-2.0

//! What a session consists of, and where on the device that is. Pure, but for
//! [`Summary::of`], which reads the session's index.

use std::fmt::Write;

use serde::Serialize;

use crate::error::Result;
use crate::session::Session;

/// How many of the largest pieces are named.
const LARGEST: usize = 5;

/// A piece of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What a session consists of.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Size of the device in bytes.
    pub device_bytes: u64,
    /// Size of a chunk in bytes.
    pub chunk_size: u32,
    /// Runs in the index.
    pub runs: u64,
    /// Pieces of the device, neighbouring runs joined.
    pub pieces: u64,
    /// Bytes of pre-images, those of zeros included.
    pub saved_bytes: u64,
    /// Bytes of them that are zeros without data.
    pub zero_bytes: u64,
    /// What all files of the session take in the store.
    pub stored_bytes: u64,
    /// That, in hundredths of `saved_bytes`; none if nothing was saved.
    pub stored_percent: Option<u64>,
    /// Share of the device that was changed, in millionths.
    pub changed_ppm: u64,
    /// Median of the pieces' lengths.
    pub median_piece_bytes: u64,
    /// The largest pieces.
    pub largest: Vec<Piece>,
    /// All pieces, in the order of the device.
    #[serde(skip)]
    pub all: Vec<Piece>,
}

/// `part` of `whole` in units of 1 / `scale`.
fn share(part: u64, whole: u64, scale: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let n = u128::from(part) * u128::from(scale) / u128::from(whole);
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl Summary {
    /// Of a session; `live`: it is being recorded.
    pub fn of(session: &Session, live: bool) -> Result<Self> {
        let (runs, _) = session.runs(live)?;
        let mut all: Vec<Piece> = Vec::new();
        let (mut saved, mut zero) = (0, 0);
        for r in &runs {
            let (start, bytes) = (r.sector * bdsnap_abi::SECTOR, u64::from(r.bytes));
            saved += bytes;
            if r.is_zero() {
                zero += bytes;
            }
            match all.last_mut() {
                Some(last) if last.start + last.bytes == start => last.bytes += bytes,
                _ => all.push(Piece { start, bytes }),
            }
        }
        let mut by_size = all.clone();
        by_size.sort_by_key(|p| (std::cmp::Reverse(p.bytes), p.start));
        let median = by_size.get(by_size.len() / 2).map_or(0, |p| p.bytes);
        by_size.truncate(LARGEST);
        let stored = session.bytes_on_disk()?;
        let device = session.header.device_bytes;
        Ok(Self {
            device_bytes: device,
            chunk_size: session.header.chunk_size,
            runs: runs.len() as u64,
            pieces: all.len() as u64,
            saved_bytes: saved,
            zero_bytes: zero,
            stored_bytes: stored,
            stored_percent: (saved > 0).then(|| share(stored, saved, 100)),
            changed_ppm: share(saved, device, 1_000_000),
            median_piece_bytes: median,
            largest: by_size,
            all,
        })
    }
}

/// Divides a device into `cells` parts and says of each how much of it the
/// pieces cover, in thousandths; anything at all is at least 1.
pub fn heat(pieces: &[Piece], device_bytes: u64, cells: usize) -> Vec<u16> {
    let mut covered = vec![0u64; cells];
    if device_bytes == 0 || cells == 0 {
        return vec![0; cells];
    }
    let edge = |i: usize| {
        let at = u128::from(device_bytes) * i as u128 / cells as u128;
        u64::try_from(at).unwrap_or(u64::MAX)
    };
    for p in pieces {
        let end = (p.start + p.bytes).min(device_bytes);
        let mut i = {
            let at = u128::from(p.start) * cells as u128 / u128::from(device_bytes);
            usize::try_from(at).unwrap_or(cells).min(cells - 1)
        };
        let mut at = p.start;
        while at < end && i < cells {
            let to = edge(i + 1).min(end);
            if to > at {
                covered[i] += to - at;
                at = to;
            }
            i += 1;
        }
    }
    let cell = |(i, c): (usize, &u64)| {
        let thousandths = share(*c, edge(i + 1) - edge(i), 1000).min(1000);
        let some = u64::from(*c > 0);
        u16::try_from(thousandths.max(some)).unwrap_or(1000)
    };
    covered.iter().enumerate().map(cell).collect()
}

/// A character for a cell of a heat map.
pub fn shade(thousandths: u16) -> char {
    match thousandths {
        0 => '·',
        1..=249 => '░',
        250..=499 => '▒',
        500..=749 => '▓',
        _ => '█',
    }
}

/// The picture of a device as an SVG document, `title` above it.
pub fn svg(cells: &[u16], columns: usize, title: &str, legend: &str) -> String {
    const CELL: usize = 10;
    let columns = columns.max(1);
    let rows = cells.len().div_ceil(columns);
    let (width, height) = (columns * CELL + 20, rows * CELL + 70);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{0}</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\">{0}</text>",
        xml(title)
    );
    for (i, &c) in cells.iter().enumerate() {
        let (x, y) = (10 + i % columns * CELL, 30 + i / columns * CELL);
        // From light grey over yellow to red.
        let fill = match c {
            0 => "#eeeeee".to_owned(),
            c => {
                let green = 220 - u32::from(c) * 200 / 1000;
                format!("#ee{green:02x}20")
            }
        };
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{0}\" height=\"{0}\" fill=\"{fill}\"/>",
            CELL - 1
        );
    }
    let y = 30 + rows * CELL + 20;
    let _ = writeln!(out, "<text x=\"10\" y=\"{y}\">{}</text>\n</svg>", xml(legend));
    out
}

/// Text for XML.
fn xml(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn heat_is_what_is_covered(
            raw in prop::collection::vec((0u64..500, 1u64..60), 0..10),
            device in 500u64..1000, cells in 1usize..90)
        {
            let mut used = vec![false; device as usize];
            let mut pieces = Vec::new();
            for (start, len) in raw {
                let bytes = len.min(device - start);
                if used[start as usize..(start + bytes) as usize].iter().any(|u| *u) {
                    continue;
                }
                used[start as usize..(start + bytes) as usize].fill(true);
                pieces.push(Piece { start, bytes });
            }
            let got = heat(&pieces, device, cells);
            for (i, g) in got.iter().enumerate() {
                let from = device as usize * i / cells;
                let to = device as usize * (i + 1) / cells;
                let n = used[from..to].iter().filter(|u| **u).count();
                let expected = if n == 0 { 0 } else { (n * 1000 / (to - from)).max(1) };
                prop_assert_eq!(usize::from(*g), expected, "cell {}", i);
            }
        }
    }

    #[test]
    fn an_svg_is_well_formed_whatever_the_title() {
        let text = svg(&[0, 1, 1000], 2, "a<b>&\"\u{1b}[31m", "x");
        assert!(text.contains("a&lt;b&gt;&amp;&quot;\u{fffd}[31m"));
        assert_eq!(text.matches("<rect").count(), 4);
        assert_eq!(shade(0), '·');
        assert_eq!(shade(1), '░');
        assert_eq!(shade(1000), '█');
    }
}
