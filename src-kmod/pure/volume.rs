// SPDX-License-Identifier: GPL-2.0

//! What a registered device is to the module: where it is, who has it, what
//! records it, and what is known of the time since its last session.
//!
//! [`State`] is all of it, under one lock. The hook takes no lock: it reads
//! the table of places, a volume's session and [`State::meets`], which whoever
//! changes the state publishes with it, and leaves notes ([`WROTE`] and the
//! others), which whoever changes the state next takes in first.
//!
//! The promise that all of this keeps is about links, the times between two
//! sessions: *while a session records, every write to its device that passes
//! the hook meets it; every other write marks the link before it goes on.* The
//! tests try it in all orders of who settles, mounts, writes, restores,
//! deactivates and pulls the disk.
//!
//! Two numbers tell disks apart. The sequence number of a medium (`diskseq`) is
//! never given twice, so an idle volume is known by it and nothing has to be
//! kept. While a session of a mounted device records, our own open file keeps
//! the disk, so its address is enough, whatever becomes of the medium.

use super::plan::Sectors;

/// A medium in a disk; to be compared only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskId {
    /// The disk's address. Once nobody keeps the disk it may be another's.
    pub address: usize,
    /// The medium's sequence number, which no other ever had or will have.
    pub seq: u64,
}

/// Where a registered device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The disk, and the medium in it.
    pub id: DiskId,
    /// The sectors there; of a whole disk all that there could be, since disks
    /// grow, and some have no size at first.
    pub sectors: Sectors,
    /// The device number; an image's is its loop device's.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// Bytes of a logical block.
    pub logical_block_size: u32,
    /// It is a partition of the disk.
    pub partition: bool,
}

impl Place {
    /// All of a disk.
    pub const WHOLE: Sectors = Sectors { start: 0, end: u64::MAX };

    /// Whether both are the same sectors of the same medium.
    pub fn is_same(&self, other: &Self) -> bool {
        self.id == other.id && self.sectors == other.sectors
    }

    /// Whether it has sectors of that range of that medium.
    pub fn overlaps(&self, id: DiskId, sectors: &Sectors) -> bool {
        self.id == id && self.sectors.intersect(sectors).is_some()
    }

    /// Its sectors on a disk that has `capacity` of them.
    pub fn extent(&self, capacity: u64) -> Sectors {
        if self.partition {
            self.sectors
        } else {
            Sectors { start: 0, end: capacity }
        }
    }
}

/// What opened a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum By {
    /// A filesystem has the device, and our own open file keeps its disk.
    Claim,
    /// A write while nobody had claimed it.
    RawWrite,
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// None runs, or the hook does not know of it yet.
    Idle,
    /// The hook leads writes to it.
    Recording(By),
    /// It no longer does; the session comes to its end.
    Ending,
}

/// What is known of the device since its last session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// All writes since then passed the hook, and there were none. With how many sectors more
    /// (or fewer) the disk's statistics told of than had passed the hook at that
    /// time, if that could be told.
    Watched(Option<i64>),
    /// Nobody vouches for it.
    Unwatched,
    /// There were writes.
    Written,
}

/// Who restores the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Restore {
    /// The link before it began.
    before: Link,
    /// It has written itself.
    wrote: bool,
    /// Others have.
    others: bool,
}

/// Whether the device is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Registration {
    Registered,
    /// Deactivated while it was claimed: until the last release.
    Retired,
    /// Whoever has just found it must leave it alone.
    Gone,
}

/// What a write meets while no session records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Meets {
    /// Nothing: it leaves the note [`WROTE`] and goes on.
    Open = 0,
    /// It waits for a session that is started for it.
    Gate = 1,
    /// A restore: it leaves [`RESTORED`] if it is that one's own, else [`WROTE`].
    Restore = 2,
}

impl Meets {
    /// The other way round.
    pub fn from_number(n: u32) -> Self {
        match n {
            1 => Self::Gate,
            2 => Self::Restore,
            _ => Self::Open,
        }
    }
}

/// A note of the hook: a write went by outside of sessions.
pub const WROTE: u32 = 1;
/// A note of the hook: the restore has written.
pub const RESTORED: u32 = 2;
/// A note of the hook: while a raw session recorded, a write came for another medium.
pub const ANOTHER_MEDIUM: u32 = 4;

/// Why something cannot be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// What a claim means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// It is the first: a session has to be started.
    First,
    /// There are others.
    Another,
    /// The device is registered no more.
    Gone,
}

/// What a registered device is to the module.
///
/// # Invariants
///
/// * `phase` is `Idle` where there is no `place`, and `place` does not change otherwise.
/// * There is a `restore` only while `phase` is `Idle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    place: Option<Place>,
    phase: Phase,
    claims: u64,
    link: Link,
    restore: Option<Restore>,
    registration: Registration,
    /// Whether raw sessions are wanted at all.
    raw: bool,
    unprotected: bool,
    lapsed_ns: Option<u64>,
    another_medium: bool,
}

impl State {
    /// A registration without a session. `raw`: writes that nobody's claim covers
    /// start sessions, too.
    pub fn new(place: Option<Place>, raw: bool) -> Self {
        Self {
            place,
            phase: Phase::Idle,
            claims: 0,
            link: Link::Unwatched,
            restore: None,
            registration: Registration::Registered,
            raw,
            unprotected: false,
            lapsed_ns: None,
            another_medium: false,
        }
    }

    // ---- Questions ----

    /// Where it is, if it is there.
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    /// Whether a filesystem holds it.
    pub fn is_claimed(&self) -> bool {
        self.claims > 0
    }

    /// How many do.
    pub fn claims(&self) -> u64 {
        self.claims
    }

    /// Whether a claim of it counts: not once it is deactivated, but for those
    /// that join a session which then runs on.
    pub fn takes_claims(&self) -> bool {
        self.registration == Registration::Registered || self.is_claimed()
    }

    /// Whether it is registered no more.
    pub fn is_gone(&self) -> bool {
        self.registration == Registration::Gone
    }

    /// Whether it was deactivated and its last session runs on.
    pub fn is_retired(&self) -> bool {
        self.registration == Registration::Retired
    }

    /// How far its session is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether a raw session records it.
    pub fn is_raw(&self) -> bool {
        self.phase == Phase::Recording(By::RawWrite)
    }

    /// Whether a restore is under way.
    pub fn is_restoring(&self) -> bool {
        self.restore.is_some()
    }

    /// Whether it was mounted when it was registered and has not been unmounted.
    pub fn is_unprotected(&self) -> bool {
        self.unprotected
    }

    /// Since when (ns) writes pass because no session could be started.
    pub fn lapsed_ns(&self) -> Option<u64> {
        self.lapsed_ns
    }

    /// Whether writes have been seen since the last session.
    pub fn is_written(&self) -> bool {
        self.link == Link::Written
    }

    /// Whether something was written past a session that ought to have been started for it.
    pub fn has_escaped(&self) -> bool {
        self.raw
            && self.link == Link::Written
            && !self.unprotected
            && self.restore.is_none()
            && self.registration == Registration::Registered
    }

    /// Whether, while its raw session recorded, its disk had another medium or was gone.
    pub fn has_another_medium(&self) -> bool {
        self.another_medium
    }

    /// Whether a write outside of sessions starts one.
    pub fn records_raw(&self) -> bool {
        self.raw
            && self.lapsed_ns.is_none()
            && !self.unprotected
            && self.restore.is_none()
            && self.registration == Registration::Registered
    }

    /// What a write meets while no session records.
    pub fn meets(&self) -> Meets {
        if self.restore.is_some() {
            Meets::Restore
        } else if self.records_raw() {
            Meets::Gate
        } else {
            Meets::Open
        }
    }

    // ---- What the hook has noted ----

    /// Takes its notes in. To be done before anything else.
    pub fn take_notes(&mut self, notes: u32) {
        self.another_medium |= notes & ANOTHER_MEDIUM != 0 && self.phase != Phase::Idle;
        if let Some(restore) = &mut self.restore {
            restore.wrote |= notes & RESTORED != 0;
            restore.others |= notes & WROTE != 0;
        } else if notes & (WROTE | RESTORED) != 0 {
            // What came too late to be the restore's is not its own.
            self.link = Link::Written;
        }
    }

    // ---- Places ----

    /// It is there from now on, or nowhere. To be published with it. A restore ends with it: it
    /// was of another medium.
    ///
    /// # Errors
    ///
    /// [`Busy`] while a session records there.
    pub fn bind(&mut self, place: Option<Place>) -> Result<(), Busy> {
        if self.phase != Phase::Idle {
            return Err(Busy);
        }
        if self.restore.is_some() && place != self.place {
            // It was another medium that was restored.
            self.abandon_restore();
            self.lose_sight();
        }
        self.place = place;
        Ok(())
    }

    /// For a while nobody saw what became of it.
    pub fn lose_sight(&mut self) {
        if let Some(restore) = &mut self.restore {
            restore.before = after_lost_sight(restore.before);
        }
        self.link = after_lost_sight(self.link);
    }

    /// A filesystem has it of which no claim was seen, or no longer.
    pub fn set_unprotected(&mut self, unprotected: bool) {
        self.unprotected = unprotected;
    }

    // ---- Registration ----

    /// It is registered once more.
    ///
    /// # Errors
    ///
    /// [`Busy`] if it has been forgotten already: a new one is needed.
    pub fn activate(&mut self) -> Result<(), Busy> {
        if self.is_gone() {
            return Err(Busy);
        }
        self.registration = Registration::Registered;
        Ok(())
    }

    /// It is registered no more, as soon as nobody claims it. True: that is now.
    #[must_use]
    pub fn deactivate(&mut self) -> bool {
        if !self.is_gone() && self.is_claimed() {
            self.registration = Registration::Retired;
            return false;
        }
        true
    }

    /// It is forgotten.
    pub fn remove(&mut self) {
        self.registration = Registration::Gone;
    }

    // ---- Claims and sessions ----

    /// A filesystem takes it.
    #[must_use]
    pub fn claim(&mut self) -> Claimed {
        if self.is_gone() {
            return Claimed::Gone;
        }
        self.claims = self.claims.saturating_add(1);
        if self.claims == 1 {
            self.unprotected = false;
            Claimed::First
        } else {
            Claimed::Another
        }
    }

    /// A filesystem gives it back. True: it was the last one.
    #[must_use]
    pub fn release(&mut self) -> bool {
        self.claims = self.claims.saturating_sub(1);
        self.claims == 0
    }

    /// The hook leads writes to a session from now on.
    ///
    /// # Errors
    ///
    /// [`Busy`] if it is nowhere, or another session has not come to its end.
    pub fn arm(&mut self, by: By) -> Result<(), Busy> {
        if self.place.is_none() || self.phase != Phase::Idle {
            return Err(Busy);
        }
        // INVARIANT: A restore ends with it. What that wrote is in the link.
        self.abandon_restore();
        self.phase = Phase::Recording(by);
        self.another_medium = false;
        self.lapsed_ns = None;
        Ok(())
    }

    /// No write is under way any more that the hook let pass before [`State::arm`].
    /// Returns what is known of the time before the session.
    #[must_use]
    pub fn begin(&mut self) -> Link {
        // What its end finds out decides of the next one.
        core::mem::replace(&mut self.link, Link::Unwatched)
    }

    /// The hook leads no more writes to the session.
    pub fn disarm(&mut self) {
        if self.phase != Phase::Idle {
            self.phase = Phase::Ending;
        }
    }

    /// The session has ended, and the chain with it: `link` is what is known from now on.
    pub fn end(&mut self, link: Link) {
        self.phase = Phase::Idle;
        self.another_medium = false;
        // Some may have written past its end.
        if self.link != Link::Written {
            self.link = link;
        }
    }

    /// No session could be started: for a while nobody saves what is written.
    pub fn lapse(&mut self, now_ns: u64) {
        self.lapsed_ns = Some(now_ns);
        match &mut self.restore {
            Some(restore) => restore.before = Link::Written,
            None => self.link = Link::Written,
        }
    }

    /// A write may start one again, unless it has lapsed anew since `lapsed_ns`.
    pub fn resume(&mut self, lapsed_ns: u64) {
        if self.lapsed_ns == Some(lapsed_ns) {
            self.lapsed_ns = None;
        }
    }

    // ---- Restores ----

    /// A restore begins: writes of its task are its own.
    ///
    /// # Errors
    ///
    /// [`Busy`] while somebody has it, a session records it, or another restore
    /// is under way.
    pub fn begin_restore(&mut self) -> Result<(), Busy> {
        if self.is_claimed() || self.phase != Phase::Idle || self.restore.is_some() {
            return Err(Busy);
        }
        self.restore = Some(Restore { before: self.link, wrote: false, others: false });
        self.link = Link::Unwatched;
        Ok(())
    }

    /// What was known when the restore began; of what came since, only writes.
    pub fn before_restore(&self) -> Link {
        match &self.restore {
            Some(Restore { others: true, .. }) => Link::Written,
            Some(restore) => restore.before,
            None => self.link,
        }
    }

    /// Whether others have written since the restore began.
    pub fn others_wrote(&self) -> bool {
        self.restore.is_some_and(|r| r.others)
    }

    /// Whether anybody has.
    pub fn anybody_wrote(&self) -> bool {
        self.restore.is_some_and(|r| r.others || r.wrote)
    }

    /// The restore is complete, and the chain says so. True: but others have written, too.
    #[must_use]
    pub fn end_restore(&mut self, witness: Option<i64>) -> bool {
        let Some(restore) = self.restore.take() else { return false };
        self.link = if restore.others { Link::Written } else { Link::Watched(witness) };
        restore.others
    }

    /// It ends before its end: what it has written is not what was there. True: others have
    /// written, too.
    pub fn abandon_restore(&mut self) -> bool {
        let Some(restore) = self.restore.take() else { return false };
        let written = restore.wrote || restore.others;
        self.link = if written { Link::Written } else { restore.before };
        restore.others
    }
}

fn after_lost_sight(link: Link) -> Link {
    match link {
        Link::Written => Link::Written,
        _ => Link::Unwatched,
    }
}

/// What is known of a link: of what was seen until `link` was asked for, and of the
/// disk's statistics now, which tell of `now` sectors more than passed the hook.
/// More than before: somebody writes past the hook. Fewer, or untold: nobody can say.
pub fn judge(link: Link, now: Option<i64>) -> Link {
    match (link, now) {
        (Link::Watched(Some(before)), Some(now)) if now > before => Link::Written,
        (Link::Watched(Some(before)), Some(now)) if now == before => link,
        (Link::Watched(_), _) => Link::Unwatched,
        _ => link,
    }
}

/// Sectors that were written past the hook between two looks at the statistics; `None`: it
/// cannot be told.
pub fn unseen(before: Option<i64>, now: Option<i64>) -> Option<u64> {
    u64::try_from(now?.checked_sub(before?)?).ok()
}

#[cfg(test)]
mod tests;
