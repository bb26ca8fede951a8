// SPDX-License-Identifier: GPL-2.0

//! File systems on several devices: restored as one, or refused.
#![allow(missing_docs)]

use std::fs;

use bdsnap_abi::format::{Id, Kind as SessionKind, State};
use bdsnap_core::chain::Selector;
use bdsnap_core::device::{Purpose, Target};
use bdsnap_core::progress::{Silent, Stop};
use bdsnap_core::restore::{prepare, Accept, Outcome, Plan, Request};
use bdsnap_core::store::Item;
use bdsnap_core::test_support::{pattern, Lab, Options};
use bdsnap_core::{Kind, Result};
use proptest::prelude::*;

const CHUNK: usize = 4096;
const G1: Id = [0xa1; 16];
const G2: Id = [0xa2; 16];

const GAP: Accept = Accept { gap: true, loss: false, alone: false };
const ALONE: Accept = Accept { gap: true, loss: false, alone: true };

fn restore(lab: &Lab, selector: Selector, accept: Accept) -> Result<(Plan, Outcome)> {
    let target = Target::find(&lab.image)?;
    let request = Request {
        store: &lab.store,
        target: &target,
        selector,
        accept,
        purpose: Purpose::Write,
        to_image: false,
        undo: true,
    };
    let prepared = prepare(&request, &|| Ok(None), &Silent, &Stop::never())?;
    let plan = prepared.plan.clone();
    Ok((plan, prepared.apply(&Silent, &Stop::never())?))
}

fn name(dir: &str) -> Selector {
    Selector::parse(dir.as_bytes())
}

/// A session with one write; its name, and what the device held before.
fn session(lab: &mut Lab, group: Id, chunk: usize, seed: u64) -> (String, Vec<u8>) {
    let past = lab.device.clone();
    let mut r = lab.record(&Options { group, ..Options::default() });
    r.write(chunk * CHUNK, &pattern(3 * CHUNK, seed ^ 0x5eed));
    (r.end(State::Closed), past)
}

fn labs() -> (tempfile::TempDir, Lab, Lab, Lab) {
    let tmp = tempfile::tempdir().unwrap();
    let a = Lab::new(tmp.path(), 20 * CHUNK);
    let b = a.beside("b.img", 30 * CHUNK + 512);
    let c = b.beside("c.img", 25 * CHUNK);
    (tmp, a, b, c)
}

#[test]
fn members_go_back_together_and_forth() {
    let (_tmp, mut a, mut b, _) = labs();
    let (a1, first_a) = session(&mut a, G1, 0, 1);
    let (b1, first_b) = session(&mut b, G1, 5, 2);
    // Between the mounts, something else on one of them.
    let mut r = b.record(&Options { kind: SessionKind::Raw, ..Options::default() });
    r.write(20 * CHUNK, &pattern(CHUNK, 3));
    r.end(State::Closed);
    let (_, second_a) = session(&mut a, G2, 1, 4);
    let (b3, second_b) = session(&mut b, G2, 5, 5);
    let now = (a.content(), b.content());

    // Whichever is named, and by whatever later session.
    let (plan, outcome) = restore(&b, name(&b3), GAP).unwrap();
    assert_eq!(plan.devices.len(), 2);
    assert_eq!(outcome.undo_sessions.len(), 2);
    assert!(a.content() == second_a && b.content() == second_b);
    restore(&a, Selector::Undo, GAP).unwrap();
    assert!((a.content(), b.content()) == now, "--undo takes both back");
    let (plan, _) = restore(&a, name(&a1), GAP).unwrap();
    assert_eq!(plan.devices[1].session, b1);
    assert!(a.content() == first_a && b.content() == first_b);
    restore(&b, Selector::Undo, GAP).unwrap();
    assert!((a.content(), b.content()) == now);
    // One only.
    let (plan, _) = restore(&a, name(&a1), ALONE).unwrap();
    assert_eq!(plan.accepted, ["gap", "alone"]);
    assert!(a.content() == first_a && b.content() == now.1);
}

/// Its superblock would be newer than those that know nothing of it.
#[test]
fn a_device_that_joined_later_goes_back_to_before_it_joined() {
    let (_tmp, mut a, mut b, mut c) = labs();
    let (_, before) = session(&mut c, [0; 16], 2, 9);
    let (a1, first_a) = session(&mut a, G1, 0, 1);
    let (_, first_b) = session(&mut b, G1, 5, 2);
    let mut r = c.record(&Options { kind: SessionKind::Raw, ..Options::default() });
    r.write(0, &pattern(CHUNK, 6));
    r.end(State::Closed);
    let joined = c.device.clone();
    session(&mut a, G2, 1, 4);
    session(&mut c, G2, 0, 7);
    let (plan, _) = restore(&a, name(&a1), GAP).unwrap();
    assert_eq!(plan.devices.len(), 3);
    assert!(a.content() == first_a && b.content() == first_b);
    assert!(c.content() == joined && c.content() != before);
}

#[test]
fn what_is_missing_is_refused() {
    let (_tmp, mut a, mut b, _) = labs();
    let (a1, first_a) = session(&mut a, G1, 0, 1);
    let (b1, _) = session(&mut b, G1, 5, 2);
    let now = a.content();
    let refused = |what: &str| {
        let e = restore(&a, name(&a1), GAP).unwrap_err();
        assert_eq!(e.kind, Kind::Refused);
        assert!(e.message.contains(what), "{e}");
        assert!(e.hint.unwrap().contains("--alone"));
        assert!(a.content() == now);
    };
    fs::rename(&b.image, b.image.with_extension("away")).unwrap();
    refused("b.img, which is not there");
    fs::rename(b.image.with_extension("away"), &b.image).unwrap();
    let map = a.path(&b1).join("blocks.map");
    let whole = fs::read(&map).unwrap();
    fs::write(&map, &whole[..100]).unwrap();
    refused("cannot be read");
    fs::write(&map, whole).unwrap();
    fs::write(&b.image, "of another size").unwrap();
    let e = restore(&a, name(&a1), GAP).unwrap_err();
    assert!(e.message.contains("is not the device of session"), "{e}");
    assert!(a.content() == now);
    restore(&a, name(&a1), ALONE).unwrap();
    assert!(a.content() == first_a);
}

#[test]
fn an_unregistered_member_is_refused() {
    let (_tmp, mut a, _, _) = labs();
    let first = a.device.clone();
    let mut r = a.record(&Options { incomplete: true, ..Options::default() });
    r.write(0, &[1; CHUNK]);
    r.end(State::Closed);
    let now = a.content();
    let e = restore(&a, name("latest"), GAP).unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    assert!(e.message.contains("not all of them were registered"), "{e}");
    assert!(a.content() == now);
    let (plan, _) = restore(&a, name("latest"), ALONE).unwrap();
    assert_eq!(plan.accepted, ["gap", "alone"]);
    assert!(a.content() == first);
}

/// One of them damaged: none is written.
#[test]
fn all_are_checked_before_any_is_written() {
    let (_tmp, mut a, mut b, _) = labs();
    let (a1, _) = session(&mut a, G1, 0, 1);
    let (b1, _) = session(&mut b, G1, 5, 2);
    let now = (a.content(), b.content());
    bdsnap_core::test_support::flip(&a.path(&b1).join("blocks.dat"), 80_000);
    let e = restore(&a, name(&a1), GAP).unwrap_err();
    assert_eq!(e.kind, Kind::Verification);
    assert!((a.content(), b.content()) == now);
    assert_eq!(a.store.items().unwrap().len(), 2);
}

/// Alone in its group, it is like any other.
#[test]
fn one_device_is_no_group() {
    let (_tmp, mut a, _, _) = labs();
    let (a1, first) = session(&mut a, G1, 0, 1);
    let (plan, _) = restore(&a, name(&a1), ALONE).unwrap();
    assert_eq!(plan.accepted, ["gap"]);
    assert!(a.content() == first);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Mounts of any of three devices together, then back to any of them: each
    /// device that the file system had then is as it was, and so is each that
    /// joined it later as it was before.
    #[test]
    fn as_the_file_system_was(
        mounts in prop::collection::vec((1u8..8, 0usize..15, any::<u64>()), 1..6),
        which in any::<prop::sample::Index>(),
    ) {
        let (_tmp, a, b, c) = labs();
        let mut labs = [a, b, c];
        // Of each mount: its devices' sessions and contents before it.
        let mut log: Vec<[Option<(String, Vec<u8>)>; 3]> = Vec::new();
        for (i, (members, chunk, seed)) in mounts.iter().enumerate() {
            let group = if members.count_ones() > 1 { [i as u8 + 0xf0; 16] } else { [0; 16] };
            let mut of = [None, None, None];
            for (m, lab) in labs.iter_mut().enumerate().filter(|(m, _)| members >> m & 1 == 1) {
                of[m] = Some(session(lab, group, *chunk, seed ^ m as u64));
            }
            log.push(of);
        }
        let n = which.index(log.len());
        let m = (0..3).find(|m| log[n][*m].is_some()).unwrap();
        let now: Vec<_> = labs.iter().map(Lab::content).collect();
        let dir = log[n][m].as_ref().unwrap().0.clone();
        let (plan, outcome) = restore(&labs[m], name(&dir), GAP).unwrap();
        // Which devices are of it: joined, from the mount at which they joined.
        let mut joined: [Option<usize>; 3] = [None; 3];
        joined[m] = Some(n);
        loop {
            let before = joined;
            for (k, of) in log.iter().enumerate().skip(n) {
                let touches = (0..3).any(|i| joined[i].is_some_and(|j| j <= k) && of[i].is_some());
                for i in (0..3).filter(|i| touches && of[*i].is_some()) {
                    joined[i] = Some(joined[i].map_or(k, |j| j.min(k)));
                }
            }
            if joined == before {
                break;
            }
        }
        for (i, lab) in labs.iter().enumerate() {
            let expected = match joined[i] {
                Some(k) => &log[k][i].as_ref().unwrap().1,
                None => &now[i],
            };
            prop_assert!(lab.content() == *expected, "device {} of {:?}", i, joined);
        }
        prop_assert_eq!(plan.devices.len(), joined.iter().flatten().count());
        prop_assert!(outcome.bytes_written > 0);
        restore(&labs[m], Selector::Undo, GAP).unwrap();
        for (lab, now) in labs.iter().zip(&now) {
            prop_assert!(lab.content() == *now);
        }
        let items = labs[0].store.items().unwrap();
        prop_assert!(!items.iter().any(|i| matches!(i, Item::Damaged(_))));
    }
}

/// As the module does it: the group's identity is that of its first session,
/// whose header was written before the second device joined.
#[test]
fn who_joins_a_running_session_is_linked_to_it() {
    let (_tmp, mut a, mut b, _) = labs();
    let (a1, first_a) = session(&mut a, [0; 16], 0, 1);
    let (b1, first_b) = session(&mut b, a.last, 5, 2);
    let now = (a.content(), b.content());
    for dir in [&a1, &b1] {
        let lab = if *dir == a1 { &a } else { &b };
        let (plan, _) = restore(lab, name(dir), GAP).unwrap();
        assert_eq!(plan.devices.len(), 2);
        assert!(a.content() == first_a && b.content() == first_b);
        restore(lab, Selector::Undo, GAP).unwrap();
        assert!((a.content(), b.content()) == now);
    }
}
