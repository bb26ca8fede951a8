// SPDX-License-Identifier: GPL-2.0

//! Views: of sessions that ended, and of one that is being recorded while the
//! device changes under the reader.
#![allow(missing_docs)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bdsnap_abi::crc::crc32c;
use bdsnap_abi::format::{Durability, Gap, Id, Record, Run, State, Version, NO_ID};
use bdsnap_abi::ioctl::{
    Entry, StatusHead, ENTRY_PRESENT, ENTRY_RECORDING, RESTORE_REGISTERED, RESTORE_WATCHED,
};
use bdsnap_core::chain::Selector;
use bdsnap_core::device::Target;
use bdsnap_core::module::{Control, ModuleStatus, Registration, Watch};
use bdsnap_core::restore::Accept;
use bdsnap_core::test_support::{flip, pattern, Lab, Options};
use bdsnap_core::view::{Module, Request, View};
use bdsnap_core::{Kind, Result};
use proptest::prelude::*;

const CHUNKS: usize = 40;
const BYTES: usize = CHUNKS * 4096 - 1536;

fn open(lab: &Lab, dir: &str, accept: Accept, module: Option<Module>) -> Result<View> {
    let target = Target::find(&lab.image).unwrap();
    let selector = Selector::Name(dir.as_bytes().to_vec());
    View::open(&Request { store: &lab.store, target: &target, selector, accept }, module)
}

const GAP: Accept = Accept { gap: true, loss: false, alone: true };

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_read_of_any_session(
        writes in prop::collection::vec(prop::collection::vec((0..CHUNKS, 1usize..20_000), 1..4), 1..5),
        reads in prop::collection::vec((0..BYTES, 1usize..40_000), 1..8),
        zeros in any::<bool>(),
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = Lab::new(tmp.path(), BYTES);
        let mut truth = Vec::new();
        for (i, writes) in writes.iter().enumerate() {
            let before = lab.device.clone();
            let mut r = lab.record(&Options { zeros, ..Options::default() });
            for (n, &(chunk, len)) in writes.iter().enumerate() {
                let start = chunk * 4096 + 11 * n;
                let len = len.min(BYTES.saturating_sub(start));
                r.write(start, &if zeros { vec![0; len] } else { pattern(len, (i * 9 + n) as u64 + 3) });
            }
            truth.push((r.end(State::Closed), before));
        }
        for (dir, before) in &truth {
            let mut view = open(&lab, dir, GAP, None).unwrap();
            prop_assert_eq!(view.bytes(), BYTES as u64);
            for &(start, len) in &reads {
                let mut buf = vec![0; len.min(BYTES - start)];
                view.read(start as u64, &mut buf).unwrap();
                prop_assert!(buf == before[start..start + buf.len()], "{} at {}", dir, start);
            }
            // And its end.
            let mut after = view.after().unwrap();
            let mut buf = vec![0; BYTES];
            after.read(0, &mut buf).unwrap();
            let next = truth.iter().position(|(d, _)| d == dir).unwrap() + 1;
            let expected = truth.get(next).map_or(&lab.device, |(_, b)| b);
            prop_assert!(&buf == expected);
        }
    }
}

/// A module that works while somebody asks it: each time, it records and
/// writes a chunk, and sometimes ends the session.
struct Busy {
    image: File,
    dir: PathBuf,
    name: Vec<u8>,
    session_id: Id,
    state: Mutex<Work>,
    broken: AtomicBool,
}

struct Work {
    todo: Vec<usize>,
    records: u64,
    dat: u64,
}

impl Busy {
    fn write_one(&self) {
        let mut w = self.state.lock().unwrap();
        let Some(chunk) = w.todo.pop() else { return };
        self.write(&mut w, chunk, || ());
    }

    /// `half` is called when a half of the record is there.
    fn write(&self, w: &mut Work, chunk: usize, half: impl FnOnce()) {
        let start = chunk * 4096;
        let mut old = vec![0; 4096.min(BYTES - start)];
        self.image.read_exact_at(&mut old, start as u64).unwrap();
        let dat = OpenOptions::new().write(true).open(self.dir.join("blocks.dat")).unwrap();
        dat.write_all_at(&old, w.dat).unwrap();
        let bytes = old.len() as u32;
        let run = Run {
            tag: 0,
            sector: start as u64 / 512,
            bytes,
            stored: bytes,
            offset: w.dat,
            data_crc: crc32c(&old),
        };
        let layout = Version::NEWEST.layout();
        let mut bytes = vec![0; layout.record_len];
        Record::Run(run).encode(Version::NEWEST, &self.session_id, w.records, &mut bytes);
        let map = OpenOptions::new().write(true).open(self.dir.join("blocks.map")).unwrap();
        let at = layout.map_bytes(w.records).unwrap();
        // Zeros come first, as in the module's sessions.
        map.set_len(at + 4096).unwrap();
        map.write_all_at(&bytes[..16], at).unwrap();
        half();
        map.write_all_at(&bytes[16..], at + 16).unwrap();
        w.records += 1;
        w.dat += old.len() as u64;
        // Only now.
        self.image.write_all_at(&vec![0xdd; old.len()], start as u64).unwrap();
    }
}

struct Shared(Arc<Busy>);

impl Control for Shared {
    fn status(&self) -> Result<ModuleStatus> {
        let busy = &self.0;
        // Before and after the moment that it tells of.
        busy.write_one();
        let broken = busy.broken.load(Ordering::Relaxed);
        let entry = Entry {
            flags: ENTRY_PRESENT | ENTRY_RECORDING,
            session_id: busy.session_id,
            chain_seq: 2,
            state: if broken { State::Broken } else { State::Recording } as u32,
            ..Entry::default()
        };
        let r = Registration { entry, name: busy.name.clone(), dir: Vec::new() };
        busy.write_one();
        Ok(ModuleStatus { head: StatusHead::default(), entries: vec![r] })
    }

    fn restore_begin(&self, _: &[u8]) -> Result<Watch> {
        Ok(Watch { flags: RESTORE_REGISTERED | RESTORE_WATCHED, tail: NO_ID })
    }

    fn restore_over(&self, _: u32, _: &[u8]) -> std::io::Result<u64> {
        Ok(0)
    }

    fn end_raw(&self) -> Result<()> {
        Ok(())
    }
}

/// A closed session, and one that a module records now.
fn recording(
    lab: &mut Lab,
    durability: Durability,
    todo: Vec<usize>,
) -> (String, String, Arc<Busy>) {
    use std::os::unix::ffi::OsStrExt;
    let mut r = lab.record(&Options::default());
    r.write(0, &pattern(9000, 5));
    let closed = r.end(State::Closed);
    let mut r = lab.record(&Options { durability, ..Options::default() });
    r.write(4096 * 7, &pattern(4096, 6));
    let session_id = r.header.session_id;
    let (records, dat) = (r.records.len() as u64, r.dat.len() as u64);
    let now = r.cut();
    let busy = Arc::new(Busy {
        image: OpenOptions::new().read(true).write(true).open(&lab.image).unwrap(),
        dir: lab.path(&now),
        name: lab.image.as_os_str().as_bytes().to_vec(),
        session_id,
        state: Mutex::new(Work { todo, records, dat }),
        broken: AtomicBool::new(false),
    });
    (closed, now, busy)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_device_that_changes_meanwhile(
        order in prop::collection::vec(0..CHUNKS, 0..60),
        reads in prop::collection::vec((0..BYTES, 1usize..60_000), 1..40),
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = Lab::new(tmp.path(), BYTES);
        let first = lab.device.clone();
        let mut todo = Vec::new();
        for chunk in order {
            // The seventh is saved already, and each is saved once.
            if chunk != 7 && !todo.contains(&chunk) {
                todo.push(chunk);
            }
        }
        let (closed, now, busy) = recording(&mut lab, Durability::Strict, todo);
        let second = {
            let mut s = first.clone();
            s[..9000].copy_from_slice(&pattern(9000, 5));
            s
        };
        let module = || Some(Box::new(Shared(Arc::clone(&busy))) as Module);
        let mut a = open(&lab, &closed, Accept::default(), module()).unwrap();
        let mut b = open(&lab, &now, Accept::default(), module()).unwrap();
        for (start, len) in reads {
            let mut buf = vec![0; len.min(BYTES - start)];
            a.read(start as u64, &mut buf).unwrap();
            prop_assert!(buf == first[start..start + buf.len()], "the closed one at {}", start);
            b.read(start as u64, &mut buf).unwrap();
            prop_assert!(buf == second[start..start + buf.len()], "the recorded one at {}", start);
        }
        // From the moment on when it breaks nothing is told any more.
        busy.broken.store(true, Ordering::Relaxed);
        let mut buf = vec![0; BYTES];
        prop_assert_eq!(a.read(0, &mut buf).unwrap_err().kind, Kind::Refused);
        busy.broken.store(false, Ordering::Relaxed);
        prop_assert_eq!(a.read(0, &mut buf).unwrap_err().kind, Kind::Refused);
    }
}

#[test]
fn a_record_that_is_just_being_written() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let (_, now, busy) = recording(&mut lab, Durability::Strict, Vec::new());
    let module = || Some(Box::new(Shared(Arc::clone(&busy))) as Module);
    let mut view = open(&lab, &now, Accept::default(), module()).unwrap();
    let mut before = vec![0; BYTES];
    view.read(0, &mut before).unwrap();
    let (records, dat) = {
        let w = busy.state.lock().unwrap();
        (w.records, w.dat)
    };
    let mut w = Work { todo: Vec::new(), records, dat };
    let mut read = |chunk: usize| {
        let mut buf = [0; 4096];
        let result = view.read(chunk as u64 * 4096, &mut buf);
        result.map(|()| assert!(buf[..] == before[chunk * 4096..][..4096], "{chunk}"))
    };
    std::thread::scope(|s| {
        let (told, half) = std::sync::mpsc::channel();
        let busy = &busy;
        let w = &mut w;
        s.spawn(move || {
            busy.write(w, 3, || {
                told.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(100));
            });
        });
        half.recv().unwrap();
        read(3).unwrap();
    });
    read(3).unwrap();
    // One that nobody completes
    busy.write(&mut w, 4, || assert_eq!(read(4).unwrap_err().kind, Kind::Verification));
    read(4).unwrap();
}

#[test]
fn refusals() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let (closed, now, busy) = recording(&mut lab, Durability::Async, Vec::new());
    let module = || Some(Box::new(Shared(Arc::clone(&busy))) as Module);
    let refused = open(&lab, &now, Accept::default(), module()).unwrap_err();
    assert!(refused.kind == Kind::Refused && refused.message.contains("async"), "{refused}");
    // Nobody records it: it was cut, and may miss something.
    let refused = open(&lab, &closed, GAP, None).unwrap_err();
    assert!(refused.message.contains("async"), "{refused}");
    let refused = open(&lab, &closed, Accept::default(), None).unwrap_err();
    assert!(refused.message.contains("gap"), "{refused}");
    let all = Accept { gap: true, loss: true, alone: true };
    let view = open(&lab, &closed, all, None).unwrap();
    assert!(view.about.partial);
    // The device is held as long as it is viewed.
    assert_eq!(open(&lab, &closed, all, None).unwrap_err().kind, Kind::Refused);
}

#[test]
fn damage_is_found_at_the_first_use() {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(tmp.path(), BYTES);
    let mut r = lab.record(&Options { gap: Gap::None, ..Options::default() });
    r.write(0, &[1; 4096]);
    r.write(8 * 4096, &[1; 4096]);
    let dir = r.end(State::Closed);
    flip(&lab.path(&dir).join("blocks.dat"), 8 * 5000);
    let mut view = open(&lab, &dir, GAP, None).unwrap();
    let mut buf = [0; 512];
    view.read(0, &mut buf).unwrap();
    assert_eq!(view.read(8 * 4096, &mut buf).unwrap_err().kind, Kind::Verification);
}
