// SPDX-License-Identifier: GPL-2.0

//! Moves pre-images from memory into the store, in order and in batches.

use crate::core_state::core;
use crate::live::{Kind, Token};
use crate::pure::format::Durability;
use crate::pure::plan::Chunks;
use crate::pure::prefill;
use crate::pure::queue::Next;
use crate::session::{error_of, Pending, Queue, Session};
use crate::store::{Files, Why};
use crate::sys::NoIo;
use ::core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::WorkItem;

/// Most bytes that are written at a time.
const BATCH_BYTES: u64 = 4 << 20;

impl WorkItem<2> for Session {
    type Pointer = Arc<Session>;

    fn run(this: Arc<Session>) {
        let _live = Token::new(Kind::Works);
        let _noio = NoIo::enter();
        let mut files = this.files.lock();
        if !files.looked {
            files.looked = true;
            if let Err(e) = files.look(&this) {
                this.break_with(e, this.geo.on_disk().start);
            }
            this.opened.happen();
        }
        write_what_is_read(&this, &mut files);
        finish_if_due(&this, &mut files);
    }
}

fn write_what_is_read(this: &Arc<Session>, files: &mut Files) {
    loop {
        if this.is_broken() {
            // Its slices are of no more use; those whose reads are under way stay until they end.
            files.forget_batches();
            retire_broken(this);
            // Before a filesystem may write there is nothing to mark.
            if this.beginning.lock().is_some() {
                if !files.broken_marked {
                    files.mark_broken(this, &Why::of(this));
                } else if this.untold() == (0, 0) {
                    return;
                } else if let Err(e) = files.tell_news(this) {
                    pr_err!(
                        "cannot write into the store what became of a broken session: {}\n",
                        e.to_errno()
                    );
                }
            }
            return;
        }
        // The first writes may come while the claim still looks at the device.
        files.begun = files.begun || this.beginning.lock().is_some();
        if !files.begun {
            return;
        }
        if this.untold() != (0, 0) {
            if let Err(e) = files.tell_news(this) {
                give_up(this, files, e, this.geo.on_disk().start);
                continue;
            }
        }
        if let Err((e, sector)) = sync_beside(this, files) {
            give_up(this, files, e, sector);
            continue;
        }
        let (next, from) = collect(this, files);
        match next {
            Next::Nothing => return,
            Next::Failed(f) => give_up(this, files, error_of(f.errno), f.sector),
            Next::Ahead => drop_ahead(this),
            Next::Unread(errno, run) => {
                give_up(this, files, error_of(errno), this.geo.sectors_of(&run).start)
            }
            Next::Batch => {
                let sector = files.sector_of(this, from);
                match write(this, files, from) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(e) => give_up(this, files, e, sector),
                }
            }
        }
    }
}

/// Writes the slices of the batch from the `from`th on, or all that can be done of it now. False: that is
/// nothing until the sync ends that is under way.
fn write(this: &Arc<Session>, files: &mut Files, from: usize) -> Result<bool> {
    if files.is_large(this, from) {
        files.write_data(this, from)?;
    } else if files.syncing.is_none() {
        retire_saved(this, files.write_batch(this)?);
    } else {
        this.queue.lock().put_back(files.batch.slices.len() - from);
        files.batch.slices.truncate(from);
        return Ok(false);
    }
    Ok(true)
}

/// What was made durable beside the writer counts, and what is to be comes next. The error comes with
/// the (disk's) sector that could not be saved.
fn sync_beside(this: &Arc<Session>, files: &mut Files) -> Result<(), (Error, u64)> {
    if files.syncing.is_some() {
        let ended = this.syncer.lock().take_result();
        if let Some(result) = ended {
            files.end_sync(this, result)?;
        }
    }
    if files.syncing.is_none() && !files.batch.slices.is_empty() {
        files.begin_sync(this).map_err(|e| (e, files.sector_of(this, 0)))?;
    }
    Ok(())
}

/// Breaks the session, but says so in the store before the held writes go: a
/// power cut between the two must not leave a session that looks whole. (Should
/// the store hang, the watch breaks the session meanwhile.)
fn give_up(this: &Arc<Session>, files: &mut Files, error: Error, sector: u64) {
    let device_sector = sector.saturating_sub(this.geo.on_disk().start);
    files.mark_broken(this, &Why::now(error, device_sector));
    this.break_with(error, sector);
}

/// Adds the addresses of the oldest slices that are in no batch and whose reads have ended well to the
/// batch; returns where they begin in it. They stay in the ring.
fn collect(this: &Session, files: &mut Files) -> (Next, usize) {
    // Only in strict does a batch cost more than its bytes.
    let few = match this.durability {
        Durability::Strict => prefill::MAX_BATCH / u64::from(this.geo.chunk_bytes()),
        Durability::Async => 0,
    };
    let mut bytes = 0;
    let slices = &mut files.batch.slices;
    let from = slices.len();
    let next = this.queue.lock().collect(few, |slice| {
        bytes += u64::from(slice.bytes);
        // Its capacity is BATCH: this does not allocate.
        (bytes <= BATCH_BYTES || slices.is_empty()) && slices.push_within_capacity(&**slice).is_ok()
    });
    if next != Next::Batch {
        slices.truncate(from);
    }
    (next, from)
}

/// The oldest slices, so many of them, are safe: their chunks are saved, their bios may go, their memory is
/// free. Those of a session that broke meanwhile are left to [`retire_broken`].
pub(crate) fn retire_saved(this: &Arc<Session>, slices: usize) {
    let mut bytes = 0;
    let saved = |run: &Chunks| {
        this.saved().insert(run.start, run.end);
        if this.durability == Durability::Strict {
            this.sampler.lock().offer(run.start);
        }
    };
    for _ in 0..slices {
        let Some(retired) = take_out(this, |q| q.retire_saved(saved)) else { break };
        bytes += retired;
    }
    core().budget.release(this, bytes);
    this.kick_releaser();
}

/// Takes the slices of a broken session out of the ring, up to the first whose read is under way.
fn retire_broken(this: &Session) {
    let mut bytes = 0;
    while let Some(retired) = take_out(this, Queue::retire) {
        bytes += retired;
    }
    core().budget.release(this, bytes);
}

/// Takes a slice out of the ring, if `which` does, and frees its memory; returns its bytes, which are to be given
/// back to the budget.
fn take_out(this: &Session, which: impl FnOnce(&mut Queue) -> Option<Pending>) -> Option<u64> {
    let mut q = this.queue.lock();
    let pending = which(&mut q);
    this.note_ring(&q);
    // Nothing is freed under the lock.
    drop(q);
    let mut slice = pending?.slice;
    while let Some(page) = slice.pages.pop() {
        this.give_back(page);
    }
    Some(slice.bytes.into())
}

/// Takes out the oldest slice, which was read ahead in vain. Bios that need chunks
/// of it have those read again, and no others.
fn drop_ahead(this: &Arc<Session>) {
    if let Some(bytes) = take_out(this, Queue::drop_ahead) {
        core().budget.release(this, bytes);
        this.kick_reader();
        this.kick_releaser();
    }
}

fn finish_if_due(this: &Arc<Session>, files: &mut Files) {
    if this.finished.load(Ordering::Acquire)
        || this.ending.lock().is_none()
        || !this.queue.lock().is_empty()
        || files.syncing.is_some()
        || this.syncer.lock().is_busy()
    {
        return;
    }
    this.finished.store(true, Ordering::Release);
    if let Err(e) = files.finish(this, this.state()) {
        this.finished.store(false, Ordering::Release);
        this.break_with(e, this.geo.on_disk().start);
        this.finished.store(true, Ordering::Release);
        files.mark_broken(this, &Why::of(this));
    }
    files.close();
    // Who told the end of the last read may still be about to leave.
    while this.reads.load(Ordering::Acquire) != 0 {
        crate::sys::sleep(1);
    }
    let open = this.origin.finish();
    core().forget(this);
    // Before the filesystem gives its own back, so that who takes the device away next can.
    drop(open);
    this.closed.happen();
}
