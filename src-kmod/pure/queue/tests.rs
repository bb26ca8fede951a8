// SPDX-License-Identifier: GPL-2.0

//! All orders of small cases: everybody who works on a session's queue, a
//! device, a store, a watch and faults, each a small state machine that takes
//! the steps of the module's code; between any two steps of one, any of the
//! others. Reader, writer and releaser sleep until they are kicked, where the
//! module kicks them. What the steps under the lock decide is the module's own
//! code.

use super::*;
use crate::budget::Budget;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Chunks of the device; a set of them is a bit mask.
const CHUNKS: u64 = 3;
/// Places of the ring.
const PLACES: usize = 2;
/// The device's content before the session.
const OLD: u8 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Write,
    /// Without data: it is let go in parts of a chunk.
    Zeroes,
    /// Of chunks that are not saved by then it is not done.
    Discard,
}

/// A bio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Bio {
    /// Plus one its content.
    number: u8,
    /// Those that it changes.
    chunks: u8,
    kind: Kind,
    /// How many were held before it.
    turn: u8,
}

impl Bio {
    fn weight(self) -> u64 {
        u64::from(self.kind == Kind::Write)
    }
    /// Its first chunk, and the others.
    fn split(self) -> (Self, Self) {
        let first = self.chunks & self.chunks.wrapping_neg();
        (Self { chunks: first, ..self }, Self { chunks: self.chunks & !first, ..self })
    }
}

type List = VecDeque<Bio>;

impl Bios for List {
    type Bio = Bio;
    fn none() -> Self {
        Self::new()
    }
    fn push(&mut self, bio: Bio) {
        self.push_back(bio);
    }
    fn pop(&mut self) -> Option<Bio> {
        self.pop_front()
    }
    fn append(&mut self, other: &mut Self) {
        VecDeque::append(self, other);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Run {
    start: u64,
    end: u64,
    read: Read,
    /// What the read found, a chunk each.
    content: [u8; CHUNKS as usize],
}

impl Slice for Run {
    fn run(&self) -> Chunks {
        Chunks { start: self.start, end: self.end }
    }
    fn read(&self) -> Read {
        self.read
    }
}

/// The runs, searched one by one.
#[derive(Clone)]
struct Naive(Vec<(usize, Chunks)>);

impl Index for Naive {
    fn push(&mut self, place: usize, run: &Chunks) {
        self.0.push((place, *run));
    }
    fn pop(&mut self, place: usize, _: &Chunks) {
        assert_eq!(self.0.remove(0).0, place);
    }
    fn first(
        &self,
        range: &Chunks,
        run_of: impl Fn(usize) -> Option<Chunks>,
    ) -> Option<(usize, Chunks)> {
        self.0
            .iter()
            .filter_map(|&(p, _)| Some((p, run_of(p)?)))
            .filter(|(_, r)| r.start < range.end && r.end > range.start)
            .min_by_key(|(_, r)| r.start)
    }
}

type Q = Queue<Run, List, Vec<Option<Pending<Run, List>>>, Naive>;

impl Clone for Q {
    fn clone(&self) -> Self {
        let place = |p: &Option<Pending<Run, List>>| {
            p.as_ref().map(|p| Pending {
                slice: p.slice,
                waiters: p.waiters.clone(),
                wanted: p.wanted,
                ahead: p.ahead,
            })
        };
        Self {
            incoming: self.incoming.clone(),
            again: self.again.clone(),
            places: self.places.iter().map(place).collect(),
            index: self.index.clone(),
            ready: self.ready.clone(),
            watch: Watch::new(),
            ..*self
        }
    }
}

/// Kicks that are on their way.
const READER: u8 = 1;
const WRITER: u8 = 2;
const RELEASER: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    Idle,
    Next,
    Splitting(Bio),
    /// Chunks of the current bio that have yet to be looked at.
    Saving(u8),
    /// The first of these is to be read.
    Reading(u8),
    /// The read is about to be started.
    Starting(u8),
    /// There was no memory: it waits until less than this is in use.
    Starving(u64, u8),
    /// This chunk is to be read before a bio needs it.
    ReadingAhead(u64),
    Hanging,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    Next,
    /// It looks at the sync beside it.
    Beside,
    Collecting,
    /// The data of so many more, to be made durable beside it.
    WritingData(usize),
    Writing(usize),
    Syncing(usize),
    Retiring(usize),
    Dropping,
    Marking,
    Breaking,
}

/// What makes durable beside the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Syncer {
    Idle,
    Running(usize),
    Retiring(usize),
    /// Well or not.
    Ended(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Releaser {
    Idle,
    Next,
    Sending(Bio),
    /// Chunk by chunk, what is saved.
    Discarding(Bio),
    /// A bio of this weight.
    Sent(u64),
}

/// What the store has of a chunk: whether it was written, and is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Record {
    written: bool,
    durable: bool,
}

/// A case to be tried in all orders.
#[derive(Clone, Copy)]
struct Case {
    bios: &'static [Bio],
    strict: bool,
    /// Any batch of a strict session may be large enough to be made durable beside the writer.
    beside: bool,
    /// Things that may go wrong.
    faults: u8,
    /// Chunks that are in memory at a time.
    memory: u64,
    /// Chunks that are read ahead.
    ahead: u8,
    /// Held bios keep the disk.
    borrows: bool,
}

#[derive(Clone)]
struct World {
    q: Q,
    kicked: u8,
    reader: Reader,
    writer: Writer,
    syncer: Syncer,
    /// A batch is being made durable beside the writer, or is and does not count yet...
    syncing: bool,
    /// ... and of so many slices after it the data is written.
    batch: usize,
    releaser: Releaser,
    /// Bios that were not submitted yet.
    to_come: u8,
    /// Bios that were led here, and are about to be parked.
    led: u8,
    /// Parts of bios that reached the device, each bit a bio's chunk.
    done: u16,
    device: [u8; CHUNKS as usize],
    budget: Budget,
    in_memory: u64,
    /// First writes may pass.
    saved: u8,
    store: [Record; CHUNKS as usize],
    /// The store says broken.
    marked: bool,
    /// Broken by the watch, which does not wait for the store.
    overdue: bool,
    /// What was quiet has been looked at; the end may be written.
    ending: bool,
    /// Closed in the store.
    finished: bool,
    ahead: u8,
    faults: u8,
    /// The watch may still break the session.
    watch: bool,
}

/// The bits of a bio in [`World::done`].
fn parts_of(bio: &Bio) -> u16 {
    bits(bio.chunks).fold(0, |m, c| m | 1 << (u64::from(bio.number) * CHUNKS + c))
}

fn bits(mask: u8) -> impl Iterator<Item = u64> {
    (0..CHUNKS).filter(move |c| mask & 1 << c != 0)
}

/// Two hashes in one, cheaply.
#[derive(Default)]
struct Lanes(u64, u64);

impl Hasher for Lanes {
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes.chunks(8) {
            let mut n = [0; 8];
            n[..b.len()].copy_from_slice(b);
            self.write_u64(u64::from_le_bytes(n));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.1 = (self.1.rotate_left(23) ^ n).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
    fn finish(&self) -> u64 {
        self.0 ^ self.1.rotate_left(32)
    }
}

impl World {
    fn new(case: &Case) -> Self {
        Self {
            q: Queue::new((0..PLACES).map(|_| None).collect(), Naive(Vec::new()), case.borrows),
            kicked: 0,
            reader: Reader::Idle,
            writer: Writer::Idle,
            syncer: Syncer::Idle,
            syncing: false,
            batch: 0,
            releaser: Releaser::Idle,
            to_come: (1 << case.bios.len()) - 1,
            led: 0,
            done: 0,
            device: [OLD; CHUNKS as usize],
            budget: Budget::new(case.memory),
            in_memory: 0,
            saved: 0,
            store: [Record::default(); CHUNKS as usize],
            marked: false,
            overdue: false,
            ending: false,
            finished: false,
            ahead: case.ahead,
            faults: case.faults,
            watch: true,
        }
    }

    fn key(&self) -> u128 {
        let h = &mut Lanes::default();
        (self.kicked, self.reader, self.writer, self.releaser).hash(h);
        (self.syncer, self.syncing, self.batch).hash(h);
        (self.to_come, self.led, self.done, self.device, self.saved, self.store).hash(h);
        (
            self.marked,
            self.overdue,
            self.ending,
            self.finished,
            self.faults,
            self.ahead,
            self.watch,
        )
            .hash(h);
        (self.budget.figures().0, self.in_memory).hash(h);
        let q = &self.q;
        (
            &q.incoming,
            &q.again,
            q.in_hand,
            q.reads,
            q.borrows,
            q.current,
            q.failed,
            &q.ready,
            q.held,
            q.released,
            q.held_bytes,
        )
            .hash(h);
        (q.broken, q.closing, q.gone, q.buffered, q.awaited, q.taken, q.len).hash(h);
        for i in 0..q.len {
            // Where the ring begins makes no difference.
            let p = self.oldest(i);
            (p.slice, &p.waiters, p.wanted, p.ahead).hash(h);
        }
        u128::from(h.0) << 64 | u128::from(h.1)
    }

    fn oldest(&self, i: usize) -> &Pending<Run, List> {
        self.q.places[(self.q.head + i) % PLACES].as_ref().unwrap()
    }

    fn is_on_its_way(&self, chunk: u64) -> bool {
        (0..self.q.len).any(|i| self.oldest(i).slice.start == chunk)
    }

    /// How many slices bios need.
    fn wanted(&self) -> usize {
        (0..self.q.len).filter(|&i| self.oldest(i).wanted).count()
    }

    /// A bio goes to the device, or is told to be done without it.
    fn done(&mut self, bio: Bio, write: bool) {
        for c in bits(bio.chunks) {
            let bit = 1 << (u64::from(bio.number) * CHUNKS + c);
            assert_eq!(self.done & bit, 0, "a bio goes twice");
            self.done |= bit;
            if write {
                self.device[c as usize] = bio.number + 1;
            }
        }
    }

    fn kick(&mut self, whom: u8) {
        self.kicked |= whom;
    }

    /// Wakes who is kicked, but not if there is nothing to do: whatever gives it
    /// something has to kick it again.
    fn settle(&mut self, case: &Case) {
        let q = &self.q;
        let comes = q.current.is_none() && !(q.incoming.is_empty() && q.again.is_empty());
        if self.reader == Reader::Idle && comes && self.kicked & READER != 0 {
            self.reader = Reader::Next;
        }
        let read = |i| i < q.len && self.oldest(i).slice.read != Read::UnderWay;
        let advances = !case.strict && !q.broken && read(q.buffered);
        let finishes = self.may_finish();
        let ended = !q.broken && matches!(self.syncer, Syncer::Ended(_));
        let writes = read(0)
            || finishes
            || ended
            || if q.broken { !self.marked } else { q.failed.is_some() };
        if self.releaser == Releaser::Idle && self.kicked & RELEASER != 0 {
            if !q.ready.is_empty() && case.strict {
                self.releaser = Releaser::Next;
            }
            if q.ready.is_empty() && !advances {
                self.kicked &= !RELEASER;
                self.kick(if case.strict { 0 } else { WRITER });
            }
        }
        if self.writer == Writer::Idle && writes && self.kicked & WRITER != 0 {
            self.writer = Writer::Next;
        }
        // Who runs sees to all before it sleeps, but for two: the writer once it has
        // seen that the session is not broken, and the releaser of an async session,
        // which looks for what is in memory only when it begins.
        let has_looked = matches!(self.writer, Writer::Beside | Writer::Collecting);
        self.kicked &= if has_looked { WRITER } else { 0 } | if case.strict { 0 } else { RELEASER };
    }

    fn may_finish(&self) -> bool {
        let busy = matches!(self.syncer, Syncer::Running(_) | Syncer::Retiring(_));
        self.ending && self.q.is_empty() && !self.syncing && !busy && !self.finished
    }

    fn finish_if_due(&mut self) {
        if self.may_finish() {
            self.finished = true;
            self.flush();
        }
    }

    fn break_now(&mut self) -> bool {
        let broke = self.q.break_now();
        if broke {
            self.kick(RELEASER | WRITER);
        }
        broke
    }

    fn fail(&mut self) {
        self.q.fail(Failure { errno: 12, sector: 0 });
        self.kick(WRITER);
    }

    fn give_back(&mut self) {
        self.in_memory = self.budget.give_back(self.in_memory, 1);
    }

    /// A copy in which something may go wrong.
    fn fault(&self) -> Option<Self> {
        let mut w = self.clone();
        w.faults = w.faults.checked_sub(1)?;
        Some(w)
    }

    /// All states that the next step of those who work on it leads to.
    fn steps(&self, case: &Case, to: &mut Vec<Self>) {
        self.read(case, to);
        self.reads_end(case, to);
        self.save(case, to);
        self.sync_beside(to);
        self.release(to);
    }

    /// Those that the others lead to. Nobody may rely on these to come.
    fn events(&self, case: &Case, to: &mut Vec<Self>) {
        self.submit(case, to);
        if self.watch && self.q.holding() > 0 {
            let mut w = self.clone();
            w.watch = false;
            w.overdue |= w.break_now();
            to.push(w);
        }
        // Whoever passes the mark starts the reader: with nothing held, and also at the end.
        if self.ahead > 0 && self.reader == Reader::Idle && !self.q.broken {
            for c in bits(!self.saved).filter(|&c| !self.is_on_its_way(c)) {
                let mut w = self.clone();
                w.ahead -= 1;
                let own = w.budget.take_spare(w.in_memory, 1).filter(|_| w.q.len() < PLACES);
                let Some(own) = own else { continue };
                w.in_memory = own;
                w.reader = Reader::ReadingAhead(c);
                to.push(w);
            }
        }
        // A file system lets go after its last write; a raw session ends at any time.
        if !self.q.closing {
            let mut w = self.clone();
            let quiet = w.q.begin_closing();
            assert_eq!(quiet, w.q.gone);
            to.push(w);
        } else if self.q.gone && !self.ending {
            let mut w = self.clone();
            w.ending = true;
            w.kick(WRITER);
            to.push(w);
        }
    }

    fn submit(&self, case: &Case, to: &mut Vec<Self>) {
        for (i, &bio) in case.bios.iter().enumerate() {
            let mut w = self.clone();
            if self.to_come & 1 << i != 0 {
                w.to_come &= !(1 << i);
                if w.q.broken || bio.chunks & !w.saved == 0 {
                    w.done(bio, true);
                } else if !w.q.closing {
                    w.led |= 1 << i;
                }
                // After the session no bio is led there; whose it is then is another matter.
            } else if self.led & 1 << i != 0 {
                w.led &= !(1 << i);
                let bio = Bio { turn: w.q.held as u8, ..bio };
                match w.q.park(bio, bio.weight()) {
                    Ok(()) => w.kick(READER),
                    // Another session's, or nobody's, if this one is over.
                    Err(bio) if w.q.broken => w.done(bio, true),
                    Err(_) => {}
                }
            } else {
                continue;
            }
            to.push(w);
        }
    }

    fn read(&self, case: &Case, to: &mut Vec<Self>) {
        let mut w = self.clone();
        match self.reader {
            Reader::Idle => return,
            Reader::Next => {
                w.reader = match w.q.next_incoming() {
                    None => Reader::Idle,
                    Some(bio) if bio.kind == Kind::Zeroes && bio.chunks.count_ones() > 1 => {
                        Reader::Splitting(bio)
                    }
                    Some(bio) => {
                        let chunks = if bio.kind == Kind::Discard { 0 } else { bio.chunks };
                        if w.q.set_current(bio) {
                            Reader::Saving(chunks)
                        } else {
                            w.kick(RELEASER);
                            Reader::Saving(0)
                        }
                    }
                };
            }
            Reader::Splitting(bio) => {
                // A failed slice may have waited for that.
                w.kick(WRITER);
                if let Some(mut w) = w.fault() {
                    if w.q.set_current(bio) {
                        w.fail();
                    } else {
                        w.kick(RELEASER);
                    }
                    w.reader = Reader::Hanging;
                    to.push(w);
                }
                let (front, rest) = bio.split();
                let rest = Bio { turn: w.q.held as u8, ..rest };
                w.reader = if w.q.set_split(front, rest) {
                    Reader::Saving(front.chunks)
                } else {
                    w.kick(RELEASER);
                    Reader::Saving(0)
                };
            }
            Reader::Saving(mask) => {
                // A step of its own here, though not in the module.
                let wanted = w.wanted();
                for c in bits(mask & !w.saved) {
                    w.q.overlapping(&Chunks { start: c, end: c + 1 }, true);
                }
                if w.wanted() != wanted {
                    return to.push(w);
                }
                let is_new = |&c: &u64| w.saved & 1 << c == 0 && !w.is_on_its_way(c);
                w.reader = match bits(mask).find(is_new) {
                    Some(c) if !w.q.broken => {
                        // It waits for room in budget and ring.
                        let own = w.budget.take(w.in_memory, 1).filter(|_| w.q.len() < PLACES);
                        let Some(own) = own else { return };
                        w.in_memory = own;
                        Reader::Reading(mask & !((1 << c) - 1))
                    }
                    _ => Reader::Hanging,
                };
            }
            Reader::Reading(mask) => {
                // No memory for it.
                if let Some(mut w) = self.fault() {
                    let before = w.in_memory - 1;
                    w.give_back();
                    w.reader = Reader::Starving(before, mask);
                    to.push(w);
                }
                let c = u64::from(mask.trailing_zeros());
                let run = Run { start: c, end: c + 1, read: Read::UnderWay, content: [9; 3] };
                w.reader = if w.q.push(run, true).is_ok() {
                    let mask = mask & !(1 << c);
                    if case.borrows {
                        Reader::Starting(mask)
                    } else {
                        assert!(!w.q.started());
                        Reader::Saving(mask)
                    }
                } else {
                    w.give_back();
                    Reader::Hanging
                };
            }
            Reader::Starting(mask) => {
                if w.q.started() {
                    w.kick(RELEASER);
                }
                w.reader = Reader::Saving(mask);
            }
            Reader::Starving(before, mask) => {
                w.reader = if w.in_memory < before {
                    Reader::Saving(mask)
                } else if before == 0 || w.q.broken {
                    w.fail();
                    Reader::Hanging
                } else {
                    return;
                };
            }
            Reader::ReadingAhead(c) => {
                if let Some(mut w) = self.fault() {
                    w.give_back();
                    w.reader = Reader::Next;
                    to.push(w);
                }
                let run = Run { start: c, end: c + 1, read: Read::UnderWay, content: [9; 3] };
                if w.q.push(run, false).is_err() {
                    w.give_back();
                } else if w.q.started() {
                    w.kick(RELEASER);
                }
                w.reader = Reader::Next;
            }
            Reader::Hanging => {
                if w.q.hang() {
                    w.kick(RELEASER);
                }
                w.reader = Reader::Next;
            }
        }
        to.push(w);
    }

    /// A read ends; it saw the device at any time before.
    fn reads_end(&self, case: &Case, to: &mut Vec<Self>) {
        for i in 0..self.q.len {
            if self.oldest(i).slice.read != Read::UnderWay {
                continue;
            }
            let at = (self.q.head + i) % PLACES;
            let mut end = |mut w: Self, read: Read| {
                let device = w.device;
                let slice = &mut w.q.places[at].as_mut().unwrap().slice;
                slice.read = read;
                slice.content = device;
                w.kick(if case.strict { WRITER } else { RELEASER });
                w.kick(if case.borrows { RELEASER } else { 0 });
                to.push(w);
            };
            end(self.clone(), Read::Done);
            if let Some(w) = self.fault() {
                end(w, Read::Failed(5));
            }
        }
    }

    /// The youngest `n` slices that were taken come into the store.
    fn record(&mut self, n: usize) {
        for i in self.q.taken - n..self.q.taken {
            let run = self.oldest(i).slice;
            assert_eq!(run.read, Read::Done, "saved without having been read");
            for c in run.start..run.end {
                let c = c as usize;
                let content = run.content[c];
                assert_eq!(content, OLD, "what was written is taken for the old content");
                assert!(!self.store[c].written, "a chunk is saved twice");
                self.store[c].written = true;
            }
        }
    }

    fn flush(&mut self) {
        for r in &mut self.store {
            r.durable = r.written;
        }
    }

    /// One of `n` slices. False: there are none left, or it is no more for this.
    fn retire_saved(&mut self, n: usize) -> bool {
        let Self { q, saved, .. } = self;
        let retired = n > 0
            && q.retire_saved(|run| (run.start..run.end).for_each(|c| *saved |= 1 << c)).is_some();
        if retired {
            self.give_back();
        }
        // In the module once, at the end.
        self.kick(RELEASER);
        retired
    }

    fn sync_beside(&self, to: &mut Vec<Self>) {
        let mut w = self.clone();
        w.syncer = match self.syncer {
            Syncer::Idle | Syncer::Ended(_) => return,
            Syncer::Running(n) => {
                if let Some(mut w) = self.fault() {
                    w.syncer = Syncer::Ended(false);
                    w.kick(WRITER);
                    to.push(w);
                }
                w.flush();
                Syncer::Retiring(n)
            }
            Syncer::Retiring(n) if w.retire_saved(n) => Syncer::Retiring(n - 1),
            Syncer::Retiring(_) => {
                w.kick(WRITER);
                Syncer::Ended(true)
            }
        };
        to.push(w);
    }

    fn save(&self, case: &Case, to: &mut Vec<Self>) {
        let mut w = self.clone();
        match self.writer {
            Writer::Idle => return,
            Writer::Next if w.q.broken => {
                (w.syncing, w.batch) = (false, 0);
                w.writer = if let Some(p) = w.q.retire() {
                    assert_ne!(p.slice.read, Read::UnderWay, "freed, and its read is under way");
                    w.give_back();
                    Writer::Next
                } else {
                    w.marked = true;
                    w.finish_if_due();
                    Writer::Idle
                };
            }
            Writer::Next => w.writer = Writer::Beside,
            Writer::Beside => {
                if let Syncer::Ended(well) = w.syncer {
                    (w.syncer, w.syncing) = (Syncer::Idle, false);
                    if !well {
                        w.writer = Writer::Marking;
                        return to.push(w);
                    }
                }
                if !w.syncing && w.batch > 0 {
                    if let Some(mut w) = w.fault() {
                        w.writer = Writer::Marking;
                        to.push(w);
                    }
                    w.record(w.batch);
                    w.syncer = Syncer::Running(w.batch);
                    (w.syncing, w.batch) = (true, 0);
                }
                w.writer = Writer::Collecting;
            }
            Writer::Collecting => {
                let (mut n, few) = (0, if case.strict { 3 } else { 0 });
                w.writer = match w.q.collect(few, |_| {
                    n += 1;
                    true
                }) {
                    Next::Nothing => {
                        w.finish_if_due();
                        Writer::Idle
                    }
                    Next::Batch => {
                        if case.strict && case.beside {
                            w.writer = Writer::WritingData(n);
                            to.push(w.clone());
                        }
                        if w.syncing {
                            w.q.put_back(n);
                            Writer::Idle
                        } else {
                            assert_eq!((w.batch, w.q.taken), (0, n));
                            Writer::Writing(n)
                        }
                    }
                    Next::Failed(_) => Writer::Marking,
                    Next::Unread(..) => {
                        assert!(!self.oldest(0).ahead, "broken by what was read ahead");
                        Writer::Marking
                    }
                    Next::Ahead => Writer::Dropping,
                };
            }
            Writer::WritingData(n) => {
                if let Some(mut w) = self.fault() {
                    w.writer = Writer::Marking;
                    to.push(w);
                }
                w.batch += n;
                w.writer = Writer::Next;
            }
            Writer::Writing(n) => {
                if let Some(mut w) = self.fault() {
                    w.writer = Writer::Marking;
                    to.push(w);
                }
                w.record(n);
                w.writer = if case.strict { Writer::Syncing(n) } else { Writer::Retiring(n) };
            }
            Writer::Syncing(n) => {
                if let Some(mut w) = self.fault() {
                    w.writer = Writer::Marking;
                    to.push(w);
                }
                w.flush();
                w.writer = Writer::Retiring(n);
            }
            Writer::Retiring(n) => {
                w.writer = if w.retire_saved(n) { Writer::Retiring(n - 1) } else { Writer::Next };
            }
            Writer::Dropping => {
                if w.q.drop_ahead().is_some() {
                    w.give_back();
                    w.kick(READER | RELEASER);
                }
                w.writer = Writer::Next;
            }
            Writer::Marking => {
                // The store that could not be written may not say so either.
                if let Some(mut w) = self.fault() {
                    w.writer = Writer::Breaking;
                    w.overdue = true;
                    to.push(w);
                }
                w.marked = true;
                w.writer = Writer::Breaking;
            }
            Writer::Breaking => {
                w.break_now();
                w.writer = Writer::Next;
            }
        }
        to.push(w);
    }

    fn release(&self, to: &mut Vec<Self>) {
        let mut w = self.clone();
        match self.releaser {
            Releaser::Idle if w.kicked & RELEASER == 0 => return,
            Releaser::Idle => {
                w.kicked &= !RELEASER;
                let Self { q, saved, .. } = &mut w;
                q.advance_buffered(|run| (run.start..run.end).for_each(|c| *saved |= 1 << c));
                w.kick(WRITER);
                w.releaser = Releaser::Next;
            }
            Releaser::Next => {
                w.releaser = match w.q.take_ready() {
                    None => Releaser::Idle,
                    Some(bio) => {
                        // What the watch relies on.
                        let turn = u64::from(bio.turn);
                        assert!(w.q.broken || turn == w.q.released, "a bio goes out of turn");
                        Releaser::Sending(bio)
                    }
                };
            }
            Releaser::Sending(bio) => {
                w.releaser = if bio.kind == Kind::Discard && !w.q.broken {
                    Releaser::Discarding(bio)
                } else {
                    let is_saved = bio.chunks & !w.saved == 0;
                    assert!(w.q.broken || is_saved, "the session would hold it again");
                    w.done(bio, true);
                    Releaser::Sent(bio.weight())
                };
            }
            Releaser::Discarding(bio) => {
                let (first, rest) = bio.split();
                w.done(first, first.chunks & w.saved != 0);
                w.releaser = match rest.chunks {
                    0 => Releaser::Sent(bio.weight()),
                    _ => Releaser::Discarding(rest),
                };
            }
            Releaser::Sent(weight) => {
                let quiet = w.q.let_go(weight);
                assert_eq!(quiet, w.q.gone);
                w.releaser = Releaser::Next;
            }
        }
        to.push(w);
    }

    /// What must be true at any time.
    fn check(&self, case: &Case) {
        let q = &self.q;
        for c in 0..CHUNKS as usize {
            if self.device[c] == OLD {
                continue;
            }
            let in_memory = (0..q.len).any(|i| {
                let run = self.oldest(i).slice;
                (run.start..run.end).contains(&(c as u64))
                    && run.read == Read::Done
                    && run.content[c] == OLD
            });
            let record = self.store[c];
            if case.strict {
                // A power cut now: the store has it, or says that it is broken.
                assert!(
                    record.durable || self.marked || self.overdue,
                    "chunk {c} was written, and a power cut would lose its pre-image silently"
                );
            }
            assert!(
                record.written || in_memory || q.broken,
                "chunk {c} was written, and its pre-image is nowhere"
            );
        }
        // Whoever waits for a held bio keeps the disk open.
        let under_way = (0..q.len).any(|i| self.oldest(i).slice.read == Read::UnderWay);
        let reads = under_way || matches!(self.reader, Reader::Starting(_));
        let gone = u64::from(matches!(self.releaser, Releaser::Sent(_)));
        assert!(
            !(case.borrows && reads) || q.holding() > gone,
            "nobody keeps the disk, and it is read"
        );
        if self.finished {
            assert_eq!((q.held, q.len), (q.released, 0), "finished, though something is held");
        }
        if q.broken {
            // The type's invariant.
            let waiting = (0..q.len).any(|i| !self.oldest(i).waiters.is_empty());
            assert!(q.incoming.is_empty() && q.again.is_empty());
            assert!(q.current.is_none() && !waiting && q.failed.is_none());
        }
        if q.gone {
            assert!(q.holding() == 0, "quiet, though something is held");
        }
        let own = q.len as u64
            + u64::from(matches!(self.reader, Reader::Reading(_) | Reader::ReadingAhead(_)));
        assert_eq!((self.budget.figures().0, self.in_memory), (own, own), "the budget is wrong");
        // Each bio that came is in one place.
        let mut parts = self.done;
        let mut count = |b: &Bio| {
            for c in bits(b.chunks) {
                let bit = 1 << (u64::from(b.number) * CHUNKS + c);
                assert_eq!(parts & bit, 0, "a bio in two places");
                parts |= bit;
            }
        };
        q.incoming.iter().for_each(&mut count);
        q.again.iter().for_each(&mut count);
        q.current.iter().for_each(&mut count);
        (0..q.len).for_each(|i| self.oldest(i).waiters.iter().for_each(&mut count));
        q.ready.iter().for_each(&mut count);
        if let Reader::Splitting(b) = &self.reader {
            count(b);
        }
        if let Releaser::Sending(b) | Releaser::Discarding(b) = &self.releaser {
            count(b);
        }
        for (i, b) in case.bios.iter().enumerate() {
            let all = parts_of(b);
            let here = parts & all;
            // Those that come after the end are not the session's.
            if (self.to_come | self.led) & 1 << i == 0 && !q.closing {
                assert_eq!(here, all, "a bio is lost");
            } else {
                assert!(here == 0 || here == all, "part of a bio is lost");
            }
        }
    }

    /// Where nobody has a step left.
    fn check_end(&self) {
        let q = &self.q;
        assert_eq!(q.held_bytes, 0, "the books do not balance");
        assert!(self.finished, "it is never finished");
        if q.broken {
            assert!(self.marked, "broken, and the store does not say so");
        } else {
            for c in 0..CHUNKS as usize {
                assert!(self.device[c] == OLD || self.store[c].written);
            }
        }
    }
}

/// Tries all orders; returns how many states there are.
fn explore(case: &Case) -> usize {
    let mut seen = HashSet::<u128, BuildHasherDefault<Lanes>>::default();
    let (mut todo, mut next) = (vec![World::new(case)], Vec::new());
    let mut ends = 0;
    seen.insert(todo[0].key());
    while let Some(w) = todo.pop() {
        w.check(case);
        w.steps(case, &mut next);
        if next.is_empty() {
            assert_eq!(w.q.holding(), 0, "something is held for ever");
            assert_eq!(w.q.len, 0, "a slice stays for ever");
        }
        w.events(case, &mut next);
        if next.is_empty() {
            ends += 1;
            w.check_end();
        }
        for mut n in next.drain(..) {
            n.settle(case);
            if seen.insert(n.key()) {
                todo.push(n);
            }
        }
    }
    assert!(ends > 0, "it has no end");
    seen.len()
}

const fn bio(kind: Kind, number: u8, chunks: u8) -> Bio {
    Bio { number, chunks, kind, turn: 0 }
}

use Kind::*;
/// Two on one chunk, one across; the same with one that is let go in parts.
const OVERLAPPING: &[Bio] = &[bio(Write, 0, 0b001), bio(Write, 1, 0b011), bio(Write, 2, 0b010)];
const TWO: &[Bio] = &[bio(Write, 0, 0b011), bio(Write, 1, 0b110)];
const PARTS: &[Bio] = &[bio(Zeroes, 0, 0b011), bio(Write, 1, 0b010)];
const MORE_PARTS: &[Bio] = &[bio(Zeroes, 0, 0b111), bio(Write, 1, 0b010), bio(Write, 2, 0b100)];
const AHEAD: &[Bio] = &[bio(Write, 0, 0b011)];
const IN_PARTS: &[Bio] = &[bio(Zeroes, 0, 0b011)];
const PARTS_AHEAD: &[Bio] = &[bio(Zeroes, 0, 0b011), bio(Write, 1, 0b001)];
const APART: &[Bio] = &[bio(Write, 0, 0b001), bio(Write, 1, 0b010)];
const DISCARDS: &[Bio] = &[bio(Write, 0, 0b001), bio(Discard, 1, 0b011)];

/// A small batch waits for what is being read for others when it is looked at first, for
/// nothing else.
#[test]
fn a_small_batch_waits_for_reads_that_are_under_way() {
    let mut q: Q = Queue::new((0..4).map(|_| None).collect(), Naive(Vec::new()), false);
    let content = [OLD; 3];
    let run = |start| Run { start, end: start + 1, read: Read::UnderWay, content };
    fn read(q: &mut Q, i: usize) {
        q.places[i].as_mut().unwrap().slice.read = Read::Done;
    }
    let all = |q: &mut Q, few| {
        let mut n = 0;
        let next = q.collect(few, |_| {
            n += 1;
            true
        });
        if next == Next::Batch {
            q.put_back(n);
        }
        (next, n)
    };
    assert!(q.park(bio(Write, 0, 0b111), 1).is_ok());
    assert!(q.push(run(0), true).is_ok() && q.push(run(1), true).is_ok());
    read(&mut q, 0);
    assert_eq!(all(&mut q, 1), (Next::Batch, 1), "large enough");
    assert_eq!(all(&mut q, 9).0, Next::Nothing, "another is on its way");
    assert!(q.push(run(2), true).is_ok());
    read(&mut q, 1);
    assert_eq!(all(&mut q, 9), (Next::Batch, 2), "who comes later is not waited for");
    assert!(q.retire().is_some() && q.retire().is_some());
    assert_eq!(all(&mut q, 9).0, Next::Nothing);
    read(&mut q, 2);
    assert_eq!(all(&mut q, 9), (Next::Batch, 1));
    assert!(q.retire().is_some());
    // What nobody wants yet is not waited for.
    assert!(q.push(run(0), true).is_ok() && q.push(run(1), false).is_ok());
    read(&mut q, 3);
    assert_eq!(all(&mut q, 9), (Next::Batch, 1));
}

fn states(bios: &'static [Bio], faults: u8, memory: u64, ahead: u8) {
    let mut states = 0;
    for (strict, beside) in [(true, false), (true, true), (false, false)] {
        // Nobody keeps a disk for what is read ahead. What is made durable beside the writer has no bearing on it.
        let most = if ahead == 0 && !beside { 2 } else { 1 };
        for borrows in [false, true].into_iter().take(most) {
            states += explore(&Case { bios, strict, beside, faults, memory, ahead, borrows });
        }
    }
    println!("{bios:?}, {faults} faults, memory for {memory}, {ahead} ahead: {states} states");
    assert!(states > 10_000, "the model has come to a standstill: {states} states");
}

#[test]
fn all_orders_of_overlapping_bios() {
    states(OVERLAPPING, 0, 3, 0);
}

#[test]
fn all_orders_of_two_with_a_fault() {
    states(TWO, 1, 3, 0);
}

#[test]
fn all_orders_of_two_with_little_memory() {
    states(TWO, 1, 1, 0);
}

#[test]
fn all_orders_of_a_bio_in_parts() {
    states(PARTS, 1, 3, 0);
}

#[test]
fn all_orders_of_a_discard() {
    states(DISCARDS, 1, 3, 0);
}

#[test]
fn all_orders_of_reading_ahead() {
    states(AHEAD, 1, 6, 2);
    states(IN_PARTS, 1, 3, 1);
}

/// Much larger; takes minutes.
#[test]
#[ignore = "takes minutes"]
fn all_orders_of_more() {
    states(TWO, 2, 3, 0);
    states(TWO, 1, 6, 1);
    states(APART, 2, 6, 2);
    states(PARTS_AHEAD, 1, 3, 1);
    for bios in [OVERLAPPING, MORE_PARTS] {
        states(bios, 1, 3, 0);
    }
}
