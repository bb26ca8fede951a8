// SPDX-License-Identifier: GPL-2.0

//! `bdsnap cat` and `bdsnap extract`: single files of the past.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use bdsnap_cli::{Common, Done};
use bdsnap_core::files::{absolute, Files};
use bdsnap_core::progress::Stop;
use bdsnap_core::{text, Error};

use super::view::open;
use crate::{Cat, Extract};

pub(crate) fn cat(common: &Common, args: &Cat) -> Result<Done, Error> {
    let files = Files::open(&Arc::new(Mutex::new(open(common, &args.of)?)))?;
    let mut out = std::io::stdout().lock();
    files.cat(&absolute(args.path.as_bytes()), &mut out, &Stop::never())?;
    match out.flush() {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("cannot write to standard output", &e))
        }
        _ => Ok(Done::OK),
    }
}

pub(crate) fn extract(common: &Common, args: &Extract) -> Result<Done, Error> {
    let files = Files::open(&Arc::new(Mutex::new(open(common, &args.of)?)))?;
    let (count, remarks) =
        files.extract(&absolute(args.path.as_bytes()), &args.output, &Stop::never())?;
    for remark in remarks {
        common.say(&format!("bdsnap: {remark}"));
    }
    common.say(&format!("{} in {}", text::count(count, "file"), text::path(&args.output)));
    Ok(Done::OK)
}
