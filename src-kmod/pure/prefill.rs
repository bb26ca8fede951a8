// SPDX-License-Identifier: GPL-2.0

//! How far a file of the store is filled with zeros before its content comes.
//!
//! To append to a file and make that durable takes a transaction of the file
//! system's journal: several turns of the disk, one after the other. To write
//! over what is there takes the write and a flush. So a file that grows by a
//! little at a time grows by zeros first, by more than that, and most batches
//! then find their place made. A reader tells zeros from content by the
//! records: none of zeros is valid.

/// Larger batches (bytes) are appended, past the page cache: for them the journal is the smaller
/// part of the cost, and the zeros would be the larger.
pub const MAX_BATCH: u64 = 256 << 10;
/// Fewest zeros of data at a time, in bytes...
pub const MIN_ZEROS: u64 = 64 << 10;
/// ... and most.
pub const MAX_ZEROS: u64 = 4 << 20;

/// One file of the store.
///
/// # Invariants
///
/// All up to `filled` has been written before, and is durable.
#[derive(Debug)]
pub struct Prefill {
    filled: u64,
    /// So many zeros come next.
    next: u64,
    /// The fewest.
    least: u64,
}

impl Prefill {
    /// A file that has `len` bytes, durable, and gets at least so many zeros at a time.
    pub const fn new(len: u64, least: u64) -> Self {
        Self { filled: len, next: 0, least }
    }

    /// Whether a write that ends at `end` (in bytes) only changes what is there.
    pub fn holds(&self, end: u64) -> bool {
        end <= self.filled
    }

    /// How many zeros should follow a batch of `bytes` bytes of data, if this file's
    /// part of it ends at `end`; 0 if it needs none. As long as batches are small, twice
    /// as many each time, so that no more are left over than were of use; none for one among
    /// large ones.
    pub fn zeros(&mut self, bytes: u64, end: u64) -> u64 {
        if bytes > MAX_BATCH {
            self.next = 0;
            return 0;
        }
        if self.holds(end) {
            return 0;
        }
        let zeros = self.next;
        self.next = (zeros * 2).clamp(self.least, MAX_ZEROS);
        zeros
    }

    /// A large batch that ends at `end` was made durable: none of zeros behind it.
    pub fn appended(&mut self, end: u64) {
        self.next = 0;
        self.grown(end);
    }

    /// All up to `end` is durable.
    pub fn grown(&mut self, end: u64) {
        // INVARIANT: So the caller says.
        self.filled = self.filled.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of `bytes`, `n` of them: how many were not in place, and how much the file has at last.
    fn run(bytes: u64, n: u64) -> (u64, u64) {
        let (mut file, mut appended) = (Prefill::new(0, MIN_ZEROS), 0);
        for end in (1..=n).map(|i| i * bytes) {
            if !file.holds(end) {
                appended += 1;
                let zeros = file.zeros(bytes, end);
                file.grown(end + zeros);
                assert!(file.holds(end + zeros) && !file.holds(end + zeros + 1));
            }
            assert!(file.holds(end) && file.zeros(bytes, end) == 0, "once is enough");
        }
        (appended, file.filled)
    }

    #[test]
    fn few_batches_need_the_journal_and_few_zeros_stay() {
        for (bytes, n, most_appended) in [(4096, 4096, 12), (65536, 4096, 72), (64, 65536, 8)] {
            let (appended, filled) = run(bytes, n);
            assert!(appended <= most_appended, "{bytes}: {appended}");
            let end = bytes * n;
            assert!(filled - end <= end.max(MIN_ZEROS), "{bytes}: {filled}");
            assert!(filled - end <= MAX_ZEROS);
        }
    }

    #[test]
    fn large_batches_are_appended_but_may_use_what_is_there() {
        let (appended, filled) = run(MAX_BATCH + 4096, 10);
        assert_eq!((appended, filled), (10, 10 * (MAX_BATCH + 4096)));
        let mut mixed = Prefill::new(0, MIN_ZEROS);
        let small = [(); 4].map(|()| mixed.zeros(4096, 4096));
        assert_eq!(small, [0, MIN_ZEROS, 2 * MIN_ZEROS, 4 * MIN_ZEROS]);
        let then = [MAX_BATCH + 1, 4096, 4096].map(|bytes| mixed.zeros(bytes, 4096));
        assert_eq!(then, [0, 0, MIN_ZEROS]);
        mixed.appended(8 << 20);
        assert!(mixed.holds(8 << 20));
        assert_eq!([(); 2].map(|()| mixed.zeros(4096, 9 << 20)), [0, MIN_ZEROS], "begins anew");
        let mut file = Prefill::new(0, MIN_ZEROS);
        file.grown(4 << 20);
        assert!(file.holds(4 << 20));
        file.grown(1 << 20);
        assert!(file.holds(4 << 20), "it does not shrink");
    }
}
