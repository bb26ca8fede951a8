// SPDX-License-Identifier: GPL-2.0

//! Raw sessions: writes to a registered device that no filesystem has.
//!
//! The first such write waits at the volume's *gate* while a worker starts a
//! session of kind `raw`, and what comes meanwhile waits behind it. The session
//! ends with the next claim, with the registration, before a restore, or after
//! `raw_idle_s` without a write.
//!
//! No bio is left at a gate: whoever puts one there queues the worker, a claim
//! that starts a session opens the gate itself, and the watch has it opened
//! when the time limit is over. Then writes pass for a while, as foreign ones.

use crate::core_state::core;
use crate::hook;
use crate::lifecycle::{self, Opening};
use crate::live::{self, Kind as Live, Token};
use crate::pure::format::Kind;
use crate::registry::{Bound, Volume};
use crate::session::{weight, HELD_MAX};
use crate::sys::{self, BioList, HeldBio, NoIo};
use ::core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::{impl_has_work, WorkItem};

/// Time without a write after which the raw session of an image ends.
const IMAGE_IDLE_NS: u64 = 1_000_000_000;
/// Writes pass at least so long when no session could be started.
const LAPSE_NS: u64 = 10_000_000_000;

/// Bios that wait for a raw session.
pub(crate) struct Gate {
    bios: BioList,
    count: u64,
    bytes: u64,
    /// When the first of them came, by `now_awake_ns`.
    since_ns: u64,
}

impl Gate {
    /// With nobody there.
    pub(crate) fn new() -> Self {
        Self { bios: BioList::new(), count: 0, bytes: 0, since_ns: 0 }
    }

    fn is_crowded(&self) -> bool {
        self.bytes > core().params.mem_limit || self.count > HELD_MAX
    }
}

impl_has_work! {
    impl HasWork<Self, 1> for Volume { self.turn_work }
    impl HasWork<Self, 2> for Volume { self.open_work }
}

impl Volume {
    /// Whether a write outside of sessions starts one.
    pub(crate) fn records_raw(&self) -> bool {
        core().params.raw_idle_ns != 0
            && !core().asleep.load(Ordering::Relaxed)
            && self.lapsed_ns.load(Ordering::Relaxed) == 0
            && !self.unprotected.load(Ordering::Relaxed)
            && !self.restoring.load(Ordering::Relaxed)
            && !self.retired.load(Ordering::Relaxed)
            && !self.gone.load(Ordering::Relaxed)
    }

    /// Makes a bio wait for a raw session; hands it back if it has no reason
    /// to any more. Comes back at once, except that a `patient` submitter is
    /// made to wait when many bios do.
    pub(crate) fn wait_at_gate(
        self: &Arc<Self>,
        bio: HeldBio,
        patient: bool,
    ) -> Result<(), HeldBio> {
        let mut gate = self.gate.lock();
        // Whoever starts a session takes this lock once it is armed.
        if self.is_recording() || !self.records_raw() {
            drop(gate);
            return Err(bio);
        }
        bio.prepare();
        if gate.count == 0 {
            gate.since_ns = sys::now_awake_ns();
        }
        gate.count += 1;
        gate.bytes += weight(&bio);
        gate.bios.push(bio);
        live::add(Live::Bios, 1);
        drop(gate);
        self.turn();
        if patient {
            let mut gate = self.gate.lock();
            while gate.is_crowded() {
                self.gate_moved.wait(&mut gate);
            }
        }
        Ok(())
    }

    /// Sends all that wait on to where they belong now: to the session if one
    /// has been started, else to the device.
    pub(crate) fn open_gate(&self) {
        let mut bios = BioList::new();
        let mut gate = self.gate.lock();
        bios.append(&mut gate.bios);
        live::add(Live::Bios, -(gate.count as i64));
        gate.count = 0;
        gate.bytes = 0;
        drop(gate);
        self.gate_moved.notify_all();
        while let Some(bio) = bios.pop() {
            hook::send_on(bio, None);
        }
    }

    /// Whether somebody waits at the gate.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.gate.lock().count != 0
    }

    /// No session could be started: for a while nobody sees what is written.
    pub(crate) fn lapse(&self) {
        self.foreign.store(true, Ordering::Release);
        self.lapsed_ns.store(sys::now_awake_ns().max(1), Ordering::Relaxed);
    }

    /// Has the worker look at what is to be done.
    pub(crate) fn turn(self: &Arc<Self>) {
        let _ = core().queues.raw.queue().enqueue::<Arc<Self>, 1>(self.clone());
    }

    /// Has a raw session, if one runs, ended by the worker.
    pub(crate) fn end_raw(self: &Arc<Self>) {
        if self.is_raw.load(Ordering::Acquire) {
            self.raw_over.store(true, Ordering::Release);
            self.turn();
        }
    }

    /// Ends a raw session, if one runs. The caller has the `turning` lock.
    pub(crate) fn stop_raw(self: &Arc<Self>) {
        let Some(raw) = self.session().filter(|s| s.kind == Kind::Raw) else { return };
        // Nobody else may have it open any more. Whoever opens or closes it may
        // have to wait for held writes; those do not wait for `turning`.
        let opened = raw.disk.open();
        let there = opened.is_ok() && self.bound.lock().as_ref().is_some_and(Bound::is_there);
        lifecycle::stop(self, &raw, there);
    }

    /// A look of the watch. In an RCU read section: queues work, no more.
    pub(crate) fn look(self: &Arc<Self>, now_ns: u64) {
        let p = &core().params;
        let limit_ns = p.hold_timeout_ms * 1_000_000 / 2;
        let overdue = {
            let gate = self.gate.lock();
            let overdue = gate.count != 0 && now_ns.saturating_sub(gate.since_ns) >= limit_ns;
            // Not if a session has just been armed, which opens the gate.
            if overdue && !self.is_recording() {
                self.lapse();
            }
            overdue
        };
        if overdue {
            let _ = core().queues.release.queue().enqueue::<Arc<Self>, 2>(self.clone());
        }
        // An image may be written past its loop device once that is let go:
        // the sooner its session ends, the less of this is unseen.
        let idle_ns =
            if self.image.is_some() { p.raw_idle_ns.min(IMAGE_IDLE_NS) } else { p.raw_idle_ns };
        if self.wrote.swap(false, Ordering::Relaxed) {
            self.last_write_ns.store(now_ns, Ordering::Relaxed);
        } else if now_ns.saturating_sub(self.last_write_ns.load(Ordering::Relaxed)) >= idle_ns {
            self.end_raw();
        }
        let lapsed_ns = self.lapsed_ns.load(Ordering::Relaxed);
        if lapsed_ns != 0
            && !self.is_claimed()
            && now_ns.saturating_sub(lapsed_ns) >= p.raw_idle_ns.max(LAPSE_NS)
        {
            // Not if it has lapsed anew meanwhile.
            let _ =
                self.lapsed_ns.compare_exchange(lapsed_ns, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl WorkItem<1> for Volume {
    type Pointer = Arc<Volume>;

    fn run(this: Arc<Volume>) {
        let _live = Token::new(Live::Works);
        let _noio = NoIo::enter();
        let turning = this.turning.lock();
        if this.raw_over.swap(false, Ordering::AcqRel) {
            this.stop_raw();
        }
        let waiting = this.is_waited_for();
        if waiting && !this.is_claimed() && this.session().is_none() && this.records_raw() {
            match start(&this) {
                Ok(()) => {}
                Err(e) if e == ENXIO => this.unbind(),
                Err(e) => {
                    this.lapse();
                    pr_err!("no raw session could be started: errno {}\n", -e.to_errno());
                }
            }
        }
        // A disk that is gone keeps its name as long as somebody holds it. What
        // becomes of an image without a loop device its time tells.
        if !this.is_claimed() && this.is_orphan() {
            this.stop_raw();
            if this.image.is_none() {
                this.watched.store(false, Ordering::Relaxed);
            }
            this.unprotected.store(false, Ordering::Relaxed);
            this.unbind();
        }
        // They must not come back to the gate for ever.
        let bound = this.bound.lock().is_some();
        if waiting && bound && !this.is_recording() && this.records_raw() {
            this.lapse();
        }
        drop(turning);
        this.open_gate();
    }
}

impl WorkItem<2> for Volume {
    type Pointer = Arc<Volume>;

    /// The time limit is over.
    fn run(this: Arc<Volume>) {
        let _live = Token::new(Live::Works);
        let _noio = NoIo::enter();
        pr_err!("a raw session could not be started in time: writes pass unseen\n");
        this.open_gate();
    }
}

/// ENXIO: another medium is there.
fn start(volume: &Arc<Volume>) -> Result {
    let bound = volume.bound.lock().clone().ok_or(ENODEV)?;
    if !bound.is_there() {
        return Err(ENXIO);
    }
    // One whose store hangs still has its memory: not another one beside it.
    let unfinished = ::core::cell::Cell::new(false);
    core().for_each_session(|s| unfinished.set(unfinished.get() || *s.name == *volume.name));
    if unfinished.get() {
        return Err(EBUSY);
    }
    volume.last_write_ns.store(sys::now_awake_ns(), Ordering::Relaxed);
    let opening = Opening { kind: Kind::Raw, holder: 0, group_id: None, group_incomplete: false };
    lifecycle::start(volume, &bound.disk, &opening)
}
