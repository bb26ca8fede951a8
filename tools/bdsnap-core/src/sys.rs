// SPDX-License-Identifier: GPL-2.0

//! All that needs `unsafe`: ioctls on `/dev/bdsnap` and on block devices, and
//! the module's two system calls. Nothing else in the tools is unsafe.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use bdsnap_abi::ioctl::{
    known_to_both, Control, Entry, HandOver, Identify, Restore, Simple, StatusHead, StatusRequest,
    IOC_ACTIVATE, IOC_DEACTIVATE, IOC_HAND_OVER, IOC_IDENTIFY, IOC_RESTORE, IOC_SETTLE, IOC_STATUS,
};

// From <linux/fs.h>: _IO(0x12, nr), and _IOR(0x12, 114, size_t).
const BLKROGET: u32 = 0x125e;
const BLKRRPART: u32 = 0x125f;
const BLKFLSBUF: u32 = 0x1261;
const BLKSSZGET: u32 = 0x1268;
const BLKGETSIZE64: u32 = (2 << 30) | ((size_of::<usize>() as u32) << 16) | (0x12 << 8) | 114;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A structure of the control ABI, with the one request that takes it.
///
/// # Safety
///
/// `REQUESTS` take a pointer to exactly `Self`, and what they do to memory
/// behind addresses in it is what the methods of [`crate::module`] allow.
unsafe trait Argument {
    const REQUESTS: &'static [u32];
}

// SAFETY: These requests are defined with the size of `Control`.
unsafe impl Argument for Control {
    const REQUESTS: &'static [u32] = &[IOC_ACTIVATE, IOC_DEACTIVATE];
}
// SAFETY: The request is defined with the size of `HandOver`.
unsafe impl Argument for HandOver {
    const REQUESTS: &'static [u32] = &[IOC_HAND_OVER];
}
// SAFETY: The request is defined with the size of `Simple`.
unsafe impl Argument for Simple {
    const REQUESTS: &'static [u32] = &[IOC_SETTLE];
}
// SAFETY: The request is defined with the size of `Restore`.
unsafe impl Argument for Restore {
    const REQUESTS: &'static [u32] = &[IOC_RESTORE];
}
// SAFETY: The request is defined with the size of `Identify`.
unsafe impl Argument for Identify {
    const REQUESTS: &'static [u32] = &[IOC_IDENTIFY];
}

fn control<T: Argument>(fd: BorrowedFd<'_>, request: u32, arg: &mut T) -> io::Result<()> {
    debug_assert!(T::REQUESTS.contains(&request));
    let ptr: *mut T = arg;
    // SAFETY: `ptr` is valid for reads and writes of a `T`, which is what the
    // request takes by the contract of `Argument`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, ptr) })
}

fn addr(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as usize as u64
}

/// Registers (or, with `activate` false, removes) a device; returns the
/// `CONTROL_…` flags.
pub(crate) fn register(
    fd: BorrowedFd<'_>,
    activate: bool,
    name: &[u8],
    password: &[u8],
    durability: u32,
) -> io::Result<u64> {
    let mut arg = Control {
        version: bdsnap_abi::ioctl::ABI_VERSION,
        durability,
        name: addr(name),
        name_len: name.len() as u64,
        password: addr(password),
        password_len: password.len() as u64,
        flags: 0,
    };
    // The kernel only reads `name` and `password`, which live until here.
    control(fd, if activate { IOC_ACTIVATE } else { IOC_DEACTIVATE }, &mut arg)?;
    Ok(arg.flags)
}

/// Hands secret, store and devices over; returns how many were registered.
pub(crate) fn hand_over(
    fd: BorrowedFd<'_>,
    secret: &[u8],
    store: &[u8],
    devices: &[u8],
) -> io::Result<u64> {
    let mut arg = HandOver {
        version: bdsnap_abi::ioctl::ABI_VERSION,
        flags: 0,
        secret: addr(secret),
        secret_len: secret.len() as u64,
        store: addr(store),
        store_len: store.len() as u64,
        devices: addr(devices),
        devices_len: devices.len() as u64,
        registered: 0,
    };
    // The kernel only reads the three buffers, which live until here.
    control(fd, IOC_HAND_OVER, &mut arg)?;
    Ok(arg.registered)
}

/// Makes the module look registered names up again; `flags` is 0 or `SETTLE_RAW`.
pub(crate) fn settle(fd: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let mut arg = Simple { version: bdsnap_abi::ioctl::ABI_VERSION, flags };
    control(fd, IOC_SETTLE, &mut arg)
}

/// Tells the module about a restore.
pub(crate) fn restore(fd: BorrowedFd<'_>, phase: u32, name: &[u8]) -> io::Result<Restore> {
    let mut arg = Restore {
        version: bdsnap_abi::ioctl::ABI_VERSION,
        phase,
        name: addr(name),
        name_len: name.len() as u64,
        ..Restore::default()
    };
    // The kernel only reads `name`, which lives until here.
    control(fd, IOC_RESTORE, &mut arg)?;
    Ok(arg)
}

/// Says what a registered device is recognised by.
pub(crate) fn identify(
    fd: BorrowedFd<'_>,
    name: &[u8],
    diskseq: u64,
    partuuid: [u8; 16],
    serial: &[u8],
) -> io::Result<()> {
    let mut arg = Identify {
        version: bdsnap_abi::ioctl::ABI_VERSION,
        name: addr(name),
        name_len: name.len() as u64,
        diskseq,
        partuuid,
        serial_len: serial.len() as u64,
        ..Identify::default()
    };
    let room = arg.serial.get_mut(..serial.len());
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(serial);
    // The kernel only reads `name`, which lives until here.
    control(fd, IOC_IDENTIFY, &mut arg)
}

/// Reads the status into `buf`; returns the length of the whole answer. If
/// that is larger than `buf`, nothing was written.
pub(crate) fn status(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<u64> {
    let mut arg = StatusRequest {
        version: bdsnap_abi::ioctl::ABI_VERSION,
        flags: 0,
        buf: buf.as_mut_ptr() as usize as u64,
        len: buf.len() as u64,
        needed: 0,
    };
    let ptr: *mut StatusRequest = &mut arg;
    // SAFETY: `ptr` is valid for reads and writes of what the request takes,
    // and `arg` names `buf`, which is exclusively ours, with its length.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), IOC_STATUS as _, ptr) })?;
    Ok(arg.needed)
}

/// A structure of a status.
///
/// # Safety
///
/// `repr(C)`, made of integers only, without padding: any bytes are a value of
/// it, and all of its bytes are initialised.
unsafe trait Answer: Copy {}
// SAFETY: So it is; `ioctl.rs` asserts the size.
unsafe impl Answer for StatusHead {}
// SAFETY: As above.
unsafe impl Answer for Entry {}

/// `value` with `bytes` laid over it, as far as both go.
fn overlaid<T: Answer>(mut value: T, bytes: &[u8]) -> T {
    let ptr = (&raw mut value).cast::<u8>();
    // SAFETY: These are the bytes of `value`, which nobody else uses; by the
    // contract of `Answer` they are initialised and may become any others.
    let own = unsafe { std::slice::from_raw_parts_mut(ptr, size_of::<T>()) };
    let n = known_to_both(own.len(), bytes.len());
    own[..n].copy_from_slice(&bytes[..n]);
    value
}

/// The head of a status: all of it that the module has, be it an older or a
/// newer one.
pub(crate) fn status_head(bytes: &[u8]) -> StatusHead {
    overlaid(StatusHead::default(), bytes)
}

/// An entry of a status, in the same way.
pub(crate) fn status_entry(bytes: &[u8]) -> Entry {
    overlaid(Entry::unsaid(), bytes)
}

/// The module's own system calls: `number(name, password)`.
pub(crate) fn control_syscall(number: u32, name: &CStr, password: &CStr) -> io::Result<()> {
    // SAFETY: Both arguments point to strings ended by NUL, which is all that
    // the module's calls read; a number nobody serves gives ENOSYS.
    let result =
        unsafe { libc::syscall(libc::c_long::from(number), name.as_ptr(), password.as_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Size of a block device in bytes.
pub(crate) fn device_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0u64;
    let ptr: *mut u64 = &mut bytes;
    // SAFETY: The request writes eight bytes to `ptr`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, ptr) })?;
    Ok(bytes)
}

/// Logical block size of a block device in bytes.
pub(crate) fn logical_block_size(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    let ptr: *mut libc::c_int = &mut bytes;
    // SAFETY: The request writes an `int` to `ptr`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET as _, ptr) })?;
    Ok(u32::try_from(bytes).unwrap_or(512))
}

/// Whether a block device is read-only.
pub(crate) fn is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flag: libc::c_int = 0;
    let ptr: *mut libc::c_int = &mut flag;
    // SAFETY: The request writes an `int` to `ptr`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKROGET as _, ptr) })?;
    Ok(flag != 0)
}

/// Writes a block device's page cache back and drops it.
pub(crate) fn flush_buffers(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: The request ignores its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKFLSBUF as _, 0) })
}

/// Reads a disk's partition table again.
pub(crate) fn reread_partitions(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: The request ignores its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKRRPART as _, 0) })
}

/// Makes the kernel begin to write back a piece of a file, without waiting.
pub(crate) fn start_writing(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range = (i64::try_from(offset), i64::try_from(len));
    let (Ok(offset), Ok(len)) = range else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: The call takes no pointers.
    check(unsafe {
        libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE)
    })
}
