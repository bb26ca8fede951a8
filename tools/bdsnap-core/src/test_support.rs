// SPDX-License-Identifier: GPL-2.0

//! For tests: an image file that is "recorded" as the module would do it, by
//! code of its own, so that reader and writer are not tested by themselves.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bdsnap_abi::format::{
    Durability, Gap, Header, Id, Kind, Record, State, Status, DAT_NAME, HEADER_LEN, MAP_NAME,
    NO_ID, RECORDS_OFFSET, RECORD_LEN, REC_COMMIT, REC_ZERO, RUN_MAX, SLOT_LEN, SLOT_OFFSETS,
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
    /// `blocks.dat`.
    pub dat: Vec<u8>,
    saved: Vec<bool>,
    zeros: bool,
}

impl Lab {
    /// A store and an image of so many bytes, with a pattern that repeats
    /// nowhere, in an empty directory.
    pub fn new(dir: &Path, bytes: usize) -> Self {
        let (store, _) = Store::init(&dir.join("store")).unwrap();
        let image = dir.canonicalize().unwrap().join("disk.img");
        let device = pattern(bytes, 1);
        fs::write(&image, &device).unwrap();
        Self { store, image, device, last: NO_ID, sessions: 0 }
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
            sessions: self.sessions + 100,
        }
    }

    /// A session begins.
    pub fn record(&mut self, options: &Options) -> Recorder<'_> {
        self.sessions += 1;
        let mut header = Header::new();
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
        Recorder {
            lab: self,
            header,
            records: Vec::new(),
            dat: Vec::new(),
            saved: vec![false; chunks],
            zeros: options.zeros,
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
        let zero = self.zeros && data.iter().all(|b| *b == 0);
        self.records.push(Record {
            sector: from as u64 / 512,
            bytes: (to - from) as u32,
            flags: if zero { REC_ZERO } else { 0 },
            offset: self.dat.len() as u64,
            data_crc: bdsnap_abi::crc::crc32c(data),
        });
        if !zero {
            self.dat.extend_from_slice(data);
        }
    }

    /// Says that all so far is durable.
    pub fn commit(&mut self) {
        self.records.push(Record {
            sector: self.records.len() as u64,
            bytes: 0,
            flags: REC_COMMIT,
            offset: self.dat.len() as u64,
            data_crc: 0,
        });
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
        let mut map = vec![0; RECORDS_OFFSET as usize];
        h.encode((&mut map[..HEADER_LEN]).try_into().unwrap());
        let recording = Status::recording(h.session_id);
        put_slot(&mut map, &recording);
        if let Some(state) = state {
            put_slot(
                &mut map,
                &Status {
                    generation: 2,
                    state,
                    records: self.records.iter().filter(|r| !r.is_commit()).count() as u64,
                    map_records: self.records.len() as u64,
                    dat_bytes: self.dat.len() as u64,
                    end_ns: h.start_ns + 60_000_000_000,
                    errno: if state == State::Broken { 28 } else { 0 },
                    broken_sector: if state == State::Broken { 800 } else { 0 },
                    ..recording
                },
            );
        }
        for r in &self.records {
            let mut bytes = [0; RECORD_LEN];
            r.encode(&h.session_id, &mut bytes);
            map.extend_from_slice(&bytes);
        }
        fs::write(path.join(MAP_NAME), map).unwrap();
        fs::write(path.join(DAT_NAME), &self.dat).unwrap();
        fs::write(&self.lab.image, &self.lab.device).unwrap();
        self.lab.last = h.session_id;
        dir
    }
}

fn put_slot(map: &mut [u8], status: &Status) {
    let at = SLOT_OFFSETS[status.slot()] as usize;
    status.encode((&mut map[at..at + SLOT_LEN]).try_into().unwrap());
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
