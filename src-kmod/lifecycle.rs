// SPDX-License-Identifier: GPL-2.0

//! Starts and ends sessions, for whoever has the volume's `turning` lock: a
//! filesystem's claim or release, a raw write, a control call.

use crate::compat::errno;
use crate::core_state::core;
use crate::image;
use crate::look;
use crate::params::Discard;
use crate::pure::crc::crc32c;
use crate::pure::format::{
    Gap, Id, Kind, Sample, DEV_IMAGE, DEV_PARTITION, HEAD_LEN, NO_ID, RAW_IN_FLIGHT, SAMPLES_MAX,
};
use crate::pure::meta::fs_guess;
use crate::pure::plan::{Chunks, Geometry, Sectors};
use crate::registry::Volume;
use crate::session::{Beginning, Ending, Session, Summary};
use crate::sys::{self, Disk, File, ModuleRef, Page};
use ::core::sync::atomic::Ordering;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::Arc;

/// How long a broken session is given to come to its end.
const AFTER_BREAK_MS: u64 = 2_000;

/// Why a session is started, and for whom.
pub(crate) struct Opening {
    pub(crate) kind: Kind,
    /// The filesystem that claims the device; to be compared only.
    pub(crate) holder: usize,
    /// The group of the devices that the filesystem has already; `None`: the
    /// session is the first.
    pub(crate) group_id: Option<Id>,
    /// One of that filesystem's devices is not registered.
    pub(crate) group_incomplete: bool,
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
    volume.image.as_ref().map_or(0, |path| look::mtime(path))
}

/// Starts a session. When this comes back all that it needs is there, and
/// writes are held. The caller lets the volume's gate open.
pub(crate) fn start(volume: &Arc<Volume>, disk: &Disk, opening: &Opening) -> Result {
    let bound = volume.bound.lock().clone().ok_or(ENODEV)?;
    if bound.disk.as_ptr() != disk.as_ptr() {
        return Err(ENODEV);
    }
    disk.check_supported()?;
    core().registry.lock().catch_up()?;
    let sectors = bound.extent();
    let chunk = core().params.chunk_size.max(bound.logical_block_size);
    let geo = Geometry::new(sectors.start, sectors.len(), chunk).ok_or(EINVAL)?;
    // A wrong one would have the image restored to the wrong place.
    let (loop_offset, loop_sizelimit) = match volume.image {
        Some(_) => loop_window(disk)?,
        None => (0, 0),
    };
    let module = ModuleRef::get().ok_or(ENODEV)?;
    let session = Session::new(volume, disk.clone(), geo, opening, module)?;
    // Nothing that was written before may be lost after this in a power cut:
    // it belongs to the state at the start.
    let _ = disk.flush();
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
        // Nothing if it cannot be told in time.
        let image_mtime_ns = image_mtime(volume);
        // What is behind the former end was nobody's.
        same = tail.device_bytes <= geo.bytes()
            && tail.head_sha256 == head_sha256
            && samples_match(disk, &sectors, tail.samples())
            && (tail.image_mtime_ns == 0
                || image_mtime_ns == 0
                || tail.image_mtime_ns == image_mtime_ns);
        // Without its time an image may have been written past us.
        image_timed = volume.image.is_none() || (tail.image_mtime_ns != 0 && image_mtime_ns != 0);
    }
    if volume.image.is_some() {
        dev_flags |= DEV_IMAGE;
    }
    if bound.partition {
        dev_flags |= DEV_PARTITION;
    }
    let mut inflight = disk.inflight();
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
            // A session that was cut, or whose device went, left nothing to
            // compare with.
            (false, false, _) if tail.load_id == NO_ID || tail.head_sha256 == [0; 32] => {
                Gap::Unknown
            }
            _ => Gap::Written,
        };
    }
    inflight += disk.inflight();
    if inflight != 0 {
        dev_flags |= RAW_IN_FLIGHT;
    }
    *session.beginning.lock() = Some(Beginning {
        prev_session_id: tail.as_ref().map_or(NO_ID, |t| t.session_id),
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

/// Waits a moment for what is in flight, so that it can be seen.
fn calm_down(disk: &Disk) {
    for _ in 0..50 {
        if disk.inflight() == 0 {
            return;
        }
        sys::sleep(20);
    }
}

/// Whether the loop device shows another part of its image than at the start, or
/// may do so.
fn has_moved(session: &Session) -> bool {
    let now = loop_window(&session.disk).ok();
    (*session.beginning.lock()).is_some_and(|b| Some((b.loop_offset, b.loop_sizelimit)) != now)
}

/// A loop device's offset and size limit in its image, in bytes.
fn loop_window(disk: &Disk) -> Result<(u64, u64)> {
    Ok((image::loop_number(disk, "offset")?, image::loop_number(disk, "sizelimit")?))
}

/// Ends a session: nothing is written after it. `there`: the disk is, with the
/// session's medium, and somebody has it open.
pub(crate) fn stop(volume: &Arc<Volume>, session: &Arc<Session>, there: bool) {
    let dev = session.geo.on_disk();
    let timeout = core().params.hold_timeout_ms;
    if there {
        session.disk.sync_caches(dev.start, dev.end);
    }
    volume.disarm();
    sys::synchronize_rcu();
    session.begin_closing();
    if !session.quiet.wait(timeout) {
        session.break_with(ETIMEDOUT, dev.start);
        session.quiet.wait(AFTER_BREAK_MS);
    }
    if there && volume.image.is_some() && has_moved(session) {
        // The image's sectors were others since then; what was written is not what was saved.
        session.break_with(errno(kernel::bindings::ESTALE), dev.start);
    }
    let now = volume.bound.lock().as_ref().map(|b| b.extent());
    if there && now.is_some_and(|now| now.len() < dev.len()) {
        // What was cut off could not be saved.
        session.break_with(ENXIO, now.map_or(dev.start, |now| dev.start + now.len()));
    }
    let ending = if there {
        if session.kind == Kind::Raw {
            calm_down(&session.disk);
        }
        look_at_end(volume, session).ok()
    } else {
        volume.image.as_ref().and_then(|path| look::image_end(path, session))
    };
    let ending = ending.unwrap_or(Ending {
        head_sha256: [0; 32],
        samples: KVec::new(),
        image_mtime_ns: 0,
        device_bytes: session.geo.bytes(),
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

/// The session's samples: `crc` reads so many bytes from a sector on.
fn samples_of(
    session: &Session,
    mut crc: impl FnMut(u64, u32) -> Result<u32>,
) -> Result<KVec<Sample>> {
    let mut chunks = [0u64; SAMPLES_MAX];
    let mut n = 0;
    for chunk in session.sampler.lock().kept() {
        chunks[n] = chunk;
        n += 1;
    }
    let mut samples = KVec::with_capacity(n, GFP_KERNEL)?;
    for &chunk in &chunks[..n] {
        let s = session.geo.device_sectors_of(&Chunks { start: chunk, end: chunk + 1 });
        let bytes = (s.len() * 512) as u32;
        if bytes != 0 {
            samples
                .push(Sample { sector: s.start, bytes, crc: crc(s.start, bytes)? }, GFP_KERNEL)?;
        }
    }
    Ok(samples)
}

/// What the next session compares with, from the file of an image that no loop
/// device shows any more. Walks a path.
pub(crate) fn look_at_image(path: &CStr, session: &Session) -> Result<Ending> {
    let image_mtime_ns = sys::name_info(path, true, None)?.mtime_ns;
    let file = File::open_to_read(path)?;
    let offset = (*session.beginning.lock()).map_or(0, |b| b.loop_offset);
    let read = |sector: u64, buf: &mut [u8]| -> Result {
        let at = sector.checked_mul(512).and_then(|b| b.checked_add(offset)).ok_or(EOVERFLOW)?;
        if file.read(buf, at)? == buf.len() {
            Ok(())
        } else {
            Err(EIO)
        }
    };
    let mut head = KVVec::from_elem(0u8, HEAD_LEN.min(session.geo.bytes()) as usize, GFP_KERNEL)?;
    read(0, &mut head)?;
    let mut chunk = KVVec::from_elem(0u8, session.geo.chunk_bytes() as usize, GFP_KERNEL)?;
    let samples = samples_of(session, |sector, bytes| {
        let chunk = chunk.get_mut(..bytes as usize).ok_or(EINVAL)?;
        read(sector, chunk)?;
        Ok(crc32c(chunk))
    })?;
    Ok(Ending {
        head_sha256: sys::sha256(&head),
        samples,
        image_mtime_ns,
        device_bytes: session.geo.bytes(),
    })
}

/// What the next session compares with: the device as it is now.
fn look_at_end(volume: &Volume, session: &Session) -> Result<Ending> {
    let dev = session.geo.on_disk();
    let (head_sha256, _) = look_at_head(&session.disk, &dev)?;
    let scratch = Scratch::new(session.geo.chunk_bytes() as usize)?;
    let samples =
        samples_of(session, |sector, bytes| look_at(&session.disk, &dev, sector, bytes, &scratch))?;
    let now = volume.bound.lock().as_ref().map_or(dev.len(), |b| b.extent().len());
    Ok(Ending {
        head_sha256,
        samples,
        image_mtime_ns: image_mtime(volume),
        device_bytes: now.saturating_mul(512),
    })
}
