// SPDX-License-Identifier: GPL-2.0

//! `bdsnap init`.

use bdsnap_cli::{Common, Done};
use bdsnap_core::store::{Init, Store};
use bdsnap_core::{text, Error};

pub(crate) fn run(common: &Common) -> Result<Done, Error> {
    let path = common.store();
    let (store, init) = Store::init(&path)?;
    let what = match init {
        Init::Created => "made the store",
        Init::Existed => "there is a store already",
    };
    common.say(&format!("{what}: {} (id {})", text::path(store.path()), text::hex(&store.id())));
    Ok(Done::OK)
}
