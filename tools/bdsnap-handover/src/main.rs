// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-handover`: run by modprobe after it has loaded the module. Gives
//! the module, once, what no module parameter may carry: the secret, and with
//! it the store's path and the devices to protect.
//!
//! Whatever goes wrong is said, on standard error and in the kernel log, and
//! is no reason for modprobe to fail: the exit status is 0 but for wrong use.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bdsnap_abi::ioctl::DEVICE_NODE;
use bdsnap_core::config::{Config, DEFAULT_DIR};
use bdsnap_core::module::{Control, Module};
use bdsnap_core::store::{Store, DEFAULT_STORE};
use bdsnap_core::{text, Error};

/// How long the control device's node may take to appear.
const PATIENCE: Duration = Duration::from_secs(2);

const USAGE: &str = "usage: bdsnap-handover [--store DIR] [--config-dir DIR]";

struct Args {
    store: PathBuf,
    config: PathBuf,
}

fn main() -> ExitCode {
    let Some(args) = parse(std::env::args_os().skip(1)) else {
        say(USAGE, false);
        return ExitCode::from(2);
    };
    if let Err(e) = run(&args) {
        say(&format!("bdsnap-handover: {e}"), true);
        if let Some(hint) = e.hint {
            say(&format!("bdsnap-handover: {hint}"), false);
        }
    }
    ExitCode::SUCCESS
}

fn parse(mut args: impl Iterator<Item = std::ffi::OsString>) -> Option<Args> {
    let mut parsed = Args { store: DEFAULT_STORE.into(), config: DEFAULT_DIR.into() };
    while let Some(option) = args.next() {
        let value = args.next()?.into();
        match option.to_str()? {
            "--store" => parsed.store = value,
            "--config-dir" => parsed.config = value,
            _ => return None,
        }
    }
    Some(parsed)
}

fn run(args: &Args) -> Result<(), Error> {
    let module = open(Path::new(DEVICE_NODE))?;
    let config = Config::new(&args.config);
    // A secret that cannot be used is as good as none: control is refused,
    // but what root has listed is protected all the same.
    let secret = config.secret().unwrap_or_else(|e| {
        say(&format!("bdsnap-handover: {e}"), true);
        None
    });
    if secret.is_none() {
        say("bdsnap-handover: no password is set, so registrations cannot be changed", true);
        say("bdsnap-handover: set one with 'bdsnap passwd' and load the module again", false);
    }
    let mut devices = Vec::new();
    for name in config.devices().unwrap_or_else(|e| {
        say(&format!("bdsnap-handover: {e}"), true);
        Vec::new()
    }) {
        if name.starts_with(b"/") && !name.contains(&0) {
            devices.extend_from_slice(&name);
            devices.push(0);
        } else {
            let name = text::escape(&name);
            say(&format!("bdsnap-handover: left out of the list, not absolute: {name}"), true);
        }
    }
    // Not made now, it can be made or mounted later; sessions look for it.
    if let Err(e) = Store::init(&args.store) {
        say(&format!("bdsnap-handover: {e}"), true);
    }
    let secret = secret.as_ref().map_or(&[][..], |s| s.as_slice());
    let secret = secret.strip_suffix(b"\n").unwrap_or(secret);
    let store = bdsnap_core::device::absolute(&args.store);
    let listed = devices.iter().filter(|b| **b == 0).count() as u64;
    match module.hand_over(secret, store.as_os_str().as_bytes(), &devices)? {
        // The module was loaded before.
        None => say("bdsnap-handover: the hand-over took place before", false),
        Some(registered) if registered != listed => say(
            &format!("bdsnap-handover: {registered} of {listed} listed devices registered"),
            true,
        ),
        Some(_) => {}
    }
    // So that they are recognised under other names later.
    if let (Ok(store), Ok(status)) = (Store::open(&store), module.status()) {
        bdsnap_core::identity::note_all(&store, &status);
    }
    Ok(())
}

/// Opens the control device, waiting for udev or devtmpfs to make its node.
fn open(node: &Path) -> Result<Module, Error> {
    let start = Instant::now();
    loop {
        if let Some(module) = Module::open_at(node)? {
            return Ok(module);
        }
        if start.elapsed() > PATIENCE {
            return Err(Error::not_found(format!("{} did not appear", node.display())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says something on standard error, and in the kernel log if it matters:
/// at boot nobody sees the former.
fn say(text: &str, log: bool) {
    // Nobody left to be told.
    let _ = writeln!(std::io::stderr(), "{text}");
    if log {
        if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
            // Level 4: a warning.
            let _ = kmsg.write_all(format!("<4>{text}\n").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let of = |args: &[&str]| parse(args.iter().map(Into::into));
        assert_eq!(of(&[]).unwrap().store, Path::new("/snapshot"));
        assert_eq!(of(&["--store", "/s"]).unwrap().store, Path::new("/s"));
        assert_eq!(of(&["--config-dir", "/c"]).unwrap().config, Path::new("/c"));
        assert!(of(&["--store"]).is_none());
        assert!(of(&["--password", "x"]).is_none());
    }
}
