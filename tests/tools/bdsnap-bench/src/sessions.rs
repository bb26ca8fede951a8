// SPDX-License-Identifier: GPL-2.0

//! A store full of small sessions, for measuring the tools.

use bdsnap_abi::crc::crc32c;
use bdsnap_abi::format::{
    Durability, Gap, Header, Kind, Marker, Point, Record, Run, State, Status, Version, DAT_NAME,
    HEADER_LEN, MAP_NAME, MARKER_NAME, POINT_BY_MOUNT, POINT_UNMOUNTED,
};
use bdsnap_abi::name::session_dir;
use std::error::Error;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// The device that they are of.
const NAME: &[u8] = b"/dev/mapper/many";
/// The first starts on 2026-01-01, each of the others half an hour later.
const START_NS: u64 = 1_767_225_600_000_000_000;
const STEP_NS: u64 = 1_800_000_000_000;

/// Makes `count` closed sessions of one chunk each, in a chain, in a store that
/// is there.
pub(crate) fn make(store: &Path, count: u64) -> Result<(), Box<dyn Error>> {
    let marker = Marker::decode(&fs::read(store.join(MARKER_NAME))?).map_err(|_| "no store")?;
    let layout = marker.version.layout();
    let mut header = Header::new();
    header.version = marker.version;
    header.store_id = marker.store_id;
    header.device_bytes = 1 << 30;
    header.chunk_size = 4096;
    header.logical_block_size = 512;
    header.kind = Kind::Mount;
    header.durability = Durability::Strict;
    header.gap_before = Gap::None;
    if !header.set_name(NAME) {
        return Err("the name".into());
    }
    let data = [7; 4096];
    let data_crc = crc32c(&data);
    for i in 0..count {
        header.prev_session_id = header.session_id;
        header.session_id = [0; 16];
        header.session_id[..8].copy_from_slice(&(i + 1).to_le_bytes());
        header.chain_seq = marker.chain_seq + 1 + i;
        header.start_ns = START_NS + i * STEP_NS;
        let run =
            Run { tag: 0, sector: i % 1000 * 8, bytes: 4096, stored: 4096, offset: 0, data_crc };
        let point = Point {
            tag: 0,
            moment_id: header.session_id,
            time_ns: header.start_ns,
            boot_ns: 0,
            before: 0,
            dat_bytes: 0,
            members: 1,
            how: POINT_UNMOUNTED,
            by: POINT_BY_MOUNT,
        };
        let records = match marker.version {
            Version::One => vec![Record::Run(run)],
            Version::Two => vec![Record::Point(point), Record::Run(run)],
        };
        let status = Status {
            generation: 2,
            state: State::Closed,
            records: 1,
            map_records: records.len() as u64,
            dat_bytes: data.len() as u64,
            end_ns: header.start_ns + STEP_NS / 2,
            ..Status::recording(header.session_id)
        };
        let start = layout.records as usize;
        let mut map = vec![0; start + records.len() * layout.record_len];
        header.encode((&mut map[..HEADER_LEN]).try_into()?);
        let slot = layout.slots[status.slot()] as usize;
        status.encode(header.version, &mut map[slot..slot + layout.slot_len]);
        for (index, out) in map[start..].chunks_mut(layout.record_len).enumerate() {
            records[index].encode(header.version, &header.session_id, index as u64, out);
        }
        let name = session_dir(NAME, header.start_ns, 0);
        let dir = store.join(std::str::from_utf8(name.as_bytes())?);
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        for (name, content) in [(MAP_NAME, &map[..]), (DAT_NAME, &data[..])] {
            let file = dir.join(name);
            fs::write(&file, content)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}
