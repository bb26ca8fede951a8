// SPDX-License-Identifier: GPL-2.0

//! Looks at names, by a worker, for a caller with a limit on its time.
//!
//! Walking a path may hang for ever (an automounter that waits for us, a dead
//! server). Whoever is inside a claim must not: it asks here and goes on
//! without an answer when that takes too long.

use crate::control::CName;
use crate::core_state::core;
use crate::lifecycle;
use crate::live::{Kind, Token};
use crate::pure::format::Tail;
use crate::session::{Ending, Session};
use crate::sys::{self, Event};
use ::core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_mutex, Arc, Mutex};
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};

/// How long a caller waits for the answer.
const LIMIT_MS: u64 = 2_000;
/// No volume's address.
const UNKNOWN: u64 = u64::MAX;

enum What {
    /// All registered names.
    Settle,
    /// Nothing may be registered any more.
    Idle,
    /// A file's modification time.
    Mtime(CName),
    /// Which registered image a file is.
    Image(CName),
    /// What an image holds at the end of its session.
    End(CName, Arc<Session>),
    /// What the store knows of the last session of the device with this name.
    Tail(KVec<u8>),
}

#[pin_data]
struct Look {
    what: What,
    answer: AtomicU64,
    #[pin]
    ending: Mutex<Option<Ending>>,
    #[pin]
    tail: Mutex<Option<KBox<Tail>>>,
    #[pin]
    done: Event,
    #[pin]
    work: Work<Look>,
}

impl_has_work! {
    impl HasWork<Self> for Look { self.work }
}

impl WorkItem for Look {
    type Pointer = Arc<Look>;

    fn run(this: Arc<Look>) {
        let _live = Token::new(Kind::Works);
        match &this.what {
            What::Settle => {
                if let Err(e) = crate::registry::settle() {
                    pr_warn!("looking up names: errno {}\n", -e.to_errno());
                }
            }
            What::Idle => crate::control::idle(),
            What::Mtime(path) => {
                if let Ok(info) = path.as_c_str().and_then(|p| sys::name_info(p, true, None)) {
                    this.answer.store(info.mtime_ns, Ordering::Relaxed);
                }
            }
            What::End(path, session) => {
                let ending = path.as_c_str().and_then(|p| lifecycle::look_at_image(p, session));
                *this.ending.lock() = ending.ok();
            }
            What::Tail(name) => *this.tail.lock() = crate::store::read_tail(name).ok(),
            What::Image(path) => {
                let found = path.as_c_str().and_then(crate::image::same_file);
                this.answer.store(found.unwrap_or(UNKNOWN), Ordering::Relaxed);
            }
        }
        this.done.happen();
    }
}

fn send(what: What) -> Result<Arc<Look>> {
    let look = Arc::pin_init(
        pin_init!(Look {
            what,
            answer: AtomicU64::new(0),
            ending <- new_mutex!(None, "bdsnap::Look::ending"),
            tail <- new_mutex!(None, "bdsnap::Look::tail"),
            done <- Event::new(),
            work <- new_work!("bdsnap::look"),
        }),
        GFP_KERNEL,
    )?;
    let _ = core().queues.look.queue().enqueue(look.clone());
    Ok(look)
}

/// A look that is over; ETIMEDOUT if it takes too long.
fn ask(what: What) -> Result<Arc<Look>> {
    let look = send(what)?;
    if look.done.wait(LIMIT_MS) {
        Ok(look)
    } else {
        Err(ETIMEDOUT)
    }
}

fn ask_number(what: What) -> Result<u64> {
    Ok(ask(what)?.answer.load(Ordering::Relaxed))
}

/// Looks all registered names up again.
pub(crate) fn settle() {
    if ask(What::Settle).is_err() {
        pr_warn!("looking up names takes long; a mount may go unprotected\n");
    }
}

/// Modification time in ns since 1970; 0 if it cannot be told in time.
pub(crate) fn mtime(path: &[u8]) -> u64 {
    CName::new(path).map_or(0, |p| ask_number(What::Mtime(p)).unwrap_or(0))
}

/// The address of the registered image that this file is; 0 if it is none.
/// ETIMEDOUT if it cannot be told in time, ENOMEM if it cannot be told.
pub(crate) fn image(path: &[u8]) -> Result<u64> {
    match ask_number(What::Image(CName::new(path)?))? {
        UNKNOWN => Err(ENOMEM),
        address => Ok(address),
    }
}

/// The end of a session of an image whose loop device is gone, as the file
/// tells it; `None` if it cannot be told in time.
pub(crate) fn image_end(path: &[u8], session: &Arc<Session>) -> Option<Ending> {
    let look = ask(What::End(CName::new(path).ok()?, session.clone())).ok()?;
    let ending = look.ending.lock().take();
    ending
}

/// What the store knows of the last session of the device with this name; nothing
/// if that cannot be read.
pub(crate) fn tail(name: &[u8]) -> Result<Option<KBox<Tail>>> {
    let mut own = KVec::new();
    own.extend_from_slice(name, GFP_KERNEL)?;
    let look = ask(What::Tail(own))?;
    let tail = look.tail.lock().take();
    Ok(tail)
}

/// Removes the hooks if nothing is registered, but not in the caller: it may be
/// inside of one.
pub(crate) fn remove_hooks_if_idle() {
    let _ = send(What::Idle);
}
