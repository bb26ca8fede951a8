// SPDX-License-Identifier: GPL-2.0

//! `bdsnap inspect`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bdsnap_cli::{table, Common, Done};
use bdsnap_core::files::{Change, Entry, Files, Touched};
use bdsnap_core::inspect::{heat, shade, svg, Summary};
use bdsnap_core::module::{Control, Module};
use bdsnap_core::progress::Stop;
use bdsnap_core::session::Session;
use bdsnap_core::store::Store;
use bdsnap_core::{chain, select, text, Error};
use serde::Serialize;

use crate::Inspect;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema_version: u32,
    name: String,
    session_id: String,
    device: String,
    format_version: u32,
    kind: &'static str,
    state: &'static str,
    start: String,
    end: Option<String>,
    #[serde(flatten)]
    summary: &'a Summary,
    /// How much of each of 256 equal parts of the device was changed, in
    /// thousandths.
    heat: Vec<u16>,
    files: Option<&'a [Touched]>,
}

/// Cells of the heat map in JSON.
const CELLS: usize = 256;
/// Columns and rows of an SVG.
const SVG: (usize, usize) = (128, 64);

pub(crate) fn run(common: &Common, args: &Inspect) -> Result<Done, Error> {
    let (session, live) = {
        let store = Store::open(&common.store())?;
        let _lock = store.lock_shared()?;
        let session = select::session(&store, &args.of.session)?;
        let module = Module::open().ok().flatten().and_then(|m| m.status().ok());
        let live = chain::is_live(&session, module.as_ref());
        // Read again: it may have ended in between.
        let again = Session::read(&session.path, &session.dir).unwrap_or(session);
        (again, live)
    };
    let summary = Summary::of(&session, live)?;
    let files = if args.files { Some(touched(common, args)?) } else { None };
    if let Some(path) = &args.svg {
        picture(path, &session, &summary)?;
    }
    let (h, s) = (&session.header, &session.status);
    if args.json {
        bdsnap_cli::print_json(&Document {
            schema_version: 1,
            name: text::lossy(&session.dir),
            session_id: text::hex(&h.session_id),
            device: text::lossy(h.name()),
            format_version: h.version as u32,
            kind: h.kind.as_str(),
            state: session.view(live).as_str(),
            start: text::rfc3339(h.start_ns),
            end: (s.end_ns != 0).then(|| text::rfc3339(s.end_ns)),
            heat: heat(&summary.all, summary.device_bytes, CELLS),
            summary: &summary,
            files: files.as_deref(),
        })?;
        return Ok(Done::OK);
    }
    let mut out = describe(&session, live, &summary);
    let width = usize::from(table::terminal_width().unwrap_or(80)).clamp(20, 200) - 2;
    out += &map(&summary, width, common.colored());
    if let Some(files) = &files {
        out += &list(files, common.colored());
    }
    bdsnap_cli::print(&out).map(|()| Done::OK)
}

fn describe(session: &Session, live: bool, m: &Summary) -> String {
    let (h, s) = (&session.header, &session.status);
    let percent = |ppm: u64| format!("{}.{:02} %", ppm / 10_000, ppm / 100 % 100);
    let mut out = format!(
        "Session  {} ({}, {})\n",
        text::escape(&session.dir),
        h.kind.as_str(),
        session.view(live).as_str()
    );
    out += &format!("Device   {}, {}\n", text::escape(h.name()), text::size(h.device_bytes));
    out += &format!("Start    {}", bdsnap_cli::local_time(h.start_ns));
    if s.end_ns > h.start_ns {
        out += &format!(", for {}", text::span(s.end_ns - h.start_ns));
    }
    out += &format!("\nFormat   version {}\n", h.version as u32);
    out += &format!(
        "Saved    {} in {}, {} of the device",
        text::size(m.saved_bytes),
        text::count(m.runs, "run"),
        percent(m.changed_ppm)
    );
    if m.zero_bytes > 0 {
        out += &format!(", {} of it zeros", text::size(m.zero_bytes));
    }
    out.push('\n');
    out += &format!("Stored   {}", text::size(m.stored_bytes));
    if let Some(p) = m.stored_percent {
        out += &format!(", {}.{:02} times what was saved", p / 100, p % 100);
    }
    out.push('\n');
    out += &format!(
        "Pieces   {}, half of them of {} or more\n",
        m.pieces,
        text::size(m.median_piece_bytes)
    );
    let mut heading = "Largest";
    for p in &m.largest {
        out += &format!("{heading:8} {} at {}\n", text::size(p.bytes), text::size(p.start));
        heading = "";
    }
    out
}

/// Rows of the map in the terminal.
const ROWS: usize = 8;

fn map(m: &Summary, width: usize, colored: bool) -> String {
    let cells = heat(&m.all, m.device_bytes, width * ROWS);
    let mut out = String::from("\n");
    for row in cells.chunks(width) {
        out.push(' ');
        for &c in row {
            let colour = match c {
                0 => "\x1b[2m",
                1..=249 => "\x1b[33m",
                250..=749 => "\x1b[91m",
                _ => "\x1b[31m",
            };
            if colored {
                out += colour;
            }
            out.push(shade(c));
        }
        if colored {
            out += "\x1b[0m";
        }
        out.push('\n');
    }
    let each = m.device_bytes / (width * ROWS).max(1) as u64;
    out += &format!(
        " each character is {}: · nothing, ░ ▒ ▓ █ a quarter, half, three quarters, all of it changed\n",
        text::size(each)
    );
    out
}

fn picture(path: &Path, session: &Session, m: &Summary) -> Result<(), Error> {
    let cells = heat(&m.all, m.device_bytes, SVG.0 * SVG.1);
    let title = format!(
        "{} of {}: {} changed",
        text::escape(&session.dir),
        text::escape(session.header.name()),
        text::size(m.saved_bytes)
    );
    let each = text::size(m.device_bytes / cells.len() as u64);
    let legend = format!(
        "Each square is {each} of the device, row by row; from grey (nothing) to red (all of it)"
    );
    let shown = text::path(path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut f| f.write_all(svg(&cells, SVG.0, &title, &legend).as_bytes()))
        .map_err(|e| Error::io(format_args!("cannot make {shown}"), &e))
}

fn touched(common: &Common, args: &Inspect) -> Result<Vec<Touched>, Error> {
    let before = super::view::open(common, &args.of)?;
    let after = before.after()?;
    let open = |v| Files::open(&Arc::new(Mutex::new(v)));
    open(before)?.compare(&open(after)?, args.content, &Stop::never())
}

fn list(files: &[Touched], colored: bool) -> String {
    if files.is_empty() {
        return "\nno files differ\n".into();
    }
    let mut table = table::new(&["CHANGE", "BEFORE", "AFTER", "PATH"], colored);
    let size = |e: &Option<Entry>| match e {
        Some(e) if e.what == "file" => text::size(e.size),
        Some(e) => e.what.to_owned(),
        None => "-".into(),
    };
    for f in files {
        let change = match f.change {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Changed => "changed",
            Change::Attributes => "attributes",
        };
        table.add_row([change.into(), size(&f.before), size(&f.after), text::escape(&f.path)]);
    }
    format!("\n{}{}\n", table::finish(table, &[1, 2]), text::count(files.len() as u64, "path"))
}
