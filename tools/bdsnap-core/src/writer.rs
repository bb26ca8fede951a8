// SPDX-License-Identifier: GPL-2.0

//! Makes a session's directory: the undo sessions of a restore.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bdsnap_abi::format::{Header, Record, State, Status, DAT_NAME, MAP_NAME, META_NAME};
use bdsnap_abi::fs::Fs;
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::map::{run_of, MapWriter};
use crate::store::Store;

/// A session being written. Dropped before [`SessionWriter::finish`], it
/// takes its directory away again.
#[derive(Debug)]
pub struct SessionWriter {
    parts: Option<Parts>,
    path: PathBuf,
    name: Vec<u8>,
    status: Status,
    saved_bytes: u64,
}

/// What a device's beginning says of it.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// SHA-256 of its first [`bdsnap_abi::format::HEAD_LEN`] bytes, or of all.
    pub sha256: [u8; 32],
    /// The file system that seems to be on it.
    pub fs: Fs,
}

impl Head {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { sha256: Sha256::digest(bytes).into(), fs: Fs::of(bytes) }
    }
}

struct Parts {
    header: Header,
    map: MapWriter,
    dat: BufWriter<File>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl SessionWriter {
    /// Makes the directory of a session that begins with `header`.
    pub fn create(store: &Store, header: Header) -> Result<Self> {
        let (name, path) = make_dir(store, &header)?;
        Self::begin(name, path, header)
    }

    /// As [`SessionWriter::create`], in the directory `path` that is made for it,
    /// to be renamed when all is done.
    pub fn create_at(path: &Path, header: Header) -> Result<Self> {
        fsutil::make_private_dir(path).on("make", path)?;
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        Self::begin(name, path.to_owned(), header)
    }

    fn begin(name: Vec<u8>, path: PathBuf, header: Header) -> Result<Self> {
        let status = Status::recording(header.session_id);
        let mut writer = Self { parts: None, path, name, status, saved_bytes: 0 };
        let (map, dat) = (writer.create_file(MAP_NAME)?, writer.create_file(DAT_NAME)?);
        let map = MapWriter::begin(map, &header, &status).on("write", &writer.path)?;
        writer.status.map_records = map.records();
        writer.parts = Some(Parts { header, map, dat: BufWriter::new(dat) });
        Ok(writer)
    }

    fn create_file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).on("make", &path)
    }

    /// Appends a run: `data` is what the device holds from `sector` on.
    pub fn run(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let run = run_of(sector, self.status.dat_bytes, data)
            .ok_or_else(|| Error::other("run too long"))?;
        run.check(&parts.header)
            .map_err(|e| Error::other(format!("a run that does not fit its device: {e}")))?;
        if !run.is_zero() {
            parts.dat.write_all(data).on("write", &self.path)?;
            self.status.dat_bytes += data.len() as u64;
        }
        self.status.records += 1;
        self.saved_bytes += data.len() as u64;
        self.append(&Record::Run(run))
    }

    /// Appends a commit, after making durable what is there.
    pub fn commit(&mut self) -> Result<()> {
        self.sync()?;
        self.append(&Record::Commit(self.status.dat_bytes))
    }

    fn append(&mut self, record: &Record) -> Result<()> {
        let Some(parts) = &mut self.parts else { return Ok(()) };
        parts.map.record(record).on("write", &self.path)?;
        self.status.map_records = parts.map.records();
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let all = |p: &mut Parts| -> io::Result<()> {
            p.dat.flush()?;
            p.dat.get_ref().sync_all()?;
            p.map.sync()
        };
        all(parts).on("write", &self.path)
    }

    /// Ends the session in `state` and makes all of it durable, its entry in
    /// the store included. Returns the directory's name.
    ///
    /// `head` is the device's beginning, as in [`Head`].
    pub fn finish(mut self, state: State, head: &Head) -> Result<Vec<u8>> {
        self.commit()?;
        self.sync()?;
        self.status.generation += 1;
        self.status.state = state;
        self.status.end_ns = fsutil::now_ns();
        self.status.head_sha256 = head.sha256;
        self.status.more.end_boot_ns = fsutil::boot_ns();
        if let Some(parts) = &mut self.parts {
            parts.map.set_status(&self.status).on("write", &self.path)?;
            write_meta(&self.path, &parts.header, &self.status, head.fs.kind, self.saved_bytes)?;
        }
        fsutil::sync_dir(&self.path)?;
        fsutil::sync_dir(fsutil::parent(&self.path))?;
        // From here on it is not ours to take away.
        self.parts = None;
        Ok(std::mem::take(&mut self.name))
    }
}

impl Drop for SessionWriter {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // Unfinished, so nothing refers to it; a leftover shows in `list`.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn make_dir(store: &Store, header: &Header) -> Result<(Vec<u8>, PathBuf)> {
    for attempt in 0..1000 {
        let name = bdsnap_abi::name::session_dir(header.name(), header.start_ns, attempt);
        let path = store.path().join(OsStr::from_bytes(name.as_bytes()));
        match fsutil::make_private_dir(&path) {
            Ok(()) => return Ok((name.as_bytes().to_vec(), path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).on("make", &path),
        }
    }
    let all: &Path = store.path();
    Err(Error::other(format!("no free name for a session in {}", crate::text::path(all))))
}

/// Makes `meta.json` in a session's directory.
fn write_meta(
    dir: &Path,
    header: &Header,
    status: &Status,
    fs_type: &str,
    saved_bytes: u64,
) -> Result<()> {
    let path = dir.join(META_NAME);
    let mut text = String::new();
    bdsnap_abi::meta::write_json(&mut text, header, status, fs_type, saved_bytes)
        .map_err(|e| Error::other(format!("cannot write {}: {e}", crate::text::path(&path))))?;
    fsutil::replace(&path, text.as_bytes(), 0o600)
}
