// SPDX-License-Identifier: GPL-2.0

//! For the tests, inside the guest:
//!
//! ```text
//! work DIR SEED MIB         writes to a file system in every way; prints what it can't do
//! ops DIR SEED COUNT        random operations on a file system
//! stamp-fill FILE           marks each sector of a file or device
//! stamp-run FILE SEED COUNT direct|buffered [OWN OF]   writes marked sectors at the edges of chunks, and checks
//!                           them; with OWN and OF single ones, as one of several at a time
//! stamp-check FILE          whether all is as stamp-fill made it
//! call NR NAME PASSWORD     a system call; prints 0 or the errno's name
//! call32 NR                 the same as a 32-bit program would, with null pointers
//! ioctl WHAT NAME PASSWORD [VERSION]   WHAT: activate, deactivate
//! ioctl-raw NUMBER POINTER  any ioctl of /dev/bdsnap, number in hex
//! json PATH                 reads a document, prints the value at a.b.0 (`#`: how many)
//! flip FILE OFFSET          turns one bit over
//! original OLD NEW DIR DEVICE   what the original module would leave in DIR, had it watched DEVICE go
//!                           from what OLD holds to what NEW holds
//! catatonic DIR             an automounter's folder waits for no daemon any more
//! fuzz SEED CALLS PASSWORD  so many calls of the control interface at random; says how often each errno came
//! restore-begin NAME        tells the module that a restore begins, and ends without a word
//! loop-offset DEVICE BYTES  makes a loop device show another part of its file, mounted or not
//! ```
//! NAME and PASSWORD are `s:TEXT`, `hex:BYTES`, `len:N` (so many letters), or pointers: `null`,
//! `low` (nothing is mapped there), `kernel`, `edge:N` (N letters, then an unmapped page).
//! POINTER is one of them, `zeros`, or `one`: a structure with the version and zeros.

// System calls with pointers that are wrong on purpose are what this is for.
#![allow(unsafe_code)]

mod calls;
mod fuzz;
mod load;
mod ops;
mod stamp;

use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

fn usage() -> Error {
    Error::new(ErrorKind::InvalidInput, "usage: see the source")
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::new(ErrorKind::InvalidInput, format!("not a number: {text}")))
}

fn run(args: &[&str]) -> Result<()> {
    match *args {
        ["work", dir, seed, mib] => load::run(dir.as_ref(), number(seed)?, number(mib)?),
        ["ops", dir, seed, count] => ops::run(dir.as_ref(), number(seed)?, number(count)?),
        ["stamp-fill", file] => stamp::fill(file.as_ref()),
        ["stamp-check", file] => stamp::check(file.as_ref()),
        ["stamp-run", file, seed, count, how] => {
            stamp::run(file.as_ref(), number(seed)?, number(count)?, how, (0, 1))
        }
        ["stamp-run", file, seed, count, how, own, of] => {
            let part = (number(own)?, number(of)?);
            stamp::run(file.as_ref(), number(seed)?, number(count)?, how, part)
        }
        ["call", nr, name, password] => calls::call(number(nr)?, name, password),
        ["call32", nr] => calls::call32(number(nr)?),
        ["ioctl", what, name, password] => calls::control(what, name, password, None),
        ["ioctl", what, name, password, version] => {
            calls::control(what, name, password, Some(number(version)?))
        }
        ["ioctl-raw", command, pointer] => {
            let command = u32::from_str_radix(command, 16).map_err(|_| usage())?;
            calls::raw(command, pointer)
        }
        ["json", path] => json(path),
        ["flip", file, offset] => flip(file, number(offset)?),
        ["original", old, new, dir, device] => original(old, new, dir, device),
        ["catatonic", dir] => calls::catatonic(dir),
        ["fuzz", seed, calls, password] => fuzz::run(number(seed)?, number(calls)?, password),
        ["restore-begin", name] => calls::restore_begin(name),
        ["loop-offset", device, bytes] => calls::loop_offset(device, number(bytes)?),
        _ => Err(usage()),
    }
}

fn json(path: &str) -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let document: serde_json::Value = serde_json::from_str(&text)?;
    let mut value = &document;
    for step in path.split('.').filter(|s| !s.is_empty()) {
        let missing = || Error::new(ErrorKind::NotFound, format!("nothing at {path}"));
        value = match value {
            serde_json::Value::Array(all) if step == "#" => {
                println!("{}", all.len());
                return Ok(());
            }
            serde_json::Value::Array(all) => all.get(number::<usize>(step)?).ok_or_else(missing)?,
            other => other.get(step).ok_or_else(missing)?,
        };
    }
    match value {
        serde_json::Value::String(s) => println!("{s}"),
        other => println!("{other}"),
    }
    Ok(())
}

fn flip(file: &str, offset: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset)?;
    file.sync_all()
}

/// The old content of all blocks that differ, not in their order; one block
/// twice, the second time with its new content, as that module did it.
fn original(old: &str, new: &str, dir: &str, device: &str) -> Result<()> {
    const BLOCK: usize = 4096;
    let (old, new) = (std::fs::read(old)?, std::fs::read(new)?);
    let pairs = old.chunks(BLOCK).zip(new.chunks(BLOCK)).enumerate();
    let changed = pairs.filter(|(_, (a, b))| a != b).map(|(i, (a, b))| (i, a, b));
    let mut entries: Vec<(usize, &[u8])> = changed.clone().map(|(i, a, _)| (i, a)).collect();
    entries.sort_by_key(|(i, _)| i.reverse_bits());
    entries.extend(changed.map(|(i, _, b)| (i, b)).next());
    let (mut map, mut dat) = (Vec::new(), Vec::new());
    for (block, content) in entries {
        map.extend_from_slice(&((block * BLOCK / 512) as u64).to_le_bytes());
        map.extend_from_slice(&(content.len() as u32).to_le_bytes());
        map.extend_from_slice(&(dat.len() as u64).to_le_bytes());
        dat.extend_from_slice(content);
    }
    let dir = std::path::Path::new(dir);
    std::fs::create_dir(dir)?;
    std::fs::write(dir.join("blocks.map"), map)?;
    std::fs::write(dir.join("blocks.dat"), dat)?;
    let meta = serde_json::json!({
        "device": device, "timestamp": 0, "block_size": BLOCK, "fs_type": "ext4",
        "total_blocks_saved": 0, "snapshot_type": "COW",
    });
    std::fs::write(dir.join("meta.json"), meta.to_string())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bdsnap-testtool {}: {e}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}
