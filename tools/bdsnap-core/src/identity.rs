// SPDX-License-Identifier: GPL-2.0

//! What a device is besides its name: what its maker, its partition table and
//! its file system call it.
//!
//! Sessions only have a name, a size and a place. The tools note the rest in
//! the store, beside the chain's tail, whenever they have to do with a device
//! under the name by which the module knows it. A note counts for the sessions
//! that began after it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bdsnap_abi::format::SERIAL_MAX;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::fsutil;
use crate::module::{Module, ModuleStatus};
use crate::store::Store;

/// How much of a device's beginning has the superblocks that are known.
const HEAD: usize = 0x10000 + 0x1000;
/// Longest notes of one device, in bytes.
const NOTES_MAX: usize = 1 << 20;
/// So many notes of a device are kept.
const NOTES_KEPT: usize = 64;

/// What a block device is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its size in bytes.
    pub bytes: u64,
    /// First sector on its disk.
    pub part_start: u64,
    /// What the disk is called by itself or its driver, by kind: `serial`,
    /// `wwid`, `dm`, `md`.
    #[serde(default)]
    pub disk: BTreeMap<String, String>,
    /// UUID in the partition table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// UUID of the file system (of several devices: of this one in it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_uuid: Option<String>,
    /// Its medium's sequence number; not noted, since it is another one after each boot.
    #[serde(skip)]
    pub diskseq: u64,
}

/// What comparing two identities says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The same disk, and the same place on it.
    Disk,
    /// The same partition by its UUID.
    Partition,
    /// The same file system on as large a device: likely, no more.
    FileSystem,
    /// Another one; why.
    Other(String),
    /// Nothing is known of both.
    Unknown,
}

/// What was noted of a device, from some session on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The chain's last session was that one when this was noted.
    after_seq: u64,
    #[serde(flatten)]
    identity: Identity,
}

impl Identity {
    /// Of a block device by its node; `None` if it is none or cannot be read.
    pub fn of(node: &Path) -> Option<Self> {
        let file = File::open(node).ok()?;
        let meta = file.metadata().ok()?;
        if !meta.file_type().is_block_device() {
            return None;
        }
        let dev = meta.rdev();
        let number = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        let sys = Path::new("/sys/dev/block").join(&number).canonicalize().ok()?;
        let is_partition = sys.join("partition").exists();
        let disk = if is_partition { sys.parent()?.to_owned() } else { sys.clone() };
        let diskseq = || word(&disk.join("diskseq")).and_then(|s| s.parse().ok()).unwrap_or(0);
        let before = diskseq();
        let mut head = vec![0; HEAD];
        let n = fsutil::read_up_to(&file, &mut head, 0).unwrap_or(0);
        Some(Self {
            bytes: crate::sys::device_bytes(file.as_fd()).ok()?,
            part_start: word(&sys.join("start")).and_then(|s| s.parse().ok()).unwrap_or(0),
            disk: disk_names(&disk),
            partuuid: if is_partition { partuuid(&sys, &number) } else { None },
            fs_uuid: fs_uuid(&head[..n]),
            // All the rest is of that one.
            diskseq: if diskseq() == before { before } else { 0 },
        })
    }

    /// Whether both are noted in the same words.
    fn is_noted_as(&self, other: &Self) -> bool {
        Self { diskseq: 0, ..self.clone() } == Self { diskseq: 0, ..other.clone() }
    }

    /// Compares what was noted with what is there now.
    pub fn compare(&self, now: &Self) -> Verdict {
        let differing = self.disk.iter().find_map(|(kind, then)| {
            now.disk.get(kind).filter(|n| *n != then).map(|n| (kind, then, n))
        });
        if let Some((kind, then, now)) = differing {
            return Verdict::Other(format!("its {kind} is {now}, that of the recorded one {then}"));
        }
        let same_place = self.part_start == now.part_start && self.bytes == now.bytes;
        if same_place && self.disk.keys().any(|kind| now.disk.contains_key(kind)) {
            return Verdict::Disk;
        }
        match (&self.partuuid, &now.partuuid) {
            (Some(a), Some(b)) if a == b => return Verdict::Partition,
            (Some(a), Some(b)) => {
                return Verdict::Other(format!(
                    "its partition UUID is {b}, that of the recorded one {a}"
                ));
            }
            _ => {}
        }
        if self.fs_uuid.is_some() && self.fs_uuid == now.fs_uuid && self.bytes == now.bytes {
            return Verdict::FileSystem;
        }
        Verdict::Unknown
    }
}

/// Notes in the store what the device is that the module knows as `name`; of
/// image files nothing. An unchanged one is not noted again.
pub fn note(store: &Store, name: &[u8]) -> Result<()> {
    let Some(identity) = Identity::of(Path::new(std::ffi::OsStr::from_bytes(name))) else {
        return Ok(());
    };
    let mut notes = notes(store, name);
    if notes.last().is_some_and(|n| n.identity.is_noted_as(&identity)) {
        return Ok(());
    }
    let after_seq = store.tail(name).ok().flatten().map_or(0, |t| t.chain_seq);
    notes.push(Note { after_seq, identity });
    let surplus = notes.len().saturating_sub(NOTES_KEPT);
    let mut text = String::new();
    for note in &notes[surplus..] {
        // A structure of strings and numbers always becomes JSON.
        text += &serde_json::to_string(note).unwrap_or_default();
        text.push('\n');
    }
    store.make_chain_dir()?;
    fsutil::replace(&path(store, name), text.as_bytes(), 0o600)
}

/// What the headers of a device's sessions say of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recognised {
    /// The medium's sequence number.
    pub(crate) diskseq: u64,
    /// As the partition table has it, filled up with zeros.
    pub(crate) partuuid: [u8; 16],
    /// Its serial number, or what else it is called; at most [`SERIAL_MAX`] bytes.
    pub(crate) serial: Vec<u8>,
}

impl Recognised {
    /// Of a block device by its node; `None` if it is none or cannot be read.
    pub(crate) fn of(node: &Path) -> Option<Self> {
        let of = Identity::of(node)?;
        // A serial number that is cut is not one.
        let fits = |kind: &&&str| of.disk.get(**kind).is_some_and(|s| s.len() <= SERIAL_MAX);
        let kind = ["serial", "wwid", "dm", "md"].iter().find(fits);
        Some(Self {
            diskseq: of.diskseq,
            partuuid: of.partuuid.as_deref().and_then(raw_partuuid).unwrap_or_default(),
            serial: kind.map(|kind| of.disk[*kind].clone().into_bytes()).unwrap_or_default(),
        })
    }
}

/// A partition's identity as its table has it: of GPT 16 bytes, the first three fields with their low bytes first; of
/// MBR the disk's four bytes and the partition's number.
fn raw_partuuid(text: &str) -> Option<[u8; 16]> {
    let mut raw = [0; 16];
    let mut out = raw.iter_mut();
    for (i, field) in text.split('-').enumerate() {
        let bytes: Option<Vec<u8>> = (0..field.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(field.get(at..at + 2)?, 16).ok())
            .collect();
        let mut bytes = bytes?;
        if i < 3 {
            bytes.reverse();
        }
        for byte in bytes {
            *out.next()? = byte;
        }
    }
    matches!(text.len(), 11 | 36).then_some(raw)
}

/// What all devices are that are registered: noted in the store ([`note`]), and said to the module, which puts it into the
/// headers of their sessions. What goes wrong only means that less is known later.
pub fn note_all(store: &Store, module: &Module, status: &ModuleStatus) {
    for registration in &status.entries {
        let name = &registration.name;
        let _ = note(store, name);
        if let Some(of) = Recognised::of(Path::new(std::ffi::OsStr::from_bytes(name))) {
            let _ = module.identify(name, &of);
        }
    }
}

/// What was noted of the device of this name before a session of that number.
pub(crate) fn noted(notes: &[Note], chain_seq: u64) -> Option<&Identity> {
    notes.iter().rev().find(|n| n.after_seq < chain_seq).map(|n| &n.identity)
}

/// All notes of a device, oldest first. What cannot be read is as good as not noted: a note only helps.
pub(crate) fn notes(store: &Store, name: &[u8]) -> Vec<Note> {
    let bytes = fsutil::read_small(&path(store, name), NOTES_MAX).unwrap_or_default();
    bytes.split(|&b| b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect()
}

fn path(store: &Store, name: &[u8]) -> PathBuf {
    store.tail_path(name).with_extension("id")
}

/// A file of sysfs as one line; `None` if it is missing or empty.
fn word(path: &Path) -> Option<String> {
    let text = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// What a disk is called, by its directory in sysfs.
fn disk_names(sys: &Path) -> BTreeMap<String, String> {
    let files = [
        ("serial", "serial"),
        ("serial", "device/serial"),
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("dm", "dm/uuid"),
        ("md", "md/uuid"),
    ];
    let mut names = BTreeMap::new();
    for (kind, file) in files {
        if let Some(value) = word(&sys.join(file)) {
            names.entry(kind.to_owned()).or_insert(value);
        }
    }
    names
}

/// A partition's UUID: as newer kernels say it, or as udev has found it.
fn partuuid(sys: &Path, number: &str) -> Option<String> {
    let find = |path: &Path, key: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find_map(|l| l.strip_prefix(key)).map(str::to_ascii_lowercase)
    };
    find(&sys.join("uevent"), "PARTUUID=").or_else(|| {
        find(&Path::new("/run/udev/data").join(format!("b{number}")), "E:ID_PART_ENTRY_UUID=")
    })
}

/// The UUID (or serial number) of the file system that begins with `head`,
/// with its type.
fn fs_uuid(head: &[u8]) -> Option<String> {
    // Type, place and bytes of the magic, place and length of the UUID.
    const KNOWN: [(&str, usize, &[u8], usize, usize); 10] = [
        ("ext", 0x438, &[0x53, 0xef], 0x468, 16),
        ("xfs", 0, b"XFSB", 0x20, 16),
        // Of its several devices, each has one of its own.
        ("btrfs", 0x10040, b"_BHRfS_M", 0x1010b, 16),
        ("f2fs", 0x400, &[0x10, 0x20, 0xf5, 0xf2], 0x46c, 16),
        ("exfat", 3, b"EXFAT   ", 0x64, 4),
        ("ntfs", 3, b"NTFS    ", 0x48, 8),
        ("vfat", 0x52, b"FAT32   ", 0x43, 4),
        ("vfat", 0x36, b"FAT1", 0x27, 4),
        ("luks", 0, b"LUKS\xba\xbe", 0xa8, 36),
        ("lvm", 0x218, b"LVM2 001", 0x220, 32),
    ];
    let at = |from: usize, len: usize| head.get(from..from + len);
    KNOWN.iter().find_map(|(fs, place, magic, from, len)| {
        let uuid = (at(*place, magic.len())? == *magic).then(|| at(*from, *len)).flatten()?;
        (!fsutil::is_zero(uuid)).then(|| format!("{fs}:{}", crate::text::hex(uuid)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bdsnap_abi::format::{Tail, Version};

    fn disk(serial: &str) -> Identity {
        let mut i = Identity { bytes: 1 << 20, ..Identity::default() };
        if !serial.is_empty() {
            i.disk.insert("serial".into(), serial.into());
        }
        i
    }

    #[test]
    fn comparing() {
        let part = |uuid: &str| Identity { partuuid: Some(uuid.into()), ..disk("") };
        let fs = |uuid: &str| Identity { fs_uuid: Some(uuid.into()), ..disk("") };
        assert_eq!(disk("a").compare(&disk("a")), Verdict::Disk);
        assert!(matches!(disk("a").compare(&disk("b")), Verdict::Other(_)));
        assert_eq!(disk("a").compare(&disk("")), Verdict::Unknown);
        let moved = Identity { part_start: 8, ..disk("a") };
        assert_eq!(disk("a").compare(&moved), Verdict::Unknown, "another place on the disk");
        assert_eq!(part("x").compare(&part("x")), Verdict::Partition);
        assert!(matches!(part("x").compare(&part("y")), Verdict::Other(_)));
        assert_eq!(fs("x").compare(&fs("x")), Verdict::FileSystem);
        assert_eq!(fs("x").compare(&fs("y")), Verdict::Unknown, "made anew");
        let larger = Identity { bytes: 2 << 20, ..fs("x") };
        assert_eq!(fs("x").compare(&larger), Verdict::Unknown);
        // A copy of the whole disk has the same UUIDs.
        let copy = Identity { partuuid: Some("x".into()), ..disk("b") };
        let of = Identity { partuuid: Some("x".into()), ..disk("a") };
        assert!(matches!(of.compare(&copy), Verdict::Other(_)));
    }

    #[test]
    fn raw_identities_of_partitions() {
        let gpt = raw_partuuid("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(crate::text::hex(&gpt), "33221100554477668899aabbccddeeff");
        let mbr = raw_partuuid("0a0b0c0d-02").unwrap();
        assert_eq!(crate::text::hex(&mbr), format!("0d0c0b0a02{}", "00".repeat(11)));
        for wrong in
            ["", "0a0b0c0d", "0a0b0c0g-02", "é112233-4455-6677-8899-aabbccddeeff", "0a0b0c0d-0"]
        {
            assert_eq!(raw_partuuid(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn file_systems() {
        let mut head = vec![0; HEAD];
        assert_eq!(fs_uuid(&head), None);
        assert_eq!(fs_uuid(&[]), None);
        head[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(fs_uuid(&head), None, "no UUID");
        head[0x468] = 0xab;
        assert_eq!(fs_uuid(&head), Some(format!("ext:ab{}", "00".repeat(15))));
    }

    #[test]
    fn a_note_counts_for_what_comes_after_it() {
        let tmp = tempfile::tempdir().unwrap();
        let (store, _) = Store::init(&tmp.path().join("s"), Version::NEWEST).unwrap();
        assert!(notes(&store, b"/dev/vdb").is_empty());
        let lines: String = [(0, "a"), (4, "b")]
            .map(|(after_seq, s)| {
                serde_json::to_string(&Note { after_seq, identity: disk(s) }).unwrap() + "\n"
            })
            .concat();
        std::fs::write(path(&store, b"/dev/vdb"), format!("{lines}garbage\n")).unwrap();
        let notes = notes(&store, b"/dev/vdb");
        assert_eq!(noted(&notes, 0), None);
        assert_eq!(noted(&notes, 1), Some(&disk("a")));
        assert_eq!(noted(&notes, 4), Some(&disk("a")));
        assert_eq!(noted(&notes, 5), Some(&disk("b")));
        // Of what is no block device there is nothing to note.
        store.set_tail(b"/dev/null", &Tail::new()).unwrap();
        note(&store, b"/dev/null").unwrap();
        note(&store, b"/nowhere").unwrap();
        assert!(!path(&store, b"/dev/null").exists());
    }
}
