// SPDX-License-Identifier: GPL-2.0

//! A held bio's way through a session: every decision that is made under the
//! session's queue lock.
//!
//! ```text
//! park ─▶ incoming ─▶ current ─▶ waiters of the youngest slice ─▶ ready ─▶ let go
//!            (reader)     ▲    │         (writer, in async the releaser)   (releaser)
//!                       again ◀┘ a slice that was read ahead has failed
//! ```
//!
//! The rules, which the tests try in all orders of small cases:
//!
//! * The reader alone adds slices and the writer alone takes them, in the same order; it or the
//!   syncer retires them, in that order, too. So a bio need not know which slices it waits for: it hangs on
//!   the youngest at the time, and when that one is retired all its own are.
//! * Once a session is broken its bios go, so a read that ends later may see
//!   what they wrote: nothing is collected any more.
//! * A slice may be read ahead of the bios that will need it, and of more than they will
//!   need. So its failed read is nobody's loss: it is dropped, and if a bio needed chunks
//!   of it, all that came by then are looked at again, and read their own.
//! * A raw session has no disk of its own: held bios keep it, each for the reads that were made for
//!   it. Those have ended when it goes; if the session breaks before, one stays for the last read.
//! * What the reader cannot do it leaves to the writer to tell: the store has to
//!   say that the session is broken before a write goes on that it lost. Until
//!   then the reader stands still.
//!
//! Nothing here allocates.

use super::deadline::Watch;
use super::plan::Chunks;
use core::marker::PhantomData;
use core::ops::DerefMut;

/// Bios in the order in which they came. Taking and adding allocates nothing.
pub trait Bios {
    /// A bio that is ours.
    type Bio;
    /// None.
    fn none() -> Self;
    /// Adds one at the end.
    fn push(&mut self, bio: Self::Bio);
    /// Takes the first.
    fn pop(&mut self) -> Option<Self::Bio>;
    /// Takes all of `other` behind its own.
    fn append(&mut self, other: &mut Self);
}

/// How far a slice's read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Read {
    /// Not at its end.
    UnderWay,
    /// The pre-images are in memory.
    Done,
    /// Nothing came; a positive errno.
    Failed(u32),
}

/// A run of chunks on its way from the device to the store.
pub trait Slice {
    /// The chunks.
    fn run(&self) -> Chunks;
    /// How far its read is; may change at any time from [`Read::UnderWay`].
    fn read(&self) -> Read;
}

/// Finds runs in the ring; see [`super::pending`].
pub trait Index {
    /// A run has come into `place`, as the youngest.
    fn push(&mut self, place: usize, run: &Chunks);
    /// The oldest run, in `place`, goes.
    fn pop(&mut self, place: usize, run: &Chunks);
    /// Of the runs that have chunks of `range` the one with the lowest start, and
    /// its place.
    fn first(
        &self,
        range: &Chunks,
        run_of: impl Fn(usize) -> Option<Chunks>,
    ) -> Option<(usize, Chunks)>;
}

/// A slice in the ring, and the bios that wait for it and all before it.
pub struct Pending<S, B> {
    /// The slice.
    pub slice: S,
    /// Bios.
    pub waiters: B,
    /// A bio changes chunks of it.
    pub wanted: bool,
    /// No bio did when its read was started.
    pub ahead: bool,
}

/// Why a session breaks: a positive errno, and the disk's sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Failure {
    /// A positive errno.
    pub errno: u32,
    /// The disk's sector that could not be saved.
    pub sector: u64,
}

/// What the writer has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing, or the session is broken.
    Nothing,
    /// To write the slices that were taken.
    Batch,
    /// To say that the session is broken, by what the reader could not do.
    Failed(Failure),
    /// The same: this run's read failed with this errno.
    Unread(u32, Chunks),
    /// To take out a slice that was read ahead in vain: [`Queue::drop_ahead`].
    Ahead,
}

/// So many slices that were read ahead are written together, if nobody waits.
const FEW: usize = 2;

/// What a session's lock protects.
///
/// # Invariants
///
/// * The places from `head`, `len` of them, cyclically, are `Some`, the others
///   `None`; `index` has the runs of all of them. `buffered <= len`: so many from
///   `head` are known to be in memory. `awaited <= len`: so many are to be read before the
///   next small batch.
/// * `released <= held`.
/// * The bios in the waiters are older than `current`, that one than those in `again`, and
///   those than `incoming`.
/// * `broken`: nothing is in `incoming`, `again`, `current` and the waiters, and never
///   will be; `failed` is `None`.
pub struct Queue<S, B: Bios, P, I> {
    pub(super) incoming: B,
    pub(super) again: B,
    /// The reader has taken a bio, which is nowhere here.
    pub(super) in_hand: bool,
    /// See [`Queue::new`]. Not once the session is broken and the last read has ended.
    pub(super) borrows: bool,
    /// The reader is about to start a read.
    pub(super) reads: bool,
    pub(super) current: Option<B::Bio>,
    pub(super) failed: Option<Failure>,
    pub(super) places: P,
    pub(super) index: I,
    pub(super) head: usize,
    pub(super) len: usize,
    pub(super) buffered: usize,
    pub(super) awaited: usize,
    pub(super) taken: usize,
    pub(super) ready: B,
    pub(super) held: u64,
    pub(super) released: u64,
    pub(super) held_bytes: u64,
    pub(super) broken: bool,
    pub(super) closing: bool,
    pub(super) gone: bool,
    watch: Watch,
    slices: PhantomData<S>,
}

impl<S, B, P, I> Queue<S, B, P, I>
where
    S: Slice,
    B: Bios,
    P: DerefMut<Target = [Option<Pending<S, B>>]>,
    I: Index,
{
    /// With a ring of as many slices as there are `places`, all `None`. `borrows`: it is held bios that keep
    /// the disk open, each for the reads that are made for it.
    pub fn new(places: P, index: I, borrows: bool) -> Self {
        // INVARIANT: The caller's places are empty.
        Self {
            incoming: B::none(),
            again: B::none(),
            in_hand: false,
            borrows,
            reads: false,
            current: None,
            failed: None,
            places,
            index,
            head: 0,
            len: 0,
            buffered: 0,
            awaited: 0,
            taken: 0,
            ready: B::none(),
            held: 0,
            released: 0,
            held_bytes: 0,
            broken: false,
            closing: false,
            gone: false,
            watch: Watch::new(),
            slices: PhantomData,
        }
    }

    // ---- Whoever submits ----

    /// Holds a bio that counts for `bytes`; hands it back if it may go at once,
    /// because nothing is held any more.
    pub fn park(&mut self, bio: B::Bio, bytes: u64) -> Result<(), B::Bio> {
        if self.gone || self.broken {
            return Err(bio);
        }
        self.held += 1;
        self.held_bytes = self.held_bytes.saturating_add(bytes);
        self.incoming.push(bio);
        Ok(())
    }

    /// More than `bytes` or `bios` are held: submitters that can should wait.
    pub fn is_crowded(&self, bytes: u64, bios: u64) -> bool {
        !self.broken && (self.held_bytes > bytes || self.holding() > bios)
    }

    // ---- The reader ----

    /// Takes the next bio that came, or has to be looked at again; it is the caller's, to be handed on with
    /// [`Queue::set_current`] or [`Queue::set_split`]. None also while the
    /// writer has yet to tell of what the reader could not do.
    pub fn next_incoming(&mut self) -> Option<B::Bio> {
        if self.current.is_some() {
            return None;
        }
        let bio = self.again.pop().or_else(|| self.incoming.pop())?;
        self.in_hand = true;
        Some(bio)
    }

    /// The bio whose pre-images are read next. False: the session broke
    /// meanwhile, and it is ready.
    pub fn set_current(&mut self, bio: B::Bio) -> bool {
        self.in_hand = false;
        if self.broken {
            self.ready.push(bio);
            return false;
        }
        self.current = Some(bio);
        true
    }

    /// The same for a bio of which two were made. The rest lines up as if it had
    /// just come: the others must not wait for all of it.
    pub fn set_split(&mut self, front: B::Bio, rest: B::Bio) -> bool {
        self.in_hand = false;
        self.held += 1;
        if self.broken {
            self.ready.push(front);
            self.ready.push(rest);
            return false;
        }
        self.incoming.push(rest);
        self.current = Some(front);
        true
    }

    /// The first run on its way that has chunks of `range`. If a bio changes those,
    /// it is `wanted`.
    pub fn overlapping(&mut self, range: &Chunks, wanted: bool) -> Option<Chunks> {
        let run_of = |at: usize| Some(self.places.get(at)?.as_ref()?.slice.run());
        let (at, run) = self.index.first(range, run_of)?;
        if let Some(p) = self.places[at].as_mut() {
            p.wanted |= wanted;
        }
        Some(run)
    }

    /// Adds a slice, before its read is started, which [`Queue::started`] tells; hands it back if the session
    /// broke (it may end at any time then) or the ring is full. One that no bio
    /// has `wanted` yet also if it closes: with the last bio all has to be over.
    pub fn push(&mut self, slice: S, wanted: bool) -> Result<(), S> {
        let over = self.broken || (self.closing && !wanted);
        if over || self.len >= self.places.len() {
            return Err(slice);
        }
        let at = (self.head + self.len) % self.places.len();
        self.index.push(at, &slice.run());
        self.places[at] = Some(Pending { slice, waiters: B::none(), wanted, ahead: !wanted });
        self.len += 1;
        self.reads = true;
        Ok(())
    }

    /// The read of the slice that was pushed is under way, or could not be started. True: bios may go that
    /// waited for that.
    #[must_use]
    pub fn started(&mut self) -> bool {
        self.reads = false;
        self.broken && self.borrows
    }

    /// What the current bio changes cannot be saved. It stays where it is until
    /// the writer has said so in the store and breaks the session.
    pub fn fail(&mut self, failure: Failure) {
        if !self.broken && self.current.is_some() {
            self.failed.get_or_insert(failure);
        }
    }

    /// All reads for the current bio are on their way: it waits for the youngest
    /// slice. True: there was none, and it is ready.
    pub fn hang(&mut self) -> bool {
        if self.failed.is_some() {
            return false;
        }
        // Whoever broke the session has taken it, or who dropped a slice that it may need.
        let Some(bio) = self.current.take() else { return false };
        // In async, slices that are in memory have let their bios go.
        if self.len > self.buffered {
            let last = (self.head + self.len - 1) % self.places.len();
            if let Some(p) = self.places[last].as_mut() {
                p.waiters.push(bio);
                return false;
            }
        }
        self.ready.push(bio);
        true
    }

    // ---- The writer ----

    /// Shows `take` the oldest slices that are in memory and were not taken before, one
    /// after the other, until it says no. They stay in the ring until they are retired. A batch of fewer than
    /// `few` chunks waits for the reads that are under way for others: it would cost as
    /// much, and theirs would come after it. It does not wait for any that start later.
    pub fn collect(&mut self, few: u64, mut take: impl FnMut(&S) -> bool) -> Next {
        let mut n = 0;
        let next = self.look_for_batch(few, |slice| {
            let taken = take(slice);
            n += usize::from(taken);
            taken
        });
        if next == Next::Batch {
            self.taken += n;
        }
        next
    }

    /// The youngest `slices` of those that were taken are not to be written yet.
    pub fn put_back(&mut self, slices: usize) {
        self.taken = self.taken.saturating_sub(slices);
    }

    fn look_for_batch(&mut self, few: u64, mut take: impl FnMut(&S) -> bool) -> Next {
        let first = self.taken;
        // Its bios go, and a read that ended since may have seen what they wrote.
        if self.broken {
            return Next::Nothing;
        }
        if let Some(failure) = self.failed {
            return Next::Failed(failure);
        }
        let mut wanted = self.holding() != 0;
        let mut chunks = 0;
        for i in first..self.len {
            let Some(p) = &self.places[(self.head + i) % self.places.len()] else { break };
            wanted |= p.wanted;
            let next = if i == first { Next::Nothing } else { Next::Batch };
            match p.slice.read() {
                Read::Done if take(&p.slice) => chunks += p.slice.run().end - p.slice.run().start,
                // Where the bio in the reader's hand belongs can't be said.
                Read::Failed(_) if i == 0 && p.ahead && self.in_hand => return Next::Nothing,
                Read::Failed(_) if i == 0 && p.ahead => return Next::Ahead,
                Read::Failed(errno) if i == 0 => return Next::Unread(errno, p.slice.run()),
                // Nobody needs them yet, and so few are hardly worth a sync. Its read's end
                // starts the writer again.
                Read::UnderWay if !wanted && i - first < FEW => return Next::Nothing,
                Read::UnderWay if i != first && chunks < few && self.awaits(i) => {
                    return Next::Nothing
                }
                // What is before it can still be saved.
                _ => return next,
            }
        }
        if self.len <= first {
            Next::Nothing
        } else {
            Next::Batch
        }
    }

    /// Whether the slice that is the `i`th from the oldest is to be read before a small batch.
    fn awaits(&mut self, i: usize) -> bool {
        if self.awaited == 0 {
            let at = |i: usize| (self.head + i) % self.places.len();
            let wanted = |&i: &usize| self.places[at(i)].as_ref().is_some_and(|p| p.wanted);
            self.awaited = (i..self.len).rev().find(wanted).map_or(0, |last| last + 1);
        }
        i < self.awaited
    }

    /// Takes the oldest slice out, of which the store has the pre-images: `saved` is told, and then
    /// those that waited for it are ready. Not if the session broke.
    pub fn retire_saved(&mut self, saved: impl FnOnce(&Chunks)) -> Option<Pending<S, B>> {
        if self.broken || self.taken == 0 {
            return None;
        }
        saved(&self.places[self.head].as_ref()?.slice.run());
        self.retire()
    }

    /// Takes the oldest slice out, unless its read is under way; those that
    /// waited for it are ready. Its chunks are saved, or the session is broken.
    pub fn retire(&mut self) -> Option<Pending<S, B>> {
        let at = self.head;
        self.places[at].as_ref().filter(|p| p.slice.read() != Read::UnderWay)?;
        let mut p = self.places[at].take()?;
        self.index.pop(at, &p.slice.run());
        self.head = (at + 1) % self.places.len();
        self.len -= 1;
        self.buffered = self.buffered.saturating_sub(1);
        self.awaited = self.awaited.saturating_sub(1);
        self.taken = self.taken.saturating_sub(1);
        self.ready.append(&mut p.waiters);
        Some(p)
    }

    /// Takes the oldest slice out if its read failed and was ahead of those who need it.
    /// If there are such ones by now, all bios are to be looked at again, except those
    /// that have yet to be looked at; otherwise those that waited for it are ready.
    pub fn drop_ahead(&mut self) -> Option<Pending<S, B>> {
        // What the reader could not do is to be told first, of its current bio.
        if self.in_hand || self.failed.is_some() {
            return None;
        }
        let oldest = self.places[self.head].as_ref()?;
        if !oldest.ahead || !matches!(oldest.slice.read(), Read::Failed(_)) {
            return None;
        }
        if oldest.wanted {
            let mut again = self.take_waiters();
            if let Some(bio) = self.current.take() {
                again.push(bio);
            }
            again.append(&mut self.again);
            self.again = again;
        }
        self.retire()
    }

    /// Those that wait for slices, in the order in which they came.
    fn take_waiters(&mut self) -> B {
        let mut all = B::none();
        for i in 0..self.len {
            let at = (self.head + i) % self.places.len();
            if let Some(p) = self.places[at].as_mut() {
                all.append(&mut p.waiters);
            }
        }
        all
    }

    /// Slices on their way.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    // ---- The releaser ----

    /// In async, what is in memory is safe: from the oldest slice on, up to the
    /// first whose read is still under way, `saved` is told, and then their
    /// bios are ready.
    pub fn advance_buffered(&mut self, mut saved: impl FnMut(&Chunks)) {
        while !self.broken && self.buffered < self.len {
            let at = (self.head + self.buffered) % self.places.len();
            let Some(p) = self.places[at].as_mut().filter(|p| p.slice.read() == Read::Done) else {
                return;
            };
            saved(&p.slice.run());
            self.ready.append(&mut p.waiters);
            self.buffered += 1;
        }
    }

    /// Takes the first bio that may go, when the one before it has gone. Whoever ends the last read of a broken
    /// session that borrows its disk has to look again.
    pub fn take_ready(&mut self) -> Option<B::Bio> {
        if self.broken && self.borrows {
            if !self.is_reading() {
                // No read is started any more.
                self.borrows = false;
            } else if self.holding() < 2 {
                return None;
            }
        }
        self.ready.pop()
    }

    /// Whether a read is under way, or may be started at any time.
    fn is_reading(&self) -> bool {
        let under_way = |p: &Pending<S, B>| p.slice.read() == Read::UnderWay;
        self.reads || self.places.iter().flatten().any(under_way)
    }

    /// A bio that counted for `bytes` has gone. True: it closes, and all has.
    #[must_use]
    pub fn let_go(&mut self, bytes: u64) -> bool {
        self.released += 1;
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
        self.is_quiet()
    }

    // ---- The session ----

    /// From now on writes go on unsaved, those that are held first. False: it
    /// was broken before.
    pub fn break_now(&mut self) -> bool {
        if self.broken {
            return false;
        }
        self.broken = true;
        self.failed = None;
        // In the order in which they came.
        let mut waiters = self.take_waiters();
        self.ready.append(&mut waiters);
        if let Some(bio) = self.current.take() {
            self.ready.push(bio);
        }
        self.ready.append(&mut self.again);
        self.ready.append(&mut self.incoming);
        true
    }

    /// No bio is led here any more. True: none is held.
    #[must_use]
    pub fn begin_closing(&mut self) -> bool {
        self.closing = true;
        self.is_quiet()
    }

    /// Whether it closes and all has gone; from then on nothing is held.
    fn is_quiet(&mut self) -> bool {
        self.gone |= self.closing && self.held == self.released;
        self.gone
    }

    /// A look of the watch, see [`Watch`]. True: a bio has been held too long.
    pub fn look(&mut self) -> bool {
        self.watch.look(self.held, self.released) && !self.broken
    }

    /// Bios held since the start.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Of them, still held.
    pub fn holding(&self) -> u64 {
        self.held - self.released
    }
}

#[cfg(test)]
mod tests;
