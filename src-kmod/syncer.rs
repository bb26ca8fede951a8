// SPDX-License-Identifier: GPL-2.0

//! Makes large batches durable while the writer writes the data of the next
//! one: a sync takes several turns of the store's disk, in which that has little
//! else to do.

use crate::live::{Kind, Token};
use crate::session::Session;
use crate::sys::{File, NoIo};
use crate::writer::retire_saved;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::WorkItem;

/// A batch that is written.
pub(crate) struct Asked {
    pub(crate) dat: Arc<File>,
    pub(crate) map: Arc<File>,
    /// [`File::fsync_in_place`] serves both.
    pub(crate) one_flush: bool,
    /// So many of the oldest slices are in it.
    pub(crate) slices: usize,
}

/// The one sync of a session that is not the writer's own.
pub(crate) enum Syncer {
    /// There is none.
    Idle,
    /// To be begun.
    Asked(Asked),
    /// Under way.
    Running,
    /// Over. If it ended well its slices are retired. The writer has yet to be told.
    Ended(Result),
}

impl Syncer {
    /// Whether it is asked for or under way: the files must not be closed. The writer is
    /// kicked at its end.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Asked(_) | Self::Running)
    }

    /// How it ended, once.
    pub(crate) fn take_result(&mut self) -> Option<Result> {
        match self {
            &mut Self::Ended(result) => {
                *self = Self::Idle;
                Some(result)
            }
            _ => None,
        }
    }
}

impl WorkItem<5> for Session {
    type Pointer = Arc<Session>;

    fn run(this: Arc<Session>) {
        let _live = Token::new(Kind::Works);
        let _noio = NoIo::enter();
        let state = ::core::mem::replace(&mut *this.syncer.lock(), Syncer::Running);
        let Syncer::Asked(Asked { dat, map, one_flush, slices }) = state else {
            // Nobody asks twice.
            *this.syncer.lock() = state;
            return;
        };
        let result = if one_flush { dat.fsync_in_place(&map) } else { dat.fsync_both(&map) };
        if result.is_ok() {
            // Not left to the writer, which may be in the middle of the next batch's data.
            retire_saved(&this, slices);
        }
        // The writer, which closes them when this is over, has to be the last to have them.
        drop((dat, map));
        *this.syncer.lock() = Syncer::Ended(result);
        this.kick_writer();
    }
}
