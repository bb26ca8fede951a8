// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-handover`: run by modprobe after it has loaded the module. Gives
//! the module, once, what no module parameter may carry: the secret, and with
//! it the store's path and the devices to protect.
//!
//! Two smaller jobs go with it: the module's parameters out of bdsnap.toml, and
//! waiting for the end of all sessions before the store is unmounted.
//!
//! Whatever goes wrong is said, on standard error and in the kernel log, and
//! is no reason for modprobe to fail: the exit status is 0 but for wrong use.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bdsnap_abi::format::Version;
use bdsnap_abi::ioctl::DEVICE_NODE;
use bdsnap_core::config::{Config, DEFAULT_DIR};
use bdsnap_core::module::{Control, Module};
use bdsnap_core::settings::Settings;
use bdsnap_core::store::Store;
use bdsnap_core::{text, Error};

/// How long the control device's node may take to appear.
const PATIENCE: Duration = Duration::from_secs(2);

const USAGE: &str = "usage: bdsnap-handover [--store DIR] [--config-dir DIR]
       bdsnap-handover --module-options [--config-dir DIR]
       bdsnap-handover --wait-idle SECONDS";

/// How often a wait looks.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, PartialEq, Eq)]
enum Job {
    /// The hand-over itself.
    HandOver,
    /// For modprobe: prints the parameters that the settings ask for.
    Options,
    /// For the store's unit: waits for the end of all sessions.
    WaitIdle(Duration),
}

struct Args {
    job: Job,
    store: Option<PathBuf>,
    config: PathBuf,
}

fn main() -> ExitCode {
    let Some(args) = parse(std::env::args_os().skip(1)) else {
        say(USAGE, false);
        return ExitCode::from(2);
    };
    let done = match args.job {
        Job::HandOver => run(&args),
        Job::Options => options(&args),
        Job::WaitIdle(limit) => wait_idle(limit),
    };
    if let Err(e) = done {
        say(&format!("bdsnap-handover: {e}"), true);
        if let Some(hint) = e.hint {
            say(&format!("bdsnap-handover: {hint}"), false);
        }
    }
    ExitCode::SUCCESS
}

fn parse(mut args: impl Iterator<Item = std::ffi::OsString>) -> Option<Args> {
    let mut parsed = Args { job: Job::HandOver, store: None, config: DEFAULT_DIR.into() };
    while let Some(option) = args.next() {
        let mut value = || args.next();
        match option.to_str()? {
            "--store" => parsed.store = Some(value()?.into()),
            "--config-dir" => parsed.config = value()?.into(),
            "--module-options" => parsed.job = Job::Options,
            "--wait-idle" => {
                let seconds = value()?.to_str()?.parse().ok()?;
                parsed.job = Job::WaitIdle(Duration::from_secs(seconds));
            }
            _ => return None,
        }
    }
    Some(parsed)
}

/// The settings; where they cannot be read, the defaults.
fn settings(args: &Args) -> Settings {
    Settings::read(&args.config).unwrap_or_else(|e| {
        say(&format!("bdsnap-handover: {e}"), true);
        say("bdsnap-handover: all settings have their defaults", true);
        Settings::default()
    })
}

fn options(args: &Args) -> Result<(), Error> {
    writeln!(std::io::stdout(), "{}", settings(args).module_options())
        .map_err(|e| Error::io("cannot write to standard output", &e))
}

/// Waits for the end of all sessions, but not for ever.
fn wait_idle(limit: Duration) -> Result<(), Error> {
    let start = Instant::now();
    while let Some(module) = Module::open()? {
        let sessions = module.status()?.head.sessions;
        if sessions == 0 {
            break;
        }
        if start.elapsed() > limit {
            return Err(Error::other(format!("{sessions} sessions are still recording")));
        }
        // Not while the node is open, for that keeps the module.
        drop(module);
        std::thread::sleep(PAUSE);
    }
    Ok(())
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
    let version = module.status()?.format_version();
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
    let store = args.store.clone().unwrap_or_else(|| settings(args).store);
    // Not made now, it can be made or mounted later; sessions look for it. At
    // boot its file system is mounted only after this.
    if !Store::awaits_mount(&store) {
        if let Err(e) = prepare(&store, version) {
            say(&format!("bdsnap-handover: {e}"), true);
        }
    }
    let secret = secret.as_ref().map_or(&[][..], |s| s.as_slice());
    let secret = secret.strip_suffix(b"\n").unwrap_or(secret);
    let store = bdsnap_core::device::absolute(&store);
    let listed = devices.iter().filter(|b| **b == 0).count() as u64;
    match module.hand_over(secret, store.as_os_str().as_bytes(), &devices)? {
        // The module was loaded before.
        None => say("bdsnap-handover: the hand-over took place before", false),
        Some(registered) if registered != listed => say(
            &format!("bdsnap-handover: {registered} of {listed} listed devices registered"),
            true,
        ),
        Some(registered) => {
            let devices = text::count(registered, "listed device");
            say(&format!("bdsnap-handover: {devices} registered"), false);
        }
    }
    // So that they are recognised under other names later.
    if let (Ok(store), Ok(status)) = (Store::open(&store), module.status()) {
        bdsnap_core::identity::note_all(&store, &module, &status);
    }
    Ok(())
}

/// Makes the store, or makes it one of the version that the module writes.
fn prepare(store: &Path, version: Version) -> Result<(), Error> {
    let (mut store, _) = Store::init(store, version)?;
    if store.raise(version)? {
        let version = version as u32;
        say(&format!("bdsnap-handover: the store is of version {version} from now on"), true);
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
        assert_eq!(of(&[]).unwrap().store, None);
        assert_eq!(of(&[]).unwrap().job, Job::HandOver);
        assert_eq!(of(&["--store", "/s"]).unwrap().store.unwrap(), Path::new("/s"));
        assert_eq!(of(&["--module-options"]).unwrap().job, Job::Options);
        let wait = Job::WaitIdle(Duration::from_secs(5));
        assert_eq!(of(&["--wait-idle", "5"]).unwrap().job, wait);
        assert!(of(&["--wait-idle"]).is_none());
        assert!(of(&["--wait-idle", "x"]).is_none());
        assert_eq!(of(&["--config-dir", "/c"]).unwrap().config, Path::new("/c"));
        assert!(of(&["--store"]).is_none());
        assert!(of(&["--password", "x"]).is_none());
    }
}
