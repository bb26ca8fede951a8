// SPDX-License-Identifier: GPL-2.0

//! Reading ahead of a sequential writer: which chunks it will reach soon, so
//! that their pre-images are safe before its writes come.
//!
//! ```text
//! ── written ──┬──── saved or on their way ────┐
//!            next            mark             end
//! ```
//!
//! A write that passes the mark, or is held, moves `next`; when a quarter of the
//! distance to `end` is used up, as much is read again.

use super::plan::Chunks;

/// How far to read ahead, in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// So many have to have been written one after the other.
    pub least: u64,
    /// The largest distance between the writer and what is read; 0: none.
    pub most: u64,
    /// Chunks of the device.
    pub chunks: u64,
}

/// What to read, and where to be told that the writer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// To be read now.
    pub run: Chunks,
    /// The chunk whose write moves the stream on; none if that would be too late.
    pub mark: Option<u64>,
}

/// A writer that goes through the device, if there is one.
///
/// # Invariants
///
/// `streak <= next`; `end` is 0 or where the last piece ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// The chunk after the last one written.
    next: u64,
    /// Chunks written one after the other before it.
    streak: u64,
    /// The chunk after the last one that was read ahead.
    end: u64,
}

impl Stream {
    /// None yet.
    pub const fn new() -> Self {
        Self { next: 0, streak: 0, end: 0 }
    }

    /// These chunks are written.
    pub fn write(&mut self, run: &Chunks) {
        let expected = self.next..=self.next.max(self.end);
        if expected.contains(&run.start) {
            // Those in between have passed by without a word, for they were saved.
            self.streak = self.streak.saturating_add(run.end.saturating_sub(self.next));
        } else if run.end <= self.next && run.end >= self.next.saturating_sub(self.streak) {
            // Something of it again.
            return;
        } else {
            self.streak = run.end.saturating_sub(run.start);
            self.end = 0;
        }
        self.next = run.end;
    }

    /// A write has passed the mark, and came to before `end`.
    pub fn pass(&mut self, end: u64) {
        // What is beyond was not read ahead for it.
        let end = end.min(self.end);
        self.streak = self.streak.saturating_add(end.saturating_sub(self.next));
        self.next = self.next.max(end);
    }

    /// What to read now, if anything.
    pub fn plan(&mut self, limits: &Limits) -> Option<Ahead> {
        // What is read in vain at the end of it is no more than half of what was written.
        let distance = (self.streak / 2).min(limits.most);
        if self.streak < limits.least || distance == 0 {
            return None;
        }
        let piece = distance.div_ceil(4);
        let from = self.end.max(self.next);
        let to = self.next.saturating_add(distance).min(limits.chunks);
        if from - self.next > distance - piece || to <= from {
            return None;
        }
        self.end = to;
        Some(Ahead {
            run: Chunks { start: from, end: to },
            mark: self.next.checked_add(piece).filter(|&m| to < limits.chunks && m < to),
        })
    }

    /// Not all could be read, only up to `end`.
    pub fn cut(&mut self, end: u64) {
        self.end = self.end.min(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { least: 8, most: 16, chunks: 1000 };

    fn run(start: u64, end: u64) -> Chunks {
        Chunks { start, end }
    }

    #[test]
    fn a_stream() {
        let mut s = Stream::new();
        s.write(&run(100, 104));
        assert_eq!(s.plan(&LIMITS), None, "too short");
        s.write(&run(104, 108));
        assert_eq!(s.plan(&LIMITS), Some(Ahead { run: run(108, 112), mark: Some(109) }));
        assert_eq!(s.plan(&LIMITS), None, "far enough");
        // The mark is passed.
        s.write(&run(109, 110));
        assert_eq!(s.plan(&LIMITS), Some(Ahead { run: run(112, 115), mark: Some(112) }));
        s.write(&run(112, 113));
        assert_eq!(s.plan(&LIMITS), Some(Ahead { run: run(115, 119), mark: Some(115) }));
        // Far behind: all has passed unseen, and the next one is held.
        s.write(&run(119, 140));
        assert_eq!(s.plan(&LIMITS), Some(Ahead { run: run(140, 156), mark: Some(144) }));
        s.cut(141);
        s.write(&run(141, 142));
        assert_eq!(s.plan(&LIMITS), Some(Ahead { run: run(142, 158), mark: Some(146) }));
        // Several writes at a time: the one that is told of may be far beyond the mark.
        s.pass(157);
        assert_eq!(s.plan(&LIMITS), Some(Ahead { run: run(158, 173), mark: Some(161) }));
        s.pass(500);
        assert_eq!(s.plan(&LIMITS), Some(Ahead { run: run(173, 189), mark: Some(177) }), "no jump");
        s.pass(150);
        assert_eq!(s.plan(&LIMITS), None, "one that comes late");
    }

    #[test]
    fn rewrites_and_jumps() {
        let mut s = Stream::new();
        s.write(&run(0, 10));
        s.write(&run(4, 6));
        assert!(s.plan(&LIMITS).is_some(), "a rewrite is no end of it");
        s.write(&run(500, 501));
        assert_eq!(s.plan(&LIMITS), None, "a jump is");
        s.write(&run(990, 999));
        assert_eq!(s.plan(&LIMITS), Some(Ahead { run: run(999, 1000), mark: None }));
        s.write(&run(999, 1000));
        assert_eq!(s.plan(&LIMITS), None, "the device's end");
        let mut s = Stream::new();
        s.write(&run(0, 100));
        assert_eq!(s.plan(&Limits { most: 0, ..LIMITS }), None, "switched off");
    }

    proptest! {
        /// Whatever is written: what is read was not read before in the same
        /// stream, begins behind the writer, and is near.
        #[test]
        fn near_and_once(writes in prop::collection::vec((0u64..4, 1u64..30), 1..200),
                         least in 0u64..20, most in 0u64..40) {
            let limits = Limits { least, most, chunks: 400 };
            let (mut s, mut at, mut until) = (Stream::new(), 0, 0);
            for (kind, len) in writes {
                match kind {
                    0 => at = at * 7919 % 350,
                    1 => at = (at + len / 8).min(399),
                    _ => {}
                }
                let w = run(at, (at + len).min(400));
                let before = s.next;
                if kind == 3 {
                    let end = s.end;
                    s.pass(w.end);
                    prop_assert!(s.next >= before && s.next <= end.max(before));
                } else {
                    s.write(&w);
                }
                if kind != 3 && s.next != before && s.streak == w.end - w.start {
                    until = 0;
                }
                if let Some(a) = s.plan(&limits) {
                    prop_assert!(a.run.start < a.run.end && a.run.end <= 400);
                    prop_assert!(a.run.start >= s.next && a.run.start >= until);
                    prop_assert!(a.run.end - s.next <= most.min(s.streak / 2) && s.streak >= least);
                    prop_assert!(a.mark.is_none() || a.run.end < 400);
                    if let Some(mark) = a.mark {
                        prop_assert!(mark >= s.next && mark < a.run.end);
                    }
                    until = a.run.end;
                    prop_assert_eq!(s.plan(&limits), None);
                }
                at = w.end.min(399);
            }
        }

        /// Numbers as large as there are.
        #[test]
        fn no_overflow(writes in prop::collection::vec((any::<u64>(), any::<u64>()), 1..20)) {
            let limits = Limits { least: 1, most: u64::MAX, chunks: u64::MAX };
            let mut s = Stream::new();
            for (a, b) in writes {
                s.write(&run(a.min(b), a.max(b)));
                s.plan(&limits);
                s.pass(b);
                s.plan(&limits);
            }
        }
    }
}
