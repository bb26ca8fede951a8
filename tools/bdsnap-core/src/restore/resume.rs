// SPDX-License-Identifier: GPL-2.0

//! Going on with a restore that was interrupted.

use bdsnap_abi::format::Id;

use super::checks::{self, Accepted};
use super::choose::{self, Choice};
use super::journal::{self, Journal};
use super::member::{self, Member, BATCH};
use super::{
    hold, prepare, refused, remarks, Accept, DevicePlan, Modules, Plan, Prepared, Request,
};
use crate::chain::{Chain, Selector};
use crate::device::{Target, What};
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Stop};
use crate::session::Session;
use crate::store::Item;
use crate::text;

/// Finds the interrupted restore of a device, and what is left to be done.
///
/// Each piece of a device must hold what the restore found there or what it
/// writes there; anything else is somebody else's, and then it is refused. In
/// `request` the selector does not count.
///
/// # Errors
///
/// [`Kind::NotFound`] if there is none; else as [`prepare`].
pub fn resume<'a>(
    request: &Request<'a>,
    modules: &Modules<'_>,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<Prepared<'a>> {
    let store = request.store;
    let module = modules()?;
    // What was written raw a moment ago is part of the chain.
    if let Some(module) = &module {
        module.end_raw()?;
    }
    let status = module.as_ref().map(|m| m.status()).transpose()?;
    drop(module);
    let items = store.items()?;
    let chain = Chain::of(store, request.target, &items);
    let ours: Vec<String> =
        chain.sessions.iter().map(|s| text::hex(&s.header.session_id)).collect();
    let Some(journal) = journal::interrupted(store)?.into_iter().find(|j| j.concerns(&ours)) else {
        return Err(Error::not_found(format!(
            "no interrupted restore of {}",
            text::path(&request.target.given)
        )));
    };
    let given = |word: &str| journal.record.accepted.iter().any(|a| a == word);
    let accept = Accept {
        gap: request.accept.gap || given("gap"),
        loss: request.accept.loss || given("loss"),
        alone: given("alone"),
    };
    if journal.record.devices.iter().any(|d| d.undo.is_none()) {
        return again(request, accept, journal, modules, progress, stop);
    }
    let found = find(&journal, request.target, store, &items)?;
    let mut held = Vec::new();
    for f in found {
        held.push(hold(f.choice.target, request.purpose, modules, status.as_ref())?);
    }
    // Only now nothing changes any more.
    let found = find(&journal, request.target, store, &store.items()?)?;
    if !found.iter().zip(&held).all(|(f, h)| f.choice.target.path == h.target.path) {
        return Err(Error::refused("the store changed while it was looked at").hint("try again"));
    }
    let mut accepted = Accepted { gap: given("gap"), loss: given("loss"), alone: accept.alone };
    let (mut losses, mut gaps, mut links) = (Vec::new(), Vec::new(), Vec::new());
    for (f, held) in found.iter().zip(&held) {
        losses.extend(checks::states(&f.choice, status.as_ref(), accept, &mut accepted)?);
        checks::identity(&f.choice, false, &held.opened)?;
        let now = checks::gap_now(store, Some(&f.undo), held)?;
        links.push((f.choice.chain.breaks(f.choice.from), now));
        gaps.extend(checks::describe_breaks(&f.choice, &links[links.len() - 1]));
    }
    checks::gaps(&gaps, &chain.damaged, accept, &mut accepted)?;

    let bytes =
        |f: &Found| f.undo.dat_bytes + f.choice.sessions().iter().map(|s| s.dat_bytes).sum::<u64>();
    progress.phase("verify", found.iter().map(bytes).sum());
    let mut notes = Vec::new();
    let (mut members, mut devices, mut undos) = (Vec::new(), Vec::new(), Vec::new());
    for ((f, held), (breaks, now)) in found.into_iter().zip(held).zip(links) {
        let undo_runs = f.undo.check(false, progress, stop)?;
        let (member, plan) = Member::load(f.choice, held, &breaks, now, accept, progress, stop)?;
        remarks(&member, &plan, &mut notes);
        notes.push(format!("{} keeps what was there before", text::lossy(&f.undo.dir)));
        members.push(member);
        devices.push(plan);
        undos.push((f.undo, undo_runs));
    }
    progress.finish();
    progress.phase("compare", undos.iter().map(|(_, c)| c.bytes).sum());
    for ((member, plan), (undo, runs)) in members.iter_mut().zip(&mut devices).zip(&undos) {
        compare(member, plan, undo, &runs.runs, progress, stop)?;
    }
    progress.finish();
    notes.extend(losses.iter().cloned());
    let plan = Plan {
        session: journal.record.session.clone(),
        session_id: journal.record.session_id.clone(),
        start: devices[0].start.clone(),
        devices,
        bytes_to_write: 0,
        undo_bytes: 0,
        resumed: true,
        partial: !losses.is_empty(),
        unproven: accepted.gap,
        accepted: accepted.list(),
        notes,
    };
    let mut prepared = Prepared { plan, store, members, undo: true, resumed: Some(journal) };
    prepared.add_up();
    Ok(prepared)
}

/// A restore without undo sessions: there is nothing to compare with, so it is
/// the same once more, and over a gap.
fn again<'a>(
    request: &Request<'a>,
    accept: Accept,
    journal: Journal,
    modules: &Modules<'_>,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<Prepared<'a>> {
    let request = Request {
        selector: Selector::Name(journal.record.session_id.clone().into_bytes()),
        accept: Accept { gap: request.accept.gap, ..accept },
        undo: false,
        ..*request
    };
    // Its journal goes when the next one is made, and must not be locked then.
    drop(journal);
    let mut prepared = prepare(&request, modules, progress, stop)?;
    prepared.plan.resumed = true;
    Ok(prepared)
}

/// A device of the interrupted restore.
struct Found {
    /// Its chain ends before the undo session.
    choice: Choice,
    undo: Session,
}

/// The devices of the interrupted restore, and what has become of them.
fn find(
    journal: &Journal,
    given: &Target,
    store: &crate::store::Store,
    items: &[Item],
) -> Result<Vec<Found>> {
    let mut found: Vec<Found> = Vec::new();
    for device in &journal.record.devices {
        let missing = |what: &str| {
            refused(
                format!("the restore cannot be resumed: {what}"),
                "the restore to the same session, run anew, finds out what can be done",
            )
        };
        let Some(undo) = &device.undo else { return Err(missing("it has no undo session")) };
        let is_undo = |s: &&Session| text::hex(&s.header.session_id) == undo.session_id;
        let undo = items
            .iter()
            .find_map(|i| match i {
                Item::Session(s) => Some(&**s).filter(is_undo),
                _ => None,
            })
            .ok_or_else(|| missing(&format!("{} is gone", text::escape(undo.name.as_bytes()))))?;
        let mut chain = Chain::of(store, given, items);
        let mut target = given.clone();
        if !chain.sessions.iter().any(|s| s.header.session_id == undo.header.session_id) {
            target = choose::locate(store, undo).map_err(|why| {
                missing(&format!("it is also of {}, {why}", text::escape(undo.header.name())))
            })?;
            chain = Chain::of(store, &target, items);
        }
        if target.what == What::Absent {
            return Err(Error::not_found(format!("{} does not exist", text::path(&target.path))));
        }
        let place = |id: &Id| chain.sessions.iter().position(|s| s.header.session_id == *id);
        let ids: Option<Vec<Id>> = device.chain.iter().map(|s| text::parse_id(s)).collect();
        let ids = ids.unwrap_or_default();
        let Some(end) = place(&undo.header.session_id) else {
            return Err(missing("its undo session is not in the chain"));
        };
        if let Some(later) = chain.sessions.get(end + 1) {
            return Err(missing(&format!(
                "{} has been used since: {}",
                text::path(&target.path),
                text::escape(&later.dir)
            )));
        }
        let from = ids.first().and_then(place);
        let whole = from.is_some_and(|from| {
            chain.sessions[from..end].iter().map(|s| s.header.session_id).eq(ids.iter().copied())
        });
        let (Some(from), true) = (from, whole) else {
            return Err(missing("not all of its sessions are there"));
        };
        let undo = chain.sessions.remove(end);
        chain.grounds.truncate(end);
        found.push(Found { choice: Choice { target, chain, from }, undo });
    }
    Ok(found)
}

/// Finds what is still to be written, and whether each block is either what the
/// undo session keeps or what the restore writes.
fn compare(
    member: &mut Member,
    plan: &mut DevicePlan,
    undo: &Session,
    runs: &[bdsnap_abi::format::Run],
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<()> {
    const BLOCK: usize = 512;
    let dat = undo.open_dat()?;
    let unit = member.chunk as usize;
    let mut batches = Vec::new();
    let mut looked_at = 0;
    let mut bufs = [(); 3].map(|()| vec![0; BATCH as usize]);
    let pieces = runs.iter().map(|run| (run.sector * bdsnap_abi::SECTOR, u64::from(run.bytes)));
    for (run, (at, len)) in runs.iter().zip(member.read_ahead(pieces)) {
        stop.check()?;
        let len = len as usize;
        let [now, old, new] = bufs.each_mut().map(|b| &mut b[..len]);
        member.read_device(at, now)?;
        if run.is_zero() {
            old.fill(0);
        } else {
            std::os::unix::fs::FileExt::read_exact_at(&dat, old, run.offset).map_err(|e| {
                let mut e =
                    Error::io(format_args!("session {} is damaged", text::escape(&undo.dir)), &e);
                e.kind = Kind::Verification;
                e
            })?;
        }
        new.copy_from_slice(old);
        member.past.overlay(at, new)?;
        for (i, block) in now.chunks(BLOCK).enumerate() {
            let range = i * BLOCK..i * BLOCK + block.len();
            if *block != old[range.clone()] && *block != new[range.clone()] {
                return Err(refused(
                    format!(
                        "{} was changed by somebody else after the restore was interrupted, at \
                         byte {}",
                        text::path(&member.target.path),
                        at + range.start as u64
                    ),
                    "the restore to the same session, run anew, finds out what can be done",
                ));
            }
        }
        for (i, (_, new)) in
            now.chunks(unit).zip(new.chunks(unit)).enumerate().filter(|(_, (a, b))| a != b)
        {
            member::push(&mut batches, at + (i * unit) as u64, new);
        }
        progress.advance(len as u64);
        looked_at += len as u64;
    }
    member.set_batches(batches, plan, looked_at);
    Ok(())
}
