// SPDX-License-Identifier: GPL-2.0

//! One file a command.

pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod init;
pub(crate) mod list;
pub(crate) mod passwd;
pub(crate) mod reload;
pub(crate) mod status;
pub(crate) mod verify;
