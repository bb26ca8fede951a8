// SPDX-License-Identifier: GPL-2.0

//! What a power cut may leave. The guest was told of all requests before the cut. What was written
//! before the last flush among them is there. Of each write since then (in the disk's cache, as it were)
//! all may be there, or nothing, or some of its sectors.

use std::ops::Range;

use crate::log::{Action, Entry};

/// Pseudo-random numbers (splitmix64): the same seed gives the same cut.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 on, below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// What is left of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Left {
    All,
    Nothing,
    /// These sectors of it, counted from its first.
    Sectors(Vec<bool>),
}

/// How much of the writes in the cache is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All of it.
    All,
    /// None.
    None,
    /// So many percent of the writes.
    Some(u64),
    /// All of the store's, none of the origin's: the worst for whoever has not waited.
    Store,
    /// All of the origin's, none of the store's.
    Origin,
    /// Any sectors of any write.
    Torn,
}

/// Where the disk's parts lie, in sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) origin: Range<u64>,
    pub(crate) store: Range<u64>,
    /// Where the guest writes its marks.
    pub(crate) marks: Range<u64>,
}

/// A cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) mode: Mode,
    /// So many requests were before it.
    pub(crate) end: usize,
    /// What is left of those that no flush had made durable; all others are whole.
    pub(crate) left: Vec<(usize, Left)>,
}

/// Those of the first `end` requests that may be lost, if flushes count.
pub(crate) fn in_cache(entries: &[Entry], end: usize) -> Vec<usize> {
    let entries = &entries[..end];
    let flushed = entries.iter().rposition(|e| e.flush).unwrap_or(0);
    (flushed..end).filter(|&i| !entries[i].fua && entries[i].action != Action::None).collect()
}

/// Chooses a cut among the requests `range`. With `flushes` false it is a disk that lies: in the second half of the
/// range it has lost all that was written to the store since the range's beginning.
pub(crate) fn choose(
    entries: &[Entry],
    range: Range<usize>,
    layout: &Layout,
    seed: u64,
    flushes: bool,
) -> Cut {
    let random = &mut Random(seed);
    let of = |part: &Range<u64>, e: &Entry| part.contains(&e.sector);
    let end = {
        // Before one that is not a mark
        let from = if flushes { range.start } else { range.start + range.len() / 2 };
        let real: Vec<usize> =
            (from..range.end).filter(|&i| !of(&layout.marks, &entries[i])).collect();
        let any = match real.len() as u64 {
            0 => range.start,
            n => real[random.below(n) as usize],
        };
        let found = match random.below(3) {
            // Before a flush the cache is at its fullest.
            0 => (any..range.end).find(|&i| entries[i].flush),
            // After an origin write, whose pre-image must be durable
            1 => (any + 1..range.end).find(|&i| of(&layout.origin, &entries[i - 1])),
            _ => None,
        };
        found.unwrap_or(any)
    };
    // The blocks that the disk writes as a whole, in sectors: 512 bytes, or 4096.
    let block = if seed % 2 == 0 { 1 } else { 8 };
    let mode = match random.below(10) {
        _ if !flushes => Mode::Store,
        0 => Mode::None,
        1 => Mode::All,
        2 => Mode::Some(10),
        3 | 4 => Mode::Some(50),
        5 => Mode::Some(90),
        6 | 7 => Mode::Store,
        8 => Mode::Origin,
        _ => Mode::Torn,
    };
    let cache = if flushes {
        in_cache(entries, end)
    } else {
        (range.start..end).filter(|&i| entries[i].action != Action::None).collect()
    };
    let left = cache
        .into_iter()
        .filter(|&i| !of(&layout.marks, &entries[i]))
        .map(|i| {
            let e = &entries[i];
            let lost = match mode {
                Mode::All => true,
                Mode::None => false,
                Mode::Some(p) => random.percent(p),
                Mode::Store => of(&layout.store, e),
                Mode::Origin => of(&layout.origin, e),
                Mode::Torn => {
                    let kept = [0, 50, 90, 100][random.below(4) as usize];
                    let mut keeps = random.percent(kept);
                    let sectors = (e.sector..e.sector + e.sectors).map(|sector| {
                        if sector % block == 0 {
                            keeps = random.percent(kept);
                        }
                        keeps
                    });
                    return (i, Left::Sectors(sectors.collect()));
                }
            };
            (i, if lost { Left::Nothing } else { Left::All })
        })
        .collect();
    Cut { mode, end, left }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout { origin: 0..100, store: 100..200, marks: 200..210 }
    }

    fn entry((kind, sector, sectors): (u8, u64, u64)) -> Entry {
        let action = match kind {
            0..=5 => Action::Write { data: 0 },
            6 => Action::Discard,
            _ => Action::None,
        };
        Entry { sector, sectors, action, flush: kind == 7 || kind == 5, fua: kind == 4 }
    }

    #[test]
    fn a_flush_empties_the_cache() {
        let write = entry((0, 1, 1));
        let (flush, both, fua) = (entry((7, 0, 0)), entry((5, 1, 1)), entry((4, 1, 1)));
        let log = [write, write, flush, write, fua, both, write];
        assert_eq!(in_cache(&log, 2), [0, 1]);
        assert_eq!(in_cache(&log, 3), []);
        assert_eq!(in_cache(&log, 5), [3]);
        // A flush that comes with data is before that data.
        assert_eq!(in_cache(&log, 6), [5]);
        assert_eq!(in_cache(&log, 7), [5, 6]);
    }

    proptest! {
        #[test]
        fn only_what_is_in_the_cache_is_lost(
            requests in prop::collection::vec((0u8..8, 0u64..190, 1u64..9), 1..60),
            from in 0usize..60,
            len in 1usize..60,
            seed: u64,
        ) {
            let log: Vec<Entry> = requests.into_iter().map(entry).collect();
            let from = from % log.len();
            let range = from..(from + len).min(log.len());
            let cut = choose(&log, range.clone(), &layout(), seed, true);
            prop_assert!(range.contains(&cut.end));
            prop_assert_eq!(&cut, &choose(&log, range.clone(), &layout(), seed, true));
            for (i, left) in &cut.left {
                let e = &log[*i];
                prop_assert!(*i < cut.end && !e.fua);
                prop_assert!(!log[*i + 1..cut.end].iter().any(|later| later.flush));
                if let Left::Sectors(s) = left {
                    prop_assert_eq!(s.len() as u64, e.sectors);
                    let within = |at: &usize| (e.sector + *at as u64) % 8 != 0;
                    let torn = (1..s.len()).filter(within).any(|at| s[at - 1] != s[at]);
                    prop_assert!(seed % 2 == 0 || !torn, "a block of 4096 bytes");
                }
                if cut.mode == Mode::Store {
                    prop_assert_eq!(*left == Left::Nothing, layout().store.contains(&e.sector));
                }
            }
        }
    }

    #[test]
    fn a_disk_that_lies_loses_what_was_flushed() {
        let log = [entry((0, 150, 1)), entry((7, 0, 0)), entry((0, 150, 1)), entry((7, 0, 0))];
        let lost = |flushes| {
            (0..200).any(|seed| {
                choose(&log, 0..4, &layout(), seed, flushes)
                    .left
                    .iter()
                    .any(|(i, left)| *i == 0 && *left == Left::Nothing)
            })
        };
        assert!(lost(false));
        let cut = |seed| choose(&log, 2..4, &layout(), seed, true);
        assert!((0..200).all(|seed| cut(seed).left.iter().all(|(i, _)| *i == 2)));
    }
}
