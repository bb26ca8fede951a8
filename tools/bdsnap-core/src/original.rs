// SPDX-License-Identifier: GPL-2.0

//! Sessions of the original module: `<basename>_<unix seconds>`, an index of
//! packed little-endian `{u64 sector, u32 bytes, u64 offset}` without header,
//! checksum or end.
//!
//! What such a session does not say, and what is made of it:
//!
//! * Whether it is whole, and what happened before and after it: it is linked
//!   to nothing, so each restore through one goes over a gap.
//! * The device's size and identity: every run must lie on the device, the
//!   name in `meta.json` is all there is.
//! * Which partition: that module recorded sectors from the partition's start
//!   under the *disk's* name. Such a session is only restored to a partition
//!   that the user names, never to a disk that has partitions.
//! * A sector may occur more than once: that module lost copies and then saved
//!   the block again, with its new content. The first one counts.
//! * It saved 4096 bytes of each block also where blocks are smaller; what is
//!   behind the block is not the device's. Runs that overlap so are cut at the
//!   next one's start, and the session counts as one with losses.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bdsnap_abi::format::{
    Durability, Gap, Header, Id, Kind, Run, State, Status, DAT_NAME, MAP_MAGIC, MAP_NAME,
    META_NAME, RUN_MAX,
};
use sha2::{Digest, Sha256};

use crate::fsutil;
use crate::session::Session;

/// Bytes of an entry of the index.
const ENTRY: usize = 20;
/// The longest run that the original's own tool accepts, in bytes.
const ENTRY_MAX: u64 = 64 << 20;

/// A session of the original module.
#[derive(Debug, Clone)]
pub struct Original {
    /// Name of its directory.
    pub dir: Vec<u8>,
    /// Its directory.
    pub path: PathBuf,
    /// Entries of its index.
    pub records: u64,
    /// Bytes of `blocks.dat`.
    pub dat_bytes: u64,
    /// The device's name in `meta.json`, if that can be read.
    pub device: Option<Vec<u8>>,
    seconds: u64,
}

/// An entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// First byte on the device.
    start: u64,
    /// Length in bytes.
    len: u64,
    /// Where it begins in `blocks.dat`.
    offset: u64,
}

impl Original {
    /// Whether a directory's name is of the original's form.
    pub fn is_named_so(dir: &[u8]) -> bool {
        split(dir).is_some()
    }

    /// Looks at a directory of that name: `None` if there is no index in it.
    pub(crate) fn look(path: &Path, dir: &[u8]) -> Result<Option<Self>, String> {
        let map = path.join(MAP_NAME);
        let file = match fsutil::open_regular(&map) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("{MAP_NAME}: {e}")),
        };
        let mut magic = [0; 8];
        let n = fsutil::read_up_to(&file, &mut magic, 0).map_err(|e| e.to_string())?;
        let len = file.metadata().map_err(|e| e.to_string())?.len();
        if n == 8 && magic == MAP_MAGIC {
            return Err("a bdsnap index under a name of the original's form".into());
        }
        if len % ENTRY as u64 != 0 {
            return Err(format!("{MAP_NAME}: {len} bytes is no multiple of {ENTRY}"));
        }
        let dat_bytes = fsutil::open_regular(&path.join(DAT_NAME))
            .and_then(|f| f.metadata())
            .map_err(|e| format!("{DAT_NAME}: {e}"))?
            .len();
        let device = fsutil::read_small(&path.join(META_NAME), 1 << 20)
            .ok()
            .and_then(|b| serde_json::from_slice::<serde_json::Value>(&b).ok())
            .and_then(|v| v.get("device")?.as_str().map(|s| s.as_bytes().to_vec()));
        Ok(Some(Self {
            dir: dir.to_vec(),
            path: path.to_owned(),
            records: len / ENTRY as u64,
            dat_bytes,
            device,
            seconds: split(dir).map_or(0, |(_, s)| s),
        }))
    }

    /// Start, ns since 1970, as the name says it.
    pub fn start_ns(&self) -> u64 {
        self.seconds.saturating_mul(1_000_000_000)
    }

    /// What its directory's name says of the device: the last component of its
    /// name, with other characters than `A-Z a-z 0-9 . _ -` made `_`.
    pub fn base_name(&self) -> &[u8] {
        split(&self.dir).map_or(&[], |(base, _)| base)
    }

    /// Whether a device of this name would have that [`Original::base_name`].
    pub fn could_be(&self, device: &[u8]) -> bool {
        let base = device.rsplit(|&b| b == b'/').next().unwrap_or_default();
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
        base.len() == self.base_name().len()
            && base.iter().zip(self.base_name()).all(|(b, c)| b == c || (!plain(b) && *c == b'_'))
    }

    /// Checks the structure: each run in sectors and inside `blocks.dat`.
    /// There are no checksums to check. Returns the number of entries.
    pub fn verify(&self) -> Result<u64, String> {
        self.entries().map(|e| e.len() as u64)
    }

    /// The same as a session in the form of ours, to be restored with them.
    ///
    /// Its identity is made of its name. `device_bytes` is 0: nobody knows.
    pub fn session(&self) -> Result<Session, String> {
        let entries = self.entries()?;
        let mut header = Header::new();
        header.session_id = self.id();
        header.start_ns = self.start_ns();
        header.kind = Kind::Mount;
        header.durability = Durability::Async;
        header.gap_before = Gap::Unknown;
        let name = self.device.as_deref().unwrap_or_else(|| self.base_name());
        if !header.set_name(name) {
            return Err(format!("{META_NAME}: the device's name is too long"));
        }
        let status = Status {
            state: State::Closed,
            records: self.records,
            map_records: self.records,
            dat_bytes: self.dat_bytes,
            ..Status::recording(header.session_id)
        };
        let blocks = |name| self.path.join(name).metadata().map_or(0, |m| m.blocks());
        Ok(Session {
            dir: self.dir.clone(),
            path: self.path.clone(),
            header,
            status,
            slot_damaged: false,
            map_bytes: self.records * ENTRY as u64,
            dat_bytes: self.dat_bytes,
            stored_bytes: (blocks(MAP_NAME) + blocks(DAT_NAME)).saturating_mul(512),
            original: Some(Box::new(self.clone())),
            overlaps: resolve(&entries).1,
        })
    }

    /// What counts of its runs, in the order of the device, none longer than
    /// [`RUN_MAX`]; without checksums.
    pub(crate) fn runs(&self) -> Result<Vec<Run>, String> {
        let mut runs = Vec::new();
        for e in resolve(&self.entries()?).0 {
            let mut done = 0;
            while done < e.len {
                let bytes = (e.len - done).min(u64::from(RUN_MAX));
                runs.push(Run {
                    tag: 0,
                    sector: (e.start + done) / bdsnap_abi::SECTOR,
                    bytes: bytes as u32,
                    stored: bytes as u32,
                    offset: e.offset + done,
                    data_crc: 0,
                });
                done += bytes;
            }
        }
        Ok(runs)
    }

    fn id(&self) -> Id {
        let hash: [u8; 32] = Sha256::digest([b"original ", &self.dir[..]].concat()).into();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        id
    }

    /// The index, in its own order.
    fn entries(&self) -> Result<Vec<Entry>, String> {
        let bytes = fsutil::open_regular(&self.path.join(MAP_NAME))
            .and_then(|f| {
                let mut b = vec![0; (self.records as usize).saturating_mul(ENTRY)];
                let n = fsutil::read_up_to(&f, &mut b, 0)?;
                b.truncate(n);
                Ok(b)
            })
            .map_err(|e| format!("{MAP_NAME}: {e}"))?;
        let entry = |(i, r): (usize, &[u8])| {
            let int = |from: usize, n: usize| {
                r[from..from + n].iter().rev().fold(0u64, |v, b| (v << 8) | u64::from(*b))
            };
            let (sector, len, offset) = (int(0, 8), int(8, 4), int(12, 8));
            if len == 0 || len > ENTRY_MAX || len % 512 != 0 {
                return Err(format!("entry {i}: impossible length {len}"));
            }
            if offset.checked_add(len).is_none_or(|end| end > self.dat_bytes) {
                return Err(format!("entry {i}: beyond the end of {DAT_NAME}"));
            }
            match sector.checked_mul(512) {
                Some(start) if start.checked_add(len).is_some_and(|e| e <= i64::MAX as u64) => {
                    Ok(Entry { start, len, offset })
                }
                _ => Err(format!("entry {i}: impossible sector {sector}")),
            }
        };
        bytes.chunks_exact(ENTRY).enumerate().map(entry).collect()
    }
}

/// What counts of the entries, in the order of the device and without overlap,
/// and whether something in them cannot be the device's old content.
///
/// Of entries with the same start the first one counts. Where entries overlap
/// otherwise, or do not begin at a multiple of their length, the blocks were
/// smaller than what was saved of each: the one that begins at a place is
/// right there, and the one before it was read beyond its block.
fn resolve(entries: &[Entry]) -> (Vec<Entry>, bool) {
    let mut first: BTreeMap<u64, Entry> = BTreeMap::new();
    let mut overlaps = false;
    for e in entries {
        overlaps |= e.start % e.len.min(4096) != 0;
        first.entry(e.start).or_insert(*e);
    }
    let mut out: Vec<Entry> = Vec::with_capacity(first.len());
    for e in first.into_values() {
        if let Some(last) = out.last_mut().filter(|l| l.start + l.len > e.start) {
            overlaps = true;
            last.len = e.start - last.start;
        }
        out.push(e);
    }
    (out, overlaps)
}

/// A name of the original's form, taken apart: base name and seconds.
fn split(dir: &[u8]) -> Option<(&[u8], u64)> {
    let at = dir.iter().rposition(|&b| b == b'_')?;
    let digits = std::str::from_utf8(&dir[at + 1..]).ok()?;
    let plain = at > 0 && (1..=19).contains(&digits.len());
    let all_digits = plain && digits.bytes().all(|b| b.is_ascii_digit());
    Some((&dir[..at], all_digits.then(|| digits.parse().ok())??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(sector: u64, len: u32, offset: u64) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &len.to_le_bytes(), &offset.to_le_bytes()].concat()
    }

    #[test]
    fn names() {
        let seconds = |dir| split(dir).map(|(_, s)| s);
        assert_eq!(seconds(b"sda2_1763790000"), Some(1_763_790_000));
        assert_eq!(split(b"my_disk_1"), Some((&b"my_disk"[..], 1)));
        for other in [&b"sda2"[..], b"sda2_", b"_17", b"vdb_20261120T235959Z", b"a_+1", b"a_1x"] {
            assert_eq!(seconds(other), None);
        }
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join(MAP_NAME), "").unwrap();
        std::fs::write(tmp.path().join(DAT_NAME), "").unwrap();
        let o = Original::look(tmp.path(), b"my_disk.img_12").unwrap().unwrap();
        assert!(o.could_be(b"/srv/my disk.img") && o.could_be(b"my_disk.img"));
        assert!(!o.could_be(b"/srv/my.disk.img") && !o.could_be(b"/srv/my disk.im"));
    }

    #[test]
    fn structure() {
        let tmp = tempfile::tempdir().unwrap();
        let map = tmp.path().join(MAP_NAME);
        assert!(Original::look(tmp.path(), b"sda_1").unwrap().is_none());
        std::fs::write(tmp.path().join(DAT_NAME), [0; 8192]).unwrap();
        let verify = |bytes: &[u8]| {
            std::fs::write(&map, bytes).unwrap();
            Original::look(tmp.path(), b"sda_1")?.ok_or("none")?.verify()
        };
        let good = [entry(8, 4096, 0), entry(0, 4096, 4096)].concat();
        assert_eq!(verify(&good), Ok(2));
        assert!(verify(&good[..39]).unwrap_err().contains("multiple"));
        assert!(verify(&entry(0, 4096, 4097)).unwrap_err().contains("beyond"));
        assert!(verify(&entry(0, 4096, u64::MAX)).unwrap_err().contains("beyond"));
        assert!(verify(&entry(0, 0, 0)).unwrap_err().contains("length"));
        assert!(verify(&entry(u64::MAX, 512, 0)).unwrap_err().contains("sector"));
    }

    fn e(start: u64, len: u64, offset: u64) -> Entry {
        Entry { start, len, offset }
    }

    #[test]
    fn the_first_of_a_block_counts() {
        let (runs, overlaps) = resolve(&[e(8192, 4096, 0), e(0, 4096, 4096), e(8192, 4096, 8192)]);
        assert_eq!(runs, [e(0, 4096, 4096), e(8192, 4096, 0)]);
        assert!(!overlaps);
        assert!(!resolve(&[e(1024, 1024, 0), e(2048, 1024, 1024)]).1, "1 KiB blocks, saved right");
        assert!(resolve(&[e(1024, 4096, 0)]).1, "1 KiB blocks, saved with what is behind them");
        let (runs, overlaps) = resolve(&[e(0, 4096, 0), e(2048, 4096, 4096), e(1024, 4096, 8192)]);
        assert_eq!(runs, [e(0, 1024, 0), e(1024, 1024, 8192), e(2048, 4096, 4096)]);
        assert!(overlaps);
    }

    proptest! {
        /// As that module's blocks are: against a naive image.
        #[test]
        fn resolved_as_naively(blocks in prop::collection::vec(0u64..32, 0..80)) {
            let entries: Vec<Entry> =
                blocks.iter().enumerate().map(|(i, b)| e(b * 4096, 4096, i as u64 * 4096)).collect();
            let mut naive = [None; 32];
            for (i, b) in blocks.iter().enumerate() {
                naive[*b as usize].get_or_insert(i as u64 * 4096);
            }
            let (runs, overlaps) = resolve(&entries);
            prop_assert!(!overlaps);
            let mut got = [None; 32];
            for r in &runs {
                prop_assert_eq!(r.len, 4096);
                got[(r.start / 4096) as usize] = Some(r.offset);
            }
            prop_assert_eq!(got, naive);
            prop_assert!(runs.is_sorted_by(|a, b| a.start + a.len <= b.start));
        }
    }
}
