// SPDX-License-Identifier: GPL-2.0

//! The module's control device, [`bdsnap_abi::ioctl::DEVICE_NODE`].

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::path::Path;

use bdsnap_abi::format::{Id, Version, NO_ID};
use bdsnap_abi::ioctl::{self, Entry, StatusHead};

use crate::error::{Error, Kind, Result};
use crate::identity::Recognised;

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
    /// Returns `RESTORE_…` flags.
    fn restore_over(&self, phase: u32, name: &[u8]) -> io::Result<u64>;
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
            Err(e) => Err(said("the module refused the hand-over", &e)),
        }
    }

    /// Says what the registered device of this name is recognised by. A module that does not know the request goes
    /// without, and so does one in which the device is registered no more.
    pub(crate) fn identify(&self, name: &[u8], of: &Recognised) -> Result<()> {
        match crate::sys::identify(self.file.as_fd(), name, of.diskseq, of.partuuid, &of.serial) {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::ENODEV)) => {
                Err(said("the module could not be told what a device is", &e))
            }
            _ => Ok(()),
        }
    }

    /// Makes the module look registered names up again.
    pub fn settle(&self) -> Result<()> {
        crate::sys::settle(self.file.as_fd(), 0)
            .map_err(|e| said("the module could not look the names up", &e))
    }
}

impl Control for Module {
    fn status(&self) -> Result<ModuleStatus> {
        let mut buf = vec![0; 64 * 1024];
        loop {
            let needed = crate::sys::status(self.file.as_fd(), &mut buf)
                .map_err(|e| said("cannot read the module's status", &e))?;
            let needed = usize::try_from(needed).unwrap_or(usize::MAX);
            if needed <= buf.len() {
                buf.truncate(needed);
                return parse_status(&buf);
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
            .map_err(|e| said("the module could not end raw sessions", &e))
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
                _ => Err(said("the module refused the restore", &e)),
            },
        }
    }

    fn restore_over(&self, phase: u32, name: &[u8]) -> io::Result<u64> {
        crate::sys::restore(self.file.as_fd(), phase, name).map(|r| r.flags)
    }
}

/// The error for everything that needs the module when it is not loaded.
pub fn not_loaded() -> Error {
    crate::kernels::System::default().not_loaded()
}

/// The error for what the module and this program do not both know.
fn another_version() -> Error {
    let mut e = Error::other("the module that runs is older than this program, or newer")
        .hint("run 'bdsnap reload', or restart the machine");
    e.errno = Some(libc::EPROTONOSUPPORT);
    e
}

/// Whether this is the error of a module that is older or newer than this
/// program, in a way that matters.
pub fn is_another_version(e: &Error) -> bool {
    e.errno == Some(libc::EPROTONOSUPPORT)
}

/// What the module's refusal means: no such request, no such version, a request
/// with something that it does not know; else what it says about `what`.
pub(crate) fn said(what: impl std::fmt::Display, e: &io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::ENOTTY | libc::EPROTONOSUPPORT | libc::E2BIG) => another_version(),
        _ => Error::io(what, e),
    }
}

impl ModuleStatus {
    /// Whether the module is recording this session now.
    pub fn is_recording(&self, session: &Id) -> bool {
        self.entries
            .iter()
            .any(|r| r.entry.flags & ioctl::ENTRY_RECORDING != 0 && r.entry.session_id == *session)
    }

    /// The version of the store's format in which it writes; the newest that this program knows, if it is newer.
    pub fn format_version(&self) -> Version {
        match self.head.format_version {
            // A module that is too old to say it.
            0 => Version::One,
            number => Version::from_number(number).unwrap_or(Version::NEWEST),
        }
    }

    /// Path of the store.
    pub fn store(&self) -> &[u8] {
        let len = usize::try_from(self.head.store_len).unwrap_or(0).min(self.head.store.len());
        &self.head.store[..len]
    }
}

/// Takes a status apart. Its structures may be shorter or longer than ours.
fn parse_status(bytes: &[u8]) -> Result<ModuleStatus> {
    if word(bytes, 0).is_some_and(|version| version != ioctl::ABI_VERSION as usize) {
        return Err(another_version());
    }
    take_apart(bytes).ok_or_else(|| Error::other("the module's status is not understood"))
}

/// `None` if it contradicts itself.
fn take_apart(bytes: &[u8]) -> Option<ModuleStatus> {
    let (head, mut rest) =
        bytes.split_at_checked(word(bytes, offset_of!(StatusHead, head_len))?)?;
    if head.len() < offset_of!(StatusHead, load_id) {
        return None;
    }
    let head = crate::sys::status_head(head);
    let mut entries = Vec::new();
    for _ in 0..head.registrations {
        let (entry, behind) = rest.split_at_checked(word(rest, offset_of!(Entry, len))?)?;
        if entry.len() < offset_of!(Entry, flags) {
            return None;
        }
        let entry = crate::sys::status_entry(entry);
        rest = behind;
        let name = take_padded(&mut rest, u64::from(entry.name_len))?;
        let dir = take_padded(&mut rest, entry.dir_len)?;
        entries.push(Registration { entry, name, dir });
    }
    Some(ModuleStatus { head, entries })
}

/// A number of four bytes at this place.
fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_ne_bytes(bytes)).ok()
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
    let about_module = said("", e);
    if is_another_version(&about_module) {
        return about_module;
    }
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
        assert!(parse_status(&[]).is_err());
        let mut bytes = vec![0; size_of::<StatusHead>()];
        assert!(is_another_version(&parse_status(&bytes).err().unwrap()), "version");
        bytes[0] = 1;
        assert!(parse_status(&bytes).is_err(), "head_len");
        let head_len = size_of::<StatusHead>() as u32;
        bytes[4..8].copy_from_slice(&(head_len + 1).to_le_bytes());
        assert!(!is_another_version(&parse_status(&bytes).err().unwrap()), "head_len");
        bytes[4..8].copy_from_slice(&head_len.to_le_bytes());
        assert!(parse_status(&bytes).is_ok());
        bytes[offset_of!(StatusHead, registrations)] = 1;
        assert!(parse_status(&bytes).is_err(), "no entry");
        let mut entry = vec![0; size_of::<Entry>()];
        entry[4] = 8;
        for len in [0, 7, 255] {
            entry[0] = len;
            assert!(parse_status(&[&bytes[..], &entry, b"/dev/vdb"].concat()).is_err(), "{len}");
        }
        entry[0] = size_of::<Entry>() as u8;
        bytes.extend(&entry);
        assert!(parse_status(&bytes).is_err(), "no name");
        bytes.extend(b"/dev/vdb");
        let status = parse_status(&bytes).unwrap();
        assert_eq!(status.entries[0].name, b"/dev/vdb");
        assert!(status.entries[0].dir.is_empty());
    }

    /// A status of a module whose structures have other lengths: all bytes that
    /// we do not know are 0xee.
    fn of_module(head_len: usize, entry_len: usize) -> Vec<u8> {
        let mut head = vec![0xee; head_len];
        let known = head.len().min(size_of::<StatusHead>());
        head[..known].fill(0);
        head[..4].copy_from_slice(&ioctl::ABI_VERSION.to_ne_bytes());
        head[4..8].copy_from_slice(&(head_len as u32).to_ne_bytes());
        head[offset_of!(StatusHead, registrations)] = 2;
        head[offset_of!(StatusHead, load_id)..][..16].fill(0x77);
        let mut out = head;
        for name in [&b"/dev/vdb"[..], b"/dev/vdcc"] {
            let mut entry = vec![0xee; entry_len];
            let known = entry.len().min(size_of::<Entry>());
            entry[..known].fill(0x11);
            entry[..4].copy_from_slice(&(entry_len as u32).to_ne_bytes());
            entry[4..8].copy_from_slice(&(name.len() as u32).to_ne_bytes());
            if let Some(dir_len) = entry.get_mut(offset_of!(Entry, dir_len)..) {
                dir_len[..8].copy_from_slice(&3u64.to_ne_bytes());
            }
            out.extend(entry);
            out.extend(name);
            out.resize(out.len().next_multiple_of(8), 0);
            if entry_len > offset_of!(Entry, dir_len) {
                out.extend(b"dir\0\0\0\0\0");
            }
        }
        out
    }

    #[test]
    fn status_of_an_older_and_of_a_newer_module() {
        let (head, entry) = (size_of::<StatusHead>(), size_of::<Entry>());
        let store_len = offset_of!(StatusHead, store_len);
        for head_len in [offset_of!(StatusHead, sessions), store_len, head, head + 8, 4 * head] {
            // 168: before `unseen_bytes`.
            for entry_len in [8, 16, offset_of!(Entry, claims), 168, entry, entry + 8, 5 * entry] {
                let status = parse_status(&of_module(head_len, entry_len)).unwrap();
                let what = format!("{head_len}, {entry_len}");
                assert_eq!(status.head.load_id, [0x77; 16], "{what}");
                assert_eq!(status.head.store_len, 0, "{what}");
                let names: Vec<_> = status.entries.iter().map(|r| &r.name[..]).collect();
                assert_eq!(names, [&b"/dev/vdb"[..], b"/dev/vdcc"], "{what}");
                for r in &status.entries {
                    let (ones, e) = (0x1111_1111_1111_1111, &r.entry);
                    assert_eq!(e.flags, if entry_len >= 16 { ones } else { 0 }, "{what}");
                    assert_eq!(e.claims, if entry_len >= 168 { ones } else { 0 }, "{what}");
                    assert_eq!(r.dir, if entry_len >= 168 { &b"dir"[..] } else { b"" }, "{what}");
                    let told = entry_len >= entry;
                    assert_eq!(e.unseen_bytes, if told { ones } else { u64::MAX }, "{what}");
                }
            }
        }
        let mut other = of_module(head, entry);
        other[0] = 2;
        assert!(is_another_version(&parse_status(&other).err().unwrap()));
    }

    #[test]
    fn a_refusal_of_another_version_is_told_from_others() {
        for errno in [libc::ENOTTY, libc::EPROTONOSUPPORT, libc::E2BIG] {
            let e = io::Error::from_raw_os_error(errno);
            for e in [said("x", &e), control_error(&e, true, b"/dev/vdb")] {
                assert!(is_another_version(&e) && e.hint.unwrap().contains("bdsnap reload"));
            }
        }
        let e = control_error(&io::Error::from_raw_os_error(libc::EINVAL), true, b"/dev/vdb");
        assert!(!is_another_version(&e) && e.message.contains("not a device"), "{e}");
        assert!(!is_another_version(&said("x", &io::Error::from_raw_os_error(libc::EBUSY))));
    }
}
