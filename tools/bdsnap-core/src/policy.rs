// SPDX-License-Identifier: GPL-2.0

//! The policies of `bdsnap-prune`: from the tables `[prune]` of a
//! configuration's files (see [`crate::settings`]), and from the command line;
//! the last one counts.
//!
//! ```toml
//! [prune]
//! keep_last = 5
//! keep_daily = 7
//! trash = "3d"
//!
//! [prune.device."/dev/disk/by-id/…"]
//! keep_last = 20
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use crate::device::{Matcher, Target};
use crate::error::{Error, Kind, Result};
use crate::notes;
use crate::retention::{Class, ClassRule, Policy, Size, Span};
use crate::settings::{self, COMMAND_LINE, DEFAULT};
use crate::text;

const DAY: u64 = 86_400 * 1_000_000_000;

/// A value, and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// As it was written.
    pub text: String,
    /// A file's path, [`COMMAND_LINE`] or [`DEFAULT`].
    pub source: String,
}

/// Rules for all devices and for some.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// All values that were set, by key; those of a device under
    /// `device.NAME.KEY`.
    pub values: BTreeMap<String, Value>,
    global: Rules,
    devices: Vec<(String, Rules)>,
    /// From the command line: it overrides those of devices as well.
    given: Rules,
    /// All sessions together take no more than this.
    pub max_size: Option<Size>,
    /// So much of the store's file system stays free.
    pub min_free: Option<Size>,
    /// How long what is removed stays in the trash.
    pub trash: Trash,
}

/// How long what is removed stays in the trash, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trash(pub u64);

impl Default for Trash {
    fn default() -> Self {
        Self(3 * DAY)
    }
}

/// What is set; the rest is inherited.
#[derive(Debug, Clone, Default)]
struct Rules {
    keep_last: Option<u32>,
    keep: [Option<u32>; 5],
    keep_within: Option<Span>,
    keep_tags: Option<Vec<String>>,
    min_age: Option<Span>,
    classes: BTreeMap<Class, ClassRule>,
    max_size: Option<Size>,
}

/// The keys that devices may have, too.
pub const KEYS: [&str; 14] = [
    "keep_last",
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_yearly",
    "keep_within",
    "keep_tags",
    "min_age",
    "max_size",
    "empty",
    "broken",
    "raw",
    "undo",
];
/// The keys that only stand for the whole store.
pub const STORE_KEYS: [&str; 2] = ["min_free", "trash"];
/// What counts where nothing is set.
const DEFAULTS: [(&str, &str); 6] = [
    ("min_age", "1h"),
    ("trash", "3d"),
    ("empty", "count"),
    ("broken", "count"),
    ("raw", "count"),
    ("undo", "count"),
];
/// What the keys of a device's values begin with; its name and a dot follow.
const DEVICE: &str = "device.";

impl Rules {
    /// Sets a value; false if there is no such key.
    fn set(&mut self, key: &str, text: &str) -> Result<bool> {
        self.try_set(key, text).map_err(|e| of_key(key, e))
    }

    fn try_set(&mut self, key: &str, text: &str) -> Result<bool> {
        let number = || {
            text.parse::<u32>().map_err(|_| {
                Error::new(
                    Kind::Usage,
                    format!(
                        "not a number from 0 to {}: {}",
                        u32::MAX,
                        text::escape(text.as_bytes())
                    ),
                )
            })
        };
        match key {
            "keep_last" => self.keep_last = Some(number()?),
            "keep_hourly" => self.keep[0] = Some(number()?),
            "keep_daily" => self.keep[1] = Some(number()?),
            "keep_weekly" => self.keep[2] = Some(number()?),
            "keep_monthly" => self.keep[3] = Some(number()?),
            "keep_yearly" => self.keep[4] = Some(number()?),
            "keep_within" => self.keep_within = Some(Span::parse(text)?),
            "keep_tags" => self.keep_tags = Some(notes::parse_tags(text)?),
            "min_age" => self.min_age = Some(Span::parse(text)?),
            "max_size" => self.max_size = Some(Size::parse(text)?),
            "empty" => drop(self.classes.insert(Class::Empty, ClassRule::parse(text)?)),
            "broken" => drop(self.classes.insert(Class::Broken, ClassRule::parse(text)?)),
            "raw" => drop(self.classes.insert(Class::Raw, ClassRule::parse(text)?)),
            "undo" => drop(self.classes.insert(Class::Undo, ClassRule::parse(text)?)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn over(&self, policy: &mut Policy) {
        policy.keep_last = self.keep_last.or(policy.keep_last);
        for (mine, base) in self.keep.iter().zip(&mut policy.keep) {
            *base = mine.or(*base);
        }
        policy.keep_within = self.keep_within.or(policy.keep_within);
        if let Some(tags) = &self.keep_tags {
            policy.keep_tags.clone_from(tags);
        }
        policy.min_age = self.min_age.unwrap_or(policy.min_age);
        policy.classes.extend(self.classes.iter().map(|(c, r)| (*c, *r)));
    }
}

/// What is wrong with the value of a key.
fn of_key(key: &str, mut e: Error) -> Error {
    e.message = format!("{key}: {}", e.message);
    e
}

fn unknown(key: &str) -> Error {
    let mut all: Vec<&str> = KEYS.iter().chain(&STORE_KEYS).copied().collect();
    all.sort_unstable();
    Error::new(Kind::Usage, format!("no such rule: {}", text::escape(key.as_bytes())))
        .hint(format!("rules: {}", all.join(", ")))
}

impl Policies {
    /// Reads the files in a configuration's directory; none is no error.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut policies = Self::default();
        for layer in settings::layers(dir)? {
            policies.file(&layer.text, &layer.source).map_err(|mut e| {
                e.kind = Kind::Error;
                e.message = format!("{}: {}", layer.source, e.message);
                e
            })?;
        }
        Ok(policies)
    }

    /// Adds what a file says.
    fn file(&mut self, text: &str, source: &str) -> Result<()> {
        let table: toml::Table = toml::from_str(text)
            .map_err(|e| Error::other(text::escape(e.to_string().trim().as_bytes())))?;
        let Some(prune) = table.get("prune") else { return Ok(()) };
        let prune = prune.as_table().ok_or_else(|| Error::other("'prune' is not a table"))?;
        for (key, value) in prune {
            if key != "device" {
                self.set(key, &plain(key, value)?, source)?;
                continue;
            }
            let devices =
                value.as_table().ok_or_else(|| Error::other("'prune.device' is not a table"))?;
            for (name, rules) in devices {
                let rules = rules.as_table().ok_or_else(|| {
                    Error::other(format!(
                        "the rules of {} are not a table",
                        text::escape(name.as_bytes())
                    ))
                })?;
                for (key, value) in rules {
                    self.set_for(name, key, &plain(key, value)?, source)?;
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, key: String, text: &str, source: &str) {
        self.values.insert(key, Value { text: text.to_owned(), source: source.to_owned() });
    }

    fn set_store(&mut self, key: &str, text: &str) -> Result<bool> {
        let size = || Size::parse(text).map_err(|e| of_key(key, e));
        match key {
            "max_size" => self.max_size = Some(size()?),
            "min_free" => self.min_free = Some(size()?),
            "trash" => self.trash = Trash(Span::parse(text).map_err(|e| of_key(key, e))?.0),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set(&mut self, key: &str, text: &str, source: &str) -> Result<()> {
        if !self.set_store(key, text)? && !self.global.set(key, text)? {
            return Err(unknown(key));
        }
        self.note(key.to_owned(), text, source);
        Ok(())
    }

    fn set_for(&mut self, device: &str, key: &str, text: &str, source: &str) -> Result<()> {
        let at = match self.devices.iter().position(|(n, _)| n == device) {
            Some(at) => at,
            None => {
                self.devices.push((device.to_owned(), Rules::default()));
                self.devices.len() - 1
            }
        };
        if !self.devices[at].1.set(key, text)? {
            return Err(unknown(key));
        }
        self.note(format!("{DEVICE}{device}.{key}"), text, source);
        Ok(())
    }

    /// Sets a value from the command line, for all devices.
    pub fn give(&mut self, key: &str, text: &str) -> Result<()> {
        if !self.set_store(key, text)? && !self.given.set(key, text)? {
            return Err(unknown(key));
        }
        self.note(key.to_owned(), text, COMMAND_LINE);
        Ok(())
    }

    /// The values that were set, and the defaults of those that have one.
    pub fn in_force(&self) -> BTreeMap<String, Value> {
        let mut all = self.values.clone();
        for (key, text) in DEFAULTS {
            let value = || Value { text: text.to_owned(), source: DEFAULT.to_owned() };
            all.entry(key.to_owned()).or_insert_with(value);
        }
        all
    }

    /// As the part of a file that says the same, with the source of each value.
    pub fn document(&self) -> String {
        let mut out = String::from("[prune]\n");
        let (global, devices): (Vec<_>, Vec<_>) =
            self.in_force().into_iter().partition(|(key, _)| !key.starts_with(DEVICE));
        for (key, value) in &global {
            out += &settings::line(key, &toml_text(key, &value.text), &value.source);
        }
        let mut tables: BTreeMap<&str, String> = BTreeMap::new();
        for (path, value) in &devices {
            let Some((device, key)) = path[DEVICE.len()..].rsplit_once('.') else { continue };
            *tables.entry(device).or_default() +=
                &settings::line(key, &toml_text(key, &value.text), &value.source);
        }
        for (device, lines) in tables {
            out += &format!("\n[prune.device.{}]\n{lines}", settings::quoted(device));
        }
        out
    }

    /// Whether there is any rule.
    pub fn is_empty(&self) -> bool {
        self.values.keys().all(|k| k == "trash" || k.ends_with("min_age"))
    }

    /// The rules for a device with these recorded names.
    pub fn of(&self, names: &[&[u8]]) -> Policy {
        let mut policy = Policy::default();
        // What stands for them all is looked at for them all.
        self.global.over(&mut policy);
        for (device, rules) in &self.devices {
            let exact = names.contains(&device.as_bytes());
            let same = || {
                let target = Target::find(Path::new(device)).ok()?;
                let mut matcher = Matcher::new(&target);
                names.iter().find_map(|n| matcher.ground(n))
            };
            if exact || same().is_some() {
                rules.over(&mut policy);
                policy.max_size = rules.max_size.or(policy.max_size);
            }
        }
        self.given.over(&mut policy);
        policy
    }
}

/// A value as a file would have it.
fn toml_text(key: &str, text: &str) -> String {
    if key == "keep_tags" {
        let tags: Vec<String> = text.split(',').map(settings::quoted).collect();
        format!("[{}]", tags.join(", "))
    } else if text.parse::<u32>().is_ok() && key.starts_with("keep_") && key != "keep_within" {
        text.to_owned()
    } else {
        settings::quoted(text)
    }
}

/// A value as the command line would have it.
fn plain(key: &str, value: &toml::Value) -> Result<String> {
    match value {
        toml::Value::String(s) => Ok(s.clone()),
        toml::Value::Integer(n) => Ok(n.to_string()),
        toml::Value::Array(list) if list.iter().all(toml::Value::is_str) => {
            let words: Vec<&str> = list.iter().filter_map(toml::Value::as_str).collect();
            Ok(words.join(","))
        }
        _ => Err(Error::other(format!(
            "{} is neither a number nor a string nor a list of strings",
            text::escape(key.as_bytes())
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_and_devices_override() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("conf.d")).unwrap();
        let put = |name: &str, text: &str| std::fs::write(tmp.path().join(name), text).unwrap();
        put("bdsnap.toml", "store = \"/x\"\n[prune]\nkeep_last = 5\nkeep_daily = 7\nmax_size = \"10GiB\"\nempty = \"remove-after 1d\"\n");
        put("conf.d/20-b.toml", "[prune]\nkeep_last = 9\n");
        put("conf.d/10-a.toml", "[prune]\nkeep_last = 8\n[prune.device.\"/dev/x\"]\nkeep_last = 1\nmax_size = \"1GiB\"\nkeep_tags = [\"a\", \"b c\"]\n");
        put("conf.d/30-c.off", "nonsense");
        let mut p = Policies::read(tmp.path()).unwrap();
        assert_eq!(p.of(&[b"/dev/y"]).keep_last, Some(9));
        assert_eq!(p.of(&[b"/dev/x"]).keep_last, Some(1));
        assert_eq!(p.of(&[b"/dev/x"]).keep[1], Some(7));
        assert_eq!(p.of(&[b"/dev/x"]).max_size, Some(Size::Bytes(1 << 30)));
        assert_eq!(p.of(&[b"/dev/y"]).max_size, None, "that one is the store's");
        assert_eq!(p.max_size, Some(Size::Bytes(10 << 30)));
        assert!(p.values["keep_last"].source.ends_with("20-b.toml"));
        assert!(p.values["device./dev/x.keep_last"].source.ends_with("10-a.toml"));
        // What is shown says the same when it is read.
        let shown = tempfile::tempdir().unwrap();
        std::fs::write(shown.path().join("bdsnap.toml"), p.document()).unwrap();
        let again = Policies::read(shown.path()).unwrap();
        for device in ["/dev/x", "/dev/y"] {
            assert_eq!(again.of(&[device.as_bytes()]), p.of(&[device.as_bytes()]), "{device}");
        }
        assert_eq!((again.max_size, again.trash), (p.max_size, p.trash));
        assert!(p.document().contains("#min_age = \"1h\""), "{}", p.document());
        p.give("keep_last", "3").unwrap();
        assert_eq!(p.of(&[b"/dev/x"]).keep_last, Some(3));
        assert_eq!(p.values["keep_last"].source, "command line");
    }

    #[test]
    fn mistakes_name_file_and_key() {
        let tmp = tempfile::tempdir().unwrap();
        for (text, says) in [
            ("[prune]\nkeep_lats = 1\n", "keep_lats"),
            ("[prune]\nkeep_last = -1\n", "keep_last: not a number"),
            ("[prune]\nkeep_last = true\n", "keep_last"),
            ("[prune]\nkeep_tags = [1]\n", "keep_tags"),
            ("[prune]\nkeep_tags = \"a,\"\n", "tag"),
            ("[prune]\nmin_age = \"soon\"\n", "min_age: not a time span: soon"),
            ("[prune]\ntrash = \"soon\"\n", "trash: not a time span: soon"),
            ("[prune.device.x]\ntrash = \"1d\"\n", "trash"),
            ("prune = 1\n", "not a table"),
            ("[prune\n", "prune"),
        ] {
            std::fs::write(tmp.path().join("bdsnap.toml"), text).unwrap();
            let e = Policies::read(tmp.path()).unwrap_err();
            assert!(e.message.contains("bdsnap.toml") && e.message.contains(says), "{}", e.message);
        }
        assert!(Policies::read(&tmp.path().join("none")).unwrap().is_empty());
    }
}
