// SPDX-License-Identifier: GPL-2.0

//! `bdsnap config show`.

use bdsnap_cli::Done;
use bdsnap_core::settings::{self, Settings};
use bdsnap_core::{text, Error};

use crate::ConfigShow;

pub(crate) fn show(args: &ConfigShow) -> Result<Done, Error> {
    let settings = Settings::read(&args.config_dir)?;
    if args.what.is_some() {
        // For scripts: as it is (TOML is UTF-8, so nothing gets lost).
        bdsnap_cli::print(&format!("{}\n", settings.store.display()))?;
        return Ok(Done::OK);
    }
    let file = args.config_dir.join(settings::FILE);
    let state = if file.exists() { "" } else { " (there is none)" };
    let head = format!("# {}{state}; what is commented out is the default\n", text::path(&file));
    bdsnap_cli::print(&(head + &settings.document()))?;
    Ok(Done::OK)
}
