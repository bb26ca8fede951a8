// SPDX-License-Identifier: GPL-2.0

//! What a restore leaves behind while it is under way, and a line for ever
//! when it is over.
//!
//! ```text
//! <store>/.bdsnap-restore/         0700
//! └── <32 hex digits>/             0700  a restore; locked while it runs
//!     ├── journal                  0600  one JSON object, see [`Record`]
//!     └── 0/, 1/, …                      undo sessions being made
//! <store>/.bdsnap-history          0600  a JSON object a line, see [`Line`]
//! ```
//!
//! Before `stage` is "writing" no device has been touched, and the same is
//! true while an undo session is still in the folder: such a restore is
//! forgotten, with all that it has made. After that it can be resumed or
//! undone. How far it came is not written down: what a device holds is compared
//! anyway.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::progress::Progress;
use crate::session::Session;
use crate::store::Store;
use crate::text;

/// Folder of the restores under way.
const DIR: &str = ".bdsnap-restore";
const FILE: &str = "journal";
/// The history's file.
pub const HISTORY: &str = ".bdsnap-history";
/// Longest journal, in bytes.
const MAX: usize = 64 << 20;

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Undo sessions are being made; nothing is overwritten.
    Saving,
    /// Devices are, or will be, overwritten.
    Writing,
}

/// A journal's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 1.
    pub version: u32,
    /// How far it is.
    pub stage: Stage,
    /// When it began, ns since 1970.
    pub started_ns: u64,
    /// Name of the session to whose start it goes back.
    pub session: String,
    /// Its identity.
    pub session_id: String,
    /// The overrides that were needed and given.
    pub accepted: Vec<String>,
    /// All sessions that are taken back, by identity, also of devices that are
    /// right already and so not among `devices`.
    pub sessions: Vec<String>,
    /// The devices that are written.
    pub devices: Vec<Device>,
}

/// A device of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Node or image, for people.
    pub device: String,
    /// The sessions that are taken back, by identity, oldest first.
    pub chain: Vec<String>,
    /// Its undo session, if one is made.
    pub undo: Option<Undo>,
}

/// An undo session of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// Name of its directory in the store.
    pub name: String,
    /// Its identity.
    pub session_id: String,
    /// Its place in the chain.
    pub chain_seq: u64,
}

/// A restore under way, by whom its lock is held.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    /// Keeps the lock.
    _lock: File,
    /// What it says.
    pub record: Record,
}

impl Journal {
    /// Begins one.
    pub(super) fn create(store: &Store, record: Record) -> Result<Self> {
        let all = store.path().join(DIR);
        match fsutil::make_private_dir(&all) {
            Ok(()) => fsutil::sync_dir(store.path())?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).on("make", &all),
        }
        // So that nobody takes it for a leftover before it is locked.
        let _all = Lock::wait(&all)?;
        let dir = all.join(text::hex(&fsutil::random_id()?));
        fsutil::make_private_dir(&dir).on("make", &dir)?;
        let lock = Lock::wait(&dir)?;
        let journal = Self { dir, _lock: lock, record };
        journal.save()?;
        fsutil::sync_dir(&all)?;
        Ok(journal)
    }

    /// Makes durable what `record` says.
    pub(super) fn save(&self) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&self.record)
            .map_err(|e| Error::other(format!("cannot write the journal: {e}")))?;
        bytes.push(b'\n');
        fsutil::replace(&self.dir.join(FILE), &bytes, 0o600)
    }

    /// Where the undo session of a device is made.
    pub(super) fn staging(&self, device: usize) -> PathBuf {
        self.dir.join(device.to_string())
    }

    /// Brings the undo sessions into the store.
    pub(super) fn place(&mut self, store: &Store, progress: &dyn Progress) -> Result<()> {
        for i in 0..self.record.devices.len() {
            let from = self.staging(i);
            while from.exists() {
                let Some(undo) = &self.record.devices[i].undo else { break };
                let to = store.path().join(&undo.name);
                let flags = rustix::fs::RenameFlags::NOREPLACE;
                match rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, flags)
                {
                    Ok(()) => {}
                    Err(rustix::io::Errno::EXIST) => {
                        let name = free_name(store, &from)?;
                        if let Some(undo) = &mut self.record.devices[i].undo {
                            undo.name = name;
                        }
                        self.save()?;
                    }
                    Err(e) => return Err(e).on("make", &to),
                }
                progress.step("undo session placed");
            }
        }
        fsutil::sync_dir(&self.dir)?;
        fsutil::sync_dir(store.path())
    }

    /// Whether no device can have been touched.
    fn is_harmless(&self) -> bool {
        self.record.stage == Stage::Saving
            || (0..self.record.devices.len()).any(|i| self.staging(i).exists())
    }

    /// Takes back all that it has made: only before a device was touched.
    pub(super) fn discard(self, store: &Store) -> Result<()> {
        for undo in self.record.devices.iter().filter_map(|d| d.undo.as_ref()) {
            let path = store.path().join(&undo.name);
            let ours = Session::read(&path, undo.name.as_bytes())
                .is_ok_and(|s| text::hex(&s.header.session_id) == undo.session_id);
            if ours {
                std::fs::remove_dir_all(&path).on("remove", &path)?;
            }
        }
        self.remove()
    }

    /// Forgets it: it is over, or another one took its place.
    pub(super) fn remove(self) -> Result<()> {
        // Its file first: a folder without one is a leftover.
        let file = self.dir.join(FILE);
        std::fs::remove_file(&file).on("remove", &file)?;
        std::fs::remove_dir_all(&self.dir).on("remove", &self.dir)?;
        fsutil::sync_dir(fsutil::parent(&self.dir))
    }

    /// Whether it is of a device with one of these sessions.
    pub fn concerns(&self, session_ids: &[String]) -> bool {
        self.record.devices.iter().any(|d| d.concerns(session_ids))
    }
}

impl Device {
    /// Whether one of these sessions is its own.
    pub(super) fn concerns(&self, session_ids: &[String]) -> bool {
        let undo = self.undo.iter().map(|u| &u.session_id);
        self.chain.iter().chain(undo).any(|s| session_ids.contains(s))
    }
}

/// The restores that were interrupted after they had begun to write, the last
/// one first. Those that run now are not among them.
///
/// # Errors
///
/// [`Kind::Verification`] if a journal cannot be read.
pub fn interrupted(store: &Store) -> Result<Vec<Journal>> {
    let mut found = Vec::new();
    for dir in folders(store)? {
        if let Some(journal) = open(&dir)? {
            if !journal.is_harmless() {
                found.push(journal);
            }
        }
    }
    found.sort_by_key(|j| std::cmp::Reverse(j.record.started_ns));
    Ok(found)
}

/// Forgets restores that were interrupted before they touched a device.
pub fn tidy(store: &Store) -> Result<()> {
    let all = store.path().join(DIR);
    if !all.exists() {
        return Ok(());
    }
    let _all = Lock::wait(&all)?;
    for dir in folders(store)? {
        if !dir.join(FILE).exists() {
            if Lock::attempt(&dir)?.is_some() {
                std::fs::remove_dir_all(&dir).on("remove", &dir)?;
            }
            continue;
        }
        // One that cannot be read is left for whoever asks for it.
        if let Ok(Some(journal)) = open(&dir) {
            if journal.is_harmless() {
                journal.discard(store)?;
            }
        }
    }
    Ok(())
}

fn folders(store: &Store) -> Result<Vec<PathBuf>> {
    let all = store.path().join(DIR);
    let entries = match all.read_dir() {
        Ok(e) => e,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).on("read", &all),
    };
    let mut dirs: Vec<PathBuf> = entries
        .collect::<io::Result<Vec<_>>>()
        .on("read", &all)?
        .iter()
        .map(|e| e.path())
        .collect();
    dirs.sort();
    Ok(dirs)
}

/// The journal in a folder, unless its restore is running or it has none.
fn open(dir: &Path) -> Result<Option<Journal>> {
    let Some(lock) = Lock::attempt(dir)? else { return Ok(None) };
    let path = dir.join(FILE);
    let bytes = match fsutil::read_small(&path, MAX) {
        Ok(b) => b,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).on("read", &path),
    };
    let damaged = |why: String| {
        Error::new(
            Kind::Verification,
            format!("the journal of a restore, {}, is damaged: {why}", text::path(&path)),
        )
        .hint("the same restore, run again, does without it; then remove its folder")
    };
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if record.version != 1 {
        return Err(damaged(format!("unknown version {}", record.version)));
    }
    // They become parts of paths.
    let plain = |u: &Undo| !u.name.contains('/') && !u.name.starts_with('.') && !u.name.is_empty();
    if !record.devices.iter().filter_map(|d| d.undo.as_ref()).all(plain) {
        return Err(damaged("impossible name".into()));
    }
    Ok(Some(Journal { dir: dir.to_owned(), _lock: lock, record }))
}

/// A name for the session in a folder that no other has.
pub(super) fn free_name(store: &Store, session: &Path) -> Result<String> {
    let s = Session::read(session, b"").map_err(Error::other)?;
    for attempt in 0..1000 {
        let name = bdsnap_abi::name::session_dir(s.header.name(), s.header.start_ns, attempt);
        if !store.path().join(OsStr::from_bytes(name.as_bytes())).exists() {
            return Ok(text::lossy(name.as_bytes()));
        }
    }
    Err(Error::other("no free name for the undo session"))
}

/// Locks on folders, for as long as the file is open.
struct Lock;

impl Lock {
    fn attempt(dir: &Path) -> Result<Option<File>> {
        let file = match File::open(dir) {
            Ok(f) => f,
            // Over in this moment.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).on("open", dir),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).on("lock", dir),
        }
    }

    fn wait(dir: &Path) -> Result<File> {
        for _ in 0..100 {
            if let Some(file) = Self::attempt(dir)? {
                return Ok(file);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Err(Error::refused(format!("{} is locked by another program", text::path(dir))))
    }
}

/// A line of the history: a restore that wrote something.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// When it ended, RFC 3339.
    pub time: String,
    /// `restore` or `resume`.
    pub action: &'static str,
    /// Name of the session to whose start it went back.
    pub session: String,
    /// Its identity.
    pub session_id: String,
    /// Nodes or images.
    pub devices: Vec<String>,
    /// `done`, `interrupted` or `failed`.
    pub result: &'static str,
    /// What went wrong.
    pub error: Option<String>,
    /// Bytes written.
    pub bytes_written: u64,
    /// Names of its undo sessions.
    pub undo_sessions: Vec<String>,
    /// The overrides that were needed and given.
    pub accepted: Vec<&'static str>,
    /// The result is not the whole past.
    pub partial: bool,
    /// The devices to which others wrote meanwhile.
    pub others_wrote: Vec<String>,
    /// User of the process.
    pub uid: u32,
    /// User who logged in, where the kernel knows.
    pub login_uid: Option<u32>,
}

/// Who runs this: user and logged-in user.
pub(super) fn who() -> (u32, Option<u32>) {
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let login = login.and_then(|t| t.trim().parse().ok()).filter(|uid| *uid != u32::MAX);
    (rustix::process::getuid().as_raw(), login)
}

/// Adds a line to the history.
pub(super) fn remember(store: &Store, line: &Line) -> Result<()> {
    let path = store.path().join(HISTORY);
    let mut bytes = serde_json::to_vec(line)
        .map_err(|e| Error::other(format!("cannot write the history: {e}")))?;
    bytes.push(b'\n');
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .on("open", &path)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).on("write", &path)
}
