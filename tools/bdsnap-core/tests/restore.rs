// SPDX-License-Identifier: GPL-2.0

//! Restores against a model: random devices, sessions, foreign writes and
//! losses. The result is the recorded image, or a refusal, never a third.
#![allow(missing_docs)]

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use bdsnap_abi::format::{Durability, Gap, Id, Kind as SessionKind, Record, State, Version, NO_ID};
use bdsnap_abi::ioctl::{
    Entry, StatusHead, ENTRY_RECORDING, RESTORE_ABORT, RESTORE_END, RESTORE_OTHERS,
    RESTORE_REGISTERED, RESTORE_UNSEEN, RESTORE_WATCHED, RESTORE_WRITE, RESTORE_WRITTEN,
};
use bdsnap_core::chain::Selector;
use bdsnap_core::device::{Purpose, Target};
use bdsnap_core::module::{Control, ModuleStatus, Registration, Watch};
use bdsnap_core::progress::{Progress, Silent, Stop};
use bdsnap_core::restore::{prepare, resume, Accept, Outcome, Request};
use bdsnap_core::store::{Item, Store};
use bdsnap_core::test_support::{pattern, Lab, Options};
use bdsnap_core::{Error, Kind, Result};
use proptest::prelude::*;

const CHUNK: usize = 4096;
const LOAD: Id = [0x77; 16];

/// What the module knows of the device.
#[derive(Default)]
struct World {
    registered: bool,
    watched: Cell<bool>,
    written: Cell<bool>,
    tail: Cell<Id>,
    recording: Cell<Id>,
    phases: RefCell<Vec<u32>>,
    /// Somebody else writes before the restore does.
    meddled: Cell<bool>,
    /// Somebody else writes while the restore does.
    others: Cell<bool>,
    /// The disk's statistics count more than the module has seen.
    unseen: Cell<bool>,
    before: RefCell<Vec<u8>>,
}

struct Fake {
    world: Rc<World>,
    store: Store,
    image: PathBuf,
}

impl Control for Fake {
    fn status(&self) -> Result<ModuleStatus> {
        let head = StatusHead { load_id: LOAD, ..StatusHead::default() };
        let entry = Entry {
            flags: ENTRY_RECORDING,
            session_id: self.world.recording.get(),
            ..Entry::default()
        };
        let running = Registration { entry, name: Vec::new(), dir: Vec::new() };
        Ok(ModuleStatus { head, entries: vec![running] })
    }

    fn end_raw(&self) -> Result<()> {
        Ok(())
    }

    fn restore_begin(&self, name: &[u8]) -> Result<Watch> {
        assert_eq!(name, self.image.as_os_str().as_encoded_bytes());
        *self.world.before.borrow_mut() = fs::read(&self.image).unwrap();
        let flag = |on: bool, flag| if on { flag } else { 0 };
        Ok(Watch {
            flags: flag(self.world.registered, RESTORE_REGISTERED)
                | flag(self.world.watched.get(), RESTORE_WATCHED)
                | flag(self.world.written.get(), RESTORE_WRITTEN)
                | flag(self.world.unseen.get(), RESTORE_UNSEEN),
            tail: self.world.tail.get(),
        })
    }

    fn restore_over(&self, phase: u32, name: &[u8]) -> io::Result<u64> {
        let others = self.world.others.get();
        self.world.phases.borrow_mut().push(phase);
        match phase {
            // EBUSY
            RESTORE_WRITE if self.world.meddled.get() => {
                return Err(io::Error::from_raw_os_error(16))
            }
            RESTORE_WRITE => {}
            RESTORE_END => {
                let tail = self.store.tail(name).unwrap().unwrap();
                assert_eq!(tail.load_id, LOAD);
                self.world.tail.set(tail.session_id);
                self.world.written.set(others);
                self.world.watched.set(true);
                self.world.unseen.set(false);
            }
            RESTORE_ABORT => {
                if fs::read(&self.image).unwrap() != *self.world.before.borrow() {
                    self.world.written.set(true);
                }
            }
            other => panic!("phase {other}"),
        }
        let over = phase == RESTORE_END || phase == RESTORE_ABORT;
        Ok(if over && others { RESTORE_REGISTERED | RESTORE_OTHERS } else { RESTORE_REGISTERED })
    }
}

/// A device that the module watches without a break.
fn watched(lab: &Lab) -> Rc<World> {
    let world = World { registered: true, ..World::default() };
    world.watched.set(true);
    world.tail.set(lab.last);
    Rc::new(world)
}

struct How<'a> {
    accept: Accept,
    undo: bool,
    resume: bool,
    progress: &'a dyn Progress,
    stop: Stop<'a>,
}

impl Default for How<'_> {
    fn default() -> Self {
        let accept = Accept::default();
        Self { accept, undo: true, resume: false, progress: &Silent, stop: Stop::never() }
    }
}

fn restore(lab: &Lab, world: &Rc<World>, selector: Selector, how: &How<'_>) -> Result<Outcome> {
    let target = Target::find(&lab.image)?;
    let request = Request {
        store: &lab.store,
        target: &target,
        selector,
        accept: how.accept,
        purpose: Purpose::Write,
        to_image: false,
        undo: how.undo,
    };
    let modules = || {
        let (store, image) = (lab.store.clone(), lab.image.clone());
        Ok(Some(Box::new(Fake { world: Rc::clone(world), store, image }) as Box<dyn Control>))
    };
    let prepared = if how.resume {
        resume(&request, &modules, how.progress, &how.stop)?
    } else {
        prepare(&request, &modules, how.progress, &how.stop)?
    };
    prepared.apply(how.progress, &how.stop)
}

fn name(dir: &str) -> Selector {
    Selector::parse(dir.as_bytes())
}

fn recorded(lab: &mut Lab, start: usize, len: usize, seed: u64) -> (String, Vec<u8>) {
    let past = lab.device.clone();
    let mut r = lab.record(&Options::default());
    r.write(start, &pattern(len, seed));
    (r.end(State::Closed), past)
}

#[test]
fn watched_device_has_no_gap() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 100 * CHUNK);
    let (a, first) = recorded(&mut lab, 0, 50_000, 2);
    let (_, second) = recorded(&mut lab, 20_000, 90_000, 3);
    let world = watched(&lab);
    let how = How::default();
    restore(&lab, &world, name("latest"), &how).unwrap();
    assert!(lab.content() == second);
    // The chain goes on through the undo session.
    restore(&lab, &world, name(&a), &how).unwrap();
    assert!(lab.content() == first);
    restore(&lab, &world, Selector::Undo, &how).unwrap();
    assert!(lab.content() == second);
    assert_eq!(*world.phases.borrow(), [RESTORE_WRITE, RESTORE_END].repeat(3));
    let undo: Vec<Gap> = lab
        .store
        .items()
        .unwrap()
        .iter()
        .filter_map(|i| match i {
            Item::Session(s) if s.header.kind == SessionKind::Undo => Some(s.header.gap_before),
            _ => None,
        })
        .collect();
    assert_eq!(undo, [Gap::None; 3]);

    world.written.set(true);
    let e = restore(&lab, &world, name(&a), &how).unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    assert!(e.message.contains("written outside"), "{e}");
    assert!(lab.content() == second);
}

#[test]
fn somebody_else_writes_meanwhile() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 20 * CHUNK);
    recorded(&mut lab, 0, 50_000, 2);
    let now = lab.content();
    let world = watched(&lab);
    world.meddled.set(true);
    let e = restore(&lab, &world, name("latest"), &How::default()).unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    assert!(lab.content() == now);
    assert_eq!(*world.phases.borrow(), [RESTORE_WRITE, RESTORE_ABORT], "not vouched for");
    let tail = lab.store.tail(lab.image.as_os_str().as_encoded_bytes()).unwrap().unwrap();
    assert_eq!(tail.load_id, NO_ID);
}

/// The lines of the history.
fn history(lab: &Lab) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(lab.store.path().join(".bdsnap-history")).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn others_that_write_while_it_writes() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 1 << 20);
    let (a, first) = recorded(&mut lab, 0, 50_000, 2);
    let world = watched(&lab);
    let image = lab.image.display().to_string();
    for undo in [true, false] {
        world.others.set(true);
        let accept = Accept { gap: !undo, ..Accept::default() };
        let how = How { undo, accept, ..How::default() };
        let outcome = restore(&lab, &world, name(&a), &how).unwrap();
        assert_eq!(outcome.others_wrote, [&*image], "undo {undo}");
        assert!(!outcome.partial);
        assert!(lab.content() == first);
        let line = history(&lab).pop().unwrap();
        assert_eq!(
            (&line["result"], &line["others_wrote"][0]),
            (&"done".into(), &image.clone().into())
        );
        // What they wrote is of no session.
        world.others.set(false);
        let e = restore(&lab, &world, Selector::Undo, &How::default()).unwrap_err();
        assert!(e.kind == Kind::Refused && e.message.contains("gap"), "{e}");
        if !undo {
            continue;
        }
        let how = How { accept: Accept { gap: true, ..Accept::default() }, ..How::default() };
        let outcome = restore(&lab, &world, Selector::Undo, &how).unwrap();
        assert!(outcome.others_wrote.is_empty());
        assert_eq!(history(&lab).pop().unwrap()["others_wrote"], serde_json::json!([]));
    }
}

#[test]
fn others_that_write_while_it_fails() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 4 << 20);
    let (a, _) = recorded(&mut lab, 0, 3 << 20, 2);
    let world = watched(&lab);
    world.others.set(true);
    let progress = &Spoil { phase: "check", file: lab.image.clone(), at: 4096 };
    let e = restore(&lab, &world, name(&a), &How { progress, ..How::default() }).unwrap_err();
    assert!(e.message.contains("does not hold what was written"), "{e}");
    assert!(e.message.contains("disk.img meanwhile"), "{e}");
    let line = history(&lab).pop().unwrap();
    assert_eq!(
        (&line["result"], line["others_wrote"].as_array().unwrap().len()),
        (&"failed".into(), 1)
    );
}

#[test]
fn what_the_statistics_cannot_vouch_for_is_a_gap() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 20 * CHUNK);
    let (a, first) = recorded(&mut lab, 0, 50_000, 2);
    let now = lab.content();
    let world = watched(&lab);
    world.unseen.set(true);
    let e = restore(&lab, &world, name(&a), &How::default()).unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    assert!(e.message.contains("the disk's statistics cannot vouch"), "{e}");
    assert!(e.hint.unwrap().contains("--accept-gap"));
    assert!(lab.content() == now);
    let how = How { accept: Accept { gap: true, ..Accept::default() }, ..How::default() };
    restore(&lab, &world, name(&a), &how).unwrap();
    assert!(lab.content() == first);
    let items = lab.store.items().unwrap();
    let gap = items.iter().find_map(|i| match i {
        Item::Session(s) if s.header.kind == SessionKind::Undo => Some(s.header.gap_before),
        _ => None,
    });
    assert_eq!(gap, Some(Gap::Unknown));
}

#[test]
fn recording_session_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 20 * CHUNK);
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; 10]);
    let id = r.header.session_id;
    r.cut();
    let world = watched(&lab);
    world.recording.set(id);
    let accept = Accept { gap: true, loss: true, alone: true };
    let how = How { accept, ..How::default() };
    let e = restore(&lab, &world, name("latest"), &how).unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    world.recording.set(NO_ID);
    restore(&lab, &world, name("latest"), &how).unwrap();
}

#[test]
fn without_undo_the_module_is_told_of_a_gap() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 20 * CHUNK);
    let (a, first) = recorded(&mut lab, 0, 50_000, 2);
    let world = watched(&lab);
    restore(&lab, &world, name(&a), &How { undo: false, ..How::default() }).unwrap();
    assert!(lab.content() == first);
    assert_eq!(*world.phases.borrow(), [RESTORE_WRITE, RESTORE_ABORT]);
    assert_eq!(restore(&lab, &world, name(&a), &How::default()).unwrap_err().kind, Kind::Refused);
}

/// Asks to stop in the middle of a phase.
struct StopIn<'a> {
    phase: &'a str,
    after: u64,
    now: Cell<bool>,
    done: Cell<u64>,
    flag: &'a AtomicBool,
}

impl Progress for StopIn<'_> {
    fn phase(&self, name: &str, _total: u64) {
        self.now.set(name == self.phase);
        self.done.set(0);
        self.advance(0);
    }
    fn advance(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        if self.now.get() && self.done.get() >= self.after {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
    fn finish(&self) {}
}

#[test]
fn stopped_anywhere_it_goes_on_or_back() {
    for (phase, after) in [
        ("verify", 0),
        ("compare", 1),
        ("save for undo", 1),
        ("restore", 0),
        ("restore", 1),
        ("restore", 1 << 20),
        ("restore", 2 << 20),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = Lab::new(tmp.path(), 4 << 20);
        let past = lab.device.clone();
        let mut r = lab.record(&Options::default());
        r.write(0, &pattern(1 << 20, 2));
        r.write(2 << 20, &pattern(1 << 20, 3));
        r.write(3_500_000, &pattern(100_000, 4));
        let a = r.end(State::Closed);
        let now = lab.content();
        let world = watched(&lab);
        let flag = AtomicBool::new(false);
        let progress =
            StopIn { phase, after, now: Cell::new(false), done: Cell::new(0), flag: &flag };
        let how = How { progress: &progress, stop: Stop::at(&flag), ..How::default() };
        let e = restore(&lab, &world, name(&a), &how).unwrap_err();
        assert_eq!(e.kind, Kind::Interrupted, "{phase} {after}: {e}");
        let untouched = phase != "restore";
        assert_eq!(e.message.contains("partly restored"), !untouched, "{phase}: {e}");
        assert_eq!(lab.store.items().unwrap().len(), if untouched { 1 } else { 2 });
        if untouched || after == 0 {
            assert!(lab.content() == now, "{phase} {after}");
        } else {
            assert!(lab.content() != now && lab.content() != past, "{phase} {after}");
        }
        // On, back and then all the way, without any gap.
        if !untouched {
            assert!(e.hint.unwrap().contains("--resume"));
            let on = How { resume: true, ..How::default() };
            restore(&lab, &world, Selector::Undo, &on).unwrap();
            assert!(lab.content() == past, "{phase} {after}");
            assert_eq!(lab.store.items().unwrap().len(), 2, "the undo session of before");
            restore(&lab, &world, Selector::Undo, &How::default()).unwrap();
            assert!(lab.content() == now, "{phase} {after}");
        }
        restore(&lab, &world, name(&a), &How::default()).unwrap();
        assert!(lab.content() == past, "{phase} {after}");
        let whole = restore(&lab, &world, name(&a), &How::default()).unwrap();
        assert_eq!(whole.bytes_written, 0);
    }
}

/// Changes a file's byte when a phase begins.
struct Spoil {
    phase: &'static str,
    file: PathBuf,
    at: usize,
}

impl Progress for Spoil {
    fn phase(&self, name: &str, _total: u64) {
        if name == self.phase {
            let mut bytes = fs::read(&self.file).unwrap();
            bytes[self.at] ^= 1;
            fs::write(&self.file, bytes).unwrap();
        }
    }
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}

#[test]
fn what_changes_under_a_restore_is_told_and_can_be_undone() {
    let last = (3 << 20) - 1;
    for (of_device, phase, at, kind, message) in [
        // A store that changes after it was verified; a device that doesn't keep what it was given.
        (false, "restore", last, Kind::Verification, "a session's data, or the device, changed"),
        (true, "check", last, Kind::Error, "does not hold what was written at byte 2097152"),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = Lab::new(tmp.path(), 4 << 20);
        let (a, _) = recorded(&mut lab, 0, 3 << 20, 2);
        let now = lab.content();
        let world = watched(&lab);
        let file = if of_device { lab.image.clone() } else { lab.path(&a).join("blocks.dat") };
        let how = How { progress: &Spoil { phase, file, at }, ..How::default() };
        let e = restore(&lab, &world, name(&a), &how).unwrap_err();
        assert_eq!(e.kind, kind, "{phase} {at}: {e}");
        assert!(e.message.contains(message), "{phase} {at}: {e}");
        assert!(e.message.contains("partly restored (3.0 MiB of 3.0 MiB"), "{e}");
        assert!(lab.content() != now);
        restore(&lab, &world, Selector::Undo, &How::default()).unwrap();
        assert!(lab.content() == now, "{phase} {at}");
    }
}

#[test]
fn copies_of_a_session_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 20 * CHUNK);
    let (a, _) = recorded(&mut lab, 0, 5000, 2);
    let copy = lab.path(&format!("{a}-1"));
    fs::create_dir(&copy).unwrap();
    for file in ["blocks.map", "blocks.dat"] {
        fs::copy(lab.path(&a).join(file), copy.join(file)).unwrap();
    }
    let e = restore(&lab, &watched(&lab), name(&a), &How::default()).unwrap_err();
    assert!(e.message.contains("same place"), "{e}");
}

/// What happens to the device, in order.
#[derive(Debug, Clone)]
enum Event {
    /// A session with writes (start, length), a chunk size and an end.
    Session { writes: Vec<(usize, usize)>, chunk: u32, end: End, zeros: bool },
    /// A write that the module sees outside sessions.
    Foreign { start: usize, len: usize },
    /// The module was away; perhaps something was written.
    Away { write: Option<(usize, usize)> },
    /// The session before this is deleted.
    Lose,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Closed,
    CutStrict,
    CutAsync,
    /// Cut after it was tainted.
    CutTainted,
    Broken,
}

const BYTES: usize = 30 * CHUNK + 1024;

fn place() -> impl Strategy<Value = (usize, usize)> {
    (0..BYTES, 1..40_000usize).prop_map(|(s, l)| (s, l.min(BYTES - s)))
}

fn event() -> impl Strategy<Value = Event> {
    let end = prop_oneof![
        8 => Just(End::Closed),
        2 => Just(End::CutStrict),
        1 => Just(End::CutAsync),
        1 => Just(End::CutTainted),
        1 => Just(End::Broken),
    ];
    let session = (
        prop::collection::vec(place(), 1..5),
        prop_oneof![Just(4096u32), Just(8192), Just(65536)],
        end,
        any::<bool>(),
    );
    prop_oneof![
        12 => session.prop_map(|(writes, chunk, end, zeros)| Event::Session { writes, chunk, end, zeros }),
        1 => place().prop_map(|(start, len)| Event::Foreign { start, len }),
        1 => prop::option::of(place()).prop_map(|write| Event::Away { write }),
        1 => Just(Event::Lose),
    ]
}

/// A session as the model remembers it.
struct Known {
    dir: String,
    past: Vec<u8>,
    /// Something may have been missed between the one before and this one.
    gap: bool,
    lossy: bool,
    lost: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_past_or_a_refusal(events in prop::collection::vec(event(), 1..9), which in any::<prop::sample::Index>()) {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = Lab::new(tmp.path(), BYTES);
        lab.device[..8 * CHUNK].fill(0);
        lab.write(0, &[]);
        let mut known: Vec<Known> = Vec::new();
        let (mut gap, mut written, mut seed) = (Gap::None, false, 100);
        for event in events {
            match event {
                Event::Session { writes, chunk, end, zeros } => {
                    let past = lab.device.clone();
                    let strict = if end == End::CutAsync { Durability::Async } else { Durability::Strict };
                    let options =
                        Options { chunk, zeros, gap, durability: strict, ..Options::default() };
                    // A chain may be over both versions.
                    lab.version = if seed % 3 == 0 { Version::Two } else { Version::One };
                    let mut r = lab.record(&options);
                    for (i, (start, len)) in writes.into_iter().enumerate() {
                        seed += 1;
                        r.write(start, &pattern(len, seed));
                        if i % 2 == 1 {
                            r.commit();
                        }
                        if i == 0 && end == End::CutTainted {
                            r.taint();
                        }
                    }
                    if end == End::Broken {
                        // The last run is what was lost.
                        let last = r.records.iter().rposition(|r| matches!(r, Record::Run(_)));
                        let last = last.unwrap();
                        r.records.truncate(last);
                        let end_of = |r: &Record| match r {
                            Record::Run(run) => run.offset + u64::from(run.stored),
                            Record::Commit(end) => *end,
                            _ => 0,
                        };
                        let dat = r.records.iter().map(end_of).max();
                        r.dat.truncate(dat.unwrap_or(0) as usize);
                    }
                    let dir = match end {
                        End::Closed => r.end(State::Closed),
                        End::Broken => r.end(State::Broken),
                        End::CutStrict | End::CutAsync | End::CutTainted => r.cut(),
                    };
                    let lossy = matches!(end, End::CutAsync | End::CutTainted | End::Broken);
                    known.push(Known { dir, past, gap: gap != Gap::None, lossy, lost: false });
                    (gap, written) = (Gap::None, false);
                }
                Event::Foreign { start, len } => {
                    seed += 1;
                    lab.write(start, &pattern(len, seed));
                    (gap, written) = (Gap::Written, true);
                }
                Event::Away { write } => {
                    if let Some((start, len)) = write {
                        seed += 1;
                        lab.write(start, &pattern(len, seed));
                    }
                    if gap == Gap::None {
                        gap = Gap::Unknown;
                    }
                }
                Event::Lose => {
                    if let Some(k) = known.last_mut().filter(|k| !k.lost) {
                        fs::remove_dir_all(lab.path(&k.dir)).unwrap();
                        k.lost = true;
                    }
                }
            }
        }
        let there: Vec<usize> = (0..known.len()).filter(|&i| !known[i].lost).collect();
        prop_assume!(!there.is_empty());
        let n = there[which.index(there.len())];
        let world = Rc::new(World { registered: true, ..World::default() });
        world.watched.set(gap != Gap::Unknown || written);
        world.written.set(written);
        world.tail.set(lab.last);

        let gaps = known[n + 1..].iter().any(|k| k.gap || k.lost) || gap != Gap::None;
        let lossy = known[n..].iter().any(|k| !k.lost && k.lossy);
        let now = lab.content();
        let selector = || Selector::Name(known[n].dir.clone().into_bytes());
        let plain = restore(&lab, &world, selector(), &How::default());
        match plain {
            Ok(outcome) => {
                prop_assert!(!gaps && !lossy);
                prop_assert!(!outcome.partial);
                prop_assert!(lab.content() == known[n].past);
                // And back again.
                if outcome.bytes_written > 0 {
                    restore(&lab, &world, Selector::Undo, &How::default()).unwrap();
                    prop_assert!(lab.content() == now);
                }
            }
            Err(Error { kind, message, .. }) => {
                prop_assert_eq!(kind, Kind::Refused, "{}", message);
                prop_assert!(gaps || lossy, "{}", message);
                prop_assert!(lab.content() == now);
                let accept = Accept { gap: true, loss: true, alone: false };
                let how = How { accept, ..How::default() };
                let outcome = restore(&lab, &world, selector(), &how).unwrap();
                prop_assert_eq!(outcome.partial, lossy);
                restore(&lab, &world, Selector::Undo, &how).ok();
                if outcome.bytes_written > 0 {
                    prop_assert!(lab.content() == now);
                }
            }
        }
    }
}
