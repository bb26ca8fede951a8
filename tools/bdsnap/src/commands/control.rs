// SPDX-License-Identifier: GPL-2.0

//! `bdsnap activate`, `deactivate` and `settle`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bdsnap_abi::ioctl::{CONTROL_ABSENT, CONTROL_ALREADY, CONTROL_MOUNTED, MODULE_SECRET};
use bdsnap_cli::{Common, Done};
use bdsnap_core::config::Config;
use bdsnap_core::identity;
use bdsnap_core::module::{self, Control, Module, ModuleStatus};
use bdsnap_core::store::{Init, Store};
use bdsnap_core::{text, Error, Kind};

use super::passwd;
use crate::{Activate, Deactivate, Durability, Registration, Settle, Via};

pub(crate) fn activate(common: &Common, args: &Activate) -> Result<Done, Error> {
    let durability = match args.durability {
        None => 0,
        Some(Durability::Strict) => 1,
        Some(Durability::Async) => 2,
    };
    let registration = &args.registration;
    if durability != 0 && registration.via == Via::Syscall {
        return Err(Error::new(Kind::Usage, "the system call takes no durability"));
    }
    let module = open()?;
    let store = make_store(common, &module)?;
    let flags = control(&module, registration, true, durability)?;
    // Only of this one: another device that is open might be in somebody's way.
    let mut status = module.status()?;
    let own = bdsnap_core::device::absolute(&registration.device);
    status.entries.retain(|r| *r.name == *own.as_os_str().as_bytes());
    identity::note_all(&store, &module, &status);
    let name = text::path(&registration.device);
    let said = if flags & CONTROL_ALREADY != 0 {
        format!("{name} was protected already")
    } else if flags & CONTROL_ABSENT != 0 {
        format!("{name} is not there now; it will be protected when it comes")
    } else {
        format!("{name} is protected from its next mount on")
    };
    common.say(&said);
    if flags & CONTROL_MOUNTED != 0 {
        common.say(&format!(
            "warning: {name} is mounted now: unmount and mount it, until then it is not protected"
        ));
    }
    persist(common, registration, true)
}

pub(crate) fn deactivate(common: &Common, args: &Deactivate) -> Result<Done, Error> {
    let registration = &args.registration;
    let module = open()?;
    let flags = control(&module, registration, false, 0)?;
    let name = text::path(&registration.device);
    common.say(&if flags & CONTROL_ALREADY != 0 {
        format!("{name} was not protected")
    } else if flags & CONTROL_MOUNTED != 0 {
        format!("{name} is in use: its session goes on to its end, then it is protected no longer")
    } else {
        format!("{name} is protected no longer")
    });
    persist(common, registration, false)
}

pub(crate) fn settle(common: &Common, args: &Settle) -> Result<Done, Error> {
    let module = Module::require()?;
    module.settle()?;
    let status = module.status()?;
    if let Ok(store) = Store::open(&store_path(common, &status)) {
        identity::note_all(&store, &module, &status);
    }
    common.say_more("the module looked its devices up again");
    if args.raw {
        module.end_raw()?;
        common.say_more("raw sessions are ended");
    }
    Ok(Done::OK)
}

/// Opens the module, and refuses early if it would refuse all passwords.
fn open() -> Result<Module, Error> {
    let module = Module::open()?.ok_or_else(module::not_loaded)?;
    if module.status()?.head.flags & MODULE_SECRET == 0 {
        return Err(Error::other("the module was given no password to check against").hint(
            "set one with 'bdsnap passwd', then load the module again: modprobe -r bdsnap; \
             modprobe bdsnap",
        ));
    }
    Ok(module)
}

fn control(
    module: &Module,
    args: &Registration,
    activate: bool,
    durability: u32,
) -> Result<u64, Error> {
    let password = passwd::get(&args.password)?;
    let via = match args.via {
        Via::Ioctl => module::Via::Ioctl,
        Via::Syscall => module::Via::Syscall,
    };
    module.control(via, activate, args.device.as_os_str().as_bytes(), &password, durability)
}

fn persist(common: &Common, args: &Registration, keep: bool) -> Result<Done, Error> {
    if !args.persist {
        return Ok(Done::OK);
    }
    let config = Config::new(&args.config_dir);
    let changed = config.persist(&args.device, keep)?;
    let path = text::path(&config.devices_path());
    common.say(&match (keep, changed) {
        (true, true) => format!("added to {path}"),
        (true, false) => format!("is in {path} already"),
        (false, true) => format!("removed from {path}"),
        (false, false) => format!("was not in {path}"),
    });
    Ok(Done::OK)
}

/// Makes the module's store if it is a missing or empty directory. If it
/// cannot be, sessions will break, and that is worth an error now.
fn make_store(common: &Common, module: &Module) -> Result<Store, Error> {
    let status = module.status()?;
    let (store, init) = Store::init(&store_path(common, &status), status.format_version())?;
    if init == Init::Created {
        common.say(&format!("made the store {}", text::path(store.path())));
    }
    Ok(store)
}

/// Where the store is: as given, or as the module was told.
fn store_path(common: &Common, status: &ModuleStatus) -> PathBuf {
    match &common.store {
        Some(p) => p.clone(),
        None => match status.store() {
            b"" => common.store(),
            named => PathBuf::from(OsStr::from_bytes(named)),
        },
    }
}
