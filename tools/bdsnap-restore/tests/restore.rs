// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-restore` on image files, without the module: then nobody watched,
//! and every restore goes over a gap.
#![allow(missing_docs)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use bdsnap_core::abi::format::{Gap, Kind, State, DAT_NAME, MAP_NAME, NO_ID};
use bdsnap_core::store::Item;
use bdsnap_core::test_support::{flip, help_and_pages, pattern, Lab, Options, Ran, Transcript};
use serde_json::{json, Value};

const CHUNK: usize = 4096;
const SIZE: usize = 300 * CHUNK + 1536;

fn run(lab: &Lab, args: &[&OsStr]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bdsnap-restore"));
    Ran::of(command.arg("--store").arg(lab.store.path()).args(args), b"")
}

/// Runs with the image and these arguments.
fn restore(lab: &Lab, args: &[&str]) -> Ran {
    let mut all = vec![lab.image.as_os_str()];
    all.extend(args.iter().map(OsStr::new));
    run(lab, &all)
}

/// Two closed sessions; the images at the start of each, and their names.
fn two_sessions(lab: &mut Lab) -> [(String, Vec<u8>); 2] {
    let first = lab.device.clone();
    let mut r = lab.record(&Options::default());
    r.write(5 * CHUNK, &pattern(40 * CHUNK, 7));
    r.write(299 * CHUNK + 100, &pattern(CHUNK, 8));
    let a = r.end(State::Closed);
    let second = lab.device.clone();
    let mut r = lab.record(&Options { zeros: true, ..Options::default() });
    r.write(0, &pattern(20 * CHUNK, 9));
    r.write(100 * CHUNK, &pattern(300, 10));
    let b = r.end(State::Closed);
    [(a, first), (b, second)]
}

fn lab() -> (tempfile::TempDir, Lab) {
    let tmp = tempfile::tempdir().unwrap();
    let lab = Lab::new(tmp.path(), SIZE);
    (tmp, lab)
}

fn sessions(lab: &Lab) -> usize {
    lab.store.items().unwrap().len()
}

#[test]
fn back_to_each_session_and_forth() {
    let (_tmp, mut lab) = lab();
    let [(a, first), (b, second)] = two_sessions(&mut lab);
    let now = lab.content();
    restore(&lab, &["latest", "--yes"]).expect(5).says("not watched").says("--accept-gap");
    assert_eq!(lab.content(), now);
    assert_eq!(sessions(&lab), 2);

    restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(0).says("read back and equal");
    assert!(lab.content() == second);
    assert_eq!(sessions(&lab), 3);
    // The undo session takes it back, and another one that again.
    restore(&lab, &["--undo", "--yes", "--accept-gap"]).expect(0);
    assert!(lab.content() == now);
    restore(&lab, &["--undo", "--yes", "--accept-gap"]).expect(0);
    assert!(lab.content() == second);
    // From there to the first one, through all of them.
    restore(&lab, &[&a, "--yes", "--accept-gap"]).expect(0);
    assert!(lab.content() == first);
    restore(&lab, &[&a, "--yes", "--accept-gap"]).expect(0).says("nothing to write");
    // 'latest' means recorded sessions, not undo sessions.
    restore(&lab, &["latest~1", "--yes", "--accept-gap"]).expect(0).says("nothing to write");
    restore(&lab, &[&b[..b.len() - 1], "--yes", "--accept-gap"]).expect(0);
    assert!(lab.content() == second);
}

#[test]
fn undo_session_is_linked_and_private() {
    let (_tmp, mut lab) = lab();
    let [(_, _), (b, _)] = two_sessions(&mut lab);
    let newest = lab.last;
    let json = restore(&lab, &["latest", "--yes", "--accept-gap", "--json"]).expect(0).json();
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["plan"]["session"], b.as_str());
    assert_eq!(json["plan"]["accepted"], serde_json::json!(["gap"]));
    assert_eq!(json["plan"]["unproven"], true);
    assert_eq!(json["plan"]["devices"][0]["gap_now"], "unknown");
    assert_eq!(json["result"]["bytes_written"], 21 * CHUNK);
    let name = json["result"]["undo_sessions"][0].as_str().unwrap();
    let Some(Item::Session(undo)) = lab.store.item(name.as_bytes()) else { panic!("{name}") };
    assert_eq!(undo.header.kind, Kind::Undo);
    assert_eq!(undo.status.state, State::Closed);
    assert_eq!(undo.header.prev_session_id, newest);
    assert_eq!(undo.header.restored_id, newest);
    assert_eq!(undo.header.gap_before, Gap::Unknown);
    assert_eq!(undo.header.chain_seq, 3);
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&undo.path), 0o700);
    for file in ["blocks.map", "blocks.dat", "meta.json"] {
        assert_eq!(mode(&undo.path.join(file)), 0o600, "{file}");
    }
    let tail = lab.store.tail(lab.image.as_os_str().as_encoded_bytes()).unwrap().unwrap();
    assert_eq!(tail.session_id, undo.header.session_id);
    assert_eq!(tail.load_id, NO_ID, "no module watched");
    assert_eq!(tail.device_bytes, SIZE as u64);
    assert!(tail.image_mtime_ns > 0);
    for s in tail.samples() {
        let at = s.sector as usize * 512;
        assert_eq!(crc32(&lab.content()[at..at + s.bytes as usize]), s.crc);
    }
    assert!(!tail.samples().is_empty());
}

fn crc32(bytes: &[u8]) -> u32 {
    bdsnap_core::abi::crc::crc32c(bytes)
}

#[test]
fn nothing_waits_without_a_terminal() {
    let (_tmp, mut lab) = lab();
    let [(a, _), (b, _)] = two_sessions(&mut lab);
    let now = lab.content();
    restore(&lab, &[]).expect(2).says(&format!("choose from: {b}, {a}"));
    restore(&lab, &["latest", "--accept-gap"]).expect(5).says("--yes");
    restore(&lab, &["disk.img_", "--yes"]).expect(2).says(&a).says(&b);
    restore(&lab, &["vdb_2026", "--yes"]).expect(3);
    restore(&lab, &["latest~2", "--yes"]).expect(3);
    restore(&lab, &["--undo", "--yes"]).expect(3).says("no undo session");
    restore(&lab, &["latest", "--undo"]).expect(2);
    assert_eq!(lab.content(), now);
    assert_eq!(sessions(&lab), 2);
}

#[test]
fn dry_run_writes_nothing() {
    let (tmp, mut lab) = lab();
    two_sessions(&mut lab);
    let now = lab.content();
    let marker = || fs::read(lab.store.path().join(".bdsnap-store")).unwrap();
    let before = marker();
    let ran = restore(&lab, &["latest~1", "--dry-run", "--accept-gap", "--json"]).expect(0);
    let json = ran.json();
    assert_eq!(json["result"], Value::Null);
    assert_eq!(json["plan"]["devices"][0]["chain"].as_array().unwrap().len(), 2);
    let covered = json["plan"]["devices"][0]["bytes_covered"].as_u64().unwrap();
    assert_eq!(covered, 47 * CHUNK as u64 + 1536);
    assert_eq!(json["plan"]["bytes_to_write"], covered);
    restore(&lab, &["latest", "--dry-run"]).expect(5);
    assert_eq!(lab.content(), now);
    assert_eq!(marker(), before);
    assert_eq!(sessions(&lab), 2);
    drop(tmp);
}

#[test]
fn to_a_file() {
    let (tmp, mut lab) = lab();
    let [(a, first), _] = two_sessions(&mut lab);
    let now = lab.content();
    let out = tmp.path().join("past.img");
    let to = |extra: &[&str]| {
        let mut args = vec![a.as_str(), "--accept-gap", "--to", out.to_str().unwrap()];
        args.extend(extra);
        restore(&lab, &args)
    };
    to(&[]).expect(0);
    assert!(fs::read(&out).unwrap() == first);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    to(&[]).expect(5).says("exists");
    fs::write(&out, "old").unwrap();
    to(&["--yes"]).expect(0);
    assert!(fs::read(&out).unwrap() == first);
    let image = lab.image.to_str().unwrap();
    restore(&lab, &["latest", "--accept-gap", "--yes", "--to", image]).expect(5).says("itself");
    restore(&lab, &["latest", "--accept-gap", "--yes", "--to", "/dev/null"]).expect(5);
    restore(&lab, &["latest", "--to", image]).expect(5).says("gap");
    assert!(lab.content() == now);
    assert_eq!(sessions(&lab), 2);
    let left: Vec<_> = fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn damage_is_found_before_the_first_write() {
    let (_tmp, mut lab) = lab();
    let [(a, _), (b, _)] = two_sessions(&mut lab);
    let now = lab.content();
    for (dir, file, bit) in [
        (&a, DAT_NAME, 80_000),
        (&b, DAT_NAME, 1),
        (&a, MAP_NAME, 16_400 * 8),
        (&b, MAP_NAME, 16_460 * 8),
    ] {
        let path = lab.path(dir).join(file);
        let whole = fs::read(&path).unwrap();
        flip(&path, bit);
        restore(&lab, &[&a, "--yes", "--accept-gap", "--accept-loss"]).expect(4).says("damaged");
        fs::write(&path, whole).unwrap();
        assert!(lab.content() == now);
        assert_eq!(sessions(&lab), 2);
    }
    // A header that cannot be read takes its session out of the chain.
    flip(&lab.path(&b).join(MAP_NAME), 900);
    restore(&lab, &[&a, "--yes"]).expect(5).says("gap");
    restore(&lab, &[&b, "--yes"]).expect(3);
}

#[test]
fn a_missing_session_is_a_gap() {
    let (_tmp, mut lab) = lab();
    let [(a, _), (b, _)] = two_sessions(&mut lab);
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; 10]);
    r.end(State::Closed);
    fs::remove_dir_all(lab.path(&b)).unwrap();
    restore(&lab, &[&a, "--yes"]).expect(5).says("a session in between is missing");
    let json = restore(&lab, &[&a, "--dry-run", "--accept-gap", "--json"]).expect(0).json();
    assert_eq!(json["plan"]["devices"][0]["chain"][0]["gap_before"], "missing");
    assert_eq!(json["plan"]["devices"][0]["chain"][1]["gap_before"], Value::Null);
}

#[test]
fn lossy_sessions_need_consent() {
    for state in [Some(State::Broken), Some(State::Tainted), None] {
        let (_tmp, mut lab) = lab();
        let first = lab.device.clone();
        let mut r = lab.record(&Options::default());
        r.write(0, &[1; CHUNK]);
        match state {
            Some(state) => r.end(state),
            None => {
                r.taint();
                r.write(3 * CHUNK, &[2; CHUNK]);
                r.cut()
            }
        };
        restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(5).says("--accept-loss");
        let args = ["latest", "--yes", "--accept-gap", "--accept-loss", "--json"];
        let json = restore(&lab, &args).expect(6).json();
        assert_eq!(json["plan"]["partial"], true);
        assert_eq!(json["plan"]["accepted"], serde_json::json!(["gap", "loss"]));
        assert!(lab.content() == first);
    }
}

#[test]
fn interrupted_strict_session_is_restored() {
    let (_tmp, mut lab) = lab();
    let first = lab.device.clone();
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; CHUNK]);
    r.commit();
    r.write(7 * CHUNK, &[2; CHUNK]);
    r.cut();
    restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(0).says("interrupted; strict");
    assert!(lab.content() == first);
}

#[test]
fn one_of_several_devices_needs_consent() {
    let (_tmp, mut lab) = lab();
    let group = Options { group: [9; 16], ..Options::default() };
    let mut r = lab.record(&group);
    r.write(0, &[1; CHUNK]);
    r.end(State::Closed);
    // Alone in its group: nothing to say.
    restore(&lab, &["latest", "--dry-run", "--accept-gap"]).expect(0);
    let mut other = lab.record(&group);
    other.write(0, &[2; CHUNK]);
    assert!(other.header.set_name(b"/dev/other"));
    other.end(State::Closed);
    restore(&lab, &["latest", "--yes", "--accept-gap"])
        .expect(5)
        .says("/dev/other")
        .says("--alone");
    restore(&lab, &["latest", "--dry-run", "--accept-gap", "--alone"]).expect(0);
}

#[test]
fn another_device_is_refused() {
    let (tmp, mut lab) = lab();
    let [(a, first), _] = two_sessions(&mut lab);
    let out = tmp.path().join("out");
    restore(&lab, &[&a, "--accept-gap", "--to", out.to_str().unwrap()]).expect(0);
    assert!(fs::read(out).unwrap() == first);
    // The image has become smaller: not the device of the sessions.
    let now = lab.content();
    fs::write(&lab.image, &now[..SIZE - 512]).unwrap();
    restore(&lab, &[&a, "--yes", "--accept-gap"]).expect(5).says("--to FILE");
    // It has grown: what is behind the former end is left alone.
    fs::write(&lab.image, [&now[..], &[7; 512]].concat()).unwrap();
    restore(&lab, &[&a, "--yes", "--accept-gap"]).expect(0);
    assert!(lab.content() == [&first[..], &[7; 512]].concat());
    let other = tmp.path().join("other.img");
    fs::write(&other, vec![0; SIZE]).unwrap();
    run(&lab, &[other.as_os_str(), OsStr::new(&a), OsStr::new("--yes")])
        .expect(5)
        .says("of another device");
    run(&lab, &[other.as_os_str(), OsStr::new("latest"), OsStr::new("--yes")]).expect(3);
    run(&lab, &[OsStr::new("/dev/never-there"), OsStr::new("latest")]).expect(3);
}

#[test]
fn without_undo_there_is_a_gap() {
    let (_tmp, mut lab) = lab();
    let [_, (_, second)] = two_sessions(&mut lab);
    restore(&lab, &["latest", "--yes", "--accept-gap", "--no-undo"]).expect(0).says("gap");
    assert!(lab.content() == second);
    assert_eq!(sessions(&lab), 2);
    let tail = lab.store.tail(lab.image.as_os_str().as_encoded_bytes()).unwrap().unwrap();
    assert_eq!((tail.session_id, tail.load_id), (lab.last, NO_ID));
}

#[test]
fn chunk_sizes_may_differ_in_a_chain() {
    let (_tmp, mut lab) = lab();
    let first = lab.device.clone();
    for (i, chunk) in [65536, 4096, 8192].into_iter().enumerate() {
        let mut r = lab.record(&Options { chunk, ..Options::default() });
        r.write(i * 9000 + 50_000, &pattern(30_000, 20 + i as u64));
        r.write(SIZE - 700 * (i + 1), &[i as u8; 600]);
        r.end(State::Closed);
    }
    restore(&lab, &["latest~2", "--yes", "--accept-gap"]).expect(0);
    assert!(lab.content() == first);
    restore(&lab, &["--undo", "--yes", "--accept-gap"]).expect(0);
    assert!(lab.content() == lab.device);
}

#[test]
fn a_locked_image_is_in_use() {
    let (_tmp, mut lab) = lab();
    two_sessions(&mut lab);
    let mut flock = Command::new("flock")
        .arg(&lab.image)
        .args(["-c", "echo locked; exec sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(flock.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(5).says("locked");
    flock.kill().unwrap();
    flock.wait().unwrap();
}

#[test]
fn errors_are_json_too() {
    let (_tmp, mut lab) = lab();
    two_sessions(&mut lab);
    let ran = restore(&lab, &["latest", "--yes", "--json"]).expect(5);
    let json = ran.json();
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["error"]["kind"], "refused");
    assert_eq!(json["error"]["exit_code"], 5);
    assert!(json["error"]["hint"].as_str().unwrap().contains("--accept-gap"));
}

/// Runs on a terminal of its own, with this typed; `None` without script(1).
fn on_terminal(lab: &Lab, args: &[&str], typed: &[u8]) -> Option<(i32, String)> {
    let quoted: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
    let command = format!(
        "'{}' --store '{}' '{}' {}",
        env!("CARGO_BIN_EXE_bdsnap-restore"),
        lab.store.path().display(),
        lab.image.display(),
        quoted.join(" ")
    );
    let mut child = Command::new("script")
        .args(["-qefc", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take().unwrap();
    // Typed before it is asked for, it waits in the terminal's buffer.
    std::thread::sleep(std::time::Duration::from_millis(500));
    std::io::Write::write_all(&mut input, typed).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    Some((output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[test]
fn a_terminal_is_asked() {
    let (_tmp, mut lab) = lab();
    let [(a, first), _] = two_sessions(&mut lab);
    let now = lab.content();
    let name = lab.image.display().to_string();
    let Some((status, out)) = on_terminal(&lab, &["latest", "--accept-gap"], b"yes\n") else {
        eprintln!("skipped: no script(1)");
        return;
    };
    assert_eq!(status, 5, "{out}");
    assert!(out.contains("not confirmed"), "{out}");
    assert!(lab.content() == now);
    // The second in the list, newest first.
    let typed = [b"\x1b[B\r", name.as_bytes(), b"\r"].concat();
    let (status, out) = on_terminal(&lab, &["--accept-gap"], &typed).unwrap();
    assert_eq!(status, 0, "{out}");
    assert!(out.contains(&a), "{out}");
    assert!(lab.content() == first);
    let (status, out) = on_terminal(&lab, &["--accept-gap"], b"\x1b").unwrap();
    assert_eq!(status, 130, "{out}");
}

#[test]
fn description_of_an_undo_session() {
    let (_tmp, mut lab) = lab();
    two_sessions(&mut lab);
    let json = restore(&lab, &["latest", "--yes", "--accept-gap", "--json"]).expect(0).json();
    let undo = lab.path(json["result"]["undo_sessions"][0].as_str().unwrap());
    let meta: Value = serde_json::from_slice(&fs::read(undo.join("meta.json")).unwrap()).unwrap();
    assert_eq!(meta["device"], lab.image.to_str().unwrap());
    assert_eq!(meta["snapshot_type"], "COW");
    assert_eq!(meta["kind"], "undo");
    assert_eq!(meta["state"], "closed");
    assert_eq!(meta["restored_id"], "02".repeat(16));
    assert_eq!(meta["total_blocks_saved"], 21);
}

#[test]
fn a_moved_image_is_recognised_by_its_content() {
    let (tmp, mut lab) = lab();
    let [(a, first), _] = two_sessions(&mut lab);
    // What the module would remember of the end.
    let mut tail = bdsnap_core::abi::format::Tail::new();
    tail.session_id = lab.last;
    tail.chain_seq = 2;
    tail.device_bytes = SIZE as u64;
    let name = lab.image.as_os_str().as_encoded_bytes().to_vec();
    let head = bdsnap_core::writer::Head::of(&lab.content()[..128 * 1024]);
    tail.head_sha256 = head.sha256;
    lab.store.set_tail(&name, &tail).unwrap();

    let moved = tmp.path().canonicalize().unwrap().join("moved.img");
    fs::rename(&lab.image, &moved).unwrap();
    let args = |extra: &[&'static str]| -> Vec<std::ffi::OsString> {
        let mut args = vec![moved.clone().into(), a.clone().into()];
        args.extend(extra.iter().map(Into::into));
        args
    };
    let ran = |args: Vec<std::ffi::OsString>| {
        run(&lab, &args.iter().map(|a| a.as_os_str()).collect::<Vec<_>>())
    };
    ran(args(&["--yes", "--accept-gap", "-v"])).expect(0).says("same content as at the end");
    assert!(fs::read(&moved).unwrap() == first);
    // Something else of that size is not it.
    fs::write(&moved, pattern(SIZE, 99)).unwrap();
    ran(args(&["--dry-run", "--accept-gap"])).expect(5).says("of another device");
    // Nor is a copy while the recorded one is there.
    fs::write(&lab.image, &lab.device).unwrap();
    fs::write(&moved, &lab.device).unwrap();
    ran(args(&["--dry-run", "--accept-gap"])).expect(5).says("of another device");
}

#[test]
fn progress_as_lines_of_json() {
    let (_tmp, mut lab) = lab();
    two_sessions(&mut lab);
    let ran = restore(&lab, &["latest", "--yes", "--accept-gap", "--json-lines"]).expect(0);
    let lines: Vec<Value> = ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|l| l["type"] == kind).collect::<Vec<_>>();
    let phases: Vec<&str> = of("progress").iter().map(|l| l["phase"].as_str().unwrap()).collect();
    for phase in ["verify", "compare", "save for undo", "restore", "check"] {
        assert!(phases.contains(&phase), "{phase} in {phases:?}");
    }
    for l in of("progress") {
        assert!(l["done"].as_u64().unwrap() <= l["total"].as_u64().unwrap(), "{l}");
    }
    // Each phase ends at its total.
    for pair in of("progress").windows(2).filter(|p| p[0]["phase"] != p[1]["phase"]) {
        assert_eq!(pair[0]["done"], pair[0]["total"], "{}", pair[0]);
    }
    // From the first write on all is one piece of work, up to the last byte read back.
    let mut planned = of("progress");
    planned.retain(|l| !l["all_total"].is_null());
    assert!(planned.windows(2).all(|p| p[0]["all_done"].as_u64() <= p[1]["all_done"].as_u64()));
    assert_eq!(planned[0]["phase"], "save for undo");
    let last = planned[planned.len() - 1];
    assert_eq!((&last["phase"], &last["all_done"]), (&json!("check"), &json!(3 * 21 * CHUNK)));
    assert_eq!((&last["all_total"], &last["eta_seconds"]), (&json!(3 * 21 * CHUNK), &json!(0.0)));
    let restored = planned.iter().rev().find(|l| l["phase"] == "restore").unwrap();
    assert!(restored["eta_seconds"].as_f64().unwrap() > 0.0, "the check is still to come");
    assert_eq!(of("plan").len(), 1);
    assert_eq!(of("result")[0]["result"]["bytes_written"], 21 * CHUNK);
    let ran = restore(&lab, &["latest", "--yes", "--json-lines"]).expect(5);
    let last: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!(last["type"], "error");
    assert_eq!(last["exit_code"], 5);
}

#[test]
fn history_of_restores() {
    let (_tmp, mut lab) = lab();
    let [(a, _), (b, _)] = two_sessions(&mut lab);
    restore(&lab, &["latest", "--dry-run", "--accept-gap"]).expect(0);
    restore(&lab, &["latest", "--yes", "--accept-gap"]).expect(0);
    restore(&lab, &[&a, "--yes", "--accept-gap", "--no-undo"]).expect(0);
    restore(&lab, &[&a, "--yes", "--accept-gap"]).expect(0).says("nothing to write");
    let path = lab.store.path().join(".bdsnap-history");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2, "of what wrote something: {text}");
    assert_eq!(lines[0]["session"], b.as_str());
    assert_eq!(lines[0]["result"], "done");
    assert_eq!(lines[0]["undo_sessions"].as_array().unwrap().len(), 1);
    assert_eq!(lines[1]["session"], a.as_str());
    assert_eq!(lines[1]["undo_sessions"].as_array().unwrap().len(), 0);
}

#[test]
fn nothing_to_resume() {
    let (_tmp, mut lab) = lab();
    two_sessions(&mut lab);
    restore(&lab, &["--resume", "--yes"]).expect(3).says("no interrupted restore");
    restore(&lab, &["latest", "--resume"]).expect(2);
}

/// Killed by a signal in the middle, as a user would.
#[test]
fn a_signal_stops_between_pieces_and_says_how_to_go_on() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), 96 << 20);
    let past = lab.device.clone();
    let mut r = lab.record(&Options::default());
    r.write(0, &pattern(96 << 20, 3));
    r.end(State::Closed);
    let now = lab.content();
    let mut child = Command::new(env!("CARGO_BIN_EXE_bdsnap-restore"))
        .arg("--store")
        .arg(lab.store.path())
        .arg(&lab.image)
        .args(["latest", "--yes", "--accept-gap", "--json-lines"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // As soon as the writes begin.
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut last = String::new();
    for line in lines.map(Result::unwrap) {
        if line.contains("\"phase\":\"restore\"") {
            let kill = format!("kill -INT {}", child.id());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
        last = line;
    }
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(0) {
        // It was done before the signal came.
        assert!(lab.content() == past);
        eprintln!("skipped: too fast to be stopped");
        return;
    }
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("--resume' goes on") && err.contains("--undo' goes back"), "{err}");
    assert!(last.contains("\"type\":\"error\""), "{last}");
    let middle = lab.content();
    assert!(middle != past);
    restore(&lab, &["--resume", "--yes"]).expect(0).says("goes on");
    assert!(lab.content() == past);
    restore(&lab, &["--undo", "--yes", "--accept-gap"]).expect(0);
    assert!(lab.content() == now);
}

#[test]
fn help_pages_and_completions() {
    let program = env!("CARGO_BIN_EXE_bdsnap-restore");
    help_and_pages(program, "bdsnap-restore", env!("CARGO_MANIFEST_DIR"), &[]);
}

/// What a user sees who restores and changes his mind.
#[test]
fn transcript() {
    let (tmp, mut lab) = lab();
    two_sessions(&mut lab);
    fs::write(tmp.path().join("\u{1b}[31m.img"), b"x").unwrap();
    let program = env!("CARGO_BIN_EXE_bdsnap-restore");
    let mut t = Transcript::of(env!("CARGO_MANIFEST_DIR"), "transcripts/restore.txt")
        .replacing(lab.store.path(), "/snapshot")
        .replacing(tmp.path(), "/srv");
    let image = lab.image.clone();
    let also = ["--store".as_ref(), lab.store.path().as_os_str()];
    for line in [
        "bdsnap-restore IMAGE",
        "bdsnap-restore IMAGE nothing",
        "bdsnap-restore IMAGE latest~1 --dry-run",
        "bdsnap-restore IMAGE latest~1 --dry-run --accept-gap",
        "bdsnap-restore IMAGE latest --accept-gap",
        "bdsnap-restore IMAGE latest --accept-gap --yes",
        "bdsnap-restore IMAGE --resume",
        "bdsnap-restore IMAGE --undo --no-undo --accept-gap --yes --quiet",
        "bdsnap-restore /srv/none latest",
        "bdsnap-restore IMAGE latest --undo",
    ] {
        t.run(program, &line.replace("IMAGE", image.to_str().unwrap()), &also);
    }
    t.end(|line| {
        // Named after the time when it was made.
        let (before, undo) = line.split_once("Undo     disk.img_").unwrap_or((line, ""));
        match undo.split_once(':') {
            Some((_, rest)) => format!("{before}Undo     disk.img_TIME:{rest}"),
            None => line.to_owned(),
        }
    });
}
