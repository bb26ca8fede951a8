// SPDX-License-Identifier: GPL-2.0

//! What the kernel module and the tools must agree on, and the logic that can
//! be tested without a kernel.
//!
//! Plain `core` Rust: nothing here allocates, does I/O or knows `kernel::`.
//! The module includes this folder as a module, the tools as the crate
//! `bdsnap-abi`; there is one source for both sides.
//!
//! | file | content |
//! |---|---|
//! | [`crc`] | CRC-32C in software, for headers and records |
//! | [`mod@format`] | `blocks.map`, the store's marker, the chain's tail |
//! | [`ioctl`] | requests and structures of `/dev/bdsnap` |
//! | [`fs`] | what file system a device holds |
//! | [`meta`] | `meta.json` |
//! | [`name`] | device names, session names, UTC time stamps |
//! | [`secret`] | the line in `/etc/bdsnap/secret` |
//! | [`plan`] | from a bio's sectors to chunks, runs and slices |
//! | [`pending`] | which chunks are on their way to the store |
//! | [`queue`] | what becomes of held bios, and in which order |
//! | [`volume`] | what a registered device is: its place, session, link, restore |
//! | [`saved_set`] | which chunks' pre-images are safe |
//! | [`budget`] | who may have more memory |
//! | [`prefill`] | how far the store's files are filled with zeros before their content comes |
//! | [`ahead`] | what a sequential writer will reach soon |
//! | [`deadline`] | how long the oldest held bio has waited |
//! | [`guard`] | how wrong passwords are slowed down |

pub mod ahead;
pub mod budget;
pub mod crc;
pub mod deadline;
pub mod format;
pub mod fs;
pub mod guard;
pub mod ioctl;
pub mod meta;
pub mod name;
pub mod pending;
pub mod plan;
pub mod prefill;
pub mod queue;
pub mod saved_set;
pub mod secret;
pub mod volume;

/// Bytes of a sector, the block layer's unit whatever the device's own is.
pub const SECTOR: u64 = 512;
