// SPDX-License-Identifier: GPL-2.0

//! How long the oldest held bio has waited, without a clock in each bio.
//!
//! Bios are let go in the order in which they were held, so two counters and
//! a look at them every quarter of the time limit are enough: whatever had
//! been held three looks ago and is still held is older than three quarters
//! of the limit, and no bio gets older than the limit itself.

/// Looks that a bio may live through.
pub const LOOKS: usize = 4;

/// The watch over one session's held bios.
#[derive(Debug, Clone, Copy, Default)]
pub struct Watch {
    /// `held` as it was at the last looks, oldest first.
    past: [u64; LOOKS - 1],
}

impl Watch {
    /// A watch that has seen nothing.
    pub const fn new() -> Self {
        Self { past: [0; LOOKS - 1] }
    }

    /// A look: `held` and `released` count bios since the session's start.
    /// True: a bio is older than it may be.
    pub fn look(&mut self, held: u64, released: u64) -> bool {
        let overdue = released < self.past[0];
        self.past.copy_within(1.., 0);
        self.past[LOOKS - 2] = held;
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With looks at times 1, 2, 3 …: a bio held at any time between two
    /// looks and never released is found at an age of more than three and at
    /// most four looks.
    #[test]
    fn found_in_time() {
        let mut w = Watch::new();
        assert!(!w.look(0, 0)); // 1: nothing yet; then one bio comes
        assert!(!w.look(1, 0)); // 2
        assert!(!w.look(1, 0)); // 3
        assert!(!w.look(1, 0)); // 4
        assert!(w.look(1, 0)); // 5: it came after 1
    }

    #[test]
    fn progress_is_not_overdue() {
        let mut w = Watch::new();
        for i in 0..100 {
            assert!(!w.look(10 * i, (10 * i).saturating_sub(29)));
        }
    }
}
