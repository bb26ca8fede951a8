// SPDX-License-Identifier: GPL-2.0

//! Writes `blocks.map`, in either version of the format.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use bdsnap_abi::format::{
    Header, Id, Layout, Point, Record, Run, Status, Version, HEADER_LEN, POINT_BY_MOUNT,
    POINT_BY_RAW, POINT_BY_UNDO, POINT_UNMOUNTED,
};

/// A map that is being written: header and slots first, then record by record.
pub(crate) struct MapWriter {
    file: BufWriter<File>,
    version: Version,
    session: Id,
    /// Records so far.
    records: u64,
}

impl MapWriter {
    /// Begins `file`, which is empty, with `header`, `status` and, in version 2, the session's point 0.
    pub(crate) fn begin(file: File, header: &Header, status: &Status) -> io::Result<Self> {
        let layout = header.version.layout();
        let mut bytes = vec![0; layout.records as usize];
        encode_header(header, &mut bytes[..HEADER_LEN]);
        let at = layout.slots[status.slot()] as usize;
        status.encode(header.version, &mut bytes[at..at + layout.slot_len]);
        let mut map = Self {
            file: BufWriter::with_capacity(1 << 16, file),
            version: header.version,
            session: header.session_id,
            records: 0,
        };
        map.file.write_all(&bytes)?;
        if header.version >= Version::Two {
            map.record(&Record::Point(start_of(header)))?;
        }
        Ok(map)
    }

    /// Appends a record.
    pub(crate) fn record(&mut self, record: &Record) -> io::Result<()> {
        let mut bytes = vec![0; self.layout().record_len];
        if !record.encode(self.version, &self.session, self.records, &mut bytes) {
            return Err(io::Error::other("a record that its format does not have"));
        }
        self.records += 1;
        self.file.write_all(&bytes)
    }

    /// Records so far, commits and points included.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Makes durable what was written.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    /// Writes a newer status, durably.
    pub(crate) fn set_status(&mut self, status: &Status) -> io::Result<()> {
        self.sync()?;
        let layout = self.layout();
        let mut slot = vec![0; layout.slot_len];
        status.encode(self.version, &mut slot);
        let file = self.file.get_ref();
        file.write_all_at(&slot, layout.slots[status.slot()])?;
        file.sync_all()
    }

    fn layout(&self) -> Layout {
        self.version.layout()
    }
}

/// `out` has [`HEADER_LEN`] bytes.
pub(crate) fn encode_header(header: &Header, out: &mut [u8]) {
    if let Ok(out) = out.try_into() {
        header.encode(out);
    }
}

/// The moment at which a session begins.
pub(crate) fn start_of(header: &Header) -> Point {
    use bdsnap_abi::format::Kind;
    Point {
        tag: 0,
        moment_id: if header.group_id == bdsnap_abi::format::NO_ID {
            header.session_id
        } else {
            header.group_id
        },
        time_ns: header.start_ns,
        boot_ns: header.start_boot_ns,
        before: 0,
        dat_bytes: 0,
        members: 1,
        how: POINT_UNMOUNTED,
        by: match header.kind {
            Kind::Mount => POINT_BY_MOUNT,
            Kind::Raw => POINT_BY_RAW,
            Kind::Undo => POINT_BY_UNDO,
        },
    }
}

/// A run of this content, that lies in `blocks.dat` at `offset` unless it is all zeros.
pub(crate) fn run_of(sector: u64, offset: u64, content: &[u8]) -> Option<Run> {
    let bytes = u32::try_from(content.len()).ok()?;
    let zero = crate::fsutil::is_zero(content);
    Some(Run {
        tag: 0,
        sector,
        bytes,
        stored: if zero { 0 } else { bytes },
        offset,
        data_crc: crc32c::crc32c(content),
    })
}
