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
use crate::registry::{self, Bound, Volume};
use crate::sys::{self, Disk};
use kernel::prelude::*;
use kernel::str::{CStr, CString};
use kernel::sync::Arc;

/// Loop devices that are looked at when one is searched.
const LOOPS: u32 = 256;

/// What sysfs says of a loop device.
fn loop_attribute(disk: &Disk, attribute: &str, buf: &mut [u8]) -> Result<usize> {
    let mut name = [0; 32];
    let n = disk.name(&mut name);
    let name = ::core::str::from_utf8(&name[..n]).map_err(|_| EINVAL)?;
    sys::read_text(&CString::try_from_fmt(fmt!("/sys/block/{}/loop/{}", name, attribute))?, buf)
}

pub(crate) fn loop_number(disk: &Disk, attribute: &str) -> Result<u64> {
    let mut buf = [0; 32];
    let n = loop_attribute(disk, attribute, &mut buf)?;
    let text = ::core::str::from_utf8(&buf[..n]).map_err(|_| EINVAL)?;
    text.parse().map_err(|_| EINVAL)
}

/// The path of the file that a loop device shows; `None` for other disks.
pub(crate) fn backing_file(disk: &Disk) -> Result<Option<KVec<u8>>> {
    let mut name = [0; 32];
    let n = disk.name(&mut name);
    if !name[..n].starts_with(b"loop") {
        return Ok(None);
    }
    let mut path = KVec::from_elem(0u8, 4096 + 16, GFP_KERNEL)?;
    match loop_attribute(disk, "backing_file", &mut path) {
        Ok(n) => {
            path.truncate(n);
            Ok(Some(path))
        }
        // Not: it shows none.
        Err(e) if e == ENOMEM => Err(e),
        Err(_) => Ok(None),
    }
}

/// The `i`-th loop device, its medium, and the path of the file that it shows.
fn loop_device(i: u32) -> Result<(Disk, u64, KVec<u8>)> {
    let mut dev = [0; 32];
    let attr = CString::try_from_fmt(fmt!("/sys/block/loop{}/dev", i))?;
    let n = sys::read_text(&attr, &mut dev)?;
    let (disk, _) = Disk::by_devt(sys::devt(&dev[..n])?)?;
    // Before its path: a later change makes it out of date.
    let seq = disk.seq();
    let path = backing_file(&disk)?.ok_or(ENXIO)?;
    Ok((disk, seq, path))
}

/// The loop devices that show this file.
pub(crate) fn loops_of(path: &[u8]) -> impl Iterator<Item = Disk> + '_ {
    (0..LOOPS)
        .filter_map(|i| loop_device(i).ok())
        .filter_map(|(disk, _, p)| (*p == *path).then_some(disk))
}

/// Binds registered images that nobody has mounted to loop devices that show
/// them, so that raw writes are seen. Walks paths.
pub(crate) fn settle() -> Result {
    if !any() {
        return Ok(());
    }
    for i in 0..LOOPS {
        let Ok((disk, seq, path)) = loop_device(i) else { continue };
        let found = match registered(&path) {
            Some(volume) => Some(volume),
            None => by_address(same_file(CName::new(&path)?.as_c_str()?)?),
        };
        let Some(volume) = found else { continue };
        // The loop device that it was bound to may show another file by now.
        if volume.is_present() || volume.is_claimed() {
            continue;
        }
        let _turning = volume.turning.lock();
        if !volume.is_present() && !volume.is_claimed() {
            volume.stop_raw();
            bind(&volume, &disk, seq)?;
        }
    }
    Ok(())
}

/// The registered image of this path.
fn registered(path: &[u8]) -> Option<Arc<Volume>> {
    let registry = core().registry.lock();
    let found = registry
        .volumes
        .iter()
        .find(|v| v.image.as_deref() == Some(path) && v.takes_claims())
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
        .find(|v| Arc::as_ptr(v) as u64 == address && v.takes_claims())
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
pub(crate) fn find(disk: &Disk) -> Result<Option<Arc<Volume>>> {
    let Some(path) = backing_file(disk)? else { return Ok(None) };
    let found = registered(&path);
    if found.is_some() || !any() {
        return Ok(found);
    }
    Ok(by_address(look::image(&path)?))
}

/// Binds an image to the loop device that shows it now. The caller has the
/// volume's `turning` lock, and no session runs.
/// `seq` is the medium of which that was said.
pub(crate) fn bind(volume: &Volume, disk: &Disk, seq: u64) -> Result {
    let mut bound = volume.bound.lock();
    if bound.as_ref().is_some_and(|b| b.disk.as_ptr() == disk.as_ptr() && b.seq == seq) {
        return Ok(());
    }
    let (major, minor) = disk.number();
    *bound = Some(Bound {
        disk: disk.clone(),
        seq,
        sectors: Bound::WHOLE,
        major,
        minor,
        logical_block_size: disk.logical_block_size(),
        partition: false,
    });
    drop(bound);
    if let Err(e) = core().registry.lock().publish() {
        *volume.bound.lock() = None;
        return Err(e);
    }
    Ok(())
}
