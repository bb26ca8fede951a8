// SPDX-License-Identifier: GPL-2.0

//! `--to`: the past as an image in a file or on another device.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::member::{Member, BATCH};
use super::{Outcome, Prepared};
use crate::device::{device_error, Opened, Purpose, Target};
use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::progress::{Progress, Stop};
use crate::text;

impl Prepared<'_> {
    /// Writes the past as an image: into a new file, sparse where it is zero,
    /// that appears under its name only when it is whole; or onto a block
    /// device that is large enough and not in use.
    ///
    /// # Errors
    ///
    /// [`crate::error::Kind::Refused`] if `path` is the device itself, or
    /// neither, or is a device or not empty and `replace` is not set.
    pub fn compose(
        &self,
        path: &Path,
        replace: bool,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<Outcome> {
        let member = &self.members[0];
        let bytes_written = match kind_of(member, path, replace)? {
            Output::Device => onto_device(member, path, progress, stop)?,
            Output::File => into_file(member, path, progress, stop)?,
        };
        let partial = self.plan.partial;
        Ok(Outcome { bytes_written, partial, ..Outcome::default() })
    }
}

/// What the image is made in.
enum Output {
    File,
    Device,
}

fn kind_of(member: &Member, path: &Path, replace: bool) -> Result<Output> {
    let shown = text::path(path);
    let meta = match std::fs::metadata(path) {
        Ok(m) => m,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Output::File),
        Err(e) => return Err(e).on("examine", path),
    };
    let source = member.opened.file.metadata().on("examine", &member.target.path)?;
    let is_device = meta.file_type().is_block_device();
    let same = if is_device {
        Target::find(path).is_ok_and(|t| t.what == member.target.what)
    } else {
        (meta.dev(), meta.ino()) == (source.dev(), source.ino())
    };
    if same {
        return Err(Error::refused(format!("{shown} is the device itself")));
    }
    if !is_device && !meta.is_file() {
        return Err(Error::refused(format!(
            "{shown} is neither a regular file nor a block device"
        )));
    }
    if is_device && !replace {
        return Err(Error::refused(format!("all of {shown} would be overwritten"))
            .hint("--yes confirms it; there is no undo of that"));
    }
    if meta.len() > 0 && !replace {
        return Err(Error::refused(format!("{shown} exists")).hint("--yes replaces it"));
    }
    Ok(if is_device { Output::Device } else { Output::File })
}

fn into_file(
    member: &Member,
    path: &Path,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<u64> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".bdsnap-partial");
    let tmp = path.with_file_name(name);
    let written = (|| {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&tmp)
            .on("make", &tmp)?;
        file.set_len(member.model.device_bytes).on("write", &tmp)?;
        let n = copy(member, &file, &tmp, true, progress, stop)?;
        std::fs::rename(&tmp, path).on("make", path)?;
        fsutil::sync_dir(fsutil::parent(path))?;
        Ok(n)
    })();
    if written.is_err() {
        // A part of an image is of no use, and this one is ours.
        let _ = std::fs::remove_file(&tmp);
    }
    written
}

fn onto_device(
    member: &Member,
    path: &Path,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<u64> {
    let target = Target::find(path)?;
    if target.is_image() {
        return Err(Error::refused(format!(
            "{} is a loop device: name the file behind it",
            text::path(path)
        )));
    }
    let opened = Opened::open(&target, Purpose::Write)?;
    let room = crate::sys::device_bytes(opened.file.as_fd()).on("examine", path)?;
    if room < member.model.device_bytes {
        return Err(Error::refused(format!(
            "{} has {room} bytes, the image {}",
            text::path(path),
            member.model.device_bytes
        )));
    }
    let written = copy(member, &opened.file, path, false, progress, stop).map_err(|mut e| {
        e.message += &format!("; {} now holds a part of the image", text::path(path));
        e
    })?;
    opened.drop_caches().on("flush", path)?;
    Ok(written)
}

/// Copies the past into `file`; where it is zero, leaves it out if `sparse`.
fn copy(
    member: &Member,
    file: &File,
    path: &Path,
    sparse: bool,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<u64> {
    let total = member.model.device_bytes;
    progress.phase("compose", total);
    let mut buf = vec![0; BATCH as usize];
    let (mut at, mut written) = (0, 0);
    while at < total {
        stop.check()?;
        let len = (total - at).min(BATCH);
        let buf = &mut buf[..len as usize];
        let n = fsutil::read_up_to(&member.opened.file, buf, member.base + at)
            .map_err(|e| device_error("read", &member.target, at, &e))?;
        // Where another device is shorter, only the sessions say more.
        buf[n..].fill(0);
        member.past.overlay(at, buf)?;
        if sparse {
            for (i, piece) in buf.chunks(64 << 10).enumerate() {
                if !fsutil::is_zero(piece) {
                    file.write_all_at(piece, at + (i << 16) as u64).on("write", path)?;
                    written += piece.len() as u64;
                }
            }
        } else {
            file.write_all_at(buf, at).on("write", path)?;
            written += len;
        }
        progress.advance(len);
        at += len;
    }
    file.sync_all().on("write", path)?;
    progress.finish();
    Ok(written)
}
