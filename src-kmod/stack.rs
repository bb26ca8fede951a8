// SPDX-License-Identifier: GPL-2.0

//! What a filesystem lies on: its block device, the devices below that one
//! (device mapper, md), and for a loop device the filesystem of its file.
//!
//! A store anywhere above a protected device would have to save what saving
//! writes. Walks paths of sysfs, and of loop devices' files: never in a claim. Opens no device: a session's
//! start waits for this, and whoever opens or closes a device may wait for a write that waits for that.

use crate::image;
use crate::pure::plan::Sectors;
use crate::pure::volume::DiskId;
use crate::sys::{self, Dir, DiskName, Home};
use kernel::prelude::*;
use kernel::str::CString;

/// Most devices that are looked at.
const DEVICES: usize = 256;
/// Space for the names of the devices below one.
const NAMES: usize = 8192;

/// Whether the filesystem of `dir` lies, wholly or in part, on these sectors of
/// a disk. E2BIG if there is more below it than can be looked at.
pub(crate) fn lies_on(dir: &Dir, id: DiskId, sectors: &Sectors) -> Result<bool> {
    let mut todo = KVec::new();
    push_home(&mut todo, dir)?;
    let mut i = 0;
    while i < todo.len() {
        let home: &Home = &todo[i];
        // Whatever its address, no other medium has its number.
        if home.seq == id.seq && home.sectors.intersect(sectors).is_some() {
            return Ok(true);
        }
        let name = home.name;
        i += 1;
        if let Some(path) = image::file_behind(&name)? {
            match Dir::resolve_any(&c_string(&path)?) {
                Ok(home) => push_home(&mut todo, &home)?,
                Err(e) if e == ENOMEM => return Err(e),
                // If its file was deleted its filesystem cannot be found by name.
                Err(_) => {}
            }
        }
        push_below(&mut todo, name.as_str()?)?;
        if todo.len() > DEVICES {
            return Err(E2BIG);
        }
    }
    Ok(false)
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    let s = ::core::str::from_utf8(bytes).map_err(|_| EINVAL)?;
    CString::try_from_fmt(fmt!("{}", s))
}

fn push_home(todo: &mut KVec<Home>, dir: &Dir) -> Result {
    if let Some(home) = dir.info().home {
        todo.push(home, GFP_KERNEL)?;
    }
    Ok(())
}

/// The devices that a disk is made of, as sysfs lists them.
fn push_below(todo: &mut KVec<Home>, name: &str) -> Result {
    let mut names = KVec::from_elem(0u8, NAMES, GFP_KERNEL)?;
    let folder = CString::try_from_fmt(fmt!("/sys/block/{}/slaves", name))?;
    let len = match sys::list_dir(&folder, &mut names) {
        Ok(len) => len,
        Err(e) if e == ENOENT => return Ok(()),
        Err(e) => return Err(e),
    };
    for below in names[..len].split(|&b| b == 0).filter(|b| !b.is_empty()) {
        let below = ::core::str::from_utf8(below).map_err(|_| EINVAL)?;
        todo.push(home_at(name, below)?, GFP_KERNEL)?;
    }
    Ok(())
}

/// The device `below`, a disk or a partition, of those that the disk `name` is made of.
fn home_at(name: &str, below: &str) -> Result<Home> {
    let path = |attribute: &str| {
        CString::try_from_fmt(fmt!("/sys/block/{}/slaves/{}/{}", name, below, attribute))
    };
    let number = |attribute: &str| sys::read_number(&path(attribute)?);
    match number("start") {
        Ok(start) => {
            let sectors = Sectors::new(start, number("size")?).ok_or(EINVAL)?;
            let seq = number("../diskseq")?;
            let mut buf = KVec::from_elem(0u8, 4096, GFP_KERNEL)?;
            let n = sys::read_text(&path("../uevent")?, &mut buf)?;
            let disk = buf[..n]
                .split(|&b| b == b'\n')
                .find_map(|line| line.strip_prefix(b"DEVNAME="))
                .ok_or(EINVAL)?;
            Ok(Home { seq, name: DiskName::new(disk)?, sectors })
        }
        // It is a disk.
        Err(e) if e == ENOENT => {
            let sectors = Sectors::new(0, number("size")?).ok_or(EINVAL)?;
            let seq = number("diskseq")?;
            Ok(Home { seq, name: DiskName::new(below.as_bytes())?, sectors })
        }
        Err(e) => Err(e),
    }
}
