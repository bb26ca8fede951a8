// SPDX-License-Identifier: GPL-2.0

//! `bdsnap status --prometheus` and `--line`: for monitoring.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use bdsnap_abi::format::State;
use bdsnap_abi::ioctl::{
    ENTRY_PRESENT, ENTRY_RECORDING, ENTRY_REFUSED, ENTRY_UNPROTECTED, ENTRY_UNSEEN, ENTRY_WRITTEN,
};
use bdsnap_cli::{Common, Done};
use bdsnap_core::error::errno_text;
use bdsnap_core::kernels::System;
use bdsnap_core::module::{Control, Module, ModuleStatus};
use bdsnap_core::store::{Item, Store};
use bdsnap_core::trash::{Op, Trash};
use bdsnap_core::{chain, fsutil, notes, text, Error, Kind};

/// What the store says.
struct Stored {
    /// Sessions and their bytes, by device (harmless for a terminal) and state.
    sessions: BTreeMap<(String, &'static str), (u64, u64)>,
    /// Start of the newest session of a device, and whether its last
    /// verification found it good (if there was one).
    newest: BTreeMap<String, (u64, Option<bool>)>,
    free: u64,
    trash: u64,
}

fn stored(common: &Common, module: Option<&ModuleStatus>) -> Result<Stored, Error> {
    let store = Store::open(&common.store())?;
    let _lock = store.lock_shared()?;
    let mut items = store.items()?;
    store.look_again(&mut items, module);
    let mut out = Stored {
        sessions: BTreeMap::new(),
        newest: BTreeMap::new(),
        free: store.free_bytes()?,
        trash: Trash::list(&store)?.iter().map(Op::bytes).sum(),
    };
    for item in &items {
        let (device, state, bytes) = match item {
            Item::Session(s) => {
                let device = text::escape(s.header.name());
                // They come oldest first.
                let good =
                    notes::verified(s).map(|v| v.ok && v.deep.as_deref() != Some("not clean"));
                out.newest.insert(device.clone(), (s.header.start_ns, good));
                (device, s.view(chain::is_live(s, module)).as_str(), s.stored_bytes)
            }
            Item::Original(o) => {
                let device = o.device.as_deref().map(text::escape).unwrap_or_default();
                (device, "unchecked", o.dat_bytes)
            }
            Item::Damaged(_) => (String::new(), "damaged", 0),
        };
        let entry = out.sessions.entry((device, state)).or_default();
        entry.0 += 1;
        entry.1 += bytes;
    }
    Ok(out)
}

/// What `--check` complains about.
fn problems(status: &ModuleStatus) -> Vec<String> {
    super::status::problems(status, System::default().is_outdated())
}

/// A label's value.
fn label(value: &str) -> String {
    let mut out = String::new();
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}

struct Metrics(String);

impl Metrics {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP bdsnap_{name} {help}\n# TYPE bdsnap_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> =
            labels.iter().map(|(k, v)| format!("{k}=\"{}\"", label(v))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "bdsnap_{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.value(name, &[], value);
    }
}

fn of_module(m: &mut Metrics, status: &ModuleStatus) {
    let h = &status.head;
    for (name, kind, help, value) in [
        ("registrations", "gauge", "Devices registered", h.registrations),
        ("sessions_recording", "gauge", "Sessions recording now", h.sessions),
        (
            "sessions_since_load_total",
            "counter",
            "Sessions since the module was loaded",
            h.sessions_total,
        ),
        (
            "sessions_broken_total",
            "counter",
            "Sessions broken since the module was loaded",
            h.sessions_broken,
        ),
        ("held_bios_total", "counter", "Writes held since the module was loaded", h.held_bios),
        (
            "saved_bytes_total",
            "counter",
            "Old content saved since the module was loaded",
            h.saved_bytes,
        ),
        ("memory_bytes", "gauge", "Memory for old content now", h.memory_bytes),
        ("memory_limit_bytes", "gauge", "Its limit", h.memory_limit_bytes),
        (
            "auth_failures_total",
            "counter",
            "Wrong passwords since the module was loaded",
            h.auth_failures,
        ),
    ] {
        m.one(name, kind, help, value);
    }
    let flag = |f: u64, mask: u64| u64::from(f & mask != 0);
    type Of<'a> = &'a dyn Fn(&bdsnap_abi::ioctl::Entry) -> u64;
    let per_device: [(&str, &str, Of<'_>); 7] = [
        ("device_present", "The device is there", &|e| flag(e.flags, ENTRY_PRESENT)),
        ("device_recording", "A session is recording", &|e| flag(e.flags, ENTRY_RECORDING)),
        ("device_unprotected", "It is not protected until it is mounted anew", &|e| {
            flag(e.flags, ENTRY_UNPROTECTED | ENTRY_REFUSED)
        }),
        ("device_written", "It was written outside a session", &|e| flag(e.flags, ENTRY_WRITTEN)),
        ("device_unseen", "Something was written that no session has saved", &|e| {
            flag(e.flags, ENTRY_UNSEEN)
        }),
        ("device_broken", "Its last session is broken or tainted", &|e| {
            u64::from(e.state == State::Broken as u32 || e.state == State::Tainted as u32)
        }),
        ("device_saved_bytes", "Old content saved in its last session", &|e| e.saved_bytes),
    ];
    for (name, help, of) in per_device {
        m.head(name, "gauge", help);
        for r in &status.entries {
            m.value(name, &[("device", &text::escape(&r.name))], of(&r.entry));
        }
    }
}

fn of_store(m: &mut Metrics, stored: &Stored) {
    m.head("sessions", "gauge", "Sessions in the store");
    for ((device, state), (count, _)) in &stored.sessions {
        m.value("sessions", &[("device", device), ("state", state)], *count);
    }
    m.head("session_bytes", "gauge", "What they take in the store");
    for ((device, state), (_, bytes)) in &stored.sessions {
        m.value("session_bytes", &[("device", device), ("state", state)], *bytes);
    }
    m.head("newest_session_start_seconds", "gauge", "Start of the newest session, since 1970");
    for (device, (start, _)) in &stored.newest {
        m.value("newest_session_start_seconds", &[("device", device)], start / 1_000_000_000);
    }
    m.head(
        "newest_session_verified",
        "gauge",
        "Its last verification: 1 good, 0 not; absent: none",
    );
    for (device, (_, good)) in &stored.newest {
        if let Some(good) = good {
            m.value("newest_session_verified", &[("device", device)], u64::from(*good));
        }
    }
    m.one("store_free_bytes", "gauge", "Free in the store's file system", stored.free);
    m.one("trash_bytes", "gauge", "What the trash takes", stored.trash);
}

/// Writes the metrics into a file (as a whole, for a collector of text files)
/// or, for `-`, to standard output.
pub(crate) fn prometheus(common: &Common, to: &Path) -> Result<Done, Error> {
    let status = Module::open()?.map(|m| m.status()).transpose()?;
    let stored = match stored(common, status.as_ref()) {
        Ok(s) => Some(s),
        Err(e) if e.kind == Kind::NotFound => None,
        Err(e) => return Err(e),
    };
    let mut m = Metrics(String::new());
    m.one("module_loaded", "gauge", "The kernel module is loaded", u64::from(status.is_some()));
    m.one("store_present", "gauge", "The store is there", u64::from(stored.is_some()));
    if let Some(status) = &status {
        let problems = problems(status).len() as u64;
        m.one("problems", "gauge", "What 'bdsnap status --check' complains of", problems);
        of_module(&mut m, status);
    }
    if let Some(stored) = &stored {
        of_store(&mut m, stored);
    }
    if to == Path::new("-") {
        bdsnap_cli::print(&m.0)?;
    } else {
        fsutil::replace(to, m.0.as_bytes(), 0o644)?;
    }
    Ok(Done::OK)
}

/// One line: module, registrations, running sessions, last failure.
pub(crate) fn line(check: bool) -> Result<Done, Error> {
    let Some(status) = Module::open()?.map(|m| m.status()).transpose()? else {
        bdsnap_cli::print("bdsnap: module not loaded\n")?;
        return Ok(Done::with(Kind::NotFound));
    };
    let h = &status.head;
    let problems = problems(&status);
    let last =
        status.entries.iter().filter(|r| r.entry.broken_ns != 0).max_by_key(|r| r.entry.broken_ns);
    let failure = match last {
        Some(r) => {
            let why = i32::try_from(r.entry.errno).map(errno_text).unwrap_or_default();
            let when = bdsnap_cli::local_time(r.entry.broken_ns);
            format!("last failure {when} on {}: {why}", text::escape(&r.name))
        }
        None => match problems.first() {
            Some(p) => format!("problem: {p}"),
            None => "no failure".into(),
        },
    };
    bdsnap_cli::print(&format!(
        "bdsnap: module loaded, {}, {} recording, {failure}\n",
        text::count(h.registrations, "device"),
        text::count(h.sessions, "session"),
    ))?;
    Ok(if check && !problems.is_empty() { Done::with(Kind::Error) } else { Done::OK })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut m = Metrics(String::new());
        m.one("x", "gauge", "Help", 1);
        m.value("x", &[("device", "a\"b\\c\nd"), ("state", "s")], 2);
        let expected = "# HELP bdsnap_x Help\n# TYPE bdsnap_x gauge\nbdsnap_x 1\n\
                        bdsnap_x{device=\"a\\\"b\\\\c\\nd\",state=\"s\"} 2\n";
        assert_eq!(m.0, expected);
    }
}
