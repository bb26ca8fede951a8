// SPDX-License-Identifier: GPL-2.0

//! `--json-lines`: how far it is, for machines.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use bdsnap_core::progress::Progress;
use serde_json::json;

/// At least so long between two lines of a phase.
const PACE: Duration = Duration::from_millis(500);

/// Prints a line of JSON now and then, and at each phase's begin and end.
pub(crate) struct Lines {
    phase: RefCell<String>,
    done: Cell<u64>,
    total: Cell<u64>,
    begun: Cell<Instant>,
    last: Cell<Instant>,
}

impl Lines {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            phase: RefCell::default(),
            done: Cell::new(0),
            total: Cell::new(0),
            begun: Cell::new(now),
            last: Cell::new(now),
        }
    }

    fn line(&self) {
        self.last.set(Instant::now());
        // A reader that went away is noticed at the end.
        let _ = print(&json!({
            "type": "progress",
            "phase": *self.phase.borrow(),
            "done": self.done.get(),
            "total": self.total.get(),
            "seconds": self.begun.get().elapsed().as_secs_f64(),
        }));
    }
}

impl Progress for Lines {
    fn phase(&self, name: &str, total: u64) {
        name.clone_into(&mut self.phase.borrow_mut());
        self.done.set(0);
        self.total.set(total);
        self.begun.set(Instant::now());
        self.line();
    }

    fn advance(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        if self.last.get().elapsed() >= PACE {
            self.line();
        }
    }

    fn finish(&self) {
        self.line();
    }
}

/// Prints one line.
pub(crate) fn print(value: &serde_json::Value) -> Result<(), bdsnap_core::Error> {
    bdsnap_cli::print(&format!("{value}\n"))
}
