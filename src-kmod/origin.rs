// SPDX-License-Identifier: GPL-2.0

//! A session's origin, and for how long we have its disk open.
//!
//! We read from a disk only while we have it open. A session of a mounted device has it open from
//! its start to its end: nobody could take it away anyway. For a raw session nobody but the
//! writer has it open, and once that is done the disk can be removed, stopped, detached,
//! ejected: at once, not when we are done. So it is opened for what is held, and closed *before*
//! the last held bio goes, whose writer has it open until then.
//!
//! Whoever closes a device as the last one writes out what others have left in its
//! page cache, and those writes may come here, to be held. So nobody that they need closes it, but a work item of its own
//! ([`Session`]'s sixth), for which the releaser waits for a moment only.

use crate::core_state::core;
use crate::live::{Kind, Token};
use crate::pure::volume::By;
use crate::session::Session;
use crate::sys::{NoIo, OpenDisk};
use ::core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::{new_condvar, new_spinlock, Arc, CondVar, CondVarTimeoutResult, SpinLock};
use kernel::time::msecs_to_jiffies;
use kernel::workqueue::WorkItem;

/// The releaser waits so long for the close.
const CLOSE_MS: u32 = 100;

/// How often it looks whether the end of the last read has been told to its end.
const LOOKS: u32 = 2000;

struct Held {
    open: Option<Arc<OpenDisk>>,
    /// The reader is at work.
    reading: bool,
    /// To be closed, or being closed.
    closing: Option<Arc<OpenDisk>>,
    /// The work item has it.
    busy: bool,
    /// The session is over: it is opened no more.
    finished: bool,
}

/// See the module's documentation.
///
/// # Invariants
///
/// `open` is not taken away while the reader is at work or `Session::reads` is not zero.
#[pin_data]
pub(crate) struct Origin {
    #[pin]
    held: SpinLock<Held>,
    #[pin]
    moved: CondVar,
}

impl Origin {
    /// With a disk that is open.
    pub(crate) fn new(open: Arc<OpenDisk>) -> impl PinInit<Self> {
        let held =
            Held { open: Some(open), reading: false, closing: None, busy: false, finished: false };
        pin_init!(Self {
            held <- new_spinlock!(held, "bdsnap::Origin"),
            moved <- new_condvar!("bdsnap::Origin"),
        })
    }

    /// The disk, open until [`Origin::leave`]; for the reader only. May wait for whoever opens
    /// or closes it. ENXIO if it is gone.
    pub(crate) fn enter(&self, session: &Session) -> Result<Arc<OpenDisk>> {
        {
            let mut held = self.held.lock();
            held.reading = true;
            if let Some(open) = &held.open {
                return Ok(open.clone());
            }
            if held.finished {
                return Err(ENXIO);
            }
        }
        let open = Arc::new(OpenDisk::kept_at(&session.place)?, GFP_KERNEL)?;
        let other = {
            let mut held = self.held.lock();
            if held.open.is_none() {
                held.open = Some(open.clone());
            }
            held.open.clone()
        };
        // Not under the lock, and not the last one to close: a look has opened it meanwhile.
        Ok(other.unwrap_or(open))
    }

    /// The reader has nothing more to do for now.
    pub(crate) fn leave(&self, session: &Arc<Session>) {
        let mut held = self.held.lock();
        if !::core::mem::take(&mut held.reading) {
            return;
        }
        drop(held);
        self.moved.notify_all();
        self.close_if_idle(session);
    }

    /// The disk, if it is open; a claim's is, until the session has come to its end.
    pub(crate) fn borrow(&self) -> Option<Arc<OpenDisk>> {
        self.held.lock().open.clone()
    }

    /// While it is open, what is done with the disk; nothing if it is not. For short looks.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&OpenDisk) -> T) -> Option<T> {
        let held = self.held.lock();
        held.open.as_deref().map(look)
    }

    /// Has a raw session's disk closed if nothing is held or read for it. False: it is not
    /// open, or cannot be closed now.
    pub(crate) fn close_if_idle(&self, session: &Arc<Session>) -> bool {
        session.queue.lock().holding() == 0 && self.start_close(session)
    }

    fn start_close(&self, session: &Arc<Session>) -> bool {
        if session.by != By::RawWrite {
            return false;
        }
        {
            let mut held = self.held.lock();
            let reads = session.reads.load(Ordering::Acquire) != 0;
            if held.reading || reads || held.closing.is_some() || held.busy {
                return false;
            }
            let Some(open) = held.open.take() else { return false };
            held.closing = Some(open);
        }
        let _ = core().queues.close.queue().enqueue::<Arc<Session>, 6>(session.clone());
        true
    }

    /// The last held bio of a raw session is about to go: closes the disk first, but waits no longer than a
    /// moment.
    pub(crate) fn close_before_last(&self, session: &Arc<Session>) {
        if session.by != By::RawWrite || session.queue.lock().holding() != 1 {
            return;
        }
        // Who told the end of the last read may still be about to leave.
        for _ in 0..LOOKS {
            if session.reads.load(Ordering::Acquire) == 0 {
                break;
            }
            ::core::hint::spin_loop();
        }
        let mut left = msecs_to_jiffies(CLOSE_MS);
        loop {
            self.start_close(session);
            let mut held = self.held.lock();
            let closes = held.closing.is_some() || held.busy;
            // The reader, if it is at work, is about to leave.
            let closable = held.open.is_some() && held.reading;
            if !(closes || closable) {
                return;
            }
            match self.moved.wait_interruptible_timeout(&mut held, left) {
                CondVarTimeoutResult::Woken { jiffies } => left = jiffies,
                CondVarTimeoutResult::Timeout | CondVarTimeoutResult::Signal { .. } => return,
            }
        }
    }

    /// Closes a disk that was opened for a look at the device, where that holds up nobody.
    pub(crate) fn close_apart(&self, session: &Arc<Session>, open: Arc<OpenDisk>) {
        let mut held = self.held.lock();
        if held.closing.is_none() && !held.busy {
            held.closing = Some(open);
            drop(held);
            let _ = core().queues.close.queue().enqueue::<Arc<Session>, 6>(session.clone());
            return;
        }
        if held.open.is_none() {
            held.open = Some(open.clone());
        }
        // Not under the lock.
        drop(held);
        drop(open);
        self.start_close(session);
    }

    /// The session is over: hands back the disk, if it is open, for the caller to close.
    /// The reader has nothing to do any more, but may be about to leave.
    pub(crate) fn finish(&self) -> Option<Arc<OpenDisk>> {
        let mut held = self.held.lock();
        while held.reading {
            self.moved.wait(&mut held);
        }
        held.finished = true;
        held.open.take()
    }
}

impl WorkItem<6> for Session {
    type Pointer = Arc<Session>;

    /// Closes its disk, and with that, perhaps, writes out what is in its page cache.
    fn run(this: Arc<Session>) {
        let _live = Token::new(Kind::Works);
        let _noio = NoIo::enter();
        let closing = {
            let mut held = this.origin.held.lock();
            held.busy = true;
            held.closing.take()
        };
        drop(closing);
        this.origin.held.lock().busy = false;
        this.origin.moved.notify_all();
        // It may have been opened again meanwhile.
        this.origin.close_if_idle(&this);
    }
}
