// SPDX-License-Identifier: GPL-2.0

//! The records of `blocks.map`.
//!
//! A record is a run of pre-images, a *commit*: the statement that everything before it was durable when
//! it was written, or, in version 2, a *point*: from there on the session also holds what
//! the device was at that moment. A run with tag *t* was on the device at point *t*, and at those before it that
//! have no run of their own there: *to go back to point p takes, of each place, the first run with a
//! tag of at least p*. What follows the last commit of an interrupted session is its tail, which may be torn.

use super::super::{crc, SECTOR};
use super::{FormatError, Header, Id, Reader, Version, Writer, RECORD_MAX, RUN_MAX};

/// A run of pre-images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Run {
    /// The youngest point that it belongs to; 0: the session's start.
    pub tag: u32,
    /// First sector, from the registered device's start.
    pub sector: u64,
    /// Length in bytes, at most [`RUN_MAX`].
    pub bytes: u32,
    /// Bytes that it has in `blocks.dat`: none, or as many.
    pub stored: u32,
    /// Where it begins in `blocks.dat`.
    pub offset: u64,
    /// CRC-32C of its content.
    pub data_crc: u32,
}

impl Run {
    /// Whether it is all zeros, and has nothing in `blocks.dat`.
    pub fn is_zero(&self) -> bool {
        self.stored == 0
    }

    /// Checks it against the device of `header`: in range, whole chunks except at the device's
    /// end, not longer than [`RUN_MAX`].
    ///
    /// # Errors
    ///
    /// The field that does not fit.
    pub fn check(&self, header: &Header) -> Result<(), FormatError> {
        let chunk = u64::from(header.chunk_size);
        let start = self.sector.checked_mul(SECTOR).ok_or(FormatError::Field("sector"))?;
        let end = start.checked_add(u64::from(self.bytes)).ok_or(FormatError::Field("bytes"))?;
        if self.bytes == 0 || self.bytes > RUN_MAX {
            return Err(FormatError::Field("bytes"));
        }
        if start % chunk != 0 || end > header.device_bytes {
            return Err(FormatError::Field("sector"));
        }
        if end % chunk != 0 && end != header.device_bytes {
            return Err(FormatError::Field("bytes"));
        }
        Ok(())
    }
}

/// A moment that the session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its number in the session; 0: the session's start.
    pub tag: u32,
    /// Shared by all devices for which it was made.
    pub moment_id: Id,
    /// When, in nanoseconds since 1970 UTC.
    pub time_ns: u64,
    /// When, in nanoseconds since boot.
    pub boot_ns: u64,
    /// Index of the record of the point before; of point 0, 0.
    pub before: u64,
    /// Bytes of `blocks.dat` at that moment.
    pub dat_bytes: u64,
    /// Devices for which it was made.
    pub members: u16,
    /// In what state the file system was: `POINT_UNMOUNTED` and the others.
    pub how: u8,
    /// What made it: `POINT_BY_…`
    pub by: u8,
}

/// Nothing was mounted: all is as at an end.
pub const POINT_UNMOUNTED: u8 = 1;
/// As after a power cut.
pub const POINT_CUT: u8 = 2;
/// A mount made it.
pub const POINT_BY_MOUNT: u8 = 1;
/// A raw write.
pub const POINT_BY_RAW: u8 = 2;
/// A restore, before it wrote.
pub const POINT_BY_UNDO: u8 = 3;

/// One entry of `blocks.map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// Pre-images.
    Run(Run),
    /// All before it, and so many bytes of `blocks.dat`, were durable when it was written.
    Commit(u64),
    /// A moment.
    Point(Point),
    /// Of a type that need not be known.
    Passed,
}

const RUN: u8 = 1;
const COMMIT: u8 = 2;
const POINT: u8 = 3;
/// A record of a type with this bit may be passed over by who does not know it.
const MAY_PASS: u8 = 0x80;
/// Flag of a run: all zeros.
const ZEROS: u8 = 1;
/// Flag of a run: its content is lost.
const LOST: u8 = 2;
/// Flags of version 1.
const OLD_COMMIT: u32 = 1;
const OLD_ZEROS: u32 = 2;

impl Record {
    /// Writes the record into `out`, whose length is [`super::Layout::record_len`]. It is the `index`th of
    /// `session`. The checksum covers both, so that neither what a file's blocks held before nor what was moved
    /// is taken for a record.
    ///
    /// Version 1 has no points: there nothing is written for one, and `false` comes back.
    pub fn encode(&self, version: Version, session: &Id, index: u64, out: &mut [u8]) -> bool {
        let seed = crc::crc32c(session);
        self.encode_with(version, seed, index, out, crc::update)
    }

    /// The same by who has the checksum of `session`, `seed`, and another way to go on with one than [`crc::update`].
    pub fn encode_with(
        &self,
        version: Version,
        seed: u32,
        index: u64,
        out: &mut [u8],
        update: impl Fn(u32, &[u8]) -> u32,
    ) -> bool {
        debug_assert_eq!(out.len(), version.layout().record_len);
        let mut w = Writer::new(out);
        match (version, self) {
            (Version::One, Self::Run(run)) => {
                w.u64(run.sector);
                w.u32(run.bytes);
                w.u32(if run.is_zero() { OLD_ZEROS } else { 0 });
                w.u64(run.offset);
                w.u32(run.data_crc);
            }
            (Version::One, Self::Commit(dat_bytes)) => {
                w.u64(index);
                w.u32(0);
                w.u32(OLD_COMMIT);
                w.u64(*dat_bytes);
                w.u32(0);
            }
            (Version::One, Self::Point(_)) | (_, Self::Passed) => return false,
            (Version::Two, Self::Run(run)) => {
                head(&mut w, RUN, if run.is_zero() { ZEROS } else { 0 }, run.tag);
                w.u64(run.sector);
                w.u32(run.bytes);
                w.u32(run.stored);
                w.u64(run.offset);
                w.u32(run.data_crc);
            }
            (Version::Two, Self::Commit(dat_bytes)) => {
                head(&mut w, COMMIT, 0, 0);
                w.u64(*dat_bytes);
                w.u64(index);
            }
            (Version::Two, Self::Point(point)) => {
                head(&mut w, POINT, 0, point.tag);
                w.bytes(&point.moment_id);
                w.u64(point.time_ns);
                w.u64(point.boot_ns);
                w.u64(point.before);
                w.u64(point.dat_bytes);
                w.u16(point.members);
                w.u8(point.how);
                w.u8(point.by);
            }
        }
        let (end, at) = (w.at, out.len() - 4);
        out[end..at].fill(0);
        let crc = checksum(version, seed, index, &out[..at], update);
        out[at..].copy_from_slice(&crc.to_le_bytes());
        true
    }

    /// Reads the `index`th record of `session`; says nothing about whether it fits its device.
    ///
    /// # Errors
    ///
    /// [`FormatError::Checksum`] if it is not one, [`FormatError::Field`] if it says what cannot be.
    pub fn decode(
        version: Version,
        session: &Id,
        index: u64,
        bytes: &[u8],
    ) -> Result<Self, FormatError> {
        let len = version.layout().record_len;
        let bytes = bytes.get(..len).ok_or(FormatError::Short)?;
        let seed = crc::crc32c(session);
        let crc = checksum(version, seed, index, &bytes[..len - 4], crc::update);
        if crc.to_le_bytes() != bytes[len - 4..] {
            return Err(FormatError::Checksum);
        }
        let mut r = Reader::new(bytes);
        match version {
            Version::One => Self::decode_old(&mut r, index),
            Version::Two => Self::decode_new(&mut r, index),
        }
    }

    fn decode_old(r: &mut Reader<'_>, index: u64) -> Result<Self, FormatError> {
        let (sector, bytes, flags) = (r.u64(), r.u32(), r.u32());
        let (offset, data_crc) = (r.u64(), r.u32());
        if flags & !(OLD_COMMIT | OLD_ZEROS) != 0 {
            return Err(FormatError::Field("flags"));
        }
        if flags & OLD_COMMIT != 0 {
            // Its place is in it, not in the checksum.
            let fits = sector == index && bytes == 0;
            return if fits { Ok(Self::Commit(offset)) } else { Err(FormatError::Field("commit")) };
        }
        let stored = if flags & OLD_ZEROS != 0 { 0 } else { bytes };
        Ok(Self::Run(Run { tag: 0, sector, bytes, stored, offset, data_crc }))
    }

    fn decode_new(r: &mut Reader<'_>, index: u64) -> Result<Self, FormatError> {
        let (kind, flags, codec, zero) = (r.u8(), r.u8(), r.u8(), r.u8());
        let tag = r.u32();
        match kind {
            RUN => {
                let (sector, bytes, stored) = (r.u64(), r.u32(), r.u32());
                let (offset, data_crc) = (r.u64(), r.u32());
                // What the features of the session would have told of.
                if flags & !ZEROS != 0 || codec != 0 || zero != 0 {
                    return Err(FormatError::Field(if flags & LOST != 0 {
                        "lost"
                    } else {
                        "flags"
                    }));
                }
                if stored != if flags & ZEROS != 0 { 0 } else { bytes } {
                    return Err(FormatError::Field("stored"));
                }
                Ok(Self::Run(Run { tag, sector, bytes, stored, offset, data_crc }))
            }
            COMMIT if flags == 0 => {
                let (dat_bytes, place) = (r.u64(), r.u64());
                if place != index {
                    return Err(FormatError::Field("commit"));
                }
                Ok(Self::Commit(dat_bytes))
            }
            POINT if flags == 0 => Ok(Self::Point(Point {
                tag,
                moment_id: r.array(),
                time_ns: r.u64(),
                boot_ns: r.u64(),
                before: r.u64(),
                dat_bytes: r.u64(),
                members: r.u16(),
                how: r.u8(),
                by: r.u8(),
            })),
            COMMIT | POINT => Err(FormatError::Field("flags")),
            kind if kind & MAY_PASS != 0 => Ok(Self::Passed),
            _ => Err(FormatError::Field("type")),
        }
    }
}

#[inline(always)]
fn head(w: &mut Writer<'_>, kind: u8, flags: u8, tag: u32) {
    w.u8(kind);
    w.u8(flags);
    w.bytes(&[0; 2]);
    w.u32(tag);
}

/// A commit has its place in its body: behind a hole in the map it is still one, and shows that there is a hole.
fn checksum(
    version: Version,
    seed: u32,
    index: u64,
    body: &[u8],
    update: impl Fn(u32, &[u8]) -> u32,
) -> u32 {
    match version {
        Version::Two if body.first() != Some(&COMMIT) => {
            update(update(seed, &index.to_le_bytes()), body)
        }
        _ => update(seed, body),
    }
}

const _: () = assert!(Version::Two.layout().record_len == RECORD_MAX);
