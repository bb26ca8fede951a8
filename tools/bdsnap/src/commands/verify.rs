// SPDX-License-Identifier: GPL-2.0

//! `bdsnap verify`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use bdsnap_abi::format::NO_ID;
use bdsnap_cli::{Common, Done};
use bdsnap_core::module::{Control, Module, ModuleStatus};
use bdsnap_core::progress::{Progress, Stop};
use bdsnap_core::session::Session;
use bdsnap_core::store::{Item, Store};
use bdsnap_core::{chain, text, Error, Kind};
use serde::Serialize;

use crate::Verify;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema_version: u32,
    verified: usize,
    damaged: u64,
    sessions: &'a [Finding],
}

/// What was found about one session.
#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    session_id: Option<String>,
    device: Option<String>,
    state: &'static str,
    /// No damage was found.
    ok: bool,
    /// What is wrong.
    damage: Option<String>,
    runs: u64,
    bytes: u64,
    /// Runs of a torn tail, whose writes were never released.
    torn: u64,
    /// The break between the session before and this one.
    gap_before: Option<&'static str>,
}

pub(crate) fn run(common: &Common, args: &Verify) -> Result<Done, Error> {
    let store = Store::open(&common.store())?;
    let mut items = store.items()?;
    let chosen = choose(&items, args)?;
    let module = Module::open().ok().flatten().and_then(|m| m.status().ok());
    store.look_again(&mut items, module.as_ref());
    let links = links(&items);
    let progress = common.progress();
    let total = chosen
        .iter()
        .map(|i| match &items[*i] {
            Item::Session(s) => s.dat_bytes,
            Item::Original(_) | Item::Damaged(_) => 0,
        })
        .sum();
    progress.phase("verify", total);
    let mut findings = Vec::new();
    for i in chosen {
        findings.push(check(&items[i], links.get(&i).copied(), module.as_ref(), &*progress)?);
    }
    progress.finish();

    let damaged = findings.iter().filter(|f| !f.ok).count() as u64;
    if args.json {
        let verified = findings.len();
        let document = Document { schema_version: 1, verified, damaged, sessions: &findings };
        bdsnap_cli::print_json(&document)?;
    } else {
        let lines: String = findings.iter().map(line).collect();
        bdsnap_cli::print(&lines)?;
    }
    if damaged > 0 {
        common.say(&format!("bdsnap: {} damaged", text::count(damaged, "session")));
        return Ok(Done::with(Kind::Verification));
    }
    Ok(Done::OK)
}

fn choose(items: &[Item], args: &Verify) -> Result<Vec<usize>, Error> {
    if args.all {
        return Ok((0..items.len()).collect());
    }
    args.sessions.iter().map(|name| find(items, name)).collect()
}

fn find(items: &[Item], name: &OsString) -> Result<usize, Error> {
    let name = name.as_bytes();
    let id = |i: &Item| match i {
        Item::Session(s) => Some(text::hex(&s.header.session_id)),
        Item::Original(_) | Item::Damaged(_) => None,
    };
    let exact = |i: &Item| i.dir() == name || id(i).is_some_and(|id| id.as_bytes() == name);
    if let Some(i) = items.iter().position(exact) {
        return Ok(i);
    }
    let like: Vec<usize> = (0..items.len()).filter(|&i| items[i].dir().starts_with(name)).collect();
    match like[..] {
        [i] => Ok(i),
        [] => Err(Error::not_found(format!("no session {}", text::escape(name)))),
        _ => {
            let names: Vec<_> = like.iter().map(|&i| text::escape(items[i].dir())).collect();
            let message = format!("several sessions begin with {}", text::escape(name));
            Err(Error::new(Kind::Usage, message).hint(format!("choose from: {}", names.join(", "))))
        }
    }
}

/// The break before each session, if there is one. Items are in the order of
/// the chain.
fn links(items: &[Item]) -> BTreeMap<usize, chain::Break> {
    let mut last: BTreeMap<&[u8], &Session> = BTreeMap::new();
    let mut links = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        if let Item::Session(s) = item {
            let before = last.insert(s.header.name(), s);
            if before.is_none() && s.header.prev_session_id == NO_ID {
                // Before the first of all there is nothing to miss.
                continue;
            }
            if let Some(b) = chain::link(before.map(|b| &b.header), &s.header) {
                links.insert(i, b);
            }
        }
    }
    links
}

fn check(
    item: &Item,
    gap: Option<chain::Break>,
    module: Option<&ModuleStatus>,
    progress: &dyn Progress,
) -> Result<Finding, Error> {
    let mut finding = Finding {
        name: text::lossy(item.dir()),
        session_id: None,
        device: None,
        state: "damaged",
        ok: false,
        damage: None,
        runs: 0,
        bytes: 0,
        torn: 0,
        gap_before: gap.map(chain::Break::as_str),
    };
    match item {
        Item::Damaged(d) => finding.damage = Some(d.reason.clone()),
        Item::Original(o) => {
            finding.state = "unchecked";
            finding.device = o.device.as_deref().map(text::lossy);
            match o.verify() {
                Ok(runs) => (finding.ok, finding.runs, finding.bytes) = (true, runs, o.dat_bytes),
                Err(why) => finding.damage = Some(why),
            }
        }
        Item::Session(s) => {
            let live = chain::is_live(s, module);
            finding.session_id = text::id(&s.header.session_id);
            finding.device = Some(text::lossy(s.header.name()));
            finding.state = s.view(live).as_str();
            match s.check(live, progress, &Stop::never()) {
                Ok(checked) => {
                    finding.ok = true;
                    finding.runs = checked.runs.len() as u64;
                    finding.bytes = checked.bytes;
                    finding.torn = checked.torn;
                }
                Err(e) if e.kind == Kind::Verification => finding.damage = Some(e.message),
                Err(e) => return Err(e),
            }
        }
    }
    Ok(finding)
}

fn line(f: &Finding) -> String {
    let name = text::escape(f.name.as_bytes());
    let mut line = match &f.damage {
        Some(why) => format!("{name}: DAMAGED: {}", text::escape(why.as_bytes())),
        None if f.state == "unchecked" => {
            format!("{name}: structure ok ({}; no checksums to check)", text::count(f.runs, "run"))
        }
        None => {
            let runs = text::count(f.runs, "run");
            format!("{name}: ok ({}, {runs}, {})", f.state, text::size(f.bytes))
        }
    };
    if f.torn > 0 {
        line += &format!("; {} of the torn tail left out", text::count(f.torn, "run"));
    }
    if let Some(gap) = f.gap_before {
        line += &format!("; gap before it: {gap}");
    }
    line + "\n"
}
