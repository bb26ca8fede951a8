// SPDX-License-Identifier: GPL-2.0

//! The bound on memory for pre-images: who may have more of it.

/// The memory of all sessions together.
///
/// # Invariants
///
/// `used` is the sum of the sessions' own shares, and `used <= peak`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    limit: u64,
    used: u64,
    peak: u64,
}

impl Budget {
    /// A budget of `limit` bytes, unused.
    pub const fn new(limit: u64) -> Self {
        Self { limit, used: 0, peak: 0 }
    }

    /// Gives `bytes` more to a session that has `own`; returns what it has then.
    /// None: it has to wait. A session that has nothing need not, whatever the
    /// others use.
    pub fn take(&mut self, own: u64, bytes: u64) -> Option<u64> {
        let used = self.used.checked_add(bytes)?;
        if used > self.limit && own != 0 {
            return None;
        }
        let own = own.checked_add(bytes)?;
        self.used = used;
        self.peak = self.peak.max(used);
        Some(own)
    }

    /// The same for what is not needed yet: it may have half of all memory, and
    /// nobody waits for it.
    pub fn take_spare(&mut self, own: u64, bytes: u64) -> Option<u64> {
        let spare = self.used.checked_add(bytes)? <= self.limit / 2;
        if spare {
            self.take(own, bytes)
        } else {
            None
        }
    }

    /// Takes `bytes` back from a session that has `own`; returns what it has then.
    pub fn give_back(&mut self, own: u64, bytes: u64) -> u64 {
        self.used = self.used.saturating_sub(bytes);
        own.saturating_sub(bytes)
    }

    /// Bytes now, at most so far, allowed.
    pub const fn figures(&self) -> (u64, u64, u64) {
        (self.used, self.peak, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn never_more_than_there_is() {
        let mut b = Budget::new(u64::MAX);
        assert_eq!(b.take(0, u64::MAX), Some(u64::MAX));
        assert_eq!(b.take(0, 1), None);
        assert_eq!(b.figures(), (u64::MAX, u64::MAX, u64::MAX));
    }

    proptest! {
        /// Three sessions that take slices and give the oldest back, against
        /// sums over all slices.
        #[test]
        fn like_naive_sums(ops in prop::collection::vec(
            (0usize..3, 1u64..=40, 0u8..3), 1..200)) {
            const LIMIT: u64 = 100;
            let mut b = Budget::new(LIMIT);
            let mut own = [0; 3];
            let mut slices: [Vec<u64>; 3] = Default::default();
            let mut peak = 0;
            for (s, bytes, op) in ops {
                let all = slices.iter().flatten().sum::<u64>();
                if op != 0 {
                    let (fits, got) = if op == 1 {
                        (slices[s].is_empty() || all + bytes <= LIMIT, b.take(own[s], bytes))
                    } else {
                        (all + bytes <= LIMIT / 2, b.take_spare(own[s], bytes))
                    };
                    prop_assert_eq!(got.is_some(), fits);
                    if let Some(now) = got {
                        own[s] = now;
                        slices[s].push(bytes);
                    }
                } else if !slices[s].is_empty() {
                    own[s] = b.give_back(own[s], slices[s].remove(0));
                }
                let all = slices.iter().flatten().sum::<u64>();
                peak = all.max(peak);
                prop_assert_eq!(b.figures(), (all, peak, LIMIT));
                // What one slice of each of the others may have on top.
                prop_assert!(all <= LIMIT + 3 * 40);
                for (own, slices) in own.iter().zip(&slices) {
                    prop_assert_eq!(*own, slices.iter().sum::<u64>());
                }
            }
        }
    }
}
