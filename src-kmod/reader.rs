// SPDX-License-Identifier: GPL-2.0

//! Takes held bios one after the other and reads what they will overwrite.

use crate::core_state::core;
use crate::live::{Kind, Token};
use crate::params::Discard;
use crate::pure::format::Durability;
use crate::pure::plan::{Chunks, Sectors};
use crate::session::{Session, Slice, READ, READING};
use crate::sys::{self, HeldBio, NoIo};
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
        while let Some(job) = next_job(&this) {
            if job.save {
                if let Err((error, sector)) = save(&this, &job.sectors) {
                    this.break_with(error, sector);
                }
            }
            hang_on_youngest(&this);
        }
    }
}

struct Job {
    sectors: Sectors,
    save: bool,
}

/// Makes the next incoming bio the current one.
fn next_job(this: &Arc<Session>) -> Option<Job> {
    loop {
        let mut q = this.queue.lock();
        let bio = q.incoming.pop()?;
        let view = bio.view();
        let (op, count) = (view.op(), view.bytes() / 512);
        // What the original would refuse it gets to refuse.
        let Some(sectors) = view.sectors() else {
            q.current = Some(bio);
            return Some(Job { sectors: Sectors { start: 0, end: 0 }, save: false });
        };
        let absorb = op == sys::OP_DISCARD && this.discard == Discard::Absorb;
        let pass = op == sys::OP_DISCARD && this.discard == Discard::Pass;
        let divisible = matches!(op, sys::OP_WRITE_ZEROES | sys::OP_DISCARD | sys::OP_SECURE_ERASE);
        if absorb || pass || !divisible || count <= PART_SECTORS {
            q.current = Some(bio);
            return Some(Job { sectors, save: !absorb && !pass });
        }
        // Cut the lock for the allocation; meanwhile the bio is nobody's.
        drop(q);
        match split(this, bio) {
            Some(job) => return Some(job),
            None => continue,
        }
    }
}

/// Makes the front of a large bio the current one; the rest lines up again, as
/// if it had just come.
fn split(this: &Arc<Session>, mut bio: HeldBio) -> Option<Job> {
    let Some(front) = bio.split(PART_SECTORS) else {
        let sector = bio.view().sectors().map_or(0, |s| s.start);
        // Broken before it goes, not after: it is taken from here.
        this.queue.lock().current = Some(bio);
        this.break_with(ENOMEM, sector);
        return Some(Job { sectors: Sectors { start: 0, end: 0 }, save: false });
    };
    let sectors = front.view().sectors().unwrap_or(Sectors { start: 0, end: 0 });
    let mut q = this.queue.lock();
    this.count_extra(&mut q);
    if this.is_broken() {
        q.ready.push(front);
        q.ready.push(bio);
        drop(q);
        this.kick_releaser();
        return None;
    }
    // Behind the others: they must not wait for all of it.
    q.incoming.push(bio);
    q.current = Some(front);
    Some(Job { sectors, save: true })
}

/// The current bio waits for the youngest slice, or goes at once if there is
/// none. It is gone already if the session broke.
fn hang_on_youngest(this: &Arc<Session>) {
    let mut q = this.queue.lock();
    let Some(bio) = q.current.take() else { return };
    if !this.is_broken() {
        // In async, slices that are in memory have let their bios go.
        let waiting = q.ring.len() > q.ring.buffered;
        if let Some(p) = q.ring.last().filter(|_| waiting) {
            p.waiters.push(bio);
            return;
        }
    }
    q.ready.push(bio);
    drop(q);
    this.kick_releaser();
}

/// Starts reads of all chunks in `sectors` that have no slice yet. The error
/// comes with the (disk's) sector that could not be saved.
fn save(this: &Arc<Session>, sectors: &Sectors) -> Result<(), (Error, u64)> {
    let Some(chunks) = this.geo.touched(sectors) else { return Ok(()) };
    let mut at = chunks.start;
    while let Some(run) = this.unsaved_run(at, chunks.end) {
        let sector = this.geo.sectors_of(&run).start;
        match read_run(this, run) {
            // What is on its way to the store comes back as memory.
            Err(e) if e == ENOMEM && core().budget.wait_for_own(this) => {}
            Ok(Some(taken)) => at = run.start + taken,
            Ok(None) => return Ok(()),
            Err(e) => return Err((e, sector)),
        }
    }
    Ok(())
}

/// Starts the read of a run; returns how many of its chunks it took, `None`
/// if the session broke meanwhile.
fn read_run(this: &Arc<Session>, run: Chunks) -> Result<Option<u64>> {
    this.add_leaves(run.start, run.end)?;
    let mut bytes = this.geo.sectors_of(&run).len() * 512;
    if !core().budget.acquire(this, bytes) {
        return Ok(None);
    }
    // From here on the budget is the slice's, or has to be given back.
    let slice = (|| {
        let mut pages = KVec::with_capacity((bytes as usize).div_ceil(PAGE_SIZE), GFP_KERNEL)?;
        while pages.len() * PAGE_SIZE < bytes as usize {
            match this.page() {
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
    let pushed = if this.is_broken() {
        // It may end at any time now: nothing new may be under way.
        Err(slice)
    } else {
        q.ring.push(slice)
    };
    if let Err(slice) = pushed {
        drop(q);
        drop(slice);
        core().budget.release(this, bytes);
        return Ok(None);
    }
    this.reads.fetch_add(1, Ordering::AcqRel);
    q.sampler.offer(part.start);
    this.note_ring(&q);
    drop(q);
    let sector = this.geo.sectors_of(&part).start;
    // SAFETY: The slice stays in the ring, at its address, until its state is
    // no longer `READING`, which only the end of this read changes.
    let started = unsafe {
        let s = &*raw;
        this.disk.read_start(sector, &s.pages, s.bytes as usize, raw.cast_mut().cast::<c_void>())
    };
    if let Err(e) = started {
        // SAFETY: As above; no read was started, so nobody else tells.
        unsafe { read_done(raw, e.to_errno()) };
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
            match session.durability {
                Durability::Strict => session.kick_writer(),
                Durability::Async => session.kick_releaser(),
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
