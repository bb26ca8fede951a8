// SPDX-License-Identifier: GPL-2.0

//! The log of QEMU's `blklogwrites`, in the format of dm-log-writes: a sector with a superblock, then
//! for each request a sector that describes it and, unless it is a discard, its data. All numbers are
//! little-endian. A request comes into the log after the disk has done it and before the guest
//! is told, so the log never has a request before one whose end the guest waited for.

use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};

pub(crate) const SECTOR: u64 = 512;
const MAGIC: u64 = 0x6a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Data was written, which begins at that byte of the log.
    Write { data: u64 },
    /// The sectors hold zeros now.
    Discard,
    /// Nothing, or it was a flush alone.
    None,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// First sector on the disk.
    pub(crate) sector: u64,
    pub(crate) sectors: u64,
    pub(crate) action: Action,
    /// All before it was durable when it was answered.
    pub(crate) flush: bool,
    /// It was durable itself when it was answered.
    pub(crate) fua: bool,
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("not a log of writes: {what}"))
}

fn word(bytes: &[u8; 512], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

/// Reads a log of a disk with so many sectors.
pub(crate) fn read(log: &mut (impl Read + Seek), disk_sectors: u64) -> Result<Vec<Entry>> {
    let end = log.seek(SeekFrom::End(0))?;
    let mut sector = [0; 512];
    let mut get = |at: u64| -> Result<[u8; 512]> {
        log.seek(SeekFrom::Start(at))?;
        log.read_exact(&mut sector)?;
        Ok(sector)
    };
    let head = get(0)?;
    if word(&head, 0) != MAGIC || word(&head, 8) != VERSION {
        return Err(bad("magic or version"));
    }
    if word(&head, 24) & 0xffff_ffff != SECTOR {
        return Err(bad("sector size"));
    }
    let count = word(&head, 16);
    let (mut at, mut entries) = (SECTOR, Vec::new());
    for _ in 0..count {
        let description = get(at)?;
        let (sector, sectors, flags) =
            (word(&description, 0), word(&description, 8), word(&description, 16));
        if flags & !(FLUSH | FUA | DISCARD) != 0 || word(&description, 24) != 0 {
            return Err(bad("flags"));
        }
        at += SECTOR;
        if sector.checked_add(sectors).is_none_or(|last| last > disk_sectors) {
            return Err(bad("a request beyond the disk's end"));
        }
        let action = if sectors == 0 {
            Action::None
        } else if flags & DISCARD != 0 {
            Action::Discard
        } else {
            let data = at;
            at = sectors
                .checked_mul(SECTOR)
                .and_then(|bytes| at.checked_add(bytes))
                .filter(|&after| after <= end)
                .ok_or_else(|| bad("data beyond its end"))?;
            Action::Write { data }
        };
        let (flush, fua) = (flags & FLUSH != 0, flags & FUA != 0);
        entries.push(Entry { sector, sectors, action, flush, fua });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A log of these requests: sector, data (or length of a discard), flags.
    fn log(requests: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let sector = |words: [u64; 4]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.resize(512, 0);
            bytes
        };
        let mut out = sector([MAGIC, VERSION, requests.len() as u64, SECTOR]);
        for (at, data, flags) in requests {
            out.extend(sector([*at, data.len() as u64 / 512, *flags, 0]));
            if flags & DISCARD == 0 {
                out.extend(*data);
            }
        }
        out
    }

    fn parse(bytes: &[u8]) -> Result<Vec<Entry>> {
        read(&mut Cursor::new(bytes), 1 << 20)
    }

    #[test]
    fn requests_are_read() {
        let (two, one) = ([7; 1024], [8; 512]);
        let bytes = log(&[(5, &two, 0), (0, &[], FLUSH), (9, &two, DISCARD), (1, &one, FUA)]);
        let found = parse(&bytes).unwrap();
        let entry =
            |sector, sectors, action, flush, fua| Entry { sector, sectors, action, flush, fua };
        assert_eq!(
            found,
            [
                entry(5, 2, Action::Write { data: 1024 }, false, false),
                entry(0, 0, Action::None, true, false),
                entry(9, 2, Action::Discard, false, false),
                entry(1, 1, Action::Write { data: 3584 }, false, true),
            ]
        );
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let one = [8; 512];
        let good = log(&[(1, &one, 0)]);
        assert!(parse(&good).is_ok());
        assert!(parse(&[]).is_err());
        // Magic, version, sector size, flags, data_len
        for at in [0, 8, 24, 512 + 16, 512 + 24] {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            assert!(parse(&bytes).is_err(), "byte {at}");
        }
        for len in [100, 512, 700, 1024, 1500] {
            assert!(parse(&good[..len]).is_err(), "cut to {len}");
        }
        assert!(parse(&log(&[(1 << 20, &one, 0)])).is_err());
        assert!(parse(&log(&[(u64::MAX, &one, 0)])).is_err());
        let mut bytes = good;
        bytes[512 + 8..512 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(parse(&bytes).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in proptest::collection::vec(0u8..=255, 0..4096),
            good_head: bool,
        ) {
            if good_head && bytes.len() >= 512 {
                bytes[..512].copy_from_slice(&log(&[])[..512]);
                bytes[16] = 9;
            }
            let _ = parse(&bytes);
        }
    }
}
