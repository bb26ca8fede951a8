// SPDX-License-Identifier: GPL-2.0

//! `bdsnap list`.

use bdsnap_abi::format::State;
use bdsnap_cli::table::{Cell, Color};
use bdsnap_cli::{table, Common, Done};
use bdsnap_core::device::{Match, Matcher, Target};
use bdsnap_core::module::{Control, Module, ModuleStatus};
use bdsnap_core::retention::{Size, Span};
use bdsnap_core::session::{Session, View};
use bdsnap_core::store::{Item, Store};
use bdsnap_core::{chain, notes, text, Error, Kind};
use serde::Serialize;

use crate::List;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema_version: u32,
    sessions: &'a [Row],
}

/// A session as `--json` shows it.
#[derive(Debug, Serialize)]
struct Row {
    session_id: Option<String>,
    /// Name of its directory.
    name: String,
    /// The device's name as registered.
    device: Option<String>,
    /// Its bytes in hexadecimal digits, if they are no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_raw: Option<String>,
    /// `bdsnap`, or `original`: a session of the original module.
    format: &'static str,
    kind: Option<&'static str>,
    state: &'static str,
    durability: Option<&'static str>,
    chain_seq: Option<u64>,
    start: Option<String>,
    start_ns: Option<u64>,
    end: Option<String>,
    end_ns: Option<u64>,
    device_bytes: Option<u64>,
    chunk_size: Option<u32>,
    /// Runs of pre-images; of a session that did not end: unknown.
    records: Option<u64>,
    /// Bytes of pre-images in `blocks.dat`.
    saved_bytes: Option<u64>,
    /// Bytes that the session takes in the store.
    stored_bytes: Option<u64>,
    gap_before: Option<&'static str>,
    prev_session_id: Option<String>,
    group_id: Option<String>,
    restored_id: Option<String>,
    boot_id: Option<String>,
    errno: Option<u32>,
    broken_sector: Option<u64>,
    broken: Option<String>,
    absorbed_bytes: Option<u64>,
    held_bios: Option<u64>,
    /// The youngest session that was merged into it by pruning.
    merged_id: Option<String>,
    /// Names of its holds.
    holds: Option<Vec<String>>,
    /// Its tags.
    tags: Option<Vec<String>>,
    /// When it was verified; none: never, or it has changed since.
    verified: Option<String>,
    /// How that went.
    verified_ok: Option<bool>,
    /// What a file system checker said of the image of its start.
    verified_deep: Option<String>,
    /// What is wrong with a damaged one.
    damage: Option<String>,
}

pub(crate) fn run(common: &Common, args: &List) -> Result<Done, Error> {
    for column in args.columns.iter().chain(&args.sort) {
        if !COLUMNS.contains(&column.as_str()) {
            return Err(Error::new(
                Kind::Usage,
                format!("no column {}", text::escape(column.as_bytes())),
            )
            .hint(format!("columns: {}", COLUMNS.join(", "))));
        }
    }
    let store = Store::open(&common.store())?;
    let _lock = store.lock_shared()?;
    let mut items = store.items()?;
    if let Some(device) = &args.device {
        let target = Target::find(device)?;
        let mut matcher = Matcher::in_store(&target, &store);
        items.retain(|item| match item {
            Item::Session(s) => matches!(matcher.judge(&s.header), Match::Yes(_)),
            Item::Original(o) => chain::original_ground(&mut matcher, &target, o).is_some(),
            Item::Damaged(_) => false,
        });
        if items.is_empty() && !args.json {
            return Err(Error::not_found(format!("no sessions of {}", text::path(device))));
        }
    }
    let module = Module::open().ok().flatten().and_then(|m| m.status().ok());
    store.look_again(&mut items, module.as_ref());
    let mut rows: Vec<Row> = items.iter().map(|i| row(i, module.as_ref())).collect();
    let all = rows.len();
    filter(&mut rows, args)?;
    sort(&mut rows, args)?;
    if args.json {
        let document = Document { schema_version: 1, sessions: &rows };
        return bdsnap_cli::print_json(&document).map(|()| Done::OK);
    }
    if rows.is_empty() {
        common.say(if all == 0 { "no sessions" } else { "no sessions that fit" });
        return Ok(Done::OK);
    }
    if args.columns.is_empty() {
        bdsnap_cli::print(&people(&rows, common.colored()))?;
        let stored = rows.iter().filter_map(|r| r.stored_bytes).sum();
        let free = store.free_bytes()?;
        common.say(&format!(
            "{}, {}, {} free in {}",
            text::count(rows.len() as u64, "session"),
            text::size(stored),
            text::size(free),
            text::path(store.path())
        ));
        Ok(Done::OK)
    } else {
        bdsnap_cli::print(&columns(&rows, &args.columns)?).map(|()| Done::OK)
    }
}

/// Leaves the sessions that the user wants to see.
fn filter(rows: &mut Vec<Row>, args: &List) -> Result<(), Error> {
    let since = args.since.as_deref().map(time).transpose()?;
    let until = args.until.as_deref().map(time).transpose()?;
    let min_size = match &args.min_size {
        Some(size) => match Size::parse(size)? {
            Size::Bytes(n) => n,
            Size::Percent(_) => return Err(Error::new(Kind::Usage, "a size in bytes is wanted")),
        },
        None => 0,
    };
    let among = |words: &[String], word: Option<&str>| {
        words.is_empty() || word.is_some_and(|w| words.iter().any(|x| x == w))
    };
    rows.retain(|r| {
        among(&args.kind, r.kind)
            && among(&args.state, Some(r.state))
            && (args.tag.is_empty() || r.tags.iter().flatten().any(|t| args.tag.contains(t)))
            && since.is_none_or(|t| r.start_ns.is_some_and(|s| s >= t))
            && until.is_none_or(|t| r.start_ns.is_some_and(|s| s <= t))
            && (min_size == 0 || r.saved_bytes.is_some_and(|s| s >= min_size))
    });
    Ok(())
}

/// A time in RFC 3339, a day, or how long ago it was.
fn time(text: &str) -> Result<u64, Error> {
    let ns = |t: jiff::Timestamp| u64::try_from(t.as_nanosecond()).ok();
    let given = text.parse::<jiff::Timestamp>().ok().and_then(ns).or_else(|| {
        let day = text.parse::<jiff::civil::DateTime>().ok()?;
        ns(day.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
    });
    match given {
        Some(t) => Ok(t),
        None => Span::parse(text)
            .map(|ago| bdsnap_core::fsutil::now_ns().saturating_sub(ago.0))
            .map_err(|e| {
                e.hint("write it as 2026-11-22, 2026-11-22T10:00:00Z, or 2d for two days ago")
            }),
    }
}

/// Sorts by a column; without one they stay in the order of the chain.
fn sort(rows: &mut Vec<Row>, args: &List) -> Result<(), Error> {
    if let Some(column) = &args.sort {
        let mut keyed = Vec::with_capacity(rows.len());
        for row in rows.drain(..) {
            let value = serde_json::to_value(&row)
                .map_err(|e| Error::other(format!("cannot show a session: {e}")))?;
            keyed.push((value.get(column).cloned().unwrap_or_default(), row));
        }
        keyed.sort_by(|(a, _), (b, _)| match (a.as_u64(), b.as_u64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            // What has no value comes first.
            (a_number, b_number) if a.is_null() || b.is_null() => {
                (!a.is_null()).cmp(&!b.is_null()).then(a_number.cmp(&b_number))
            }
            _ => a.to_string().cmp(&b.to_string()),
        });
        rows.extend(keyed.into_iter().map(|(_, r)| r));
    }
    if args.reverse {
        rows.reverse();
    }
    Ok(())
}

fn row(item: &Item, module: Option<&ModuleStatus>) -> Row {
    let empty = Row {
        session_id: None,
        name: text::lossy(item.dir()),
        device: None,
        device_raw: None,
        format: "bdsnap",
        kind: None,
        state: "damaged",
        durability: None,
        chain_seq: None,
        start: None,
        start_ns: None,
        end: None,
        end_ns: None,
        device_bytes: None,
        chunk_size: None,
        records: None,
        saved_bytes: None,
        stored_bytes: None,
        gap_before: None,
        prev_session_id: None,
        group_id: None,
        restored_id: None,
        boot_id: None,
        errno: None,
        broken_sector: None,
        broken: None,
        absorbed_bytes: None,
        held_bios: None,
        merged_id: None,
        holds: None,
        tags: None,
        verified: None,
        verified_ok: None,
        verified_deep: None,
        damage: None,
    };
    match item {
        Item::Damaged(d) => Row { damage: Some(d.reason.clone()), ..empty },
        Item::Original(o) => Row {
            format: "original",
            state: "unchecked",
            device: o.device.as_deref().map(text::lossy),
            start: Some(text::rfc3339(o.start_ns())),
            start_ns: Some(o.start_ns()),
            records: Some(o.records),
            saved_bytes: Some(o.dat_bytes),
            ..empty
        },
        Item::Session(s) => session_row(s, chain::is_live(s, module), empty),
    }
}

fn session_row(s: &Session, live: bool, empty: Row) -> Row {
    let (header, status) = (&s.header, &s.status);
    let ended = s.has_ended();
    let broken = status.errno != 0 || status.state == State::Broken;
    let verified = notes::verified(s);
    Row {
        session_id: text::id(&header.session_id),
        device: Some(text::lossy(header.name())),
        device_raw: text::raw_hex(header.name()),
        kind: Some(header.kind.as_str()),
        state: s.view(live).as_str(),
        durability: Some(header.durability.as_str()),
        chain_seq: Some(header.chain_seq),
        start: Some(text::rfc3339(header.start_ns)),
        start_ns: Some(header.start_ns),
        end: (status.end_ns != 0).then(|| text::rfc3339(status.end_ns)),
        end_ns: (status.end_ns != 0).then_some(status.end_ns),
        device_bytes: Some(header.device_bytes),
        chunk_size: Some(header.chunk_size),
        records: ended.then_some(status.records),
        saved_bytes: Some(if ended { status.dat_bytes } else { s.dat_bytes }),
        stored_bytes: Some(s.stored_bytes),
        gap_before: Some(header.gap_before.as_str()),
        prev_session_id: text::id(&header.prev_session_id),
        group_id: text::id(&header.group_id),
        restored_id: text::id(&header.restored_id),
        boot_id: text::id(&header.boot_id),
        errno: broken.then_some(status.errno),
        broken_sector: broken.then_some(status.broken_sector),
        broken: (broken && status.broken_ns != 0).then(|| text::rfc3339(status.broken_ns)),
        absorbed_bytes: Some(status.absorbed_bytes),
        held_bios: Some(status.held_bios),
        merged_id: text::id(&header.merged_id),
        holds: Some(held(s)),
        tags: Some(notes::tags(&s.path).unwrap_or_else(|e| vec![format!("({})", e.message)])),
        verified: verified.as_ref().map(|v| v.when.clone()),
        verified_ok: verified.as_ref().map(|v| v.ok),
        verified_deep: verified.and_then(|v| v.deep),
        damage: s.slot_damaged.then(|| "a status slot is unreadable".to_owned()),
        ..empty
    }
}

/// Names of a session's holds; what cannot be read holds it as well.
fn held(s: &Session) -> Vec<String> {
    match notes::holds(&s.path) {
        Ok(holds) => holds.into_iter().map(|h| h.name).collect(),
        Err(e) => vec![format!("({})", e.message)],
    }
}

/// The names of [`Row`]'s fields.
const COLUMNS: [&str; 35] = [
    "session_id",
    "name",
    "device",
    "device_raw",
    "format",
    "kind",
    "state",
    "durability",
    "chain_seq",
    "start",
    "start_ns",
    "end",
    "end_ns",
    "device_bytes",
    "chunk_size",
    "records",
    "saved_bytes",
    "stored_bytes",
    "gap_before",
    "prev_session_id",
    "group_id",
    "restored_id",
    "boot_id",
    "errno",
    "broken_sector",
    "broken",
    "absorbed_bytes",
    "held_bios",
    "merged_id",
    "holds",
    "tags",
    "verified",
    "verified_ok",
    "verified_deep",
    "damage",
];

/// What a narrow terminal does without, in this order: SPAN, KIND, VERIFIED
/// (what is bad is remarked), START (it is part of the name).
const SPARE: [usize; 4] = [3, 5, 7, 2];

/// The table without `-o`.
fn people(rows: &[Row], colored: bool) -> String {
    let headings =
        ["DEVICE", "SESSION", "START", "SPAN", "SAVED", "KIND", "STATE", "VERIFIED", "REMARKS"];
    let mut table = table::new(&headings, colored);
    for r in rows {
        let span = match (r.start_ns, r.end_ns) {
            (Some(start), Some(end)) if end >= start => text::span(end - start),
            _ => "-".into(),
        };
        let mut state = Cell::new(r.state);
        if colored {
            state = match r.state {
                s if s == View::Closed.as_str() || s == View::Undo.as_str() => {
                    state.fg(Color::Green)
                }
                s if s == View::Recording.as_str() => state.fg(Color::Cyan),
                "unchecked" => state,
                s if s == View::Interrupted.as_str() => state.fg(Color::Yellow),
                _ => state.fg(Color::Red),
            };
        }
        table.add_row([
            Cell::new(r.device.as_deref().map_or("-".into(), shown)),
            Cell::new(shown(&r.name)),
            Cell::new(r.start_ns.map_or("-".into(), bdsnap_cli::local_time)),
            Cell::new(span),
            Cell::new(r.saved_bytes.map_or("-".into(), text::size)),
            Cell::new(r.kind.unwrap_or("-")),
            state,
            verified(r, colored),
            Cell::new(remarks(r)),
        ]);
    }
    table::fit(table, &[3, 4], &SPARE, table::terminal_width())
}

fn verified(r: &Row, colored: bool) -> Cell {
    let (Some(when), Some(ok)) = (&r.verified, r.verified_ok) else { return Cell::new("-") };
    // The day is enough.
    let day = when.get(..10).unwrap_or(when);
    let deep = r.verified_deep.as_deref();
    let word = match deep {
        _ if !ok => "DAMAGED",
        Some("clean") => "clean",
        Some("not clean") => "NOT CLEAN",
        Some(_) | None => "ok",
    };
    let cell = Cell::new(format!("{} {word}", shown(day)));
    match word {
        "ok" | "clean" if colored => cell.fg(Color::Green),
        _ if colored => cell.fg(Color::Red),
        _ => cell,
    }
}

fn remarks(r: &Row) -> String {
    let mut remarks = Vec::new();
    remarks.extend(r.holds.iter().flatten().map(|h| format!("held: {}", shown(h))));
    remarks.extend(r.tags.iter().flatten().map(|t| format!("tag: {}", shown(t))));
    match (r.verified_ok, r.verified_deep.as_deref()) {
        (Some(false), _) => remarks.push("was found damaged".into()),
        (_, Some("not clean")) => remarks.push("its image was not clean".into()),
        _ => {}
    }
    if r.merged_id.is_some() {
        remarks.push("merged".into());
    }
    match r.gap_before {
        Some("none") | None => {}
        // Before the first of all there is nothing to miss.
        Some(_) if r.prev_session_id.is_none() => {}
        Some(gap) => remarks.push(format!("gap before: {gap}")),
    }
    if let Some(errno) = r.errno {
        let why = i32::try_from(errno).map(bdsnap_core::error::errno_text).unwrap_or_default();
        remarks.push(match r.broken_sector {
            Some(sector) if errno != 0 => format!("{why}, sector {sector}"),
            _ => "pre-images lost".into(),
        });
    }
    if r.durability == Some("async") {
        remarks.push("async".into());
    }
    if r.group_id.is_some() {
        remarks.push("one of several devices".into());
    }
    if r.format == "original" {
        remarks.push("of the original module".into());
    }
    remarks.extend(r.damage.as_deref().map(shown));
    remarks.join("; ")
}

fn shown(name: &str) -> String {
    text::escape(name.as_bytes())
}

/// The table of `-o`: values as in JSON, `-` for none.
fn columns(rows: &[Row], names: &[String]) -> Result<String, Error> {
    let headings: Vec<String> = names.iter().map(|n| n.to_uppercase()).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = table::new(&headings, false);
    for row in rows {
        let value = serde_json::to_value(row)
            .map_err(|e| Error::other(format!("cannot show a session: {e}")))?;
        table.add_row(names.iter().map(|n| match value.get(n) {
            None | Some(serde_json::Value::Null) => Cell::new("-"),
            Some(serde_json::Value::String(s)) => Cell::new(shown(s)),
            Some(serde_json::Value::Array(a)) => {
                let words: Vec<String> = a.iter().filter_map(|v| v.as_str().map(shown)).collect();
                Cell::new(if words.is_empty() { "-".to_owned() } else { words.join(",") })
            }
            Some(other) => Cell::new(other),
        }));
    }
    Ok(table::finish(table, &[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_the_fields() {
        let damaged = bdsnap_core::store::Damaged { dir: b"x".to_vec(), reason: "y".into() };
        let mut row = row(&Item::Damaged(damaged), None);
        row.device_raw = Some("ff".into());
        let value = serde_json::to_value(&row).unwrap();
        let fields: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut columns = COLUMNS.to_vec();
        columns.sort_unstable();
        let mut fields_sorted = fields.clone();
        fields_sorted.sort_unstable();
        assert_eq!(fields_sorted, columns);
    }
}
