// SPDX-License-Identifier: GPL-2.0

//! Raw sessions: writes to a registered device that no filesystem has.
//!
//! The first such write waits at the volume's *gate* while a worker starts a
//! session of kind `raw`, and what comes meanwhile waits behind it. The session
//! ends with the next claim, with the registration, before a restore, or after
//! `raw_idle_s` without a write. What the next session will compare the device with is looked up
//! soon after the last write: then the disk need not be opened at the end.
//!
//! Opening and closing a disk takes its lock, and who has that may wait for a write that waits at the gate, or
//! is held. So whoever those need opens nothing: a session is started through the disk of a bio at the
//! gate, which is *pinned* there meanwhile. A look at the end opens the disk in a work item
//! of its own, before it takes `turning`, and closes it after.
//!
//! No bio is left at a gate: whoever puts one there queues the worker, a claim
//! that starts a session opens the gate itself, and the watch has it opened
//! when the time limit is over. Then writes pass for a while, as foreign ones.

use crate::core_state::core;
use crate::hook;
use crate::lifecycle::{self, Opening, Seen};
use crate::live::{self, Kind as Live, Token};
use crate::pure::volume::{By, Place};
use crate::registry::{self, Volume};
use crate::session::{weight, Session, HELD_MAX};
use crate::sys::{self, BioList, Disk, HeldBio, NoIo, OpenDisk};
use ::core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::{impl_has_work, WorkItem};

/// Time without a write after which the raw session of an image ends.
const IMAGE_IDLE_NS: u64 = 1_500_000_000;
/// Time without a write after which a raw session's device is looked at, for its end. The watch comes by
/// twice a second, so that this is over a second after the last write.
const LOOK_NS: u64 = 300_000_000;
/// How often somebody who ends a raw session looks anew because there was a write.
const TRIES: u32 = 3;
/// Writes pass at least so long when no session could be started.
const LAPSE_NS: u64 = 10_000_000_000;

/// Bios that wait for a raw session.
pub(crate) struct Gate {
    bios: BioList,
    count: u64,
    bytes: u64,
    /// When the first of them came, by `now_awake_ns`.
    since_ns: u64,
    /// Who uses the disk that they keep open; they don't go meanwhile.
    pins: u32,
    /// Who waits to let them go: nobody uses the disk anew.
    openers: u32,
    /// So does the watch, for whom the last pin queues the work.
    overdue: bool,
}

/// The disk of a bio at a volume's gate, which stays there as long as this lives. So that is for short, with
/// nothing to wait for but the disk.
pub(crate) struct Pin<'a> {
    disk: Disk<'a>,
    volume: &'a Arc<Volume>,
}

impl Pin<'_> {
    pub(crate) fn disk(&self) -> Disk<'_> {
        self.disk
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut gate = self.volume.gate.lock();
        gate.pins -= 1;
        let opens = gate.overdue && gate.pins == 0;
        drop(gate);
        self.volume.gate_moved.notify_all();
        if opens {
            self.volume.open_overdue();
        }
    }
}

impl Gate {
    /// With nobody there.
    pub(crate) fn new() -> Self {
        Self {
            bios: BioList::new(),
            count: 0,
            bytes: 0,
            since_ns: 0,
            pins: 0,
            openers: 0,
            overdue: false,
        }
    }

    fn is_crowded(&self) -> bool {
        self.bytes > core().params.mem_limit || self.count > HELD_MAX
    }
}

impl_has_work! {
    impl HasWork<Self, 1> for Volume { self.turn_work }
    impl HasWork<Self, 2> for Volume { self.open_work }
    impl HasWork<Self, 3> for Volume { self.end_work }
}

impl Volume {
    /// Whether a write outside of sessions starts one.
    pub(crate) fn records_raw(&self) -> bool {
        !core().asleep.load(Ordering::Relaxed) && self.state().records_raw()
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

    /// The disk of those that wait at the gate; `None` if nobody does, or for another one, or they are
    /// about to go.
    pub(crate) fn pin_gate<'a>(self: &'a Arc<Self>, place: &Place) -> Option<Pin<'a>> {
        let mut gate = self.gate.lock();
        if gate.openers != 0 || gate.overdue {
            return None;
        }
        // SAFETY: It is used for as long as the pin lives, and so long they are not let go. What is read
        // through it has ended then.
        let disk = unsafe { gate.bios.lend(place.id.address) }?;
        gate.pins += 1;
        Some(Pin { disk, volume: self })
    }

    /// Sends all that wait on to where they belong now: to the session if one
    /// has been started, else to the device.
    pub(crate) fn open_gate(&self) {
        let mut bios = BioList::new();
        let mut gate = self.gate.lock();
        gate.openers += 1;
        while gate.pins != 0 {
            self.gate_moved.wait(&mut gate);
        }
        gate.openers -= 1;
        gate.overdue = false;
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

    /// Has the gate opened by the watch's work item.
    fn open_overdue(self: &Arc<Self>) {
        let _ = core().queues.release.queue().enqueue::<Arc<Self>, 2>(self.clone());
    }

    /// Whether somebody waits at the gate.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.gate.lock().count != 0
    }

    /// No session could be started: for a while nobody sees what is written.
    pub(crate) fn lapse(&self) {
        self.change(|state| state.lapse(sys::now_awake_ns()));
    }

    /// Has the worker look at what is to be done.
    pub(crate) fn turn(self: &Arc<Self>) {
        let _ = core().queues.raw.queue().enqueue::<Arc<Self>, 1>(self.clone());
    }

    /// Has a raw session, if one runs, ended by the worker.
    pub(crate) fn end_raw(self: &Arc<Self>) {
        if self.state().is_raw() {
            self.raw_over.store(true, Ordering::Release);
            self.turn_end();
        }
    }

    fn turn_end(self: &Arc<Self>) {
        let _ = core().queues.end.queue().enqueue::<Arc<Self>, 3>(self.clone());
    }

    pub(crate) fn raw(&self) -> Option<Arc<Session>> {
        self.session().filter(|s| s.by == By::RawWrite)
    }

    /// Whether the device has been looked at since the last write.
    pub(crate) fn has_look(&self) -> bool {
        // In this order, see `Volume::look`.
        let wrote = self.wrote.load(Ordering::Acquire);
        self.looked.load(Ordering::Acquire) && !wrote
    }

    /// Whether what its end needs to know is there.
    fn has_seen(&self) -> bool {
        self.has_look() && self.raw().is_some_and(|raw| raw.seen.lock().is_some())
    }

    /// Opens the disk of the raw session, if one runs and its end needs that: for [`Volume::stop_raw`]. Not for
    /// whoever has `turning`, and not to be closed by that either.
    pub(crate) fn open_raw(&self) -> Option<OpenDisk> {
        let raw = self.raw().filter(|_| !self.has_seen())?;
        // Nothing if it is gone.
        OpenDisk::at(&raw.place).ok()
    }

    /// Ends a raw session, if one runs. The caller has the `turning` lock. `open`: its disk, if it is needed and
    /// could be had.
    pub(crate) fn stop_raw(self: &Arc<Self>, open: Option<&OpenDisk>) {
        if let Some(raw) = self.raw() {
            lifecycle::stop(self, &raw, open);
        }
    }

    /// The same for whoever has no lock yet. Not where memory may be had by writing to the device.
    pub(crate) fn stop_raw_alone(self: &Arc<Self>) {
        for _ in 0..TRIES {
            let open = self.open_raw();
            let turning = self.turning.lock();
            // A write, or a session, came meanwhile: once more, with the disk.
            let done = open.is_some() || self.raw().is_none() || self.has_seen();
            if done {
                self.stop_raw(open.as_ref());
            }
            drop(turning);
            if done {
                return;
            }
        }
        let _turning = self.turning.lock();
        self.stop_raw(None);
    }

    /// A look of the watch. In an RCU read section: queues work, no more.
    pub(crate) fn look(self: &Arc<Self>, now_ns: u64) {
        let p = &core().params;
        let limit_ns = p.hold_timeout_ms * 1_000_000 / 2;
        let overdue = {
            let gate = self.gate.lock();
            let old = gate.count != 0 && now_ns.saturating_sub(gate.since_ns) >= limit_ns;
            // Not if a session has just been armed: whoever did that opens the gate.
            let overdue = old && !self.is_recording();
            if overdue {
                self.lapse();
            }
            overdue
        };
        if overdue {
            self.open_overdue();
        }
        // An image may be written past its loop device once that is let go:
        // the sooner its session ends, the less of this is unseen.
        let idle_ns =
            if self.image.is_some() { p.raw_idle_ns.min(IMAGE_IDLE_NS) } else { p.raw_idle_ns };
        if self.wrote.load(Ordering::Relaxed) || self.holds_raw() {
            // In this order: who sees no write must not take an old look for one after it.
            self.looked.store(false, Ordering::Release);
            self.wrote.store(false, Ordering::Release);
            self.last_write_ns.store(now_ns, Ordering::Relaxed);
        } else {
            let quiet_ns = now_ns.saturating_sub(self.last_write_ns.load(Ordering::Relaxed));
            // Another medium: what is written now is none of its business.
            if quiet_ns >= idle_ns || self.state().has_another_medium() {
                self.end_raw();
            } else if quiet_ns >= LOOK_NS && !self.looked.load(Ordering::Relaxed) {
                self.turn_end();
            }
        }
        let limit_ns = p.raw_idle_ns.max(LAPSE_NS);
        self.change(|state| match state.lapsed_ns() {
            Some(since_ns)
                if !state.is_claimed() && now_ns.saturating_sub(since_ns) >= limit_ns =>
            {
                state.resume(since_ns);
            }
            _ => {}
        });
    }
}

impl WorkItem<1> for Volume {
    type Pointer = Arc<Volume>;

    fn run(this: Arc<Volume>) {
        let _live = Token::new(Live::Works);
        let _noio = NoIo::enter();
        let turning = this.turning.lock();
        let waiting = this.is_waited_for();
        let mut strangers = false;
        if waiting && !this.is_claimed() && this.session().is_none() && this.records_raw() {
            match start(&this) {
                Ok(()) => {}
                Err(e) if e == ENXIO => {
                    // What waits goes on, unsaved.
                    this.was_written();
                    unbind(&this);
                }
                // For another place, which it was at before.
                Err(e) if e == EAGAIN => strangers = true,
                Err(e) => {
                    this.lapse();
                    pr_err!("no raw session could be started: errno {}\n", -e.to_errno());
                }
            }
        }
        // They must not come back to the gate for ever.
        let bound = this.place().is_some();
        if waiting && bound && !strangers && !this.is_recording() && this.records_raw() {
            this.lapse();
        }
        drop(turning);
        this.open_gate();
    }
}

/// Its disk, or the medium, is gone.
fn unbind(volume: &Arc<Volume>) {
    volume.change(|state| {
        // What becomes of an image without a loop device its time tells.
        if volume.image.is_none() {
            state.lose_sight();
        }
        state.set_unprotected(false);
    });
    if let Err(e) = registry::bind(volume, None) {
        pr_err!("table of devices: errno {}\n", -e.to_errno());
    }
}

impl WorkItem<3> for Volume {
    type Pointer = Arc<Volume>;

    /// The end of a raw session, or a look for it.
    fn run(this: Arc<Volume>) {
        let _live = Token::new(Live::Works);
        let _noio = NoIo::enter();
        let over = this.raw_over.swap(false, Ordering::AcqRel);
        if !over && this.raw().is_none_or(|raw| raw.is_broken()) {
            // There is nothing to look for.
            return this.looked.store(true, Ordering::Release);
        }
        let fresh = this.has_seen();
        // Whoever wants to take the disk away right now is told that it is busy.
        let open = this.open_raw();
        let turning = this.turning.lock();
        if !over {
            if let Some(open) = &open {
                look_for_end(&this, open);
            }
        } else if fresh && !this.has_seen() {
            // There was a write meanwhile. Once more, with the disk.
            this.end_raw();
        } else {
            this.stop_raw(open.as_ref());
        }
        // It is closed without.
        drop(turning);
    }
}

/// Looks at what a raw session has left, while nobody writes.
fn look_for_end(volume: &Arc<Volume>, open: &OpenDisk) {
    let Some(raw) = volume.raw() else { return };
    let quiet = || !volume.wrote.load(Ordering::Acquire) && raw.queue.lock().holding() == 0;
    // It may be another session's by now.
    let own = lifecycle::tells_of(volume, &raw, open);
    if !own || volume.looked.load(Ordering::Relaxed) || !quiet() || raw.is_broken() {
        return;
    }
    *raw.seen.lock() = None;
    volume.looked.store(true, Ordering::Release);
    let seen = Seen::of(volume, &raw, open);
    // Else a write came meanwhile; there will be another look.
    if quiet() {
        *raw.seen.lock() = seen.ok();
    }
}

impl WorkItem<2> for Volume {
    type Pointer = Arc<Volume>;

    /// The time limit is over.
    fn run(this: Arc<Volume>) {
        let _live = Token::new(Live::Works);
        let _noio = NoIo::enter();
        {
            let mut gate = this.gate.lock();
            if gate.pins != 0 {
                // Releasers of other sessions stand in the same queue.
                gate.overdue = true;
                return;
            }
        }
        pr_err!("a raw session could not be started in time: writes pass unseen\n");
        this.open_gate();
    }
}

/// ENXIO: another medium is there. EAGAIN: nobody waits for it here any more.
fn start(volume: &Arc<Volume>) -> Result {
    let place = volume.place().ok_or(EAGAIN)?;
    if !volume.pin_gate(&place).ok_or(EAGAIN)?.disk().has(&place) {
        return Err(ENXIO);
    }
    // One whose store hangs still has its memory: not another one beside it.
    let unfinished = ::core::cell::Cell::new(false);
    core().for_each_session(|s| unfinished.set(unfinished.get() || *s.name == *volume.name));
    if unfinished.get() {
        return Err(EBUSY);
    }
    volume.last_write_ns.store(sys::now_awake_ns(), Ordering::Relaxed);
    volume.looked.store(false, Ordering::Relaxed);
    volume.raw_over.store(false, Ordering::Relaxed);
    let opening = Opening { by: By::RawWrite, holder: 0, group_id: None, group_incomplete: false };
    lifecycle::start(volume, None, &opening)
}
