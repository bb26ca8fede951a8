// SPDX-License-Identifier: GPL-2.0

//! The bound on memory for pre-images.
//!
//! Only readers wait here, each for its own session, and never while they
//! hold a lock. A session that has nothing in memory is let through whatever
//! the others use: that one slice is its reserve, so that the store's progress
//! on other devices is never a condition of its own.

use crate::session::Session;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::{new_condvar, new_spinlock, CondVar, SpinLock};

struct Used {
    bytes: u64,
    peak: u64,
}

/// The budget of all sessions together.
///
/// # Invariants
///
/// `used.bytes` is the sum of the sessions' `in_memory`.
#[pin_data]
pub(crate) struct Budget {
    limit: u64,
    #[pin]
    used: SpinLock<Used>,
    #[pin]
    changed: CondVar,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(crate) fn new(limit: u64) -> impl PinInit<Self> {
        pin_init!(Self {
            limit,
            used <- new_spinlock!(Used { bytes: 0, peak: 0 }, "bdsnap::budget"),
            changed <- new_condvar!("bdsnap::budget"),
        })
    }

    /// Waits for room for a slice of `bytes` in memory and in the session's
    /// ring. False: the session broke meanwhile.
    pub(crate) fn acquire(&self, session: &Session, bytes: u64) -> bool {
        let mut used = self.used.lock();
        loop {
            if session.is_broken() {
                return false;
            }
            let own = session.in_memory.load(Ordering::Relaxed);
            let fits = used.bytes + bytes <= self.limit || own == 0;
            if fits && session.ring_has_room() {
                used.bytes += bytes;
                used.peak = used.peak.max(used.bytes);
                session.in_memory.store(own + bytes, Ordering::Relaxed);
                return true;
            }
            self.changed.wait(&mut used);
        }
    }

    /// Waits until a slice of the session has given its memory back. False:
    /// there is none to wait for, or the session broke.
    pub(crate) fn wait_for_own(&self, session: &Session) -> bool {
        let mut used = self.used.lock();
        let before = session.in_memory.load(Ordering::Relaxed);
        if before == 0 {
            return false;
        }
        while session.in_memory.load(Ordering::Relaxed) >= before {
            if session.is_broken() {
                return false;
            }
            self.changed.wait(&mut used);
        }
        true
    }

    /// Gives back what a slice had.
    pub(crate) fn release(&self, session: &Session, bytes: u64) {
        let mut used = self.used.lock();
        used.bytes = used.bytes.saturating_sub(bytes);
        let own = session.in_memory.load(Ordering::Relaxed);
        session.in_memory.store(own.saturating_sub(bytes), Ordering::Relaxed);
        drop(used);
        self.changed.notify_all();
    }

    /// Makes waiting readers look again, as when their session broke.
    pub(crate) fn wake(&self) {
        // Whoever has looked and not yet gone to sleep holds the lock.
        drop(self.used.lock());
        self.changed.notify_all();
    }

    /// Bytes now, at most so far, allowed.
    pub(crate) fn figures(&self) -> (u64, u64, u64) {
        let used = self.used.lock();
        (used.bytes, used.peak, self.limit)
    }
}
