// SPDX-License-Identifier: GPL-2.0

//! How long work reports how far it is, and how it is told to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Kind, Result};

/// Told about phases of work; the front ends show it.
pub trait Progress {
    /// Several phases follow, of so much work in bytes in all. Without this, or
    /// after that much, each phase is by itself.
    fn plan(&self, _total: u64) {}
    /// A phase begins; `total` is its amount of work in bytes.
    fn phase(&self, name: &str, total: u64);
    /// So many bytes more are done.
    fn advance(&self, bytes: u64);
    /// The last phase is over.
    fn finish(&self);
    /// Something has changed that lasts: for tests, which stop there.
    fn step(&self, _what: &str) {}
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &str, _total: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}

/// A wish to stop, set by a signal handler, looked at between batches.
#[derive(Debug, Default)]
pub struct Stop<'a>(Option<&'a AtomicBool>);

impl<'a> Stop<'a> {
    /// Stops when `flag` is set.
    pub fn at(flag: &'a AtomicBool) -> Self {
        Self(Some(flag))
    }

    /// Never stops.
    pub fn never() -> Self {
        Self(None)
    }

    /// Whether to stop.
    pub fn wanted(&self) -> bool {
        self.0.is_some_and(|f| f.load(Ordering::Relaxed))
    }

    /// An error of kind [`Kind::Interrupted`] if it is time to stop.
    pub fn check(&self) -> Result<()> {
        if self.wanted() {
            Err(Error::new(Kind::Interrupted, "interrupted"))
        } else {
            Ok(())
        }
    }
}
