// SPDX-License-Identifier: GPL-2.0

//! A store full of small sessions, for measuring the tools.

use bdsnap_abi::crc::crc32c;
use bdsnap_abi::format::{
    Durability, Gap, Header, Kind, Marker, Record, State, Status, DAT_NAME, HEADER_LEN, MAP_NAME,
    MARKER_NAME, RECORDS_OFFSET, RECORD_LEN, SLOT_LEN, SLOT_OFFSETS,
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
    let mut header = Header::new();
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
        let status = Status {
            generation: 2,
            state: State::Closed,
            records: 1,
            map_records: 1,
            dat_bytes: data.len() as u64,
            end_ns: header.start_ns + STEP_NS / 2,
            ..Status::recording(header.session_id)
        };
        let record = Record { sector: i % 1000 * 8, bytes: 4096, flags: 0, offset: 0, data_crc };
        let mut map = vec![0; RECORDS_OFFSET as usize + RECORD_LEN];
        header.encode((&mut map[..HEADER_LEN]).try_into()?);
        let slot = SLOT_OFFSETS[status.slot()] as usize;
        status.encode((&mut map[slot..slot + SLOT_LEN]).try_into()?);
        record.encode(&header.session_id, (&mut map[RECORDS_OFFSET as usize..]).try_into()?);
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
