// SPDX-License-Identifier: GPL-2.0

//! `--json-lines`: how far it is, for machines.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bdsnap_core::progress::Progress;
use serde_json::{json, Value};

/// At least so long between two lines of a phase.
const PACE: Duration = Duration::from_millis(500);

/// An amount of work.
struct Work {
    done: u64,
    total: u64,
    begun: Instant,
}

impl Work {
    fn of(total: u64) -> Self {
        Self { done: 0, total, begun: Instant::now() }
    }

    /// Seconds that the rest takes if it is as fast as what was done.
    fn eta(&self, now: Instant) -> Option<f64> {
        let took = now.duration_since(self.begun).as_secs_f64();
        let rest = self.total.saturating_sub(self.done);
        (self.done > 0).then(|| took / self.done as f64 * rest as f64)
    }
}

struct State {
    phase: String,
    of_phase: Work,
    /// All phases that were planned.
    of_all: Option<Work>,
    last: Instant,
}

/// Prints a line of JSON now and then, and at each phase's begin and end.
pub(crate) struct Lines(RefCell<State>);

impl Lines {
    pub(crate) fn new() -> Self {
        let last = Instant::now();
        Self(RefCell::new(State {
            phase: String::new(),
            of_phase: Work::of(0),
            of_all: None,
            last,
        }))
    }
}

impl State {
    fn line(&mut self) {
        let now = Instant::now();
        self.last = now;
        // A reader that went away is noticed at the end.
        let _ = print(&self.document(now));
    }

    fn document(&self, now: Instant) -> Value {
        let phase = &self.of_phase;
        let took = now.duration_since(phase.begun).as_secs_f64();
        json!({
            "type": "progress",
            "schema_version": 1,
            "phase": self.phase,
            "done": phase.done,
            "total": phase.total,
            "seconds": took,
            "bytes_per_second": (took > 0.0).then(|| (phase.done as f64 / took) as u64),
            "all_done": self.of_all.as_ref().map(|w| w.done),
            "all_total": self.of_all.as_ref().map(|w| w.total),
            "eta_seconds": self.of_all.as_ref().unwrap_or(phase).eta(now),
        })
    }

    fn is_planned(&self) -> bool {
        self.of_all.as_ref().is_some_and(|all| all.done < all.total)
    }
}

impl Progress for Lines {
    fn plan(&self, total: u64) {
        self.0.borrow_mut().of_all = Some(Work::of(total));
    }

    fn phase(&self, name: &str, total: u64) {
        let mut s = self.0.borrow_mut();
        if !s.is_planned() {
            s.of_all = None;
        }
        name.clone_into(&mut s.phase);
        s.of_phase = Work::of(total);
        s.line();
    }

    fn advance(&self, bytes: u64) {
        let mut s = self.0.borrow_mut();
        s.of_phase.done = s.of_phase.done.saturating_add(bytes);
        if let Some(all) = &mut s.of_all {
            all.done = all.done.saturating_add(bytes);
        }
        if s.last.elapsed() >= PACE {
            s.line();
        }
    }

    fn finish(&self) {
        self.0.borrow_mut().line();
    }
}

/// Prints one line.
pub(crate) fn print(value: &Value) -> Result<(), bdsnap_core::Error> {
    bdsnap_cli::print(&format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_all_planned_phases() {
        let now = Instant::now();
        let work = |done, total, ago| Work { done, total, begun: now - Duration::from_secs(ago) };
        let mut s = State {
            phase: "check".into(),
            of_phase: work(100, 100, 2),
            of_all: Some(work(250, 300, 10)),
            last: now,
        };
        let line = s.document(now);
        assert_eq!((&line["bytes_per_second"], &line["all_total"]), (&json!(50), &json!(300)));
        // The phase is over, the work is not.
        assert!((line["eta_seconds"].as_f64().unwrap() - 2.0).abs() < 1e-9, "{line}");
        s.of_all = None;
        assert_eq!(s.document(now)["eta_seconds"], 0.0);
        s.of_phase = work(0, 100, 0);
        assert_eq!(s.document(now)["eta_seconds"], Value::Null);
    }
}
