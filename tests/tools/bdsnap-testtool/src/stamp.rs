// SPDX-License-Identifier: GPL-2.0

//! Sectors that say where they belong and which write they are of. What is lost, torn, late or at a wrong
//! place is found, whatever else was written meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bdsnap_abi::crc::crc32c;

use crate::load::{aligned, Random};

const SECTOR: usize = 512;
/// Longest write, in sectors.
const MOST: u64 = 2048;
const MAGIC: &[u8; 8] = b"bdstamp1";

/// Fills a sector: magic, its number, the number of the write, noise made of both, checksum.
fn stamp(out: &mut [u8], sector: u64, sequence: u64) {
    Random::new(sector ^ sequence.rotate_left(32)).fill(out);
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&sector.to_le_bytes());
    out[16..24].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc32c(&out[..SECTOR - 4]);
    out[SECTOR - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// What a sector says of itself, in words.
fn says(bytes: &[u8]) -> String {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let crc = crc32c(&bytes[..SECTOR - 4]).to_le_bytes();
    if &bytes[..8] != MAGIC {
        "no stamp".into()
    } else if bytes[SECTOR - 4..] != crc {
        format!("a torn stamp of sector {}, write {}", number(8), number(16))
    } else {
        format!("sector {}, write {}", number(8), number(16))
    }
}

fn open(path: &Path, direct: bool) -> Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let mut file = options.open(path)?;
    let sectors = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))? / SECTOR as u64;
    Ok((file, sectors))
}

fn write(file: &File, buffer: &mut Vec<u8>, at: u64, count: u64, sequence: u64) -> Result<()> {
    let data = aligned(buffer, count as usize * SECTOR);
    for (i, out) in data.chunks_mut(SECTOR).enumerate() {
        stamp(out, at + i as u64, sequence);
    }
    file.write_all_at(data, at * SECTOR as u64)
}

/// Stamps all of a file or device with write 0.
pub(crate) fn fill(path: &Path) -> Result<()> {
    let (file, sectors) = open(path, true)?;
    let mut buffer = Vec::new();
    for at in (0..sectors).step_by(MOST as usize) {
        write(&file, &mut buffer, at, MOST.min(sectors - at), 0)?;
    }
    file.sync_all()
}

/// Whether each sector is of write 0.
pub(crate) fn check(path: &Path) -> Result<()> {
    let sectors = open(path, true)?.1;
    verify(path, 1, 0, &vec![0; sectors as usize])
}

/// Where writes hurt: at the edges of chunks of `chunk` sectors, and at the end.
fn place(r: &mut Random, sectors: u64, chunk: u64) -> (u64, u64) {
    let mut below = |n: u64| r.below(n as usize) as u64;
    let edge = below(sectors / chunk) * chunk;
    let (at, count) = match below(9) {
        0 => (edge, 1),
        1 => (edge + chunk - 1, 1),
        2 => (edge.saturating_sub(1), 2),
        3 => (edge.saturating_sub(1 + below(chunk)), 2 + below(2 * chunk)),
        4 => (edge, chunk),
        5 => (edge, chunk * (1 + below(MOST / chunk))),
        6 => (sectors - 1 - below(2 * chunk), 1 + below(2 * chunk)),
        7 => (edge + 1, chunk - 2),
        _ => (below(sectors), 1 + below(MOST)),
    };
    let at = at.min(sectors - 1);
    (at, count.clamp(1, MOST).min(sectors - at))
}

/// `count` writes; then all is looked at, past the cache. With others at the same time this one
/// writes single sectors, those whose number is `own` modulo `of`: neighbours in one chunk.
pub(crate) fn run(
    path: &Path,
    seed: u64,
    count: u64,
    how: &str,
    (own, of): (u64, u64),
) -> Result<()> {
    const CHUNK: u64 = 8;
    let direct = match how {
        "direct" => true,
        "buffered" => false,
        _ => return Err(crate::usage()),
    };
    let (file, sectors) = open(path, direct)?;
    let mut random = Random::new(seed);
    let mut last = vec![0u64; sectors as usize];
    let mut buffer = Vec::new();
    for sequence in 1..=count {
        let (mut at, mut n) = place(&mut random, sectors, CHUNK);
        if of > 1 {
            (at, n) = (at - at % of + own, 1);
            if at >= sectors {
                continue;
            }
        }
        write(&file, &mut buffer, at, n, sequence)?;
        last[at as usize..(at + n) as usize].fill(sequence);
        if !direct && random.below(40) == 0 {
            file.sync_data()?;
        }
    }
    file.sync_all()?;
    drop(file);
    verify(path, of, own, &last)
}

/// Compares the sectors that are `own` modulo `of` with the writes that they must be of.
fn verify(path: &Path, of: u64, own: u64, last: &[u64]) -> Result<()> {
    let (file, sectors) = open(path, true)?;
    let (mut buffer, mut wrong) = (Vec::new(), 0);
    for start in (0..sectors).step_by(MOST as usize) {
        let n = MOST.min(sectors - start);
        let data = aligned(&mut buffer, n as usize * SECTOR);
        file.read_exact_at(data, start * SECTOR as u64)?;
        for (sector, found) in (start..).zip(data.chunks(SECTOR)) {
            let mut expected = [0; SECTOR];
            stamp(&mut expected, sector, last[sector as usize]);
            if sector % of == own && found != expected {
                if wrong < 10 {
                    println!("sector {sector}, write {}: {}", last[sector as usize], says(found));
                }
                wrong += 1;
            }
        }
    }
    match wrong {
        0 => Ok(()),
        n => Err(Error::other(format!("{n} sectors are not what was written"))),
    }
}
