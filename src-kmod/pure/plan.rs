// SPDX-License-Identifier: GPL-2.0

//! From a bio's sectors to the chunks whose pre-images it endangers.
//!
//! All arithmetic on what a bio or a device says is checked: a wrong answer
//! here would be a lost pre-image, an overflow a panic.

/// A half-open range of sectors on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sectors {
    /// First sector.
    pub start: u64,
    /// The sector after the last.
    pub end: u64,
}

impl Sectors {
    /// `count` sectors from `start`; `None` if their end overflows.
    pub fn new(start: u64, count: u64) -> Option<Self> {
        Some(Self { start, end: start.checked_add(count)? })
    }

    /// What both have, if anything.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// Number of sectors.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A half-open range of chunk numbers of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// First chunk.
    pub start: u64,
    /// The chunk after the last.
    pub end: u64,
}

/// How a device is divided into chunks.
///
/// # Invariants
///
/// `chunk_shift` is the base-2 logarithm of the chunk's sectors, 3 to 7;
/// `sectors > 0` and `first + sectors` does not overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Where the device begins on its disk, in sectors.
    first: u64,
    /// Size of the device in sectors.
    sectors: u64,
    chunk_shift: u32,
}

impl Geometry {
    /// A device of `sectors` sectors that begins at sector `first` of its
    /// disk, in chunks of `chunk_bytes`; `None` for impossible values.
    pub fn new(first: u64, sectors: u64, chunk_bytes: u32) -> Option<Self> {
        if !super::format::chunk_size_is_valid(chunk_bytes) || sectors == 0 {
            return None;
        }
        first.checked_add(sectors)?;
        sectors.checked_mul(super::SECTOR).filter(|&b| b <= i64::MAX as u64)?;
        Some(Self { first, sectors, chunk_shift: (chunk_bytes / 512).trailing_zeros() })
    }

    /// The device on its disk.
    pub fn on_disk(&self) -> Sectors {
        Sectors { start: self.first, end: self.first + self.sectors }
    }

    /// Size of the device in bytes.
    pub fn bytes(&self) -> u64 {
        self.sectors * super::SECTOR
    }

    /// Size of a chunk in bytes.
    pub fn chunk_bytes(&self) -> u32 {
        512 << self.chunk_shift
    }

    /// Number of chunks; the last may be short.
    pub fn chunks(&self) -> u64 {
        ((self.sectors - 1) >> self.chunk_shift) + 1
    }

    /// The chunks that `disk_sectors` touches, if any are of this device.
    pub fn touched(&self, disk_sectors: &Sectors) -> Option<Chunks> {
        let hit = disk_sectors.intersect(&self.on_disk())?;
        Some(Chunks {
            start: (hit.start - self.first) >> self.chunk_shift,
            end: ((hit.end - self.first - 1) >> self.chunk_shift) + 1,
        })
    }

    /// Where a run of chunks is on the disk; the end is cut at the device's.
    pub fn sectors_of(&self, run: &Chunks) -> Sectors {
        let start = (run.start << self.chunk_shift).min(self.sectors);
        let end = (run.end << self.chunk_shift).min(self.sectors);
        Sectors { start: self.first + start, end: self.first + end }
    }

    /// The same, from the device's start.
    pub fn device_sectors_of(&self, run: &Chunks) -> Sectors {
        let s = self.sectors_of(run);
        Sectors { start: s.start - self.first, end: s.end - self.first }
    }

    /// How many whole chunks so many bytes are.
    pub fn whole_chunks(&self, bytes: u64) -> u64 {
        bytes >> (self.chunk_shift + 9)
    }

    /// Chunks that one read may take: [`super::format::RUN_MAX`] bytes.
    pub fn run_max(&self) -> u64 {
        self.whole_chunks(super::format::RUN_MAX.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn impossible_geometries() {
        assert!(Geometry::new(0, 0, 4096).is_none());
        assert!(Geometry::new(0, 8, 2048).is_none());
        assert!(Geometry::new(0, 8, 5000).is_none());
        assert!(Geometry::new(u64::MAX, 8, 4096).is_none());
        assert!(Geometry::new(0, u64::MAX / 512, 4096).is_none());
    }

    #[test]
    fn last_short_chunk() {
        let g = Geometry::new(100, 17, 4096).unwrap();
        assert_eq!(g.chunks(), 3);
        assert_eq!(g.touched(&Sectors { start: 116, end: 117 }), Some(Chunks { start: 2, end: 3 }));
        let last = Chunks { start: 2, end: 3 };
        assert_eq!(g.sectors_of(&last), Sectors { start: 116, end: 117 });
        assert_eq!(g.device_sectors_of(&last), Sectors { start: 16, end: 17 });
    }

    proptest! {
        /// Against sector-by-sector arithmetic.
        #[test]
        fn touched_is_exact(first in 0u64..300, sectors in 1u64..300, start in 0u64..700,
                            count in 0u64..300, shift in 3u32..8) {
            let g = Geometry::new(first, sectors, 512 << shift).unwrap();
            let bio = Sectors::new(start, count).unwrap();
            let mut naive: Vec<u64> = (start..start + count)
                .filter(|s| (first..first + sectors).contains(s))
                .map(|s| (s - first) >> shift)
                .collect();
            naive.dedup();
            let got: Vec<u64> = g.touched(&bio).map_or(vec![], |c| (c.start..c.end).collect());
            prop_assert_eq!(got, naive);
        }

        /// The chunks of a device tile it.
        #[test]
        fn chunks_tile(first in 0u64..300, sectors in 1u64..900, shift in 3u32..8) {
            let g = Geometry::new(first, sectors, 512 << shift).unwrap();
            let mut at = first;
            for c in 0..g.chunks() {
                let s = g.sectors_of(&Chunks { start: c, end: c + 1 });
                prop_assert_eq!(s.start, at);
                prop_assert!(!s.is_empty());
                at = s.end;
            }
            prop_assert_eq!(at, first + sectors);
        }
    }
}
