// SPDX-License-Identifier: GPL-2.0

//! Does KASAN watch Rust code? Reads memory that is freed.

use kernel::prelude::*;

module! {
    type: Provoke,
    name: "provoke_rust",
    authors: ["The bdsnap authors"],
    description: "provokes a complaint of the kernel",
    license: "GPL v2",
}

struct Provoke;

impl kernel::Module for Provoke {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let p = KBox::into_raw(KBox::new([7u8; 64], GFP_KERNEL)?);
        // SAFETY: None: that is the point. The first line is sound.
        let freed = unsafe {
            drop(KBox::from_raw(p));
            p.cast::<u8>().add(8).read_volatile()
        };
        pr_info!("read {}\n", freed);
        Ok(Self)
    }
}
