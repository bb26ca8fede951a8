// SPDX-License-Identifier: GPL-2.0

//! What user space can ask for: the control device's ioctls and the two
//! system calls, which come to the same functions.

use crate::auth;
use crate::compat::errno;
use crate::core_state::{core, Core};
use crate::hook;
use crate::lifecycle;
use crate::live;
use crate::pure::format::{Durability, NO_ID};
use crate::pure::ioctl::*;
use crate::pure::plan::Sectors;
use crate::pure::secret::Secret;
use crate::pure::volume::{self, DiskId, Link, Place};
use crate::registry::{self, Identity, Volume};
use crate::session::{errno_of, Summary};
use crate::stack;
use crate::sys::{self, Dir, NoIo, OpenDisk};
use ::core::cell::Cell;
use ::core::sync::atomic::Ordering;
use kernel::alloc::allocator::{KVmalloc, Kmalloc};
use kernel::alloc::{Allocator, Vec};
use kernel::fs::File;
use kernel::miscdevice::{MiscDevice, MiscDeviceRegistration};
use kernel::prelude::*;
use kernel::str::{CStr, CString};
use kernel::sync::{new_mutex, Arc, Mutex};
use kernel::transmute::{AsBytes, FromBytes};
use kernel::uaccess::{UserPtr, UserSlice};

fn too_long() -> Error {
    errno(kernel::bindings::ENAMETOOLONG)
}

/// A byte string from user space that is overwritten when it is dropped.
struct Password(KVec<u8>);

impl Drop for Password {
    fn drop(&mut self) {
        sys::wipe(&mut self.0);
    }
}

/// `len` bytes from user space, at most `max`.
fn user_bytes<A: Allocator>(addr: u64, len: u64, max: usize) -> Result<Vec<u8, A>> {
    let len = usize::try_from(len).ok().filter(|&n| n <= max).ok_or_else(too_long)?;
    let mut out = Vec::from_elem(0u8, len, GFP_KERNEL)?;
    if len > 0 {
        let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
        UserSlice::new(UserPtr::from_addr(addr), len).reader().read_slice(&mut out)?;
    }
    Ok(out)
}

/// A C string from user space, shorter than `max`.
fn user_string(addr: usize, max: usize) -> Result<KVec<u8>> {
    if addr == 0 {
        return Err(EINVAL);
    }
    let mut out = KVec::from_elem(0u8, max + 1, GFP_KERNEL)?;
    // SAFETY: `out` has so many bytes; the address is checked by the callee.
    let n = unsafe {
        kernel::bindings::strncpy_from_user(
            out.as_mut_ptr().cast(),
            addr as *const _,
            out.len() as isize,
        )
    };
    let n = usize::try_from(n).map_err(|_| Error::from_errno(n as i32))?;
    if n > max {
        sys::wipe(&mut out);
        return Err(too_long());
    }
    out.truncate(n);
    Ok(out)
}

/// The two system calls, in this order: privilege, arguments, password.
pub(crate) fn system_call(on: bool, name: usize, password: usize) -> Result {
    if !sys::is_admin() {
        return Err(EPERM);
    }
    let name = user_string(name, NAME_MAX)?;
    let password = Password(user_string(password, PASSWORD_MAX)?);
    if name.is_empty() {
        return Err(EINVAL);
    }
    auth::check(&password.0)?;
    if on {
        activate_now(&name, None).map(|_| ())
    } else {
        deactivate(&name).map(|_| ())
    }
}

/// A NUL-ended copy; EINVAL for names with a NUL inside.
pub(crate) struct CName(KVec<u8>);

impl CName {
    /// Copies `name`.
    pub(crate) fn new(name: &[u8]) -> Result<Self> {
        if name.contains(&0) {
            return Err(EINVAL);
        }
        let mut v = KVec::with_capacity(name.len() + 1, GFP_KERNEL)?;
        v.extend_from_slice(name, GFP_KERNEL)?;
        v.push(0, GFP_KERNEL)?;
        Ok(Self(v))
    }

    /// As C wants it.
    pub(crate) fn as_c_str(&self) -> Result<&CStr> {
        CStr::from_bytes_with_nul(&self.0).map_err(|_| EINVAL)
    }
}

/// The name from the root on: relative ones count from the caller's working
/// directory. `.` and empty components go; `..` and links stay.
fn absolute(name: &[u8]) -> Result<KVec<u8>> {
    let mut out = KVec::new();
    if name.first() != Some(&b'/') {
        let mut cwd = KVec::from_elem(0u8, 4096, GFP_KERNEL)?;
        sys::cwd(&mut cwd)?;
        let len = cwd.iter().position(|&b| b == 0).unwrap_or(0);
        if len > 1 {
            out.extend_from_slice(&cwd[..len], GFP_KERNEL)?;
        }
    }
    for part in name.split(|&b| b == b'/') {
        if !part.is_empty() && part != b"." {
            out.push(b'/', GFP_KERNEL)?;
            out.extend_from_slice(part, GFP_KERNEL)?;
        }
    }
    if out.is_empty() {
        out.push(b'/', GFP_KERNEL)?;
    }
    if out.len() > NAME_MAX {
        return Err(too_long());
    }
    Ok(out)
}

fn place(dev: u32) -> Result<(Place, OpenDisk)> {
    let (open, info) = OpenDisk::by_devt(dev)?;
    let place = Place {
        id: info.id(),
        sectors: if info.partition != 0 { info.range()? } else { Place::WHOLE },
        major: info.major,
        minor: info.minor,
        logical_block_size: info.logical_block_size,
        partition: info.partition != 0,
    };
    Ok((place, open))
}

/// Where the device of this name is now, looked up in PID 1's root.
pub(crate) fn place_of(name: &[u8]) -> Result<(Place, OpenDisk)> {
    let name = CName::new(name)?;
    let info = sys::name_info(name.as_c_str()?, true, None)?;
    if !info.is_blk {
        return Err(EINVAL);
    }
    place(info.dev)
}

/// What a name stands for.
struct Resolved {
    name: KVec<u8>,
    image: Option<KVec<u8>>,
    found: Option<(Place, OpenDisk)>,
    absent: bool,
}

impl Resolved {
    fn place(&self) -> Option<&Place> {
        self.found.as_ref().map(|(place, _)| place)
    }
}

/// Looks a name up in the caller's view. EINVAL for what is neither a block
/// device nor a regular file; what is absent is fine.
fn resolve(name: &[u8]) -> Result<Resolved> {
    if name.is_empty() {
        return Err(EINVAL);
    }
    let name = absolute(name)?;
    let c_name = CName::new(&name)?;
    let mut canonical = KVec::from_elem(0u8, 4097, GFP_KERNEL)?;
    match sys::name_info(c_name.as_c_str()?, false, Some(&mut canonical)) {
        Ok(info) if info.is_blk => {
            let found = place(info.dev)?;
            if let Some(image) = crate::image::backing_file(&found.1)? {
                // For a loop device its backing file's path is its name.
                let mut copy = KVec::new();
                copy.extend_from_slice(&image, GFP_KERNEL)?;
                return Ok(Resolved { name: copy, image: Some(image), found: None, absent: false });
            }
            Ok(Resolved { name, image: None, found: Some(found), absent: false })
        }
        Ok(info) if info.is_reg => {
            let len = canonical.iter().position(|&b| b == 0).unwrap_or(0);
            canonical.truncate(len);
            Ok(Resolved { name, image: Some(canonical), found: None, absent: false })
        }
        Ok(_) => Err(EINVAL),
        Err(e) if e == ENOENT || e == ENXIO || e == ENODEV => {
            let image = if name.starts_with(b"/dev/") {
                None
            } else {
                let mut copy = KVec::new();
                copy.extend_from_slice(&name, GFP_KERNEL)?;
                Some(copy)
            };
            Ok(Resolved { name, image, found: None, absent: true })
        }
        Err(e) if e == ENOTDIR => Err(EINVAL),
        Err(e) => Err(e),
    }
}

/// Whether a registration is of the same device as a name.
fn is_same(volume: &Volume, r: &Resolved) -> bool {
    if *volume.name == *r.name {
        return true;
    }
    match (&volume.image, &r.image) {
        (Some(a), Some(b)) => **a == **b,
        // Of thousands that are absent none has to be locked.
        (None, None) if r.found.is_none() => false,
        (None, None) => match (volume.place(), r.place()) {
            (Some(a), Some(b)) => a.is_same(b),
            _ => false,
        },
        _ => false,
    }
}

/// Whether a name stands for another disk than the one that was watched.
fn is_another(volume: &Volume, r: &Resolved) -> bool {
    match (volume.place(), r.place()) {
        (Some(a), Some(b)) => !a.is_same(b),
        (None, Some(_)) => true,
        _ => false,
    }
}

fn find(r: &Resolved) -> Option<Arc<Volume>> {
    let registry = core().registry.lock();
    let found = registry.volumes.iter().find(|v| is_same(v, r)).cloned();
    found
}

/// EINVAL if the store is on that device.
fn check_store(id: DiskId, sectors: &Sectors) -> Result {
    let Ok(store) = Dir::resolve(&core().store_path()?) else { return Ok(()) };
    if stack::lies_on(&store, id, sectors)? {
        pr_err!("the store is on that device\n");
        return Err(EINVAL);
    }
    Ok(())
}

/// Registers a device; returns `CONTROL_…` flags.
fn activate(name: &[u8], durability: Option<Durability>) -> Result<u64> {
    let r = resolve(name)?;
    let _control = core().control.lock();
    if let Some(volume) = find(&r) {
        // If its last session ends just now it may be forgotten any moment.
        let _turning = volume.turning.lock();
        if volume.change(|state| state.activate()).is_ok() {
            return Ok(CONTROL_ALREADY);
        }
    }
    let mut flags = 0;
    let is_mounted = || {
        let (place, open) = r.found.as_ref()?;
        Some(open.disk().is_mounted(place.sectors.start, place.sectors.end))
    };
    if let Some((place, open)) = &r.found {
        open.disk().check_supported()?;
        check_store(place.id, &place.sectors)?;
        if is_mounted() == Some(true) {
            flags |= CONTROL_MOUNTED;
        } else {
            // What was written before is not the first raw session's.
            open.disk().sync_caches(place.sectors.start, place.sectors.end);
        }
    }
    if let Some(image) = r.image.as_ref().filter(|_| !r.absent) {
        for open in crate::image::loops_of(image) {
            let disk = open.disk();
            check_store(disk.id(), &Place::WHOLE)?;
            if disk.is_mounted(0, disk.capacity()) {
                flags |= CONTROL_MOUNTED;
            }
        }
    }
    if r.absent {
        flags |= CONTROL_ABSENT;
    }
    hook::install()?;
    let tested = hook::self_test(r.found.as_ref().map(|(_, open)| open.disk()));
    let code = tested.err().map_or(0, errno_of);
    core().self_test.store(code, Ordering::Release);
    let result = tested.and_then(|()| {
        let durability = durability.unwrap_or(core().params.durability);
        let place = r.found.as_ref().map(|(place, _)| *place);
        let volume = Volume::new(&r.name, r.image, durability, place)?;
        volume.change(|state| state.set_unprotected(flags & CONTROL_MOUNTED != 0));
        core().registry.lock().add(volume.clone())?;
        // A mount may have come before the hook knew the device, or gone.
        if let Some(mounted) = is_mounted().filter(|_| !volume.is_claimed()) {
            volume.change(|state| state.set_unprotected(mounted));
            if mounted {
                flags |= CONTROL_MOUNTED;
            }
        }
        Ok(())
    });
    if result.is_err() {
        remove_hooks_if_idle();
    }
    result.map(|()| flags)
}

/// The same for a caller who goes on from there: of an image, the loop device that shows it is known. Nobody else's
/// device is opened for it, which might be in somebody's way.
fn activate_now(name: &[u8], durability: Option<Durability>) -> Result<u64> {
    let flags = activate(name, durability)?;
    if let Err(e) = crate::image::settle() {
        pr_warn!("looking for loop devices: errno {}\n", -e.to_errno());
    }
    Ok(flags)
}

/// With nothing registered the hooks on bios and claims are not installed. The
/// caller holds `control`.
fn remove_hooks_if_idle() {
    let idle = core().registry.lock().volumes.is_empty() && !core().claims.lock().any_registered();
    if idle {
        hook::remove();
    }
}

/// Removes a registration; returns `CONTROL_…` flags. A running session goes
/// on to its end.
fn deactivate(name: &[u8]) -> Result<u64> {
    let r = resolve(name)?;
    let _control = core().control.lock();
    let Some(volume) = find(&r) else { return Ok(CONTROL_ALREADY) };
    let mut flags = 0;
    let _noio = NoIo::enter();
    let raw = volume.open_raw();
    let turning = volume.turning.lock();
    if volume.change(|state| state.deactivate()) {
        volume.stop_raw(raw.as_ref());
        core().registry.lock().remove(&volume)?;
    } else {
        flags |= CONTROL_MOUNTED;
    }
    drop(turning);
    volume.open_gate();
    // It may be a while until those are gone.
    drop(raw);
    drop(volume);
    remove_hooks_if_idle();
    Ok(flags)
}

/// The same after the last session of a deactivated device.
pub(crate) fn idle() {
    let _control = core().control.lock();
    remove_hooks_if_idle();
}

/// Forgets all registrations, at unload.
pub(crate) fn forget_all() {
    core().registry.lock().volumes = KVec::new();
    core().claims.lock().clear();
    registry::drop_table();
    hook::remove();
}

/// Secret, store and devices, once per load.
fn hand_over(request: &mut HandOver) -> Result {
    let secret = Password(user_bytes(request.secret, request.secret_len, SECRET_MAX)?);
    let store = user_bytes::<Kmalloc>(request.store, request.store_len, 1023)?;
    let devices = user_bytes::<KVmalloc>(request.devices, request.devices_len, DEVICES_MAX)?;
    let store = match &*store {
        [] => None,
        [b'/', rest @ ..] if !rest.contains(&0) => {
            let text = ::core::str::from_utf8(&store).map_err(|_| EINVAL)?;
            Some(CString::try_from_fmt(fmt!("{}", text))?)
        }
        _ => return Err(EINVAL),
    };
    if core().sealed.swap(true, Ordering::AcqRel) {
        return Err(errno(kernel::bindings::EALREADY));
    }
    if let Some(store) = store {
        core().set_store_path(store);
    }
    if !secret.0.is_empty() {
        match Secret::parse(&secret.0) {
            Ok(s) => {
                core().auth.lock().set(s);
                core().has_secret.store(true, Ordering::Release);
            }
            Err(e) => pr_err!("the secret is not usable ({}): control is refused\n", e.0),
        }
    } else {
        pr_warn!("no secret: control is refused; make one with bdsnap passwd and load again\n");
    }
    for name in devices.split(|&b| b == 0).filter(|n| !n.is_empty()) {
        match activate(name, None) {
            Ok(_) => request.registered += 1,
            Err(e) => pr_err!("a listed device was not registered: errno {}\n", -e.to_errno()),
        }
    }
    Ok(())
}

/// A restore begins or ends.
fn restore(file: &ControlDevice, request: &mut Restore) -> Result {
    let name = user_bytes::<Kmalloc>(request.name, request.name_len, NAME_MAX)?;
    request.flags = 0;
    request.tail = NO_ID;
    if request.phase == RESTORE_BEGIN {
        // Another disk may have come under the name.
        crate::look::settle();
    }
    let r = resolve(&name)?;
    let _control = core().control.lock();
    let Some(volume) = find(&r) else { return Ok(()) };
    let _noio = NoIo::enter();
    if request.phase == RESTORE_BEGIN {
        // With as many looks as it takes: one may start again until the lock is had below.
        volume.stop_raw_alone();
    }
    let raw = if request.phase == RESTORE_BEGIN { volume.open_raw() } else { None };
    let _turning = volume.turning.lock();
    request.flags |= RESTORE_REGISTERED;
    if request.phase == RESTORE_BEGIN {
        volume.stop_raw(raw.as_ref());
        let state = volume.state();
        if state.is_claimed() || volume.is_waited_for() || state.is_restoring() {
            return Err(EBUSY);
        }
    } else {
        // Only its own; it may have been given up because of a mount.
        let own = file.restoring.lock().as_ref().is_some_and(|v| Arc::ptr_eq(v, &volume));
        if !own || !volume.state().is_restoring() {
            return if request.phase == RESTORE_WRITE { Err(EBUSY) } else { Ok(()) };
        }
    }
    // Nobody may wait for `turning` as long as the store does not answer.
    let tail = crate::look::tail(&volume.name)?;
    if let Some(tail) = &tail {
        request.tail = tail.session_id;
    }
    match request.phase {
        RESTORE_BEGIN => {
            volume.set_restorer(sys::current_tgid());
            volume.change(|state| state.begin_restore()).map_err(|_| EBUSY)?;
            *file.restoring.lock() = Some(volume.clone());
            volume.others_restored.store(false, Ordering::Relaxed);
            // No write that met the volume before is still to be noted.
            sys::synchronize_rcu();
            let before = volume.change(|state| state.before_restore());
            let link = judge(&volume, &r, before);
            let mut written = link == Link::Written;
            if let (Some(image), Some(tail)) = (&volume.image, &tail) {
                let now = crate::look::mtime(image);
                written |= tail.image_mtime_ns != 0 && now != tail.image_mtime_ns;
            }
            let watched = !is_another(&volume, &r)
                && matches!(link, Link::Watched(_))
                && tail
                    .as_ref()
                    .is_some_and(|t| t.load_id == core().load_id && t.boot_id == core().boot_id);
            if written {
                request.flags |= RESTORE_WRITTEN;
            }
            if watched {
                request.flags |= RESTORE_WATCHED;
            } else if matches!(before, Link::Watched(_)) && !written {
                request.flags |= RESTORE_UNSEEN;
            }
        }
        // What was planned is not what there is any more.
        RESTORE_WRITE if volume.change(|state| state.anybody_wrote()) => return Err(EBUSY),
        RESTORE_WRITE => {}
        RESTORE_END => {
            let witness = witness(&volume, &r, None);
            if volume.change(|state| state.end_restore(witness)) {
                volume.others_restored.store(true, Ordering::Relaxed);
                request.flags |= RESTORE_OTHERS;
            }
            *file.restoring.lock() = None;
        }
        RESTORE_ABORT => {
            if volume.change(|state| state.abandon_restore()) {
                volume.others_restored.store(true, Ordering::Relaxed);
                request.flags |= RESTORE_OTHERS;
            }
            *file.restoring.lock() = None;
        }
        _ => return Err(EINVAL),
    }
    Ok(())
}

/// See [`lifecycle::witness`]. An image is on no disk of its own.
fn witness(volume: &Volume, r: &Resolved, hoped: Option<i64>) -> Option<i64> {
    match &r.found {
        Some((_, open)) => lifecycle::witness(volume, open.disk(), hoped),
        None => volume.image.as_ref().map(|_| 0),
    }
}

/// What is known of a link, with what the statistics say of it now.
fn judge(volume: &Volume, r: &Resolved, link: Link) -> Link {
    let Link::Watched(hoped) = link else { return link };
    let now = witness(volume, r, hoped);
    let unseen = volume::unseen(hoped, now).map_or(u64::MAX, |sectors| sectors.saturating_mul(512));
    volume.unseen_bytes.store(unseen, Ordering::Relaxed);
    volume::judge(link, now)
}

/// What a registered device is recognised by.
fn identify(request: &Identify) -> Result {
    if request.flags != 0 {
        return Err(EINVAL);
    }
    let name = user_bytes::<Kmalloc>(request.name, request.name_len, NAME_MAX)?;
    let len = usize::try_from(request.serial_len).map_err(|_| EINVAL)?;
    let serial = request.serial.get(..len).ok_or(EINVAL)?;
    let identity = Identity::new(request.diskseq, request.partuuid, serial)?;
    let registry = core().registry.lock();
    registry.volumes.iter().find(|v| *v.name == *name).ok_or(ENODEV)?.identify(identity);
    Ok(())
}

// --- Status -----------------------------------------------------------------

/// The bytes of one of the ABI's structures.
fn abi_bytes<T: Abi>(value: &T) -> &[u8] {
    // SAFETY: By `Abi` there is no padding, so all bytes are initialised.
    unsafe {
        ::core::slice::from_raw_parts(
            ::core::ptr::from_ref(value).cast(),
            ::core::mem::size_of::<T>(),
        )
    }
}

/// Structures of the control ABI.
///
/// # Safety
///
/// `repr(C)`, integers and arrays of them only, without padding (asserted in
/// `ioctl.rs` by their sizes).
unsafe trait Abi: Copy {}

macro_rules! abi {
    ($($t:ty),*) => {$(
        // SAFETY: See `ioctl.rs`.
        unsafe impl Abi for $t {}
        // SAFETY: As above.
        unsafe impl FromBytes for $t {}
        // SAFETY: As above.
        unsafe impl AsBytes for $t {}
    )*};
}

abi!(Control, HandOver, Simple, StatusRequest, Restore, Identify, StatusHead, Entry);

fn push_padded(out: &mut KVVec<u8>, bytes: &[u8]) -> Result {
    out.extend_from_slice(bytes, GFP_KERNEL)?;
    while out.len() % 8 != 0 {
        out.push(0, GFP_KERNEL)?;
    }
    Ok(())
}

fn head(core: &Core) -> Result<KBox<StatusHead>> {
    let mut h = KBox::new(StatusHead::default(), GFP_KERNEL)?;
    h.version = ABI_VERSION;
    h.head_len = ::core::mem::size_of::<StatusHead>() as u32;
    h.load_id = core.load_id;
    for (flag, set) in [
        (MODULE_SECRET, &core.has_secret),
        (MODULE_SEALED, &core.sealed),
        (MODULE_HOOKS, &core.hooks),
        (MODULE_SYSCALLS, &core.syscalls),
    ] {
        if set.load(Ordering::Acquire) {
            h.flags |= flag;
        }
    }
    if core.syscalls.load(Ordering::Acquire) {
        h.sysc_activate = core.params.sysc_activate;
        h.sysc_deactivate = core.params.sysc_deactivate;
    }
    h.sessions_total = core.sessions_total.load(Ordering::Relaxed);
    h.sessions_broken = core.sessions_broken.load(Ordering::Relaxed);
    h.held_bios = core.held_bios.load(Ordering::Relaxed);
    h.saved_bytes = core.saved_bytes.load(Ordering::Relaxed);
    h.absorbed_bytes = core.absorbed_bytes.load(Ordering::Relaxed);
    (h.memory_bytes, h.memory_peak_bytes, h.memory_limit_bytes) = core.budget.figures();
    h.hold_timeout_ms = core.params.hold_timeout_ms;
    h.min_free_bytes = core.params.min_free.unwrap_or(0);
    h.chunk_size = core.params.chunk_size;
    h.durability = core.params.durability as u32;
    h.discard = core.params.discard as u32;
    h.self_test = core.self_test.load(Ordering::Acquire);
    h.format_version = crate::store::VERSION as u32;
    for (out, n) in h.live.iter_mut().zip(live::counts()) {
        *out = n as u64;
    }
    h.auth_failures = core.auth_failures.load(Ordering::Relaxed);
    let store = core.store_path()?;
    let bytes = store.to_bytes();
    let n = bytes.len().min(h.store.len());
    h.store[..n].copy_from_slice(&bytes[..n]);
    h.store_len = n as u64;
    Ok(h)
}

fn entry(volume: &Volume) -> (Entry, Option<Summary>) {
    let (state, session, last) = volume.shown();
    let mut e = Entry {
        len: ::core::mem::size_of::<Entry>() as u32,
        name_len: volume.name.len() as u32,
        claims: state.claims(),
        durability: volume.durability as u32,
        ..Entry::default()
    };
    if let Some((place, Ok(sectors))) = state.place().map(|p| (p, sys::sectors_at(&p))) {
        e.flags |= ENTRY_PRESENT;
        (e.major, e.minor) = (place.major, place.minor);
        (e.start, e.bytes) = (place.sectors.start, sectors.saturating_mul(512));
    }
    let escaped = state.has_escaped();
    e.unseen_bytes = match volume.unseen_bytes.load(Ordering::Relaxed) {
        // It was seen, but not counted.
        0 if escaped => u64::MAX,
        bytes => bytes,
    };
    for (flag, set) in [
        (ENTRY_WRITTEN, state.is_written()),
        (ENTRY_IMAGE, volume.image.is_some()),
        (ENTRY_UNPROTECTED, state.is_unprotected()),
        (ENTRY_REFUSED, volume.refused.load(Ordering::Relaxed) != 0),
        (ENTRY_RESTORING, state.is_restoring()),
        (ENTRY_RECORDING, session.is_some()),
        (ENTRY_RAW, state.is_raw()),
        (ENTRY_OTHERS, volume.others_restored.load(Ordering::Relaxed)),
        (ENTRY_UNSEEN, escaped || (e.unseen_bytes != 0 && e.unseen_bytes != u64::MAX)),
    ] {
        if set {
            e.flags |= flag;
        }
    }
    let shown = session.as_ref().map(|s| Summary::of(s)).or(last);
    e.errno = volume.refused.load(Ordering::Relaxed);
    if let Some(of) = &shown {
        e.session_id = of.id;
        e.chain_seq = of.chain_seq;
        e.start_ns = of.start_ns;
        e.state = of.state as u32;
        if of.errno != 0 {
            e.errno = of.errno;
        }
        e.broken_sector = of.broken_sector;
        e.broken_ns = of.broken_ns;
        e.gap_before = of.gap_before.map_or(0, |g| g as u32);
        e.held_bios = of.held;
        e.holding = of.holding;
        e.saved_chunks = of.saved_chunks;
        e.saved_bytes = of.saved_bytes;
        e.absorbed_bytes = of.absorbed_bytes;
        e.saved_set_bytes = of.set_bytes;
        e.dir_len = of.dir.as_bytes().len() as u64;
    }
    (e, shown)
}

fn status(request: &mut StatusRequest) -> Result {
    let core = core();
    let mut head = head(core)?;
    let (sessions, held, absorbed) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let mut out = KVVec::new();
    // Not under the registry's lock, which claims want: what is asked of sysfs may take a while.
    let volumes = registry::all()?;
    head.registrations = volumes.len() as u64;
    core.for_each_session(|s| {
        sessions.set(sessions.get() + 1);
        held.set(held.get() + s.queue.lock().held());
        absorbed.set(absorbed.get() + s.absorbed_bytes.load(Ordering::Relaxed));
    });
    head.sessions = sessions.get();
    head.held_bios += held.get();
    head.absorbed_bytes += absorbed.get();
    out.extend_from_slice(abi_bytes(&*head), GFP_KERNEL)?;
    for volume in volumes.iter() {
        let (e, shown) = entry(volume);
        out.extend_from_slice(abi_bytes(&e), GFP_KERNEL)?;
        push_padded(&mut out, &volume.name)?;
        if let Some(of) = shown {
            push_padded(&mut out, of.dir.as_bytes())?;
        }
    }
    request.needed = out.len() as u64;
    if request.len >= request.needed {
        let addr = usize::try_from(request.buf).map_err(|_| EFAULT)?;
        UserSlice::new(UserPtr::from_addr(addr), out.len()).writer().write_slice(&out)?;
    }
    Ok(())
}

// --- The device -------------------------------------------------------------

/// An open `/dev/bdsnap`.
#[pin_data(PinnedDrop)]
pub(crate) struct ControlDevice {
    /// The device that a restore with this file writes to: if it ends without a
    /// word, that is an abort.
    #[pin]
    restoring: Mutex<Option<Arc<Volume>>>,
}

#[pinned_drop]
impl PinnedDrop for ControlDevice {
    fn drop(self: Pin<&mut Self>) {
        if let Some(volume) = self.restoring.lock().take() {
            // Of a tool that was killed this may be closed before the device: what
            // is in the page cache is still the restore's.
            if let Some((place, Ok(open))) = volume.place().map(|p| (p, OpenDisk::at(&p))) {
                let extent = place.extent(open.disk().capacity());
                open.disk().sync_caches(extent.start, extent.end);
            }
            let others = volume.change(|state| state.abandon_restore());
            volume.others_restored.fetch_or(others, Ordering::Relaxed);
        }
    }
}

/// Reads the caller's structure of `len` bytes, lets `act` answer, writes back
/// what both know of it.
fn exchange<T: FromBytes + AsBytes + Default>(
    arg: usize,
    len: usize,
    version: impl FnOnce(&T) -> u32,
    act: impl FnOnce(&mut T) -> Result,
) -> Result<isize> {
    let (mut reader, mut writer) = UserSlice::new(UserPtr::from_addr(arg), len).reader_writer();
    let mut value = T::default();
    let nothing_beyond = take_over(value.as_bytes_mut(), len, |piece| reader.read_slice(piece))?;
    if version(&value) != ABI_VERSION {
        return Err(errno(kernel::bindings::EPROTONOSUPPORT));
    }
    if !nothing_beyond {
        return Err(E2BIG);
    }
    act(&mut value)?;
    let bytes = value.as_bytes();
    writer.write_slice(&bytes[..known_to_both(bytes.len(), len)])?;
    Ok(0)
}

fn wanted_durability(c: &Control) -> Result<Option<Durability>> {
    match c.durability {
        0 => Ok(None),
        1 => Ok(Some(Durability::Strict)),
        2 => Ok(Some(Durability::Async)),
        _ => Err(EINVAL),
    }
}

fn settle(flags: u32) -> Result {
    if flags & !SETTLE_RAW != 0 {
        return Err(EINVAL);
    }
    registry::settle()?;
    if flags & SETTLE_RAW != 0 {
        registry::stop_raw()?;
    }
    Ok(())
}

fn control(c: &mut Control, on: bool) -> Result {
    let name = user_bytes::<Kmalloc>(c.name, c.name_len, NAME_MAX)?;
    let password = Password(user_bytes(c.password, c.password_len, PASSWORD_MAX)?);
    let durability = wanted_durability(c)?;
    if name.is_empty() || name.contains(&0) {
        return Err(EINVAL);
    }
    auth::check(&password.0)?;
    c.flags = if on { activate_now(&name, durability)? } else { deactivate(&name)? };
    Ok(())
}

#[vtable]
impl MiscDevice for ControlDevice {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self { restoring <- new_mutex!(None, "bdsnap::ControlDevice") }),
            GFP_KERNEL,
        )
    }

    fn ioctl(me: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if !sys::is_admin() {
            return Err(EPERM);
        }
        let Some(Call { nr, len }) = Call::of(cmd) else { return Err(ENOTTY) };
        match nr {
            NR_ACTIVATE => exchange::<Control>(arg, len, |c| c.version, |c| control(c, true)),
            NR_DEACTIVATE => exchange::<Control>(arg, len, |c| c.version, |c| control(c, false)),
            NR_HAND_OVER => exchange::<HandOver>(arg, len, |h| h.version, hand_over),
            NR_SETTLE => exchange::<Simple>(arg, len, |s| s.version, |s| settle(s.flags)),
            NR_STATUS => exchange::<StatusRequest>(arg, len, |s| s.version, status),
            NR_RESTORE => exchange::<Restore>(arg, len, |r| r.version, |r| restore(&me, r)),
            NR_IDENTIFY => exchange::<Identify>(arg, len, |i| i.version, |i| identify(i)),
            _ => Err(ENOTTY),
        }
    }
}
