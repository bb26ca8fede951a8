// SPDX-License-Identifier: GPL-2.0

use super::*;
use proptest::prelude::*;

const BOTH: [Version; 2] = [Version::One, Version::Two];

fn header() -> Header {
    let mut h = Header::new();
    h.session_id = [0x11; 16];
    h.store_id = [0x22; 16];
    h.prev_session_id = [0x33; 16];
    h.boot_id = [0x44; 16];
    h.load_id = [0x55; 16];
    h.chain_seq = 7;
    h.start_ns = 1_795_219_199_000_000_000;
    h.device_bytes = 100 * 4096 + 512;
    h.kind = Kind::Mount;
    h.gap_before = Gap::Written;
    assert!(h.set_name(b"/dev/vdb"));
    h
}

#[test]
fn header_there_and_back() {
    let mut bytes = [0; HEADER_LEN];
    header().encode(&mut bytes);
    let h = Header::decode(&bytes).unwrap();
    assert_eq!(h.name(), b"/dev/vdb");
    assert_eq!(h.chain_seq, 7);
    assert_eq!(h.gap_before, Gap::Written);
    let mut again = [0; HEADER_LEN];
    h.encode(&mut again);
    assert_eq!(bytes[..], again[..]);
}

#[test]
fn header_of_each_version() {
    let mut h = header();
    h.features =
        Features { compat: COMPAT_WHEN, ro_compat: RO_COMPAT_HASHES, incompat: INCOMPAT_LOST };
    (h.data_id, h.diskseq, h.partuuid, h.fs_uuid) = ([1; 16], 2, [3; 16], [4; 16]);
    (h.fs_writes, h.disk_sectors, h.restored_moment) = (5, 6, [7; 16]);
    assert!(h.set_serial(&[b's'; SERIAL_MAX]) && !h.set_serial(&[b's'; SERIAL_MAX + 1]));
    let more = |h: &Header| {
        (h.features, h.data_id, h.diskseq, h.partuuid, h.fs_uuid, h.fs_writes, h.disk_sectors)
    };
    let mut bytes = [0; HEADER_LEN];
    h.encode(&mut bytes);
    let back = Header::decode(&bytes).unwrap();
    assert_eq!((back.version, more(&back)), (Version::Two, more(&h)));
    assert_eq!((back.serial(), back.restored_moment), (h.serial(), h.restored_moment));
    h.version = Version::One;
    h.encode(&mut bytes);
    let back = Header::decode(&bytes).unwrap();
    assert_eq!((back.version, more(&back)), (Version::One, more(&Header::new())));
    assert!(back.serial().is_empty());
    assert!(bytes[264..512].iter().all(|b| *b == 0), "version 1 has nothing there");
    // More of a serial than there is room for.
    h.version = Version::Two;
    h.encode(&mut bytes);
    bytes[376..378].copy_from_slice(&135u16.to_le_bytes());
    seal(&mut bytes);
    assert_eq!(Header::decode(&bytes).err(), Some(FormatError::Field("serial_len")));
}

#[test]
fn header_refuses() {
    let mut good = [0; HEADER_LEN];
    header().encode(&mut good);
    let err = |bytes: &[u8]| Header::decode(bytes).err().unwrap();
    assert_eq!(err(&good[..100]), FormatError::Short);
    let mut b = good;
    b[0] ^= 1;
    assert_eq!(err(&b), FormatError::Magic);
    b = good;
    b[8] = 9;
    assert_eq!(err(&b), FormatError::Version(9));
    b = good;
    b[600] ^= 1;
    assert_eq!(err(&b), FormatError::Checksum);
    let mut h = header();
    h.chunk_size = 5000;
    h.encode(&mut b);
    assert_eq!(err(&b), FormatError::Field("chunk_size"));
}

#[test]
fn newest_slot_counts() {
    let id = [9; 16];
    let old = Status::recording(id);
    let new = Status { state: State::Broken, errno: 28, generation: 2, ..old };
    for version in BOTH {
        newest(version, old, new);
    }
}

fn newest(version: Version, mut old: Status, mut new: Status) {
    let id = old.session_id;
    let len = version.layout().slot_len;
    let (mut a, mut b) = (vec![0; len], vec![0; len]);
    old.encode(version, &mut a);
    new.encode(version, &mut b);
    assert_eq!(Status::newest(version, [&a, &b], &id).unwrap(), new);
    assert_eq!(Status::newest(version, [&b, &a], &id).unwrap(), new);
    b[40] ^= 1;
    assert_eq!(Status::newest(version, [&a, &b], &id).unwrap(), old);
    a[40] ^= 1;
    assert_eq!(Status::newest(version, [&a, &b], &id), Err(FormatError::Checksum));
    new.session_id = [8; 16];
    new.encode(version, &mut b);
    assert_eq!(Status::newest(version, [&a, &b], &id), Err(FormatError::Field("session_id")));
    old.generation = 3;
    assert_ne!(old.slot(), new.slot());
}

#[test]
fn status_there_and_back() {
    let more = More {
        points: 3,
        last_tag: 2,
        lossy_below: 1,
        late_flags: LATE_MEMBER,
        last_point_record: 9,
        end_boot_ns: 10,
        lost_bytes: 11,
        disk_sectors: 12,
        fs_writes: 13,
        digest: [14; 32],
        prev_digest: [15; 32],
        late: Features { compat: 0, ro_compat: RO_COMPAT_DIGEST, incompat: INCOMPAT_POINTS },
        tainted_ns: 16,
        taint_why: TAINT_DISCARD,
    };
    let status = Status { more, state: State::Tainted, ..Status::recording([9; 16]) };
    let mut bytes = [0; SLOT_LEN];
    status.encode(Version::Two, &mut bytes);
    assert_eq!(Status::decode(Version::Two, &bytes), Ok(status));
    status.encode(Version::One, &mut bytes[..512]);
    let old = Status { more: More::NONE, ..status };
    assert_eq!(Status::decode(Version::One, &bytes), Ok(old));
}

fn run(sector: u64, bytes: u32) -> Run {
    Run { tag: 0, sector, bytes, stored: bytes, offset: 4096, data_crc: 5 }
}

#[test]
fn record_belongs_to_its_session_and_place() {
    let point = Point {
        tag: 7,
        moment_id: [3; 16],
        time_ns: 1,
        boot_ns: 2,
        before: 3,
        dat_bytes: 4,
        members: 5,
        how: POINT_CUT,
        by: POINT_BY_RAW,
    };
    for version in BOTH {
        let mut bytes = vec![0; version.layout().record_len];
        let zeros = Run { stored: 0, offset: 0, ..run(8, 4096) };
        for r in [Record::Run(run(8, 4096)), Record::Run(zeros), Record::Commit(77)] {
            assert!(r.encode(version, &[1; 16], 5, &mut bytes));
            assert_eq!(Record::decode(version, &[1; 16], 5, &bytes), Ok(r));
            let other = Record::decode(version, &[2; 16], 5, &bytes);
            assert_eq!(other, Err(FormatError::Checksum));
            let moved = Record::decode(version, &[1; 16], 6, &bytes);
            let tells = version == Version::Two || matches!(r, Record::Commit(_));
            assert_eq!(moved.is_err(), tells, "{moved:?}");
        }
        bytes.fill(0);
        assert_eq!(Record::decode(version, &[1; 16], 5, &bytes), Err(FormatError::Checksum));
        let written = Record::Point(point).encode(version, &[1; 16], 5, &mut bytes);
        assert_eq!(written, version == Version::Two);
    }
    let mut bytes = [0; RECORD_MAX];
    Record::Point(point).encode(Version::Two, &[1; 16], 5, &mut bytes);
    assert_eq!(Record::decode(Version::Two, &[1; 16], 5, &bytes), Ok(Record::Point(point)));
}

/// What later code may write: some of it can be passed over, some not.
#[test]
fn records_of_later_code() {
    let decode = |change: &dyn Fn(&mut [u8; RECORD_MAX])| {
        let mut bytes = [0; RECORD_MAX];
        Record::Run(run(8, 4096)).encode(Version::Two, &NO_ID, 0, &mut bytes);
        change(&mut bytes);
        let crc = crc::update(crc::update(crc::crc32c(&NO_ID), &[0; 8]), &bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        Record::decode(Version::Two, &NO_ID, 0, &bytes)
    };
    assert!(decode(&|_| {}).is_ok());
    assert_eq!(decode(&|b| b[0] = 0x84), Ok(Record::Passed));
    assert_eq!(decode(&|b| b[0] = 4), Err(FormatError::Field("type")));
    assert_eq!(decode(&|b| b[1] = 2), Err(FormatError::Field("lost")));
    assert_eq!(decode(&|b| b[1] = 4), Err(FormatError::Field("flags")));
    assert_eq!(decode(&|b| b[2] = 1), Err(FormatError::Field("flags")), "a codec");
    assert_eq!(decode(&|b| b[20] ^= 1), Err(FormatError::Field("stored")));
    assert!(decode(&|b| b[44] = 1).is_ok(), "a hash, which need not be known");
}

#[test]
fn record_fits_its_device() {
    let h = header();
    let check = |sector, bytes| run(sector, bytes).check(&h).is_ok();
    assert!(check(0, 4096));
    assert!(check(800, 512), "the last, short chunk");
    assert!(check(792, 4096 + 512));
    assert!(!check(0, 512), "part of a chunk");
    assert!(!check(1, 4096), "not at a chunk's start");
    assert!(!check(800, 1024), "beyond the end");
    assert!(!check(u64::MAX, 4096));
    assert!(!check(u64::MAX / 512, u32::MAX));
    assert!(!check(0, 0));
}

#[test]
fn what_is_not_known_is_named() {
    let with = |incompat, ro_compat| Features { compat: 0, ro_compat, incompat };
    let plain = with(INCOMPAT_POINTS | INCOMPAT_SORTED, 0);
    assert_eq!((plain.refuses_reading(), plain.refuses_change()), (None, None));
    assert_eq!(with(INCOMPAT_ENCRYPTED, 0).refuses_reading(), Some("encrypted content"));
    assert_eq!(with(INCOMPAT_CODEC, 0).refuses_change(), Some("compressed content"));
    let unknown = Some("a feature that was not yet thought of");
    assert_eq!(with(1 << 40, 0).refuses_reading(), unknown);
    assert_eq!(with(0, RO_COMPAT_DIGEST).refuses_reading(), None);
    assert_eq!(with(0, RO_COMPAT_DIGEST).refuses_change(), Some("a digest"));
    assert_eq!(with(0, 1 << 40).refuses_change(), unknown);
    assert_eq!(Features { compat: u64::MAX, ..Features::NONE }.refuses_change(), None);
}

/// A device may tear what is being written, but no more than a block: each slot, and the records, begin at one.
#[test]
fn structures_stand_in_blocks_of_their_own() {
    let l = Version::Two.layout();
    assert!(l.slots[0] >= HEADER_LEN as u64 && l.slots[0] % 4096 == 0 && l.slot_len == SLOT_LEN);
    assert_eq!((l.slots[1], l.records), (l.slots[0] + 4096, l.slots[1] + 4096));
    assert_eq!(l.map_bytes(3), Some(l.records + 192));
    assert_eq!(l.map_bytes(u64::MAX), None);
}

#[test]
fn marker_is_a_text() {
    let m = Marker { version: Version::One, store_id: [0xab; 16], chain_seq: 42 };
    let mut bytes = [0; MARKER_LEN];
    m.encode(&mut bytes);
    let text = core::str::from_utf8(&bytes).unwrap();
    assert!(text.starts_with("bdsnap-store 1\nid abab"));
    assert!(text.contains("\nchain_seq 00000000000000000042 "));
    assert!(text.ends_with(" \n"));
    assert_eq!(Marker::decode(&bytes), Ok(m));
    bytes[13] = b'2';
    assert_eq!(Marker::decode(&bytes), Ok(Marker { version: Version::Two, ..m }));
    bytes[13] = b'3';
    assert_eq!(Marker::decode(&bytes), Err(FormatError::Version(3)));
    bytes[13] = b'1';
    for at in [0, 20, 55, 70] {
        let mut b = bytes;
        b[at] = b'!';
        assert!(Marker::decode(&b).is_err(), "byte {at}");
    }
    let big = Marker { version: Version::Two, store_id: [1; 16], chain_seq: u64::MAX };
    big.encode(&mut bytes);
    assert_eq!(Marker::decode(&bytes), Ok(big));
}

#[test]
fn tail_there_and_back() {
    for version in BOTH {
        tail(version);
    }
}

fn tail(version: Version) {
    let mut t = Tail::new();
    t.version = version;
    (t.link, t.why, t.diskseq) = (Gap::Written, TAINT_UNSEEN, 8);
    (t.disk_sectors, t.fs_writes) = (9, 10);
    t.session_id = [3; 16];
    for i in 0..100 {
        t.push(Sample { sector: i * 8, bytes: 4096, crc: i as u32 });
    }
    assert_eq!(t.samples().len(), SAMPLES_MAX);
    let mut bytes = [0; TAIL_LEN];
    t.encode(&mut bytes);
    let back = Tail::decode(&bytes).unwrap();
    assert_eq!(back.samples(), t.samples());
    let more = |t: &Tail| (t.link, t.why, t.diskseq, t.disk_sectors, t.fs_writes);
    let nothing = (Gap::None, 0, 0, UNKNOWN, UNKNOWN);
    assert_eq!(more(&back), if version == Version::Two { more(&t) } else { nothing });
    bytes[200] ^= 4;
    assert_eq!(Tail::decode(&bytes).err(), Some(FormatError::Checksum));
}

proptest! {
    /// No bytes whatever make a decoder panic, sealed or not.
    #[test]
    fn decoders_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..HEADER_LEN + 1),
                            magic in 0usize..4, version in 1u32..3, reseal in any::<bool>()) {
        let magics = [MAP_MAGIC, SLOT_MAGIC, TAIL_MAGIC, *b"bdsnap-s"];
        if bytes.len() >= 16 {
            bytes[..8].copy_from_slice(&magics[magic]);
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
        }
        for len in [512, TAIL_LEN, HEADER_LEN] {
            if reseal && bytes.len() >= len {
                seal(&mut bytes[..len]);
            }
        }
        let _ = Header::decode(&bytes);
        for version in BOTH {
            let _ = Status::decode(version, &bytes);
            if let Ok(Record::Run(run)) = Record::decode(version, &NO_ID, 0, &bytes) {
                let _ = run.check(&header());
            }
        }
        let _ = Tail::decode(&bytes);
        let _ = Marker::decode(&bytes);
    }
}
