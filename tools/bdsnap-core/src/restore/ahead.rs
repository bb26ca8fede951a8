// SPDX-License-Identifier: GPL-2.0

//! Reading ahead: of pieces in no order, read one at a time, each would take the
//! disk's whole latency.

use std::fs::File;
use std::num::NonZeroU64;

use rustix::fs::{fadvise, Advice};

/// So many pieces are asked for before they are needed, at most...
const PIECES: usize = 128;
/// ... and about so many bytes.
const BYTES: u64 = 8 << 20;

/// Pieces of a file in the order in which they will be read: whenever one is
/// taken the kernel is asked to read those that come soon. It may decline, and
/// what it cannot read shows when it is needed.
///
/// # Invariants
///
/// `ahead` is `pieces` without its first `asked` items, which have `bytes` bytes.
pub(super) struct ReadAhead<'a, I> {
    file: &'a File,
    /// Where the pieces count from, in bytes.
    base: u64,
    pieces: I,
    ahead: I,
    asked: usize,
    bytes: u64,
}

impl<'a, I: Iterator<Item = (u64, u64)> + Clone> ReadAhead<'a, I> {
    /// `pieces`: the start (in bytes, from `base` on) and the length of each.
    pub(super) fn new(file: &'a File, base: u64, pieces: I) -> Self {
        let ahead = pieces.clone();
        Self { file, base, pieces, ahead, asked: 0, bytes: 0 }
    }
}

impl<I: Iterator<Item = (u64, u64)>> Iterator for ReadAhead<'_, I> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        while self.asked < PIECES && self.bytes < BYTES {
            let Some((start, len)) = self.ahead.next() else { break };
            let len_or_all = NonZeroU64::new(len);
            // Only the time depends on it.
            let _ =
                fadvise(self.file, self.base.saturating_add(start), len_or_all, Advice::WillNeed);
            self.asked += 1;
            self.bytes += len;
        }
        let piece = self.pieces.next()?;
        self.asked -= 1;
        self.bytes -= piece.1;
        Some(piece)
    }
}
