// SPDX-License-Identifier: GPL-2.0

//! What the front ends share: common options, exit statuses, colours, the
//! progress bar, times of the user's zone, errors as text and JSON.

pub mod docs;
pub mod table;

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bdsnap_core::config::DEFAULT_DIR;
use bdsnap_core::progress::{Progress, Silent};
use bdsnap_core::settings::Settings;
use bdsnap_core::{Error, Kind};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use serde_json::json;

/// The exit statuses, for `--help`.
pub const EXIT_HELP: &str = "Exit status: 0 ok, 1 error, 2 usage, 3 nothing found, \
4 verification failed, 5 refused for safety, 6 incomplete, 130 interrupted";

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Options that all commands have.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Directory of the store [default: that of /etc/bdsnap/bdsnap.toml, or /snapshot]
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<PathBuf>,
    /// Say only what went wrong
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Say more
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// When to use colours
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", global = true)]
    pub color: Color,
    /// Show no progress bar
    #[arg(long, global = true)]
    pub no_progress: bool,
}

impl Common {
    /// Directory of the store.
    pub fn store(&self) -> PathBuf {
        self.store.clone().unwrap_or_else(|| {
            // Mistakes in the file are told by the hand-over and by `config show`.
            Settings::read(Path::new(DEFAULT_DIR)).unwrap_or_default().store
        })
    }

    /// Whether standard output shall have colours.
    pub fn colored(&self) -> bool {
        match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
                !unwanted && io::stdout().is_terminal()
            }
        }
    }

    /// What shows progress: a bar if standard error is a terminal.
    pub fn progress(&self) -> Box<dyn Progress> {
        if self.quiet || self.no_progress || !io::stderr().is_terminal() {
            Box::new(Silent)
        } else {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            Box::new(Bar { bar, planned: Cell::new(false) })
        }
    }

    /// Says something to the user, unless `--quiet`.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            complain(text);
        }
    }

    /// Says something to a user who wants to know more.
    pub fn say_more(&self, text: &str) {
        if self.verbose {
            complain(text);
        }
    }
}

/// Lets the process have as many files open as it may: a chain can have more sessions than the
/// 1024 files that a shell begins with.
pub fn more_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    // Whoever needs more than there are then is told so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
}

/// Writes a line to standard error; if that is closed nobody wants it.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Shows work as a bar with its speed and the time left: of all phases that
/// are planned, else of each.
struct Bar {
    bar: ProgressBar,
    planned: Cell<bool>,
}

impl Bar {
    fn begin(&self, total: u64) {
        let style = ProgressStyle::with_template(
            "{msg:14} {wide_bar} {binary_bytes:>11}/{binary_total_bytes} \
             {binary_bytes_per_sec:>13} {eta:>4}",
        );
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.reset();
        self.bar.set_length(total);
    }

    /// Whether phases follow that are part of the same work.
    fn goes_on(&self) -> bool {
        self.planned.get() && self.bar.length().is_some_and(|all| self.bar.position() < all)
    }
}

impl Progress for Bar {
    fn plan(&self, total: u64) {
        self.planned.set(true);
        self.begin(total);
    }

    fn phase(&self, name: &str, total: u64) {
        if !self.goes_on() {
            self.planned.set(false);
            self.begin(total);
        }
        self.bar.set_message(name.to_owned());
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn finish(&self) {
        if !self.goes_on() {
            self.bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // What went wrong is said where the bar was.
        self.bar.finish_and_clear();
    }
}

/// Writes data to standard output. A reader that has gone away is no error.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("cannot write to standard output", &e))
        }
        _ => Ok(()),
    }
}

/// Writes a JSON document to standard output.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::other(format!("cannot write JSON: {e}")))?;
    print(&(text + "\n"))
}

/// The exit status of a command that has said all there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done(pub u8);

impl Done {
    /// All is well.
    pub const OK: Self = Self(0);

    /// It ended so, and the command has said it.
    pub fn with(kind: Kind) -> Self {
        Self(kind.exit_code())
    }
}

/// Ends a program: says what went wrong, as JSON too if that is wanted.
pub fn end(program: &str, json: bool, result: Result<Done, Error>) -> ExitCode {
    match result {
        Ok(Done(status)) => ExitCode::from(status),
        Err(e) => {
            report(program, json, &e);
            ExitCode::from(e.kind.exit_code())
        }
    }
}

/// Says what went wrong.
fn report(program: &str, json: bool, e: &Error) {
    // JSON carries names as they are, a terminal never.
    if json {
        let document = json!({
            "schema_version": 1,
            "error": {
                "kind": e.kind,
                "exit_code": e.kind.exit_code(),
                "message": e.message,
                "hint": e.hint,
                "errno": e.errno,
            },
        });
        // Standard error says it as well.
        let _ = print_json(&document);
    }
    let word = if e.kind == Kind::Refused { "refused: " } else { "" };
    complain(&format!("{program}: {word}{}", e.message));
    if let Some(hint) = &e.hint {
        complain(&format!("  {hint}"));
    }
}

/// A time in the user's zone: `2026-11-21 23:03:01`.
pub fn local_time(ns: u64) -> String {
    let at = i128::from(ns);
    match jiff::Timestamp::from_nanosecond(at) {
        Ok(t) => t.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => bdsnap_core::text::rfc3339(ns),
    }
}
