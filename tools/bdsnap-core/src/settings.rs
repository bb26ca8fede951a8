// SPDX-License-Identifier: GPL-2.0

//! `/etc/bdsnap/bdsnap.toml`: the store's path and the module's parameters.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::store::DEFAULT_STORE;
use crate::text;

/// Name of the file in the configuration's directory.
pub const FILE: &str = "bdsnap.toml";
const FILE_MAX: usize = 1 << 20;

/// What the file says. What it leaves out has its default.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Directory of the store.
    pub store: PathBuf,
    /// Parameters of the module.
    pub module: Module,
    /// For `bdsnap-prune`, which reads it itself.
    pub prune: toml::Table,
}

/// Parameters of the module; `None`: the module's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Module {
    /// When writes are let go.
    pub durability: Option<Durability>,
    /// What becomes of discards of chunks that are not saved.
    pub discard: Option<Discard>,
    /// Unit of copying in bytes.
    pub chunk_size: Option<u32>,
    /// Longest that a write is held.
    pub hold_timeout_ms: Option<u32>,
    /// Memory for pre-images.
    pub mem_limit_mib: Option<u32>,
    /// Free space in the store below which sessions break.
    pub min_free_mib: Option<u32>,
    /// Number of the activating system call; 0: none.
    pub sysc_activate: Option<u32>,
    /// Number of the deactivating system call.
    pub sysc_deactivate: Option<u32>,
}

/// When writes are let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// When pre-images are durable.
    Strict,
    /// When they are in memory.
    Async,
}

/// What becomes of discards of chunks that are not saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// Completed without reaching the device.
    Absorb,
    /// Saved like a write.
    Copy,
    /// Not saved; the session is tainted.
    Pass,
}

impl Default for Settings {
    fn default() -> Self {
        Self { store: DEFAULT_STORE.into(), module: Module::default(), prune: toml::Table::new() }
    }
}

impl Settings {
    /// Reads the settings in a configuration's directory; all are the
    /// defaults if there is no file.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let bytes = match fsutil::read_small(&path, FILE_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e).on("read", &path),
        };
        let bad = |what: String| {
            Error::other(format!("{}: {what}", text::path(&path)))
                .hint("'bdsnap config show' shows the names and their defaults")
        };
        let file = std::str::from_utf8(&bytes).map_err(|_| bad("not UTF-8".into()))?;
        let settings: Self = toml::from_str(file).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            let line = 1 + file.bytes().take(at).filter(|b| *b == b'\n').count();
            bad(format!("line {line}: {}", text::escape(e.message().as_bytes())))
        })?;
        if settings.store.is_absolute() {
            Ok(settings)
        } else {
            Err(bad("store has to be an absolute path".into()))
        }
    }

    /// The parameters that modprobe is to give the module.
    pub fn module_options(&self) -> String {
        let set = self.module.values().into_iter();
        let words = set.filter_map(|v| Some(format!("{}={}", v.name, v.number?)));
        words.collect::<Vec<_>>().join(" ")
    }

    /// As a file that says the same; what is a default is marked as such.
    pub fn document(&self) -> String {
        let store = toml::Value::String(self.store.to_string_lossy().into_owned());
        let mut out = format!("store = {store}\n\n[module]\n");
        for value in self.module.values() {
            // Writing to a String cannot fail.
            let _ = match (value.word, value.number) {
                (Some(word), _) => writeln!(out, "{} = \"{word}\"", value.name),
                (None, Some(n)) => writeln!(out, "{} = {n}", value.name),
                (None, None) => writeln!(out, "# {} = {}", value.name, value.default),
            };
        }
        out
    }
}

/// A parameter, for printing.
struct Value {
    name: &'static str,
    number: Option<u32>,
    word: Option<&'static str>,
    default: &'static str,
}

impl Module {
    fn values(&self) -> [Value; 8] {
        let word = |name, given: Option<(u32, &'static str)>, default| Value {
            name,
            number: given.map(|g| g.0),
            word: given.map(|g| g.1),
            default,
        };
        let number = |name, number, default| Value { name, number, word: None, default };
        let durability = self.durability.map(|d| match d {
            Durability::Strict => (1, "strict"),
            Durability::Async => (2, "async"),
        });
        let discard = self.discard.map(|d| match d {
            Discard::Absorb => (0, "absorb"),
            Discard::Copy => (1, "copy"),
            Discard::Pass => (2, "pass"),
        });
        [
            word("durability", durability, "\"strict\""),
            word("discard", discard, "\"absorb\""),
            number("chunk_size", self.chunk_size, "4096"),
            number("hold_timeout_ms", self.hold_timeout_ms, "20000"),
            number("mem_limit_mib", self.mem_limit_mib, "64, or a sixteenth of the memory"),
            number("min_free_mib", self.min_free_mib, "5 % of the store, at most 1024"),
            number("sysc_activate", self.sysc_activate, "174"),
            number("sysc_deactivate", self.sysc_deactivate, "177"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn read(file: &str) -> Result<Settings> {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join(FILE), file).unwrap();
        Settings::read(tmp.path())
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(Settings::read(tmp.path()).unwrap(), Settings::default());
        assert_eq!(read("").unwrap(), Settings::default());
        assert_eq!(Settings::default().module_options(), "");
        assert_eq!(Settings::default().store, Path::new("/snapshot"));
    }

    #[test]
    fn parameters() {
        let file = "store = \"/s t\"\n[module]\ndurability = \"async\"\ndiscard = \"pass\"\n\
                    min_free_mib = 7\n[prune]\nkeep = \"3d\"\n";
        let settings = read(file).unwrap();
        assert_eq!(settings.module_options(), "durability=2 discard=2 min_free_mib=7");
        assert_eq!(settings.store, Path::new("/s t"));
        // What is shown can be read again.
        let shown = read(&settings.document()).unwrap();
        assert_eq!((shown.store, shown.module), (settings.store, settings.module));
        assert_eq!(read(&Settings::default().document()).unwrap(), Settings::default());
    }

    #[test]
    fn mistakes_are_errors() {
        for bad in [
            "store = \"snapshot\"",
            "stroe = \"/s\"",
            "[module]\ndurability = \"1\"",
            "[module]\nchunk_size = -1",
            "[module]\nsabotage = 1",
            "[module",
        ] {
            let e = read(bad).unwrap_err();
            assert_eq!(e.kind, Kind::Error, "{bad}");
            assert!(e.hint.is_some());
        }
    }

    #[test]
    fn the_packaged_file_is_read_and_changes_nothing() {
        let file = include_str!("../../../debian/bdsnap.toml");
        assert_eq!(read(file).unwrap(), Settings::default());
        // Uncommented, it is valid as well.
        let lines =
            file.lines().map(|l| l.strip_prefix('#').filter(|l| l.contains('=')).unwrap_or(l));
        assert_eq!(
            read(&lines.collect::<Vec<_>>().join("\n")).unwrap().store,
            Path::new("/snapshot")
        );
    }
}
