// SPDX-License-Identifier: GPL-2.0

//! The past of a device, composed from the runs of its sessions. Pure: knows
//! no files.

use bdsnap_abi::format::Run;

/// Where an extent's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From `blocks.dat` of a session (its place in the list) at an offset.
    Dat {
        /// Which session.
        session: usize,
        /// Byte offset in its `blocks.dat`.
        offset: u64,
    },
    /// All zeros.
    Zero,
}

impl Source {
    /// The source of what lies `by` bytes further on.
    #[must_use]
    pub fn skip(self, by: u64) -> Self {
        match self {
            Self::Dat { session, offset } => Self::Dat { session, offset: offset + by },
            Self::Zero => Self::Zero,
        }
    }
}

/// A piece of the device and where its past content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset on the device.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u64,
    /// Where its content is.
    pub source: Source,
}

impl Extent {
    /// The byte after its last.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// From a run of a session; `session` is its place in the list.
    ///
    /// The run has been checked ([`Run::check`]), so nothing overflows.
    pub fn of_run(run: &Run, session: usize) -> Self {
        let source =
            if run.is_zero() { Source::Zero } else { Source::Dat { session, offset: run.offset } };
        Self { start: run.sector * bdsnap_abi::SECTOR, len: u64::from(run.bytes), source }
    }

    /// Its part in `start..end`, which must overlap it.
    fn part(&self, start: u64, end: u64) -> Self {
        let (start, end) = (start.max(self.start), end.min(self.end()));
        Self { start, len: end - start, source: self.source.skip(start - self.start) }
    }
}

/// Leaves out what lies behind byte `end`.
pub fn cut(mut extents: Vec<Extent>, end: u64) -> Vec<Extent> {
    extents.retain(|e| e.start < end);
    if let Some(last) = extents.last_mut() {
        *last = last.part(0, end);
    }
    extents
}

/// What a session says of the device at its point `point`, in the order of the device: of each place the first
/// run with a tag of at least that. `runs` are by sector and tag; `session` is its place in the list.
pub fn at_point(runs: &[Run], session: usize, point: u32) -> Vec<Extent> {
    let mut tags: Vec<u32> = runs.iter().map(|r| r.tag).filter(|&t| t >= point).collect();
    tags.sort_unstable();
    tags.dedup();
    let mut past = Vec::new();
    for tag in tags {
        let of_tag = runs.iter().filter(|r| r.tag == tag);
        let newer: Vec<Extent> = of_tag.map(|r| Extent::of_run(r, session)).collect();
        past = underlay(&past, &newer);
    }
    past
}

/// Adds a newer session's extents to those of older ones: where both have
/// something, the older wins. Both are in the order of the device and without
/// overlap, and so is the result.
pub fn underlay(older: &[Extent], newer: &[Extent]) -> Vec<Extent> {
    let mut out = Vec::with_capacity(older.len() + newer.len());
    let mut blocking = older.iter().peekable();
    for extent in newer {
        let mut at = extent.start;
        while at < extent.end() {
            match blocking.peek() {
                Some(b) if b.end() <= at => {
                    push(&mut out, **b);
                    blocking.next();
                }
                Some(b) if b.start <= at => at = b.end(),
                Some(b) if b.start < extent.end() => {
                    push(&mut out, extent.part(at, b.start));
                    at = b.start;
                }
                _ => {
                    push(&mut out, extent.part(at, extent.end()));
                    at = extent.end();
                }
            }
        }
    }
    for b in blocking {
        push(&mut out, *b);
    }
    out
}

/// Appends an extent, joined to the last where it goes on from it.
fn push(out: &mut Vec<Extent>, extent: Extent) {
    if let Some(last) = out.last_mut() {
        debug_assert!(last.end() <= extent.start);
        if last.end() == extent.start && last.source.skip(last.len) == extent.source {
            last.len += extent.len;
            return;
        }
    }
    out.push(extent);
}

/// The extents that overlap `start..end`, cut to it.
pub fn within(extents: &[Extent], start: u64, end: u64) -> impl Iterator<Item = Extent> + '_ {
    // Nothing overlaps an empty range, though one may begin before it and end after it.
    let from =
        if start < end { extents.partition_point(|e| e.end() <= start) } else { extents.len() };
    extents[from..].iter().take_while(move |e| e.start < end).map(move |e| e.part(start, end))
}

/// Sum of the lengths.
pub fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|e| e.len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cut_at_an_end() {
        let extent = |start, len| Extent { start, len, source: Source::Zero };
        let all = vec![extent(0, 512), extent(1024, 1024), extent(4096, 512)];
        assert_eq!(cut(all.clone(), 1536), [extent(0, 512), extent(1024, 512)]);
        assert_eq!(cut(all.clone(), 1024), [extent(0, 512)]);
        assert_eq!(cut(all.clone(), 1 << 20), all);
        assert!(cut(all.clone(), 0).is_empty());
        assert_eq!(within(&all, 1024, 1024).count() + within(&all, 1500, 1500).count(), 0);
    }

    /// Runs of a naive session: which units it holds.
    fn extents(units: &[bool], session: usize) -> Vec<Extent> {
        let mut offset = 0;
        let mut out = Vec::new();
        for (i, _) in units.iter().enumerate().filter(|(_, u)| **u) {
            let source = Source::Dat { session, offset };
            out.push(Extent { start: i as u64 * 512, len: 512, source });
            offset += 512;
        }
        out
    }

    proptest! {
        #[test]
        fn oldest_wins(sessions in prop::collection::vec(
            prop::collection::vec(any::<bool>(), 40), 1..6), cut in 0u64..20480, len in 0u64..9000)
        {
            let mut plan = Vec::new();
            for (i, units) in sessions.iter().enumerate() {
                plan = underlay(&plan, &extents(units, i));
            }
            for pair in plan.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start);
            }
            for unit in 0..40u64 {
                let expected = sessions.iter().position(|s| s[unit as usize]).map(|i| {
                    let before = sessions[i][..unit as usize].iter().filter(|u| **u).count();
                    Source::Dat { session: i, offset: before as u64 * 512 }
                });
                let found: Vec<_> = within(&plan, unit * 512, (unit + 1) * 512).collect();
                prop_assert_eq!(found.first().map(|e| e.source), expected);
                prop_assert!(found.iter().map(|e| e.len).sum::<u64>() % 512 == 0);
            }
            for e in within(&plan, cut, cut + len) {
                prop_assert!(e.len > 0 && e.start >= cut && e.end() <= cut + len);
            }
        }
    }

    #[test]
    fn neighbours_are_joined() {
        let units = [true, true, true, false, true];
        assert_eq!(underlay(&[], &extents(&units, 0)).len(), 2);
        assert_eq!(total(&underlay(&[], &extents(&units, 0))), 4 * 512);
    }
}
