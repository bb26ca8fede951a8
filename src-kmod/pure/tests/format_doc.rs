// SPDX-License-Identifier: GPL-2.0

//! `docs/format.md` must not go stale: its tables of offsets and its test
//! vectors are compared with what the code writes.
//!
//! After a wanted change: `BDSNAP_BLESS=1 cargo test -p bdsnap-abi --test
//! format_doc` writes the vectors anew (not the tables).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use bdsnap_abi::crc::crc32c;
use bdsnap_abi::format::*;
use bdsnap_abi::meta::write_json;
use bdsnap_abi::name::{chain_key, session_dir};
use sha2::{Digest, Sha256};

fn doc_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/format.md")
}

fn doc() -> String {
    std::fs::read_to_string(doc_path()).expect("docs/format.md")
}

/// Sixteen bytes that count up from `first`.
fn id(first: u8) -> Id {
    std::array::from_fn(|i| first + i as u8)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// As `hexdump -C` shows it.
fn hexdump(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut last: &[u8] = &[];
    let mut starred = false;
    for (i, line) in bytes.chunks(16).enumerate() {
        if line == last && line.len() == 16 {
            if !starred {
                out += "*\n";
                starred = true;
            }
            continue;
        }
        starred = false;
        last = line;
        let mut digits = String::new();
        for (j, b) in line.iter().enumerate() {
            let gap = if j == 8 { "  " } else { " " };
            let _ = write!(digits, "{}{b:02x}", if j == 0 { "" } else { gap });
        }
        let text: String =
            line.iter().map(|&b| if (0x20..0x7f).contains(&b) { b as char } else { '.' }).collect();
        let _ = writeln!(out, "{:08x}  {digits:48}  |{text}|", i * 16);
    }
    let _ = writeln!(out, "{:08x}", bytes.len());
    out
}

// --- The example ------------------------------------------------------------

/// 2026-11-20 23:59:59 UTC.
const START: u64 = 1_795_219_199_000_000_000;

/// What the example's device held: 4608 bytes, a whole and a short chunk.
fn device() -> Vec<u8> {
    let dat = dat();
    [&dat[512..], &dat[..512]].concat()
}

/// The example's `blocks.dat`: the short chunk was saved first.
fn dat() -> Vec<u8> {
    (0..4608u32).map(|i| (i % 251) as u8).collect()
}

/// What the tables and vectors are of.
const VERSION: Version = Version::One;

fn header() -> Header {
    header_of(VERSION)
}

fn header_of(version: Version) -> Header {
    let mut h = Header::new();
    h.version = version;
    h.session_id = id(0x10);
    h.store_id = id(0x20);
    h.prev_session_id = NO_ID;
    h.boot_id = id(0x40);
    h.load_id = id(0x50);
    h.chain_seq = 1;
    h.start_ns = START;
    h.start_boot_ns = 61_000_000_000;
    h.device_bytes = 4608;
    h.dev_major = 254;
    h.dev_minor = 16;
    h.head_sha256 = sha256(&device());
    if version >= Version::Two {
        h.data_id = id(0xd0);
        h.diskseq = 3;
        h.disk_sectors = 16;
        assert!(h.set_serial(b"vdb"));
    }
    assert!(h.set_name(b"/dev/vdb"));
    h
}

fn records(version: Version) -> Vec<Record> {
    let dat = dat();
    let run = |sector, bytes: u32, offset: u64| {
        let data_crc = crc32c(&dat[offset as usize..][..bytes as usize]);
        Record::Run(Run { tag: 0, sector, bytes, stored: bytes, offset, data_crc })
    };
    let start = Record::Point(Point {
        tag: 0,
        moment_id: header().session_id,
        time_ns: START,
        boot_ns: header().start_boot_ns,
        before: 0,
        dat_bytes: 0,
        members: 1,
        how: POINT_UNMOUNTED,
        by: POINT_BY_MOUNT,
    });
    let start = Some(start).filter(|_| version >= Version::Two);
    start.into_iter().chain([run(8, 512, 0), Record::Commit(512), run(0, 4096, 512)]).collect()
}

fn closed() -> Status {
    closed_of(VERSION)
}

fn closed_of(version: Version) -> Status {
    Status {
        generation: 2,
        state: State::Closed,
        records: 2,
        map_records: records(version).len() as u64,
        dat_bytes: 4608,
        end_ns: START + 60_000_000_000,
        held_bios: 2,
        head_sha256: sha256(&[0xee; 4608]),
        more: if version < Version::Two {
            More::NONE
        } else {
            More { end_boot_ns: 121_000_000_000, disk_sectors: 25, ..More::NONE }
        },
        ..Status::recording(header().session_id)
    }
}

fn slot_of(version: Version, status: &Status) -> Vec<u8> {
    let mut bytes = vec![0; version.layout().slot_len];
    status.encode(version, &mut bytes);
    bytes
}

fn slot(status: &Status) -> Vec<u8> {
    slot_of(VERSION, status)
}

fn record_of(version: Version, record: &Record, index: u64) -> Vec<u8> {
    let mut bytes = vec![0; version.layout().record_len];
    assert!(record.encode(version, &header().session_id, index, &mut bytes));
    bytes
}

fn record(record: &Record, index: u64) -> Vec<u8> {
    record_of(VERSION, record, index)
}

fn map() -> Vec<u8> {
    map_of(VERSION)
}

fn map_of(version: Version) -> Vec<u8> {
    let layout = version.layout();
    let mut map = vec![0; layout.records as usize];
    let mut head = [0; HEADER_LEN];
    header_of(version).encode(&mut head);
    map[..HEADER_LEN].copy_from_slice(&head);
    for status in [Status::recording(header().session_id), closed_of(version)] {
        let at = layout.slots[status.slot()] as usize;
        map[at..at + layout.slot_len].copy_from_slice(&slot_of(version, &status));
    }
    for (r, i) in records(version).iter().zip(0..) {
        map.extend(record_of(version, r, i));
    }
    map
}

fn tail() -> Tail {
    tail_of(VERSION)
}

fn tail_of(version: Version) -> Tail {
    let mut t = Tail::new();
    t.version = version;
    if version >= Version::Two {
        (t.diskseq, t.disk_sectors) = (3, 25);
    }
    t.session_id = header().session_id;
    t.chain_seq = 1;
    t.boot_id = header().boot_id;
    t.load_id = header().load_id;
    t.device_bytes = 4608;
    t.head_sha256 = closed().head_sha256;
    t.push(Sample { sector: 8, bytes: 512, crc: crc32c(&[0xee; 512]) });
    t.push(Sample { sector: 0, bytes: 4096, crc: crc32c(&[0xee; 4096]) });
    t
}

/// The vectors by name, as they stand in the document.
fn vectors() -> BTreeMap<&'static str, String> {
    let mut marker = [0; MARKER_LEN];
    Marker { version: VERSION, store_id: id(0x20), chain_seq: 1 }.encode(&mut marker);
    let mut tail_bytes = [0; TAIL_LEN];
    tail().encode(&mut tail_bytes);
    let mut meta = String::new();
    write_json(&mut meta, &header(), &closed(), "", 4608).unwrap();
    let two = Version::Two;
    let mut meta_two = String::new();
    write_json(&mut meta_two, &header_of(two), &closed_of(two), "", 4608).unwrap();
    let mut tail_two = [0; TAIL_LEN];
    tail_of(two).encode(&mut tail_two);
    let facts_two = format!("SHA-256 of blocks.map: {}\n", hex(&sha256(&map_of(two))));
    let broken = Status {
        state: State::Broken,
        errno: 28,
        records: 1,
        map_records: 1,
        dat_bytes: 512,
        broken_sector: 0,
        broken_ns: START + 1_000_000_000,
        head_sha256: [0; 32],
        ..closed()
    };
    let zero = Record::Run(Run {
        tag: 0,
        sector: 8,
        bytes: 512,
        stored: 0,
        offset: 0,
        data_crc: crc32c(&[0; 512]),
    });
    let name = header().name().to_vec();
    let dir = session_dir(&name, START, 0);
    let facts = [
        ("directory", String::from_utf8(dir.as_bytes().to_vec()).unwrap()),
        ("chain tail's file", String::from_utf8(chain_key(&sha256(&name)).to_vec()).unwrap()),
        ("CRC-32C of \"123456789\"", format!("{:08x}", crc32c(b"123456789"))),
        ("CRC-32C of blocks.map", format!("{:08x}", crc32c(&map()))),
        ("CRC-32C of blocks.dat", format!("{:08x}", crc32c(&dat()))),
        ("SHA-256 of blocks.map", hex(&sha256(&map()))),
        ("SHA-256 of blocks.dat", hex(&sha256(&dat()))),
        ("SHA-256 of the device at the start", hex(&sha256(&device()))),
    ];
    let facts = facts.iter().fold(String::new(), |s, (k, v)| s + &format!("{k}: {v}\n"));
    BTreeMap::from([
        ("facts", facts),
        ("marker", hexdump(&marker)),
        ("map", hexdump(&map())),
        ("meta", meta),
        ("tail", hexdump(&tail_bytes)),
        ("broken", hexdump(&slot(&broken))),
        ("zero", hexdump(&record(&zero, 0))),
        ("facts 2", facts_two),
        ("map 2", hexdump(&map_of(two))),
        ("meta 2", meta_two),
        ("tail 2", hexdump(&tail_two)),
        ("zero 2", hexdump(&record_of(two, &zero, 1))),
    ])
}

#[test]
fn vectors_are_what_the_code_writes() {
    let mut text = doc();
    let mut stale = Vec::new();
    for (name, expected) in vectors() {
        let mark = format!("<!-- vector: {name} -->\n```text\n");
        let from = text.find(&mark).unwrap_or_else(|| panic!("no vector {name}")) + mark.len();
        let to = from + text[from..].find("```").expect("an end of the vector");
        if text[from..to] != expected {
            stale.push(format!("{name}, which should be:\n{expected}"));
            text.replace_range(from..to, &expected);
        }
    }
    if std::env::var_os("BDSNAP_BLESS").is_some() {
        std::fs::write(doc_path(), text).unwrap();
        return;
    }
    assert!(stale.is_empty(), "stale in docs/format.md: {}", stale.join("\n"));
}

// --- The tables -------------------------------------------------------------

/// The fields of a table: lines `| offset | bytes | `name` | … |` after the
/// heading `### Fields of TITLE`.
fn table(title: &str) -> BTreeMap<String, (usize, usize)> {
    let text = doc();
    let heading = format!("### Fields of {title}\n");
    let from = text.find(&heading).unwrap_or_else(|| panic!("no table of {title}"));
    let rest = &text[from + heading.len()..];
    let rest = &rest[..rest.find("\n#").unwrap_or(rest.len())];
    let row = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let offset = cells.next()?.parse().ok()?;
        let len = cells.next()?.parse().ok()?;
        let name = cells.next()?.trim_matches('`').to_owned();
        Some((name, (offset, len)))
    };
    rest.lines().filter_map(row).collect()
}

/// Checks a table: each field is where its value is found in `bytes`, and the
/// rows tile the structure.
fn check(title: &str, bytes: &[u8], fields: &[(&str, &[u8])]) {
    check_part(title, bytes, 0..bytes.len(), fields);
}

/// The same of a table that has only those of version 2, in `part`.
fn check_part(title: &str, bytes: &[u8], part: std::ops::Range<usize>, fields: &[(&str, &[u8])]) {
    let table = table(title);
    for (name, value) in fields {
        let (offset, len) = *table.get(*name).unwrap_or_else(|| panic!("{title}: no {name}"));
        assert_eq!(len, value.len(), "{title}: length of {name}");
        assert_eq!(&bytes[offset..offset + len], *value, "{title}: offset of {name}");
    }
    let mut rows: Vec<_> = table.values().copied().collect();
    rows.sort_unstable();
    let mut at = part.start;
    for (offset, len) in rows {
        assert_eq!(offset, at, "{title}: the rows do not tile it");
        at += len;
    }
    assert_eq!(at, part.end, "{title}: the rows do not fill it");
}

fn crc_field(bytes: &[u8]) -> [u8; 4] {
    bytes[bytes.len() - 4..].try_into().unwrap()
}

#[test]
fn table_of_the_header() {
    let mut h = header();
    h.prev_session_id = id(0x60);
    h.group_id = id(0x70);
    h.restored_id = id(0x80);
    h.merged_id = id(0x90);
    h.merged_seq = 0x0202_0202_0202_0202;
    h.chain_seq = 0x0101_0101_0101_0101;
    h.part_start = 0x0303_0303;
    h.loop_offset = 0x0404_0404;
    h.loop_sizelimit = 0x0505_0505;
    h.logical_block_size = 0x0606;
    h.kind = Kind::Undo;
    h.durability = Durability::Async;
    h.gap_before = Gap::Unknown;
    h.dev_flags = RAW_IN_FLIGHT;
    let mut bytes = [0; HEADER_LEN];
    h.encode(&mut bytes);
    let mut name = h.name().to_vec();
    name.resize(NAME_MAX, 0);
    check(
        "the header",
        &bytes,
        &[
            ("magic", &MAP_MAGIC),
            ("version", &1u32.to_le_bytes()),
            ("header_len", &8192u32.to_le_bytes()),
            ("session_id", &h.session_id),
            ("store_id", &h.store_id),
            ("prev_session_id", &h.prev_session_id),
            ("group_id", &h.group_id),
            ("boot_id", &h.boot_id),
            ("load_id", &h.load_id),
            ("chain_seq", &h.chain_seq.to_le_bytes()),
            ("start_ns", &h.start_ns.to_le_bytes()),
            ("start_boot_ns", &h.start_boot_ns.to_le_bytes()),
            ("device_bytes", &h.device_bytes.to_le_bytes()),
            ("part_start", &h.part_start.to_le_bytes()),
            ("loop_offset", &h.loop_offset.to_le_bytes()),
            ("loop_sizelimit", &h.loop_sizelimit.to_le_bytes()),
            ("chunk_size", &h.chunk_size.to_le_bytes()),
            ("logical_block_size", &h.logical_block_size.to_le_bytes()),
            ("dev_major", &h.dev_major.to_le_bytes()),
            ("dev_minor", &h.dev_minor.to_le_bytes()),
            ("kind", &[3]),
            ("durability", &[2]),
            ("gap_before", &[2]),
            ("dev_flags", &[4]),
            ("checksum", &[1]),
            ("compression", &[0]),
            ("name_len", &h.name_len.to_le_bytes()),
            ("head_sha256", &h.head_sha256),
            ("restored_id", &h.restored_id),
            ("merged_id", &h.merged_id),
            ("merged_seq", &h.merged_seq.to_le_bytes()),
            ("name", &name),
            ("crc", &crc_field(&bytes)),
        ],
    );
}

#[test]
fn table_of_a_status_slot() {
    let s = Status {
        generation: 0x0101_0101,
        state: State::Tainted,
        errno: 0x0202,
        records: 0x0303,
        map_records: 0x0404,
        dat_bytes: 0x0505,
        end_ns: 0x0606,
        broken_sector: 0x0707,
        broken_ns: 0x0808,
        absorbed_bytes: 0x0909,
        held_bios: 0x0a0a,
        ..closed()
    };
    let bytes = slot(&s);
    check(
        "a status slot",
        &bytes,
        &[
            ("magic", &SLOT_MAGIC),
            ("session_id", &s.session_id),
            ("generation", &s.generation.to_le_bytes()),
            ("state", &[4]),
            ("errno", &s.errno.to_le_bytes()),
            ("records", &s.records.to_le_bytes()),
            ("map_records", &s.map_records.to_le_bytes()),
            ("dat_bytes", &s.dat_bytes.to_le_bytes()),
            ("end_ns", &s.end_ns.to_le_bytes()),
            ("broken_sector", &s.broken_sector.to_le_bytes()),
            ("broken_ns", &s.broken_ns.to_le_bytes()),
            ("absorbed_bytes", &s.absorbed_bytes.to_le_bytes()),
            ("held_bios", &s.held_bios.to_le_bytes()),
            ("head_sha256", &s.head_sha256),
            ("crc", &crc_field(&bytes)),
        ],
    );
}

#[test]
fn table_of_a_record() {
    let r =
        Run { tag: 0, sector: 0x0101, bytes: 0x0202, stored: 0, offset: 0x0303, data_crc: 0x0404 };
    let bytes = record(&Record::Run(r), 0);
    check(
        "a record",
        &bytes,
        &[
            ("sector", &r.sector.to_le_bytes()),
            ("bytes", &r.bytes.to_le_bytes()),
            ("flags", &2u32.to_le_bytes()),
            ("offset", &r.offset.to_le_bytes()),
            ("data_crc", &r.data_crc.to_le_bytes()),
            ("crc", &crc_field(&bytes)),
        ],
    );
    let mut covered = header().session_id.to_vec();
    covered.extend(&bytes[..28]);
    assert_eq!(crc32c(&covered).to_le_bytes(), crc_field(&bytes));
}

#[test]
fn table_of_a_tail() {
    let mut t = tail();
    t.image_mtime_ns = 0x0101_0101;
    t.chunk_size = 8192;
    let mut bytes = [0; TAIL_LEN];
    t.encode(&mut bytes);
    let mut samples = Vec::new();
    for s in t.samples() {
        samples.extend(s.sector.to_le_bytes());
        samples.extend(s.bytes.to_le_bytes());
        samples.extend(s.crc.to_le_bytes());
    }
    samples.resize(16 * SAMPLES_MAX, 0);
    check(
        "a chain tail",
        &bytes,
        &[
            ("magic", &TAIL_MAGIC),
            ("version", &1u32.to_le_bytes()),
            ("chunk_size", &t.chunk_size.to_le_bytes()),
            ("session_id", &t.session_id),
            ("chain_seq", &t.chain_seq.to_le_bytes()),
            ("boot_id", &t.boot_id),
            ("load_id", &t.load_id),
            ("device_bytes", &t.device_bytes.to_le_bytes()),
            ("image_mtime_ns", &t.image_mtime_ns.to_le_bytes()),
            ("head_sha256", &t.head_sha256),
            ("sample_count", &2u32.to_le_bytes()),
            ("samples", &samples),
            ("crc", &crc_field(&bytes)),
        ],
    );
}

#[test]
fn tables_of_version_2() {
    let mut h = header();
    h.version = Version::Two;
    h.features = Features { compat: 0x0101, ro_compat: 0x0202, incompat: 0x0303 };
    h.data_id = id(0x61);
    h.diskseq = 0x0404;
    h.partuuid = id(0x71);
    h.fs_uuid = id(0x81);
    h.fs_writes = 0x0505;
    h.disk_sectors = 0x0606;
    h.restored_moment = id(0x91);
    assert!(h.set_serial(b"serial"));
    let mut bytes = [0; HEADER_LEN];
    h.encode(&mut bytes);
    check_part(
        "the header in version 2",
        &bytes,
        264..512,
        &[
            ("compat", &h.features.compat.to_le_bytes()),
            ("ro_compat", &h.features.ro_compat.to_le_bytes()),
            ("incompat", &h.features.incompat.to_le_bytes()),
            ("data_id", &h.data_id),
            ("diskseq", &h.diskseq.to_le_bytes()),
            ("partuuid", &h.partuuid),
            ("fs_uuid", &h.fs_uuid),
            ("fs_writes", &h.fs_writes.to_le_bytes()),
            ("disk_sectors", &h.disk_sectors.to_le_bytes()),
            ("restored_moment", &h.restored_moment),
            ("serial_len", &6u16.to_le_bytes()),
            ("serial", &h.serial),
        ],
    );

    let more = More {
        points: 0x0101,
        last_tag: 0x0202,
        lossy_below: 0x0303,
        late_flags: 0x0404,
        last_point_record: 0x0505,
        end_boot_ns: 0x0606,
        lost_bytes: 0x0707,
        disk_sectors: 0x0808,
        fs_writes: 0x0909,
        digest: [0x0a; 32],
        prev_digest: [0x0b; 32],
        late: Features { compat: 0, ro_compat: 0x0c0c, incompat: 0x0d0d },
        tainted_ns: 0x0e0e,
        taint_why: 0x0f0f,
    };
    let layout = Version::Two.layout();
    let mut bytes = vec![0; layout.slot_len];
    Status { more, ..closed() }.encode(Version::Two, &mut bytes);
    check_part(
        "a status slot in version 2",
        &bytes,
        136..512,
        &[
            ("points", &more.points.to_le_bytes()),
            ("last_tag", &more.last_tag.to_le_bytes()),
            ("lossy_below", &more.lossy_below.to_le_bytes()),
            ("late_flags", &more.late_flags.to_le_bytes()),
            ("last_point_record", &more.last_point_record.to_le_bytes()),
            ("end_boot_ns", &more.end_boot_ns.to_le_bytes()),
            ("lost_bytes", &more.lost_bytes.to_le_bytes()),
            ("disk_sectors", &more.disk_sectors.to_le_bytes()),
            ("fs_writes", &more.fs_writes.to_le_bytes()),
            ("digest", &more.digest),
            ("prev_digest", &more.prev_digest),
            ("late_incompat", &more.late.incompat.to_le_bytes()),
            ("late_ro_compat", &more.late.ro_compat.to_le_bytes()),
            ("tainted_ns", &more.tainted_ns.to_le_bytes()),
            ("taint_why", &more.taint_why.to_le_bytes()),
            ("crc", &crc_field(&bytes)),
        ],
    );

    let run =
        Run { tag: 7, sector: 8, bytes: 4096, stored: 4096, offset: 0x0303, data_crc: 0x0404 };
    let mut bytes = vec![0; layout.record_len];
    assert!(Record::Run(run).encode(Version::Two, &header().session_id, 9, &mut bytes));
    let mut body = [0; 52];
    body[..8].copy_from_slice(&run.sector.to_le_bytes());
    body[8..12].copy_from_slice(&run.bytes.to_le_bytes());
    body[12..16].copy_from_slice(&run.stored.to_le_bytes());
    body[16..24].copy_from_slice(&run.offset.to_le_bytes());
    body[24..28].copy_from_slice(&run.data_crc.to_le_bytes());
    check(
        "a record in version 2",
        &bytes,
        &[
            ("type", &[1]),
            ("flags", &[0]),
            ("codec", &[0]),
            ("zero", &[0]),
            ("tag", &7u32.to_le_bytes()),
            ("body", &body),
            ("crc", &crc_field(&bytes)),
        ],
    );
    let mut covered = header().session_id.to_vec();
    covered.extend(9u64.to_le_bytes());
    covered.extend(&bytes[..60]);
    assert_eq!(crc32c(&covered).to_le_bytes(), crc_field(&bytes));

    let mut t = tail();
    t.version = Version::Two;
    (t.link, t.why, t.diskseq) = (Gap::Unknown, 0x0101, 0x0202);
    (t.disk_sectors, t.fs_writes) = (0x0303, 0x0404);
    let mut bytes = [0; TAIL_LEN];
    t.encode(&mut bytes);
    check_part(
        "a chain tail in version 2",
        &bytes,
        1152..1184,
        &[
            ("link", &[2]),
            ("why", &t.why.to_le_bytes()),
            ("diskseq", &t.diskseq.to_le_bytes()),
            ("disk_sectors", &t.disk_sectors.to_le_bytes()),
            ("fs_writes", &t.fs_writes.to_le_bytes()),
        ],
    );
}
