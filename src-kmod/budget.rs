// SPDX-License-Identifier: GPL-2.0

//! The bound on memory for pre-images, and waiting for it; who gets what is
//! decided in [`crate::pure::budget`].
//!
//! Only readers wait here, each for its own session, and never while they
//! hold a lock. A session that has nothing in memory is let through whatever
//! the others use: that one slice is its reserve, so that the store's progress
//! on other devices is never a condition of its own.

use crate::pure::budget;
use crate::session::Session;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::{new_condvar, new_spinlock, CondVar, SpinLock};

/// The budget of all sessions together; each one's share is in its `in_memory`.
#[pin_data]
pub(crate) struct Budget {
    #[pin]
    used: SpinLock<budget::Budget>,
    #[pin]
    changed: CondVar,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(crate) fn new(limit: u64) -> impl PinInit<Self> {
        pin_init!(Self {
            used <- new_spinlock!(budget::Budget::new(limit), "bdsnap::budget"),
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
            if session.ring_has_room() {
                let own = session.in_memory.load(Ordering::Relaxed);
                if let Some(own) = used.take(own, bytes) {
                    session.in_memory.store(own, Ordering::Relaxed);
                    return true;
                }
            }
            self.changed.wait(&mut used);
        }
    }

    /// The same for what is read ahead, without waiting: false also if there is
    /// nothing to spare.
    pub(crate) fn try_spare(&self, session: &Session, bytes: u64) -> bool {
        let mut used = self.used.lock();
        if session.is_broken() || !session.ring_has_spare() {
            return false;
        }
        let own = session.in_memory.load(Ordering::Relaxed);
        let Some(own) = used.take_spare(own, bytes) else { return false };
        session.in_memory.store(own, Ordering::Relaxed);
        true
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
        let own = used.give_back(session.in_memory.load(Ordering::Relaxed), bytes);
        session.in_memory.store(own, Ordering::Relaxed);
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
        self.used.lock().figures()
    }
}
