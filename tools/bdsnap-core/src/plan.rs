// SPDX-License-Identifier: GPL-2.0

//! The past of a device, composed from the runs of its sessions. Pure: knows
//! no files.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bdsnap_abi::format::Run;

/// Where an extent's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
///
/// One pass over the runs. It remembers those that reach where it is: of each tag at most one.
pub fn at_point(runs: &[Run], session: usize, point: u32) -> Vec<Extent> {
    let mut coming = runs
        .iter()
        .filter(|r| r.tag >= point)
        .map(|r| (r.tag, Extent::of_run(r, session)))
        .peekable();
    // By tag, and those that are over as soon as they come out.
    let mut here: BinaryHeap<Reverse<(u32, Extent)>> = BinaryHeap::new();
    let mut past = Vec::new();
    let mut at = 0;
    loop {
        while here.peek().is_some_and(|Reverse((_, first))| first.end() <= at) {
            here.pop();
        }
        if here.is_empty() {
            let Some((_, next)) = coming.peek() else { return past };
            at = at.max(next.start);
        }
        while let Some(run) = coming.next_if(|(_, extent)| extent.start <= at) {
            here.push(Reverse(run));
        }
        let Some(Reverse((_, first))) = here.peek() else { continue };
        if first.end() > at {
            let next = coming.peek().map_or(u64::MAX, |(_, extent)| extent.start);
            let end = first.end().min(next);
            push(&mut past, first.part(at, end));
            at = end;
        }
    }
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
    /// As the rule says it, byte by byte.
    fn slowly(runs: &[Run], point: u32, sector: u64) -> Option<(u32, u64)> {
        let covers = |r: &&Run| {
            r.tag >= point && r.sector <= sector && sector < r.sector + u64::from(r.bytes) / 512
        };
        let first = runs.iter().filter(covers).min_by_key(|r| r.tag)?;
        Some((first.tag, first.offset + (sector - first.sector) * 512))
    }

    proptest! {
        #[test]
        fn runs_of_many_points(
            pieces in prop::collection::vec((0u32..6, 0u64..40, 1u32..12), 0..40), point in 0u32..7)
        {
            let mut runs: Vec<Run> = Vec::new();
            for (i, (tag, sector, sectors)) in pieces.into_iter().enumerate() {
                let run = Run {
                    tag,
                    sector,
                    bytes: sectors * 512,
                    stored: sectors * 512,
                    offset: i as u64 * 10_000_000,
                    data_crc: 0,
                };
                let end = |r: &Run| r.sector + u64::from(r.bytes) / 512;
                // No byte is in two runs of one tag.
                if !runs.iter().any(|r| r.tag == tag && r.sector < end(&run) && sector < end(r)) {
                    runs.push(run);
                }
            }
            runs.sort_by_key(|r| (r.sector, r.tag));
            let past = at_point(&runs, 3, point);
            for pair in past.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start);
            }
            for sector in 0..60 {
                let found: Vec<_> = within(&past, sector * 512, (sector + 1) * 512).collect();
                let source = slowly(&runs, point, sector)
                    .map(|(_, offset)| Source::Dat { session: 3, offset });
                prop_assert_eq!(found.first().map(|e| e.source), source, "sector {}", sector);
            }
        }
    }

    // ---- Thinning: of the points of a chain only some are kept ----

    const EPOCHS: usize = 6;

    /// A place of the device in two sessions: the first has the epochs up to `split`, the other one the rest. What it
    /// holds is told by a number that each write raises.
    struct Place {
        split: usize,
        /// Whether it is written in each epoch.
        written: [bool; EPOCHS],
    }

    impl Place {
        /// What it holds at the beginning of an epoch; after the last one: now.
        fn holds(&self, epoch: usize) -> u64 {
            self.written[..epoch].iter().filter(|w| **w).count() as u64
        }

        fn session(&self, epoch: usize) -> (usize, u32) {
            if epoch < self.split {
                (0, epoch as u32)
            } else {
                (1, (epoch - self.split) as u32)
            }
        }

        /// The runs of a session, in the order of the map: those of the epochs that `keeps`.
        fn runs(&self, session: usize, keeps: impl Fn(usize) -> bool) -> Vec<Run> {
            let saved = (0..EPOCHS).filter(|&e| self.written[e] && keeps(e));
            let of = saved.filter(|&e| self.session(e).0 == session);
            of.map(|e| Run {
                tag: self.session(e).1,
                sector: 8,
                bytes: 4096,
                stored: 4096,
                offset: self.holds(e) * 4096,
                data_crc: 0,
            })
            .collect()
        }

        /// What a reader finds at the beginning of an epoch.
        fn read(&self, epoch: usize, keeps: impl Fn(usize) -> bool) -> u64 {
            let (session, point) = self.session(epoch);
            let mut past = at_point(&self.runs(session, &keeps), session, point);
            for newer in session + 1..2 {
                past = underlay(&past, &at_point(&self.runs(newer, &keeps), newer, 0));
            }
            let found: Vec<_> = within(&past, 4096, 8192).collect();
            match found[..] {
                [] => self.holds(EPOCHS),
                [Extent { len: 4096, source: Source::Dat { offset, .. }, .. }] => offset / 4096,
                _ => panic!("{found:?}"),
            }
        }

        /// Which runs stay if only these epochs' beginnings are kept: in each interval between two of them the first.
        fn thinned(&self, kept: &[bool; EPOCHS]) -> [bool; EPOCHS] {
            let mut stay = [false; EPOCHS];
            let mut open = false;
            for e in 0..EPOCHS {
                open |= kept[e];
                if open && self.written[e] {
                    stay[e] = true;
                    open = false;
                }
            }
            stay
        }
    }

    fn bits(n: usize) -> [bool; EPOCHS] {
        std::array::from_fn(|i| n >> i & 1 != 0)
    }

    #[test]
    fn any_point_of_a_chain_and_of_a_thinned_one() {
        for (written, split) in (0..1 << EPOCHS).flat_map(|w| (0..=EPOCHS).map(move |s| (w, s))) {
            let place = Place { split, written: bits(written) };
            for epoch in 0..EPOCHS {
                assert_eq!(place.read(epoch, |_| true), place.holds(epoch), "{written:b} {split}");
            }
            for kept in (0..1 << EPOCHS).map(bits) {
                let stay = place.thinned(&kept);
                for epoch in (0..EPOCHS).filter(|&e| kept[e]) {
                    let found = place.read(epoch, |e| stay[e]);
                    assert_eq!(found, place.holds(epoch), "{written:b} {split} {kept:?} {epoch}");
                }
                // Nor is one of them superfluous.
                for gone in (0..EPOCHS).filter(|&e| stay[e]) {
                    let wrong = |epoch: usize| {
                        place.read(epoch, |e| stay[e] && e != gone) != place.holds(epoch)
                    };
                    assert!(
                        (0..EPOCHS).any(|e| kept[e] && wrong(e)),
                        "{written:b} {kept:?} {gone}"
                    );
                }
            }
        }
    }

    #[test]
    fn thinning_session_by_session_is_wrong() {
        // The run of the second session's start is gone with that point; the first one needs it.
        let place = Place { split: 1, written: bits(0b10) };
        assert_eq!(place.read(0, |_| true), 0);
        assert_ne!(place.read(0, |_| false), 0);
    }
}
