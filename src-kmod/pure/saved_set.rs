// SPDX-License-Identifier: GPL-2.0

//! A set of chunk numbers that grows while it is read without a lock.
//!
//! Two levels: leaves of [`LEAF_CHUNKS`] bits (4 KiB; 128 MiB of a device in
//! chunks of 4 KiB), made only where the device is touched, and an array of
//! pointers to them. Readers (the hook, in the path of every write) only load.
//! Bits are set and never cleared, leaves are added and never removed, until
//! the whole set is dropped.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Chunks that one leaf covers.
pub const LEAF_CHUNKS: u64 = 32_768;
const WORDS: usize = (LEAF_CHUNKS / 64) as usize;

/// The bits of [`LEAF_CHUNKS`] chunks.
#[repr(transparent)]
pub struct Leaf([AtomicU64; WORDS]);

impl Leaf {
    /// A leaf without a bit.
    pub fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }
}

impl Default for Leaf {
    fn default() -> Self {
        Self::new()
    }
}

/// A place in the array: null until the leaf is needed.
pub type Slot = AtomicPtr<Leaf>;

/// How many slots a device of so many chunks needs; `None` if that is more
/// than memory could hold.
pub fn slots_for(chunks: u64) -> Option<usize> {
    usize::try_from(chunks.div_ceil(LEAF_CHUNKS)).ok().filter(|&n| n <= usize::MAX / 64)
}

/// The set, over slots that somebody else keeps.
///
/// # Invariants
///
/// Each slot is null or points to a leaf that lives as long as `'a`. The owner
/// of the slots puts leaves in with [`SavedSet::install`] and frees them only
/// after the last `SavedSet` over them is gone.
#[derive(Clone, Copy)]
pub struct SavedSet<'a> {
    slots: &'a [Slot],
}

impl<'a> SavedSet<'a> {
    /// A view of `slots`.
    ///
    /// # Safety
    ///
    /// Each non-null slot must point to a valid leaf for all of `'a`.
    pub unsafe fn new(slots: &'a [Slot]) -> Self {
        // INVARIANT: the caller promises it.
        Self { slots }
    }

    fn leaf(&self, chunk: u64) -> Option<&'a Leaf> {
        let slot = self.slots.get(usize::try_from(chunk / LEAF_CHUNKS).ok()?)?;
        // SAFETY: by the type's invariant the pointer is null or valid for
        // `'a`; Acquire pairs with the Release of `install`, so the leaf's
        // zeros are seen before its address.
        unsafe { slot.load(Ordering::Acquire).as_ref() }
    }

    /// Whether `chunk`'s leaf must be made before it can be set.
    pub fn needs_leaf(&self, chunk: u64) -> bool {
        self.leaf(chunk).is_none()
    }

    /// Puts `leaf` in the place for `chunk`. Hands it back if there is one
    /// already or no such place.
    pub fn install(&self, chunk: u64, leaf: *mut Leaf) -> Result<(), *mut Leaf> {
        usize::try_from(chunk / LEAF_CHUNKS)
            .ok()
            .and_then(|i| self.slots.get(i))
            .ok_or(leaf)?
            .compare_exchange(core::ptr::null_mut(), leaf, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
            .map_err(|_| leaf)
    }

    /// Whether `chunk` is in the set.
    pub fn contains(&self, chunk: u64) -> bool {
        self.leaf(chunk).is_some_and(|leaf| {
            let bit = chunk % LEAF_CHUNKS;
            leaf.0[(bit / 64) as usize].load(Ordering::Acquire) & (1 << (bit % 64)) != 0
        })
    }

    /// Whether all chunks from `start` to before `end` are in the set.
    pub fn contains_all(&self, start: u64, end: u64) -> bool {
        self.first(start, end, false).is_none()
    }

    /// The first chunk from `start` to before `end` that is in the set, or
    /// that is not, as `present` says.
    pub fn first(&self, start: u64, end: u64, present: bool) -> Option<u64> {
        let mut at = start;
        while at < end {
            let Some(leaf) = self.leaf(at) else {
                if !present {
                    return Some(at);
                }
                at = (at / LEAF_CHUNKS + 1).checked_mul(LEAF_CHUNKS)?;
                continue;
            };
            let bit = at % LEAF_CHUNKS;
            let word = leaf.0[(bit / 64) as usize].load(Ordering::Acquire);
            let wanted = if present { word } else { !word } & (u64::MAX << (bit % 64));
            let base = at - at % 64;
            if wanted != 0 {
                let hit = base + u64::from(wanted.trailing_zeros());
                return (hit < end).then_some(hit);
            }
            at = base.checked_add(64)?;
        }
        None
    }

    /// Adds the chunks from `start` to before `end`. False if a leaf is
    /// missing; those before it are added all the same.
    pub fn insert(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        while at < end {
            let Some(leaf) = self.leaf(at) else { return false };
            let bit = at % LEAF_CHUNKS;
            let n = (64 - bit % 64).min(end - at);
            let mask = (u64::MAX >> (64 - n)) << (bit % 64);
            leaf.0[(bit / 64) as usize].fetch_or(mask, Ordering::AcqRel);
            at += n;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    struct Owned(Vec<Slot>);

    impl Owned {
        fn new(chunks: u64) -> Self {
            Self((0..slots_for(chunks).unwrap()).map(|_| Slot::default()).collect())
        }
        fn set(&self) -> SavedSet<'_> {
            // SAFETY: leaves come from `Box` and are freed in `drop` only.
            unsafe { SavedSet::new(&self.0) }
        }
        fn insert(&self, start: u64, end: u64) {
            let mut at = start;
            while at < end {
                if self.set().needs_leaf(at) {
                    self.set().install(at, Box::into_raw(Box::new(Leaf::new()))).unwrap();
                }
                at = (at / LEAF_CHUNKS + 1) * LEAF_CHUNKS;
            }
            assert!(self.set().insert(start, end));
        }
    }

    impl Drop for Owned {
        fn drop(&mut self) {
            for slot in &mut self.0 {
                let p = *slot.get_mut();
                if !p.is_null() {
                    // SAFETY: made by `Box::into_raw` above, freed once.
                    drop(unsafe { Box::from_raw(p) });
                }
            }
        }
    }

    #[test]
    fn a_missing_leaf_is_said() {
        let o = Owned::new(LEAF_CHUNKS + 1);
        assert_eq!(o.0.len(), 2);
        assert!(!o.set().insert(0, 1));
        assert!(!o.set().contains(0));
        o.insert(LEAF_CHUNKS - 1, LEAF_CHUNKS + 1);
        assert!(o.set().contains_all(LEAF_CHUNKS - 1, LEAF_CHUNKS + 1));
        assert!(!o.set().contains(2 * LEAF_CHUNKS));
        let extra = Box::into_raw(Box::new(Leaf::new()));
        assert_eq!(o.set().install(0, extra), Err(extra));
        // SAFETY: handed back by the line above.
        drop(unsafe { Box::from_raw(extra) });
    }

    proptest! {
        /// Against a tree of numbers, across words and leaves.
        #[test]
        fn like_a_naive_set(ops in prop::collection::vec((0u64..66_000, 1u64..300), 1..40),
                            probes in prop::collection::vec((0u64..66_500, 0u64..400), 40)) {
            let o = Owned::new(66_500);
            let mut naive = BTreeSet::new();
            for (start, len) in ops {
                let end = (start + len).min(66_500);
                o.insert(start, end);
                naive.extend(start..end);
            }
            for (start, len) in probes {
                let end = (start + len).min(66_500);
                let has = naive.range(start..end.max(start)).next().copied();
                prop_assert_eq!(o.set().first(start, end, true), has);
                let lacks = (start..end).find(|c| !naive.contains(c));
                prop_assert_eq!(o.set().first(start, end, false), lacks);
                prop_assert_eq!(o.set().contains_all(start, end), lacks.is_none());
            }
        }
    }
}
