// SPDX-License-Identifier: GPL-2.0

//! A session: what is kept between a device's first claim and its last
//! release, and the queues that a held bio passes through.
//!
//! ```text
//! hook ──park──▶ incoming ──reader──▶ ring of slices ──writer──▶ store
//!                                        │ waiters       │
//!                                        └──▶ ready ◀────┘
//!                                               └──releaser──▶ device
//! ```
//!
//! Three work items, each in a queue of its own: the *reader* submits reads to
//! the origin, the *writer* writes to the store and never submits to an
//! origin, the *releaser* submits held bios. (A fourth, beside the writer, is
//! [`crate::syncer`].) A reader waits for its own writer
//! only, a writer for its store, a releaser for its device: with one queue for
//! two of them a loop device on a tracked filesystem would lock up.
//!
//! What is decided under the queue's lock is in [`crate::pure::queue`].
//!
//! Of `Budget::used` and `Session::queue` a task never has two at once.
//! Breaking a session takes them, one after the other, and allocates nothing;
//! it does not take `Session::files`, which is the writer's.

use crate::core_state::core;
use crate::lifecycle::{Opening, Seen};
use crate::live::{self, Kind, Token};
use crate::origin::Origin;
use crate::params::Discard;
use crate::pure::ahead::{Limits, Stream};
use crate::pure::format::{
    self, Durability, Gap, Id, Sample, State, LATE_MEMBER, SAMPLES_MAX, TAINT_DISCARD,
};
use crate::pure::fs::Fs;
use crate::pure::meta::Sampler;
use crate::pure::name::{ShortString, SESSION_MAX};
use crate::pure::pending;
use crate::pure::plan::{Chunks, Geometry};
use crate::pure::queue::{self, Failure, Read};
use crate::pure::saved_set::{slots_for, Leaf, SavedSet, Slot};
use crate::pure::volume::{By, Place};
use crate::registry::{Identity, Volume};

use crate::store::Files;
use crate::syncer::{Asked, Syncer};
use crate::sys::{self, BioList, BioView, Event, HeldBio, ModuleRef, OpenDisk, Page};
use ::core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_condvar, new_mutex, new_spinlock, Arc, CondVar, Mutex, SpinLock};
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};

/// Pages that each session keeps for when there are no others (256 KiB).
const RESERVE: usize = 64;

/// Held bios from which on submitters wait: what a slow disk can read for in
/// less than the time limit.
pub(crate) const HELD_MAX: u64 = 1024;

/// Most slices on their way at a time.
pub(crate) const RING: usize = pending::PLACES;

/// So much is written one after the other before anything is read ahead, in bytes.
const AHEAD_AFTER: u64 = 4 << 20;

/// No chunk has this number.
const NO_MARK: u64 = u64::MAX;

/// A slice's read is under way.
pub(crate) const READING: u32 = 0;
/// Its pre-images are in memory.
pub(crate) const READ: u32 = 1;
// Anything larger: it failed, the errno plus `READ`.

/// A run of chunks on its way from the origin to the store.
pub(crate) struct Slice {
    /// Its session, which outlives it: see `Session::reads`.
    pub(crate) session: *const Session,
    /// The chunks.
    pub(crate) run: Chunks,
    /// Their bytes (the device's last chunk may be short).
    pub(crate) bytes: u32,
    /// Their content, once `state` is [`READ`].
    pub(crate) pages: KVec<Page>,
    /// [`READING`], [`READ`] or a failure.
    pub(crate) state: AtomicU32,
    pub(crate) _live: Token,
}

// SAFETY: The session's address is only used while the session lives, and all
// of the session may be shared.
unsafe impl Send for Slice {}
// SAFETY: As above.
unsafe impl Sync for Slice {}

impl queue::Slice for KBox<Slice> {
    fn run(&self) -> Chunks {
        self.run
    }

    fn read(&self) -> Read {
        match self.state.load(Ordering::Acquire) {
            READING => Read::UnderWay,
            READ => Read::Done,
            failed => Read::Failed(failed - READ),
        }
    }
}

/// A slice in the ring, and the bios that wait for it and all before it.
pub(crate) type Pending = queue::Pending<KBox<Slice>, BioList>;

/// A session's held bios and slices.
pub(crate) type Queue =
    queue::Queue<KBox<Slice>, BioList, KVVec<Option<Pending>>, pending::Pending<KVVec<u16>>>;

fn new_queue(by: By) -> Result<Queue> {
    let mut places = KVVec::with_capacity(RING, GFP_KERNEL)?;
    for _ in 0..RING {
        places.push(None, GFP_KERNEL)?;
    }
    let links = KVVec::from_elem(0, pending::LINKS, GFP_KERNEL)?;
    let links = pending::Pending::new(links).ok_or(EINVAL)?;
    Ok(Queue::new(places, links, by == By::RawWrite))
}

/// What is known only at the end, for the next session's gap check.
pub(crate) struct Ending {
    /// Hash of the device's first bytes.
    pub(crate) head_sha256: [u8; 32],
    /// Samples of saved chunks as they are now.
    pub(crate) samples: KVec<Sample>,
    /// Modification time of an image.
    pub(crate) image_mtime_ns: u64,
    /// The file system's own counter, and the sectors written by the disk's statistics.
    pub(crate) fs_writes: u64,
    pub(crate) disk_sectors: u64,
    /// The device's size in bytes: it may have grown.
    pub(crate) device_bytes: u64,
}

/// What is known at the start and goes into the header.
#[derive(Clone, Copy)]
pub(crate) struct Beginning {
    pub(crate) prev_session_id: Id,
    pub(crate) gap_before: Gap,
    pub(crate) dev_flags: u8,
    pub(crate) head_sha256: [u8; 32],
    pub(crate) fs: Fs,
    /// Sectors written, by the disk's statistics.
    pub(crate) disk_sectors: u64,
    pub(crate) identity: Identity,
    pub(crate) loop_offset: u64,
    pub(crate) loop_sizelimit: u64,
    pub(crate) dev_major: u32,
    pub(crate) dev_minor: u32,
    pub(crate) logical_block_size: u32,
}

/// What becomes of a session while it runs, and has to be in the store before it goes on: `TAINT_…` and `LATE_…`
pub(crate) type News = (u32, u32);

/// The memory of a saved-set.
struct Slots(KVVec<Slot>);

impl Slots {
    fn new(chunks: u64) -> Result<Self> {
        let n = slots_for(chunks).ok_or(EFBIG)?;
        let mut v = KVVec::with_capacity(n, GFP_KERNEL)?;
        for _ in 0..n {
            v.push(Slot::default(), GFP_KERNEL)?;
        }
        Ok(Self(v))
    }

    fn set(&self) -> SavedSet<'_> {
        // SAFETY: Leaves are only put in by `add_leaves`, and freed only when
        // `self` is dropped.
        unsafe { SavedSet::new(&self.0) }
    }

    /// Makes sure that the chunks from `start` to before `end` have leaves;
    /// returns the bytes that it took.
    fn add_leaves(&self, start: u64, end: u64) -> Result<u64> {
        use crate::pure::saved_set::LEAF_CHUNKS;
        let mut bytes = 0;
        for leaf in start / LEAF_CHUNKS..end.div_ceil(LEAF_CHUNKS) {
            let chunk = leaf * LEAF_CHUNKS;
            if self.set().needs_leaf(chunk) {
                let mut new = KBox::<Leaf>::new_uninit(GFP_KERNEL | __GFP_NOWARN)?;
                // SAFETY: All zeros is an empty leaf.
                let new = unsafe {
                    ::core::ptr::write_bytes(new.as_mut_ptr(), 0, 1);
                    KBox::into_raw(new.assume_init())
                };
                match self.set().install(chunk, new) {
                    Ok(()) => bytes += ::core::mem::size_of::<Leaf>() as u64,
                    // SAFETY: Handed back, so still ours alone.
                    Err(new) => drop(unsafe { KBox::from_raw(new) }),
                }
            }
        }
        Ok(bytes)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for slot in self.0.iter_mut() {
            let leaf = *slot.get_mut();
            if !leaf.is_null() {
                // SAFETY: Made by `KBox::into_raw` in `add_leaves`, freed once.
                drop(unsafe { KBox::from_raw(leaf) });
            }
        }
    }
}

/// A session.
///
/// # Invariants
///
/// * A bit of `saved` is set only when the chunk's pre-image is in the store
///   (strict) or in memory (async), and never in a broken session's chunks
///   that are not.
/// * `broken` goes from 0 to an errno once and stays.
#[pin_data]
pub(crate) struct Session {
    /// Its identity.
    pub(crate) id: Id,
    /// The device's registered name.
    pub(crate) name: KVec<u8>,
    /// Where the device is, in chunks.
    pub(crate) geo: Geometry,
    /// Where that is.
    pub(crate) place: Place,
    /// Its disk.
    #[pin]
    pub(crate) origin: Origin,
    /// When writes are let go.
    pub(crate) durability: Durability,
    /// What opened it.
    pub(crate) by: By,
    /// Shared by the devices of one filesystem: the identity of the first
    /// one's session.
    pub(crate) group_id: Id,
    /// There is more than one of them.
    pub(crate) grouped: AtomicBool,
    /// Who claims the device; to be compared only.
    pub(crate) holder: usize,
    /// What becomes of discards.
    pub(crate) discard: Discard,
    /// Start, ns since 1970 and since boot.
    pub(crate) start_ns: u64,
    pub(crate) start_boot_ns: u64,

    saved: Slots,

    broken: AtomicU32,
    pub(crate) broken_sector: AtomicU64,
    pub(crate) broken_ns: AtomicU64,
    /// Something was written unsaved, so that the image is not exact: `TAINT_…`, and since when (ns since 1970).
    taints: AtomicU32,
    tainted_ns: AtomicU64,
    /// What else became of it since its start: `LATE_…`
    late: AtomicU32,
    /// What of both the store says, or will say with the session's first record.
    told_taints: AtomicU32,
    told_late: AtomicU32,
    /// A command has changed the disk that nobody could look into.
    pub(crate) unseen: AtomicBool,
    /// What the disk's statistics told of beyond what passed the hook, in sectors, at its start.
    #[pin]
    pub(crate) witness: Mutex<Option<i64>>,

    #[pin]
    pub(crate) queue: SpinLock<Queue>,
    /// Chunks whose content is compared at the next session's start.
    #[pin]
    pub(crate) sampler: SpinLock<Sampler<u64, SAMPLES_MAX>>,
    /// At most [`RESERVE`] pages.
    #[pin]
    reserve: SpinLock<KVec<Page>>,
    ring_len: AtomicU32,
    /// How far to read ahead.
    pub(crate) ahead: Limits,
    /// The store has little room left, so nothing is.
    pub(crate) store_low: AtomicBool,
    /// A sequential writer; the reader's own.
    #[pin]
    pub(crate) stream: Mutex<Stream>,
    /// The chunk whose write the reader waits for, and, if that has passed by, the chunk after
    /// its last one; else [`NO_MARK`].
    mark: AtomicU64,
    passed: AtomicU64,
    /// Submitters wait here for their turn.
    #[pin]
    throttled: CondVar,
    /// Bytes in memory; changed under the budget's lock.
    pub(crate) in_memory: AtomicU64,
    /// Reads whose end has not been told, or whose teller may still look at
    /// this session. It is not dropped before this is zero.
    pub(crate) reads: AtomicU32,

    /// Set before the session is armed.
    #[pin]
    pub(crate) beginning: Mutex<Option<Beginning>>,
    /// Of a raw session: what its end will need to know, as of the last write.
    #[pin]
    pub(crate) seen: Mutex<Option<Seen>>,
    #[pin]
    pub(crate) ending: Mutex<Option<Ending>>,
    /// The writer's own.
    #[pin]
    pub(crate) files: Mutex<Files>,
    #[pin]
    pub(crate) syncer: Mutex<Syncer>,
    #[pin]
    pub(crate) dir: Mutex<ShortString<SESSION_MAX>>,
    pub(crate) chain_seq: AtomicU64,
    /// The store has a directory that says what became of it.
    pub(crate) on_disk: AtomicBool,

    /// The store has been looked at.
    #[pin]
    pub(crate) opened: Event,
    /// Nothing is held and nothing more will be.
    #[pin]
    pub(crate) quiet: Event,
    /// The end is written.
    #[pin]
    pub(crate) closed: Event,
    /// The writer has tried to say in the store that it is broken.
    pub(crate) marked: AtomicBool,
    pub(crate) finished: AtomicBool,

    pub(crate) saved_chunks: AtomicU64,
    pub(crate) saved_bytes: AtomicU64,
    pub(crate) absorbed_bytes: AtomicU64,
    pub(crate) set_bytes: AtomicU64,

    #[pin]
    pub(crate) read_work: Work<Session, 1>,
    #[pin]
    pub(crate) write_work: Work<Session, 2>,
    #[pin]
    pub(crate) release_work: Work<Session, 3>,
    #[pin]
    tell_work: Work<Session, 4>,
    #[pin]
    sync_work: Work<Session, 5>,

    _live: Token,
    // Last: when it is dropped the module may go.
    _module: ModuleRef,
}

/// How many bytes a bio counts for while it is held.
pub(crate) fn weight(bio: &HeldBio) -> u64 {
    let v = bio.view();
    match v.op() {
        sys::OP_DISCARD | sys::OP_SECURE_ERASE | sys::OP_WRITE_ZEROES => 0,
        _ => v.bytes().into(),
    }
}

/// An error as the store and the status say it: positive.
pub(crate) fn errno_of(error: Error) -> u32 {
    u32::try_from(-error.to_errno()).unwrap_or(5).max(1)
}

/// The other way round.
pub(crate) fn error_of(errno: u32) -> Error {
    Error::from_errno(i32::try_from(errno).map_or(-5, |n| -n))
}

impl_has_work! {
    impl HasWork<Self, 1> for Session { self.read_work }
    impl HasWork<Self, 2> for Session { self.write_work }
    impl HasWork<Self, 3> for Session { self.release_work }
    impl HasWork<Self, 4> for Session { self.tell_work }
    impl HasWork<Self, 5> for Session { self.sync_work }
}

impl Session {
    /// A session that holds nothing yet. `own`: the disk, if it is to have that open itself.
    pub(crate) fn new(
        volume: &Volume,
        own: Option<Arc<OpenDisk>>,
        place: Place,
        geo: Geometry,
        opening: &Opening,
        module: ModuleRef,
    ) -> Result<Arc<Self>> {
        let saved = Slots::new(geo.chunks())?;
        let set_bytes = 8 * slots_for(geo.chunks()).unwrap_or(0) as u64;
        let mut own_name = KVec::new();
        own_name.extend_from_slice(&volume.name, GFP_KERNEL)?;
        let queue = new_queue(opening.by)?;
        let files = Files::new()?;
        let mut reserve = KVec::with_capacity(RESERVE, GFP_KERNEL)?;
        for _ in 0..RESERVE {
            reserve.push(Page::new_patiently().ok_or(ENOMEM)?, GFP_KERNEL)?;
        }
        let own_id = sys::random_id();
        Arc::pin_init(
            pin_init!(Self {
                id: own_id,
                name: own_name,
                geo,
                place,
                origin <- Origin::new(own),
                durability: volume.durability,
                by: opening.by,
                holder: opening.holder,
                // That of the first one, so that devices that join later are linked to
                // it although its header is written.
                group_id: opening.group_id.unwrap_or(own_id),
                grouped: AtomicBool::new(false),
                discard: core().params.discard,
                start_ns: sys::now_real_ns(),
                start_boot_ns: sys::now_boot_ns(),
                saved,
                broken: AtomicU32::new(0),
                broken_sector: AtomicU64::new(0),
                broken_ns: AtomicU64::new(0),
                taints: AtomicU32::new(0),
                tainted_ns: AtomicU64::new(0),
                told_taints: AtomicU32::new(0),
                told_late: AtomicU32::new(0),
                late: AtomicU32::new(if opening.group_incomplete { LATE_MEMBER } else { 0 }),
                unseen: AtomicBool::new(false),
                witness <- new_mutex!(None, "bdsnap::Session::witness"),
                queue <- new_spinlock!(queue, "bdsnap::Session::queue"),
                sampler <- new_spinlock!(Sampler::new(), "bdsnap::Session::sampler"),
                reserve <- new_spinlock!(reserve, "bdsnap::Session::reserve"),
                ring_len: AtomicU32::new(0),
                ahead: Limits {
                    least: geo.whole_chunks(AHEAD_AFTER),
                    // With nobody's claim, nobody keeps the disk for what is not written yet.
                    most: match opening.by {
                        By::Claim => geo.whole_chunks(core().params.read_ahead),
                        By::RawWrite => 0,
                    },
                    chunks: geo.chunks(),
                },
                store_low: AtomicBool::new(false),
                stream <- new_mutex!(Stream::new(), "bdsnap::Session::stream"),
                mark: AtomicU64::new(NO_MARK),
                passed: AtomicU64::new(NO_MARK),
                throttled <- new_condvar!("bdsnap::Session::throttled"),
                in_memory: AtomicU64::new(0),
                reads: AtomicU32::new(0),
                beginning <- new_mutex!(None, "bdsnap::Session::beginning"),
                seen <- new_mutex!(None, "bdsnap::Session::seen"),
                ending <- new_mutex!(None, "bdsnap::Session::ending"),
                files <- new_mutex!(files, "bdsnap::Session::files"),
                syncer <- new_mutex!(Syncer::Idle, "bdsnap::Session::syncer"),
                dir <- new_mutex!(ShortString::new(), "bdsnap::Session::dir"),
                chain_seq: AtomicU64::new(0),
                on_disk: AtomicBool::new(false),
                opened <- Event::new(),
                quiet <- Event::new(),
                closed <- Event::new(),
                marked: AtomicBool::new(false),
                finished: AtomicBool::new(false),
                saved_chunks: AtomicU64::new(0),
                saved_bytes: AtomicU64::new(0),
                absorbed_bytes: AtomicU64::new(0),
                set_bytes: AtomicU64::new(set_bytes),
                read_work <- new_work!("bdsnap::read"),
                write_work <- new_work!("bdsnap::write"),
                release_work <- new_work!("bdsnap::release"),
                tell_work <- new_work!("bdsnap::tell"),
                sync_work <- new_work!("bdsnap::sync"),
                _live: Token::new(Kind::Sessions),
                _module: module,
            }),
            GFP_KERNEL,
        )
    }

    /// Chunks whose first write may pass.
    pub(crate) fn saved(&self) -> SavedSet<'_> {
        self.saved.set()
    }

    /// The first run of chunks from `start` to before `end`, no longer than a
    /// slice, that are neither saved nor on their way to it. Only the reader adds
    /// slices, so this stays true until it does. `wanted`: a bio changes them.
    pub(crate) fn unsaved_run(&self, start: u64, end: u64, wanted: bool) -> Option<Chunks> {
        let mut at = start;
        // A slice leaves the ring, under this lock, after its chunks are saved.
        let mut q = self.queue.lock();
        loop {
            let start = self.saved().first(at, end, false)?;
            let limit = end.min(start + self.geo.run_max());
            let limit = self.saved().first(start + 1, limit, true).unwrap_or(limit);
            match q.overlapping(&Chunks { start, end: limit }, wanted) {
                None => return Some(Chunks { start, end: limit }),
                Some(run) if run.start > start => return Some(Chunks { start, end: run.start }),
                Some(run) => at = run.end,
            }
        }
    }

    /// Makes room in the set.
    pub(crate) fn add_leaves(&self, start: u64, end: u64) -> Result {
        let bytes = self.saved.add_leaves(start, end)?;
        self.set_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Whether writes pass because pre-images can no longer be saved.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire) != 0
    }

    /// Why; 0 if not.
    pub(crate) fn errno(&self) -> u32 {
        self.broken.load(Ordering::Acquire)
    }

    /// What opened it, as the store says it.
    pub(crate) fn kind(&self) -> format::Kind {
        match self.by {
            By::Claim => format::Kind::Mount,
            By::RawWrite => format::Kind::Raw,
        }
    }

    /// Something is about to be written unsaved, because of `why` (`TAINT_…`). Comes back when the store says so, or
    /// the session is broken. Not for the writer, and with none of its locks.
    pub(crate) fn taint(self: &Arc<Self>, why: u32) {
        self.was_tainted(why);
        self.wait_until_told(|s| s.told_taints.load(Ordering::Acquire) & why == why);
    }

    /// For its end: something was written unsaved, and nobody could have said so before.
    pub(crate) fn was_tainted(&self, why: u32) {
        let now = sys::now_real_ns();
        let _ = self.tainted_ns.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        self.taints.fetch_or(why, Ordering::AcqRel);
    }

    /// Why it is to be called tainted: `TAINT_…`; 0: it is not.
    pub(crate) fn taints(&self) -> u32 {
        self.taints.load(Ordering::Acquire)
    }

    /// Since when, in ns since 1970.
    pub(crate) fn tainted_ns(&self) -> u64 {
        self.tainted_ns.load(Ordering::Relaxed)
    }

    /// Something became of it, `LATE_…`: the store is told with the next status.
    pub(crate) fn note_late(&self, flag: u32) {
        self.late.fetch_or(flag, Ordering::AcqRel);
    }

    /// The filesystem has taken a device that is not registered. Comes back when the store says so, or the
    /// session is broken. Not for the writer, and with none of its locks.
    pub(crate) fn add_member(self: &Arc<Self>) {
        self.note_late(LATE_MEMBER);
        self.wait_until_told(Self::knows_of_member);
    }

    /// Whether the store says that, or can no longer.
    pub(crate) fn knows_of_member(&self) -> bool {
        self.told_late.load(Ordering::Acquire) & LATE_MEMBER != 0 || !self.can_tell()
    }

    /// Whether the store can still be told anything.
    fn can_tell(&self) -> bool {
        !self.is_broken() && !self.finished.load(Ordering::Acquire)
    }

    /// This happens once or twice in a session's life: nobody is woken, one looks.
    fn wait_until_told(self: &Arc<Self>, told: impl Fn(&Self) -> bool) {
        self.kick_writer();
        let limit = core().params.hold_timeout_ms.saturating_mul(1_000_000);
        let until = sys::now_boot_ns().saturating_add(limit);
        while self.can_tell() && !told(self) {
            if sys::now_boot_ns() > until {
                self.break_with(ETIMEDOUT, self.geo.on_disk().start);
            }
            sys::sleep(1);
        }
    }

    /// What became of it since its start: `LATE_…`
    pub(crate) fn late(&self) -> u32 {
        self.late.load(Ordering::Acquire)
    }

    /// What has become of it while it runs.
    pub(crate) fn news(&self) -> News {
        (self.taints(), self.late())
    }

    /// The store says so much of it.
    pub(crate) fn was_told(&self, (taints, late): News) {
        self.told_taints.fetch_or(taints, Ordering::AcqRel);
        self.told_late.fetch_or(late, Ordering::AcqRel);
    }

    /// What is to be told still, of both.
    #[inline(always)]
    pub(crate) fn untold(&self) -> News {
        let taints = self.taints() & !self.told_taints.load(Ordering::Relaxed);
        (taints, self.late() & !self.told_late.load(Ordering::Relaxed))
    }

    /// Whether a bio may go on although it changes what is not saved: a discard, where those
    /// are not saved and the store says so.
    pub(crate) fn lets_pass(&self, bio: &BioView<'_>) -> bool {
        self.discard == Discard::Pass
            && bio.op() == sys::OP_DISCARD
            && self.told_taints.load(Ordering::Acquire) & TAINT_DISCARD != 0
    }

    /// Whether a discard is completed without reaching the device, which then
    /// keeps its own pre-images. Only a filesystem that has this very device makes nothing of what
    /// it has discarded. Others may count on zeros: the parity of md, a thin pool.
    pub(crate) fn absorbs(&self, bio: &BioView<'_>) -> bool {
        self.discard == Discard::Absorb
            && bio.op() == sys::OP_DISCARD
            && self.by == By::Claim
            && bio.is_for_a_filesystem()
    }

    /// Its state as the store would say it now.
    pub(crate) fn state(&self) -> State {
        if self.is_broken() {
            State::Broken
        } else if !self.finished.load(Ordering::Acquire) {
            State::Recording
        } else if self.taints() != 0 {
            State::Tainted
        } else {
            State::Closed
        }
    }

    /// A page, from the reserve if there is no other.
    pub(crate) fn page(&self) -> Option<Page> {
        Page::new().or_else(|| self.reserve.lock().pop())
    }

    /// Takes a page back: into the reserve if that is not full.
    pub(crate) fn give_back(&self, page: Page) {
        let extra = self.reserve.lock().push_within_capacity(page).err();
        // Outside the lock.
        drop(extra);
    }

    /// Whether the ring takes another slice.
    pub(crate) fn ring_has_room(&self) -> bool {
        (self.ring_len.load(Ordering::Relaxed) as usize) < RING
    }

    /// The same for what is read ahead: half of it stays free.
    pub(crate) fn ring_has_spare(&self) -> bool {
        (self.ring_len.load(Ordering::Relaxed) as usize) < RING / 2
    }

    /// The reader wants to know when this chunk is written.
    pub(crate) fn set_mark(&self, chunk: Option<u64>) {
        self.mark.store(chunk.unwrap_or(NO_MARK), Ordering::Relaxed);
    }

    /// Whether a write of these chunks, which are saved, reaches the mark, or is beyond it by no more
    /// than what may have been read ahead: the one that reached it may have come before it was set.
    pub(crate) fn is_at_mark(&self, chunks: &Chunks) -> bool {
        let mark = self.mark.load(Ordering::Relaxed);
        chunks.end > mark && chunks.start.saturating_sub(mark) < self.ahead.most
    }

    /// It has been passed, by a write up to this chunk.
    pub(crate) fn pass_mark(self: &Arc<Self>, end: u64) {
        if self.mark.swap(NO_MARK, Ordering::Relaxed) != NO_MARK {
            self.passed.store(end, Ordering::Release);
            self.kick_reader();
        }
    }

    /// How far the write came that passed the mark, if one did since the last time.
    pub(crate) fn take_passed(&self) -> Option<u64> {
        Some(self.passed.swap(NO_MARK, Ordering::Acquire)).filter(|&m| m != NO_MARK)
    }

    /// Brings the copy of the ring's length up to date.
    pub(crate) fn note_ring(&self, queue: &Queue) {
        self.ring_len.store(queue.len() as u32, Ordering::Relaxed);
    }

    /// Holds a bio until its pre-images are safe. Comes back at once, except
    /// that a `patient` submitter is made to wait when much is held.
    pub(crate) fn park(self: &Arc<Self>, bio: HeldBio, patient: bool) {
        bio.prepare();
        let weight = weight(&bio);
        live::add(Kind::Bios, 1);
        let parked = self.queue.lock().park(bio, weight);
        if let Err(bio) = parked {
            live::add(Kind::Bios, -1);
            crate::hook::send_on(bio, None);
            return;
        }
        self.kick_reader();
        if patient && weight > 0 {
            let limit = core().params.mem_limit;
            let mut q = self.queue.lock();
            while q.is_crowded(limit, HELD_MAX) {
                self.throttled.wait(&mut q);
            }
        }
    }

    /// A bio that counted for `weight` has gone.
    pub(crate) fn let_go(&self, weight: u64) {
        let mut q = self.queue.lock();
        if q.let_go(weight) {
            self.quiet.happen();
        }
        drop(q);
        live::add(Kind::Bios, -1);
        self.throttled.notify_all();
    }

    /// No bio is led here any more: [`Session::quiet`] happens as soon as
    /// none is held.
    pub(crate) fn begin_closing(self: &Arc<Self>) {
        let mut q = self.queue.lock();
        if q.begin_closing() {
            self.quiet.happen();
        }
        drop(q);
        self.kick_reader();
    }

    /// From now on pre-images are lost and writes go on. Any context that may
    /// take a spin lock; allocates nothing.
    ///
    /// `sector` is relative to the disk.
    pub(crate) fn break_with(self: &Arc<Self>, error: Error, sector: u64) {
        let mut q = self.queue.lock();
        if !q.break_now() {
            return;
        }
        self.broken_sector
            .store(sector.saturating_sub(self.geo.on_disk().start), Ordering::Relaxed);
        self.broken_ns.store(sys::now_real_ns(), Ordering::Relaxed);
        self.broken.store(errno_of(error), Ordering::Release);
        drop(q);
        core().sessions_broken.fetch_add(1, Ordering::Relaxed);
        self.kick_releaser();
        self.kick_writer();
        self.throttled.notify_all();
        core().budget.wake();
        let _ = core().queues.look.queue().enqueue::<Arc<Self>, 4>(self.clone());
    }

    /// What the current bio changes cannot be saved: the writer says so in the
    /// store, and then breaks the session. `sector` is relative to the disk.
    pub(crate) fn fail(self: &Arc<Self>, error: Error, sector: u64) {
        self.queue.lock().fail(Failure { errno: errno_of(error), sector });
        self.kick_writer();
    }

    /// A look of the watch: breaks the session when a bio has been held too
    /// long.
    pub(crate) fn look(self: &Arc<Self>) {
        let overdue = self.queue.lock().look();
        if overdue {
            self.break_with(ETIMEDOUT, self.geo.on_disk().start);
        }
    }

    /// Runs the reader.
    pub(crate) fn kick_reader(self: &Arc<Self>) {
        let _ = core().queues.read.queue().enqueue::<Arc<Self>, 1>(self.clone());
    }

    /// Runs the writer.
    pub(crate) fn kick_writer(self: &Arc<Self>) {
        let _ = core().queues.write.queue().enqueue::<Arc<Self>, 2>(self.clone());
    }

    /// Makes a batch durable beside the writer; see [`Syncer`], which must be idle.
    pub(crate) fn start_sync(self: &Arc<Self>, asked: Asked) {
        *self.syncer.lock() = Syncer::Asked(asked);
        let _ = core().queues.write.queue().enqueue::<Arc<Self>, 5>(self.clone());
    }

    /// Runs the releaser.
    pub(crate) fn kick_releaser(self: &Arc<Self>) {
        let _ = core().queues.release.queue().enqueue::<Arc<Self>, 3>(self.clone());
    }
}

impl WorkItem<4> for Session {
    type Pointer = Arc<Session>;

    /// Says that it broke, where waiting does no harm.
    fn run(this: Arc<Session>) {
        let _live = Token::new(Kind::Works);
        crate::tell::broken(&this);
    }
}

/// What the status says of a session, also when it is over.
#[derive(Clone, Copy)]
pub(crate) struct Summary {
    pub(crate) id: Id,
    pub(crate) chain_seq: u64,
    pub(crate) start_ns: u64,
    pub(crate) state: State,
    pub(crate) errno: u32,
    pub(crate) broken_sector: u64,
    pub(crate) broken_ns: u64,
    pub(crate) gap_before: Option<Gap>,
    /// Bios held since its start, and now.
    pub(crate) held: u64,
    pub(crate) holding: u64,
    pub(crate) saved_chunks: u64,
    pub(crate) saved_bytes: u64,
    pub(crate) absorbed_bytes: u64,
    pub(crate) set_bytes: u64,
    pub(crate) dir: ShortString<SESSION_MAX>,
}

impl Summary {
    /// As it is now. May sleep.
    pub(crate) fn of(session: &Session) -> Self {
        let (held, holding) = {
            let q = session.queue.lock();
            (q.held(), q.holding())
        };
        Self {
            id: session.id,
            chain_seq: session.chain_seq.load(Ordering::Relaxed),
            start_ns: session.start_ns,
            state: session.state(),
            errno: session.errno(),
            broken_sector: session.broken_sector.load(Ordering::Relaxed),
            broken_ns: session.broken_ns.load(Ordering::Relaxed),
            gap_before: (*session.beginning.lock()).map(|b| b.gap_before),
            held,
            holding,
            saved_chunks: session.saved_chunks.load(Ordering::Relaxed),
            saved_bytes: session.saved_bytes.load(Ordering::Relaxed),
            absorbed_bytes: session.absorbed_bytes.load(Ordering::Relaxed),
            set_bytes: session.set_bytes.load(Ordering::Relaxed),
            dir: *session.dir.lock(),
        }
    }
}
