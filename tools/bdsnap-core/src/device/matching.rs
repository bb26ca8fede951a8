// SPDX-License-Identifier: GPL-2.0

//! Whether a session is of a device, and on what ground.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use bdsnap_abi::format::{Header, Tail, DEV_IMAGE, HEAD_LEN};

use super::{what, Ground, Target, What};
use crate::error::{Context, Result};
use crate::identity::{self, Identity, Note, Verdict};
use crate::store::Store;

/// Size of a loop device over an image of `len` bytes, set up as in `header`.
pub(super) fn loop_bytes(len: u64, header: &Header) -> u64 {
    let rest = len.saturating_sub(header.loop_offset);
    let limited = match header.loop_sizelimit {
        0 => rest,
        limit => rest.min(limit),
    };
    limited / 512 * 512
}

/// What is known about a session's device and the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// It is the target, on that ground.
    Yes(Ground),
    /// It had the target's name, but is another device; why.
    Stranger(String),
    /// Nothing says that it is the target.
    No,
}

/// Decides for sessions whether their device is the target.
///
/// A name is not enough where more is known: what the tools noted of the
/// device (see [`crate::identity`]), and what the chain's tail remembers of
/// its content.
#[derive(Debug)]
pub struct Matcher<'a> {
    target: &'a Target,
    store: Option<&'a Store>,
    names: BTreeMap<Vec<u8>, Option<Ground>>,
    notes: BTreeMap<Vec<u8>, Vec<Note>>,
    content: BTreeMap<Vec<u8>, bool>,
    now: Option<Option<Identity>>,
}

impl<'a> Matcher<'a> {
    /// For one device, by names only.
    pub fn new(target: &'a Target) -> Self {
        Self {
            target,
            store: None,
            names: BTreeMap::new(),
            notes: BTreeMap::new(),
            content: BTreeMap::new(),
            now: None,
        }
    }

    /// For one device and the sessions of a store, with all that it knows.
    pub fn in_store(target: &'a Target, store: &'a Store) -> Self {
        Self { store: Some(store), ..Self::new(target) }
    }

    /// Whether the session with this header is the target's.
    pub fn judge(&mut self, header: &Header) -> Match {
        let by_name = self.ground(header.name());
        match (self.compare(header), by_name) {
            // A copy of it that is the same byte for byte is as good.
            (Verdict::Other(why), Some(_)) => {
                if self.same_content(header) {
                    Match::Yes(Ground::Content)
                } else {
                    Match::Stranger(why)
                }
            }
            (Verdict::Disk, _) => Match::Yes(Ground::Disk),
            (Verdict::Partition, _) => Match::Yes(Ground::Partition),
            (_, Some(ground)) => Match::Yes(ground),
            // Is it elsewhere now, under the old name?
            (_, None) if self.target.what == What::Absent || exists(header.name()) => Match::No,
            (_, None) if self.same_content(header) => Match::Yes(Ground::Content),
            (Verdict::FileSystem, None) => Match::Yes(Ground::FileSystem),
            (_, None) => Match::No,
        }
    }

    /// Whether a recorded name alone leads to the target.
    pub fn ground(&mut self, recorded: &[u8]) -> Option<Ground> {
        if let Some(known) = self.names.get(recorded) {
            return *known;
        }
        let ground = self.look(recorded);
        self.names.insert(recorded.to_vec(), ground);
        ground
    }

    fn look(&self, recorded: &[u8]) -> Option<Ground> {
        if self.target.names.iter().any(|n| n == recorded) {
            return Some(Ground::Name);
        }
        if self.target.what == What::Absent || !recorded.starts_with(b"/") {
            return None;
        }
        let meta = std::fs::metadata(OsStr::from_bytes(recorded)).ok()?;
        let is_it = what(&meta)? == self.target.what;
        is_it.then_some(match self.target.what {
            What::Block { .. } => Ground::DeviceNumber,
            What::Image { .. } | What::Absent => Ground::Inode,
        })
    }

    /// What was noted of the session's device against what is there.
    fn compare(&mut self, header: &Header) -> Verdict {
        let Some(store) = self.store else { return Verdict::Unknown };
        if !matches!(self.target.what, What::Block { .. }) {
            return Verdict::Unknown;
        }
        let name = header.name();
        if !self.notes.contains_key(name) {
            self.notes.insert(name.to_vec(), identity::notes(store, name));
        }
        let noted = self.notes.get(name).and_then(|n| identity::noted(n, header.chain_seq));
        let Some(noted) = noted else { return Verdict::Unknown };
        let path = &self.target.path;
        match self.now.get_or_insert_with(|| Identity::of(path)) {
            Some(now) => noted.compare(now),
            None => Verdict::Unknown,
        }
    }

    /// Whether the target holds what the session's device held when its last
    /// session ended, in all places that are remembered.
    fn same_content(&mut self, header: &Header) -> bool {
        if let Some(known) = self.content.get(header.name()) {
            return *known;
        }
        let same = self.holds_tail(header).unwrap_or(false);
        self.content.insert(header.name().to_vec(), same);
        same
    }

    fn holds_tail(&self, header: &Header) -> Result<bool> {
        let Some(tail) = self.store.map(|s| s.tail(header.name())).transpose()?.flatten() else {
            return Ok(false);
        };
        let file = File::open(&self.target.path).on("open", &self.target.path)?;
        let there = self.target.bytes(&file, header)?;
        let is_image = header.dev_flags & DEV_IMAGE != 0;
        if tail.device_bytes > there || is_image != self.target.is_image() {
            return Ok(false);
        }
        let base = if is_image { header.loop_offset } else { 0 };
        // Empty devices are all the same.
        Ok(tail_differs(&tail, &file, base).on("read", &self.target.path)? == Some(false)
            && !head_is_zero(&file, base, there).on("read", &self.target.path)?)
    }
}

/// Whether a device is not what a chain's tail remembers of it, in the places
/// that it remembers; `None` if it remembers nothing. It begins at byte `base`.
pub(crate) fn tail_differs(tail: &Tail, file: &File, base: u64) -> io::Result<Option<bool>> {
    if tail.head_sha256 == [0; 32] {
        return Ok(None);
    }
    let mut buf = vec![0; tail.device_bytes.min(HEAD_LEN) as usize];
    file.read_exact_at(&mut buf, base)?;
    if crate::writer::Head::of(&buf).sha256 != tail.head_sha256 {
        return Ok(Some(true));
    }
    for sample in tail.samples() {
        buf.resize(sample.bytes as usize, 0);
        let at = sample.sector.saturating_mul(bdsnap_abi::SECTOR).saturating_add(base);
        file.read_exact_at(&mut buf, at)?;
        if crc32c::crc32c(&buf) != sample.crc {
            return Ok(Some(true));
        }
    }
    Ok(Some(false))
}

fn head_is_zero(file: &File, base: u64, bytes: u64) -> io::Result<bool> {
    let mut buf = vec![0; bytes.min(HEAD_LEN) as usize];
    file.read_exact_at(&mut buf, base)?;
    Ok(crate::fsutil::is_zero(&buf))
}

/// Whether a recorded name leads to a device or an image now.
fn exists(recorded: &[u8]) -> bool {
    std::fs::metadata(OsStr::from_bytes(recorded)).is_ok_and(|m| what(&m).is_some())
}
