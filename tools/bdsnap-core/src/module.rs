// SPDX-License-Identifier: GPL-2.0

//! The module's control device, [`bdsnap_abi::ioctl::DEVICE_NODE`].

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use bdsnap_abi::format::{Id, NO_ID};
use bdsnap_abi::ioctl::{self, Entry, StatusHead};

use crate::error::{Error, Kind, Result};

/// An open control device.
#[derive(Debug)]
pub struct Module {
    file: File,
}

/// How a registration is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// By ioctl on the control device.
    Ioctl,
    /// By the module's system calls.
    Syscall,
}

/// The module's status.
pub struct ModuleStatus {
    /// The module as a whole.
    pub head: StatusHead,
    /// Its registrations.
    pub entries: Vec<Registration>,
}

/// One registration.
pub struct Registration {
    /// Flags and counters.
    pub entry: Entry,
    /// The registered name.
    pub name: Vec<u8>,
    /// Directory of the session in the store; empty if none was made.
    pub dir: Vec<u8>,
}

/// What the module says about a device that is to be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// `RESTORE_…` flags.
    pub flags: u64,
    /// The chain's last session as the module knows it, or [`NO_ID`].
    pub tail: Id,
}

/// What a restore asks of the module; tests have another.
pub trait Control {
    /// Reads the status.
    fn status(&self) -> Result<ModuleStatus>;

    /// Ends the raw sessions that are running, as if nobody had written for a
    /// while.
    fn end_raw(&self) -> Result<()>;

    /// A restore of a device begins.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if a session runs on the device.
    fn restore_begin(&self, name: &[u8]) -> Result<Watch>;

    /// The restore is over: with [`ioctl::RESTORE_END`] the chain is whole,
    /// with [`ioctl::RESTORE_ABORT`] there is a gap if anything was written.
    fn restore_over(&self, phase: u32, name: &[u8]) -> io::Result<()>;
}

impl Module {
    /// Opens the control device; `None` if the module is not loaded.
    pub fn open() -> Result<Option<Self>> {
        Self::open_at(Path::new(ioctl::DEVICE_NODE))
    }

    /// As [`Module::open`], from another node (a test's).
    pub fn open_at(node: &Path) -> Result<Option<Self>> {
        match File::options().read(true).write(true).open(node) {
            Ok(file) => Ok(Some(Self { file })),
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Ok(None),
                Some(libc::EACCES | libc::EPERM) => {
                    Err(Error::other(format!("cannot open {}: permission denied", node.display()))
                        .hint("run this as root"))
                }
                _ => Err(Error::io(format_args!("cannot open {}", node.display()), &e)),
            },
        }
    }

    /// Opens the control device.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] if the module is not loaded.
    pub fn require() -> Result<Self> {
        Self::open()?.ok_or_else(not_loaded)
    }

    /// Registers a device (or, with `activate` false, removes it); returns
    /// `CONTROL_…` flags, none by system call.
    ///
    /// `durability` is 0 for the module's default, or 1 (strict) or 2
    /// (async), and only possible by ioctl.
    pub fn control(
        &self,
        via: Via,
        activate: bool,
        name: &[u8],
        password: &[u8],
        durability: u32,
    ) -> Result<u64> {
        let result = match via {
            Via::Ioctl => {
                crate::sys::register(self.file.as_fd(), activate, name, password, durability)
            }
            Via::Syscall => {
                let head = self.status()?.head;
                let number = if activate { head.sysc_activate } else { head.sysc_deactivate };
                if number == 0 {
                    return Err(Error::other("the module serves no system calls"));
                }
                let nul = || Error::new(Kind::Usage, "a NUL byte in name or password");
                let name = CString::new(name).map_err(|_| nul())?;
                let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(password.len() + 1));
                bytes.extend_from_slice(password);
                bytes.push(0);
                let password = CStr::from_bytes_with_nul(&bytes).map_err(|_| nul())?;
                crate::sys::control_syscall(number, &name, password).map(|()| 0)
            }
        };
        result.map_err(|e| control_error(&e, activate, name))
    }

    /// Hands secret, store and devices over; returns how many devices were
    /// registered, or `None` if that was done before.
    ///
    /// `devices` are names, each ended by a NUL.
    pub fn hand_over(&self, secret: &[u8], store: &[u8], devices: &[u8]) -> Result<Option<u64>> {
        match crate::sys::hand_over(self.file.as_fd(), secret, store, devices) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.raw_os_error() == Some(libc::EALREADY) => Ok(None),
            Err(e) => Err(Error::io("the module refused the hand-over", &e)),
        }
    }

    /// Makes the module look registered names up again.
    pub fn settle(&self) -> Result<()> {
        crate::sys::settle(self.file.as_fd(), 0)
            .map_err(|e| Error::io("the module could not look the names up", &e))
    }
}

impl Control for Module {
    fn status(&self) -> Result<ModuleStatus> {
        let mut buf = vec![0; 64 * 1024];
        loop {
            let needed = crate::sys::status(self.file.as_fd(), &mut buf)
                .map_err(|e| Error::io("cannot read the module's status", &e))?;
            let needed = usize::try_from(needed).unwrap_or(usize::MAX);
            if needed <= buf.len() {
                buf.truncate(needed);
                return parse_status(&buf)
                    .ok_or_else(|| Error::other("the module's status is not understood"));
            }
            if needed > ioctl::STATUS_MAX {
                return Err(Error::other("the module's status is too long"));
            }
            // Room for registrations that come in between.
            buf.resize(needed + 16 * 1024, 0);
        }
    }

    fn end_raw(&self) -> Result<()> {
        crate::sys::settle(self.file.as_fd(), ioctl::SETTLE_RAW)
            .map_err(|e| Error::io("the module could not end raw sessions", &e))
    }

    fn restore_begin(&self, name: &[u8]) -> Result<Watch> {
        match crate::sys::restore(self.file.as_fd(), ioctl::RESTORE_BEGIN, name) {
            Ok(r) => Ok(Watch { flags: r.flags, tail: r.tail }),
            Err(e) => match e.raw_os_error() {
                Some(libc::EBUSY) => Err(Error::refused("a session is recording on the device")
                    .hint("unmount it and try again")),
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTBLK) => {
                    Ok(Watch { flags: 0, tail: NO_ID })
                }
                _ => Err(Error::io("the module refused the restore", &e)),
            },
        }
    }

    fn restore_over(&self, phase: u32, name: &[u8]) -> io::Result<()> {
        crate::sys::restore(self.file.as_fd(), phase, name).map(drop)
    }
}

/// The error for everything that needs the module when it is not loaded.
pub fn not_loaded() -> Error {
    crate::kernels::System::default().not_loaded()
}

impl ModuleStatus {
    /// Whether the module is recording this session now.
    pub fn is_recording(&self, session: &Id) -> bool {
        self.entries
            .iter()
            .any(|r| r.entry.flags & ioctl::ENTRY_RECORDING != 0 && r.entry.session_id == *session)
    }

    /// Path of the store.
    pub fn store(&self) -> &[u8] {
        let len = usize::try_from(self.head.store_len).unwrap_or(0).min(self.head.store.len());
        &self.head.store[..len]
    }
}

/// Takes a status apart; `None` if it contradicts itself.
fn parse_status(bytes: &[u8]) -> Option<ModuleStatus> {
    let head = crate::sys::status_head(bytes)?;
    if head.version != ioctl::ABI_VERSION || (head.head_len as usize) < size_of::<StatusHead>() {
        return None;
    }
    let mut rest = bytes.get(head.head_len as usize..)?;
    let mut entries = Vec::new();
    for _ in 0..head.registrations {
        let entry = crate::sys::status_entry(rest)?;
        if (entry.len as usize) < size_of::<Entry>() {
            return None;
        }
        rest = rest.get(entry.len as usize..)?;
        let name = take_padded(&mut rest, u64::from(entry.name_len))?;
        let dir = take_padded(&mut rest, entry.dir_len)?;
        entries.push(Registration { entry, name, dir });
    }
    Some(ModuleStatus { head, entries })
}

/// Takes a field of `len` bytes, filled up to a multiple of eight.
fn take_padded(rest: &mut &[u8], len: u64) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok()?;
    let field = rest.get(..len)?.to_vec();
    *rest = rest.get(len.checked_next_multiple_of(8)?..)?;
    Some(field)
}

/// Cause and cure of a refused registration.
fn control_error(e: &io::Error, activate: bool, name: &[u8]) -> Error {
    let verb = if activate { "activate" } else { "deactivate" };
    let name = crate::text::escape(name);
    let (cause, hint) = match e.raw_os_error() {
        Some(libc::EPERM) => (
            "not permitted",
            "run this as root, and set a password with 'bdsnap passwd' before the module is loaded",
        ),
        Some(libc::EACCES) => ("wrong password", "each failure makes the next attempt wait longer"),
        Some(libc::EAGAIN) => (
            "too many wrong passwords, or another one is being checked",
            "wait a minute, try again",
        ),
        Some(libc::EBUSY) => (
            "the kernel's functions could not be hooked",
            "see the kernel log; another tracer may hold them",
        ),
        Some(libc::EINVAL) => (
            "not a device that can be protected",
            "it must be a block device or a regular file, hold neither the store nor anything \
             below it, and be neither zoned nor DAX",
        ),
        Some(libc::ENAMETOOLONG) => (
            "name or password too long",
            "names have less than 4096 bytes, passwords less than 256",
        ),
        Some(libc::ENOSYS) => {
            ("no such system call", "the module is not loaded or could not hook it")
        }
        Some(libc::ENOKEY) => {
            ("no password is set", "run 'bdsnap passwd' and load the module again")
        }
        _ => {
            let mut error = Error::io(format_args!("cannot {verb} {name}"), e);
            error.hint = Some("see the kernel log".into());
            return error;
        }
    };
    let mut error = Error::other(format!("cannot {verb} {name}: {cause}")).hint(hint);
    error.errno = e.raw_os_error();
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_that_contradicts_itself_is_refused() {
        assert!(parse_status(&[]).is_none());
        let mut bytes = vec![0; size_of::<StatusHead>()];
        assert!(parse_status(&bytes).is_none(), "version");
        bytes[0] = 1;
        assert!(parse_status(&bytes).is_none(), "head_len");
        let head_len = size_of::<StatusHead>() as u32;
        bytes[4..8].copy_from_slice(&head_len.to_le_bytes());
        assert!(parse_status(&bytes).is_some());
        let registrations = std::mem::offset_of!(StatusHead, registrations);
        bytes[registrations] = 1;
        assert!(parse_status(&bytes).is_none(), "no entry");
        let mut entry = vec![0; size_of::<Entry>()];
        entry[0] = size_of::<Entry>() as u8;
        entry[4] = 8;
        bytes.extend(&entry);
        assert!(parse_status(&bytes).is_none(), "no name");
        bytes.extend(b"/dev/vdb");
        let status = parse_status(&bytes).unwrap();
        assert_eq!(status.entries[0].name, b"/dev/vdb");
        assert!(status.entries[0].dir.is_empty());
    }
}
