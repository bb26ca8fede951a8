// SPDX-License-Identifier: GPL-2.0

//! Single files of a device's past, and what became of them. Of ext2, ext3
//! and ext4; an unfinished journal is taken into account. The device and the
//! store are only read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata, Path as InnerPath};
use serde::Serialize;

use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::progress::Stop;
use crate::text;
use crate::view::View;

/// A view that several can read.
pub type Shared = Arc<Mutex<View>>;

struct Reader(Shared);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        dst: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut view = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        view.read(start, dst).map_err(|e| e.message.into())
    }
}

/// The files of a view.
pub struct Files {
    fs: Ext4,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// What it is: `file`, `directory`, `symlink` or `other`.
    pub what: &'static str,
    /// Size in bytes.
    pub size: u64,
    /// Permissions, with setuid and such.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content changed: seconds since 1970, and nanoseconds.
    pub modified: (i64, u32),
}

/// How a path differs between two times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It came.
    Added,
    /// It went.
    Removed,
    /// Its content, or what it is.
    Changed,
    /// Its owner or permissions only.
    Attributes,
}

/// A path that differs.
#[derive(Debug, Clone, Serialize)]
pub struct Touched {
    /// The path, from the root of the file system.
    #[serde(serialize_with = "lossy")]
    pub path: Vec<u8>,
    /// How.
    pub change: Change,
    /// At the start of the session.
    pub before: Option<Entry>,
    /// At its end.
    pub after: Option<Entry>,
}

fn lossy<S: serde::Serializer>(path: &[u8], s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_str(&text::lossy(path))
}

fn words(path: &[u8], e: &Ext4Error) -> Error {
    let shown = text::escape(path);
    match e {
        Ext4Error::NotFound => Error::not_found(format!("no {shown} at that time")),
        Ext4Error::Corrupt(_) => Error::new(
            Kind::Verification,
            format!("{shown}: {}", text::escape(e.to_string().as_bytes())),
        ),
        _ => Error::other(format!("{shown}: {}", text::escape(e.to_string().as_bytes()))),
    }
}

fn entry(m: &Metadata) -> Entry {
    let what = match m.file_type() {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "other",
    };
    Entry {
        what,
        // That of a directory says nothing.
        size: if what == "directory" { 0 } else { m.len() },
        mode: m.mode() & 0o7777,
        uid: m.uid(),
        gid: m.gid(),
        modified: (m.modified().seconds(), m.modified().nanoseconds()),
    }
}

impl Files {
    /// Opens the file system in a view.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if it is none that can be read.
    pub fn open(view: &Shared) -> Result<Self> {
        match Ext4::load(Box::new(Reader(Arc::clone(view)))) {
            Ok(fs) => Ok(Self { fs }),
            Err(e) => {
                let e = text::escape(e.to_string().as_bytes());
                Err(Error::refused(format!("no ext4 file system that can be read: {e}"))
                    .hint("mount a view of the session: bdsnap view SESSION MOUNTPOINT"))
            }
        }
    }

    fn path<'a>(path: &'a [u8]) -> Result<InnerPath<'a>> {
        InnerPath::try_from(path)
            .map_err(|_| Error::new(Kind::Usage, format!("not a path: {}", text::escape(path))))
    }

    /// Writes the content of a file into `out`; returns its length.
    pub fn cat(&self, path: &[u8], out: &mut dyn Write, stop: &Stop<'_>) -> Result<u64> {
        let mut file = self.fs.open(Self::path(path)?).map_err(|e| words(path, &e))?;
        let mut buf = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            stop.check()?;
            let n = file.read_bytes(&mut buf).map_err(|e| words(path, &e))?;
            if n == 0 {
                return Ok(total);
            }
            match out.write_all(&buf[..n]) {
                Ok(()) => total += n as u64,
                // The reader has had enough.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(total),
                Err(e) => return Err(Error::io("cannot write", &e)),
            }
        }
    }

    /// Copies a file, a symbolic link or a directory with all in it to a new
    /// path. Returns the number of files, and remarks.
    ///
    /// Owners and set-user-id bits are not kept: an extracted file shall not
    /// be able to do what it could in its place.
    pub fn extract(&self, path: &[u8], to: &Path, stop: &Stop<'_>) -> Result<(u64, Vec<String>)> {
        let meta = self.fs.symlink_metadata(Self::path(path)?).map_err(|e| words(path, &e))?;
        let mut remarks = Vec::new();
        let mut count = 0;
        self.copy(path, &meta, to, &mut count, &mut remarks, stop)?;
        fsutil::sync_dir(fsutil::parent(to))?;
        Ok((count, remarks))
    }

    fn copy(
        &self,
        path: &[u8],
        meta: &Metadata,
        to: &Path,
        count: &mut u64,
        remarks: &mut Vec<String>,
        stop: &Stop<'_>,
    ) -> Result<()> {
        match meta.file_type() {
            FileType::Regular => {
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(to)
                    .on("make", to)?;
                self.cat(path, &mut file, stop)?;
                finish(&file, meta, to)?;
                *count += 1;
            }
            FileType::Directory => {
                fsutil::make_private_dir(to).on("make", to)?;
                for (name, meta) in self.list(path)? {
                    let mut inner = path.to_vec();
                    if inner.last() != Some(&b'/') {
                        inner.push(b'/');
                    }
                    inner.extend(&name);
                    self.copy(
                        &inner,
                        &meta,
                        &to.join(OsStr::from_bytes(&name)),
                        count,
                        remarks,
                        stop,
                    )?;
                }
                finish(&File::open(to).on("open", to)?, meta, to)?;
            }
            FileType::Symlink => {
                let target = self.fs.read_link(Self::path(path)?).map_err(|e| words(path, &e))?;
                let target: &[u8] = target.as_ref();
                std::os::unix::fs::symlink(OsStr::from_bytes(target), to).on("make", to)?;
                *count += 1;
            }
            _ => {
                remarks.push(format!("left out: {}, a device, pipe or socket", text::escape(path)))
            }
        }
        Ok(())
    }

    /// What is in a directory, without `.` and `..`.
    fn list(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, Metadata)>> {
        let mut out = Vec::new();
        for e in self.fs.read_dir(Self::path(path)?).map_err(|e| words(path, &e))? {
            let e = e.map_err(|e| words(path, &e))?;
            let name: Vec<u8> = e.file_name().as_ref().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            let meta = e.metadata().map_err(|e| words(&name, &e))?;
            out.push((name, meta));
        }
        Ok(out)
    }

    /// All paths with what is there.
    fn tree(&self, stop: &Stop<'_>) -> Result<BTreeMap<Vec<u8>, Entry>> {
        let mut out = BTreeMap::new();
        let mut todo = vec![b"/".to_vec()];
        while let Some(dir) = todo.pop() {
            stop.check()?;
            for (name, meta) in self.list(&dir)? {
                let mut path = dir.clone();
                if path != b"/" {
                    path.push(b'/');
                }
                path.extend(name);
                if meta.is_dir() {
                    todo.push(path.clone());
                }
                out.insert(path, entry(&meta));
            }
        }
        Ok(out)
    }

    fn same_content(&self, other: &Self, path: &[u8], stop: &Stop<'_>) -> Result<bool> {
        let open = |f: &Self| f.fs.open(Self::path(path)?).map_err(|e| words(path, &e));
        let (mut a, mut b) = (open(self)?, open(other)?);
        let (mut x, mut y) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            stop.check()?;
            let n = fill(&mut a, &mut x).map_err(|e| words(path, &e))?;
            let m = fill(&mut b, &mut y).map_err(|e| words(path, &e))?;
            if x[..n] != y[..m] {
                return Ok(false);
            }
            if n == 0 {
                return Ok(true);
            }
        }
    }

    /// What differs between this time and a later one. With `content`, files
    /// whose sizes and times are equal are compared byte by byte as well.
    pub fn compare(&self, later: &Self, content: bool, stop: &Stop<'_>) -> Result<Vec<Touched>> {
        let before = self.tree(stop)?;
        let mut after = later.tree(stop)?;
        let mut out = Vec::new();
        for (path, b) in before {
            let Some(a) = after.remove(&path) else {
                out.push(Touched { path, change: Change::Removed, before: Some(b), after: None });
                continue;
            };
            let same = (b.what, b.size) == (a.what, a.size)
                && (b.what == "directory" || b.modified == a.modified);
            let differ =
                !same || content && b.what == "file" && !self.same_content(later, &path, stop)?;
            let change = if differ {
                Change::Changed
            } else if (b.mode, b.uid, b.gid) != (a.mode, a.uid, a.gid) {
                Change::Attributes
            } else {
                continue;
            };
            out.push(Touched { path, change, before: Some(b), after: Some(a) });
        }
        out.extend(after.into_iter().map(|(path, a)| Touched {
            path,
            change: Change::Added,
            before: None,
            after: Some(a),
        }));
        out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(out)
    }
}

fn fill(file: &mut ext4_view::File, buf: &mut [u8]) -> std::result::Result<usize, Ext4Error> {
    let mut n = 0;
    while n < buf.len() {
        match file.read_bytes(&mut buf[n..])? {
            0 => break,
            k => n += k,
        }
    }
    Ok(n)
}

/// Permissions and time of what was copied.
fn finish(file: &File, meta: &Metadata, to: &Path) -> Result<()> {
    let mode = std::fs::Permissions::from_mode(u32::from(meta.mode()) & 0o777);
    let at = |s: i64, ns: u32| {
        let s = std::time::Duration::new(s.unsigned_abs(), ns);
        std::time::SystemTime::UNIX_EPOCH.checked_add(s).filter(|_| meta.modified().seconds() >= 0)
    };
    file.set_permissions(mode).on("protect", to)?;
    if let Some(t) = at(meta.modified().seconds(), meta.modified().nanoseconds()) {
        file.set_modified(t).on("date", to)?;
    }
    file.sync_all().on("write", to)
}

/// The path of a file as ext4 has it: absolute.
pub fn absolute(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") {
        path.to_vec()
    } else {
        [b"/", path].concat()
    }
}
