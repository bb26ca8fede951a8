// SPDX-License-Identifier: GPL-2.0

//! What a filesystem lies on: its block device, the devices below that one
//! (device mapper, md), and for a loop device the filesystem of its file.
//!
//! A store anywhere above a protected device would have to save what saving
//! writes. Walks paths of sysfs, and of loop devices' files: never in a claim.

use crate::image;
use crate::pure::plan::Sectors;
use crate::pure::volume::DiskId;
use crate::sys::{self, Dir, Home, OpenDisk};
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
        if home.id == id && home.sectors.intersect(sectors).is_some() {
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
        let attr = CString::try_from_fmt(fmt!("/sys/block/{}/slaves/{}/dev", name, below))?;
        let mut dev = [0; 32];
        let n = sys::read_text(&attr, &mut dev)?;
        let (open, info) = OpenDisk::by_devt(sys::devt(&dev[..n])?)?;
        let home = Home { id: info.id(), name: open.disk().name(), sectors: info.range()? };
        todo.push(home, GFP_KERNEL)?;
    }
    Ok(())
}
