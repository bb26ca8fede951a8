// SPDX-License-Identifier: GPL-2.0

//! `bdsnap reload`: the installed module, password and settings take the
//! place of the loaded ones.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bdsnap_abi::ioctl::ENTRY_RECORDING;
use bdsnap_cli::{Common, Done};
use bdsnap_core::config::{Config, DEFAULT_DIR};
use bdsnap_core::kernels::System;
use bdsnap_core::module::{is_another_version, Control, Module, ModuleStatus};
use bdsnap_core::{text, Error, Kind};

use crate::Reload;

pub(crate) fn run(common: &Common, args: &Reload) -> Result<Done, Error> {
    let system = System::default();
    if let Some(module) = Module::open()? {
        let status = module.status();
        // An open control device keeps the module.
        drop(module);
        match status {
            Ok(status) => may_go(&status, args.forget)?,
            // This is what a reload is for. A session that is recording keeps the module.
            Err(e) if is_another_version(&e) && args.forget => {}
            Err(e) if is_another_version(&e) => {
                return Err(Error::refused(format!(
                    "{}: what is registered is not known",
                    e.message
                ))
                .hint("--forget lets go what is not in /etc/bdsnap/devices"));
            }
            Err(e) => return Err(e),
        }
        if system.module(&system.running()).is_none() {
            // Then the loaded one is better than none.
            return Err(Error::refused("the loaded module is kept, for there is no other")
                .hint(system.not_loaded().message));
        }
        unload().map_err(|said| {
            Error::new(Kind::Refused, format!("cannot unload: {}", text::escape(said.as_bytes())))
                .hint(
                    "the loaded module goes on; try again when nothing is mounted from its devices",
                )
        })?;
    }
    let said = modprobe(&["bdsnap"]).map_err(|said| system.load_failed(&said))?;
    for line in said.lines() {
        common.say(&text::escape(line.as_bytes()));
    }
    let head = Module::require()?.status()?.head;
    let devices = text::count(head.registrations, "device");
    common.say(&format!("the module is loaded; {devices} registered"));
    Ok(Done::OK)
}

/// Refuses if a session would be cut, or a registration lost without a word.
fn may_go(status: &ModuleStatus, forget: bool) -> Result<(), Error> {
    let list =
        |names: Vec<&Vec<u8>>| names.iter().map(|n| text::escape(n)).collect::<Vec<_>>().join(", ");
    let busy = status.entries.iter().filter(|r| r.entry.flags & ENTRY_RECORDING != 0);
    let busy: Vec<_> = busy.map(|r| &r.name).collect();
    if !busy.is_empty() {
        return Err(Error::refused(format!("sessions are recording: {}", list(busy)))
            .hint("unmount these devices first, or restart the machine"));
    }
    let kept = Config::new(Path::new(DEFAULT_DIR)).devices()?;
    let lost = status.entries.iter().map(|r| &r.name).filter(|n| !kept.contains(n));
    let lost: Vec<_> = lost.collect();
    if !forget && !lost.is_empty() {
        return Err(Error::refused(format!(
            "these registrations would be lost, for they are not in /etc/bdsnap/devices: {}",
            list(lost)
        ))
        .hint("'bdsnap activate DEV --persist' keeps one, --forget lets all of them go"));
    }
    Ok(())
}

/// How long the module may be in use before that is an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unloads the module. What is left of a session holds it for a moment longer than the unmount that ended
/// it takes, and so does whoever asks for the status just now.
fn unload() -> Result<String, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match modprobe(&["-r", "bdsnap"]) {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(200)),
            end => return end,
        }
    }
}

/// What it printed, or what it complained of.
fn modprobe(args: &[&str]) -> Result<String, String> {
    let output = Command::new("/sbin/modprobe").args(args).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(said)
    }
}
