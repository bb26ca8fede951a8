// SPDX-License-Identifier: GPL-2.0

//! Reading sessions: whole ones, damaged ones, torn ones.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

use bdsnap_abi::format::{
    Durability, Features, Record, Run, State, Version, DAT_NAME, INCOMPAT_ENCRYPTED, MAP_NAME,
    RO_COMPAT_DIGEST,
};
use bdsnap_core::progress::{Silent, Stop};
use bdsnap_core::session::{Checked, Restorable, Session, View};
use bdsnap_core::store::Item;
use bdsnap_core::test_support::{flip, pattern, Lab, Options};
use bdsnap_core::Kind;

const CHUNK: usize = 4096;

fn lab(dir: &Path, version: Version) -> Lab {
    let mut lab = Lab::new(dir, 10 * CHUNK + 512);
    lab.version = version;
    lab
}

/// The place of a session's `i`th record in its map, commits included, but not its start.
fn record_at(version: Version, i: u64) -> usize {
    let start = u64::from(version >= Version::Two);
    version.layout().map_bytes(start + i).unwrap() as usize
}

/// Each of these is tried with both versions of the format.
macro_rules! both {
    ($($test:ident)*) => {
        mod version_1 {
            $(#[test] fn $test() { super::$test(super::Version::One); })*
        }
        mod version_2 {
            $(#[test] fn $test() { super::$test(super::Version::Two); })*
        }
    };
}

both! {
    closed_session_is_whole
    any_flipped_bit_is_found
    any_truncation_and_addition_is_found
    swapped_files_are_found
    a_chunk_twice_is_damage
    records_beyond_device_or_data_are_damage
    interrupted_session_keeps_its_tail
    tainted_and_then_cut_is_read_like_interrupted
    tainted_to_its_end_has_exactly_what_it_says
    a_lost_newer_status_is_noticed
    states_and_what_they_allow
    the_store_lists_what_it_cannot_read
    points_of_a_session
    what_is_not_known_is_named
    holes_in_a_map
    nothing_between_the_slots
}

fn read(lab: &Lab, dir: &str) -> Result<Session, String> {
    Session::read(&lab.path(dir), dir.as_bytes())
}

/// Reads and checks; an error is damage, in words.
fn check(lab: &Lab, dir: &str) -> Result<Checked, String> {
    let session = read(lab, dir)?;
    session.check(false, &Silent, &Stop::never()).map_err(|e| {
        assert_eq!(e.kind, Kind::Verification);
        e.message
    })
}

/// A closed session of two runs, one of them the short last chunk.
fn closed(lab: &mut Lab) -> String {
    let mut r = lab.record(&Options::default());
    r.write(CHUNK, &[1; 2 * CHUNK]);
    r.commit();
    r.write(10 * CHUNK, &[2; 512]);
    r.end(State::Closed)
}

fn closed_session_is_whole(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let dir = closed(&mut lab);
    let s = read(&lab, &dir).unwrap();
    assert_eq!(s.view(false), View::Closed);
    assert_eq!(s.restorable(false), Restorable::Yes(None));
    let c = check(&lab, &dir).unwrap();
    assert_eq!((c.runs.len(), c.bytes, c.torn, c.tail), (2, 2 * 4096 + 512, 0, 0));
}

fn any_flipped_bit_is_found(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let dir = closed(&mut lab);
    for file in [MAP_NAME, DAT_NAME] {
        let path = lab.path(&dir).join(file);
        let bits = fs::metadata(&path).unwrap().len() * 8;
        // Every field of every structure has its turn, with changing bits.
        let whole = fs::read(&path).unwrap();
        for byte in (0..bits / 8).step_by(5).chain(bits / 8 - 64..bits / 8) {
            flip(&path, byte * 8 + (byte * 5) % 8);
            assert!(check(&lab, &dir).is_err(), "{file}: byte {byte}");
            fs::write(&path, &whole).unwrap();
        }
    }
    check(&lab, &dir).unwrap();
}

fn any_truncation_and_addition_is_found(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let dir = closed(&mut lab);
    let map = lab.path(&dir).join(MAP_NAME);
    let dat = lab.path(&dir).join(DAT_NAME);
    for (path, lengths) in [
        (
            &map,
            vec![
                0,
                7,
                8191,
                8192,
                9000,
                record_at(version, 0) - 1,
                record_at(version, 0),
                record_at(version, 0) + 31,
                record_at(version, 1),
                record_at(version, 4) - 1,
            ],
        ),
        (&dat, vec![0, 1, 8192, 8703]),
    ] {
        let whole = fs::read(path).unwrap();
        for len in lengths {
            fs::write(path, &whole[..len]).unwrap();
            assert!(check(&lab, &dir).is_err(), "{}: {len}", path.display());
        }
        fs::write(path, &whole).unwrap();
    }
    let whole = fs::read(&map).unwrap();
    fs::write(&map, [&whole[..], &vec![0; version.layout().record_len]].concat()).unwrap();
    assert!(check(&lab, &dir).is_err());
    fs::write(&map, &whole).unwrap();
    fs::remove_file(&dat).unwrap();
    assert!(check(&lab, &dir).is_err());
    // Room allocated beforehand is no damage.
    fs::write(&dat, [0; 20]).unwrap();
    assert!(check(&lab, &dir).is_err());
}

fn swapped_files_are_found(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let (a, b) = (closed(&mut lab), closed(&mut lab));
    for file in [MAP_NAME, DAT_NAME] {
        let (a_path, b_path) = (lab.path(&a).join(file), lab.path(&b).join(file));
        let whole = fs::read(&a_path).unwrap();
        if file == MAP_NAME {
            // A record of another session under this one's header.
            let other = fs::read(&b_path).unwrap();
            let mut mixed = whole.clone();
            let record = record_at(version, 0)..record_at(version, 1);
            mixed[record.clone()].copy_from_slice(&other[record]);
            fs::write(&a_path, mixed).unwrap();
        } else {
            fs::copy(&b_path, &a_path).unwrap();
        }
        assert!(check(&lab, &a).is_err());
        fs::write(&a_path, whole).unwrap();
    }
}

fn a_chunk_twice_is_damage(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; 2 * CHUNK]);
    let data_crc = crc32c::crc32c(&r.dat[..4096]);
    r.records.push(Record::Run(Run {
        tag: 0,
        sector: 8,
        bytes: 4096,
        stored: 4096,
        offset: 0,
        data_crc,
    }));
    let dir = r.end(State::Closed);
    assert!(check(&lab, &dir).unwrap_err().contains("twice"));
}

fn records_beyond_device_or_data_are_damage(version: Version) {
    for (sector, bytes, offset) in
        [(81, 4096, 0), (80, 4096, 0), (u64::MAX, 4096, 0), (0, 4096, u64::MAX), (0, 4096, 4096)]
    {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = lab(tmp.path(), version);
        let mut r = lab.record(&Options::default());
        r.write(0, &[1; CHUNK]);
        let run = r.records.iter_mut().find_map(|r| match r {
            Record::Run(run) => Some(run),
            _ => None,
        });
        let run = run.unwrap();
        *run = Run { sector, bytes, stored: bytes, offset, ..*run };
        let dir = r.end(State::Closed);
        assert!(check(&lab, &dir).is_err(), "{sector} {bytes} {offset}");
    }
}

fn interrupted_session_keeps_its_tail(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; CHUNK]);
    r.commit();
    r.write(CHUNK, &[2; CHUNK]);
    r.write(2 * CHUNK, &[3; CHUNK]);
    let dir = r.cut();
    let s = read(&lab, &dir).unwrap();
    assert_eq!((s.view(false), s.view(true)), (View::Interrupted, View::Recording));
    assert!(matches!(s.restorable(false), Restorable::Yes(Some(_))));
    assert!(matches!(s.restorable(true), Restorable::No(_)));
    let c = check(&lab, &dir).unwrap();
    assert_eq!((c.runs.len(), c.tail, c.torn), (3, 2, 0));
    // While it is being recorded the tail is in motion.
    assert_eq!(s.check(true, &Silent, &Stop::never()).unwrap().runs.len(), 1);

    let (map, dat) = (lab.path(&dir).join(MAP_NAME), lab.path(&dir).join(DAT_NAME));
    let (whole_map, whole_dat) = (fs::read(&map).unwrap(), fs::read(&dat).unwrap());
    let record = |i: u64| record_at(version, i) as u64 * 8;
    // (what, runs left, torn)
    let case = |change: &dyn Fn(), runs: usize, torn: u64, what: &str| {
        change();
        let c = check(&lab, &dir).unwrap();
        assert_eq!((c.runs.len(), c.torn), (runs, torn), "{what}");
        fs::write(&map, &whole_map).unwrap();
        fs::write(&dat, &whole_dat).unwrap();
    };
    case(&|| flip(&map, record(2) + 3), 1, 0, "a torn record ends the map");
    case(&|| flip(&map, record(3) + 3), 2, 0, "the last record is torn");
    case(&|| flip(&dat, (CHUNK * 8) as u64), 2, 1, "torn data in the tail");
    case(&|| fs::write(&dat, &whole_dat[..CHUNK]).unwrap(), 1, 2, "data of the tail are missing");
    case(&|| fs::write(&map, &whole_map[..whole_map.len() - 5]).unwrap(), 2, 0, "half a record");
    case(
        &|| fs::write(&map, [&whole_map[..], &[0; 4096]].concat()).unwrap(),
        3,
        0,
        "empty room at the end",
    );
    // Before the commit nothing may be wrong.
    flip(&map, record(0) + 3);
    assert!(check(&lab, &dir).unwrap_err().contains("commit follows"));
    fs::write(&map, &whole_map).unwrap();
    flip(&dat, 8);
    assert!(check(&lab, &dir).unwrap_err().contains("sector 0"));
    fs::write(&dat, &whole_dat[..100]).unwrap();
    assert!(check(&lab, &dir).unwrap_err().contains("durable"));
}

fn tainted_and_then_cut_is_read_like_interrupted(version: Version) {
    for durability in [Durability::Strict, Durability::Async] {
        let tmp = tempfile::tempdir().unwrap();
        let mut lab = lab(tmp.path(), version);
        let mut r = lab.record(&Options { durability, ..Options::default() });
        r.write(0, &[1; CHUNK]);
        r.taint();
        r.write(CHUNK, &[2; CHUNK]);
        r.commit();
        r.write(2 * CHUNK, &[3; CHUNK]);
        let dir = r.cut();
        let s = read(&lab, &dir).unwrap();
        assert_eq!((s.status.state, s.status.records), (State::Tainted, 1));
        assert!(!s.has_ended());
        assert_eq!((s.view(false), s.view(true)), (View::Tainted, View::Recording));
        assert!(matches!(s.restorable(false), Restorable::Lossy(_)));
        assert!(matches!(s.restorable(true), Restorable::No(_)));
        // More than its status counts, as far as it goes.
        let c = check(&lab, &dir).unwrap();
        assert_eq!((c.runs.len(), c.tail, c.torn), (3, 1, 0));
        assert_eq!(s.check(true, &Silent, &Stop::never()).unwrap().runs.len(), 2);
        let (map, dat) = (lab.path(&dir).join(MAP_NAME), lab.path(&dir).join(DAT_NAME));
        let (whole_map, whole_dat) = (fs::read(&map).unwrap(), fs::read(&dat).unwrap());
        fs::write(&map, [&whole_map[..], &[0; 4096]].concat()).unwrap();
        fs::write(&dat, [&whole_dat[..], &[0; 8192]].concat()).unwrap();
        assert_eq!(check(&lab, &dir).unwrap().runs.len(), 3, "zeros at the end");
        fs::write(&dat, &whole_dat[..2 * CHUNK]).unwrap();
        let c = check(&lab, &dir).unwrap();
        assert_eq!((c.runs.len(), c.torn), (2, 1), "a torn tail");
        flip(&dat, 8 * CHUNK as u64 + 8);
        assert!(check(&lab, &dir).unwrap_err().contains("sector 8"), "before the commit");
    }
}

fn tainted_to_its_end_has_exactly_what_it_says(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; CHUNK]);
    r.taint();
    r.write(CHUNK, &[2; CHUNK]);
    let dir = r.end(State::Tainted);
    let s = read(&lab, &dir).unwrap();
    assert!(s.has_ended());
    assert_eq!((s.view(false), s.status.records), (View::Tainted, 2));
    assert_eq!(check(&lab, &dir).unwrap().runs.len(), 2);
    let map = lab.path(&dir).join(MAP_NAME);
    fs::write(&map, [&fs::read(&map).unwrap()[..], &[0; 4096]].concat()).unwrap();
    assert!(check(&lab, &dir).unwrap_err().contains("bytes instead of"));
}

fn a_lost_newer_status_is_noticed(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; CHUNK]);
    let dir = r.end(State::Broken);
    // Generation 2 is in slot 0: the older slot still says "recording".
    flip(&lab.path(&dir).join(MAP_NAME), (version.layout().slots[0] + 40) * 8);
    let s = read(&lab, &dir).unwrap();
    assert_eq!(s.view(false), View::Interrupted);
    assert!(matches!(s.restorable(false), Restorable::Lossy(_)));
    assert!(check(&lab, &dir).unwrap_err().contains("slot"));
}

fn states_and_what_they_allow(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    for (state, view) in [(State::Broken, View::Broken), (State::Tainted, View::Tainted)] {
        let mut r = lab.record(&Options::default());
        r.write(0, &[1; CHUNK]);
        let dir = r.end(state);
        let s = read(&lab, &dir).unwrap();
        assert_eq!(s.view(false), view);
        assert!(matches!(s.restorable(false), Restorable::Lossy(_)));
        check(&lab, &dir).unwrap();
    }
    let options = Options { durability: Durability::Async, ..Options::default() };
    let mut r = lab.record(&options);
    r.write(0, &[1; CHUNK]);
    let dir = r.cut();
    assert!(matches!(read(&lab, &dir).unwrap().restorable(false), Restorable::Lossy(_)));
}

fn the_store_lists_what_it_cannot_read(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let dir = closed(&mut lab);
    let root = lab.store.path();
    let make = |name: &str, map: Option<&[u8]>| {
        fs::create_dir(root.join(name)).unwrap();
        if let Some(map) = map {
            fs::write(root.join(name).join(MAP_NAME), map).unwrap();
        }
    };
    make("vdb_20261121T000000Z", None);
    make("odd", Some(&pattern(100, 3)));
    make("notes", None);
    make("sda_1763790000", Some(&[0; 21]));
    make("sda_1763790001", None);
    fs::write(root.join("sda_1763790000").join(DAT_NAME), "").unwrap();
    std::os::unix::fs::symlink("/dev/zero", root.join(&dir).join("extra")).unwrap();
    fs::create_dir(root.join("fifo_20261121T000000Z")).unwrap();
    let fifo = root.join("fifo_20261121T000000Z").join(MAP_NAME);
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut found: Vec<(String, bool)> = lab
        .store
        .items()
        .unwrap()
        .iter()
        .map(|i| {
            let good = matches!(i, Item::Session(_) | Item::Original(_));
            (String::from_utf8(i.dir().to_vec()).unwrap(), good)
        })
        .collect();
    found.sort();
    let mut expected = [
        (dir.as_str(), true),
        ("vdb_20261121T000000Z", false),
        ("odd", false),
        ("sda_1763790000", false),
        ("fifo_20261121T000000Z", false),
    ];
    expected.sort_unstable();
    let found: Vec<(&str, bool)> = found.iter().map(|(n, g)| (n.as_str(), *g)).collect();
    assert_eq!(found, expected);
}

/// Of each place the first run with a tag of at least the point's is what was there then.
fn points_of_a_session(version: Version) {
    if version < Version::Two {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let mut r = lab.record(&Options::default());
    let mut pasts = vec![r.device().to_vec()];
    for point in 0..4u8 {
        // Some chunks in each, some in one, one in none.
        r.write(usize::from(point) * CHUNK, &[point + 1; 2 * CHUNK]);
        r.write(9 * CHUNK, &[point + 7; CHUNK + 512]);
        if point < 3 {
            r.point();
            pasts.push(r.device().to_vec());
        }
    }
    let dir = r.end(State::Closed);
    let session = read(&lab, &dir).unwrap();
    let runs = check(&lab, &dir).unwrap().runs;
    let dat = fs::read(lab.path(&dir).join(DAT_NAME)).unwrap();
    for (point, past) in pasts.iter().enumerate() {
        let mut device = lab.device.clone();
        for e in bdsnap_core::plan::at_point(&runs, 0, point as u32) {
            let bdsnap_core::plan::Source::Dat { offset, .. } = e.source else { panic!("{e:?}") };
            let (start, len) = (e.start as usize, e.len as usize);
            device[start..start + len].copy_from_slice(&dat[offset as usize..][..len]);
        }
        assert!(device == *past, "point {point}");
    }
    assert!(session.features().refuses_reading().is_none());
    // A run of a point that there is not, and one that is older than the one before it.
    for (tags, what) in [([0, 9], "no point has"), ([1, 0], "out of order")] {
        let mut r = lab.record(&Options::default());
        r.point();
        for (i, tag) in tags.into_iter().enumerate() {
            r.tag = tag;
            r.write(i * CHUNK, &[1; CHUNK]);
        }
        let dir = r.end(State::Closed);
        assert!(check(&lab, &dir).unwrap_err().contains(what));
    }
}

/// Of a session that later code wrote.
fn what_is_not_known_is_named(version: Version) {
    if version < Version::Two {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let mut with = |features: Features| {
        let mut r = lab.record(&Options::default());
        r.header.features = features;
        r.write(0, &[1; CHUNK]);
        let dir = r.end(State::Closed);
        read(&lab, &dir)
    };
    let error = with(Features { incompat: INCOMPAT_ENCRYPTED, ..Features::NONE }).unwrap_err();
    assert!(error.contains("encrypted content") && error.contains("newer"), "{error}");
    assert!(with(Features { incompat: 1 << 50, ..Features::NONE }).is_err());
    let read_only = with(Features { ro_compat: RO_COMPAT_DIGEST, ..Features::NONE }).unwrap();
    assert_eq!(read_only.features().refuses_change(), Some("a digest"));
    assert!(with(Features { compat: 1 << 50, ..Features::NONE }).is_ok());
}
/// A map that has lost something in its middle, or its start.
fn holes_in_a_map(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let mut r = lab.record(&Options::default());
    for i in 0..4 {
        r.write(i * CHUNK, &[1; CHUNK]);
        r.commit();
    }
    r.write(5 * CHUNK, &[1; CHUNK]);
    let dir = r.cut();
    let path = lab.path(&dir).join(MAP_NAME);
    let whole = fs::read(&path).unwrap();
    let (start, len) = (version.layout().records as usize, version.layout().record_len);
    let records = (whole.len() - start) / len;
    assert!(check(&lab, &dir).is_ok());
    // Each record but the last ones: behind those no commit tells of it.
    for gone in 0..records - 2 {
        let at = start + gone * len;
        fs::write(&path, [&whole[..at], &whole[at + len..]].concat()).unwrap();
        assert!(check(&lab, &dir).is_err(), "without record {gone}");
    }
    if version >= Version::Two {
        // One batch, and no commit.
        let mut r = lab.record(&Options::default());
        r.write(0, &[2; CHUNK]);
        let dir = r.cut();
        let path = lab.path(&dir).join(MAP_NAME);
        let whole = fs::read(&path).unwrap();
        for cut in [start, start + 1, start + len - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(check(&lab, &dir).unwrap_err().contains("start is missing"), "{cut}");
        }
        let mut flipped = whole.clone();
        flipped[start + 9] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(check(&lab, &dir).unwrap_err().contains("start is missing"));
        // Nothing was saved yet: then nothing is lost.
        fs::write(&path, &whole[..start]).unwrap();
        fs::write(lab.path(&dir).join(DAT_NAME), b"").unwrap();
        assert!(check(&lab, &dir).unwrap().runs.is_empty());
    }
}

/// What is between the slots, and behind them, is zero.
fn nothing_between_the_slots(version: Version) {
    let tmp = tempfile::tempdir().unwrap();
    let mut lab = lab(tmp.path(), version);
    let mut r = lab.record(&Options::default());
    r.write(0, &[1; CHUNK]);
    let dir = r.end(State::Closed);
    let path = lab.path(&dir).join(MAP_NAME);
    let whole = fs::read(&path).unwrap();
    let layout = version.layout();
    let mut at: Vec<usize> = layout.slots.map(|s| s as usize + layout.slot_len).to_vec();
    at.push(layout.records as usize - 1);
    for at in at.into_iter().filter(|at| !layout.slots.contains(&(*at as u64))) {
        let mut map = whole.clone();
        map[at] ^= 1;
        fs::write(&path, &map).unwrap();
        assert!(check(&lab, &dir).unwrap_err().contains("not zero"), "{at}");
    }
}
