// SPDX-License-Identifier: GPL-2.0

//! One session of a store, as the user names it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::error::{Error, Kind, Result};
use crate::session::Session;
use crate::store::{Item, Store};
use crate::text;

/// The place of the item with this directory's name, session id, or unique
/// beginning of a name.
///
/// # Errors
///
/// [`Kind::NotFound`], or [`Kind::Usage`] with the candidates.
pub fn place(items: &[Item], name: &OsStr) -> Result<usize> {
    let name = name.as_bytes();
    let id = |i: &Item| match i {
        Item::Session(s) => Some(text::hex(&s.header.session_id)),
        Item::Original(_) | Item::Damaged(_) => None,
    };
    let exact = |i: &Item| i.dir() == name || id(i).is_some_and(|id| id.as_bytes() == name);
    if let Some(i) = items.iter().position(exact) {
        return Ok(i);
    }
    let like: Vec<usize> = (0..items.len()).filter(|&i| items[i].dir().starts_with(name)).collect();
    match like[..] {
        [i] if !name.is_empty() => Ok(i),
        [] => Err(Error::not_found(format!("no session {}", text::escape(name)))
            .hint("'bdsnap list' shows their names")),
        _ => {
            let names: Vec<_> = like.iter().map(|&i| text::escape(items[i].dir())).collect();
            let message = format!("several sessions begin with {}", text::escape(name));
            Err(Error::new(Kind::Usage, message).hint(format!("choose from: {}", names.join(", "))))
        }
    }
}

/// The session of that name.
///
/// # Errors
///
/// As [`place`]; [`Kind::Verification`] for one that cannot be read,
/// [`Kind::Refused`] for one of the original module.
pub fn session(store: &Store, name: &OsStr) -> Result<Session> {
    let mut items = store.items()?;
    let at = place(&items, name)?;
    match items.swap_remove(at) {
        Item::Session(s) => Ok(*s),
        Item::Damaged(d) => Err(Error::new(
            Kind::Verification,
            format!("session {} is damaged: {}", text::escape(&d.dir), d.reason),
        )),
        Item::Original(o) => Err(Error::refused(format!(
            "{} is a session of the original module",
            text::escape(&o.dir)
        ))),
    }
}
