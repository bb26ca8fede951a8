// SPDX-License-Identifier: GPL-2.0

//! What there is once per load of the module.

use crate::auth::Auth;
use crate::budget::Budget;
use crate::claim::Claims;
use crate::params::Params;
use crate::pure::format::Id;
use crate::registry::Registry;
use crate::session::Session;
use crate::store::MarkerLock;
use crate::sys::{self, WorkQueue};
use ::core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use kernel::bindings;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{new_mutex, Arc, Mutex};

/// One work queue for each thing that must not wait for another; see
/// `session.rs`. `look` is for names, whose file systems may hang.
pub(crate) struct Queues {
    pub(crate) read: WorkQueue,
    pub(crate) write: WorkQueue,
    pub(crate) release: WorkQueue,
    pub(crate) look: WorkQueue,
    /// Starts raw sessions, and so waits for all of them.
    pub(crate) raw: WorkQueue,
    /// Ends them, and opens and closes disks, which may take a write that waits for a start.
    pub(crate) end: WorkQueue,
}

impl Queues {
    fn new() -> Result<Self> {
        Ok(Self {
            read: WorkQueue::new(c"bdsnap_read")?,
            write: WorkQueue::new(c"bdsnap_write")?,
            release: WorkQueue::new(c"bdsnap_release")?,
            look: WorkQueue::new(c"bdsnap_look")?,
            raw: WorkQueue::new(c"bdsnap_raw")?,
            end: WorkQueue::new(c"bdsnap_end")?,
        })
    }
}

/// The module's state.
#[pin_data]
pub(crate) struct Core {
    /// First: drained before anything else goes.
    pub(crate) queues: Queues,
    pub(crate) params: Params,
    pub(crate) load_id: Id,
    pub(crate) boot_id: Id,
    #[pin]
    pub(crate) budget: Budget,
    #[pin]
    pub(crate) registry: Mutex<Registry>,
    #[pin]
    pub(crate) claims: Mutex<Claims>,
    #[pin]
    pub(crate) sessions: Mutex<KVec<Arc<Session>>>,
    /// Held by whoever raises the store's `chain_seq`.
    #[pin]
    pub(crate) marker: Mutex<MarkerLock>,
    /// Held through each change of registrations.
    #[pin]
    pub(crate) control: Mutex<()>,
    #[pin]
    pub(crate) auth: Mutex<Auth>,
    #[pin]
    store: Mutex<Option<CString>>,
    pub(crate) sealed: AtomicBool,
    pub(crate) has_secret: AtomicBool,
    pub(crate) hooks: AtomicBool,
    /// Hibernation is under way.
    pub(crate) asleep: AtomicBool,
    pub(crate) syscalls: AtomicBool,
    /// 0 passed, an errno, or `u32::MAX`: not run.
    pub(crate) self_test: AtomicU32,
    /// The control device, once registered.
    pub(crate) device: AtomicPtr<bindings::device>,
    pub(crate) sessions_total: AtomicU64,
    pub(crate) sessions_broken: AtomicU64,
    pub(crate) held_bios: AtomicU64,
    pub(crate) saved_bytes: AtomicU64,
    pub(crate) absorbed_bytes: AtomicU64,
    pub(crate) auth_failures: AtomicU64,
}

impl Core {
    fn new() -> Result<Arc<Self>> {
        let params = Params::read()?;
        let mem_limit = params.mem_limit;
        let queues = Queues::new()?;
        Arc::pin_init(
            pin_init!(Self {
                queues,
                params,
                load_id: sys::random_id(),
                boot_id: sys::boot_id(),
                budget <- Budget::new(mem_limit),
                registry <- new_mutex!(Registry::new(), "bdsnap::registry"),
                claims <- new_mutex!(Claims::new(), "bdsnap::claims"),
                sessions <- new_mutex!(KVec::new(), "bdsnap::sessions"),
                marker <- new_mutex!(MarkerLock, "bdsnap::marker"),
                control <- new_mutex!((), "bdsnap::control"),
                auth <- new_mutex!(Auth::new(), "bdsnap::auth"),
                store <- new_mutex!(None, "bdsnap::store"),
                sealed: AtomicBool::new(false),
                has_secret: AtomicBool::new(false),
                hooks: AtomicBool::new(false),
                asleep: AtomicBool::new(false),
                syscalls: AtomicBool::new(false),
                self_test: AtomicU32::new(u32::MAX),
                device: AtomicPtr::new(::core::ptr::null_mut()),
                sessions_total: AtomicU64::new(0),
                sessions_broken: AtomicU64::new(0),
                held_bios: AtomicU64::new(0),
                saved_bytes: AtomicU64::new(0),
                absorbed_bytes: AtomicU64::new(0),
                auth_failures: AtomicU64::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// The store's path.
    pub(crate) fn store_path(&self) -> Result<CString> {
        match &*self.store.lock() {
            Some(path) => Ok(CString::try_from_fmt(fmt!("{}", &**path))?),
            None => CString::try_from_fmt(fmt!("/snapshot")),
        }
    }

    /// Fixes it, at the hand-over.
    pub(crate) fn set_store_path(&self, path: CString) {
        *self.store.lock() = Some(path);
    }

    /// The control device, for events.
    pub(crate) fn set_device(&self, misc: *mut bindings::miscdevice) {
        // SAFETY: Just registered, so its device is there.
        let device = unsafe { (*misc).this_device };
        self.device.store(device, Ordering::Release);
    }

    /// Visits the running sessions. `visit` must neither allocate nor wait for
    /// I/O.
    pub(crate) fn for_each_session(&self, visit: impl Fn(&Arc<Session>)) {
        self.sessions.lock().iter().for_each(visit);
    }

    /// A session begins.
    pub(crate) fn remember(&self, session: Arc<Session>) -> Result {
        // The watch takes this lock: whoever has it must not wait for reclaim
        // that waits for a held write.
        let _noio = sys::NoIo::enter();
        self.sessions.lock().push(session, GFP_KERNEL)?;
        self.sessions_total.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A session has ended for good.
    pub(crate) fn forget(&self, session: &Session) {
        let mut dropped = None;
        let mut sessions = self.sessions.lock();
        if let Some(i) = sessions.iter().position(|s| ::core::ptr::eq(&**s, session)) {
            dropped = sessions.remove(i).ok();
        }
        drop(sessions);
        drop(dropped);
        let held = session.queue.lock().held();
        self.held_bios.fetch_add(held, Ordering::Relaxed);
        self.absorbed_bytes
            .fetch_add(session.absorbed_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

static CORE: AtomicPtr<Core> = AtomicPtr::new(::core::ptr::null_mut());

/// The state. Only for code that runs while the module is loaded: from hooks,
/// work items, the watch, notifiers and the control device.
pub(crate) fn core() -> &'static Core {
    // SAFETY: Set before any of those is started, freed after all of them
    // have been stopped; see `Guard`.
    unsafe { &*CORE.load(Ordering::Acquire) }
}

/// Owns the state. Made before all that uses it, dropped after that.
pub(crate) struct Guard(());

impl Guard {
    pub(crate) fn new() -> Result<Self> {
        let core = Core::new()?;
        CORE.store(Arc::into_raw(core).cast_mut(), Ordering::Release);
        Ok(Self(()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let core = CORE.load(Ordering::Acquire);
        // SAFETY: From `Arc::into_raw` in `new`. Dropping it drains the work
        // queues first, and what runs in them may still ask for the state.
        drop(unsafe { Arc::from_raw(core.cast_const()) });
        CORE.store(::core::ptr::null_mut(), Ordering::Release);
    }
}
