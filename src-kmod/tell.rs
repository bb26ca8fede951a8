// SPDX-License-Identifier: GPL-2.0

//! Tells people and user space what became of a session.

use crate::core_state::core;
use crate::pure::name::ShortString;
use crate::session::Session;
use crate::sys;
use ::core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::str::{CStr, CString};

/// Tells user space what happened to a session.
pub(crate) fn event(session: &Session, event: &CStr, errno: u32) {
    let device = core().device.load(Ordering::Acquire);
    if device.is_null() {
        return;
    }
    let strings = (|| -> Result<_> {
        let name = printable(&session.name);
        let dir = *session.dir.lock();
        let text = |b| ::core::str::from_utf8(b).unwrap_or("?");
        Ok((
            CString::try_from_fmt(fmt!("{}", text(name.as_bytes())))?,
            CString::try_from_fmt(fmt!("{}", text(dir.as_bytes())))?,
        ))
    })();
    if let Ok((name, dir)) = strings {
        // SAFETY: Registered from load to unload, and this is called from
        // tasks that end before that.
        unsafe { sys::uevent(device, event, &name, &dir, errno as i32) };
    }
}

/// A name for the log: what is not plain ASCII is left out.
fn printable(name: &[u8]) -> ShortString<200> {
    let mut s = ShortString::new();
    for &b in name {
        s.push(&[if b.is_ascii_graphic() { b } else { b'?' }]);
    }
    s
}

/// Says, once, that a session broke.
pub(crate) fn broken(session: &Session) {
    let name = printable(&session.name);
    pr_err!(
        "{}: the session is broken (errno {}, sector {}): writes go on, what they replace is lost\n",
        ::core::str::from_utf8(name.as_bytes()).unwrap_or("?"),
        session.errno(),
        session.broken_sector.load(Ordering::Relaxed)
    );
    event(session, c"broken", session.errno());
}
