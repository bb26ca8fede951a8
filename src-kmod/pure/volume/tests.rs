// SPDX-License-Identifier: GPL-2.0

//! All orders of small cases: whoever changes what a volume is, and those who
//! write to its disk, each a small state machine that takes the steps of the
//! module's code; between any two steps of one, any of the others. What the
//! steps decide is the module's own code, except what is in the hook: see
//! [`World::decide`].
//!
//! There is one disk, in which the medium may change, and one name for it. Kept
//! is a ledger of what no session has saved, which the module does not see.

use super::*;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

const ADDRESS: usize = 64;

fn place(seq: u8) -> Place {
    Place {
        id: DiskId { address: ADDRESS, seq: seq.into() },
        sectors: Place::WHOLE,
        major: 8,
        minor: 0,
        logical_block_size: 512,
        partition: false,
    }
}

fn seq_of(place: Option<Place>) -> Option<u8> {
    place.map(|p| p.id.seq as u8)
}

/// A session, as the module and the store know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Session {
    by: By,
    seq: u8,
    broken: bool,
}

/// What the hook has decided of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Decision {
    /// A session of the medium that it is for saves what it overwrites.
    Saved,
    Wait,
    Pass,
}

/// A task that writes, to the medium that it has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Write {
    Idle,
    /// In the hook: it has the table.
    Table {
        entry: Option<u8>,
    },
    /// It has found no session.
    NoSession {
        entry: u8,
    },
    /// It goes on, and is about to leave this note.
    Noting(u32),
    AtGate,
    /// On its way to the device. It was on its way before a session or a restore began.
    Sent {
        saved: bool,
        excused: bool,
    },
    Done,
}

/// The steps of who starts a session, under `turning`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Start {
    Arm,
    Wait,
    Begin,
}

/// Of who ends one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stop {
    Disarm,
    Wait,
    End,
}

/// Of who makes the hook know another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bind {
    State(Option<u8>),
    /// With what it was before, in case that fails.
    Table(Option<u8>, Option<u8>),
    Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Start,
    /// Looking up the name found this.
    Found(Option<u8>, Option<u8>),
    Locked(Option<u8>, Option<u8>),
    Starting(Start),
    Stopping(Stop),
    Binding(Bind),
    /// A filesystem, before it writes, while it does, and after.
    Mounted,
    /// One of which the module does not know.
    MountedUnseen,
    Releasing,
    /// A restore.
    Begun,
    Restoring,
    Unlock,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Settle,
    Mount,
    /// The worker behind the gate.
    Turn,
    Deactivate,
    Restore,
    /// Of the disk.
    ChangeMedium,
    /// The watch, when a bio has been at the gate for too long, or when a raw session is over.
    Lapse,
    EndRaw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Task {
    who: Who,
    step: Step,
    /// What comes after a session's end, or a new place.
    then: Option<Then>,
    /// Writers in the hook that it waits for.
    waits: u8,
    medium: u8,
    released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Then {
    Bind(Option<u8>),
    StartClaim,
    StartRaw,
    Remove,
    Restore,
    Release,
    Unlock,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    state: State,
    // What the hook reads.
    table: Option<u8>,
    meets: Meets,
    recording: Option<Session>,
    notes: u32,
    session: Option<Session>,
    turning: Option<u8>,
    tasks: Vec<Task>,
    writes: Vec<Write>,
    /// The writer is the restore's own.
    own: Vec<bool>,
    raw_over: bool,
    turn: bool,
    medium: u8,
    publishes_fail: u8,
    // The ledger.
    /// Written unsaved since the last session began or ended, by medium.
    dirty: [bool; 3],
    /// By the restore itself.
    restored: bool,
    /// The medium of the last session.
    chain: Option<u8>,
}

impl World {
    fn new(who: &[Who], own: &[bool], raw: bool, fails: u8) -> Self {
        let task = |&who: &Who| Task {
            who,
            step: Step::Start,
            then: None,
            waits: 0,
            medium: 0,
            released: false,
        };
        let state = State::new(Some(place(0)), raw);
        Self {
            state,
            table: Some(0),
            meets: state.meets(),
            recording: None,
            notes: 0,
            session: None,
            turning: None,
            tasks: who.iter().map(task).collect(),
            writes: vec![Write::Idle; own.len()],
            own: own.to_vec(),
            raw_over: false,
            turn: false,
            medium: 0,
            publishes_fail: fails,
            dirty: [false; 3],
            restored: false,
            chain: None,
        }
    }

    /// As in `Volume::change`.
    fn change<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> T {
        self.state.take_notes(std::mem::take(&mut self.notes));
        let result = change(&mut self.state);
        self.meets = self.state.meets();
        result
    }

    fn in_hook(&self) -> u8 {
        let inside = |w: &Write| {
            matches!(w, Write::Table { .. } | Write::NoSession { .. } | Write::Noting(_))
        };
        self.writes.iter().enumerate().filter(|(_, w)| inside(w)).map(|(i, _)| 1 << i).sum()
    }

    /// A writer has left the hook.
    fn left_hook(&mut self, writer: usize) {
        self.tasks.iter_mut().for_each(|t| t.waits &= !(1 << writer));
    }

    /// Writes that are on their way now are nobody's to save.
    fn excuse(&mut self) {
        for write in &mut self.writes {
            if let Write::Sent { saved: false, excused } = write {
                *excused = true;
            }
        }
    }

    /// The hook, step by step; see `registry::find_wait`.
    fn decide(&mut self, i: usize) -> Option<Decision> {
        match self.writes[i] {
            Write::Table { entry: None } => Some(Decision::Pass),
            Write::Table { entry: Some(entry) } => match self.recording {
                None if entry != self.medium => Some(Decision::Pass),
                None => {
                    self.writes[i] = Write::NoSession { entry };
                    None
                }
                Some(s) if s.by == By::RawWrite && entry != self.medium => {
                    self.notes |= ANOTHER_MEDIUM;
                    Some(Decision::Pass)
                }
                Some(s) if s.broken => Some(Decision::Pass),
                Some(_) => Some(Decision::Saved),
            },
            Write::NoSession { .. } if self.meets == Meets::Gate => Some(Decision::Wait),
            Write::NoSession { .. } => {
                let own = self.meets == Meets::Restore && self.own[i];
                self.writes[i] = Write::Noting(if own { RESTORED } else { WROTE });
                None
            }
            Write::Noting(note) => {
                self.notes |= note;
                Some(Decision::Pass)
            }
            _ => None,
        }
    }

    /// The next step of a writer; false: it has none now.
    fn write(&mut self, i: usize) -> bool {
        match self.writes[i] {
            Write::Idle => {
                // The restore's own come when it writes, a filesystem's when it is mounted.
                let may = if self.own[i] {
                    self.tasks.iter().any(|t| t.who == Who::Restore && t.step == Step::Restoring)
                } else {
                    true
                };
                if may {
                    self.writes[i] = Write::Table { entry: self.table };
                }
                may
            }
            Write::Table { .. } | Write::NoSession { .. } | Write::Noting(_) => {
                if let Some(decision) = self.decide(i) {
                    self.left_hook(i);
                    self.writes[i] = match decision {
                        Decision::Wait => {
                            self.turn = true;
                            Write::AtGate
                        }
                        Decision::Saved => Write::Sent { saved: true, excused: false },
                        Decision::Pass => Write::Sent { saved: false, excused: false },
                    };
                }
                true
            }
            Write::AtGate => false,
            Write::Sent { saved, excused } => {
                if self.own[i] {
                    self.restored = true;
                } else if !saved && !excused {
                    self.dirty[usize::from(self.medium)] = true;
                }
                self.writes[i] = Write::Done;
                true
            }
            Write::Done => false,
        }
    }

    fn open_gate(&mut self) {
        for i in 0..self.writes.len() {
            if self.writes[i] == Write::AtGate {
                self.writes[i] = Write::Table { entry: self.table };
            }
        }
    }

    fn holds(&self) -> bool {
        self.writes.iter().any(|w| matches!(w, Write::Sent { saved: true, .. }))
    }

    /// What the chain promises of `link`, held against the ledger.
    fn audit(&self, link: Link, seq: u8) {
        if matches!(link, Link::Watched(_)) {
            assert!(!self.dirty[usize::from(seq)], "a lost write, and no gap: {self:?}");
            assert_eq!(self.chain, Some(seq), "another medium, and no gap");
        }
    }

    /// The next step of a task; false: it has none now.
    fn step(&mut self, i: usize) -> bool {
        let t = self.tasks[i];
        let me = i as u8;
        let go = |w: &mut Self, step| {
            w.tasks[i].step = step;
            true
        };
        match (t.who, t.step) {
            (_, Step::Done) => false,
            (Who::ChangeMedium, _) => {
                self.medium += 1;
                go(self, Step::Done)
            }
            (Who::Lapse, _) => {
                if !self.writes.contains(&Write::AtGate) {
                    return false;
                }
                if self.recording.is_none() {
                    self.change(|s| s.lapse(1));
                }
                self.open_gate();
                go(self, Step::Done)
            }
            (Who::EndRaw, _) => {
                if !self.state.is_raw() {
                    return false;
                }
                self.raw_over = true;
                self.turn = true;
                go(self, Step::Done)
            }

            (Who::Settle, Step::Start) => {
                go(self, Step::Found(Some(self.medium), seq_of(self.state.place())))
            }
            (Who::Settle, Step::Found(found, before)) => {
                if found == before {
                    return go(self, Step::Done);
                }
                self.lock(me) && go(self, Step::Locked(found, before))
            }
            (Who::Settle, Step::Locked(found, before)) => {
                if self.state.is_claimed()
                    || self.state.is_gone()
                    || seq_of(self.state.place()) != before
                {
                    return go(self, Step::Unlock);
                }
                self.stop_raw_then(i, Then::Bind(found))
            }
            (Who::Mount, Step::Start) => {
                self.tasks[i].medium = self.medium;
                let found = seq_of(self.state.place()) == Some(self.medium);
                if found && self.state.takes_claims() {
                    self.lock(me) && go(self, Step::Locked(None, None))
                } else {
                    go(self, Step::MountedUnseen)
                }
            }
            (Who::Mount, Step::Locked(..)) => match self.change(State::claim) {
                Claimed::First => self.stop_raw_then(i, Then::StartClaim),
                Claimed::Another => go(self, Step::Unlock),
                Claimed::Gone => {
                    self.tasks[i].step = Step::MountedUnseen;
                    self.turning = None;
                    true
                }
            },
            (Who::Mount, Step::MountedUnseen) => go(self, Step::Done),
            (Who::Mount, Step::Mounted) => {
                // Its writes are those of anybody.
                self.lock(me) && go(self, Step::Releasing)
            }
            (Who::Mount, Step::Releasing) => {
                self.tasks[i].released = true;
                if !self.change(State::release) {
                    return go(self, Step::Unlock);
                }
                if self.session.is_some() {
                    self.tasks[i].then = Some(Then::Release);
                    go(self, Step::Stopping(Stop::Disarm))
                } else {
                    self.then(i, Then::Release)
                }
            }
            (Who::Deactivate, Step::Start) => self.lock(me) && go(self, Step::Locked(None, None)),
            (Who::Deactivate, Step::Locked(..)) => {
                if self.change(State::deactivate) {
                    self.stop_raw_then(i, Then::Remove)
                } else {
                    go(self, Step::Unlock)
                }
            }
            (Who::Turn, Step::Start) => {
                if !self.turn {
                    return false;
                }
                if !self.lock(me) {
                    return false;
                }
                self.turn = false;
                go(self, Step::Locked(None, None))
            }
            (Who::Turn, Step::Locked(..)) => {
                if std::mem::take(&mut self.raw_over) {
                    return self.stop_raw_then(i, Then::StartRaw);
                }
                self.then(i, Then::StartRaw)
            }
            (Who::Restore, Step::Start) => self.lock(me) && go(self, Step::Locked(None, None)),
            (Who::Restore, Step::Locked(..)) => self.stop_raw_then(i, Then::Restore),
            (Who::Restore, Step::Begun) => {
                if t.waits != 0 {
                    return false;
                }
                // Without the lock; what came before is in the notes by now.
                let link = self.change(|s| s.before_restore());
                if let Some(seq) = seq_of(self.state.place()) {
                    self.audit(link, seq);
                    self.tasks[i].medium = seq;
                }
                self.excuse();
                // What the chain says of the end is about what comes from now on.
                self.dirty = [false; 3];
                self.turning = None;
                go(self, Step::Restoring)
            }
            (Who::Restore, Step::Restoring) => {
                // Its own writes are over when it says so.
                let own =
                    |(w, own): (&Write, &bool)| *own && !matches!(w, Write::Idle | Write::Done);
                if self.writes.iter().zip(&self.own).any(own) || !self.lock(me) {
                    return false;
                }
                let whole =
                    self.writes.iter().zip(&self.own).all(|(w, own)| !own || *w == Write::Done);
                // Of what is registered no more nothing is said.
                if self.state.is_restoring() && !self.state.is_gone() {
                    let before = self.change(|s| s.before_restore());
                    if whole {
                        let _ = self.change(|s| s.end_restore(None));
                        self.chain = Some(t.medium);
                        if self.state.link == (Link::Watched(None)) {
                            assert!(!self.dirty[usize::from(t.medium)], "others wrote, unnoticed");
                        }
                    } else {
                        let _ = self.change(|s| s.abandon_restore());
                        if matches!(self.state.link, Link::Watched(_)) {
                            assert!(!self.restored && matches!(before, Link::Watched(_)));
                            assert!(!self.dirty[usize::from(t.medium)], "others wrote, unnoticed");
                        }
                    }
                }
                self.restored = false;
                go(self, Step::Unlock)
            }

            (_, Step::Starting(start)) => self.start(i, start),
            (_, Step::Stopping(stop)) => self.stop(i, stop),
            (_, Step::Binding(bind)) => self.bind(i, bind),
            (who, Step::Unlock) => {
                self.turning = None;
                match who {
                    Who::Turn => {
                        self.open_gate();
                        go(self, Step::Start)
                    }
                    Who::Mount if !t.released => {
                        self.open_gate();
                        go(self, Step::Mounted)
                    }
                    Who::Deactivate | Who::Settle => {
                        self.open_gate();
                        go(self, Step::Done)
                    }
                    _ => go(self, Step::Done),
                }
            }
            (who, step) => unreachable!("{who:?} {step:?}"),
        }
    }

    fn lock(&mut self, me: u8) -> bool {
        if self.turning.is_some() {
            return false;
        }
        self.turning = Some(me);
        true
    }

    fn stop_raw_then(&mut self, i: usize, then: Then) -> bool {
        if self.session.is_some_and(|s| s.by == By::RawWrite) {
            self.tasks[i].then = Some(then);
            self.tasks[i].step = Step::Stopping(Stop::Disarm);
            return true;
        }
        self.then(i, then)
    }

    fn then(&mut self, i: usize, then: Then) -> bool {
        let next = match then {
            Then::Bind(found) => {
                let refuses = self.state.place().is_some();
                self.change(|s| {
                    if refuses {
                        s.lose_sight();
                    }
                });
                self.tasks[i].then = Some(Then::Unlock);
                Step::Binding(Bind::State(found))
            }
            Then::StartClaim => Step::Starting(Start::Arm),
            Then::StartRaw => {
                let waiting = self.writes.contains(&Write::AtGate);
                if waiting
                    && !self.state.is_claimed()
                    && self.session.is_none()
                    && self.state.records_raw()
                {
                    if seq_of(self.state.place()) == Some(self.medium) {
                        Step::Starting(Start::Arm)
                    } else {
                        self.change(State::lose_sight);
                        self.tasks[i].then = Some(Then::Unlock);
                        self.tasks[i].step = Step::Binding(Bind::State(None));
                        return true;
                    }
                } else {
                    Step::Unlock
                }
            }
            Then::Remove => {
                self.change(State::remove);
                self.table = None;
                Step::Unlock
            }
            Then::Restore => {
                if self.state.is_gone() || self.writes.contains(&Write::AtGate) {
                    Step::Unlock
                } else if self.change(State::begin_restore).is_ok() {
                    self.tasks[i].waits = self.in_hook();
                    Step::Begun
                } else {
                    Step::Unlock
                }
            }
            Then::Release => {
                if self.state.is_retired() {
                    self.change(State::remove);
                    self.table = None;
                }
                Step::Unlock
            }
            Then::Unlock => Step::Unlock,
        };
        self.tasks[i].step = next;
        true
    }

    fn start(&mut self, i: usize, start: Start) -> bool {
        let by = if self.tasks[i].who == Who::Mount { By::Claim } else { By::RawWrite };
        let next = match start {
            Start::Arm => {
                let Some(seq) = seq_of(self.state.place()).filter(|&s| s == self.medium) else {
                    // `open.id() != place.id`
                    self.change(|s| s.lapse(1));
                    self.tasks[i].step = Step::Unlock;
                    return true;
                };
                let armed = self.change(|s| s.arm(by));
                assert_eq!(armed, Ok(()));
                let broken = self.table != Some(seq);
                self.session = Some(Session { by, seq, broken });
                self.recording = self.session;
                self.tasks[i].waits = self.in_hook();
                Step::Starting(Start::Wait)
            }
            Start::Wait if self.tasks[i].waits != 0 => return false,
            Start::Wait => Step::Starting(Start::Begin),
            Start::Begin => {
                let link = self.change(State::begin);
                let session = self.session.as_mut().unwrap();
                session.broken |= session.seq != self.medium;
                let session = *session;
                self.recording = Some(session);
                self.audit(link, session.seq);
                self.dirty[usize::from(session.seq)] = false;
                self.excuse();
                self.chain = Some(session.seq);
                Step::Unlock
            }
        };
        self.tasks[i].step = next;
        true
    }

    fn stop(&mut self, i: usize, stop: Stop) -> bool {
        let next = match stop {
            Stop::Disarm => {
                self.change(State::disarm);
                self.recording = None;
                self.tasks[i].waits = self.in_hook();
                Step::Stopping(Stop::Wait)
            }
            Stop::Wait if self.tasks[i].waits != 0 || self.holds() => return false,
            Stop::Wait => Step::Stopping(Stop::End),
            Stop::End => {
                let session = self.session.take().unwrap();
                self.change(|_| {});
                let broken =
                    session.broken || session.seq != self.medium || self.state.has_another_medium();
                let link = if broken { Link::Unwatched } else { Link::Watched(None) };
                self.change(|s| s.end(link));
                if !broken {
                    self.audit(self.state.link, session.seq);
                }
                let then = self.tasks[i].then.take().unwrap();
                return self.then(i, then);
            }
        };
        self.tasks[i].step = next;
        true
    }

    fn bind(&mut self, i: usize, bind: Bind) -> bool {
        let next = match bind {
            Bind::State(found) => {
                let before = seq_of(self.state.place());
                assert_eq!(self.change(|s| s.bind(found.map(place))), Ok(()));
                Bind::Table(found, before)
            }
            Bind::Table(found, before) => {
                if self.publishes_fail > 0 {
                    self.publishes_fail -= 1;
                    assert_eq!(self.change(|s| s.bind(before.map(place))), Ok(()));
                    self.tasks[i].step = Step::Unlock;
                    return true;
                }
                self.table = found;
                self.tasks[i].waits = self.in_hook();
                Bind::Wait
            }
            Bind::Wait if self.tasks[i].waits != 0 => return false,
            Bind::Wait => {
                let then = self.tasks[i].then.take().unwrap();
                return self.then(i, then);
            }
        };
        self.tasks[i].step = Step::Binding(next);
        true
    }
}

/// Tries all orders; returns how many states there are.
fn explore(who: &[Who], own: &[bool], raw: bool, fails: u8) -> usize {
    let key = |w: &World| {
        let mut h = DefaultHasher::new();
        w.hash(&mut h);
        h.finish()
    };
    let start = World::new(who, own, raw, fails);
    let mut seen = HashSet::from([key(&start)]);
    let mut todo = vec![start];
    while let Some(world) = todo.pop() {
        let mut moved = false;
        for i in 0..world.tasks.len() + world.writes.len() {
            let mut next = world.clone();
            let n = next.tasks.len();
            let can = if i < n { next.step(i) } else { next.write(i - n) };
            moved |= can;
            if can && seen.insert(key(&next)) {
                todo.push(next);
            }
        }
        // Nobody waits for ever, except for who did not come.
        if !moved {
            assert!(world.turning.is_none(), "{world:?}");
            assert!(!world.writes.contains(&Write::AtGate), "left at the gate: {world:?}");
        }
    }
    seen.len()
}

/// Each case with raw sessions and without, with a table that fails once and none that does.
fn all(who: &[Who], own: &[bool]) {
    let mut states = 0;
    for raw in [false, true] {
        for fails in [0, 1] {
            let mut who = who.to_vec();
            if raw {
                who.extend([Who::Turn]);
            }
            states += explore(&who, own, raw, fails);
        }
    }
    println!("{who:?}: {states} states");
    assert!(states > 100, "{states} states are hardly all orders");
}

#[test]
fn mounts_and_settles() {
    all(&[Who::Settle, Who::Settle, Who::Mount, Who::ChangeMedium], &[false, false]);
}

#[test]
fn mounts_one_after_the_other() {
    all(&[Who::Mount, Who::Mount, Who::Settle], &[false, false]);
}

#[test]
fn raw_sessions_end() {
    all(&[Who::EndRaw, Who::Lapse, Who::Mount], &[false, false]);
    all(&[Who::EndRaw, Who::ChangeMedium, Who::Settle], &[false, false]);
}

#[test]
fn deactivated_meanwhile() {
    all(&[Who::Deactivate, Who::Mount, Who::Settle, Who::ChangeMedium], &[false, false]);
    all(&[Who::Deactivate, Who::EndRaw, Who::Mount], &[false, false]);
}

#[test]
fn restores() {
    all(&[Who::Restore, Who::Mount], &[true, false]);
    all(&[Who::Restore, Who::Settle, Who::ChangeMedium], &[true, false]);
    all(&[Who::Restore, Who::Deactivate, Who::EndRaw], &[true, false]);
    all(&[Who::Restore, Who::Restore], &[true, false]);
    // One that is given up when it has written a part.
    all(&[Who::Mount, Who::Restore], &[true, true]);
}

/// What is refused, where the tasks above do not even try.
#[test]
fn refusals() {
    let mut state = State::new(Some(place(0)), true);
    assert_eq!(state.arm(By::Claim), Ok(()));
    assert_eq!(state.bind(Some(place(1))), Err(Busy), "bound while a session records");
    assert_eq!(state.arm(By::Claim), Err(Busy), "two sessions");
    assert_eq!(state.begin_restore(), Err(Busy), "restored while a session records");
    state.disarm();
    assert_eq!(state.bind(None), Err(Busy), "bound while a session ends");
    state.end(Link::Watched(None));
    assert_eq!(state.bind(None), Ok(()));
    assert_eq!(state.arm(By::RawWrite), Err(Busy), "a session of what is nowhere");
    assert_eq!(state.claim(), Claimed::First);
    assert_eq!(state.begin_restore(), Err(Busy), "restored while it is claimed");
    assert!(!state.deactivate(), "forgotten while it is claimed");
    assert!(state.release() && state.deactivate());
    state.remove();
    assert_eq!(state.claim(), Claimed::Gone);
    assert_eq!(state.activate(), Err(Busy));
}

/// What is lost sight of while it is restored is not vouched for when that is given up.
#[test]
fn sight_is_lost_in_a_restore() {
    let watched = || {
        let mut state = State::new(Some(place(0)), true);
        state.end(Link::Watched(None));
        assert_eq!(state.begin_restore(), Ok(()));
        state
    };
    let mut state = watched();
    assert!(!state.abandon_restore());
    assert_eq!(state.begin(), Link::Watched(None), "nothing was written");
    let mut state = watched();
    state.lose_sight();
    assert_eq!((state.abandon_restore(), state.begin()), (false, Link::Unwatched));
    let mut state = watched();
    state.lapse(1);
    assert_eq!((state.abandon_restore(), state.begin()), (false, Link::Written));
}

/// Who ends a lapse ends no newer one.
#[test]
fn a_newer_lapse_goes_on() {
    let mut state = State::new(Some(place(0)), true);
    state.lapse(1);
    state.lapse(2);
    state.resume(1);
    assert_eq!(state.lapsed_ns(), Some(2));
    state.resume(2);
    assert_eq!((state.lapsed_ns(), state.is_written()), (None, true));
}

/// What a raw session ought to have saved, and what nobody promised to.
#[test]
fn what_has_escaped() {
    let written = |raw: bool| {
        let mut state = State::new(Some(place(0)), raw);
        state.take_notes(WROTE);
        state
    };
    assert!(written(true).has_escaped());
    assert!(!written(false).has_escaped(), "between mounts all may write");
    assert!(!State::new(Some(place(0)), true).has_escaped(), "nothing was written");
    let mut state = written(true);
    state.set_unprotected(true);
    assert!(!state.has_escaped(), "that it is not protected is said");
    let mut state = written(true);
    assert_eq!(state.begin_restore(), Ok(()));
    assert!(!state.has_escaped(), "a restore is under way");
    let mut state = State::new(Some(place(0)), true);
    state.lapse(1);
    assert!(state.has_escaped(), "no session could be started");
    let mut state = written(true);
    assert_eq!(state.arm(By::RawWrite), Ok(()));
    assert_eq!(state.begin(), Link::Written);
    assert!(!state.has_escaped(), "the session's gap says it from now on");
}

#[test]
fn statistics_judge() {
    let watched = Link::Watched(Some(5));
    assert_eq!(judge(watched, Some(5)), watched);
    assert_eq!(judge(watched, Some(6)), Link::Written);
    assert_eq!(judge(watched, Some(4)), Link::Unwatched);
    assert_eq!(judge(watched, None), Link::Unwatched);
    assert_eq!(judge(Link::Watched(None), Some(5)), Link::Unwatched);
    assert_eq!(judge(Link::Written, Some(5)), Link::Written);
    assert_eq!(judge(Link::Unwatched, Some(5)), Link::Unwatched);
    assert_eq!(unseen(Some(-3), Some(4)), Some(7));
    assert_eq!(unseen(Some(4), Some(-3)), None);
    assert_eq!(unseen(None, Some(4)), None);
    assert_eq!(unseen(Some(i64::MIN), Some(i64::MAX)), None);
}
