// SPDX-License-Identifier: GPL-2.0

//! Calls of the control interface at random: what the kernel says does not
//! matter, only that it goes on.

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

use bdsnap_abi::ioctl;

/// Numbers that repeat for a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Memory of a mapping of its own, so that an answer that is written into it
/// meets nothing else: `content`, then zeros, then nothing.
fn region(content: &[u8]) -> Result<u64> {
    const LEN: usize = 1 << 16;
    // SAFETY: a new mapping somewhere, larger than any content, which nobody
    // gives back; its last page is given up again.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            LEN + 4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if start == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        libc::munmap(start.add(LEN), 4096);
        let len = content.len().min(LEN);
        std::ptr::copy_nonoverlapping(content.as_ptr(), start.cast(), len);
        Ok(start as u64)
    }
}

/// Makes so many calls; prints how often each answer came.
pub(crate) fn run(seed: u64, calls: u64, password: &str) -> Result<()> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let names: [&[u8]; 10] = [
        b"/dev/vda",
        b"/dev/vdb",
        b"/dev/vdc",
        b"/dev/null",
        b"/",
        b"/proc/self/mem",
        b"/dev/../dev//vda",
        b"no path",
        b"/\xff\x1b[2J\n\"",
        &[b'/'; 5000],
    ];
    let mut pointers = Vec::new();
    for name in names {
        pointers.push((region(name)?, name.len() as u64));
    }
    let right = (region(password.as_bytes())?, password.len() as u64);
    // Where nothing is, in the kernel, at the end of what is mapped.
    let edge = region(&[])? + (1 << 16);
    let bad =
        [0, 8, 0x1000, edge - 1, edge - 40, edge, 0xffff_8880_0000_1000, u64::MAX - 7, 1 << 63];
    let lengths =
        [0, 1, 15, 16, 64, 4095, 4096, 4097, 65_536, 1 << 20, 1 << 32, u64::MAX, i64::MAX as u64];
    let commands = [
        ioctl::IOC_ACTIVATE,
        ioctl::IOC_DEACTIVATE,
        ioctl::IOC_HAND_OVER,
        ioctl::IOC_SETTLE,
        ioctl::IOC_STATUS,
        ioctl::IOC_STATUS,
        ioctl::IOC_RESTORE,
        ioctl::IOC_RESTORE,
        ioctl::IOC_IDENTIFY,
    ];
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(ioctl::DEVICE_NODE);
    let mut device = open()?;
    let mut answers: BTreeMap<i32, u64> = BTreeMap::new();
    for _ in 0..calls {
        let fd = device.as_raw_fd();
        let word = |random: &mut Random| match random.below(8) {
            0 => random.of(&bad),
            1 => random.of(&lengths),
            2 => random.next(),
            3 => 0,
            _ => random.of(&pointers).0,
        };
        let result = match random.below(16) {
            0..=9 => {
                let command = random.of(&commands);
                let version =
                    if random.below(30) == 0 { random.next() as u32 } else { ioctl::ABI_VERSION };
                let flags = if random.below(2) == 0 { 0 } else { random.below(6) as u32 };
                let mut words = [0u64; 32];
                for w in &mut words[..8] {
                    *w = word(&mut random);
                }
                words[0] = u64::from(version) | u64::from(flags) << 32;
                let (name, len) = random.of(&pointers);
                if random.below(3) > 0 {
                    (words[1], words[2]) = (name, len);
                }
                if matches!(command, ioctl::IOC_ACTIVATE | ioctl::IOC_DEACTIVATE) {
                    // A wrong password would close the door for all that follow; the
                    // right one takes its time.
                    if random.below(20) == 0 {
                        (words[3], words[4]) = right;
                    } else {
                        words[4] = random.of(&[2000, u64::MAX]);
                    }
                } else if command == ioctl::IOC_IDENTIFY && random.below(3) > 0 {
                    words[6] = random.of(&[0, 1, 133, 134, 135, 136, 137]);
                } else if command == ioctl::IOC_STATUS {
                    words[2] = random.of(&lengths);
                }
                // As of an older or newer program; now and then with something beyond.
                let command = match random.below(6) {
                    0 => (command & !(0x3fff << 16)) | ((random.below(257) as u32) << 16),
                    _ => command,
                };
                if random.below(4) == 0 {
                    words[8 + random.below(24) as usize] = random.next();
                }
                let at = match random.below(12) {
                    0 => random.of(&bad),
                    _ => words.as_mut_ptr() as u64,
                };
                // SAFETY: the structure is as large as any that is asked for. What the kernel
                // writes goes there and to regions made for it; it checks the addresses.
                unsafe { libc::ioctl(fd, command.into(), at) }.into()
            }
            10 | 11 => {
                let other = random.next() & 0xffff;
                let number = random.of(&[0xbd00, other]) | random.next() & 0xffff_00ff;
                let known = ioctl::Call::of(number as u32)
                    .is_some_and(|c| (ioctl::NR_ACTIVATE..=ioctl::NR_IDENTIFY).contains(&c.nr));
                if known {
                    continue;
                }
                let argument = word(&mut random);
                // SAFETY: no command of the ABI; others leave memory alone.
                unsafe { libc::ioctl(fd, (number & 0xffff_ffff) as libc::Ioctl, argument) }.into()
            }
            12 | 13 => {
                let nr = random.of(&[174, 177]);
                let name = word(&mut random);
                // Bad pointers only; see above.
                let password = random.of(&bad);
                // SAFETY: both are only read, and the kernel checks them.
                unsafe { libc::syscall(nr, name, password) }
            }
            14 => {
                let at = word(&mut random);
                let len = random.below(4096) as usize;
                // SAFETY: the device has none of these; the kernel checks the addresses.
                unsafe {
                    match random.below(4) {
                        0 => libc::read(fd, at as *mut _, len) as i64,
                        1 => libc::write(fd, at as *const _, len) as i64,
                        2 => libc::lseek(fd, at as i64, libc::SEEK_SET),
                        _ => i64::from(libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK)),
                    }
                }
            }
            _ => {
                device = open()?;
                0
            }
        };
        let errno = if result < 0 { Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
        *answers.entry(errno).or_default() += 1;
    }
    for (errno, n) in answers {
        println!("errno {errno}: {n}");
    }
    Ok(())
}
