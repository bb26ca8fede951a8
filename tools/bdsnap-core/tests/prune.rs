// SPDX-License-Identifier: GPL-2.0

//! Pruning, whatever the chain, and wherever it is cut: what is left restores
//! to what it did before.
#![allow(missing_docs)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use bdsnap_abi::format::{
    Durability, Gap, Kind as SessionKind, State, Status, Version, LATE_MEMBER, RO_COMPAT_DIGEST,
    TAINT_UNSEEN,
};
use bdsnap_core::chain::Selector;
use bdsnap_core::device::{Purpose, Target};
use bdsnap_core::policy::Policies;
use bdsnap_core::progress::{Silent, Stop};
use bdsnap_core::prune::{self, Action, Clock, Outcome, Prepared, Request};
use bdsnap_core::restore::{self, Accept};
use bdsnap_core::store::Item;
use bdsnap_core::test_support::{flip, pattern, Lab, Options, EPOCH_NS};
use bdsnap_core::trash::Trash;
use bdsnap_core::{notes, Error, Kind, Result};
use jiff::tz::TimeZone;
use proptest::prelude::*;

const CHUNKS: usize = 48;
/// Not whole: the last chunk is short.
const BYTES: usize = CHUNKS * 4096 - 1536;
const HOUR: u64 = 3_600_000_000_000;
const DAY: u64 = 24 * HOUR;

fn clock(now_ns: u64) -> Clock {
    Clock { now_ns, boot_ns: 0, boot_id: [9; 16] }
}

fn later() -> Clock {
    clock(EPOCH_NS + 30 * DAY)
}

fn policies(rules: &[(&str, &str)]) -> Policies {
    let mut p = Policies::default();
    for (key, value) in rules {
        p.give(key, value).unwrap();
    }
    p
}

fn prepare<'a>(lab: &'a Lab, policies: &'a Policies, clock: Clock) -> Prepared<'a> {
    let zone = TimeZone::UTC;
    let store = &lab.store;
    prune::prepare(
        &Request { store, policies, clock, zone, allow_empty: false, trust_clock: false },
        None,
    )
    .unwrap()
}

fn apply(lab: &Lab, policies: &Policies) -> Outcome {
    prepare(lab, policies, later()).apply(None, &Silent, &Stop::never(), &|_| Ok(())).unwrap()
}

/// What going back to a session gives, and what a restore says of it.
#[derive(Debug, PartialEq, Eq)]
struct Past {
    image: Vec<u8>,
    partial: bool,
    gaps: bool,
}

fn past(lab: &Lab, dir: &[u8], out: &Path) -> Past {
    let target = Target::find(&lab.image).unwrap();
    let request = restore::Request {
        store: &lab.store,
        target: &target,
        selector: Selector::Name(dir.to_vec()),
        accept: Accept { gap: true, loss: true, alone: true },
        purpose: Purpose::Read,
        to_image: true,
        undo: false,
    };
    let prepared = restore::prepare(&request, &|| Ok(None), &Silent, &Stop::never()).unwrap();
    prepared.compose(out, true, &Silent, &Stop::never()).unwrap();
    let image = std::fs::read(out).unwrap();
    let gaps = prepared.plan.devices[0].chain.iter().any(|s| s.gap_before.is_some());
    Past { image, partial: prepared.plan.partial, gaps }
}

/// Of all sessions that are there.
fn pasts(lab: &Lab, out: &Path) -> BTreeMap<Vec<u8>, Past> {
    let dirs: Vec<Vec<u8>> = lab
        .store
        .items()
        .unwrap()
        .iter()
        .map(|i| match i {
            Item::Session(s) => s.dir.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    dirs.into_iter()
        .map(|d| {
            let p = past(lab, &d, out);
            (d, p)
        })
        .collect()
}

#[derive(Debug, Clone)]
struct Plan {
    /// Chunk, length in bytes.
    writes: Vec<(usize, usize)>,
    state: u8,
    gap: u8,
    kind: u8,
    wide: bool,
    zeros: bool,
    held: bool,
}

fn arb_plan() -> impl Strategy<Value = Plan> {
    (
        prop::collection::vec((0..CHUNKS, 1usize..20_000), 0..4),
        0u8..12,
        0u8..10,
        0u8..8,
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.4),
    )
        .prop_map(|(writes, state, gap, kind, wide, zeros, held)| Plan {
            writes,
            state,
            gap,
            kind,
            wide,
            zeros,
            held,
        })
}

/// Records sessions as planned.
fn record(lab: &mut Lab, plans: &[Plan]) {
    for (i, p) in plans.iter().enumerate() {
        let gap = match p.gap {
            _ if i == 0 => Gap::None,
            0 => Gap::Written,
            1 => Gap::Unknown,
            _ => Gap::None,
        };
        if gap == Gap::Written {
            lab.write(4096 * (i % CHUNKS), &[0xfe; 100]);
        }
        let options = Options {
            kind: match p.kind {
                0 => SessionKind::Undo,
                1 => SessionKind::Raw,
                _ => SessionKind::Mount,
            },
            durability: if p.state == 1 { Durability::Async } else { Durability::Strict },
            gap,
            chunk: if p.wide { 8192 } else { 4096 },
            zeros: p.zeros,
            ..Options::default()
        };
        lab.version = if (i + plans.len()) % 3 == 0 { Version::Two } else { Version::One };
        let mut r = lab.record(&options);
        for (n, &(chunk, len)) in p.writes.iter().enumerate() {
            let start = chunk * 4096 + n * 7;
            let len = len.min(BYTES.saturating_sub(start));
            let data = if p.zeros { vec![0; len] } else { pattern(len, (i * 10 + n) as u64 + 2) };
            r.write(start, &data);
            if n == 0 {
                r.commit();
                if p.state == 4 {
                    r.taint();
                }
            }
        }
        let dir = match p.state {
            0 => r.end(State::Broken),
            1 | 2 | 4 => r.cut(),
            3 => r.end(State::Tainted),
            _ => r.end(State::Closed),
        };
        if p.held {
            std::fs::write(
                lab.path(&dir).join(notes::HOLDS_NAME),
                r#"{"schema_version":1,"holds":[{"name":"x","since":"2026-01-01T00:00:00Z"}]}"#,
            )
            .unwrap();
        }
    }
}

/// Stops the work at its n-th step.
fn cut_at(n: usize) -> impl Fn(&'static str) -> Result<()> {
    let left = Cell::new(n);
    move |step| {
        if left.get() == 0 {
            return Err(Error::new(Kind::Incomplete, format!("cut before: {step}")));
        }
        left.set(left.get() - 1);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_restores_as_before(
        plans in prop::collection::vec(arb_plan(), 1..7),
        keep_last in 0u32..3,
        trash in any::<bool>(),
        cut in 0usize..40,
        back in any::<prop::sample::Index>(),
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = Lab::new(tmp.path(), BYTES);
        record(&mut lab, &plans);
        let out = tmp.path().join("out");
        let before = pasts(&lab, &out);
        let p = policies(&[
            ("keep_last", &keep_last.to_string()),
            ("min_age", "0"),
            ("trash", if trash { "3d" } else { "0" }),
        ]);
        let same = |when: &str| {
            for (dir, past) in pasts(&lab, &out) {
                assert_eq!(&past, &before[&dir], "{when}: {}", String::from_utf8_lossy(&dir));
            }
        };

        // Cut somewhere: what is there is as it was.
        let first = prepare(&lab, &p, later());
        let plan = first.plan.clone();
        let _ = first.apply(None, &Silent, &Stop::never(), &cut_at(cut));
        same("after a cut");
        // The rest of the work, and it is done.
        let done = apply(&lab, &p);
        prop_assert_eq!(&done.failures, &Vec::<String>::new());
        same("after all");
        let left = pasts(&lab, &out);
        for line in &plan.sessions {
            let there = left.contains_key(line.name.as_bytes());
            prop_assert_eq!(there, line.action == Action::Keep, "{:?}", line);
            prop_assert_eq!(line.action == Action::Keep, !line.reasons.is_empty());
        }
        prop_assert!(prepare(&lab, &p, later()).is_empty(), "there is nothing more to do");
        // All of it verifies.
        for item in lab.store.all_items().unwrap() {
            let Item::Session(s) = item else { panic!("{item:?}") };
            s.check(false, &Silent, &Stop::never()).unwrap();
        }

        // And back again, cut as well.
        let gone: Vec<Vec<u8>> = Trash::list(&lab.store).unwrap().iter()
            .flat_map(|o| o.sessions().map(|m| m.dir()).collect::<Vec<_>>()).collect();
        prop_assert_eq!(gone.is_empty(), !trash || plan.removed + plan.merged == 0);
        if !gone.is_empty() {
            let name = back.get(&gone);
            let _ = prune::undelete(&lab.store, name, &cut_at(cut % 7));
            same("after a cut undelete");
            if !lab.path(std::str::from_utf8(name).unwrap()).exists() {
                match prune::undelete(&lab.store, name, &|_| Ok(())) {
                    Ok(names) => prop_assert!(names.contains(&String::from_utf8(name.clone()).unwrap())),
                    Err(e) => prop_assert_eq!(e.kind, Kind::Refused),
                }
            }
            same("after undelete");
            prune::empty_trash(&lab.store, None, &|_| Ok(())).unwrap();
            prop_assert!(Trash::list(&lab.store).unwrap().is_empty());
            same("after the trash was emptied");
        }
    }
}

#[test]
fn merges_of_what_was_tainted_and_then_cut() {
    for last_is_cut in [false, true] {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("out");
        let mut lab = Lab::new(tmp.path(), BYTES);
        let mut dirs = Vec::new();
        for i in 0..4 {
            let mut r = lab.record(&Options::default());
            r.write(i * 2 * 4096, &pattern(3 * 4096, i as u64 + 9));
            dirs.push(match (i, last_is_cut) {
                (1, false) | (2, true) => {
                    r.taint();
                    r.write((20 + i) * 4096, &pattern(4096, 33));
                    r.cut()
                }
                _ => r.end(State::Closed),
            });
        }
        hold(&lab, &dirs[0]);
        let before = pasts(&lab, &out);
        assert!(before[dirs[0].as_bytes()].partial && !before[dirs[3].as_bytes()].partial);
        let outcome = apply(&lab, &policies(&[("keep_last", "1"), ("trash", "0")]));
        assert_eq!((outcome.merged, outcome.removed), (2, 0));
        let Some(Item::Session(s)) = lab.store.item(dirs[0].as_bytes()) else { panic!() };
        assert_eq!(s.view(false), bdsnap_core::session::View::Tainted);
        assert!(s.has_ended(), "what was merged is whole, or is found out");
        s.check(false, &Silent, &Stop::never()).unwrap();
        let after = pasts(&lab, &out);
        assert_eq!(after.len(), 2);
        for dir in [&dirs[0], &dirs[3]] {
            assert_eq!(after[dir.as_bytes()], before[dir.as_bytes()]);
        }
        let map = s.path.join("blocks.map");
        let bytes = std::fs::read(&map).unwrap();
        std::fs::write(&map, &bytes[..bytes.len() - 64]).unwrap();
        let Some(Item::Session(s)) = lab.store.item(dirs[0].as_bytes()) else { panic!() };
        assert!(s.check(false, &Silent, &Stop::never()).is_err(), "not cut unseen");
    }
}

/// Sets something in the newest status slot of a session.
fn set_status(lab: &Lab, dir: &str, set: impl FnOnce(&mut Status)) {
    let Some(Item::Session(s)) = lab.store.item(dir.as_bytes()) else { panic!() };
    let path = s.path.join("blocks.map");
    let mut map = std::fs::read(&path).unwrap();
    let (version, mut status) = (s.header.version, s.status);
    set(&mut status);
    let layout = version.layout();
    let at = layout.slots[status.slot()] as usize;
    status.encode(version, &mut map[at..at + layout.slot_len]);
    std::fs::write(&path, map).unwrap();
}

#[test]
fn a_merge_keeps_what_became_of_each() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let dirs = four(&mut lab);
    set_status(&lab, &dirs[1], |s| s.more.late_flags = LATE_MEMBER);
    set_status(&lab, &dirs[2], |s| {
        (s.more.taint_why, s.more.tainted_ns) = (TAINT_UNSEEN, 5);
        s.state = State::Tainted;
    });
    hold(&lab, &dirs[0]);
    let Some(Item::Session(before)) = lab.store.item(dirs[0].as_bytes()) else { panic!() };
    apply(&lab, &policies(&[("keep_last", "1"), ("trash", "0")]));
    let Some(Item::Session(s)) = lab.store.item(dirs[0].as_bytes()) else { panic!() };
    assert!(s.is_group_incomplete());
    let more = s.status.more;
    assert_eq!((more.late_flags, more.taint_why, more.tainted_ns), (LATE_MEMBER, TAINT_UNSEEN, 5));
    assert_eq!(more.lossy_below, 1);
    assert_ne!(s.header.data_id, before.header.data_id, "blocks.dat is another");
}

/// What later code has marked so is neither merged nor removed.
#[test]
fn what_must_not_be_changed_stays() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let dirs = four(&mut lab);
    for dir in &dirs[..2] {
        set_status(&lab, dir, |s| s.more.late.ro_compat = RO_COMPAT_DIGEST);
    }
    apply(&lab, &policies(&[("keep_last", "1"), ("trash", "0")]));
    let left: Vec<_> = lab.store.items().unwrap().iter().map(|i| i.dir().to_vec()).collect();
    for dir in &dirs[..2] {
        assert!(left.contains(&dir.as_bytes().to_vec()), "{dir}");
    }
}

/// Four sessions that overlap; the names.
fn four(lab: &mut Lab) -> [String; 4] {
    [0usize, 2, 4, 6].map(|first| {
        let mut r = lab.record(&Options::default());
        r.write(first * 4096, &pattern(3 * 4096, first as u64 + 9));
        r.end(State::Closed)
    })
}

fn hold(lab: &Lab, dir: &str) {
    let Some(Item::Session(s)) = lab.store.item(dir.as_bytes()) else { panic!() };
    assert!(notes::hold(&lab.store, &s, "upgrade").unwrap());
    assert!(!notes::hold(&lab.store, &s, "upgrade").unwrap());
    assert!(notes::hold(&lab.store, &s, "a\nb").is_err());
}

#[test]
fn inner_sessions_are_merged_and_can_come_back() {
    let tmp = tempfile::tempdir().unwrap();
    let out = tmp.path().join("out");
    let mut lab = Lab::new(tmp.path(), BYTES);
    let [a, b, c, d] = four(&mut lab);
    hold(&lab, &a);
    let before = pasts(&lab, &out);
    let p = policies(&[("keep_last", "1")]);
    let prepared = prepare(&lab, &p, later());
    let actions: Vec<_> =
        prepared.plan.sessions.iter().map(|l| (l.action, l.into.clone())).collect();
    assert_eq!(
        actions,
        [
            (Action::Keep, None),
            (Action::Merge, Some(a.clone())),
            (Action::Merge, Some(a.clone())),
            (Action::Keep, None)
        ]
    );
    assert!(!prepared.plan.exact);
    let outcome = apply(&lab, &p);
    assert_eq!((outcome.merged, outcome.removed), (2, 0));
    let Some(Item::Session(s)) = lab.store.item(a.as_bytes()) else { panic!() };
    // 0..3, 3..5 and 5..7 chunks of the three.
    assert_eq!(s.status.dat_bytes, 7 * 4096);
    assert_eq!(s.header.merged_seq, 3);
    assert_eq!(notes::holds(&s.path).unwrap()[0].name, "upgrade");
    let left = pasts(&lab, &out);
    assert_eq!(left.len(), 2);
    assert_eq!(left[a.as_bytes()], before[a.as_bytes()]);
    assert!(!left[a.as_bytes()].gaps);
    assert_eq!(left[d.as_bytes()], before[d.as_bytes()]);

    let names = prune::undelete(&lab.store, c.as_bytes(), &|_| Ok(())).unwrap();
    assert_eq!(names, [b, c]);
    assert_eq!(pasts(&lab, &out), before);
    assert!(Trash::list(&lab.store).unwrap().is_empty());
}

#[test]
fn the_oldest_are_removed_and_come_back_without_a_gap() {
    let tmp = tempfile::tempdir().unwrap();
    let out = tmp.path().join("out");
    let mut lab = Lab::new(tmp.path(), BYTES);
    let [a, b, c, _] = four(&mut lab);
    let before = pasts(&lab, &out);
    let p = policies(&[("keep_last", "1")]);
    let prepared = prepare(&lab, &p, later());
    assert!(prepared.plan.exact);
    let sizes: u64 = prepared.plan.sessions[..3].iter().map(|l| l.bytes).sum();
    assert_eq!(prepared.plan.freed_bytes, sizes);
    assert_eq!(apply(&lab, &p).removed, 3);
    let names = prune::undelete(&lab.store, b.as_bytes(), &|_| Ok(())).unwrap();
    assert_eq!(names, [b, c]);
    assert_eq!(
        prune::undelete(&lab.store, b"nothing", &|_| Ok(())).unwrap_err().kind,
        Kind::NotFound
    );
    prune::undelete(&lab.store, a.as_bytes(), &|_| Ok(())).unwrap();
    assert_eq!(pasts(&lab, &out), before);

    // Their time in the trash ends.
    apply(&lab, &p);
    let over = prepare(&lab, &p, clock(later().now_ns + 4 * DAY));
    assert_eq!(over.plan.expired.len(), 1);
    assert!(over.plan.expired_bytes >= sizes);
    let outcome = over.apply(None, &Silent, &Stop::never(), &|_| Ok(())).unwrap();
    assert_eq!(outcome.emptied, 1);
    assert!(Trash::list(&lab.store).unwrap().is_empty());
}

/// A file system on two devices, a session each, three times; names by device.
fn twice_three(a: &mut Lab) -> (Lab, [[String; 2]; 3]) {
    let mut b = a.beside("b.img", BYTES);
    let names = [1u8, 2, 3].map(|g| {
        let options = Options { group: [0xa0 + g; 16], ..Options::default() };
        let one = |lab: &mut Lab| {
            let mut r = lab.record(&options);
            r.write(usize::from(g) * 4096, &pattern(4096, g.into()));
            r.end(State::Closed)
        };
        [one(a), one(&mut b)]
    });
    (b, names)
}

#[test]
fn a_file_system_on_several_devices_goes_together_or_stays() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let (_b, [first, second, third]) = twice_three(&mut lab);
    let p = policies(&[("keep_last", "1"), ("min_age", "0")]);
    let there = |lab: &Lab| -> Vec<bool> {
        [&first, &second, &third].into_iter().flatten().map(|n| lab.path(n).exists()).collect()
    };

    // One of two is held: the other stays as well, and what both need.
    hold(&lab, &second[0]);
    let prepared = prepare(&lab, &p, later());
    let of = |name: &str| prepared.plan.sessions.iter().find(|l| l.name == name).unwrap();
    assert_eq!(of(&second[1]).reasons[0].rule, "group");
    assert_eq!((of(&first[0]).action, of(&first[1]).action), (Action::Remove, Action::Remove));
    assert_eq!(apply(&lab, &p).failures, Vec::<String>::new());
    assert_eq!(there(&lab), [false, false, true, true, true, true]);
    // And back together.
    prune::undelete(&lab.store, first[1].as_bytes(), &|_| Ok(())).unwrap();
    assert_eq!(there(&lab), [true; 6]);

    // The oldest is held: what is between cannot be merged, on neither.
    std::fs::remove_file(lab.path(&second[0]).join(notes::HOLDS_NAME)).unwrap();
    hold(&lab, &first[0]);
    let prepared = prepare(&lab, &p, later());
    assert!(prepared.is_empty());
    let line = prepared.plan.sessions.iter().find(|l| l.name == second[1]).unwrap();
    assert!(line.reasons.iter().any(|r| r.rule == "needed"), "{line:?}");
}

#[test]
fn what_cannot_be_merged_stays() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let a = lab.record(&Options::default()).end(State::Closed);
    for gap in [Gap::Unknown, Gap::None, Gap::None] {
        let mut r = lab.record(&Options { gap, ..Options::default() });
        r.write(0, &[1; 5000]);
        r.end(State::Closed);
    }
    hold(&lab, &a);
    let p = policies(&[("keep_last", "0")]);
    let plan = prepare(&lab, &p, later()).plan;
    let actions: Vec<_> = plan.sessions.iter().map(|l| l.action).collect();
    assert_eq!(actions, [Action::Keep, Action::Keep, Action::Merge, Action::Keep]);
    let why = &plan.sessions[1].reasons[0];
    assert_eq!(why.rule, "needed");
    assert!(why.text.contains("gap"), "{}", why.text);
}

#[test]
fn damage_stops_a_merge_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let [a, b, c, d] = four(&mut lab);
    hold(&lab, &a);
    flip(&lab.path(&c).join("blocks.dat"), 8 * 4096 * 2);
    let p = policies(&[("keep_last", "1")]);
    let outcome = apply(&lab, &p);
    assert_eq!(outcome.merged, 0);
    assert!(outcome.failures[0].contains("checksum"), "{:?}", outcome.failures);
    for dir in [a, b, c, d] {
        assert!(lab.path(&dir).exists());
    }
    assert!(Trash::list(&lab.store).unwrap().is_empty());
}

#[test]
fn others_are_in_the_way() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let [a, b, ..] = four(&mut lab);
    let p = policies(&[("keep_last", "2")]);
    // One that is viewed.
    let Some(Item::Session(s)) = lab.store.item(b.as_bytes()) else { panic!() };
    let viewed = s.lock_shared().unwrap();
    let outcome = apply(&lab, &p);
    assert!(outcome.failures[0].contains("in use"), "{:?}", outcome.failures);
    assert!(lab.path(&a).exists() && lab.path(&b).exists());
    drop(viewed);
    // One that was held after the plan was made.
    let planned = prepare(&lab, &p, later());
    hold(&lab, &b);
    let outcome = planned.apply(None, &Silent, &Stop::never(), &|_| Ok(())).unwrap();
    assert!(outcome.failures[0].contains("held"), "{:?}", outcome.failures);
    assert!(notes::release(&lab.store, &s, "upgrade").unwrap());
    // Another one that prunes.
    let trash = Trash::open(&lab.store, true).unwrap();
    let refused =
        prepare(&lab, &p, later()).apply(None, &Silent, &Stop::never(), &|_| Ok(())).unwrap_err();
    assert_eq!(refused.kind, Kind::Refused);
    drop(trash);
    // A file that nobody knows.
    std::fs::write(lab.path(&a).join("mine"), "x").unwrap();
    assert_eq!(prepare(&lab, &p, later()).plan.sessions[0].reasons[0].rule, "stranger");
    std::fs::remove_file(lab.path(&a).join("mine")).unwrap();
    assert_eq!(apply(&lab, &p).removed, 2);
}

#[test]
fn a_wrong_clock_prunes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    four(&mut lab);
    let p = policies(&[("keep_last", "1"), ("min_age", "0")]);
    let newest = EPOCH_NS + 3 * HOUR;
    for (clock, says) in [
        (clock(newest - DAY), "before the newest"),
        (clock(newest + 500 * DAY), "after the newest"),
        // The same boot: ten minutes passed, and the clock says two days.
        (
            Clock { now_ns: newest + 2 * DAY, boot_ns: 600_000_000_000, boot_id: [0xb0; 16] },
            "was set",
        ),
    ] {
        let prepared = prepare(&lab, &p, clock);
        let doubt = prepared.plan.clock.clone().unwrap();
        assert!(doubt.contains(says), "{doubt}");
        let refused = prepared.apply(None, &Silent, &Stop::never(), &|_| Ok(())).unwrap_err();
        assert_eq!(refused.kind, Kind::Refused);
    }
    let good = Clock { now_ns: newest + HOUR, boot_ns: 3_600_000_000_000, boot_id: [0xb0; 16] };
    assert_eq!(prepare(&lab, &p, good).plan.clock, None);
    assert_eq!(lab.store.items().unwrap().len(), 4);
}

#[test]
fn space_is_made_oldest_first() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let [a, ..] = four(&mut lab);
    let p = policies(&[("keep_daily", "9"), ("keep_hourly", "9")]);
    assert_eq!(prepare(&lab, &p, later()).plan.removed, 0);
    let Some(Item::Session(s)) = lab.store.item(a.as_bytes()) else { panic!() };
    let one = s.bytes_on_disk().unwrap();
    let limit = (one * 3).to_string();
    let p = policies(&[("keep_daily", "9"), ("keep_hourly", "9"), ("max_size", &limit)]);
    let plan = prepare(&lab, &p, later()).plan;
    assert_eq!(plan.removed, 1);
    assert_eq!(plan.sessions[0].action, Action::Remove);
    assert!(plan.sessions[0].misses[0].contains("max-size"), "{:?}", plan.sessions[0].misses);
    // What was promised to stay does.
    let p = policies(&[("keep_last", "4"), ("max_size", "1")]);
    let plan = prepare(&lab, &p, later()).plan;
    assert_eq!(plan.removed, 0);
    assert!(plan.notes[0].contains("over the max-size of all"), "{:?}", plan.notes);
}

#[test]
fn space_is_made_by_whole_groups() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let (_b, [first, second, third]) = twice_three(&mut lab);
    let bytes = |names: &[&[String; 2]]| -> u64 {
        let size = |n: &String| match lab.store.item(n.as_bytes()) {
            Some(Item::Session(s)) => s.bytes_on_disk().unwrap(),
            _ => panic!("{n} is no session"),
        };
        names.iter().flat_map(|g| g.iter()).map(size).sum()
    };
    // A byte less than all take: one session would do, and both of it go.
    let limit = (bytes(&[&first, &second, &third]) - 1).to_string();
    let p = policies(&[("keep_daily", "9"), ("keep_hourly", "9"), ("max_size", &limit)]);
    let plan = prepare(&lab, &p, later()).plan;
    let gone: Vec<&str> =
        plan.sessions.iter().filter(|l| l.action == Action::Remove).map(|l| &*l.name).collect();
    assert_eq!(gone.len(), 2, "{gone:?}");
    assert!(first.iter().all(|n| gone.contains(&&**n)), "{gone:?}");

    // One of the oldest is held: neither goes, nor what they need, and the plan says what is missing.
    hold(&lab, &first[1]);
    let plan = prepare(&lab, &p, later()).plan;
    assert_eq!(plan.removed, 0);
    assert!(plan.notes[0].contains("over the max-size"), "{:?}", plan.notes);
}
