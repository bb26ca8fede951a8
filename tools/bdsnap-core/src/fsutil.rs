// SPDX-License-Identifier: GPL-2.0

//! Files: opened without surprises, replaced as a whole, made durable.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use bdsnap_abi::format::Id;

use crate::error::{Context, Error, Result};

/// Opens a regular file for reading: no symbolic link is followed, no FIFO
/// waited for.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    if !file.metadata()?.file_type().is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Reads up to `max` bytes of a regular file; longer ones are an error.
pub fn read_small(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "file too long"));
    }
    Ok(bytes)
}

/// Reads until `buf` is full or the file ends; returns how much.
pub fn read_up_to(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<usize> {
    let mut total = 0;
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => break,
            Ok(n) => {
                total += n;
                offset += n as u64;
                buf = &mut buf[n..];
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(total)
}

/// Replaces `path` by a file with these bytes: a reader sees the old one or
/// the new one, also after a power cut.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let dir = parent(path);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", crate::text::hex(&random_id()?[..4])));
    let tmp = dir.join(name);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&tmp, path)
    })();
    if written.is_err() {
        // Nothing more can be done about a leftover.
        let _ = std::fs::remove_file(&tmp);
    }
    written.on("write", path)?;
    sync_dir(dir)
}

/// Makes a directory's entries durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).on("sync", path)
}

/// Makes a directory that only root may enter.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// The directory that a path's last component is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
        None => Path::new("/"),
    }
}

/// Sixteen random bytes.
pub fn random_id() -> Result<Id> {
    let mut id = [0; 16];
    random_bytes(&mut id)?;
    Ok(id)
}

/// Fills `buf` with random bytes.
pub fn random_bytes(buf: &mut [u8]) -> Result<()> {
    let mut at = 0;
    while at < buf.len() {
        match rustix::rand::getrandom(&mut buf[at..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => at += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("cannot get random bytes", &e.into())),
        }
    }
    Ok(())
}

/// The identity of this boot; zeros if it cannot be known.
pub fn boot_id() -> Id {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    <[u8; 32]>::try_from(digits)
        .ok()
        .and_then(|d| bdsnap_abi::name::unhex(&d))
        .unwrap_or(bdsnap_abi::format::NO_ID)
}

/// Now, in nanoseconds since 1970.
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| u64::try_from(d.as_nanos()).ok())
        .unwrap_or(0)
}

/// Nanoseconds since boot, time asleep included.
pub fn boot_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Modification time in nanoseconds since 1970 (0 if before).
pub fn mtime_ns(meta: &std::fs::Metadata) -> u64 {
    let ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    u64::try_from(ns).unwrap_or(0)
}

/// Whether a path is a block device.
pub fn is_block(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let chunks = bytes.chunks_exact(64);
    let tail = chunks.remainder();
    tail.iter().all(|&b| b == 0) && chunks.into_iter().all(|c| c.iter().fold(0, |a, b| a | b) == 0)
}
