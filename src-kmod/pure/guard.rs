// SPDX-License-Identifier: GPL-2.0

//! How wrong passwords are slowed down.

/// After a failure the next check must wait this long.
pub const FIRST_PENALTY_MS: u64 = 1_000;
/// It doubles with each further one, up to this.
pub const LAST_PENALTY_MS: u64 = 60_000;
/// So many failures in a row and checks are refused until the penalty is over.
pub const REFUSE_AFTER: u32 = 3;

/// Failures in a row and when the next check may be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Guard {
    failures: u32,
    open_at_ms: u64,
}

/// What a caller has to do before its password is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Wait so many milliseconds (0: none).
    Wait(u64),
    /// Too many failures: refused for so many milliseconds.
    Refused(u64),
}

impl Guard {
    /// No failures.
    pub const fn new() -> Self {
        Self { failures: 0, open_at_ms: 0 }
    }

    /// Asks at time `now_ms` (monotonic).
    pub fn admit(&self, now_ms: u64) -> Admission {
        let left = self.open_at_ms.saturating_sub(now_ms);
        if left > 0 && self.failures >= REFUSE_AFTER {
            Admission::Refused(left)
        } else {
            Admission::Wait(left)
        }
    }

    /// Takes note of a wrong password; returns the penalty in milliseconds.
    pub fn failed(&mut self, now_ms: u64) -> u64 {
        let penalty = FIRST_PENALTY_MS
            .checked_shl(self.failures.min(16))
            .unwrap_or(LAST_PENALTY_MS)
            .min(LAST_PENALTY_MS);
        self.failures = self.failures.saturating_add(1);
        self.open_at_ms = now_ms.saturating_add(penalty);
        penalty
    }

    /// Takes note of a right one.
    pub fn succeeded(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_minute_and_refuses() {
        let mut g = Guard::new();
        assert_eq!(g.admit(5), Admission::Wait(0));
        let penalties: Vec<u64> = (0..8).map(|_| g.failed(0)).collect();
        assert_eq!(penalties, [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        assert_eq!(g.admit(1), Admission::Refused(59_999));
        assert_eq!(g.admit(60_000), Admission::Wait(0));
        g.succeeded();
        assert_eq!(g.failed(0), 1000);
        assert_eq!(g.admit(400), Admission::Wait(600));
    }
}
