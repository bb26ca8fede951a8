// SPDX-License-Identifier: GPL-2.0

//! What the tools of bdsnap do. This library does the work and prints
//! nothing; the front ends ask and tell.
//!
//! | module | content |
//! |---|---|
//! | [`store`] | the store: marker, chain tails, its sessions |
//! | [`session`] | one session: state, records, checksums |
//! | [`original`] | sessions of the original module |
//! | [`device`] | which device is meant, whether it is free |
//! | [`identity`] | what a device is besides its name |
//! | [`chain`] | a device's sessions in order, and gaps between them |
//! | [`plan`] | the past composed from several sessions (pure) |
//! | [`restore`] | planning and doing a restore |
//! | [`writer`] | making a session (undo) |
//! | [`module`] | the control device of the kernel module |
//! | [`config`] | secret and device list in `/etc/bdsnap` |
//! | [`settings`] | `/etc/bdsnap/bdsnap.toml` |
//! | [`kernels`] | which kernels have the module, and why others don't |
//! | [`text`] | names, sizes and times for people |

pub mod chain;
pub mod config;
mod dats;
pub mod device;
pub mod error;
pub mod files;
pub mod fsutil;
pub mod identity;
pub mod inspect;
pub mod kernels;
mod map;
pub mod merge;
pub mod module;
pub mod notes;
pub mod original;
pub mod plan;
pub mod policy;
pub mod progress;
pub mod prune;
pub mod restore;
pub mod retention;
pub mod select;
pub mod session;
pub mod settings;
pub mod store;
mod sys;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod text;
pub mod trash;
pub mod view;
pub mod writer;

pub use bdsnap_abi as abi;
pub use error::{Error, Kind, Result};
