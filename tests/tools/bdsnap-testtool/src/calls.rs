// SPDX-License-Identifier: GPL-2.0

//! Calls of the control interface, right and wrong ones.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;

use bdsnap_abi::ioctl;

/// What a pointer in a call is made of; keeps its bytes alive.
struct Argument {
    address: u64,
    len: u64,
    _bytes: Vec<u8>,
}

impl Argument {
    fn at(address: u64) -> Self {
        Self { address, len: 16, _bytes: Vec::new() }
    }

    /// Bytes, ended by a NUL that `len` does not count.
    fn of(mut bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        bytes.push(0);
        Self { address: bytes.as_ptr() as u64, len, _bytes: bytes }
    }

    fn parse(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        Ok(match kind {
            "null" => Self::at(0),
            "low" => Self::at(0x1000),
            "kernel" => Self::at(0xffff_8880_0000_1000),
            "zeros" => Self::of(vec![0; 65536]),
            "one" => Self::of([&ioctl::ABI_VERSION.to_ne_bytes()[..], &[0; 65532]].concat()),
            // Of this ABI, all zeros but for one byte.
            "beyond" => {
                let mut bytes = vec![0; 65536];
                bytes[..4].copy_from_slice(&ioctl::ABI_VERSION.to_ne_bytes());
                *bytes.get_mut(crate::number::<usize>(rest)?).ok_or_else(crate::usage)? = 1;
                Self::of(bytes)
            }
            "s" => Self::of(rest.into()),
            "len" => Self::of(vec![b'a'; crate::number(rest)?]),
            "edge" => Self::edge(crate::number(rest)?)?,
            "hex" => Self::of(
                (0..rest.len() / 2)
                    .map(|i| u8::from_str_radix(&rest[2 * i..2 * i + 2], 16))
                    .collect::<std::result::Result<_, _>>()
                    .map_err(|e| Error::new(ErrorKind::InvalidInput, e))?,
            ),
            _ => return Err(crate::usage()),
        })
    }

    /// `n` letters that end where nothing is mapped.
    fn edge(n: usize) -> Result<Self> {
        // SAFETY: a new mapping somewhere, of which the second half is given up again.
        let page = unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                8192,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if page == libc::MAP_FAILED {
                return Err(Error::last_os_error());
            }
            libc::munmap(page.add(4096), 4096);
            libc::memset(page, i32::from(b'a'), 4096);
            page
        };
        Ok(Self {
            address: page as u64 + 4096 - n.min(4096) as u64,
            len: n as u64 + 1,
            _bytes: Vec::new(),
        })
    }
}

/// Says how a call went.
fn tell(errno: i32) -> Result<()> {
    let name = match errno {
        0 => "0",
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::E2BIG => "E2BIG",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOSYS => "ENOSYS",
        libc::EALREADY => "EALREADY",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ETIMEDOUT => "ETIMEDOUT",
        other => {
            println!("errno {other}");
            return Ok(());
        }
    };
    println!("{name}");
    Ok(())
}

fn last(result: i64) -> i32 {
    if result == -1 {
        Error::last_os_error().raw_os_error().unwrap_or(0)
    } else {
        0
    }
}

pub(crate) fn call(nr: i64, name: &str, password: &str) -> Result<()> {
    let (name, password) = (Argument::parse(name)?, Argument::parse(password)?);
    // SAFETY: the kernel checks the pointers, and that is what is tested.
    tell(last(unsafe { libc::syscall(nr, name.address, password.address) }))
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn call32(nr: u32) -> Result<()> {
    let result: u64;
    // SAFETY: the arguments are zeros; what such a call changes is listed.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {zero}",
            "int 0x80",
            "xchg rbx, {zero}",
            zero = inout(reg) 0u64 => _,
            inlateout("rax") u64::from(nr) => result,
            in("rcx") 0u64,
            in("rdx") 0u64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let result = result as u32 as i32;
    tell(if result < 0 { -result } else { 0 })
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn call32(_: u32) -> Result<()> {
    Err(ErrorKind::Unsupported.into())
}

fn device() -> Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).write(true).open(ioctl::DEVICE_NODE)
}

pub(crate) fn control(what: &str, name: &str, password: &str, version: Option<u32>) -> Result<()> {
    let command = match what {
        "activate" => ioctl::IOC_ACTIVATE,
        "deactivate" => ioctl::IOC_DEACTIVATE,
        _ => return Err(crate::usage()),
    };
    let (name, password) = (Argument::parse(name)?, Argument::parse(password)?);
    let mut request = ioctl::Control {
        version: version.unwrap_or(ioctl::ABI_VERSION),
        name: name.address,
        name_len: name.len,
        password: password.address,
        password_len: password.len,
        ..Default::default()
    };
    let device = device()?;
    // SAFETY: the structure is the one of this command, and lives until the call ends.
    tell(last(i64::from(unsafe { libc::ioctl(device.as_raw_fd(), command.into(), &mut request) })))
}

pub(crate) fn raw(command: u32, pointer: &str) -> Result<()> {
    let pointer = Argument::parse(pointer)?;
    let device = device()?;
    // SAFETY: the kernel checks the pointer; `zeros` is larger than any structure of the ABI.
    tell(last(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), command.into(), pointer.address)
    })))
}

/// Whoever waits in an autofs without a daemon would do so for ever.
pub(crate) fn catatonic(dir: &str) -> Result<()> {
    // _IO(0x93, 0x62)
    const AUTOFS_IOC_CATATONIC: u32 = 0x9362;
    let dir = std::fs::File::open(dir)?;
    // SAFETY: this ioctl has no argument.
    tell(last(i64::from(unsafe { libc::ioctl(dir.as_raw_fd(), AUTOFS_IOC_CATATONIC.into(), 0) })))
}

pub(crate) fn restore_begin(name: &str) -> Result<()> {
    let name = Argument::parse(name)?;
    let mut request = ioctl::Restore {
        version: ioctl::ABI_VERSION,
        phase: ioctl::RESTORE_BEGIN,
        name: name.address,
        name_len: name.len,
        ..Default::default()
    };
    let device = device()?;
    // SAFETY: the structure is the one of this command, and lives until the call ends.
    tell(last(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), ioctl::IOC_RESTORE.into(), &mut request)
    })))
}

/// losetup sets an offset only when it sets a device up.
pub(crate) fn loop_offset(device: &str, bytes: u64) -> Result<()> {
    const LOOP_SET_STATUS64: u32 = 0x4c04;
    const LOOP_GET_STATUS64: u32 = 0x4c05;
    /// Of `lo_offset`, the fourth number in `struct loop_info64`, which has 232 bytes.
    const OFFSET: usize = 3;
    let device = std::fs::OpenOptions::new().read(true).write(true).open(device)?;
    let mut info = [0u64; 29];
    // SAFETY: `info` is as large as the structure of both commands.
    let got = last(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64.into(), &mut info)
    }));
    if got != 0 {
        return tell(got);
    }
    info[OFFSET] = bytes;
    // SAFETY: as above.
    tell(last(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64.into(), &mut info)
    })))
}
