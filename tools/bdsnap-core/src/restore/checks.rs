// SPDX-License-Identifier: GPL-2.0

//! Why a restore is refused, and what the user can take upon himself.

use bdsnap_abi::format::NO_ID;

use super::choose::Choice;
use super::{refused, Accept, Held};
use crate::chain::{self, Break};
use crate::device::{tail_differs, Opened};
use crate::error::{Context, Error, Result};
use crate::module::ModuleStatus;
use crate::session::{Restorable, Session};
use crate::store::Store;
use crate::text;

/// Which overrides were needed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Accepted {
    pub(super) gap: bool,
    pub(super) loss: bool,
    pub(super) alone: bool,
}

impl Accepted {
    pub(super) fn list(self) -> Vec<&'static str> {
        [(self.gap, "gap"), (self.loss, "loss"), (self.alone, "alone")]
            .into_iter()
            .filter_map(|(needed, word)| needed.then_some(word))
            .collect()
    }
}

/// Refuses sessions that cannot be restored; returns what is lost.
pub(super) fn states(
    choice: &Choice,
    status: Option<&ModuleStatus>,
    accept: Accept,
    accepted: &mut Accepted,
) -> Result<Vec<String>> {
    let mut lossy = Vec::new();
    for session in choice.sessions() {
        let name = text::escape(&session.dir);
        match session.restorable(chain::is_live(session, status)) {
            Restorable::Yes(_) => {}
            Restorable::No(why) => {
                return Err(refused(
                    format!("session {name} cannot be restored: {why}"),
                    "unmount the device first",
                ));
            }
            Restorable::Lossy(why) => lossy.push(format!("{name}: {why}")),
        }
    }
    if !lossy.is_empty() {
        if !accept.loss {
            return Err(refused(
                format!("the past can only be restored in part: {}", lossy.join("; ")),
                "--accept-loss restores what there is; the result may need a file system check",
            ));
        }
        accepted.loss = true;
    }
    Ok(lossy)
}

/// Refuses another device under the same name, and a chain that counts a
/// place or a session twice.
pub(super) fn identity(choice: &Choice, to_image: bool, opened: &Opened) -> Result<()> {
    let ours: Vec<&Session> = choice.sessions().iter().filter(|s| s.original.is_none()).collect();
    for pair in ours.windows(2) {
        let (a, b) = (&pair[0].header, &pair[1].header);
        if a.chain_seq == b.chain_seq || a.session_id == b.session_id {
            return Err(refused(
                format!(
                    "{} and {} have the same place in the chain",
                    text::escape(&pair[0].dir),
                    text::escape(&pair[1].dir)
                ),
                "one of them is a copy; move it out of the store",
            ));
        }
        // It may have grown, but what was cut off once is lost.
        if a.loop_offset != b.loop_offset || a.device_bytes > b.device_bytes {
            return Err(Error::refused(format!(
                "the device had another offset, or was larger, in {} than in {}",
                text::escape(&pair[0].dir),
                text::escape(&pair[1].dir)
            )));
        }
    }
    let target = &choice.target;
    if choice.sessions().iter().any(|s| s.original.is_some()) && target.has_partitions() {
        return Err(refused(
            format!(
                "{} has partitions, and the original module counts sectors from the start of a \
                 partition that it does not name",
                text::path(&target.path)
            ),
            "name the partition instead of the disk, and the session by its whole name",
        ));
    }
    if to_image {
        return Ok(());
    }
    for session in ours {
        let bytes = target.bytes(&opened.file, &session.header)?;
        if let Some(why) = target.contradiction(&session.header, bytes) {
            return Err(refused(
                format!(
                    "{} is not the device of session {}: {why}",
                    text::path(&target.path),
                    text::escape(&session.dir)
                ),
                "--to FILE makes an image without touching the device",
            ));
        }
    }
    Ok(())
}

/// Whether the device may have changed since the newest session ended.
pub(super) fn gap_now(
    store: &Store,
    newest: Option<&Session>,
    held: &Held,
) -> Result<Option<Break>> {
    let Some(newest) = newest else { return Ok(Some(Break::Unknown)) };
    if newest.original.is_some() {
        return Ok(Some(Break::Unlinked));
    }
    let known = chain::link_to_now(&newest.header.session_id, held.guard.watch());
    // The module may have watched another disk than the one that is there.
    let Some(tail) = store.tail(newest.header.name())? else { return Ok(known) };
    if known.is_some() || tail.session_id != newest.header.session_id {
        return Ok(known);
    }
    let base = held.base(&newest.header);
    let differs = tail_differs(&tail, &held.opened.file, base).on("read", &held.target.path)?;
    Ok((differs == Some(true)).then_some(Break::Written))
}

/// The breaks of a chain in words.
pub(super) fn describe_breaks(
    choice: &Choice,
    (breaks, now): &(Vec<(usize, Break)>, Option<Break>),
) -> Vec<String> {
    let mut reasons: Vec<String> = breaks
        .iter()
        .map(|(i, b)| {
            format!("before {}: {}", text::escape(&choice.chain.sessions[*i].dir), b.text())
        })
        .collect();
    let newest = choice.chain.newest().map_or("none".into(), |s| text::escape(&s.dir));
    reasons.extend(now.map(|b| format!("since the newest session ({newest}): {}", b.text())));
    reasons
}

/// Refuses to go over a gap.
pub(super) fn gaps(
    reasons: &[String],
    damaged: &[String],
    accept: Accept,
    accepted: &mut Accepted,
) -> Result<()> {
    if reasons.is_empty() {
        return Ok(());
    }
    if !accept.gap {
        let mut message = format!("the chain has a gap: {}", reasons.join("; "));
        if !damaged.is_empty() {
            message += &format!(" (unreadable: {})", damaged.join(", "));
        }
        return Err(refused(
            message,
            "--accept-gap restores all the same; what changed unseen is then not restored",
        ));
    }
    accepted.gap = true;
    Ok(())
}

/// Whether the session is one of several devices'.
pub(super) fn is_grouped(session: &Session) -> bool {
    session.header.group_id != NO_ID
}
