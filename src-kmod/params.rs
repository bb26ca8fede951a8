// SPDX-License-Identifier: GPL-2.0

//! The module's parameters, checked and with their defaults worked out.

use crate::compat::number;
use crate::module_parameters as raw;
use crate::pure::format::{chunk_size_is_valid, Durability};
use crate::sys;
use kernel::prelude::*;

/// What becomes of a discard of chunks that are not saved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discard {
    /// It is completed without reaching the device.
    Absorb = 0,
    /// The chunks are saved first.
    Copy = 1,
    /// It is passed, and the session is tainted.
    Pass = 2,
}

/// The parameters.
pub(crate) struct Params {
    /// Smallest chunk, in bytes.
    pub(crate) chunk_size: u32,
    /// Default durability.
    pub(crate) durability: Durability,
    /// See [`Discard`].
    pub(crate) discard: Discard,
    /// Longest that a bio may be held.
    pub(crate) hold_timeout_ms: u64,
    /// Bound on memory for pre-images, in bytes.
    pub(crate) mem_limit: u64,
    /// Most bytes to read ahead of a sequential writer; 0: none.
    pub(crate) read_ahead: u64,
    /// Free bytes below which sessions break; `None`: 5 %, at most 1 GiB.
    pub(crate) min_free: Option<u64>,
    /// Time without a write after which a raw session ends; 0: there are none.
    pub(crate) raw_idle_ns: u64,
    /// System call numbers; 0: none.
    pub(crate) sysc_activate: u32,
    /// See `sysc_activate`.
    pub(crate) sysc_deactivate: u32,
    /// For tests: a sum of `SABOTAGE_…`.
    pub(crate) sabotage: u32,
}

/// For tests: the hooks on bios and claims are not installed.
pub(crate) const SABOTAGE_NO_HOLD: u32 = 1;
/// For tests: the first record of each session is not written.
pub(crate) const SABOTAGE_DROP_RECORD: u32 = 2;

/// System calls may only have numbers that no kernel has used for decades, or
/// that are set aside as never to be assigned.
fn number_is_free(nr: u32) -> bool {
    matches!(nr, 0 | 156 | 174 | 177 | 178 | 180..=185 | 387..=423)
}

fn bad<T>(name: &str, value: u64) -> Result<T> {
    pr_err!("parameter {} cannot be {}\n", name, value);
    Err(EINVAL)
}

impl Params {
    /// Reads and checks them.
    pub(crate) fn read() -> Result<Self> {
        let chunk_size = number(raw::chunk_size.value());
        if !chunk_size_is_valid(chunk_size) {
            return bad("chunk_size", chunk_size.into());
        }
        let durability = match number(raw::durability.value()) {
            1 => Durability::Strict,
            2 => Durability::Async,
            v => return bad("durability", v.into()),
        };
        let discard = match number(raw::discard.value()) {
            0 => Discard::Absorb,
            1 => Discard::Copy,
            2 => Discard::Pass,
            v => return bad("discard", v.into()),
        };
        let hold_timeout_ms: u64 = number(raw::hold_timeout_ms.value()).into();
        if !(100..=3_600_000).contains(&hold_timeout_ms) {
            return bad("hold_timeout_ms", hold_timeout_ms);
        }
        let mib: u64 = number(raw::mem_limit_mib.value()).into();
        let mem_limit = match mib {
            0 => (64 << 20).min(sys::total_ram() / 16).max(2 << 20),
            1..=65_536 => mib << 20,
            _ => return bad("mem_limit_mib", mib),
        };
        let read_ahead = match number(raw::read_ahead_kib.value()) {
            // What is read ahead must leave room for what is needed at once.
            kib @ 0..=1_048_576 => (u64::from(kib) << 10).min(mem_limit / 4),
            kib => return bad("read_ahead_kib", kib.into()),
        };
        let min_free = match number(raw::min_free_mib.value()) {
            u32::MAX => None,
            v => Some(u64::from(v) << 20),
        };
        let raw_idle_ns = match number(raw::raw_idle_s.value()) {
            s @ 0..=86_400 => u64::from(s) * 1_000_000_000,
            s => return bad("raw_idle_s", s.into()),
        };
        let (sysc_activate, sysc_deactivate) =
            (number(raw::sysc_activate.value()), number(raw::sysc_deactivate.value()));
        if !number_is_free(sysc_activate) {
            return bad("sysc_activate", sysc_activate.into());
        }
        if !number_is_free(sysc_deactivate)
            || (sysc_deactivate == sysc_activate && sysc_activate != 0)
        {
            return bad("sysc_deactivate", sysc_deactivate.into());
        }
        let sabotage = number(raw::sabotage.value());
        if sabotage != 0 {
            pr_warn!("sabotage={}: for tests only, nothing is protected\n", sabotage);
        }
        Ok(Self {
            chunk_size,
            durability,
            discard,
            hold_timeout_ms,
            mem_limit,
            read_ahead,
            min_free,
            raw_idle_ns,
            sysc_activate,
            sysc_deactivate,
            sabotage,
        })
    }
}
