// SPDX-License-Identifier: GPL-2.0

//! `bdsnap verify`.

use std::collections::BTreeMap;

use bdsnap_cli::{Common, Done};
use bdsnap_core::module::{Control, Module, ModuleStatus};
use bdsnap_core::notes::{self, Verified};
use bdsnap_core::progress::{Progress, Stop};
use bdsnap_core::session::Session;
use bdsnap_core::store::{Item, Store};
use bdsnap_core::{chain, select, text, Error, Kind};
use serde::Serialize;

use super::deep::{self, Verdict};
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
    /// Only with `--deep`: `clean`, `not clean`, or `not asked`.
    deep: Option<&'static str>,
    /// What the checker said, or why it was not asked.
    deep_text: Option<String>,
    /// The break between the session before and this one.
    gap_before: Option<&'static str>,
}

pub(crate) fn run(common: &Common, args: &Verify) -> Result<Done, Error> {
    let store = Store::open(&common.store())?;
    let _lock = store.lock_shared()?;
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
        let link = links.get(&i).copied();
        let mut finding = check(&items[i], link, module.as_ref(), &*progress)?;
        if let Item::Session(s) = &items[i] {
            let live = chain::is_live(s, module.as_ref());
            if args.deep && finding.ok && !live {
                look_deeper(&mut finding, &store, s)?;
            }
            if !live {
                note(common, s, &finding);
            }
        }
        findings.push(finding);
    }
    progress.finish();

    let unclean = findings.iter().filter(|f| f.deep == Some(NOT_CLEAN)).count() as u64;
    let damaged = findings.iter().filter(|f| !f.ok).count() as u64;
    if args.json {
        let verified = findings.len();
        let document = Document { schema_version: 1, verified, damaged, sessions: &findings };
        bdsnap_cli::print_json(&document)?;
    } else {
        let lines: String = findings.iter().map(line).collect();
        bdsnap_cli::print(&lines)?;
    }
    if unclean > 0 {
        let images = text::count(unclean, "image");
        common.say(&format!("bdsnap: {images} not clean"));
    }
    if damaged > 0 {
        common.say(&format!("bdsnap: {} damaged", text::count(damaged, "session")));
        return Ok(Done::with(Kind::Verification));
    }
    if unclean > 0 {
        return Ok(Done::with(Kind::Verification));
    }
    Ok(Done::OK)
}

fn choose(items: &[Item], args: &Verify) -> Result<Vec<usize>, Error> {
    if args.all {
        return Ok((0..items.len()).collect());
    }
    args.sessions.iter().map(|name| select::place(items, name)).collect()
}

/// The break before each session, if there is one. Items are in the order of
/// the chain.
fn links(items: &[Item]) -> BTreeMap<usize, chain::Break> {
    let mut last: BTreeMap<&[u8], &Session> = BTreeMap::new();
    let mut links = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        if let Item::Session(s) = item {
            let before = last.insert(s.header.name(), s);
            if before.is_none() {
                // Before the oldest there is nothing to miss; older ones may
                // have been pruned.
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
        deep: None,
        deep_text: None,
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

const NOT_CLEAN: &str = "not clean";

fn look_deeper(finding: &mut Finding, store: &Store, session: &Session) -> Result<(), Error> {
    let (word, text) = match deep::check(store, session)? {
        Verdict::Clean => ("clean", None),
        Verdict::NotClean(said) => (NOT_CLEAN, Some(said)),
        Verdict::NotAsked(why) => ("not asked", Some(why)),
    };
    (finding.deep, finding.deep_text) = (Some(word), text);
    Ok(())
}

/// Remembers how it went, beside the session.
fn note(common: &Common, session: &Session, finding: &Finding) {
    let verified = Verified {
        when: text::rfc3339(bdsnap_core::fsutil::now_ns()),
        ok: finding.ok,
        deep: finding.deep.filter(|d| *d != "not asked").map(str::to_owned),
        damage: finding.damage.clone(),
        generation: session.status.generation,
        map_bytes: session.map_bytes,
    };
    if let Err(e) = notes::set_verified(session, verified) {
        // What was found is said all the same.
        common.say_more(&format!("bdsnap: not remembered: {e}"));
    }
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
    match (f.deep, &f.deep_text) {
        (Some(NOT_CLEAN), said) => {
            let said = text::escape(said.as_deref().unwrap_or_default().as_bytes());
            line += &format!("; image NOT CLEAN: {said}");
        }
        (Some(word), None) => line += &format!("; image {word}"),
        (Some(word), Some(why)) => {
            line += &format!("; image {word}: {}", text::escape(why.as_bytes()));
        }
        (None, _) => {}
    }
    if let Some(gap) = f.gap_before {
        line += &format!("; gap before it: {gap}");
    }
    line + "\n"
}
