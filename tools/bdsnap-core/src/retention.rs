// SPDX-License-Identifier: GPL-2.0

//! Which sessions a policy keeps, and why. Pure: knows no files, no clock.
//!
//! Rules are combined by *or*: a session needs one that keeps it. Rules count
//! for each device by itself. What is never removed (recording, held, too
//! young, from the future, the newest) does not depend on the policy.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::error::{Error, Kind, Result};

const SECOND: u64 = 1_000_000_000;

/// A time span in nanoseconds, written as `90m`, `2d` or `1w 12h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

impl Span {
    /// Reads one: numbers with units `s`, `m`, `h`, `d`, `w`, `y` (365 days).
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`].
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(
                Kind::Usage,
                format!("not a time span: {}", crate::text::escape(text.as_bytes())),
            )
            .hint("write it as 90m, 12h, 2d, 3w or 1y")
        };
        let mut total: u64 = 0;
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            let mut chars = rest[digits..].chars();
            let unit = match chars.next() {
                Some('s') => 1,
                Some('m') => 60,
                Some('h') => 3600,
                Some('d') => 86_400,
                Some('w') => 7 * 86_400,
                Some('y') => 365 * 86_400,
                _ => return Err(wrong()),
            };
            total = number
                .checked_mul(unit * SECOND)
                .and_then(|n| total.checked_add(n))
                .ok_or_else(wrong)?;
            rest = chars.as_str().trim_start();
        }
        Ok(Self(total))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = self.0 / SECOND;
        for (unit, name) in [(7 * 86_400, "w"), (86_400, "d"), (3600, "h"), (60, "m")] {
            if s != 0 && s % unit == 0 {
                return write!(f, "{}{name}", s / unit);
            }
        }
        if s == 0 {
            write!(f, "0")
        } else {
            write!(f, "{s}s")
        }
    }
}

/// A size in bytes, or a share of the store's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of it.
    Percent(u8),
}

impl Size {
    /// Reads `10GiB`, `500M`, `4096` or `5%`. All units are binary.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`].
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(Kind::Usage, format!("not a size: {}", crate::text::escape(text.as_bytes())))
                .hint("write it as 500MiB, 10GiB, 2T or 5%")
        };
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit = text[digits..].trim_start().to_ascii_lowercase();
        let shift = match unit.as_str() {
            "%" => {
                return match u8::try_from(number) {
                    Ok(n @ 0..=100) => Ok(Self::Percent(n)),
                    _ => Err(wrong()),
                }
            }
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(1 << shift).map(Self::Bytes).ok_or_else(wrong)
    }

    /// In bytes, of a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(n) => n,
            Self::Percent(p) => total / 100 * u64::from(p) + total % 100 * u64::from(p) / 100,
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(n) => f.write_str(&crate::text::size(*n)),
            Self::Percent(p) => write!(f, "{p} %"),
        }
    }
}

/// What becomes of a class of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassRule {
    /// They are sessions like others.
    Count,
    /// They stay.
    Keep,
    /// They stay until they are so old; no other rule counts them.
    RemoveAfter(Span),
}

impl ClassRule {
    /// Reads `count`, `keep` or `remove-after SPAN`.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`].
    pub fn parse(text: &str) -> Result<Self> {
        match text.trim() {
            "count" => Ok(Self::Count),
            "keep" => Ok(Self::Keep),
            other => match other.strip_prefix("remove-after") {
                Some(span) => Span::parse(span).map(Self::RemoveAfter),
                None => Err(Error::new(
                    Kind::Usage,
                    format!("not a rule: {}", crate::text::escape(text.as_bytes())),
                )
                .hint("write count, keep, or 'remove-after 7d'")),
            },
        }
    }
}

impl std::fmt::Display for ClassRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count => f.write_str("count"),
            Self::Keep => f.write_str("keep"),
            Self::RemoveAfter(span) => write!(f, "remove-after {span}"),
        }
    }
}

/// Sessions that may have rules of their own. The first that fits counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Broken.
    Broken,
    /// Made by a restore.
    Undo,
    /// Writes to the device while nobody had it mounted.
    Raw,
    /// Saved nothing.
    Empty,
    /// None of these.
    Usual,
}

impl Class {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Undo => "undo",
            Self::Raw => "raw",
            Self::Empty => "empty",
            Self::Usual => "usual",
        }
    }
}

/// Periods of which the newest session is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// A clock hour.
    Hour,
    /// A calendar day.
    Day,
    /// An ISO week.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Period {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    /// The rule's word.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    /// What two times of one period have in common.
    fn key(self, at: &Zoned) -> [i32; 5] {
        let (y, m, d) = (i32::from(at.year()), i32::from(at.month()), i32::from(at.day()));
        match self {
            // With the offset: an hour that a change of clocks repeats is two.
            Self::Hour => [y, m, d, i32::from(at.hour()), at.offset().seconds()],
            Self::Day => [y, m, d, 0, 0],
            Self::Week => {
                let week = at.date().iso_week_date();
                [i32::from(week.year()), i32::from(week.week()), 0, 0, 0]
            }
            Self::Month => [y, m, 0, 0, 0],
            Self::Year => [y, 0, 0, 0, 0],
        }
    }
}

/// The rules for a device. [`None`]: the rule is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The newest N.
    pub keep_last: Option<u32>,
    /// The newest of each of the N latest periods that have sessions; in the
    /// order of [`Period::ALL`].
    pub keep: [Option<u32>; 5],
    /// All that are not older.
    pub keep_within: Option<Span>,
    /// All with one of these tags, of whatever class.
    pub keep_tags: Vec<String>,
    /// Nothing younger is removed.
    pub min_age: Span,
    /// Classes with their rules.
    pub classes: BTreeMap<Class, ClassRule>,
    /// The device's sessions take no more than this.
    pub max_size: Option<Size>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            keep_last: None,
            keep: [None; 5],
            keep_within: None,
            keep_tags: Vec::new(),
            min_age: Span(3600 * SECOND),
            classes: BTreeMap::new(),
            max_size: None,
        }
    }
}

impl Policy {
    /// Whether any rule says what to keep of usual sessions.
    fn keeps(&self) -> bool {
        self.keep_last.is_some()
            || self.keep_within.is_some()
            || !self.keep_tags.is_empty()
            || self.keep.iter().any(Option::is_some)
    }
}

/// A session, as far as a policy looks at it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Name, for reasons.
    pub name: String,
    /// Place in the chain: larger is newer.
    pub seq: u64,
    /// Start, ns since 1970.
    pub start_ns: u64,
    /// Its class.
    pub class: Class,
    /// Being recorded now.
    pub recording: bool,
    /// Names of its holds.
    pub holds: Vec<String>,
    /// Its tags.
    pub tags: Vec<String>,
}

/// Why a session is kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reason {
    /// The rule, in a word.
    pub rule: &'static str,
    /// In words.
    pub text: String,
    /// Not even a lack of space overrides it.
    pub firm: bool,
}

/// What a policy says of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// All rules that keep it; none: it may go.
    pub reasons: Vec<Reason>,
    /// Why other rules do not.
    pub misses: Vec<String>,
}

impl Decision {
    /// Whether it is kept.
    pub fn kept(&self) -> bool {
        !self.reasons.is_empty()
    }

    /// Whether it is kept whatever space is needed.
    pub fn firm(&self) -> bool {
        self.reasons.iter().any(|r| r.firm)
    }

    fn keep(&mut self, rule: &'static str, firm: bool, text: impl Into<String>) {
        self.reasons.push(Reason { rule, text: text.into(), firm });
    }
}

/// What is not part of a policy.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Now, ns since 1970.
    pub now_ns: u64,
    /// The zone whose days, weeks and months count.
    pub zone: TimeZone,
    /// The newest session of a device may go, too.
    pub allow_empty: bool,
}

/// Decides for the sessions of one device, in any order.
pub fn decide(policy: &Policy, sessions: &[Candidate], setting: &Setting) -> Vec<Decision> {
    let mut out = vec![Decision::default(); sessions.len()];
    // Newest first.
    let mut order: Vec<usize> = (0..sessions.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse((sessions[i].seq, sessions[i].start_ns)));

    for (rank, &i) in order.iter().enumerate() {
        let s = &sessions[i];
        let d = &mut out[i];
        if s.recording {
            d.keep("recording", true, "it is being recorded");
        }
        if !s.holds.is_empty() {
            d.keep("held", true, format!("held: {}", s.holds.join(", ")));
        }
        if s.start_ns > setting.now_ns {
            d.keep("future", true, "it is dated in the future");
        } else if setting.now_ns - s.start_ns < policy.min_age.0 {
            d.keep("min-age", true, format!("younger than {}", policy.min_age));
        }
        if rank == 0 && !setting.allow_empty {
            d.keep("newest", true, "the device's newest");
        }
    }

    let rule = |s: &Candidate| policy.classes.get(&s.class).copied().unwrap_or(ClassRule::Count);
    let age = |s: &Candidate| setting.now_ns.saturating_sub(s.start_ns);
    for (s, d) in sessions.iter().zip(&mut out) {
        match rule(s) {
            ClassRule::Count => {}
            ClassRule::Keep => {
                d.keep(s.class.as_str(), false, format!("{}: keep", s.class.as_str()))
            }
            ClassRule::RemoveAfter(span) if age(s) < span.0 => {
                d.keep(
                    s.class.as_str(),
                    false,
                    format!("{}: younger than {span}", s.class.as_str()),
                );
            }
            ClassRule::RemoveAfter(span) => {
                d.misses.push(format!("{}: older than {span}", s.class.as_str()));
            }
        }
    }

    if !policy.keep_tags.is_empty() {
        for (s, d) in sessions.iter().zip(&mut out) {
            match s.tags.iter().find(|t| policy.keep_tags.contains(t)) {
                Some(tag) => d.keep("tag", false, format!("tagged {tag}")),
                None => d.misses.push(format!("tags: none of {}", policy.keep_tags.join(", "))),
            }
        }
    }
    let counted: Vec<usize> =
        order.into_iter().filter(|&i| rule(&sessions[i]) == ClassRule::Count).collect();
    if !policy.keeps() {
        for &i in &counted {
            out[i].keep("no rule", false, "no rule says what to keep");
        }
        return out;
    }
    if let Some(n) = policy.keep_last {
        for (rank, &i) in counted.iter().enumerate() {
            if rank < n as usize {
                out[i].keep("last", true, format!("last {} of {n}", rank + 1));
            } else {
                out[i].misses.push(format!("last: {n} newer"));
            }
        }
    }
    if let Some(span) = policy.keep_within {
        for &i in &counted {
            if age(&sessions[i]) <= span.0 {
                out[i].keep("within", false, format!("within {span}"));
            } else {
                out[i].misses.push(format!("within: older than {span}"));
            }
        }
    }
    for (period, n) in Period::ALL.into_iter().zip(policy.keep) {
        if let Some(n) = n {
            keep_periods(period, n, sessions, &counted, &setting.zone, &mut out);
        }
    }
    out
}

/// Keeps the newest session of each of the `n` latest periods.
fn keep_periods(
    period: Period,
    n: u32,
    sessions: &[Candidate],
    counted: &[usize],
    zone: &TimeZone,
    out: &mut [Decision],
) {
    let mut at: Vec<(Zoned, usize)> = counted
        .iter()
        .filter_map(|&i| {
            let t = Timestamp::from_nanosecond(i128::from(sessions[i].start_ns)).ok()?;
            Some((t.to_zoned(zone.clone()), i))
        })
        .collect();
    // By time, and not by the chain: a clock may have been set back.
    at.sort_by_key(|(_, i)| std::cmp::Reverse((sessions[*i].start_ns, sessions[*i].seq)));
    let (rule, noun) = (period.rule(), period.noun());
    let mut last: Option<([i32; 5], usize)> = None;
    let mut used = 0;
    for (t, i) in at {
        let key = period.key(&t);
        match last {
            Some((k, newer)) if k == key => {
                let newer = &sessions[newer].name;
                out[i].misses.push(format!("{rule}: {newer} is newer that {noun}"));
                continue;
            }
            _ => {}
        }
        last = Some((key, i));
        if used < n {
            used += 1;
            out[i].keep(rule, false, format!("{rule} {used} of {n}"));
        } else {
            out[i].misses.push(format!("{rule}: {n} later {noun}s have sessions"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86_400 * SECOND;

    fn utc(now_ns: u64) -> Setting {
        Setting { now_ns, zone: TimeZone::UTC, allow_empty: false }
    }

    fn at(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_nanosecond()).unwrap()
    }

    fn sessions(starts: &[u64]) -> Vec<Candidate> {
        starts
            .iter()
            .enumerate()
            .map(|(i, &start_ns)| Candidate {
                name: format!("s{i}"),
                seq: i as u64 + 1,
                start_ns,
                class: Class::Usual,
                recording: false,
                holds: Vec::new(),
                tags: Vec::new(),
            })
            .collect()
    }

    fn of_dates(dates: &[&str]) -> Vec<Candidate> {
        sessions(&dates.iter().map(|d| at(d)).collect::<Vec<_>>())
    }

    fn kept(policy: &Policy, list: &[Candidate], setting: &Setting) -> Vec<bool> {
        decide(policy, list, setting).iter().map(Decision::kept).collect()
    }

    #[test]
    fn spans_and_sizes() {
        for (text, seconds) in [("90m", 5400), ("2d", 172_800), ("1w 12h", 648_000), ("0", 0)] {
            assert_eq!(Span::parse(text).unwrap(), Span(seconds * SECOND), "{text}");
        }
        for text in ["", "5", "d", "5x", "-1d", "99999999999999y", "2d3", "é"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
        assert_eq!(Span(2 * DAY).to_string(), "2d");
        assert_eq!(Span(61 * SECOND).to_string(), "61s");
        for (text, size) in [
            ("10GiB", Size::Bytes(10 << 30)),
            ("500M", Size::Bytes(500 << 20)),
            ("4096", Size::Bytes(4096)),
            ("5%", Size::Percent(5)),
            ("5 %", Size::Percent(5)),
        ] {
            assert_eq!(Size::parse(text).unwrap(), size, "{text}");
        }
        for text in ["", "GiB", "101%", "1.5G", "20000000T", "1X"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
        assert_eq!(Size::Percent(5).of(1000), 50);
        assert_eq!(Size::Percent(100).of(u64::MAX), u64::MAX);
        assert_eq!(
            ClassRule::parse("remove-after 7d").unwrap(),
            ClassRule::RemoveAfter(Span(7 * DAY))
        );
        assert!(ClassRule::parse("remove").is_err());
    }

    #[test]
    fn weeks_are_those_of_iso() {
        // 2024-01-02 is in week 1 of 2024, 2024-12-30 in week 1 of 2025; the
        // last days of 2025 and the first of 2026 are one week.
        let list = of_dates(&[
            "2024-01-02T12:00:00Z",
            "2024-12-30T12:00:00Z",
            "2025-12-29T12:00:00Z",
            "2026-01-02T12:00:00Z",
        ]);
        let policy = Policy { keep: [None, None, Some(9), None, None], ..Policy::default() };
        let now = utc(at("2026-02-01T00:00:00Z"));
        assert_eq!(kept(&policy, &list, &now), [true, true, false, true]);
        let d = decide(&policy, &list, &now);
        assert_eq!(d[2].misses, ["weekly: s3 is newer that week"]);
    }

    /// A clock that was set back: the day's newest is that of the latest time, and days count by time as well.
    #[test]
    fn periods_go_by_time_and_not_by_the_chain() {
        let list =
            of_dates(&["2026-03-02T20:00:00Z", "2026-03-01T12:00:00Z", "2026-03-02T10:00:00Z"]);
        let policy = Policy { keep: [None, Some(1), None, None, None], ..Policy::default() };
        let out = decide(&policy, &list, &utc(at("2026-04-01T00:00:00Z")));
        let daily = |i: usize| out[i].reasons.iter().any(|r: &Reason| r.rule == "daily");
        assert_eq!([daily(0), daily(1), daily(2)], [true, false, false]);
        assert!(out[1].misses.iter().any(|m| m.contains("1 later day")), "{:?}", out[1].misses);
    }

    /// So many as it says, and no more.
    #[test]
    fn as_many_periods_as_asked_for() {
        let list = of_dates(&[
            "2026-03-01T12:00:00Z",
            "2026-03-02T12:00:00Z",
            "2026-03-03T12:00:00Z",
            "2026-03-04T10:00:00Z",
            "2026-03-04T12:00:00Z",
        ]);
        for n in 1..4u32 {
            let policy = Policy { keep: [None, Some(n), None, None, None], ..Policy::default() };
            let kept = kept(&policy, &list, &utc(at("2026-04-01T00:00:00Z")));
            assert_eq!(kept.iter().filter(|k| **k).count(), n as usize, "{kept:?}");
            assert!(kept[4] && !kept[3] && !kept[0]);
        }
    }

    #[test]
    fn hours_are_of_one_day() {
        let list =
            of_dates(&["2026-03-01T10:05:00Z", "2026-03-01T11:05:00Z", "2026-03-02T11:05:00Z"]);
        let policy = Policy { keep: [Some(9), None, None, None, None], ..Policy::default() };
        assert_eq!(kept(&policy, &list, &utc(at("2026-04-01T00:00:00Z"))), [true; 3]);
    }

    #[test]
    fn an_hour_twice_and_days_of_the_zone() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        // 02:30 CEST and 02:30 CET of the same night.
        let list =
            of_dates(&["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T23:30:00Z"]);
        let now = Setting { zone, ..utc(at("2026-12-01T00:00:00Z")) };
        let hourly = Policy { keep: [Some(9), None, None, None, None], ..Policy::default() };
        assert_eq!(kept(&hourly, &list, &now), [true; 3]);
        // The last one is on the 26th there.
        let daily = Policy { keep: [None, Some(9), None, None, None], ..Policy::default() };
        assert_eq!(kept(&daily, &list, &now), [false, true, true]);
    }

    #[test]
    fn classes_have_rules_of_their_own() {
        let mut list =
            of_dates(&["2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z", "2026-03-03T10:00:00Z"]);
        list[1].class = Class::Empty;
        let mut policy = Policy { keep_last: Some(2), ..Policy::default() };
        let now = utc(at("2026-03-10T00:00:00Z"));
        assert_eq!(kept(&policy, &list, &now), [false, true, true]);
        policy.classes.insert(Class::Empty, ClassRule::RemoveAfter(Span(DAY)));
        // The empty one does not take the place of a useful one.
        assert_eq!(kept(&policy, &list, &now), [true, false, true]);
        policy.classes.insert(Class::Empty, ClassRule::RemoveAfter(Span(30 * DAY)));
        assert_eq!(kept(&policy, &list, &now), [true; 3]);
        policy.classes.insert(Class::Empty, ClassRule::Keep);
        assert_eq!(kept(&policy, &list, &now), [true; 3]);
        list[1].holds.push("x".into());
        policy.classes.insert(Class::Empty, ClassRule::RemoveAfter(Span(0)));
        assert_eq!(decide(&policy, &list, &now)[1].reasons[0].text, "held: x");
    }

    #[test]
    fn tags_keep_sessions_of_all_classes() {
        let mut list =
            of_dates(&["2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z", "2026-03-03T10:00:00Z"]);
        list[0].tags = vec!["monthly".into(), "release".into()];
        list[0].class = Class::Raw;
        list[1].tags = vec!["other".into()];
        let mut policy = Policy { keep_tags: vec!["release".into()], ..Policy::default() };
        policy.classes.insert(Class::Raw, ClassRule::RemoveAfter(Span(0)));
        let now = utc(at("2026-03-10T00:00:00Z"));
        assert_eq!(kept(&policy, &list, &now), [true, false, true]);
        let d = decide(&policy, &list, &now);
        assert_eq!((&*d[0].reasons[0].text, d[0].firm()), ("tagged release", false));
        assert_eq!(d[1].misses, ["tags: none of release"]);
    }

    #[test]
    fn without_rules_nothing_goes() {
        let list = of_dates(&["2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"]);
        assert_eq!(kept(&Policy::default(), &list, &utc(at("2026-01-01T00:00:00Z"))), [true; 2]);
        // A rule that keeps none is a rule.
        let none = Policy { keep_last: Some(0), ..Policy::default() };
        assert_eq!(kept(&none, &list, &utc(at("2026-01-01T00:00:00Z"))), [false, true]);
    }

    fn arb_sessions() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u64..400 * DAY, 0..12u8, any::<u8>());
        prop::collection::vec(one, 1..25).prop_map(|mut raw| {
            raw.sort_unstable();
            let base = at("2025-01-01T00:00:00Z");
            raw.iter()
                .enumerate()
                .map(|(i, &(t, class, bits))| Candidate {
                    name: format!("s{i}"),
                    // Some clocks go backwards.
                    seq: if bits & 7 == 7 { 100 - i as u64 } else { i as u64 + 200 },
                    start_ns: base + t,
                    class: [Class::Broken, Class::Undo, Class::Raw, Class::Empty, Class::Usual]
                        [usize::from(class).min(4)],
                    recording: bits & 0xf8 == 0xf8,
                    holds: if bits & 0x1f == 0x11 { vec!["h".into()] } else { Vec::new() },
                    tags: if bits & 0x30 == 0x30 { vec!["t".into()] } else { Vec::new() },
                })
                .collect()
        })
    }

    fn arb_policy() -> impl Strategy<Value = Policy> {
        let n = || prop::option::of(0u32..6);
        let class = prop_oneof![
            Just(ClassRule::Count),
            Just(ClassRule::Keep),
            (0u64..30).prop_map(|d| ClassRule::RemoveAfter(Span(d * DAY)))
        ];
        let classes = prop::collection::btree_map(
            prop_oneof![
                Just(Class::Broken),
                Just(Class::Undo),
                Just(Class::Raw),
                Just(Class::Empty)
            ],
            class,
            0..4,
        );
        let within = prop::option::of((0u64..60).prop_map(|d| Span(d * DAY)));
        let tags = prop::bool::weighted(0.2);
        (n(), [n(), n(), n(), n(), n()], within, tags, 0u64..3, classes).prop_map(
            |(keep_last, keep, keep_within, tags, age, classes)| Policy {
                keep_last,
                keep,
                keep_within,
                keep_tags: if tags { vec!["t".into()] } else { Vec::new() },
                min_age: Span(age * DAY),
                classes,
                max_size: None,
            },
        )
    }

    fn now_of(day: u64) -> Setting {
        utc(at("2025-12-01T00:00:00Z") + day * DAY)
    }

    proptest! {
        #[test]
        fn what_is_safe_stays(list in arb_sessions(), policy in arb_policy(), day in 0u64..90) {
            let setting = now_of(day);
            let out = decide(&policy, &list, &setting);
            let newest = (0..list.len()).max_by_key(|&i| (list[i].seq, list[i].start_ns)).unwrap();
            prop_assert!(out[newest].firm());
            for (s, d) in list.iter().zip(&out) {
                let young = s.start_ns > setting.now_ns
                    || setting.now_ns - s.start_ns < policy.min_age.0;
                if s.recording || !s.holds.is_empty() || young {
                    prop_assert!(d.firm());
                }
                // Something is said of each.
                prop_assert!(d.kept() || !d.misses.is_empty());
            }
        }

        #[test]
        fn pruning_again_finds_nothing(list in arb_sessions(), policy in arb_policy(), day in 0u64..90) {
            let setting = now_of(day);
            let first = kept(&policy, &list, &setting);
            let rest: Vec<_> =
                list.iter().zip(&first).filter(|(_, k)| **k).map(|(s, _)| s.clone()).collect();
            prop_assert!(kept(&policy, &rest, &setting).into_iter().all(|k| k));
        }

        #[test]
        fn more_rules_keep_more(list in arb_sessions(), policy in arb_policy(), extra in arb_policy(), day in 0u64..90) {
            prop_assume!(policy.keeps());
            let setting = now_of(day);
            let max = |a: Option<u32>, b: Option<u32>| a.max(b);
            let more = Policy {
                keep_last: max(policy.keep_last, extra.keep_last),
                keep: std::array::from_fn(|i| max(policy.keep[i], extra.keep[i])),
                keep_within: policy.keep_within.max(extra.keep_within),
                keep_tags: [policy.keep_tags.clone(), extra.keep_tags].concat(),
                min_age: policy.min_age.max(extra.min_age),
                ..policy.clone()
            };
            let before = kept(&policy, &list, &setting);
            let after = kept(&more, &list, &setting);
            for (b, a) in before.into_iter().zip(after) {
                prop_assert!(a || !b);
            }
        }

        #[test]
        fn the_order_does_not_matter(list in arb_sessions(), policy in arb_policy(), day in 0u64..90, turn in 0usize..25) {
            let setting = now_of(day);
            let there = decide(&policy, &list, &setting);
            let mut turned = list.clone();
            let turn = turn % list.len();
            turned.rotate_left(turn);
            turned.reverse();
            let mut back = decide(&policy, &turned, &setting);
            back.reverse();
            back.rotate_right(turn);
            prop_assert_eq!(there, back);
        }

        #[test]
        fn periods_do_not_move_with_the_clock(list in arb_sessions(), policy in arb_policy(), day in 0u64..90, s in 0u64..86_399) {
            let policy = Policy {
                keep_within: None, min_age: Span(0), classes: BTreeMap::new(), ..policy
            };
            let early = now_of(day);
            let late = Setting { now_ns: early.now_ns + s * SECOND, ..early.clone() };
            let future = |c: &Candidate| c.start_ns > early.now_ns && c.start_ns <= late.now_ns;
            let (a, b) = (decide(&policy, &list, &early), decide(&policy, &list, &late));
            for ((c, a), b) in list.iter().zip(a).zip(b) {
                if !future(c) {
                    prop_assert_eq!(a, b);
                }
            }
        }
    }
}
