// SPDX-License-Identifier: GPL-2.0

//! The second pass: limits of space, which let go what the rules would keep.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Context, Result};
use crate::policy::Policies;
use crate::retention::{Decision, Policy, Size};
use crate::session::Session;
use crate::store::Store;
use crate::text;
use crate::trash::Op;

/// What the second pass works on.
pub(super) struct Room<'a> {
    pub(super) sessions: &'a [Session],
    pub(super) bytes: &'a [u64],
    pub(super) chains: &'a [Range<usize>],
    /// Of each session that of the first one of its group.
    pub(super) units: Vec<usize>,
    pub(super) store: &'a Store,
}

/// What limits of space have changed beside the sessions.
pub(super) struct Limited {
    /// What goes from the trash.
    pub(super) expired: Vec<Op>,
    /// What stays there.
    pub(super) trashed: Vec<Op>,
    pub(super) notes: Vec<String>,
    /// What is removed has to be gone at once.
    pub(super) rushed: bool,
}

impl Room<'_> {
    fn spares(&self, decisions: &[Decision], wanted: &Range<usize>) -> Vec<Spare> {
        let mut out = Vec::new();
        // Of the others, too: a group is on several devices.
        for (device, chain) in self.chains.iter().enumerate() {
            for i in chain.clone() {
                // What goes already goes only if nothing older stays.
                if decisions[i].kept() {
                    let h = &self.sessions[i].header;
                    out.push(Spare {
                        index: i,
                        device,
                        unit: self.units[i],
                        seq: h.chain_seq,
                        start_ns: h.start_ns,
                        bytes: wanted.contains(&device).then_some(self.bytes[i]),
                        firm: decisions[i].firm(),
                    });
                }
            }
        }
        out
    }

    fn remove(&self, spares: &[Spare], excess: u64, why: &str, decisions: &mut [Decision]) -> u64 {
        let (gone, missing) = make_room(spares, excess);
        for i in gone {
            let kept: Vec<String> =
                decisions[i].reasons.drain(..).map(|r| format!("{} gives way", r.text)).collect();
            decisions[i].misses.splice(0..0, std::iter::once(why.to_owned()).chain(kept));
        }
        missing
    }

    fn kept_bytes(&self, decisions: &[Decision], group: Range<usize>) -> u64 {
        group.filter(|&i| decisions[i].kept()).map(|i| self.bytes[i]).sum()
    }

    /// Lets go what limits of space need.
    pub(super) fn make(
        &self,
        policies: &Policies,
        policy_of: &[Policy],
        decisions: &mut [Decision],
        limited: &mut Limited,
    ) -> Result<()> {
        let fs = rustix::fs::statvfs(self.store.path()).on("examine", self.store.path())?;
        let total = fs.f_blocks.saturating_mul(fs.f_frsize);
        for (device, policy) in policy_of.iter().enumerate() {
            if let Some(max) = policy.max_size {
                self.within(&(device..device + 1), max, total, "the device's", decisions, limited);
            }
        }
        let every = 0..self.chains.len();
        if let Some(max) = policies.max_size {
            self.within(&every, max, total, "all", decisions, limited);
        }
        if let Some(min) = policies.min_free {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            self.make_free(min, min.of(total).saturating_sub(free), &every, decisions, limited);
        }
        Ok(())
    }

    /// Until the sessions of some devices (`whose`) take no more than `max`.
    fn within(
        &self,
        devices: &Range<usize>,
        max: Size,
        total: u64,
        whose: &str,
        decisions: &mut [Decision],
        limited: &mut Limited,
    ) {
        let chains = self.chains[devices.clone()].iter().cloned();
        let used: u64 = chains.map(|c| self.kept_bytes(decisions, c)).sum();
        let excess = used.saturating_sub(max.of(total));
        if excess == 0 {
            return;
        }
        let spares = self.spares(decisions, devices);
        let why = format!("max-size: {whose} sessions take more than {max}");
        let missing = self.remove(&spares, excess, &why, decisions);
        if missing > 0 {
            limited.notes.push(format!(
                "{} over the max-size of {whose} sessions stay: what is left must not go",
                text::size(missing)
            ));
        }
    }

    /// Until `lack` bytes more are free. First goes what is to be deleted
    /// anyway, then the rest of the trash, then what the rules let go.
    fn make_free(
        &self,
        min: Size,
        mut lack: u64,
        every: &Range<usize>,
        decisions: &mut [Decision],
        limited: &mut Limited,
    ) {
        if lack == 0 {
            return;
        }
        lack = lack.saturating_sub(limited.expired.iter().map(Op::bytes).sum());
        while lack > 0 && !limited.trashed.is_empty() {
            let op = limited.trashed.remove(0);
            lack = lack.saturating_sub(op.bytes());
            limited.expired.push(op);
        }
        if lack == 0 {
            return;
        }
        let gone = (0..self.sessions.len()).filter(|&i| !decisions[i].kept());
        let leaving: u64 = gone.map(|i| self.bytes[i]).sum();
        let spares = self.spares(decisions, every);
        let why = format!("min-free: less than {min} of the store is free");
        let missing = self.remove(&spares, lack.saturating_sub(leaving), &why, decisions);
        if missing > 0 {
            limited.notes.push(format!(
                "{} for min-free are still missing: what is left must not go",
                text::size(missing)
            ));
        }
        limited.rushed = true;
        limited.notes.push("space is needed: what is removed does not stay in the trash".into());
    }
}

/// A session that a lack of space may remove.
#[derive(Debug, Clone, Copy)]
pub struct Spare {
    /// The caller's number of it.
    pub index: usize,
    /// The caller's number of its device.
    pub device: usize,
    /// Sessions of one unit go together or stay.
    pub unit: usize,
    /// Place in the chain.
    pub seq: u64,
    /// Start, ns since 1970.
    pub start_ns: u64,
    /// What its removal frees of what is wanted; if it does not count, `None`.
    pub bytes: Option<u64>,
    /// It must not go; nor then what is newer on its device.
    pub firm: bool,
}

/// Chooses what to remove so that `excess` bytes become free: the oldest
/// first, no more than needed. Only sessions go that no older one of their
/// device needs, and all of a unit or none. Returns the caller's numbers, and
/// what is still missing.
pub fn make_room(spares: &[Spare], excess: u64) -> (Vec<usize>, u64) {
    let mut chains: BTreeMap<usize, Vec<&Spare>> = BTreeMap::new();
    let mut members: BTreeMap<usize, usize> = BTreeMap::new();
    for s in spares {
        chains.entry(s.device).or_default().push(s);
        *members.entry(s.unit).or_default() += 1;
    }
    for chain in chains.values_mut() {
        // The oldest last, to be taken from the end.
        chain.sort_by_key(|s| std::cmp::Reverse(s.seq));
    }
    let (mut out, mut missing) = (Vec::new(), excess);
    while missing > 0 {
        let mut oldest: BTreeMap<usize, Vec<&Spare>> = BTreeMap::new();
        for s in chains.values().filter_map(|c| c.last()) {
            oldest.entry(s.unit).or_default().push(s);
        }
        let ready = oldest.into_iter().filter(|(unit, all)| {
            Some(&all.len()) == members.get(unit)
                && all.iter().all(|s| !s.firm)
                && all.iter().any(|s| s.bytes.is_some())
        });
        let next = ready.min_by_key(|(_, all)| all.iter().map(|s| (s.start_ns, s.seq)).min());
        let Some((_, all)) = next else { break };
        for s in all {
            chains.entry(s.device).or_default().pop();
            out.push(s.index);
            missing = missing.saturating_sub(s.bytes.unwrap_or(0));
        }
    }
    (out, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn room_is_made_oldest_first_and_no_more(
            raw in prop::collection::vec((0usize..3, 0u64..1000, 1u64..50, any::<u8>()), 0..20),
            excess in 0u64..400)
        {
            let mut raw = raw;
            raw.sort_by_key(|r| r.1);
            // Some are of one unit with one of another device.
            let mut spares: Vec<Spare> = Vec::new();
            for (index, &(device, start_ns, bytes, bits)) in raw.iter().enumerate() {
                let other = spares.last().filter(|s| s.device != device && s.unit == s.index && bits & 0x30 == 0);
                let unit = other.map_or(index, |s| s.unit);
                let bytes = (bits & 0xc0 != 0).then_some(bytes);
                spares.push(Spare { index, device, unit, seq: index as u64, start_ns, bytes, firm: bits & 7 == 0 });
            }
            let (gone, missing) = make_room(&spares, excess);
            let is_gone = |s: &Spare| gone.contains(&s.index);
            let freed = |of: &[usize]| of.iter().filter_map(|&i| spares[i].bytes).sum::<u64>();
            prop_assert_eq!(missing, excess.saturating_sub(freed(&gone)));
            // The last unit was needed.
            if let Some(&last) = gone.last() {
                let before: Vec<usize> = gone.iter().copied().filter(|&i| spares[i].unit != spares[last].unit).collect();
                prop_assert!(freed(&before) < excess);
            }
            for s in &spares {
                prop_assert!(!(is_gone(s) && s.firm));
                for other in spares.iter().filter(|o| o.unit == s.unit) {
                    prop_assert_eq!(is_gone(s), is_gone(other), "a unit is torn");
                }
                for older in spares.iter().filter(|o| o.device == s.device && o.seq < s.seq) {
                    prop_assert!(!is_gone(s) || is_gone(older), "an older one needs it");
                }
            }
            if missing > 0 {
                // Nothing that could go is left.
                for unit in 0..spares.len() {
                    let all: Vec<&Spare> = spares.iter().filter(|s| s.unit == unit && !is_gone(s)).collect();
                    let stuck = |s: &&Spare| s.firm || spares.iter().any(|o| o.device == s.device && o.seq < s.seq && !is_gone(o));
                    let counts = all.iter().any(|s| s.bytes.is_some());
                    prop_assert!(!counts || all.iter().any(stuck));
                }
            }
        }
    }
}
