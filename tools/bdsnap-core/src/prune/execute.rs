// SPDX-License-Identifier: GPL-2.0

//! The execution of a plan, and what brings removed sessions back.

use std::os::unix::ffi::OsStrExt;

use super::{wanted_by_restores, Outcome, Prepared, Step};
use crate::chain;
use crate::error::{Context, Error, Kind, Result};
use crate::merge;
use crate::module::Control;
use crate::notes;
use crate::progress::{Progress, Stop};
use crate::session::Session;
use crate::store::Store;
use crate::text;
use crate::trash::{Member, Op, Steps, Trash};

impl Prepared<'_> {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.expired.is_empty()
    }

    /// Does it. The caller holds no lock on the store. What fails leaves its
    /// sessions as they are and is in the outcome.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if the clock is in doubt or another program prunes;
    /// [`Kind::Interrupted`].
    pub fn apply(
        self,
        module: Option<&dyn Control>,
        progress: &dyn Progress,
        stop: &Stop<'_>,
        hook: Steps<'_>,
    ) -> Result<Outcome> {
        if let Some(doubt) = &self.plan.clock {
            return Err(Error::refused(format!("the clock looks wrong: {doubt}"))
                .hint("set it; if it is right, --trust-clock prunes all the same"));
        }
        let trash = Trash::open(self.store, true)?
            .ok_or_else(|| Error::other("the trash cannot be opened"))?;
        {
            let _alone = self.store.lock_alone()?;
            trash.recover(hook)?;
        }
        let mut outcome = Outcome::default();
        for step in &self.steps {
            stop.check().map_err(|e| interrupted(e, &outcome))?;
            match self.run(step, &trash, module, progress, stop, hook) {
                Ok(()) if step.into.is_some() => outcome.merged += step.sessions.len() as u64,
                Ok(()) => outcome.removed += step.sessions.len() as u64,
                Err(e) if e.kind == Kind::Interrupted => return Err(interrupted(e, &outcome)),
                Err(e) => outcome.failures.push(e.message),
            }
        }
        // What was cut and then cleaned up may have been among them.
        let there = Trash::list(self.store)?;
        let due = |op: &Op| self.expired.iter().any(|e| e.name() == op.name());
        for op in there.into_iter().filter(due) {
            stop.check().map_err(|e| interrupted(e, &outcome))?;
            match trash.delete(op, hook) {
                Ok(()) => outcome.emptied += 1,
                Err(e) => outcome.failures.push(e.message),
            }
        }
        Ok(outcome)
    }

    fn member(&self, i: usize) -> Member {
        Member::of(&self.sorted.sessions[i], self.bytes[i])
    }

    fn run(
        &self,
        step: &Step,
        trash: &Trash<'_>,
        module: Option<&dyn Control>,
        progress: &dyn Progress,
        stop: &Stop<'_>,
        hook: Steps<'_>,
    ) -> Result<()> {
        let until = self.now_ns.saturating_add(self.trash_ns);
        let members = step.sessions.iter().map(|&i| self.member(i)).collect();
        let Some(into) = step.into else {
            let op = {
                let _alone = self.store.lock_alone()?;
                self.check(step, module)?;
                trash.remove(members, self.now_ns, until, hook)?
            };
            return self.done(trash, op, hook);
        };
        let all = self.sorted.merged(into, step);
        let (map, dat) = merge::predict(&all)?;
        check_room(self.store, map + dat + (1 << 20))?;
        let mut op = trash.begin_merge(self.member(into), members, self.now_ns, until, hook)?;
        let built = {
            // Others may read, and only they.
            let _shared = self.store.lock_shared()?;
            hook("merge").and_then(|()| {
                progress.phase("merge", dat);
                let result =
                    merge::write(&all, self.store.version(), &op.result_path(), progress, stop);
                progress.finish();
                result
            })
        };
        let exchanged = built.and_then(|()| {
            let _alone = self.store.lock_alone()?;
            self.check(step, module)?;
            trash.exchange(&mut op, hook)
        });
        match exchanged {
            Ok(()) => self.done(trash, op, hook),
            // As if the machine had gone away.
            Err(e) if e.kind == Kind::Incomplete => Err(e),
            Err(e) => {
                // In the store all is as it was, unless the exchange itself
                // failed in the middle; then it is finished the next time.
                let _alone = self.store.lock_alone()?;
                let older = &self.sorted.sessions[into];
                let unchanged = Session::read(&older.path, &older.dir)
                    .is_ok_and(|s| s.header.merged_seq == older.header.merged_seq);
                if unchanged {
                    trash.give_up(op)?;
                }
                Err(e)
            }
        }
    }

    /// What has no time in the trash is deleted.
    fn done(&self, trash: &Trash<'_>, op: Op, hook: Steps<'_>) -> Result<()> {
        if self.trash_ns == 0 {
            trash.delete(op, hook)
        } else {
            Ok(())
        }
    }

    /// Looks again at the sessions of a step, now that the store is locked: whoever
    /// begins to use one needs that lock first, so that it is enough to see that nobody does.
    fn check(&self, step: &Step, module: Option<&dyn Control>) -> Result<()> {
        let wanted = wanted_by_restores(self.store)?;
        let status = module.map(Control::status).transpose()?;
        for i in step.sessions.iter().chain(&step.into).copied() {
            let then = &self.sorted.sessions[i];
            let name = text::escape(&then.dir);
            let changed = || Error::refused(format!("session {name} has changed meanwhile"));
            let now = Session::read(&then.path, &then.dir)
                .map_err(|e| Error::refused(format!("{}: {}", changed().message, e)))?;
            let same = now.header.session_id == then.header.session_id
                && now.status == then.status
                && now.header.merged_seq == then.header.merged_seq
                && (now.map_bytes, now.dat_bytes) == (then.map_bytes, then.dat_bytes);
            if !same {
                return Err(changed());
            }
            if wanted.contains(&text::hex(&now.header.session_id)) {
                return Err(Error::refused(format!(
                    "session {name} is needed by an interrupted restore"
                )));
            }
            if chain::is_live(&now, status.as_ref()) {
                return Err(Error::refused(format!("session {name} is being recorded")));
            }
            if step.into != Some(i) {
                if let [first, ..] = &notes::holds(&then.path)?[..] {
                    let hold = text::escape(first.name.as_bytes());
                    return Err(Error::refused(format!("session {name} is held now: {hold}")));
                }
            }
            drop(now.lock_alone()?);
        }
        Ok(())
    }
}

/// What an interruption leaves.
fn interrupted(mut e: Error, done: &Outcome) -> Error {
    e.message = format!(
        "{}; {} removed and {} merged so far",
        e.message,
        text::count(done.removed, "session"),
        done.merged
    );
    e.hint("nothing is half done; --apply goes on")
}

/// Refuses to take room that recording sessions need.
fn check_room(store: &Store, bytes: u64) -> Result<()> {
    let fs = rustix::fs::statvfs(store.path()).on("examine", store.path())?;
    let (total, free) =
        (fs.f_blocks.saturating_mul(fs.f_frsize), fs.f_bavail.saturating_mul(fs.f_frsize));
    // Below that the module breaks its sessions.
    let least = (total / 20).min(1 << 30).saturating_mul(2);
    if free < bytes.saturating_add(least) {
        return Err(Error::refused(format!(
            "no room to merge: {} needed beside {} for recording sessions, {} free",
            text::size(bytes),
            text::size(least),
            text::size(free)
        )));
    }
    Ok(())
}

/// Puts a session back from the trash. The caller holds no lock.
pub fn undelete(store: &Store, name: &[u8], hook: Steps<'_>) -> Result<Vec<String>> {
    let trash = Trash::open(store, false)?.ok_or_else(|| Error::not_found("the trash is empty"))?;
    let _alone = store.lock_alone()?;
    let path = store.path().join(std::ffi::OsStr::from_bytes(name));
    let was_there = path.exists();
    trash.recover(hook)?;
    // A cut attempt to put it back may have been finished just now.
    if !was_there && !name.is_empty() && path.exists() {
        return Ok(vec![text::escape(name)]);
    }
    trash.undelete(name, hook)
}

/// Deletes all that is in the trash, or (with `now_ns`) what is over its
/// time. Returns how many operations, and their bytes.
pub fn empty_trash(store: &Store, now_ns: Option<u64>, hook: Steps<'_>) -> Result<(u64, u64)> {
    let Some(trash) = Trash::open(store, false)? else { return Ok((0, 0)) };
    {
        let _alone = store.lock_alone()?;
        trash.recover(hook)?;
    }
    let (mut count, mut bytes) = (0, 0);
    for op in Trash::list(store)? {
        if now_ns.is_none_or(|n| op.until_ns() <= n) {
            bytes += op.bytes();
            count += 1;
            trash.delete(op, hook)?;
        }
    }
    Ok((count, bytes))
}
