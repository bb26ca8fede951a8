// SPDX-License-Identifier: GPL-2.0

//! One device of a restore: its past, and what has to be written.

use std::cell::RefCell;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use bdsnap_abi::format::{Header, Id, NO_ID, RUN_MAX};
use bdsnap_abi::ioctl::{RESTORE_ABORT, RESTORE_OTHERS, RESTORE_REGISTERED, RESTORE_WRITE};

use super::ahead::ReadAhead;
use super::choose::Choice;
use super::{refused, word, Accept, DevicePlan, Held, Step};
use crate::chain::Break;
use crate::dats::Dats;
use crate::device::{device_error, Opened, Target};
use crate::error::{Error, Kind, Result};
use crate::module::{self, Control, ModuleStatus, Watch};
use crate::plan::{self, Extent, Source};
use crate::progress::{Progress, Stop};
use crate::session::Session;
use crate::text;

/// Reads and writes are at most this long, in bytes.
pub(super) const BATCH: u64 = RUN_MAX as u64;

/// A piece that will be written. It begins and ends between chunks, or at the
/// device's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    pub(super) start: u64,
    pub(super) len: u64,
    /// CRC-32C of what will be written.
    pub(super) crc: u32,
}

/// A device that is restored.
pub(super) struct Member {
    pub(super) target: Target,
    pub(super) opened: Opened,
    pub(super) guard: Guard,
    pub(super) past: Past,
    pub(super) batches: Vec<Batch>,
    /// Of the session to whose start it goes, with the size of the device.
    pub(super) model: Box<Header>,
    pub(super) newest_id: Id,
    /// Under which name the chain goes on.
    pub(super) newest_name: Vec<u8>,
    pub(super) newest_seq: u64,
    /// The break between the newest session and now.
    pub(super) gap_now: Option<Break>,
    /// The smallest chunk of its sessions.
    pub(super) chunk: u32,
    /// Where the device begins in what is opened for it, in bytes.
    pub(super) base: u64,
    /// The sessions that are taken back, by identity, oldest first.
    pub(super) chain: Vec<Id>,
}

/// Tells the module that the restore is over, at the latest when dropped.
pub(super) struct Guard {
    module: Option<Box<dyn Control>>,
    name: Vec<u8>,
    watch: Option<Watch>,
    /// Somebody else has written: nothing may be vouched for.
    pub(super) spoiled: std::cell::Cell<bool>,
    /// Others wrote while the restore wrote, as the module said at its end.
    pub(super) others: bool,
    /// The module's load, if it watches the device.
    pub(super) load_id: Id,
}

impl Guard {
    /// Tells the module that a restore begins, if it is there.
    pub(super) fn begin(
        module: Option<Box<dyn Control>>,
        status: Option<&ModuleStatus>,
        target: &Target,
    ) -> Result<Self> {
        let name = target.path.as_os_str().as_bytes().to_vec();
        let watch = match &module {
            Some(m) => Some(m.restore_begin(&name)?),
            None => None,
        };
        let registered = watch.is_some_and(|w| w.flags & RESTORE_REGISTERED != 0);
        let load_id = match status {
            Some(s) if registered => s.head.load_id,
            _ => NO_ID,
        };
        let spoiled = std::cell::Cell::new(false);
        Ok(Self { module, name, watch, spoiled, others: false, load_id })
    }

    /// What the module said about the device.
    pub(super) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// Before the first write: fails if somebody else has written meanwhile.
    pub(super) fn write(&self) -> Result<()> {
        let Some(module) = &self.module else { return Ok(()) };
        module.restore_over(RESTORE_WRITE, &self.name).map(drop).map_err(|e| {
            self.spoiled.set(true);
            if e.raw_os_error() == Some(libc::EBUSY) {
                Error::refused("somebody else has written to the device since it was looked at")
                    .hint("find out who has it open, and try again")
            } else {
                module::said("the module refused the restore", &e)
            }
        })
    }

    pub(super) fn over(&mut self, phase: u32) -> io::Result<()> {
        if let Some(module) = self.module.take() {
            let flags = module.restore_over(phase, &self.name)?;
            self.others = flags & RESTORE_OTHERS != 0;
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Dropped without an end: given up. Nobody is left to be told.
        let _ = self.over(RESTORE_ABORT);
    }
}

impl Held {
    /// Where the device of a session begins in what is opened, in bytes.
    pub(super) fn base(&self, header: &Header) -> u64 {
        if self.target.is_image() {
            header.loop_offset
        } else {
            0
        }
    }
}

/// The past content of a device, from the sessions' data.
pub(super) struct Past {
    pub(super) extents: Vec<Extent>,
    sessions: Vec<Session>,
    dats: RefCell<Dats>,
}

impl Past {
    /// Lays the past over `buf`, which holds the device from `start` on.
    pub(super) fn overlay(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        let mut dats = self.dats.borrow_mut();
        for e in plan::within(&self.extents, start, start + buf.len() as u64) {
            // Inside `buf`, so it fits a usize.
            let from = (e.start - start) as usize;
            let part = &mut buf[from..from + e.len as usize];
            match e.source {
                Source::Zero => part.fill(0),
                Source::Dat { session, offset } => {
                    let owner = &self.sessions[session];
                    dats.of(session, owner)?.read_exact_at(part, offset).map_err(|e| {
                        let name = text::escape(&owner.dir);
                        let mut damage = Error::io(format_args!("session {name} is damaged"), &e);
                        damage.kind = Kind::Verification;
                        damage
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Whether it has all of a piece of the device.
    pub(super) fn covers(&self, start: u64, len: u64) -> bool {
        plan::within(&self.extents, start, start + len).map(|e| e.len).sum::<u64>() == len
    }
}

impl Member {
    /// Checks all sessions of a device and composes its past from them.
    pub(super) fn load(
        choice: Choice,
        held: Held,
        breaks: &[(usize, Break)],
        gap_now: Option<Break>,
        accept: Accept,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<(Self, DevicePlan)> {
        let Choice { mut chain, from, .. } = choice;
        let sessions: Vec<Session> = chain.sessions.drain(from..).collect();
        let (Some(first), Some(newest)) = (sessions.first(), sessions.last()) else {
            return Err(Error::other("the chain is empty"));
        };
        let mut model = Box::new(first.header.clone());
        if first.original.is_some() {
            // Nobody has recorded it.
            model.device_bytes = held.target.bytes(&held.opened.file, &model)?;
        }
        let (mut past, mut steps) = (Vec::new(), Vec::new());
        for (i, session) in sessions.iter().enumerate() {
            let checked = if accept.loss {
                session.check_past_slot(false, progress, stop)?
            } else {
                session.check(false, progress, stop)?
            };
            let extents = plan::at_point(&checked.runs, i, 0);
            past = plan::underlay(&past, &extents);
            let gap = breaks.iter().find(|(place, _)| *place == from + i).map(|(_, b)| *b);
            steps.push(Step {
                name: text::lossy(&session.dir),
                session_id: text::hex(&session.header.session_id),
                kind: session.header.kind.as_str(),
                state: session.view(false).as_str(),
                start: text::rfc3339(session.header.start_ns),
                bytes: checked.bytes,
                torn: checked.torn,
                gap_before: word(gap),
            });
        }
        steps.reverse();
        if first.original.is_none() {
            // What lies behind the end that the device had then was not part of it.
            past = plan::cut(past, model.device_bytes);
        }
        if past.last().is_some_and(|e| e.end() > model.device_bytes) {
            return Err(refused(
                format!(
                    "{} has {} bytes, and the sessions have content from beyond",
                    text::path(&held.target.path),
                    model.device_bytes
                ),
                "it is another device, or another partition of it",
            ));
        }
        let plan = DevicePlan {
            device: text::lossy(held.target.path.as_os_str().as_bytes()),
            device_bytes: model.device_bytes,
            session: text::lossy(&first.dir),
            session_id: text::hex(&model.session_id),
            start: text::rfc3339(model.start_ns),
            chain: steps,
            ground: chain.grounds[from].as_str(),
            extents: past.len() as u64,
            bytes_covered: plan::total(&past),
            bytes_equal: 0,
            bytes_to_write: 0,
            writes: 0,
            undo_bytes: 0,
            gap_now: word(gap_now),
        };
        let member = Self {
            base: held.base(&model),
            newest_id: newest.header.session_id,
            newest_name: newest.header.name().to_vec(),
            newest_seq: newest.header.chain_seq,
            chunk: sessions.iter().map(|s| s.header.chunk_size).min().unwrap_or(RUN_MAX),
            chain: sessions.iter().map(|s| s.header.session_id).collect(),
            target: held.target,
            opened: held.opened,
            guard: held.guard,
            past: Past { extents: past, sessions, dats: RefCell::new(Dats::new()) },
            batches: Vec::new(),
            model,
            gap_now,
        };
        Ok((member, plan))
    }

    /// The sessions that are taken back, oldest first.
    pub(super) fn sessions(&self) -> &[Session] {
        &self.past.sessions
    }

    /// Reads the device from byte `start` on.
    pub(super) fn read_device(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        self.opened
            .file
            .read_exact_at(buf, self.base + start)
            .map_err(|e| device_error("read", &self.target, start, &e))
    }

    /// `pieces` (start and length, in bytes), of which the next ones are already
    /// being read from the device.
    pub(super) fn read_ahead<I>(&self, pieces: I) -> ReadAhead<'_, I>
    where
        I: Iterator<Item = (u64, u64)> + Clone,
    {
        ReadAhead::new(&self.opened.file, self.base, pieces)
    }

    /// What will be written, of which the next pieces are already being read.
    pub(super) fn batches_read_ahead(&self) -> impl Iterator<Item = &Batch> {
        let pieces = self.read_ahead(self.batches.iter().map(|b| (b.start, b.len)));
        self.batches.iter().zip(pieces).map(|(batch, _)| batch)
    }

    /// The past of a piece of the device: `buf` gets what it shall hold.
    pub(super) fn read_past(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        if !self.past.covers(start, buf.len() as u64) {
            self.read_device(start, buf)?;
        }
        self.past.overlay(start, buf)
    }

    /// The pieces that have to be looked at: whole chunks, as long as they are
    /// contiguous.
    pub(super) fn spans(&self) -> Vec<(u64, u64)> {
        let chunk = u64::from(self.chunk);
        let mut spans: Vec<(u64, u64)> = Vec::new();
        for e in &self.past.extents {
            let start = e.start / chunk * chunk;
            let end = e.end().next_multiple_of(chunk).min(self.model.device_bytes);
            match spans.last_mut() {
                Some((_, last)) if *last >= start => *last = end.max(*last),
                _ => spans.push((start, end)),
            }
        }
        spans
    }

    /// How many bytes [`Member::compare`] looks at.
    pub(super) fn spanned(&self) -> u64 {
        self.spans().iter().map(|(start, end)| end - start).sum()
    }

    /// Finds what differs from the past, in pieces of a chunk.
    pub(super) fn compare(
        &mut self,
        plan: &mut DevicePlan,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<()> {
        let unit = self.chunk as usize;
        let mut batches: Vec<Batch> = Vec::new();
        let (mut now, mut then) = (vec![0; BATCH as usize], vec![0; BATCH as usize]);
        let mut looked_at = 0;
        let spans = self.spans();
        let pieces = spans.iter().flat_map(|&(start, end)| {
            (start..end).step_by(BATCH as usize).map(move |at| (at, (end - at).min(BATCH)))
        });
        for (at, len) in self.read_ahead(pieces) {
            stop.check()?;
            let (now, then) = (&mut now[..len as usize], &mut then[..len as usize]);
            self.read_device(at, now)?;
            then.copy_from_slice(now);
            self.past.overlay(at, then)?;
            let chunks = now.chunks(unit).zip(then.chunks(unit));
            for (i, (_, then)) in chunks.enumerate().filter(|(_, (a, b))| a != b) {
                push(&mut batches, at + (i * unit) as u64, then);
            }
            progress.advance(len);
            looked_at += len;
        }
        self.set_batches(batches, plan, looked_at);
        Ok(())
    }

    pub(super) fn set_batches(
        &mut self,
        batches: Vec<Batch>,
        plan: &mut DevicePlan,
        looked_at: u64,
    ) {
        plan.bytes_to_write = batches.iter().map(|b| b.len).sum();
        plan.bytes_equal = looked_at - plan.bytes_to_write;
        plan.writes = batches.len() as u64;
        self.batches = batches;
    }
}

/// Adds a piece to be written, joined to the last one where it can be.
pub(super) fn push(batches: &mut Vec<Batch>, start: u64, content: &[u8]) {
    let len = content.len() as u64;
    match batches.last_mut() {
        Some(b) if b.start + b.len == start && b.len + len <= BATCH => {
            b.len += len;
            b.crc = crc32c::crc32c_append(b.crc, content);
        }
        _ => batches.push(Batch { start, len, crc: crc32c::crc32c(content) }),
    }
}
