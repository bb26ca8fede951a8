// SPDX-License-Identifier: GPL-2.0

//! A device's sessions in their order, and the links between them.

use bdsnap_abi::format::{Gap, Header, Id, Kind as SessionKind, NO_ID};
use bdsnap_abi::ioctl;

use crate::device::{Ground, Match, Matcher, Target};
use crate::error::{Error, Kind, Result};
use crate::module::{ModuleStatus, Watch};
use crate::original::Original;
use crate::session::Session;
use crate::store::{Item, Store};
use crate::text;

/// A device's sessions, oldest first.
#[derive(Debug)]
pub struct Chain {
    /// The sessions, by `chain_seq`; those of the original module by time.
    pub sessions: Vec<Session>,
    /// On what ground they were taken for the device's, by session.
    pub grounds: Vec<Ground>,
    /// Sessions of the original module that may be the device's. They only
    /// count when the user names them: see [`Chain::admit`].
    pub doubtful: Vec<(Session, Ground)>,
    /// Sessions recorded under the device's name that are of another one, and
    /// why.
    pub strangers: Vec<(Vec<u8>, String)>,
    /// Directories of the store that could not be read: one of them may be
    /// missing here.
    pub damaged: Vec<String>,
}

/// Why the chain is not whole at a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Writes were seen outside a session.
    Written,
    /// Nobody watched all the time.
    Unknown,
    /// The session before is not the one that is there.
    Missing,
    /// One of the two is of the original module.
    Unlinked,
    /// It was watched, but more may have been written than was seen.
    Unseen,
}

impl Break {
    /// Its word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Unknown => "unknown",
            Self::Missing => "missing",
            Self::Unlinked => "unlinked",
            Self::Unseen => "unseen",
        }
    }

    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Written => "the device was written outside a session",
            Self::Unknown => "the device was not watched all the time",
            Self::Missing => "a session in between is missing",
            Self::Unlinked => "sessions of the original module are linked to no others",
            Self::Unseen => {
                "the disk's statistics cannot vouch that nothing was written past bdsnap"
            }
        }
    }

    /// What a later session's header says of it.
    pub fn as_gap(self) -> Gap {
        match self {
            Self::Written => Gap::Written,
            Self::Unknown | Self::Missing | Self::Unlinked | Self::Unseen => Gap::Unknown,
        }
    }
}

/// The identity of the group of sessions that a session is of: those of one
/// file system on several devices. It is that of the group's first session,
/// which need not say so: it may have been alone when its header was written.
pub(crate) fn group(session: &Session) -> Id {
    let header = &session.header;
    if header.group_id == NO_ID {
        header.session_id
    } else {
        header.group_id
    }
}

/// How the user names a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `latest~N` (`latest`: N = 0): the newest but N of the mount and raw
    /// sessions.
    Latest(usize),
    /// A directory's name, a unique beginning of one, or a session's id.
    Name(Vec<u8>),
    /// The newest undo session.
    Undo,
}

impl Selector {
    /// Reads what the user wrote.
    pub fn parse(text: &[u8]) -> Self {
        match text.strip_prefix(b"latest") {
            Some(b"") => Self::Latest(0),
            Some([b'~', digits @ ..]) if digits.iter().all(u8::is_ascii_digit) => {
                match std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()) {
                    Some(n) => Self::Latest(n),
                    None => Self::Name(text.to_vec()),
                }
            }
            _ => Self::Name(text.to_vec()),
        }
    }
}

impl Chain {
    /// The sessions of a device among those of a store.
    pub fn of(store: &Store, target: &Target, items: &[Item]) -> Self {
        let mut matcher = Matcher::in_store(target, store);
        let mut chain = Self {
            sessions: Vec::new(),
            grounds: Vec::new(),
            doubtful: Vec::new(),
            strangers: Vec::new(),
            damaged: Vec::new(),
        };
        let mut found: Vec<(Session, Ground)> = Vec::new();
        let mut originals: Vec<(Session, Ground)> = Vec::new();
        for item in items {
            match item {
                Item::Session(s) => match matcher.judge(&s.header) {
                    Match::Yes(ground) => found.push(((**s).clone(), ground)),
                    Match::Stranger(why) => chain.strangers.push((s.dir.clone(), why)),
                    Match::No => {}
                },
                Item::Damaged(d) => chain.damaged.push(text::escape(&d.dir)),
                Item::Original(o) => {
                    let Some(ground) = original_ground(&mut matcher, target, o) else { continue };
                    match o.session() {
                        Err(_) => chain.damaged.push(text::escape(&o.dir)),
                        Ok(s) if matches!(ground, Ground::DiskOfPartition | Ground::BaseName) => {
                            chain.doubtful.push((s, ground));
                        }
                        Ok(s) => originals.push((s, ground)),
                    }
                }
            }
        }
        // What another device holds as well, as one that lay above this one, is no
        // link of a chain that is known by better grounds.
        let weak = |g: &Ground| matches!(g, Ground::Content | Ground::FileSystem);
        if found.iter().any(|(_, g)| !weak(g)) {
            let (others, own) = found.into_iter().partition(|(_, g)| weak(g));
            found = own;
            chain.doubtful.extend::<Vec<_>>(others);
        }
        found.sort_by_key(|(s, _)| (s.header.chain_seq, s.header.start_ns));
        (chain.sessions, chain.grounds) = found.into_iter().unzip();
        for (session, ground) in originals {
            chain.insert_by_time(session, ground);
        }
        chain
    }

    /// Puts a session of the original module, which knows no order but time,
    /// before the first that is younger.
    fn insert_by_time(&mut self, session: Session, ground: Ground) {
        let start = session.header.start_ns;
        let younger = self.sessions.iter().position(|s| s.header.start_ns > start);
        let at = younger.unwrap_or(self.sessions.len());
        self.sessions.insert(at, session);
        self.grounds.insert(at, ground);
    }

    /// Takes a doubtful session into the chain if the user names it.
    pub fn admit(&mut self, selector: &Selector) {
        let Selector::Name(name) = selector else { return };
        if let Some(at) = self.doubtful.iter().position(|(s, _)| s.dir == *name) {
            let (session, ground) = self.doubtful.remove(at);
            self.insert_by_time(session, ground);
        }
    }

    /// The place of the session that the user means.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`], or [`Kind::Usage`] with the candidates if several
    /// names begin so.
    pub fn select(&self, selector: &Selector) -> Result<usize> {
        match selector {
            Selector::Latest(n) => {
                let mut recorded = (0..self.sessions.len())
                    .rev()
                    .filter(|&i| self.sessions[i].header.kind != SessionKind::Undo);
                let there = recorded.clone().count();
                recorded.nth(*n).ok_or_else(|| match there {
                    0 => Error::not_found("the store has no sessions of this device")
                        .hint("'bdsnap list' shows what there is, and of which devices"),
                    _ => Error::not_found(format!("the device has no session latest~{n}"))
                        .hint(format!("the oldest is latest~{}", there - 1)),
                })
            }
            Selector::Undo => self
                .sessions
                .iter()
                .rposition(|s| s.header.kind == SessionKind::Undo)
                .ok_or_else(|| Error::not_found("the device has no undo session")),
            Selector::Name(name) => {
                let by_name = |s: &Session| {
                    s.dir == *name || text::hex(&s.header.session_id).as_bytes() == name
                };
                if let Some(i) = self.sessions.iter().position(by_name) {
                    return Ok(i);
                }
                let mut like =
                    (0..self.sessions.len()).filter(|&i| self.sessions[i].dir.starts_with(name));
                match (like.next(), like.next()) {
                    (Some(i), None) => Ok(i),
                    (None, _) => Err(Error::not_found(format!(
                        "the device has no session {}",
                        text::escape(name)
                    ))),
                    (Some(_), Some(_)) => Err(Error::new(
                        Kind::Usage,
                        format!("several sessions begin with {}", text::escape(name)),
                    )
                    .hint(candidates(self.sessions.iter().filter(|s| s.dir.starts_with(name))))),
                }
            }
        }
    }

    /// The breaks between the sessions from place `from` on, each with the
    /// place of the later session.
    pub fn breaks(&self, from: usize) -> Vec<(usize, Break)> {
        let place = |i: usize| {
            let (before, after) = (&self.sessions[i - 1], &self.sessions[i]);
            let found = if before.original.is_some() || after.original.is_some() {
                Some(Break::Unlinked)
            } else {
                link(Some(&before.header), &after.header)
            };
            found.map(|b| (i, b))
        };
        (from + 1..self.sessions.len()).filter_map(place).collect()
    }

    /// The newest session.
    pub fn newest(&self) -> Option<&Session> {
        self.sessions.last()
    }
}

/// On what ground a session of the original module is the target's.
pub fn original_ground(matcher: &mut Matcher<'_>, target: &Target, o: &Original) -> Option<Ground> {
    let Some(device) = &o.device else {
        let could_be = target.names().iter().any(|n| o.could_be(n));
        return could_be.then_some(Ground::BaseName);
    };
    matcher.ground(device).or_else(|| {
        let disk = Target::find(&target.disk()?).ok()?;
        Matcher::new(&disk).ground(device).map(|_| Ground::DiskOfPartition)
    })
}

/// Names of sessions, for a message.
pub fn candidates<'a>(sessions: impl Iterator<Item = &'a Session>) -> String {
    let names: Vec<_> = sessions.map(|s| text::escape(&s.dir)).collect();
    format!("choose from: {}", names.join(", "))
}

/// Whether `session` follows `before` without a break.
pub fn link(before: Option<&Header>, session: &Header) -> Option<Break> {
    match session.gap_before {
        Gap::Written => return Some(Break::Written),
        Gap::Unknown => return Some(Break::Unknown),
        Gap::None => {}
    }
    let expected = before.map_or(NO_ID, |b| *b.last_id());
    (session.prev_session_id != expected).then_some(Break::Missing)
}

/// Whether the device is unchanged since the newest session ended, as far as
/// the module knows. `watch`: what it said, `None` if it is not there.
pub fn link_to_now(newest: &Id, watch: Option<&Watch>) -> Option<Break> {
    let Some(watch) = watch else { return Some(Break::Unknown) };
    let has = |flag| watch.flags & flag != 0;
    if has(ioctl::RESTORE_REGISTERED) && has(ioctl::RESTORE_WRITTEN) {
        return Some(Break::Written);
    }
    if !has(ioctl::RESTORE_REGISTERED) || !has(ioctl::RESTORE_WATCHED) || watch.tail == NO_ID {
        return Some(Break::Unknown);
    }
    if watch.tail != *newest {
        return Some(Break::Missing);
    }
    has(ioctl::RESTORE_UNSEEN).then_some(Break::Unseen)
}

/// Whether a session is being recorded now.
pub fn is_live(session: &Session, module: Option<&ModuleStatus>) -> bool {
    module.is_some_and(|m| m.is_recording(&session.header.session_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        assert_eq!(Selector::parse(b"latest"), Selector::Latest(0));
        assert_eq!(Selector::parse(b"latest~3"), Selector::Latest(3));
        for name in [&b"latest~x"[..], b"latest_20261120T235959Z", b"latest~99999999999999999999"] {
            assert_eq!(Selector::parse(name), Selector::Name(name.to_vec()));
        }
    }

    #[test]
    fn links() {
        let (mut a, mut b) = (Header::new(), Header::new());
        a.session_id = [1; 16];
        b.prev_session_id = [1; 16];
        assert_eq!(link(Some(&a), &b), None);
        assert_eq!(link(None, &a), None, "the first of all");
        assert_eq!(link(None, &b), Some(Break::Missing));
        a.session_id = [2; 16];
        assert_eq!(link(Some(&a), &b), Some(Break::Missing));
        (a.merged_id, a.merged_seq) = ([1; 16], 5);
        assert_eq!(link(Some(&a), &b), None, "what was in between is part of a");
        b.gap_before = Gap::Written;
        assert_eq!(link(Some(&a), &b), Some(Break::Written));
        b.gap_before = Gap::Unknown;
        assert_eq!(link(Some(&a), &b), Some(Break::Unknown));
    }

    #[test]
    fn link_of_now() {
        use ioctl::{RESTORE_REGISTERED as R, RESTORE_WATCHED as W, RESTORE_WRITTEN as X};
        let newest = [1; 16];
        let now = |flags, tail| link_to_now(&newest, Some(&Watch { flags, tail }));
        assert_eq!(now(R | W, newest), None);
        assert_eq!(now(R | W | X, newest), Some(Break::Written));
        assert_eq!(now(R, newest), Some(Break::Unknown));
        assert_eq!(now(W, newest), Some(Break::Unknown));
        assert_eq!(now(0, newest), Some(Break::Unknown));
        assert_eq!(now(R | W, NO_ID), Some(Break::Unknown));
        assert_eq!(now(R | W, [2; 16]), Some(Break::Missing));
        let unseen = ioctl::RESTORE_UNSEEN;
        assert_eq!(now(R | W | unseen, newest), Some(Break::Unseen));
        assert_eq!(now(R | W | X | unseen, newest), Some(Break::Written), "that is known");
        assert_eq!(now(R | unseen, newest), Some(Break::Unknown));
        assert_eq!(now(R | W | unseen, [2; 16]), Some(Break::Missing));
        assert_eq!(link_to_now(&newest, None), Some(Break::Unknown));
    }
}
