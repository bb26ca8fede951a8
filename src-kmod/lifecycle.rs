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
    Gap, Id, Sample, DEV_IMAGE, DEV_PARTITION, HEAD_LEN, LATE_MEDIUM, NO_ID, RAW_IN_FLIGHT,
    SAMPLES_MAX, TAINT_UNSEEN, UNKNOWN,
};
use crate::pure::fs::Fs;
use crate::pure::plan::{Chunks, Geometry, Sectors};
use crate::pure::volume::{self, By, Link, Place};
use crate::raw::Pin;
use crate::registry::{self, Volume};
use crate::session::{Beginning, Ending, Session};
use crate::sys::{self, Disk, DiskName, File, ModuleRef, OpenDisk, Page};
use ::core::sync::atomic::Ordering;
use kernel::bindings::ESTALE;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::Arc;

/// How long a broken session is given to come to its end.
const AFTER_BREAK_MS: u64 = 2_000;

/// Why a session is started, and for whom.
pub(crate) struct Opening {
    pub(crate) by: By,
    /// The filesystem that claims the device; to be compared only.
    pub(crate) holder: usize,
    /// The group of the devices that the filesystem has already; `None`: the
    /// session is the first.
    pub(crate) group_id: Option<Id>,
    /// One of that filesystem's devices is not registered.
    pub(crate) group_incomplete: bool,
}

/// Who has the disk open while we look at it.
enum Keeper<'a> {
    /// We have.
    Own(&'a OpenDisk),
    /// Whoever waits at the volume's gate, as long as that does: the watch may have it opened at any time.
    Gate(&'a Arc<Volume>, Place),
}

/// A disk, for a look that waits for nothing but it.
enum Kept<'a> {
    Own(Disk<'a>),
    Gate(Pin<'a>),
}

impl Kept<'_> {
    fn get(&self) -> Disk<'_> {
        match self {
            Self::Own(disk) => *disk,
            Self::Gate(pin) => pin.disk(),
        }
    }
}

impl Keeper<'_> {
    /// ETIMEDOUT if nobody has it open any more.
    fn disk(&self) -> Result<Kept<'_>> {
        match self {
            Self::Own(open) => Ok(Kept::Own(open.disk())),
            Self::Gate(volume, place) => volume.pin_gate(place).map(Kept::Gate).ok_or(ETIMEDOUT),
        }
    }
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

/// What the device's first bytes say of it.
struct Head {
    sha256: [u8; 32],
    fs: Fs,
}

impl Head {
    fn of(content: &[u8]) -> Self {
        Self { sha256: sys::sha256(content), fs: Fs::of(content) }
    }
}

fn look_at_head(keeper: &Keeper<'_>, dev: &Sectors) -> Result<Head> {
    let bytes = HEAD_LEN.min(dev.len() * 512) as usize;
    let scratch = Scratch::new(bytes)?;
    keeper.disk()?.get().read_sync(dev.start, &scratch.0, bytes)?;
    let mut content = KVVec::from_elem(0u8, bytes, GFP_KERNEL)?;
    sys::copy_from_pages(&scratch.0, &mut content);
    Ok(Head::of(&content))
}

/// The checksum of a short range of the device.
fn look_at(
    keeper: &Keeper<'_>,
    dev: &Sectors,
    sector: u64,
    bytes: u32,
    scratch: &Scratch,
) -> Result<u32> {
    let start = dev.start.checked_add(sector).ok_or(EOVERFLOW)?;
    let end = start.checked_add(u64::from(bytes).div_ceil(512)).ok_or(EOVERFLOW)?;
    if end > dev.end || bytes % 512 != 0 || bytes as usize > scratch.0.len() * PAGE_SIZE {
        return Err(EINVAL);
    }
    keeper.disk()?.get().read_sync(start, &scratch.0, bytes as usize)?;
    Ok(sys::crc_pages(&scratch.0, bytes as usize))
}

fn image_mtime(volume: &Volume) -> u64 {
    volume.image.as_ref().map_or(0, |path| look::mtime(path))
}

/// What the disk's statistics tell of beyond what has passed the hook, in sectors; `None` if that cannot be
/// told. Only differences of it mean anything. `hoped`: what it should be, if nothing went wrong.
///
/// The statistics count at the end of each request, we at its beginning. So they are compared when
/// none is under way.
pub(crate) fn witness(volume: &Volume, disk: Disk<'_>, hoped: Option<i64>) -> Option<i64> {
    if volume.image.is_some() {
        // It may be on another loop device the next time; its file's time tells.
        return Some(0);
    }
    if !disk.has_requests() {
        // All that it gets are bios, and how it counts those differs from driver to driver.
        return Some(0);
    }
    let look = || -> Option<i64> {
        let before = disk.inflight();
        let written = disk.written()?;
        let passed = registry::passed(disk.id())?;
        let calm = before == 0 && disk.inflight() == 0 && disk.written()? == written;
        calm.then_some(written.wrapping_sub(passed) as i64)
    };
    let mut last = None;
    for _ in 0..WITNESS_LOOKS {
        disk.written()?;
        let now = look();
        // Some may be on its way between the hook and the request.
        if now.is_some() && (now == hoped || (hoped.is_none() && now == last)) {
            return now;
        }
        last = now;
        sys::sleep(1);
    }
    last
}

/// Sectors written, by the disk's statistics; of an image, it may be on another loop device the next time.
fn disk_sectors(volume: &Volume, disk: Disk<'_>) -> u64 {
    disk.written().filter(|_| volume.image.is_none()).unwrap_or(UNKNOWN)
}

/// Looks at the statistics.
const WITNESS_LOOKS: u32 = 50;

/// Starts a session. When this comes back all that it needs is there, and
/// writes are held. The caller lets the volume's gate open. `own`: the disk, which the session has open from now
/// on; else it is that of a write that waits at the gate.
pub(crate) fn start(volume: &Arc<Volume>, own: Option<Arc<OpenDisk>>, opening: &Opening) -> Result {
    let place = volume.place().ok_or(ENODEV)?;
    let keeper = match &own {
        Some(open) => Keeper::Own(open),
        None => Keeper::Gate(volume, place),
    };
    let (sectors, name) = {
        let kept = keeper.disk()?;
        let disk = kept.get();
        if disk.id() != place.id {
            return Err(ENODEV);
        }
        disk.check_supported()?;
        (place.extent(disk.capacity()), disk.name())
    };
    let chunk = core().params.chunk_size.max(place.logical_block_size);
    let geo = Geometry::new(sectors.start, sectors.len(), chunk).ok_or(EINVAL)?;
    // A wrong one would have the image restored to the wrong place.
    let (loop_offset, loop_sizelimit) = match volume.image {
        Some(_) => loop_window(&name)?,
        None => (0, 0),
    };
    let module = ModuleRef::get().ok_or(ENODEV)?;
    let session = Session::new(volume, own.clone(), place, geo, opening, module)?;
    // Nothing that was written before may be lost after this in a power cut:
    // it belongs to the state at the start.
    let _ = keeper.disk()?.get().flush();
    core().remember(session.clone())?;
    volume.adopt(session.clone());
    session.kick_writer();
    if !session.opened.wait(core().params.hold_timeout_ms) {
        session.break_with(ETIMEDOUT, sectors.start);
    }
    let head = match look_at_head(&keeper, &sectors) {
        Ok(head) => head,
        Err(e) => {
            session.break_with(e, sectors.start);
            Head { sha256: [0; 32], fs: Fs::NONE }
        }
    };
    let disk_sectors = keeper.disk().map_or(UNKNOWN, |kept| disk_sectors(volume, kept.get()));
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
            && tail.head_sha256 == head.sha256
            && samples_match(&keeper, &sectors, tail.samples())
            && (tail.image_mtime_ns == 0
                || image_mtime_ns == 0
                || tail.image_mtime_ns == image_mtime_ns);
        // Without its time an image may have been written past us.
        image_timed = volume.image.is_none() || (tail.image_mtime_ns != 0 && image_mtime_ns != 0);
    }
    if volume.image.is_some() {
        dev_flags |= DEV_IMAGE;
    }
    if place.partition {
        dev_flags |= DEV_PARTITION;
    }
    let mut inflight = keeper.disk().map_or(1, |kept| kept.get().inflight());
    if opening.by == By::RawWrite {
        // The time without a write begins when that is let go.
        volume.wrote.store(true, Ordering::Release);
    }
    // From here on writes are held.
    if let Err(e) = volume.arm(&session, opening.by) {
        session.break_with(e, sectors.start);
    }
    sys::synchronize_rcu();
    // No write that the hook let pass before is unseen any more.
    let link = volume.change(|state| state.begin());
    let hoped = match link {
        Link::Watched(witness) => witness,
        _ => None,
    };
    let now = keeper.disk().ok().and_then(|kept| witness(volume, kept.get(), hoped));
    *session.witness.lock() = now;
    if let Link::Watched(before) = link {
        let sectors = volume::unseen(before, now);
        volume
            .unseen_bytes
            .store(sectors.map_or(u64::MAX, |s| s.saturating_mul(512)), Ordering::Relaxed);
    }
    let link = volume::judge(link, now);
    if let Some(tail) = &tail {
        let watched = image_timed
            && tail.load_id == core().load_id
            && tail.boot_id == core().boot_id
            && matches!(link, Link::Watched(_));
        gap_before = match (link == Link::Written || tail.link == Gap::Written, same, watched) {
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
    match keeper.disk() {
        Ok(kept) => {
            if kept.get().id() != place.id {
                // Between the look and the arming.
                session.break_with(errno(ESTALE), sectors.start);
            }
            inflight += kept.get().inflight();
        }
        // What waited has gone, unsaved.
        Err(e) => session.break_with(e, sectors.start),
    }
    if inflight != 0 {
        dev_flags |= RAW_IN_FLIGHT;
    }
    *session.beginning.lock() = Some(Beginning {
        prev_session_id: tail.as_ref().map_or(NO_ID, |t| t.session_id),
        gap_before,
        dev_flags,
        head_sha256: head.sha256,
        fs: head.fs,
        disk_sectors,
        identity: volume.identity(&place),
        loop_offset,
        loop_sizelimit,
        dev_major: place.major,
        dev_minor: place.minor,
        logical_block_size: place.logical_block_size,
    });
    session.kick_writer();
    if session.discard == Discard::Pass {
        kernel::pr_warn_once!("discard=2: discarded blocks cannot be restored\n");
    }
    Ok(())
}

fn samples_match(keeper: &Keeper<'_>, dev: &Sectors, samples: &[Sample]) -> bool {
    let Ok(scratch) = Scratch::new(crate::pure::format::CHUNK_MAX as usize) else { return false };
    samples
        .iter()
        .all(|s| look_at(keeper, dev, s.sector, s.bytes, &scratch).is_ok_and(|crc| crc == s.crc))
}

/// Waits a moment for what is in flight, so that it can be seen.
fn calm_down(disk: Disk<'_>) {
    for _ in 0..50 {
        if disk.inflight() == 0 {
            return;
        }
        sys::sleep(20);
    }
}

/// Whether the loop device shows another part of its image than at the start, or
/// may do so.
fn has_moved(session: &Session, disk: Disk<'_>) -> bool {
    let now = loop_window(&disk.name()).ok();
    (*session.beginning.lock()).is_some_and(|b| Some((b.loop_offset, b.loop_sizelimit)) != now)
}

/// A loop device's offset and size limit in its image, in bytes.
fn loop_window(disk: &DiskName) -> Result<(u64, u64)> {
    Ok((image::loop_number(disk, "offset")?, image::loop_number(disk, "sizelimit")?))
}

/// What a session's end finds.
pub(crate) struct Seen {
    /// For the next session.
    ending: Ending,
    /// See [`witness`].
    witness: Option<i64>,
}

impl Seen {
    /// What is there now. The session breaks if it is not the device any more that was saved.
    pub(crate) fn of(
        volume: &Arc<Volume>,
        session: &Arc<Session>,
        open: &OpenDisk,
    ) -> Result<Self> {
        let disk = open.disk();
        let dev = session.geo.on_disk();
        if !disk.is_alive() || disk.capacity() == 0 {
            return Err(ENODEV);
        }
        if disk.id() != session.place.id {
            session.note_late(LATE_MEDIUM);
            session.break_with(errno(ESTALE), dev.start);
            return Err(ENODEV);
        }
        if volume.image.is_some() && has_moved(session, disk) {
            // The image's sectors were others since then; what was written is not what was saved.
            session.break_with(errno(ESTALE), dev.start);
        }
        let now = session.place.extent(disk.capacity());
        if now.len() < dev.len() {
            // What was cut off could not be saved.
            session.break_with(ENXIO, dev.start + now.len());
        }
        if session.by == By::RawWrite {
            calm_down(disk);
        }
        let witness = witness(volume, disk, *session.witness.lock());
        Ok(Self { ending: look_at_end(volume, session, open, now.len())?, witness })
    }
}

/// Ends a session: nothing is written after it. `open`: a raw session's disk, see [`Volume::open_raw`].
pub(crate) fn stop(volume: &Arc<Volume>, session: &Arc<Session>, open: Option<&OpenDisk>) {
    let dev = session.geo.on_disk();
    let timeout = core().params.hold_timeout_ms;
    if session.by == By::Claim {
        // It has the disk open until its end. Not under a spin lock.
        if let Some(open) = session.origin.borrow() {
            open.disk().sync_caches(dev.start, dev.end);
        }
    }
    volume.disarm();
    session.begin_closing();
    if !session.quiet.wait(timeout) {
        session.break_with(ETIMEDOUT, dev.start);
        session.quiet.wait(AFTER_BREAK_MS);
    }
    let seen = look_at_all(volume, session, open);
    // Of an image, what its loop device shows since then is none of its business.
    if volume.state().has_another_medium() && volume.image.is_none() {
        session.note_late(LATE_MEDIUM);
        session.break_with(errno(ESTALE), dev.start);
    }
    let before = *session.witness.lock();
    let (ending, witness) = match seen {
        Some(Seen { ending, witness }) => (Some(ending), witness),
        None => match &volume.image {
            Some(path) => (look::image_end(path, session), Some(0)),
            None => (None, None),
        },
    };
    let unseen = volume::unseen(before, witness);
    if session.unseen.load(Ordering::Acquire) || unseen.is_some_and(|sectors| sectors != 0) {
        session.was_tainted(TAINT_UNSEEN);
    }
    volume
        .unseen_bytes
        .store(unseen.map_or(u64::MAX, |s| s.saturating_mul(512)), Ordering::Relaxed);
    let ending = ending.unwrap_or(Ending {
        head_sha256: [0; 32],
        fs_writes: UNKNOWN,
        disk_sectors: UNKNOWN,
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
    let link = if !session.finished.load(Ordering::Acquire) {
        pr_err!("a session's end could not be written\n");
        Link::Written
    } else if unseen != Some(0) || session.unseen.load(Ordering::Acquire) {
        match unseen {
            None => Link::Unwatched,
            Some(_) => Link::Written,
        }
    } else if !on_disk && (session.is_broken() || gap == Gap::Written) {
        // It left nothing that could say so.
        Link::Written
    } else if !on_disk && gap == Gap::Unknown {
        Link::Unwatched
    } else {
        Link::Watched(witness)
    };
    volume.let_go(session, link);
}

/// Whether this disk tells how the session ended. Whoever ends it may have another one.
pub(crate) fn tells_of(volume: &Volume, session: &Session, open: &OpenDisk) -> bool {
    let (id, of) = (open.disk().id(), session.place.id);
    // An image may be on another loop device by now, or on the same one again.
    id.address == of.address && (volume.image.is_none() || id == of)
}

/// What there is, if it can be looked at.
fn look_at_all(
    volume: &Arc<Volume>,
    session: &Arc<Session>,
    open: Option<&OpenDisk>,
) -> Option<Seen> {
    if session.by == By::Claim {
        let open = session.origin.borrow()?;
        return Seen::of(volume, session, &open).ok();
    }
    let fresh = volume.has_look();
    if let Some(seen) = session.seen.lock().take().filter(|_| fresh) {
        return Some(seen);
    }
    let open = open.filter(|open| tells_of(volume, session, open))?;
    Seen::of(volume, session, open).ok()
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
    let head = Head::of(&head);
    Ok(Ending {
        head_sha256: head.sha256,
        fs_writes: head.fs.writes,
        disk_sectors: UNKNOWN,
        samples,
        image_mtime_ns,
        device_bytes: session.geo.bytes(),
    })
}

/// What the next session compares with: the device as it is now.
fn look_at_end(
    volume: &Volume,
    session: &Session,
    open: &OpenDisk,
    sectors: u64,
) -> Result<Ending> {
    let dev = session.geo.on_disk();
    let keeper = Keeper::Own(open);
    let head = look_at_head(&keeper, &dev)?;
    let scratch = Scratch::new(session.geo.chunk_bytes() as usize)?;
    let samples =
        samples_of(session, |sector, bytes| look_at(&keeper, &dev, sector, bytes, &scratch))?;
    Ok(Ending {
        head_sha256: head.sha256,
        fs_writes: head.fs.writes,
        disk_sectors: disk_sectors(volume, open.disk()),
        samples,
        image_mtime_ns: image_mtime(volume),
        device_bytes: sectors.saturating_mul(512),
    })
}
