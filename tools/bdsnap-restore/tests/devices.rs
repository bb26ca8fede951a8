// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-restore` on real block devices: loop devices. Needs root and free
//! loop devices; without them the tests say so and pass.
#![allow(missing_docs)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use bdsnap_core::abi::format::State;
use bdsnap_core::test_support::{pattern, Lab, Options, Ran};

const SIZE: usize = 8 << 20;

/// One test at a time: the nodes are few, and found by looking.
static NODES: Mutex<()> = Mutex::new(());

/// An attached loop device; detached when dropped.
struct Loop(String, #[expect(dead_code)] MutexGuard<'static, ()>);

impl Loop {
    /// `None` where that is not possible.
    fn attach(image: &Path, options: &[&str]) -> Option<Self> {
        let guard = NODES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let output = Command::new("losetup")
            .args(["--show", "-f"])
            .args(options)
            .arg(image)
            .output()
            .ok()?;
        if !output.status.success() {
            eprintln!("skipped: no loop device to be had");
            return None;
        }
        Some(Self(String::from_utf8(output.stdout).unwrap().trim().to_owned(), guard))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// A mounted file system; unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn mount(device: &str, on: &'a Path) -> Self {
        fs::create_dir_all(on).unwrap();
        let status = Command::new("mount").args(["-t", "ext4", device]).arg(on).status().unwrap();
        assert!(status.success());
        Self(on)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

fn restore(lab: &Lab, device: impl AsRef<OsStr>, args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bdsnap-restore"));
    Ran::of(command.arg("--store").arg(lab.store.path()).arg(device).args(args), b"")
}

fn read(device: &str) -> Vec<u8> {
    fs::read(device).unwrap()
}

const YES: [&str; 3] = ["latest", "--yes", "--accept-gap"];

/// A session of the image, the device's name being `name`.
fn session(lab: &mut Lab, name: Option<&str>) -> Vec<u8> {
    let past = lab.device.clone();
    let mut r = lab.record(&Options::default());
    if let Some(name) = name {
        assert!(r.header.set_name(name.as_bytes()));
    }
    r.write(0, &pattern(3 << 20, 5));
    r.write(SIZE - 4096, &pattern(4096, 6));
    r.end(State::Closed);
    past
}

#[test]
fn image_behind_an_idle_loop_device() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), SIZE);
    let past = session(&mut lab, None);
    let Some(device) = Loop::attach(&lab.image, &[]) else { return };
    // The loop device's page cache holds the present.
    let now = read(&device.0);
    assert!(now == lab.device);
    restore(&lab, &device.0, &YES).expect(0).says("read back and equal");
    assert!(lab.content() == past);
    assert!(read(&device.0) == past, "a stale page cache");
    restore(&lab, &lab.image, &["--undo", "--yes", "--accept-gap"]).expect(0).says("read back");
    assert!(read(&device.0) == now);
}

#[test]
fn mounted_image_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), SIZE);
    session(&mut lab, None);
    let Some(device) = Loop::attach(&lab.image, &[]) else { return };
    assert!(Command::new("mkfs.ext4").args(["-q", &device.0]).status().unwrap().success());
    let point = tmp.path().join("mnt");
    let mounted = Mounted::mount(&device.0, &point);
    let now = lab.content();
    for name in [device.0.as_ref(), lab.image.as_os_str(), point.as_os_str()] {
        restore(&lab, name, &YES).expect(5).says("mounted on");
    }
    let to = tmp.path().join("out");
    let to = ["latest", "--accept-gap", "--to", to.to_str().unwrap()];
    restore(&lab, &device.0, &to).expect(5).says("mounted on");
    assert!(lab.content() == now);
    drop(mounted);
    restore(&lab, &device.0, &YES).expect(0).says("read back and equal");
}

/// The image is removed, so that the loop device is a device of its own.
#[test]
fn block_device() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), SIZE);
    let Some(device) = Loop::attach(&lab.image, &[]) else { return };
    let past = session(&mut lab, Some(&device.0));
    fs::OpenOptions::new()
        .write(true)
        .open(&device.0)
        .unwrap()
        .write_all_at(&lab.device, 0)
        .unwrap();
    fs::remove_file(&lab.image).unwrap();
    let now = read(&device.0);
    assert!(now == lab.device);

    // Another name of the same device will do.
    let link = tmp.path().join("link");
    std::os::unix::fs::symlink(&device.0, &link).unwrap();
    restore(&lab, &link, &["latest", "--yes"]).expect(5).says("not watched");
    restore(&lab, &link, &YES).expect(0).says("read back and equal");
    assert!(read(&device.0) == past);
    restore(&lab, &device.0, &["--undo", "--yes", "--accept-gap"]).expect(0).says("read back");
    assert!(read(&device.0) == now);

    let busy = fs::File::open(&device.0).unwrap();
    restore(&lab, &device.0, &YES).expect(0).says("read back and equal");
    drop(busy);
    assert!(Command::new("blockdev").args(["--setro", &device.0]).status().unwrap().success());
    restore(&lab, &device.0, &YES).expect(5).says("read-only");
    let dry = ["latest~0", "--dry-run", "--accept-gap"];
    restore(&lab, &device.0, &dry).expect(0).says("0 B to write");
    // The node keeps this when the next image is attached.
    assert!(Command::new("blockdev").args(["--setrw", &device.0]).status().unwrap().success());
}

/// The kernel refuses to take sectors beyond the end: a write that fails.
#[test]
fn a_device_of_another_size_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), SIZE);
    let Some(device) = Loop::attach(&lab.image, &["--sizelimit", "4194304"]) else { return };
    session(&mut lab, Some(&device.0));
    fs::remove_file(&lab.image).unwrap();
    restore(&lab, &device.0, &YES).expect(5).says("4194304 bytes");
}

#[test]
fn an_image_onto_another_device() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), SIZE);
    let past = session(&mut lab, None);
    let other = tmp.path().join("other");
    fs::write(&other, pattern(SIZE + 8192, 44)).unwrap();
    let Some(device) = Loop::attach(&other, &[]) else { return };
    let to = ["latest", "--accept-gap", "--to", &device.0, "--yes"];
    restore(&lab, &lab.image, &to).expect(5).says("name the file behind it");
    fs::remove_file(&other).unwrap();
    restore(&lab, &lab.image, &to[..4]).expect(5).says("--yes confirms it");
    assert!(read(&device.0) == pattern(SIZE + 8192, 44));
    restore(&lab, &lab.image, &to).expect(0).says("written");
    let there = read(&device.0);
    assert!(there[..SIZE] == past && there[SIZE..] == pattern(SIZE + 8192, 44)[SIZE..]);
    let busy = fs::File::open(&device.0).unwrap();
    restore(&lab, &lab.image, &to).expect(0).says("written");
    drop(busy);
    assert!(lab.content() == lab.device);
}
