// SPDX-License-Identifier: GPL-2.0

//! Lets held bios go, in the order in which they were held.

use crate::live::{Kind, Token};
use crate::pure::format::Durability;
use crate::pure::plan::Chunks;
use crate::session::{weight, Session};
use crate::sys::{HeldBio, NoIo};
use ::core::sync::atomic::Ordering;
use kernel::sync::Arc;
use kernel::workqueue::WorkItem;

impl WorkItem<3> for Session {
    type Pointer = Arc<Session>;

    fn run(this: Arc<Session>) {
        let _live = Token::new(Kind::Works);
        let _noio = NoIo::enter();
        if this.durability == Durability::Async {
            advance_buffered(&this);
            this.kick_writer();
        }
        loop {
            let Some(bio) = this.queue.lock().take_ready() else { break };
            let weight = weight(&bio);
            finish(&this, bio);
            // Only now: a look at the device when all has gone must see it.
            this.let_go(weight);
        }
    }
}

/// In `async`, what is in memory is safe.
fn advance_buffered(this: &Session) {
    this.queue.lock().advance_buffered(|run| {
        this.saved().insert(run.start, run.end);
        // Before the bios that wait for it go: the end looks at the samples when all have.
        this.sampler.lock().offer(run.start);
    });
}

fn finish(this: &Arc<Session>, bio: HeldBio) {
    if this.absorbs(&bio.view()) && !this.is_broken() {
        return absorb(this, bio);
    }
    crate::hook::send_on(bio, Some(this));
}

/// Passes a discard's saved parts and completes the others as if done: the
/// device keeps their content, which is their pre-image.
fn absorb(this: &Arc<Session>, mut bio: HeldBio) {
    while let Some(all) = bio.view().sectors() {
        let dev = this.geo.on_disk();
        let Some(Chunks { start, end }) = this.geo.touched(&all) else { break };
        if all.start < dev.start {
            // Begins before the registered device: that part is not ours.
            let Some(front) = front_part(&mut bio, dev.start - all.start) else {
                return complete(this, bio);
            };
            crate::hook::send_on(front, Some(this));
            continue;
        }
        let saved = this.saved().contains(start);
        let next = this.saved().first(start, end, !saved).unwrap_or(end);
        let stop = this.geo.sectors_of(&Chunks { start, end: next }).end;
        if stop >= all.end {
            return if saved { crate::hook::send_on(bio, Some(this)) } else { complete(this, bio) };
        }
        let Some(front) = front_part(&mut bio, stop - all.start) else {
            // Not to discard is always right.
            return complete(this, bio);
        };
        if saved {
            crate::hook::send_on(front, Some(this));
        } else {
            complete(this, front);
        }
    }
    crate::hook::send_on(bio, Some(this));
}

fn front_part(bio: &mut HeldBio, sectors: u64) -> Option<HeldBio> {
    bio.split(u32::try_from(sectors).ok()?)
}

fn complete(this: &Arc<Session>, bio: HeldBio) {
    let bytes = bio.view().bytes().into();
    this.absorbed_bytes.fetch_add(bytes, Ordering::Relaxed);
    bio.complete();
}
