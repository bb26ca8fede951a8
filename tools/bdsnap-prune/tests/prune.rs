// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-prune` as a program, without the module.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bdsnap_abi::format::{Gap, State};
use bdsnap_core::progress::{Silent, Stop};
use bdsnap_core::store::Item;
use bdsnap_core::test_support::{help_and_pages, pattern, Lab, Options, Transcript};
use serde_json::Value;

/// Thirty days after the first session of a lab.
const NOW: &str = "2026-12-20T00:00:00Z";

fn command(lab: &Lab, args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_bdsnap-prune"));
    c.arg("--store").arg(lab.store.path()).args(args).env("TZ", "UTC").stdin(Stdio::null());
    c
}

fn prune(lab: &Lab, args: &[&str], status: i32) -> (String, String) {
    let Output { status: s, stdout, stderr } = command(lab, args).output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(s.code(), Some(status), "{args:?}\n{out}\n{err}");
    (out, err)
}

fn json(lab: &Lab, args: &[&str], status: i32) -> Value {
    serde_json::from_str(&prune(lab, args, status).0).unwrap()
}

fn record(lab: &mut Lab, n: usize) -> Vec<String> {
    (0..n)
        .map(|i| {
            let mut r = lab.record(&Options::default());
            r.write(i * 4096, &pattern(3 * 4096, i as u64 + 2));
            r.end(State::Closed)
        })
        .collect()
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .filter(|e| !e.as_ref().unwrap().file_name().as_encoded_bytes().starts_with(b"."))
        .count()
}

#[test]
fn a_plan_changes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 64 * 4096);
    let names = record(&mut lab, 4);
    let none = tmp.path().to_str().unwrap();
    let (out, err) = prune(&lab, &["--config-dir", none, "--now", NOW], 0);
    assert!(out.contains("nothing to remove of 4 sessions"), "{out}");
    assert!(err.contains("no rules"), "{err}");
    let (out, err) = prune(&lab, &["--now", NOW, "--keep-last", "2"], 0);
    let expected = format!(
        "SESSION                    SIZE      ACTION  RULES THAT KEEP IT / WHY NOT\n\
         {}  SIZE  remove  last: 2 newer\n\
         {}  SIZE  remove  last: 2 newer\n\
         {}  SIZE  keep    last 2 of 2\n\
         {}  SIZE  keep    the device's newest; last 1 of 2\n\
         would remove 2 of 4 sessions, free exactly SIZE, after 3d 00h in the trash\n",
        names[0], names[1], names[2], names[3]
    );
    assert_eq!(squeeze(&out), squeeze(&expected));
    assert!(err.contains("--apply does it"), "{err}");
    assert_eq!(count(lab.store.path()), 4);

    let plan = json(&lab, &["--now", NOW, "--keep-last", "2", "--json"], 0);
    assert_eq!(plan["schema_version"], 1);
    assert_eq!(plan["applied"], false);
    assert_eq!(plan["plan"]["removed"], 2);
    assert_eq!(plan["plan"]["sessions"][0]["action"], "remove");
    assert_eq!(plan["plan"]["sessions"][3]["reasons"][0]["rule"], "newest");
    prune(&lab, &["--keep-last", "x"], 2);
    prune(&lab, &["--min-free", "lots"], 2);
    prune(&lab, &["--now", NOW, "--apply"], 2);
}

/// Blanks as one, sizes as SIZE.
fn squeeze(text: &str) -> String {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    for i in 1..words.len() {
        if matches!(words[i].trim_end_matches(','), "KiB" | "B") {
            words[i - 1] = "";
            words[i] = if words[i].ends_with(',') { "SIZE," } else { "SIZE" };
        }
    }
    words.retain(|w| !w.is_empty());
    words.join(" ")
}

#[test]
fn explain_names_rules_and_misses() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 64 * 4096);
    let names = record(&mut lab, 3);
    let (out, _) = prune(
        &lab,
        &["explain", &names[1], "--now", NOW, "--keep-daily", "2", "--keep-last", "1"],
        0,
    );
    for says in
        ["Action   merge", "last: 1 newer", "is newer that day", "keep_daily = 2 (command line)"]
    {
        assert!(out.contains(says), "{says}: {out}");
    }
    prune(&lab, &["explain", "disk", "--now", NOW], 2);
    prune(&lab, &["explain", "nothing", "--now", NOW], 3);
}

#[test]
fn applied_and_put_back() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 64 * 4096);
    let names = record(&mut lab, 5);
    let args = ["--keep-last", "2", "--min-age", "0", "--trust-clock", "--apply"];
    // The sessions of a lab lie in the past or in the future of the test's
    // day: what is in the future stays.
    let (_, err) = prune(&lab, &args, 0);
    let gone = 5 - count(lab.store.path());
    assert!(err.contains(&format!("{gone} session")), "{err}");
    if gone > 0 {
        let (out, _) = prune(&lab, &["trash"], 0);
        assert!(out.contains(&names[0]), "{out}");
        let trash = json(&lab, &["trash", "--json"], 0);
        assert_eq!(trash["operations"][0]["what"], "remove");
        let (_, err) = prune(&lab, &["undelete", &names[0]], 0);
        assert!(err.contains("put back"), "{err}");
        assert_eq!(count(lab.store.path()), 5);
    }
    prune(&lab, &["undelete", "nothing"], 3);
    prune(&lab, &["empty-trash"], 0);
}

#[test]
fn help_pages_and_completions() {
    let program = env!("CARGO_BIN_EXE_bdsnap-prune");
    let commands = ["explain", "undelete", "trash", "empty-trash"];
    help_and_pages(program, "bdsnap-prune", env!("CARGO_MANIFEST_DIR"), &commands);
}

/// What a user sees who makes up his mind.
#[test]
fn transcript() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 64 * 4096);
    let names = record(&mut lab, 6);
    let note = |i: usize, file: &str, text: &str| fs::write(lab.path(&names[i]).join(file), text);
    note(2, "tags.json", r#"{"schema_version":1,"tags":["release"]}"#).unwrap();
    note(3, "holds.json", r#"{"schema_version":1,"holds":[{"name":"x","since":"y"}]}"#).unwrap();
    let conf = tmp.path().join("etc");
    fs::create_dir_all(conf.join("conf.d")).unwrap();
    fs::write(conf.join("bdsnap.toml"), "[prune]\nkeep_last = 9\nundo = \"remove-after 7d\"\n")
        .unwrap();
    fs::write(conf.join("conf.d/site.toml"), "[prune]\nkeep_last = 1\n").unwrap();
    let mut t = Transcript::of(env!("CARGO_MANIFEST_DIR"), "transcripts/plan.txt")
        .replacing(lab.store.path(), "/snapshot")
        .replacing(&conf, "/etc/bdsnap")
        .replacing(tmp.path(), "/srv");
    let also = ["--store".as_ref(), lab.store.path().as_os_str()];
    let rules = format!("--now {NOW} --config-dir {}", conf.to_str().unwrap());
    for line in [
        format!("bdsnap-prune {rules} --keep-tag release"),
        format!("bdsnap-prune explain {} {rules} --keep-daily 2", names[4]),
        "bdsnap-prune --keep-last many".into(),
        "bdsnap-prune --now 2026-01-01T00:00:00Z --keep-last 1".into(),
        "bdsnap-prune trash".into(),
        "bdsnap-prune undelete nothing".into(),
        "bdsnap-prune --apply explain x".into(),
    ] {
        t.run(env!("CARGO_BIN_EXE_bdsnap-prune"), &line, &also);
    }
    // Sizes depend on the file system.
    t.end(squeeze);
}

/// Killed at moments of its own choice, again and again: nothing is lost.
#[test]
fn killed_anywhere() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 256 * 4096);
    let first = lab.record(&Options { gap: Gap::None, ..Options::default() }).end(State::Closed);
    let mut names = vec![first];
    names.extend(record(&mut lab, 24));
    for held in [0, 8, 16] {
        fs::write(
            lab.path(&names[held]).join("holds.json"),
            r#"{"schema_version":1,"holds":[{"name":"x","since":"2026-01-01T00:00:00Z"}]}"#,
        )
        .unwrap();
    }
    let everything = |lab: &Lab| -> Vec<u8> {
        // The past of the oldest, composed by the simplest means.
        let mut image = lab.device.clone();
        let items = lab.store.items().unwrap();
        for item in items.iter().rev() {
            let Item::Session(s) = item else { panic!("{item:?}") };
            let checked = s.check(false, &Silent, &Stop::never()).unwrap();
            let dat = fs::read(s.path.join("blocks.dat")).unwrap();
            for r in checked.runs {
                let at = r.sector as usize * 512;
                let to = &mut image[at..at + r.bytes as usize];
                if r.is_zero() {
                    to.fill(0);
                } else {
                    to.copy_from_slice(&dat[r.offset as usize..][..r.bytes as usize]);
                }
            }
        }
        image
    };
    let before = everything(&lab);
    let args = ["--keep-last", "1", "--min-age", "0", "--trust-clock", "--apply", "--allow-empty"];
    let mut killed = 0;
    for round in 0..40u64 {
        let mut child =
            command(&lab, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(500 + round * 700));
        let _ = child.kill();
        killed += u32::from(child.wait().unwrap().code().is_none());
        assert_eq!(everything(&lab), before, "after round {round}");
    }
    assert!(killed > 0, "it was faster than each kill");
    prune(&lab, &args, 0);
    assert_eq!(everything(&lab), before);
    prune(&lab, &["empty-trash"], 0);
    assert_eq!(everything(&lab), before);
}

/// However many go or become one, few are open at a time.
#[test]
fn more_sessions_than_open_files() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 256 * 4096);
    let dirs = record(&mut lab, 180);
    // Those before it go, those after it become a part of it.
    let hold = r#"{"schema_version":1,"holds":[{"name":"x","since":"2026-01-01T00:00:00Z"}]}"#;
    fs::write(lab.path(&dirs[90]).join("holds.json"), hold).unwrap();
    let mut limited = Command::new("sh");
    let args = ["--keep-last", "1", "--min-age", "0", "--trust-clock", "--apply"];
    let c = command(&lab, &args);
    limited.args(["-c", "ulimit -n 80 && exec \"$0\" \"$@\""]).arg(c.get_program());
    let output = limited.args(c.get_args()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(count(lab.store.path()), 2);
}
