// SPDX-License-Identifier: GPL-2.0

//! Random operations on a file system: the same seed makes the same calls. Several may run side by side in one
//! folder; what one misses because of another is no failure.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Result, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{symlink, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{copy_file_range, fallocate, setxattr, FallocateFlags, XattrFlags};

use crate::load::{aligned, Random};

/// Largest file.
const SIZE: usize = 768 << 10;

struct Ops<'a> {
    dir: &'a Path,
    random: Random,
    buffer: Vec<u8>,
}

/// What happens when names come and go, space is short, or a file system lacks something.
fn is_fair(e: &Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::ENOENT
                | libc::EEXIST
                | libc::EBUSY
                | libc::ENOTEMPTY
                | libc::ENOTDIR
                | libc::EISDIR
                | libc::ENOSPC
                | libc::EOPNOTSUPP
                | libc::EINVAL
                | libc::EXDEV
                | libc::ELOOP
                | libc::EMLINK
                | libc::ETXTBSY
                | libc::E2BIG
        )
    )
}

impl Ops<'_> {
    fn below(&mut self, n: usize) -> usize {
        self.random.below(n)
    }

    /// One of a few folders in folders.
    fn folder(&mut self) -> PathBuf {
        match self.below(4) {
            0 => self.dir.to_path_buf(),
            1 => self.dir.join(format!("d{}", self.below(4))),
            _ => self.dir.join(format!("d{}/e{}", self.below(4), self.below(3))),
        }
    }

    fn name(&mut self) -> PathBuf {
        let folder = self.folder();
        folder.join(format!("f{}", self.below(24)))
    }

    fn open(&mut self, flags: i32) -> Result<File> {
        let name = self.name();
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags | libc::O_NOFOLLOW)
            .open(name)
    }

    fn write(&mut self, flags: i32) -> Result<()> {
        let file = self.open(flags)?;
        let (mut len, mut at) = (1 + self.below(40_000), self.below(SIZE));
        if flags & libc::O_DIRECT != 0 {
            (len, at) = (len.next_multiple_of(4096), at / 4096 * 4096);
        }
        let data = aligned(&mut self.buffer, len);
        self.random.fill(data);
        file.write_all_at(data, at as u64)
    }

    fn map(&mut self) -> Result<()> {
        let file = self.open(0)?;
        let len = 4096 * (1 + self.below(64));
        if file.metadata()?.len() < len as u64 {
            file.set_len(len as u64)?;
        }
        // Space first: writing to memory without any is a signal.
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, len as u64)?;
        // SAFETY: a mapping of its own, given back below. Its memory is only touched by read(2), which fails where
        // another program has cut the file meanwhile; touching it here could be a signal.
        unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            if memory == libc::MAP_FAILED {
                return Err(Error::last_os_error());
            }
            let noise = File::open("/dev/urandom")?;
            for _ in 0..8 {
                let n = 1 + self.below(3000);
                let at = self.below(len - n);
                // EFAULT where the file has been cut
                libc::read(noise.as_raw_fd(), memory.cast::<u8>().add(at).cast(), n);
            }
            libc::msync(
                memory,
                len,
                if self.below(2) == 0 { libc::MS_SYNC } else { libc::MS_ASYNC },
            );
            libc::munmap(memory, len);
        }
        Ok(())
    }

    fn range(&mut self) -> Result<()> {
        let file = self.open(0)?;
        let flags = [
            FallocateFlags::empty(),
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::COLLAPSE_RANGE,
            FallocateFlags::INSERT_RANGE,
        ][self.below(6)];
        let (mut at, mut len) = (self.below(SIZE / 2), 1 + self.below(SIZE / 4));
        if self.below(3) != 0 {
            (at, len) = (at / 4096 * 4096, len.next_multiple_of(4096));
        }
        Ok(fallocate(&file, flags, at as u64, len as u64)?)
    }

    fn copy(&mut self) -> Result<()> {
        let (from, to) = (self.open(0)?, self.open(0)?);
        let (mut a, mut b) = (self.below(SIZE) as u64, self.below(SIZE) as u64);
        let len = self.below(100_000);
        copy_file_range(&from, Some(&mut a), &to, Some(&mut b), len)?;
        Ok(())
    }

    fn one(&mut self) -> Result<()> {
        match self.below(30) {
            0..=5 => self.write(0),
            6 | 7 => self.write(libc::O_DIRECT),
            8 => self.write(libc::O_SYNC),
            9 => {
                let n = 1 + self.below(5000);
                let text = self.random.bytes(n);
                let name = self.name();
                OpenOptions::new().append(true).create(true).open(name)?.write_all(&text)
            }
            10 => {
                let size = self.below(SIZE) as u64;
                self.open(0)?.set_len(size)
            }
            11 | 12 => fs::remove_file(self.name()),
            13..=15 => fs::rename(self.name(), self.name()),
            16 => fs::hard_link(self.name(), self.name()),
            17 => symlink(self.name(), self.name()),
            18 | 19 => fs::create_dir_all(self.folder()),
            20 => fs::remove_dir(self.folder()),
            21 => fs::rename(self.folder(), self.folder()),
            22 => self.map(),
            23 | 24 => self.range(),
            25 => self.copy(),
            26 => {
                let value = self.random.bytes(200);
                Ok(setxattr(self.name(), "user.value", &value, XattrFlags::empty())?)
            }
            27 => self.open(0)?.sync_data(),
            28 => {
                let folder = self.folder();
                File::open(folder)?.sync_all()
            }
            _ => {
                let name = self.name();
                fs::read(name).map(drop)
            }
        }
    }
}

pub(crate) fn run(dir: &Path, seed: u64, count: u64) -> Result<()> {
    let mut ops = Ops { dir, random: Random::new(seed), buffer: Vec::new() };
    for i in 0..count {
        match ops.one() {
            Err(e) if !is_fair(&e) => {
                return Err(Error::new(e.kind(), format!("operation {i}: {e}")))
            }
            _ => {}
        }
    }
    Ok(())
}
