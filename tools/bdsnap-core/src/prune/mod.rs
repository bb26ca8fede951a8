// SPDX-License-Identifier: GPL-2.0

//! Pruning: a plan of which sessions go and how, and its execution.
//!
//! What a policy lets go ([`crate::retention`]) is not always free to go. To
//! go back to the start of a session takes all later ones. So a session that
//! an older one needs is *merged* into that, or stays, if that cannot be.
//! The oldest sessions of a device go as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use bdsnap_abi::format::{Id, Kind as SessionKind, State};
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::chain;
use crate::device::{Match, Matcher, Target};
use crate::error::Result;
use crate::fsutil;
use crate::merge;
use crate::module::{Control, ModuleStatus};
use crate::notes;
use crate::policy::Policies;
use crate::restore::journal;
use crate::retention::{self, Candidate, Class, Decision, Policy, Reason, Setting};
use crate::session::Session;
use crate::store::{Item, Store};
use crate::text;
use crate::trash::{Op, Trash};

mod execute;
mod room;

pub use execute::{empty_trash, undelete};
use room::{Limited, Room};

/// A session may be dated so much later than now.
const CLOCK_SLACK_NS: u64 = 300 * 1_000_000_000;
/// A clock that was moved so far since a session of this very boot was moved
/// by somebody.
const CLOCK_STEP_NS: u64 = 86_400 * 1_000_000_000;
/// So long after the newest session the clock is not believed.
const CLOCK_AHEAD_NS: u64 = 400 * 86_400 * 1_000_000_000;

/// Now, by the clocks that there are.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Nanoseconds since 1970.
    pub now_ns: u64,
    /// Nanoseconds since boot.
    pub boot_ns: u64,
    /// This boot.
    pub boot_id: Id,
}

impl Clock {
    /// The machine's.
    pub fn read() -> Self {
        Self { now_ns: fsutil::now_ns(), boot_ns: fsutil::boot_ns(), boot_id: fsutil::boot_id() }
    }

    /// Why this time is not to be believed, by what the sessions say.
    pub fn doubt<'a>(&self, sessions: impl Iterator<Item = &'a Session>) -> Option<String> {
        let newest = sessions.max_by_key(|s| s.header.chain_seq)?;
        let (h, name) = (&newest.header, text::escape(&newest.dir));
        let seen = h.start_ns.max(newest.status.end_ns);
        let span = |ns: u64| text::span(ns);
        if seen > self.now_ns.saturating_add(CLOCK_SLACK_NS) {
            return Some(format!(
                "it is {} before the newest session, {name}",
                span(seen - self.now_ns)
            ));
        }
        if h.boot_id == self.boot_id && self.boot_ns >= h.start_boot_ns {
            let by_boot = h.start_ns.saturating_add(self.boot_ns - h.start_boot_ns);
            let step = by_boot.abs_diff(self.now_ns);
            if step > CLOCK_STEP_NS {
                return Some(format!("it was set by {} since {name} began", span(step)));
            }
        }
        if self.now_ns - seen.min(self.now_ns) > CLOCK_AHEAD_NS {
            return Some(format!(
                "it is {} after the newest session, {name}",
                span(self.now_ns - seen)
            ));
        }
        None
    }
}

/// What is to be pruned, and how.
#[derive(Debug)]
pub struct Request<'a> {
    /// From where.
    pub store: &'a Store,
    /// The rules.
    pub policies: &'a Policies,
    /// Now.
    pub clock: Clock,
    /// The zone whose days, weeks and months count.
    pub zone: TimeZone,
    /// The newest session of a device may go, too.
    pub allow_empty: bool,
    /// The clock is right, whatever the sessions say.
    pub trust_clock: bool,
}

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It stays.
    Keep,
    /// It goes; no older one needs it.
    Remove,
    /// It becomes part of an older one.
    Merge,
}

/// A session in a plan.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Name of its directory.
    pub name: String,
    /// Its identity; none if it cannot be read, or is the original module's.
    pub session_id: Option<String>,
    /// The device's name.
    pub device: Option<String>,
    /// Its state.
    pub state: &'static str,
    /// What opened it.
    pub kind: Option<&'static str>,
    /// Start, RFC 3339.
    pub start: Option<String>,
    /// What it takes in the store, in bytes.
    pub bytes: u64,
    /// What happens to it.
    pub action: Action,
    /// Of a merge: the session that it becomes part of.
    pub into: Option<String>,
    /// All rules that keep it.
    pub reasons: Vec<Reason>,
    /// Why others do not.
    pub misses: Vec<String>,
}

/// What a prune will do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Now, RFC 3339.
    pub now: String,
    /// The sessions, by device, oldest first.
    pub sessions: Vec<Line>,
    /// How many are removed.
    pub removed: u64,
    /// How many are merged into older ones.
    pub merged: u64,
    /// Bytes that become free, at once or when the trash is emptied.
    pub freed_bytes: u64,
    /// That number is exact: nothing is merged.
    pub exact: bool,
    /// How long they stay in the trash, in seconds; 0: not at all.
    pub trash_seconds: u64,
    /// Operations in the trash whose time is over.
    pub expired: Vec<String>,
    /// Bytes that these free.
    pub expired_bytes: u64,
    /// Why the clock is not believed: then nothing is done.
    pub clock: Option<String>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// Sessions that change together.
#[derive(Debug)]
struct Step {
    /// Of a merge: the place of the session that the others become part of.
    into: Option<usize>,
    /// Places, oldest first.
    sessions: Vec<usize>,
}

/// What is to be done with all sessions of a store.
struct Work {
    steps: Vec<Step>,
    /// By place: what happens to it, and of a merge, into which.
    actions: Vec<(Action, Option<usize>)>,
}

/// A plan that can be carried out.
#[derive(Debug)]
pub struct Prepared<'a> {
    /// What it will do.
    pub plan: Plan,
    store: &'a Store,
    sorted: Sorted,
    bytes: Vec<u64>,
    steps: Vec<Step>,
    expired: Vec<Op>,
    now_ns: u64,
    trash_ns: u64,
}

/// What a prune has done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Sessions removed.
    pub removed: u64,
    /// Sessions merged.
    pub merged: u64,
    /// Operations of the trash deleted.
    pub emptied: u64,
    /// What could not be done, and why.
    pub failures: Vec<String>,
}

/// Which recorded names are the same device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum DeviceKey {
    /// A block device's number.
    Block(u64),
    /// An image's file system and inode.
    Image(u64, u64),
    /// Nothing is there now.
    Name(Vec<u8>),
}

fn device_key(name: &[u8]) -> DeviceKey {
    use std::os::unix::fs::FileTypeExt;
    let absolute = name.starts_with(b"/");
    match std::fs::metadata(std::ffi::OsStr::from_bytes(name)) {
        Ok(m) if absolute && m.file_type().is_block_device() => DeviceKey::Block(m.rdev()),
        Ok(m) if absolute && m.is_file() => DeviceKey::Image(m.dev(), m.ino()),
        _ => DeviceKey::Name(name.to_vec()),
    }
}

/// Makes one device of names that the store knows to be one, though they do
/// not lead to the same now.
fn unify(store: &Store, sessions: &[Session], keys: &mut BTreeMap<Vec<u8>, DeviceKey>) {
    if keys.len() < 2 {
        return;
    }
    let newest: BTreeMap<&[u8], &Session> = sessions.iter().map(|s| (s.header.name(), s)).collect();
    for (name, key) in keys.clone() {
        if matches!(key, DeviceKey::Name(_)) {
            continue;
        }
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&name));
        let Ok(target) = Target::find(path) else { continue };
        let mut matcher = Matcher::in_store(&target, store);
        for (other, session) in &newest {
            let theirs = keys.get(*other).cloned();
            if theirs.as_ref() == Some(&key)
                || !matches!(matcher.judge(&session.header), Match::Yes(_))
            {
                continue;
            }
            for k in keys.values_mut().filter(|k| Some(&**k) == theirs.as_ref()) {
                *k = key.clone();
            }
        }
    }
}

fn class(s: &Session) -> Class {
    if s.status.state == State::Broken {
        Class::Broken
    } else if s.header.kind == SessionKind::Undo {
        Class::Undo
    } else if s.header.kind == SessionKind::Raw {
        Class::Raw
    } else if s.has_no_records() {
        Class::Empty
    } else {
        Class::Usual
    }
}

/// The sessions of a store by device, oldest first.
#[derive(Debug)]
struct Sorted {
    sessions: Vec<Session>,
    /// The places of each device's.
    chains: Vec<Range<usize>>,
    /// What is none of ours, or cannot be read.
    others: Vec<Item>,
}

impl Sorted {
    fn of(store: &Store, items: Vec<Item>) -> Self {
        let mut others = Vec::new();
        let mut sessions = Vec::new();
        for item in items {
            match item {
                Item::Session(s) => sessions.push(*s),
                other => others.push(other),
            }
        }
        let mut keys: BTreeMap<Vec<u8>, DeviceKey> = BTreeMap::new();
        for s in &sessions {
            let name = s.header.name();
            if !keys.contains_key(name) {
                keys.insert(name.to_vec(), device_key(name));
            }
        }
        unify(store, &sessions, &mut keys);
        let key = |s: &Session| keys.get(s.header.name()).cloned();
        sessions.sort_by_cached_key(|s| (key(s), s.header.chain_seq, s.header.start_ns));
        let mut chains = Vec::new();
        let mut from = 0;
        for to in 1..=sessions.len() {
            if to == sessions.len() || key(&sessions[to]) != key(&sessions[from]) {
                chains.push(from..to);
                from = to;
            }
        }
        Self { sessions, chains, others }
    }

    /// What the rules say of each session, and the rules of each device.
    fn decide(
        &self,
        policies: &Policies,
        setting: &Setting,
        status: Option<&ModuleStatus>,
    ) -> (Vec<Decision>, Vec<Policy>) {
        let mut decisions = Vec::with_capacity(self.sessions.len());
        let mut policy_of = Vec::new();
        for chain in &self.chains {
            let list = &self.sessions[chain.clone()];
            let names: Vec<&[u8]> = list.last().map(|s| s.header.name()).into_iter().collect();
            let policy = policies.of(&names);
            let candidates: Vec<Candidate> = list.iter().map(|s| candidate(s, status)).collect();
            decisions.extend(retention::decide(&policy, &candidates, setting));
            policy_of.push(policy);
        }
        (decisions, policy_of)
    }

    /// Keeps what others than rules need.
    fn protect(&self, store: &Store, decisions: &mut [Decision]) -> Result<()> {
        let wanted = wanted_by_restores(store)?;
        for (s, d) in self.sessions.iter().zip(decisions) {
            if wanted.contains(&text::hex(&s.header.session_id)) {
                let text = "an interrupted restore goes on with it".to_owned();
                d.reasons.push(Reason { rule: "restore", text, firm: true });
            }
            if let Some(what) = s.features().refuses_change() {
                let text = format!("it has {what}: a newer bdsnap is needed");
                d.reasons.push(Reason { rule: "feature", text, firm: true });
            }
            if let Some(stranger) = notes::stranger(&s.path)? {
                let text = format!("there is a foreign file in it: {}", text::escape(&stranger));
                d.reasons.push(Reason { rule: "stranger", text, firm: true });
            }
        }
        Ok(())
    }

    /// The places of sessions that are one file system's on several devices.
    fn groups(&self) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<Id, Vec<usize>> = BTreeMap::new();
        for (i, s) in self.sessions.iter().enumerate() {
            groups.entry(chain::group(s)).or_default().push(i);
        }
        groups.into_values().filter(|g| g.len() > 1).collect()
    }

    /// Keeps all of a group of which one is kept: only together they are a
    /// file system. Returns whether that changes something.
    fn keep_together(
        &self,
        groups: &[Vec<usize>],
        decisions: &mut [Decision],
        kept: impl Fn(usize) -> bool,
    ) -> bool {
        let mut changed = false;
        for group in groups {
            let Some(&stays) = group.iter().find(|&&i| kept(i)) else { continue };
            let firm = group.iter().any(|&i| kept(i) && decisions[i].firm());
            let name = text::escape(&self.sessions[stays].dir);
            for &i in group.iter().filter(|&&i| !kept(i)) {
                let text = format!("of one file system with {name}, which stays");
                decisions[i].reasons.push(Reason { rule: "group", text, firm });
                changed = true;
            }
        }
        changed
    }

    /// Decides how each session goes.
    fn plan(&self, groups: &[Vec<usize>], decisions: &mut [Decision]) -> Work {
        let grouped: BTreeSet<usize> = groups.iter().flatten().copied().collect();
        loop {
            let mut work = Work {
                steps: Vec::new(),
                actions: vec![(Action::Keep, None); self.sessions.len()],
            };
            for chain in &self.chains {
                plan_chain(&self.sessions, chain.clone(), &grouped, decisions, &mut work);
            }
            // Each time round, more are kept.
            if !self.keep_together(groups, decisions, |i| work.actions[i].0 == Action::Keep) {
                return work;
            }
        }
    }

    /// How many bytes `steps` free, when sessions take `bytes`, and whether that
    /// is exact: of merges, only the index tells what they will take.
    fn freed(&self, steps: &[Step], bytes: &[u64]) -> Result<(u64, bool)> {
        let mut freed: u64 = 0;
        for step in steps {
            let before: u64 = step.sessions.iter().chain(&step.into).map(|&i| bytes[i]).sum();
            let after = match step.into {
                None => 0,
                Some(into) => {
                    let (map, dat) = merge::predict(&self.merged(into, step))?;
                    let block = |n: u64| n.div_ceil(4096) * 4096;
                    block(map) + block(dat) + 3 * 4096
                }
            };
            freed += before.saturating_sub(after);
        }
        Ok((freed, steps.iter().all(|s| s.into.is_none())))
    }

    /// What a merge is made of, oldest first.
    fn merged(&self, into: usize, step: &Step) -> Vec<&Session> {
        let all = std::iter::once(into).chain(step.sessions.iter().copied());
        all.map(|i| &self.sessions[i]).collect()
    }

    /// As lines of a plan.
    fn lines(
        &self,
        decisions: Vec<Decision>,
        actions: &[(Action, Option<usize>)],
        bytes: &[u64],
        status: Option<&ModuleStatus>,
    ) -> Vec<Line> {
        let rest = decisions.into_iter().zip(actions).zip(bytes);
        let lines = self.sessions.iter().zip(rest).map(|(s, ((d, (action, into)), bytes))| Line {
            name: text::lossy(&s.dir),
            session_id: Some(text::hex(&s.header.session_id)),
            device: Some(text::lossy(s.header.name())),
            state: s.view(chain::is_live(s, status)).as_str(),
            kind: Some(s.header.kind.as_str()),
            start: Some(text::rfc3339(s.header.start_ns)),
            bytes: *bytes,
            action: *action,
            into: into.map(|i: usize| text::lossy(&self.sessions[i].dir)),
            reasons: d.reasons,
            misses: d.misses,
        });
        lines.chain(self.others.iter().map(untouched)).collect()
    }
}

/// Makes the plan.
pub fn prepare<'a>(request: &Request<'a>, module: Option<&dyn Control>) -> Result<Prepared<'a>> {
    let Request { store, policies, clock, .. } = *request;
    // In this order: a session that begins in between is not in the list, and
    // one that ends in between is looked at again.
    let mut items = store.items()?;
    let status = module.map(Control::status).transpose()?;
    let status = status.as_ref();
    store.look_again(&mut items, status);
    let sorted = Sorted::of(store, items);
    let sessions = &sorted.sessions;

    let doubt = clock.doubt(sessions.iter()).filter(|_| !request.trust_clock);
    let setting = Setting {
        now_ns: clock.now_ns,
        zone: request.zone.clone(),
        allow_empty: request.allow_empty,
    };
    let (mut decisions, policy_of) = sorted.decide(policies, &setting, status);
    sorted.protect(store, &mut decisions)?;
    let groups = sorted.groups();
    let kept: Vec<bool> = decisions.iter().map(Decision::kept).collect();
    sorted.keep_together(&groups, &mut decisions, |i| kept[i]);

    let mut bytes: Vec<u64> = sessions.iter().map(|s| s.stored_bytes).collect();
    let limits = policies.max_size.is_some()
        || policies.min_free.is_some()
        || policy_of.iter().any(|p| p.max_size.is_some());
    for (i, s) in sessions.iter().enumerate() {
        if limits || !decisions[i].kept() {
            bytes[i] = s.bytes_on_disk()?;
        }
    }
    let (expired, trashed): (Vec<Op>, Vec<Op>) =
        Trash::list(store)?.into_iter().partition(|op| op.until_ns() <= clock.now_ns);
    let mut limited = Limited { expired, trashed, notes: Vec::new(), rushed: false };
    if limits && doubt.is_none() {
        let mut units: Vec<usize> = (0..sessions.len()).collect();
        groups.iter().for_each(|g| g.iter().for_each(|&i| units[i] = g[0]));
        let room = Room { sessions, bytes: &bytes, chains: &sorted.chains, units, store };
        room.make(policies, &policy_of, &mut decisions, &mut limited)?;
    }
    let Limited { expired, notes, rushed, .. } = limited;
    let trash_ns = if rushed { 0 } else { policies.trash.0 };

    let Work { steps, actions } = sorted.plan(&groups, &mut decisions);
    let (freed_bytes, exact) = sorted.freed(&steps, &bytes)?;
    let count = |a: Action| actions.iter().filter(|(b, _)| *b == a).count() as u64;
    let plan = Plan {
        now: text::rfc3339(clock.now_ns),
        removed: count(Action::Remove),
        merged: count(Action::Merge),
        sessions: sorted.lines(decisions, &actions, &bytes, status),
        freed_bytes,
        exact,
        trash_seconds: trash_ns / 1_000_000_000,
        expired: expired.iter().map(Op::name).collect(),
        expired_bytes: expired.iter().map(Op::bytes).sum(),
        clock: doubt,
        notes,
    };
    Ok(Prepared { plan, store, sorted, bytes, steps, expired, now_ns: clock.now_ns, trash_ns })
}

/// The sessions that interrupted restores need to be resumed or undone.
fn wanted_by_restores(store: &Store) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for journal in journal::interrupted(store)? {
        ids.extend(journal.record.sessions.iter().cloned());
        for device in &journal.record.devices {
            ids.extend(device.chain.iter().cloned());
            ids.extend(device.undo.as_ref().map(|u| u.session_id.clone()));
        }
    }
    Ok(ids)
}

fn candidate(s: &Session, status: Option<&ModuleStatus>) -> Candidate {
    // Of what cannot be read: somebody wanted something.
    let (mut holds, mut tags) = (Vec::new(), Vec::new());
    match notes::holds(&s.path) {
        Ok(all) => holds.extend(all.into_iter().map(|h| h.name)),
        Err(e) => holds.push(format!("({})", e.message)),
    }
    match notes::tags(&s.path) {
        Ok(all) => tags = all,
        Err(e) => holds.push(format!("({})", e.message)),
    }
    Candidate {
        name: text::lossy(&s.dir),
        seq: s.header.chain_seq,
        start_ns: s.header.start_ns,
        class: class(s),
        recording: chain::is_live(s, status),
        holds,
        tags,
    }
}

/// What pruning leaves alone.
fn untouched(item: &Item) -> Line {
    let (state, why, device, bytes) = match item {
        Item::Damaged(d) => ("damaged", d.reason.clone(), None, 0),
        Item::Original(o) => (
            "unchecked",
            "made by the original module; not pruned".to_owned(),
            o.device.as_deref().map(text::lossy),
            o.dat_bytes,
        ),
        Item::Session(s) => (s.view(false).as_str(), String::new(), None, s.stored_bytes),
    };
    Line {
        name: text::lossy(item.dir()),
        session_id: None,
        device,
        state,
        kind: None,
        start: None,
        bytes,
        action: Action::Keep,
        into: None,
        reasons: vec![Reason { rule: state, text: why, firm: true }],
        misses: Vec::new(),
    }
}

/// Decides how each session of one chain goes.
fn plan_chain(
    sessions: &[Session],
    places: Range<usize>,
    grouped: &BTreeSet<usize>,
    decisions: &mut [Decision],
    work: &mut Work,
) {
    let Work { steps, actions } = work;
    let newest = places.end - 1;
    let mut free = Step { into: None, sessions: Vec::new() };
    let mut merge: Option<Step> = None;
    // The one before, as long as it is in the store or part of `merge`.
    for i in places {
        if decisions[i].kept() {
            steps.extend(merge.take().filter(|m| !m.sessions.is_empty()));
            merge = Some(Step { into: Some(i), sessions: Vec::new() });
            continue;
        }
        let Some(step) = &mut merge else {
            // No older one is left that needs it.
            actions[i] = (Action::Remove, None);
            free.sessions.push(i);
            continue;
        };
        let before = step.sessions.last().copied().or(step.into).unwrap_or(i);
        let why = if i == newest {
            // The chain's tail names it.
            Some("it is the newest".to_owned())
        } else if grouped.contains(&i) {
            Some("its file system was on several devices".to_owned())
        } else {
            merge::obstacle(&sessions[before], &sessions[i])
        };
        match why {
            None => {
                actions[i] = (Action::Merge, step.into);
                step.sessions.push(i);
            }
            Some(why) => {
                let older = text::escape(&sessions[step.into.unwrap_or(before)].dir);
                decisions[i].reasons.push(Reason {
                    rule: "needed",
                    text: format!("needed to restore {older}, and cannot be merged into it: {why}"),
                    firm: true,
                });
                steps.extend(merge.take().filter(|m| !m.sessions.is_empty()));
                merge = Some(Step { into: Some(i), sessions: Vec::new() });
            }
        }
    }
    steps.extend(merge.filter(|m| !m.sessions.is_empty()));
    if !free.sessions.is_empty() {
        // Before the merges: it takes no room.
        steps.insert(0, free);
    }
}
