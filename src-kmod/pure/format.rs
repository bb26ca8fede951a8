// SPDX-License-Identifier: GPL-2.0

//! The store's binary formats, all little-endian, all with CRC-32C.
//!
//! `blocks.map` is the truth about a session:
//!
//! ```text
//! 0      header, HEADER_LEN bytes, written once
//! 8192   status slot 0   } the valid one with the larger
//! ...    status slot 1   } generation counts
//! ...    records, appended
//! ```
//!
//! [`Version::layout`] says where and how long. State and totals are kept in place, in slots that exist from
//! the start, and not in a footer: marking a session broken must not need new space in
//! a store that has just become full. Each is in one block, whether
//! the device writes 512 or 4096 bytes as a whole, and in version 2 in one of its own: a cut tears neither one nor both.
//!
//! What the header says of features, and what the newest slot adds to that, is in force: see [`Features`].
//!
//! `docs/format.md` describes the same for readers of other languages.

use super::crc;

mod record;

pub use record::*;

/// First bytes of `blocks.map`.
pub const MAP_MAGIC: [u8; 8] = *b"BDSNAPM\x01";
/// First bytes of a status slot.
pub const SLOT_MAGIC: [u8; 8] = *b"BDSNAPS\x01";
/// First bytes of a chain tail file.
pub const TAIL_MAGIC: [u8; 8] = *b"BDSNAPT\x01";

/// Bytes of the header.
pub const HEADER_LEN: usize = 8192;
/// Bytes of a chain tail file.
pub const TAIL_LEN: usize = 4096;
/// Longest device name in a header, in bytes.
pub const NAME_MAX: usize = 4095;
/// A run of pre-images is at most this long, in bytes (1 MiB).
pub const RUN_MAX: u32 = 1 << 20;
/// How much of a device's beginning is hashed to recognise foreign changes.
pub const HEAD_LEN: u64 = 128 * 1024;
/// Most saved chunks whose checksums a chain tail remembers.
pub const SAMPLES_MAX: usize = 64;
/// The header's chunk sizes, in bytes: powers of two between these.
pub const CHUNK_MIN: u32 = 4096;
/// See [`CHUNK_MIN`].
pub const CHUNK_MAX: u32 = 65536;

/// Name of the store's marker file.
pub const MARKER_NAME: &str = ".bdsnap-store";
/// Folder of the chain tails, one file a device.
pub const CHAIN_DIR: &str = ".bdsnap-chain";
/// Index of a session.
pub const MAP_NAME: &str = "blocks.map";
/// Pre-images of a session.
pub const DAT_NAME: &str = "blocks.dat";
/// A session's description for people and scripts.
pub const META_NAME: &str = "meta.json";

/// The versions of the format that this code reads and writes. One store may hold sessions of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Version {
    /// The first one.
    One = 1,
    /// With features, points, and status slots of a block each.
    Two = 2,
}

/// Where in `blocks.map` what stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where the two status slots begin.
    pub slots: [u64; 2],
    /// Bytes of one.
    pub slot_len: usize,
    /// Where the records begin.
    pub records: u64,
    /// Bytes of one.
    pub record_len: usize,
}

/// Bytes of a status slot.
pub const SLOT_LEN: usize = 512;
/// Where at the latest the last of them ends.
pub const SLOTS_END: usize = 12288 + SLOT_LEN;
/// Bytes of the longest record.
pub const RECORD_MAX: usize = 64;

impl Version {
    /// The newest.
    pub const NEWEST: Self = Self::Two;

    /// From its number.
    ///
    /// # Errors
    ///
    /// [`FormatError::Version`] for any other.
    pub const fn from_number(number: u32) -> Result<Self, FormatError> {
        match number {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            other => Err(FormatError::Version(other)),
        }
    }

    /// Where what stands.
    pub const fn layout(self) -> Layout {
        match self {
            Self::One => {
                Layout { slots: [8192, 8704], slot_len: SLOT_LEN, records: 12288, record_len: 32 }
            }
            Self::Two => {
                Layout { slots: [8192, 12288], slot_len: SLOT_LEN, records: 16384, record_len: 64 }
            }
        }
    }
}

impl Layout {
    /// The length of a map with so many records; `None` if there can't be so many.
    pub fn map_bytes(&self, records: u64) -> Option<u64> {
        records.checked_mul(self.record_len as u64)?.checked_add(self.records)
    }
}

/// What has to be known to use a session: a word of bits for each kind of use.
///
/// A reader that does not know a bit of `incompat` uses nothing of the session; of `ro_compat`, it reads the session but never
/// changes it; of `compat`, it need not care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// `COMPAT_…`
    pub compat: u64,
    /// `RO_COMPAT_…`
    pub ro_compat: u64,
    /// `INCOMPAT_…`
    pub incompat: u64,
}

/// Runs of more points than the session's start: tags above 0.
pub const INCOMPAT_POINTS: u64 = 1;
/// Runs whose content is lost.
pub const INCOMPAT_LOST: u64 = 2;
/// Runs that are stored compressed.
pub const INCOMPAT_CODEC: u64 = 4;
/// Content is encrypted.
pub const INCOMPAT_ENCRYPTED: u64 = 8;
/// `blocks.dat` is in several files.
pub const INCOMPAT_SEGMENTS: u64 = 16;
/// It has no content: a bookmark.
pub const INCOMPAT_NO_DATA: u64 = 32;
/// Its map is sorted: points, then runs by sector and tag.
pub const INCOMPAT_SORTED: u64 = 64;
/// There is a digest.
pub const RO_COMPAT_DIGEST: u64 = 1;
/// Runs have hashes.
pub const RO_COMPAT_HASHES: u64 = 2;
/// There are records of who wrote.
pub const COMPAT_ACTORS: u64 = 1;
/// Runs say when.
pub const COMPAT_WHEN: u64 = 2;

impl Features {
    /// None.
    pub const NONE: Self = Self { compat: 0, ro_compat: 0, incompat: 0 };
    /// What this code reads.
    const READS: u64 = INCOMPAT_POINTS | INCOMPAT_SORTED;

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            compat: self.compat | other.compat,
            ro_compat: self.ro_compat | other.ro_compat,
            incompat: self.incompat | other.incompat,
        }
    }

    /// Whether all of them are known by name, so that what no field has is zero.
    const fn are_known(self) -> bool {
        self.incompat & !0x7f == 0 && self.ro_compat & !3 == 0 && self.compat & !3 == 0
    }

    /// Why nothing of a session with these can be used; `None`: it can.
    pub fn refuses_reading(self) -> Option<&'static str> {
        const NAMES: [(u64, &str); 5] = [
            (INCOMPAT_LOST, "runs whose content is lost"),
            (INCOMPAT_CODEC, "compressed content"),
            (INCOMPAT_ENCRYPTED, "encrypted content"),
            (INCOMPAT_SEGMENTS, "content in segments"),
            (INCOMPAT_NO_DATA, "no content, being a bookmark"),
        ];
        name_of(self.incompat & !Self::READS, &NAMES)
    }

    /// Why a session with these must not be changed; `None`: it may be.
    pub fn refuses_change(self) -> Option<&'static str> {
        const NAMES: [(u64, &str); 2] =
            [(RO_COMPAT_DIGEST, "a digest"), (RO_COMPAT_HASHES, "hashes of its content")];
        self.refuses_reading().or(name_of(self.ro_compat, &NAMES))
    }
}

fn name_of(unknown: u64, names: &[(u64, &'static str)]) -> Option<&'static str> {
    if unknown == 0 {
        return None;
    }
    let known = names.iter().find(|(bit, _)| unknown & bit != 0);
    Some(known.map_or("a feature that was not yet thought of", |(_, name)| name))
}

/// Session, store, boot and load identities.
pub type Id = [u8; 16];
/// "No such thing".
pub const NO_ID: Id = [0; 16];

/// What is wrong with bytes that should be one of our structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    Short,
    /// Not the structure's magic.
    Magic,
    /// A version that this code does not know.
    Version(u32),
    /// The checksum does not match.
    Checksum,
    /// A field has a value out of its range; which one.
    Field(&'static str),
}

impl core::fmt::Display for FormatError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Short => f.write_str("too short"),
            Self::Magic => f.write_str("not a bdsnap structure (magic)"),
            Self::Version(v) => write!(f, "unknown version {v}"),
            Self::Checksum => f.write_str("checksum mismatch"),
            Self::Field(name) => write!(f, "impossible value of {name}"),
        }
    }
}

impl core::error::Error for FormatError {}

macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)* }

        impl $name {
            /// From its byte on disk.
            pub fn from_wire(byte: u8) -> Result<Self, FormatError> {
                match byte {
                    $($value => Ok(Self::$variant),)*
                    _ => Err(FormatError::Field(stringify!($name))),
                }
            }

            /// Its word in `meta.json` and in tables.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

wire_enum! {
    /// What opened the session.
    Kind {
        /// A filesystem's claim.
        Mount = 1, "mount";
        /// Raw writes to a registered, unclaimed device.
        Raw = 2, "raw";
        /// What a restore overwrote.
        Undo = 3, "undo";
    }
}

wire_enum! {
    /// When an origin write is let go.
    Durability {
        /// When its pre-images are durable in the store.
        Strict = 1, "strict";
        /// When its pre-images are in bounded memory.
        Async = 2, "async";
    }
}

wire_enum! {
    /// Whether the device may have changed unseen since the session before.
    Gap {
        /// No: the module watched all the time and the samples match.
        None = 0, "none";
        /// Yes: a write was seen outside a session, or a sample differs.
        Written = 1, "written";
        /// The module was not watching all the time.
        Unknown = 2, "unknown";
    }
}

wire_enum! {
    /// A session's state as its status slot says it.
    State {
        /// Not ended, or cut: then it is *interrupted*, see `docs/format.md`.
        Recording = 1, "recording";
        /// Ended well.
        Closed = 2, "closed";
        /// A pre-image was lost.
        Broken = 3, "broken";
        /// Writes that no bio showed may have happened.
        Tainted = 4, "tainted";
    }
}

/// Header flag: the device is an image file behind a loop device.
pub const DEV_IMAGE: u8 = 1;
/// Header flag: the device is a partition.
pub const DEV_PARTITION: u8 = 2;
/// Header flag: raw writes were in flight at the session's very start.
pub const RAW_IN_FLIGHT: u8 = 4;
/// Header flag: a device of the same filesystem was not registered.
pub const GROUP_INCOMPLETE: u8 = 8;
/// Header flag, version 2: it goes on where the session before it ended, by rotation.
pub const ROTATED: u8 = 16;
/// Most bytes of a device's serial number, or of what else stands for it.
pub const SERIAL_MAX: usize = 134;
/// It is not known: of figures that a witness gives.
pub const UNKNOWN: u64 = u64::MAX;

/// The beginning of `blocks.map`: what the session is, written once.
///
/// # Invariants
///
/// `name_len <= NAME_MAX`; `serial_len <= SERIAL_MAX`; `chunk_size` is a power of two from [`CHUNK_MIN`]
/// to [`CHUNK_MAX`]. [`Header::decode`] checks both.
#[derive(Clone)]
pub struct Header {
    /// The session's.
    pub version: Version,
    /// This session.
    pub session_id: Id,
    /// The store that it was made in.
    pub store_id: Id,
    /// The session before it on this device, or [`NO_ID`].
    pub prev_session_id: Id,
    /// Shared by the sessions of one filesystem's devices, or [`NO_ID`]: the
    /// `session_id` of the first one, which may say [`NO_ID`] itself.
    pub group_id: Id,
    /// The boot (as /proc/sys/kernel/random/boot_id says it).
    pub boot_id: Id,
    /// The load of the module; for undo sessions made by tools, [`NO_ID`].
    pub load_id: Id,
    /// Position in the chain: larger is later; unique in a store.
    pub chain_seq: u64,
    /// Start, in nanoseconds since 1970 UTC.
    pub start_ns: u64,
    /// Start, in nanoseconds since boot (CLOCK_BOOTTIME).
    pub start_boot_ns: u64,
    /// Size of the device in bytes.
    pub device_bytes: u64,
    /// Start of the device on its disk, in sectors.
    pub part_start: u64,
    /// Offset of a loop device in its image, in bytes.
    pub loop_offset: u64,
    /// Size limit of a loop device, in bytes; 0: none.
    pub loop_sizelimit: u64,
    /// Size of a chunk in bytes.
    pub chunk_size: u32,
    /// Logical block size of the device in bytes.
    pub logical_block_size: u32,
    /// Device number at that time (informative).
    pub dev_major: u32,
    /// Device number at that time (informative).
    pub dev_minor: u32,
    /// What opened the session.
    pub kind: Kind,
    /// When origin writes are let go.
    pub durability: Durability,
    /// The link to the session before.
    pub gap_before: Gap,
    /// [`DEV_IMAGE`], [`DEV_PARTITION`], [`RAW_IN_FLIGHT`], [`GROUP_INCOMPLETE`].
    pub dev_flags: u8,
    /// SHA-256 of the device's first [`HEAD_LEN`] bytes (or all, if smaller)
    /// at the start; zeros if it could not be read.
    pub head_sha256: [u8; 32],
    /// For an undo session: the session whose start was restored.
    pub restored_id: Id,
    /// The youngest session that was merged into this one when it was pruned,
    /// or [`NO_ID`].
    pub merged_id: Id,
    /// Its place in the chain; 0: none was merged.
    pub merged_seq: u64,
    // What follows is nothing in version 1, up to `serial`.
    /// See [`Features`].
    pub features: Features,
    /// `blocks.dat`; new whenever that is written anew.
    pub data_id: Id,
    /// The medium's sequence number; it counts together with `boot_id` only.
    pub diskseq: u64,
    /// The partition's identity, as its table has it: raw, filled up with zeros.
    pub partuuid: [u8; 16],
    /// The file system's, at the start: raw, filled up with zeros.
    pub fs_uuid: [u8; 16],
    /// The file system's own counter of mounts or generations at the start, or [`UNKNOWN`].
    pub fs_writes: u64,
    /// Sectors written, by the disk's statistics, at the start, or [`UNKNOWN`].
    pub disk_sectors: u64,
    /// Of an undo session: the moment that was restored, or [`NO_ID`].
    pub restored_moment: Id,
    /// Number of bytes of `serial` in use.
    pub serial_len: u16,
    /// The device's serial number, or what else stands for it (a device-mapper UUID).
    pub serial: [u8; SERIAL_MAX],
    /// Number of bytes of `name` in use.
    pub name_len: u16,
    /// The device's name as registered (bytes, any but NUL).
    pub name: [u8; NAME_MAX],
}

impl Header {
    /// A header with all fields zero or their first value.
    pub const fn new() -> Self {
        Self {
            version: Version::NEWEST,
            session_id: NO_ID,
            store_id: NO_ID,
            prev_session_id: NO_ID,
            group_id: NO_ID,
            boot_id: NO_ID,
            load_id: NO_ID,
            chain_seq: 0,
            start_ns: 0,
            start_boot_ns: 0,
            device_bytes: 0,
            part_start: 0,
            loop_offset: 0,
            loop_sizelimit: 0,
            chunk_size: CHUNK_MIN,
            logical_block_size: 512,
            dev_major: 0,
            dev_minor: 0,
            kind: Kind::Mount,
            durability: Durability::Strict,
            gap_before: Gap::None,
            dev_flags: 0,
            head_sha256: [0; 32],
            restored_id: NO_ID,
            merged_id: NO_ID,
            merged_seq: 0,
            features: Features::NONE,
            data_id: NO_ID,
            diskseq: 0,
            partuuid: [0; 16],
            fs_uuid: [0; 16],
            fs_writes: UNKNOWN,
            disk_sectors: UNKNOWN,
            restored_moment: NO_ID,
            serial_len: 0,
            serial: [0; SERIAL_MAX],
            name_len: 0,
            name: [0; NAME_MAX],
        }
    }

    /// The session that the next one of the chain names as the one before it.
    pub fn last_id(&self) -> &Id {
        if self.merged_seq == 0 {
            &self.session_id
        } else {
            &self.merged_id
        }
    }

    /// Whether all of `other`, of the same chain, has been merged into this one.
    pub fn contains(&self, other: &Self) -> bool {
        self.chain_seq < other.chain_seq && other.chain_seq <= self.merged_seq
    }

    /// The device's name.
    pub fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.name_len).min(NAME_MAX)]
    }

    /// Sets the device's name; false if it is too long.
    pub fn set_name(&mut self, name: &[u8]) -> bool {
        if name.len() > NAME_MAX {
            return false;
        }
        self.name = [0; NAME_MAX];
        self.name[..name.len()].copy_from_slice(name);
        self.name_len = name.len() as u16;
        true
    }

    /// The device's serial number.
    pub fn serial(&self) -> &[u8] {
        &self.serial[..usize::from(self.serial_len).min(SERIAL_MAX)]
    }

    /// Sets it; false if it is too long.
    pub fn set_serial(&mut self, serial: &[u8]) -> bool {
        if serial.len() > SERIAL_MAX {
            return false;
        }
        self.serial = [0; SERIAL_MAX];
        self.serial[..serial.len()].copy_from_slice(serial);
        self.serial_len = serial.len() as u16;
        true
    }

    /// Writes the header into `out`.
    pub fn encode(&self, out: &mut [u8; HEADER_LEN]) {
        out.fill(0);
        let mut w = Writer::new(out);
        w.bytes(&MAP_MAGIC);
        w.u32(self.version as u32);
        w.u32(HEADER_LEN as u32);
        w.bytes(&self.session_id);
        w.bytes(&self.store_id);
        w.bytes(&self.prev_session_id);
        w.bytes(&self.group_id);
        w.bytes(&self.boot_id);
        w.bytes(&self.load_id);
        w.u64(self.chain_seq);
        w.u64(self.start_ns);
        w.u64(self.start_boot_ns);
        w.u64(self.device_bytes);
        w.u64(self.part_start);
        w.u64(self.loop_offset);
        w.u64(self.loop_sizelimit);
        w.u32(self.chunk_size);
        w.u32(self.logical_block_size);
        w.u32(self.dev_major);
        w.u32(self.dev_minor);
        w.u8(self.kind as u8);
        w.u8(self.durability as u8);
        w.u8(self.gap_before as u8);
        w.u8(self.dev_flags);
        w.u8(1); // checksum of data and records: CRC-32C
        w.u8(0); // compression: none
        w.u16(self.name_len);
        w.bytes(&self.head_sha256);
        w.bytes(&self.restored_id);
        w.bytes(&self.merged_id);
        w.u64(self.merged_seq);
        if self.version >= Version::Two {
            w.u64(self.features.compat);
            w.u64(self.features.ro_compat);
            w.u64(self.features.incompat);
            w.bytes(&self.data_id);
            w.u64(self.diskseq);
            w.bytes(&self.partuuid);
            w.bytes(&self.fs_uuid);
            w.u64(self.fs_writes);
            w.u64(self.disk_sectors);
            w.bytes(&self.restored_moment);
            w.u16(self.serial_len);
            w.bytes(self.serial());
        }
        w.seek(HEADER_NAME);
        w.bytes(self.name());
        seal(out);
    }

    /// Reads a header; `bytes` are the first [`HEADER_LEN`] of `blocks.map`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut h = Self::new();
        h.decode_into(bytes)?;
        Ok(h)
    }

    /// As [`Header::decode`], in place: the structure is large for a kernel's
    /// stack. On an error the content of `self` is unspecified.
    pub fn decode_into(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let bytes = bytes.get(..HEADER_LEN).ok_or(FormatError::Short)?;
        let mut r = Reader::new(bytes);
        if r.array::<8>() != MAP_MAGIC {
            return Err(FormatError::Magic);
        }
        self.version = Version::from_number(r.u32())?;
        if !sealed(bytes) {
            return Err(FormatError::Checksum);
        }
        if r.u32() != HEADER_LEN as u32 {
            return Err(FormatError::Field("header_len"));
        }
        self.session_id = r.array();
        self.store_id = r.array();
        self.prev_session_id = r.array();
        self.group_id = r.array();
        self.boot_id = r.array();
        self.load_id = r.array();
        self.chain_seq = r.u64();
        self.start_ns = r.u64();
        self.start_boot_ns = r.u64();
        self.device_bytes = r.u64();
        self.part_start = r.u64();
        self.loop_offset = r.u64();
        self.loop_sizelimit = r.u64();
        self.chunk_size = r.u32();
        self.logical_block_size = r.u32();
        self.dev_major = r.u32();
        self.dev_minor = r.u32();
        self.kind = Kind::from_wire(r.u8())?;
        self.durability = Durability::from_wire(r.u8())?;
        self.gap_before = Gap::from_wire(r.u8())?;
        self.dev_flags = r.u8();
        if r.u8() != 1 {
            return Err(FormatError::Field("checksum"));
        }
        if r.u8() != 0 {
            return Err(FormatError::Field("compression"));
        }
        self.name_len = r.u16();
        self.head_sha256 = r.array();
        self.restored_id = r.array();
        self.merged_id = r.array();
        self.merged_seq = r.u64();
        if self.version >= Version::Two {
            self.features = Features { compat: r.u64(), ro_compat: r.u64(), incompat: r.u64() };
            self.data_id = r.array();
            self.diskseq = r.u64();
            self.partuuid = r.array();
            self.fs_uuid = r.array();
            self.fs_writes = r.u64();
            self.disk_sectors = r.u64();
            self.restored_moment = r.array();
            let len = r.u16();
            let serial = r.array::<SERIAL_MAX>();
            if !self
                .set_serial(serial.get(..usize::from(len)).ok_or(FormatError::Field("serial_len"))?)
            {
                return Err(FormatError::Field("serial_len"));
            }
        }
        if usize::from(self.name_len) > NAME_MAX {
            return Err(FormatError::Field("name_len"));
        }
        if !chunk_size_is_valid(self.chunk_size) {
            return Err(FormatError::Field("chunk_size"));
        }
        if self.device_bytes > i64::MAX as u64 {
            return Err(FormatError::Field("device_bytes"));
        }
        // Where its last byte is in an image.
        if self.loop_offset > i64::MAX as u64 - self.device_bytes {
            return Err(FormatError::Field("loop_offset"));
        }
        let rest = &bytes[HEADER_NAME + NAME_MAX..HEADER_LEN - 4];
        if self.version >= Version::Two && self.features.are_known() && !is_zero(rest) {
            return Err(FormatError::Field("reserved"));
        }
        let name = &bytes[HEADER_NAME..HEADER_NAME + usize::from(self.name_len)];
        self.set_name(name);
        Ok(())
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the name is in a header.
const HEADER_NAME: usize = 512;

/// Whether chunks may have this many bytes.
pub fn chunk_size_is_valid(bytes: u32) -> bool {
    bytes.is_power_of_two() && (CHUNK_MIN..=CHUNK_MAX).contains(&bytes)
}

/// A session's state, and at its end its totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The session that the slot belongs to.
    pub session_id: Id,
    /// Larger is newer.
    pub generation: u64,
    /// The state.
    pub state: State,
    /// Records of pre-images (commits not counted); valid unless `Recording`.
    pub records: u64,
    /// All records, commits included: `blocks.map` is
    /// [`Layout::map_bytes`] long.
    pub map_records: u64,
    /// Bytes of `blocks.dat`.
    pub dat_bytes: u64,
    /// End, in nanoseconds since 1970 UTC; 0 while recording.
    pub end_ns: u64,
    /// Why it broke: a positive errno; 0: it did not.
    pub errno: u32,
    /// The chunk that could not be saved: its sector on the device.
    pub broken_sector: u64,
    /// When it broke, in nanoseconds since 1970 UTC.
    pub broken_ns: u64,
    /// Bytes of discards that were completed without reaching the device.
    pub absorbed_bytes: u64,
    /// Origin writes that were held.
    pub held_bios: u64,
    /// SHA-256 of the device's first [`HEAD_LEN`] bytes at the end.
    pub head_sha256: [u8; 32],
    /// What version 1 has no place for.
    pub more: More,
}

/// What became of a session after its header was written. Nothing of it in version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct More {
    /// Points, the session's start included.
    pub points: u32,
    /// The largest tag.
    pub last_tag: u32,
    /// Points below this one are harmed: pre-images of theirs are missing; 0: none. Valid in each state.
    pub lossy_below: u32,
    /// `LATE_…`
    pub late_flags: u32,
    /// Index of the last point's record.
    pub last_point_record: u64,
    /// End, in nanoseconds since boot; 0 while recording.
    pub end_boot_ns: u64,
    /// Bytes of pre-images that are lost.
    pub lost_bytes: u64,
    /// As in the header, at the end.
    pub disk_sectors: u64,
    /// As in the header, at the end.
    pub fs_writes: u64,
    /// Of all records and contents; zeros: none.
    pub digest: [u8; 32],
    /// Of the session before.
    pub prev_digest: [u8; 32],
    /// What the header does not say, for it was written before: `compat` there has no room here.
    pub late: Features,
    /// When it was tainted first, in nanoseconds since 1970 UTC; 0: it is not.
    pub tainted_ns: u64,
    /// Why: `TAINT_…`
    pub taint_why: u32,
}

/// A member of the group joined late, and it is not registered.
pub const LATE_MEMBER: u32 = 1;
/// The medium changed.
pub const LATE_MEDIUM: u32 = 2;
/// The name went to another device.
pub const LATE_NAME: u32 = 4;
/// Others wrote during a restore.
pub const LATE_OTHERS: u32 = 8;
/// An atomic write may be torn.
pub const LATE_ATOMIC: u32 = 16;

/// A discard went on unsaved.
pub const TAINT_DISCARD: u32 = 1;
/// An image is mounted by two loop devices.
pub const TAINT_TWO_LOOPS: u32 = 2;
/// Somebody wrote past the module.
pub const TAINT_UNSEEN: u32 = 4;

impl More {
    /// Of a session that has just begun.
    pub const NONE: Self = Self {
        points: 1,
        last_tag: 0,
        lossy_below: 0,
        late_flags: 0,
        last_point_record: 0,
        end_boot_ns: 0,
        lost_bytes: 0,
        disk_sectors: UNKNOWN,
        fs_writes: UNKNOWN,
        digest: [0; 32],
        prev_digest: [0; 32],
        late: Features::NONE,
        tainted_ns: 0,
        taint_why: 0,
    };
}

impl Status {
    /// The status of a session that has just begun.
    pub const fn recording(session_id: Id) -> Self {
        Self {
            session_id,
            generation: 1,
            state: State::Recording,
            records: 0,
            map_records: 0,
            dat_bytes: 0,
            end_ns: 0,
            errno: 0,
            broken_sector: 0,
            broken_ns: 0,
            absorbed_bytes: 0,
            held_bios: 0,
            head_sha256: [0; 32],
            more: More::NONE,
        }
    }

    /// Writes the slot into `out`, whose length is [`Layout::slot_len`].
    pub fn encode(&self, version: Version, out: &mut [u8]) {
        debug_assert_eq!(out.len(), version.layout().slot_len);
        out.fill(0);
        let mut w = Writer::new(out);
        w.bytes(&SLOT_MAGIC);
        w.bytes(&self.session_id);
        w.u64(self.generation);
        w.u8(self.state as u8);
        w.bytes(&[0; 3]);
        w.u32(self.errno);
        w.u64(self.records);
        w.u64(self.map_records);
        w.u64(self.dat_bytes);
        w.u64(self.end_ns);
        w.u64(self.broken_sector);
        w.u64(self.broken_ns);
        w.u64(self.absorbed_bytes);
        w.u64(self.held_bios);
        w.bytes(&self.head_sha256);
        if version >= Version::Two {
            let more = &self.more;
            w.u32(more.points);
            w.u32(more.last_tag);
            w.u32(more.lossy_below);
            w.u32(more.late_flags);
            w.u64(more.last_point_record);
            w.u64(more.end_boot_ns);
            w.u64(more.lost_bytes);
            w.u64(more.disk_sectors);
            w.u64(more.fs_writes);
            w.bytes(&more.digest);
            w.bytes(&more.prev_digest);
            w.u64(more.late.incompat);
            w.u64(more.late.ro_compat);
            w.u64(more.tainted_ns);
            w.u32(more.taint_why);
        }
        seal(out);
    }

    /// Reads one slot.
    pub fn decode(version: Version, bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.get(..version.layout().slot_len).ok_or(FormatError::Short)?;
        let mut r = Reader::new(bytes);
        if r.array::<8>() != SLOT_MAGIC {
            return Err(FormatError::Magic);
        }
        if !sealed(bytes) {
            return Err(FormatError::Checksum);
        }
        let session_id = r.array();
        let generation = r.u64();
        let state = State::from_wire(r.u8())?;
        let _: [u8; 3] = r.array();
        let mut status = Self {
            session_id,
            generation,
            state,
            errno: r.u32(),
            records: r.u64(),
            map_records: r.u64(),
            dat_bytes: r.u64(),
            end_ns: r.u64(),
            broken_sector: r.u64(),
            broken_ns: r.u64(),
            absorbed_bytes: r.u64(),
            held_bios: r.u64(),
            head_sha256: r.array(),
            more: More::NONE,
        };
        if version >= Version::Two {
            status.more = More {
                points: r.u32(),
                last_tag: r.u32(),
                lossy_below: r.u32(),
                late_flags: r.u32(),
                last_point_record: r.u64(),
                end_boot_ns: r.u64(),
                lost_bytes: r.u64(),
                disk_sectors: r.u64(),
                fs_writes: r.u64(),
                digest: r.array(),
                prev_digest: r.array(),
                late: Features { compat: 0, incompat: r.u64(), ro_compat: r.u64() },
                tainted_ns: r.u64(),
                taint_why: r.u32(),
            };
            if status.more.late.are_known() && !is_zero(&bytes[r.at..bytes.len() - 4]) {
                return Err(FormatError::Field("reserved"));
            }
        }
        Ok(status)
    }

    /// The slot that counts: valid, of this session, newest. `slots` is what
    /// stands at [`Layout::slots`].
    pub fn newest(
        version: Version,
        slots: [&[u8]; 2],
        session_id: &Id,
    ) -> Result<Self, FormatError> {
        let mut best: Option<Self> = None;
        let mut why = FormatError::Checksum;
        for slot in slots {
            match Self::decode(version, slot) {
                Ok(s) if s.session_id != *session_id => why = FormatError::Field("session_id"),
                Ok(s) if best.is_none_or(|b| s.generation > b.generation) => best = Some(s),
                Ok(_) => {}
                Err(e) => why = e,
            }
        }
        best.ok_or(why)
    }

    /// Which slot (0 or 1) this generation is written to.
    pub fn slot(&self) -> usize {
        (self.generation % 2) as usize
    }
}

/// What a store remembers about a device's last session, in
/// `.bdsnap-chain/<key>`, so that the next one can be linked to it. Written at
/// each close, replaced as a whole. The key is [`super::name::chain_key`].
#[derive(Clone)]
pub struct Tail {
    /// The device's last session.
    pub session_id: Id,
    /// Its place in the chain.
    pub chain_seq: u64,
    /// Boot in which it ended.
    pub boot_id: Id,
    /// Load of the module that watched when it ended, or [`NO_ID`].
    pub load_id: Id,
    /// Device size in bytes at its end.
    pub device_bytes: u64,
    /// Modification time of an image file at its end, ns since 1970; else 0.
    pub image_mtime_ns: u64,
    /// SHA-256 of the device's first [`HEAD_LEN`] bytes at its end.
    pub head_sha256: [u8; 32],
    /// Chunks of the session with their checksums at its end.
    pub samples: [Sample; SAMPLES_MAX],
    /// Number of `samples` in use.
    pub sample_count: u32,
    /// Size of a chunk in bytes.
    pub chunk_size: u32,
    /// The version that it is written in. What follows is nothing in version 1.
    pub version: Version,
    /// What is known of the time since the session: [`Gap::None`], if nothing happened.
    pub link: Gap,
    /// Why it is not: `TAINT_…`
    pub why: u32,
    /// The medium's sequence number at its end; it counts together with `boot_id` only.
    pub diskseq: u64,
    /// Sectors written, by the disk's statistics, at its end, or [`UNKNOWN`].
    pub disk_sectors: u64,
    /// The file system's own counter at its end, or [`UNKNOWN`].
    pub fs_writes: u64,
}

/// A chunk and its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// First sector of the chunk.
    pub sector: u64,
    /// Its length in bytes.
    pub bytes: u32,
    /// CRC-32C of its content.
    pub crc: u32,
}

impl Tail {
    /// An empty tail.
    pub const fn new() -> Self {
        Self {
            session_id: NO_ID,
            chain_seq: 0,
            boot_id: NO_ID,
            load_id: NO_ID,
            device_bytes: 0,
            image_mtime_ns: 0,
            head_sha256: [0; 32],
            samples: [Sample { sector: 0, bytes: 0, crc: 0 }; SAMPLES_MAX],
            sample_count: 0,
            chunk_size: CHUNK_MIN,
            version: Version::NEWEST,
            link: Gap::None,
            why: 0,
            diskseq: 0,
            disk_sectors: UNKNOWN,
            fs_writes: UNKNOWN,
        }
    }

    /// Samples in use.
    pub fn samples(&self) -> &[Sample] {
        &self.samples[..(self.sample_count as usize).min(SAMPLES_MAX)]
    }

    /// Adds a sample; beyond [`SAMPLES_MAX`] it is ignored.
    pub fn push(&mut self, sample: Sample) {
        if let Some(place) = self.samples.get_mut(self.sample_count as usize) {
            *place = sample;
            self.sample_count += 1;
        }
    }

    /// Writes the tail into `out`.
    pub fn encode(&self, out: &mut [u8; TAIL_LEN]) {
        out.fill(0);
        let mut w = Writer::new(out);
        w.bytes(&TAIL_MAGIC);
        w.u32(self.version as u32);
        w.u32(self.chunk_size);
        w.bytes(&self.session_id);
        w.u64(self.chain_seq);
        w.bytes(&self.boot_id);
        w.bytes(&self.load_id);
        w.u64(self.device_bytes);
        w.u64(self.image_mtime_ns);
        w.bytes(&self.head_sha256);
        w.u32(self.sample_count);
        w.u32(0);
        for s in self.samples() {
            w.u64(s.sector);
            w.u32(s.bytes);
            w.u32(s.crc);
        }
        if self.version >= Version::Two {
            w.seek(TAIL_MORE);
            w.u8(self.link as u8);
            w.bytes(&[0; 3]);
            w.u32(self.why);
            w.u64(self.diskseq);
            w.u64(self.disk_sectors);
            w.u64(self.fs_writes);
        }
        seal(out);
    }

    /// Reads a tail.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.get(..TAIL_LEN).ok_or(FormatError::Short)?;
        let mut r = Reader::new(bytes);
        if r.array::<8>() != TAIL_MAGIC {
            return Err(FormatError::Magic);
        }
        let version = Version::from_number(r.u32())?;
        if !sealed(bytes) {
            return Err(FormatError::Checksum);
        }
        let mut tail = Self::new();
        tail.version = version;
        tail.chunk_size = r.u32();
        tail.session_id = r.array();
        tail.chain_seq = r.u64();
        tail.boot_id = r.array();
        tail.load_id = r.array();
        tail.device_bytes = r.u64();
        tail.image_mtime_ns = r.u64();
        tail.head_sha256 = r.array();
        let count = r.u32();
        let _reserved = r.u32();
        if count as usize > SAMPLES_MAX {
            return Err(FormatError::Field("sample_count"));
        }
        if !chunk_size_is_valid(tail.chunk_size) {
            return Err(FormatError::Field("chunk_size"));
        }
        for _ in 0..count {
            let sample = Sample { sector: r.u64(), bytes: r.u32(), crc: r.u32() };
            if sample.bytes == 0 || sample.bytes > CHUNK_MAX {
                return Err(FormatError::Field("sample"));
            }
            tail.push(sample);
        }
        if version >= Version::Two {
            r.seek(TAIL_MORE);
            tail.link = Gap::from_wire(r.u8())?;
            let _: [u8; 3] = r.array();
            tail.why = r.u32();
            tail.diskseq = r.u64();
            tail.disk_sectors = r.u64();
            tail.fs_writes = r.u64();
        }
        Ok(tail)
    }
}

impl Default for Tail {
    fn default() -> Self {
        Self::new()
    }
}

/// Where in a tail what version 1 does not have begins.
const TAIL_MORE: usize = 128 + 16 * SAMPLES_MAX;

/// Bytes of the store's marker, [`MARKER_NAME`]: always the same number, so
/// that a new `chain_seq` is one small write in place.
pub const MARKER_LEN: usize = 96;

/// The store's marker: a text of three lines,
/// `bdsnap-store 1` or `2`, `id <32 hex digits>`, `chain_seq <20 decimal digits>`,
/// filled up with spaces and a line feed to [`MARKER_LEN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    /// In which sessions are written there.
    pub version: Version,
    /// The store's identity.
    pub store_id: Id,
    /// The last `chain_seq` given out.
    pub chain_seq: u64,
}

impl Marker {
    const LINE1: &'static [u8] = b"bdsnap-store ";
    const LINE2: &'static [u8] = b"\nid ";
    const LINE3: &'static [u8] = b"\nchain_seq ";

    /// Writes the marker into `out`.
    pub fn encode(&self, out: &mut [u8; MARKER_LEN]) {
        out.fill(b' ');
        let mut w = Writer::new(out);
        w.bytes(Self::LINE1);
        w.u8(b'0' + self.version as u8);
        w.bytes(Self::LINE2);
        w.bytes(&super::name::hex(&self.store_id));
        w.bytes(Self::LINE3);
        let mut digits = [b'0'; 20];
        let mut rest = self.chain_seq;
        for d in digits.iter_mut().rev() {
            *d = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        w.bytes(&digits);
        out[MARKER_LEN - 1] = b'\n';
    }

    /// Reads a marker.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.get(..MARKER_LEN).ok_or(FormatError::Short)?;
        let mut r = Reader::new(bytes);
        if r.slice(Self::LINE1.len()) != Self::LINE1 {
            return Err(FormatError::Magic);
        }
        let digit = r.u8();
        if r.slice(Self::LINE2.len()) != Self::LINE2 {
            return Err(FormatError::Magic);
        }
        let version = Version::from_number(u32::from(digit.wrapping_sub(b'0')))?;
        let store_id =
            super::name::unhex(&r.array::<32>()).ok_or(FormatError::Field("store id"))?;
        if r.slice(Self::LINE3.len()) != Self::LINE3 {
            return Err(FormatError::Field("chain_seq"));
        }
        let mut chain_seq = 0u64;
        for d in r.array::<20>() {
            if !d.is_ascii_digit() {
                return Err(FormatError::Field("chain_seq"));
            }
            chain_seq = chain_seq
                .checked_mul(10)
                .and_then(|v| v.checked_add(u64::from(d - b'0')))
                .ok_or(FormatError::Field("chain_seq"))?;
        }
        Ok(Self { version, store_id, chain_seq })
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Puts the checksum of all but the last four bytes into the last four.
fn seal(bytes: &mut [u8]) {
    let at = bytes.len() - 4;
    let crc = crc::crc32c(&bytes[..at]);
    bytes[at..].copy_from_slice(&crc.to_le_bytes());
}

fn sealed(bytes: &[u8]) -> bool {
    let at = bytes.len() - 4;
    crc::crc32c(&bytes[..at]).to_le_bytes() == bytes[at..]
}

/// Writes fields one after the other into a buffer of known size.
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }
    fn seek(&mut self, at: usize) {
        self.at = at;
    }
    #[inline(always)]
    fn bytes(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
    #[inline(always)]
    fn u8(&mut self, v: u8) {
        self.bytes(&[v]);
    }
    #[inline(always)]
    fn u16(&mut self, v: u16) {
        self.bytes(&v.to_le_bytes());
    }
    #[inline(always)]
    fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }
    #[inline(always)]
    fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }
}

/// Reads fields one after the other from a buffer whose length was checked.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }
    fn seek(&mut self, at: usize) {
        self.at = at;
    }
    fn slice(&mut self, len: usize) -> &'a [u8] {
        let s = &self.bytes[self.at..self.at + len];
        self.at += len;
        s
    }
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut a = [0; N];
        a.copy_from_slice(self.slice(N));
        a
    }
    fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

#[cfg(test)]
mod tests;
