// SPDX-License-Identifier: GPL-2.0

//! `bdsnap hold`, `release`, `tag` and `untag`.

use bdsnap_cli::{Common, Done};
use bdsnap_core::store::Store;
use bdsnap_core::{notes, select, text, Error};

use crate::{Hold, TagArgs};

pub(crate) fn hold(common: &Common, args: &Hold) -> Result<Done, Error> {
    let store = Store::open(&common.store())?;
    let session = select::session(&store, &args.session)?;
    let name = text::escape(&session.dir);
    if notes::hold(&store, &session, &args.name)? {
        common.say(&format!("{name} is held: {}", args.name));
    } else {
        common.say(&format!("{name} was held already: {}", args.name));
    }
    Ok(Done::OK)
}

pub(crate) fn release(common: &Common, args: &Hold) -> Result<Done, Error> {
    let store = Store::open(&common.store())?;
    let session = select::session(&store, &args.session)?;
    let (name, hold) = (text::escape(&session.dir), text::escape(args.name.as_bytes()));
    if !notes::release(&store, &session, &args.name)? {
        return Err(Error::not_found(format!("{name} has no hold {hold}")));
    }
    let rest = notes::holds(&session.path)?.len() as u64;
    let still =
        if rest > 0 { format!(" ({} left)", text::count(rest, "hold")) } else { String::new() };
    common.say(&format!("{name} is released: {hold}{still}"));
    Ok(Done::OK)
}

pub(crate) fn tag(common: &Common, args: &TagArgs) -> Result<Done, Error> {
    let store = Store::open(&common.store())?;
    let session = select::session(&store, &args.session)?;
    let added = notes::tag(&store, &session, &args.tag)?;
    let word = if added { "now" } else { "already" };
    common.say(&format!("{} is {word} tagged {}", text::escape(&session.dir), args.tag));
    Ok(Done::OK)
}

pub(crate) fn untag(common: &Common, args: &TagArgs) -> Result<Done, Error> {
    let store = Store::open(&common.store())?;
    let session = select::session(&store, &args.session)?;
    let (name, tag) = (text::escape(&session.dir), text::escape(args.tag.as_bytes()));
    if !notes::untag(&store, &session, &args.tag)? {
        return Err(Error::not_found(format!("{name} has no tag {tag}")));
    }
    common.say(&format!("{name} is no longer tagged {tag}"));
    Ok(Done::OK)
}
