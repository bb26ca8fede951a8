// SPDX-License-Identifier: GPL-2.0

//! `bdsnap init`.

use bdsnap_abi::format::Version;
use bdsnap_cli::{Common, Done};
use bdsnap_core::module::{Control, Module};
use bdsnap_core::store::{Init, Store};
use bdsnap_core::{text, Error};

pub(crate) fn run(common: &Common, args: &crate::Init) -> Result<Done, Error> {
    let path = common.store();
    // A module refuses a store of a version that it does not know.
    let loaded = Module::open()?.map(|module| module.status()).transpose()?;
    let version = loaded.map_or(Version::NEWEST, |status| status.format_version());
    if args.upgrade && version < Version::NEWEST {
        return Err(Error::refused(format!(
            "the module that runs writes version {} of the format, and would refuse the store",
            version as u32
        ))
        .hint("run 'bdsnap reload' first, or restart the machine"));
    }
    let (mut store, init) = Store::init(&path, version)?;
    let what = match init {
        Init::Created => "made the store",
        Init::Existed => "there is a store already",
    };
    common.say(&format!("{what}: {} (id {})", text::path(store.path()), text::hex(&store.id())));
    if args.upgrade {
        let before = store.version() as u32;
        let now = if store.raise(version)? {
            format!("it was of version {before}, and is of version {} now", version as u32)
        } else {
            format!("it is of version {before} already")
        };
        common.say(&now);
    }
    Ok(Done::OK)
}
