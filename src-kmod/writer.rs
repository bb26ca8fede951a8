// SPDX-License-Identifier: GPL-2.0

//! Moves pre-images from memory into the store, in order and in batches.

use crate::core_state::core;
use crate::live::{Kind, Token};
use crate::pure::format::Durability;
use crate::pure::prefill;
use crate::pure::queue::Next;
use crate::session::{error_of, Pending, Session};
use crate::store::{Files, Why, BATCH};
use crate::sys::NoIo;
use ::core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::workqueue::WorkItem;

/// Most bytes that are made durable together.
const BATCH_BYTES: u64 = 16 << 20;

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
            while retire(this, files, BATCH) != 0 {}
            // Before a filesystem may write there is nothing to mark.
            if !files.broken_marked && this.beginning.lock().is_some() {
                files.mark_broken(this, &Why::of(this));
            }
            return;
        }
        // The first writes may come while the claim still looks at the device.
        if this.beginning.lock().is_none() {
            return;
        }
        match collect(this, files) {
            Next::Nothing => return,
            Next::Failed(f) => give_up(this, files, error_of(f.errno), f.sector),
            Next::Ahead => drop_ahead(this),
            Next::Unread(errno, run) => {
                give_up(this, files, error_of(errno), this.geo.sectors_of(&run).start)
            }
            Next::Batch => {
                let sector = this.geo.on_disk().start;
                match files.write_batch(this) {
                    Ok(()) => retire_batch(this, files),
                    Err(e) => {
                        let sector = first_sector(this, files).unwrap_or(sector);
                        give_up(this, files, e, sector);
                    }
                }
            }
        }
    }
}

/// Breaks the session, but says so in the store before the held writes go: a
/// power cut between the two must not leave a session that looks whole. (Should
/// the store hang, the watch breaks the session meanwhile.)
fn give_up(this: &Arc<Session>, files: &mut Files, error: Error, sector: u64) {
    let device_sector = sector.saturating_sub(this.geo.on_disk().start);
    files.mark_broken(this, &Why::now(error, device_sector));
    this.break_with(error, sector);
}

/// The disk's sector that the batch begins with.
fn first_sector(this: &Session, files: &Files) -> Option<u64> {
    // SAFETY: Slices of the batch are in the ring until this writer retires
    // them.
    let slice = unsafe { &**files.batch.first()? };
    Some(this.geo.sectors_of(&slice.run).start)
}

/// Puts the addresses of the oldest slices whose reads have ended well into
/// the batch. They stay in the ring.
fn collect(this: &Session, files: &mut Files) -> Next {
    // Only in strict does a batch cost more than its bytes.
    let few = match this.durability {
        Durability::Strict => prefill::MAX_BATCH / u64::from(this.geo.chunk_bytes()),
        Durability::Async => 0,
    };
    let mut bytes = 0;
    let batch = &mut files.batch;
    batch.clear();
    this.queue.lock().collect(few, |slice| {
        bytes += u64::from(slice.bytes);
        // Its capacity is BATCH: this does not allocate.
        (batch.is_empty() || bytes <= BATCH_BYTES) && batch.push_within_capacity(&**slice).is_ok()
    })
}

/// The batch is safe: its chunks are saved, its bios may go, its memory is
/// free.
fn retire_batch(this: &Arc<Session>, files: &mut Files) {
    for &slice in files.batch.iter() {
        // SAFETY: Still in the ring.
        let run = unsafe { (*slice).run };
        this.saved().insert(run.start, run.end);
        if this.durability == Durability::Strict {
            this.sampler.lock().offer(run.start);
        }
    }
    retire(this, files, files.batch.len());
    this.kick_releaser();
}

/// Takes the `most` oldest slices, at most [`BATCH`], out of the ring, but none
/// whose read is under way; returns how many those were.
fn retire(this: &Session, files: &mut Files, most: usize) -> usize {
    files.batch.clear();
    let mut bytes = 0;
    let mut q = this.queue.lock();
    while files.retired.len() < most {
        let Some(p) = q.retire() else { break };
        bytes += u64::from(p.slice.bytes);
        // Its capacity is BATCH, so that nothing is freed under the lock.
        if files.retired.push_within_capacity(p).is_err() {
            break;
        }
    }
    this.note_ring(&q);
    drop(q);
    let n = files.retired.len();
    while let Some(p) = files.retired.pop() {
        free(this, p);
    }
    core().budget.release(this, bytes);
    n
}

/// The memory of a slice that is in the ring no more, and whose bios are ready.
fn free(this: &Session, mut pending: Pending) {
    while let Some(page) = pending.slice.pages.pop() {
        this.give_back(page);
    }
}

/// Takes out the oldest slice, which was read ahead in vain. Bios that need chunks
/// of it have those read again, and no others.
fn drop_ahead(this: &Arc<Session>) {
    let mut q = this.queue.lock();
    let dropped = q.drop_ahead();
    this.note_ring(&q);
    drop(q);
    if let Some(pending) = dropped {
        let bytes = pending.slice.bytes.into();
        free(this, pending);
        core().budget.release(this, bytes);
        this.kick_reader();
        this.kick_releaser();
    }
}

fn finish_if_due(this: &Arc<Session>, files: &mut Files) {
    if this.finished.load(Ordering::Acquire)
        || this.ending.lock().is_none()
        || !this.queue.lock().is_empty()
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
    core().forget(this);
    this.closed.happen();
}
