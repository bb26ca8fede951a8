// SPDX-License-Identifier: GPL-2.0

//! `meta.json`: a session's description for people and scripts.
//!
//! The first keys are those of the original module's file. The truth is
//! `blocks.map`; whoever restores reads that.

use super::format::{
    Header, Id, Kind, Status, Version, DEV_IMAGE, DEV_PARTITION, GROUP_INCOMPLETE, LATE_MEMBER,
    RAW_IN_FLIGHT, ROTATED, UNKNOWN,
};
use super::name::{hex, ShortString, Utc};
use core::fmt::{Result, Write};

/// Writes the document. `fs_type` is what [`super::fs`] saw at the start;
/// `saved_bytes` are the pre-images saved so far.
pub fn write_json(
    out: &mut impl Write,
    header: &Header,
    status: &Status,
    fs_type: &str,
    saved_bytes: u64,
) -> Result {
    let mut obj = Object::begin(out)?;
    obj.bytes("device", header.name())?;
    obj.number("timestamp", header.start_ns)?;
    obj.number("block_size", header.chunk_size.into())?;
    obj.bytes("fs_type", fs_type.as_bytes())?;
    obj.number("total_blocks_saved", saved_bytes.div_ceil(u64::from(header.chunk_size).max(1)))?;
    obj.bytes("snapshot_type", b"COW")?;
    let v2 = header.version >= Version::Two;
    obj.number("schema_version", header.version as u64)?;
    obj.id("session_id", &header.session_id)?;
    obj.id("store_id", &header.store_id)?;
    obj.id("prev_session_id", &header.prev_session_id)?;
    obj.id("group_id", &header.group_id)?;
    obj.id("boot_id", &header.boot_id)?;
    obj.id("load_id", &header.load_id)?;
    obj.bytes("kind", header.kind.as_str().as_bytes())?;
    if v2 || header.kind == Kind::Undo {
        obj.id("restored_id", &header.restored_id)?;
    }
    if v2 || header.merged_seq != 0 {
        obj.id("merged_id", &header.merged_id)?;
        obj.number("merged_seq", header.merged_seq)?;
    }
    obj.bytes("durability", header.durability.as_str().as_bytes())?;
    obj.bytes("gap_before", header.gap_before.as_str().as_bytes())?;
    obj.number("chain_seq", header.chain_seq)?;
    obj.time("start", header.start_ns)?;
    obj.number("device_bytes", header.device_bytes)?;
    obj.number("logical_block_size", header.logical_block_size.into())?;
    obj.number("dev_major", header.dev_major.into())?;
    obj.number("dev_minor", header.dev_minor.into())?;
    obj.number("part_start", header.part_start)?;
    obj.number("loop_offset", header.loop_offset)?;
    obj.number("loop_sizelimit", header.loop_sizelimit)?;
    obj.boolean("image", header.dev_flags & DEV_IMAGE != 0)?;
    obj.boolean("partition", header.dev_flags & DEV_PARTITION != 0)?;
    obj.boolean("raw_writes_in_flight", header.dev_flags & RAW_IN_FLIGHT != 0)?;
    let late_member = status.more.late_flags & LATE_MEMBER != 0;
    obj.boolean("group_incomplete", header.dev_flags & GROUP_INCOMPLETE != 0 || late_member)?;
    if v2 {
        rest_of_header(&mut obj, header)?;
        status_of_two(&mut obj, status)?;
    }
    obj.bytes("state", status.state.as_str().as_bytes())?;
    if status.end_ns != 0 {
        obj.time("end", status.end_ns)?;
    }
    obj.number("saved_bytes", saved_bytes)?;
    obj.number("records", status.records)?;
    obj.number("stored_bytes", status.dat_bytes)?;
    obj.number("absorbed_bytes", status.absorbed_bytes)?;
    obj.number("held_bios", status.held_bios)?;
    if status.errno != 0 {
        obj.number("errno", status.errno.into())?;
        obj.number("broken_sector", status.broken_sector)?;
        obj.time("broken", status.broken_ns)?;
    }
    obj.end()
}

/// What version 1 does not have, or does not say here. With it a header can be made anew.
fn rest_of_header(obj: &mut Object<'_, impl Write>, header: &Header) -> Result {
    obj.digits("device_hex", header.name())?;
    obj.boolean("rotated", header.dev_flags & ROTATED != 0)?;
    obj.number("start_boot_ns", header.start_boot_ns)?;
    obj.digits("head_sha256", &header.head_sha256)?;
    obj.number("compat", header.features.compat)?;
    obj.number("ro_compat", header.features.ro_compat)?;
    obj.number("incompat", header.features.incompat)?;
    obj.id("data_id", &header.data_id)?;
    obj.number("diskseq", header.diskseq)?;
    obj.digits("partuuid", &header.partuuid)?;
    obj.digits("fs_uuid", &header.fs_uuid)?;
    obj.figure("fs_writes", header.fs_writes)?;
    obj.figure("disk_sectors", header.disk_sectors)?;
    obj.id("restored_moment", &header.restored_moment)?;
    obj.bytes("serial", header.serial())?;
    obj.digits("serial_hex", header.serial())
}

/// Of the newest slot.
fn status_of_two(obj: &mut Object<'_, impl Write>, status: &Status) -> Result {
    obj.number("points", status.more.points.into())?;
    obj.number("lossy_below", status.more.lossy_below.into())?;
    obj.number("late_flags", status.more.late_flags.into())?;
    if status.more.tainted_ns != 0 {
        obj.time("tainted", status.more.tainted_ns)?;
        obj.number("taint_why", status.more.taint_why.into())?;
    }
    Ok(())
}

/// A JSON object, one member a line.
struct Object<'a, W> {
    out: &'a mut W,
    first: bool,
}

impl<'a, W: Write> Object<'a, W> {
    fn begin(out: &'a mut W) -> core::result::Result<Self, core::fmt::Error> {
        out.write_str("{")?;
        Ok(Self { out, first: true })
    }

    fn key(&mut self, key: &str) -> Result {
        let comma = if self.first { "" } else { "," };
        self.first = false;
        write!(self.out, "{comma}\n  \"{key}\": ")
    }

    fn number(&mut self, key: &str, value: u64) -> Result {
        self.key(key)?;
        write!(self.out, "{value}")
    }

    fn boolean(&mut self, key: &str, value: bool) -> Result {
        self.key(key)?;
        self.out.write_str(if value { "true" } else { "false" })
    }

    /// Nothing if it is not known.
    fn figure(&mut self, key: &str, value: u64) -> Result {
        if value == UNKNOWN {
            self.key(key)?;
            self.out.write_str("null")
        } else {
            self.number(key, value)
        }
    }

    fn digits(&mut self, key: &str, bytes: &[u8]) -> Result {
        self.key(key)?;
        self.out.write_str("\"")?;
        bytes.iter().try_for_each(|b| write!(self.out, "{b:02x}"))?;
        self.out.write_str("\"")
    }

    fn id(&mut self, key: &str, id: &Id) -> Result {
        self.bytes(key, &hex(id))
    }

    /// As RFC 3339 in UTC, with seconds.
    fn time(&mut self, key: &str, ns: u64) -> Result {
        let t = Utc::from_unix(ns / 1_000_000_000);
        let mut s = ShortString::<40>::new();
        write!(
            s,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            t.year, t.month, t.day, t.hour, t.minute, t.second
        )?;
        self.bytes(key, s.as_bytes())
    }

    /// A string; bytes that are no UTF-8 become U+FFFD.
    fn bytes(&mut self, key: &str, mut value: &[u8]) -> Result {
        self.key(key)?;
        self.out.write_str("\"")?;
        while !value.is_empty() {
            let (good, skip) = match core::str::from_utf8(value) {
                Ok(all) => (all, 0),
                Err(e) => {
                    // The bytes up to there are checked: this cannot fail.
                    let good = core::str::from_utf8(&value[..e.valid_up_to()]).unwrap_or("");
                    let rest = value.len() - e.valid_up_to();
                    (good, e.error_len().unwrap_or(rest))
                }
            };
            for c in good.chars() {
                match c {
                    '"' => self.out.write_str("\\\"")?,
                    '\\' => self.out.write_str("\\\\")?,
                    c if c < ' ' || c == '\u{7f}' => write!(self.out, "\\u{:04x}", c as u32)?,
                    c => self.out.write_char(c)?,
                }
            }
            if skip > 0 {
                self.out.write_str("\\ufffd")?;
            }
            value = &value[good.len() + skip..];
        }
        self.out.write_str("\"")
    }

    fn end(self) -> Result {
        self.out.write_str("\n}\n")
    }
}

/// Picks up to `N` items spread evenly over a sequence of unknown length: it
/// keeps each `stride`-th and, when full, every other one of those.
#[derive(Debug, Clone)]
pub struct Sampler<T: Copy, const N: usize> {
    kept: [Option<T>; N],
    count: usize,
    seen: u64,
    /// A power of two.
    stride: u64,
}

impl<T: Copy, const N: usize> Sampler<T, N> {
    /// Nothing seen.
    pub const fn new() -> Self {
        Self { kept: [None; N], count: 0, seen: 0, stride: 1 }
    }

    /// The next item of the sequence.
    pub fn offer(&mut self, item: T) {
        let turn = self.seen & (self.stride - 1) == 0;
        self.seen += 1;
        if !turn {
            return;
        }
        if self.count == N {
            for i in 0..N / 2 {
                self.kept[i] = self.kept[2 * i];
            }
            self.count = N / 2;
            self.stride *= 2;
            if (self.seen - 1) & (self.stride - 1) != 0 {
                return;
            }
        }
        self.kept[self.count] = Some(item);
        self.count += 1;
    }

    /// What was kept, in the sequence's order.
    pub fn kept(&self) -> impl Iterator<Item = T> + '_ {
        self.kept[..self.count].iter().flatten().copied()
    }
}

impl<T: Copy, const N: usize> Default for Sampler<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::State;

    #[test]
    fn document() {
        let mut h = Header::new();
        h.set_name(b"/srv/a\"b\\c\n\xff\xfe.img");
        h.start_ns = 1_795_219_199_000_000_000;
        h.version = Version::One;
        let mut s = Status::recording([1; 16]);
        s.state = State::Broken;
        s.errno = 28;
        let mut out = String::new();
        write_json(&mut out, &h, &s, "ext4", 8192).unwrap();
        assert!(
            out.starts_with("{\n  \"device\": \"/srv/a\\\"b\\\\c\\u000a\\ufffd\\ufffd.img\",\n")
        );
        assert!(out.contains("\"total_blocks_saved\": 2,"));
        assert!(out.contains("\"start\": \"2026-11-20T23:59:59Z\""));
        assert!(out.contains("\"errno\": 28,"));
        assert!(out.ends_with("\"\n}\n"));
    }

    #[test]
    fn samples_are_spread() {
        let mut s = Sampler::<u64, 8>::new();
        for i in 0..1000 {
            s.offer(i);
        }
        let kept: Vec<u64> = s.kept().collect();
        assert!(kept.len() >= 4 && kept[0] == 0, "{kept:?}");
        let step = kept[1] - kept[0];
        assert!(kept.windows(2).all(|w| w[1] - w[0] == step));
        assert!(1000 - kept.last().unwrap() <= step);
    }
}
