// SPDX-License-Identifier: GPL-2.0

//! Man pages and completions, made from what the programs know of themselves.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

/// The argument, for the build of packages only, that comes before a folder.
const ARGUMENT: &str = "--write-docs-to";

/// Writes the man pages and completions of a program, if its arguments say so;
/// then returns its exit status.
pub fn asked_for<C: CommandFactory>() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT {
        return None;
    }
    let written = args.next().map(|dir| write(C::command(), Path::new(&dir)));
    let Some(Err(e)) = written else { return Some(ExitCode::SUCCESS) };
    crate::complain(&e.to_string());
    Some(ExitCode::FAILURE)
}

fn write(mut command: Command, dir: &Path) -> io::Result<()> {
    command.build();
    pages(&command, command.get_name(), dir)?;
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, dir)?;
    }
    Ok(())
}

/// A page for a command, and one for each below it.
fn pages(command: &Command, name: &str, dir: &Path) -> io::Result<()> {
    let page = command.clone().name(name.to_owned()).display_name(name.to_owned());
    let man = clap_mangen::Man::new(page).section("8").manual("bdsnap");
    man.render(&mut File::create(dir.join(format!("{name}.8")))?)?;
    for below in command.get_subcommands().filter(|c| c.get_name() != "help" && !c.is_hide_set()) {
        pages(below, &format!("{name}-{}", below.get_name()), dir)?;
    }
    Ok(())
}
