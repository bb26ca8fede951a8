// SPDX-License-Identifier: GPL-2.0

//! Image files: which loop device shows a registered one.
//!
//! What sysfs says of a loop device is the only source: its backing file's
//! path, as the kernel sees it now. Another path may lead to the same file (by
//! another mount of its folder, by a hard link): then a worker compares inodes,
//! in limited time.

use crate::control::CName;
use crate::core_state::core;
use crate::look;
use crate::pure::volume::Place;
use crate::registry::{self, Volume};
use crate::sys::{self, Disk, DiskName, NoIo, OpenDisk};
use kernel::prelude::*;
use kernel::str::{CStr, CString};
use kernel::sync::Arc;

/// Loop devices that are looked at when one is searched.
const LOOPS: u32 = 256;

/// Where sysfs says something of a loop device.
fn loop_attribute(name: &DiskName, attribute: &str) -> Result<CString> {
    let name = name.as_str()?;
    CString::try_from_fmt(fmt!("/sys/block/{}/loop/{}", name, attribute))
}

pub(crate) fn loop_number(disk: &DiskName, attribute: &str) -> Result<u64> {
    sys::read_number(&loop_attribute(disk, attribute)?)
}

/// The path of the file that a loop device shows; `None` for other disks.
pub(crate) fn backing_file(disk: &OpenDisk) -> Result<Option<KVec<u8>>> {
    file_behind(&disk.disk().name())
}

/// The same by the name of the disk.
pub(crate) fn file_behind(name: &DiskName) -> Result<Option<KVec<u8>>> {
    if !name.as_str()?.starts_with("loop") {
        return Ok(None);
    }
    let mut path = KVec::from_elem(0u8, 4096 + 16, GFP_KERNEL)?;
    match sys::read_text(&loop_attribute(name, "backing_file")?, &mut path) {
        Ok(n) => {
            path.truncate(n);
            Ok(Some(path))
        }
        // Not: it shows none.
        Err(e) if e == ENOMEM => Err(e),
        Err(_) => Ok(None),
    }
}

/// The `i`-th loop device as a place, open, and the path of the file that it shows.
fn loop_device(i: u32) -> Result<(Place, OpenDisk, KVec<u8>)> {
    let mut dev = [0; 32];
    let attr = CString::try_from_fmt(fmt!("/sys/block/loop{}/dev", i))?;
    let n = sys::read_text(&attr, &mut dev)?;
    let (open, _) = OpenDisk::by_devt(sys::devt(&dev[..n])?)?;
    // Before its path: a later change makes it out of date.
    let place = place_of(open.disk());
    let path = backing_file(&open)?.ok_or(ENXIO)?;
    Ok((place, open, path))
}

/// The loop devices that show this file.
pub(crate) fn loops_of(path: &[u8]) -> impl Iterator<Item = OpenDisk> + '_ {
    (0..LOOPS)
        .filter_map(|i| loop_device(i).ok())
        .filter_map(|(_, open, p)| (*p == *path).then_some(open))
}

/// Binds registered images that nobody has mounted to loop devices that show
/// them, so that raw writes are seen. Walks paths.
pub(crate) fn settle() -> Result {
    if !any() {
        return Ok(());
    }
    for i in 0..LOOPS {
        let Ok((place, open, path)) = loop_device(i) else { continue };
        let found = match registered(&path) {
            Some(volume) => Some(volume),
            None => by_address(same_file(CName::new(&path)?.as_c_str()?)?),
        };
        let Some(volume) = found else { continue };
        // The loop device that it was bound to may show another file by now.
        if is_present(&volume) || volume.is_claimed() {
            continue;
        }
        let _noio = NoIo::enter();
        let raw = volume.open_raw();
        let turning = volume.turning.lock();
        if !is_present(&volume) && !volume.is_claimed() && !volume.state().is_gone() {
            volume.stop_raw(raw.as_ref());
            registry::bind(&volume, Some(place))?;
        }
        drop(turning);
        volume.turn();
        drop((open, raw));
    }
    Ok(())
}

/// Whether it is bound to a loop device that has not shown another file since.
fn is_present(volume: &Volume) -> bool {
    volume.place().is_some_and(|place| sys::sectors_at(&place).is_ok_and(|sectors| sectors != 0))
}

/// The registered image of this path.
fn registered(path: &[u8]) -> Option<Arc<Volume>> {
    let registry = core().registry.lock();
    let found = registry
        .volumes
        .iter()
        .find(|v| v.image.as_deref() == Some(path) && v.state().takes_claims())
        .cloned();
    found
}

/// Whether any image is registered.
fn any() -> bool {
    core().registry.lock().volumes.iter().any(|v| v.image.is_some())
}

/// The registered image that has this address.
fn by_address(address: u64) -> Option<Arc<Volume>> {
    let registry = core().registry.lock();
    let found = registry
        .volumes
        .iter()
        .find(|v| Arc::as_ptr(v) as u64 == address && v.state().takes_claims())
        .cloned();
    found
}

/// The address, only to be compared, of the registered image that is the file
/// of this name; 0 if there is none. Walks paths: never directly in a claim.
pub(crate) fn same_file(path: &CStr) -> Result<u64> {
    let own = match sys::name_info(path, true, None) {
        Err(e) if e == ENOMEM => return Err(e),
        // It may have been removed meanwhile.
        Err(_) => return Ok(0),
        Ok(own) => own,
    };
    if !own.is_reg {
        return Ok(0);
    }
    for volume in registry::all()? {
        let Some(image) = &volume.image else { continue };
        let info = sys::name_info(CName::new(image)?.as_c_str()?, true, None);
        if info.is_ok_and(|i| i.is_reg && (i.dev, i.ino) == (own.dev, own.ino)) {
            return Ok(Arc::as_ptr(&volume) as u64);
        }
    }
    Ok(0)
}

/// The registered image that a loop device shows.
pub(crate) fn find(name: &DiskName) -> Result<Option<Arc<Volume>>> {
    let Some(path) = file_behind(name)? else { return Ok(None) };
    let found = registered(&path);
    if found.is_some() || !any() {
        return Ok(found);
    }
    Ok(by_address(look::image(&path)?))
}

/// A whole disk as a place.
pub(crate) fn place_of(disk: Disk<'_>) -> Place {
    let (major, minor) = disk.number();
    Place {
        id: disk.id(),
        sectors: Place::WHOLE,
        major,
        minor,
        logical_block_size: disk.logical_block_size(),
        partition: false,
    }
}
