// SPDX-License-Identifier: GPL-2.0

//! A store whose files somebody has forged, checksums and all: the tools refuse
//! or go on, they neither panic nor write outside the device.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

use bdsnap_abi::format::{
    Features, Header, Record, Run, State, Status, Version, DEV_IMAGE, HEADER_LEN, MAP_NAME,
};
use bdsnap_core::chain::Selector;
use bdsnap_core::device::{Purpose, Target};
use bdsnap_core::inspect::{self, Summary};
use bdsnap_core::policy::Policies;
use bdsnap_core::progress::{Silent, Stop};
use bdsnap_core::prune::{self, Clock};
use bdsnap_core::restore::{self, Accept};
use bdsnap_core::store::Item;
use bdsnap_core::test_support::{pattern, Lab, Options, EPOCH_NS};
use bdsnap_core::view::{self, View};
use jiff::tz::TimeZone;
use proptest::prelude::*;

const BYTES: usize = 40 * 4096;
const ALL: Accept = Accept { gap: true, loss: true, alone: true };

/// A number as somebody would choose it who wants an overflow.
fn nasty() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => 0u64..64,
        2 => (0u64..100).prop_map(|n| n * 4096),
        1 => Just(BYTES as u64),
        1 => Just(EPOCH_NS),
        2 => (0u64..9000).prop_map(|n| u64::MAX - n),
        2 => (0u64..9000).prop_map(|n| (1 << 63) - 4500 + n),
        1 => (0u64..3).prop_map(|n| u64::MAX / 512 - 1 + n),
        1 => (0u32..64).prop_map(|n| 1 << n),
        1 => any::<u64>(),
    ]
}

/// What is changed in a session, by name.
#[derive(Debug, Clone)]
enum Lie {
    Header(u8, u64),
    Status(u8, u64),
    Record(prop::sample::Index, u8, u64),
    More(u8, u64, u64, u64),
    Meta(Vec<u8>),
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        4 => (0u8..16, nasty()).prop_map(|(f, n)| Lie::Header(f, n)),
        2 => (0u8..10, nasty()).prop_map(|(f, n)| Lie::Status(f, n)),
        3 => (any::<prop::sample::Index>(), 0u8..6, nasty()).prop_map(|(i, f, n)| Lie::Record(i, f, n)),
        1 => (0u8..4, nasty(), nasty(), nasty()).prop_map(|(f, a, b, c)| Lie::More(f, a, b, c)),
        1 => meta().prop_map(Lie::Meta),
    ]
}

fn meta() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        "\\{\"(device|session_id|start|tags|hold|schema_version)\": ?(\"[^\"]{0,40}\"|-?[0-9]{1,30}|\\[{0,200}|null)\\}"
            .prop_map(String::into_bytes),
        Just(vec![b'['; 200_000]),
    ]
}

/// Rewrites a session's files so, with checksums that fit.
fn forge(path: &Path, lies: &[Lie]) {
    let map = fs::read(path.join(MAP_NAME)).unwrap();
    let mut h = Header::decode(&map[..HEADER_LEN]).unwrap();
    let (version, layout) = (h.version, h.version.layout());
    let slots = layout.slots.map(|at| &map[at as usize..at as usize + layout.slot_len]);
    let mut status = Status::newest(version, slots, &h.session_id).unwrap();
    let mut records: Vec<Record> = map[layout.records as usize..]
        .chunks_exact(layout.record_len)
        .zip(0..)
        .map(|(r, i)| Record::decode(version, &h.session_id, i, r).unwrap())
        .collect();
    for lie in lies {
        match lie {
            Lie::Header(field, n) => {
                let n = *n;
                let field: &mut u64 = match field {
                    0..=2 => &mut h.device_bytes,
                    3 => &mut h.loop_offset,
                    4 => &mut h.loop_sizelimit,
                    5 => &mut h.part_start,
                    6 => &mut h.start_ns,
                    7 => &mut h.start_boot_ns,
                    8 => &mut h.chain_seq,
                    9 => &mut h.merged_seq,
                    10 => {
                        h.chunk_size = n as u32;
                        continue;
                    }
                    11 => {
                        h.logical_block_size = n as u32;
                        continue;
                    }
                    12 => {
                        h.dev_flags ^= n as u8 & !DEV_IMAGE;
                        continue;
                    }
                    13 => {
                        h.name[1..].rotate_left((n % 7) as usize);
                        h.name[0] = b"/\x1b"[(n % 2) as usize];
                        continue;
                    }
                    14 => {
                        h.session_id = [n as u8; 16];
                        continue;
                    }
                    _ => {
                        h.prev_session_id = [n as u8; 16];
                        continue;
                    }
                };
                *field = n;
            }
            Lie::Status(field, n) => match field {
                7 => status.more.late = Features { incompat: *n, ro_compat: *n, compat: 0 },
                8 => status.more.lossy_below = *n as u32,
                0 => status.records = *n,
                1 => status.map_records = *n,
                2 => status.dat_bytes = *n,
                3 => status.end_ns = *n,
                4 => status.errno = *n as u32,
                5 => status.broken_sector = *n,
                6 => status.generation = *n,
                _ => {
                    status.state = [State::Recording, State::Closed, State::Broken, State::Tainted]
                        [(*n % 4) as usize];
                }
            },
            Lie::Record(which, field, n) if !records.is_empty() => {
                match (which.get_mut(&mut records[..]), field) {
                    (Record::Run(r), 0) => r.sector = *n,
                    (Record::Run(r), 1) => (r.bytes, r.stored) = (*n as u32, *n as u32),
                    (Record::Run(r), 2) => r.offset = *n,
                    (Record::Run(r), 3) => r.stored = r.bytes * (*n % 2) as u32,
                    (Record::Run(r), 4) => r.tag = *n as u32,
                    (Record::Run(r), _) => r.data_crc = *n as u32,
                    (Record::Commit(end), _) => *end = *n,
                    (Record::Point(p), _) => (p.tag, p.dat_bytes) = (*n as u32, *n),
                    (Record::Passed, _) => {}
                }
            }
            Lie::Record(..) => {}
            Lie::More(flags, sector, bytes, offset) => {
                let (sector, bytes, offset) = (*sector, *bytes as u32, *offset);
                let run = Run { tag: 0, sector, bytes, stored: bytes, offset, data_crc: 0 };
                records.push(match flags {
                    0 => Record::Run(run),
                    1 => Record::Run(Run { stored: 0, ..run }),
                    2 => Record::Run(Run { tag: bytes, ..run }),
                    _ => Record::Commit(offset),
                });
                status.map_records = records.len() as u64;
                status.records =
                    records.iter().filter(|r| matches!(r, Record::Run(_))).count() as u64;
            }
            Lie::Meta(bytes) => fs::write(path.join("meta.json"), bytes).unwrap(),
        }
    }
    let mut out = vec![0; layout.records as usize];
    h.encode((&mut out[..HEADER_LEN]).try_into().unwrap());
    status.session_id = h.session_id;
    let at = layout.slots[status.slot()] as usize;
    status.encode(version, &mut out[at..at + layout.slot_len]);
    for (r, i) in records.iter().zip(0..) {
        let mut bytes = vec![0; layout.record_len];
        r.encode(version, &h.session_id, i, &mut bytes);
        out.extend_from_slice(&bytes);
    }
    fs::write(path.join(MAP_NAME), out).unwrap();
}

/// All that the tools do with a store. Errors are as good as any answer.
fn all_tools(lab: &Lab, dirs: &[String]) {
    let target = Target::find(&lab.image).unwrap();
    for item in lab.store.items().unwrap_or_default() {
        let Item::Session(s) = &item else { continue };
        let _ = format!("{s:?} {:?} {:?}", s.view(false), s.restorable(false));
        let _ = s.check(false, &Silent, &Stop::never());
        let _ = s.check_past_slot(false, &Silent, &Stop::never());
        let _ = s.runs(false);
        let _ = view::target_of(s);
        if let Ok(summary) = Summary::of(s, false) {
            let cells = inspect::heat(&summary.all, summary.device_bytes, 64);
            let _ = inspect::svg(&cells, 8, "title", "legend");
        }
    }
    for dir in dirs {
        let selector = || Selector::Name(dir.as_bytes().to_vec());
        let request =
            view::Request { store: &lab.store, target: &target, selector: selector(), accept: ALL };
        if let Ok(mut view) = View::open(&request, None) {
            let mut buf = [0; 6000];
            for at in [
                0,
                BYTES as u64 - 6000,
                view.bytes().saturating_sub(6000),
                view.bytes(),
                u64::MAX - 10,
            ] {
                let _ = view.read(at, &mut buf);
            }
            let _ = view.after().map(|mut v| v.read(0, &mut buf));
        }
        for to_image in [true, false] {
            let request = restore::Request {
                store: &lab.store,
                target: &target,
                selector: selector(),
                accept: ALL,
                purpose: if to_image { Purpose::Read } else { Purpose::Write },
                to_image,
                undo: !to_image,
            };
            let Ok(prepared) = restore::prepare(&request, &|| Ok(None), &Silent, &Stop::never())
            else {
                continue;
            };
            if !to_image {
                let _ = prepared.apply(&Silent, &Stop::never());
            }
        }
    }
    let mut policies = Policies::default();
    policies.give("keep_last", "1").unwrap();
    for now_ns in [EPOCH_NS + 365 * 86_400_000_000_000, u64::MAX] {
        let request = prune::Request {
            store: &lab.store,
            policies: &policies,
            clock: Clock { now_ns, boot_ns: 0, boot_id: [9; 16] },
            zone: TimeZone::UTC,
            allow_empty: false,
            trust_clock: true,
        };
        if let Ok(prepared) = prune::prepare(&request, None) {
            let _ = prepared.apply(None, &Silent, &Stop::never(), &|_| Ok(()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn lies_with_right_checksums(
        lies in prop::collection::vec((0usize..3, lie()), 1..6),
        twos in prop::array::uniform3(any::<bool>()),
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = Lab::new(tmp.path(), BYTES);
        let beside = pattern(4096, 99);
        fs::write(tmp.path().join("other"), &beside).unwrap();
        let mut dirs = Vec::new();
        for (i, two) in twos.iter().enumerate() {
            // A chain may be over both.
            lab.version = if *two { Version::Two } else { Version::One };
            let mut r = lab.record(&Options { zeros: i == 1, ..Options::default() });
            r.write(i * 8000, &pattern(20_000, i as u64 + 5));
            r.commit();
            r.write(100_000, &vec![0; 9000]);
            dirs.push(r.end(State::Closed));
        }
        for (i, dir) in dirs.iter().enumerate() {
            let of_this: Vec<Lie> =
                lies.iter().filter(|(n, _)| *n == i).map(|(_, l)| l.clone()).collect();
            forge(&lab.path(dir), &of_this);
        }
        all_tools(&lab, &dirs);
        prop_assert_eq!(lab.content().len(), BYTES, "the device has its size");
        prop_assert!(fs::read(tmp.path().join("other")).unwrap() == beside);
        let mut names: Vec<_> =
            fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        prop_assert_eq!(names, ["disk.img", "other", "store"], "nothing was written elsewhere");
    }
}
