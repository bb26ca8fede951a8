// SPDX-License-Identifier: GPL-2.0

//! The one error type of the tools: a kind that decides the exit status, a
//! message that names the cause, and where possible a hint that names the cure.

use std::fmt;
use std::io;
use std::path::Path;

/// What sort of failure it is; each has its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Anything without a kind of its own.
    Error,
    /// The command line, or an ambiguous name in it.
    Usage,
    /// No such session, store or device, or the module is not loaded.
    NotFound,
    /// Damage was found.
    Verification,
    /// A safety check refused.
    Refused,
    /// Done, but the result is partial.
    Incomplete,
    /// Stopped by a signal.
    Interrupted,
}

impl Kind {
    /// The exit status that stands for it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Error => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Verification => 4,
            Self::Refused => 5,
            Self::Incomplete => 6,
            Self::Interrupted => 130,
        }
    }
}

/// An error with its kind, message and hint.
#[derive(Debug)]
pub struct Error {
    /// Decides the exit status.
    pub kind: Kind,
    /// One sentence without a full stop: what failed and why.
    pub message: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// The errno, if the system gave one.
    pub errno: Option<i32>,
}

/// Short for results with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of some kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, errno: None }
    }

    /// An error without a kind of its own.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(Kind::Error, message)
    }

    /// A refusal.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// Something that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An I/O error while doing `what` (a gerund, or "cannot …").
    pub fn io(what: impl fmt::Display, e: &io::Error) -> Self {
        let cause = match e.raw_os_error() {
            Some(n) => errno_text(n),
            None => e.to_string(),
        };
        let forbidden = matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM));
        let hint = forbidden && !rustix::process::geteuid().is_root();
        Self {
            kind: Kind::Error,
            message: format!("{what}: {cause}"),
            hint: hint.then(|| "run this as root".into()),
            errno: e.raw_os_error(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The system's words for an errno, without Rust's "(os error N)".
pub fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// Turns an I/O result into ours, naming what was done to which path.
pub(crate) trait Context<T> {
    fn on(self, what: &str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(format_args!("cannot {what} {}", crate::text::path(path)), &e))
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn on(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).on(what, path)
    }
}
