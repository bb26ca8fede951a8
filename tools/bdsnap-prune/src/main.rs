// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-prune`: removes sessions that no rule keeps.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use bdsnap_cli::table::{self, Cell, Color};
use bdsnap_cli::{Common, Done};
use bdsnap_core::module::{Control, Module};
use bdsnap_core::policy::Policies;
use bdsnap_core::progress::Stop;
use bdsnap_core::prune::{self, Action, Clock, Line, Outcome, Plan, Prepared, Request};
use bdsnap_core::store::Store;
use bdsnap_core::trash::{Trash, What};
use bdsnap_core::{text, Error, Kind};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

/// Remove sessions that no rule keeps
///
/// Without --apply only the plan is shown. Rules are combined by 'or': a
/// session stays if one of them keeps it. They come from the table [prune] of
/// /etc/bdsnap/bdsnap.toml, of /etc/bdsnap/conf.d/*.toml, and from the options
/// below, which override those of files for all devices. Without any rule
/// nothing is removed.
///
/// To go back to the start of a session takes all later ones of its device. A
/// session that an older one needs is therefore merged into that one, or
/// stays, if that cannot be; the plan says which. The oldest sessions of a
/// device are removed as they are. What is removed stays in the trash for
/// some days: 'bdsnap-prune undelete' brings it back.
#[derive(Debug, Parser)]
#[command(name = "bdsnap-prune", version, after_help = bdsnap_cli::EXIT_HELP, max_term_width = 98)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    prune: Prune,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say why a session stays or goes
    Explain(Box<Explain>),
    /// Put a session back that is in the trash, with those that its chain needs
    Undelete(Undelete),
    /// Show what is in the trash
    Trash(ShowTrash),
    /// Delete all that is in the trash, for good
    EmptyTrash,
}

#[derive(Debug, Clone, Args)]
struct Prune {
    #[command(flatten)]
    rules: Rules,
    /// Do it; without this only the plan is shown
    #[arg(long, conflicts_with = "now")]
    apply: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Rules")]
struct Rules {
    /// Keep the newest N of a device, also when space is needed
    #[arg(long, value_name = "N")]
    keep_last: Option<String>,
    /// Keep the newest of each of the last N hours that have sessions
    #[arg(long, value_name = "N")]
    keep_hourly: Option<String>,
    /// Keep the newest of each of the last N days that have sessions
    #[arg(long, value_name = "N")]
    keep_daily: Option<String>,
    /// The same for weeks (ISO weeks, from Monday on)
    #[arg(long, value_name = "N")]
    keep_weekly: Option<String>,
    /// The same for months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<String>,
    /// The same for years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<String>,
    /// Keep all that are not older, as in 12h, 2d, 3w
    #[arg(long, value_name = "SPAN")]
    keep_within: Option<String>,
    /// Keep all with this tag (see 'bdsnap tag'); can be given several times
    #[arg(long, value_name = "TAG")]
    keep_tag: Vec<String>,
    /// Remove nothing that is younger [default: 1h]
    #[arg(long, value_name = "SPAN")]
    min_age: Option<String>,
    /// Remove the oldest until all take no more than this, as in 10GiB or 80%
    #[arg(long, value_name = "SIZE")]
    max_size: Option<String>,
    /// Remove the oldest until so much of the store's file system is free
    #[arg(long, value_name = "SIZE")]
    min_free: Option<String>,
    /// Sessions that saved nothing: count (as others), keep, or 'remove-after SPAN'
    #[arg(long, value_name = "RULE")]
    empty: Option<String>,
    /// Broken sessions: the same
    #[arg(long, value_name = "RULE")]
    broken: Option<String>,
    /// Sessions of raw writes (mkfs, fsck, dd): the same
    #[arg(long, value_name = "RULE")]
    raw: Option<String>,
    /// Undo sessions, made by restores: the same
    #[arg(long, value_name = "RULE")]
    undo: Option<String>,
    /// How long what is removed stays in the trash; 0: not at all [default: 3d]
    #[arg(long, value_name = "SPAN")]
    trash: Option<String>,
    /// The newest session of a device may go, too
    #[arg(long)]
    allow_empty: bool,
    /// Prune although the clock looks wrong
    #[arg(long)]
    trust_clock: bool,
    /// Pretend that it is this time (RFC 3339); only for plans
    #[arg(long, value_name = "TIME")]
    now: Option<jiff::Timestamp>,
    #[arg(long, value_name = "DIR", default_value = bdsnap_core::config::DEFAULT_DIR, hide = true)]
    config_dir: PathBuf,
}

#[derive(Debug, Args)]
struct Explain {
    /// Name of a session, or a unique beginning of one
    #[arg(value_name = "SESSION")]
    session: OsString,
    #[command(flatten)]
    rules: Rules,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Undelete {
    /// Name of a session in the trash, or a unique beginning of one
    #[arg(value_name = "SESSION")]
    session: OsString,
}

#[derive(Debug, Args)]
struct ShowTrash {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    if let Some(status) = bdsnap_cli::docs::asked_for::<Cli>() {
        return status;
    }
    let cli = Cli::parse();
    let json = match &cli.command {
        None => cli.prune.json,
        Some(Command::Explain(e)) => e.json,
        Some(Command::Trash(t)) => t.json,
        Some(Command::Undelete(_) | Command::EmptyTrash) => false,
    };
    bdsnap_cli::end("bdsnap-prune", json, run(&cli))
}

fn run(cli: &Cli) -> Result<Done, Error> {
    if cli.command.is_some() && (cli.prune.apply || cli.prune.json || cli.prune.rules.any()) {
        return Err(Error::new(Kind::Usage, "options of a command are written after it"));
    }
    let store = Store::open(&cli.common.store())?;
    match &cli.command {
        None => prune_now(cli, &store),
        Some(Command::Explain(e)) => explain(e, &store),
        Some(Command::Undelete(u)) => undelete(cli, u, &store),
        Some(Command::Trash(t)) => show_trash(cli, t, &store),
        Some(Command::EmptyTrash) => {
            let (count, bytes) = prune::empty_trash(&store, None, &|_| Ok(()))?;
            let size = text::size(bytes);
            cli.common.say(&format!("{} deleted, {size} freed", text::count(count, "operation")));
            Ok(Done::OK)
        }
    }
}

impl Rules {
    fn given(&self) -> [(&'static str, &Option<String>); 15] {
        [
            ("keep_last", &self.keep_last),
            ("keep_hourly", &self.keep_hourly),
            ("keep_daily", &self.keep_daily),
            ("keep_weekly", &self.keep_weekly),
            ("keep_monthly", &self.keep_monthly),
            ("keep_yearly", &self.keep_yearly),
            ("keep_within", &self.keep_within),
            ("min_age", &self.min_age),
            ("max_size", &self.max_size),
            ("min_free", &self.min_free),
            ("empty", &self.empty),
            ("broken", &self.broken),
            ("raw", &self.raw),
            ("undo", &self.undo),
            ("trash", &self.trash),
        ]
    }

    /// Whether any was given.
    fn any(&self) -> bool {
        let flags = self.allow_empty || self.trust_clock || self.now.is_some();
        flags || !self.keep_tag.is_empty() || self.given().iter().any(|(_, v)| v.is_some())
    }

    fn policies(&self) -> Result<Policies, Error> {
        let mut policies = Policies::read(&self.config_dir)?;
        for (key, value) in self.given() {
            if let Some(value) = value {
                policies.give(key, value)?;
            }
        }
        if !self.keep_tag.is_empty() {
            policies.give("keep_tags", &self.keep_tag.join(","))?;
        }
        Ok(policies)
    }

    fn prepare<'a>(
        &self,
        store: &'a Store,
        policies: &'a Policies,
        module: Option<&dyn Control>,
    ) -> Result<Prepared<'a>, Error> {
        let mut clock = Clock::read();
        if let Some(now) = self.now {
            clock.now_ns = u64::try_from(now.as_nanosecond())
                .map_err(|_| Error::new(Kind::Usage, "a time before 1970"))?;
            // Nothing is known of the boot of another time.
            clock.boot_id = [0; 16];
        }
        let _lock = store.lock_shared()?;
        prune::prepare(
            &Request {
                store,
                policies,
                clock,
                zone: jiff::tz::TimeZone::system(),
                allow_empty: self.allow_empty,
                trust_clock: self.trust_clock,
            },
            module,
        )
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema_version: u32,
    applied: bool,
    plan: &'a Plan,
    result: Option<&'a Outcome>,
}

fn prune_now(cli: &Cli, store: &Store) -> Result<Done, Error> {
    let (common, args) = (&cli.common, &cli.prune);
    let policies = args.rules.policies()?;
    let module = Module::open()?;
    let module = module.as_ref().map(|m| m as &dyn Control);
    let prepared = args.rules.prepare(store, &policies, module)?;
    let plan = prepared.plan.clone();
    if !(args.json || args.apply && common.quiet) {
        bdsnap_cli::print(&describe(&plan, common.colored(), args.apply))?;
        if policies.is_empty() {
            common.say("there are no rules, so nothing is removed; see bdsnap-prune --help");
        }
    }
    if !args.apply {
        if args.json {
            print_document(&plan, None)?;
        } else if plan.removed + plan.merged > 0 || !plan.expired.is_empty() {
            common.say("nothing was changed; --apply does it");
        }
        return Ok(Done::OK);
    }
    let wish = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&wish))
            .map_err(|e| Error::io("cannot wait for signals", &e))?;
    }
    let outcome = if prepared.is_empty() && plan.clock.is_none() {
        Outcome::default()
    } else {
        prepared.apply(module, &*common.progress(), &Stop::at(&wish), &|_| Ok(()))?
    };
    if args.json {
        print_document(&plan, Some(&outcome))?;
    } else {
        common.say(&format!(
            "{} removed, {} merged, {} of the trash deleted",
            text::count(outcome.removed, "session"),
            outcome.merged,
            text::count(outcome.emptied, "operation")
        ));
    }
    for failure in &outcome.failures {
        bdsnap_cli::complain(&format!("bdsnap-prune: not done: {failure}"));
    }
    if outcome.failures.is_empty() {
        Ok(Done::OK)
    } else {
        Ok(Done::with(Kind::Incomplete))
    }
}

fn print_document(plan: &Plan, result: Option<&Outcome>) -> Result<(), Error> {
    let document = Document { schema_version: 1, applied: result.is_some(), plan, result };
    bdsnap_cli::print_json(&document)
}

fn shown(name: &str) -> String {
    text::escape(name.as_bytes())
}

fn word(line: &Line) -> String {
    match (line.action, &line.into) {
        (Action::Keep, _) => "keep".into(),
        (Action::Remove, _) => "remove".into(),
        (Action::Merge, _) => "merge".into(),
    }
}

/// Why a line's action, in one cell.
fn why(line: &Line) -> String {
    let mut parts: Vec<String> = Vec::new();
    if let Some(into) = &line.into {
        parts.push(format!("into {}", shown(into)));
    }
    match line.action {
        Action::Keep => parts.extend(line.reasons.iter().map(|r| shown(&r.text))),
        Action::Remove | Action::Merge => parts.extend(line.misses.iter().map(|m| shown(m))),
    }
    if line.action == Action::Keep && matches!(line.state, "broken" | "tainted" | "damaged") {
        parts.push(format!("! {}", line.state));
    }
    parts.join("; ")
}

/// The plan in words.
fn describe(plan: &Plan, colored: bool, apply: bool) -> String {
    let mut out = String::new();
    if plan.sessions.is_empty() {
        out += "no sessions\n";
    } else {
        let mut table =
            table::new(&["SESSION", "SIZE", "ACTION", "RULES THAT KEEP IT / WHY NOT"], colored);
        for line in &plan.sessions {
            let action = Cell::new(word(line));
            table.add_row([
                Cell::new(shown(&line.name)),
                Cell::new(text::size(line.bytes)),
                match line.action {
                    Action::Remove if colored => action.fg(Color::Red),
                    Action::Merge if colored => action.fg(Color::Yellow),
                    _ => action,
                },
                Cell::new(why(line)),
            ]);
        }
        out += &table::finish(table, &[1]);
    }
    let all = text::count(plan.sessions.len() as u64, "session");
    let gone = plan.removed + plan.merged;
    if gone > 0 {
        let merged = if plan.merged > 0 {
            format!(" ({} of them merged)", plan.merged)
        } else {
            String::new()
        };
        let exactly = if plan.exact { " exactly" } else { " about" };
        let when = match plan.trash_seconds {
            0 => String::new(),
            s => format!(", after {} in the trash", text::span(s * 1_000_000_000)),
        };
        out += &format!(
            "{} remove {gone} of {all}{merged}, free{exactly} {}{when}\n",
            if apply { "will" } else { "would" },
            text::size(plan.freed_bytes)
        );
    } else {
        out += &format!("nothing to remove of {all}\n");
    }
    if !plan.expired.is_empty() {
        out += &format!(
            "trash: {} due for deletion, {}\n",
            text::count(plan.expired.len() as u64, "operation"),
            text::size(plan.expired_bytes)
        );
    }
    for note in &plan.notes {
        out += &format!("note: {}\n", shown(note));
    }
    if let Some(doubt) = &plan.clock {
        out += &format!("THE CLOCK LOOKS WRONG: {}; --apply will refuse\n", shown(doubt));
    }
    out
}

fn explain(args: &Explain, store: &Store) -> Result<Done, Error> {
    let policies = args.rules.policies()?;
    let module = Module::open()?;
    let module = module.as_ref().map(|m| m as &dyn Control);
    let plan = args.rules.prepare(store, &policies, module)?.plan;
    let name = text::lossy(args.session.as_bytes());
    let mut found: Vec<&Line> = plan.sessions.iter().filter(|l| l.name == name).collect();
    if found.is_empty() {
        found = plan.sessions.iter().filter(|l| l.name.starts_with(&name)).collect();
    }
    let line = match found[..] {
        [line] => line,
        [] => return Err(Error::not_found(format!("no session {}", shown(&name)))),
        _ => {
            let names: Vec<String> = found.iter().map(|l| shown(&l.name)).collect();
            return Err(Error::new(
                Kind::Usage,
                format!("several sessions begin with {}", shown(&name)),
            )
            .hint(format!("choose from: {}", names.join(", "))));
        }
    };
    if args.json {
        bdsnap_cli::print_json(&serde_json::json!({ "schema_version": 1, "session": line }))?;
        return Ok(Done::OK);
    }
    let mut out = format!(
        "Session  {}{}, {}, {}\n",
        shown(&line.name),
        line.device.as_ref().map(|d| format!(" of {}", shown(d))).unwrap_or_default(),
        line.state,
        text::size(line.bytes)
    );
    out += &format!("Action   {}", word(line));
    if let Some(into) = &line.into {
        out += &format!(": its content becomes part of {}, which needs it", shown(into));
    }
    out.push('\n');
    let list = |heading: &str, texts: Vec<String>| {
        let mut heading = heading;
        let mut out = String::new();
        for text in texts {
            out += &format!("{heading:8} {text}\n");
            heading = "";
        }
        out
    };
    out += &list("Kept by", line.reasons.iter().map(|r| shown(&r.text)).collect());
    out += &list("Not by", line.misses.iter().map(|m| shown(m)).collect());
    let rules: Vec<String> = policies
        .in_force()
        .iter()
        .map(|(key, v)| format!("{} = {} ({})", shown(key), shown(&v.text), shown(&v.source)))
        .collect();
    out += &list("Rules", rules);
    bdsnap_cli::print(&out).map(|()| Done::OK)
}

fn undelete(cli: &Cli, args: &Undelete, store: &Store) -> Result<Done, Error> {
    let names = prune::undelete(store, args.session.as_bytes(), &|_| Ok(()))?;
    let count = text::count(names.len() as u64, "session");
    cli.common.say(&format!("{count} put back: {}", names.join(", ")));
    Ok(Done::OK)
}

fn show_trash(cli: &Cli, args: &ShowTrash, store: &Store) -> Result<Done, Error> {
    let _lock = store.lock_shared()?;
    let ops = Trash::list(store)?;
    if args.json {
        let ops: Vec<_> = ops
            .iter()
            .map(|op| {
                serde_json::json!({
                    "name": op.name(),
                    "what": op.what(),
                    "since": text::rfc3339(op.since_ns()),
                    "until": text::rfc3339(op.until_ns()),
                    "bytes": op.bytes(),
                    "into": op.into().map(|m| &m.name),
                    "sessions": op.sessions().collect::<Vec<_>>(),
                })
            })
            .collect();
        bdsnap_cli::print_json(&serde_json::json!({ "schema_version": 1, "operations": ops }))?;
        return Ok(Done::OK);
    }
    if ops.is_empty() {
        cli.common.say("the trash is empty");
        return Ok(Done::OK);
    }
    let mut table =
        table::new(&["SESSION", "DEVICE", "REMOVED", "UNTIL", "WHAT"], cli.common.colored());
    for op in &ops {
        let what = match (op.what(), op.into()) {
            (What::Remove, _) | (_, None) => "removed".to_owned(),
            (What::Merge | What::Unmerge, Some(into)) => {
                format!("merged into {}", shown(&into.name))
            }
        };
        for m in op.sessions() {
            table.add_row([
                shown(&m.name),
                shown(&m.device),
                bdsnap_cli::local_time(op.since_ns()),
                bdsnap_cli::local_time(op.until_ns()),
                what.clone(),
            ]);
        }
    }
    bdsnap_cli::print(&table::finish(table, &[]))?;
    let bytes = ops.iter().map(bdsnap_core::trash::Op::bytes).sum();
    cli.common.say(&format!("{} in the trash", text::size(bytes)));
    Ok(Done::OK)
}

#[cfg(test)]
mod tests {
    #[test]
    fn options_are_consistent() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
