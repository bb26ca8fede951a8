// SPDX-License-Identifier: GPL-2.0

//! `bdsnap status`.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bdsnap_abi::format::{Gap, State};
use bdsnap_abi::ioctl::{
    Entry, StatusHead, ENTRY_IMAGE, ENTRY_OTHERS, ENTRY_PRESENT, ENTRY_RAW, ENTRY_RECORDING,
    ENTRY_REFUSED, ENTRY_RESTORING, ENTRY_UNPROTECTED, ENTRY_UNSEEN, ENTRY_WRITTEN, LIVE_KINDS,
    MODULE_HOOKS, MODULE_SEALED, MODULE_SECRET, MODULE_SYSCALLS,
};
use bdsnap_cli::{Common, Done};
use bdsnap_core::device::{Matcher, Target};
use bdsnap_core::error::errno_text;
use bdsnap_core::kernels::System;
use bdsnap_core::module::{Control, Module, ModuleStatus, Registration};
use bdsnap_core::store::Store;
use bdsnap_core::{text, Error, Kind};
use serde_json::{json, Value};

use crate::Status;

pub(crate) fn run(common: &Common, args: &Status) -> Result<Done, Error> {
    if let Some(to) = &args.prometheus {
        return super::metrics::prometheus(common, to);
    }
    if args.line {
        return super::metrics::line(args.check);
    }
    let mut status = Module::require()?.status()?;
    if let Some(device) = &args.device {
        let target = Target::find(device)?;
        let mut matcher = Matcher::new(&target);
        status.entries.retain(|r| matcher.ground(&r.name).is_some());
        if status.entries.is_empty() {
            return Err(Error::not_found(format!("{} is not registered", text::path(device))));
        }
    }
    let around = Around::of(&status);
    let outdated = around.outdated;
    let problems = problems(&status, outdated);
    if args.json {
        bdsnap_cli::print_json(&document(&status, &around, &problems))?;
    } else if !common.quiet {
        let whole = args.device.is_none();
        bdsnap_cli::print(&people(&status, &around, whole))?;
        if whole {
            bdsnap_cli::print(&kernels(outdated == Some(true)))?;
        }
    }
    if args.check && !problems.is_empty() {
        for problem in &problems {
            bdsnap_cli::complain(&format!("bdsnap: {problem}"));
        }
        return Ok(Done::with(Kind::Error));
    }
    Ok(Done::OK)
}

/// What is to be said besides what the module says itself.
struct Around {
    /// Whether another module than the one that runs is installed, if that is known.
    outdated: Option<bool>,
    /// The version in which sessions are written in the store; why that cannot be read.
    store_version: Result<u32, String>,
}

impl Around {
    fn of(status: &ModuleStatus) -> Self {
        let store = Store::open(Path::new(OsStr::from_bytes(status.store())));
        Self {
            outdated: System::default().is_outdated(),
            store_version: store.map(|store| store.version() as u32).map_err(|e| e.message),
        }
    }
}

const OUTDATED: &str =
    "the module that runs is not the one that is installed, but most likely older: run 'bdsnap \
     reload', or restart the machine";

/// What is to be said of installed kernels: those that will not protect.
fn kernels(outdated: bool) -> String {
    let system = System::default();
    let mut out = String::new();
    if outdated {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\nupgraded   {OUTDATED}");
    }
    for kernel in system.kernels() {
        if kernel.module.is_none() {
            let why = system.why_no_module(&kernel.release);
            let release = text::escape(kernel.release.as_bytes());
            let _ =
                writeln!(out, "\nkernel {release} has no module: {}\n  {}", why.cause, why.cure);
        }
    }
    out
}

fn set(entry: &Entry, flag: u64) -> bool {
    entry.flags & flag != 0
}

/// The state of a registration's last session, in a word.
fn state(entry: &Entry) -> &'static str {
    let recorded = u8::try_from(entry.state).ok().and_then(|s| State::from_wire(s).ok());
    match recorded {
        None => "none",
        Some(s) => s.as_str(),
    }
}

fn errno(n: u32) -> String {
    i32::try_from(n).map(errno_text).unwrap_or_else(|_| n.to_string())
}

/// What was written past the module.
fn unseen(entry: &Entry) -> String {
    match entry.unseen_bytes {
        u64::MAX => "an unknown number of bytes was written past bdsnap".into(),
        1 => "1 byte was written past bdsnap".into(),
        n => format!("{n} bytes were written past bdsnap"),
    }
}

/// What `--check` complains about. `outdated`: whether another module than the
/// one that runs is installed, if that is known.
pub(crate) fn problems(status: &ModuleStatus, outdated: Option<bool>) -> Vec<String> {
    let mut problems = Vec::new();
    if outdated == Some(true) {
        problems.push(OUTDATED.into());
    }
    let head = &status.head;
    if head.flags & MODULE_SECRET == 0 {
        problems.push("the module was given no password to check against".into());
    }
    if head.self_test != 0 && head.self_test != u32::MAX {
        problems.push(format!("the self-test failed: {}", errno(head.self_test)));
    }
    if !status.entries.is_empty() && head.flags & MODULE_HOOKS == 0 {
        problems.push("the hooks are not installed".into());
    }
    for r in &status.entries {
        let (name, e) = (text::escape(&r.name), &r.entry);
        if set(e, ENTRY_REFUSED) {
            problems.push(format!("{name} cannot be protected: {}", errno(e.errno)));
        } else if set(e, ENTRY_UNPROTECTED) {
            problems.push(format!("{name} is not protected until it is mounted anew"));
        }
        if e.state == State::Broken as u32 {
            problems.push(format!(
                "{name}: the session is broken: {}, sector {}",
                errno(e.errno),
                e.broken_sector
            ));
        } else if e.state == State::Tainted as u32 {
            problems.push(format!("{name}: the session is tainted"));
        }
        if set(e, ENTRY_UNSEEN) {
            problems.push(format!("{name}: {}", unseen(e)));
        }
    }
    problems
}

fn durability(n: u32) -> Option<&'static str> {
    let wire = u8::try_from(n).ok()?;
    bdsnap_abi::format::Durability::from_wire(wire).ok().map(|d| d.as_str())
}

fn discard(n: u32) -> &'static str {
    match n {
        0 => "absorb",
        1 => "copy",
        2 => "pass",
        _ => "unknown",
    }
}

fn document(status: &ModuleStatus, around: &Around, problems: &[String]) -> Value {
    let h = &status.head;
    let live: serde_json::Map<String, Value> =
        LIVE_KINDS.iter().zip(h.live).map(|(k, n)| ((*k).to_owned(), json!(n))).collect();
    json!({
        "schema_version": 1,
        "module": {
            "load_id": text::hex(&h.load_id),
            "secret": h.flags & MODULE_SECRET != 0,
            "sealed": h.flags & MODULE_SEALED != 0,
            "hooks": h.flags & MODULE_HOOKS != 0,
            "syscalls": h.flags & MODULE_SYSCALLS != 0,
            "sysc_activate": h.sysc_activate,
            "sysc_deactivate": h.sysc_deactivate,
            "self_test": self_test(h),
            "self_test_errno": h.self_test,
            "store": text::lossy(status.store()),
            "store_version": around.store_version.as_ref().ok(),
            "format_version": status.format_version() as u32,
            "registrations": h.registrations,
            "sessions": h.sessions,
            "sessions_total": h.sessions_total,
            "sessions_broken": h.sessions_broken,
            "held_bios": h.held_bios,
            "saved_bytes": h.saved_bytes,
            "absorbed_bytes": h.absorbed_bytes,
            "memory_bytes": h.memory_bytes,
            "memory_peak_bytes": h.memory_peak_bytes,
            "memory_limit_bytes": h.memory_limit_bytes,
            "hold_timeout_ms": h.hold_timeout_ms,
            "min_free_bytes": h.min_free_bytes,
            "chunk_size": h.chunk_size,
            "durability": durability(h.durability),
            "discard": discard(h.discard),
            "auth_failures": h.auth_failures,
            "outdated": around.outdated,
            "live": live,
        },
        "devices": status.entries.iter().map(device).collect::<Vec<_>>(),
        "problems": problems,
    })
}

fn self_test(h: &StatusHead) -> &'static str {
    match h.self_test {
        0 => "passed",
        u32::MAX => "not run",
        _ => "failed",
    }
}

fn device(r: &Registration) -> Value {
    let e = &r.entry;
    let gap = u8::try_from(e.gap_before).ok().and_then(|g| Gap::from_wire(g).ok());
    json!({
        "device": text::lossy(&r.name),
        "device_raw": text::raw_hex(&r.name),
        "present": set(e, ENTRY_PRESENT),
        "recording": set(e, ENTRY_RECORDING),
        "raw": set(e, ENTRY_RAW),
        "written": set(e, ENTRY_WRITTEN),
        "unseen": set(e, ENTRY_UNSEEN),
        "unseen_bytes": (e.unseen_bytes != u64::MAX).then_some(e.unseen_bytes),
        "others_wrote": set(e, ENTRY_OTHERS),
        "image": set(e, ENTRY_IMAGE),
        "unprotected": set(e, ENTRY_UNPROTECTED),
        "refused": set(e, ENTRY_REFUSED),
        "restoring": set(e, ENTRY_RESTORING),
        "major": e.major,
        "minor": e.minor,
        "part_start": e.start,
        "bytes": e.bytes,
        "claims": e.claims,
        "session_id": text::id(&e.session_id),
        "session": (!r.dir.is_empty()).then(|| text::lossy(&r.dir)),
        "chain_seq": e.chain_seq,
        "start": (e.start_ns != 0).then(|| text::rfc3339(e.start_ns)),
        "state": state(e),
        "durability": durability(e.durability),
        "errno": e.errno,
        "gap_before": gap.map(Gap::as_str),
        "broken_sector": e.broken_sector,
        "broken": (e.broken_ns != 0).then(|| text::rfc3339(e.broken_ns)),
        "held_bios": e.held_bios,
        "holding": e.holding,
        "saved_chunks": e.saved_chunks,
        "saved_bytes": e.saved_bytes,
        "absorbed_bytes": e.absorbed_bytes,
        "saved_set_bytes": e.saved_set_bytes,
    })
}

fn people(status: &ModuleStatus, around: &Around, whole: bool) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    if whole {
        let _ = head(&mut out, status, around);
    }
    for r in &status.entries {
        let _ = entry(&mut out, r);
    }
    if status.entries.is_empty() {
        out.push_str("\nno device is registered\n");
    }
    out
}

fn head(out: &mut String, status: &ModuleStatus, around: &Around) -> std::fmt::Result {
    let h = &status.head;
    let yes = |flag, yes, no| if h.flags & flag != 0 { yes } else { no };
    writeln!(out, "module     loaded (load {})", text::hex(&h.load_id))?;
    writeln!(
        out,
        "password   {}",
        yes(MODULE_SECRET, "set", "NOT SET: run 'bdsnap passwd' and load the module again")
    )?;
    writeln!(out, "hand-over  {}", yes(MODULE_SEALED, "done", "still open"))?;
    writeln!(
        out,
        "hooks      {}, self-test {}{}",
        yes(MODULE_HOOKS, "installed", "not installed"),
        self_test(h),
        if self_test(h) == "failed" { format!(": {}", errno(h.self_test)) } else { String::new() }
    )?;
    let syscalls = if h.flags & MODULE_SYSCALLS != 0 {
        format!("activate {}, deactivate {}", h.sysc_activate, h.sysc_deactivate)
    } else {
        "not available; the control device serves alone".into()
    };
    writeln!(out, "syscalls   {syscalls}")?;
    let version = match &around.store_version {
        Ok(version) => format!("version {version} of the format"),
        Err(why) => format!("NOT TO BE USED: {why}"),
    };
    writeln!(out, "store      {}, {version}", text::escape(status.store()))?;
    writeln!(
        out,
        "settings   chunk {}, durability {}, discard {}, hold time-out {} ms, least free {}",
        text::size(h.chunk_size.into()),
        durability(h.durability).unwrap_or("unknown"),
        discard(h.discard),
        h.hold_timeout_ms,
        if h.min_free_bytes == 0 { "default".into() } else { text::size(h.min_free_bytes) }
    )?;
    writeln!(
        out,
        "memory     {} of {}, at most {} so far",
        text::size(h.memory_bytes),
        text::size(h.memory_limit_bytes),
        text::size(h.memory_peak_bytes)
    )?;
    writeln!(
        out,
        "sessions   {} recording, {} since load, {} of them broken",
        h.sessions, h.sessions_total, h.sessions_broken
    )?;
    writeln!(
        out,
        "so far     {} writes held, {} saved, {} of discards absorbed, {} wrong passwords",
        h.held_bios,
        text::size(h.saved_bytes),
        text::size(h.absorbed_bytes),
        h.auth_failures
    )?;
    let live: Vec<String> =
        LIVE_KINDS.iter().zip(h.live).map(|(kind, n)| format!("{kind} {n}")).collect();
    writeln!(out, "live       {}", live.join(", "))
}

fn entry(out: &mut String, r: &Registration) -> std::fmt::Result {
    let e = &r.entry;
    writeln!(out, "\n{}", text::escape(&r.name))?;
    let what = if !set(e, ENTRY_PRESENT) {
        "absent".into()
    } else {
        let image = if set(e, ENTRY_IMAGE) { ", image" } else { "" };
        format!("{}:{}, {}{image}", e.major, e.minor, text::size(e.bytes))
    };
    writeln!(out, "  device     {what}")?;
    let protection = if set(e, ENTRY_REFUSED) {
        format!("REFUSED: {}", errno(e.errno))
    } else if set(e, ENTRY_RESTORING) {
        "a restore is writing".into()
    } else if set(e, ENTRY_UNPROTECTED) {
        "NOT YET: was mounted when it was activated; unmount and mount it".into()
    } else if set(e, ENTRY_RAW) {
        "recording raw writes".into()
    } else if set(e, ENTRY_RECORDING) {
        format!("recording, {}", text::count(e.claims, "claim"))
    } else {
        "from the next mount or write on".into()
    };
    writeln!(out, "  protected  {protection}")?;
    if e.state != 0 {
        let dir = if r.dir.is_empty() { "nothing written".into() } else { text::escape(&r.dir) };
        writeln!(
            out,
            "  session    {}, {dir}, since {}",
            state(e),
            bdsnap_cli::local_time(e.start_ns)
        )?;
        writeln!(
            out,
            "  saved      {} in {}, {} writes held, {} now",
            text::size(e.saved_bytes),
            text::count(e.saved_chunks, "chunk"),
            e.held_bios,
            e.holding
        )?;
    }
    if e.state == State::Broken as u32 {
        writeln!(
            out,
            "  BROKEN     {}, sector {}, {}",
            errno(e.errno),
            e.broken_sector,
            bdsnap_cli::local_time(e.broken_ns)
        )?;
    }
    if set(e, ENTRY_WRITTEN) {
        writeln!(out, "  gap        written outside a session since the last one")?;
    }
    if set(e, ENTRY_OTHERS) {
        writeln!(out, "  gap        others wrote while the last restore wrote")?;
    }
    if set(e, ENTRY_UNSEEN) {
        writeln!(out, "  UNSEEN     {}", unseen(e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Around = Around { outdated: None, store_version: Ok(2) };

    fn status(entry: Entry) -> ModuleStatus {
        let head = StatusHead {
            flags: MODULE_SECRET | MODULE_HOOKS,
            registrations: 1,
            ..Default::default()
        };
        let registration = Registration { entry, name: b"/dev/vdb".to_vec(), dir: Vec::new() };
        ModuleStatus { head, entries: vec![registration] }
    }

    #[test]
    fn what_was_written_past_the_module() {
        let well = status(Entry { unseen_bytes: 0, ..Entry::default() });
        assert!(problems(&well, Some(false)).is_empty());
        assert!(!people(&well, &ALONE, true).contains("past bdsnap"));
        let of = |unseen_bytes| {
            let entry = Entry { flags: ENTRY_UNSEEN, unseen_bytes, ..Entry::default() };
            let status = status(entry);
            let problems = problems(&status, None);
            assert_eq!(problems.len(), 1);
            let said = people(&status, &ALONE, true);
            let device = document(&status, &ALONE, &problems)["devices"][0].clone();
            assert_eq!(device["unseen"], true);
            assert!(said.contains(problems[0].strip_prefix("/dev/vdb: ").unwrap()), "{said}");
            (problems[0].clone(), device["unseen_bytes"].clone())
        };
        assert_eq!(of(4096), ("/dev/vdb: 4096 bytes were written past bdsnap".into(), json!(4096)));
        assert_eq!(of(1), ("/dev/vdb: 1 byte was written past bdsnap".into(), json!(1)));
        let unknown = "/dev/vdb: an unknown number of bytes was written past bdsnap".into();
        assert_eq!(of(u64::MAX), (unknown, Value::Null));
    }

    #[test]
    fn others_that_wrote_during_a_restore() {
        let status = status(Entry { flags: ENTRY_OTHERS, ..Entry::unsaid() });
        let problems = problems(&status, None);
        assert!(problems.is_empty(), "the restore has failed already: {problems:?}");
        assert!(
            people(&status, &ALONE, false).contains("others wrote while the last restore wrote")
        );
        let document = document(&status, &ALONE, &problems);
        assert_eq!(document["devices"][0]["others_wrote"], true);
        assert_eq!(document["devices"][0]["unseen_bytes"], Value::Null, "an older module");
    }

    #[test]
    fn another_module_is_installed() {
        let well = status(Entry::unsaid());
        for (outdated, complains) in [(None, false), (Some(false), false), (Some(true), true)] {
            let problems = problems(&well, outdated);
            assert_eq!(problems.len(), usize::from(complains));
            assert!(problems.iter().all(|p| p.contains("run 'bdsnap reload'")), "{problems:?}");
            assert_eq!(
                document(&well, &Around { outdated, ..ALONE }, &problems)["module"]["outdated"],
                json!(outdated)
            );
        }
    }
}
