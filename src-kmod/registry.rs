// SPDX-License-Identifier: GPL-2.0

//! Which devices are registered, and where their sectors are.
//!
//! The list is for control calls and claims, under a mutex. From it a table
//! is made for the hook, by disk, that is replaced as a whole and read under
//! RCU: an unregistered device costs one look into it.

use crate::core_state::core;
use crate::live::{Kind, Token};
use crate::pure::format::Durability;
use crate::pure::plan::Sectors;
use crate::session::{errno_of, Session, Summary};
use crate::sys::{gendisk, BdevInfo, BioView, Disk};
use ::core::ptr::null_mut;
use ::core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};

/// Where a registered device is now.
#[derive(Clone)]
pub(crate) struct Bound {
    /// Its disk.
    pub(crate) disk: Disk,
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
    /// It was mounted when it was registered and has not been unmounted.
    pub(crate) unprotected: AtomicBool,
    /// Why it cannot be protected; 0: it can.
    pub(crate) refused: AtomicU32,
    /// Deactivated while its session runs.
    pub(crate) retired: AtomicBool,
    /// Deactivated: a claim that has just found it must leave it alone.
    pub(crate) gone: AtomicBool,
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
                unprotected: AtomicBool::new(false),
                refused: AtomicU32::new(0),
                retired: AtomicBool::new(false),
                gone: AtomicBool::new(false),
                _live: Token::new(Kind::Volumes),
            }),
            GFP_KERNEL,
        )
    }

    /// From now on the hook leads writes to `session`. It must be in
    /// `life.session` already.
    pub(crate) fn arm(&self, session: &Arc<Session>) {
        // INVARIANT: The caller has put it into `life.session`.
        self.recording.store(Arc::as_ptr(session).cast_mut(), Ordering::Release);
    }

    /// No longer. Whoever drops the session waits for RCU first.
    pub(crate) fn disarm(&self) {
        self.recording.store(null_mut(), Ordering::Release);
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
            && self.restore_wrote.load(Ordering::Acquire)
        {
            self.foreign.store(true, Ordering::Release);
        }
    }

    /// Whether it is bound to a disk that has not been removed.
    pub(crate) fn is_present(&self) -> bool {
        self.bound.lock().as_ref().is_some_and(|b| b.disk.is_alive())
    }

    /// Whether a filesystem holds it.
    pub(crate) fn is_claimed(&self) -> bool {
        self.life.lock().claims > 0
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

    /// Makes the hook's table anew from what is bound now.
    pub(crate) fn publish(&self) -> Result {
        let table = match Table::new(&self.volumes)? {
            Some(table) => Some(KBox::new(table, GFP_KERNEL)?),
            None => None,
        };
        swap_table(table);
        Ok(())
    }
}

struct OnDisk {
    disk: Disk,
    volumes: KVec<(Sectors, Arc<Volume>)>,
}

/// Disks with registered devices, in an open-addressed hash table.
///
/// # Invariants
///
/// The number of places is a power of two and at least twice that of disks,
/// so that a search always meets an empty one.
struct Table(KVec<Option<OnDisk>>);

impl Table {
    fn new(volumes: &KVec<Arc<Volume>>) -> Result<Option<Self>> {
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
                on_disk.volumes.push((bound.sectors, volume.clone()), GFP_KERNEL)?;
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

/// The first session that has to hold this bio, as `take` takes it from the
/// reference count that the volume holds.
///
/// # Safety
///
/// Only in an RCU read section.
pub(crate) unsafe fn find_session<T>(
    bio: &BioView<'_>,
    take: impl Fn(&Arc<Session>) -> T,
) -> Option<T> {
    // SAFETY: The caller's read section keeps a table that was found.
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref() }?;
    let on_disk = table.find(bio.disk())?;
    let sectors = bio.sectors()?;
    for (range, volume) in on_disk.volumes.iter() {
        if range.intersect(&sectors).is_none() {
            continue;
        }
        let session = volume.recording.load(Ordering::Acquire);
        if session.is_null() {
            // Loads first: the line is written only once.
            if volume.restoring.load(Ordering::Relaxed) {
                if !volume.restore_wrote.load(Ordering::Relaxed) {
                    volume.restore_wrote.store(true, Ordering::Relaxed);
                }
            } else if !volume.foreign.load(Ordering::Relaxed) {
                volume.foreign.store(true, Ordering::Relaxed);
            }
            continue;
        }
        // SAFETY: By `Volume`'s invariant it lives through this read section.
        // The borrowed count is the one in `life.session`; it is not dropped
        // here.
        let session =
            unsafe { ::core::mem::ManuallyDrop::new(Arc::from_raw(session.cast_const())) };
        if session.is_broken() {
            continue;
        }
        let Some(chunks) = session.geo.touched(&sectors) else { continue };
        if !session.saved().contains_all(chunks.start, chunks.end) {
            return Some(take(&session));
        }
    }
    None
}

/// Whether two devices have sectors in common.
pub(crate) fn overlap(bound: &Bound, disk: *mut gendisk, sectors: &Sectors) -> bool {
    bound.disk.as_ptr() == disk && bound.sectors.intersect(sectors).is_some()
}

/// Looks registered names up again and binds what has come, unbinds what has
/// gone. Names of image files are bound at their claims only. Walks paths:
/// never directly in a claim.
pub(crate) fn settle() -> Result {
    let volumes = {
        let registry = core().registry.lock();
        let mut v = KVec::with_capacity(registry.volumes.len(), GFP_KERNEL)?;
        for volume in registry.volumes.iter() {
            v.push(volume.clone(), GFP_KERNEL)?;
        }
        v
    };
    let mut changed = false;
    for volume in volumes {
        if volume.image.is_some() || volume.is_claimed() {
            continue;
        }
        let found = crate::control::bind_by_name(&volume.name);
        let mut bound = volume.bound.lock();
        if volume.is_claimed() {
            // A mount came meanwhile; it has read `bound` or will find it so.
            continue;
        }
        let same = match (&*bound, &found) {
            (Some(a), Ok(b)) => a.disk.as_ptr() == b.disk.as_ptr() && a.sectors == b.sectors,
            (None, Err(_)) => true,
            _ => false,
        };
        if same {
            continue;
        }
        if bound.is_some() {
            // It went, if only for a while.
            volume.watched.store(false, Ordering::Relaxed);
            volume.unprotected.store(false, Ordering::Relaxed);
        }
        match found {
            Ok(b) => {
                let refusal = b.disk.check_supported().err();
                volume.refused.store(refusal.map_or(0, errno_of), Ordering::Relaxed);
                *bound = refusal.is_none().then_some(b);
            }
            Err(_) => *bound = None,
        }
        changed = true;
    }
    if changed {
        core().registry.lock().publish()?;
    }
    Ok(())
}
