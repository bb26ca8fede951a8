// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-bench writes FILE OFFSET BYTES COUNT`: so many direct writes, one
//! after the other; prints the nanoseconds that one took on average.
//!
//! `bdsnap-bench sessions STORE COUNT`: so many small sessions, in a store that is
//! there.
//!
//! `bdsnap-bench report DIR`: from `DIR/raw`, which `tests/bench/guest.sh` has
//! filled, makes `bench.json`, `tables.md` and the plots.

mod report;
mod sessions;
mod svg;

use std::error::Error;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

/// A buffer that direct I/O takes.
#[repr(C, align(4096))]
struct Aligned([u8; 1 << 20]);

fn writes(file: &str, offset: u64, bytes: usize, count: u64) -> Result<f64, Box<dyn Error>> {
    let direct = rustix::fs::OFlags::DIRECT.bits();
    let file = OpenOptions::new().write(true).custom_flags(direct as i32).open(file)?;
    let buffer = Box::new(Aligned([7; 1 << 20]));
    let buffer = buffer.0.get(..bytes).ok_or("at most 1 MiB at a time")?;
    let began = Instant::now();
    for i in 0..count {
        file.write_all_at(buffer, offset + i * bytes as u64)?;
    }
    Ok(began.elapsed().as_nanos() as f64 / count as f64)
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["writes", file, offset, bytes, count] => {
            println!("{:.0}", writes(file, offset.parse()?, bytes.parse()?, count.parse()?)?);
        }
        ["sessions", store, count] => sessions::make(store.as_ref(), count.parse()?)?,
        ["report", dir] => report::report(dir.as_ref())?,
        _ => return Err("see the beginning of its source".into()),
    }
    Ok(())
}

fn main() {
    if let Err(e) = run() {
        eprintln!("bdsnap-bench: {e}");
        std::process::exit(1);
    }
}
