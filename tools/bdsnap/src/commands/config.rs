// SPDX-License-Identifier: GPL-2.0

//! `bdsnap config show`.

use bdsnap_cli::{Common, Done};
use bdsnap_core::policy::Policies;
use bdsnap_core::settings::{Settings, COMMAND_LINE};
use bdsnap_core::Error;
use serde_json::{json, Value};

use crate::ConfigShow;

pub(crate) fn show(common: &Common, args: &ConfigShow) -> Result<Done, Error> {
    let mut settings = Settings::read(&args.config_dir)?;
    if let Some(store) = &common.store {
        settings.set_store(store.clone(), COMMAND_LINE);
    }
    if args.what.is_some() {
        // For scripts: as it is (TOML is UTF-8, so nothing gets lost).
        bdsnap_cli::print(&format!("{}\n", settings.store.display()))?;
        return Ok(Done::OK);
    }
    let policies = Policies::read(&args.config_dir)?;
    if args.json {
        let prune = policies.in_force().into_iter().map(|(key, value)| {
            let key = format!("prune.{key}");
            json!({ "key": key, "value": value.text, "source": value.source })
        });
        let own = settings.values().into_iter();
        let own =
            own.map(|(key, value, source)| json!({ "key": key, "value": value, "source": source }));
        let values: Vec<Value> = own.chain(prune).collect();
        bdsnap_cli::print_json(&json!({ "schema_version": 1, "values": values }))?;
        return Ok(Done::OK);
    }
    bdsnap_cli::print(&format!("{}\n{}", settings.document(), policies.document()))?;
    Ok(Done::OK)
}
