// SPDX-License-Identifier: GPL-2.0

//! Which devices are registered, and where their sectors are.
//!
//! The list is for control calls and claims, under a mutex. From it a table
//! is made for the hook, by disk, that is replaced as a whole and read under
//! RCU: an unregistered device costs one look into it.

use crate::core_state::core;
use crate::live::{Kind as Live, Token};
use crate::pure::format::{Durability, Kind};
use crate::pure::plan::Sectors;
use crate::raw::Gate;
use crate::session::{errno_of, Session, Summary};
use crate::sys::{gendisk, BdevInfo, BioView, Disk};
use ::core::mem::ManuallyDrop;
use ::core::ptr::null_mut;
use ::core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_condvar, new_mutex, new_spinlock, Arc, CondVar, Mutex, SpinLock};
use kernel::workqueue::{new_work, Work};

/// Where a registered device is now.
#[derive(Clone)]
pub(crate) struct Bound {
    /// Its disk.
    pub(crate) disk: Disk,
    /// The medium in it; see `Disk::seq`.
    pub(crate) seq: u64,
    /// Its sectors there; of a whole disk all that there could be, since disks
    /// grow, and some have no size at first.
    pub(crate) sectors: Sectors,
    /// Its device number; an image's is its loop device's.
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) logical_block_size: u32,
    pub(crate) partition: bool,
}

impl Bound {
    /// All of a disk.
    pub(crate) const WHOLE: Sectors = Sectors { start: 0, end: u64::MAX };

    /// Whether it is the partition that C tells of, wherever that is now.
    pub(crate) fn is_partition(&self, info: &BdevInfo) -> bool {
        self.partition
            && info.partition != 0
            && self.disk.as_ptr() == info.disk
            && (self.major, self.minor) == (info.major, info.minor)
    }

    /// Whether the disk is there, with the medium that was bound.
    pub(crate) fn is_there(&self) -> bool {
        self.disk.is_alive() && self.disk.seq() == self.seq && self.disk.capacity() != 0
    }

    /// Whether both are the same sectors of the same medium.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.disk.as_ptr() == other.disk.as_ptr()
            && self.seq == other.seq
            && self.sectors == other.sectors
    }

    /// Its sectors as the disk is now.
    pub(crate) fn extent(&self) -> Sectors {
        if self.partition {
            self.sectors
        } else {
            Sectors { start: 0, end: self.disk.capacity() }
        }
    }
}

/// Claims and sessions of a volume.
pub(crate) struct Life {
    /// Claims by filesystems.
    pub(crate) claims: u64,
    /// The running session.
    pub(crate) session: Option<Arc<Session>>,
    /// What is left of the last session, for the status.
    pub(crate) last: Option<Summary>,
}

/// A registered device.
///
/// # Invariants
///
/// `recording` is null or the address of a session that `life.session` keeps
/// until an RCU grace period after it has become null.
#[pin_data]
pub(crate) struct Volume {
    /// The name as registered, absolute.
    pub(crate) name: KVec<u8>,
    /// For an image file: its path without links, as a loop device says it.
    pub(crate) image: Option<KVec<u8>>,
    /// When its sessions let writes go.
    pub(crate) durability: Durability,
    #[pin]
    pub(crate) bound: Mutex<Option<Bound>>,
    /// Held while a session is started or ended.
    #[pin]
    pub(crate) turning: Mutex<()>,
    #[pin]
    pub(crate) life: SpinLock<Life>,
    recording: AtomicPtr<Session>,
    /// A write outside sessions was seen since the last one.
    pub(crate) foreign: AtomicBool,
    /// This load has watched the device since its chain's tail was written.
    pub(crate) watched: AtomicBool,
    /// A restore writes now.
    pub(crate) restoring: AtomicBool,
    /// It has written.
    pub(crate) restore_wrote: AtomicBool,
    /// What `foreign` was when it began.
    pub(crate) foreign_before: AtomicBool,
    /// It was mounted when it was registered and has not been unmounted.
    pub(crate) unprotected: AtomicBool,
    /// Why it cannot be protected; 0: it can.
    pub(crate) refused: AtomicU32,
    /// Deactivated while its session runs.
    pub(crate) retired: AtomicBool,
    /// Deactivated: a claim that has just found it must leave it alone.
    pub(crate) gone: AtomicBool,
    /// Since when (ns since boot) writes pass because no session could be
    /// started; 0: they do not.
    pub(crate) lapsed_ns: AtomicU64,
    /// The armed session is a raw one.
    pub(crate) is_raw: AtomicBool,
    /// It is to be ended.
    pub(crate) raw_over: AtomicBool,
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
    _live: Token,
}

impl Volume {
    /// A registration without a session.
    pub(crate) fn new(
        name: &[u8],
        image: Option<KVec<u8>>,
        durability: Durability,
        bound: Option<Bound>,
    ) -> Result<Arc<Self>> {
        let mut own = KVec::new();
        own.extend_from_slice(name, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                name: own,
                image,
                durability,
                bound <- new_mutex!(bound, "bdsnap::Volume::bound"),
                turning <- new_mutex!((), "bdsnap::Volume::turning"),
                life <- new_spinlock!(
                    Life { claims: 0, session: None, last: None },
                    "bdsnap::Volume::life"
                ),
                recording: AtomicPtr::new(null_mut()),
                foreign: AtomicBool::new(false),
                watched: AtomicBool::new(false),
                restoring: AtomicBool::new(false),
                restore_wrote: AtomicBool::new(false),
                foreign_before: AtomicBool::new(false),
                unprotected: AtomicBool::new(false),
                refused: AtomicU32::new(0),
                retired: AtomicBool::new(false),
                gone: AtomicBool::new(false),
                lapsed_ns: AtomicU64::new(0),
                is_raw: AtomicBool::new(false),
                raw_over: AtomicBool::new(false),
                wrote: AtomicBool::new(false),
                last_write_ns: AtomicU64::new(0),
                gate <- new_spinlock!(Gate::new(), "bdsnap::Volume::gate"),
                gate_moved <- new_condvar!("bdsnap::Volume::gate_moved"),
                turn_work <- new_work!("bdsnap::turn"),
                open_work <- new_work!("bdsnap::open"),
                _live: Token::new(Live::Volumes),
            }),
            GFP_KERNEL,
        )
    }

    /// From now on the hook leads writes to `session`. It must be in
    /// `life.session` already.
    pub(crate) fn arm(&self, session: &Arc<Session>) {
        self.is_raw.store(session.kind == Kind::Raw, Ordering::Release);
        // INVARIANT: The caller has put it into `life.session`.
        self.recording.store(Arc::as_ptr(session).cast_mut(), Ordering::Release);
    }

    /// No longer. Whoever drops the session waits for RCU first.
    pub(crate) fn disarm(&self) {
        self.is_raw.store(false, Ordering::Release);
        self.recording.store(null_mut(), Ordering::Release);
    }

    /// Whether the hook leads writes to a session.
    pub(crate) fn is_recording(&self) -> bool {
        !self.recording.load(Ordering::Acquire).is_null()
    }

    /// The running session.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.life.lock().session.clone()
    }

    /// Whether a claim of it counts: not once it is deactivated, but for those
    /// that join a session which then runs on.
    pub(crate) fn takes_claims(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) || self.is_claimed()
    }

    /// A restore ends before its end: what it has written is a foreign write.
    pub(crate) fn abandon_restore(&self) {
        if self.restoring.swap(false, Ordering::AcqRel)
            && (self.restore_wrote.load(Ordering::Acquire)
                || self.foreign_before.load(Ordering::Acquire))
        {
            self.foreign.store(true, Ordering::Release);
        }
    }

    /// Whether it is bound to a disk that has not been removed.
    pub(crate) fn is_present(&self) -> bool {
        self.bound.lock().as_ref().is_some_and(Bound::is_there)
    }

    /// Whether it is bound to a disk, or a medium, that has been removed.
    pub(crate) fn is_orphan(&self) -> bool {
        self.bound.lock().as_ref().is_some_and(|b| !b.is_there())
    }

    /// Whether it is bound to this disk.
    pub(crate) fn is_on(&self, disk: &Disk) -> bool {
        self.bound.lock().as_ref().is_some_and(|b| b.disk.as_ptr() == disk.as_ptr())
    }

    /// It is nowhere any more.
    pub(crate) fn unbind(&self) {
        *self.bound.lock() = None;
        if let Err(e) = core().registry.lock().publish() {
            pr_err!("table of devices: errno {}\n", -e.to_errno());
        }
    }

    /// A write meets the volume while no session records. True: it has to wait
    /// for one. Else takes note of it.
    fn meets_gate(&self) -> bool {
        if self.records_raw() {
            return true;
        }
        // Loads first: the line is written only once.
        let noted = if self.restoring.load(Ordering::Relaxed) {
            &self.restore_wrote
        } else {
            &self.foreign
        };
        if !noted.load(Ordering::Relaxed) {
            noted.store(true, Ordering::Relaxed);
        }
        false
    }

    /// Whether a filesystem holds it.
    pub(crate) fn is_claimed(&self) -> bool {
        self.life.lock().claims > 0
    }
}

/// All registrations.
pub(crate) struct Registry {
    pub(crate) volumes: KVec<Arc<Volume>>,
    /// For want of memory the hook's table is not made from what is bound now.
    stale: bool,
}

impl Registry {
    /// None.
    pub(crate) fn new() -> Self {
        Self { volumes: KVec::new(), stale: false }
    }

    /// Makes the hook's table anew from what is bound now.
    pub(crate) fn publish(&mut self) -> Result {
        self.stale = true;
        let table = match Table::new(&self.volumes)? {
            Some(table) => Some(KBox::new(table, GFP_KERNEL)?),
            None => None,
        };
        swap_table(table);
        self.stale = false;
        Ok(())
    }

    /// The same if that has failed before: a session of which the hook does not
    /// know would save nothing.
    pub(crate) fn catch_up(&mut self) -> Result {
        if self.stale {
            self.publish()
        } else {
            Ok(())
        }
    }
}

struct OnDisk {
    disk: Disk,
    volumes: KVec<OnMedium>,
}

struct OnMedium {
    seq: u64,
    sectors: Sectors,
    volume: Arc<Volume>,
}

/// Disks with registered devices, in an open-addressed hash table.
///
/// # Invariants
///
/// The number of places is a power of two and at least twice that of disks,
/// so that a search always meets an empty one.
struct Table(KVec<Option<OnDisk>>);

impl Table {
    /// `None` if nothing is bound: that needs no memory.
    fn new(volumes: &KVec<Arc<Volume>>) -> Result<Option<Self>> {
        if volumes.iter().all(|v| v.bound.lock().is_none()) {
            return Ok(None);
        }
        let places = (2 * volumes.len() + 2).next_power_of_two();
        let mut table = Self(KVec::with_capacity(places, GFP_KERNEL)?);
        for _ in 0..places {
            table.0.push(None, GFP_KERNEL)?;
        }
        let mut any = false;
        for volume in volumes.iter() {
            let Some(bound) = volume.bound.lock().clone() else { continue };
            any = true;
            let mut at = table.place(bound.disk.as_ptr());
            while table.0[at].as_ref().is_some_and(|d| d.disk.as_ptr() != bound.disk.as_ptr()) {
                at = (at + 1) & (places - 1);
            }
            if table.0[at].is_none() {
                table.0[at] = Some(OnDisk { disk: bound.disk.clone(), volumes: KVec::new() });
            }
            if let Some(on_disk) = table.0[at].as_mut() {
                let (seq, sectors) = (bound.seq, bound.sectors);
                let volume = volume.clone();
                on_disk.volumes.push(OnMedium { seq, sectors, volume }, GFP_KERNEL)?;
            }
        }
        Ok(any.then_some(table))
    }

    fn place(&self, disk: *mut gendisk) -> usize {
        let h = (disk as u64 >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        h as usize & (self.0.len() - 1)
    }

    fn find(&self, disk: *mut gendisk) -> Option<&OnDisk> {
        let mut at = self.place(disk);
        loop {
            let on_disk = self.0[at].as_ref()?;
            if on_disk.disk.as_ptr() == disk {
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
        crate::sys::synchronize_rcu();
        // SAFETY: From `KBox::into_raw` above; no reader has it any more.
        drop(unsafe { KBox::from_raw(old) });
    }
}

/// Frees the table, at unload.
pub(crate) fn drop_table() {
    swap_table(None);
}

/// Visits the volumes that the hook knows, in an RCU read section: `visit` must
/// not sleep. It is told whether the medium is still there.
pub(crate) fn for_each_bound(visit: impl Fn(&Disk, &Sectors, &Arc<Volume>, bool)) {
    let _rcu = kernel::sync::rcu::read_lock();
    // SAFETY: The read section keeps a table that was found.
    let Some(table) = (unsafe { TABLE.load(Ordering::Acquire).as_ref() }) else { return };
    for on_disk in table.0.iter().flatten() {
        let disk = &on_disk.disk;
        let seq = if disk.is_alive() && disk.capacity() != 0 { disk.seq() } else { 0 };
        for on in on_disk.volumes.iter() {
            visit(disk, &on.sectors, &on.volume, on.seq == seq);
        }
    }
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

/// This bio is about to overwrite what is not saved: taints all sessions that
/// it touches.
pub(crate) fn taint(bio: &BioView<'_>) {
    let _rcu = kernel::sync::rcu::read_lock();
    // SAFETY: The read section keeps a table that was found.
    let Some(table) = (unsafe { TABLE.load(Ordering::Acquire).as_ref() }) else { return };
    let Some((on_disk, sectors)) = table.find(bio.disk()).zip(bio.sectors()) else { return };
    for on in on_disk.volumes.iter().filter(|on| on.sectors.intersect(&sectors).is_some()) {
        let session = on.volume.recording.load(Ordering::Acquire);
        if !session.is_null() {
            // SAFETY: In the read section, and not null.
            unsafe { borrow(session) }.tainted.store(true, Ordering::Relaxed);
        }
    }
}

/// The first that this bio has to wait for, as `take` takes it from the
/// reference count that the table or the volume holds. `from` is the session
/// that lets it go, if any.
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
    let on_disk = table.find(bio.disk())?;
    let sectors = bio.sectors()?;
    let current = on_disk.disk.seq();
    for OnMedium { seq, sectors: range, volume } in on_disk.volumes.iter() {
        if range.intersect(&sectors).is_none() || *seq != current {
            continue;
        }
        let session = volume.recording.load(Ordering::Acquire);
        if session.is_null() {
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
        if session.kind == Kind::Raw && !volume.wrote.load(Ordering::Relaxed) {
            volume.wrote.store(true, Ordering::Relaxed);
        }
        if session.is_broken() {
            continue;
        }
        let Some(chunks) = session.geo.touched(&sectors) else { continue };
        if !session.saved().contains_all(chunks.start, chunks.end) {
            return Some(take(Wait::Session(&session)));
        }
        if session.is_at_mark(&chunks) {
            return Some(take(Wait::Mark(&session, chunks.end)));
        }
    }
    None
}

/// Whether two devices have sectors in common.
pub(crate) fn overlap(bound: &Bound, disk: *mut gendisk, sectors: &Sectors) -> bool {
    bound.disk.as_ptr() == disk && bound.sectors.intersect(sectors).is_some()
}

/// Looks registered names up again and binds what has come, unbinds what has
/// gone. Walks paths: never directly in a claim.
pub(crate) fn settle() -> Result {
    let (mut changed, mut result) = (false, Ok(()));
    for volume in all()? {
        if volume.image.is_some() || volume.is_claimed() {
            continue;
        }
        let found = match crate::control::bind_by_name(&volume.name) {
            // That says nothing of the device.
            Err(e) if e == ENOMEM => {
                result = Err(e);
                continue;
            }
            found => found,
        };
        let before = volume.bound.lock().clone();
        let same = match (&before, &found) {
            (Some(a), Ok(b)) => a.is_same(b),
            (None, Err(_)) => true,
            _ => false,
        };
        if same {
            continue;
        }
        let _turning = volume.turning.lock();
        let moved = match (&*volume.bound.lock(), &before) {
            (Some(a), Some(b)) => !a.is_same(b),
            (None, None) => false,
            _ => true,
        };
        if volume.is_claimed() || moved {
            // A mount came meanwhile; it has read `bound` or will find it so.
            continue;
        }
        volume.stop_raw();
        let mut bound = volume.bound.lock();
        if bound.is_some() {
            // It went, if only for a while.
            volume.watched.store(false, Ordering::Relaxed);
            volume.unprotected.store(false, Ordering::Relaxed);
        }
        match found {
            Ok(b) => {
                let refusal = b.disk.check_supported().err();
                volume.refused.store(refusal.map_or(0, errno_of), Ordering::Relaxed);
                // One that is mounted already is not seen to be given back.
                let mounted = b.disk.is_mounted(b.sectors.start, b.sectors.end);
                volume.unprotected.store(mounted, Ordering::Relaxed);
                *bound = refusal.is_none().then_some(b);
            }
            Err(_) => *bound = None,
        }
        changed = true;
    }
    if changed {
        core().registry.lock().publish()?;
    }
    result.and(crate::image::settle())
}

/// Ends all raw sessions.
pub(crate) fn stop_raw() -> Result {
    for volume in all()? {
        let _turning = volume.turning.lock();
        volume.stop_raw();
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
