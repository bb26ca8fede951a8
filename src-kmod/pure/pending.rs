// SPDX-License-Identifier: GPL-2.0

//! Where in a ring the runs of chunks are that are on their way to the store.
//!
//! A hash table over groups of chunks, chained through the ring's places. The
//! ring is a queue and a new run goes to the end of its chain, so the oldest run
//! of all is the first of its own: taking it out needs no search.

use super::plan::Chunks;
use super::queue::Index;
use core::ops::DerefMut;

/// Places of the ring.
pub const PLACES: usize = 2048;
/// Chunks of a group. No run is longer ([`super::plan::Geometry::run_max`]), so
/// none is in more than two groups.
pub const GROUP: u64 = 256;
const BUCKETS: usize = 512;
/// Numbers that the caller keeps for it.
pub const LINKS: usize = 2 * BUCKETS + 2 * PLACES;
const NONE: u16 = u16::MAX;

/// The table, over [`LINKS`] numbers that somebody else keeps.
///
/// # Invariants
///
/// First each bucket's first node, then each one's last, then each node's next.
/// Node `2 * place` is of the first group of the run at `place`, `2 * place + 1`
/// of its second, if it has one.
pub struct Pending<S> {
    links: S,
}

fn groups(run: &Chunks) -> core::ops::RangeInclusive<u64> {
    run.start / GROUP..=run.end.saturating_sub(1).max(run.start) / GROUP
}

fn bucket(group: u64) -> usize {
    (group % BUCKETS as u64) as usize
}

const LASTS: usize = BUCKETS;
const NEXTS: usize = 2 * BUCKETS;

impl<S: DerefMut<Target = [u16]>> Pending<S> {
    /// An empty one; `None` if `links` are not [`LINKS`].
    pub fn new(mut links: S) -> Option<Self> {
        if links.len() != LINKS {
            return None;
        }
        links.fill(NONE);
        Some(Self { links })
    }
}

impl<S: DerefMut<Target = [u16]>> Index for Pending<S> {
    fn push(&mut self, place: usize, run: &Chunks) {
        for (i, group) in groups(run).take(2).enumerate() {
            let (node, b) = (2 * place + i, bucket(group));
            self.links[NEXTS + node] = NONE;
            match self.links[LASTS + b] {
                NONE => self.links[b] = node as u16,
                last => self.links[NEXTS + usize::from(last)] = node as u16,
            }
            self.links[LASTS + b] = node as u16;
        }
    }

    fn pop(&mut self, place: usize, run: &Chunks) {
        for (i, group) in groups(run).take(2).enumerate() {
            let (node, b) = (2 * place + i, bucket(group));
            debug_assert_eq!(usize::from(self.links[b]), node);
            self.links[b] = self.links[NEXTS + node];
            if self.links[b] == NONE {
                self.links[LASTS + b] = NONE;
            }
        }
    }

    /// `range` is no longer than a group.
    fn first(
        &self,
        range: &Chunks,
        run_of: impl Fn(usize) -> Option<Chunks>,
    ) -> Option<(usize, Chunks)> {
        let mut first: Option<(usize, Chunks)> = None;
        for group in groups(range) {
            let mut node = self.links[bucket(group)];
            while node != NONE {
                let place = usize::from(node) / 2;
                if let Some(run) = run_of(place) {
                    if run.start < range.end
                        && run.end > range.start
                        && first.is_none_or(|(_, f)| run.start < f.start)
                    {
                        first = Some((place, run));
                    }
                }
                node = self.links[NEXTS + usize::from(node)];
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn too_few_links() {
        assert!(Pending::new(vec![0u16; LINKS - 1]).is_none());
    }

    proptest! {
        /// Against a search of the whole queue. Groups collide, since chunks are
        /// far apart in multiples of the buckets.
        #[test]
        fn like_a_naive_queue(ops in prop::collection::vec(
            (0u64..3, 0u64..600, 1u64..=GROUP, any::<bool>()), 1..400)) {
            let mut index = Pending::new(vec![0u16; LINKS]).unwrap();
            let mut places = vec![None; PLACES];
            let (mut queue, mut next) = (VecDeque::<(usize, Chunks)>::new(), PLACES - 3);
            for (far, near, len, pop) in ops {
                let start = far * GROUP * BUCKETS as u64 + near;
                let run = Chunks { start, end: start + len };
                let mut hits: Vec<(usize, Chunks)> = queue
                    .iter()
                    .copied()
                    .filter(|(_, r)| r.start < run.end && r.end > run.start)
                    .collect();
                hits.sort_by_key(|(_, r)| r.start);
                prop_assert_eq!(index.first(&run, |p| places[p]), hits.first().copied());
                if pop {
                    if let Some((place, run)) = queue.pop_front() {
                        index.pop(place, &run);
                        places[place] = None;
                    }
                } else if hits.is_empty() {
                    let place = next % PLACES;
                    next += 1;
                    index.push(place, &run);
                    places[place] = Some(run);
                    queue.push_back((place, run));
                }
            }
            while let Some((place, run)) = queue.pop_front() {
                index.pop(place, &run);
            }
            prop_assert!(index.links[..NEXTS].iter().all(|&l| l == NONE));
        }
    }
}
