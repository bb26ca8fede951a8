// SPDX-License-Identifier: GPL-2.0

//! `bdsnap passwd`, and how all commands get a password.

use std::fs::File;
use std::io::IsTerminal;

use bdsnap_cli::{Common, Done};
use bdsnap_core::config::{check_password, read_password, Config};
use bdsnap_core::{text, Error, Kind};
use zeroize::Zeroizing;

use crate::{Passwd, Password};

pub(crate) fn run(common: &Common, args: &Passwd) -> Result<Done, Error> {
    let config = Config::new(&args.config_dir);
    let password = match given(&args.password)? {
        Some(p) => p,
        None => {
            let first = ask("New password")?;
            check_password(&first)?;
            if *ask("The same again")? != *first {
                return Err(Error::other("the two passwords differ; nothing was changed"));
            }
            first
        }
    };
    config.set_password(&password)?;
    common.say(&format!(
        "wrote {}; the password is effective when the module is loaded the next time",
        text::path(&config.secret_path())
    ));
    Ok(Done::OK)
}

/// The password for a registration: from where the options say, or asked for.
pub(crate) fn get(args: &Password) -> Result<Zeroizing<Vec<u8>>, Error> {
    match given(args)? {
        Some(p) => Ok(p),
        None => {
            let password = ask("Password")?;
            check_password(&password)?;
            Ok(password)
        }
    }
}

fn given(args: &Password) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    if args.password_stdin {
        return read_password(std::io::stdin().lock()).map(Some);
    }
    let Some(path) = &args.password_file else { return Ok(None) };
    let file = File::open(path)
        .map_err(|e| Error::io(format_args!("cannot open {}", text::path(path)), &e))?;
    read_password(file).map(Some)
}

fn ask(prompt: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(
            Kind::Usage,
            "a password is needed, and there is no terminal to ask on",
        )
        .hint("use --password-file or --password-stdin"));
    }
    let typed = dialoguer::Password::new()
        .with_prompt(prompt)
        .allow_empty_password(true)
        .report(false)
        .interact()
        .map_err(|dialoguer::Error::IO(e)| Error::io("cannot read the password", &e))?;
    Ok(Zeroizing::new(typed.into_bytes()))
}
