// SPDX-License-Identifier: GPL-2.0

//! Watches filesystems take and give back block devices, and starts and ends
//! sessions with them.
//!
//! A claim is `bdev_file_open_by_dev` with a holder and holder operations;
//! the file that it returns is remembered until `bdev_fput`. Between the two
//! the filesystem writes what it likes; before it, nothing, since the open has
//! not come back yet, and after it nothing more, since it has synced.

use crate::core_state::core;
use crate::image;
use crate::lifecycle::{self, Opening};
use crate::live::{Kind as Live, Token};
use crate::look;
use crate::pure::format::{Id, LATE_MEMBER, TAINT_TWO_LOOPS};
use crate::pure::volume::{By, Claimed, Place};
use crate::registry::{self, any_unprotected, Volume};
use crate::session::{errno_of, Session};
use crate::sys::{self, BdevInfo, DiskName, NoIo, OpenDisk};
use ::core::sync::atomic::{AtomicU64, Ordering};
use kernel::bindings;
use kernel::ffi::c_void;
use kernel::prelude::*;
use kernel::sync::Arc;

/// `BLK_OPEN_WRITE`.
const OPEN_WRITE: u32 = 1 << 1;

/// One open file of one filesystem. Those of unregistered devices are kept as
/// well, without volumes: they may belong to a filesystem of several devices.
///
/// # Invariants
///
/// The addresses are only compared.
struct Claim {
    file: *mut bindings::file,
    bdev: *mut sys::block_device,
    holder: *mut c_void,
    volumes: KVec<Arc<Volume>>,
    _live: Token,
}

// SAFETY: The addresses are not followed.
unsafe impl Send for Claim {}

/// All claims since the hooks were installed.
pub(crate) struct Claims(KVec<Claim>);

impl Claims {
    /// None.
    pub(crate) fn new() -> Self {
        Self(KVec::new())
    }

    /// Forgets all, when the hooks are gone: nobody tells of releases any more.
    pub(crate) fn clear(&mut self) {
        COUNT.store(0, Ordering::Release);
        self.0 = KVec::new();
    }

    /// Whether there is one of a registered device.
    pub(crate) fn any_registered(&self) -> bool {
        self.0.iter().any(|c| !c.volumes.is_empty())
    }

    /// The sessions of the devices that a filesystem has.
    fn sessions_of(&self, holder: *mut c_void) -> impl Iterator<Item = Arc<Session>> + '_ {
        // What else is registered around a device holds the same bytes once more.
        let own = self.0.iter().filter(move |c| c.holder == holder);
        own.filter_map(|c| c.volumes.first()?.session())
    }

    /// The group that a filesystem's next device belongs to, if it has one
    /// already, and whether one of its devices is not registered.
    fn group_of(&self, holder: *mut c_void) -> (Option<Id>, bool) {
        let mut own = self.0.iter().filter(|c| c.holder == holder);
        // Registered without a session is no better than not registered.
        let recorded = |c: &Claim| c.volumes.first().is_some_and(|v| v.session().is_some());
        // Of one that nobody could remember the others know.
        let incomplete = own.clone().any(|c| !recorded(c))
            || self.sessions_of(holder).any(|s| s.late() & LATE_MEMBER != 0);
        let id = own.find_map(|c| Some(c.volumes.first()?.session()?.group_id));
        (id, incomplete)
    }
}

/// Number of claims, for the hook's quick look.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Whether anybody wants to know which files are given back.
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::Acquire) != 0 || any_unprotected()
}

/// A filesystem has opened a device.
///
/// # Safety
///
/// `file` must be the open block device file that the original returned.
pub(crate) unsafe fn opened(file: *mut bindings::file, mode: u32, holder: *mut c_void) {
    // SAFETY: The caller's promise.
    let (info, bdev) = unsafe { sys::info_of_file(file) };
    // The kernel gives such a file back in a way that we would not see.
    if mode & OPEN_WRITE != 0 && info.read_only != 0 {
        return;
    }
    if let Err(e) = claim(file, bdev, holder, &info) {
        pr_err!("a mount goes unprotected: errno {}\n", -e.to_errno());
        tell_members(holder);
    }
}

fn claim(
    file: *mut bindings::file,
    bdev: *mut sys::block_device,
    holder: *mut c_void,
    info: &BdevInfo,
) -> Result {
    // SAFETY: The open file keeps the disk.
    let volumes = find(&unsafe { sys::disk_name(info) }, info)?;
    let open = if volumes.is_empty() {
        None
    } else {
        // SAFETY: As above.
        Some(Arc::new(unsafe { OpenDisk::reopen(info) }?, GFP_KERNEL)?)
    };
    // All that may fail for want of memory comes before the first session.
    let mut counted = KVec::with_capacity(volumes.len(), GFP_KERNEL)?;
    let claim = Claim { file, bdev, holder, volumes: KVec::new(), _live: Token::new(Live::Claims) };
    let (known, incomplete) = {
        let mut claims = core().claims.lock();
        let group = claims.group_of(holder);
        claims.0.push(claim, GFP_KERNEL)?;
        COUNT.fetch_add(1, Ordering::AcqRel);
        group
    };
    let mut group = known;
    for volume in volumes {
        let opening = Opening {
            by: By::Claim,
            holder: holder as usize,
            group_id: group,
            group_incomplete: incomplete,
        };
        if open.as_ref().is_some_and(|open| begin(&volume, open, info, &opening))
            && counted.push_within_capacity(volume).is_err()
        {
            return Err(ENOMEM);
        }
        // What else is registered around it holds the same bytes once more: it
        // is not one device more of the filesystem.
        group = None;
    }
    let registered = counted.first().is_some_and(|v| v.session().is_some());
    {
        let mut claims = core().claims.lock();
        let own = claims.0.iter_mut().find(|c| c.file == file).ok_or(EINVAL)?;
        own.volumes = counted;
        if registered && known.is_some() {
            claims.sessions_of(holder).for_each(|s| s.grouped.store(true, Ordering::Relaxed));
        }
    }
    if !registered {
        tell_members(holder);
    }
    Ok(())
}

/// A filesystem has taken a device that is not registered, or that nobody watches. Comes back when the sessions of its
/// other devices say so in the store: what has saved something has a header that says otherwise.
fn tell_members(holder: *mut c_void) {
    // Nobody may wait for the claims as long as the store does not answer.
    loop {
        let claims = core().claims.lock();
        let mut own = claims.sessions_of(holder);
        let Some(session) = own.find(|s| !s.knows_of_member()) else { return };
        drop(own);
        drop(claims);
        session.add_member();
    }
}

/// The volumes that a claim of a device is one of.
fn find(name: &DiskName, info: &BdevInfo) -> Result<KVec<Arc<Volume>>> {
    if let Some(found) = image::find(name)? {
        let mut v = KVec::new();
        v.push(found, GFP_KERNEL)?;
        return Ok(v);
    }
    let found = find_bound(info)?;
    if !found.is_empty() || !any_unbound(info) {
        return Ok(found);
    }
    // The device may have come a moment ago. The names are under /dev, the
    // look is another task's, and its time is limited.
    look::settle();
    find_bound(info)
}

/// The partition that C tells of, wherever that is now.
fn is_partition(place: &Place, info: &BdevInfo) -> bool {
    place.partition
        && info.partition != 0
        && place.id == info.id()
        && (place.major, place.minor) == (info.major, info.minor)
}

fn find_bound(info: &BdevInfo) -> Result<KVec<Arc<Volume>>> {
    let range = info.range()?;
    let registry = core().registry.lock();
    let mut found = KVec::new();
    // The names of images are their files; loop devices come and go.
    for volume in registry.volumes.iter().filter(|v| v.image.is_none()) {
        let state = volume.state();
        let hit = state
            .place()
            .is_some_and(|place| place.overlaps(info.id(), &range) || is_partition(&place, info));
        // Of those that are claimed we have the disk open: it is that one, whatever its medium.
        let held = state.is_claimed()
            && state.place().is_some_and(|place| {
                place.id.address == info.id().address && place.sectors.intersect(&range).is_some()
            });
        if (hit || held) && state.takes_claims() {
            found.push(volume.clone(), GFP_KERNEL)?;
        }
    }
    Ok(found)
}

/// Whether a name may stand for the device that did not at the last look: one that was nowhere, or
/// one of the same number, which has been taken away since.
fn any_unbound(info: &BdevInfo) -> bool {
    let registry = core().registry.lock();
    let any = registry.volumes.iter().any(|v| {
        v.image.is_none()
            && v.name.starts_with(b"/dev/")
            && v.place().is_none_or(|p| {
                (p.major, p.minor) == (info.major, info.minor) || p.id.address == info.id().address
            })
    });
    any
}

/// One claim more. The first starts a session. False: it is registered no more.
fn begin(volume: &Arc<Volume>, open: &Arc<OpenDisk>, info: &BdevInfo, opening: &Opening) -> bool {
    let disk = open.disk();
    if !volume.is_claimed() {
        // What was written raw belongs to what was before. Without the lock,
        // since a write may have to start a session of its own.
        disk.sync_caches(info.start, info.start.saturating_add(info.sectors));
    }
    let _noio = NoIo::enter();
    let turning = volume.turning.lock();
    if volume.image.is_some() && volume.is_claimed() && !volume.is_on(disk.id()) {
        pr_warn!("an image is mounted by two loop devices; its session is tainted\n");
        if let Some(session) = volume.session() {
            // The second one is about to write.
            session.taint(TAINT_TWO_LOOPS);
        }
        return false;
    }
    match volume.change(|state| state.claim()) {
        Claimed::First => {}
        Claimed::Another => return true,
        Claimed::Gone => return false,
    }
    volume.stop_raw(Some(open));
    let moved = match volume.image {
        Some(_) => rebind(volume, image::place_of(disk)),
        None => follow(volume, info),
    };
    match moved.and_then(|()| lifecycle::start(volume, Some(open.clone()), opening)) {
        Ok(()) => volume.refused.store(0, Ordering::Relaxed),
        Err(e) => {
            volume.refused.store(errno_of(e), Ordering::Relaxed);
            volume.lapse();
            pr_err!("no session could be started: errno {}\n", -e.to_errno());
        }
    }
    drop(turning);
    // What has come meanwhile is the session's first write; the device's page
    // cache may consist of it, so that it cannot wait for the gate's worker.
    volume.open_gate();
    disk.sync_caches(info.start, info.start.saturating_add(info.sectors));
    let _ = disk.flush();
    true
}

/// A partition may have been moved since it was bound, with nobody telling.
fn follow(volume: &Volume, info: &BdevInfo) -> Result {
    let Some(place) = volume.place() else { return Ok(()) };
    let sectors = if is_partition(&place, info) { info.range()? } else { place.sectors };
    if place.sectors != sectors {
        volume.change(|state| state.lose_sight());
    }
    rebind(volume, Place { sectors, ..place })
}

/// It is there now, if it was elsewhere.
fn rebind(volume: &Volume, place: Place) -> Result {
    if volume.place().is_some_and(|p| p.is_same(&place)) {
        return Ok(());
    }
    registry::bind(volume, Some(place))
}

/// A block device file is about to be given back.
pub(crate) fn closing(file: *mut bindings::file) {
    if any_unprotected() {
        unmounted(file);
    }
    let claim = {
        // SAFETY: The caller's file is open.
        let (_, bdev) = unsafe { sys::info_of_file(file) };
        // SAFETY: As above; only compared.
        let holder = unsafe { (*bdev).bd_holder };
        let mut claims = core().claims.lock();
        let at = claims.0.iter().position(|c| {
            c.file == file && c.bdev == bdev && (c.holder == holder || holder.is_null())
        });
        at.and_then(|i| claims.0.remove(i).ok())
    };
    let Some(claim) = claim else { return };
    COUNT.fetch_sub(1, Ordering::AcqRel);
    for volume in claim.volumes.iter() {
        end(volume);
    }
}

/// A filesystem may be giving back a device that was mounted when it was registered. It has
/// written all that it had to.
fn unmounted(file: *mut bindings::file) {
    // SAFETY: The caller's file is open.
    let (info, _) = unsafe { sys::info_of_file(file) };
    let (Ok(range), id) = (info.range(), info.id()) else { return };
    registry::for_each_bound(|volume| {
        let state = volume.state();
        let Some(place) = state.place().filter(|p| p.overlaps(id, &range)) else { return };
        // SAFETY: As above.
        if state.is_unprotected() && !unsafe { sys::is_mounted_besides(file, &place.sectors) } {
            volume.change(|state| state.set_unprotected(false));
        }
    });
}

/// One claim fewer. The last ends the session.
fn end(volume: &Arc<Volume>) {
    let _noio = NoIo::enter();
    // Closed when `turning` is given up: to close a disk may take a write that needs that.
    let _kept = volume.session().and_then(|session| session.origin.borrow());
    let _turning = volume.turning.lock();
    if !volume.change(|state| state.release()) {
        return;
    }
    // There is none if it could not be started.
    if let Some(session) = volume.session() {
        lifecycle::stop(volume, &session, None);
    }
    volume.change(|state| {
        if let Some(since_ns) = state.lapsed_ns() {
            state.resume(since_ns);
        }
    });
    if volume.state().is_retired() {
        let mut registry = core().registry.lock();
        if let Err(e) = registry.remove(volume) {
            pr_err!("table of devices: errno {}\n", -e.to_errno());
        }
        let last = registry.volumes.is_empty();
        drop(registry);
        if last {
            look::remove_hooks_if_idle();
        }
    }
}
