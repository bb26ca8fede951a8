// SPDX-License-Identifier: GPL-2.0

//! Checks passwords, slowly on purpose.

use crate::core_state::core;
use crate::pure::guard::{Admission, Guard};
use crate::pure::secret::Secret;
use crate::sys;
use ::core::sync::atomic::Ordering;
use kernel::prelude::*;

/// How long a caller sleeps before it asks again whether it is its turn.
const TURN_MS: u64 = 20;

/// The secret, and what wrong passwords have cost so far.
pub(crate) struct Auth {
    secret: Option<Secret>,
    guard: Guard,
    busy: bool,
}

impl Auth {
    /// No secret: every check is refused.
    pub(crate) fn new() -> Self {
        Self { secret: None, guard: Guard::new(), busy: false }
    }

    /// Takes the secret, at the hand-over.
    pub(crate) fn set(&mut self, secret: Secret) {
        self.secret = Some(secret);
    }
}

/// Gives the turn back.
struct Turn;

impl Drop for Turn {
    fn drop(&mut self) {
        core().auth.lock().busy = false;
    }
}

/// Checks a password. EACCES: wrong, or there is no secret; EAGAIN: too many
/// failures lately; EINTR: the caller is being killed. One check at a time;
/// no lock is held while it runs or waits.
pub(crate) fn check(password: &[u8]) -> Result {
    let auth = &core().auth;
    let secret = loop {
        let mut a = auth.lock();
        let Some(secret) = a.secret.clone() else {
            drop(a);
            pr_warn!("no secret was handed over: control is refused\n");
            return Err(EACCES);
        };
        if !a.busy {
            match a.guard.admit(sys::now_boot_ns() / 1_000_000) {
                Admission::Wait(0) => {
                    a.busy = true;
                    break secret;
                }
                Admission::Wait(ms) => {
                    drop(a);
                    sys::sleep_killable(ms.min(1000))?;
                    continue;
                }
                Admission::Refused(_) => return Err(EAGAIN),
            }
        }
        drop(a);
        sys::sleep_killable(TURN_MS)?;
    };
    let turn = Turn;
    let hash = sys::pbkdf2(password, secret.salt(), secret.iterations)?;
    let right = sys::equal_ct(&hash, &secret.hash);
    let mut a = auth.lock();
    if right {
        a.guard.succeeded();
    } else {
        let penalty = a.guard.failed(sys::now_boot_ns() / 1_000_000);
        core().auth_failures.fetch_add(1, Ordering::Relaxed);
        sys::log_wrong_password(penalty);
    }
    drop(a);
    drop(turn);
    if right {
        Ok(())
    } else {
        Err(EACCES)
    }
}
