// SPDX-License-Identifier: GPL-2.0

//! Writes to a file system in all the ways that programs do. The same seed makes the same calls. A
//! second run in the same folder changes the files of the first.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind, Result, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{fallocate, FallocateFlags};

/// Pseudo-random numbers (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 on, below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        self.fill(&mut out);
        out
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Says that a file system lacks something, and goes on.
fn lacking(what: &str, result: Result<()>) -> Result<()> {
    match result {
        Err(e)
            if e.raw_os_error() == Some(libc::EOPNOTSUPP)
                || e.kind() == ErrorKind::Unsupported
                || e.raw_os_error() == Some(libc::EPERM) =>
        {
            println!("lacks {what}");
            Ok(())
        }
        other => other.map_err(|e| Error::new(e.kind(), format!("{what}: {e}"))),
    }
}

pub(crate) fn run(dir: &Path, seed: u64, mib: usize) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut random = Random::new(seed);
    let r = &mut random;
    let size = mib << 20;
    lacking("buffered writes", buffered(&dir.join("buffered"), r, size))?;
    lacking("direct writes", direct(&dir.join("direct"), r, size))?;
    lacking("mmap", mapped(&dir.join("mapped"), r, size))?;
    lacking("fsync", synced(&dir.join("synced"), r))?;
    lacking("append", append(&dir.join("log"), r))?;
    lacking("truncate", truncate(&dir.join("truncated"), r, size))?;
    lacking("renames", storm(&dir.join("many"), r))?;
    lacking("links", links(dir))?;
    for (what, flags) in [
        ("preallocation", FallocateFlags::KEEP_SIZE),
        ("punch hole", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        ("zero range", FallocateFlags::ZERO_RANGE),
    ] {
        lacking(what, ranges(&dir.join("holes"), r, size, flags))?;
    }
    File::open(dir)?.sync_all()
}

/// Pieces of any size at any place; many below a block.
fn buffered(path: &Path, r: &mut Random, size: usize) -> Result<()> {
    let file = open(path)?;
    for i in 0..60 {
        let len = if i % 3 == 0 { 1 + r.below(3000) } else { 1 + r.below(size / 16) };
        let at = r.below(size - len);
        file.write_all_at(&r.bytes(len), at as u64)?;
    }
    Ok(())
}

/// Memory on a 4 KiB boundary, as O_DIRECT wants it.
pub(crate) fn aligned(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    buffer.resize(len + 4096, 0);
    let skip = buffer.as_ptr().align_offset(4096);
    &mut buffer[skip..skip + len]
}

fn direct(path: &Path, r: &mut Random, size: usize) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut buffer = Vec::new();
    for i in 0..30 {
        let len = 4096 * (1 + r.below(32));
        let at = r.below((size - len) / 4096) * 4096;
        let data = aligned(&mut buffer, len);
        r.fill(data);
        file.write_all_at(data, at as u64).map_err(|e| match e.raw_os_error() {
            // So says a file system without direct writes.
            Some(libc::EINVAL) if i == 0 => Error::from(ErrorKind::Unsupported),
            _ => e,
        })?;
    }
    Ok(())
}

fn mapped(path: &Path, r: &mut Random, size: usize) -> Result<()> {
    let file = open(path)?;
    let len = size / 2;
    file.set_len(len as u64)?;
    // SAFETY: the mapping is as long as the file, nobody else uses either, and the slice ends before
    // the mapping does.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if at == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let memory = std::slice::from_raw_parts_mut(at.cast::<u8>(), len);
        for _ in 0..40 {
            let n = 1 + r.below(20_000);
            let from = r.below(len - n);
            r.fill(&mut memory[from..from + n]);
        }
        let synced = libc::msync(at, len / 2, libc::MS_SYNC);
        libc::munmap(at, len);
        if synced != 0 {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

fn synced(path: &Path, r: &mut Random) -> Result<()> {
    let file = open(path)?;
    for i in 0..12 {
        let len = 1 + r.below(9000);
        file.write_all_at(&r.bytes(len), r.below(200_000) as u64)?;
        if i % 2 == 0 {
            file.sync_all()?;
        } else {
            file.sync_data()?;
        }
    }
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(path)?;
    for _ in 0..4 {
        file.write_all_at(&r.bytes(512), r.below(200_000) as u64)?;
    }
    Ok(())
}

fn append(path: &Path, r: &mut Random) -> Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    for i in 0..200 {
        let len = 1 + r.below(700);
        file.write_all(&r.bytes(len))?;
        if i % 50 == 0 {
            file.sync_data()?;
        }
    }
    Ok(())
}

fn truncate(path: &Path, r: &mut Random, size: usize) -> Result<()> {
    let mut file = open(path)?;
    for _ in 0..6 {
        let len = r.below(size / 2);
        file.seek(SeekFrom::Start(len as u64))?;
        file.write_all(&r.bytes(5000))?;
        file.set_len(r.below(size / 2) as u64)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Makes, renames and removes many small files.
fn storm(dir: &Path, r: &mut Random) -> Result<()> {
    fs::create_dir_all(dir)?;
    let name = |kind: &str, i: usize| dir.join(format!("{kind}-{i}"));
    for i in 0..120 {
        let len = r.below(6000);
        fs::write(name("new", i), r.bytes(len))?;
    }
    for i in 0..120 {
        // Over what an earlier run has left.
        fs::rename(name("new", i), name("kept", i))?;
    }
    for i in (0..120).filter(|i| i % 3 == 0) {
        fs::remove_file(name("kept", i))?;
    }
    let sub = dir.join("sub");
    fs::create_dir_all(&sub)?;
    for i in (0..120).filter(|i| i % 3 == 1) {
        fs::rename(name("kept", i), sub.join(i.to_string()))?;
    }
    File::open(dir)?.sync_all()
}

fn links(dir: &Path) -> Result<()> {
    let (hard, soft) = (dir.join("hard"), dir.join("soft"));
    let _ = fs::remove_file(&hard);
    let _ = fs::remove_file(&soft);
    fs::hard_link(dir.join("log"), hard)?;
    std::os::unix::fs::symlink("log", soft)
}

fn ranges(path: &Path, r: &mut Random, size: usize, flags: FallocateFlags) -> Result<()> {
    let file = open(path)?;
    let size = size / 2;
    file.write_all_at(&r.bytes(size), 0)?;
    file.sync_data()?;
    for i in 0..8 {
        let (mut at, mut len) = (r.below(size / 2), 1 + r.below(size / 4));
        if i % 2 == 0 {
            (at, len) = (at / 4096 * 4096, (len / 4096 + 1) * 4096);
        }
        fallocate(&file, flags, at as u64, len as u64)?;
    }
    file.sync_data()
}
