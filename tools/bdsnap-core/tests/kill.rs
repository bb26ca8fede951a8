// SPDX-License-Identifier: GPL-2.0

//! A restore of two devices that is killed at each of its steps: it can be
//! resumed, undone or run again, and whatever is not touched stays.
#![allow(missing_docs)]

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use bdsnap_abi::format::State;
use bdsnap_core::chain::Selector;
use bdsnap_core::device::{Purpose, Target};
use bdsnap_core::progress::{Progress, Silent, Stop};
use bdsnap_core::restore::{journal, prepare, resume, Accept, Outcome, Request};
use bdsnap_core::store::{Item, Store};
use bdsnap_core::test_support::{pattern, Lab, Options};
use bdsnap_core::{Kind, Result};

const CHUNK: usize = 4096;
const GAP: Accept = Accept { gap: true, loss: false, alone: false };
/// The exit status of a child that was "killed".
const KILLED: i32 = 77;

/// One test at a time: a child that is being started has, for a moment, the
/// locks of all of this process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Ends the process, without any clean-up, at a step.
struct KillAt {
    steps: Cell<u64>,
    at: u64,
}

impl Progress for KillAt {
    fn phase(&self, _name: &str, _total: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn step(&self, what: &str) {
        if self.steps.get() == self.at {
            eprintln!("killed after: {what}");
            std::process::exit(KILLED);
        }
        self.steps.set(self.steps.get() + 1);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Action {
    Restore,
    Resume,
    Undo,
}

fn act(
    store: &Store,
    image: &Path,
    action: Action,
    undo: bool,
    progress: &dyn Progress,
) -> Result<Outcome> {
    journal::tidy(store)?;
    let target = Target::find(image)?;
    let selector =
        if action == Action::Undo { Selector::Undo } else { Selector::parse(b"latest~1") };
    let request = Request {
        store,
        target: &target,
        selector,
        accept: GAP,
        purpose: Purpose::Write,
        to_image: false,
        undo,
    };
    let stop = Stop::never();
    let prepared = if action == Action::Resume {
        resume(&request, &|| Ok(None), progress, &stop)?
    } else {
        prepare(&request, &|| Ok(None), progress, &stop)?
    };
    prepared.apply(progress, &stop)
}

/// Not a test: what the tests below start and kill.
#[test]
fn child() {
    let Ok(image) = std::env::var("KILL_IMAGE") else { return };
    let image = Path::new(&image);
    let store = Store::open(&image.with_file_name("store")).unwrap();
    let at = std::env::var("KILL_AT").unwrap().parse().unwrap();
    let action = match std::env::var("KILL_ACTION").unwrap().as_str() {
        "resume" => Action::Resume,
        "undo" => Action::Undo,
        _ => Action::Restore,
    };
    let undo = std::env::var_os("KILL_NO_UNDO").is_none();
    act(&store, image, action, undo, &KillAt { steps: Cell::new(0), at }).unwrap();
}

/// Runs it in a process of its own; whether it was killed.
fn killed(image: &Path, action: &str, at: u64, undo: bool) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture"])
        .env("KILL_IMAGE", image)
        .env("KILL_AT", at.to_string())
        .env("KILL_ACTION", action)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if !undo {
        command.env("KILL_NO_UNDO", "1");
    }
    match command.status().unwrap().code() {
        Some(KILLED) => true,
        Some(0) => false,
        other => panic!("{other:?}"),
    }
}

struct Scene {
    _tmp: tempfile::TempDir,
    labs: [Lab; 2],
    past: [Vec<u8>; 2],
    now: [Vec<u8>; 2],
}

/// Two devices of one file system, each with two sessions.
fn scene() -> Scene {
    let tmp = tempfile::tempdir().unwrap();
    let a = Lab::new(tmp.path(), 40 * CHUNK + 512);
    let b = a.beside("b.img", 30 * CHUNK);
    let mut labs = [a, b];
    let past = [labs[0].device.clone(), labs[1].device.clone()];
    for mount in 0..2 {
        for (i, lab) in labs.iter_mut().enumerate() {
            let group = [0xa0 + mount as u8; 16];
            let mut r = lab.record(&Options { group, ..Options::default() });
            r.write((mount * 3 + i) * CHUNK, &pattern(2 * CHUNK, 5 + mount as u64));
            r.write((20 + mount * 4) * CHUNK, &pattern(CHUNK, 50 + i as u64));
            r.end(State::Closed);
        }
    }
    let now = [labs[0].content(), labs[1].content()];
    Scene { _tmp: tmp, labs, past, now }
}

impl Scene {
    fn content(&self) -> [Vec<u8>; 2] {
        [self.labs[0].content(), self.labs[1].content()]
    }

    fn sessions(&self) -> usize {
        let items = self.labs[0].store.items().unwrap();
        assert!(items.iter().all(|i| matches!(i, Item::Session(_))), "all are readable");
        items.len()
    }

    fn act(&self, lab: usize, action: Action) -> Result<Outcome> {
        act(&self.labs[0].store, &self.labs[lab].image, action, true, &Silent)
    }

    fn is_interrupted(&self) -> bool {
        !journal::interrupted(&self.labs[0].store).unwrap().is_empty()
    }

    /// Nothing is left over of any restore.
    fn assert_tidy(&self) {
        journal::tidy(&self.labs[0].store).unwrap();
        let folder = self.labs[0].store.path().join(".bdsnap-restore");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }
}

#[test]
fn killed_anywhere_it_goes_on_or_back() {
    let _alone = alone();
    let mut touched = 0;
    for at in 0.. {
        for action in [Action::Resume, Action::Undo, Action::Restore] {
            let s = scene();
            if !killed(&s.labs[0].image, "restore", at, true) {
                assert!(s.content() == s.past);
                assert!(!s.is_interrupted());
                assert!(touched > 10, "only {touched} steps");
                return;
            }
            if !s.is_interrupted() {
                // As if nothing had happened, after the next command at least.
                assert!(s.content() == s.now || s.content() == s.past, "step {at}");
                let whole = s.content() == s.past;
                assert_eq!(s.act(1, Action::Resume).unwrap_err().kind, Kind::NotFound);
                assert_eq!(s.sessions(), if whole { 6 } else { 4 }, "step {at}");
                s.act(0, Action::Restore).unwrap();
                assert!(s.content() == s.past, "step {at}");
                continue;
            }
            touched += 1;
            assert_eq!(s.sessions(), 6, "step {at}");
            match action {
                Action::Resume => {
                    // From the other device, for a change.
                    s.act(1, Action::Resume).unwrap();
                    assert!(s.content() == s.past, "step {at}");
                    assert_eq!(s.sessions(), 6, "no second undo session");
                    assert_eq!(s.act(0, Action::Resume).unwrap_err().kind, Kind::NotFound);
                    s.act(0, Action::Undo).unwrap();
                    assert!(s.content() == s.now, "step {at}");
                }
                Action::Undo => {
                    s.act(1, Action::Undo).unwrap();
                    assert!(s.content() == s.now, "step {at}");
                }
                Action::Restore => {
                    s.act(0, Action::Restore).unwrap();
                    assert!(s.content() == s.past, "step {at}");
                }
            }
            // What was interrupted is over, unless nothing had to be written.
            if s.sessions() > 6 || action == Action::Resume {
                assert!(!s.is_interrupted(), "step {at}");
                s.assert_tidy();
            }
        }
    }
}

#[test]
fn a_killed_resume_is_resumed_and_a_killed_undo_is_undone() {
    let _alone = alone();
    for at in 0.. {
        let mut more = false;
        for action in ["resume", "undo"] {
            let s = scene();
            // In the middle of its writes.
            let middle = 16;
            assert!(killed(&s.labs[0].image, "restore", middle, true));
            assert!(s.content() != s.now && s.content() != s.past);
            more |= killed(&s.labs[0].image, action, at, true);
            if action == "resume" {
                if s.is_interrupted() {
                    s.act(0, Action::Resume).unwrap();
                }
                assert!(s.content() == s.past, "{action} {at}");
            } else {
                // Whichever of the two undo sessions is the last one now.
                if s.is_interrupted() {
                    let first = s.act(0, Action::Resume);
                    assert!(first.is_ok(), "{action} {at}: {first:?}");
                }
                assert!(s.content() == s.now || s.content() == s.past, "{action} {at}");
            }
            s.assert_tidy();
        }
        if !more {
            return;
        }
    }
}

#[test]
fn without_undo_it_is_run_again() {
    let _alone = alone();
    for at in 0.. {
        let s = scene();
        if !killed(&s.labs[0].image, "restore", at, false) {
            assert!(at > 8);
            return;
        }
        if s.is_interrupted() {
            s.act(0, Action::Resume).unwrap();
        } else {
            s.act(0, Action::Restore).unwrap();
        }
        assert!(s.content() == s.past, "step {at}");
        assert!(!s.is_interrupted());
    }
}

#[test]
fn others_changes_are_not_resumed_over() {
    let _alone = alone();
    let mut refused = 0;
    for change in 0..3 {
        let mut s = scene();
        assert!(killed(&s.labs[0].image, "restore", 16, true));
        s.labs[0].device = s.labs[0].content();
        match change {
            // In what the restore writes.
            0 => s.labs[0].write(CHUNK + 700, b"somebody else's"),
            // The device was mounted.
            1 => {
                let mut r = s.labs[0].record(&Options::default());
                r.write(30 * CHUNK, &[1; 10]);
                r.end(State::Closed);
            }
            // A session is gone.
            _ => {
                let store = &s.labs[0].store;
                let items = store.items().unwrap();
                fs::remove_dir_all(store.path().join(std::str::from_utf8(items[1].dir()).unwrap()))
                    .unwrap();
            }
        }
        let before = s.content();
        let e = s.act(0, Action::Resume).unwrap_err();
        assert_eq!(e.kind, Kind::Refused, "{change}: {e}");
        assert!(s.content() == before);
        refused += 1;
    }
    assert_eq!(refused, 3);
}
