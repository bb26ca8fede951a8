// SPDX-License-Identifier: GPL-2.0

//! Bringing devices back to the start of a session.
//!
//! [`prepare`] opens the device, and those that were one file system with it,
//! so that nobody else can, checks every session of their chains down to the
//! last checksum, compares the devices with their past and returns a
//! [`Prepared`] with the [`Plan`]. Nothing is written until
//! [`Prepared::apply`] (or [`Prepared::compose`], which only writes an image).
//!
//! The order of `apply`, so that the chains stay true whenever it stops:
//!
//! 1. a journal ([`journal`]), and in its folder an undo session of each
//!    device with all that will be overwritten, durable;
//! 2. the journal says "writing", the undo sessions come into the store;
//! 3. the chains' tails, with no load of the module: whoever is cut here left
//!    a gap;
//! 4. the writes, then a flush of the devices;
//! 5. reading back and comparing;
//! 6. the tails again, now with the module's load; the module is told;
//! 7. a line in the history; the journal is removed.
//!
//! Stopped or failed after step 3, the undo sessions still cover all that was
//! changed, so step 6 is done all the same: the restore can go on ([`resume`])
//! or be undone without a gap. Killed, it can as well, but what happened to
//! the devices until then nobody knows, so that is a gap. Without undo
//! sessions there is always one.

mod ahead;
mod apply;
mod checks;
mod choose;
mod image;
pub mod journal;
mod member;
mod resume;

pub use resume::resume;

use serde::Serialize;

use crate::chain::{Break, Selector};
use crate::device::{Opened, Purpose, Target};
use crate::error::{Context, Error, Kind, Result};
use crate::module::Control;
use crate::progress::{Progress, Stop};
use crate::session::Restorable;
use crate::store::Store;
use crate::text;

use checks::Accepted;
use choose::Choice;
use member::{Guard, Member};

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
    /// Only an image is made of it; the device need not be the very same.
    pub to_image: bool,
    /// An undo session is made first.
    pub undo: bool,
}

/// Opens the module's control device, `None` if it is not loaded. A restore of
/// several devices needs it once for each.
pub type Modules<'m> = dyn Fn() -> Result<Option<Box<dyn Control>>> + 'm;

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

/// What a restore will do to one device.
#[derive(Debug, Clone, Serialize)]
pub struct DevicePlan {
    /// Its node or image.
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
    /// Bytes of what is compared (in whole chunks) that are right already.
    pub bytes_equal: u64,
    /// Bytes that will be written.
    pub bytes_to_write: u64,
    /// Writes that this takes.
    pub writes: u64,
    /// Bytes of the undo session that will be made first; 0: none.
    pub undo_bytes: u64,
    /// The break between the newest session and now.
    pub gap_now: Option<&'static str>,
}

/// What a restore will do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Name of the session to whose start it goes back.
    pub session: String,
    /// Its identity.
    pub session_id: String,
    /// That start, RFC 3339.
    pub start: String,
    /// The device that was asked for, then those that were one file system
    /// with it.
    pub devices: Vec<DevicePlan>,
    /// Bytes that will be written, on all devices.
    pub bytes_to_write: u64,
    /// Bytes of the undo sessions, of all devices.
    pub undo_bytes: u64,
    /// It goes on with an interrupted restore.
    pub resumed: bool,
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
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Bytes written.
    pub bytes_written: u64,
    /// Names of the undo sessions, if some were made.
    pub undo_sessions: Vec<String>,
    /// The result is not the whole past.
    pub partial: bool,
    /// The devices to which others wrote while the restore wrote.
    pub others_wrote: Vec<String>,
}

/// A restore that was planned and can be done.
pub struct Prepared<'a> {
    /// What will be done.
    pub plan: Plan,
    store: &'a Store,
    members: Vec<Member>,
    undo: bool,
    /// The interrupted restore that this one goes on with.
    resumed: Option<journal::Journal>,
}

impl std::fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Finds what to do, and whether it may be done.
///
/// # Errors
///
/// [`Kind::NotFound`] and [`Kind::Usage`] for the session, [`Kind::Refused`]
/// with the reason, [`Kind::Verification`] for damage in the store.
pub fn prepare<'a>(
    request: &Request<'a>,
    modules: &Modules<'_>,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<Prepared<'a>> {
    let Request { store, accept, .. } = *request;
    let module = modules()?;
    // What was written raw a moment ago is part of the chain.
    if let Some(module) = &module {
        module.end_raw()?;
    }
    let status = module.as_ref().map(|m| m.status()).transpose()?;
    drop(module);
    // For wrong names and for running sessions, before a device is touched.
    let first = choose::choose(request, &store.items()?)?;
    for choice in &first {
        checks::states(choice, status.as_ref(), accept, &mut Accepted::default())?;
    }
    let mut held = Vec::new();
    for choice in first {
        held.push(hold(choice.target, request.purpose, modules, status.as_ref())?);
    }
    // Only now nothing changes any more.
    let choices = choose::choose(request, &store.items()?)?;
    let same = choices.len() == held.len()
        && choices.iter().zip(&held).all(|(c, h)| c.target.path == h.target.path);
    if !same {
        return Err(Error::refused("the store changed while it was looked at").hint("try again"));
    }

    let mut accepted = Accepted::default();
    let mut losses = Vec::new();
    for (choice, held) in choices.iter().zip(&held) {
        losses.extend(checks::states(choice, status.as_ref(), accept, &mut accepted)?);
        checks::identity(choice, request.to_image, &held.opened)?;
    }
    if request.accept.alone {
        accepted.alone = choose::is_one_of_several(&choices[0], &store.items()?);
    }
    let mut gaps = Vec::new();
    let mut breaks = Vec::new();
    for (choice, held) in choices.iter().zip(&held) {
        let now = checks::gap_now(store, choice.chain.newest(), held)?;
        breaks.push((choice.chain.breaks(choice.from), now));
        gaps.extend(checks::describe_breaks(choice, &breaks[breaks.len() - 1]));
    }
    let damaged = &choices[0].chain.damaged;
    checks::gaps(&gaps, damaged, accept, &mut accepted)?;

    let mut notes: Vec<String> = Vec::new();
    let mut devices = Vec::new();
    let mut members = Vec::new();
    let total = choices.iter().flat_map(Choice::sessions).map(|s| s.dat_bytes).sum();
    progress.phase("verify", total);
    for ((choice, held), (breaks, now)) in choices.into_iter().zip(held).zip(breaks) {
        let (member, plan) = Member::load(choice, held, &breaks, now, accept, progress, stop)?;
        remarks(&member, &plan, &mut notes);
        members.push(member);
        devices.push(plan);
    }
    progress.finish();
    notes.extend(losses.iter().cloned());
    let plan = Plan {
        session: devices[0].session.clone(),
        session_id: devices[0].session_id.clone(),
        start: devices[0].start.clone(),
        devices,
        bytes_to_write: 0,
        undo_bytes: 0,
        resumed: false,
        partial: !losses.is_empty(),
        unproven: accepted.gap,
        accepted: accepted.list(),
        notes,
    };
    let mut prepared = Prepared { plan, store, members, undo: request.undo, resumed: None };
    if !request.to_image {
        prepared.compare(progress, stop)?;
    }
    Ok(prepared)
}

/// A device that nobody else can take.
struct Held {
    target: Target,
    opened: Opened,
    guard: Guard,
}

fn hold(
    target: Target,
    purpose: Purpose,
    modules: &Modules<'_>,
    status: Option<&crate::module::ModuleStatus>,
) -> Result<Held> {
    let opened = Opened::open(&target, purpose)?;
    // Before the restore begins: what somebody has left in a page cache is a
    // write of his, and the module must see it as one.
    opened.drop_caches().on("flush", &target.path)?;
    let guard = Guard::begin(modules()?, status, &target)?;
    Ok(Held { target, opened, guard })
}

/// What the user should know of the sessions.
fn remarks(member: &Member, plan: &DevicePlan, notes: &mut Vec<String>) {
    for (session, step) in member.sessions().iter().rev().zip(&plan.chain) {
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
}

impl Prepared<'_> {
    /// Finds what differs from the past, on all devices.
    fn compare(&mut self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<()> {
        progress.phase("compare", self.members.iter().map(Member::spanned).sum());
        for (member, plan) in self.members.iter_mut().zip(&mut self.plan.devices) {
            member.compare(plan, progress, stop)?;
            plan.undo_bytes = if self.undo { plan.bytes_to_write } else { 0 };
        }
        progress.finish();
        self.add_up();
        Ok(())
    }

    fn add_up(&mut self) {
        let sum = |of: fn(&DevicePlan) -> u64| self.plan.devices.iter().map(of).sum();
        (self.plan.bytes_to_write, self.plan.undo_bytes) =
            (sum(|d| d.bytes_to_write), sum(|d| d.undo_bytes));
    }
}

/// The break's word, for a plan.
fn word(b: Option<Break>) -> Option<&'static str> {
    b.map(Break::as_str)
}

/// A refusal because of what is recorded.
fn refused(message: String, hint: &str) -> Error {
    let mut e = Error::refused(message);
    e.hint = Some(hint.to_owned());
    debug_assert_eq!(e.kind, Kind::Refused);
    e
}
