// SPDX-License-Identifier: GPL-2.0

//! `bdsnap` as a program, without the module.
#![allow(missing_docs)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use bdsnap_core::abi::format::{Durability, Gap, Kind, State};
use bdsnap_core::test_support::{flip, help_and_pages, Lab, Options, Ran, Transcript};
use serde_json::json;

fn bdsnap(store: &Path, args: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bdsnap"));
    Ran::of(command.arg("--store").arg(store).args(args), input.as_bytes())
}

/// A closed session, a broken one after a gap, an interrupted one.
fn three(dir: &Path) -> (Lab, [String; 3]) {
    let mut lab = Lab::new(dir, 100 * 4096);
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; 10_000]);
    let a = r.end(State::Closed);
    let mut r = lab.record(&Options { gap: Gap::Written, kind: Kind::Raw, ..Options::default() });
    r.write(0, &[2; 4096]);
    let b = r.end(State::Broken);
    let mut r = lab.record(&Options { durability: Durability::Async, ..Options::default() });
    r.write(0, &[3; 4096]);
    let c = r.cut();
    (lab, [a, b, c])
}

#[test]
fn init() {
    let tmp = tempfile::tempdir().unwrap();
    let store = tmp.path().join("s");
    bdsnap(&store, &["list"], "").expect(3).says("does not exist");
    bdsnap(&store, &["init"], "").expect(0).says("made the store");
    bdsnap(&store, &["init"], "").expect(0).says("already");
    bdsnap(&store, &["list"], "").expect(0).says("no sessions");
    bdsnap(tmp.path(), &["init"], "").expect(5).says("not empty");
    bdsnap(tmp.path(), &["list"], "").expect(3).says("not a bdsnap store");
    assert_eq!(bdsnap(&store, &["init", "--quiet"], "").expect(0).err, "");
}

#[test]
fn list_as_json() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, [a, b, c]) = three(tmp.path());
    let original = lab.path("sda2_1763790000");
    fs::create_dir(&original).unwrap();
    fs::write(original.join("blocks.map"), [0; 40]).unwrap();
    fs::write(original.join("blocks.dat"), [0; 100]).unwrap();
    fs::write(original.join("meta.json"), r#"{"device":"/dev/sda2"}"#).unwrap();
    fs::create_dir(lab.path("vdz_20260101T000000Z")).unwrap();
    let mut list = bdsnap(lab.store.path(), &["list", "--json"], "").expect(0).json();
    for s in list["sessions"].as_array_mut().unwrap() {
        // Depends on the file system.
        let s = s.as_object_mut().unwrap();
        s.remove("stored_bytes");
    }
    let image = lab.image.to_str().unwrap();
    let hex = |n: u8| format!("{n:02x}").repeat(16);
    let boot = "b0".repeat(16);
    let golden = json!({"schema_version": 1, "sessions": [
        {"session_id": null, "name": "sda2_1763790000", "device": "/dev/sda2",
         "format": "original", "kind": null, "state": "unchecked", "durability": null,
         "chain_seq": null, "start": "2025-11-22T05:40:00Z", "start_ns": 1763790000000000000u64,
         "end": null, "end_ns": null, "device_bytes": null, "chunk_size": null, "records": 2,
         "saved_bytes": 100, "gap_before": null, "prev_session_id": null, "group_id": null,
         "restored_id": null, "boot_id": null, "errno": null, "broken_sector": null,
         "broken": null, "absorbed_bytes": null, "held_bios": null, "merged_id": null, "holds": null, "tags": null,
         "verified": null, "verified_ok": null, "verified_deep": null, "damage": null},
        {"session_id": hex(1), "name": a, "device": image,
         "format": "bdsnap", "kind": "mount", "state": "closed", "durability": "strict",
         "chain_seq": 1, "start": "2026-11-20T23:59:59Z", "start_ns": 1795219199000000000u64,
         "end": "2026-11-21T00:00:59Z", "end_ns": 1795219259000000000u64, "device_bytes": 409600,
         "chunk_size": 4096, "records": 1, "saved_bytes": 12288, "gap_before": "none",
         "prev_session_id": null, "group_id": null, "restored_id": null, "boot_id": boot,
         "errno": null, "broken_sector": null, "broken": null, "absorbed_bytes": 0,
         "held_bios": 0, "merged_id": null, "holds": [], "tags": [],
         "verified": null, "verified_ok": null, "verified_deep": null, "damage": null},
        {"session_id": hex(2), "name": b, "device": image,
         "format": "bdsnap", "kind": "raw", "state": "broken", "durability": "strict",
         "chain_seq": 2, "start": "2026-11-21T00:59:59Z", "start_ns": 1795222799000000000u64,
         "end": "2026-11-21T01:00:59Z", "end_ns": 1795222859000000000u64, "device_bytes": 409600,
         "chunk_size": 4096, "records": 1, "saved_bytes": 4096, "gap_before": "written",
         "prev_session_id": hex(1), "group_id": null, "restored_id": null, "boot_id": boot,
         "errno": 28, "broken_sector": 800, "broken": null, "absorbed_bytes": 0,
         "held_bios": 0, "merged_id": null, "holds": [], "tags": [],
         "verified": null, "verified_ok": null, "verified_deep": null, "damage": null},
        {"session_id": hex(3), "name": c, "device": image,
         "format": "bdsnap", "kind": "mount", "state": "interrupted", "durability": "async",
         "chain_seq": 3, "start": "2026-11-21T01:59:59Z", "start_ns": 1795226399000000000u64,
         "end": null, "end_ns": null, "device_bytes": 409600,
         "chunk_size": 4096, "records": null, "saved_bytes": 4096, "gap_before": "none",
         "prev_session_id": hex(2), "group_id": null, "restored_id": null, "boot_id": boot,
         "errno": null, "broken_sector": null, "broken": null, "absorbed_bytes": 0,
         "held_bios": 0, "merged_id": null, "holds": [], "tags": [],
         "verified": null, "verified_ok": null, "verified_deep": null, "damage": null},
        {"session_id": null, "name": "vdz_20260101T000000Z", "device": null,
         "format": "bdsnap", "kind": null, "state": "damaged", "durability": null,
         "chain_seq": null, "start": null, "start_ns": null, "end": null, "end_ns": null,
         "device_bytes": null, "chunk_size": null, "records": null, "saved_bytes": null,
         "gap_before": null, "prev_session_id": null, "group_id": null, "restored_id": null,
         "boot_id": null, "errno": null, "broken_sector": null, "broken": null,
         "absorbed_bytes": null, "held_bios": null, "merged_id": null, "holds": null, "tags": null,
         "verified": null, "verified_ok": null, "verified_deep": null,
         "damage": "blocks.map: No such file or directory"},
    ]});
    assert_eq!(list, golden, "{list:#}");

    let list = bdsnap(lab.store.path(), &["list", "--json", image], "").expect(0).json();
    assert_eq!(list["sessions"].as_array().unwrap().len(), 3);
    let list = bdsnap(lab.store.path(), &["list", "--json", "/dev/sda2"], "").expect(0).json();
    assert_eq!(list["sessions"][0]["format"], "original");
    let list = bdsnap(lab.store.path(), &["list", "--json", "/dev/none"], "").expect(0).json();
    assert_eq!(list["sessions"], json!([]));
    bdsnap(lab.store.path(), &["list", "/dev/none"], "").expect(3);
}

#[test]
fn list_for_people() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, [a, b, c]) = three(tmp.path());
    let ran = bdsnap(lab.store.path(), &["list"], "").expect(0);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.out);
    assert!(lines[0].starts_with("DEVICE ") && lines[0].ends_with("REMARKS"), "{}", lines[0]);
    for (line, parts) in lines[1..].iter().zip([
        [a.as_str(), "2026-11-20 23:59:59", " 1m 00s ", " 12.0 KiB ", " mount ", "closed"],
        [
            b.as_str(),
            "2026-11-21 00:59:59",
            "raw",
            "broken",
            "gap before: written",
            "No space left",
        ],
        [c.as_str(), "2026-11-21 01:59:59", " - ", "mount", "interrupted", "async"],
    ]) {
        for part in parts {
            assert!(line.contains(part), "{part:?} not in {line:?}");
        }
    }
    assert!(ran.err.contains("3 sessions, "), "{}", ran.err);
    assert!(!ran.out.contains('\x1b'));
    bdsnap(lab.store.path(), &["list", "--color", "always"], "").expect(0).says("\x1b[");

    let ran = bdsnap(lab.store.path(), &["list", "-o", "chain_seq,state,errno"], "").expect(0);
    let words: Vec<Vec<&str>> = ran.out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(
        words,
        [
            ["CHAIN_SEQ", "STATE", "ERRNO"],
            ["1", "closed", "-"],
            ["2", "broken", "28"],
            ["3", "interrupted", "-"],
        ]
    );
    bdsnap(lab.store.path(), &["list", "-o", "nonsense"], "").expect(2).says("columns: session_id");
}

#[test]
fn names_cannot_harm_a_terminal() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 4096);
    let mut r = lab.record(&Options::default());
    assert!(r.header.set_name("/srv/\x1b]0;x\x07\u{202e}gmi\n".as_bytes()));
    r.write(0, &[1]);
    r.end(State::Closed);
    let mut r = lab.record(&Options::default());
    assert!(r.header.set_name(b"/srv/disk.img"));
    r.write(0, &[1]);
    let other = r.end(State::Closed);
    let hostile = lab.path("vdb_\u{1b}[31m_20260101T000000Z");
    fs::create_dir(&hostile).unwrap();
    fs::write(hostile.join("meta.json"), "{\"device\":\"\\u001b[31m\"}").unwrap();
    fs::write(
        lab.path(&other).join("tags.json"),
        "{\"schema_version\":1,\"tags\":[\"\\u001b[m\"]}",
    )
    .unwrap();
    let first = bdsnap(lab.store.path(), &["list", "--json"], "").json()["sessions"][0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let svg = tmp.path().join("x.svg");
    for args in [
        &["list"][..],
        &["list", "-o", "device,name,tags"],
        &["verify", "--all"],
        &["inspect", &first, "--svg", svg.to_str().unwrap()],
        &["status", "--prometheus", "-"],
        &["cat", &first, "/\u{1b}x"],
        &["hold", &first, "\u{1b}x"],
        &["untag", &first, "\u{1b}x"],
        &["list", "-o", "\u{1b}x"],
        &["list", "/\u{1b}x"],
    ] {
        let ran = bdsnap(lab.store.path(), args, "");
        let both = ran.out + &ran.err;
        assert!(!both.contains(['\x1b', '\x07', '\u{202e}']), "{args:?}: {both:?}");
        assert!(!both.is_empty(), "{args:?}");
    }
    let svg = fs::read_to_string(svg).unwrap();
    assert!(svg.contains("\\u{202e}gmi") && !svg.contains(['\x1b', '\u{202e}']), "{svg}");
    bdsnap(lab.store.path(), &["list"], "").says("/srv/\\u{1b}]0;x\\u{7}\\u{202e}gmi\\n");
}

#[test]
fn verify() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, [a, b, c]) = three(tmp.path());
    let store = lab.store.path();
    let ran = bdsnap(store, &["verify", "--all"], "").expect(0);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(
        lines,
        [
            format!("{a}: ok (closed, 1 run, 12.0 KiB)"),
            format!("{b}: ok (broken, 1 run, 4.0 KiB); gap before it: written"),
            format!("{c}: ok (interrupted, 1 run, 4.0 KiB)"),
        ]
    );
    flip(&lab.path(&a).join("blocks.dat"), 77);
    let ran = bdsnap(store, &["verify", &a, &b], "").expect(4);
    assert!(ran.out.starts_with(&format!("{a}: DAMAGED: ")), "{}", ran.out);
    assert!(ran.err.contains("1 session damaged"));
    let json = bdsnap(store, &["verify", "--all", "--json"], "").expect(4).json();
    assert_eq!(json["schema_version"], 1);
    assert_eq!((&json["verified"], &json["damaged"]), (&json!(3), &json!(1)));
    assert_eq!(json["sessions"][0]["ok"], false);
    assert_eq!(json["sessions"][1]["gap_before"], "written");
    bdsnap(store, &["verify", &b], "").expect(0);
    bdsnap(store, &["verify", "disk"], "").expect(2).says(&c);
    bdsnap(store, &["verify", "nothing"], "").expect(3);
    bdsnap(store, &["verify"], "").expect(2);
    fs::remove_dir_all(lab.path(&b)).unwrap();
    bdsnap(store, &["verify", &c], "").expect(0).says("gap before it: missing");
}

#[test]
fn passwd_and_what_needs_the_module() {
    let tmp = tempfile::tempdir().unwrap();
    let store = tmp.path().join("s");
    let config = tmp.path().join("etc");
    let dir = config.to_str().unwrap();
    let secret = config.join("secret");
    let passwd = ["passwd", "--password-stdin", "--config-dir", dir];
    let ran = bdsnap(&store, &passwd, "hunter2\n").expect(0).says("loaded the next time");
    assert!(!format!("{}{}", ran.out, ran.err).contains("hunter2"));
    let first = fs::read_to_string(&secret).unwrap();
    assert!(first.starts_with("bdsnap1:pbkdf2-sha256:10000:"));
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o700);
    bdsnap(&store, &passwd, "hunter2\n").expect(0);
    assert_ne!(fs::read_to_string(&secret).unwrap(), first, "another salt");
    bdsnap(&store, &passwd, "\n").expect(2).says("empty");
    bdsnap(&store, &passwd, &"x".repeat(256)).expect(2).says("255");
    bdsnap(&store, &["passwd", "--config-dir", dir], "x").expect(2).says("no terminal");
    let missing = ["passwd", "--config-dir", dir, "--password-file", "/nonexistent"];
    bdsnap(&store, &missing, "").expect(1).says("/nonexistent");

    if Path::new("/dev/bdsnap").exists() {
        return;
    }
    for args in [
        &["status"][..],
        &["settle"],
        &["activate", "/dev/vdb", "--password-stdin"],
        &["deactivate", "/dev/vdb", "--password-stdin"],
    ] {
        bdsnap(&store, args, "x\n").expect(3).says("not loaded");
    }
    let json = bdsnap(&store, &["status", "--json"], "").expect(3).json();
    assert_eq!(json["error"]["kind"], "not-found");
    assert!(json["error"]["hint"].as_str().is_some_and(|h| !h.is_empty()), "there is a cure");
    assert!(!store.exists(), "nothing is made for a module that is not there");
}

#[test]
fn usage() {
    let tmp = tempfile::tempdir().unwrap();
    for args in
        [&[][..], &["frobnicate"], &["activate"], &["activate", "/dev/x", "--password", "y"]]
    {
        bdsnap(tmp.path(), args, "").expect(2);
    }
    bdsnap(tmp.path(), &["--help"], "").expect(0).says("Exit status: 0 ok");
    bdsnap(tmp.path(), &["--version"], "").expect(0).says("bdsnap 0.1.0");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, _) = three(tmp.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_bdsnap"))
        .arg("--store")
        .arg(lab.store.path())
        .args(["list", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

/// Half a second is the aim; of an optimised program on a machine with nothing else to do.
#[test]
fn ten_thousand_sessions_are_listed_soon() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, [a, ..]) = three(tmp.path());
    for i in 3..10_000 {
        let copy = lab.path(&format!("{a}-{i}"));
        fs::create_dir(&copy).unwrap();
        for file in ["blocks.map", "blocks.dat"] {
            fs::hard_link(lab.path(&a).join(file), copy.join(file)).unwrap();
        }
    }
    let took = (0..3).map(|_| {
        let start = std::time::Instant::now();
        let ran = bdsnap(lab.store.path(), &["list"], "").expect(0);
        assert_eq!(ran.out.lines().count(), 10_001);
        start.elapsed()
    });
    let took = took.min().unwrap();
    eprintln!("{took:?}");
    let limit = if cfg!(debug_assertions) { 10_000 } else { 1500 };
    assert!(took.as_millis() < limit, "{took:?}");
}

#[test]
fn list_is_filtered_and_sorted() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, [a, b, c]) = three(tmp.path());
    let names = |args: &[&str]| -> Vec<String> {
        let mut all = vec!["list", "-o", "name"];
        all.extend(args);
        bdsnap(lab.store.path(), &all, "")
            .expect(0)
            .out
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(names(&[]), [&*a, &*b, &*c]);
    assert_eq!(names(&["--reverse"]), [&*c, &*b, &*a]);
    assert_eq!(names(&["--sort", "saved_bytes", "--reverse"])[0], a);
    assert_eq!(names(&["--sort", "state"]), [&*b, &*a, &*c]);
    assert_eq!(names(&["--kind", "raw"]), [&*b]);
    assert_eq!(names(&["--state", "broken,interrupted"]), [&*b, &*c]);
    assert_eq!(
        names(&["--since", "2026-11-21T00:59:59Z", "--until", "2026-11-21T01:00:00Z"]),
        [&*b]
    );
    assert_eq!(names(&["--until", "2026-11-21"]), [&*a]);
    assert_eq!(names(&["--min-size", "5KiB"]), [&*a]);
    for bad in [["--since", "soon"], ["--min-size", "5%"], ["--sort", "nothing"]] {
        bdsnap(lab.store.path(), &[&["list"], &bad[..]].concat(), "").expect(2);
    }
    bdsnap(lab.store.path(), &["list", "--kind", "undo"], "")
        .expect(0)
        .says("no sessions that fit");
}

#[test]
fn holds_and_verifications_are_remembered() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, [a, b, _]) = three(tmp.path());
    let store = lab.store.path();
    bdsnap(store, &["hold", &a, "upgrade"], "").expect(0).says("is held");
    bdsnap(store, &["hold", &a, "other"], "").expect(0);
    bdsnap(store, &["hold", &a, "a,b"], "").expect(2);
    bdsnap(store, &["hold", "disk", "x"], "").expect(2).says("choose from");
    bdsnap(store, &["verify", &a, "--json"], "").expect(0);
    flip(&lab.path(&b).join("blocks.dat"), 77);
    bdsnap(store, &["verify", &b], "").expect(4);
    let list = bdsnap(store, &["list", "--json"], "").expect(0).json();
    let s = &list["sessions"];
    assert_eq!(s[0]["holds"], json!(["upgrade", "other"]));
    assert_eq!(
        (&s[0]["verified_ok"], &s[1]["verified_ok"], &s[2]["verified_ok"]),
        (&json!(true), &json!(false), &json!(null))
    );
    bdsnap(store, &["list"], "").expect(0).says("held: upgrade; held: other").says("DAMAGED");
    bdsnap(store, &["release", &a, "upgrade"], "").expect(0).says("1 hold left");
    bdsnap(store, &["release", &a, "upgrade"], "").expect(3);
    bdsnap(store, &["release", &a, "other"], "").expect(0);
    assert!(!lab.path(&a).join("holds.json").exists());
    bdsnap(store, &["tag", &a, "release"], "").expect(0).says("now tagged release");
    bdsnap(store, &["tag", &a, "release"], "").expect(0).says("already");
    bdsnap(store, &["tag", &a, "\x1b"], "").expect(2);
    bdsnap(store, &["list", "--tag", "x,release"], "").expect(0).says("tag: release");
    let list = bdsnap(store, &["list", "--json", "--tag", "release"], "").expect(0).json();
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1);
    bdsnap(store, &["untag", &a, "release"], "").expect(0);
    bdsnap(store, &["untag", &a, "release"], "").expect(3);
    assert!(!lab.path(&a).join("tags.json").exists());
    // What has changed since is not verified.
    fs::OpenOptions::new()
        .append(true)
        .open(lab.path(&b).join("blocks.map"))
        .unwrap()
        .write_all(&[0; 32])
        .unwrap();
    let list = bdsnap(store, &["list", "--json"], "").expect(0).json();
    assert_eq!(list["sessions"][1]["verified"], json!(null));
}

#[test]
fn inspect() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, [a, ..]) = three(tmp.path());
    let store = lab.store.path();
    let ran = bdsnap(store, &["inspect", &a], "").expect(0);
    assert!(ran.out.contains("Saved    12.0 KiB in 1 run, 3.00 % of the device"), "{}", ran.out);
    assert!(ran.out.contains("Largest  12.0 KiB at 0 B"), "{}", ran.out);
    assert!(ran.out.contains("\n █"), "{}", ran.out);
    let doc = bdsnap(store, &["inspect", &a, "--json"], "").expect(0).json();
    assert_eq!(
        (&doc["schema_version"], &doc["saved_bytes"], &doc["pieces"]),
        (&json!(1), &json!(12288), &json!(1))
    );
    let heat: Vec<u64> =
        doc["heat"].as_array().unwrap().iter().map(|h| h.as_u64().unwrap()).collect();
    assert_eq!(heat.len(), 256);
    // 12288 of 409600 bytes are 7.68 of 256 cells.
    assert!(
        heat[..7].iter().all(|h| *h == 1000) && heat[7] == 680 && heat[8..].iter().all(|h| *h == 0),
        "{heat:?}"
    );
    let svg = tmp.path().join("x.svg");
    bdsnap(store, &["inspect", &a, "--svg", svg.to_str().unwrap()], "").expect(0);
    assert!(fs::read_to_string(&svg).unwrap().starts_with("<svg"));
    bdsnap(store, &["inspect", &a, "--svg", svg.to_str().unwrap()], "").expect(1);
    // No file system, no gap accepted.
    bdsnap(store, &["inspect", &a, "--files"], "").expect(5);
    bdsnap(store, &["cat", &a, "/x", "--accept-gap", "--accept-loss"], "").expect(5).says("ext4");
}

#[test]
fn settings_and_where_they_are_from() {
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir(tmp.path().join("conf.d")).unwrap();
    let put = |name: &str, text: &str| fs::write(tmp.path().join(name), text).unwrap();
    put("bdsnap.toml", "[module]\nmin_free_mib = 7\n[prune]\nkeep_last = 5\n");
    put("conf.d/10-more.toml", "store = \"/data\"\n[prune]\nkeep_tags = [\"a\"]\n");
    let dir = tmp.path().to_str().unwrap();
    let show = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bdsnap"));
        Ran::of(command.args(["config", "show", "--config-dir", dir]).args(args), b"")
    };
    let out = show(&[]).expect(0).out;
    let words: Vec<Vec<&str>> = out.lines().map(|l| l.split_whitespace().collect()).collect();
    for (value, source) in [
        ("store = \"/data\"", "conf.d/10-more.toml"),
        ("#durability = \"strict\"", "default"),
        ("min_free_mib = 7", "bdsnap.toml"),
        ("keep_last = 5", "bdsnap.toml"),
        ("keep_tags = [\"a\"]", "conf.d/10-more.toml"),
        ("#min_age = \"1h\"", "default"),
    ] {
        let source = if source == "default" { source.into() } else { format!("{dir}/{source}") };
        let mut line: Vec<&str> = value.split(' ').collect();
        line.extend(["#", &source]);
        assert!(words.contains(&line), "{line:?}: {out}");
    }
    show(&["--store", "/flag"]).expect(0).says("store = \"/flag\"").says("# command line");
    assert_eq!(show(&["store"]).expect(0).out, "/data\n");
    let json = show(&["--json"]).expect(0).json();
    let values = json["values"].as_array().unwrap();
    let of = |key: &str| values.iter().find(|v| v["key"] == key).unwrap();
    assert_eq!(of("prune.keep_last")["value"], "5");
    assert_eq!(of("module.chunk_size")["source"], "default");
    put("conf.d/20-bad.toml", "[prune]\nkeep_lats = 1\n");
    show(&[]).expect(1).says("20-bad.toml: no such rule: keep_lats");
}

#[test]
fn help_pages_and_completions() {
    let commands = [
        "init",
        "activate",
        "deactivate",
        "passwd",
        "settle",
        "reload",
        "config",
        "config show",
        "status",
        "list",
        "verify",
        "inspect",
        "view",
        "cat",
        "extract",
        "hold",
        "release",
        "tag",
        "untag",
    ];
    let program = env!("CARGO_BIN_EXE_bdsnap");
    help_and_pages(program, "bdsnap", env!("CARGO_MANIFEST_DIR"), &commands);
}

/// What a user sees who looks around.
#[test]
fn transcript() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, [a, b, _]) = three(tmp.path());
    let mut t = Transcript::of(env!("CARGO_MANIFEST_DIR"), "transcripts/store.txt")
        .replacing(lab.store.path(), "/snapshot")
        .replacing(tmp.path(), "/srv");
    let also = ["--store".as_ref(), lab.store.path().as_os_str()];
    for line in [
        "bdsnap list",
        "bdsnap list -o name,kind,saved_bytes --state closed,broken --sort saved_bytes",
        "bdsnap list -o nonsense",
        "bdsnap list /dev/none",
        "bdsnap verify --all",
        "bdsnap verify nothing",
        "bdsnap inspect BROKEN",
        "bdsnap hold CLOSED before-upgrade",
        "bdsnap tag CLOSED release",
        "bdsnap release CLOSED nothing",
        "bdsnap cat BROKEN /etc/fstab",
        "bdsnap view BROKEN /mnt",
        "bdsnap frobnicate",
        "bdsnap --store /none list",
    ] {
        let line = line.replace("CLOSED", &a).replace("BROKEN", &b);
        let also = if line.contains("--store") { &[][..] } else { &also[..] };
        t.run(env!("CARGO_BIN_EXE_bdsnap"), &line, also);
    }
    flip(&lab.path(&a).join("blocks.dat"), 77);
    t.run(env!("CARGO_BIN_EXE_bdsnap"), &format!("bdsnap verify {a}"), &also);
    t.end(|line| match line.split_once(" free in ") {
        // Depends on the file system.
        Some((before, _)) => before.split(',').next().unwrap_or_default().to_owned() + ", ...",
        None if line.starts_with("Stored ") => "Stored   ...".to_owned(),
        // A column is as wide as the names that stand here for others.
        None if line.starts_with("DEVICE") || line.starts_with("/srv/") => {
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        }
        None => line.to_owned(),
    });
}

#[test]
fn metrics() {
    let tmp = tempfile::tempdir().unwrap();
    let (lab, _) = three(tmp.path());
    let ran = bdsnap(lab.store.path(), &["status", "--prometheus", "-"], "").expect(0);
    let image = lab.image.to_str().unwrap();
    let line = format!("bdsnap_sessions{{device=\"{image}\",state=\"broken\"}} 1\n");
    assert!(ran.out.contains(&line), "{}", ran.out);
    assert!(ran.out.contains("\nbdsnap_store_present 1\n"), "{}", ran.out);
    let file = tmp.path().join("bdsnap.prom");
    bdsnap(&tmp.path().join("none"), &["status", "--prometheus", file.to_str().unwrap()], "")
        .expect(0);
    assert!(fs::read_to_string(&file).unwrap().contains("bdsnap_store_present 0\n"));
}

/// Eight times as many sessions take about eight times as long, not 64 times.
#[test]
fn a_list_looks_at_each_session_once() {
    let took = |sessions: usize| {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = Lab::new(tmp.path(), 4096);
        for _ in 0..sessions {
            lab.record(&Options::default()).end(State::Closed);
        }
        let one = || {
            let began = std::time::Instant::now();
            let ran = bdsnap(lab.store.path(), &["list"], "").expect(0);
            assert_eq!(ran.out.matches(" closed ").count(), sessions);
            began.elapsed()
        };
        // Whatever else the machine does: the best of some.
        (0..5).map(|_| one()).min().unwrap()
    };
    let (few, many) = (took(30), took(240));
    assert!(many < few * 24, "{few:?} for 30 sessions, {many:?} for 240");
}
