// SPDX-License-Identifier: GPL-2.0

//! One file a command.

pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod deep;
pub(crate) mod files;
pub(crate) mod hold;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod metrics;
pub(crate) mod passwd;
pub(crate) mod reload;
pub(crate) mod status;
pub(crate) mod verify;
pub(crate) mod view;
