// SPDX-License-Identifier: GPL-2.0

//! Doing a restore that was planned.

use bdsnap_abi::format::{
    Features, Gap, Id, Kind as SessionKind, Sample, State, Tail, DEV_IMAGE, DEV_PARTITION,
    HEAD_LEN, NO_ID, SAMPLES_MAX, UNKNOWN,
};
use bdsnap_abi::ioctl::{RESTORE_ABORT, RESTORE_END};

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::journal::{self, Device, Journal, Line, Record, Stage, Undo};
use super::member::{Batch, Member, BATCH};
use super::{Outcome, Prepared};
use crate::chain::Break;
use crate::device::device_error;
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::identity::Recognised;
use crate::module::said;
use crate::progress::{Progress, Stop};
use crate::store::Store;
use crate::text;
use crate::writer::{Head, SessionWriter};

/// So much is written before the device is told to begin with it, in bytes.
const WINDOW: u64 = 8 << 20;

impl Prepared<'_> {
    /// Does it.
    ///
    /// # Errors
    ///
    /// [`Kind::Interrupted`] if stopped; the message says how to go on. After
    /// any error the devices are as they were, or the message says that they
    /// are partly restored.
    pub fn apply(mut self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<Outcome> {
        let partial = self.plan.partial;
        let resumed = self.resumed.is_some();
        if self.plan.bytes_to_write > 0 {
            // Saved for undo (unless it goes on), written, read back.
            let undo = if resumed { 0 } else { self.plan.undo_bytes };
            progress.plan(undo.saturating_add(self.plan.bytes_to_write.saturating_mul(2)));
        }
        let journal = match self.resumed.take() {
            Some(journal) => {
                self.set_tails(&journal.record, progress)?;
                journal
            }
            None => {
                if self.members.iter().all(|m| m.batches.is_empty()) {
                    self.give_up_others(&self.sessions())?;
                    return Ok(Outcome { partial, ..Outcome::default() });
                }
                // What is right already keeps its chain as it is.
                self.members.retain(|m| !m.batches.is_empty());
                self.begin(progress, stop)?
            }
        };
        let mut written = 0;
        let result =
            self.write(progress, stop, &mut written).and_then(|()| self.check(progress, stop));
        let settled = self.settle(&journal.record);
        progress.step("settled");
        let others_wrote: Vec<String> = self
            .members
            .iter()
            .filter(|m| m.guard.others)
            .map(|m| text::lossy(m.target.path.as_os_str().as_encoded_bytes()))
            .collect();
        let undo_sessions: Vec<String> = journal
            .record
            .devices
            .iter()
            .filter_map(|d| Some(d.undo.as_ref()?.name.clone()))
            .collect();
        let (uid, login_uid) = journal::who();
        let mut line = Line {
            time: text::rfc3339(fsutil::now_ns()),
            action: if resumed { "resume" } else { "restore" },
            session: self.plan.session.clone(),
            session_id: self.plan.session_id.clone(),
            devices: journal.record.devices.iter().map(|d| d.device.clone()).collect(),
            result: "done",
            error: None,
            bytes_written: written,
            undo_sessions: undo_sessions.clone(),
            accepted: self.plan.accepted.clone(),
            partial,
            others_wrote: others_wrote.clone(),
            uid,
            login_uid,
        };
        match result {
            Ok(()) => {
                journal::remember(self.store, &line)?;
                progress.step("history written");
                self.give_up_others(&journal.record.sessions)?;
                journal.remove()?;
                settled?;
                Ok(Outcome { bytes_written: written, undo_sessions, partial, others_wrote })
            }
            Err(mut e) => {
                line.result = if e.kind == Kind::Interrupted { "interrupted" } else { "failed" };
                line.error = Some(e.message.clone());
                // The failure itself is more worth telling than this one.
                let remembered = journal::remember(self.store, &line);
                let names: Vec<String> =
                    self.members.iter().map(|m| text::path(&m.target.path)).collect();
                e.message = format!(
                    "{}; {} {} partly restored ({} of {} written)",
                    e.message,
                    names.join(", "),
                    if names.len() == 1 { "is" } else { "are" },
                    text::size(written),
                    text::size(self.plan.bytes_to_write)
                );
                if !others_wrote.is_empty() {
                    let names: Vec<String> =
                        others_wrote.iter().map(|n| text::escape(n.as_bytes())).collect();
                    e.message += &format!("; others wrote to {} meanwhile", names.join(", "));
                }
                for also in [settled.err(), remembered.err()].into_iter().flatten() {
                    e.message = format!("{}; {also}", e.message);
                }
                let device = text::path(&self.members[0].target.path);
                e.hint = Some(if undo_sessions.is_empty() {
                    format!("'bdsnap-restore {device} --resume --accept-gap' goes on")
                } else {
                    format!(
                        "'bdsnap-restore {device} --resume' goes on, \
                         'bdsnap-restore {device} --undo' goes back"
                    )
                });
                Err(e)
            }
        }
    }

    /// All that comes before the first write: journal, undo sessions, tails.
    fn begin(&self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<Journal> {
        let device = |m: &Member| Device {
            device: text::lossy(m.target.path.as_os_str().as_encoded_bytes()),
            chain: m.chain.iter().map(|id| text::hex(id)).collect(),
            undo: None,
        };
        let record = Record {
            version: 1,
            stage: Stage::Saving,
            started_ns: fsutil::now_ns(),
            session: self.plan.session.clone(),
            session_id: self.plan.session_id.clone(),
            accepted: self.plan.accepted.iter().map(|s| (*s).to_owned()).collect(),
            sessions: self.sessions(),
            devices: self.members.iter().map(device).collect(),
        };
        let mut journal = Journal::create(self.store, record)?;
        progress.step("journal made");
        let mut tails = Vec::new();
        let begun = self.begin_in(&mut journal, &mut tails, progress, stop);
        if let Err(e) = begun {
            // Nothing was overwritten, and then nothing shall have happened.
            for (name, tail) in tails {
                self.store.set_tail(name, &tail)?;
            }
            journal.discard(self.store)?;
            return Err(e);
        }
        self.give_up_others(&journal.record.sessions)?;
        Ok(journal)
    }

    /// All sessions that are taken back.
    fn sessions(&self) -> Vec<String> {
        let chains = self.plan.devices.iter().flat_map(|d| &d.chain);
        chains.map(|step| step.session_id.clone()).collect()
    }

    /// Forgets interrupted restores of these devices: this one takes their
    /// place. One that is of other devices, too, stays.
    fn give_up_others(&self, ours: &[String]) -> Result<()> {
        for other in journal::interrupted(self.store).unwrap_or_default() {
            if other.record.devices.iter().all(|d| d.concerns(ours)) {
                other.remove()?;
            }
        }
        Ok(())
    }

    /// `tails` get the chains' tails that were replaced.
    fn begin_in<'m>(
        &'m self,
        journal: &mut Journal,
        tails: &mut Vec<(&'m [u8], Tail)>,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<()> {
        if self.undo {
            self.save_undo(journal, progress, stop)?;
        }
        journal.record.stage = Stage::Writing;
        journal.save()?;
        progress.step("journal says writing");
        journal.place(self.store, progress)?;
        for member in &self.members {
            if let Some(tail) = self.store.tail(&member.newest_name)? {
                tails.push((&member.newest_name, tail));
            }
        }
        self.set_tails(&journal.record, progress)
    }

    /// Says in the tails that nobody knows what comes now: whoever is cut from
    /// here on left a gap.
    fn set_tails(&self, record: &Record, progress: &dyn Progress) -> Result<()> {
        for (member, device) in self.members.iter().zip(&record.devices) {
            member.set_tail(self.store, device.undo.as_ref(), NO_ID, None, &[])?;
            progress.step("tail set");
        }
        Ok(())
    }

    /// Saves what will be overwritten as sessions of their own.
    fn save_undo(
        &self,
        journal: &mut Journal,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<()> {
        let needed = self.plan.undo_bytes.saturating_add(4 << 20);
        let free = self.store.free_bytes()?;
        if free < needed {
            return Err(Error::refused(format!(
                "the store has no room for the undo session: {} needed, {} free",
                text::size(needed),
                text::size(free)
            ))
            .hint("make room, or do without it: --no-undo"));
        }
        let group = if self.members.len() > 1 { fsutil::random_id()? } else { NO_ID };
        progress.phase("save for undo", self.plan.undo_bytes);
        for (i, member) in self.members.iter().enumerate() {
            let staging = journal.staging(i);
            let (session_id, chain_seq) =
                member.save_undo(self.store, group, &staging, progress, stop)?;
            progress.step("undo session made");
            journal.record.devices[i].undo = Some(Undo {
                name: journal::free_name(self.store, &staging)?,
                session_id: text::hex(&session_id),
                chain_seq,
            });
        }
        progress.finish();
        Ok(())
    }

    /// Writes the past, and makes it durable.
    fn write(&self, progress: &dyn Progress, stop: &Stop<'_>, written: &mut u64) -> Result<()> {
        progress.phase("restore", self.plan.bytes_to_write);
        let mut result = Ok(());
        for member in &self.members {
            result = member.write(progress, stop, written);
            // Also after an error: what is said to be written shall be.
            let synced = member.opened.file.sync_all().on("flush", &member.target.path);
            result = result.and(synced);
            if result.is_err() {
                break;
            }
        }
        progress.finish();
        result
    }

    /// Reads back what was written.
    fn check(&self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<()> {
        progress.phase("check", self.plan.bytes_to_write);
        for member in &self.members {
            member.opened.drop_caches().on("flush", &member.target.path)?;
            member.check(progress, stop)?;
        }
        progress.finish();
        Ok(())
    }

    /// Brings the chains' tails up to date and tells the module.
    fn settle(&mut self, record: &Record) -> Result<()> {
        let mut result = Ok(());
        for (member, device) in self.members.iter_mut().zip(&record.devices) {
            // One that fails is a gap; the others need not be.
            result = result.and(member.settle(self.store, device.undo.as_ref()));
        }
        result
    }
}

impl Member {
    /// Saves what will be overwritten as a session in the directory `path`.
    fn save_undo(
        &self,
        store: &Store,
        group_id: Id,
        path: &std::path::Path,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<(Id, u64)> {
        let mut header = (*self.model).clone();
        header.version = store.version();
        // What the model says of itself and of what was on the device is not said of this one.
        header.features = Features::NONE;
        header.disk_sectors = UNKNOWN;
        let recognised = Recognised::of(&self.target.path).unwrap_or_default();
        (header.diskseq, header.partuuid) = (recognised.diskseq, recognised.partuuid);
        if !header.set_serial(&recognised.serial) {
            return Err(Error::other("the device's serial number is too long"));
        }
        (header.merged_id, header.merged_seq) = (NO_ID, 0);
        header.data_id = fsutil::random_id()?;
        header.restored_moment = crate::map::start_of(&self.model).moment_id;
        header.session_id = fsutil::random_id()?;
        header.store_id = store.id();
        // Nothing is linked to sessions of the original module.
        header.prev_session_id =
            if self.gap_now == Some(Break::Unlinked) { NO_ID } else { self.newest_id };
        header.group_id = group_id;
        header.restored_id = self.model.session_id;
        header.boot_id = fsutil::boot_id();
        header.load_id = NO_ID;
        header.chain_seq = store.next_chain_seq(self.newest_seq)?;
        header.start_ns = fsutil::now_ns();
        header.start_boot_ns = fsutil::boot_ns();
        header.chunk_size = self.chunk;
        header.logical_block_size = self.opened.logical_block_size();
        header.kind = SessionKind::Undo;
        header.durability = bdsnap_abi::format::Durability::Strict;
        header.gap_before = self.gap_now.map_or(Gap::None, Break::as_gap);
        header.dev_flags &= DEV_IMAGE | DEV_PARTITION;
        let head = self.head()?;
        header.head_sha256 = head.sha256;
        (header.fs_uuid, header.fs_writes) = (head.fs.uuid, head.fs.writes);
        if !header.set_name(&self.newest_name) {
            return Err(Error::other("the device's name is too long"));
        }
        let (session_id, chain_seq) = (header.session_id, header.chain_seq);
        let mut writer = SessionWriter::create_at(path, header)?;
        let mut buf = vec![0; BATCH as usize];
        for batch in self.batches_read_ahead() {
            stop.check()?;
            let buf = &mut buf[..batch.len as usize];
            self.read_device(batch.start, buf)?;
            writer.run(batch.start / bdsnap_abi::SECTOR, buf)?;
            progress.advance(batch.len);
            progress.step("undo run");
        }
        writer.finish(State::Closed, &head)?;
        Ok((session_id, chain_seq))
    }

    fn write(&self, progress: &dyn Progress, stop: &Stop<'_>, written: &mut u64) -> Result<()> {
        if !self.batches.is_empty() {
            self.guard.write()?;
        }
        let mut buf = vec![0; BATCH as usize];
        let mut window = Vec::new();
        for batch in &self.batches {
            stop.check()?;
            let buf = &mut buf[..batch.len as usize];
            // Compared with the plan's checksum when it is read back, not here a second time: whoever
            // changes the store now is found out before the restore is called done.
            self.read_past(batch.start, buf)?;
            let at = self.base + batch.start;
            self.opened
                .file
                .write_all_at(buf, at)
                .map_err(|e| device_error("write", &self.target, batch.start, &e))?;
            window.push((at, batch.len));
            *written += batch.len;
            progress.advance(batch.len);
            progress.step("written");
            if window.iter().map(|(_, len)| len).sum::<u64>() >= WINDOW {
                self.hurry(&mut window);
            }
        }
        Ok(())
    }

    /// Makes the device begin with what was written, so that not all is left
    /// for the flush at the end.
    fn hurry(&self, window: &mut Vec<(u64, u64)>) {
        for (at, len) in window.drain(..) {
            // Errors show at the flush.
            let _ = crate::sys::start_writing(self.opened.file.as_fd(), at, len);
        }
    }

    fn check(&self, progress: &dyn Progress, stop: &Stop<'_>) -> Result<()> {
        let mut buf = vec![0; BATCH as usize];
        for batch in self.batches_read_ahead() {
            stop.check()?;
            let buf = &mut buf[..batch.len as usize];
            self.read_device(batch.start, buf)?;
            if crc32c::crc32c(buf) != batch.crc {
                return Err(self.unlike(batch, buf));
            }
            progress.advance(batch.len);
        }
        Ok(())
    }

    /// Why the device does not hold what was planned. `buf`, of the piece's length, is overwritten.
    fn unlike(&self, batch: &Batch, buf: &mut [u8]) -> Error {
        match self.read_past(batch.start, buf) {
            Err(e) => e,
            Ok(()) if crc32c::crc32c(buf) == batch.crc => Error::other(format!(
                "{} does not hold what was written at byte {}",
                text::path(&self.target.path),
                batch.start
            ))
            .hint("the device may be failing; see the kernel log"),
            Ok(()) => Error::new(
                Kind::Verification,
                "a session's data, or the device, changed while it was restored",
            ),
        }
    }

    fn settle(&mut self, store: &Store, undo: Option<&Undo>) -> Result<()> {
        if undo.is_none() || self.guard.spoiled.get() {
            // The tail says "unknown" already, and so must the module.
            return self.guard.over(RESTORE_ABORT).map_err(|e| said("telling the module", &e));
        }
        let head = self.head()?;
        let mut samples = Vec::new();
        let step = self.batches.len().div_ceil(SAMPLES_MAX).max(1);
        for batch in self.batches.iter().step_by(step) {
            let mut buf = vec![0; batch.len.min(u64::from(self.chunk)) as usize];
            self.read_device(batch.start, &mut buf)?;
            samples.push(Sample {
                sector: batch.start / bdsnap_abi::SECTOR,
                bytes: buf.len() as u32,
                crc: crc32c::crc32c(&buf),
            });
        }
        self.set_tail(store, undo, self.guard.load_id, Some(&head), &samples)?;
        if self.batches.first().is_some_and(|b| b.start < 64 * 512) {
            self.opened.reread_partitions();
        }
        self.guard
            .over(RESTORE_END)
            .map_err(|e| said("the restore is complete, but the module could not be told", &e))
    }

    fn set_tail(
        &self,
        store: &Store,
        undo: Option<&Undo>,
        load_id: Id,
        head: Option<&Head>,
        samples: &[Sample],
    ) -> Result<()> {
        let mut tail = Tail::new();
        tail.version = store.version();
        (tail.session_id, tail.chain_seq) = match undo {
            Some(u) => {
                let id = text::parse_id(&u.session_id);
                (id.ok_or_else(|| Error::other("not an identity"))?, u.chain_seq)
            }
            None if self.gap_now == Some(Break::Unlinked) => (NO_ID, self.newest_seq),
            None => (self.newest_id, self.newest_seq),
        };
        tail.boot_id = fsutil::boot_id();
        tail.load_id = load_id;
        tail.device_bytes = self.model.device_bytes;
        if self.target.is_image() {
            let meta = self.opened.file.metadata().on("examine", &self.target.path)?;
            tail.image_mtime_ns = fsutil::mtime_ns(&meta);
        }
        if let Some(head) = head {
            tail.head_sha256 = head.sha256;
            tail.fs_writes = head.fs.writes;
        }
        tail.link = if load_id == NO_ID { Gap::Unknown } else { Gap::None };
        tail.diskseq = Recognised::of(&self.target.path).unwrap_or_default().diskseq;
        tail.chunk_size = self.chunk;
        for sample in samples {
            tail.push(*sample);
        }
        store.set_tail(&self.newest_name, &tail)
    }

    /// What the device's beginning says.
    fn head(&self) -> Result<Head> {
        let len = self.model.device_bytes.min(HEAD_LEN);
        let mut buf = vec![0; len as usize];
        self.read_device(0, &mut buf)?;
        Ok(Head::of(&buf))
    }
}
