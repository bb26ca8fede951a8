// SPDX-License-Identifier: GPL-2.0

//! The store: a directory with a marker, chain tails and session directories.
//!
//! ```text
//! <store>/                     0700
//! ├── .bdsnap-store            0600  marker: the store's id, last chain_seq
//! ├── .bdsnap-chain/           0700
//! │   └── <key>                0600  tail of one device's chain
//! ├── vdb_20261121T220301Z/    0700  a session
//! │   ├── blocks.map           0600
//! │   ├── blocks.dat           0600
//! │   └── meta.json            0600
//! └── sda2_1763790000/               a session of the original module
//! ```
//!
//! The marker is changed in place under an exclusive `flock` on it. Sessions
//! are written by the module, or (undo sessions) by a restore; both make the
//! directory first, so a name is never taken twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bdsnap_abi::format::{
    FormatError, Header, Marker, Tail, Version, CHAIN_DIR, MAP_NAME, MARKER_LEN, MARKER_NAME,
    TAIL_LEN,
};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::module::ModuleStatus;
use crate::original::Original;
use crate::session::Session;

/// Where the store is unless told otherwise.
pub const DEFAULT_STORE: &str = "/snapshot";
/// So many sessions are worth a thread that reads them.
const FOR_A_THREAD: usize = 256;

/// An opened store.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    marker: Marker,
}

/// A lock on the whole store, until dropped.
///
/// Whoever reads sessions has a shared one, so that they do not go away
/// meanwhile. Whoever takes them away has it alone, and only for moments. The
/// module takes none: it never touches a session that has ended, and nobody
/// touches the one that it records.
#[derive(Debug)]
pub struct StoreLock {
    _dir: File,
}

/// What `init` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// The store was there.
    Existed,
    /// It was made.
    Created,
}

/// A directory of the store.
#[derive(Debug)]
pub enum Item {
    /// A session.
    Session(Box<Session>),
    /// A session of the original module.
    Original(Original),
    /// Something that should be a session and cannot be read as one.
    Damaged(Damaged),
}

/// What cannot be read as a session.
#[derive(Debug, Clone)]
pub struct Damaged {
    /// Name of its directory.
    pub dir: Vec<u8>,
    /// What is wrong.
    pub reason: String,
}

impl Item {
    /// Name of its directory.
    pub fn dir(&self) -> &[u8] {
        match self {
            Self::Session(s) => &s.dir,
            Self::Original(o) => &o.dir,
            Self::Damaged(d) => &d.dir,
        }
    }

    /// Start, ns since 1970; 0 if it cannot be known.
    pub fn start_ns(&self) -> u64 {
        match self {
            Self::Session(s) => s.header.start_ns,
            Self::Original(o) => o.start_ns(),
            Self::Damaged(_) => 0,
        }
    }
}

impl Store {
    /// Opens the store in `path`.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] if there is none, [`Kind::Verification`] if its
    /// marker is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = match fsutil::open_regular(&path.join(MARKER_NAME)) {
            Ok(f) => f,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                let what = if path.is_dir() { "is not a bdsnap store" } else { "does not exist" };
                return Err(Error::not_found(format!("{} {what}", crate::text::path(path))).hint(
                    "mount the store, name it with --store, or make one with 'bdsnap init'",
                ));
            }
            Err(e) => return Err(e).on("open", &path.join(MARKER_NAME)),
        };
        let marker = read_marker(&file, path)?;
        Ok(Self { path: path.to_owned(), marker })
    }

    /// Whether /etc/fstab has a file system for this directory that is not
    /// mounted.
    pub fn awaits_mount(path: &Path) -> bool {
        awaits_mount(path, &std::fs::read("/etc/fstab").unwrap_or_default())
    }

    /// Makes a store in a missing or empty directory (one with nothing but
    /// `lost+found` counts as empty), or opens the one that is there. One that
    /// has lost its marker gets a new one. In one that is made, sessions are written in `version`.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if the directory holds something else.
    pub fn init(path: &Path, version: Version) -> Result<(Self, Init)> {
        match Self::open(path) {
            Ok(store) => {
                store.make_chain_dir()?;
                return Ok((store, Init::Existed));
            }
            Err(e) if e.kind == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
        if Self::awaits_mount(path) {
            return Err(Error::refused(format!(
                "/etc/fstab names a file system for {}, and it is not mounted",
                crate::text::path(path)
            ))
            .hint("mount it first"));
        }
        let mut made = false;
        match fsutil::make_private_dir(path) {
            Ok(()) => made = true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).on("make", path),
        }
        let was_store = path.join(CHAIN_DIR).is_dir();
        for entry in path.read_dir().on("read", path)? {
            let name = entry.on("read", path)?.file_name();
            if !was_store && name != "lost+found" && !is_leftover(name.as_bytes()) {
                return Err(Error::refused(format!(
                    "{} is not empty and not a bdsnap store",
                    crate::text::path(path)
                ))
                .hint("give an empty directory of its own"));
            }
        }
        if !made {
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(path, private).on("protect", path)?;
        }
        let marker = Marker { version, store_id: fsutil::random_id()?, chain_seq: 0 };
        let mut store = Self { path: path.to_owned(), marker };
        store.make_chain_dir()?;
        if was_store {
            // No number twice.
            let numbers = store.items()?.into_iter().filter_map(|item| match item {
                Item::Session(s) => Some(s.header.chain_seq),
                _ => None,
            });
            store.marker.chain_seq = numbers.max().unwrap_or(0);
        }
        let mut bytes = [0; MARKER_LEN];
        store.marker.encode(&mut bytes);
        // Last: what has a marker is a whole store.
        fsutil::replace(&path.join(MARKER_NAME), &bytes, 0o600)?;
        if made {
            fsutil::sync_dir(fsutil::parent(path))?;
        }
        Ok((store, Init::Created))
    }

    pub(crate) fn make_chain_dir(&self) -> Result<()> {
        let dir = self.path.join(CHAIN_DIR);
        match fsutil::make_private_dir(&dir) {
            Ok(()) => fsutil::sync_dir(&self.path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e).on("make", &dir),
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a shared lock, at most some seconds.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if sessions are being taken away all that time.
    pub fn lock_shared(&self) -> Result<StoreLock> {
        self.lock(FlockOperation::NonBlockingLockShared, "sessions are being removed from it")
    }

    /// Waits for the store alone, at most some seconds.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if others read it all that time.
    pub fn lock_alone(&self) -> Result<StoreLock> {
        self.lock(FlockOperation::NonBlockingLockExclusive, "another program is using its sessions")
    }

    fn lock(&self, how: FlockOperation, who: &str) -> Result<StoreLock> {
        let dir = File::open(&self.path).on("open", &self.path)?;
        match lock_for(&dir, how, 200) {
            Ok(()) => Ok(StoreLock { _dir: dir }),
            Err(e) if e.raw_os_error() == Some(libc::EWOULDBLOCK) => {
                Err(Error::refused(format!("{} is locked: {who}", crate::text::path(&self.path)))
                    .hint("wait until it has ended, and try again"))
            }
            Err(e) => Err(e).on("lock", &self.path),
        }
    }

    /// Its identity.
    pub fn id(&self) -> bdsnap_abi::format::Id {
        self.marker.store_id
    }

    /// All sessions, oldest first by the store's order, the damaged ones at
    /// the end. Reads 12 KiB of each.
    ///
    /// Without those that have been merged into another one: pruning was cut
    /// before it took them away.
    pub fn items(&self) -> Result<Vec<Item>> {
        let mut items = self.all_items()?;
        leave_out_merged(&mut items);
        Ok(items)
    }

    /// As [`Store::items`], with those that have been merged.
    pub fn all_items(&self) -> Result<Vec<Item>> {
        let mut names = Vec::new();
        for entry in self.path.read_dir().on("read", &self.path)? {
            let entry = entry.on("read", &self.path)?;
            let name = entry.file_name();
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            if is_dir && name != "lost+found" && !name.as_bytes().starts_with(b".") {
                names.push(name.into_vec());
            }
        }
        let mut items = self.read_all(&names);
        items.sort_by(|a, b| order(a).cmp(&order(b)));
        Ok(items)
    }

    /// The sessions in these directories; of many, by several threads.
    fn read_all(&self, names: &[Vec<u8>]) -> Vec<Item> {
        let read = |names: &[Vec<u8>]| -> Vec<Item> {
            names.iter().filter_map(|n| self.item(n)).collect()
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(names.len() / FOR_A_THREAD);
        if threads < 2 {
            return read(names);
        }
        std::thread::scope(|scope| {
            let parts: Vec<_> = names
                .chunks(names.len().div_ceil(threads))
                .map(|part| scope.spawn(move || read(part)))
                .collect();
            let joined = parts.into_iter().map(|p| p.join());
            joined.flat_map(|p| p.unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
        })
    }

    /// The session in one directory; `None` if it does not look like one.
    pub fn item(&self, dir: &[u8]) -> Option<Item> {
        let path = self.path.join(std::ffi::OsStr::from_bytes(dir));
        if Original::is_named_so(dir) {
            return Original::look(&path, dir).transpose().map(|r| match r {
                Ok(o) => Item::Original(o),
                Err(reason) => Item::Damaged(Damaged { dir: dir.to_vec(), reason }),
            });
        }
        match Session::read(&path, dir) {
            Ok(s) => Some(Item::Session(Box::new(s))),
            Err(reason) => {
                // A directory of another kind, or one without its index?
                let ours = crate::session::is_named_so(dir) || path.join(MAP_NAME).exists();
                ours.then(|| Item::Damaged(Damaged { dir: dir.to_vec(), reason }))
            }
        }
    }

    /// Reads once more what seemed to be recording and is not: its end may
    /// have come between the first look and the module's status.
    pub fn look_again(&self, items: &mut [Item], module: Option<&ModuleStatus>) {
        for item in items {
            let Item::Session(s) = item else { continue };
            if !s.has_ended() && !module.is_some_and(|m| m.is_recording(&s.header.session_id)) {
                if let Ok(now) = Session::read(&s.path, &s.dir) {
                    **s = now;
                }
            }
        }
    }

    /// The version in which sessions are written here.
    pub fn version(&self) -> Version {
        self.marker.version
    }

    /// From now on sessions are written here in `version`. False: they are already, or in a newer one.
    pub fn raise(&mut self, version: Version) -> Result<bool> {
        let mut raised = false;
        self.marker = self.change_marker(|marker| {
            raised = marker.version < version;
            marker.version = marker.version.max(version);
            Ok(())
        })?;
        Ok(raised)
    }

    /// Gives out the next place in the chain, greater than `after`, durably.
    pub fn next_chain_seq(&self, after: u64) -> Result<u64> {
        let marker = self.change_marker(|marker| {
            let last = marker.chain_seq.max(after);
            let used_up = || Error::other("the store's chain_seq is used up");
            marker.chain_seq = last.checked_add(1).ok_or_else(used_up)?;
            Ok(())
        })?;
        Ok(marker.chain_seq)
    }

    /// Changes the marker in place, durably, as the only one of the tools; returns it.
    fn change_marker(&self, change: impl FnOnce(&mut Marker) -> Result<()>) -> Result<Marker> {
        let path = self.path.join(MARKER_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .on("open", &path)?;
        lock(&file).on("lock", &path)?;
        let before = read_marker(&file, &self.path)?;
        let mut marker = before;
        change(&mut marker)?;
        if marker != before {
            let mut bytes = [0; MARKER_LEN];
            marker.encode(&mut bytes);
            file.write_all_at(&bytes, 0).and_then(|()| file.sync_data()).on("write", &path)?;
        }
        Ok(marker)
    }

    /// Where the tail of a device's chain is.
    pub fn tail_path(&self, name: &[u8]) -> PathBuf {
        let hash: [u8; 32] = Sha256::digest(name).into();
        let key = bdsnap_abi::name::chain_key(&hash);
        self.path.join(CHAIN_DIR).join(std::ffi::OsStr::from_bytes(&key))
    }

    /// The tail of a device's chain; `None` if there is none.
    pub fn tail(&self, name: &[u8]) -> Result<Option<Tail>> {
        let path = self.tail_path(name);
        let bytes = match fsutil::read_small(&path, TAIL_LEN) {
            Ok(b) => b,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).on("read", &path),
        };
        Tail::decode(&bytes).map(Some).map_err(|e| {
            Error::new(Kind::Verification, format!("{}: {e}", crate::text::path(&path)))
        })
    }

    /// Replaces the tail of a device's chain.
    pub fn set_tail(&self, name: &[u8], tail: &Tail) -> Result<()> {
        self.make_chain_dir()?;
        let mut bytes = [0; TAIL_LEN];
        tail.encode(&mut bytes);
        fsutil::replace(&self.tail_path(name), &bytes, 0o600)
    }

    /// Free bytes for new files.
    pub fn free_bytes(&self) -> Result<u64> {
        let s = rustix::fs::statvfs(&self.path).on("examine", &self.path)?;
        Ok(s.f_bavail.saturating_mul(s.f_frsize))
    }
}

/// Takes out sessions that are part of another one.
fn leave_out_merged(items: &mut Vec<Item>) {
    // Few have merged anything, so this is short.
    let merged: Vec<Header> = items
        .iter()
        .filter_map(|i| match i {
            Item::Session(s) if s.header.merged_seq != 0 => Some(s.header.clone()),
            _ => None,
        })
        .collect();
    if !merged.is_empty() {
        items.retain(|i| match i {
            Item::Session(s) => {
                !merged.iter().any(|m| m.name() == s.header.name() && m.contains(&s.header))
            }
            Item::Original(_) | Item::Damaged(_) => true,
        });
    }
}

/// Whether `fstab` has a file system for a directory on which none is mounted:
/// a store made now would be hidden later.
fn awaits_mount(path: &Path, fstab: &[u8]) -> bool {
    let path = crate::device::absolute(path);
    let listed = fstab.split(|&b| b == b'\n').any(|line| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty());
        let first = fields.next().unwrap_or_default();
        let point = crate::device::unescape(fields.next().unwrap_or_default());
        !first.starts_with(b"#") && Path::new(std::ffi::OsStr::from_bytes(&point)) == path
    });
    let dev = |p: &Path| p.metadata().map(|m| std::os::unix::fs::MetadataExt::dev(&m)).ok();
    let mounted = dev(&path).is_some() && dev(&path) != dev(fsutil::parent(&path));
    listed && !mounted
}

/// What a marker's replacement may have left behind in an unfinished store.
fn is_leftover(name: &[u8]) -> bool {
    name == CHAIN_DIR.as_bytes()
        || (name.starts_with(b"..bdsnap-store.") && name.ends_with(b".tmp"))
}

fn order(item: &Item) -> (u8, u64, u64, &[u8]) {
    match item {
        Item::Original(o) => (0, o.start_ns(), 0, &o.dir),
        Item::Session(s) => (1, s.header.chain_seq, s.header.start_ns, &s.dir),
        Item::Damaged(d) => (2, 0, 0, &d.dir),
    }
}

fn read_marker(file: &File, store: &Path) -> Result<Marker> {
    let path = store.join(MARKER_NAME);
    let mut bytes = [0; MARKER_LEN];
    let n = fsutil::read_up_to(file, &mut bytes, 0).on("read", &path)?;
    Marker::decode(&bytes[..n]).map_err(|e| match e {
        FormatError::Version(version) => Error::new(
            Kind::Verification,
            format!("{} is a store of version {version}", crate::text::path(store)),
        )
        .hint("it was made by a newer bdsnap: upgrade this one"),
        e => Error::new(
            Kind::Verification,
            format!("the store's marker {} is damaged: {e}", crate::text::path(&path)),
        ),
    })
}

/// Takes an exclusive lock on a file, waiting for at most about two seconds.
fn lock(file: &File) -> io::Result<()> {
    lock_for(file, FlockOperation::NonBlockingLockExclusive, 40)
}

/// Takes a lock, trying it so many times, twenty a second.
fn lock_for(file: &File, how: FlockOperation, attempts: u32) -> io::Result<()> {
    for _ in 0..attempts {
        match rustix::fs::flock(file, how) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EWOULDBLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_makes_keeps_and_refuses() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("snapshot");
        let (store, init) = Store::init(&path, Version::NEWEST).unwrap();
        assert_eq!(init, Init::Created);
        let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(MARKER_NAME)), 0o600);
        assert_eq!(mode(&path.join(CHAIN_DIR)), 0o700);
        let (again, init) = Store::init(&path, Version::NEWEST).unwrap();
        assert_eq!(init, Init::Existed);
        assert_eq!(again.id(), store.id());

        let lost = tmp.path().join("lost");
        std::fs::create_dir_all(lost.join("lost+found")).unwrap();
        Store::init(&lost, Version::NEWEST).unwrap();
        assert_eq!(mode(&lost), 0o700);

        let full = tmp.path().join("full");
        std::fs::create_dir(&full).unwrap();
        std::fs::write(full.join("x"), "").unwrap();
        assert_eq!(Store::init(&full, Version::NEWEST).unwrap_err().kind, Kind::Refused);
        assert_eq!(Store::open(&full).unwrap_err().kind, Kind::NotFound);
        assert_eq!(Store::open(&tmp.path().join("none")).unwrap_err().kind, Kind::NotFound);

        std::fs::write(path.join(MARKER_NAME), "bdsnap-store 2").unwrap();
        assert_eq!(Store::open(&path).unwrap_err().kind, Kind::Verification);
        assert_eq!(Store::init(&path, Version::NEWEST).unwrap_err().kind, Kind::Verification);
    }

    #[test]
    fn a_file_system_that_is_to_come_is_waited_for() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a b");
        let line = |p: &str| format!("# x\nUUID=1 / ext4 defaults 0 1\n{p}").into_bytes();
        let listed = path.to_str().unwrap().replace(' ', "\\040");
        assert!(awaits_mount(&path, &line(&format!("/dev/vdb\t{listed}  ext4 defaults"))));
        assert!(!awaits_mount(&path, &line(&format!("#/dev/vdb {listed} ext4 defaults"))));
        assert!(!awaits_mount(&path, &line("/dev/vdb /other ext4")));
        assert!(!awaits_mount(Path::new("/proc"), &line("proc /proc proc defaults")), "mounted");
    }

    #[test]
    fn chain_seq_grows_and_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let (store, _) = Store::init(&tmp.path().join("s"), Version::NEWEST).unwrap();
        assert_eq!(store.next_chain_seq(0).unwrap(), 1);
        assert_eq!(store.next_chain_seq(0).unwrap(), 2);
        assert_eq!(store.next_chain_seq(10).unwrap(), 11);
        assert_eq!(Store::open(store.path()).unwrap().marker.chain_seq, 11);
    }

    #[test]
    fn tails_are_kept_by_name() {
        let tmp = tempfile::tempdir().unwrap();
        let (store, _) = Store::init(&tmp.path().join("s"), Version::NEWEST).unwrap();
        assert!(store.tail(b"/dev/vdb").unwrap().is_none());
        let mut tail = Tail::new();
        tail.session_id = [7; 16];
        store.set_tail(b"/dev/vdb", &tail).unwrap();
        assert_eq!(store.tail(b"/dev/vdb").unwrap().unwrap().session_id, [7; 16]);
        assert!(store.tail(b"/dev/vdc").unwrap().is_none());
        std::fs::write(store.tail_path(b"/dev/vdc"), "x").unwrap();
        assert_eq!(store.tail(b"/dev/vdc").err().unwrap().kind, Kind::Verification);
    }
}
