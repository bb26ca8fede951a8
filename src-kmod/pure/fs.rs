// SPDX-License-Identifier: GPL-2.0

//! What file system a device holds, by its first bytes.
//!
//! For display, and to recognise a device: nothing that is saved depends on it.

use super::format::UNKNOWN;

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fs {
    /// Its name as `mount -t` takes it; "" if none is known.
    pub kind: &'static str,
    /// Its identity: raw as it stands in the superblock, filled up with zeros; zeros if it has none.
    pub uuid: [u8; 16],
    /// Its own counter of mounts (ext) or generations (btrfs); [`UNKNOWN`] if it has none.
    pub writes: u64,
}

/// A name, the magic and where that is, and where the identity is and how long.
struct Known {
    kind: &'static str,
    at: usize,
    magic: &'static [u8],
    uuid: (usize, usize),
}

const fn known(kind: &'static str, at: usize, magic: &'static [u8], uuid: (usize, usize)) -> Known {
    Known { kind, at, magic, uuid }
}

const NONE: (usize, usize) = (0, 0);
/// Where ext's superblock is, and that of btrfs.
const EXT: usize = 1024;
const BTRFS: usize = 65_536;

/// The magics of vfat are weak, so they come last.
const KNOWN: [Known; 13] = [
    known("ext2", EXT + 0x38, b"\x53\xef", (EXT + 0x68, 16)),
    known("xfs", 0, b"XFSB", (32, 16)),
    known("btrfs", BTRFS + 0x40, b"_BHRfS_M", (BTRFS + 0x20, 16)),
    known("f2fs", 1024, b"\x10\x20\xf5\xf2", (1024 + 0x6c, 16)),
    known("exfat", 3, b"EXFAT   ", (100, 4)),
    known("ntfs", 3, b"NTFS    ", (72, 8)),
    known("nilfs2", 1030, b"\x34\x34", (1024 + 0x98, 16)),
    known("squashfs", 0, b"hsqs", NONE),
    known("erofs", 1024, b"\xe2\xe1\xf5\xe0", (1024 + 48, 16)),
    known("udf", 32_769, b"NSR0", NONE),
    known("vfat", 54, b"FAT1", (39, 4)),
    known("vfat", 82, b"FAT32", (67, 4)),
    known("minix", 1040, b"\x8f\x13", NONE),
];

impl Fs {
    /// None that is known.
    pub const NONE: Self = Self { kind: "", uuid: [0; 16], writes: UNKNOWN };

    /// From a device's first bytes: all is seen in [`super::format::HEAD_LEN`] of them.
    pub fn of(head: &[u8]) -> Self {
        let is = |k: &&Known| head.get(k.at..).is_some_and(|h| h.starts_with(k.magic));
        let Some(found) = KNOWN.iter().find(is) else { return Self::NONE };
        let mut fs = Self { kind: found.kind, ..Self::NONE };
        let (at, len) = found.uuid;
        if let Some(uuid) = head.get(at..at + len) {
            fs.uuid[..len].copy_from_slice(uuid);
        }
        match found.kind {
            "ext2" => {
                // They differ in features: a journal, extents.
                fs.kind = match (le(head, EXT + 0x5c, 4) & 4 != 0, le(head, EXT + 0x60, 4) & 0x2c0)
                {
                    (_, extents) if extents != 0 => "ext4",
                    (true, _) => "ext3",
                    (false, _) => "ext2",
                };
                fs.writes = le(head, EXT + 0x34, 2);
            }
            "btrfs" => fs.writes = le(head, BTRFS + 0x48, 8),
            _ => {}
        }
        fs
    }
}

/// A number of at most eight bytes; 0 where there are none.
fn le(head: &[u8], at: usize, len: usize) -> u64 {
    let mut bytes = [0; 8];
    if let Some(from) = head.get(at..at + len) {
        bytes[..len].copy_from_slice(from);
    }
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let mut head = vec![0u8; 131_072];
        assert_eq!(Fs::of(&head), Fs::NONE);
        assert_eq!(Fs::of(&[]), Fs::NONE);
        head[1080..1082].copy_from_slice(b"\x53\xef");
        head[EXT + 0x68..EXT + 0x78].copy_from_slice(&[7; 16]);
        head[EXT + 0x34..EXT + 0x36].copy_from_slice(&[3, 1]);
        assert_eq!(Fs::of(&head), Fs { kind: "ext2", uuid: [7; 16], writes: 259 });
        head[EXT + 0x5c] = 4;
        assert_eq!(Fs::of(&head).kind, "ext3");
        head[EXT + 0x60] = 0x40;
        assert_eq!(Fs::of(&head).kind, "ext4");
        assert_eq!(Fs::of(&head[..1082]), Fs { kind: "ext2", uuid: [0; 16], writes: 259 }, "short");
        head[1080] = 0;
        head[..4].copy_from_slice(b"XFSB");
        head[32..48].copy_from_slice(&[9; 16]);
        assert_eq!(Fs::of(&head), Fs { kind: "xfs", uuid: [9; 16], writes: UNKNOWN });
        head[..4].fill(0);
        head[BTRFS + 0x40..BTRFS + 0x48].copy_from_slice(b"_BHRfS_M");
        head[BTRFS + 0x48] = 5;
        assert_eq!(Fs::of(&head), Fs { kind: "btrfs", uuid: [0; 16], writes: 5 });
        head[BTRFS + 0x40] = 0;
        head[82..87].copy_from_slice(b"FAT32");
        head[67..71].copy_from_slice(b"\x01\x02\x03\x04");
        let fat = Fs::of(&head);
        assert_eq!((fat.kind, &fat.uuid[..5]), ("vfat", &[1u8, 2, 3, 4, 0][..]));
    }
}
