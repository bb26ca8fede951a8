// SPDX-License-Identifier: GPL-2.0

//! The deep part of `bdsnap verify`: a file system's own checker looks at the
//! device as it was.

use std::process::{Command, Stdio};

use bdsnap_core::device::Target;
use bdsnap_core::module::Module;
use bdsnap_core::restore::Accept;
use bdsnap_core::session::Session;
use bdsnap_core::store::Store;
use bdsnap_core::view::{self, Request, View};
use bdsnap_core::{chain::Selector, fsutil, text, Error};

use super::view::{mount, Image};

/// What a checker said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing was wrong.
    Clean,
    /// Something was: its last lines.
    NotClean(String),
    /// There was none to ask, or it could not be; why.
    NotAsked(String),
}

/// A checker that changes nothing, by file system.
fn checker(fs_type: &str) -> Option<(&'static str, &'static [&'static str])> {
    Some(match fs_type {
        "ext2" | "ext3" | "ext4" => ("e2fsck", &["-f", "-n"]),
        "xfs" => ("xfs_repair", &["-n", "-f"]),
        "btrfs" => ("btrfs", &["check", "--readonly", "--force"]),
        "vfat" | "msdos" => ("fsck.fat", &["-n"]),
        "exfat" => ("fsck.exfat", &["-n"]),
        "f2fs" => ("fsck.f2fs", &["--dry-run"]),
        _ => return None,
    })
}

/// Checks the device as it was at the start of a session.
pub(crate) fn check(store: &Store, session: &Session) -> Result<Verdict, Error> {
    let target = match view::target_of(session) {
        Ok(t) if t.what != bdsnap_core::device::What::Absent => t,
        Ok(_) => return Ok(Verdict::NotAsked("the device is not there".into())),
        Err(e) => return Ok(Verdict::NotAsked(e.message)),
    };
    match look(store, session, &target) {
        Ok(v) => Ok(v),
        Err(e) if e.kind == bdsnap_core::Kind::Refused => Ok(Verdict::NotAsked(e.message)),
        Err(e) => Err(e),
    }
}

fn look(store: &Store, session: &Session, target: &Target) -> Result<Verdict, Error> {
    let module = Module::open()?.map(|m| Box::new(m) as view::Module);
    let request = Request {
        store,
        target,
        selector: Selector::Name(session.dir.clone()),
        accept: Accept::default(),
    };
    let mut view = View::open(&request, module)?;
    let mut head = vec![0; view.bytes().min(128 << 10) as usize];
    view.read(0, &mut head)?;
    let fs_type = bdsnap_core::abi::fs::Fs::of(&head).kind;
    let Some((program, args)) = checker(fs_type) else {
        let what = if fs_type.is_empty() { "no file system is known on it" } else { fs_type };
        return Ok(Verdict::NotAsked(format!("no checker: {what}")));
    };
    let mut unique = [0; 8];
    fsutil::random_bytes(&mut unique)?;
    let dir = std::env::temp_dir().join(format!("bdsnap-deep-{}", text::hex(&unique)));
    fsutil::make_private_dir(&dir)
        .map_err(|e| Error::io(format_args!("cannot make {}", text::path(&dir)), &e))?;
    let mounted = match mount(Image::of(view, b"image".to_vec()), &dir) {
        Ok(m) => m,
        Err(e) => {
            // Empty, and nobody else's.
            let _ = std::fs::remove_dir(&dir);
            return Err(e);
        }
    };
    let ran = Command::new(program)
        .args(args)
        .arg(dir.join("image"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    let ended = mounted.umount_and_join();
    let _ = std::fs::remove_dir(&dir);
    ended.map_err(|e| Error::io(format_args!("cannot unmount {}", text::path(&dir)), &e))?;
    let output = match ran {
        Ok(o) => o,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Verdict::NotAsked(format!("{program} is not installed")));
        }
        Err(e) => return Err(Error::io(format_args!("cannot run {program}"), &e)),
    };
    if output.status.success() {
        return Ok(Verdict::Clean);
    }
    let said = [output.stdout, output.stderr].concat();
    let said = text::lossy(&said);
    let last: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).rev().take(3).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Ok(Verdict::NotClean(format!("{program}: {}", last.join("; "))))
}
