// SPDX-License-Identifier: GPL-2.0

//! `bdsnap`: protects block devices, and shows what was recorded of them.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use bdsnap_cli::{Common, Done};
use bdsnap_core::Error;
use clap::{Parser, Subcommand, ValueEnum};

/// Protects block devices: from each mount on, the old content of every block
/// that is overwritten is kept, so that the device can be brought back
#[derive(Debug, Parser)]
#[command(name = "bdsnap", version, after_help = bdsnap_cli::EXIT_HELP, max_term_width = 98)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the store, or find that it is there
    Init(Init),
    /// Protect a device from its next mount on
    Activate(Activate),
    /// Protect a device no longer; a running session goes on to its end
    Deactivate(Deactivate),
    /// Set the password for 'activate' and 'deactivate'
    Passwd(Passwd),
    /// Make the module look for registered devices again
    Settle(Settle),
    /// Load the installed module in place of the loaded one, with password,
    /// devices and settings as they are in /etc/bdsnap now
    Reload(Reload),
    /// Settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show what the module protects
    Status(Status),
    /// List the sessions in the store
    List(List),
    /// Check sessions for damage
    Verify(Verify),
    /// Look into a session: totals, a picture of where the device was changed, files
    Inspect(Inspect),
    /// Show a device as it was at the start of a session, as one read-only file
    ///
    /// The file appears in the directory MOUNTPOINT until that is unmounted or
    /// this command is ended. Nothing is copied: what was overwritten since comes
    /// from the store, the rest from the device. If the device is mounted and
    /// recorded with durability strict, it can be used meanwhile; else it cannot
    /// be mounted as long as it is viewed.
    View(ViewArgs),
    /// Print a file as it was at the start of a session (ext2, ext3, ext4)
    Cat(Cat),
    /// Copy a file or directory as it was at the start of a session (ext2, ext3, ext4)
    Extract(Extract),
    /// Keep a session from being pruned, under a name; it may have several
    Hold(Hold),
    /// Take such a hold away
    Release(Hold),
    /// Give a session a tag: a rule of bdsnap-prune can keep all that have it
    Tag(TagArgs),
    /// Take such a tag away
    Untag(TagArgs),
}

/// Where the password comes from; without these it is asked for.
#[derive(Debug, Clone, clap::Args)]
struct Password {
    /// Read the password from a file (all of it but one line feed at the end)
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    password_file: Option<PathBuf>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, clap::Args)]
struct Settle {
    /// End raw sessions now, instead of after some seconds without a write
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, clap::Args)]
struct Registration {
    /// Block device, image file, or a name of one that is absent now
    #[arg(value_name = "DEV")]
    device: PathBuf,
    #[command(flatten)]
    password: Password,
    /// Keep it so over reboots: in /etc/bdsnap/devices
    #[arg(long)]
    persist: bool,
    /// How the module is asked
    #[arg(long, value_enum, default_value = "ioctl", hide = true)]
    via: Via,
    #[arg(long, value_name = "DIR", default_value = bdsnap_core::config::DEFAULT_DIR, hide = true)]
    config_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Init {
    /// Have sessions written there in the newest version of the format, which older modules and tools refuse
    #[arg(long)]
    upgrade: bool,
}

#[derive(Debug, clap::Args)]
struct Activate {
    #[command(flatten)]
    registration: Registration,
    /// When writes are let go: when old content is durable, or when it is in
    /// memory [default: the module's]
    #[arg(long, value_enum)]
    durability: Option<Durability>,
}

#[derive(Debug, clap::Args)]
struct Deactivate {
    #[command(flatten)]
    registration: Registration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Via {
    Ioctl,
    Syscall,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Durability {
    Strict,
    Async,
}

#[derive(Debug, clap::Args)]
struct Passwd {
    #[command(flatten)]
    password: Password,
    #[arg(long, value_name = "DIR", default_value = bdsnap_core::config::DEFAULT_DIR, hide = true)]
    config_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Reload {
    /// Also if registrations that are not in /etc/bdsnap/devices are lost, or cannot be asked for
    #[arg(long)]
    forget: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show the settings that are in force from the module's next load on, and
    /// where each is from
    ///
    /// What is printed is a valid bdsnap.toml; what is commented out is the
    /// default. Files are bdsnap.toml in /etc/bdsnap and, over it, *.toml in
    /// /etc/bdsnap/conf.d in the order of their names.
    Show(ConfigShow),
}

#[derive(Debug, clap::Args)]
struct ConfigShow {
    /// Only this setting, for scripts
    what: Option<Setting>,
    /// Print JSON
    #[arg(long, conflicts_with = "what")]
    json: bool,
    #[arg(long, value_name = "DIR", default_value = bdsnap_core::config::DEFAULT_DIR, hide = true)]
    config_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Setting {
    /// Directory of the store
    Store,
}

#[derive(Debug, clap::Args)]
struct Status {
    /// Only this device
    #[arg(value_name = "DEV")]
    device: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Fail (exit status 1) if anything is broken or unprotected, or the module is not the installed one
    #[arg(long)]
    check: bool,
    /// One line only: module, registrations, running sessions, last failure
    #[arg(long, conflicts_with_all = ["json", "device"])]
    line: bool,
    /// Write metrics of module and store for Prometheus into FILE, as a whole (-: standard output)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "check", "line", "device"])]
    prometheus: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only this device: node, link, image, mount point or recorded name
    #[arg(value_name = "DEV")]
    device: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only these kinds: mount, raw, undo
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<String>,
    /// Only these states: recording, interrupted, closed, broken, tainted, undo, damaged, unchecked
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<String>,
    /// Only what has one of these tags
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    tag: Vec<String>,
    /// Only what began then or later: a day, a time (RFC 3339), or as in 2d
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what began then or before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only what saved so much or more, as in 10MiB
    #[arg(long, value_name = "SIZE")]
    min_size: Option<String>,
    /// Sort by a column
    #[arg(long, value_name = "COL")]
    sort: Option<String>,
    /// The other way round
    #[arg(long)]
    reverse: bool,
    /// Columns, by their names in JSON, separated by commas
    #[arg(short = 'o', long = "output", value_name = "COLS", value_delimiter = ',')]
    #[arg(conflicts_with = "json")]
    columns: Vec<String>,
}

/// A session whose start is wanted.
#[derive(Debug, clap::Args)]
struct OfSession {
    /// Name of a session, or a unique beginning of one; with --device also latest, latest~1 and so on
    #[arg(value_name = "SESSION")]
    session: std::ffi::OsString,
    /// The device, if it is not found by its recorded name
    #[arg(long, value_name = "DEV")]
    device: Option<PathBuf>,
    /// Go on although the device may have been changed unseen
    #[arg(long)]
    accept_gap: bool,
    /// Go on although old content is missing
    #[arg(long)]
    accept_loss: bool,
}

/// Which session to look into.
#[derive(Debug, clap::Args)]
struct Inspect {
    #[command(flatten)]
    of: OfSession,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the picture of the device into a new SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Say which files differ between start and end of the session (ext2, ext3, ext4)
    #[arg(long)]
    files: bool,
    /// Compare also the content of files with equal sizes and times
    #[arg(long, requires = "files")]
    content: bool,
}

#[derive(Debug, clap::Args)]
struct ViewArgs {
    #[command(flatten)]
    of: OfSession,
    /// An empty directory
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Cat {
    #[command(flatten)]
    of: OfSession,
    /// Path of the file, from the root of its file system
    #[arg(value_name = "PATH")]
    path: std::ffi::OsString,
}

#[derive(Debug, clap::Args)]
struct Extract {
    #[command(flatten)]
    of: OfSession,
    /// Path of the file or directory, from the root of its file system
    #[arg(value_name = "PATH")]
    path: std::ffi::OsString,
    /// Where to, which must not exist
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Hold {
    /// Name of a session, or a unique beginning of one
    #[arg(value_name = "SESSION")]
    session: std::ffi::OsString,
    /// What the hold is called, as in before-upgrade
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, clap::Args)]
struct TagArgs {
    /// Name of a session, or a unique beginning of one
    #[arg(value_name = "SESSION")]
    session: std::ffi::OsString,
    /// The tag, as in release
    #[arg(value_name = "TAG")]
    tag: String,
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// Names of sessions, or unique beginnings of names
    #[arg(value_name = "SESSION", required_unless_present = "all")]
    sessions: Vec<std::ffi::OsString>,
    /// All sessions of the store
    #[arg(long, conflicts_with = "sessions")]
    all: bool,
    /// Let the file system's own checker look at the device as it was at the start, too
    ///
    /// The device must not be in use, or be recorded with durability strict. The checker (e2fsck,
    /// xfs_repair, btrfs check, fsck.fat, fsck.exfat, fsck.f2fs) changes nothing.
    #[arg(long)]
    deep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Command {
    fn json(&self) -> bool {
        match self {
            Self::Status(c) => c.json,
            Self::List(c) => c.json,
            Self::Verify(c) => c.json,
            Self::Inspect(c) => c.json,
            Self::Config(ConfigCommand::Show(c)) => c.json,
            Self::Init(_)
            | Self::Activate(_)
            | Self::Deactivate(_)
            | Self::Passwd(_)
            | Self::View(_)
            | Self::Cat(_)
            | Self::Extract(_)
            | Self::Hold(_)
            | Self::Release(_)
            | Self::Tag(_)
            | Self::Untag(_)
            | Self::Settle(_)
            | Self::Reload(_) => false,
        }
    }
}

fn main() -> ExitCode {
    if let Some(status) = bdsnap_cli::docs::asked_for::<Cli>() {
        return status;
    }
    let cli = Cli::parse();
    bdsnap_cli::more_files();
    let json = cli.command.json();
    bdsnap_cli::end("bdsnap", json, run(&cli))
}

fn run(cli: &Cli) -> Result<Done, Error> {
    let common = &cli.common;
    match &cli.command {
        Command::Init(c) => commands::init::run(common, c),
        Command::Activate(c) => commands::control::activate(common, c),
        Command::Deactivate(c) => commands::control::deactivate(common, c),
        Command::Passwd(c) => commands::passwd::run(common, c),
        Command::Settle(args) => commands::control::settle(common, args),
        Command::Reload(c) => commands::reload::run(common, c),
        Command::Config(ConfigCommand::Show(c)) => commands::config::show(common, c),
        Command::Status(c) => commands::status::run(common, c),
        Command::List(c) => commands::list::run(common, c),
        Command::Verify(c) => commands::verify::run(common, c),
        Command::Inspect(c) => commands::inspect::run(common, c),
        Command::View(c) => commands::view::run(common, c),
        Command::Cat(c) => commands::files::cat(common, c),
        Command::Extract(c) => commands::files::extract(common, c),
        Command::Hold(c) => commands::hold::hold(common, c),
        Command::Release(c) => commands::hold::release(common, c),
        Command::Tag(c) => commands::hold::tag(common, c),
        Command::Untag(c) => commands::hold::untag(common, c),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn options_are_consistent() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
