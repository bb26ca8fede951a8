// SPDX-License-Identifier: GPL-2.0

//! All orders of small cases: everybody who works on a session's queue, a
//! device, a store, a watch and faults, each a small state machine that takes
//! the steps of the module's code; between any two steps of one, any of the
//! others. What the steps under the lock decide is the module's own code.

use super::*;
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Chunks of the device; a set of them is a bit mask.
const CHUNKS: u64 = 3;
/// Places of the ring.
const PLACES: usize = 2;
/// The device's content before the session.
const OLD: u8 = 0;

/// A bio: its number, plus one its content; the chunks that it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Bio {
    number: u8,
    chunks: u8,
    /// Without data: it is let go in parts of a chunk.
    divisible: bool,
}

impl Bio {
    fn weight(self) -> u64 {
        u64::from(!self.divisible)
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
    fn first(&self, range: &Chunks, run_of: impl Fn(usize) -> Option<Chunks>) -> Option<Chunks> {
        self.0
            .iter()
            .filter_map(|&(p, _)| run_of(p))
            .filter(|r| r.start < range.end && r.end > range.start)
            .min_by_key(|r| r.start)
    }
}

type Q = Queue<Run, List, Vec<Option<Pending<Run, List>>>, Naive>;

impl Clone for Q {
    fn clone(&self) -> Self {
        let place = |p: &Option<Pending<Run, List>>| {
            p.as_ref().map(|p| Pending { slice: p.slice, waiters: p.waiters.clone() })
        };
        Self {
            incoming: self.incoming.clone(),
            places: self.places.iter().map(place).collect(),
            index: self.index.clone(),
            ready: self.ready.clone(),
            watch: Watch::new(),
            ..*self
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    Idle,
    Splitting(Bio),
    /// Chunks of the current bio that have yet to be looked at.
    Saving(u8),
    /// A chunk that is to be read, and the others.
    Reading(u64, u8),
    Hanging,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    /// It has seen that the session is not broken.
    Collecting,
    Writing(usize),
    Syncing(usize),
    Inserting(usize),
    Retiring(usize),
    Marking,
    Breaking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Releaser {
    Idle,
    Sending(Bio),
    Sent(Bio),
}

/// What the store has of a chunk: how often, and whether it is durable.
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
    /// Things that may go wrong.
    faults: u8,
    /// The watch may break the session.
    watch: bool,
    /// The session may be closed.
    close: bool,
}

#[derive(Clone)]
struct World {
    q: Q,
    reader: Reader,
    writer: Writer,
    releaser: Releaser,
    /// Bios that were not submitted yet.
    to_come: u8,
    /// Bios that were led here, and are about to be parked.
    led: u8,
    /// Parts of bios that reached the device, each bit a bio's chunk.
    done: u16,
    device: [u8; CHUNKS as usize],
    /// In memory: first writes may pass.
    saved: u8,
    store: [Record; CHUNKS as usize],
    /// The store says broken.
    marked: bool,
    /// Broken by the watch, which does not wait for the store.
    overdue: bool,
    /// Closed in the store.
    finished: bool,
    faults: u8,
    watch: bool,
    close: bool,
}

fn bits(mask: u8) -> impl Iterator<Item = u64> {
    (0..CHUNKS).filter(move |c| mask & 1 << c != 0)
}

impl World {
    fn new(case: &Case) -> Self {
        Self {
            q: Queue::new((0..PLACES).map(|_| None).collect(), Naive(Vec::new())),
            reader: Reader::Idle,
            writer: Writer::Idle,
            releaser: Releaser::Idle,
            to_come: (1 << case.bios.len()) - 1,
            led: 0,
            done: 0,
            device: [OLD; CHUNKS as usize],
            saved: 0,
            store: [Record::default(); CHUNKS as usize],
            marked: false,
            overdue: false,
            finished: false,
            faults: case.faults,
            watch: case.watch,
            close: case.close,
        }
    }

    fn key(&self) -> u128 {
        let half = |salt: u8| {
            let h = &mut DefaultHasher::new();
            salt.hash(h);
            (
                self.reader,
                self.writer,
                self.releaser,
                self.to_come,
                self.led,
                self.done,
                self.device,
                self.saved,
            )
                .hash(h);
            (
                self.store,
                self.marked,
                self.overdue,
                self.finished,
                self.faults,
                self.watch,
                self.close,
            )
                .hash(h);
            let q = &self.q;
            (&q.incoming, q.current, q.failed, &q.ready, q.held, q.released, q.held_bytes).hash(h);
            (q.broken, q.closing, q.gone, q.buffered, q.len).hash(h);
            for i in 0..q.len {
                // Where the ring begins makes no difference.
                let p = q.places[(q.head + i) % PLACES].as_ref().unwrap();
                (p.slice, &p.waiters).hash(h);
            }
            h.finish()
        };
        u128::from(half(0)) << 64 | u128::from(half(1))
    }

    fn oldest(&self, i: usize) -> &Pending<Run, List> {
        self.q.places[(self.q.head + i) % PLACES].as_ref().unwrap()
    }

    /// A bio goes to the device.
    fn write(&mut self, bio: Bio) {
        for c in bits(bio.chunks) {
            let bit = 1 << (u64::from(bio.number) * CHUNKS + c);
            assert_eq!(self.done & bit, 0, "a bio goes twice");
            self.done |= bit;
            self.device[c as usize] = bio.number + 1;
        }
    }

    /// All states that the next step of anybody leads to.
    fn steps(&self, case: &Case, to: &mut Vec<Self>) {
        self.submit(case, to);
        self.read(to);
        self.reads_end(to);
        self.save(case, to);
        self.finish(to);
        self.release(case, to);
        if self.watch && self.q.holding() > 0 {
            let mut w = self.clone();
            w.watch = false;
            w.overdue |= w.q.break_now();
            to.push(w);
        }
        // A file system lets go after its last write; a raw session ends at any time.
        if self.close && !self.q.closing {
            let mut w = self.clone();
            w.q.begin_closing();
            w.q.is_quiet();
            to.push(w);
        }
    }

    fn submit(&self, case: &Case, to: &mut Vec<Self>) {
        for (i, &bio) in case.bios.iter().enumerate() {
            let mut w = self.clone();
            if self.to_come & 1 << i != 0 {
                w.to_come &= !(1 << i);
                if bio.chunks & !w.saved == 0 {
                    w.write(bio);
                } else if !w.q.closing {
                    w.led |= 1 << i;
                }
                // After the session no bio is led there; whose it is then is another matter.
            } else if self.led & 1 << i != 0 {
                w.led &= !(1 << i);
                if let Err(bio) = w.q.park(bio, bio.weight()) {
                    // Another session's, or nobody's, if this one is over.
                    if w.q.broken {
                        w.write(bio);
                    }
                }
            } else {
                continue;
            }
            to.push(w);
        }
    }

    fn read(&self, to: &mut Vec<Self>) {
        let mut w = self.clone();
        match self.reader {
            Reader::Idle => {
                let Some(bio) = w.q.next_incoming() else { return };
                if bio.divisible && bio.chunks.count_ones() > 1 {
                    w.reader = Reader::Splitting(bio);
                } else {
                    w.q.set_current(bio);
                    w.reader = Reader::Saving(bio.chunks);
                }
            }
            Reader::Splitting(bio) => {
                let part = bio.chunks & bio.chunks.wrapping_neg();
                let front = Bio { chunks: part, ..bio };
                let rest = Bio { chunks: bio.chunks & !part, ..bio };
                if let Some(mut w) = self.fault() {
                    if w.q.set_current(bio) {
                        w.q.fail(Failure { errno: 12, sector: 0 });
                    }
                    w.reader = Reader::Hanging;
                    to.push(w);
                }
                w.reader =
                    if w.q.set_split(front, rest) { Reader::Saving(part) } else { Reader::Idle };
            }
            Reader::Saving(mask) => {
                let unsaved = bits(mask).find(|&c| {
                    w.saved & 1 << c == 0
                        && w.q.overlapping(&Chunks { start: c, end: c + 1 }).is_none()
                });
                w.reader = match unsaved {
                    Some(c) => Reader::Reading(c, mask & !(1 << c)),
                    None => Reader::Hanging,
                };
            }
            Reader::Reading(c, rest) => {
                // No memory for it.
                if let Some(mut w) = self.fault() {
                    w.q.fail(Failure { errno: 12, sector: c });
                    w.reader = Reader::Hanging;
                    to.push(w);
                }
                // The budget: it waits for room in the ring.
                if !w.q.broken && w.q.len() == PLACES {
                    return;
                }
                let run = Run { start: c, end: c + 1, read: Read::UnderWay, content: [9; 3] };
                w.reader = match w.q.push(run) {
                    Ok(()) => Reader::Saving(rest),
                    Err(_) => Reader::Hanging,
                };
            }
            Reader::Hanging => {
                w.q.hang();
                w.reader = Reader::Idle;
            }
        }
        to.push(w);
    }

    /// A copy in which something may go wrong.
    fn fault(&self) -> Option<Self> {
        let mut w = self.clone();
        w.faults = w.faults.checked_sub(1)?;
        Some(w)
    }

    /// A read ends; it saw the device at any time before.
    fn reads_end(&self, to: &mut Vec<Self>) {
        for i in 0..self.q.len {
            if self.oldest(i).slice.read != Read::UnderWay {
                continue;
            }
            let at = (self.q.head + i) % PLACES;
            let mut w = self.clone();
            let device = w.device;
            let slice = &mut w.q.places[at].as_mut().unwrap().slice;
            slice.read = Read::Done;
            slice.content = device;
            to.push(w);
            if let Some(mut w) = self.fault() {
                w.q.places[at].as_mut().unwrap().slice.read = Read::Failed(5);
                to.push(w);
            }
        }
    }

    fn save(&self, case: &Case, to: &mut Vec<Self>) {
        let mut w = self.clone();
        match self.writer {
            Writer::Idle if self.q.broken => {
                if let Some(p) = w.q.retire() {
                    assert_ne!(p.slice.read, Read::UnderWay, "freed, and its read is under way");
                } else if !w.marked {
                    w.marked = true;
                } else {
                    return;
                }
            }
            Writer::Idle => {
                // It is kicked when there is something to do.
                if w.q.collect(|_| true) == Next::Nothing {
                    return;
                }
                w.writer = Writer::Collecting;
            }
            Writer::Collecting => {
                let mut n = 0;
                w.writer = match w.q.collect(|_| {
                    n += 1;
                    true
                }) {
                    Next::Nothing => Writer::Idle,
                    Next::Batch => Writer::Writing(n),
                    Next::Failed(_) | Next::Unread(..) => Writer::Marking,
                };
            }
            Writer::Writing(n) => {
                if let Some(mut w) = self.fault() {
                    w.writer = Writer::Marking;
                    to.push(w);
                }
                for i in 0..n {
                    let run = self.oldest(i).slice;
                    assert_eq!(run.read, Read::Done, "saved without having been read");
                    for c in run.start..run.end {
                        let c = c as usize;
                        assert_eq!(
                            run.content[c], OLD,
                            "what was written is taken for the old content"
                        );
                        assert!(!w.store[c].written, "a chunk is saved twice");
                        w.store[c].written = true;
                    }
                }
                w.writer = if case.strict { Writer::Syncing(n) } else { Writer::Inserting(n) };
            }
            Writer::Syncing(n) => {
                if let Some(mut w) = self.fault() {
                    w.writer = Writer::Marking;
                    to.push(w);
                }
                for r in &mut w.store {
                    r.durable = r.written;
                }
                w.writer = Writer::Inserting(n);
            }
            Writer::Inserting(n) => {
                for i in 0..n {
                    let run = self.oldest(i).slice;
                    (run.start..run.end).for_each(|c| w.saved |= 1 << c);
                }
                w.writer = Writer::Retiring(n);
            }
            Writer::Retiring(n) => {
                (0..n).for_each(|_| assert!(w.q.retire().is_some()));
                w.writer = Writer::Idle;
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
                w.q.break_now();
                w.writer = Writer::Idle;
            }
        }
        to.push(w);
    }

    fn finish(&self, to: &mut Vec<Self>) {
        let mut w = self.clone();
        if self.writer != Writer::Idle || self.finished || !w.q.is_quiet() || !w.q.is_empty() {
            return;
        }
        w.finished = true;
        for r in &mut w.store {
            r.durable = r.written;
        }
        to.push(w);
    }

    fn release(&self, case: &Case, to: &mut Vec<Self>) {
        let mut w = self.clone();
        match self.releaser {
            Releaser::Idle => {
                if !case.strict {
                    let mut w = self.clone();
                    let World { q, saved, .. } = &mut w;
                    q.advance_buffered(|run| (run.start..run.end).for_each(|c| *saved |= 1 << c));
                    to.push(w);
                }
                let Some(bio) = w.q.take_ready() else { return };
                w.releaser = Releaser::Sending(bio);
            }
            Releaser::Sending(bio) => {
                w.write(bio);
                w.releaser = Releaser::Sent(bio);
            }
            Releaser::Sent(bio) => {
                w.q.let_go(bio.weight());
                w.q.is_quiet();
                w.releaser = Releaser::Idle;
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
        if self.finished {
            assert_eq!((q.held, q.len), (q.released, 0), "finished, though something is held");
        }
        if q.broken {
            // The type's invariant.
            let waiting = (0..q.len).any(|i| !self.oldest(i).waiters.is_empty());
            assert!(q.incoming.is_empty() && q.current.is_none() && !waiting && q.failed.is_none());
        }
        if q.gone {
            assert!(q.holding() == 0, "quiet, though something is held");
        }
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
        q.current.iter().for_each(&mut count);
        (0..q.len).for_each(|i| self.oldest(i).waiters.iter().for_each(&mut count));
        q.ready.iter().for_each(&mut count);
        if let Reader::Splitting(b) = &self.reader {
            count(b);
        }
        if let Releaser::Sending(b) = &self.releaser {
            count(b);
        }
        for (i, b) in case.bios.iter().enumerate() {
            let all = bits(b.chunks).fold(0, |m, c| m | 1 << (i as u64 * CHUNKS + c));
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
    fn check_end(&self, case: &Case) {
        let q = &self.q;
        assert_eq!(q.holding(), 0, "something is held for ever");
        assert_eq!(q.held_bytes, 0, "the books do not balance");
        assert_eq!(q.len, 0, "a slice stays for ever");
        if case.close {
            assert!(self.finished, "it is never finished");
        }
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
    let mut seen = HashSet::new();
    let (mut todo, mut next) = (vec![World::new(case)], Vec::new());
    let mut ends = 0;
    seen.insert(todo[0].key());
    while let Some(w) = todo.pop() {
        w.check(case);
        w.steps(case, &mut next);
        let own = w.key();
        let mut end = true;
        for n in next.drain(..) {
            let key = n.key();
            end &= key == own;
            if seen.insert(key) {
                todo.push(n);
            }
        }
        if end {
            ends += 1;
            w.check_end(case);
        }
    }
    assert!(ends > 0, "it has no end");
    seen.len()
}

const fn bio(number: u8, chunks: u8) -> Bio {
    Bio { number, chunks, divisible: false }
}
const fn zeroes(number: u8, chunks: u8) -> Bio {
    Bio { number, chunks, divisible: true }
}

/// Two on one chunk, one across; the same with one that is let go in parts.
const OVERLAPPING: &[Bio] = &[bio(0, 0b001), bio(1, 0b011), bio(2, 0b010)];
const TWO: &[Bio] = &[bio(0, 0b011), bio(1, 0b110)];
const PARTS: &[Bio] = &[zeroes(0, 0b011), bio(1, 0b010)];
const MORE_PARTS: &[Bio] = &[zeroes(0, 0b111), bio(1, 0b010), bio(2, 0b100)];

fn states(bios: &'static [Bio], faults: u8) {
    let mut states = 0;
    for strict in [true, false] {
        for watch in [false, true] {
            states += explore(&Case { bios, strict, faults, watch, close: true });
        }
    }
    println!("{} bios, {faults} faults: {states} states", bios.len());
    assert!(states > 10_000, "the model has come to a standstill: {states} states");
}

#[test]
fn all_orders_of_overlapping_bios() {
    states(OVERLAPPING, 0);
}

#[test]
fn all_orders_of_two_with_two_faults() {
    states(TWO, 2);
}

#[test]
fn all_orders_of_a_bio_in_parts() {
    states(PARTS, 1);
}

/// Much larger; takes minutes.
#[test]
#[ignore = "takes minutes"]
fn all_orders_of_more() {
    for bios in [OVERLAPPING, MORE_PARTS] {
        states(bios, 1);
    }
}
