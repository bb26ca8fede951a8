// SPDX-License-Identifier: GPL-2.0

//! Which devices are registered, and where their sectors are.
//!
//! The list is for control calls and claims, under a mutex. From it a table
//! is made for the hook, by disk, that is replaced as a whole and read under
//! RCU: an unregistered device costs one look into it. Nothing here keeps a
//! disk, nor its driver.

use crate::compat::errno;
use crate::core_state::core;
use crate::live::{Kind as Live, Token};
use crate::pure::format::{Durability, LATE_NAME, SERIAL_MAX};
use crate::pure::plan::Sectors;
use crate::pure::volume::{By, DiskId, Link, Meets, Place, State, ANOTHER_MEDIUM, RESTORED, WROTE};
use crate::raw::Gate;
use crate::session::{errno_of, Session, Summary};
use crate::sys::{self, BioView, OpenDisk};
use ::core::mem::ManuallyDrop;
use ::core::ptr::null_mut;
use ::core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_condvar, new_mutex, new_spinlock, Arc, CondVar, Mutex, SpinLock};
use kernel::workqueue::{new_work, Work};

/// What a volume is, and its sessions.
pub(crate) struct Life {
    /// What all who deal with the volume go by.
    state: State,
    /// The running session.
    session: Option<Arc<Session>>,
    /// What is left of the last session, for the status.
    pub(crate) last: Option<Summary>,
}

/// Volumes that were mounted when they were registered and have not been unmounted.
static UNPROTECTED: AtomicU64 = AtomicU64::new(0);

/// Whether there are any such ones.
pub(crate) fn any_unprotected() -> bool {
    UNPROTECTED.load(Ordering::Acquire) != 0
}

/// What a device is recognised by, besides its name; see [`crate::pure::ioctl::Identify`].
///
/// # Invariants
///
/// `serial_len` is at most [`SERIAL_MAX`].
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    /// The medium that it was asked of; 0: nothing is known.
    diskseq: u64,
    pub(crate) partuuid: [u8; 16],
    serial_len: usize,
    serial: [u8; SERIAL_MAX],
}

impl Identity {
    /// Nothing is known.
    const NONE: Self =
        Self { diskseq: 0, partuuid: [0; 16], serial_len: 0, serial: [0; SERIAL_MAX] };

    /// EINVAL if `serial` is too long.
    pub(crate) fn new(diskseq: u64, partuuid: [u8; 16], serial: &[u8]) -> Result<Self> {
        let mut own = Self { diskseq, partuuid, ..Self::NONE };
        own.serial.get_mut(..serial.len()).ok_or(EINVAL)?.copy_from_slice(serial);
        // INVARIANT: It fits.
        own.serial_len = serial.len();
        Ok(own)
    }

    pub(crate) fn serial(&self) -> &[u8] {
        &self.serial[..self.serial_len]
    }
}

/// A registered device.
///
/// # Invariants
///
/// * `recording` is null or the address of a session that `life.session` keeps
///   until an RCU grace period after it has become null.
/// * `meets` is what `life.state` says, as of the last change.
/// * `life.state`'s place is in the hook's table, wherever the registry's lock is not held.
#[pin_data(PinnedDrop)]
pub(crate) struct Volume {
    /// The name as registered, absolute.
    pub(crate) name: KVec<u8>,
    /// For an image file: its path without links, as a loop device says it.
    pub(crate) image: Option<KVec<u8>>,
    /// When its sessions let writes go.
    pub(crate) durability: Durability,
    /// Held while a session is started or ended, or the place changes.
    #[pin]
    pub(crate) turning: Mutex<()>,
    #[pin]
    life: SpinLock<Life>,
    recording: AtomicPtr<Session>,
    /// For the hook: a [`Meets`].
    meets: AtomicU32,
    /// For the hook: whose writes are the restore's.
    restorer: AtomicI32,
    /// The hook's notes: [`WROTE`] and the others.
    notes: AtomicU32,
    /// What it is recognised by.
    #[pin]
    identity: SpinLock<Identity>,
    /// Why it cannot be protected; 0: it can.
    pub(crate) refused: AtomicU32,
    /// Bytes that were written past the hook, by the disk's statistics, at the last look.
    pub(crate) unseen_bytes: AtomicU64,
    /// Others wrote during the last restore.
    pub(crate) others_restored: AtomicBool,
    /// The raw session is to be ended.
    pub(crate) raw_over: AtomicBool,
    /// What its end needs to know has been looked at since the last write.
    pub(crate) looked: AtomicBool,
    /// There was a write in it since the watch last looked.
    pub(crate) wrote: AtomicBool,
    /// When the watch saw that, ns since boot.
    pub(crate) last_write_ns: AtomicU64,
    /// Bios that wait for a raw session; see `raw.rs`.
    #[pin]
    pub(crate) gate: SpinLock<Gate>,
    #[pin]
    pub(crate) gate_moved: CondVar,
    #[pin]
    pub(crate) turn_work: Work<Volume, 1>,
    #[pin]
    pub(crate) open_work: Work<Volume, 2>,
    #[pin]
    pub(crate) end_work: Work<Volume, 3>,
    _live: Token,
}

#[pinned_drop]
impl PinnedDrop for Volume {
    fn drop(self: Pin<&mut Self>) {
        self.change(|state| state.set_unprotected(false));
    }
}

impl Volume {
    /// A registration without a session.
    pub(crate) fn new(
        name: &[u8],
        image: Option<KVec<u8>>,
        durability: Durability,
        place: Option<Place>,
    ) -> Result<Arc<Self>> {
        let mut own = KVec::new();
        own.extend_from_slice(name, GFP_KERNEL)?;
        let state = State::new(place, core().params.raw_idle_ns != 0);
        // INVARIANT: The registry, which takes it in, publishes its place.
        Arc::pin_init(
            pin_init!(Self {
                name: own,
                image,
                durability,
                turning <- new_mutex!((), "bdsnap::Volume::turning"),
                life <- new_spinlock!(
                    Life { state, session: None, last: None },
                    "bdsnap::Volume::life"
                ),
                recording: AtomicPtr::new(null_mut()),
                meets: AtomicU32::new(state.meets() as u32),
                restorer: AtomicI32::new(0),
                notes: AtomicU32::new(0),
                identity <- new_spinlock!(Identity::NONE, "bdsnap::Volume::identity"),
                refused: AtomicU32::new(0),
                unseen_bytes: AtomicU64::new(0),
                others_restored: AtomicBool::new(false),
                raw_over: AtomicBool::new(false),
                looked: AtomicBool::new(false),
                wrote: AtomicBool::new(false),
                last_write_ns: AtomicU64::new(0),
                gate <- new_spinlock!(Gate::new(), "bdsnap::Volume::gate"),
                gate_moved <- new_condvar!("bdsnap::Volume::gate_moved"),
                turn_work <- new_work!("bdsnap::turn"),
                open_work <- new_work!("bdsnap::open"),
                end_work <- new_work!("bdsnap::end"),
                _live: Token::new(Live::Volumes),
            }),
            GFP_KERNEL,
        )
    }

    /// The one way in which the state changes: with what the hook has noted, and published
    /// for it. `change` runs under a spin lock.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut life = self.life.lock();
        let state = &mut life.state;
        let before = state.is_unprotected();
        state.take_notes(self.notes.swap(0, Ordering::AcqRel));
        let result = change(state);
        // INVARIANT: Under the lock.
        self.meets.store(state.meets() as u32, Ordering::Release);
        match (before, state.is_unprotected()) {
            (false, true) => _ = UNPROTECTED.fetch_add(1, Ordering::AcqRel),
            (true, false) => _ = UNPROTECTED.fetch_sub(1, Ordering::AcqRel),
            _ => {}
        }
        result
    }

    /// The state as it is now.
    pub(crate) fn state(&self) -> State {
        self.change(|state| *state)
    }

    /// Where it is, if it is there.
    pub(crate) fn place(&self) -> Option<Place> {
        self.life.lock().state.place()
    }

    /// The state, the running session and what is left of the last one.
    pub(crate) fn shown(&self) -> (State, Option<Arc<Session>>, Option<Summary>) {
        let state = self.state();
        let life = self.life.lock();
        (state, life.session.clone(), life.last)
    }

    /// From now on the hook leads writes to `session`, which must be the one that
    /// [`Volume::adopt`] got. ESTALE if the hook does not know this place: then it
    /// saves nothing.
    pub(crate) fn arm(&self, session: &Arc<Session>, by: By) -> Result {
        self.change(|state| {
            let armed = state.arm(by);
            if armed.is_ok() {
                // INVARIANT: The caller has put it into `life.session`.
                self.recording.store(Arc::as_ptr(session).cast_mut(), Ordering::Release);
            }
            armed
        })
        .map_err(|_| EBUSY)?;
        if is_published(self, &session.place) {
            Ok(())
        } else {
            Err(errno(kernel::bindings::ESTALE))
        }
    }

    /// No longer. When this comes back no write is on its way to the session.
    pub(crate) fn disarm(&self) {
        self.change(|state| {
            state.disarm();
            self.recording.store(null_mut(), Ordering::Release);
        });
        sys::synchronize_rcu();
    }

    /// The session that is about to begin.
    pub(crate) fn adopt(&self, session: Arc<Session>) {
        let old = self.life.lock().session.replace(session);
        drop(old);
    }

    /// The session is over: `link` is what is known from now on.
    pub(crate) fn let_go(&self, session: &Session, link: Link) {
        self.change(|state| state.end(link));
        let summary = Summary::of(session);
        let old = {
            let mut life = self.life.lock();
            life.last = Some(summary);
            life.session.take()
        };
        drop(old);
    }

    /// Whether the hook leads writes to a session.
    pub(crate) fn is_recording(&self) -> bool {
        !self.recording.load(Ordering::Acquire).is_null()
    }

    /// The running session.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.life.lock().session.clone()
    }

    /// Whether a raw session holds something now. Does not sleep.
    pub(crate) fn holds_raw(&self) -> bool {
        let life = self.life.lock();
        let raw = life.session.as_ref().filter(|s| s.by == By::RawWrite);
        raw.is_some_and(|s| s.queue.lock().holding() != 0)
    }

    /// Whether it is bound to this disk, whatever its medium.
    pub(crate) fn is_on(&self, id: DiskId) -> bool {
        self.place().is_some_and(|p| p.id.address == id.address)
    }

    /// What it is recognised by, from now on.
    pub(crate) fn identify(&self, identity: Identity) {
        *self.identity.lock() = identity;
    }

    /// What is known of the medium at this place.
    pub(crate) fn identity(&self, place: &Place) -> Identity {
        Some(*self.identity.lock()).filter(|i| i.diskseq == place.id.seq).unwrap_or(Identity::NONE)
    }

    /// Whether a filesystem holds it.
    pub(crate) fn is_claimed(&self) -> bool {
        self.life.lock().state.is_claimed()
    }

    /// Writes of this task group are the restore's.
    pub(crate) fn set_restorer(&self, tgid: i32) {
        self.restorer.store(tgid, Ordering::Release);
    }

    /// Something was written outside of sessions.
    pub(crate) fn was_written(&self) {
        self.note(WROTE);
    }

    fn note(&self, note: u32) {
        // Loads first: the line is written only once.
        if self.notes.load(Ordering::Relaxed) & note == 0 {
            self.notes.fetch_or(note, Ordering::AcqRel);
        }
    }

    /// A write meets the volume while no session records. True: it has to wait
    /// for one. Else takes note of it.
    fn meets_gate(&self) -> bool {
        let note = match Meets::from_number(self.meets.load(Ordering::Acquire)) {
            Meets::Gate if !core().asleep.load(Ordering::Relaxed) => return true,
            Meets::Restore if sys::current_tgid() == self.restorer.load(Ordering::Relaxed) => {
                RESTORED
            }
            _ => WROTE,
        };
        self.note(note);
        false
    }
}

/// All registrations.
pub(crate) struct Registry {
    pub(crate) volumes: KVec<Arc<Volume>>,
}

impl Registry {
    /// None.
    pub(crate) fn new() -> Self {
        Self { volumes: KVec::new() }
    }

    /// One more. Nothing has changed if that fails.
    pub(crate) fn add(&mut self, volume: Arc<Volume>) -> Result {
        // Of what is not there the table says nothing: thousands of them are
        // registered in no time.
        let is_there = volume.place().is_some();
        self.volumes.push(volume, GFP_KERNEL)?;
        let published = if is_there { self.publish() } else { Ok(()) };
        if published.is_err() {
            let at = self.volumes.len() - 1;
            self.volumes.truncate(at);
        }
        published
    }

    /// One fewer. Nothing has changed if that fails.
    pub(crate) fn remove(&mut self, volume: &Arc<Volume>) -> Result {
        self.volumes.retain(|v| !Arc::ptr_eq(v, volume));
        if volume.place().is_some() {
            if let Err(e) = self.publish() {
                // Its place in the list is still there.
                let _ = self.volumes.push_within_capacity(volume.clone());
                return Err(e);
            }
        }
        volume.change(State::remove);
        Ok(())
    }

    /// A volume is there from now on, or nowhere, and the hook knows. Nothing has changed if
    /// that fails. The one way in which a place changes: claims, which take this registry's
    /// lock, find no volume of which the hook knows another place.
    fn bind(&mut self, volume: &Volume, place: Option<Place>) -> Result {
        let before = volume.place();
        volume.change(|state| state.bind(place)).map_err(|_| EBUSY)?;
        let published = self.publish();
        if published.is_err() {
            let _ = volume.change(|state| state.bind(before));
        }
        published
    }

    /// Makes the hook's table anew from what is bound now.
    fn publish(&mut self) -> Result {
        let table = match Table::new(&self.volumes)? {
            Some(table) => Some(KBox::new(table, GFP_KERNEL)?),
            None => None,
        };
        swap_table(table);
        Ok(())
    }
}

/// Binds a volume, for whoever has its `turning` lock; see [`Registry::bind`].
pub(crate) fn bind(volume: &Volume, place: Option<Place>) -> Result {
    core().registry.lock().bind(volume, place)
}

/// Sectors that have passed the hook on their way to a disk, in parts, lest
/// processors wait for each other's.
struct Passed([Part; PARTS]);

const PARTS: usize = 8;

#[repr(align(64))]
struct Part(AtomicU64);

impl Passed {
    fn new() -> Self {
        Self([const { Part(AtomicU64::new(0)) }; PARTS])
    }

    fn add(&self, sectors: u64) {
        // Each task has a stack of its own: that is cheaper than to ask for the processor.
        let here = 0u8;
        let part = (&raw const here as usize >> 14) % PARTS;
        self.0[part].0.fetch_add(sectors, Ordering::Relaxed);
    }

    fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, part| sum.wrapping_add(part.0.load(Ordering::Relaxed)))
    }
}

struct OnDisk {
    address: usize,
    passed: Arc<Passed>,
    volumes: KVec<OnMedium>,
}

struct OnMedium {
    seq: u64,
    major: u32,
    sectors: Sectors,
    volume: Arc<Volume>,
}

impl OnMedium {
    /// Whether its number is one of those that NVMe devices have.
    fn is_nvme(&self) -> bool {
        self.major == kernel::bindings::BLOCK_EXT_MAJOR
    }

    /// Somebody has written past the hook. In an RCU read section.
    fn was_written(&self) {
        self.volume.note(WROTE);
        let session = self.volume.recording.load(Ordering::Acquire);
        if !session.is_null() {
            // SAFETY: In the read section, and not null.
            unsafe { borrow(session) }.unseen.store(true, Ordering::Relaxed);
        }
    }
}

/// Disks with registered devices, in an open-addressed hash table.
///
/// # Invariants
///
/// The number of places is a power of two and at least twice that of disks,
/// so that a search always meets an empty one.
struct Table(KVec<Option<OnDisk>>);

impl Table {
    /// `None` if nothing is bound: that needs no memory. The caller has the registry's lock.
    fn new(volumes: &KVec<Arc<Volume>>) -> Result<Option<Self>> {
        if volumes.iter().all(|v| v.place().is_none()) {
            return Ok(None);
        }
        let places = (2 * volumes.len() + 2).next_power_of_two();
        let mut table = Self(KVec::with_capacity(places, GFP_KERNEL)?);
        for _ in 0..places {
            table.0.push(None, GFP_KERNEL)?;
        }
        let mut any = false;
        for volume in volumes.iter() {
            let Some(place) = volume.place() else { continue };
            any = true;
            let address = place.id.address;
            let mut at = table.slot(address);
            while table.0[at].as_ref().is_some_and(|d| d.address != address) {
                at = (at + 1) & (places - 1);
            }
            if table.0[at].is_none() {
                // What was counted goes on.
                let passed = match read(|now| Some(now.find(address)?.passed.clone())) {
                    Some(passed) => passed,
                    None => Arc::new(Passed::new(), GFP_KERNEL)?,
                };
                table.0[at] = Some(OnDisk { address, passed, volumes: KVec::new() });
            }
            if let Some(on_disk) = table.0[at].as_mut() {
                let (seq, major, sectors) = (place.id.seq, place.major, place.sectors);
                let volume = volume.clone();
                on_disk.volumes.push(OnMedium { seq, major, sectors, volume }, GFP_KERNEL)?;
            }
        }
        Ok(any.then_some(table))
    }

    fn slot(&self, address: usize) -> usize {
        let h = (address as u64 >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        h as usize & (self.0.len() - 1)
    }

    fn find(&self, address: usize) -> Option<&OnDisk> {
        let mut at = self.slot(address);
        loop {
            let on_disk = self.0[at].as_ref()?;
            if on_disk.address == address {
                return Some(on_disk);
            }
            at = (at + 1) & (self.0.len() - 1);
        }
    }
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(null_mut());

fn swap_table(table: Option<KBox<Table>>) {
    let new = table.map_or(null_mut(), KBox::into_raw);
    let old = TABLE.swap(new, Ordering::AcqRel);
    if !old.is_null() {
        sys::synchronize_rcu();
        // SAFETY: From `KBox::into_raw` above; no reader has it any more.
        drop(unsafe { KBox::from_raw(old) });
    }
}

/// Frees the table, at unload.
pub(crate) fn drop_table() {
    swap_table(None);
}

/// Reads the table, if there is one, in an RCU read section: `look` must not sleep.
fn read<T>(look: impl FnOnce(&Table) -> Option<T>) -> Option<T> {
    let _rcu = kernel::sync::rcu::read_lock();
    // SAFETY: The read section keeps a table that was found.
    look(unsafe { TABLE.load(Ordering::Acquire).as_ref() }?)
}

/// Whether the hook knows that volume in that place.
fn is_published(volume: &Volume, place: &Place) -> bool {
    read(|table| {
        table
            .find(place.id.address)?
            .volumes
            .iter()
            .find(|on| {
                ::core::ptr::eq(&*on.volume, volume)
                    && on.seq == place.id.seq
                    && on.sectors == place.sectors
            })
            .map(|_| ())
    })
    .is_some()
}

/// Sectors that have passed the hook on their way to a disk, since any device of it was registered.
pub(crate) fn passed(id: DiskId) -> Option<u64> {
    read(|table| Some(table.find(id.address)?.passed.sum()))
}

/// Visits the volumes that the hook knows, in an RCU read section: `visit` must
/// not sleep.
pub(crate) fn for_each_bound(visit: impl Fn(&Arc<Volume>)) {
    read(|table| {
        for on in table.0.iter().flatten().flat_map(|on_disk| on_disk.volumes.iter()) {
            visit(&on.volume);
        }
        Some(())
    });
}

/// What a bio has to wait for.
pub(crate) enum Wait<'a> {
    /// That a session has saved what it overwrites.
    Session(&'a Arc<Session>),
    /// That a raw session is started.
    Gate(&'a Arc<Volume>),
    /// Nothing, but its session's reader wants to know of it: up to before which chunk it goes.
    Mark(&'a Arc<Session>, u64),
}

/// A session that a volume records with, by the count in its `life.session`.
///
/// # Safety
///
/// Only in an RCU read section in which it was read from `Volume::recording`,
/// and then not null.
unsafe fn borrow(session: *mut Session) -> ManuallyDrop<Arc<Session>> {
    // SAFETY: By `Volume`'s invariant it lives through this read section. The
    // count is not dropped here.
    ManuallyDrop::new(unsafe { Arc::from_raw(session.cast_const()) })
}

/// A request that changes data is about to reach a disk without a bio: nobody knows what it
/// changes. If the disk is a `hidden` one, a path below an NVMe device, that may be any of
/// those.
pub(crate) fn saw_request(id: DiskId, hidden: bool) {
    read(|table| {
        if hidden {
            let all = table.0.iter().flatten().flat_map(|on_disk| on_disk.volumes.iter());
            all.filter(|on| on.is_nvme()).for_each(OnMedium::was_written);
        } else {
            let volumes = table.find(id.address)?.volumes.iter();
            volumes
                .filter(|on| on.seq == id.seq || on.volume.is_recording())
                .for_each(OnMedium::was_written);
        }
        Some(())
    });
}

/// The first that this bio has to wait for, as `take` takes it from the
/// reference count that the table or the volume holds. `from` is the session
/// that lets it go, if any. If there is nothing, it counts as passed: the caller sends
/// it to its device.
///
/// # Safety
///
/// Only in an RCU read section.
pub(crate) unsafe fn find_wait<T>(
    bio: &BioView<'_>,
    from: Option<&Session>,
    take: impl Fn(Wait<'_>) -> T,
) -> Option<T> {
    // SAFETY: The caller's read section keeps a table that was found.
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref() }?;
    let id = bio.disk()?;
    let on_disk = table.find(id.address)?;
    let sectors = bio.sectors()?;
    for OnMedium { seq, sectors: range, volume, .. } in on_disk.volumes.iter() {
        if range.intersect(&sectors).is_none() {
            continue;
        }
        let session = volume.recording.load(Ordering::Acquire);
        if session.is_null() {
            // Another medium, or another disk at the same address.
            if *seq != id.seq {
                continue;
            }
            // It ends as soon as this bio is at its device, and has saved what that
            // overwrites: no write outside of sessions.
            if from.is_some_and(|s| !s.is_broken() && *s.name == *volume.name) {
                continue;
            }
            if volume.meets_gate() {
                return Some(take(Wait::Gate(volume)));
            }
            continue;
        }
        // SAFETY: The caller is in a read section; `session` is not null.
        let session = unsafe { borrow(session) };
        if session.by == By::RawWrite {
            // Nobody keeps its disk.
            if *seq != id.seq {
                volume.note(ANOTHER_MEDIUM);
                continue;
            }
            if !volume.wrote.load(Ordering::Relaxed) {
                volume.wrote.store(true, Ordering::Relaxed);
            }
        }
        if session.is_broken() {
            continue;
        }
        let Some(chunks) = session.geo.touched(&sectors) else { continue };
        if !session.saved().contains_all(chunks.start, chunks.end) {
            if session.lets_pass(bio) {
                continue;
            }
            return Some(take(Wait::Session(&session)));
        }
        if session.is_at_mark(&chunks) {
            return Some(take(Wait::Mark(&session, chunks.end)));
        }
    }
    on_disk.passed.add(sectors.len());
    None
}

/// Looks registered names up again and binds what has come, unbinds what has
/// gone. Walks paths: never directly in a claim.
pub(crate) fn settle() -> Result {
    let mut result = Ok(());
    for volume in all()? {
        if volume.image.is_some() || volume.is_claimed() {
            continue;
        }
        let found = match crate::control::place_of(&volume.name) {
            // That says nothing of the device.
            Err(e) if e == ENOMEM => {
                result = Err(e);
                continue;
            }
            found => found.ok(),
        };
        if let Err(e) = follow_name(&volume, found) {
            result = Err(e);
        }
    }
    result.and(crate::image::settle())
}

/// The volume's name stands for `found` now.
fn follow_name(volume: &Arc<Volume>, found: Option<(Place, OpenDisk)>) -> Result {
    let before = volume.place();
    let same = |a: &Option<Place>, b: &Option<Place>| match (a, b) {
        (Some(a), Some(b)) => a.is_same(b),
        (None, None) => true,
        _ => false,
    };
    let now = found.as_ref().map(|(place, _)| *place);
    if same(&before, &now) {
        return Ok(());
    }
    let _noio = sys::NoIo::enter();
    let raw = volume.open_raw();
    let turning = volume.turning.lock();
    if volume.is_claimed() || !same(&volume.place(), &before) || volume.state().is_gone() {
        // A mount came meanwhile; it has read the place or will find it so.
        return Ok(());
    }
    let elsewhere = before.zip(now).is_some_and(|(before, now)| before.id != now.id);
    if let Some(raw) = volume.raw().filter(|_| elsewhere) {
        raw.note_late(LATE_NAME);
    }
    volume.stop_raw(raw.as_ref());
    let refusal = found.as_ref().and_then(|(_, open)| open.disk().check_supported().err());
    volume.refused.store(refusal.map_or(0, errno_of), Ordering::Relaxed);
    let mounted = found.as_ref().is_some_and(|(place, open)| {
        let extent = place.extent(open.disk().capacity());
        open.disk().is_mounted(extent.start, extent.end)
    });
    volume.change(|state| {
        if before.is_some() {
            // It went, if only for a while.
            state.lose_sight();
        }
        // One that is mounted already is not seen to be taken.
        state.set_unprotected(mounted);
    });
    bind(volume, now.filter(|_| refusal.is_none()))?;
    drop(turning);
    // What was written meanwhile stands at the gate, of the place before or of this one. The worker may just
    // be starting a session with its help.
    volume.turn();
    Ok(())
}

/// Ends all raw sessions.
pub(crate) fn stop_raw() -> Result {
    let _noio = sys::NoIo::enter();
    for volume in all()? {
        volume.stop_raw_alone();
    }
    Ok(())
}

/// All registered volumes.
pub(crate) fn all() -> Result<KVec<Arc<Volume>>> {
    let registry = core().registry.lock();
    let mut v = KVec::with_capacity(registry.volumes.len(), GFP_KERNEL)?;
    for volume in registry.volumes.iter() {
        v.push(volume.clone(), GFP_KERNEL)?;
    }
    Ok(v)
}
