// SPDX-License-Identifier: GPL-2.0

//! Which device the user means, whether it is free, and how it is opened.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bdsnap_abi::format::{Header, Tail, DEV_IMAGE, HEAD_LEN};
use rustix::fs::FlockOperation;

use crate::error::{errno_text, Context, Error, Result};
use crate::identity::{self, Identity, Note, Verdict};
use crate::store::Store;
use crate::text;

/// What a device is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A block device with its number.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An image file with the file system and inode it is.
    Image {
        /// Device of its file system.
        dev: u64,
        /// Inode.
        ino: u64,
    },
    /// Nothing of that name is there; it may be in the store.
    Absent,
}

/// A device as the user named it.
#[derive(Debug, Clone)]
pub struct Target {
    /// As given.
    pub given: PathBuf,
    /// Names under which it may be recorded: as given, made absolute,
    /// canonical.
    names: Vec<Vec<u8>>,
    /// The canonical path of its node or image.
    pub path: PathBuf,
    /// What it is.
    pub what: What,
    /// Start on its disk in sectors, for a partition.
    part_start: Option<u64>,
}

/// How sessions of a device were recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// The name is the same.
    Name,
    /// The recorded name leads to the same device number.
    DeviceNumber,
    /// The recorded name leads to the same file.
    Inode,
    /// The same disk by its serial number or such, and the same place on it.
    Disk,
    /// The same UUID in the partition table.
    Partition,
    /// It holds what the chain remembers of the end of its last session.
    Content,
    /// The same UUID of its file system, and the same size.
    FileSystem,
    /// Of the original module: recorded under the name of the disk that it is a
    /// partition of.
    DiskOfPartition,
    /// Of the original module: recorded without a name; the directory's fits.
    BaseName,
}

impl Ground {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "same name",
            Self::DeviceNumber => "same device number",
            Self::Inode => "same file",
            Self::Disk => "same disk, same place on it",
            Self::Partition => "same partition UUID",
            Self::Content => "same content as at the end of its last session",
            Self::FileSystem => "same file system UUID and size",
            Self::DiskOfPartition => "the name of its disk",
            Self::BaseName => "the last component of its name",
        }
    }
}

impl Target {
    /// Finds what `given` means: a node, a link to one, a mount point, an
    /// image, or a name that is only recorded. A loop device stands for the
    /// image behind it.
    pub fn find(given: &Path) -> Result<Self> {
        let absolute = absolute(given);
        let mut names = vec![given.as_os_str().as_bytes().to_vec(), bytes(&absolute)];
        let meta = match std::fs::metadata(given) {
            Ok(m) => m,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Ok(Self {
                    given: given.to_owned(),
                    names,
                    path: absolute,
                    what: What::Absent,
                    part_start: None,
                });
            }
            Err(e) => return Err(e).on("examine", given),
        };
        let mut path = given.canonicalize().on("examine", given)?;
        let mut meta = meta;
        if meta.is_dir() {
            path = mounted_device(&path).ok_or_else(|| {
                Error::not_found(format!(
                    "{} is not the mount point of a device",
                    text::path(given)
                ))
            })?;
            meta = std::fs::metadata(&path).on("examine", &path)?;
        }
        names.push(bytes(&path));
        if meta.file_type().is_block_device() {
            if let Some(image) = backing_file(&meta) {
                path = image;
                names.push(bytes(&path));
                meta = std::fs::metadata(&path).on("examine", &path)?;
            }
        }
        let what = what(&meta).ok_or_else(|| {
            Error::other(format!(
                "{} is neither a block device nor a regular file",
                text::path(given)
            ))
        })?;
        let part_start = match what {
            What::Block { major, minor } => sysfs_number(major, minor, "start"),
            What::Image { .. } | What::Absent => None,
        };
        names.sort();
        names.dedup();
        Ok(Self { given: given.to_owned(), names, path, what, part_start })
    }

    /// Whether it is an image file.
    pub fn is_image(&self) -> bool {
        matches!(self.what, What::Image { .. })
    }

    /// Names under which it may be recorded.
    pub fn names(&self) -> &[Vec<u8>] {
        &self.names
    }

    /// Of a partition, the node of its disk.
    pub fn disk(&self) -> Option<PathBuf> {
        let What::Block { major, minor } = self.what else { return None };
        let sys = sysfs(major, minor).canonicalize().ok()?;
        sys.join("partition").exists().then(|| sys.parent().and_then(node_of))?
    }

    /// Whether it is a disk with partitions.
    pub fn has_partitions(&self) -> bool {
        matches!(self.what, What::Block { .. })
            && self.disk().is_none()
            && !related_nodes(self).is_empty()
    }

    /// Size in bytes as sessions with this header see it.
    pub fn bytes(&self, file: &File, header: &Header) -> Result<u64> {
        if !self.is_image() {
            return crate::sys::device_bytes(file.as_fd()).on("examine", &self.path);
        }
        let len = file.metadata().on("examine", &self.path)?.len();
        Ok(loop_bytes(len, header))
    }

    /// Why a session with this header, though of the same name, is of another
    /// device; `bytes` is the device's size.
    pub fn contradiction(&self, header: &Header, bytes: u64) -> Option<String> {
        // It may have grown: what is behind the former end is left alone.
        if header.device_bytes > bytes {
            return Some(format!(
                "it has {bytes} bytes, the session's device had {}",
                header.device_bytes
            ));
        }
        match self.part_start {
            Some(start) if start != header.part_start => Some(format!(
                "it begins at sector {start} of its disk, the session's device at {}",
                header.part_start
            )),
            _ => None,
        }
    }
}

/// Size of a loop device over an image of `len` bytes, set up as in `header`.
fn loop_bytes(len: u64, header: &Header) -> u64 {
    let rest = len.saturating_sub(header.loop_offset);
    let limited = match header.loop_sizelimit {
        0 => rest,
        limit => rest.min(limit),
    };
    limited / 512 * 512
}

/// What is known about a session's device and the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// It is the target, on that ground.
    Yes(Ground),
    /// It had the target's name, but is another device; why.
    Stranger(String),
    /// Nothing says that it is the target.
    No,
}

/// Decides for sessions whether their device is the target.
///
/// A name is not enough where more is known: what the tools noted of the
/// device (see [`crate::identity`]), and what the chain's tail remembers of
/// its content.
#[derive(Debug)]
pub struct Matcher<'a> {
    target: &'a Target,
    store: Option<&'a Store>,
    names: BTreeMap<Vec<u8>, Option<Ground>>,
    notes: BTreeMap<Vec<u8>, Vec<Note>>,
    content: BTreeMap<Vec<u8>, bool>,
    now: Option<Option<Identity>>,
}

impl<'a> Matcher<'a> {
    /// For one device, by names only.
    pub fn new(target: &'a Target) -> Self {
        Self {
            target,
            store: None,
            names: BTreeMap::new(),
            notes: BTreeMap::new(),
            content: BTreeMap::new(),
            now: None,
        }
    }

    /// For one device and the sessions of a store, with all that it knows.
    pub fn in_store(target: &'a Target, store: &'a Store) -> Self {
        Self { store: Some(store), ..Self::new(target) }
    }

    /// Whether the session with this header is the target's.
    pub fn judge(&mut self, header: &Header) -> Match {
        let by_name = self.ground(header.name());
        match (self.compare(header), by_name) {
            // A copy of it that is the same byte for byte is as good.
            (Verdict::Other(why), Some(_)) => {
                if self.same_content(header) {
                    Match::Yes(Ground::Content)
                } else {
                    Match::Stranger(why)
                }
            }
            (Verdict::Disk, _) => Match::Yes(Ground::Disk),
            (Verdict::Partition, _) => Match::Yes(Ground::Partition),
            (_, Some(ground)) => Match::Yes(ground),
            // Is it elsewhere now, under the old name?
            (_, None) if self.target.what == What::Absent || exists(header.name()) => Match::No,
            (_, None) if self.same_content(header) => Match::Yes(Ground::Content),
            (Verdict::FileSystem, None) => Match::Yes(Ground::FileSystem),
            (_, None) => Match::No,
        }
    }

    /// Whether a recorded name alone leads to the target.
    pub fn ground(&mut self, recorded: &[u8]) -> Option<Ground> {
        if let Some(known) = self.names.get(recorded) {
            return *known;
        }
        let ground = self.look(recorded);
        self.names.insert(recorded.to_vec(), ground);
        ground
    }

    fn look(&self, recorded: &[u8]) -> Option<Ground> {
        if self.target.names.iter().any(|n| n == recorded) {
            return Some(Ground::Name);
        }
        if self.target.what == What::Absent || !recorded.starts_with(b"/") {
            return None;
        }
        let meta = std::fs::metadata(OsStr::from_bytes(recorded)).ok()?;
        let is_it = what(&meta)? == self.target.what;
        is_it.then_some(match self.target.what {
            What::Block { .. } => Ground::DeviceNumber,
            What::Image { .. } | What::Absent => Ground::Inode,
        })
    }

    /// What was noted of the session's device against what is there.
    fn compare(&mut self, header: &Header) -> Verdict {
        let Some(store) = self.store else { return Verdict::Unknown };
        if !matches!(self.target.what, What::Block { .. }) {
            return Verdict::Unknown;
        }
        let name = header.name();
        if !self.notes.contains_key(name) {
            self.notes.insert(name.to_vec(), identity::notes(store, name));
        }
        let noted = self.notes.get(name).and_then(|n| identity::noted(n, header.chain_seq));
        let Some(noted) = noted else { return Verdict::Unknown };
        let path = &self.target.path;
        match self.now.get_or_insert_with(|| Identity::of(path)) {
            Some(now) => noted.compare(now),
            None => Verdict::Unknown,
        }
    }

    /// Whether the target holds what the session's device held when its last
    /// session ended, in all places that are remembered.
    fn same_content(&mut self, header: &Header) -> bool {
        if let Some(known) = self.content.get(header.name()) {
            return *known;
        }
        let same = self.holds_tail(header).unwrap_or(false);
        self.content.insert(header.name().to_vec(), same);
        same
    }

    fn holds_tail(&self, header: &Header) -> Result<bool> {
        let Some(tail) = self.store.map(|s| s.tail(header.name())).transpose()?.flatten() else {
            return Ok(false);
        };
        let file = File::open(&self.target.path).on("open", &self.target.path)?;
        let there = self.target.bytes(&file, header)?;
        let is_image = header.dev_flags & DEV_IMAGE != 0;
        if tail.device_bytes > there || is_image != self.target.is_image() {
            return Ok(false);
        }
        let base = if is_image { header.loop_offset } else { 0 };
        // Empty devices are all the same.
        Ok(tail_differs(&tail, &file, base).on("read", &self.target.path)? == Some(false)
            && !head_is_zero(&file, base, there).on("read", &self.target.path)?)
    }
}

/// Whether a device is not what a chain's tail remembers of it, in the places
/// that it remembers; `None` if it remembers nothing. It begins at byte `base`.
pub(crate) fn tail_differs(tail: &Tail, file: &File, base: u64) -> io::Result<Option<bool>> {
    if tail.head_sha256 == [0; 32] {
        return Ok(None);
    }
    let mut buf = vec![0; tail.device_bytes.min(HEAD_LEN) as usize];
    file.read_exact_at(&mut buf, base)?;
    if crate::writer::Head::of(&buf).sha256 != tail.head_sha256 {
        return Ok(Some(true));
    }
    for sample in tail.samples() {
        buf.resize(sample.bytes as usize, 0);
        let at = sample.sector.saturating_mul(bdsnap_abi::SECTOR).saturating_add(base);
        file.read_exact_at(&mut buf, at)?;
        if crc32c::crc32c(&buf) != sample.crc {
            return Ok(Some(true));
        }
    }
    Ok(Some(false))
}

fn head_is_zero(file: &File, base: u64, bytes: u64) -> io::Result<bool> {
    let mut buf = vec![0; bytes.min(HEAD_LEN) as usize];
    file.read_exact_at(&mut buf, base)?;
    Ok(crate::fsutil::is_zero(&buf))
}

/// Whether a recorded name leads to a device or an image now.
fn exists(recorded: &[u8]) -> bool {
    std::fs::metadata(OsStr::from_bytes(recorded)).is_ok_and(|m| what(&m).is_some())
}

/// Nodes of all block devices of this machine.
pub(crate) fn all_nodes() -> Vec<PathBuf> {
    let entries = Path::new("/sys/class/block").read_dir().into_iter().flatten().flatten();
    let mut nodes: Vec<PathBuf> = entries.filter_map(|e| node_of(&e.path())).collect();
    nodes.sort();
    nodes
}

/// A device opened so that nobody else can mount it.
#[derive(Debug)]
pub struct Opened {
    /// The device or image.
    pub file: File,
    /// Loop devices over the image, held so that nobody mounts them.
    loops: Vec<File>,
    /// The disk of a partition, or a disk's partitions: their page caches
    /// show the same sectors.
    related: Vec<File>,
    block: bool,
}

/// What a device is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To look at it.
    Read,
    /// To change it.
    Write,
}

impl Opened {
    /// Opens a device exclusively.
    ///
    /// # Errors
    ///
    /// [`crate::error::Kind::Refused`] if it is in use or, when it is to be
    /// written, read-only.
    pub fn open(target: &Target, purpose: Purpose) -> Result<Self> {
        let name = text::path(&target.path);
        let block = match target.what {
            What::Block { .. } => true,
            What::Image { .. } => false,
            What::Absent => return Err(Error::not_found(format!("{name} does not exist"))),
        };
        let mut options = OpenOptions::new();
        options.read(true).write(purpose == Purpose::Write);
        if block {
            options.custom_flags(libc::O_EXCL);
        }
        let file = match options.open(&target.path) {
            Ok(f) => f,
            Err(e) => {
                return Err(match e.raw_os_error() {
                    Some(libc::EBUSY) => in_use(target),
                    Some(libc::EROFS | libc::ETXTBSY) => {
                        Error::refused(format!("{name} is read-only"))
                    }
                    _ => Error::io(format_args!("cannot open {name}"), &e),
                });
            }
        };
        let mut opened = Self { file, loops: Vec::new(), related: Vec::new(), block };
        if block {
            if purpose == Purpose::Write
                && crate::sys::is_read_only(opened.file.as_fd()).on("examine", &target.path)?
            {
                return Err(Error::refused(format!("{name} is read-only")));
            }
            opened.related =
                related_nodes(target).iter().filter_map(|p| File::open(p).ok()).collect();
        } else {
            match rustix::fs::flock(&opened.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(Error::refused(format!("{name} is locked by another program")));
                }
                Err(e) => return Err(e).on("lock", &target.path),
            }
            for node in loops_over(target) {
                match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&node) {
                    Ok(f) => opened.loops.push(f),
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                        return Err(Error::refused(format!(
                            "{name} is in use through {}{}",
                            text::path(&node),
                            users_of_node(&node)
                        ))
                        .hint("unmount it first"));
                    }
                    // Detached in between, or a node without a device.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {}
                    Err(e) => return Err(e).on("open", &node),
                }
            }
        }
        Ok(opened)
    }

    /// Whether it is a block device.
    pub fn is_block(&self) -> bool {
        self.block
    }

    /// Logical block size in bytes; 512 for an image.
    pub fn logical_block_size(&self) -> u32 {
        if self.block {
            crate::sys::logical_block_size(self.file.as_fd()).unwrap_or(512)
        } else {
            512
        }
    }

    /// Writes back and drops what page caches hold of the device, so that the
    /// next read comes from it.
    pub fn drop_caches(&self) -> io::Result<()> {
        for file in self.loops.iter().chain(&self.related) {
            crate::sys::flush_buffers(file.as_fd())?;
        }
        if self.block {
            crate::sys::flush_buffers(self.file.as_fd())
        } else {
            self.file.sync_data()?;
            rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?;
            Ok(())
        }
    }

    /// Makes the kernel read the partition table again; says nothing if it
    /// will not.
    pub fn reread_partitions(&mut self) {
        if self.block {
            // Open partitions would hinder it.
            self.related.clear();
            // A device that has no partitions refuses; nothing is lost.
            let _ = crate::sys::reread_partitions(self.file.as_fd());
        }
    }
}

/// The refusal for a device that somebody holds.
fn in_use(target: &Target) -> Error {
    let users = match target.what {
        What::Block { major, minor } => users_of(major, minor),
        What::Image { .. } | What::Absent => Vec::new(),
    };
    let by = if users.is_empty() { String::new() } else { format!(": {}", users.join(", ")) };
    Error::refused(format!("{} is in use{by}", text::path(&target.path)))
        .hint("unmount it, or stop what holds it, and try again")
}

fn users_of_node(node: &Path) -> String {
    let Ok(meta) = std::fs::metadata(node) else { return String::new() };
    let dev = meta.rdev();
    let users = users_of(rustix::fs::major(dev), rustix::fs::minor(dev));
    if users.is_empty() {
        String::new()
    } else {
        format!(": {}", users.join(", "))
    }
}

/// Who holds a block device, one of its partitions, or its disk, in words.
fn users_of(major: u32, minor: u32) -> Vec<String> {
    let mut devices = vec![(major, minor)];
    let sys = sysfs(major, minor);
    for entry in sys.read_dir().into_iter().flatten().flatten() {
        devices.extend(read_dev(&entry.path()));
    }
    let mut users = Vec::new();
    for mount in mounts() {
        if devices.contains(&mount.device) {
            users.push(format!("mounted on {}", text::path(&mount.point)));
        }
    }
    for (major, minor) in &devices {
        let holders = sysfs(*major, *minor).join("holders");
        for holder in holders.read_dir().into_iter().flatten().flatten() {
            users.push(format!("held by {}", text::escape(holder.file_name().as_bytes())));
        }
    }
    let swaps = std::fs::read("/proc/swaps").unwrap_or_default();
    for line in swaps.split(|&b| b == b'\n').skip(1) {
        let path = unescape(line.split(|&b| b == b' ' || b == b'\t').next().unwrap_or_default());
        let number = std::fs::metadata(OsStr::from_bytes(&path)).map(|m| m.rdev());
        if number.is_ok_and(|n| devices.contains(&(rustix::fs::major(n), rustix::fs::minor(n)))) {
            users.push("in use as swap space".into());
        }
    }
    users
}

fn what(meta: &Metadata) -> Option<What> {
    if meta.file_type().is_block_device() {
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        Some(What::Block { major, minor })
    } else if meta.is_file() {
        Some(What::Image { dev: meta.dev(), ino: meta.ino() })
    } else {
        None
    }
}

/// Makes a path absolute without following links.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn sysfs(major: u32, minor: u32) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

fn sysfs_number(major: u32, minor: u32, file: &str) -> Option<u64> {
    std::fs::read_to_string(sysfs(major, minor).join(file)).ok()?.trim().parse().ok()
}

/// The device number in a `dev` file of sysfs.
fn read_dev(dir: &Path) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string(dir.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The node under /dev of a directory of sysfs.
fn node_of(sys: &Path) -> Option<PathBuf> {
    let uevent = std::fs::read_to_string(sys.join("uevent")).ok()?;
    let name = uevent.lines().find_map(|l| l.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

/// The image behind a loop device, if it is one and the image is there.
fn backing_file(meta: &Metadata) -> Option<PathBuf> {
    let dev = meta.rdev();
    let sys = sysfs(rustix::fs::major(dev), rustix::fs::minor(dev));
    loop_file(&sys).filter(|p| p.is_file())
}

fn loop_file(sys: &Path) -> Option<PathBuf> {
    let mut name = std::fs::read(sys.join("loop/backing_file")).ok()?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    Some(OsString::from_vec(name).into())
}

/// Nodes of the loop devices over an image.
fn loops_over(target: &Target) -> Vec<PathBuf> {
    let mut nodes = Vec::new();
    for entry in Path::new("/sys/block").read_dir().into_iter().flatten().flatten() {
        if !entry.file_name().as_bytes().starts_with(b"loop") {
            continue;
        }
        let Some(file) = loop_file(&entry.path()) else { continue };
        let same = std::fs::metadata(&file).is_ok_and(|m| what(&m) == Some(target.what));
        if same || file == target.path {
            nodes.extend(node_of(&entry.path()));
        }
    }
    nodes
}

/// Nodes that show some of the same sectors: of a partition its disk, of a
/// disk its partitions.
fn related_nodes(target: &Target) -> Vec<PathBuf> {
    let What::Block { major, minor } = target.what else { return Vec::new() };
    let Ok(sys) = sysfs(major, minor).canonicalize() else { return Vec::new() };
    if sys.join("partition").exists() {
        return sys.parent().and_then(node_of).into_iter().collect();
    }
    let entries = sys.read_dir().into_iter().flatten().flatten();
    entries
        .map(|e| e.path())
        .filter(|p| p.join("partition").exists())
        .filter_map(|p| node_of(&p))
        .collect()
}

/// A mount of this process's namespace.
struct Mount {
    device: (u32, u32),
    point: PathBuf,
    source: PathBuf,
}

fn mounts() -> Vec<Mount> {
    parse_mounts(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|&b| b == b' ');
        let device = std::str::from_utf8(fields.nth(2)?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let point = OsString::from_vec(unescape(fields.nth(1)?)).into();
        let source = fields.skip_while(|f| *f != b"-").nth(2)?;
        Some(Mount {
            device: (major.parse().ok()?, minor.parse().ok()?),
            point,
            source: OsString::from_vec(unescape(source)).into(),
        })
    };
    text.split(|&b| b == b'\n').filter_map(line).collect()
}

/// The device mounted on a directory; the last mount counts.
fn mounted_device(point: &Path) -> Option<PathBuf> {
    let mount = mounts().into_iter().rfind(|m| m.point == point)?;
    // Of a file system with a number of its own (btrfs), take its source.
    node_of(&sysfs(mount.device.0, mount.device.1))
        .or_else(|| mount.source.canonicalize().ok())
        .filter(|p| crate::fsutil::is_block(p))
}

/// Undoes the octal escapes of /proc (`\040`).
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after.get(..3)) {
            (b'\\', Some(digits)) if digits.iter().all(|d| (b'0'..=b'7').contains(d)) => {
                let value = digits.iter().fold(0u32, |v, d| v * 8 + u32::from(d - b'0'));
                out.push((value & 0xff) as u8);
                rest = &after[3..];
            }
            _ => out.push(byte),
        }
    }
    out
}

/// Words for an errno of a device's reads and writes.
pub(crate) fn device_error(verb: &str, target: &Target, offset: u64, e: &io::Error) -> Error {
    let cause = e.raw_os_error().map_or_else(|| e.to_string(), errno_text);
    let mut error = Error::other(format!(
        "cannot {verb} {} at byte {offset}: {cause}",
        text::path(&target.path)
    ));
    error.errno = e.raw_os_error();
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo() {
        let text = b"36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext4 /dev/vdb rw\n\
            37 35 0:45 /sub /mnt/c rw - btrfs /dev/vdc rw\nnonsense\n";
        let mounts = parse_mounts(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].device, (98, 0));
        assert_eq!(mounts[0].point, Path::new("/mnt/a b"));
        assert_eq!(mounts[1].source, Path::new("/dev/vdc"));
        assert_eq!(unescape(b"a\\134\\0x\\"), b"a\\\\0x\\");
    }

    #[test]
    fn size_behind_a_loop_device() {
        let mut h = Header::new();
        assert_eq!(loop_bytes(10_000, &h), 9728);
        h.loop_offset = 4096;
        assert_eq!(loop_bytes(10_000, &h), 5632);
        h.loop_sizelimit = 4096;
        assert_eq!(loop_bytes(10_000, &h), 4096);
        h.loop_offset = 20_000;
        assert_eq!(loop_bytes(10_000, &h), 0);
    }

    #[test]
    fn images_are_found_by_any_path() {
        let tmp = tempfile::tempdir().unwrap();
        let image = tmp.path().join("disk.img");
        std::fs::write(&image, [0; 4096]).unwrap();
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(&image, &link).unwrap();
        std::fs::hard_link(&image, tmp.path().join("other")).unwrap();
        let target = Target::find(&link).unwrap();
        assert!(target.is_image());
        let mut matcher = Matcher::new(&target);
        let canonical = bytes(&image.canonicalize().unwrap());
        assert_eq!(matcher.ground(&canonical), Some(Ground::Name));
        let other = bytes(&tmp.path().join("other"));
        assert_eq!(matcher.ground(&other), Some(Ground::Inode));
        assert_eq!(matcher.ground(b"/dev/null"), None);
        assert_eq!(matcher.ground(b"disk.img"), None);

        let gone = Target::find(Path::new("/dev/never-there")).unwrap();
        assert_eq!(gone.what, What::Absent);
        assert_eq!(Matcher::new(&gone).ground(b"/dev/never-there"), Some(Ground::Name));
        assert!(Target::find(Path::new("/dev/null")).is_err());
        assert!(Target::find(tmp.path()).is_err(), "no mount point");
    }

    #[test]
    fn an_image_is_opened_once() {
        let tmp = tempfile::tempdir().unwrap();
        let image = tmp.path().join("disk.img");
        std::fs::write(&image, [0; 4096]).unwrap();
        let target = Target::find(&image).unwrap();
        let first = Opened::open(&target, Purpose::Write).unwrap();
        let second = Opened::open(&target, Purpose::Read).unwrap_err();
        assert_eq!(second.kind, crate::error::Kind::Refused);
        drop(first);
        Opened::open(&target, Purpose::Read).unwrap();
    }
}
