// SPDX-License-Identifier: GPL-2.0

//! bdsnap: keeps what a mounted device held before.
//!
//! | file | what it does |
//! |---|---|
//! | `control` | `/dev/bdsnap` and the system calls |
//! | `auth` | passwords |
//! | `registry` | which devices are registered, and where they are |
//! | `claim` | filesystems take and give back devices: sessions start and end |
//! | `hook` | where the kernel's paths meet ours |
//! | `session` | a session's state and queues |
//! | `reader`, `writer`, `releaser` | a held write's way, in this order |
//! | `budget` | the bound on memory |
//! | `store` | the files under /snapshot |
//! | `look` | names, looked up by a worker with a limit on time |
//! | `pure/` | formats and logic, shared with the tools and tested without a kernel |
//! | `compat` | what differs between kernel versions, in Rust |
//! | `sys`, `shim.c` | the border to C |

mod auth;
mod budget;
mod claim;
mod compat;
mod control;
mod core_state;
mod hook;
mod image;
mod lifecycle;
mod live;
mod look;
mod origin;
mod params;
mod raw;
mod reader;
mod registry;
mod releaser;
mod session;
mod stack;
mod store;
mod syncer;
mod sys;
mod tell;
mod writer;

#[path = "pure/mod.rs"]
#[allow(dead_code, unreachable_pub)] // For the tools it is a crate of its own.
mod pure;

use control::ControlDevice;
use kernel::miscdevice::MiscDeviceRegistration;
use kernel::prelude::*;

module! {
    type: Bdsnap,
    name: "bdsnap",
    authors: ["The bdsnap authors"],
    description: "Keeps what mounted block devices held before",
    license: "GPL v2",
    params: {
        chunk_size: u32 {
            default: 4096,
            description: "Unit of copying in bytes: a power of two, 4096 to 65536",
        },
        durability: u32 {
            default: 1,
            description: "1: writes wait until pre-images are durable (strict); 2: until they are in memory (async)",
        },
        discard: u32 {
            default: 0,
            description: "Discards of unsaved blocks: 0 absorb, 1 copy, 2 pass",
        },
        hold_timeout_ms: u32 {
            default: 20000,
            description: "Longest that a write is held, in milliseconds; then its session breaks",
        },
        mem_limit_mib: u32 {
            default: 0,
            description: "Memory for pre-images in MiB; 0: 64 or a sixteenth of the memory",
        },
        read_ahead_kib: u32 {
            default: 12288,
            description: "Most that is saved ahead of sequential writes, in KiB, at most a quarter of mem_limit_mib; 0: nothing",
        },
        min_free_mib: u32 {
            default: 4294967295,
            description: "Free space in the store in MiB below which sessions break; default 5 %, at most 1 GiB",
        },
        raw_idle_s: u32 {
            default: 10,
            description: "Seconds without a write after which a raw session ends; 0: no raw sessions",
        },
        sysc_activate: u32 {
            default: 174,
            description: "Number of the system call activate_snapshot; 0: none",
        },
        sysc_deactivate: u32 {
            default: 177,
            description: "Number of the system call deactivate_snapshot; 0: none",
        },
        sabotage: u32 {
            default: 0,
            description: "For tests only: 1 no hooks, 2 drop a record",
        },
    },
}

/// Dropped in the order of the fields: first nobody can ask for anything any
/// more, then the hooks go, then what they work on.
#[pin_data]
struct Bdsnap {
    #[pin]
    control: MiscDeviceRegistration<ControlDevice>,
    system_calls: hook::SystemCalls,
    forget: Forget,
    notifiers: sys::Notifiers,
    watch: sys::Watch,
    core: core_state::Guard,
    bios: sys::BioSets,
    farewell: Farewell,
}

/// Drops all registrations and the hooks on bios and claims.
struct Forget;

impl Drop for Forget {
    fn drop(&mut self) {
        control::forget_all();
    }
}

/// The last word.
struct Farewell;

impl Drop for Farewell {
    fn drop(&mut self) {
        hook::log_live();
    }
}

impl kernel::InPlaceModule for Bdsnap {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // Initialised from the bottom up.
            farewell: Farewell,
            bios: sys::BioSets::new()?,
            core: core_state::Guard::new()?,
            watch: sys::Watch::new(hook::ticks(core_state::core().params.hold_timeout_ms).0)?,
            notifiers: sys::Notifiers::new()?,
            forget: Forget,
            system_calls: hook::SystemCalls::new(),
            control <- compat::register_control_device(),
            _: { core_state::core().set_device(control.as_raw()) },
        })
    }
}
