// SPDX-License-Identifier: GPL-2.0

//! What the tools note beside a session's own files: holds, tags, and how its
//! verification went. The module knows nothing of these files.

use std::io;
use std::path::Path;

use bdsnap_abi::format::{DAT_NAME, MAP_NAME, META_NAME};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::session::Session;
use crate::store::Store;

/// Name of the file with a session's holds.
pub const HOLDS_NAME: &str = "holds.json";
/// Name of the file with a session's tags.
pub const TAGS_NAME: &str = "tags.json";
/// Name of the file with the result of its verification.
pub const VERIFIED_NAME: &str = "verified.json";
const NOTE_MAX: usize = 1 << 20;
const NAME_MAX: usize = 100;

/// Somebody wants a session to stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// What it is called.
    pub name: String,
    /// Since when, RFC 3339.
    pub since: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Holds {
    schema_version: u32,
    holds: Vec<Hold>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Tags {
    schema_version: u32,
    tags: Vec<String>,
}

/// How the last verification of a session went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// As [`Hold::since`].
    pub when: String,
    /// No damage was found.
    pub ok: bool,
    /// A file system checker's verdict on the image of its start, if one was
    /// asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deep: Option<String>,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// The status that it is about: newer ones make it void.
    pub generation: u64,
    /// Bytes of `blocks.map` that it is about.
    pub map_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct VerifiedFile {
    schema_version: u32,
    #[serde(flatten)]
    verified: Verified,
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    let bytes = match fsutil::read_small(path, NOTE_MAX) {
        Ok(b) => b,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).on("read", path),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        Error::new(Kind::Verification, format!("{} is damaged: {e}", crate::text::path(path)))
    })
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::other(format!("cannot write {}: {e}", crate::text::path(path))))?;
    text.push('\n');
    fsutil::replace(path, text.as_bytes(), 0o600)
}

/// A session's holds; a file that cannot be read is an error, so that nobody
/// takes it for none.
pub fn holds(session: &Path) -> Result<Vec<Hold>> {
    Ok(read::<Holds>(&session.join(HOLDS_NAME))?.map(|h| h.holds).unwrap_or_default())
}

/// A session's tags.
pub fn tags(session: &Path) -> Result<Vec<String>> {
    Ok(read::<Tags>(&session.join(TAGS_NAME))?.map(|t| t.tags).unwrap_or_default())
}

/// Whether a name may be that of a hold or tag (`what`).
fn check_name(what: &str, name: &str) -> Result<()> {
    let harmless = crate::text::escape(name.as_bytes()) == name && !name.contains(',');
    if name.is_empty() || name.len() > NAME_MAX || !harmless {
        return Err(Error::new(
            Kind::Usage,
            format!("a {what} has 1 to {NAME_MAX} printable characters, no comma or backslash"),
        ));
    }
    Ok(())
}

/// Reads tags that are separated by commas.
pub fn parse_tags(list: &str) -> Result<Vec<String>> {
    list.split(',')
        .map(|tag| check_name("tag", tag.trim()).map(|()| tag.trim().to_owned()))
        .collect()
}

/// Adds a hold. False if there is one of that name.
pub fn hold(store: &Store, session: &Session, name: &str) -> Result<bool> {
    check_name("hold", name)?;
    change_holds(store, session, |holds| {
        let new = holds.iter().all(|h| h.name != name);
        if new {
            holds.push(Hold { name: name.into(), since: crate::text::rfc3339(fsutil::now_ns()) });
        }
        new
    })
}

/// Takes a hold away. False if there is none of that name.
pub fn release(store: &Store, session: &Session, name: &str) -> Result<bool> {
    change_holds(store, session, |holds| {
        let before = holds.len();
        holds.retain(|h| h.name != name);
        holds.len() < before
    })
}

fn change_holds(
    store: &Store,
    session: &Session,
    edit: impl Fn(&mut Vec<Hold>) -> bool,
) -> Result<bool> {
    change(store, session, HOLDS_NAME, holds, edit, |holds| Holds { schema_version: 1, holds })
}

/// Adds a tag. False if there is one of that name.
pub fn tag(store: &Store, session: &Session, name: &str) -> Result<bool> {
    check_name("tag", name)?;
    change_tags(store, session, |tags| {
        let new = tags.iter().all(|t| t != name);
        if new {
            tags.push(name.into());
        }
        new
    })
}

/// Takes a tag away. False if there is none of that name.
pub fn untag(store: &Store, session: &Session, name: &str) -> Result<bool> {
    change_tags(store, session, |tags| {
        let before = tags.len();
        tags.retain(|t| t != name);
        tags.len() < before
    })
}

fn change_tags(
    store: &Store,
    session: &Session,
    edit: impl Fn(&mut Vec<String>) -> bool,
) -> Result<bool> {
    change(store, session, TAGS_NAME, tags, edit, |tags| Tags { schema_version: 1, tags })
}

/// Changes a list in a file of a session; an empty one is no file.
fn change<T, F: Serialize>(
    store: &Store,
    session: &Session,
    file: &str,
    read: impl Fn(&Path) -> Result<Vec<T>>,
    edit: impl Fn(&mut Vec<T>) -> bool,
    document: impl Fn(Vec<T>) -> F,
) -> Result<bool> {
    // Alone: a session that is being removed cannot be changed any more.
    let _alone = store.lock_alone()?;
    let is_there = Session::read(&session.path, &session.dir)
        .is_ok_and(|s| s.header.session_id == session.header.session_id);
    if !is_there {
        let name = crate::text::escape(&session.dir);
        return Err(Error::not_found(format!("session {name} has been removed")));
    }
    let mut list = read(&session.path)?;
    if !edit(&mut list) {
        return Ok(false);
    }
    let path = session.path.join(file);
    if list.is_empty() {
        std::fs::remove_file(&path).on("remove", &path)?;
        fsutil::sync_dir(&session.path)?;
    } else {
        write(&path, &document(list))?;
    }
    Ok(true)
}

/// How a session's last verification went; `None` if it never was, or has
/// changed since.
pub fn verified(session: &Session) -> Option<Verified> {
    let file: VerifiedFile = read(&session.path.join(VERIFIED_NAME)).ok().flatten()?;
    let v = file.verified;
    (v.generation == session.status.generation && v.map_bytes == session.map_bytes).then_some(v)
}

/// Notes how a verification went.
pub fn set_verified(session: &Session, verified: Verified) -> Result<()> {
    write(&session.path.join(VERIFIED_NAME), &VerifiedFile { schema_version: 1, verified })
}

/// A file in a session's directory that is none of ours.
pub fn stranger(session: &Path) -> Result<Option<Vec<u8>>> {
    use std::os::unix::ffi::OsStrExt;
    const OURS: [&str; 6] = [MAP_NAME, DAT_NAME, META_NAME, HOLDS_NAME, TAGS_NAME, VERIFIED_NAME];
    for entry in session.read_dir().on("read", session)? {
        let entry = entry.on("read", session)?;
        let name = entry.file_name();
        let name = name.as_bytes();
        let leftover = name.starts_with(b".") && name.ends_with(b".tmp");
        let file = entry.file_type().is_ok_and(|t| t.is_file());
        let ours = leftover || OURS.iter().any(|o| o.as_bytes() == name);
        if !file || !ours {
            return Ok(Some(name.to_vec()));
        }
    }
    Ok(None)
}
