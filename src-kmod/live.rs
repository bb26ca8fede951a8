// SPDX-License-Identifier: GPL-2.0

//! How many objects of each kind are alive.
//!
//! Stock kernels have no leak detector: the module counts for itself, tells
//! in the status, and in the log when it is unloaded, where all must be zero.

use core::sync::atomic::{AtomicI64, Ordering};

/// Kinds of objects, in the order of `ioctl::LIVE_KINDS`.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Bios held, or made by splitting held ones and not yet let go.
    Bios,
    /// Pages with pre-images.
    Pages,
    /// Sessions.
    Sessions,
    /// Open files and pinned paths in the store.
    Files,
    /// Work items that run.
    Works,
    /// Registered volumes.
    Volumes,
    /// Claims by filesystems.
    Claims,
    /// Slices: reads of pre-images on their way to the store.
    Slices,
}

/// Number of kinds.
pub(crate) const KINDS: usize = 8;

static COUNTS: [AtomicI64; KINDS] = [const { AtomicI64::new(0) }; KINDS];

/// Adds `n` (perhaps negative) objects of a kind.
pub(crate) fn add(kind: Kind, n: i64) {
    COUNTS[kind as usize].fetch_add(n, Ordering::Relaxed);
}

/// All counters.
pub(crate) fn counts() -> [i64; KINDS] {
    core::array::from_fn(|i| COUNTS[i].load(Ordering::Relaxed))
}

/// One object, counted as long as this lives.
pub(crate) struct Token(Kind);

impl Token {
    /// Counts an object.
    pub(crate) fn new(kind: Kind) -> Self {
        add(kind, 1);
        Self(kind)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        add(self.0, -1);
    }
}
