// SPDX-License-Identifier: GPL-2.0

//! Which device the user means, whether it is free, and how it is opened.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bdsnap_abi::format::Header;

use crate::error::{Context, Error, Result};
use crate::text;

mod matching;
mod open;
mod sysfs;

use matching::loop_bytes;
pub(crate) use matching::tail_differs;
pub use matching::{Match, Matcher};
pub(crate) use open::device_error;
pub use open::{Opened, Purpose};
pub(crate) use sysfs::{all_nodes, unescape};
use sysfs::{backing_file, mounted_device, node_of, related_nodes, sysfs, sysfs_number};

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

#[cfg(test)]
mod tests {
    use super::*;

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
