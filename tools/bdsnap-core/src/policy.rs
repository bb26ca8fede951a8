// SPDX-License-Identifier: GPL-2.0

//! The policies of `bdsnap-prune`: from the table `[prune]` of
//! `/etc/bdsnap/bdsnap.toml`, of `conf.d/*.toml` beside it in the order of
//! their names, and from the command line; the last one counts.
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
use std::io;
use std::path::{Path, PathBuf};

use crate::device::{Matcher, Target};
use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::retention::{Class, ClassRule, Policy, Size, Span};
use crate::text;

const FILE_MAX: usize = 1 << 20;
const DAY: u64 = 86_400 * 1_000_000_000;

/// A value, and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// As it was written.
    pub text: String,
    /// A file's path, or "command line".
    pub source: String,
}

/// Rules for all devices and for some.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// All values that were set, by key; those of a device under
    /// `device."NAME".KEY`.
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
    min_age: Option<Span>,
    classes: BTreeMap<Class, ClassRule>,
    max_size: Option<Size>,
}

/// The keys that devices may have, too.
pub const KEYS: [&str; 13] = [
    "keep_last",
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_yearly",
    "keep_within",
    "min_age",
    "max_size",
    "empty",
    "broken",
    "raw",
    "undo",
];
/// The keys that only stand for the whole store.
pub const STORE_KEYS: [&str; 2] = ["min_free", "trash"];

impl Rules {
    /// Sets a value; false if there is no such key.
    fn set(&mut self, key: &str, text: &str) -> Result<bool> {
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
        policy.min_age = self.min_age.unwrap_or(policy.min_age);
        policy.classes.extend(self.classes.iter().map(|(c, r)| (*c, *r)));
    }
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
        let mut files = vec![dir.join("bdsnap.toml")];
        let conf_d = dir.join("conf.d");
        match conf_d.read_dir() {
            Ok(entries) => {
                let mut more: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
                more.retain(|p| p.extension().is_some_and(|e| e == "toml"));
                more.sort();
                files.extend(more);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).on("read", &conf_d),
        }
        for path in files {
            let bytes = match fsutil::read_small(&path, FILE_MAX) {
                Ok(b) => b,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).on("read", &path),
            };
            policies.file(&bytes, &text::path(&path)).map_err(|mut e| {
                e.kind = Kind::Error;
                e.message = format!("{}: {}", text::path(&path), e.message);
                e
            })?;
        }
        Ok(policies)
    }

    /// Adds what a file says.
    fn file(&mut self, bytes: &[u8], source: &str) -> Result<()> {
        let text = std::str::from_utf8(bytes).map_err(|_| Error::other("not UTF-8"))?;
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
        match key {
            "max_size" => self.max_size = Some(Size::parse(text)?),
            "min_free" => self.min_free = Some(Size::parse(text)?),
            "trash" => self.trash = Trash(Span::parse(text)?.0),
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
        self.note(format!("device.\"{device}\".{key}"), text, source);
        Ok(())
    }

    /// Sets a value from the command line, for all devices.
    pub fn give(&mut self, key: &str, text: &str) -> Result<()> {
        if !self.set_store(key, text)? && !self.given.set(key, text)? {
            return Err(unknown(key));
        }
        self.note(key.to_owned(), text, "command line");
        Ok(())
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

/// A value as the command line would have it.
fn plain(key: &str, value: &toml::Value) -> Result<String> {
    match value {
        toml::Value::String(s) => Ok(s.clone()),
        toml::Value::Integer(n) => Ok(n.to_string()),
        _ => Err(Error::other(format!(
            "{} is neither a number nor a string",
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
        put("conf.d/10-a.toml", "[prune]\nkeep_last = 8\n[prune.device.\"/dev/x\"]\nkeep_last = 1\nmax_size = \"1GiB\"\n");
        put("conf.d/30-c.off", "nonsense");
        let mut p = Policies::read(tmp.path()).unwrap();
        assert_eq!(p.of(&[b"/dev/y"]).keep_last, Some(9));
        assert_eq!(p.of(&[b"/dev/x"]).keep_last, Some(1));
        assert_eq!(p.of(&[b"/dev/x"]).keep[1], Some(7));
        assert_eq!(p.of(&[b"/dev/x"]).max_size, Some(Size::Bytes(1 << 30)));
        assert_eq!(p.of(&[b"/dev/y"]).max_size, None, "that one is the store's");
        assert_eq!(p.max_size, Some(Size::Bytes(10 << 30)));
        assert!(p.values["keep_last"].source.ends_with("20-b.toml"));
        assert!(p.values["device.\"/dev/x\".keep_last"].source.ends_with("10-a.toml"));
        p.give("keep_last", "3").unwrap();
        assert_eq!(p.of(&[b"/dev/x"]).keep_last, Some(3));
        assert_eq!(p.values["keep_last"].source, "command line");
    }

    #[test]
    fn mistakes_name_file_and_key() {
        let tmp = tempfile::tempdir().unwrap();
        for (text, says) in [
            ("[prune]\nkeep_lats = 1\n", "keep_lats"),
            ("[prune]\nkeep_last = -1\n", "-1"),
            ("[prune]\nkeep_last = true\n", "keep_last"),
            ("[prune]\nmin_age = \"soon\"\n", "soon"),
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
