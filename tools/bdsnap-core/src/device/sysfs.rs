// SPDX-License-Identifier: GPL-2.0

//! What the kernel says of block devices, in sysfs and /proc.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{what, Target, What};

/// Nodes of all block devices of this machine.
pub(crate) fn all_nodes() -> Vec<PathBuf> {
    let entries = Path::new("/sys/class/block").read_dir().into_iter().flatten().flatten();
    let mut nodes: Vec<PathBuf> = entries.filter_map(|e| node_of(&e.path())).collect();
    nodes.sort();
    nodes
}

pub(super) fn sysfs(major: u32, minor: u32) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

pub(super) fn sysfs_number(major: u32, minor: u32, file: &str) -> Option<u64> {
    std::fs::read_to_string(sysfs(major, minor).join(file)).ok()?.trim().parse().ok()
}

/// The device number in a `dev` file of sysfs.
pub(super) fn read_dev(dir: &Path) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string(dir.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The node under /dev of a directory of sysfs.
pub(super) fn node_of(sys: &Path) -> Option<PathBuf> {
    let uevent = std::fs::read_to_string(sys.join("uevent")).ok()?;
    let name = uevent.lines().find_map(|l| l.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

/// The image behind a loop device, if it is one and the image is there.
pub(super) fn backing_file(meta: &Metadata) -> Option<PathBuf> {
    let dev = meta.rdev();
    let sys = sysfs(rustix::fs::major(dev), rustix::fs::minor(dev));
    loop_file(&sys).filter(|p| p.is_file())
}

pub(super) fn loop_file(sys: &Path) -> Option<PathBuf> {
    let mut name = std::fs::read(sys.join("loop/backing_file")).ok()?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    Some(OsString::from_vec(name).into())
}

/// Nodes of the loop devices over an image.
pub(super) fn loops_over(target: &Target) -> Vec<PathBuf> {
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
pub(super) fn related_nodes(target: &Target) -> Vec<PathBuf> {
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
pub(super) struct Mount {
    pub(super) device: (u32, u32),
    pub(super) point: PathBuf,
    pub(super) source: PathBuf,
}

pub(super) fn mounts() -> Vec<Mount> {
    parse_mounts(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

pub(super) fn parse_mounts(text: &[u8]) -> Vec<Mount> {
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
pub(super) fn mounted_device(point: &Path) -> Option<PathBuf> {
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
}
