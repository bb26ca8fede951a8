// SPDX-License-Identifier: GPL-2.0

//! Builds the example of `docs/format.md` from nothing but that page, and
//! reads it.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

use bdsnap_abi::format::Version;
use bdsnap_core::progress::{Silent, Stop};
use bdsnap_core::session::{Checked, Restorable, Session, View};
use bdsnap_core::store::{Item, Store};

/// A vector of the page.
fn vector(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/format.md");
    let text = fs::read_to_string(path).unwrap();
    let mark = format!("<!-- vector: {name} -->\n```text\n");
    let from = text.find(&mark).expect("the vector") + mark.len();
    let rest = &text[from..];
    rest[..rest.find("```").unwrap()].to_owned()
}

/// The bytes of a dump.
fn bytes(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut line = [0; 16];
    for text in vector(name).lines().filter(|l| *l != "*") {
        let offset = usize::from_str_radix(&text[..8], 16).unwrap();
        while out.len() < offset {
            out.extend_from_slice(&line);
        }
        let Some(rest) = text.get(10..58) else { break };
        for (byte, digits) in line.iter_mut().zip(rest.split_whitespace()) {
            *byte = u8::from_str_radix(digits, 16).unwrap();
        }
        out.extend_from_slice(&line);
    }
    out
}

/// A fact of the page.
fn fact(name: &str) -> String {
    let facts = vector("facts");
    let line = facts.lines().find(|l| l.starts_with(name)).expect("the fact");
    line[name.len() + 2..].to_owned()
}

fn dat() -> Vec<u8> {
    (0..4608u32).map(|i| (i % 251) as u8).collect()
}

fn session(dir: &Path, map: &[u8]) -> Session {
    fs::write(dir.join("blocks.map"), map).unwrap();
    fs::write(dir.join("blocks.dat"), dat()).unwrap();
    Session::read(dir, fact("directory").as_bytes()).unwrap()
}

fn check(s: &Session) -> Result<Checked, String> {
    s.check(false, &Silent, &Stop::never()).map_err(|e| e.message)
}

#[test]
fn the_example_is_a_session() {
    is_a_session(Version::One, "map", "zero");
}

#[test]
fn the_example_of_version_2_is_a_session() {
    is_a_session(Version::Two, "map 2", "zero 2");
}

fn is_a_session(version: Version, map: &str, zero: &str) {
    let layout = version.layout();
    let slot = layout.slots[0] as usize;
    let slot = slot..slot + layout.slot_len;
    // Behind the point, where there is one.
    let first =
        layout.records as usize + if version < Version::Two { 0 } else { layout.record_len };
    let tmp = tempfile::tempdir().unwrap();
    let map = bytes(map);
    let s = session(tmp.path(), &map);
    assert_eq!(s.view(false), View::Closed);
    assert_eq!(s.restorable(false), Restorable::Yes(None));
    assert_eq!(s.header.name(), b"/dev/vdb");
    let checked = check(&s).unwrap();
    let runs: Vec<_> = checked.runs.iter().map(|r| (r.sector, r.bytes, r.offset)).collect();
    assert_eq!(runs, [(0, 4096, 512), (8, 512, 0)]);
    assert_eq!((checked.tail, checked.torn), (0, 0));

    let mut cut = map.clone();
    cut[slot.clone()].fill(0);
    let s = session(tmp.path(), &cut);
    assert_eq!(s.view(false), View::Interrupted);
    assert!(matches!(s.restorable(false), Restorable::Yes(Some(_))));
    assert_eq!(check(&s).unwrap().runs.len(), 2);
    for torn in
        [cut[..cut.len() - 1].to_vec(), [&cut[..cut.len() - 1], &[!cut[cut.len() - 1]]].concat()]
    {
        let checked = check(&session(tmp.path(), &torn)).unwrap();
        assert_eq!(checked.runs.iter().map(|r| r.sector).collect::<Vec<_>>(), [8]);
    }
    cut[first] ^= 1;
    assert!(check(&session(tmp.path(), &cut)).unwrap_err().contains("a commit follows"));

    if version >= Version::Two {
        return assert!(record_is(&map, first, layout.record_len, &bytes(zero), tmp.path()));
    }
    let mut broken = map;
    broken[slot].copy_from_slice(&bytes("broken"));
    let s = session(tmp.path(), &broken);
    assert_eq!((s.view(false), s.status.errno), (View::Broken, 28));
    assert_eq!(check(&s).unwrap().runs.len(), 1, "what follows does not count");
    assert!(record_is(&broken, first, layout.record_len, &bytes(zero), tmp.path()));
}

/// Whether the first run can be one of zeros.
fn record_is(map: &[u8], at: usize, len: usize, zero: &[u8], dir: &Path) -> bool {
    let mut map = map.to_vec();
    map[at..at + len].copy_from_slice(zero);
    let zeros = |c: Checked| c.runs.iter().any(|r| (r.sector, r.stored) == (8, 0));
    check(&session(dir, &map)).is_ok_and(zeros)
}

#[test]
fn the_example_is_a_store() {
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join(".bdsnap-store"), bytes("marker")).unwrap();
    let dir = tmp.path().join(fact("directory"));
    fs::create_dir(&dir).unwrap();
    session(&dir, &bytes("map"));
    let chain = tmp.path().join(".bdsnap-chain");
    fs::create_dir(&chain).unwrap();
    fs::write(chain.join(fact("chain tail's file")), bytes("tail")).unwrap();
    let store = Store::open(tmp.path()).unwrap();
    let items = store.items().unwrap();
    assert!(matches!(&items[..], [Item::Session(s)] if s.header.store_id == store.id()));
    let tail = store.tail(b"/dev/vdb").unwrap().unwrap();
    assert_eq!((tail.chain_seq, tail.samples().len()), (1, 2));
}
