// SPDX-License-Identifier: GPL-2.0

//! What differs in the `kernel` crates of the versions that the module is
//! built for, in ways that serve all of them. What differs in C is in
//! `shim.c`. Errors that 7.2 does not name are made with [`errno`].

use crate::control::ControlDevice;
use ::core::borrow::Borrow;
use kernel::bindings;
use kernel::error::to_result;
use kernel::miscdevice::{MiscDeviceOptions, MiscDeviceRegistration};
use kernel::prelude::*;

/// An error by its number. Before 7.3 `kernel::error::code` lacks
/// ENAMETOOLONG, ECANCELED, EALREADY and more.
pub(crate) fn errno(e: u32) -> Error {
    Error::from_errno(-(e as i32))
}

/// A parameter's value, which `value()` returns itself or, before 7.3, by
/// reference.
pub(crate) fn number(value: impl Borrow<u32>) -> u32 {
    *value.borrow()
}

const DEVICE: MiscDeviceOptions = MiscDeviceOptions { name: c"bdsnap" };

struct FileOperations(bindings::file_operations);

// SAFETY: Nobody changes them.
unsafe impl Sync for FileOperations {}

/// Before 7.3 the crate leaves their owner empty: the module could be unloaded
/// while `/dev/bdsnap` is open.
static FILE_OPERATIONS: FileOperations = FileOperations(bindings::file_operations {
    owner: (&raw const bindings::__this_module).cast_mut(),
    // SAFETY: `into_raw` points it to a constant.
    ..unsafe { *DEVICE.into_raw::<ControlDevice>().fops }
});

/// Like `MiscDeviceRegistration::register`, with an owner.
pub(crate) fn register_control_device() -> impl PinInit<MiscDeviceRegistration<ControlDevice>, Error>
{
    let init = |slot: *mut MiscDeviceRegistration<ControlDevice>| {
        let device: *mut bindings::miscdevice = slot.cast();
        // SAFETY: The registration is transparent over a `miscdevice`; the slot
        // is for an uninitialised one, which stays there until its destructor
        // has deregistered it.
        unsafe {
            device.write(DEVICE.into_raw::<ControlDevice>());
            (*device).fops = &FILE_OPERATIONS.0;
            to_result(bindings::misc_register(device))
        }
    };
    // SAFETY: Registered, by the type's invariant, if it is `Ok`; else nothing
    // needs to be dropped.
    unsafe { pin_init::pin_init_from_closure(init) }
}
