// SPDX-License-Identifier: GPL-2.0

//! A session's directory: what it says about itself, and whether that is true.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bdsnap_abi::format::{
    Features, FormatError, Header, Kind as SessionKind, Layout, Point, Record, Run, State, Status,
    Version, DAT_NAME, GROUP_INCOMPLETE, HEADER_LEN, INCOMPAT_POINTS, INCOMPAT_SORTED, LATE_MEMBER,
    MAP_NAME, RECORD_MAX, RUN_MAX, SLOTS_END,
};

use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::original::Original;
use crate::progress::{Progress, Stop};

/// Where the records of a map begin at the latest.
const HEAD_MAX: usize = SLOTS_END;
/// How much of `blocks.dat` is read at once while it is checked in order.
const WINDOW: usize = 4 << 20;

/// A session whose header and status could be read.
#[derive(Clone)]
pub struct Session {
    /// Name of its directory.
    pub dir: Vec<u8>,
    /// Its directory.
    pub path: PathBuf,
    /// What it is.
    pub header: Header,
    /// Its state on disk.
    pub status: Status,
    /// One of the two status slots is damaged: a newer state may be lost.
    pub slot_damaged: bool,
    /// Length of `blocks.map` in bytes.
    pub map_bytes: u64,
    /// Length of `blocks.dat` in bytes (0 if it is missing).
    pub dat_bytes: u64,
    /// What both take in the store, in bytes.
    pub stored_bytes: u64,
    /// Of the original module: what was made a session of, see
    /// [`Original::session`].
    pub original: Option<Box<Original>>,
    /// Its runs overlap: only with `original`.
    pub(crate) overlaps: bool,
}

/// A session's state as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Being recorded now.
    Recording,
    /// Cut: the module or the machine went away.
    Interrupted,
    /// Ended well.
    Closed,
    /// A pre-image was lost.
    Broken,
    /// Writes that no bio showed may have happened.
    Tainted,
    /// Made by a restore, whole.
    Undo,
    /// Of the original module, which keeps neither state nor checksums.
    Unchecked,
}

impl View {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recording => "recording",
            Self::Interrupted => "interrupted",
            Self::Closed => "closed",
            Self::Broken => "broken",
            Self::Tainted => "tainted",
            Self::Undo => "undo",
            Self::Unchecked => "unchecked",
        }
    }
}

/// Whether a session can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restorable {
    /// Yes; if there is a text, the plan says it.
    Yes(Option<&'static str>),
    /// Only in part, and only if the user accepts the loss; why.
    Lossy(&'static str),
    /// No; why.
    No(&'static str),
}

/// What a check of a session found good.
#[derive(Debug, Default)]
pub struct Checked {
    /// The runs that can be used, by sector and then by tag.
    pub runs: Vec<Run>,
    /// Runs whose data never became durable; their writes were not released.
    pub torn: u64,
    /// Runs after the last commit (of an interrupted session).
    pub tail: u64,
    /// Bytes of pre-images in `runs`.
    pub bytes: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("dir", &crate::text::escape(&self.dir))
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Reads header and status from the directory `path` of name `dir`.
    ///
    /// # Errors
    ///
    /// Words for what is wrong.
    pub fn read(path: &Path, dir: &[u8]) -> std::result::Result<Self, String> {
        let map = fsutil::open_regular(&path.join(MAP_NAME)).map_err(|e| cause(MAP_NAME, &e))?;
        let mut bytes = [0; HEAD_MAX];
        let n = fsutil::read_up_to(&map, &mut bytes, 0).map_err(|e| cause(MAP_NAME, &e))?;
        let header = Header::decode(&bytes[..n]).map_err(|e| format!("{MAP_NAME}: header: {e}"))?;
        let unreadable = |features: Features| {
            let what = features.refuses_reading()?;
            Some(format!("it has {what}: a newer bdsnap is needed"))
        };
        // The slots may be others with it.
        if let Some(why) = unreadable(header.features) {
            return Err(why);
        }
        let version = header.version;
        let Layout { slots, slot_len, .. } = version.layout();
        if n < slots[1] as usize + slot_len {
            return Err(format!("{MAP_NAME}: status: {}", FormatError::Short));
        }
        let slots = slots.map(|at| &bytes[at as usize..at as usize + slot_len]);
        let status = Status::newest(version, slots, &header.session_id)
            .map_err(|e| format!("{MAP_NAME}: status: {e}"))?;
        // A slot is no longer than a block and written as a whole, so one that is neither
        // empty nor valid was damaged, and may have said "broken".
        let slot_damaged = slots.into_iter().any(|s| {
            !fsutil::is_zero(s)
                && !matches!(Status::decode(version, s), Ok(s) if s.session_id == header.session_id)
        });
        if let Some(why) = unreadable(status.more.late) {
            return Err(why);
        }
        let meta = map.metadata().map_err(|e| cause(MAP_NAME, &e))?;
        let dat = match fsutil::open_regular(&path.join(DAT_NAME)).and_then(|f| f.metadata()) {
            Ok(m) => Some(m),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(cause(DAT_NAME, &e)),
        };
        let blocks = meta.blocks() + dat.as_ref().map_or(0, |m| m.blocks());
        Ok(Self {
            dir: dir.to_vec(),
            path: path.to_owned(),
            header,
            status,
            slot_damaged,
            map_bytes: meta.len(),
            dat_bytes: dat.map_or(0, |m| m.len()),
            stored_bytes: blocks.saturating_mul(512),
            original: None,
            overlaps: false,
        })
    }

    /// All that has to be known to use it.
    pub fn features(&self) -> Features {
        self.header.features.and(self.status.more.late)
    }

    /// Whether its map has nothing but, in version 2, its start.
    pub fn has_no_records(&self) -> bool {
        let start = u64::from(self.header.version >= Version::Two);
        self.header.version.layout().map_bytes(start).is_none_or(|bytes| self.map_bytes <= bytes)
    }

    /// Whether a device of the same filesystem is not registered.
    pub fn is_group_incomplete(&self) -> bool {
        self.header.dev_flags & GROUP_INCOMPLETE != 0
            || self.status.more.late_flags & LATE_MEMBER != 0
    }

    /// Its state as users see it; `live`: the module is recording it now.
    pub fn view(&self, live: bool) -> View {
        if self.original.is_some() {
            return View::Unchecked;
        }
        match self.status.state {
            State::Recording if live => View::Recording,
            State::Recording => View::Interrupted,
            State::Closed if self.header.kind == SessionKind::Undo => View::Undo,
            State::Closed => View::Closed,
            State::Broken => View::Broken,
            State::Tainted if live && !self.has_ended() => View::Recording,
            State::Tainted => View::Tainted,
        }
    }

    /// Whether its newest status says how it ended. That it is tainted a session
    /// says before the write that taints it, and goes on.
    pub fn has_ended(&self) -> bool {
        match self.status.state {
            State::Recording => false,
            State::Tainted => self.status.end_ns != 0,
            State::Closed | State::Broken => true,
        }
    }

    /// Whether it can be restored; `live`: the module is recording it now.
    pub fn restorable(&self, live: bool) -> Restorable {
        if live {
            return Restorable::No("it is recording: the device is in use");
        }
        if self.slot_damaged {
            return Restorable::Lossy("its newest state is damaged and may have said 'broken'");
        }
        match self.view(live) {
            View::Closed | View::Undo | View::Interrupted if self.status.more.lossy_below > 0 => {
                Restorable::Lossy("pre-images of its start were lost")
            }
            View::Unchecked if self.overlaps => Restorable::Lossy(
                "of blocks smaller than 4 KiB the original module saved too much; its runs overlap",
            ),
            View::Unchecked => Restorable::Yes(Some(
                "of the original module: without checksums, and nothing says that it is whole",
            )),
            View::Closed | View::Undo => Restorable::Yes(None),
            View::Interrupted => match self.header.durability {
                bdsnap_abi::format::Durability::Strict => {
                    Restorable::Yes(Some("it was interrupted; strict, so nothing is missing unless its store failed first"))
                }
                bdsnap_abi::format::Durability::Async => Restorable::Lossy(
                    "it was interrupted, and being async may have lost pre-images",
                ),
            },
            View::Broken => Restorable::Lossy("it is broken: pre-images were lost"),
            View::Tainted if self.has_ended() => {
                Restorable::Lossy("it is tainted: writes may have gone unseen")
            }
            View::Tainted => Restorable::Lossy(
                "it was tainted, and then interrupted: writes may have gone unseen",
            ),
            View::Recording => Restorable::No("it is recording: the device is in use"),
        }
    }

    /// Opens `blocks.dat`; a missing one is as good as an empty one.
    pub(crate) fn open_dat(&self) -> Result<File> {
        let path = self.path.join(DAT_NAME);
        match fsutil::open_regular(&path) {
            Ok(f) => Ok(f),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && self.status.dat_bytes == 0 => {
                File::open("/dev/null").map_err(|e| Error::io("cannot open /dev/null", &e))
            }
            Err(e) => Err(self.damage(cause(DAT_NAME, &e))),
        }
    }

    fn damage(&self, what: impl std::fmt::Display) -> Error {
        Error::new(
            Kind::Verification,
            format!("session {} is damaged: {what}", crate::text::escape(&self.dir)),
        )
    }

    /// Checks everything: structure, and checksums of all pre-images.
    ///
    /// Of a session that ended, all must be there and right. Of one that did
    /// not, what comes before the last commit must; what follows may be torn.
    /// `live`: it is being recorded now, so the tail is not looked at.
    /// `progress` advances by bytes of pre-images.
    ///
    /// # Errors
    ///
    /// [`Kind::Verification`] if there is damage, [`Kind::Interrupted`].
    pub fn check(&self, live: bool, progress: &dyn Progress, stop: &Stop<'_>) -> Result<Checked> {
        if self.slot_damaged {
            return Err(self.damage(format_args!("{MAP_NAME}: a status slot is unreadable")));
        }
        self.check_past_slot(live, progress, stop)
    }

    /// As [`Session::check`], but a damaged status slot is passed over: for
    /// users who accept a loss.
    pub fn check_past_slot(
        &self,
        live: bool,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<Checked> {
        if let Some(original) = &self.original {
            return self.check_original(original, progress, stop);
        }
        let index = self.read_index(live)?;
        let mut dat = Window::new(self.open_dat()?);
        let mut checked = Checked::default();
        for (i, run) in index.runs.into_iter().enumerate() {
            stop.check()?;
            let in_tail = i >= index.committed;
            let good = match dat.crc(&run) {
                Ok(Some(crc)) => crc == run.data_crc,
                Ok(None) => false,
                Err(e) => return Err(self.damage(cause(DAT_NAME, &e))),
            };
            progress.advance(u64::from(run.bytes));
            if good {
                checked.tail += u64::from(in_tail);
                checked.bytes += u64::from(run.bytes);
                checked.runs.push(run);
            } else if in_tail {
                checked.torn += 1;
            } else {
                return Err(self.damage(format_args!(
                    "the pre-image of sector {} does not have its checksum",
                    run.sector
                )));
            }
        }
        if let Some(twice) = sort(&mut checked.runs) {
            return Err(self.damage(format_args!("sector {twice} occurs twice")));
        }
        Ok(checked)
    }

    /// Reads all of a session of the original module; it has no checksums.
    fn check_original(
        &self,
        original: &Original,
        progress: &dyn Progress,
        stop: &Stop<'_>,
    ) -> Result<Checked> {
        let mut checked = Checked::default();
        let mut dat = Window::new(self.open_dat()?);
        for mut run in original.runs().map_err(|e| self.damage(e))? {
            stop.check()?;
            run.data_crc = match dat.crc(&run) {
                Ok(Some(crc)) => crc,
                Ok(None) => return Err(self.damage(format_args!("{DAT_NAME}: ends too early"))),
                Err(e) => return Err(self.damage(cause(DAT_NAME, &e))),
            };
            progress.advance(u64::from(run.bytes));
            checked.bytes += u64::from(run.bytes);
            checked.runs.push(run);
        }
        Ok(checked)
    }

    /// Its runs by sector and then by tag, without a look at the data behind
    /// them, and whether all are sure to be whole. `live` as in
    /// [`Session::check`].
    ///
    /// # Errors
    ///
    /// [`Kind::Verification`] if the structure is damaged.
    pub fn runs(&self, live: bool) -> Result<(Vec<Run>, bool)> {
        if self.original.is_some() {
            // Without checksums: only a look at the data gives some.
            return Ok((self.check(live, &crate::progress::Silent, &Stop::never())?.runs, true));
        }
        let Index { mut runs, committed } = self.read_index(live)?;
        let sure = committed == runs.len();
        if let Some(twice) = sort(&mut runs) {
            return Err(self.damage(format_args!("sector {twice} occurs twice")));
        }
        Ok((runs, sure))
    }

    /// What all its files take in the store, with the directory, in bytes.
    pub fn bytes_on_disk(&self) -> Result<u64> {
        let mut blocks = self.path.metadata().on("examine", &self.path)?.blocks();
        for entry in self.path.read_dir().on("read", &self.path)? {
            let entry = entry.on("read", &self.path)?;
            blocks += entry.metadata().on("examine", &entry.path())?.blocks();
        }
        Ok(blocks.saturating_mul(512))
    }

    /// Keeps others from taking it away, until the file is dropped. The store
    /// must be locked meanwhile, or it may be gone already.
    pub fn lock_shared(&self) -> Result<File> {
        self.lock(rustix::fs::FlockOperation::NonBlockingLockShared)
    }

    /// Has it alone.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if somebody uses it.
    pub fn lock_alone(&self) -> Result<File> {
        self.lock(rustix::fs::FlockOperation::NonBlockingLockExclusive)
    }

    fn lock(&self, how: rustix::fs::FlockOperation) -> Result<File> {
        let dir = File::open(&self.path).on("open", &self.path)?;
        match rustix::fs::flock(&dir, how) {
            Ok(()) => Ok(dir),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::refused(format!(
                "session {} is in use by another program",
                crate::text::escape(&self.dir)
            ))
            .hint("a view of it may be mounted")),
            Err(e) => Err(e).on("lock", &self.path),
        }
    }

    /// Reads the records without the data behind them.
    fn read_index(&self, live: bool) -> Result<Index> {
        let io = |e: std::io::Error| self.damage(cause(MAP_NAME, &e));
        let path = self.path.join(MAP_NAME);
        let mut file = fsutil::open_regular(&path).map_err(io)?;
        let Layout { slots, slot_len, records, .. } = self.header.version.layout();
        let mut start = vec![0; records as usize];
        if fsutil::read_up_to(&file, &mut start, 0).map_err(io)? == start.len()
            && !(fsutil::is_zero(&start[slots[0] as usize + slot_len..slots[1] as usize])
                && fsutil::is_zero(&start[slots[1] as usize + slot_len..]))
        {
            return Err(self.damage(format_args!("{MAP_NAME}: not zero before the records")));
        }
        let len = file.metadata().map_err(io)?.len();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(records)).map_err(io)?;
        let reader = BufReader::with_capacity(1 << 20, file);
        if self.has_ended() {
            self.read_ended(reader, len)
        } else {
            self.read_cut(reader, live)
        }
    }

    /// The records of a session that ended: exactly as many as it says.
    fn read_ended(&self, mut reader: impl Read, len: u64) -> Result<Index> {
        let status = &self.status;
        let layout = self.header.version.layout();
        let expected = layout
            .map_bytes(status.map_records)
            .ok_or_else(|| self.damage("status: impossible number of records"))?;
        // A session can break in the middle of an append.
        let longer_is_fine = status.state == State::Broken;
        if len < expected || (len > expected && !longer_is_fine) {
            return Err(self.damage(format_args!("{MAP_NAME}: {len} bytes instead of {expected}")));
        }
        if self.dat_bytes < status.dat_bytes {
            return Err(self.damage(format_args!(
                "{DAT_NAME}: {} bytes instead of {}",
                self.dat_bytes, status.dat_bytes
            )));
        }
        let mut records = Records::of(self);
        let mut bytes = [0; RECORD_MAX];
        let bytes = &mut bytes[..layout.record_len];
        for _ in 0..status.map_records {
            reader.read_exact(bytes).map_err(|e| self.damage(cause(MAP_NAME, &e)))?;
            records.take(bytes, status.dat_bytes)?;
        }
        let runs = records.runs;
        if runs.len() as u64 != status.records {
            return Err(self.damage(format_args!(
                "{MAP_NAME}: {} runs instead of {}",
                runs.len(),
                status.records
            )));
        }
        Ok(Index { committed: runs.len(), runs })
    }

    /// The records of a session that did not end, as far as they are valid.
    fn read_cut(&self, mut reader: impl Read, live: bool) -> Result<Index> {
        let mut records = Records::of(self);
        let mut torn_at = None;
        let mut any_behind = false;
        let mut bytes = [0; RECORD_MAX];
        let bytes = &mut bytes[..self.header.version.layout().record_len];
        for i in 0u64.. {
            match read_record(&mut reader, bytes) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) => return Err(self.damage(cause(MAP_NAME, &e))),
            }
            let (version, id) = (self.header.version, &self.header.session_id);
            let record = match Record::decode(version, id, i, bytes) {
                Ok(r) => r,
                Err(FormatError::Checksum) => {
                    torn_at.get_or_insert(i);
                    continue;
                }
                Err(e) => return Err(self.damage(format_args!("record {i}: {e}"))),
            };
            match torn_at {
                // The map ends here, unless a commit says that it does not.
                Some(at) if matches!(record, Record::Commit(_)) => {
                    return Err(self
                        .damage(format_args!("record {at} is invalid, and a commit follows it")));
                }
                Some(_) => any_behind = true,
                None => records.take(bytes, u64::MAX)?,
            }
        }
        let Records { mut runs, committed, durable, index: good, .. } = records;
        // Asked for now: while it is being recorded both files grow.
        let dat_bytes =
            self.open_dat()?.metadata().map_err(|e| self.damage(cause(DAT_NAME, &e)))?.len();
        if dat_bytes < durable {
            return Err(self.damage(format_args!(
                "{DAT_NAME}: {dat_bytes} bytes, but {durable} were durable"
            )));
        }
        if self.header.version >= Version::Two && good == 0 && (any_behind || dat_bytes > 0) {
            return Err(self.damage(format_args!("{MAP_NAME}: its start is missing")));
        }
        if live {
            runs.truncate(committed);
        }
        Ok(Index { runs, committed })
    }
}

/// The records of a map, one after the other, each held against those before it.
struct Records<'a> {
    session: &'a Session,
    index: u64,
    runs: Vec<Run>,
    /// So many of them, and so many bytes of their content, were durable.
    committed: usize,
    durable: u64,
    /// The newest point.
    point: Option<u32>,
}

impl<'a> Records<'a> {
    fn of(session: &'a Session) -> Self {
        Self { session, index: 0, runs: Vec::new(), committed: 0, durable: 0, point: None }
    }

    /// Takes the next, or says what is wrong with it.
    fn take(&mut self, bytes: &[u8], dat_bytes: u64) -> Result<()> {
        let Session { header, .. } = self.session;
        let index = self.index;
        let wrong =
            |e: &dyn std::fmt::Display| self.session.damage(format_args!("record {index}: {e}"));
        let record = Record::decode(header.version, &header.session_id, index, bytes)
            .map_err(|e| wrong(&e))?;
        self.index += 1;
        let v2 = header.version >= Version::Two;
        if v2 && index == 0 && !matches!(record, Record::Point(Point { tag: 0, .. })) {
            return Err(wrong(&"not the session's start"));
        }
        match record {
            Record::Commit(end) if end > dat_bytes => {
                return Err(wrong(&"a commit that contradicts its place"));
            }
            Record::Commit(end) => {
                self.committed = self.runs.len();
                self.durable = end;
            }
            Record::Point(point) => {
                let follows = self.point.is_none_or(|last| point.tag > last);
                if !follows {
                    return Err(wrong(&"a point that is not younger than the one before"));
                }
                self.point = Some(point.tag);
            }
            Record::Run(run) => {
                run.check(header).map_err(|e| wrong(&e))?;
                match run.offset.checked_add(run.stored.into()) {
                    Some(end) if end <= dat_bytes => {}
                    _ => return Err(wrong(&format_args!("beyond the end of {DAT_NAME}"))),
                }
                let sorted = self.session.features().incompat & INCOMPAT_SORTED != 0;
                let last = self.runs.last().filter(|_| !sorted).map_or(0, |r| r.tag);
                if run.tag < last || run.tag > self.point.unwrap_or(0) {
                    return Err(wrong(&"a tag that no point has, or out of order"));
                }
                if run.tag > 0 && self.session.features().incompat & INCOMPAT_POINTS == 0 {
                    return Err(wrong(&"a point that its features do not tell of"));
                }
                self.runs.push(run);
            }
            Record::Passed => {}
        }
        Ok(())
    }
}

/// Runs in the order of `blocks.map`, the first `committed` of them durable.
struct Index {
    runs: Vec<Run>,
    committed: usize,
}

/// Sorts runs by sector and tag; a sector that two runs of one tag have.
fn sort(runs: &mut [Run]) -> Option<u64> {
    let meet = |p: &&[Run]| p[0].sector + u64::from(p[0].bytes).div_ceil(512) > p[1].sector;
    runs.sort_unstable_by_key(|r| (r.tag, r.sector));
    let of_one = |p: &&[Run]| p[0].tag == p[1].tag && meet(p);
    let twice = runs.windows(2).find(of_one).map(|p| p[1].sector);
    runs.sort_unstable_by_key(|r| (r.sector, r.tag));
    twice
}

/// Reads a whole record; false at the end or if there is only a part.
fn read_record(reader: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<bool> {
    match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Reads `blocks.dat` in large pieces, for runs that follow each other.
struct Window {
    file: File,
    bytes: Vec<u8>,
    start: u64,
}

impl Window {
    fn new(file: File) -> Self {
        Self { file, bytes: Vec::new(), start: 0 }
    }

    /// The checksum of a run's bytes; `None` if the file ends before them.
    fn crc(&mut self, run: &Run) -> std::io::Result<Option<u32>> {
        let len = run.bytes as usize;
        debug_assert!(run.bytes <= RUN_MAX);
        if run.is_zero() {
            return Ok(Some(crc32c::crc32c(&vec![0; len])));
        }
        let inside = |w: &Self| {
            let from = usize::try_from(run.offset.checked_sub(w.start)?).ok()?;
            w.bytes.get(from..from.checked_add(len)?).map(crc32c::crc32c)
        };
        if let Some(crc) = inside(self) {
            return Ok(Some(crc));
        }
        // The file may be small, and is asked anew, since it may grow.
        let rest = self.file.metadata()?.len().saturating_sub(run.offset);
        self.bytes.resize(usize::try_from(rest).map_or(WINDOW, |r| r.clamp(len, WINDOW)), 0);
        let n = fsutil::read_up_to(&self.file, &mut self.bytes, run.offset)?;
        self.bytes.truncate(n);
        self.start = run.offset;
        Ok(inside(self))
    }
}

/// Whether a directory's name is of a session's form, whatever is in it.
pub(crate) fn is_named_so(dir: &[u8]) -> bool {
    let Some(at) = dir.iter().rposition(|&b| b == b'_') else { return false };
    let Some((time, rest)) = dir[at + 1..].split_at_checked(16) else { return false };
    time.iter().enumerate().all(|(i, b)| match i {
        8 => *b == b'T',
        15 => *b == b'Z',
        _ => b.is_ascii_digit(),
    }) && (rest.is_empty()
        || rest
            .strip_prefix(b"-")
            .is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit)))
}

/// A file's name and what went wrong with it.
fn cause(file: &str, e: &std::io::Error) -> String {
    match e.raw_os_error() {
        Some(n) => format!("{file}: {}", crate::error::errno_text(n)),
        None if e.kind() == std::io::ErrorKind::UnexpectedEof => format!("{file}: ends too early"),
        None => format!("{file}: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sessions() {
        for good in [&b"vdb_20261120T235959Z"[..], b"a_b_20261120T235959Z-12"] {
            assert!(is_named_so(good));
        }
        for bad in [
            &b"vdb"[..],
            b"vdb_20261120T235959",
            b"vdb_20261120T235959Z-",
            b"vdb_2026112xT235959Z",
            b"vdb_20261120T235959Zx",
            b"vdb_1763790000",
        ] {
            assert!(!is_named_so(bad));
        }
    }
}
