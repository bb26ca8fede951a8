// SPDX-License-Identifier: GPL-2.0

//! For tests: an image file that is "recorded" as the module would do it, by
//! code of its own, so that reader and writer are not tested by themselves; and
//! what tests of programs share.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bdsnap_abi::format::{
    Durability, Features, Gap, Header, Id, Kind, Point, Record, State, Status, Version, DAT_NAME,
    HEADER_LEN, INCOMPAT_POINTS, MAP_NAME, NO_ID, RUN_MAX,
};

use crate::store::Store;

/// 2026-11-20T23:59:59Z, when the first session starts.
pub const EPOCH_NS: u64 = 1_795_219_199_000_000_000;

/// A store and an image file beside it.
pub struct Lab {
    /// The store.
    pub store: Store,
    /// The image.
    pub image: PathBuf,
    /// What the image holds.
    pub device: Vec<u8>,
    /// The session before, for the next one's header.
    pub last: Id,
    /// Of the format.
    pub version: Version,
    sessions: u8,
}

/// How a session is to be.
#[derive(Clone)]
pub struct Options {
    /// What opened it.
    pub kind: Kind,
    /// When writes are let go.
    pub durability: Durability,
    /// What it says of the link before it.
    pub gap: Gap,
    /// Its group.
    pub group: Id,
    /// A device of the group was not registered.
    pub incomplete: bool,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Writes runs of zeros without data.
    pub zeros: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Mount,
            durability: Durability::Strict,
            gap: Gap::None,
            group: NO_ID,
            incomplete: false,
            chunk: 4096,
            zeros: false,
        }
    }
}

/// A session being recorded.
pub struct Recorder<'a> {
    lab: &'a mut Lab,
    /// Its header, written at the end.
    pub header: Header,
    /// Records without their checksums.
    pub records: Vec<Record>,
    /// The newest point.
    pub tag: u32,
    /// `blocks.dat`.
    pub dat: Vec<u8>,
    saved: Vec<bool>,
    zeros: bool,
    /// Its status at the moment when it was tainted.
    tainted: Option<Status>,
}

impl Lab {
    /// A store and an image of so many bytes, with a pattern that repeats
    /// nowhere, in an empty directory.
    pub fn new(dir: &Path, bytes: usize) -> Self {
        let (store, _) = Store::init(&dir.join("store"), Version::NEWEST).unwrap();
        let image = dir.canonicalize().unwrap().join("disk.img");
        let device = pattern(bytes, 1);
        fs::write(&image, &device).unwrap();
        let version = store.version();
        Self { store, image, device, last: NO_ID, version, sessions: 0 }
    }

    /// Another image beside this one, with sessions in the same store.
    pub fn beside(&self, name: &str, bytes: usize) -> Self {
        let image = self.image.with_file_name(name);
        let device = pattern(bytes, 77 + self.sessions as u64);
        fs::write(&image, &device).unwrap();
        Self {
            store: self.store.clone(),
            image,
            device,
            last: NO_ID,
            version: self.version,
            sessions: self.sessions + 100,
        }
    }

    /// A session begins.
    pub fn record(&mut self, options: &Options) -> Recorder<'_> {
        self.sessions += 1;
        let mut header = Header::new();
        header.version = self.version;
        header.features = Features::NONE;
        header.session_id = [self.sessions; 16];
        header.store_id = self.store.id();
        header.prev_session_id = self.last;
        header.group_id = options.group;
        header.boot_id = [0xb0; 16];
        header.load_id = [0x10; 16];
        header.chain_seq = self.store.next_chain_seq(0).unwrap();
        header.start_ns = EPOCH_NS + u64::from(self.sessions - 1) * 3_600_000_000_000;
        header.device_bytes = self.device.len() as u64;
        header.chunk_size = options.chunk;
        header.kind = options.kind;
        header.durability = options.durability;
        header.gap_before = options.gap;
        header.dev_flags = bdsnap_abi::format::DEV_IMAGE;
        if options.incomplete {
            header.dev_flags |= bdsnap_abi::format::GROUP_INCOMPLETE;
        }
        assert!(header.set_name(self.image.as_os_str().as_bytes()));
        let chunks = self.device.len().div_ceil(options.chunk as usize);
        let mut records = Vec::new();
        if header.version >= Version::Two {
            records.push(Record::Point(crate::map::start_of(&header)));
        }
        Recorder {
            lab: self,
            header,
            records,
            tag: 0,
            dat: Vec::new(),
            saved: vec![false; chunks],
            zeros: options.zeros,
            tainted: None,
        }
    }

    /// Changes the device while nobody records it.
    pub fn write(&mut self, start: usize, data: &[u8]) {
        self.device[start..start + data.len()].copy_from_slice(data);
        fs::write(&self.image, &self.device).unwrap();
    }

    /// What the image holds now.
    pub fn content(&self) -> Vec<u8> {
        fs::read(&self.image).unwrap()
    }

    /// The directory of a session.
    pub fn path(&self, dir: &str) -> PathBuf {
        self.store.path().join(dir)
    }
}

impl Recorder<'_> {
    /// A write: saves the old content of its chunks, then changes the device.
    pub fn write(&mut self, start: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let chunk = self.header.chunk_size as usize;
        let size = self.lab.device.len();
        let last = (start + data.len() - 1) / chunk;
        let mut at = start / chunk;
        while at <= last {
            let from = at;
            while at <= last && !self.saved[at] && (at - from) * chunk < RUN_MAX as usize {
                self.saved[at] = true;
                at += 1;
            }
            if at > from {
                self.save(from * chunk, (at * chunk).min(size));
            } else {
                at += 1;
            }
        }
        self.lab.device[start..start + data.len()].copy_from_slice(data);
    }

    fn save(&mut self, from: usize, to: usize) {
        let data = &self.lab.device[from..to];
        let mut run = crate::map::run_of(from as u64 / 512, self.dat.len() as u64, data).unwrap();
        run.tag = self.tag;
        if !self.zeros {
            run.stored = run.bytes;
        }
        self.records.push(Record::Run(run));
        if !run.is_zero() {
            self.dat.extend_from_slice(data);
        }
    }

    /// Says that all so far is durable.
    pub fn commit(&mut self) {
        self.records.push(Record::Commit(self.dat.len() as u64));
    }

    /// A moment to which one can go back: from here on the first change of each chunk is saved anew. Its number.
    pub fn point(&mut self) -> u32 {
        self.header.features.incompat |= INCOMPAT_POINTS;
        self.tag += 1;
        self.records.push(Record::Point(Point {
            tag: self.tag,
            time_ns: self.header.start_ns + u64::from(self.tag) * 1_000_000_000,
            dat_bytes: self.dat.len() as u64,
            ..crate::map::start_of(&self.header)
        }));
        self.saved.fill(false);
        self.tag
    }

    /// What the device holds now.
    pub fn device(&self) -> &[u8] {
        &self.lab.device
    }

    /// The session is tainted, says so, and goes on.
    pub fn taint(&mut self) {
        let now = self.status(2, State::Tainted);
        self.tainted = Some(Status { end_ns: 0, ..now });
    }

    /// What it says in this state.
    fn status(&self, generation: u64, state: State) -> Status {
        let h = &self.header;
        Status {
            generation,
            state,
            records: self.records.iter().filter(|r| matches!(r, Record::Run(_))).count() as u64,
            map_records: self.records.len() as u64,
            dat_bytes: self.dat.len() as u64,
            end_ns: h.start_ns + 60_000_000_000,
            errno: if state == State::Broken { 28 } else { 0 },
            broken_sector: if state == State::Broken { 800 } else { 0 },
            ..Status::recording(h.session_id)
        }
    }

    /// The session ends in this state; returns its directory's name.
    pub fn end(mut self, state: State) -> String {
        self.commit();
        self.put(Some(state))
    }

    /// The machine goes away, and leaves what there is.
    pub fn cut(self) -> String {
        self.put(None)
    }

    fn put(self, state: Option<State>) -> String {
        let h = &self.header;
        let dir = bdsnap_abi::name::session_dir(h.name(), h.start_ns, 0);
        let dir = String::from_utf8(dir.as_bytes().to_vec()).unwrap();
        let path = self.lab.store.path().join(&dir);
        crate::fsutil::make_private_dir(&path).unwrap();
        let layout = h.version.layout();
        let mut map = vec![0; layout.records as usize];
        crate::map::encode_header(h, &mut map[..HEADER_LEN]);
        let put_slot = |map: &mut [u8], status: &Status| {
            let at = layout.slots[status.slot()] as usize;
            status.encode(h.version, &mut map[at..at + layout.slot_len]);
        };
        put_slot(&mut map, &Status::recording(h.session_id));
        if let Some(tainted) = &self.tainted {
            put_slot(&mut map, tainted);
        }
        if let Some(state) = state {
            put_slot(&mut map, &self.status(2 + u64::from(self.tainted.is_some()), state));
        }
        for (i, r) in self.records.iter().enumerate() {
            let mut bytes = vec![0; layout.record_len];
            assert!(r.encode(h.version, &h.session_id, i as u64, &mut bytes));
            map.extend_from_slice(&bytes);
        }
        fs::write(path.join(MAP_NAME), map).unwrap();
        fs::write(path.join(DAT_NAME), &self.dat).unwrap();
        fs::write(&self.lab.image, &self.lab.device).unwrap();
        self.lab.last = h.session_id;
        dir
    }
}

/// Changes one bit of a file.
pub fn flip(path: &Path, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

/// Bytes that repeat nowhere: a block in the wrong place does not pass.
pub fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// A session as the original module leaves it; `entries`: first sector and
/// content. Returns its directory's name.
pub fn original(
    store: &Store,
    base: &str,
    seconds: u64,
    device: Option<&Path>,
    entries: &[(u64, Vec<u8>)],
) -> String {
    let dir = format!("{base}_{seconds}");
    let path = store.path().join(&dir);
    fs::create_dir(&path).unwrap();
    let (mut map, mut dat) = (Vec::new(), Vec::new());
    for (sector, content) in entries {
        map.extend_from_slice(&sector.to_le_bytes());
        map.extend_from_slice(&(content.len() as u32).to_le_bytes());
        map.extend_from_slice(&(dat.len() as u64).to_le_bytes());
        dat.extend_from_slice(content);
    }
    fs::write(path.join(MAP_NAME), map).unwrap();
    fs::write(path.join(DAT_NAME), dat).unwrap();
    if let Some(device) = device {
        let meta = format!(
            r#"{{"device": "{}", "timestamp": {seconds}000000000, "block_size": 4096, "fs_type": "ext4", "total_blocks_saved": 0, "snapshot_type": "COW"}}"#,
            device.display()
        );
        fs::write(path.join("meta.json"), meta).unwrap();
    }
    dir
}

/// What a program did.
pub struct Ran {
    /// Its exit status.
    pub status: i32,
    /// What it wrote to standard output.
    pub out: String,
    /// And to standard error.
    pub err: String,
}

impl Ran {
    /// Runs it, with `input` to read.
    pub fn of(command: &mut Command, input: &[u8]) -> Self {
        let mut child = command
            .env("TZ", "UTC")
            .env_remove("COLUMNS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without having read.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        Self {
            status: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Fails unless it ended so.
    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Fails unless it said so.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let both = format!("{}{}", self.out, self.err);
        assert!(both.contains(text), "{text:?} not in: {both}");
        self
    }

    /// The JSON that it printed.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap()
    }

    /// As in a transcript of a terminal.
    fn transcript(&self, line: &str) -> String {
        let status = if self.status == 0 { String::new() } else { format!("? {}\n", self.status) };
        format!("$ {line}\n{}{}{status}", self.out, self.err)
    }
}

/// Compares what is seen of programs with a file. With `BDSNAP_BLESS=1` in the
/// environment the file is written instead.
pub struct Transcript {
    file: PathBuf,
    seen: String,
    /// What to put in place of what.
    replace: Vec<(String, &'static str)>,
}

impl Transcript {
    /// Of the file `tests/NAME` of the crate in `crate_dir`.
    pub fn of(crate_dir: &str, name: &str) -> Self {
        let file = Path::new(crate_dir).join("tests").join(name);
        Self { file, seen: String::new(), replace: Vec::new() }
    }

    /// Shows a path as another one.
    pub fn replacing(mut self, path: &Path, by: &'static str) -> Self {
        self.replace.push((path.to_str().unwrap().to_owned(), by));
        self
    }

    /// Runs a program: `line` is what a user would type.
    pub fn run(&mut self, program: &str, line: &str, also: &[&OsStr]) {
        let words = line.split_whitespace().skip(1);
        let ran = Ran::of(Command::new(program).args(also).args(words), b"");
        self.seen += &(ran.transcript(line) + "\n");
    }

    /// Compares; `mask` hides in each line what is not always the same.
    pub fn end(self, mask: impl Fn(&str) -> String) {
        let mut seen = self.seen;
        for (from, to) in &self.replace {
            seen = seen.replace(from, to);
        }
        let seen: String = seen.lines().map(|l| mask(l).trim_end().to_owned() + "\n").collect();
        let seen = seen.trim_end().to_owned() + "\n";
        if std::env::var_os("BDSNAP_BLESS").is_some() {
            fs::create_dir_all(self.file.parent().unwrap()).unwrap();
            fs::write(&self.file, &seen).unwrap();
        }
        let known = fs::read_to_string(&self.file).unwrap_or_default();
        assert!(
            known == seen,
            "{} is not what is seen now (BDSNAP_BLESS=1 writes it anew):\n{seen}",
            self.file.display()
        );
    }
}

/// The help of a program and of its `commands`, compared with a transcript;
/// and its man pages and completions, which have to have all of it.
pub fn help_and_pages(program: &str, name: &str, crate_dir: &str, commands: &[&str]) {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().to_str().unwrap();
    Ran::of(Command::new(program).args(["--write-docs-to", dir]), b"").expect(0);
    let page = |file: &str| fs::read_to_string(tmp.path().join(file)).unwrap();
    let completions = [format!("{name}.bash"), format!("_{name}"), format!("{name}.fish")];
    let mut pages = Vec::new();
    let mut transcript = Transcript::of(crate_dir, "transcripts/help.txt");
    for command in std::iter::once("").chain(commands.iter().copied()) {
        let full = format!("{name} {command}");
        let line = format!("{} --help", full.trim_end());
        let help = Ran::of(Command::new(program).args(line.split_whitespace().skip(1)), b"");
        let help = help.expect(0).out;
        let file = format!("{}.8", full.trim_end().replace(' ', "-"));
        let man = page(&file).replace('\\', "");
        for word in help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
            // Options, not the dashes of a sentence.
            if word.starts_with("--") && word.len() > 3 {
                assert!(man.contains(word), "{file} does not say {word}");
                for file in &completions {
                    assert!(page(file).contains(&word[2..]), "{file} does not say {word}");
                }
            }
        }
        pages.push(file);
        transcript.run(program, &line, &[]);
    }
    let mut made: Vec<String> = fs::read_dir(tmp.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".8"))
        .collect();
    made.sort();
    pages.sort();
    assert_eq!(made, pages, "each command has a page, and is in the test's list");
    transcript.end(str::to_owned);
}
