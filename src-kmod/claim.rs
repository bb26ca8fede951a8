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
use crate::pure::format::{Id, Kind};
use crate::pure::plan::Sectors;
use crate::registry::{overlap, Volume};
use crate::session::errno_of;
use crate::sys::{self, BdevInfo, Disk, NoIo};
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

    /// The group that a filesystem's next device belongs to, if it has one
    /// already, and whether one of its devices is not registered.
    fn group_of(&self, holder: *mut c_void) -> (Option<Id>, bool) {
        let mut own = self.0.iter().filter(|c| c.holder == holder);
        // Registered without a session is no better than not registered.
        let recorded = |c: &Claim| c.volumes.first().is_some_and(|v| v.session().is_some());
        let incomplete = own.clone().any(|c| !recorded(c));
        let id = own.find_map(|c| Some(c.volumes.first()?.session()?.group_id));
        (id, incomplete)
    }
}

/// Number of claims, for the hook's quick look.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Whether there are any claims.
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::Acquire) != 0
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
    }
}

fn claim(
    file: *mut bindings::file,
    bdev: *mut sys::block_device,
    holder: *mut c_void,
    info: &BdevInfo,
) -> Result {
    // SAFETY: The open file keeps the disk.
    let Some(disk) = (unsafe { Disk::from_borrowed(info.disk) }) else { return Ok(()) };
    let range = Sectors::new(info.start, info.sectors).ok_or(EINVAL)?;
    let volumes = find(&disk, &range, info)?;
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
            kind: Kind::Mount,
            holder: holder as usize,
            group_id: group,
            group_incomplete: incomplete,
        };
        if begin(&volume, &disk, info, &opening) && counted.push_within_capacity(volume).is_err() {
            return Err(ENOMEM);
        }
        // What else is registered around it holds the same bytes once more: it
        // is not one device more of the filesystem.
        group = None;
    }
    let registered = counted.first().is_some_and(|v| v.session().is_some());
    let mut claims = core().claims.lock();
    let own = claims.0.iter_mut().find(|c| c.file == file).ok_or(EINVAL)?;
    own.volumes = counted;
    // Nothing has been written to the store yet, unless the filesystem got this
    // device later, and then it was no part of it at the session's start.
    for member in claims.0.iter().filter(|c| c.holder == holder) {
        for session in member.volumes.iter().take(1).filter_map(|v| v.session()) {
            if !registered {
                session.group_incomplete.store(true, Ordering::Relaxed);
            } else if known.is_some() {
                session.grouped.store(true, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// The volumes that a claim of `range` is one of.
fn find(disk: &Disk, range: &Sectors, info: &BdevInfo) -> Result<KVec<Arc<Volume>>> {
    if let Some(found) = image::find(disk)? {
        let mut v = KVec::new();
        v.push(found, GFP_KERNEL)?;
        return Ok(v);
    }
    let found = find_bound(disk, range, info)?;
    if !found.is_empty() || !any_unbound() {
        return Ok(found);
    }
    // The device may have come a moment ago. The names are under /dev, the
    // look is another task's, and its time is limited.
    look::settle();
    find_bound(disk, range, info)
}

fn find_bound(disk: &Disk, range: &Sectors, info: &BdevInfo) -> Result<KVec<Arc<Volume>>> {
    let registry = core().registry.lock();
    let mut found = KVec::new();
    // The names of images are their files; loop devices come and go.
    for volume in registry.volumes.iter().filter(|v| v.image.is_none()) {
        let hit = volume
            .bound
            .lock()
            .as_ref()
            .is_some_and(|b| overlap(b, disk.as_ptr(), range) || b.is_partition(info));
        if hit && volume.takes_claims() {
            found.push(volume.clone(), GFP_KERNEL)?;
        }
    }
    Ok(found)
}

fn any_unbound() -> bool {
    let registry = core().registry.lock();
    let any = registry
        .volumes
        .iter()
        .any(|v| v.image.is_none() && v.name.starts_with(b"/dev/") && !v.is_present());
    any
}

/// One claim more. The first starts a session. False: it is registered no more.
fn begin(volume: &Arc<Volume>, disk: &Disk, info: &BdevInfo, opening: &Opening) -> bool {
    if !volume.is_claimed() {
        // What was written raw belongs to what was before. Without the lock,
        // since a write may have to start a session of its own.
        disk.sync_caches(info.start, info.start.saturating_add(info.sectors));
    }
    let _noio = NoIo::enter();
    let turning = volume.turning.lock();
    if volume.gone.load(Ordering::Relaxed) {
        return false;
    }
    if volume.image.is_some() && volume.is_claimed() && !volume.is_on(disk) {
        pr_warn!("an image is mounted by two loop devices; its session is tainted\n");
        if let Some(session) = volume.session() {
            session.tainted.store(true, Ordering::Relaxed);
        }
        return false;
    }
    let first = {
        let mut life = volume.life.lock();
        life.claims += 1;
        life.claims == 1
    };
    if !first {
        return true;
    }
    volume.stop_raw();
    volume.unprotected.store(false, Ordering::Relaxed);
    let moved = match volume.image {
        Some(_) => image::bind(volume, disk, disk.seq()),
        None => follow(volume, info),
    };
    match moved.and_then(|()| lifecycle::start(volume, disk, opening)) {
        Ok(()) => {
            volume.refused.store(0, Ordering::Relaxed);
            volume.lapsed_ns.store(0, Ordering::Relaxed);
        }
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

/// A partition may have been moved since it was bound, a medium changed, with
/// nobody telling.
fn follow(volume: &Volume, info: &BdevInfo) -> Result {
    let claimed = Sectors::new(info.start, info.sectors).ok_or(EINVAL)?;
    {
        let mut bound = volume.bound.lock();
        let Some(b) = (*bound).as_mut() else { return Ok(()) };
        let sectors = if b.is_partition(info) { claimed } else { b.sectors };
        let seq = b.disk.seq();
        if b.sectors == sectors && b.seq == seq {
            return Ok(());
        }
        b.sectors = sectors;
        b.seq = seq;
    }
    volume.watched.store(false, Ordering::Relaxed);
    core().registry.lock().publish()
}

/// A block device file is about to be given back.
pub(crate) fn closing(file: *mut bindings::file) {
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

/// One claim fewer. The last ends the session.
fn end(volume: &Arc<Volume>) {
    let _noio = NoIo::enter();
    let _turning = volume.turning.lock();
    let last = {
        let mut life = volume.life.lock();
        life.claims = life.claims.saturating_sub(1);
        life.claims == 0
    };
    if !last {
        return;
    }
    // There is none if it could not be started.
    if let Some(session) = volume.session() {
        let there = volume.is_present();
        lifecycle::stop(volume, &session, there);
    }
    volume.lapsed_ns.store(0, Ordering::Relaxed);
    if volume.retired.load(Ordering::Relaxed) {
        volume.gone.store(true, Ordering::Relaxed);
        let mut registry = core().registry.lock();
        registry.volumes.retain(|v| !Arc::ptr_eq(v, volume));
        if let Err(e) = registry.publish() {
            pr_err!("table of devices: errno {}\n", -e.to_errno());
        }
        let last = registry.volumes.is_empty();
        drop(registry);
        if last {
            look::remove_hooks_if_idle();
        }
    }
}
