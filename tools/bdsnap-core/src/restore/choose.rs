// SPDX-License-Identifier: GPL-2.0

//! Which devices a restore is of, and to the start of which session each goes.
//!
//! Sessions of the devices of one file system share a `group_id`. Who restores
//! one of them restores all: each goes back to its session of that group. From
//! there on all sessions of each device are taken back, and where one of them
//! is of another group, its devices come along as well, to their first session
//! of such a group. So a device that joined the file system only later (`btrfs
//! device add`) goes back to what it was before it joined: else the file system
//! would find a newer member on it that it knows nothing of.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bdsnap_abi::format::Id;

use super::checks::is_grouped;
use super::{refused, Request};
use crate::chain::{group, Chain, Selector};
use crate::device::{self, Match, Matcher, Target, What};
use crate::error::{Error, Kind, Result};
use crate::session::Session;
use crate::store::{Item, Store};
use crate::text;

/// A device, its chain, and the place of the session to whose start it goes.
pub(super) struct Choice {
    pub(super) target: Target,
    pub(super) chain: Chain,
    pub(super) from: usize,
}

impl Choice {
    /// The sessions that are taken back, oldest first.
    pub(super) fn sessions(&self) -> &[Session] {
        &self.chain.sessions[self.from..]
    }
}

const ALONE: &str = "--alone restores this device only; the file system then is of two times";

/// The device that is asked for, and those that come along.
pub(super) fn choose(request: &Request<'_>, items: &[Item]) -> Result<Vec<Choice>> {
    let mut choices = vec![first(request, items)?];
    if request.accept.alone {
        return Ok(choices);
    }
    if request.to_image && is_one_of_several(&choices[0], items) {
        return Err(refused(
            "an image can only be made of one device, and the session is of a file system on \
             several"
                .into(),
            "--alone makes an image of this one; do the same for the others",
        ));
    }
    let mut groups = BTreeSet::new();
    loop {
        let state = |choices: &[Choice], groups: &BTreeSet<Id>| {
            (groups.len(), choices.len(), choices.iter().map(|c| c.from).sum::<usize>())
        };
        let before = state(&choices, &groups);
        for choice in &choices {
            check_complete(choice, items)?;
            groups.extend(choice.sessions().iter().map(group));
        }
        let taken: BTreeSet<Id> = choices.iter().flat_map(Choice::sessions).map(own_id).collect();
        let others = ours(items).filter(|s| !taken.contains(&own_id(s)));
        for session in others.filter(|s| groups.contains(&group(s))) {
            include(&mut choices, session, request.store, items)?;
        }
        if state(&choices, &groups) == before {
            return Ok(choices);
        }
    }
}

fn own_id(session: &Session) -> Id {
    session.header.session_id
}

fn ours(items: &[Item]) -> impl Iterator<Item = &Session> {
    items.iter().filter_map(|item| match item {
        Item::Session(s) => Some(&**s),
        Item::Original(_) | Item::Damaged(_) => None,
    })
}

/// The device that is asked for.
fn first(request: &Request<'_>, items: &[Item]) -> Result<Choice> {
    let mut chain = Chain::of(request.store, request.target, items);
    chain.admit(&request.selector);
    match chain.select(&request.selector) {
        Ok(from) => Ok(Choice { target: request.target.clone(), chain, from }),
        Err(e) if e.kind == Kind::NotFound => Err(why_not(request, &chain, items).unwrap_or(e)),
        Err(e) => Err(e),
    }
}

/// Why a session that is there does not count.
fn why_not(request: &Request<'_>, chain: &Chain, items: &[Item]) -> Option<Error> {
    let name = |dir: &[u8]| match &request.selector {
        Selector::Name(name) => dir.starts_with(name),
        // All there were are another device's.
        Selector::Latest(_) | Selector::Undo => chain.sessions.is_empty(),
    };
    let device = text::path(&request.target.given);
    if let Some((dir, why)) = chain.strangers.iter().find(|(dir, _)| name(dir)) {
        let dir = text::escape(dir);
        return Some(refused(
            format!("{device} is not the device of session {dir}: {why}"),
            "name the device of the session by what it is called now",
        ));
    }
    let Selector::Name(_) = &request.selector else { return None };
    let of = items.iter().find_map(|item| match item {
        Item::Session(s) if name(&s.dir) => Some(s.header.name()),
        Item::Original(o) if name(&o.dir) => o.device.as_deref(),
        _ => None,
    })?;
    let of = text::escape(of);
    Some(Error::refused(format!("the session is of another device, {of}, and not of {device}")))
}

/// Adds the device of a session of a group that is restored.
fn include(
    choices: &mut Vec<Choice>,
    session: &Session,
    store: &Store,
    items: &[Item],
) -> Result<()> {
    let place = |chain: &Chain| {
        chain.sessions.iter().position(|s| s.header.session_id == session.header.session_id)
    };
    for (i, choice) in choices.iter_mut().enumerate() {
        if let Some(at) = place(&choice.chain) {
            // The first one goes where the user says.
            if i > 0 {
                choice.from = choice.from.min(at);
            }
            return Ok(());
        }
    }
    let missing = |why: &str| {
        refused(
            format!("the file system was also on {}, {why}", text::escape(session.header.name())),
            ALONE,
        )
    };
    let target = locate(store, session).map_err(|why| missing(&why))?;
    let chain = Chain::of(store, &target, items);
    let Some(from) = place(&chain) else { return Err(missing("which is not there")) };
    choices.push(Choice { target, chain, from });
    Ok(())
}

/// Finds the device of a session: under its recorded name, or wherever it is
/// now. An error is why there is none, as the end of a sentence.
pub(super) fn locate(store: &Store, session: &Session) -> std::result::Result<Target, String> {
    let header = &session.header;
    let is_it = |t: &Target| matches!(Matcher::in_store(t, store).judge(header), Match::Yes(_));
    let mut why = "which is not there".to_owned();
    match Target::find(Path::new(OsStr::from_bytes(header.name()))) {
        Ok(t) if t.what == What::Absent => {}
        Ok(t) if is_it(&t) => return Ok(t),
        Ok(_) => why = "and another device has that name now".into(),
        Err(e) => why = format!("which cannot be looked at: {}", e.message),
    }
    let mut found: Vec<Target> = Vec::new();
    for node in device::all_nodes() {
        let Ok(target) = Target::find(&node) else { continue };
        let known = found.iter().any(|t| t.what == target.what);
        if !known && !target.is_image() && is_it(&target) {
            found.push(target);
        }
    }
    match found.len() {
        0 => Err(why),
        1 => Ok(found.remove(0)),
        _ => Err("and several devices look like it".into()),
    }
}

/// Refuses a group of which not all is known.
fn check_complete(choice: &Choice, items: &[Item]) -> Result<()> {
    for session in choice.sessions() {
        let name = text::escape(&session.dir);
        if session.is_group_incomplete() {
            return Err(refused(
                format!(
                    "session {name} is of a file system on several devices, and not all of them \
                     were registered"
                ),
                ALONE,
            ));
        }
        let damaged = items.iter().find(|i| matches!(i, Item::Damaged(_)));
        if let (true, Some(damaged)) = (is_grouped(session), damaged) {
            return Err(refused(
                format!(
                    "session {name} is of a file system on several devices, and {}, which cannot \
                     be read, may be of one of them",
                    text::escape(damaged.dir())
                ),
                ALONE,
            ));
        }
    }
    Ok(())
}

/// Whether other devices would have to come along.
pub(super) fn is_one_of_several(choice: &Choice, items: &[Item]) -> bool {
    choice.sessions().iter().any(|s| {
        s.is_group_incomplete()
            || ours(items).any(|o| group(o) == group(s) && o.header.name() != s.header.name())
    })
}
