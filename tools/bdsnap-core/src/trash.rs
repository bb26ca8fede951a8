// SPDX-License-Identifier: GPL-2.0

//! What pruning took away, until its time is over.
//!
//! ```text
//! .bdsnap-trash/                   0700  locked by whoever prunes
//! ├── 20261122T213000Z-1a2b3c4d/         an operation
//! │   ├── op.json                        what it is: written first
//! │   └── vdb_20261101T100000Z/          a session, as it was
//! ├── .new-…/                            an operation that did not begin
//! └── .gone-…/                           one that is being deleted
//! ```
//!
//! Whatever the moment of a cut, each session is either in the store or in an
//! operation as it was, and what is left to do is told by `op.json` and by
//! where the sessions are. [`Trash::recover`] does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bdsnap_abi::format::Id;
use rustix::fs::{FlockOperation, RenameFlags, CWD};
use serde::{Deserialize, Serialize};

use crate::chain;
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::session::Session;
use crate::store::Store;
use crate::text;

/// Name of the trash in the store.
pub const TRASH_DIR: &str = ".bdsnap-trash";
const OP_NAME: &str = "op.json";
const OP_MAX: usize = 16 << 20;
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// Called before each step that changes something; an error stops the work
/// there, as a cut would. For tests.
pub type Steps<'a> = &'a dyn Fn(&'static str) -> Result<()>;

/// What an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Sessions were removed.
    Remove,
    /// Sessions were merged into an older one.
    Merge,
    /// A merge that is being taken back.
    Unmerge,
}

/// A session in an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Name of its directory, in hexadecimal digits if it is no UTF-8.
    pub name: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hex: bool,
    /// Its identity.
    pub session_id: String,
    /// Its place in the chain.
    pub chain_seq: u64,
    /// The `merged_seq` of its header.
    merged_seq: u64,
    /// The device's name, for people.
    pub device: String,
    /// What it takes, in bytes.
    pub bytes: u64,
}

impl Member {
    /// From a session.
    pub fn of(s: &Session, bytes: u64) -> Self {
        let hex = std::str::from_utf8(&s.dir).is_err();
        Self {
            name: if hex { text::hex(&s.dir) } else { text::lossy(&s.dir) },
            hex,
            session_id: text::hex(&s.header.session_id),
            chain_seq: s.header.chain_seq,
            merged_seq: s.header.merged_seq,
            device: text::lossy(s.header.name()),
            bytes,
        }
    }

    /// Name of its directory.
    pub fn dir(&self) -> Vec<u8> {
        if !self.hex {
            return self.name.as_bytes().to_vec();
        }
        let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).ok()?, 16).ok();
        self.name.as_bytes().chunks(2).filter_map(pair).collect()
    }

    fn at(&self, parent: &Path) -> PathBuf {
        parent.join(std::ffi::OsString::from_vec(self.dir()))
    }

    /// What is in a directory by this member's name: `None` if nothing is, or
    /// something else.
    fn look(&self, parent: &Path) -> Option<Session> {
        let s = Session::read(&self.at(parent), &self.dir()).ok()?;
        (text::hex(&s.header.session_id) == self.session_id).then_some(s)
    }

    /// Whether it is there, and as it was.
    fn is_original(&self, parent: &Path) -> bool {
        self.look(parent).is_some_and(|s| s.header.merged_seq == self.merged_seq)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OpFile {
    schema_version: u32,
    what: What,
    /// When it was made.
    since_ns: u64,
    /// When it may be deleted.
    until_ns: u64,
    /// Of a merge: the session that the others were merged into.
    into: Option<Member>,
    /// Of a merge: the `merged_seq` of the result.
    merged_seq: u64,
    /// Of a merge: it is complete.
    complete: bool,
    sessions: Vec<Member>,
}

/// An operation in the trash.
#[derive(Debug)]
pub struct Op {
    path: PathBuf,
    file: OpFile,
}

impl Op {
    /// Its name.
    pub fn name(&self) -> String {
        text::lossy(self.path.file_name().unwrap_or_default().as_bytes())
    }

    /// What it is.
    pub fn what(&self) -> What {
        self.file.what
    }

    /// When it was made, ns since 1970.
    pub fn since_ns(&self) -> u64 {
        self.file.since_ns
    }

    /// When it may be deleted, ns since 1970.
    pub fn until_ns(&self) -> u64 {
        self.file.until_ns
    }

    /// The sessions that are in it now.
    pub fn sessions(&self) -> impl Iterator<Item = &Member> {
        self.file.sessions.iter().filter(|m| m.at(&self.path).exists())
    }

    /// Of a merge: the session that the others were merged into.
    pub fn into(&self) -> Option<&Member> {
        self.file.into.as_ref()
    }

    /// What all in it takes, in bytes.
    pub fn bytes(&self) -> u64 {
        fn of(dir: &Path) -> u64 {
            use std::os::unix::fs::MetadataExt;
            let own = dir.symlink_metadata().map_or(0, |m| m.blocks() * 512);
            let inside = dir.read_dir().into_iter().flatten().flatten();
            own + inside
                .map(|e| match e.file_type() {
                    Ok(t) if t.is_dir() => of(&e.path()),
                    _ => e.metadata().map_or(0, |m| m.blocks() * 512),
                })
                .sum::<u64>()
        }
        of(&self.path)
    }

    fn save(&self) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&self.file)
            .map_err(|e| Error::other(format!("cannot write {OP_NAME}: {e}")))?;
        bytes.push(b'\n');
        fsutil::replace(&self.path.join(OP_NAME), &bytes, 0o600)
    }

    /// Where a merge's result is built, and the original comes to lie.
    pub(crate) fn result_path(&self) -> PathBuf {
        match &self.file.into {
            Some(m) => m.at(&self.path),
            None => self.path.clone(),
        }
    }
}

/// The trash, locked.
#[derive(Debug)]
pub struct Trash<'a> {
    store: &'a Store,
    path: PathBuf,
    _lock: File,
}

/// Renames a directory; nothing is overwritten.
fn rename(from: &Path, to: &Path, flags: RenameFlags) -> Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags).on("move", from)
}

impl<'a> Trash<'a> {
    /// Opens and locks the trash of a store; it is made if `make` is set.
    /// `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if another program prunes.
    pub fn open(store: &'a Store, make: bool) -> Result<Option<Self>> {
        let path = store.path().join(TRASH_DIR);
        if make {
            match fsutil::make_private_dir(&path) {
                Ok(()) => fsutil::sync_dir(store.path())?,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).on("make", &path),
            }
        }
        let lock = match File::open(&path) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).on("open", &path),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { store, path, _lock: lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Error::refused("another program is pruning this store")
                    .hint("wait until it has ended"))
            }
            Err(e) => Err(e).on("lock", &path),
        }
    }

    /// What is in it, oldest first. Reads without a lock.
    pub fn list(store: &Store) -> Result<Vec<Op>> {
        let path = store.path().join(TRASH_DIR);
        let entries = match path.read_dir() {
            Ok(e) => e,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).on("read", &path),
        };
        let mut ops = Vec::new();
        for entry in entries {
            let entry = entry.on("read", &path)?;
            if entry.file_name().as_bytes().starts_with(b".") {
                continue;
            }
            let file = entry.path().join(OP_NAME);
            let bytes = match fsutil::read_small(&file, OP_MAX) {
                Ok(b) => b,
                // Deleted in between.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).on("read", &file),
            };
            let op = serde_json::from_slice(&bytes).map_err(|e| {
                Error::new(Kind::Verification, format!("{} is damaged: {e}", text::path(&file)))
                    .hint("look at the sessions beside it, and move them back or away by hand")
            })?;
            ops.push(Op { path: entry.path(), file: op });
        }
        ops.sort_by(|a, b| (a.file.since_ns, &a.path).cmp(&(b.file.since_ns, &b.path)));
        Ok(ops)
    }

    fn begin(&self, file: OpFile, steps: Steps<'_>) -> Result<Op> {
        let mut unique = [0; 4];
        fsutil::random_bytes(&mut unique)?;
        let stamp: String =
            text::rfc3339(file.since_ns).chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let name = format!("{stamp}-{}", text::hex(&unique));
        let new = self.path.join(format!("{NEW}{name}"));
        steps("begin")?;
        fsutil::make_private_dir(&new).on("make", &new)?;
        let mut op = Op { path: new.clone(), file };
        op.save()?;
        op.path = self.path.join(name);
        steps("begun")?;
        rename(&new, &op.path, RenameFlags::NOREPLACE)?;
        fsutil::sync_dir(&self.path)?;
        Ok(op)
    }

    /// Takes sessions (oldest first) out of the store. The caller has it
    /// alone.
    pub fn remove(
        &self,
        sessions: Vec<Member>,
        now_ns: u64,
        until_ns: u64,
        steps: Steps<'_>,
    ) -> Result<Op> {
        let op = self.begin(
            OpFile {
                schema_version: 1,
                what: What::Remove,
                since_ns: now_ns,
                until_ns,
                into: None,
                merged_seq: 0,
                complete: true,
                sessions,
            },
            steps,
        )?;
        self.take(&op, steps)?;
        Ok(op)
    }

    fn take(&self, op: &Op, steps: Steps<'_>) -> Result<()> {
        for m in &op.file.sessions {
            if m.look(self.store.path()).is_some() {
                steps("take")?;
                rename(&m.at(self.store.path()), &m.at(&op.path), RenameFlags::NOREPLACE)?;
                // One after the other, also on disk: the oldest first.
                fsutil::sync_dir(&op.path)?;
                fsutil::sync_dir(self.store.path())?;
            }
        }
        Ok(())
    }

    /// Begins a merge of `sessions` into `into`: the result is to be built at
    /// [`Op::result_path`]. Nothing else changes before [`Trash::exchange`].
    pub(crate) fn begin_merge(
        &self,
        into: Member,
        sessions: Vec<Member>,
        now_ns: u64,
        until_ns: u64,
        steps: Steps<'_>,
    ) -> Result<Op> {
        let merged_seq = sessions.iter().map(|m| m.chain_seq.max(m.merged_seq)).max().unwrap_or(0);
        self.begin(
            OpFile {
                schema_version: 1,
                what: What::Merge,
                since_ns: now_ns,
                until_ns,
                into: Some(into),
                merged_seq,
                complete: false,
                sessions,
            },
            steps,
        )
    }

    /// Puts the result of a merge into the store. The caller has it alone.
    pub(crate) fn exchange(&self, op: &mut Op, steps: Steps<'_>) -> Result<()> {
        let Some(into) = &op.file.into else { return Ok(()) };
        steps("exchange")?;
        // From one moment to the next; readers know that what has been merged
        // does not count any more.
        rename(&into.at(&op.path), &into.at(self.store.path()), RenameFlags::EXCHANGE)?;
        fsutil::sync_dir(&op.path)?;
        fsutil::sync_dir(self.store.path())?;
        self.finish_merge(op, steps)
    }

    fn finish_merge(&self, op: &mut Op, steps: Steps<'_>) -> Result<()> {
        self.take(op, steps)?;
        op.file.complete = true;
        steps("complete")?;
        op.save()
    }

    /// Gives up a merge that was not exchanged.
    pub(crate) fn give_up(&self, op: Op) -> Result<()> {
        self.delete(op, &|_| Ok(()))
    }

    /// Deletes what an operation holds.
    pub fn delete(&self, op: Op, steps: Steps<'_>) -> Result<()> {
        let mut name = std::ffi::OsString::from(GONE);
        name.push(op.path.file_name().unwrap_or_default());
        let gone = self.path.join(name);
        steps("delete")?;
        rename(&op.path, &gone, RenameFlags::NOREPLACE)?;
        fsutil::sync_dir(&self.path)?;
        steps("deleting")?;
        std::fs::remove_dir_all(&gone).on("delete", &gone)
    }

    /// Finishes what was cut; says what it did. The caller has the store
    /// alone.
    ///
    /// # Errors
    ///
    /// [`Kind::Verification`] if it cannot tell what was done: then nothing
    /// is touched.
    pub fn recover(&self, steps: Steps<'_>) -> Result<Vec<String>> {
        let mut said = Vec::new();
        for entry in self.path.read_dir().on("read", &self.path)? {
            let entry = entry.on("read", &self.path)?;
            let name = entry.file_name();
            let name = name.as_bytes();
            if name.starts_with(NEW.as_bytes()) || name.starts_with(GONE.as_bytes()) {
                steps("clean up")?;
                std::fs::remove_dir_all(entry.path()).on("delete", &entry.path())?;
            }
        }
        for mut op in Self::list(self.store)? {
            let shown = text::escape(op.name().as_bytes());
            let Some(into) = op.file.into.clone() else {
                if op.sessions().next().is_none() {
                    said.push(format!("{shown}: nothing had been removed"));
                    self.delete(op, steps)?;
                }
                continue;
            };
            match op.file.what {
                What::Merge if op.file.complete => {}
                // Until the exchange, what is in the store is the original,
                // and what is here may be anything.
                What::Merge if into.is_original(self.store.path()) => {
                    said.push(format!("{shown}: a merge that had not been made was given up"));
                    self.delete(op, steps)?;
                }
                What::Merge if into.is_original(&op.path) && self.has_result(&op) => {
                    said.push(format!("{shown}: a merge was finished"));
                    self.finish_merge(&mut op, steps)?;
                }
                What::Unmerge => {
                    said.push(format!("{shown}: the taking back of a merge was finished"));
                    self.finish_unmerge(op, steps)?;
                }
                What::Merge | What::Remove => {
                    return Err(Error::new(
                        Kind::Verification,
                        format!("{shown} in the trash was cut, and what it did cannot be told"),
                    )
                    .hint("look at its op.json and put its sessions where they belong by hand"));
                }
            }
        }
        Ok(said)
    }

    /// Whether the store has the result of a merge.
    fn has_result(&self, op: &Op) -> bool {
        let result = op.file.into.as_ref().and_then(|m| m.look(self.store.path()));
        result.is_some_and(|s| s.header.merged_seq == op.file.merged_seq)
    }

    /// Why a merge cannot be taken back; `None` if it can.
    fn unmerge_obstacle(&self, op: &Op) -> Option<String> {
        let into = op.file.into.as_ref()?;
        if !into.is_original(&op.path) {
            return Some("the trash does not hold the session as it was".into());
        }
        if !self.has_result(op) {
            let name = text::escape(&into.dir());
            return Some(format!("{name} was merged again, or removed, since"));
        }
        None
    }

    fn unmerge(&self, mut op: Op, steps: Steps<'_>) -> Result<()> {
        if let Some(into) = &op.file.into {
            if let Some(result) = into.look(self.store.path()) {
                let _held = result.lock_alone()?;
            }
        }
        steps("unmerge")?;
        op.file.what = What::Unmerge;
        op.save()?;
        self.finish_unmerge(op, steps)
    }

    fn finish_unmerge(&self, op: Op, steps: Steps<'_>) -> Result<()> {
        // While the merged one is there these do not count.
        for m in op.file.sessions.iter().rev() {
            self.put_back(&op, m, steps)?;
        }
        if let Some(into) = &op.file.into {
            if into.is_original(&op.path) {
                steps("exchange back")?;
                rename(&into.at(&op.path), &into.at(self.store.path()), RenameFlags::EXCHANGE)?;
                fsutil::sync_dir(self.store.path())?;
                fsutil::sync_dir(&op.path)?;
            }
        }
        self.delete(op, steps)
    }

    fn put_back(&self, op: &Op, m: &Member, steps: Steps<'_>) -> Result<()> {
        if m.at(&op.path).exists() {
            steps("put back")?;
            rename(&m.at(&op.path), &m.at(self.store.path()), RenameFlags::NOREPLACE)?;
            fsutil::sync_dir(self.store.path())?;
            fsutil::sync_dir(&op.path)?;
        }
        Ok(())
    }

    /// Puts a session back, and with it those that were removed between it
    /// and the oldest that is there: without them its chain would have a gap.
    /// Returns the names of all. The caller has the store alone.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`], [`Kind::Usage`] if several names begin so,
    /// [`Kind::Refused`] with the reason.
    pub fn undelete(&self, name: &[u8], steps: Steps<'_>) -> Result<Vec<String>> {
        let ops = Self::list(self.store)?;
        let all: Vec<(&Op, &Member)> =
            ops.iter().flat_map(|o| o.sessions().map(move |m| (o, m))).collect();
        let found: Vec<_> = match all.iter().filter(|(_, m)| m.dir() == name).collect::<Vec<_>>() {
            exact if !exact.is_empty() => exact,
            _ => all.iter().filter(|(_, m)| m.dir().starts_with(name)).collect(),
        };
        let shown = text::escape(name);
        let (op, wanted) = match found[..] {
            [one] => *one,
            [] => return Err(Error::not_found(format!("no session {shown} in the trash"))),
            _ => {
                let names: Vec<_> = found.iter().map(|(_, m)| text::escape(&m.dir())).collect();
                return Err(Error::new(
                    Kind::Usage,
                    format!("several sessions in the trash begin with {shown}"),
                )
                .hint(format!("choose from: {}", names.join(", "))));
            }
        };
        if op.file.into.is_some() {
            if let Some(why) = self.unmerge_obstacle(op) {
                return Err(Error::refused(format!("{shown} cannot be put back: {why}")));
            }
            let path = op.path.clone();
            let names = op.sessions().map(|m| text::escape(&m.dir())).collect();
            let op = ops.into_iter().find(|o| o.path == path);
            if let Some(op) = op {
                self.unmerge(op, steps)?;
            }
            return Ok(names);
        }
        let mut back = going_back(&all, wanted);
        // The newest first: what is there is always a chain without a gap.
        back.sort_by_key(|(_, m)| std::cmp::Reverse(m.chain_seq));
        for (_, m) in &back {
            if m.at(self.store.path()).exists() {
                let name = text::escape(&m.dir());
                return Err(Error::refused(format!("there is a {name} in the store already")));
            }
        }
        for (op, m) in &back {
            self.put_back(op, m, steps)?;
        }
        let mut names: Vec<String> = back.iter().map(|(_, m)| text::escape(&m.dir())).collect();
        names.reverse();
        for op in ops {
            if op.file.into.is_none() && op.sessions().next().is_none() {
                self.delete(op, steps)?;
            }
        }
        Ok(names)
    }
}

/// The sessions that come back with one that was removed: those between it and
/// the oldest that is there, and the same of each device that was part of one
/// file system with one of them.
fn going_back<'a>(all: &[(&'a Op, &'a Member)], wanted: &Member) -> Vec<(&'a Op, &'a Member)> {
    // By device, from where on.
    let mut from = BTreeMap::from([(wanted.device.as_str(), wanted.chain_seq)]);
    loop {
        let is_back = |m: &Member| from.get(m.device.as_str()).is_some_and(|s| m.chain_seq >= *s);
        let removed = all.iter().filter(|(o, _)| o.file.what == What::Remove);
        let (back, rest): (Vec<_>, Vec<_>) = removed.partition(|(_, m)| is_back(m));
        let group = |o: &Op, m: &Member| m.look(&o.path).map(|s| chain::group(&s));
        let groups: BTreeSet<Id> = back.iter().filter_map(|(o, m)| group(o, m)).collect();
        let partners: Vec<&Member> = rest
            .iter()
            .filter(|(o, m)| group(o, m).is_some_and(|g| groups.contains(&g)))
            .map(|(_, m)| *m)
            .collect();
        if partners.is_empty() {
            return back;
        }
        for m in partners {
            let least = from.entry(&m.device).or_insert(m.chain_seq);
            *least = m.chain_seq.min(*least);
        }
    }
}
