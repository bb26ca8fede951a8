// SPDX-License-Identifier: GPL-2.0

//! The store's path and the module's parameters, from
//! `/etc/bdsnap/bdsnap.toml` and from `conf.d/*.toml` beside it in the order
//! of their names; the last one counts.

use std::collections::BTreeMap;
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
/// The source of what no file and no option says.
pub const DEFAULT: &str = "default";
/// The source of what an option says.
pub const COMMAND_LINE: &str = "command line";
const FILE_MAX: usize = 1 << 20;

/// One file of a configuration.
pub(crate) struct Layer {
    /// Its path, as it is shown.
    pub(crate) source: String,
    pub(crate) text: String,
}

/// The files of a configuration, those that count more last; none is no error.
pub(crate) fn layers(dir: &Path) -> Result<Vec<Layer>> {
    let mut paths = vec![dir.join(FILE)];
    let conf_d = dir.join("conf.d");
    match conf_d.read_dir() {
        Ok(entries) => {
            let mut more: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            more.retain(|p| p.extension().is_some_and(|e| e == "toml"));
            more.sort();
            paths.extend(more);
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).on("read", &conf_d),
    }
    let mut layers = Vec::new();
    for path in paths {
        let source = text::path(&path);
        match fsutil::read_small(&path, FILE_MAX).map(String::from_utf8) {
            Ok(Ok(text)) => layers.push(Layer { source, text }),
            Ok(Err(_)) => return Err(Error::other(format!("{source}: not UTF-8"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).on("read", &path),
        }
    }
    Ok(layers)
}

/// A value in a file that shows where each is from, as a line. Defaults are
/// commented out.
pub fn line(key: &str, value: &str, source: &str) -> String {
    let mark = if source == DEFAULT { "#" } else { "" };
    let set = format!("{mark}{key} = {value}");
    format!("{set:39} # {source}\n")
}

/// A string as TOML writes it, harmless for a terminal.
pub(crate) fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Writing to a String cannot fail.
            c if text::is_treacherous(c) => drop(write!(out, "\\U{:08x}", c as u32)),
            c => out.push(c),
        }
    }
    out + "\""
}

/// What the files say. What they leave out has its default.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Directory of the store.
    pub store: PathBuf,
    /// Parameters of the module.
    pub module: Module,
    /// Where what is set is from, by name.
    sources: BTreeMap<&'static str, String>,
}

/// What one file says.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    store: Option<PathBuf>,
    module: Module,
    /// For `bdsnap-prune`: see [`crate::policy`].
    #[serde(rename = "prune")]
    _prune: toml::Table,
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
    /// Most that is saved ahead of sequential writes.
    pub read_ahead_kib: Option<u32>,
    /// Free space in the store below which sessions break.
    pub min_free_mib: Option<u32>,
    /// Time without a write after which a raw session ends.
    pub raw_idle_s: Option<u32>,
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
        Self { store: DEFAULT_STORE.into(), module: Module::default(), sources: BTreeMap::new() }
    }
}

impl Settings {
    /// Reads the settings in a configuration's directory; all are the
    /// defaults if there is no file.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut settings = Self::default();
        for layer in layers(dir)? {
            settings.add(&layer).map_err(|e| {
                Error::other(format!("{}: {}", layer.source, e.message))
                    .hint("'bdsnap config show' shows the names and their defaults")
            })?;
        }
        Ok(settings)
    }

    /// Lets a file override what those before it said.
    fn add(&mut self, layer: &Layer) -> Result<()> {
        let file: File = toml::from_str(&layer.text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            let line = 1 + layer.text.bytes().take(at).filter(|b| *b == b'\n').count();
            Error::other(format!("line {line}: {}", text::escape(e.message().as_bytes())))
        })?;
        if let Some(store) = file.store {
            if !store.is_absolute() {
                return Err(Error::other("store has to be an absolute path"));
            }
            self.set_store(store, &layer.source);
        }
        for value in file.module.values().iter().filter(|v| v.number.is_some()) {
            self.sources.insert(value.name, layer.source.clone());
        }
        self.module.overlay(&file.module);
        Ok(())
    }

    /// Sets the store's path, which `source` says.
    pub fn set_store(&mut self, store: PathBuf, source: &str) {
        self.store = store;
        self.sources.insert("store", source.to_owned());
    }

    /// The parameters that modprobe is to give the module.
    pub fn module_options(&self) -> String {
        let set = self.module.values().into_iter();
        let words = set.filter_map(|v| Some(format!("{}={}", v.name, v.number?)));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Where a setting is from.
    fn source(&self, name: &str) -> &str {
        self.sources.get(name).map_or(DEFAULT, String::as_str)
    }

    /// Names, values in words, and where they are from.
    pub fn values(&self) -> Vec<(String, String, &str)> {
        let store = self.store.to_string_lossy().into_owned();
        let mut all = vec![("store".to_owned(), store, self.source("store"))];
        all.extend(self.module.values().into_iter().map(|v| {
            let text = v.word.map(str::to_owned).or(v.number.map(|n| n.to_string()));
            let text = text.unwrap_or_else(|| v.default.trim_matches('"').to_owned());
            (format!("module.{}", v.name), text, self.source(v.name))
        }));
        all
    }

    /// As a file that says the same, with the source of each value.
    pub fn document(&self) -> String {
        let mut out = line("store", &quoted(&self.store.to_string_lossy()), self.source("store"));
        out += "\n[module]\n";
        for value in self.module.values() {
            let text = match (value.word, value.number) {
                (Some(word), _) => quoted(word),
                (None, Some(n)) => n.to_string(),
                (None, None) => value.default.to_owned(),
            };
            out += &line(value.name, &text, self.source(value.name));
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
    fn overlay(&mut self, over: &Self) {
        self.durability = over.durability.or(self.durability);
        self.discard = over.discard.or(self.discard);
        self.chunk_size = over.chunk_size.or(self.chunk_size);
        self.hold_timeout_ms = over.hold_timeout_ms.or(self.hold_timeout_ms);
        self.mem_limit_mib = over.mem_limit_mib.or(self.mem_limit_mib);
        self.read_ahead_kib = over.read_ahead_kib.or(self.read_ahead_kib);
        self.min_free_mib = over.min_free_mib.or(self.min_free_mib);
        self.raw_idle_s = over.raw_idle_s.or(self.raw_idle_s);
        self.sysc_activate = over.sysc_activate.or(self.sysc_activate);
        self.sysc_deactivate = over.sysc_deactivate.or(self.sysc_deactivate);
    }

    fn values(&self) -> [Value; 10] {
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
            number("read_ahead_kib", self.read_ahead_kib, "16384, at most a quarter of the memory"),
            number("min_free_mib", self.min_free_mib, "5 % of the store, at most 1024"),
            number("raw_idle_s", self.raw_idle_s, "10"),
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
        // What is shown can be read again, and says where it is from.
        let document = settings.document();
        assert!(document.contains("min_free_mib = 7 ") && document.contains("/bdsnap.toml\n"));
        assert!(document.contains("#chunk_size = 4096") && document.contains("# default\n"));
        let shown = read(&settings.document()).unwrap();
        assert_eq!((shown.store, shown.module), (settings.store, settings.module));
        assert_eq!(read(&Settings::default().document()).unwrap(), Settings::default());
    }

    #[test]
    fn later_files_override() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("conf.d")).unwrap();
        let put = |name: &str, text: &str| std::fs::write(tmp.path().join(name), text).unwrap();
        put(FILE, "store = \"/a\"\n[module]\nchunk_size = 8192\nmin_free_mib = 7\n");
        put("conf.d/20-b.toml", "[module]\nmin_free_mib = 9\n");
        put("conf.d/10-a.toml", "store = \"/b\\u001b\\\"\"\n[module]\nmin_free_mib = 8\n");
        put("conf.d/30-c.off", "nonsense");
        let settings = Settings::read(tmp.path()).unwrap();
        assert_eq!(settings.module_options(), "chunk_size=8192 min_free_mib=9");
        assert_eq!(settings.store, Path::new("/b\u{1b}\""));
        let sources = |name| settings.source(name).rsplit('/').next().unwrap().to_owned();
        assert_eq!(
            ["store", "chunk_size", "min_free_mib", "discard"].map(sources),
            ["10-a.toml", FILE, "20-b.toml", DEFAULT]
        );
        let shown = read(&settings.document()).unwrap();
        assert_eq!((&shown.store, &shown.module), (&settings.store, &settings.module));
        assert!(!settings.document().contains('\u{1b}'));
        put("conf.d/20-b.toml", "\n[modul]\n");
        let e = Settings::read(tmp.path()).unwrap_err();
        assert!(e.message.contains("20-b.toml: line 2: "), "{}", e.message);
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
