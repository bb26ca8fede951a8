// SPDX-License-Identifier: GPL-2.0

//! The files of a session, written by its writer only.

use crate::compat::errno;
use crate::core_state::core;
use crate::params::SABOTAGE_DROP_RECORD;
use crate::pure::format::*;
use crate::pure::meta;
use crate::pure::name::{chain_key, session_dir, ShortString};
use crate::pure::prefill::{Prefill, MAX_BATCH, MIN_ZEROS};
use crate::pure::volume::By;
use crate::session::{errno_of, Beginning, News, Session, Slice};
use crate::stack;
use crate::syncer::Asked;
use crate::sys::{self, Dir, File, Gather};
use ::core::fmt::Write;
use ::core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

/// Most slices that are made durable together.
pub(crate) const BATCH: usize = 1024;

/// With less than this above the least free space nothing is read ahead, in bytes.
const AHEAD_ROOM: u64 = 64 << 20;

/// File systems that write to the same places what was written there before, on
/// one disk: for a strict session on them its files are filled with zeros first.
const IN_PLACE: [u64; 2] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
];

/// Bytes whose multiples most file systems take there.
const DIRECT_ALIGN: u64 = 4096;

/// Filesystems that a strict session's store cannot be on: their content does
/// not outlive a power cut, or their server is not ours to wait for.
const NO_STRICT: [u64; 9] = [
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x6969,      // nfs
    0xff53_4d42, // cifs
    0xfe53_4d42, // smb2
    0x0102_1997, // 9p
    0x00c3_6400, // ceph
    0x6573_5546, // fuse
    0x5346_414f, // afs
];

/// The version of the format that is written, and where it has what.
pub(crate) const VERSION: Version = Version::Two;
const LAYOUT: Layout = VERSION.layout();

/// Keeps the store's marker for whoever raises `chain_seq`.
pub(crate) struct MarkerLock;

/// How far the two files of a session are made, see [`crate::pure::prefill`].
struct Places {
    dat: Prefill,
    map: Prefill,
    /// A change of both in place needs one flush only.
    one_flush: bool,
}

impl Places {
    /// Whether writes that end there only change what is there.
    fn hold(&self, (dat, map): (u64, u64)) -> bool {
        self.dat.holds(dat) && self.map.holds(map)
    }

    /// Makes what was written in place durable.
    fn sync(&self, dat: &File, map: &File) -> Result {
        if self.one_flush {
            dat.fsync_in_place(map)
        } else {
            dat.fsync_both(map)
        }
    }

    /// Makes both files durable up to `ends`, and with `batch` (bytes of data) as much of zeros behind
    /// them as is good for such batches. False: zeros were refused.
    fn grow(
        &mut self,
        dat: &File,
        map: &File,
        ends: (u64, u64),
        batch: Option<u64>,
    ) -> Result<bool> {
        let filled =
            (fill(dat, &mut self.dat, batch, ends.0), fill(map, &mut self.map, batch, ends.1));
        dat.fsync_both(map)?;
        self.dat.grown(filled.0.unwrap_or(ends.0));
        self.map.grown(filled.1.unwrap_or(ends.1));
        Ok(filled.0.is_some() && filled.1.is_some())
    }
}

/// Writes zeros behind `end`, as many as are good for a batch of so many bytes of data, if any; returns where they
/// end. `None`: they were refused.
fn fill(file: &File, place: &mut Prefill, batch: Option<u64>, end: u64) -> Option<u64> {
    let zeros = batch.map_or(0, |bytes| place.zeros(bytes, end));
    // A quota, say. What has to be written may still fit.
    (zeros == 0 || file.write_zeros(zeros, end).is_ok()).then_some(end + zeros)
}

/// Why a session is broken.
pub(crate) struct Why {
    errno: u32,
    /// From the device's start.
    sector: u64,
    ns: u64,
}

impl Why {
    /// It is not.
    const NONE: Self = Self { errno: 0, sector: 0, ns: 0 };

    /// As the session says it; all zero if it is not broken.
    pub(crate) fn of(session: &Session) -> Self {
        Self {
            errno: session.errno(),
            sector: session.broken_sector.load(Ordering::Relaxed),
            ns: session.broken_ns.load(Ordering::Relaxed),
        }
    }

    /// For a session that is about to be broken.
    pub(crate) fn now(error: Error, sector: u64) -> Self {
        Self { errno: errno_of(error), sector, ns: sys::now_real_ns() }
    }
}

/// Slices that are written and made durable together.
pub(crate) struct Batch {
    /// Their addresses; they are in the ring until the batch is retired.
    pub(crate) slices: KVec<*const Slice>,
    sum: Sum,
}

/// What a batch adds to the session once it counts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sum {
    /// Bytes and chunks of pre-images.
    saved: u64,
    chunks: u64,
    /// Records of those, and all records.
    records: u64,
    map_records: u64,
    /// Where its data ends in blocks.dat.
    dat_end: u64,
}

impl Batch {
    fn new() -> Result<Self> {
        Ok(Self { slices: KVec::with_capacity(BATCH, GFP_KERNEL)?, sum: Sum::default() })
    }
}

/// A session's side of the store.
pub(crate) struct Files {
    /// The store has been looked at, well or not.
    pub(crate) looked: bool,
    /// What the header needs to know is known.
    pub(crate) begun: bool,
    store: Option<Dir>,
    chain: Option<Dir>,
    /// What the store knows of the session before.
    pub(crate) tail: Option<KBox<Tail>>,
    /// That session's place in the chain.
    last_seq: u64,
    /// There is a tail, but it is not readable.
    pub(crate) tail_damaged: bool,
    dir: Option<Dir>,
    map: Option<Arc<File>>,
    dat: Option<Arc<File>>,
    records: u64,
    map_records: u64,
    dat_bytes: u64,
    /// Where the next data goes: behind that of all batches, `dat_bytes` being behind those that count.
    dat_end: u64,
    /// How far the map is durable with `syncing`, zeros included.
    map_end: u64,
    /// Where batches of a strict session find their place made, if the store's file
    /// system is one of [`IN_PLACE`] and did not refuse zeros.
    places: Option<Places>,
    uncommitted: bool,
    generation: u64,
    warned_low: bool,
    /// The store says that the session is broken.
    pub(crate) broken_marked: bool,
    /// The batch that is being written, or whose data is written.
    pub(crate) batch: Batch,
    /// The one before it, if that is being made durable beside the writer, and its first sector (of the disk).
    pub(crate) syncing: Option<(Sum, u64)>,
    /// The runs of `batch`, as they become records.
    runs: KVVec<Run>,
    /// Those, encoded.
    buf: KVVec<u8>,
    gather: Gather,
    /// For a status, so that one can be written with no memory left.
    slot: KVec<u8>,
    /// `dat` once more, for large writes past the page cache; `None` if the store's
    /// file system has no such ones.
    direct: Option<File>,
    store_id: Id,
    /// The checksum of the session's identity, with which those of its records begin.
    seed: u32,
    header: Option<KBox<Header>>,
}

// SAFETY: The batch holds addresses of slices in the session's ring. The writer, who has these
// files, takes those out; the syncer takes out those of the batch before.
unsafe impl Send for Files {}

fn c_name(bytes: &[u8]) -> Result<CString> {
    let s = ::core::str::from_utf8(bytes).map_err(|_| EINVAL)?;
    CString::try_from_fmt(fmt!("{}", s))
}

impl Files {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            looked: false,
            begun: false,
            store: None,
            chain: None,
            tail: None,
            last_seq: 0,
            tail_damaged: false,
            dir: None,
            map: None,
            dat: None,
            records: 0,
            map_records: 0,
            dat_bytes: 0,
            dat_end: 0,
            map_end: 0,
            places: None,
            uncommitted: false,
            generation: 0,
            warned_low: false,
            broken_marked: false,
            batch: Batch::new()?,
            syncing: None,
            runs: KVVec::with_capacity(BATCH, GFP_KERNEL)?,
            buf: KVVec::with_capacity((BATCH + 1) * LAYOUT.record_len, GFP_KERNEL)?,
            gather: Gather::new()?,
            slot: KVec::from_elem(0u8, LAYOUT.slot_len, GFP_KERNEL)?,
            direct: None,
            store_id: NO_ID,
            seed: 0,
            header: None,
        })
    }

    /// Resolves and pins the store, checks that it is one and may be used,
    /// reads what it knows of the device.
    pub(crate) fn look(&mut self, session: &Session) -> Result {
        let path = core().store_path()?;
        let store = Dir::resolve(&path)?;
        let info = store.info();
        if info.read_only {
            return Err(EROFS);
        }
        if session.holder != 0 && session.holder == info.sb {
            pr_err!("the store is on the filesystem that takes the device\n");
            return Err(EINVAL);
        }
        if session.durability == Durability::Strict && NO_STRICT.contains(&info.magic) {
            pr_err!("store is on a filesystem that strict sessions cannot use\n");
            return Err(EINVAL);
        }
        if stack::lies_on(&store, session.place.id, &session.geo.on_disk())? {
            pr_err!("the store is on the device that it should protect\n");
            return Err(EINVAL);
        }
        let marker = read_marker(&store)?;
        self.store_id = marker.store_id;
        let chain = match store.child(c".bdsnap-chain") {
            Err(e) if e == ENOENT => {
                store.mkdir(c".bdsnap-chain")?;
                store.child(c".bdsnap-chain")?
            }
            other => other?,
        };
        let key = chain_key(&sys::sha256(&session.name));
        match chain.open_file(&c_name(&key)?) {
            Ok(file) => match decode_tail(&file)? {
                Some(tail) => {
                    self.last_seq = tail.chain_seq;
                    self.tail = Some(tail);
                }
                None => self.tail_damaged = true,
            },
            Err(e) if e == ENOENT => {}
            Err(_) => self.tail_damaged = true,
        }
        self.chain = Some(chain);
        self.store = Some(store);
        Ok(())
    }

    /// Makes the session's directory and files, and makes them durable.
    fn make_dir(&mut self, session: &Session) -> Result {
        let store = self.store.as_ref().ok_or(ENOENT)?;
        let beginning = (*session.beginning.lock()).ok_or(EINVAL)?;
        let seq = {
            let _one_at_a_time = core().marker.lock();
            let mut marker = read_marker(store)?;
            // A lost or old marker must not give a number twice.
            let last = marker.chain_seq.max(self.last_seq);
            marker.chain_seq = last.checked_add(1).ok_or(EOVERFLOW)?;
            if marker.version < VERSION {
                marker.version = VERSION;
                pr_info!("the store is of version {} of the format from now on\n", VERSION as u32);
            }
            let mut bytes = [0; MARKER_LEN];
            marker.encode(&mut bytes);
            let file = store.open_file(c".bdsnap-store")?;
            file.write(&bytes, 0)?;
            file.fsync(false)?;
            marker.chain_seq
        };
        session.chain_seq.store(seq, Ordering::Relaxed);
        // Before the header is made: that says so much of it.
        let news = session.news();
        let header = make_header(session, &beginning, &self.store_id, seq, news.1)?;
        self.map_records = 1;
        self.seed = sys::crc(0, &session.id);
        let state = if news.0 == 0 { State::Recording } else { State::Tainted };
        let status = self.status(session, state, &Why::NONE, news);
        let mut attempt = 0;
        let name = loop {
            let name = session_dir(&session.name, session.start_ns, attempt);
            match store.mkdir(&c_name(name.as_bytes())?) {
                Ok(()) => break name,
                Err(e) if e == EEXIST && attempt < 1000 => attempt += 1,
                Err(e) => return Err(e),
            }
        };
        *session.dir.lock() = name;
        let dir = store.child(&c_name(name.as_bytes())?)?;
        let (map, dat) = match make_files(&dir, &header, &status, &point_of(session)) {
            Ok(files) => files,
            Err(e) => {
                // What cannot say what it is would only be in the way.
                let _ = dir.remove(c"blocks.dat", false);
                let _ = dir.remove(c"blocks.map", false);
                drop(dir);
                let _ = store.remove(&c_name(name.as_bytes())?, true);
                *session.dir.lock() = ShortString::new();
                return Err(e);
            }
        };
        self.generation = status.generation;
        self.header = Some(header);
        if session.durability == Durability::Strict && IN_PLACE.contains(&store.info().magic) {
            self.places = Some(Places {
                dat: Prefill::new(0, MIN_ZEROS),
                // Of it, too, as much as many small batches need.
                map: Prefill::new(self.map_bytes(), 2 * MIN_ZEROS),
                one_flush: dat.one_flush_is_enough(),
            });
        }
        self.direct = dir.open_direct(c"blocks.dat").ok();
        self.map = Some(map);
        self.dat = Some(dat);
        // From here on the session can say in the store that it broke.
        self.dir = Some(dir);
        // Until the end the chain's tail says "this one, and who knows".
        self.write_tail(session, false)?;
        self.write_meta(session, &status)?;
        if let Some(dir) = &self.dir {
            dir.fsync()?;
        }
        if let Some(store) = &self.store {
            store.fsync()?;
        }
        session.on_disk.store(true, Ordering::Release);
        session.was_told(news);
        Ok(())
    }

    /// Whether the slices of the batch from the `from`th on are so large that they are to be made durable
    /// beside the writer, and their data may be written while the batch before them is.
    pub(crate) fn is_large(&self, session: &Session, from: usize) -> bool {
        // What goes through the page cache would be written by the sync that is under way.
        let direct = self.direct.is_some() && self.dat_end % DIRECT_ALIGN == 0;
        session.durability == Durability::Strict && direct && self.bytes(from) > MAX_BATCH
    }

    /// Writes the slices in `self.batch` and their records; in `strict` makes
    /// them durable. Returns how many they are, to be retired. On an error the session has to
    /// be broken: what the files hold beyond their known lengths does not count.
    pub(crate) fn write_batch(&mut self, session: &Session) -> Result<usize> {
        let room = self.write_data(session, 0)?;
        self.write_records(session)?;
        if session.durability == Durability::Strict {
            let (Some(map), Some(dat)) = (&self.map, &self.dat) else { return Err(EBADF) };
            let ends = self.ends(&self.batch.sum);
            let zeros = room.then_some(ends.0 - self.dat_bytes);
            match &mut self.places {
                None => dat.fsync_both(map)?,
                Some(places) if places.hold(ends) => places.sync(dat, map)?,
                Some(places) => {
                    if !places.grow(dat, map, ends, zeros)? {
                        self.places = None;
                    }
                }
            }
        }
        self.count(session, self.batch.sum);
        let slices = self.batch.slices.len();
        self.batch.slices.clear();
        Ok(slices)
    }

    /// Writes the data of the slices in `self.batch` from the `from`th on, behind that of the others.
    /// Returns whether the store has more room than is needed.
    pub(crate) fn write_data(&mut self, session: &Session, from: usize) -> Result<bool> {
        let bytes = self.bytes(from);
        let room = self.check_space(session, bytes, self.batch.slices.len() - from)?;
        if self.dir.is_none() {
            self.make_dir(session)?;
        }
        let dat = self.dat.as_ref().ok_or(EBADF)?;
        // In `async` the page cache takes a burst faster than the device.
        let direct = self.direct.as_ref().filter(|_| self.is_large(session, from));
        if from == 0 {
            self.batch.sum = Sum::default();
            self.runs.clear();
        }
        let sum = &mut self.batch.sum;
        let mut at = self.dat_end;
        let mut written = at;
        let mut drop_it = core().params.sabotage & SABOTAGE_DROP_RECORD != 0
            && self.records == 0
            && self.syncing.is_none()
            && from == 0;
        // An earlier batch may have failed half-way.
        self.gather.clear();
        for &slice in &self.batch.slices[from..] {
            // SAFETY: In the ring, until this writer lets the batch go; its
            // read has ended, so nobody changes it.
            let slice = unsafe { &*slice };
            let bytes = slice.bytes as usize;
            // They have no place in blocks.dat, so that space which was never used costs none.
            let zero = sys::zero_pages(&slice.pages, bytes);
            // SAFETY: As above; all is written before this batch is retired.
            if !zero && !unsafe { self.gather.add(&slice.pages, bytes) } {
                put(&mut self.gather, dat, direct, written)?;
                written = at;
                // SAFETY: As above.
                if !unsafe { self.gather.add(&slice.pages, bytes) } {
                    return Err(EINVAL);
                }
            }
            let run = Run {
                tag: 0,
                sector: session.geo.device_sectors_of(&slice.run).start,
                bytes: slice.bytes,
                stored: if zero { 0 } else { slice.bytes },
                offset: at,
                data_crc: sys::crc_pages(&slice.pages, bytes),
            };
            if !::core::mem::take(&mut drop_it) {
                self.runs.push(run, GFP_KERNEL)?;
                sum.records += 1;
            }
            at += u64::from(run.stored);
            sum.chunks += slice.run.end - slice.run.start;
        }
        put(&mut self.gather, dat, direct, written)?;
        sum.saved += bytes;
        sum.dat_end = at;
        self.dat_end = at;
        Ok(room)
    }

    /// Writes the records of `self.batch`. All before them are durable.
    fn write_records(&mut self, session: &Session) -> Result {
        let commits = session.durability == Durability::Strict && self.uncommitted;
        let mut index = self.map_records;
        self.buf.clear();
        if commits {
            push_record(&mut self.buf, &Record::Commit(self.dat_bytes), self.seed, index)?;
            index += 1;
        }
        for &run in self.runs.iter() {
            push_record(&mut self.buf, &Record::Run(run), self.seed, index)?;
            index += 1;
        }
        self.batch.sum.map_records = index - self.map_records;
        self.map.as_ref().ok_or(EBADF)?.write(&self.buf, self.map_bytes())
    }

    /// Writes the records of `self.batch`, whose data is written, and begins to make both durable beside
    /// the writer. It is `self.syncing` then, which must have been `None`.
    pub(crate) fn begin_sync(&mut self, session: &Arc<Session>) -> Result {
        self.write_records(session)?;
        let ends = self.ends(&self.batch.sum);
        let (Some(map), Some(dat)) = (&self.map, &self.dat) else { return Err(EBADF) };
        let mut one_flush = false;
        if let Some(places) = &mut self.places {
            one_flush = places.one_flush && places.map.holds(ends.1);
            // Records are few, however large the batch is. With hardly any room only they come there.
            let room = !session.store_low.load(Ordering::Relaxed);
            self.map_end = fill(map, &mut places.map, room.then_some(0), ends.1).unwrap_or(ends.1);
        }
        let slices = self.batch.slices.len();
        self.syncing = Some((self.batch.sum, self.sector_of(session, 0)));
        session.start_sync(Asked { dat: dat.clone(), map: map.clone(), one_flush, slices });
        self.batch.slices.clear();
        Ok(())
    }

    /// The sync of `self.syncing` has ended: that counts, or its first sector comes with the error.
    pub(crate) fn end_sync(
        &mut self,
        session: &Session,
        result: Result,
    ) -> Result<(), (Error, u64)> {
        let Some((sum, sector)) = self.syncing.take() else { return Ok(()) };
        result.map_err(|e| (e, sector))?;
        if let Some(places) = &mut self.places {
            places.dat.appended(sum.dat_end);
            places.map.grown(self.map_end);
        }
        self.count(session, sum);
        Ok(())
    }

    /// The session is broken.
    pub(crate) fn forget_batches(&mut self) {
        self.batch.slices.clear();
        self.syncing = None;
    }

    /// The disk's sector that the batch's `i`th slice begins with.
    pub(crate) fn sector_of(&self, session: &Session, i: usize) -> u64 {
        self.batch.slices.get(i).map_or(session.geo.on_disk().start, |&slice| {
            // SAFETY: In the ring, until this writer lets the batch go.
            session.geo.sectors_of(unsafe { &(*slice).run }).start
        })
    }

    /// A batch counts.
    fn count(&mut self, session: &Session, sum: Sum) {
        session.saved_bytes.fetch_add(sum.saved, Ordering::Relaxed);
        session.saved_chunks.fetch_add(sum.chunks, Ordering::Relaxed);
        core().saved_bytes.fetch_add(sum.saved, Ordering::Relaxed);
        self.map_records += sum.map_records;
        self.records += sum.records;
        self.dat_bytes = sum.dat_end;
        self.uncommitted = true;
    }

    /// Bytes of `blocks.map` that count.
    fn map_bytes(&self) -> u64 {
        LAYOUT.records + self.map_records * LAYOUT.record_len as u64
    }

    /// Where both files end with the next batch.
    fn ends(&self, sum: &Sum) -> (u64, u64) {
        (sum.dat_end, self.map_bytes() + sum.map_records * LAYOUT.record_len as u64)
    }

    /// Bytes of data in the batch, from the `from`th slice on.
    fn bytes(&self, from: usize) -> u64 {
        let slices = self.batch.slices.iter().skip(from);
        // SAFETY: In the ring, until this writer lets the batch go.
        slices.map(|&slice| u64::from(unsafe { (*slice).bytes })).sum()
    }

    /// ENOSPC if so many more bytes of data and their records would leave less than the least free space.
    /// Returns whether there is more than is needed.
    fn check_space(&mut self, session: &Session, bytes: u64, records: usize) -> Result<bool> {
        let (total, free) = self.store.as_ref().ok_or(ENOENT)?.space()?;
        let free = free.saturating_sub(bytes + (records * LAYOUT.record_len) as u64);
        let min = core().params.min_free.unwrap_or((total / 20).min(1 << 30));
        let room = free >= min.saturating_mul(2).max(min.saturating_add(AHEAD_ROOM));
        if !room {
            session.store_low.store(true, Ordering::Relaxed);
        }
        // Also when a large batch breaks the session at once: the warning is what people look for.
        if free < min.saturating_mul(2) && !self.warned_low {
            self.warned_low = true;
            pr_warn!(
                "the store has {} MiB left, sessions break at {} MiB\n",
                free >> 20,
                min >> 20
            );
            crate::tell::event(session, c"low-space", 0);
        }
        if free < min {
            return Err(ENOSPC);
        }
        Ok(room)
    }

    fn status(&self, session: &Session, state: State, why: &Why, news: News) -> Status {
        let held = session.queue.lock().held();
        let (taints, late) = news;
        let lossy = state == State::Broken || taints != 0;
        let mut status = Status {
            generation: self.generation + 1,
            state,
            records: self.records,
            map_records: self.map_records,
            dat_bytes: self.dat_bytes,
            errno: why.errno,
            broken_sector: why.sector,
            broken_ns: why.ns,
            absorbed_bytes: session.absorbed_bytes.load(Ordering::Relaxed),
            held_bios: held,
            more: More {
                lossy_below: u32::from(lossy),
                late_flags: late,
                tainted_ns: if taints == 0 { 0 } else { session.tainted_ns() },
                taint_why: taints,
                ..More::NONE
            },
            ..Status::recording(session.id)
        };
        let ending = session.ending.lock();
        let finished = session.finished.load(Ordering::Acquire);
        if state == State::Broken || (finished && state != State::Recording) {
            // Zero: it has not ended.
            (status.end_ns, status.more.end_boot_ns) = (sys::now_real_ns(), sys::now_boot_ns());
        }
        if let Some(ending) = ending.as_ref() {
            status.head_sha256 = ending.head_sha256;
            status.more.disk_sectors = ending.disk_sectors;
            status.more.fs_writes = ending.fs_writes;
        }
        status
    }

    /// Writes a new status into the slot that does not count now.
    fn write_status(&mut self, session: &Session, state: State, why: &Why) -> Result<Status> {
        let news = session.news();
        let status = self.status(session, state, why, news);
        let map = self.map.as_ref().ok_or(EBADF)?;
        status.encode(VERSION, &mut self.slot);
        map.write(&self.slot, LAYOUT.slots[status.slot()])?;
        map.fsync(true)?;
        self.generation = status.generation;
        session.was_told(news);
        Ok(status)
    }

    /// Says in the store that the session broke. Best effort: the store may
    /// be what broke it.
    pub(crate) fn mark_broken(&mut self, session: &Session, why: &Why) {
        self.broken_marked = true;
        let result = (|| {
            if self.dir.is_none() {
                self.make_dir(session)?;
            }
            let status = self.write_status(session, State::Broken, why)?;
            self.write_meta(session, &status)
        })();
        if let Err(e) = result {
            pr_err!("cannot write into the store that a session is broken: {}\n", e.to_errno());
        }
        session.marked.store(true, Ordering::Release);
    }

    /// Says in the store what has become of the session while it runs: that what is being written next is not
    /// saved, that a device of the same filesystem is not registered. Readers take the
    /// state, and what is there of records.
    #[cold]
    #[inline(never)]
    pub(crate) fn tell_news(&mut self, session: &Session) -> Result {
        // At its end all of it is told.
        if session.finished.load(Ordering::Acquire) {
            return Ok(());
        }
        let news = session.news();
        if self.dir.is_none() && news.0 != 0 && !session.is_broken() {
            return self.make_dir(session);
        }
        if self.dir.is_none() {
            // There is nothing yet that says otherwise, or nothing can be said.
            session.was_told(news);
        } else {
            let state = match news {
                _ if session.is_broken() => State::Broken,
                (0, _) => State::Recording,
                _ => State::Tainted,
            };
            let status = self.write_status(session, state, &Why::of(session))?;
            // The slot counts; that is for people.
            if let Err(e) = self.write_meta(session, &status) {
                pr_warn!("cannot write a session's description: errno {}\n", -e.to_errno());
            }
        }
        Ok(())
    }

    /// Writes the session's end.
    pub(crate) fn finish(&mut self, session: &Session, state: State) -> Result {
        if self.dir.is_none() {
            if state != State::Tainted {
                return Ok(());
            }
            self.make_dir(session)?;
        }
        if let (Some(map), Some(dat)) = (&self.map, &self.dat) {
            // What is beyond are zeros, or of no use.
            let cut = dat.truncate(self.dat_bytes).and(map.truncate(self.map_bytes()));
            if state != State::Broken {
                cut?;
                dat.fsync(true)?;
                map.fsync(true)?;
            }
        }
        let status = self.write_status(session, state, &Why::of(session))?;
        self.write_tail(session, true)?;
        self.write_meta(session, &status)?;
        self.dir.as_ref().map_or(Ok(()), Dir::fsync)
    }

    /// Closes and unpins all.
    pub(crate) fn close(&mut self) {
        self.map = None;
        self.dat = None;
        self.direct = None;
        self.dir = None;
        self.chain = None;
        self.store = None;
        self.header = None;
        self.tail = None;
    }

    /// Links the next session to this one. While the session runs, or if it
    /// is cut, the link says that nobody watched its end.
    fn write_tail(&self, session: &Session, ended: bool) -> Result {
        let mut tail = KBox::new(Tail::new(), GFP_KERNEL)?;
        tail.version = VERSION;
        tail.link = Gap::Unknown;
        tail.diskseq = session.place.id.seq;
        tail.session_id = session.id;
        tail.chain_seq = session.chain_seq.load(Ordering::Relaxed);
        tail.boot_id = core().boot_id;
        tail.device_bytes = session.geo.bytes();
        tail.chunk_size = session.geo.chunk_bytes();
        if let Some(ending) = session.ending.lock().as_ref().filter(|_| ended) {
            tail.load_id = core().load_id;
            tail.why = session.taints();
            tail.link = if tail.why & TAINT_UNSEEN != 0 { Gap::Written } else { Gap::None };
            tail.disk_sectors = ending.disk_sectors;
            tail.fs_writes = ending.fs_writes;
            tail.device_bytes = ending.device_bytes;
            tail.image_mtime_ns = ending.image_mtime_ns;
            tail.head_sha256 = ending.head_sha256;
            for &sample in ending.samples.iter() {
                tail.push(sample);
            }
        }
        let mut bytes = KVec::from_elem(0u8, TAIL_LEN, GFP_KERNEL)?;
        tail.encode(bytes.as_mut_slice().try_into().map_err(|_| EINVAL)?);
        let key = chain_key(&sys::sha256(&session.name));
        replace(self.chain.as_ref().ok_or(ENOENT)?, &key, &bytes)
    }

    fn write_meta(&self, session: &Session, status: &Status) -> Result {
        let header = self.header.as_ref().ok_or(EINVAL)?;
        let fs_type = (*session.beginning.lock()).map_or("", |b| b.fs.kind);
        let mut text = Text(KVec::with_capacity(16 << 10, GFP_KERNEL)?);
        let saved = session.saved_bytes.load(Ordering::Relaxed);
        meta::write_json(&mut text, header, status, fs_type, saved).map_err(|_| ENOMEM)?;
        replace(self.dir.as_ref().ok_or(ENOENT)?, META_NAME.as_bytes(), &text.0)
    }
}

/// Writes what was gathered, with `direct` past the page cache: less work and
/// less memory, where there is much.
fn put(gather: &mut Gather, dat: &File, direct: Option<&File>, at: u64) -> Result {
    let aligned = (at | gather.len() as u64) % DIRECT_ALIGN == 0;
    let result = match direct.filter(|_| aligned).map(|file| gather.write(file, at)) {
        // It wants larger blocks, or has no such writes at all.
        Some(Err(e)) if e == EINVAL || e == errno(bindings::EOPNOTSUPP) => gather.write(dat, at),
        Some(result) => result,
        None => gather.write(dat, at),
    };
    gather.clear();
    result
}

/// A session's two files, with its start and nothing else; durable.
fn make_files(
    dir: &Dir,
    header: &Header,
    status: &Status,
    start: &Point,
) -> Result<(Arc<File>, Arc<File>)> {
    let map = Arc::new(dir.create_file(c"blocks.map", false)?, GFP_KERNEL)?;
    let dat = Arc::new(dir.create_file(c"blocks.dat", false)?, GFP_KERNEL)?;
    let mut bytes = KVec::from_elem(0u8, LAYOUT.records as usize + LAYOUT.record_len, GFP_KERNEL)?;
    let (bytes_before, record) = bytes.split_at_mut(LAYOUT.records as usize);
    let (head, slots) = bytes_before.split_at_mut(HEADER_LEN);
    header.encode(head.try_into().map_err(|_| EINVAL)?);
    let at = (LAYOUT.slots[status.slot()] as usize) - HEADER_LEN;
    status.encode(VERSION, slots.get_mut(at..at + LAYOUT.slot_len).ok_or(EINVAL)?);
    if !Record::Point(*start).encode(VERSION, &header.session_id, 0, record) {
        return Err(EINVAL);
    }
    map.write(&bytes, 0)?;
    map.fsync(false)?;
    dat.fsync(false)?;
    Ok((map, dat))
}

/// Text that grows.
struct Text(KVec<u8>);

impl Write for Text {
    fn write_str(&mut self, s: &str) -> ::core::fmt::Result {
        self.0.extend_from_slice(s.as_bytes(), GFP_KERNEL).map_err(|_| ::core::fmt::Error)
    }
}

/// Replaces a small file as a whole: no reader and no power cut sees half.
fn replace(dir: &Dir, name: &[u8], content: &[u8]) -> Result {
    let mut tmp = ShortString::<255>::new();
    tmp.push(b".");
    tmp.push(name);
    tmp.push(b".tmp");
    let tmp = c_name(tmp.as_bytes())?;
    let file = dir.create_file(&tmp, true)?;
    file.write(content, 0)?;
    file.fsync(false)?;
    drop(file);
    dir.rename(&tmp, &c_name(name)?)?;
    dir.fsync()
}

/// What the store knows of a device's last session; for control calls.
pub(crate) fn read_tail(name: &[u8]) -> Result<KBox<Tail>> {
    let chain = Dir::resolve(&core().store_path()?)?.child(c".bdsnap-chain")?;
    let file = chain.open_file(&c_name(&chain_key(&sys::sha256(name)))?)?;
    decode_tail(&file)?.ok_or(EINVAL)
}

/// A tail file's content; `None` if it is not one.
fn decode_tail(file: &File) -> Result<Option<KBox<Tail>>> {
    let mut bytes = KVec::from_elem(0u8, TAIL_LEN, GFP_KERNEL)?;
    let n = file.read(&mut bytes, 0)?;
    match Tail::decode(&bytes[..n]) {
        Ok(tail) => Ok(Some(KBox::new(tail, GFP_KERNEL)?)),
        Err(_) => Ok(None),
    }
}

fn read_marker(store: &Dir) -> Result<Marker> {
    let file = store.open_file(c".bdsnap-store")?;
    let mut bytes = [0; MARKER_LEN];
    let n = file.read(&mut bytes, 0)?;
    Marker::decode(&bytes[..n]).map_err(|e| match e {
        FormatError::Version(version) => {
            pr_err!("it is a store of version {}, of a newer bdsnap: upgrade this one\n", version);
            errno(bindings::EPROTONOSUPPORT)
        }
        _ => EINVAL,
    })
}

fn push_record(buf: &mut KVVec<u8>, record: &Record, seed: u32, index: u64) -> Result {
    let at = buf.len();
    buf.extend_from_slice(&[0; LAYOUT.record_len], GFP_KERNEL)?;
    let out = buf.get_mut(at..).ok_or(EINVAL)?;
    if !record.encode_with(VERSION, seed, index, out, sys::crc) {
        return Err(EINVAL);
    }
    Ok(())
}

/// The moment that a session holds.
fn point_of(session: &Session) -> Point {
    let raw = session.by == By::RawWrite;
    Point {
        tag: 0,
        // A group of devices is one moment.
        moment_id: session.group_id,
        time_ns: session.start_ns,
        boot_ns: session.start_boot_ns,
        before: 0,
        dat_bytes: 0,
        members: 1,
        how: POINT_UNMOUNTED,
        by: if raw { POINT_BY_RAW } else { POINT_BY_MOUNT },
    }
}

#[inline(never)]
fn make_header(
    session: &Session,
    b: &Beginning,
    store_id: &Id,
    seq: u64,
    late: u32,
) -> Result<KBox<Header>> {
    let mut h = KBox::new(Header::new(), GFP_KERNEL)?;
    h.version = VERSION;
    h.session_id = session.id;
    h.store_id = *store_id;
    h.prev_session_id = b.prev_session_id;
    if session.grouped.load(Ordering::Relaxed) {
        h.group_id = session.group_id;
    }
    h.boot_id = core().boot_id;
    h.load_id = core().load_id;
    h.chain_seq = seq;
    h.start_ns = session.start_ns;
    h.start_boot_ns = session.start_boot_ns;
    h.device_bytes = session.geo.bytes();
    h.part_start = session.geo.on_disk().start;
    h.loop_offset = b.loop_offset;
    h.loop_sizelimit = b.loop_sizelimit;
    h.chunk_size = session.geo.chunk_bytes();
    h.logical_block_size = b.logical_block_size;
    h.dev_major = b.dev_major;
    h.dev_minor = b.dev_minor;
    h.kind = session.kind();
    h.durability = session.durability;
    h.gap_before = b.gap_before;
    h.dev_flags = b.dev_flags;
    if late & LATE_MEMBER != 0 {
        h.dev_flags |= GROUP_INCOMPLETE;
    }
    h.head_sha256 = b.head_sha256;
    h.data_id = sys::random_id();
    h.diskseq = session.place.id.seq;
    h.partuuid = b.identity.partuuid;
    h.fs_uuid = b.fs.uuid;
    h.fs_writes = b.fs.writes;
    h.disk_sectors = b.disk_sectors;
    if !h.set_serial(b.identity.serial()) {
        return Err(EINVAL);
    }
    if !h.set_name(&session.name) {
        return Err(EINVAL);
    }
    Ok(h)
}
