// SPDX-License-Identifier: GPL-2.0

//! The data files of a chain's sessions, of which few are open at a time: a chain may be longer than a process may
//! have files open.

use std::collections::VecDeque;
use std::fs::File;

use crate::error::Result;
use crate::session::Session;

/// # Invariants
///
/// At most [`Dats::MAX_OPEN`] are open, each place once.
pub(crate) struct Dats {
    /// With the sessions' places, the one opened last in front.
    open: VecDeque<(usize, File)>,
}

impl Dats {
    const MAX_OPEN: usize = 64;

    /// None is open.
    pub(crate) const fn new() -> Self {
        Self { open: VecDeque::new() }
    }

    /// The data of `session`, which has the place `at` in its chain.
    ///
    /// # Errors
    ///
    /// Those of [`Session::open_dat`].
    pub(crate) fn of(&mut self, at: usize, session: &Session) -> Result<&File> {
        let i = match self.open.iter().position(|(place, _)| *place == at) {
            Some(i) => i,
            None => {
                // INVARIANT: One goes for the one that comes.
                self.open.truncate(Self::MAX_OPEN - 1);
                self.open.push_front((at, session.open_dat()?));
                0
            }
        };
        Ok(&self.open[i].1)
    }
}
