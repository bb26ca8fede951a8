// SPDX-License-Identifier: GPL-2.0

//! Bringing a device back to the start of a session.
//!
//! [`prepare`] opens the device so that nobody else can, checks every session
//! of the chain down to the last checksum, compares the device with its past
//! and returns a [`Prepared`] with the [`Plan`]. Nothing is written until
//! [`Prepared::apply`] (or [`Prepared::compose`], which only writes a file).
//!
//! The order of `apply`, so that the chain stays true whenever it stops:
//!
//! 1. an undo session with all that will be overwritten, durable;
//! 2. the chain's tail, with no load of the module: whoever is cut here left
//!    a gap;
//! 3. the writes, then a flush of the device;
//! 4. reading back and comparing;
//! 5. the chain's tail again, now with the module's load; the module is told.
//!
//! Stopped or failed after step 2, the undo session still covers all that
//! was changed, so steps 5 is done all the same: the same restore can go on,
//! or be undone, without a gap. Without an undo session there is a gap.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use bdsnap_abi::format::{
    Gap, Header, Id, Kind as SessionKind, Sample, State, Tail, DEV_IMAGE, DEV_PARTITION, HEAD_LEN,
    NO_ID, RUN_MAX, SAMPLES_MAX,
};
use bdsnap_abi::ioctl::{RESTORE_ABORT, RESTORE_END, RESTORE_REGISTERED};
use serde::Serialize;

use crate::chain::{self, Break, Chain, Selector};
use crate::device::{device_error, Opened, Purpose, Target};
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::module::{Control, ModuleStatus, Watch};
use crate::plan::{self, Extent, Source};
use crate::progress::{Progress, Stop};
use crate::session::{Restorable, Session};
use crate::store::{Item, Store};
use crate::text;
use crate::writer::{Head, SessionWriter};

/// Writes are at most this long, in bytes.
const BATCH: u64 = RUN_MAX as u64;

/// What the user takes upon himself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accept {
    /// The device may have changed unseen: `--accept-gap`.
    pub gap: bool,
    /// Pre-images may be missing: `--accept-loss`.
    pub loss: bool,
    /// Other devices of the same file system stay as they are: `--alone`.
    pub alone: bool,
}

/// What is to be restored.
#[derive(Debug)]
pub struct Request<'a> {
    /// From where.
    pub store: &'a Store,
    /// Which device.
    pub target: &'a Target,
    /// To the start of which session.
    pub selector: Selector,
    /// Overrides.
    pub accept: Accept,
    /// The device will be written, not only looked at.
    pub purpose: Purpose,
    /// Only a file is made of it; the device need not be the very same.
    pub to_file: bool,
    /// An undo session is made first.
    pub undo: bool,
}

/// A session of the chain, in a plan.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Name of its directory.
    pub name: String,
    /// Its identity.
    pub session_id: String,
    /// What opened it.
    pub kind: &'static str,
    /// Its state.
    pub state: &'static str,
    /// Start, RFC 3339.
    pub start: String,
    /// Bytes of pre-images.
    pub bytes: u64,
    /// Runs of its tail that never became durable.
    pub torn: u64,
    /// The break before it, if there is one above the restored session.
    pub gap_before: Option<&'static str>,
}

/// What a restore will do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The device's node or image.
    pub device: String,
    /// Its size.
    pub device_bytes: u64,
    /// Name of the session to whose start it goes back.
    pub session: String,
    /// Its identity.
    pub session_id: String,
    /// That start, RFC 3339.
    pub start: String,
    /// The sessions that are taken back, newest first.
    pub chain: Vec<Step>,
    /// How the device was recognised.
    pub ground: &'static str,
    /// Pieces of the device that the sessions cover.
    pub extents: u64,
    /// Bytes of them.
    pub bytes_covered: u64,
    /// Bytes of them that the device has already.
    pub bytes_equal: u64,
    /// Bytes that will be written.
    pub bytes_to_write: u64,
    /// Writes that this takes.
    pub writes: u64,
    /// Bytes of the undo session that will be made first; 0: none.
    pub undo_bytes: u64,
    /// The break between the newest session and now.
    pub gap_now: Option<&'static str>,
    /// Pre-images are missing: the result is not the whole past.
    pub partial: bool,
    /// Nothing proves that the result is the past, because of a gap.
    pub unproven: bool,
    /// The overrides that were needed and given.
    pub accepted: Vec<&'static str>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// What a restore has done.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Bytes written.
    pub bytes_written: u64,
    /// Name of the undo session, if one was made.
    pub undo_session: Option<String>,
    /// The result is not the whole past.
    pub partial: bool,
}

/// A piece that will be written.
#[derive(Debug, Clone, Copy)]
struct Batch {
    start: u64,
    len: u64,
    /// CRC-32C of what will be written.
    crc: u32,
}

/// A restore that was planned and can be done.
pub struct Prepared<'a> {
    /// What will be done.
    pub plan: Plan,
    store: &'a Store,
    target: &'a Target,
    opened: Opened,
    past: Past,
    batches: Vec<Batch>,
    /// Of the restored session, the newest one, and the smallest chunk.
    model: Box<Header>,
    newest_id: Id,
    newest_name: Vec<u8>,
    newest_seq: u64,
    gap_now: Option<Break>,
    undo: bool,
    chunk: u32,
    base: u64,
    guard: Guard,
}

impl std::fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Tells the module that the restore is over, at the latest when dropped.
struct Guard {
    module: Option<Box<dyn Control>>,
    name: Vec<u8>,
    watch: Option<Watch>,
    load_id: Id,
}

impl Guard {
    /// Tells the module that a restore begins, if it is there.
    fn begin(
        module: Option<Box<dyn Control>>,
        status: Option<&ModuleStatus>,
        target: &Target,
    ) -> Result<Self> {
        let name = target.path.as_os_str().as_bytes().to_vec();
        let watch = match &module {
            Some(m) => Some(m.restore_begin(&name)?),
            None => None,
        };
        let registered = watch.is_some_and(|w| w.flags & RESTORE_REGISTERED != 0);
        let load_id = match status {
            Some(s) if registered => s.head.load_id,
            _ => NO_ID,
        };
        Ok(Self { module, name, watch, load_id })
    }

    fn over(&mut self, phase: u32) -> io::Result<()> {
        match self.module.take() {
            Some(m) => m.restore_over(phase, &self.name),
            None => Ok(()),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Dropped without an end: given up. Nobody is left to be told.
        let _ = self.over(RESTORE_ABORT);
    }
}

/// The past content of a device, from the sessions' data.
struct Past {
    extents: Vec<Extent>,
    dats: RefCell<Dats>,
}

/// The sessions' data files. A chain may be longer than a process may have
/// files open.
struct Dats {
    sessions: Vec<Session>,
    /// The last few used, with their sessions' places.
    open: VecDeque<(usize, File)>,
}

impl Dats {
    const MAX_OPEN: usize = 64;

    /// Reads all of `buf` from a session's data.
    fn read(&mut self, session: usize, buf: &mut [u8], offset: u64) -> Result<()> {
        let owner = &self.sessions[session];
        let at = match self.open.iter().position(|(s, _)| *s == session) {
            Some(at) => at,
            None => {
                self.open.truncate(Self::MAX_OPEN - 1);
                self.open.push_front((session, owner.open_dat()?));
                0
            }
        };
        self.open[at].1.read_exact_at(buf, offset).map_err(|e| {
            let name = text::escape(&owner.dir);
            let mut damage = Error::io(format_args!("session {name} is damaged"), &e);
            damage.kind = Kind::Verification;
            damage
        })
    }
}

impl Past {
    /// Lays the past over `buf`, which holds the device from `start` on.
    fn overlay(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        for e in plan::within(&self.extents, start, start + buf.len() as u64) {
            // Inside `buf`, so it fits a usize.
            let from = (e.start - start) as usize;
            let part = &mut buf[from..from + e.len as usize];
            match e.source {
                Source::Zero => part.fill(0),
                Source::Dat { session, offset } => {
                    self.dats.borrow_mut().read(session, part, offset)?;
                }
            }
        }
        Ok(())
    }
}

/// Where the device begins in what is opened for it, in bytes.
fn base_of(target: &Target, header: &Header) -> u64 {
    if target.is_image() {
        header.loop_offset
    } else {
        0
    }
}

/// Whether the device is not what the chain's tail remembers of the end of the
/// newest session, in the places that it remembers.
fn differs_from_tail(
    store: &Store,
    newest: Option<&Session>,
    device: &File,
    target: &Target,
) -> Result<bool> {
    let Some(newest) = newest else { return Ok(false) };
    let Some(tail) = store.tail(newest.header.name())? else { return Ok(false) };
    if tail.session_id != newest.header.session_id || tail.head_sha256 == [0; 32] {
        return Ok(false);
    }
    let base = base_of(target, &newest.header);
    let mut buf = vec![0; tail.device_bytes.min(HEAD_LEN) as usize];
    device.read_exact_at(&mut buf, base).on("read", &target.path)?;
    if Head::of(&buf).sha256 != tail.head_sha256 {
        return Ok(true);
    }
    for sample in tail.samples() {
        buf.resize(sample.bytes as usize, 0);
        let at = sample.sector.saturating_mul(bdsnap_abi::SECTOR).saturating_add(base);
        device.read_exact_at(&mut buf, at).on("read", &target.path)?;
        if crc32c::crc32c(&buf) != sample.crc {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds what to do, and whether it may be done.
///
/// # Errors
///
/// [`Kind::NotFound`] and [`Kind::Usage`] for the session, [`Kind::Refused`]
/// with the reason, [`Kind::Verification`] for damage in the store.
pub fn prepare<'a>(
    request: &Request<'a>,
    module: Option<Box<dyn Control>>,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<Prepared<'a>> {
    let Request { store, target, accept, .. } = *request;
    // What was written raw a moment ago is part of the chain.
    if let Some(module) = &module {
        module.end_raw()?;
    }
    // For wrong names and for running sessions, before the device is touched.
    let status = module.as_ref().map(|m| m.status()).transpose()?;
    let (chain, from, _) = find(request)?;
    check_states(&chain, from, status.as_ref(), accept, &mut Accepted::default())?;
    let opened = Opened::open(target, request.purpose)?;
    // Before the restore begins: what somebody has left in a page cache is a
    // write of his, and the module must see it as one.
    opened.drop_caches().on("flush", &target.path)?;
    let guard = Guard::begin(module, status.as_ref(), target)?;
    // Only now nothing changes any more.
    let (mut chain, from, groups) = find(request)?;
    let mut accepted = Accepted::default();
    let lossy = check_states(&chain, from, status.as_ref(), accept, &mut accepted)?;
    check_groups(&chain, from, &groups, accept, &mut accepted)?;
    check_identity(&chain, from, request, &opened)?;
    let breaks = chain.breaks(from);
    let newest_id = chain.newest().map_or(NO_ID, |s| s.header.session_id);
    let gap_now = match chain::link_to_now(&newest_id, guard.watch.as_ref()) {
        // The module may have watched another disk than the one that is there.
        None if differs_from_tail(store, chain.newest(), &opened.file, target)? => {
            Some(Break::Written)
        }
        other => other,
    };
    check_breaks(&chain, &breaks, gap_now, accept, &mut accepted)?;

    let grounds = chain.grounds[from];
    let sessions: Vec<Session> = chain.sessions.drain(from..).collect();
    let (extents, steps) = load(&sessions, from, &breaks, accept, progress, stop)?;
    let (Some(model), Some(newest)) = (sessions.first(), sessions.last()) else {
        return Err(Error::other("the chain is empty"));
    };
    let chunk = sessions.iter().map(|s| s.header.chunk_size).min().unwrap_or(RUN_MAX);
    let base = base_of(target, &model.header);

    let mut notes: Vec<String> = Vec::new();
    for (session, step) in sessions.iter().rev().zip(&steps) {
        if let Restorable::Yes(Some(note)) = session.restorable(false) {
            notes.push(format!("{}: {note}", step.name));
        }
        if step.torn > 0 {
            let runs = text::count(step.torn, "run");
            notes.push(format!("{}: {runs} of its torn tail left out", step.name));
        }
        if session.header.dev_flags & bdsnap_abi::format::RAW_IN_FLIGHT != 0 {
            notes.push(format!("{}: raw writes were in flight at its start", step.name));
        }
    }
    notes.extend(lossy.iter().cloned());
    let plan = Plan {
        device: text::lossy(target.path.as_os_str().as_bytes()),
        device_bytes: model.header.device_bytes,
        session: text::lossy(&model.dir),
        session_id: text::hex(&model.header.session_id),
        start: text::rfc3339(model.header.start_ns),
        chain: steps,
        ground: grounds.as_str(),
        extents: extents.len() as u64,
        bytes_covered: plan::total(&extents),
        bytes_equal: 0,
        bytes_to_write: 0,
        writes: 0,
        undo_bytes: 0,
        gap_now: gap_now.map(Break::as_str),
        partial: !lossy.is_empty(),
        unproven: accepted.gap,
        accepted: accepted.list(),
        notes,
    };
    let model = Box::new(model.header.clone());
    let (newest_name, newest_seq) = (newest.header.name().to_vec(), newest.header.chain_seq);
    let dats = RefCell::new(Dats { sessions, open: VecDeque::new() });
    let mut prepared = Prepared {
        plan,
        store,
        target,
        opened,
        past: Past { extents, dats },
        batches: Vec::new(),
        model,
        newest_id,
        newest_name,
        newest_seq,
        gap_now,
        undo: request.undo,
        chunk,
        base,
        guard,
    };
    if !request.to_file {
        prepared.compare(progress, stop)?;
    }
    Ok(prepared)
}

/// The device's chain, the place of the session in it, and the groups.
fn find(request: &Request<'_>) -> Result<(Chain, usize, Groups)> {
    let items = request.store.items()?;
    let groups = group_members(&items);
    let elsewhere = elsewhere(&items, &request.selector);
    let chain = Chain::of(request.target, items);
    match chain.select(&request.selector) {
        Ok(from) => Ok((chain, from, groups)),
        Err(e) => Err(match elsewhere {
            Some(device) if e.kind == Kind::NotFound => Error::refused(format!(
                "the session is of another device, {device}, and not of {}",
                text::path(&request.target.given)
            )),
            _ => e,
        }),
    }
}

/// Which overrides were needed.
#[derive(Debug, Default)]
struct Accepted {
    gap: bool,
    loss: bool,
    alone: bool,
}

impl Accepted {
    fn list(&self) -> Vec<&'static str> {
        [(self.gap, "gap"), (self.loss, "loss"), (self.alone, "alone")]
            .into_iter()
            .filter_map(|(needed, word)| needed.then_some(word))
            .collect()
    }
}

/// Groups, with the device names that are in each.
type Groups = std::collections::BTreeMap<Id, std::collections::BTreeSet<Vec<u8>>>;

fn group_members(items: &[Item]) -> Groups {
    let mut groups = Groups::new();
    for item in items {
        if let Item::Session(s) = item {
            if s.header.group_id != NO_ID {
                groups.entry(s.header.group_id).or_default().insert(s.header.name().to_vec());
            }
        }
    }
    groups
}

/// The device of the one session that is named so in the whole store.
fn elsewhere(items: &[Item], selector: &Selector) -> Option<String> {
    let Selector::Name(name) = selector else { return None };
    items.iter().find_map(|item| match item {
        Item::Session(s) if s.dir.starts_with(name) => Some(text::escape(s.header.name())),
        _ => None,
    })
}

/// Refuses sessions that cannot be restored; returns what is lost.
fn check_states(
    chain: &Chain,
    from: usize,
    status: Option<&ModuleStatus>,
    accept: Accept,
    accepted: &mut Accepted,
) -> Result<Vec<String>> {
    let mut lossy = Vec::new();
    for session in &chain.sessions[from..] {
        let name = text::escape(&session.dir);
        match session.restorable(chain::is_live(session, status)) {
            Restorable::Yes(_) => {}
            Restorable::No(why) => {
                return Err(Error::refused(format!("session {name} cannot be restored: {why}"))
                    .hint("unmount the device first"));
            }
            Restorable::Lossy(why) => lossy.push(format!("{name}: {why}")),
        }
    }
    if !lossy.is_empty() {
        if !accept.loss {
            return Err(Error::refused(format!(
                "the past can only be restored in part: {}",
                lossy.join("; ")
            ))
            .hint(
                "--accept-loss restores what there is; the result may need a file system check",
            ));
        }
        accepted.loss = true;
    }
    Ok(lossy)
}

/// Refuses to restore one of several devices of a file system.
fn check_groups(
    chain: &Chain,
    from: usize,
    groups: &Groups,
    accept: Accept,
    accepted: &mut Accepted,
) -> Result<()> {
    for session in &chain.sessions[from..] {
        let others: Vec<String> = groups
            .get(&session.header.group_id)
            .into_iter()
            .flatten()
            .filter(|n| n.as_slice() != session.header.name())
            .map(|n| text::escape(n))
            .collect();
        if others.is_empty() {
            continue;
        }
        if !accept.alone {
            return Err(Error::refused(format!(
                "session {} belongs to a file system on several devices, also {}",
                text::escape(&session.dir),
                others.join(", ")
            ))
            .hint("--alone restores this one; restore the others to the same time as well"));
        }
        accepted.alone = true;
    }
    Ok(())
}

/// Refuses another device under the same name, and a chain that counts a
/// place or a session twice.
fn check_identity(
    chain: &Chain,
    from: usize,
    request: &Request<'_>,
    opened: &Opened,
) -> Result<()> {
    let sessions = &chain.sessions[from..];
    for pair in sessions.windows(2) {
        let (a, b) = (&pair[0].header, &pair[1].header);
        if a.chain_seq == b.chain_seq || a.session_id == b.session_id {
            return Err(Error::refused(format!(
                "{} and {} have the same place in the chain",
                text::escape(&pair[0].dir),
                text::escape(&pair[1].dir)
            ))
            .hint("one of them is a copy; move it out of the store"));
        }
        let shape = |h: &Header| (h.device_bytes, h.loop_offset, h.loop_sizelimit);
        if shape(a) != shape(b) {
            return Err(Error::refused(format!(
                "the device had another size or offset in {} than in {}",
                text::escape(&pair[0].dir),
                text::escape(&pair[1].dir)
            )));
        }
    }
    if request.to_file {
        return Ok(());
    }
    for session in sessions {
        let bytes = request.target.bytes(&opened.file, &session.header)?;
        if let Some(why) = request.target.contradiction(&session.header, bytes) {
            return Err(Error::refused(format!(
                "{} is not the device of session {}: {why}",
                text::path(&request.target.path),
                text::escape(&session.dir)
            ))
            .hint("--to FILE composes an image without touching the device"));
        }
    }
    Ok(())
}

/// Refuses to go over a gap.
fn check_breaks(
    chain: &Chain,
    breaks: &[(usize, Break)],
    gap_now: Option<Break>,
    accept: Accept,
    accepted: &mut Accepted,
) -> Result<()> {
    let mut reasons: Vec<String> = breaks
        .iter()
        .map(|(i, b)| format!("before {}: {}", text::escape(&chain.sessions[*i].dir), b.text()))
        .collect();
    reasons.extend(gap_now.map(|b| format!("since the newest session: {}", b.text())));
    if reasons.is_empty() {
        return Ok(());
    }
    if !accept.gap {
        let mut error = Error::refused(format!("the chain has a gap: {}", reasons.join("; ")))
            .hint("--accept-gap restores all the same; what changed unseen is then not restored");
        if !chain.damaged.is_empty() {
            error.message += &format!(" (unreadable: {})", chain.damaged.join(", "));
        }
        return Err(error);
    }
    accepted.gap = true;
    Ok(())
}

/// Checks all sessions (oldest first) and composes the past from them.
fn load(
    sessions: &[Session],
    from: usize,
    breaks: &[(usize, Break)],
    accept: Accept,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<(Vec<Extent>, Vec<Step>)> {
    progress.phase("verify", sessions.iter().map(|s| s.dat_bytes).sum());
    let mut past = Vec::new();
    let mut steps = Vec::new();
    for (i, session) in sessions.iter().enumerate() {
        let checked = if accept.loss {
            session.check_past_slot(false, progress, stop)?
        } else {
            session.check(false, progress, stop)?
        };
        let extents: Vec<Extent> = checked.runs.iter().map(|r| Extent::of_run(r, i)).collect();
        past = plan::underlay(&past, &extents);
        let gap = breaks.iter().find(|(place, _)| *place == from + i).map(|(_, b)| b.as_str());
        steps.push(Step {
            name: text::lossy(&session.dir),
            session_id: text::hex(&session.header.session_id),
            kind: session.header.kind.as_str(),
            state: session.view(false).as_str(),
            start: text::rfc3339(session.header.start_ns),
            bytes: checked.bytes,
            torn: checked.torn,
            gap_before: gap,
        });
    }
    progress.finish();
    steps.reverse();
    Ok((past, steps))
}

impl Prepared<'_> {
    /// Reads the device from byte `start` on.
    fn read_device(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        self.opened
            .file
            .read_exact_at(buf, self.base + start)
            .map_err(|e| device_error("read", self.target, start, &e))
    }

    /// Finds what differs from the past, in pieces of a chunk.
    fn compare(&mut self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<()> {
        progress.phase("compare", self.plan.bytes_covered);
        let unit = self.chunk as usize;
        let mut batches: Vec<Batch> = Vec::new();
        let (mut now, mut then) = (vec![0; BATCH as usize], vec![0; BATCH as usize]);
        for extent in &self.past.extents {
            let mut at = extent.start;
            while at < extent.end() {
                stop.check()?;
                let len = (extent.end() - at).min(BATCH);
                let (now, then) = (&mut now[..len as usize], &mut then[..len as usize]);
                self.read_device(at, now)?;
                self.past.overlay(at, then)?;
                let chunks = now.chunks(unit).zip(then.chunks(unit));
                for (i, (_, then)) in chunks.enumerate().filter(|(_, (a, b))| a != b) {
                    let start = at + (i * unit) as u64;
                    let len = then.len() as u64;
                    match batches.last_mut() {
                        Some(b) if b.start + b.len == start && b.len + len <= BATCH => {
                            b.len += len;
                            b.crc = crc32c::crc32c_append(b.crc, then);
                        }
                        _ => batches.push(Batch { start, len, crc: crc32c::crc32c(then) }),
                    }
                }
                progress.advance(len);
                at += len;
            }
        }
        progress.finish();
        let bytes: u64 = batches.iter().map(|b| b.len).sum();
        self.plan.bytes_to_write = bytes;
        self.plan.bytes_equal = self.plan.bytes_covered - bytes;
        self.plan.writes = batches.len() as u64;
        self.plan.undo_bytes = if self.undo { bytes } else { 0 };
        self.batches = batches;
        Ok(())
    }

    /// Does it.
    ///
    /// # Errors
    ///
    /// [`Kind::Interrupted`] if stopped; the message says how to go on. After
    /// any error the device is as it was, or the message says that it is
    /// partly restored.
    pub fn apply(mut self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<Outcome> {
        let partial = self.plan.partial;
        if self.batches.is_empty() {
            return Ok(Outcome { bytes_written: 0, undo_session: None, partial });
        }
        let undo = if self.undo { Some(self.save_undo(progress, stop)?) } else { None };
        // Before the first write: whoever is cut from here on left a gap.
        if let Err(e) = self.set_tail(undo.as_ref(), NO_ID, [0; 32], &[]) {
            if let Some(undo) = undo {
                // Nothing was overwritten; a leftover would only be a gap.
                let dir = self.store.path().join(OsStr::from_bytes(&undo.dir));
                let _ = std::fs::remove_dir_all(dir);
            }
            return Err(e);
        }
        let mut written = 0;
        let result =
            self.write(progress, stop, &mut written).and_then(|()| self.check(progress, stop));
        let settled = self.settle(undo.as_ref());
        match result {
            Ok(()) => {
                settled?;
                let undo_session = undo.map(|u| text::lossy(&u.dir));
                Ok(Outcome { bytes_written: written, undo_session, partial })
            }
            Err(mut e) => {
                e.message = format!(
                    "{}; {} is partly restored ({} of {} written)",
                    e.message,
                    text::path(&self.target.path),
                    text::size(written),
                    text::size(self.plan.bytes_to_write)
                );
                if let Err(also) = settled {
                    e.message = format!("{}; {also}", e.message);
                }
                let device = text::path(&self.target.given);
                e.hint = Some(match undo {
                    Some(u) => format!(
                        "run the same restore again to go on, or 'bdsnap-restore {device} {}' to go back",
                        text::escape(&u.dir)
                    ),
                    None => "run the same restore again with --accept-gap to go on".into(),
                });
                Err(e)
            }
        }
    }

    /// Saves what will be overwritten as a session of its own.
    fn save_undo(&self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<UndoSession> {
        let needed = self.plan.undo_bytes.saturating_add(4 << 20);
        let free = self.store.free_bytes()?;
        if free < needed {
            return Err(Error::refused(format!(
                "the store has no room for the undo session: {} needed, {} free",
                text::size(needed),
                text::size(free)
            ))
            .hint("make room, or do without it: --no-undo"));
        }
        let mut header = (*self.model).clone();
        header.session_id = fsutil::random_id()?;
        header.store_id = self.store.id();
        header.prev_session_id = self.newest_id;
        header.group_id = NO_ID;
        header.restored_id = self.model.session_id;
        header.boot_id = fsutil::boot_id();
        header.load_id = NO_ID;
        header.chain_seq = self.store.next_chain_seq(self.newest_seq)?;
        header.start_ns = fsutil::now_ns();
        header.start_boot_ns = boottime_ns();
        header.chunk_size = self.chunk;
        header.logical_block_size = self.opened.logical_block_size();
        header.kind = SessionKind::Undo;
        header.durability = bdsnap_abi::format::Durability::Strict;
        header.gap_before = self.gap_now.map_or(Gap::None, Break::as_gap);
        header.dev_flags &= DEV_IMAGE | DEV_PARTITION;
        let head = self.head()?;
        header.head_sha256 = head.sha256;
        if !header.set_name(&self.newest_name) {
            return Err(Error::other("the device's name is too long"));
        }
        let (session_id, chain_seq) = (header.session_id, header.chain_seq);
        let mut writer = SessionWriter::create(self.store, header)?;
        progress.phase("save for undo", self.plan.undo_bytes);
        let mut buf = vec![0; BATCH as usize];
        for batch in &self.batches {
            stop.check()?;
            let buf = &mut buf[..batch.len as usize];
            self.read_device(batch.start, buf)?;
            writer.run(batch.start / bdsnap_abi::SECTOR, buf)?;
            progress.advance(batch.len);
        }
        let dir = writer.finish(State::Closed, &head)?;
        progress.finish();
        Ok(UndoSession { dir, session_id, chain_seq })
    }

    /// Writes the past, and makes it durable.
    fn write(&self, progress: &dyn Progress, stop: &Stop<'_>, written: &mut u64) -> Result<()> {
        progress.phase("restore", self.plan.bytes_to_write);
        let mut buf = vec![0; BATCH as usize];
        let result = (|| {
            for batch in &self.batches {
                stop.check()?;
                let buf = &mut buf[..batch.len as usize];
                self.past.overlay(batch.start, buf)?;
                if crc32c::crc32c(buf) != batch.crc {
                    return Err(Error::new(
                        Kind::Verification,
                        "a session's data changed while it was restored",
                    ));
                }
                self.opened
                    .file
                    .write_all_at(buf, self.base + batch.start)
                    .map_err(|e| device_error("write", self.target, batch.start, &e))?;
                *written += batch.len;
                progress.advance(batch.len);
            }
            Ok(())
        })();
        progress.finish();
        // Also after an error: what is said to be written shall be.
        let synced = self.opened.file.sync_all().on("flush", &self.target.path);
        result.and(synced)
    }

    /// Reads back what was written.
    fn check(&self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<()> {
        self.opened.drop_caches().on("flush", &self.target.path)?;
        progress.phase("check", self.plan.bytes_to_write);
        let mut buf = vec![0; BATCH as usize];
        for batch in &self.batches {
            stop.check()?;
            let buf = &mut buf[..batch.len as usize];
            self.read_device(batch.start, buf)?;
            if crc32c::crc32c(buf) != batch.crc {
                return Err(Error::other(format!(
                    "{} does not hold what was written at byte {}",
                    text::path(&self.target.path),
                    batch.start
                ))
                .hint("the device may be failing; see the kernel log"));
            }
            progress.advance(batch.len);
        }
        progress.finish();
        Ok(())
    }

    /// Brings the chain's tail up to date and tells the module.
    fn settle(&mut self, undo: Option<&UndoSession>) -> Result<()> {
        if undo.is_none() {
            // The tail says "unknown" already, and so must the module.
            return self.guard.over(RESTORE_ABORT).map_err(|e| Error::io("telling the module", &e));
        }
        let head = self.head()?;
        let mut samples = Vec::new();
        let step = self.batches.len().div_ceil(SAMPLES_MAX).max(1);
        for batch in self.batches.iter().step_by(step) {
            let mut buf = vec![0; batch.len.min(u64::from(self.chunk)) as usize];
            self.read_device(batch.start, &mut buf)?;
            samples.push(Sample {
                sector: batch.start / bdsnap_abi::SECTOR,
                bytes: buf.len() as u32,
                crc: crc32c::crc32c(&buf),
            });
        }
        self.set_tail(undo, self.guard.load_id, head.sha256, &samples)?;
        if self.batches.first().is_some_and(|b| b.start < 64 * 512) {
            self.opened.reread_partitions();
        }
        self.guard
            .over(RESTORE_END)
            .map_err(|e| Error::io("the restore is complete, but the module could not be told", &e))
    }

    fn set_tail(
        &self,
        undo: Option<&UndoSession>,
        load_id: Id,
        head_sha256: [u8; 32],
        samples: &[Sample],
    ) -> Result<()> {
        let mut tail = Tail::new();
        (tail.session_id, tail.chain_seq) = match undo {
            Some(u) => (u.session_id, u.chain_seq),
            None => (self.newest_id, self.newest_seq),
        };
        tail.boot_id = fsutil::boot_id();
        tail.load_id = load_id;
        tail.device_bytes = self.model.device_bytes;
        if self.target.is_image() {
            let meta = self.opened.file.metadata().on("examine", &self.target.path)?;
            tail.image_mtime_ns = fsutil::mtime_ns(&meta);
        }
        tail.head_sha256 = head_sha256;
        tail.chunk_size = self.chunk;
        for sample in samples {
            tail.push(*sample);
        }
        self.store.set_tail(&self.newest_name, &tail)
    }

    /// What the device's beginning says.
    fn head(&self) -> Result<Head> {
        let len = self.model.device_bytes.min(HEAD_LEN);
        let mut buf = vec![0; len as usize];
        self.read_device(0, &mut buf)?;
        Ok(Head::of(&buf))
    }

    /// Writes the past as an image into a new file, sparse where it is zero.
    ///
    /// The file appears under its name only when it is whole.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if `path` is the device itself, or not a regular
    /// file, or is not empty and `replace` is not set.
    pub fn compose(
        &self,
        path: &Path,
        replace: bool,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<Outcome> {
        self.check_output(path, replace)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".bdsnap-partial");
        let tmp = path.with_file_name(name);
        let written = self.compose_into(&tmp, progress, stop);
        let renamed = written.and_then(|n| {
            std::fs::rename(&tmp, path).on("make", path)?;
            fsutil::sync_dir(fsutil::parent(path))?;
            Ok(n)
        });
        match renamed {
            Ok(bytes_written) => {
                Ok(Outcome { bytes_written, undo_session: None, partial: self.plan.partial })
            }
            Err(e) => {
                // A part of an image is of no use, and this one is ours.
                let _ = std::fs::remove_file(&tmp);
                Err(e)
            }
        }
    }

    fn check_output(&self, path: &Path, replace: bool) -> Result<()> {
        let shown = text::path(path);
        let meta = match std::fs::metadata(path) {
            Ok(m) => m,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).on("examine", path),
        };
        let device = self.opened.file.metadata().on("examine", &self.target.path)?;
        if (meta.dev(), meta.ino()) == (device.dev(), device.ino()) {
            return Err(Error::refused(format!("{shown} is the device itself")));
        }
        if !meta.is_file() {
            return Err(Error::refused(format!("{shown} is not a regular file")));
        }
        if meta.len() > 0 && !replace {
            return Err(Error::refused(format!("{shown} exists")).hint("--yes replaces it"));
        }
        Ok(())
    }

    fn compose_into(&self, tmp: &Path, progress: &dyn Progress, stop: &Stop<'_>) -> Result<u64> {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(tmp)
            .on("make", tmp)?;
        let total = self.model.device_bytes;
        file.set_len(total).on("write", tmp)?;
        progress.phase("compose", total);
        let mut buf = vec![0; BATCH as usize];
        let mut at = 0;
        let mut written = 0;
        while at < total {
            stop.check()?;
            let len = (total - at).min(BATCH);
            let buf = &mut buf[..len as usize];
            let n = fsutil::read_up_to(&self.opened.file, buf, self.base + at)
                .map_err(|e| device_error("read", self.target, at, &e))?;
            // Where another device is shorter, only the sessions say more.
            buf[n..].fill(0);
            self.past.overlay(at, buf)?;
            for (i, piece) in buf.chunks(64 << 10).enumerate() {
                if !fsutil::is_zero(piece) {
                    file.write_all_at(piece, at + (i << 16) as u64).on("write", tmp)?;
                    written += piece.len() as u64;
                }
            }
            progress.advance(len);
            at += len;
        }
        file.sync_all().on("write", tmp)?;
        progress.finish();
        Ok(written)
    }
}

/// The undo session of this restore.
#[derive(Debug)]
struct UndoSession {
    dir: Vec<u8>,
    session_id: Id,
    chain_seq: u64,
}

fn boottime_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (s, ns) = (u64::try_from(t.tv_sec), u64::try_from(t.tv_nsec));
    s.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(ns.unwrap_or(0))
}
