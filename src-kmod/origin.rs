// SPDX-License-Identifier: GPL-2.0

//! A session's origin, and who has its disk open.
//!
//! We read from a disk only while somebody has it open. A session of a mounted device has it open
//! itself, from its start to its end: nobody could take it away anyway.
//!
//! A raw session does not. Whoever opens a disk or closes it may wait for others who do, and those for
//! a write that we hold; and what we had open could not be removed, detached, ejected once its writer is done.
//! But whoever submits a bio has the disk open until that has ended. So what a held bio
//! overwrites is read from the bio's own disk, and the bio goes when those reads have ended: see
//! [`crate::pure::queue`].

use crate::sys::OpenDisk;
use kernel::prelude::*;
use kernel::sync::{new_condvar, new_spinlock, Arc, CondVar, SpinLock};

struct Own {
    open: Option<Arc<OpenDisk>>,
    /// The reader has it.
    reading: bool,
}

/// The disk that a session has open itself.
#[pin_data]
pub(crate) struct Origin {
    #[pin]
    own: SpinLock<Own>,
    #[pin]
    left: CondVar,
}

impl Origin {
    /// `None` for raw sessions.
    pub(crate) fn new(open: Option<Arc<OpenDisk>>) -> impl PinInit<Self> {
        pin_init!(Self {
            own <- new_spinlock!(Own { open, reading: false }, "bdsnap::Origin"),
            left <- new_condvar!("bdsnap::Origin"),
        })
    }

    /// The disk for the reader, which drops it before [`Origin::leave`].
    pub(crate) fn enter(&self) -> Option<Arc<OpenDisk>> {
        let mut own = self.own.lock();
        own.reading = own.open.is_some();
        own.open.clone()
    }

    /// The reader has nothing more to do for now.
    pub(crate) fn leave(&self) {
        self.own.lock().reading = false;
        self.left.notify_all();
    }

    /// The disk, until the session has come to its end.
    pub(crate) fn borrow(&self) -> Option<Arc<OpenDisk>> {
        self.own.lock().open.clone()
    }

    /// While it is open, what is done with the disk. For short looks.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&OpenDisk) -> T) -> Option<T> {
        self.own.lock().open.as_deref().map(look)
    }

    /// The session is over: hands back the disk for the caller to close. The reader has nothing to do
    /// any more, but may be about to leave.
    pub(crate) fn finish(&self) -> Option<Arc<OpenDisk>> {
        let mut own = self.own.lock();
        while own.reading {
            self.left.wait(&mut own);
        }
        own.open.take()
    }
}
