// SPDX-License-Identifier: GPL-2.0

use super::*;
use proptest::prelude::*;

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
    let mut old = Status::recording(id);
    let mut new = Status { state: State::Broken, errno: 28, generation: 2, ..old };
    let (mut a, mut b) = ([0; SLOT_LEN], [0; SLOT_LEN]);
    old.encode(&mut a);
    new.encode(&mut b);
    assert_eq!(Status::newest([&a, &b], &id).unwrap(), new);
    assert_eq!(Status::newest([&b, &a], &id).unwrap(), new);
    b[40] ^= 1;
    assert_eq!(Status::newest([&a, &b], &id).unwrap(), old);
    a[40] ^= 1;
    assert_eq!(Status::newest([&a, &b], &id), Err(FormatError::Checksum));
    new.session_id = [8; 16];
    new.encode(&mut b);
    assert_eq!(Status::newest([&a, &b], &id), Err(FormatError::Field("session_id")));
    old.generation = 3;
    assert_ne!(old.slot(), new.slot());
}

#[test]
fn record_belongs_to_its_session() {
    let r = Record { sector: 8, bytes: 4096, flags: 0, offset: 4096, data_crc: 5 };
    let mut bytes = [0; RECORD_LEN];
    r.encode(&[1; 16], &mut bytes);
    assert_eq!(Record::decode(&bytes, &[1; 16]), Ok(r));
    assert_eq!(Record::decode(&bytes, &[2; 16]), Err(FormatError::Checksum));
    assert_eq!(Record::decode(&[0; RECORD_LEN], &[1; 16]), Err(FormatError::Checksum));
}

#[test]
fn record_fits_its_device() {
    let h = header();
    let check = |sector, bytes| {
        Record { sector, bytes, flags: 0, offset: 0, data_crc: 0 }.check(&h).is_ok()
    };
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
fn marker_is_a_text() {
    let m = Marker { store_id: [0xab; 16], chain_seq: 42 };
    let mut bytes = [0; MARKER_LEN];
    m.encode(&mut bytes);
    let text = core::str::from_utf8(&bytes).unwrap();
    assert!(text.starts_with("bdsnap-store 1\nid abab"));
    assert!(text.contains("\nchain_seq 00000000000000000042 "));
    assert!(text.ends_with(" \n"));
    assert_eq!(Marker::decode(&bytes), Ok(m));
    for at in [0, 20, 55, 70] {
        let mut b = bytes;
        b[at] = b'!';
        assert!(Marker::decode(&b).is_err(), "byte {at}");
    }
    let big = Marker { store_id: [1; 16], chain_seq: u64::MAX };
    big.encode(&mut bytes);
    assert_eq!(Marker::decode(&bytes), Ok(big));
}

#[test]
fn tail_there_and_back() {
    let mut t = Tail::new();
    t.session_id = [3; 16];
    for i in 0..100 {
        t.push(Sample { sector: i * 8, bytes: 4096, crc: i as u32 });
    }
    assert_eq!(t.samples().len(), SAMPLES_MAX);
    let mut bytes = [0; TAIL_LEN];
    t.encode(&mut bytes);
    let back = Tail::decode(&bytes).unwrap();
    assert_eq!(back.samples(), t.samples());
    bytes[200] ^= 4;
    assert_eq!(Tail::decode(&bytes).err(), Some(FormatError::Checksum));
}

proptest! {
    /// No bytes whatever make a decoder panic, sealed or not.
    #[test]
    fn decoders_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..HEADER_LEN + 1),
                            magic in 0usize..4, reseal in any::<bool>()) {
        let magics = [MAP_MAGIC, SLOT_MAGIC, TAIL_MAGIC, *b"bdsnap-s"];
        if bytes.len() >= 16 {
            bytes[..8].copy_from_slice(&magics[magic]);
            bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        }
        for len in [SLOT_LEN, TAIL_LEN, HEADER_LEN] {
            if reseal && bytes.len() >= len {
                seal(&mut bytes[..len]);
            }
        }
        let _ = Header::decode(&bytes);
        let _ = Status::decode(&bytes);
        let _ = Tail::decode(&bytes);
        let _ = Marker::decode(&bytes);
        if let Ok(r) = Record::decode(&bytes, &NO_ID) {
            let _ = r.check(&header());
        }
    }
}
