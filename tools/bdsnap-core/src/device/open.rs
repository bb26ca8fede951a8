// SPDX-License-Identifier: GPL-2.0

//! How a device is opened, and who is in the way.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::sysfs::{loops_over, mounts, read_dev, related_nodes, sysfs, unescape};
use super::{Target, What};
use crate::error::{errno_text, Context, Error, Result};
use crate::text;

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
