// SPDX-License-Identifier: GPL-2.0

//! Sessions of the original module, restored by `bdsnap-restore`.
#![allow(missing_docs)]

use std::fs;
use std::process::Command;

use bdsnap_core::abi::format::State;
use bdsnap_core::test_support::{original, pattern, Lab, Options, Ran};

const CHUNK: usize = 4096;
const SIZE: usize = 100 * CHUNK + 512;
/// An hour before the first session of a [`Lab`].
const BEFORE: u64 = 1_795_219_199 - 3600;
/// Between its first and its second one.
const BETWEEN: u64 = 1_795_219_199 + 1800;

fn lab() -> (tempfile::TempDir, Lab) {
    let tmp = tempfile::tempdir().unwrap();
    let lab = Lab::new(tmp.path(), SIZE);
    (tmp, lab)
}

/// A block of the device as it is now, then changed.
fn change(lab: &mut Lab, block: usize, seed: u64) -> (u64, Vec<u8>) {
    let at = block * CHUNK;
    let old = lab.device[at..at + CHUNK].to_vec();
    lab.write(at, &pattern(CHUNK, seed));
    (at as u64 / 512, old)
}

fn restore(lab: &Lab, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bdsnap-restore"));
    Ran::of(command.arg("--store").arg(lab.store.path()).arg(&lab.image).args(args), b"")
}

#[test]
fn restored_over_a_gap_and_undone() {
    let (_tmp, mut lab) = lab();
    let first = lab.device.clone();
    let mut entries = vec![change(&mut lab, 7, 2), change(&mut lab, 90, 3), change(&mut lab, 0, 4)];
    // Lost, and saved again with its new content.
    entries.push(change(&mut lab, 7, 5));
    let dir = original(&lab.store, "disk.img", BEFORE, Some(&lab.image), &entries);
    let now = lab.content();
    restore(&lab, &["latest", "--yes"]).expect(5).says("linked to no others");
    assert!(lab.content() == now);
    let dry = restore(&lab, &["latest", "--dry-run", "--accept-gap"]);
    dry.expect(0)
        .says("nothing says that it is whole")
        .says(&format!("{dir} (mount, unchecked, 12.0 KiB)"));
    restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(0).says("read back and equal");
    assert!(lab.content() == first);
    restore(&lab, &["--undo", "--yes", "--accept-gap"]).expect(0).says("read back");
    assert!(lab.content() == now);
}

#[test]
fn among_sessions_of_ours() {
    let (tmp, mut lab) = lab();
    let zeroth = lab.device.clone();
    let e = [change(&mut lab, 3, 10)];
    let before = original(&lab.store, "disk.img", BEFORE, Some(&lab.image), &e);
    let first = lab.device.clone();
    let mut r = lab.record(&Options::default());
    r.write(3 * CHUNK, &pattern(4 * CHUNK, 11));
    let a = r.end(State::Closed);
    let e = [change(&mut lab, 5, 12), change(&mut lab, 50, 13)];
    let between = original(&lab.store, "disk.img", BETWEEN, Some(&lab.image), &e);
    let second = lab.device.clone();
    let mut r = lab.record(&Options::default());
    r.write(50 * CHUNK, &pattern(CHUNK, 14));
    let b = r.end(State::Closed);
    let out = tmp.path().join("out");
    let to = |session: &str| {
        let args = [session, "--accept-gap", "--yes", "--to", out.to_str().unwrap()];
        (restore(&lab, &args).out, fs::read(&out).unwrap())
    };
    assert!(to(&b).1 == second);
    let (text, image) = to(&a);
    assert!(image == first);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[2].contains(&b) && lines[2].contains("GAP before it: unlinked"), "{text}");
    assert!(lines[3].contains(&between) && lines[3].contains("GAP before it: unlinked"), "{text}");
    assert!(lines[4].contains(&a) && !lines[4].contains("GAP"), "{text}");
    assert!(to(&before).1 == zeroth);
    assert!(to("latest~3").1 == zeroth, "counted like any other");
}

#[test]
fn blocks_smaller_than_what_was_saved_are_a_loss() {
    let (_tmp, mut lab) = lab();
    let first = lab.device.clone();
    // Of blocks of 1 KiB, each with 3 KiB that are not the device's.
    let garbled = |block: usize| {
        let at = 40 * CHUNK + block * 1024;
        let mut content = lab.device[at..at + 1024].to_vec();
        content.extend_from_slice(&[0xdb; 3072]);
        (at as u64 / 512, content)
    };
    let entries = [garbled(2), garbled(0), garbled(1), garbled(3)];
    lab.write(40 * CHUNK, &[9; CHUNK]);
    original(&lab.store, "disk.img", BEFORE, Some(&lab.image), &entries);
    restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(5).says("runs overlap");
    let args = ["latest", "--yes", "--accept-gap", "--accept-loss"];
    restore(&lab, &args).expect(6).says("partial");
    let content = lab.content();
    assert!(content[40 * CHUNK..41 * CHUNK] == first[40 * CHUNK..41 * CHUNK], "each right block");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_tmp, mut lab) = lab();
    let beyond = [change(&mut lab, 1, 2), (800, vec![0; CHUNK])];
    let dir = original(&lab.store, "disk.img", BEFORE, Some(&lab.image), &beyond);
    let now = lab.content();
    restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(5).says("from beyond");
    // Cut in the middle: then it is damaged, and not in any chain.
    let dat = lab.path(&dir).join("blocks.dat");
    fs::write(&dat, &fs::read(&dat).unwrap()[..CHUNK]).unwrap();
    restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(3).says("no session");
    assert!(lab.content() == now);
}

#[test]
fn without_a_name_only_if_the_user_names_it() {
    let (_tmp, mut lab) = lab();
    let first = lab.device.clone();
    let entries = [change(&mut lab, 1, 2)];
    let dir = original(&lab.store, "disk.img", BEFORE, None, &entries);
    let other = original(&lab.store, "disk2.img", BEFORE, None, &entries);
    restore(&lab, &["latest", "--yes", "--accept-gap"])
        .expect(3)
        .says("no sessions of this device");
    restore(&lab, &[&other, "--yes", "--accept-gap"]).expect(3).says("no session");
    restore(&lab, &[&dir, "--yes", "-v", "--accept-gap"])
        .expect(0)
        .says("last component of its name");
    assert!(lab.content() == first);
}
