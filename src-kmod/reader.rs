// SPDX-License-Identifier: GPL-2.0

//! Takes held bios one after the other and reads what they will overwrite.

use crate::core_state::core;
use crate::live::{self, Kind, Token};
use crate::params::Discard;
use crate::pure::ahead::Stream;
use crate::pure::format::{Durability, TAINT_DISCARD};
use crate::pure::plan::{Chunks, Sectors};
use crate::pure::volume::By;
use crate::session::{Session, Slice, READ, READING};
use crate::sys::{self, Disk, HeldBio, NoIo, OpenDisk, Page};
use ::core::sync::atomic::{AtomicU32, Ordering};
use kernel::ffi::{c_int, c_void};
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use kernel::workqueue::WorkItem;

/// Larger bios without data are saved and let go in parts of this size.
const PART_SECTORS: u32 = (8 << 20) / 512;

impl WorkItem<1> for Session {
    type Pointer = Arc<Session>;

    fn run(this: Arc<Session>) {
        let _live = Token::new(Kind::Works);
        let _noio = NoIo::enter();
        let own = this.origin.enter();
        loop {
            while let Some(Todo { sectors, taints, lent }) = next_current(&this) {
                if taints {
                    // Before it goes. Whoever waits for the writer is the reader, as ever.
                    this.taint(TAINT_DISCARD);
                }
                let disk = own.as_deref().map(OpenDisk::disk).or(lent);
                if let Err((error, sector)) = save(&this, disk, &sectors) {
                    this.fail(error, sector);
                }
                if this.queue.lock().hang() {
                    this.kick_releaser();
                }
                // Behind it, so that it need not wait for that.
                if let Some(chunks) = this.geo.touched(&sectors) {
                    read_ahead(&this, own.as_deref(), |stream| stream.write(&chunks));
                }
            }
            let Some(end) = this.take_passed() else { break };
            read_ahead(&this, own.as_deref(), |stream| stream.pass(end));
        }
        drop(own);
        this.origin.leave();
    }
}

/// What is to be done before the current bio goes.
struct Todo<'a> {
    /// What has to be saved.
    sectors: Sectors,
    /// The store has to say that it overwrites what is not.
    taints: bool,
    /// Its disk, which it keeps for what is read for it, in a raw session.
    lent: Option<Disk<'a>>,
}

/// Makes the next bio that came the current one. What is lent with it may be used between `Queue::push` and
/// `Queue::started`: there the queue keeps a bio.
fn next_current<'a>(this: &Arc<Session>) -> Option<Todo<'a>> {
    const NOTHING: Sectors = Sectors { start: 0, end: 0 };
    let mut q = this.queue.lock();
    let bio = q.next_incoming()?;
    let view = bio.view();
    let op = view.op();
    // What the original would refuse it gets to refuse.
    let mut sectors = view.sectors().unwrap_or(NOTHING);
    let taints = op == sys::OP_DISCARD && this.discard == Discard::Pass;
    if taints || this.absorbs(&view) {
        sectors = NOTHING;
    }
    // SAFETY: The reader uses it only between the push of a slice, which the queue refuses when the bio may have
    // gone, and the word that its read has been started; its reads use it until they have ended. Until then the
    // queue keeps a bio of this disk, and the submitter of one that has not gone has its disk open.
    let lent = (this.by == By::RawWrite).then(|| unsafe { bio.lend() }).flatten();
    // Another medium has other content.
    let lent = lent.filter(|disk| disk.id() == this.place.id);
    let divisible = matches!(op, sys::OP_WRITE_ZEROES | sys::OP_DISCARD | sys::OP_SECURE_ERASE);
    if divisible && sectors.len() > u64::from(PART_SECTORS) {
        // Cut the lock for the allocation; meanwhile the bio is nobody's.
        drop(q);
        return Some(Todo { sectors: split(this, bio), taints: false, lent });
    }
    if !q.set_current(bio) {
        drop(q);
        this.kick_releaser();
        return Some(Todo { sectors: NOTHING, taints: false, lent });
    }
    Some(Todo { sectors, taints, lent })
}

/// Makes the front of a large bio the current one, and returns its sectors.
fn split(this: &Arc<Session>, mut bio: HeldBio) -> Sectors {
    let all = bio.view().sectors().unwrap_or(Sectors { start: 0, end: 0 });
    let none = Sectors { start: all.start, end: all.start };
    let Some(front) = bio.split(PART_SECTORS) else {
        if this.queue.lock().set_current(bio) {
            this.fail(ENOMEM, all.start);
        } else {
            this.kick_releaser();
        }
        return none;
    };
    let sectors = front.view().sectors().unwrap_or(none);
    live::add(Kind::Bios, 1);
    let held = this.queue.lock().set_split(front, bio);
    // Meanwhile it could not drop what was read ahead.
    this.kick_writer();
    if !held {
        this.kick_releaser();
        return none;
    }
    sectors
}

/// Starts reads of all chunks in `sectors` that have no slice yet. The error
/// comes with the (disk's) sector that could not be saved.
fn save(
    this: &Arc<Session>,
    disk: Option<Disk<'_>>,
    sectors: &Sectors,
) -> Result<(), (Error, u64)> {
    let Some(chunks) = this.geo.touched(sectors) else { return Ok(()) };
    let mut at = chunks.start;
    while let Some(run) = this.unsaved_run(at, chunks.end, true) {
        let sector = this.geo.sectors_of(&run).start;
        let Some(disk) = disk else { return Err((ENXIO, sector)) };
        match read_run(this, disk, run, true) {
            // What is on its way to the store comes back as memory.
            Err(e) if e == ENOMEM && core().budget.wait_for_own(this) => {}
            Ok(Some(taken)) => at = run.start + taken,
            Ok(None) => return Ok(()),
            Err(e) => return Err((e, sector)),
        }
    }
    Ok(())
}

/// The stream is told of what is being written: if that goes on with it, reads what comes
/// next. Whatever goes wrong is no harm.
fn read_ahead(this: &Arc<Session>, own: Option<&OpenDisk>, tell: impl FnOnce(&mut Stream)) {
    let Some(own) = own else { return };
    // Where the store is nearly full, what nobody needs must not fill it.
    if this.ahead.most == 0 || this.store_low.load(Ordering::Relaxed) || this.is_broken() {
        return;
    }
    let mut stream = this.stream.lock();
    tell(&mut stream);
    let Some(ahead) = stream.plan(&this.ahead) else { return };
    // Before the reads, lest the writer be faster.
    this.set_mark(ahead.mark);
    let mut at = ahead.run.start;
    while let Some(run) = this.unsaved_run(at, ahead.run.end, false) {
        match read_run(this, own.disk(), run, false) {
            Ok(Some(taken)) => at = run.start + taken,
            Ok(None) | Err(_) => {
                this.set_mark(None);
                return stream.cut(run.start);
            }
        }
    }
}

/// Starts the read of a run, which a bio needs if it is `wanted`; returns how
/// many of its chunks it took, `None` if the session broke meanwhile or, unless
/// it is `wanted`, there is no room.
fn read_run(this: &Arc<Session>, disk: Disk<'_>, run: Chunks, wanted: bool) -> Result<Option<u64>> {
    let mut bytes = this.geo.sectors_of(&run).len() * 512;
    let budget = &core().budget;
    let got = if wanted { budget.acquire(this, bytes) } else { budget.try_spare(this, bytes) };
    if !got {
        return Ok(None);
    }
    // From here on the budget is the slice's, or has to be given back.
    let slice = (|| {
        this.add_leaves(run.start, run.end)?;
        let mut pages = KVec::with_capacity((bytes as usize).div_ceil(PAGE_SIZE), GFP_KERNEL)?;
        while pages.len() * PAGE_SIZE < bytes as usize {
            match if wanted { this.page() } else { Page::new() } {
                Some(page) => pages.push(page, GFP_KERNEL)?,
                None => break,
            }
        }
        // Memory for a part of the run is enough for that part.
        let whole = this.geo.whole_chunks((pages.len() * PAGE_SIZE) as u64);
        let mut part = run;
        if pages.len() * PAGE_SIZE < bytes as usize {
            if whole == 0 {
                while let Some(page) = pages.pop() {
                    this.give_back(page);
                }
                return Err(ENOMEM);
            }
            part.end = run.start + whole;
            let used = this.geo.sectors_of(&part).len() * 512;
            pages.truncate((used as usize).div_ceil(PAGE_SIZE));
        }
        let part_bytes = this.geo.sectors_of(&part).len() * 512;
        let slice = KBox::new(
            Slice {
                session: Arc::as_ptr(this),
                run: part,
                bytes: part_bytes as u32,
                pages,
                state: AtomicU32::new(READING),
                _live: Token::new(Kind::Slices),
            },
            GFP_KERNEL | __GFP_NOWARN,
        )?;
        Ok((slice, part, part_bytes))
    })();
    let (slice, part, part_bytes) = match slice {
        Ok(s) => s,
        Err(e) => {
            core().budget.release(this, bytes);
            return Err(e);
        }
    };
    if part_bytes < bytes {
        core().budget.release(this, bytes - part_bytes);
        bytes = part_bytes;
    }
    let raw: *const Slice = &*slice;
    let mut q = this.queue.lock();
    let pushed = q.push(slice, wanted);
    if let Err(slice) = pushed {
        drop(q);
        drop(slice);
        core().budget.release(this, bytes);
        return Ok(None);
    }
    this.reads.fetch_add(1, Ordering::AcqRel);
    this.note_ring(&q);
    drop(q);
    let sector = this.geo.sectors_of(&part).start;
    // SAFETY: The slice stays in the ring, at its address, until its state is
    // no longer `READING`, which only the end of this read changes. Until then somebody has the disk open:
    // a mounted device's session itself, as long as `reads` counts this read; a raw one's bio.
    let started = unsafe {
        let s = &*raw;
        disk.read_start(sector, &s.pages, s.bytes as usize, raw.cast_mut().cast::<c_void>())
    };
    if let Err(e) = started {
        // SAFETY: As above; no read was started, so nobody else tells.
        unsafe { read_done(raw, e.to_errno()) };
    }
    if this.queue.lock().started() {
        this.kick_releaser();
    }
    Ok(Some(part.end - part.start))
}

/// The end of a slice's read; from the bio's end_io, mostly in an interrupt.
///
/// # Safety
///
/// `slice` must be that of a started read whose end has not been told.
unsafe fn read_done(slice: *const Slice, error: c_int) {
    // SAFETY: The slice is in the ring while its state is `READING`, and its
    // session lives while `reads` counts this read.
    unsafe {
        let session = (*slice).session;
        let state = if error == 0 { READ } else { READ + error.unsigned_abs() };
        // After this store the slice may be gone.
        (*slice).state.store(state, Ordering::Release);
        {
            let session = ArcBorrow::from_raw(session);
            // The clone is never the last reference: whoever drops that waits
            // for `reads`.
            let session: Arc<Session> = session.into();
            if session.durability == Durability::Strict {
                session.kick_writer();
            }
            // If a raw session is broken, its bios may wait for this.
            if session.durability == Durability::Async || session.by == By::RawWrite {
                session.kick_releaser();
            }
        }
        (*session).reads.fetch_sub(1, Ordering::Release);
    }
}

/// Called by C at the end of each read.
#[no_mangle]
extern "C" fn bdsnap_read_done(slice: *mut c_void, error: c_int) {
    // SAFETY: C hands back the cookie of `read_start`, once.
    unsafe { read_done(slice.cast::<Slice>(), error) }
}
