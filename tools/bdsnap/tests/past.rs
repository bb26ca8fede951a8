// SPDX-License-Identifier: GPL-2.0

//! Files and views of a past that has an ext4 file system. Needs mke2fs,
//! e2fsck, root and FUSE: `cargo test -p bdsnap --test past -- --ignored`. In
//! a guest `tests/cases/view.sh` does the same with the module's sessions.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bdsnap_core::abi::format::State;
use bdsnap_core::test_support::{Lab, Options};
use serde_json::Value;

const BYTES: usize = 8 << 20;

/// An ext4 image of a folder; the same folder gives the same image, but for
/// what differs in it.
fn mke2fs(folder: &Path, image: &Path) -> Vec<u8> {
    let _ = fs::remove_file(image);
    fs::File::create(image).unwrap().set_len(BYTES as u64).unwrap();
    let ok = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-U", "5f0c1d2e-0000-4000-8000-000000000001"])
        .args(["-E", "hash_seed=5f0c1d2e-0000-4000-8000-000000000002", "-d"])
        .args([folder, image])
        .status()
        .unwrap()
        .success();
    assert!(ok);
    fs::read(image).unwrap()
}

fn command(lab: &Lab, args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_bdsnap"));
    c.arg("--store").arg(lab.store.path()).args(args).stdin(Stdio::null());
    c
}

fn bdsnap(lab: &Lab, args: &[&str], status: i32) -> (Vec<u8>, String) {
    let Output { status: s, stdout, stderr } = command(lab, args).output().unwrap();
    let err = String::from_utf8(stderr).unwrap();
    let out = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(s.code(), Some(status), "{args:?}\n{out}\n{err}");
    (stdout, err)
}

#[test]
#[ignore = "needs mke2fs, e2fsck, root and FUSE"]
fn files_and_views() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let folder = dir.join("folder");
    fs::create_dir_all(folder.join("d")).unwrap();
    fs::write(folder.join("text"), "the first text\n").unwrap();
    let big: Vec<u8> = (0..700_000u32).map(|i| (i % 249) as u8).collect();
    fs::write(folder.join("d/big"), &big).unwrap();
    std::os::unix::fs::symlink("text", folder.join("link")).unwrap();
    let before = mke2fs(&folder, &dir.join("a"));
    std::thread::sleep(Duration::from_millis(20));
    fs::write(folder.join("text"), "a second text, which is longer\n").unwrap();
    fs::remove_file(folder.join("link")).unwrap();
    fs::write(folder.join("new"), "new\n").unwrap();
    let after = mke2fs(&folder, &dir.join("b"));

    let mut lab = Lab::new(dir, BYTES);
    lab.write(0, &before);
    let mut r = lab.record(&Options::default());
    for (i, chunk) in after.chunks(4096).enumerate() {
        if before[i * 4096..][..4096] != *chunk {
            r.write(i * 4096, chunk);
        }
    }
    let s = r.end(State::Closed);
    assert!(lab.content() == after);
    let gap = "--accept-gap";

    assert_eq!(bdsnap(&lab, &["cat", &s, "/text", gap], 0).0, b"the first text\n");
    assert_eq!(bdsnap(&lab, &["cat", &s, "link", gap], 0).0, b"the first text\n");
    assert!(bdsnap(&lab, &["cat", &s, "/d/big", gap], 0).0 == big);
    bdsnap(&lab, &["cat", &s, "/new", gap], 3);
    bdsnap(&lab, &["cat", &s, "/text"], 5);
    let out = dir.join("out");
    bdsnap(&lab, &["extract", &s, "/", "-o", out.to_str().unwrap(), gap], 0);
    assert!(fs::read(out.join("d/big")).unwrap() == big);
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("text"));
    bdsnap(&lab, &["extract", &s, "/text", "-o", out.to_str().unwrap(), gap], 1);

    let (json, _) = bdsnap(&lab, &["inspect", &s, "--files", "--json", gap], 0);
    let doc: Value = serde_json::from_slice(&json).unwrap();
    let of = |path: &str| {
        let files = doc["files"].as_array().unwrap();
        files.iter().find(|f| f["path"] == path).cloned().unwrap_or_default()
    };
    assert_eq!(of("/text")["change"], "changed");
    assert_eq!(
        (&of("/text")["before"]["size"], &of("/text")["after"]["size"]),
        (&15.into(), &31.into())
    );
    assert_eq!(of("/link")["change"], "removed");
    assert_eq!(of("/new")["change"], "added");
    assert_eq!(of("/d/big"), Value::Null);

    // As a file.
    let point = dir.join("view");
    fs::create_dir(&point).unwrap();
    let mut view = command(&lab, &["view", &s, point.to_str().unwrap(), gap])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let image = point.join(format!("{s}.img"));
    for _ in 0..300 {
        if image.exists() || view.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(fs::read(&image).unwrap() == before, "the image");
    let read_only = fs::OpenOptions::new().write(true).open(&image).unwrap_err();
    assert_eq!(read_only.raw_os_error(), Some(30));
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    // Held against others meanwhile.
    bdsnap(&lab, &["cat", &s, "/text", gap], 5);
    let ended = Command::new("umount").arg(&point).status().unwrap();
    assert!(ended.success());
    let output = view.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
