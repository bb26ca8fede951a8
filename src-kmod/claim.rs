// SPDX-License-Identifier: GPL-2.0

//! Watches filesystems take and give back block devices, and starts and ends
//! sessions with them.
//!
//! A claim is `bdev_file_open_by_dev` with a holder and holder operations;
//! the file that it returns is remembered until `bdev_fput`. Between the two
//! the filesystem writes what it likes; before it, nothing, since the open has
//! not come back yet, and after it nothing more, since it has synced.

use crate::core_state::core;
use crate::live::{Kind, Token};
use crate::look;
use crate::params::Discard;
use crate::pure::format::{
    Gap, Sample, DEV_IMAGE, DEV_PARTITION, HEAD_LEN, NO_ID, RAW_IN_FLIGHT, SAMPLES_MAX,
};
use crate::pure::meta::fs_guess;
use crate::pure::name::ShortString;
use crate::pure::plan::{Chunks, Geometry, Sectors};
use crate::registry::{overlap, Bound, Volume};
use crate::session::{errno_of, Beginning, Ending, Session, Summary};
use crate::sys::{self, BdevInfo, Disk, ModuleRef, Page};
use ::core::sync::atomic::{AtomicU64, Ordering};
use kernel::bindings;
use kernel::ffi::c_void;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::str::{CStr, CString};
use kernel::sync::Arc;

/// `BLK_OPEN_WRITE`.
const OPEN_WRITE: u32 = 1 << 1;
/// How long a broken session is given to come to its end.
const AFTER_BREAK_MS: u64 = 2_000;
/// How long a claim waits for a look at names.
const LOOK_MS: u64 = 2_000;

/// One open file of one filesystem.
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

/// All claims of registered devices.
pub(crate) struct Claims(KVec<Claim>);

impl Claims {
    /// None.
    pub(crate) fn new() -> Self {
        Self(KVec::new())
    }

    /// Forgets all, at unload.
    pub(crate) fn clear(&mut self) {
        COUNT.store(0, Ordering::Release);
        self.0 = KVec::new();
    }
}

/// Number of claims, for the hook's quick look.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Whether there are any.
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
    if volumes.is_empty() {
        return Ok(());
    }
    // All that may fail for want of memory comes before the first session.
    let mut counted = KVec::with_capacity(volumes.len(), GFP_KERNEL)?;
    let claim = Claim { file, bdev, holder, volumes: KVec::new(), _live: Token::new(Kind::Claims) };
    core().claims.lock().0.push(claim, GFP_KERNEL)?;
    for volume in volumes {
        if begin(&volume, &disk, info, holder) && counted.push_within_capacity(volume).is_err() {
            return Err(ENOMEM);
        }
    }
    let mut claims = core().claims.lock();
    let Some(at) = claims.0.iter().position(|c| c.file == file) else { return Err(EINVAL) };
    if counted.is_empty() {
        let _ = claims.0.remove(at);
    } else {
        claims.0[at].volumes = counted;
        COUNT.fetch_add(1, Ordering::AcqRel);
    }
    Ok(())
}

/// The volumes that a claim of `range` is one of.
fn find(disk: &Disk, range: &Sectors, info: &BdevInfo) -> Result<KVec<Arc<Volume>>> {
    if let Some(found) = find_image(disk)? {
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
    look::settle(LOOK_MS);
    find_bound(disk, range, info)
}

fn find_bound(disk: &Disk, range: &Sectors, info: &BdevInfo) -> Result<KVec<Arc<Volume>>> {
    let registry = core().registry.lock();
    let mut found = KVec::new();
    for volume in registry.volumes.iter() {
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

/// What sysfs says of a loop device.
fn loop_attribute(disk: &Disk, attribute: &str, buf: &mut [u8]) -> Result<usize> {
    let mut name = [0; 32];
    let n = disk.name(&mut name);
    let name = ::core::str::from_utf8(&name[..n]).map_err(|_| EINVAL)?;
    sys::read_text(&CString::try_from_fmt(fmt!("/sys/block/{}/loop/{}", name, attribute))?, buf)
}

fn loop_number(disk: &Disk, attribute: &str) -> u64 {
    let mut buf = [0; 32];
    loop_attribute(disk, attribute, &mut buf)
        .ok()
        .and_then(|n| ::core::str::from_utf8(&buf[..n]).ok()?.parse().ok())
        .unwrap_or(0)
}

/// The path of the file that a loop device shows; `None` for other disks.
pub(crate) fn backing_file(disk: &Disk) -> Result<Option<KVec<u8>>> {
    let mut name = [0; 32];
    let n = disk.name(&mut name);
    if !name[..n].starts_with(b"loop") {
        return Ok(None);
    }
    let mut path = KVec::from_elem(0u8, 4096 + 16, GFP_KERNEL)?;
    let Ok(n) = loop_attribute(disk, "backing_file", &mut path) else { return Ok(None) };
    path.truncate(n);
    Ok(Some(path))
}

/// Whether a loop device that shows this file is held by somebody.
pub(crate) fn image_is_mounted(path: &[u8]) -> bool {
    let mut dev = [0; 32];
    (0..256).any(|i| {
        let mut look = || -> Result<bool> {
            let attr = CString::try_from_fmt(fmt!("/sys/block/loop{}/dev", i))?;
            let n = sys::read_text(&attr, &mut dev)?;
            let text = ::core::str::from_utf8(&dev[..n]).map_err(|_| EINVAL)?;
            let (major, minor) = text.split_once(':').ok_or(EINVAL)?;
            let major: u32 = major.parse().map_err(|_| EINVAL)?;
            let minor: u32 = minor.parse().map_err(|_| EINVAL)?;
            let (disk, _) = Disk::by_devt(major << 20 | minor)?;
            let same = backing_file(&disk)?.is_some_and(|p| *p == *path);
            Ok(same && disk.is_claimed(0, disk.capacity()))
        };
        look().unwrap_or(false)
    })
}

/// The registered image that a loop device shows, bound to that disk.
fn find_image(disk: &Disk) -> Result<Option<Arc<Volume>>> {
    let Some(path) = backing_file(disk)? else { return Ok(None) };
    let volume = {
        let registry = core().registry.lock();
        let found = registry
            .volumes
            .iter()
            .find(|v| v.image.as_deref() == Some(&*path) && v.takes_claims())
            .cloned();
        found
    };
    let Some(volume) = volume else { return Ok(None) };
    if bind_image(&volume, disk)? {
        Ok(Some(volume))
    } else {
        Ok(None)
    }
}

/// Binds an image to the loop device that shows it now; false if another one
/// has it mounted.
fn bind_image(volume: &Volume, disk: &Disk) -> Result<bool> {
    let mut bound = volume.bound.lock();
    if bound.as_ref().is_some_and(|b| b.disk.as_ptr() == disk.as_ptr()) {
        return Ok(true);
    }
    if bound.is_some() && volume.is_claimed() {
        drop(bound);
        pr_warn!("an image is mounted by two loop devices; its session is tainted\n");
        if let Some(session) = volume.session() {
            session.tainted.store(true, Ordering::Relaxed);
        }
        return Ok(false);
    }
    let (major, minor) = disk.number();
    *bound = Some(Bound {
        disk: disk.clone(),
        sectors: Bound::WHOLE,
        major,
        minor,
        logical_block_size: disk.logical_block_size(),
        partition: false,
    });
    drop(bound);
    if let Err(e) = core().registry.lock().publish() {
        *volume.bound.lock() = None;
        return Err(e);
    }
    Ok(true)
}

/// One claim more. The first starts a session. False: it is registered no more.
fn begin(volume: &Arc<Volume>, disk: &Disk, info: &BdevInfo, holder: *mut c_void) -> bool {
    let _turning = volume.turning.lock();
    if volume.gone.load(Ordering::Relaxed) {
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
    volume.unprotected.store(false, Ordering::Relaxed);
    // The last release of an image unbinds it, perhaps a moment ago.
    let moved = match volume.image {
        Some(_) => bind_image(volume, disk).map(|_| ()),
        None => follow_partition(volume, info),
    };
    match moved.and_then(|()| start(volume, disk, holder)) {
        Ok(()) => volume.refused.store(0, Ordering::Relaxed),
        Err(e) => {
            volume.refused.store(errno_of(e), Ordering::Relaxed);
            // Whatever is written now nobody sees.
            volume.foreign.store(true, Ordering::Relaxed);
            pr_err!("no session could be started: errno {}\n", -e.to_errno());
        }
    }
    true
}

/// A partition may have been moved since it was bound, with nobody telling.
fn follow_partition(volume: &Volume, info: &BdevInfo) -> Result {
    let claimed = Sectors::new(info.start, info.sectors).ok_or(EINVAL)?;
    {
        let mut bound = volume.bound.lock();
        let Some(b) = (*bound).as_mut().filter(|b| b.is_partition(info)) else { return Ok(()) };
        if b.sectors == claimed {
            return Ok(());
        }
        b.sectors = claimed;
    }
    volume.watched.store(false, Ordering::Relaxed);
    core().registry.lock().publish()
}

/// Memory for one look at the device's content.
struct Scratch(KVec<Page>);

impl Scratch {
    fn new(bytes: usize) -> Result<Self> {
        let n = bytes.div_ceil(PAGE_SIZE);
        let mut pages = KVec::with_capacity(n, GFP_KERNEL)?;
        for _ in 0..n {
            pages.push(Page::new_patiently().ok_or(ENOMEM)?, GFP_KERNEL)?;
        }
        Ok(Self(pages))
    }
}

/// The hash of the device's first bytes, and a guess at what it holds.
fn look_at_head(disk: &Disk, dev: &Sectors) -> Result<([u8; 32], &'static str)> {
    let bytes = HEAD_LEN.min(dev.len() * 512) as usize;
    let scratch = Scratch::new(bytes)?;
    disk.read_sync(dev.start, &scratch.0, bytes)?;
    let mut content = KVVec::from_elem(0u8, bytes, GFP_KERNEL)?;
    sys::copy_from_pages(&scratch.0, &mut content);
    Ok((sys::sha256(&content), fs_guess(&content)))
}

/// The checksum of a short range of the device.
fn look_at(disk: &Disk, dev: &Sectors, sector: u64, bytes: u32, scratch: &Scratch) -> Result<u32> {
    let start = dev.start.checked_add(sector).ok_or(EOVERFLOW)?;
    let end = start.checked_add(u64::from(bytes).div_ceil(512)).ok_or(EOVERFLOW)?;
    if end > dev.end || bytes % 512 != 0 || bytes as usize > scratch.0.len() * PAGE_SIZE {
        return Err(EINVAL);
    }
    disk.read_sync(start, &scratch.0, bytes as usize)?;
    Ok(sys::crc_pages(&scratch.0, bytes as usize))
}

fn image_mtime(volume: &Volume) -> u64 {
    volume.image.as_ref().map_or(0, |path| look::mtime(path, LOOK_MS))
}

/// Starts a session: all that is needed is there before the filesystem gets
/// its device.
fn start(volume: &Arc<Volume>, disk: &Disk, holder: *mut c_void) -> Result {
    let bound = volume.bound.lock().clone().ok_or(ENODEV)?;
    if bound.disk.as_ptr() != disk.as_ptr() {
        return Err(ENODEV);
    }
    disk.check_supported()?;
    let sectors = bound.extent();
    let chunk = core().params.chunk_size.max(bound.logical_block_size);
    let geo = Geometry::new(sectors.start, sectors.len(), chunk).ok_or(EINVAL)?;
    let module = ModuleRef::get().ok_or(ENODEV)?;
    let session = Session::new(volume, disk.clone(), geo, holder as usize, module)?;
    // What was written before belongs to the state at the start.
    disk.sync_caches(sectors.start, sectors.end);
    core().remember(session.clone())?;
    let old = {
        let mut life = volume.life.lock();
        life.session.replace(session.clone())
    };
    drop(old);
    session.kick_writer();
    if !session.opened.wait(core().params.hold_timeout_ms) {
        session.break_with(ETIMEDOUT, sectors.start);
    }
    let (head_sha256, fs_type) = match look_at_head(disk, &sectors) {
        Ok(head) => head,
        Err(e) => {
            session.break_with(e, sectors.start);
            ([0; 32], "")
        }
    };
    let mut dev_flags = 0;
    let mut tail = None;
    let mut same = false;
    let mut image_timed = true;
    let mut gap_before = Gap::None;
    if session.opened.wait(0) {
        let mut files = session.files.lock();
        if files.tail_damaged {
            gap_before = Gap::Unknown;
        }
        tail = files.tail.take();
    }
    if let Some(tail) = &tail {
        same = tail.device_bytes == geo.bytes()
            && tail.head_sha256 == head_sha256
            && samples_match(disk, &sectors, tail.samples())
            && (tail.image_mtime_ns == 0 || tail.image_mtime_ns == image_mtime(volume));
        // Without its time an image may have been written past us.
        image_timed = volume.image.is_none() || tail.image_mtime_ns != 0;
    }
    if volume.image.is_some() {
        dev_flags |= DEV_IMAGE;
    }
    if bound.partition {
        dev_flags |= DEV_PARTITION;
    }
    let (loop_offset, loop_sizelimit) = if volume.image.is_some() {
        (loop_number(disk, "offset"), loop_number(disk, "sizelimit"))
    } else {
        (0, 0)
    };
    // From here on writes are held.
    volume.arm(&session);
    sys::synchronize_rcu();
    // No write that the hook let pass before is unseen any more.
    volume.abandon_restore();
    let foreign = volume.foreign.swap(false, Ordering::AcqRel);
    if let Some(tail) = &tail {
        let watched = image_timed
            && tail.load_id == core().load_id
            && tail.boot_id == core().boot_id
            && volume.watched.load(Ordering::Acquire);
        gap_before = match (foreign, same, watched) {
            (false, true, true) => Gap::None,
            (false, true, false) => Gap::Unknown,
            // A session that was cut left nothing to compare with.
            (false, false, _) if tail.load_id == NO_ID => Gap::Unknown,
            _ => Gap::Written,
        };
    }
    if disk.inflight() != 0 {
        dev_flags |= RAW_IN_FLIGHT;
    }
    *session.beginning.lock() = Some(Beginning {
        prev_session_id: tail.as_ref().map_or(NO_ID, |t| t.session_id),
        group_id: NO_ID,
        gap_before,
        dev_flags,
        head_sha256,
        fs_type,
        loop_offset,
        loop_sizelimit,
        dev_major: bound.major,
        dev_minor: bound.minor,
        logical_block_size: bound.logical_block_size,
    });
    session.kick_writer();
    // What came between the first sync and here is the session's first write.
    disk.sync_caches(sectors.start, sectors.end);
    let _ = disk.flush();
    if session.discard == Discard::Pass {
        kernel::pr_warn_once!("discard=2: discarded blocks cannot be restored\n");
    }
    Ok(())
}

fn samples_match(disk: &Disk, dev: &Sectors, samples: &[Sample]) -> bool {
    let Ok(scratch) = Scratch::new(crate::pure::format::CHUNK_MAX as usize) else { return false };
    samples
        .iter()
        .all(|s| look_at(disk, dev, s.sector, s.bytes, &scratch).is_ok_and(|crc| crc == s.crc))
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
        stop(volume, &session);
    }
    if volume.image.is_some() {
        // The loop device may show another file next.
        *volume.bound.lock() = None;
    }
    if volume.image.is_some() || volume.retired.load(Ordering::Relaxed) {
        let mut registry = core().registry.lock();
        if volume.retired.load(Ordering::Relaxed) {
            registry.volumes.retain(|v| !Arc::ptr_eq(v, volume));
        }
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

/// Ends a session: nothing is written after it.
fn stop(volume: &Arc<Volume>, session: &Arc<Session>) {
    let dev = session.geo.on_disk();
    let timeout = core().params.hold_timeout_ms;
    session.disk.sync_caches(dev.start, dev.end);
    volume.disarm();
    sys::synchronize_rcu();
    session.begin_closing();
    if !session.quiet.wait(timeout) {
        session.break_with(ETIMEDOUT, dev.start);
        session.quiet.wait(AFTER_BREAK_MS);
    }
    let ending = look_at_end(volume, session).unwrap_or(Ending {
        head_sha256: [0; 32],
        samples: KVec::new(),
        image_mtime_ns: 0,
    });
    *session.ending.lock() = Some(ending);
    session.kick_writer();
    // In `async` all of the memory may have to go to the store first: as long as
    // it does, that is no time-out.
    let saved = || session.saved_bytes.load(Ordering::Relaxed);
    let mut before = saved();
    while !session.closed.wait(timeout) {
        if saved() == before {
            session.break_with(ETIMEDOUT, dev.start);
            session.closed.wait(AFTER_BREAK_MS);
            break;
        }
        before = saved();
    }
    let on_disk = session.on_disk.load(Ordering::Acquire);
    let gap = (*session.beginning.lock()).map_or(Gap::Unknown, |b| b.gap_before);
    if !session.finished.load(Ordering::Acquire) {
        pr_err!("a session's end could not be written\n");
        volume.foreign.store(true, Ordering::Relaxed);
    } else if on_disk {
        volume.watched.store(true, Ordering::Release);
    } else if session.is_broken() || gap == Gap::Written {
        // It left nothing that could say so.
        volume.foreign.store(true, Ordering::Relaxed);
    }
    let summary = Summary::of(session);
    let old = {
        let mut life = volume.life.lock();
        life.last = Some(summary);
        life.session.take()
    };
    drop(old);
}

/// What the next session compares with: the device as it is now.
fn look_at_end(volume: &Volume, session: &Session) -> Result<Ending> {
    let dev = session.geo.on_disk();
    let (head_sha256, _) = look_at_head(&session.disk, &dev)?;
    let mut chunks = [0u64; SAMPLES_MAX];
    let mut n = 0;
    for chunk in session.queue.lock().sampler.kept() {
        chunks[n] = chunk;
        n += 1;
    }
    let mut samples = KVec::with_capacity(n, GFP_KERNEL)?;
    let scratch = Scratch::new(session.geo.chunk_bytes() as usize)?;
    for &chunk in &chunks[..n] {
        let s = session.geo.device_sectors_of(&Chunks { start: chunk, end: chunk + 1 });
        let bytes = (s.len() * 512) as u32;
        if bytes == 0 {
            continue;
        }
        let crc = look_at(&session.disk, &dev, s.start, bytes, &scratch)?;
        samples.push(Sample { sector: s.start, bytes, crc }, GFP_KERNEL)?;
    }
    Ok(Ending { head_sha256, samples, image_mtime_ns: image_mtime(volume) })
}

/// Tells user space what happened to a session.
pub(crate) fn tell(session: &Session, event: &CStr, errno: u32) {
    let device = core().device.load(Ordering::Acquire);
    if device.is_null() {
        return;
    }
    let strings = (|| -> Result<_> {
        let name = printable(&session.name);
        let dir = *session.dir.lock();
        let text = |b| ::core::str::from_utf8(b).unwrap_or("?");
        Ok((
            CString::try_from_fmt(fmt!("{}", text(name.as_bytes())))?,
            CString::try_from_fmt(fmt!("{}", text(dir.as_bytes())))?,
        ))
    })();
    if let Ok((name, dir)) = strings {
        // SAFETY: Registered from load to unload, and this is called from
        // tasks that end before that.
        unsafe { sys::uevent(device, event, &name, &dir, errno as i32) };
    }
}

/// A name for the log: what is not plain ASCII is left out.
fn printable(name: &[u8]) -> ShortString<200> {
    let mut s = ShortString::new();
    for &b in name {
        s.push(&[if b.is_ascii_graphic() { b } else { b'?' }]);
    }
    s
}

/// Says, once, that a session broke.
pub(crate) fn tell_broken(session: &Session) {
    let name = printable(&session.name);
    pr_err!(
        "{}: the session is broken (errno {}, sector {}): writes go on, what they replace is lost\n",
        ::core::str::from_utf8(name.as_bytes()).unwrap_or("?"),
        session.errno(),
        session.broken_sector.load(Ordering::Relaxed)
    );
    tell(session, c"broken", session.errno());
}
