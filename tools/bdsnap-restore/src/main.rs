// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-restore`: brings a device back to the start of a session.

mod progress;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use bdsnap_cli::{Common, Done};
use bdsnap_core::chain::{self, Chain, Selector};
use bdsnap_core::device::{Purpose, Target};
use bdsnap_core::module::{Control, Module};
use bdsnap_core::progress::{Progress, Stop};
use bdsnap_core::restore::{self, journal, Accept, DevicePlan, Outcome, Plan, Prepared, Request};
use bdsnap_core::session::Session;
use bdsnap_core::store::Store;
use bdsnap_core::{text, Error, Kind};
use clap::Parser;
use serde_json::json;

/// Brings a block device back to the start of a recorded session
///
/// Every session from the newest back to SESSION is taken back. All of them
/// are checked before the first byte is written, and what will be overwritten
/// is saved as a session of its own, so that '--undo' brings it back. If others
/// write to the device meanwhile, that is said, and the exit status is 6.
#[derive(Debug, Parser)]
#[command(name = "bdsnap-restore", version, after_help = bdsnap_cli::EXIT_HELP, max_term_width = 98)]
struct Cli {
    #[command(flatten)]
    common: Common,
    /// Block device, link to one, or image file; it must not be in use
    #[arg(value_name = "DEV")]
    device: PathBuf,
    /// Name of a session, unique beginning of one, 'latest' or 'latest~N'
    #[arg(value_name = "SESSION", conflicts_with = "undo")]
    session: Option<OsString>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Write the past as an image into FILE or onto another block device, and
    /// leave the device alone
    #[arg(long, value_name = "FILE|DEV")]
    to: Option<PathBuf>,
    /// Take the last restore back
    #[arg(long)]
    undo: bool,
    /// Go on with a restore that was interrupted
    #[arg(long, conflicts_with_all = ["undo", "session", "to", "no_undo", "alone"])]
    resume: bool,
    /// Save nothing first: this restore cannot be taken back
    #[arg(long, conflicts_with = "to")]
    no_undo: bool,
    /// Restore although the device may have changed unseen
    #[arg(long)]
    accept_gap: bool,
    /// Restore although old content was lost; the result is partial (status 6)
    #[arg(long)]
    accept_loss: bool,
    /// Restore one of several devices of a file system
    #[arg(long)]
    alone: bool,
    /// Print plan and result as JSON
    #[arg(long)]
    json: bool,
    /// Print progress, plan and result as lines of JSON, each with a 'type'
    #[arg(long, conflicts_with = "json")]
    json_lines: bool,
}

impl Cli {
    /// Whether a program reads what is printed.
    fn for_machines(&self) -> bool {
        self.json || self.json_lines
    }
}

fn main() -> ExitCode {
    if let Some(status) = bdsnap_cli::docs::asked_for::<Cli>() {
        return status;
    }
    let cli = Cli::parse();
    bdsnap_cli::more_files();
    let result = run(&cli);
    if let (true, Err(e)) = (cli.json_lines, &result) {
        // Standard error says it as well.
        let _ = progress::print(&json!({
            "type": "error",
            "schema_version": 1,
            "kind": e.kind,
            "exit_code": e.kind.exit_code(),
            "message": e.message,
            "hint": e.hint,
        }));
    }
    bdsnap_cli::end("bdsnap-restore", cli.json, result)
}

fn run(cli: &Cli) -> Result<Done, Error> {
    let common = &cli.common;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|e| Error::io("cannot handle signals", &e))?;
    }
    let store = Store::open(&common.store())?;
    let _lock = store.lock_shared()?;
    let target = Target::find(&cli.device)?;
    let writes = cli.to.is_none() && !cli.dry_run;
    if writes {
        journal::tidy(&store)?;
    }
    let request = Request {
        store: &store,
        target: &target,
        selector: selector(cli, &store, &target)?,
        accept: Accept { gap: cli.accept_gap, loss: cli.accept_loss, alone: cli.alone },
        purpose: if writes { Purpose::Write } else { Purpose::Read },
        to_image: cli.to.is_some(),
        undo: !cli.no_undo && cli.to.is_none(),
    };
    let progress: Box<dyn Progress> =
        if cli.json_lines { Box::new(progress::Lines::new()) } else { common.progress() };
    let stop = Stop::at(&stop);
    let modules = || Ok(Module::open()?.map(|m| Box::new(m) as Box<dyn Control>));
    let prepare = if cli.resume { restore::resume } else { restore::prepare };
    let prepared = prepare(&request, &modules, &*progress, &stop)?;
    let plan = prepared.plan.clone();
    for device in &plan.devices {
        let name = text::escape(device.device.as_bytes());
        common.say_more(&format!("{name} recognised by: {}", device.ground));
    }
    // Whoever is to confirm a plan has to see it.
    let quiet = common.quiet && cli.yes && !cli.dry_run;
    if cli.json_lines {
        progress::print(&line("plan", &plan)?)?;
    } else if !cli.json && !quiet {
        bdsnap_cli::print(&describe(&plan, cli))?;
    }
    if cli.dry_run {
        if cli.json {
            bdsnap_cli::print_json(&document(&plan, cli, None))?;
        }
        return Ok(Done::OK);
    }
    let outcome = match &cli.to {
        Some(path) => prepared.compose(path, cli.yes, &*progress, &stop)?,
        None => {
            confirm(cli, &prepared)?;
            prepared.apply(&*progress, &stop)?
        }
    };
    if cli.json_lines {
        progress::print(&line("result", &outcome)?)?;
    } else if cli.json {
        bdsnap_cli::print_json(&document(&plan, cli, Some(&outcome)))?;
    } else if !quiet {
        bdsnap_cli::print(&report(cli, &outcome))?;
    }
    if !outcome.others_wrote.is_empty() {
        bdsnap_cli::complain(&format!("bdsnap-restore: {}", others(&outcome)));
    }
    let whole = !outcome.partial && outcome.others_wrote.is_empty();
    Ok(if whole { Done::OK } else { Done::with(Kind::Incomplete) })
}

/// That others wrote as well, in words.
fn others(outcome: &Outcome) -> String {
    let names: Vec<String> = outcome.others_wrote.iter().map(|n| escaped(n)).collect();
    format!(
        "others wrote to {} while it was restored: what they wrote is in the result, or was \
         overwritten",
        names.join(", ")
    )
}

/// Which session: as given, or chosen on a terminal.
fn selector(cli: &Cli, store: &Store, target: &Target) -> Result<Selector, Error> {
    if cli.undo || cli.resume {
        return Ok(Selector::Undo);
    }
    if let Some(session) = &cli.session {
        return Ok(Selector::parse(session.as_bytes()));
    }
    let chain = Chain::of(store, target, &store.items()?);
    let newest_first: Vec<&Session> =
        chain.sessions.iter().rev().chain(chain.doubtful.iter().rev().map(|(s, _)| s)).collect();
    if newest_first.is_empty() {
        return Err(Error::not_found(format!("no sessions of {}", text::path(&cli.device))));
    }
    if !on_terminal() || cli.for_machines() {
        return Err(Error::new(Kind::Usage, "which session?")
            .hint(chain::candidates(newest_first.into_iter())));
    }
    let lines: Vec<String> = newest_first.iter().map(|s| choice(s)).collect();
    let chosen = dialoguer::Select::new()
        .with_prompt("Back to the start of which session?")
        .items(&lines)
        .default(0)
        .interact_opt()
        .map_err(unanswered)?;
    match chosen {
        Some(i) => Ok(Selector::Name(newest_first[i].dir.clone())),
        None => Err(Error::new(Kind::Interrupted, "nothing was chosen")),
    }
}

fn on_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

fn choice(s: &Session) -> String {
    let (kind, state) = (s.header.kind.as_str(), s.view(false).as_str());
    format!(
        "{}  {}  {}{state}  {}",
        bdsnap_cli::local_time(s.header.start_ns),
        text::escape(&s.dir),
        // An undo session is of that kind and in that state.
        if kind == state { String::new() } else { format!("{kind}, ") },
        text::size(s.status.dat_bytes)
    )
}

/// Lets the user type the device's name, unless `--yes`.
fn confirm(cli: &Cli, prepared: &Prepared<'_>) -> Result<(), Error> {
    if cli.yes || prepared.plan.bytes_to_write == 0 {
        return Ok(());
    }
    if !on_terminal() || cli.for_machines() {
        return Err(Error::refused("the device would be overwritten, and there is nobody to ask")
            .hint("--yes confirms it, --dry-run only shows the plan"));
    }
    let name = text::path(&cli.device);
    let others = match prepared.plan.devices.len() - 1 {
        0 => String::new(),
        n => format!(" and {}", text::count(n as u64, "other device")),
    };
    let typed: String = dialoguer::Input::new()
        .with_prompt(format!("Type {name} to overwrite it{others}"))
        .allow_empty(true)
        .interact_text()
        .map_err(unanswered)?;
    if typed.trim() == name {
        Ok(())
    } else {
        Err(Error::refused("not confirmed; nothing was written"))
    }
}

/// Nothing was chosen or typed: by Ctrl-C, or because the terminal went away.
fn unanswered(e: dialoguer::Error) -> Error {
    let dialoguer::Error::IO(e) = e;
    if e.kind() == std::io::ErrorKind::Interrupted {
        Error::new(Kind::Interrupted, "interrupted; nothing was written")
    } else {
        Error::io("cannot ask", &e)
    }
}

/// What `--json` prints.
#[derive(Debug, serde::Serialize)]
struct Document<'a> {
    schema_version: u32,
    dry_run: bool,
    to: Option<String>,
    plan: &'a Plan,
    result: Option<&'a Outcome>,
}

fn document<'a>(plan: &'a Plan, cli: &Cli, result: Option<&'a Outcome>) -> Document<'a> {
    Document {
        schema_version: 1,
        dry_run: cli.dry_run,
        to: cli.to.as_ref().map(|p| text::lossy(p.as_os_str().as_bytes())),
        plan,
        result,
    }
}

/// A line of `--json-lines`.
fn line(kind: &str, value: &impl serde::Serialize) -> Result<serde_json::Value, Error> {
    let value =
        serde_json::to_value(value).map_err(|e| Error::other(format!("cannot write JSON: {e}")))?;
    Ok(json!({ "type": kind, "schema_version": 1, kind: value }))
}

fn escaped(s: &str) -> String {
    text::escape(s.as_bytes())
}

/// The plan in words.
fn describe(plan: &Plan, cli: &Cli) -> String {
    let mut out: String = plan.devices.iter().map(|d| describe_device(d, cli)).collect();
    if plan.devices.len() > 1 {
        out += &format!(
            "All      {} to write on {} devices, which were one file system\n",
            text::size(plan.bytes_to_write),
            plan.devices.len()
        );
    }
    if cli.to.is_none() && plan.bytes_to_write > 0 && !plan.resumed {
        out += &match plan.undo_bytes {
            0 => "Undo     none: this cannot be taken back\n".to_owned(),
            n => format!("Undo     what is overwritten ({}) is saved first\n", text::size(n)),
        };
    }
    if plan.resumed {
        out += "Resumed  goes on with the restore that was interrupted\n";
    }
    for note in &plan.notes {
        out += &format!("Note     {}\n", escaped(note));
    }
    if plan.partial {
        out += "Partial  old content was lost; the result is not the whole past\n";
    }
    if plan.unproven {
        out += "Unproven what changed in the gap is not restored\n";
    }
    if !plan.accepted.is_empty() {
        out += &format!("Accepted {}\n", plan.accepted.join(", "));
    }
    out
}

fn describe_device(plan: &DevicePlan, cli: &Cli) -> String {
    let mut out =
        format!("Device   {}, {}\n", escaped(&plan.device), text::size(plan.device_bytes));
    out += &format!("Back to  {}, the start of {}\n", plan.start, escaped(&plan.session));
    let mut heading = "Through";
    for step in &plan.chain {
        let bytes = text::size(step.bytes);
        // An undo session is of that kind and in that state.
        let state =
            if step.kind == step.state { String::new() } else { format!(", {}", step.state) };
        out += &format!("{heading:8} {} ({}{state}, {bytes})", escaped(&step.name), step.kind);
        if let Some(gap) = step.gap_before {
            out += &format!(" GAP before it: {gap}");
        }
        out.push('\n');
        heading = "";
    }
    match &cli.to {
        Some(path) => {
            out += &format!(
                "Plan     an image of it into {}, {} of it from the sessions\n",
                text::path(path),
                text::size(plan.bytes_covered)
            );
        }
        None => {
            out += &format!(
                "Plan     {} to write in {}, {} equal already\n",
                text::size(plan.bytes_to_write),
                text::count(plan.writes, "piece"),
                text::size(plan.bytes_equal)
            );
        }
    }
    if let Some(gap) = plan.gap_now {
        out += &format!("Gap      between the newest session and now: {gap}\n");
    }
    out
}

/// The result in words.
fn report(cli: &Cli, outcome: &Outcome) -> String {
    let partial = if outcome.partial { " (partial)" } else { "" };
    if let Some(path) = &cli.to {
        return format!("Done     {} written{partial}\n", text::path(path));
    }
    let mut out = if outcome.bytes_written == 0 {
        format!("Done     nothing to write{partial}\n")
    } else if outcome.others_wrote.is_empty() {
        format!(
            "Done     {} written, flushed, read back and equal{partial}\n",
            text::size(outcome.bytes_written)
        )
    } else {
        format!(
            "Done     {} written and flushed{partial}, but the result is not only what was \
             written\nOthers   {}\n",
            text::size(outcome.bytes_written),
            others(outcome)
        )
    };
    if !outcome.undo_sessions.is_empty() {
        let names: Vec<String> = outcome.undo_sessions.iter().map(|n| escaped(n)).collect();
        out += &format!(
            "Undo     {}: bdsnap-restore {} --undo\n",
            names.join(", "),
            text::path(&cli.device)
        );
    } else if outcome.bytes_written > 0 {
        out += "Gap      nothing was saved for undo, so the chain has a gap here\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn others_that_wrote_are_told_of() {
        let cli = Cli::parse_from(["bdsnap-restore", "/dev/vdb", "latest"]);
        let mut outcome = Outcome {
            bytes_written: 4096,
            undo_sessions: vec!["vdb_20261120T235959Z".into()],
            ..Outcome::default()
        };
        let said = report(&cli, &outcome);
        assert!(said.contains("read back and equal") && !said.contains("thers"), "{said}");
        outcome.others_wrote = vec!["/dev/v\x1bdb".into(), "/dev/vdc".into()];
        let said = report(&cli, &outcome);
        assert!(said.contains("others wrote to /dev/v\\u{1b}db, /dev/vdc while"), "{said}");
        assert!(!said.contains("equal") && said.contains("Undo "), "{said}");
    }
}
