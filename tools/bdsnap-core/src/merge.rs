// SPDX-License-Identifier: GPL-2.0

//! Several sessions that follow each other made into one.
//!
//! The result begins where the oldest began and has its identity. Of each
//! chunk the oldest session's content counts, so whoever goes back to the
//! start of the result, or of any session before it, gets the same as from
//! the sessions that it is made of. The sessions after it do not change.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bdsnap_abi::format::{
    Durability, Header, More, Record, Run, State, Status, Version, DAT_NAME, GROUP_INCOMPLETE,
    MAP_NAME, META_NAME, NO_ID, RAW_IN_FLIGHT, RUN_MAX,
};

use crate::chain::{self, Break};
use crate::dats::Dats;
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::map::{run_of, MapWriter};
use crate::notes::{HOLDS_NAME, TAGS_NAME};
use crate::plan::{self, Extent, Source};
use crate::progress::{Progress, Silent, Stop};
use crate::session::Session;

/// How much is written between two looks at a wish to stop, and no longer
/// than a run may be.
const PIECE: u64 = RUN_MAX as u64;

/// Why `newer` cannot be merged into `older`, the one before it.
pub fn obstacle(older: &Session, newer: &Session) -> Option<String> {
    let (a, b) = (&older.header, &newer.header);
    if a.name() != b.name() {
        return Some("the device had another name".into());
    }
    match chain::link(Some(a), b) {
        None => {}
        Some(Break::Missing) => return Some("a session in between is missing".into()),
        // The mark of the gap would be lost.
        Some(b) => return Some(format!("there is a gap before it: {}", b.text())),
    }
    let shape = |h: &Header| (h.device_bytes, h.loop_offset, h.loop_sizelimit, h.part_start);
    if shape(a) != shape(b) {
        return Some("the device had another size or place".into());
    }
    if b.group_id != NO_ID && a.group_id != b.group_id {
        return Some("it belongs to a group that the one before does not belong to".into());
    }
    if let Some(what) = older.features().refuses_change().or(newer.features().refuses_change()) {
        return Some(format!("one of them has {what}: a newer bdsnap is needed"));
    }
    if [older, newer].iter().any(|s| s.features().incompat != 0) {
        return Some("one of them holds several points".into());
    }
    if older.slot_damaged || newer.slot_damaged {
        return Some("a status slot is damaged".into());
    }
    None
}

/// How much a merge of sessions (oldest first) will take: bytes of
/// `blocks.map` and of `blocks.dat`. Torn tails count as whole, so it may be
/// less.
pub fn predict(sessions: &[&Session]) -> Result<(u64, u64)> {
    let mut extents = Vec::new();
    for (i, session) in sessions.iter().enumerate() {
        let (runs, _) = session.runs(false)?;
        let newer = plan::at_point(&runs, i, 0);
        extents = plan::underlay(&extents, &newer);
    }
    // With the commit, and the start.
    let (mut records, mut dat) = (2, 0);
    for e in &extents {
        records += e.len.div_ceil(PIECE);
        if matches!(e.source, Source::Dat { .. }) {
            dat += e.len;
        }
    }
    let bytes = Version::NEWEST.layout().map_bytes(records);
    Ok((bytes.ok_or_else(|| Error::other("too many records"))?, dat))
}

/// How much a session's state takes from what a restore may claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    Whole,
    /// Cut, and whole all the same.
    Cut,
    Tainted,
    /// Cut, and something may be missing.
    CutAsync,
    Broken,
}

fn worth(s: &Session) -> Worth {
    match (s.status.state, s.header.durability) {
        (State::Closed, _) => Worth::Whole,
        (State::Recording, Durability::Strict) => Worth::Cut,
        (State::Tainted, _) => Worth::Tainted,
        (State::Recording, Durability::Async) => Worth::CutAsync,
        (State::Broken, _) => Worth::Broken,
    }
}

/// The header of what sessions (oldest first) become, in `version` at least.
fn header_of(sessions: &[&Session], version: Version) -> Option<Header> {
    let (first, last) = (sessions.first()?, sessions.last()?);
    let mut header = first.header.clone();
    header.version = sessions.iter().map(|s| s.header.version).max()?.max(version);
    header.chunk_size = sessions.iter().map(|s| s.header.chunk_size).min()?;
    header.merged_id = *last.header.last_id();
    header.merged_seq = last.header.merged_seq.max(last.header.chain_seq);
    for s in sessions {
        header.dev_flags |= s.header.dev_flags & (RAW_IN_FLIGHT | GROUP_INCOMPLETE);
    }
    let worst = sessions.iter().max_by_key(|s| worth(s))?;
    if worst.status.state == State::Recording {
        header.durability = worst.header.durability;
    } else if sessions.iter().any(|s| s.header.durability == Durability::Async) {
        header.durability = Durability::Async;
    }
    Some(header)
}

/// The status of what sessions (oldest first) become, but for its totals.
fn status_of(sessions: &[&Session]) -> Option<Status> {
    let (first, last) = (sessions.first()?, sessions.last()?);
    let worst = sessions.iter().max_by_key(|s| worth(s))?.status;
    let sum = |of: fn(&Status) -> u64| sessions.iter().map(|s| of(&s.status)).sum();
    Some(Status {
        session_id: first.header.session_id,
        generation: first.status.generation + 1,
        state: worst.state,
        more: more_of(sessions, worst.state),
        errno: worst.errno,
        broken_sector: worst.broken_sector,
        broken_ns: worst.broken_ns,
        // What is written here is whole; without an end it would pass for cut.
        end_ns: match worst.state {
            State::Tainted if last.status.end_ns == 0 => last.header.start_ns,
            _ => last.status.end_ns,
        },
        absorbed_bytes: sum(|s| s.absorbed_bytes),
        held_bios: sum(|s| s.held_bios),
        head_sha256: last.status.head_sha256,
        ..Status::recording(first.header.session_id)
    })
}

/// What has become of any of them has become of the whole.
fn more_of(sessions: &[&Session], worst: State) -> More {
    let all = || sessions.iter().map(|s| &s.status.more);
    let last = all().next_back().unwrap_or(&More::NONE);
    let lossy = matches!(worst, State::Broken | State::Tainted);
    More {
        lossy_below: all().map(|m| m.lossy_below).max().unwrap_or(0).max(u32::from(lossy)),
        late_flags: all().fold(0, |flags, m| flags | m.late_flags),
        lost_bytes: all().fold(0, |bytes, m| bytes.saturating_add(m.lost_bytes)),
        tainted_ns: all().map(|m| m.tainted_ns).filter(|&ns| ns != 0).min().unwrap_or(0),
        taint_why: all().fold(0, |why, m| why | m.taint_why),
        end_boot_ns: last.end_boot_ns,
        disk_sectors: last.disk_sectors,
        fs_writes: last.fs_writes,
        ..More::NONE
    }
}

/// A session's runs, by where they are in its data.
struct Origin {
    runs: Vec<Run>,
    /// The run that was read last.
    last: Option<usize>,
    bytes: Vec<u8>,
}

impl Origin {
    fn of(session: &Session, stop: &Stop<'_>) -> Result<(Self, Vec<Extent>)> {
        // Only a look at the data tells which runs of a tail are whole.
        let (mut runs, sure) = session.runs(false)?;
        if !sure {
            runs = session.check(false, &Silent, stop)?.runs;
        }
        let extents = plan::at_point(&runs, 0, 0);
        runs.retain(|r| !r.is_zero());
        runs.sort_unstable_by_key(|r| r.offset);
        Ok((Self { runs, last: None, bytes: Vec::new() }, extents))
    }

    /// Appends `len` bytes from `offset` on in `dat` to `out`, with the checksum of
    /// each run that they are from compared.
    fn read(
        &mut self,
        session: &Session,
        dat: &File,
        mut offset: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let end = offset + len;
        while offset < end {
            let i = self.runs.partition_point(|r| r.offset <= offset).wrapping_sub(1);
            let Some(run) = self.runs.get(i) else {
                return Err(damage(session, "a run is missing"));
            };
            if self.last != Some(i) {
                self.last = None;
                self.bytes.resize(run.bytes as usize, 0);
                dat.read_exact_at(&mut self.bytes, run.offset)
                    .map_err(|e| damage(session, &e.to_string()))?;
                if crc32c::crc32c(&self.bytes) != run.data_crc {
                    let what = format!(
                        "the pre-image of sector {} does not have its checksum",
                        run.sector
                    );
                    return Err(damage(session, &what));
                }
                self.last = Some(i);
            }
            let from = (offset - run.offset) as usize;
            let to = self.bytes.len().min((end - run.offset) as usize);
            let Some(part) = self.bytes.get(from..to).filter(|p| !p.is_empty()) else {
                return Err(damage(session, "its runs do not cover its data"));
            };
            out.extend_from_slice(part);
            offset += part.len() as u64;
        }
        Ok(())
    }
}

fn damage(session: &Session, what: &str) -> Error {
    let name = crate::text::escape(&session.dir);
    Error::new(Kind::Verification, format!("session {name} is damaged: {what}"))
}

/// Writes what `sessions` (oldest first, none of them being recorded) become
/// into the new directory `dir`, durable. The caller has made sure that
/// nothing is in the way ([`obstacle`]).
pub fn write(
    sessions: &[&Session],
    version: Version,
    dir: &Path,
    progress: &dyn Progress,
    stop: &Stop<'_>,
) -> Result<()> {
    let nothing = || Error::other("nothing to merge");
    let mut header = header_of(sessions, version).ok_or_else(nothing)?;
    header.data_id = fsutil::random_id()?;
    let mut status = status_of(sessions).ok_or_else(nothing)?;
    let first = sessions.first().ok_or_else(nothing)?;
    let (mut origins, mut dats) = (Vec::new(), Dats::new());
    let mut past = Vec::new();
    for (i, session) in sessions.iter().enumerate() {
        let (origin, mut extents) = Origin::of(session, stop)?;
        for e in &mut extents {
            if let Source::Dat { session, .. } = &mut e.source {
                *session = i;
            }
        }
        past = plan::underlay(&past, &extents);
        origins.push(origin);
    }

    fsutil::make_private_dir(dir).on("make", dir)?;
    let create = |name: &str| {
        let path = dir.join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).on("make", &path)
    };
    // Until all is there it says so: it is recording.
    let mut map =
        MapWriter::begin(create(MAP_NAME)?, &header, &Status::recording(header.session_id))
            .on("write", dir)?;
    let mut dat = create(DAT_NAME)?;
    let mut saved_bytes = 0;
    let mut bytes = Vec::new();
    for extent in &past {
        let mut at = 0;
        while at < extent.len {
            stop.check()?;
            let len = (extent.len - at).min(PIECE);
            let sector = (extent.start + at) / bdsnap_abi::SECTOR;
            bytes.clear();
            match extent.source.skip(at) {
                Source::Zero => bytes.resize(len as usize, 0),
                Source::Dat { session, offset } => {
                    let owner = sessions[session];
                    let dat = dats.of(session, owner)?;
                    origins[session].read(owner, dat, offset, len, &mut bytes)?;
                }
            }
            let run = run_of(sector, status.dat_bytes, &bytes)
                .ok_or_else(|| Error::other("a merged run is too long"))?;
            run.check(&header)
                .map_err(|e| Error::other(format!("a merged run does not fit its device: {e}")))?;
            if !run.is_zero() {
                dat.write_all(&bytes).on("write", dir)?;
                status.dat_bytes += len;
            }
            map.record(&Record::Run(run)).on("write", dir)?;
            status.records += 1;
            saved_bytes += len;
            progress.advance(len);
            at += len;
        }
    }
    map.record(&Record::Commit(status.dat_bytes)).on("write", dir)?;
    status.map_records = map.records();
    dat.sync_all().on("write", dir)?;
    map.set_status(&status).on("write", dir)?;

    let mut text = String::new();
    bdsnap_abi::meta::write_json(&mut text, &header, &status, &fs_type(first), saved_bytes)
        .map_err(|e| Error::other(format!("cannot write {META_NAME}: {e}")))?;
    fsutil::replace(&dir.join(META_NAME), text.as_bytes(), 0o600)?;
    for name in [HOLDS_NAME, TAGS_NAME] {
        match fsutil::read_small(&first.path.join(name), 1 << 20) {
            Ok(bytes) => fsutil::replace(&dir.join(name), &bytes, 0o600)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).on("read", &first.path.join(name)),
        }
    }
    fsutil::sync_dir(dir)
}

/// What a session's description says of its file system.
fn fs_type(session: &Session) -> String {
    fsutil::read_small(&session.path.join(META_NAME), 1 << 20)
        .ok()
        .and_then(|b| serde_json::from_slice::<serde_json::Value>(&b).ok())
        .and_then(|v| v.get("fs_type")?.as_str().map(str::to_owned))
        .unwrap_or_default()
}
