// SPDX-License-Identifier: GPL-2.0

//! For the tests of power cuts. On the host:
//!
//! ```text
//! whole LOG LAYOUT MARK DISK    makes DISK as it was at a mark (`end`: the last request), nothing lost
//! cut LOG LAYOUT FROM TO SEED DISK [lies]   makes DISK as a power cut between two marks may leave it;
//!                               prints what it chose. `lies`: the disk has lost what it had flushed of the store
//! later LOG LAYOUT MARK         prints how many sectors of the store were written (or discarded) from the first write
//!                               to the origin on that comes after a mark
//! ```
//! LOG is what `scripts/vm --log-writes` wrote, of an empty disk. LAYOUT has four numbers, in MiB: where
//! the origin begins, the store, the marks, and the disk's end (`1,65,254,256`). FROM, TO: the text of a
//! mark; TO may be `+MS`, so many milliseconds after the first write to the origin after FROM. In the guest:
//!
//! ```text
//! mark DEV TEXT     writes a mark on the disk, which is then in the log, too
//! clock DEV MS      writes one every so many milliseconds, until it is killed
//! ```

mod cut;
mod log;

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cut::{Cut, Layout, Left, Mode};
use log::{Action, Entry, SECTOR};
use rustix::fs::{fallocate, FallocateFlags};

/// Sectors in a MiB.
const MIB: u64 = 2048;

fn error(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, text.into())
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| error(format!("not a number: {text}")))
}

/// A point in the log that the guest has named, or its clock.
struct Mark {
    /// So many requests were before it.
    at: usize,
    ms: u64,
    text: String,
}

/// A log with what there is to know of it.
struct Recording {
    file: File,
    entries: Vec<Entry>,
    marks: Vec<Mark>,
    layout: Layout,
}

impl Recording {
    fn open(log: &str, layout: &str) -> Result<Self> {
        let borders: Vec<u64> = layout.split(',').map(number).collect::<Result<_>>()?;
        let [origin, store, marks, end] = borders[..] else { return Err(error("LAYOUT")) };
        if !(origin < store && store < marks && marks < end && end < 1 << 20) {
            return Err(error("LAYOUT"));
        }
        let layout = Layout {
            origin: origin * MIB..store * MIB,
            store: store * MIB..marks * MIB,
            marks: marks * MIB..end * MIB,
        };
        let mut file = File::open(log)?;
        let entries = log::read(&mut file, layout.marks.end)?;
        let mut found = Vec::new();
        for (at, e) in entries.iter().enumerate() {
            let Action::Write { data } = e.action else { continue };
            if !layout.marks.contains(&e.sector) {
                continue;
            }
            let mut line = [0; SECTOR as usize];
            file.read_exact_at(&mut line, data)?;
            let line = String::from_utf8_lossy(&line);
            if let Some((ms, text)) = line.split('\n').next().and_then(|l| l.split_once(' ')) {
                if let Ok(ms) = ms.parse() {
                    found.push(Mark { at: at + 1, ms, text: text.into() });
                }
            }
        }
        Ok(Self { file, entries, marks: found, layout })
    }

    fn mark(&self, text: &str) -> Result<&Mark> {
        let found = self.marks.iter().find(|m| m.text == text);
        found.ok_or_else(|| error(format!("no mark '{text}'")))
    }

    /// The first write to the origin from that request on.
    fn first_write(&self, from: usize) -> Result<usize> {
        let ours = |e: &Entry| e.action != Action::None && self.layout.origin.contains(&e.sector);
        let found = (from..self.entries.len()).find(|&i| ours(&self.entries[i]));
        found.ok_or_else(|| error("the origin was not written"))
    }

    /// The time of the last mark among the first `n` requests.
    fn ms_at(&self, n: usize) -> u64 {
        self.marks.iter().rfind(|m| m.at <= n).map_or(0, |m| m.ms)
    }

    /// The disk after the requests before `cut.end`.
    fn build(&self, cut: &Cut, disk: &str) -> Result<()> {
        let out = OpenOptions::new().write(true).create(true).truncate(true).open(disk)?;
        out.set_len(self.layout.marks.end * SECTOR)?;
        let mut left = cut.left.iter().peekable();
        for (i, e) in self.entries[..cut.end].iter().enumerate() {
            match left.next_if(|(at, _)| *at == i).map_or(&Left::All, |(_, left)| left) {
                Left::All => self.put(e, 0, e.sectors, &out)?,
                Left::Nothing => {}
                Left::Sectors(sectors) => {
                    let mut from = 0;
                    for run in sectors.chunk_by(|a, b| a == b) {
                        let n = run.len() as u64;
                        if run[0] {
                            self.put(e, from, n, &out)?;
                        }
                        from += n;
                    }
                }
            }
        }
        Ok(())
    }

    /// Does `n` sectors of a request, from its sector `from` on.
    fn put(&self, e: &Entry, from: u64, n: u64, out: &File) -> Result<()> {
        let at = (e.sector + from) * SECTOR;
        let hole = || {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(out, flags, at, n * SECTOR).map_err(Error::from)
        };
        match e.action {
            Action::None => Ok(()),
            Action::Discard => hole(),
            Action::Write { data } => {
                let mut bytes = vec![0; usize::try_from(n * SECTOR).map_err(Error::other)?];
                self.file.read_exact_at(&mut bytes, data + from * SECTOR)?;
                if bytes.iter().all(|&b| b == 0) {
                    hole()
                } else {
                    out.write_all_at(&bytes, at)
                }
            }
        }
    }
}

fn whole(log: &str, layout: &str, mark: &str, disk: &str) -> Result<()> {
    let recording = Recording::open(log, layout)?;
    let end = match mark {
        "end" => recording.entries.len(),
        _ => recording.mark(mark)?.at,
    };
    recording.build(&Cut { mode: Mode::None, end, left: Vec::new() }, disk)
}

fn cut(
    log: &str,
    layout: &str,
    from: &str,
    to: &str,
    seed: &str,
    disk: &str,
    flushes: bool,
) -> Result<()> {
    let recording = Recording::open(log, layout)?;
    let first = recording.mark(from)?;
    let to = match to.strip_prefix('+') {
        Some(ms) => {
            let begin = recording.first_write(first.at)?;
            let ms = recording.ms_at(begin) + number(ms)?;
            let late = recording.marks.iter().find(|m| m.at > begin && m.ms >= ms);
            late.ok_or_else(|| error("no mark so late"))?
        }
        None => recording.mark(to)?,
    };
    let seed = number(seed)?;
    let cut = cut::choose(&recording.entries, first.at..to.at, &recording.layout, seed, flushes);
    recording.build(&cut, disk)?;
    let ms = recording.ms_at(cut.end).saturating_sub(first.ms);
    let count = |what: fn(&Left) -> bool| cut.left.iter().filter(|(_, left)| what(left)).count();
    println!(
        "after {ms} ms and {} of {} requests, lost {:?}: {} of {} writes, {} torn",
        cut.end - first.at,
        to.at - first.at,
        cut.mode,
        count(|left| *left == Left::Nothing),
        cut.left.len(),
        count(|left| matches!(left, Left::Sectors(_))),
    );
    Ok(())
}

fn later(log: &str, layout: &str, mark: &str) -> Result<()> {
    let recording = Recording::open(log, layout)?;
    let from = recording.first_write(recording.mark(mark)?.at)?;
    let store = &recording.layout.store;
    let late = recording.entries[from..].iter();
    let late = late.filter(|e| e.action != Action::None && store.contains(&e.sector));
    println!("{}", late.map(|e| e.sectors).sum::<u64>());
    Ok(())
}

/// A device to write marks on, past the page cache.
struct Marker {
    file: File,
    buffer: Vec<u8>,
}

impl Marker {
    fn open(device: &str) -> Result<Self> {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(device)?;
        Ok(Self { file, buffer: vec![0; 2 * 4096] })
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let ms = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::other)?.as_millis();
        let line = format!("{ms} {text}\n");
        // As O_DIRECT wants it
        let skip = self.buffer.as_ptr().align_offset(4096);
        let sector = &mut self.buffer[skip..skip + SECTOR as usize];
        sector.fill(0);
        sector
            .get_mut(..line.len())
            .ok_or_else(|| error("too long"))?
            .copy_from_slice(line.as_bytes());
        self.file.write_all_at(sector, 0)
    }
}

fn clock(device: &str, ms: &str) -> Result<()> {
    let mut marker = Marker::open(device)?;
    let pause = Duration::from_millis(number(ms)?);
    loop {
        marker.write("clock")?;
        std::thread::sleep(pause);
    }
}

fn run(args: &[&str]) -> Result<()> {
    match *args {
        ["whole", log, layout, mark, disk] => whole(log, layout, mark, disk),
        ["cut", log, layout, from, to, seed, disk] => cut(log, layout, from, to, seed, disk, true),
        ["cut", log, layout, from, to, seed, disk, "lies"] => {
            cut(log, layout, from, to, seed, disk, false)
        }
        ["later", log, layout, mark] => later(log, layout, mark),
        ["mark", device, text] => Marker::open(device)?.write(text),
        ["clock", device, ms] => clock(device, ms),
        _ => Err(error("usage: see the source")),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bdsnap-cut {}: {e}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}
