// SPDX-License-Identifier: GPL-2.0

//! Where the kernel's paths meet ours.
//!
//! For each hook there is a decision, made inside the ftrace callback (no
//! sleeping, no locks; an RCU read section around it), and a replacement that
//! runs instead of the hooked function only where the decision said so, in
//! the caller's context.

use crate::compat::errno;
use crate::core_state::core;
use crate::live;
use crate::params::SABOTAGE_NO_HOLD;
use crate::pure::deadline::LOOKS;
use crate::pure::volume::By;
use crate::registry::{self, Volume, Wait};
use crate::session::Session;
use crate::sys::{self, bio, BioView, Disk, HeldBio, Hook};
use ::core::ptr::null_mut;
use ::core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use kernel::bindings;
use kernel::ffi::{c_int, c_long, c_uint, c_void};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Tasks inside the replacements of bios and claims.
static INSIDE: AtomicU64 = AtomicU64::new(0);
/// Tasks inside our system calls. Apart from the others, since one of these
/// may be the one that removes those hooks.
static INSIDE_CALLS: AtomicU64 = AtomicU64::new(0);

struct Inside(&'static AtomicU64);

impl Inside {
    fn enter(counter: &'static AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::AcqRel);
        Self(counter)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The self-test's bio while one is under way.
static TEST_BIO: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static TEST_HITS: AtomicU32 = AtomicU32::new(0);
const TEST_HITS_MAX: u32 = 16;
/// What the self-test claims with, so that its claims are known.
static TEST_MARK: u8 = 0;

fn test_mark() -> *mut c_void {
    (&raw const TEST_MARK).cast_mut().cast()
}

// --- Bios -------------------------------------------------------------------

/// Whether a bio that changes data may need work: it touches chunks of a
/// recording session that are not saved, or passes a mark. On the way takes note of writes to
/// registered devices outside sessions.
#[no_mangle]
extern "C" fn bdsnap_bio_needs_work(bio: *mut bio) -> bool {
    // SAFETY: The callback's argument: a bio on its way into submission.
    let view = unsafe { BioView::new(bio) };
    if view.bytes() == 0 {
        return TEST_BIO.load(Ordering::Relaxed) == bio.cast();
    }
    // SAFETY: The callback is an RCU read section.
    unsafe { registry::find_wait(&view, None, |_| ()) }.is_some()
}

/// Instead of `submit_bio_noacct`.
#[no_mangle]
extern "C" fn bdsnap_submit(bio: *mut bio) {
    let _inside = Inside::enter(&INSIDE);
    // SAFETY: The caller gives the bio away with this call.
    let Some(bio) = (unsafe { HeldBio::new(bio) }) else { return };
    if bio.view().bytes() == 0 {
        // The self-test's. Some drivers send the same bio on to a path device;
        // many more entries would mean that the call-through runs into the
        // hook.
        if TEST_HITS.fetch_add(1, Ordering::AcqRel) < TEST_HITS_MAX {
            bio.submit();
        } else {
            bio.complete();
        }
        return;
    }
    let patient = !bio.view().is_nowait() && sys::may_throttle();
    send(bio, patient, None);
}

/// Sends a bio on: to a session that must hold it (a first or, behind the one
/// that has just let it go, another), to wait for one, or to its device. `from`
/// is the session that lets it go, if any.
pub(crate) fn send_on(bio: HeldBio, from: Option<&Session>) {
    // What works for a session must not wait for another one.
    send(bio, false, from);
}

/// The same for a submitter that waits, if it is `patient`, when much is held.
fn send(mut bio: HeldBio, patient: bool, from: Option<&Session>) {
    enum Next {
        Session(Arc<Session>),
        Gate(Arc<Volume>),
        Mark(Arc<Session>, u64),
    }
    loop {
        let next = {
            let _rcu = kernel::sync::rcu::read_lock();
            // SAFETY: In an RCU read section.
            unsafe {
                registry::find_wait(&bio.view(), from, |wait| match wait {
                    Wait::Session(s) => Next::Session(s.clone()),
                    Wait::Gate(v) => Next::Gate(v.clone()),
                    Wait::Mark(s, end) => Next::Mark(s.clone(), end),
                })
            }
        };
        match next {
            Some(Next::Session(session)) => return session.park(bio, patient),
            Some(Next::Gate(volume)) => match volume.wait_at_gate(bio, patient) {
                Ok(()) => return,
                Err(back) => bio = back,
            },
            Some(Next::Mark(session, end)) => session.pass_mark(end),
            None => return bio.submit(),
        }
    }
}

/// A request that changes data goes to a disk without a bio. `hidden`: to one that nobody
/// sees, below another one.
#[no_mangle]
extern "C" fn bdsnap_saw_request(disk: *mut sys::gendisk, hidden: bool) {
    // SAFETY: The callback's argument: a disk to which a request is sent.
    registry::saw_request(unsafe { sys::disk_id(disk) }, hidden);
}

// --- Claims -----------------------------------------------------------------

/// Instead of `bdev_file_open_by_dev`, for callers that claim.
#[no_mangle]
extern "C" fn bdsnap_open(
    dev: u32,
    mode: u32,
    holder: *mut c_void,
    hops: *const c_void,
) -> *mut bindings::file {
    let _inside = Inside::enter(&INSIDE);
    if hops == test_mark().cast_const() {
        TEST_HITS.fetch_add(1, Ordering::AcqRel);
    }
    // SAFETY: The caller's own arguments.
    let file = unsafe { sys::orig_open(dev, mode, holder, hops) };
    if kernel::error::from_err_ptr(file).is_ok() && !file.is_null() {
        // SAFETY: The original has just opened it.
        unsafe { crate::claim::opened(file, mode, holder) };
    }
    file
}

/// Whether a block device file may be one of a claim.
#[no_mangle]
extern "C" fn bdsnap_fput_needs_work(_file: *mut bindings::file) -> bool {
    crate::claim::any()
}

/// Instead of `bdev_fput`.
#[no_mangle]
extern "C" fn bdsnap_fput(file: *mut bindings::file) {
    let _inside = Inside::enter(&INSIDE);
    crate::claim::closing(file);
    // SAFETY: The caller's own argument.
    unsafe { sys::orig_fput(file) }
}

// --- System calls -----------------------------------------------------------

/// Whether an unused system call's number is one of ours.
#[no_mangle]
extern "C" fn bdsnap_syscall_is_ours(nr: c_uint) -> bool {
    let p = &core().params;
    nr != 0 && (nr == p.sysc_activate || nr == p.sysc_deactivate)
}

/// Instead of `sys_ni_syscall`, for our numbers.
#[no_mangle]
extern "C" fn bdsnap_syscall(regs: *const bindings::pt_regs) -> c_long {
    let _inside = Inside::enter(&INSIDE_CALLS);
    // SAFETY: The registers with which the task entered the kernel.
    let (nr, name, password) = unsafe { ((*regs).orig_ax as u32, (*regs).di, (*regs).si) };
    let on = nr == core().params.sysc_activate;
    match crate::control::system_call(on, name, password) {
        Ok(()) => 0,
        Err(e) => e.to_errno() as c_long,
    }
}

// --- Installation -----------------------------------------------------------

/// With their functions, in words for people.
const CLAIM_AND_BIO: [(Hook, &str); 6] = [
    (Hook::Submit, "submit_bio_noacct"),
    (Hook::Open, "bdev_file_open_by_dev"),
    (Hook::Fput, "bdev_fput"),
    (Hook::Execute, "blk_execute_rq"),
    (Hook::ExecuteNowait, "blk_execute_rq_nowait"),
    (Hook::Cloned, "blk_insert_cloned_request"),
];

/// Installs the hooks on bios and claims, all or none.
pub(crate) fn install() -> Result {
    if core().hooks.load(Ordering::Acquire) {
        return Ok(());
    }
    if core().params.sabotage & SABOTAGE_NO_HOLD != 0 {
        // The tests' oracle must be able to fail.
        return Ok(());
    }
    for (i, &(hook, name)) in CLAIM_AND_BIO.iter().enumerate() {
        if let Err(e) = sys::hook_install(hook) {
            pr_err!(
                "{} cannot be hooked (errno {}): does a live patch or a tracer redirect it?\n",
                name,
                -e.to_errno()
            );
            CLAIM_AND_BIO[..i].iter().for_each(|&(h, _)| sys::hook_remove(h));
            return Err(EBUSY);
        }
    }
    core().hooks.store(true, Ordering::Release);
    Ok(())
}

/// Removes them. Nothing may be registered any more.
pub(crate) fn remove() {
    if core().hooks.swap(false, Ordering::AcqRel) {
        core().self_test.store(u32::MAX, Ordering::Release);
        CLAIM_AND_BIO.iter().for_each(|&(h, _)| sys::hook_remove(h));
        leave(&INSIDE);
        core().claims.lock().clear();
    }
}

/// Waits until nobody is in a replacement that counts there.
fn leave(counter: &AtomicU64) {
    while counter.load(Ordering::Acquire) != 0 {
        sys::sleep(1);
    }
    // Whoever has just counted itself out has a few instructions to go.
    sys::synchronize_rcu_tasks();
}

/// The hook behind the system calls, from load to unload.
pub(crate) struct SystemCalls(());

impl SystemCalls {
    /// If it cannot be had the control device serves alone.
    pub(crate) fn new() -> Self {
        let p = &core().params;
        if p.sysc_activate != 0 || p.sysc_deactivate != 0 {
            match sys::hook_install(Hook::Syscall) {
                Ok(()) => core().syscalls.store(true, Ordering::Release),
                Err(e) => pr_warn!("no system calls (errno {}), only ioctls\n", -e.to_errno()),
            }
        }
        Self(())
    }
}

impl Drop for SystemCalls {
    fn drop(&mut self) {
        sys::hook_remove(Hook::Syscall);
        leave(&INSIDE_CALLS);
    }
}

/// Proves that the hooks fire and that the call-throughs do not loop: a claim
/// that must fail, and, where a device is there, an empty flush.
pub(crate) fn self_test(disk: Option<Disk<'_>>) -> Result {
    if !core().hooks.load(Ordering::Acquire) {
        return Ok(());
    }
    // Once is enough, and the kernel looks for a driver each time.
    if core().self_test.load(Ordering::Acquire) != 0 {
        TEST_HITS.store(0, Ordering::Release);
        // SAFETY: Device 0:0 does not exist: the original fails without a look
        // at the other arguments. The call is one like any other in the kernel:
        // our own call-throughs are known by their addresses.
        let file = unsafe {
            bindings::bdev_file_open_by_dev(0, 1, test_mark(), test_mark().cast_const().cast())
        };
        if kernel::error::from_err_ptr(file).is_ok() || TEST_HITS.load(Ordering::Acquire) != 1 {
            return Err(EIO);
        }
    }
    if let Some(disk) = disk {
        TEST_HITS.store(0, Ordering::Release);
        // A drive without a cache, or one that cannot flush, is no failure.
        let _ = disk.self_test(&TEST_BIO);
        if !(1..=TEST_HITS_MAX).contains(&TEST_HITS.load(Ordering::Acquire)) {
            return Err(EIO);
        }
    }
    Ok(())
}

// --- Notifiers and watch ----------------------------------------------------

/// Longest time between two ticks, in milliseconds.
const TICK_MS: u64 = 250;

/// The time between two ticks, in milliseconds, and how many of them there are
/// between two looks at held bios.
pub(crate) fn ticks(hold_timeout_ms: u64) -> (u64, u64) {
    let look_ms = hold_timeout_ms / LOOKS as u64;
    let n = look_ms.div_ceil(TICK_MS).max(1);
    (look_ms / n, n)
}

/// Called regularly. Allocates nothing: it may be what frees memory.
#[no_mangle]
extern "C" fn bdsnap_tick() {
    static TICK: AtomicU64 = AtomicU64::new(0);
    let (_, looks_at) = ticks(core().params.hold_timeout_ms);
    if TICK.fetch_add(1, Ordering::Relaxed) % looks_at == 0 {
        core().for_each_session(|session| session.look());
    }
    core().for_each_session(|session| {
        let place = &session.place;
        let another =
            session.origin.look(|open| open.disk().is_alive() && open.disk().id() != place.id);
        if session.by == By::Claim && another == Some(true) {
            // What is written now is saved, but it is another medium's.
            session.break_with(errno(bindings::ESTALE), session.geo.on_disk().start);
        }
    });
    if core().asleep.load(Ordering::Acquire) {
        return;
    }
    let now_ns = sys::now_awake_ns();
    registry::for_each_bound(|volume| volume.look(now_ns));
}

/// Times 20 ms that a reboot waits for memory to reach the store.
const REBOOT_LOOKS: u32 = 250;

/// Times 20 ms that hibernation waits for the store to be left alone.
const HIBERNATE_LOOKS: u32 = 3000;

/// Before a reboot or a power-off: what is in memory goes to the store.
#[no_mangle]
extern "C" fn bdsnap_on_reboot() -> c_int {
    // The image of the memory is written: the store must be what that knows.
    if core().asleep.load(Ordering::Acquire) {
        return 0;
    }
    registry::for_each_bound(|volume| volume.end_raw());
    core().for_each_session(|session| {
        session.kick_reader();
        session.kick_writer();
    });
    // In `async` some of it may be in memory only.
    for _ in 0..REBOOT_LOOKS {
        let busy = AtomicU64::new(0);
        core().for_each_session(|s| {
            let raw = u64::from(s.by == By::RawWrite);
            busy.fetch_add(s.in_memory.load(Ordering::Relaxed) + raw, Ordering::Relaxed);
        });
        if busy.load(Ordering::Relaxed) == 0 {
            break;
        }
        sys::sleep(20);
    }
    0
}

/// Before hibernation: what is written from the image's making on cannot be
/// followed, and nothing may be written to the store any more, which the image
/// knows as it is now.
#[no_mangle]
extern "C" fn bdsnap_on_hibernate() {
    if let Err(e) = registry::stop_raw() {
        pr_err!("ending raw sessions: errno {}\n", -e.to_errno());
    }
    core().asleep.store(true, Ordering::Release);
    core().for_each_session(|session| {
        session.break_with(errno(bindings::ECANCELED), session.geo.on_disk().start);
    });
    // Each says so in the store, while it still may: also one that takes its time.
    for _ in 0..HIBERNATE_LOOKS {
        let busy = AtomicBool::new(false);
        core().for_each_session(|s| {
            let syncs = s.syncer.lock().is_busy();
            busy.fetch_or(syncs || !s.marked.load(Ordering::Acquire), Ordering::Relaxed);
        });
        if !busy.load(Ordering::Relaxed) {
            break;
        }
        sys::sleep(20);
    }
}

/// After it, or when it was given up.
#[no_mangle]
extern "C" fn bdsnap_on_wake() {
    core().asleep.store(false, Ordering::Release);
}

/// Says in the log what is still alive; all must be zero.
pub(crate) fn log_live() {
    let l = live::counts();
    pr_info!(
        "unloaded; live objects: bios={} pages={} sessions={} files={} works={} volumes={} claims={} slices={}\n",
        l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7]
    );
}
