// SPDX-License-Identifier: GPL-2.0

//! Sessions of the original module: `<basename>_<unix seconds>`, an index of
//! packed little-endian `{u64 sector, u32 bytes, u64 offset}` without header,
//! checksum or end.

use std::path::{Path, PathBuf};

use bdsnap_abi::format::{DAT_NAME, MAP_MAGIC, MAP_NAME, META_NAME};

use crate::fsutil;

/// Bytes of an entry of the index.
const ENTRY: usize = 20;
/// The longest run that the original's own tool accepts, in bytes.
const RUN_MAX: u32 = 64 << 20;

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

impl Original {
    /// Whether a directory's name is of the original's form.
    pub fn is_named_so(dir: &[u8]) -> bool {
        seconds(dir).is_some()
    }

    /// Looks at a directory of that name: `None` if there is no index in it.
    pub(crate) fn look(path: &Path, dir: &[u8]) -> Result<Option<Self>, String> {
        let map = path.join(MAP_NAME);
        let file = match fsutil::open_regular(&map) {
            Ok(f) => f,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
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
            seconds: seconds(dir).unwrap_or(0),
        }))
    }

    /// Start, ns since 1970, as the name says it.
    pub fn start_ns(&self) -> u64 {
        self.seconds.saturating_mul(1_000_000_000)
    }

    /// Checks the structure: each run in sectors and inside `blocks.dat`.
    /// There are no checksums to check.
    pub fn verify(&self) -> Result<u64, String> {
        let bytes = fsutil::open_regular(&self.path.join(MAP_NAME))
            .and_then(|f| {
                let mut b = vec![0; (self.records as usize).saturating_mul(ENTRY)];
                let n = fsutil::read_up_to(&f, &mut b, 0)?;
                b.truncate(n);
                Ok(b)
            })
            .map_err(|e| format!("{MAP_NAME}: {e}"))?;
        for (i, r) in bytes.chunks_exact(ENTRY).enumerate() {
            let int = |from: usize, n: usize| {
                r[from..from + n].iter().rev().fold(0u64, |v, b| (v << 8) | u64::from(*b))
            };
            let (sector, len, offset) = (int(0, 8), int(8, 4), int(12, 8));
            if len == 0 || len > u64::from(RUN_MAX) || len % 512 != 0 {
                return Err(format!("entry {i}: impossible length {len}"));
            }
            let inside = offset.checked_add(len).is_some_and(|end| end <= self.dat_bytes);
            if !inside {
                return Err(format!("entry {i}: beyond the end of {DAT_NAME}"));
            }
            if sector.checked_mul(512).and_then(|s| s.checked_add(len)).is_none() {
                return Err(format!("entry {i}: impossible sector {sector}"));
            }
        }
        Ok(self.records)
    }
}

/// The seconds in a name of the original's form.
fn seconds(dir: &[u8]) -> Option<u64> {
    let at = dir.iter().rposition(|&b| b == b'_')?;
    let digits = std::str::from_utf8(&dir[at + 1..]).ok()?;
    let plain = at > 0 && (1..=19).contains(&digits.len());
    (plain && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sector: u64, len: u32, offset: u64) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &len.to_le_bytes(), &offset.to_le_bytes()].concat()
    }

    #[test]
    fn names() {
        assert_eq!(seconds(b"sda2_1763790000"), Some(1_763_790_000));
        assert_eq!(seconds(b"my_disk_1"), Some(1));
        for other in [&b"sda2"[..], b"sda2_", b"_17", b"vdb_20261120T235959Z", b"a_+1", b"a_1x"] {
            assert_eq!(seconds(other), None);
        }
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
}
