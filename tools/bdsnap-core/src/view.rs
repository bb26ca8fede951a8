// SPDX-License-Identifier: GPL-2.0

//! A device as it was, to be read anywhere: what sessions saved, and for the
//! rest the device itself. Nothing is copied, and nothing is read before it
//! is asked for; each run is compared with its checksum at its first use.
//!
//! There are two ways to read the device:
//!
//! * *Alone*: it is opened so that nobody can mount it. It does not change.
//! * *Live*: somebody has it mounted, and the module records in `strict`. A
//!   write then reaches the device only after the old content is in
//!   `blocks.map`. So the device is read first; after that the module is asked
//!   whether it still records, and `blocks.map` is looked at: what it has got
//!   by then comes from the store, the rest had not been overwritten when it
//!   was read. In `async` the order is another one, so that is refused.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use bdsnap_abi::format::{Durability, Header, Id, Record, Run, State, MAP_NAME};
use bdsnap_abi::ioctl::{ENTRY_RECORDING, ENTRY_RESTORING, ENTRY_WRITTEN, RESTORE_ABORT};

use crate::chain::{self, Chain, Selector};
use crate::device::{device_error, Matcher, Opened, Purpose, Target, What};
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::module::{self, Control, ModuleStatus, Registration};
use crate::plan::{self, Extent, Source};
use crate::restore::Accept;
use crate::session::{Restorable, Session};
use crate::store::Store;
use crate::text;

/// Direct reads are aligned so; no device asks for more.
const ALIGN: usize = 4096;

/// The module, as a view asks it.
pub type Module = Box<dyn Control + Send + Sync>;

/// A session's part of a view.
struct Part {
    session: Session,
    dat: Option<File>,
    /// In the order of `blocks.dat`.
    runs: Vec<Run>,
    verified: Vec<bool>,
    /// Records read so far, of one that is being recorded.
    records: u64,
    live: bool,
    _lock: File,
}

/// How the device is read.
enum Base {
    /// Nobody else can change it.
    Alone(Opened),
    /// Somebody does.
    Live { file: File, module: Module, direct: bool },
}

/// What a view is of.
#[derive(Debug, Clone)]
pub struct About {
    /// Name of the session to whose start it goes back.
    pub session: String,
    /// That start, ns since 1970.
    pub start_ns: u64,
    /// The device's node or image.
    pub device: String,
    /// It is in use meanwhile.
    pub live: bool,
    /// Something may be missing or have changed unseen, and that was accepted.
    pub partial: bool,
    /// Remarks.
    pub notes: Vec<String>,
}

/// A device as it was.
pub struct View {
    /// What it is of.
    pub about: About,
    store: Store,
    target: Target,
    header: Box<Header>,
    parts: Vec<Part>,
    extents: Vec<Extent>,
    base: Arc<Base>,
    offset: u64,
    /// Why nothing more can be said of the past.
    lost: Option<String>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("about", &self.about).finish_non_exhaustive()
    }
}

/// Which view is wanted.
#[derive(Debug)]
pub struct Request<'a> {
    /// From where. It is to be locked until the view is open.
    pub store: &'a Store,
    /// Which device.
    pub target: &'a Target,
    /// The start of which session.
    pub selector: Selector,
    /// Overrides.
    pub accept: Accept,
}

/// The target of a session: the device by its recorded name.
pub fn target_of(session: &Session) -> Result<Target> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::path::Path::new(std::ffi::OsStr::from_bytes(session.header.name()));
    Target::find(name)
}

fn entry_of<'a>(status: &'a ModuleStatus, target: &Target) -> Option<&'a Registration> {
    let mut matcher = Matcher::new(target);
    status.entries.iter().find(|r| matcher.ground(&r.name).is_some())
}

impl View {
    /// Opens a view.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] and [`Kind::Usage`] for the session,
    /// [`Kind::Refused`] with the reason.
    pub fn open(request: &Request<'_>, module: Option<Module>) -> Result<Self> {
        let Request { store, target, accept, .. } = *request;
        if let Some(module) = &module {
            // What was written raw a moment ago is part of the chain.
            module.end_raw()?;
        }
        let status = module.as_ref().map(|m| m.status()).transpose()?;
        let recording = status
            .as_ref()
            .and_then(|s| entry_of(s, target))
            .is_some_and(|r| r.entry.flags & ENTRY_RECORDING != 0);
        let (base, watch) = if recording {
            let module = module.ok_or_else(|| Error::other("no module"))?;
            (live(target, module)?, None)
        } else {
            let opened = Opened::open(target, Purpose::Read)?;
            opened.drop_caches().on("flush", &target.path)?;
            let watch = match &module {
                // It has nothing to say after that: nothing is written.
                Some(m) => {
                    use std::os::unix::ffi::OsStrExt;
                    let name = target.path.as_os_str().as_bytes();
                    let watch = m.restore_begin(name)?;
                    m.restore_over(RESTORE_ABORT, name)
                        .map_err(|e| module::said("telling the module", &e))?;
                    Some(watch)
                }
                None => None,
            };
            (Base::Alone(opened), watch)
        };
        // Only now, or a session that ended in between would be missing.
        let mut chain = Chain::of(store, target, &store.items()?);
        chain.admit(&request.selector);
        let from = chain.select(&request.selector)?;
        let mut reasons: Vec<String> = chain
            .breaks(from)
            .into_iter()
            .map(|(i, b)| format!("before {}: {}", text::escape(&chain.sessions[i].dir), b.text()))
            .collect();
        if !recording {
            let newest = chain.newest().map_or([0; 16], |s| *s.header.last_id());
            if let Some(b) = chain::link_to_now(&newest, watch.as_ref()) {
                reasons.push(format!("since the newest session: {}", b.text()));
            }
        }
        let mut notes = Vec::new();
        let mut partial = !reasons.is_empty();
        if !reasons.is_empty() {
            let message = format!("the chain has a gap: {}", reasons.join("; "));
            if !accept.gap {
                return Err(Error::refused(message)
                    .hint("--accept-gap shows what there is; it may be a mixture of times"));
            }
            notes.push(message);
        }
        let sessions: Vec<Session> = chain.sessions.drain(from..).collect();
        for s in &sessions {
            if chain::is_live(s, status.as_ref()) {
                continue;
            }
            match s.restorable(false) {
                Restorable::Yes(_) => {}
                Restorable::No(why) | Restorable::Lossy(why) => {
                    let message = format!("{}: {why}", text::escape(&s.dir));
                    if !accept.loss {
                        return Err(
                            Error::refused(message).hint("--accept-loss shows what there is")
                        );
                    }
                    partial = true;
                    notes.push(message);
                }
            }
        }
        let first = sessions.first().ok_or_else(|| Error::other("the chain is empty"))?;
        let header = Box::new(first.header.clone());
        for s in &sessions {
            let shape = |h: &Header| (h.device_bytes, h.loop_offset, h.loop_sizelimit);
            if shape(&s.header) != shape(&header) {
                return Err(Error::refused(format!(
                    "the device had another size or offset in {}",
                    text::escape(&s.dir)
                )));
            }
        }
        let about = About {
            session: text::lossy(&first.dir),
            start_ns: header.start_ns,
            device: text::lossy({
                use std::os::unix::ffi::OsStrExt;
                target.path.as_os_str().as_bytes()
            }),
            live: recording,
            partial,
            notes,
        };
        let offset = if target.is_image() { header.loop_offset } else { 0 };
        let mut view = Self {
            about,
            store: store.clone(),
            target: target.clone(),
            header,
            parts: Vec::new(),
            extents: Vec::new(),
            base: Arc::new(base),
            offset,
            lost: None,
        };
        for s in sessions {
            let live = chain::is_live(&s, status.as_ref());
            view.add(s, live)?;
        }
        if recording {
            view.refresh()?;
        }
        Ok(view)
    }

    /// The device at the end of the session: the start of the next one, or
    /// now.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] while the session is being recorded.
    pub fn after(&self) -> Result<Self> {
        if self.parts.first().is_some_and(|p| p.live) {
            return Err(Error::refused("the session has no end yet: it is being recorded")
                .hint("unmount the device first"));
        }
        let mut view = Self {
            about: self.about.clone(),
            store: self.store.clone(),
            target: self.target.clone(),
            header: self.header.clone(),
            parts: Vec::new(),
            extents: Vec::new(),
            base: Arc::clone(&self.base),
            offset: self.offset,
            lost: None,
        };
        for p in self.parts.iter().skip(1) {
            let s = Session::read(&p.session.path, &p.session.dir).map_err(Error::other)?;
            view.add(s, p.live)?;
        }
        view.refresh()?;
        Ok(view)
    }

    /// Size of the device in bytes.
    pub fn bytes(&self) -> u64 {
        self.header.device_bytes
    }

    /// The pieces of the device that come from the store.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    fn add(&mut self, session: Session, live: bool) -> Result<()> {
        if live && session.header.durability != Durability::Strict {
            return Err(Error::refused(format!(
                "{} is being recorded in async: what reached the device cannot be told from what \
                 did not",
                text::escape(&session.dir)
            ))
            .hint("unmount the device first, or protect it with --durability strict"));
        }
        let lock = session.lock_shared()?;
        let mut part = Part {
            session,
            dat: None,
            runs: Vec::new(),
            verified: Vec::new(),
            records: 0,
            live,
            _lock: lock,
        };
        let place = self.parts.len();
        if !live {
            let (mut runs, sure) = part.session.runs(false)?;
            if !sure {
                let stop = crate::progress::Stop::never();
                runs = part.session.check(false, &crate::progress::Silent, &stop)?.runs;
            }
            let newer = plan::at_point(&runs, place, 0);
            self.extents = plan::underlay(&self.extents, &newer);
            runs.retain(|r| !r.is_zero());
            runs.sort_unstable_by_key(|r| r.offset);
            part.verified = vec![false; runs.len()];
            part.runs = runs;
        }
        self.parts.push(part);
        Ok(())
    }

    /// Reads `buf` from byte `start` on.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] if that is not inside the device.
    pub fn read(&mut self, start: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(why) = &self.lost {
            return Err(Error::refused(why.clone()));
        }
        let end = start
            .checked_add(buf.len() as u64)
            .filter(|&end| end <= self.bytes())
            .ok_or_else(|| Error::new(Kind::Usage, "beyond the end of the device"))?;
        // Holes first, from the device.
        let mut at = start;
        let mut holes = Vec::new();
        for e in plan::within(&self.extents, start, end) {
            if e.start > at {
                holes.push((at, e.start));
            }
            at = e.end();
        }
        if at < end {
            holes.push((at, end));
        }
        for &(from, to) in &holes {
            let part = &mut buf[(from - start) as usize..(to - start) as usize];
            self.read_device(from, part)?;
        }
        if !holes.is_empty() {
            self.refresh()?;
        }
        // Then what is saved, also what was saved just now.
        let saved: Vec<Extent> = plan::within(&self.extents, start, end).collect();
        for e in saved {
            let part = &mut buf[(e.start - start) as usize..(e.end() - start) as usize];
            match e.source {
                Source::Zero => part.fill(0),
                Source::Dat { session, offset } => self.parts[session].read(offset, part)?,
            }
        }
        Ok(())
    }

    fn read_device(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        let at = start + self.offset;
        let done = match &*self.base {
            Base::Alone(opened) => opened.file.read_exact_at(buf, at),
            Base::Live { file, direct: false, .. } => file.read_exact_at(buf, at),
            Base::Live { file, direct: true, .. } => read_direct(file, buf, at),
        };
        done.map_err(|e| device_error("read", &self.target, start, &e))
    }

    /// Learns what has been saved since the last time.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if the past can no longer be told; then for good.
    fn refresh(&mut self) -> Result<()> {
        let Base::Live { module, .. } = &*self.base else { return Ok(()) };
        let status = module.status()?;
        let result = self.follow(&status);
        if let Err(e) = &result {
            if e.kind == Kind::Refused {
                self.lost = Some(e.message.clone());
            }
        }
        result
    }

    fn follow(&mut self, status: &ModuleStatus) -> Result<()> {
        let lost = |why: &str| Error::refused(format!("the past can no longer be told: {why}"));
        let r =
            entry_of(status, &self.target).ok_or_else(|| lost("the device is not registered"))?;
        let flags = r.entry.flags;
        if r.entry.state != State::Recording as u32 && r.entry.state != State::Closed as u32 {
            return Err(lost("the session is broken or tainted"));
        }
        if flags & ENTRY_RESTORING != 0 {
            return Err(lost("the device is being restored"));
        }
        if flags & ENTRY_WRITTEN != 0 {
            return Err(lost("the device was written outside a session"));
        }
        let known = |id: &Id| self.parts.iter().any(|p| p.session.header.session_id == *id);
        // One that has no directory has overwritten nothing.
        if r.entry.chain_seq != 0 && !known(&r.entry.session_id) {
            let newest = self.parts.last().map_or(0, |p| p.session.header.chain_seq);
            let mut chain = Chain::of(&self.store, &self.target, &self.store.items()?);
            chain.sessions.retain(|s| s.header.chain_seq > newest);
            for s in chain.sessions {
                let before = self.parts.last().map(|p| &p.session.header);
                if chain::link(before, &s.header).is_some() {
                    return Err(lost("there is a gap after the session"));
                }
                let live = status.is_recording(&s.header.session_id);
                if !live && s.status.state != State::Closed {
                    return Err(lost("a later session is not whole"));
                }
                self.add(s, live)?;
            }
            if !self.parts.iter().any(|p| p.session.header.session_id == r.entry.session_id) {
                return Err(lost("the store has no such session"));
            }
        }
        for place in 0..self.parts.len() {
            if self.parts[place].live {
                let newer: Vec<Extent> = self.parts[place]
                    .grow(status)?
                    .iter()
                    .map(|run| Extent::of_run(run, place))
                    .collect();
                // A chunk is in a session once, but may be in an older one.
                for e in newer {
                    self.extents = insert(&self.extents, e);
                }
            }
        }
        Ok(())
    }
}

/// Adds one extent below those that are there. `extents` is in order, and so
/// is the result.
fn insert(extents: &[Extent], new: Extent) -> Vec<Extent> {
    let from = extents.partition_point(|e| e.end() <= new.start);
    let to = extents.partition_point(|e| e.start < new.end());
    let mut out = Vec::with_capacity(extents.len() + 2);
    out.extend_from_slice(&extents[..from]);
    out.extend(plan::underlay(&extents[from..to], &[new]));
    out.extend_from_slice(&extents[to..]);
    out
}

fn live(target: &Target, module: Module) -> Result<Base> {
    let direct = matches!(target.what, What::Block { .. });
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&target.path)
        .on("open", &target.path)?;
    Ok(Base::Live { file, module, direct })
}

/// Reads past the page cache, which need not be what is on the device.
fn read_direct(file: &File, buf: &mut [u8], at: u64) -> io::Result<()> {
    let from = at / ALIGN as u64 * ALIGN as u64;
    let skip = (at - from) as usize;
    let len = (skip + buf.len()).next_multiple_of(ALIGN);
    let mut bounce = vec![0u8; len + ALIGN];
    let pad = bounce.as_ptr().align_offset(ALIGN);
    let aligned = &mut bounce[pad..pad + len];
    let mut done = 0;
    // The end of a device need not be a multiple of what is asked for.
    while done < skip + buf.len() {
        match file.read_at(&mut aligned[done..], from + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buf.copy_from_slice(&aligned[skip..skip + buf.len()]);
    Ok(())
}

impl Part {
    fn damage(&self, what: &str) -> Error {
        let name = text::escape(&self.session.dir);
        Error::new(Kind::Verification, format!("session {name} is damaged: {what}"))
    }

    /// Reads from `blocks.dat`; each run's checksum is compared once.
    fn read(&mut self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let i = self.runs.partition_point(|r| r.offset <= offset).wrapping_sub(1);
            let run = *self.runs.get(i).ok_or_else(|| self.damage("a run is missing"))?;
            let from = offset - run.offset;
            if from >= u64::from(run.bytes) {
                return Err(self.damage("its runs do not cover its data"));
            }
            if self.dat.is_none() {
                self.dat = Some(self.session.open_dat()?);
            }
            let Some(dat) = &self.dat else { return Err(self.damage("no data")) };
            let len = buf.len().min((u64::from(run.bytes) - from) as usize);
            let (now, rest) = buf.split_at_mut(len);
            if self.verified[i] {
                dat.read_exact_at(now, offset).map_err(|e| self.damage(&e.to_string()))?;
            } else {
                let mut whole = vec![0; run.bytes as usize];
                dat.read_exact_at(&mut whole, run.offset)
                    .map_err(|e| self.damage(&e.to_string()))?;
                if crc32c::crc32c(&whole) != run.data_crc {
                    let sector = run.sector;
                    return Err(self.damage(&format!(
                        "the pre-image of sector {sector} does not have its checksum"
                    )));
                }
                now.copy_from_slice(&whole[from as usize..from as usize + len]);
                self.verified[i] = true;
            }
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }

    /// Reads the records that came since the last time.
    fn grow(&mut self, status: &ModuleStatus) -> Result<Vec<Run>> {
        let path = self.session.path.join(MAP_NAME);
        let map = fsutil::open_regular(&path).on("open", &path)?;
        let mut new = Vec::new();
        let (version, id) = (self.session.header.version, self.session.header.session_id);
        let layout = version.layout();
        let mut bytes = vec![0; 4096 * layout.record_len];
        let mut tries = 0;
        'all: loop {
            let at =
                layout.map_bytes(self.records).ok_or_else(|| self.damage("too many records"))?;
            let n = fsutil::read_up_to(&map, &mut bytes, at).on("read", &path)?;
            let whole = n / layout.record_len;
            for record in bytes[..whole * layout.record_len].chunks_exact(layout.record_len) {
                // Zeros into which the next batches come.
                if fsutil::is_zero(record) {
                    break 'all;
                }
                let record = match Record::decode(version, &id, self.records, record) {
                    Ok(record) => record,
                    // It may just be being written.
                    Err(_) if tries < 20 => {
                        tries += 1;
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        continue 'all;
                    }
                    Err(e) => return Err(self.damage(&format!("{MAP_NAME}: {e}"))),
                };
                if let Record::Run(run) = record {
                    run.check(&self.session.header)
                        .map_err(|e| self.damage(&format!("{MAP_NAME}: {e}")))?;
                    if !run.is_zero() {
                        self.runs.push(run);
                        self.verified.push(false);
                    }
                    new.push(run);
                }
                self.records += 1;
            }
            if whole < 4096 {
                break;
            }
        }
        if !status.is_recording(&self.session.header.session_id) {
            // It ended before the module was asked, and said so in the store.
            let now = Session::read(&self.session.path, &self.session.dir)
                .map_err(|why| self.damage(&why))?;
            if now.status.state != State::Closed {
                return Err(Error::refused(
                    "the past can no longer be told: the session is broken or tainted",
                ));
            }
            self.session = now;
            self.live = false;
        }
        Ok(new)
    }
}
