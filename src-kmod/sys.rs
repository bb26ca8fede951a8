// SPDX-License-Identifier: GPL-2.0

//! The border to C: declarations of `shim.h`, and safe types over what they
//! hand out. Besides `hook.rs` and the callbacks' entries in `reader.rs`, this
//! is the only file with raw pointers of the kernel's.

use crate::live::{self, Kind, Token};
use crate::pure::plan::Sectors;
use crate::pure::volume::{DiskId, Place};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use kernel::bindings;
use kernel::ffi::{c_char, c_int, c_uint, c_void};
use kernel::prelude::*;
use kernel::str::{CStr, CString};
use kernel::types::Opaque;

pub(crate) use bindings::{bio, block_device, gendisk};

/// What C tells about a block device.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BdevInfo {
    /// As long as somebody has the device open.
    pub(crate) disk: *mut gendisk,
    seq: u64,
    pub(crate) start: u64,
    pub(crate) sectors: u64,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) logical_block_size: u32,
    pub(crate) read_only: u8,
    pub(crate) partition: u8,
}

impl Default for BdevInfo {
    fn default() -> Self {
        Self {
            disk: ptr::null_mut(),
            seq: 0,
            start: 0,
            sectors: 0,
            major: 0,
            minor: 0,
            logical_block_size: 0,
            read_only: 0,
            partition: 0,
        }
    }
}

impl BdevInfo {
    /// Its disk, and the medium in that.
    pub(crate) fn id(&self) -> DiskId {
        DiskId { address: self.disk as usize, seq: self.seq }
    }

    /// Its sectors on the disk.
    pub(crate) fn range(&self) -> Result<Sectors> {
        Sectors::new(self.start, self.sectors).ok_or(EINVAL)
    }
}

/// What C tells about a name.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct NameInfo {
    pub(crate) dev: u32,
    pub(crate) ino: u64,
    pub(crate) mtime_ns: u64,
    pub(crate) size: u64,
    pub(crate) is_blk: bool,
    pub(crate) is_reg: bool,
}

#[repr(C)]
struct RawStoreInfo {
    disk: *mut gendisk,
    start: u64,
    sectors: u64,
    magic: u64,
    read_only: bool,
    sb: *const c_void,
}

#[allow(improper_ctypes)]
mod c {
    use super::*;

    unsafe extern "C" {
        pub(super) fn bdsnap_hook_install(which: c_int) -> c_int;
        pub(super) fn bdsnap_hook_remove(which: c_int);
        pub(super) fn bdsnap_orig_submit(bio: *mut bio);
        pub(super) fn bdsnap_orig_open(
            dev: u32,
            mode: u32,
            holder: *mut c_void,
            hops: *const c_void,
        ) -> *mut bindings::file;
        pub(super) fn bdsnap_orig_fput(file: *mut bindings::file);
        pub(super) fn bdsnap_self_test_submit(
            bdev: *mut block_device,
            out: *mut *const c_void,
        ) -> c_int;
        pub(super) fn bdsnap_may_throttle() -> bool;
        pub(super) fn bdsnap_noio_enter() -> c_uint;
        pub(super) fn bdsnap_noio_leave(saved: c_uint);
        pub(super) fn bdsnap_page_alloc(patient: bool) -> *mut bindings::page;
        pub(super) fn bdsnap_page_free(page: *mut bindings::page);
        pub(super) fn bdsnap_is_admin() -> bool;
        pub(super) fn bdsnap_total_ram() -> u64;
        pub(super) fn bdsnap_now_real_ns() -> u64;
        pub(super) fn bdsnap_now_boot_ns() -> u64;
        pub(super) fn bdsnap_now_awake_ns() -> u64;
        pub(super) fn bdsnap_disk_open(dev: u32, out: *mut BdevInfo) -> *mut bindings::file;
        pub(super) fn bdsnap_disk_reopen(disk: *mut gendisk) -> *mut bindings::file;
        pub(super) fn bdsnap_disk_written(disk: *mut gendisk, sectors: *mut u64) -> bool;
        pub(super) fn bdsnap_disk_has_requests(disk: *mut gendisk) -> bool;
        pub(super) fn bdsnap_current_tgid() -> c_int;
        pub(super) fn bdsnap_open_to_read(name: *const c_char) -> *mut bindings::file;
        pub(super) fn bdsnap_sleep_killable(ms: c_uint) -> c_int;
        pub(super) fn bdsnap_boot_id(out: *mut u8);
        pub(super) fn bdsnap_crc(crc: u32, bytes: *const c_void, len: usize) -> u32;
        pub(super) fn bdsnap_crc_pages(pages: *const *mut bindings::page, bytes: usize) -> u32;
        pub(super) fn bdsnap_zero_pages(pages: *const *mut bindings::page, bytes: usize) -> bool;
        pub(super) fn bdsnap_pbkdf2_block(
            pw: *const u8,
            pw_len: usize,
            salt: *const u8,
            salt_len: usize,
            rounds: u32,
            out: *mut u8,
        ) -> c_int;
        pub(super) fn bdsnap_log_wrong_password(penalty_ms: u64);
        pub(super) fn bdsnap_equal_ct(a: *const c_void, b: *const c_void, n: usize) -> bool;
        pub(super) fn bdsnap_wipe(p: *mut c_void, n: usize);
        pub(super) fn bdsnap_sha256(data: *const u8, len: usize, out: *mut u8);
        pub(super) fn bdsnap_bios_init() -> c_int;
        pub(super) fn bdsnap_bios_exit();
        pub(super) fn bdsnap_read_submit(
            disk: *mut gendisk,
            sector: u64,
            pages: *const *mut bindings::page,
            bytes: usize,
            slice: *mut c_void,
        ) -> c_int;
        pub(super) fn bdsnap_read_sync(
            disk: *mut gendisk,
            sector: u64,
            pages: *const *mut bindings::page,
            bytes: usize,
        ) -> c_int;
        pub(super) fn bdsnap_bio_split(bio: *mut bio, sectors: c_uint) -> *mut bio;
        pub(super) fn bdsnap_bio_absorb(bio: *mut bio);
        pub(super) fn bdsnap_bio_prepare_hold(bio: *mut bio);
        pub(super) fn bdsnap_disk_alive(disk: *mut gendisk) -> bool;
        pub(super) fn bdsnap_sleep(ms: c_uint);
        pub(super) fn bdsnap_disk_refusal(disk: *mut gendisk) -> c_int;
        pub(super) fn bdsnap_sync_range(disk: *mut gendisk, start: u64, end: u64);
        pub(super) fn bdsnap_flush(disk: *mut gendisk) -> c_int;
        pub(super) fn bdsnap_inflight(disk: *mut gendisk) -> c_uint;
        pub(super) fn bdsnap_range_mounted(
            disk: *mut gendisk,
            start: u64,
            end: u64,
            except: *const block_device,
        ) -> bool;
        pub(super) fn bdsnap_file_bdev(file: *mut bindings::file) -> *mut block_device;
        pub(super) fn bdsnap_disk_name(disk: *mut gendisk, buf: *mut c_char, len: usize) -> c_int;
        pub(super) fn bdsnap_bdev_info(bdev: *mut block_device, out: *mut BdevInfo);
        pub(super) fn bdsnap_name_info(
            name: *const c_char,
            in_init_root: bool,
            out: *mut NameInfo,
            canonical: *mut c_char,
            len: usize,
        ) -> c_int;
        pub(super) fn bdsnap_cwd(buf: *mut c_char, len: usize) -> c_int;
        pub(super) fn bdsnap_read_text(name: *const c_char, buf: *mut c_char, len: usize) -> c_int;
        pub(super) fn bdsnap_list_dir(name: *const c_char, buf: *mut c_char, len: usize) -> c_int;
        pub(super) fn bdsnap_path_resolve(
            name: *const c_char,
            directory: bool,
            out: *mut bindings::path,
        ) -> c_int;
        pub(super) fn bdsnap_path_put(path: *mut bindings::path);
        pub(super) fn bdsnap_path_info(path: *const bindings::path, out: *mut RawStoreInfo);
        pub(super) fn bdsnap_path_space(
            path: *const bindings::path,
            total: *mut u64,
            free: *mut u64,
        ) -> c_int;
        pub(super) fn bdsnap_mkdir_at(dir: *const bindings::path, name: *const c_char) -> c_int;
        pub(super) fn bdsnap_remove_at(
            dir: *const bindings::path,
            name: *const c_char,
            directory: bool,
        ) -> c_int;
        pub(super) fn bdsnap_path_at(
            dir: *const bindings::path,
            name: *const c_char,
            out: *mut bindings::path,
        ) -> c_int;
        pub(super) fn bdsnap_open_at(
            dir: *const bindings::path,
            name: *const c_char,
            flags: c_int,
        ) -> *mut bindings::file;
        pub(super) fn bdsnap_rename_at(
            dir: *const bindings::path,
            from: *const c_char,
            to: *const c_char,
        ) -> c_int;
        pub(super) fn bdsnap_write(
            file: *mut bindings::file,
            buf: *const c_void,
            len: usize,
            at: u64,
        ) -> c_int;
        pub(super) fn bdsnap_read(
            file: *mut bindings::file,
            buf: *mut c_void,
            len: usize,
            at: u64,
        ) -> c_int;
        pub(super) fn bdsnap_write_pages(
            file: *mut bindings::file,
            pages: *const *mut bindings::page,
            bytes: usize,
            at: u64,
        ) -> c_int;
        pub(super) fn bdsnap_fsync(file: *mut bindings::file, data_only: bool) -> c_int;
        pub(super) fn bdsnap_fsync_both(a: *mut bindings::file, b: *mut bindings::file) -> c_int;
        pub(super) fn bdsnap_one_flush(file: *mut bindings::file) -> bool;
        pub(super) fn bdsnap_fsync_in_place(
            a: *mut bindings::file,
            b: *mut bindings::file,
        ) -> c_int;
        pub(super) fn bdsnap_truncate(file: *mut bindings::file, len: u64) -> c_int;
        pub(super) fn bdsnap_close(file: *mut bindings::file);
        pub(super) fn bdsnap_notifiers_register() -> c_int;
        pub(super) fn bdsnap_notifiers_unregister();
        pub(super) fn bdsnap_uevent(
            dev: *mut bindings::device,
            event: *const c_char,
            device: *const c_char,
            session: *const c_char,
            error: c_int,
        );
        pub(super) fn bdsnap_module_get() -> bool;
        pub(super) fn bdsnap_module_put();
        pub(super) fn bdsnap_watch_start(period_ms: c_uint) -> c_int;
        pub(super) fn bdsnap_watch_stop();
        pub(super) fn synchronize_rcu_expedited();
        pub(super) fn synchronize_rcu_tasks();
    }
}

fn check(ret: c_int) -> Result {
    kernel::error::to_result(ret)
}

// --- Tasks, time, digests ---------------------------------------------------

/// Whether the current task may be made to wait for its write.
pub(crate) fn may_throttle() -> bool {
    // SAFETY: Looks at the current task only.
    unsafe { c::bdsnap_may_throttle() }
}

/// Capability check in the initial user namespace.
pub(crate) fn is_admin() -> bool {
    // SAFETY: Process context, as all control calls.
    unsafe { c::bdsnap_is_admin() }
}

/// The task group of whoever runs this.
pub(crate) fn current_tgid() -> i32 {
    // SAFETY: Looks at the current task only.
    unsafe { c::bdsnap_current_tgid() }
}

/// Bytes of memory.
pub(crate) fn total_ram() -> u64 {
    // SAFETY: No arguments.
    unsafe { c::bdsnap_total_ram() }
}

/// Nanoseconds since 1970 UTC.
pub(crate) fn now_real_ns() -> u64 {
    // SAFETY: No arguments.
    unsafe { c::bdsnap_now_real_ns() }
}

/// Nanoseconds since boot.
pub(crate) fn now_boot_ns() -> u64 {
    // SAFETY: No arguments.
    unsafe { c::bdsnap_now_boot_ns() }
}

/// Nanoseconds since boot without those of sleep.
pub(crate) fn now_awake_ns() -> u64 {
    // SAFETY: No conditions.
    unsafe { c::bdsnap_now_awake_ns() }
}

/// Sleeps; EINTR when the task is being killed.
pub(crate) fn sleep_killable(ms: u64) -> Result {
    // SAFETY: Called from tasks that may sleep.
    check(unsafe { c::bdsnap_sleep_killable(ms.min(3_600_000) as c_uint) })
}

/// Sleeps, whatever happens to the task.
pub(crate) fn sleep(ms: u64) {
    // SAFETY: Called from tasks that may sleep.
    unsafe { c::bdsnap_sleep(ms.min(3_600_000) as c_uint) }
}

/// This boot's id.
pub(crate) fn boot_id() -> [u8; 16] {
    let mut id = [0; 16];
    // SAFETY: `id` has the 16 bytes that are written.
    unsafe { c::bdsnap_boot_id(id.as_mut_ptr()) };
    id
}

/// Random bytes.
pub(crate) fn random_id() -> [u8; 16] {
    let mut id = [0u8; 16];
    // SAFETY: `id` has so many bytes.
    unsafe { bindings::get_random_bytes(id.as_mut_ptr().cast(), id.len()) };
    id
}

/// SHA-256 of bytes.
pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    // SAFETY: Both are valid for their lengths.
    unsafe { c::bdsnap_sha256(data.as_ptr(), data.len(), out.as_mut_ptr()) };
    out
}

/// PBKDF2-HMAC-SHA-256, 32 bytes; EINTR when the task is being killed.
pub(crate) fn pbkdf2(password: &[u8], salt: &[u8], rounds: u32) -> Result<[u8; 32]> {
    let mut out = [0; 32];
    // SAFETY: All are valid for their lengths; may sleep, as control calls do.
    check(unsafe {
        c::bdsnap_pbkdf2_block(
            password.as_ptr(),
            password.len(),
            salt.as_ptr(),
            salt.len(),
            rounds,
            out.as_mut_ptr(),
        )
    })?;
    Ok(out)
}

/// Says in the log whose password was wrong: the current task's.
pub(crate) fn log_wrong_password(penalty_ms: u64) {
    // SAFETY: Looks at the current task only.
    unsafe { c::bdsnap_log_wrong_password(penalty_ms) }
}

/// Compares in a time that does not depend on where they differ.
pub(crate) fn equal_ct(a: &[u8; 32], b: &[u8; 32]) -> bool {
    // SAFETY: Both have 32 bytes.
    unsafe { c::bdsnap_equal_ct(a.as_ptr().cast(), b.as_ptr().cast(), 32) }
}

/// Overwrites a secret; not optimised away.
pub(crate) fn wipe(bytes: &mut [u8]) {
    // SAFETY: Valid for its length.
    unsafe { c::bdsnap_wipe(bytes.as_mut_ptr().cast(), bytes.len()) }
}

/// Waits for all RCU readers, the hooks' callbacks among them.
pub(crate) fn synchronize_rcu() {
    // SAFETY: Called from tasks that may sleep, outside RCU read sections.
    unsafe { c::synchronize_rcu_expedited() }
}

/// Waits until no task is in the code that ftrace led to.
pub(crate) fn synchronize_rcu_tasks() {
    // SAFETY: As above.
    unsafe { c::synchronize_rcu_tasks() }
}

/// Marks the current task as one that works for the store: allocations start
/// no I/O, its writes are not throttled as if it had made the dirt.
pub(crate) struct NoIo(c_uint);

impl NoIo {
    /// Until the value is dropped.
    pub(crate) fn enter() -> Self {
        // SAFETY: Changes flags of the current task only.
        Self(unsafe { c::bdsnap_noio_enter() })
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: As above, with what `enter` returned.
        unsafe { c::bdsnap_noio_leave(self.0) }
    }
}

/// Keeps the module from being unloaded.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// `None` when it is already going.
    pub(crate) fn get() -> Option<Self> {
        // SAFETY: No arguments; code of this module runs.
        unsafe { c::bdsnap_module_get() }.then_some(Self(()))
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: Taken in `get`. Who drops it runs in a work queue or a hook
        // that unloading waits for.
        unsafe { c::bdsnap_module_put() }
    }
}

/// Something that happens once, and that can be waited for with a limit.
#[pin_data]
pub(crate) struct Event {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A completion is made for use from several tasks.
unsafe impl Send for Event {}
// SAFETY: As above.
unsafe impl Sync for Event {}

impl Event {
    /// One that has not happened.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is for an uninitialised completion.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// It happens; for all that wait and will wait.
    pub(crate) fn happen(&self) {
        // SAFETY: Initialised in `new`.
        unsafe { bindings::complete_all(self.inner.get()) }
    }

    /// Waits; false if it did not happen in time. Wakes up now and then, so
    /// that the kernel does not take a long wait for a hung task.
    pub(crate) fn wait(&self, ms: u64) -> bool {
        const NAP_MS: u64 = 5_000;
        let mut left = ms;
        loop {
            let nap = left.min(NAP_MS);
            // SAFETY: Initialised in `new`; called from tasks that may sleep.
            let happened = unsafe {
                let jiffies = bindings::__msecs_to_jiffies(nap as c_uint);
                bindings::wait_for_completion_timeout(self.inner.get(), jiffies) != 0
            };
            left -= nap;
            if happened || left == 0 {
                return happened;
            }
        }
    }
}

// --- Pages ------------------------------------------------------------------

/// A page of pre-images.
///
/// # Invariants
///
/// The pointer is to an allocated page that this value owns.
#[repr(transparent)]
pub(crate) struct Page(NonNull<bindings::page>);

// SAFETY: Ownership of a page may move between tasks.
unsafe impl Send for Page {}
// SAFETY: `&Page` gives no access to the content.
unsafe impl Sync for Page {}

impl Page {
    /// `None` without memory. Never waits for I/O.
    pub(crate) fn new() -> Option<Self> {
        Self::alloc(false)
    }

    /// The same for tasks that may wait for I/O, before anything is held.
    pub(crate) fn new_patiently() -> Option<Self> {
        Self::alloc(true)
    }

    fn alloc(patient: bool) -> Option<Self> {
        // SAFETY: Callers may sleep.
        let page = NonNull::new(unsafe { c::bdsnap_page_alloc(patient) })?;
        live::add(Kind::Pages, 1);
        // INVARIANT: Just allocated.
        Some(Self(page))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: Owned, by the type's invariant.
        unsafe { c::bdsnap_page_free(self.0.as_ptr()) };
        live::add(Kind::Pages, -1);
    }
}

/// The same pages as C wants them.
fn raw_pages(pages: &[Page], bytes: usize) -> *const *mut bindings::page {
    // C reads bytes / PAGE_SIZE pages, rounded up.
    assert!(bytes.div_ceil(kernel::page::PAGE_SIZE) <= pages.len());
    pages.as_ptr().cast()
}

/// Pages of several slices that go into a file one behind the other, so that few
/// calls write them.
pub(crate) struct Gather {
    pages: KVec<*mut bindings::page>,
    bytes: usize,
}

// SAFETY: The pages are only looked at in `write`, for which `add`'s caller vouches.
unsafe impl Send for Gather {}

impl Gather {
    /// Most pages of a call; no slice has more than a quarter of them.
    const PAGES: usize = 1024;

    /// Nothing.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { pages: KVec::with_capacity(Self::PAGES, GFP_KERNEL)?, bytes: 0 })
    }

    /// Forgets what is in it.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.bytes = 0;
    }

    /// Adds the first `bytes` bytes of `pages`. False: it has no room for them.
    ///
    /// # Safety
    ///
    /// When `write` comes next, and not `clear`, the pages must still be there, and
    /// nobody change them.
    pub(crate) unsafe fn add(&mut self, pages: &[Page], bytes: usize) -> bool {
        let n = bytes.div_ceil(kernel::page::PAGE_SIZE);
        // Nothing can follow half a page.
        if n > Self::PAGES - self.pages.len() || self.bytes % kernel::page::PAGE_SIZE != 0 {
            return false;
        }
        for page in &pages[..n] {
            // Its capacity is PAGES: this does not allocate.
            if self.pages.push_within_capacity(page.0.as_ptr()).is_err() {
                return false;
            }
        }
        self.bytes += bytes;
        true
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Writes it at `at`.
    pub(crate) fn write(&self, file: &File, at: u64) -> Result {
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: An open file; the pages are valid by the promise of `add`'s
        // caller, and as many as the bytes need.
        check(unsafe {
            c::bdsnap_write_pages(file.file.as_ptr(), self.pages.as_ptr(), self.bytes, at)
        })
    }
}

/// Goes on with a CRC-32C, as [`crate::pure::crc::update`], with what the processor has for it.
pub(crate) fn crc(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: Only reads the slice.
    unsafe { c::bdsnap_crc(crc, bytes.as_ptr().cast(), bytes.len()) }
}

/// CRC-32C of the first `bytes` bytes of `pages`.
pub(crate) fn crc_pages(pages: &[Page], bytes: usize) -> u32 {
    // SAFETY: `Page` is transparent over the pointer; length checked above.
    unsafe { c::bdsnap_crc_pages(raw_pages(pages, bytes), bytes) }
}

/// Whether the first `bytes` bytes of `pages` are all zeros.
pub(crate) fn zero_pages(pages: &[Page], bytes: usize) -> bool {
    // SAFETY: `Page` is transparent over the pointer; length checked by `raw_pages`.
    unsafe { c::bdsnap_zero_pages(raw_pages(pages, bytes), bytes) }
}

/// Copies from the pages' beginning.
pub(crate) fn copy_from_pages(pages: &[Page], out: &mut [u8]) {
    for (page, part) in pages.iter().zip(out.chunks_mut(kernel::page::PAGE_SIZE)) {
        // SAFETY: The page is owned and, on all kernels that can have this
        // module (64 bit), permanently mapped.
        unsafe {
            let from = bindings::kmap_local_page(page.0.as_ptr());
            ptr::copy_nonoverlapping(from.cast::<u8>(), part.as_mut_ptr(), part.len());
            bindings::kunmap_local(from);
        }
    }
}

// --- Disks ------------------------------------------------------------------

/// A whole disk that we have open. Without that, and without anybody else who has, the driver may take away
/// what is below the disk, the disk itself, and in the end itself.
///
/// # Invariants
///
/// `file` is an open block device file of a whole disk, opened for reading, without a holder.
pub(crate) struct OpenDisk {
    file: File,
}

impl OpenDisk {
    /// The disk of the device with this number, and where in it that device is. May wait
    /// for whoever opens or closes the disk.
    pub(crate) fn by_devt(dev: u32) -> Result<(Self, BdevInfo)> {
        let mut info = BdevInfo::default();
        // SAFETY: `info` is writable.
        let file = File::from_raw(unsafe { c::bdsnap_disk_open(dev, &mut info) })?;
        // INVARIANT: C opens the whole disk.
        Ok((Self { file }, info))
    }

    /// The disk of a device that somebody has open, once more.
    ///
    /// # Safety
    ///
    /// `info.disk` must stay valid during the call.
    pub(crate) unsafe fn reopen(info: &BdevInfo) -> Result<Self> {
        // SAFETY: The caller's promise.
        let file = File::from_raw(unsafe { c::bdsnap_disk_reopen(info.disk) })?;
        // INVARIANT: C opens the whole disk.
        Ok(Self { file })
    }

    /// The disk of a place, if it is there. ENXIO: it is not, or with another medium.
    pub(crate) fn at(place: &Place) -> Result<Self> {
        // An open by number alone would have some drivers make a disk anew that is gone.
        let gone = |e| if e == ENOMEM { e } else { ENXIO };
        sectors_at(place).map_err(gone)?;
        // The whole disk at once: to open a partition is also to close it again, as the last one perhaps.
        let (open, _) = Self::by_devt(place_disk(place).map_err(gone)?)?;
        if open.disk().id() == place.id {
            Ok(open)
        } else {
            Err(ENXIO)
        }
    }

    /// The disk, as long as this has it open.
    pub(crate) fn disk(&self) -> Disk<'_> {
        // SAFETY: An open block device file keeps its device, and that has a disk. By this type's
        // invariant it is a whole disk's.
        unsafe { Disk::new((*c::bdsnap_file_bdev(self.file.file.as_ptr())).bd_disk) }
    }
}

/// A whole disk that somebody has open for `'a`: we, or the submitter of a bio that we hold.
///
/// # Invariants
///
/// `disk` is valid for `'a`, and so are its queue and its whole device. Nothing is written to it through
/// this but by the kernel's own functions.
#[derive(Clone, Copy)]
pub(crate) struct Disk<'a> {
    disk: *mut gendisk,
    keeper: PhantomData<&'a OpenDisk>,
}

impl Disk<'_> {
    /// # Safety
    ///
    /// Somebody must have the disk open for as long as this is used.
    pub(crate) unsafe fn new(disk: *mut gendisk) -> Self {
        // INVARIANT: The caller's promise.
        Self { disk, keeper: PhantomData }
    }

    fn part0(&self) -> *mut block_device {
        // SAFETY: By the type's invariant; set before the disk could be opened.
        unsafe { (*self.disk).part0 }
    }

    /// The disk, and the medium that is in it now.
    pub(crate) fn id(&self) -> DiskId {
        // SAFETY: By the type's invariant.
        unsafe { disk_id(self.disk) }
    }

    /// Its sectors now.
    pub(crate) fn capacity(&self) -> u64 {
        // SAFETY: As in `part0`; a word that changes when the disk grows.
        unsafe { (&raw const (*self.part0()).bd_nr_sectors).read_volatile() }
    }

    /// Its device number.
    pub(crate) fn number(&self) -> (u32, u32) {
        // SAFETY: As in `part0`; set before the device could be opened.
        let dev = unsafe { (*self.part0()).bd_dev };
        (dev >> 20, dev & 0xf_ffff)
    }

    /// Bytes of a logical block.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: A disk's queue lives as long as the disk.
        unsafe { (*(*self.disk).queue).limits.logical_block_size }
    }

    /// Whether it has not been removed.
    pub(crate) fn is_alive(&self) -> bool {
        // SAFETY: By the type's invariant. The same in all that follow.
        unsafe { c::bdsnap_disk_alive(self.disk) }
    }

    /// Whether it is there, with the medium of that place.
    pub(crate) fn has(&self, place: &Place) -> bool {
        self.is_alive() && self.id() == place.id && self.capacity() != 0
    }

    /// EINVAL for zoned and DAX devices: their writes are not all bios.
    pub(crate) fn check_supported(&self) -> Result {
        // SAFETY: See `is_alive`.
        check(unsafe { c::bdsnap_disk_refusal(self.disk) })
    }

    /// Writes out the page caches of whatever overlaps these sectors.
    pub(crate) fn sync_caches(&self, start: u64, end: u64) {
        // SAFETY: See `is_alive`.
        unsafe { c::bdsnap_sync_range(self.disk, start, end) }
    }

    /// Flushes the drive's cache.
    pub(crate) fn flush(&self) -> Result {
        // SAFETY: See `is_alive`.
        check(unsafe { c::bdsnap_flush(self.disk) })
    }

    /// Requests in flight.
    pub(crate) fn inflight(&self) -> u32 {
        // SAFETY: See `is_alive`.
        unsafe { c::bdsnap_inflight(self.disk) }
    }

    /// Sectors that were written or discarded since it came, by its own statistics; `None`: it
    /// keeps none.
    pub(crate) fn written(&self) -> Option<u64> {
        let mut sectors = 0;
        // SAFETY: See `is_alive`; `sectors` is writable.
        unsafe { c::bdsnap_disk_written(self.disk, &mut sectors) }.then_some(sectors)
    }

    /// Whether writes can reach it without a bio.
    pub(crate) fn has_requests(&self) -> bool {
        // SAFETY: See `is_alive`.
        unsafe { c::bdsnap_disk_has_requests(self.disk) }
    }

    /// Whether a filesystem has a device in these sectors.
    pub(crate) fn is_mounted(&self, start: u64, end: u64) -> bool {
        // SAFETY: See `is_alive`.
        unsafe { c::bdsnap_range_mounted(self.disk, start, end, ptr::null()) }
    }

    /// Its name, as in /sys/block.
    pub(crate) fn name(&self) -> DiskName {
        // SAFETY: See `is_alive`.
        unsafe { DiskName::of(self.disk) }
    }

    /// Reads into `pages` and waits.
    pub(crate) fn read_sync(&self, sector: u64, pages: &[Page], bytes: usize) -> Result {
        // SAFETY: See `is_alive`; pages checked by `raw_pages`.
        check(unsafe { c::bdsnap_read_sync(self.disk, sector, raw_pages(pages, bytes), bytes) })
    }

    /// Reads into `pages`; the end is told by `bdsnap_read_done(cookie, …)`.
    ///
    /// # Safety
    ///
    /// `pages` and `cookie` must stay, and somebody must have the disk open, until then.
    pub(crate) unsafe fn read_start(
        &self,
        sector: u64,
        pages: &[Page],
        bytes: usize,
        cookie: *mut c_void,
    ) -> Result {
        // SAFETY: See `is_alive`; the rest is the caller's promise.
        check(unsafe {
            c::bdsnap_read_submit(self.disk, sector, raw_pages(pages, bytes), bytes, cookie)
        })
    }

    /// Sends an empty flush through the kernel's own path; while it is under
    /// way `mark` holds its address.
    pub(crate) fn self_test(&self, mark: &core::sync::atomic::AtomicPtr<c_void>) -> Result {
        // SAFETY: By the type's invariant; `mark` is writable for C.
        check(unsafe { c::bdsnap_self_test_submit(self.part0(), mark.as_ptr().cast()) })
    }
}

/// A disk, and the medium that is in it now.
///
/// # Safety
///
/// `disk` must be valid.
pub(crate) unsafe fn disk_id(disk: *const gendisk) -> DiskId {
    // SAFETY: The caller's promise; a word that is only compared.
    let seq = unsafe { (&raw const (*disk).diskseq).read_volatile() };
    DiskId { address: disk as usize, seq }
}

/// A disk's name, as in /sys/block.
#[derive(Clone, Copy)]
pub(crate) struct DiskName {
    bytes: [u8; 32],
    len: usize,
}

impl DiskName {
    /// # Safety
    ///
    /// `disk` must be valid.
    unsafe fn of(disk: *mut gendisk) -> Self {
        let mut bytes = [0; 32];
        // SAFETY: The caller's promise; `bytes` has so many.
        let n = unsafe { c::bdsnap_disk_name(disk, bytes.as_mut_ptr().cast(), bytes.len()) };
        let name = usize::try_from(n).ok().and_then(|n| bytes.get(..n)).unwrap_or(&[]);
        Self::new(name).unwrap_or(Self { bytes: [0; 32], len: 0 })
    }

    /// As the kernel or sysfs says it; EINVAL if it is too long.
    pub(crate) fn new(name: &[u8]) -> Result<Self> {
        let mut bytes = [0; 32];
        bytes.get_mut(..name.len()).ok_or(EINVAL)?.copy_from_slice(name);
        // In sysfs the slashes of a name are exclamation marks.
        bytes.iter_mut().filter(|b| **b == b'/').for_each(|b| *b = b'!');
        Ok(Self { bytes, len: name.len() })
    }

    /// EINVAL if it is not UTF-8.
    pub(crate) fn as_str(&self) -> Result<&str> {
        core::str::from_utf8(&self.bytes[..self.len]).map_err(|_| EINVAL)
    }
}

/// Whether the medium of a place is there, and then the size of the device in sectors. What sysfs says is
/// enough: nothing is opened. Walks a path of sysfs.
pub(crate) fn sectors_at(place: &Place) -> Result<u64> {
    let (major, minor) = (place.major, place.minor);
    let up = if place.partition { "../" } else { "" };
    let seq = CString::try_from_fmt(fmt!("/sys/dev/block/{}:{}/{}diskseq", major, minor, up))?;
    let size = CString::try_from_fmt(fmt!("/sys/dev/block/{}:{}/size", major, minor))?;
    if read_number(&seq)? != place.id.seq {
        return Err(ENXIO);
    }
    read_number(&size)
}

/// The number of a place's whole disk.
fn place_disk(place: &Place) -> Result<u32> {
    let (major, minor) = (place.major, place.minor);
    if !place.partition {
        return Ok(major << 20 | minor);
    }
    let mut text = [0; 32];
    let name = CString::try_from_fmt(fmt!("/sys/dev/block/{}:{}/../dev", major, minor))?;
    let n = read_text(&name, &mut text)?;
    devt(&text[..n])
}

/// What an open block device file stands for.
///
/// # Safety
///
/// `file` must be an open block device file.
pub(crate) unsafe fn info_of_file(file: *mut bindings::file) -> (BdevInfo, *mut block_device) {
    let mut info = core::mem::MaybeUninit::<BdevInfo>::uninit();
    // SAFETY: The caller's promise; C fills in all fields.
    unsafe {
        let bdev = c::bdsnap_file_bdev(file);
        c::bdsnap_bdev_info(bdev, info.as_mut_ptr());
        (info.assume_init(), bdev)
    }
}

/// The name of the disk of an open device.
///
/// # Safety
///
/// `info.disk` must be valid.
pub(crate) unsafe fn disk_name(info: &BdevInfo) -> DiskName {
    // SAFETY: The caller's promise.
    unsafe { DiskName::of(info.disk) }
}

/// Whether a filesystem has a device in these sectors of the disk of an open file, besides that file's
/// own device.
///
/// # Safety
///
/// `file` must be an open block device file.
pub(crate) unsafe fn is_mounted_besides(file: *mut bindings::file, sectors: &Sectors) -> bool {
    // SAFETY: The caller's promise; the file keeps the device and that its disk.
    unsafe {
        let bdev = c::bdsnap_file_bdev(file);
        c::bdsnap_range_mounted((*bdev).bd_disk, sectors.start, sectors.end, bdev)
    }
}

/// The original `bdev_file_open_by_dev`.
///
/// # Safety
///
/// As for the original.
pub(crate) unsafe fn orig_open(
    dev: u32,
    mode: u32,
    holder: *mut c_void,
    hops: *const c_void,
) -> *mut bindings::file {
    // SAFETY: The caller's promise.
    unsafe { c::bdsnap_orig_open(dev, mode, holder, hops) }
}

/// The original `bdev_fput`.
///
/// # Safety
///
/// As for the original.
pub(crate) unsafe fn orig_fput(file: *mut bindings::file) {
    // SAFETY: The caller's promise.
    unsafe { c::bdsnap_orig_fput(file) }
}

// --- Bios -------------------------------------------------------------------

/// A bio that is ours for the time being: it has been handed to us for
/// submission and nobody else touches it until it is sent on or completed.
///
/// # Invariants
///
/// The pointer is valid and the bio is not submitted.
pub(crate) struct HeldBio(NonNull<bio>);

// SAFETY: Ownership of an unsubmitted bio may move between tasks.
unsafe impl Send for HeldBio {}

impl HeldBio {
    /// Takes over a bio.
    ///
    /// # Safety
    ///
    /// `bio` must be valid, not submitted, and nobody else's from now on.
    pub(crate) unsafe fn new(bio: *mut bio) -> Option<Self> {
        // INVARIANT: The caller's promise.
        NonNull::new(bio).map(Self)
    }

    /// Looks at it.
    pub(crate) fn view(&self) -> BioView<'_> {
        // SAFETY: Valid by the type's invariant.
        unsafe { BioView::new(self.0.as_ptr()) }
    }

    /// Its disk.
    ///
    /// # Safety
    ///
    /// What is returned must not be used, nor what is read through it be under way, once the bio has gone.
    pub(crate) unsafe fn lend<'a>(&self) -> Option<Disk<'a>> {
        // SAFETY: A bio's device is valid while the bio is, and has a disk, which the submitter has open;
        // the rest is the caller's promise.
        unsafe { (*self.0.as_ptr()).bi_bdev.as_ref().map(|bdev| Disk::new(bdev.bd_disk)) }
    }

    /// Clears what does not go together with being held.
    pub(crate) fn prepare(&self) {
        // SAFETY: Valid and ours.
        unsafe { c::bdsnap_bio_prepare_hold(self.0.as_ptr()) }
    }

    /// Sends it on by the original function. May sleep.
    pub(crate) fn submit(self) {
        // SAFETY: Valid and ours; ownership goes with the call.
        unsafe { c::bdsnap_orig_submit(self.0.as_ptr()) }
    }

    /// Completes it with success, without any device.
    pub(crate) fn complete(self) {
        // SAFETY: As above.
        unsafe { c::bdsnap_bio_absorb(self.0.as_ptr()) }
    }

    /// Splits off the first `sectors` sectors; `None` without memory.
    pub(crate) fn split(&mut self, sectors: u32) -> Option<HeldBio> {
        // SAFETY: Valid and ours; C checks the number.
        let front = unsafe { c::bdsnap_bio_split(self.0.as_ptr(), sectors) };
        // INVARIANT: C made it for us; it completes as part of `self`.
        NonNull::new(front).map(Self)
    }

    /// Its address.
    pub(crate) fn into_raw(self) -> *mut bio {
        self.0.as_ptr()
    }
}

/// What the data path wants to know of a bio.
pub(crate) struct BioView<'a>(&'a bio);

/// `REQ_OP_DISCARD`.
pub(crate) const OP_DISCARD: u32 = 3;
/// `REQ_OP_SECURE_ERASE`.
pub(crate) const OP_SECURE_ERASE: u32 = 5;
/// `REQ_OP_WRITE_ZEROES`.
pub(crate) const OP_WRITE_ZEROES: u32 = 9;

impl<'a> BioView<'a> {
    /// # Safety
    ///
    /// `bio` must be valid for `'a` and not change.
    pub(crate) unsafe fn new(bio: *mut bio) -> Self {
        // SAFETY: The caller's promise.
        Self(unsafe { &*bio })
    }

    /// The operation, `REQ_OP_…`.
    pub(crate) fn op(&self) -> u32 {
        self.0.bi_opf & 0xff
    }

    /// Bytes; zero for a pure flush.
    pub(crate) fn bytes(&self) -> u32 {
        self.0.bi_iter.bi_size
    }

    /// Whether its submitter must not be made to wait.
    pub(crate) fn is_nowait(&self) -> bool {
        self.0.bi_opf & (1 << bindings::req_flag_bits___REQ_NOWAIT) != 0
    }

    /// Its disk, and the medium in that; `None` in malformed ones.
    pub(crate) fn disk(&self) -> Option<DiskId> {
        // SAFETY: A bio's device is valid while the bio is, and has a disk; `bi_bdev` is
        // checked.
        unsafe { self.0.bi_bdev.as_ref().map(|b| disk_id(b.bd_disk)) }
    }

    /// Whether the very device that it is for is claimed by a filesystem: device mapper, md
    /// and swap have no operations.
    pub(crate) fn is_for_a_filesystem(&self) -> bool {
        // SAFETY: As above; only compared.
        unsafe {
            self.0
                .bi_bdev
                .as_ref()
                .is_some_and(|b| !(&raw const b.bd_holder_ops).read_volatile().is_null())
        }
    }

    /// Where it writes, in sectors of the disk; `None` for what the original
    /// would refuse: no sectors, or beyond the device's end.
    pub(crate) fn sectors(&self) -> Option<Sectors> {
        // SAFETY: As in `disk`.
        let bdev = unsafe { self.0.bi_bdev.as_ref() }?;
        let count = u64::from(self.bytes() / 512);
        let relative = self.0.bi_iter.bi_sector;
        if count == 0 {
            return None;
        }
        if self.0.bi_flags & (1 << bindings::BIO_REMAPPED) != 0 {
            // Seen before: the sector is the disk's although the device is
            // still the partition.
            return Sectors::new(relative, count);
        }
        if relative.checked_add(count)? > bdev.bd_nr_sectors {
            return None;
        }
        Sectors::new(relative.checked_add(bdev.bd_start_sect)?, count)
    }
}

/// Bios in a row, linked through themselves.
///
/// # Invariants
///
/// Each is held, see [`HeldBio`]; `head` is null exactly if `tail` is.
pub(crate) struct BioList {
    head: *mut bio,
    tail: *mut bio,
}

// SAFETY: It owns its bios, see `HeldBio`.
unsafe impl Send for BioList {}

impl BioList {
    /// None.
    pub(crate) const fn new() -> Self {
        Self { head: ptr::null_mut(), tail: ptr::null_mut() }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Adds one at the end.
    pub(crate) fn push(&mut self, bio: HeldBio) {
        let bio = bio.into_raw();
        // SAFETY: All bios in the list are ours, by the type's invariant.
        unsafe {
            (*bio).bi_next = ptr::null_mut();
            if self.tail.is_null() {
                self.head = bio;
            } else {
                (*self.tail).bi_next = bio;
            }
        }
        self.tail = bio;
    }

    /// Takes the first.
    pub(crate) fn pop(&mut self) -> Option<HeldBio> {
        let bio = NonNull::new(self.head)?;
        // SAFETY: As above.
        unsafe {
            self.head = (*bio.as_ptr()).bi_next;
            (*bio.as_ptr()).bi_next = ptr::null_mut();
        }
        if self.head.is_null() {
            self.tail = ptr::null_mut();
        }
        // INVARIANT: It was held in the list.
        Some(HeldBio(bio))
    }

    /// The disk at this address, if one of them is for it.
    ///
    /// # Safety
    ///
    /// See [`HeldBio::lend`].
    pub(crate) unsafe fn lend<'a>(&self, address: usize) -> Option<Disk<'a>> {
        let mut at = self.head;
        // SAFETY: All bios in the list are ours, by the type's invariant; the rest is the caller's promise.
        unsafe {
            while let Some(bio) = at.as_ref() {
                let disk = bio.bi_bdev.as_ref().map(|bdev| Disk::new(bdev.bd_disk));
                if let Some(disk) = disk.filter(|disk| disk.id().address == address) {
                    return Some(disk);
                }
                at = bio.bi_next;
            }
        }
        None
    }

    /// Takes all of `other` behind its own.
    pub(crate) fn append(&mut self, other: &mut BioList) {
        if other.is_empty() {
            return;
        }
        if self.tail.is_null() {
            self.head = other.head;
        } else {
            // SAFETY: As above.
            unsafe { (*self.tail).bi_next = other.head };
        }
        self.tail = other.tail;
        *other = Self::new();
    }
}

// --- Names, paths, files ----------------------------------------------------

/// Looks a name up, following links, in the caller's root or in PID 1's.
/// With `canonical`, also writes the path without links into it.
pub(crate) fn name_info(
    name: &CStr,
    in_init_root: bool,
    canonical: Option<&mut [u8]>,
) -> Result<NameInfo> {
    let mut info = NameInfo::default();
    let (buf, len) = match canonical {
        Some(b) => (b.as_mut_ptr().cast(), b.len()),
        None => (ptr::null_mut(), 0),
    };
    // SAFETY: All are valid for their lengths; may sleep.
    check(unsafe { c::bdsnap_name_info(name.as_char_ptr(), in_init_root, &mut info, buf, len) })?;
    Ok(info)
}

/// The caller's working directory, ended by a NUL, into `buf`.
pub(crate) fn cwd(buf: &mut [u8]) -> Result {
    // SAFETY: Valid for its length.
    check(unsafe { c::bdsnap_cwd(buf.as_mut_ptr().cast(), buf.len()) })
}

/// Reads a short text file in PID 1's root; returns its length without line
/// feeds at the end.
pub(crate) fn read_text(name: &CStr, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: Valid for its length.
    let n = unsafe { c::bdsnap_read_text(name.as_char_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    if n < 0 {
        return Err(Error::from_errno(n));
    }
    Ok(n as usize)
}

/// The number that an attribute in sysfs holds.
pub(crate) fn read_number(name: &CStr) -> Result<u64> {
    let mut text = [0; 32];
    let n = read_text(name, &mut text)?;
    let text = core::str::from_utf8(&text[..n]).map_err(|_| EINVAL)?;
    text.parse().map_err(|_| EINVAL)
}

/// The names in a directory of /sys, each ended by a NUL; returns their bytes.
/// E2BIG if `buf` is too small.
pub(crate) fn list_dir(name: &CStr, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: `buf` is writable for its length.
    let n = unsafe { c::bdsnap_list_dir(name.as_char_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    if n < 0 {
        return Err(Error::from_errno(n));
    }
    Ok(n as usize)
}

/// A directory, pinned.
pub(crate) struct Dir {
    path: bindings::path,
    _live: Token,
}

// SAFETY: A path holds references of its own to what it points to.
unsafe impl Send for Dir {}
// SAFETY: As above; nothing changes it.
unsafe impl Sync for Dir {}

impl Drop for Dir {
    fn drop(&mut self) {
        // SAFETY: Resolved in one of the constructors.
        unsafe { c::bdsnap_path_put(&mut self.path) }
    }
}

/// What kind of filesystem a directory is on.
pub(crate) struct StoreInfo {
    /// Where it is, if it is on a disk.
    pub(crate) home: Option<Home>,
    /// The filesystem's magic.
    pub(crate) magic: u64,
    /// Whether it cannot be written.
    pub(crate) read_only: bool,
    /// Its superblock's address, to be compared only.
    pub(crate) sb: usize,
}

/// Some sectors of a disk.
pub(crate) struct Home {
    /// Of the medium.
    pub(crate) seq: u64,
    pub(crate) name: DiskName,
    pub(crate) sectors: Sectors,
}

impl Dir {
    fn with(fill: impl FnOnce(*mut bindings::path) -> c_int) -> Result<Self> {
        let mut path = core::mem::MaybeUninit::<bindings::path>::zeroed();
        check(fill(path.as_mut_ptr()))?;
        // SAFETY: C has filled it in.
        Ok(Self { path: unsafe { path.assume_init() }, _live: Token::new(Kind::Files) })
    }

    /// An absolute name, in PID 1's root.
    pub(crate) fn resolve(name: &CStr) -> Result<Self> {
        // SAFETY: `out` is writable.
        Self::with(|out| unsafe { c::bdsnap_path_resolve(name.as_char_ptr(), true, out) })
    }

    /// The same for a name of any kind; only good for `info`.
    pub(crate) fn resolve_any(name: &CStr) -> Result<Self> {
        // SAFETY: As above.
        Self::with(|out| unsafe { c::bdsnap_path_resolve(name.as_char_ptr(), false, out) })
    }

    /// A directory in this one; no link, no mount.
    pub(crate) fn child(&self, name: &CStr) -> Result<Self> {
        // SAFETY: As above; `self.path` is resolved.
        Self::with(|out| unsafe { c::bdsnap_path_at(&self.path, name.as_char_ptr(), out) })
    }

    /// What it is on.
    pub(crate) fn info(&self) -> StoreInfo {
        let mut raw = RawStoreInfo {
            disk: ptr::null_mut(),
            start: 0,
            sectors: 0,
            magic: 0,
            read_only: false,
            sb: ptr::null(),
        };
        // SAFETY: `self.path` is resolved, `raw` writable.
        unsafe { c::bdsnap_path_info(&self.path, &mut raw) };
        StoreInfo {
            home: NonNull::new(raw.disk).zip(Sectors::new(raw.start, raw.sectors)).map(
                |(disk, sectors)| Home {
                    // SAFETY: The path pins the filesystem, and that its disk.
                    seq: unsafe { disk_id(disk.as_ptr()) }.seq,
                    // SAFETY: As above.
                    name: unsafe { DiskName::of(disk.as_ptr()) },
                    sectors,
                },
            ),
            magic: raw.magic,
            read_only: raw.read_only,
            sb: raw.sb as usize,
        }
    }

    /// Total and free bytes of its filesystem.
    pub(crate) fn space(&self) -> Result<(u64, u64)> {
        let (mut total, mut free) = (0, 0);
        // SAFETY: Resolved; both writable.
        check(unsafe { c::bdsnap_path_space(&self.path, &mut total, &mut free) })?;
        Ok((total, free))
    }

    /// Makes a directory, 0700. EEXIST if the name is taken.
    pub(crate) fn mkdir(&self, name: &CStr) -> Result {
        // SAFETY: Resolved.
        check(unsafe { c::bdsnap_mkdir_at(&self.path, name.as_char_ptr()) })
    }

    /// Removes a file, or an empty directory.
    pub(crate) fn remove(&self, name: &CStr, directory: bool) -> Result {
        // SAFETY: Resolved.
        check(unsafe { c::bdsnap_remove_at(&self.path, name.as_char_ptr(), directory) })
    }

    /// Replaces `to` by `from`.
    pub(crate) fn rename(&self, from: &CStr, to: &CStr) -> Result {
        // SAFETY: Resolved.
        check(unsafe { c::bdsnap_rename_at(&self.path, from.as_char_ptr(), to.as_char_ptr()) })
    }

    fn open(&self, name: &CStr, flags: u32) -> Result<File> {
        // SAFETY: Resolved.
        File::from_raw(unsafe { c::bdsnap_open_at(&self.path, name.as_char_ptr(), flags as c_int) })
    }

    /// Opens a file to read and write.
    pub(crate) fn open_file(&self, name: &CStr) -> Result<File> {
        self.open(name, bindings::O_RDWR)
    }

    /// Opens a file to write past the page cache; what its file system wants of
    /// such writes it says when one comes.
    pub(crate) fn open_direct(&self, name: &CStr) -> Result<File> {
        self.open(name, bindings::O_WRONLY | bindings::O_DIRECT)
    }

    /// Makes a file, 0600, that must not exist; or, with `replace`, empties
    /// an existing one.
    pub(crate) fn create_file(&self, name: &CStr, replace: bool) -> Result<File> {
        let how = if replace { bindings::O_TRUNC } else { bindings::O_EXCL };
        self.open(name, bindings::O_RDWR | bindings::O_CREAT | how)
    }

    /// Makes the directory's entries durable.
    pub(crate) fn fsync(&self) -> Result {
        self.open(c".", bindings::O_RDONLY | bindings::O_DIRECTORY)?.fsync(false)
    }
}

/// An open file in the store.
///
/// # Invariants
///
/// The pointer is an open file and the reference is this value's.
pub(crate) struct File {
    file: NonNull<bindings::file>,
    _live: Token,
}

// SAFETY: A file's reference may move between tasks; no position is used.
unsafe impl Send for File {}
// SAFETY: Any number of tasks may use an open file at a time.
unsafe impl Sync for File {}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: Ours by the type's invariant; workers may sleep.
        unsafe { c::bdsnap_close(self.file.as_ptr()) }
    }
}

impl File {
    /// From what C has just opened for us, or an error.
    fn from_raw(file: *mut bindings::file) -> Result<Self> {
        let file = kernel::error::from_err_ptr(file)?;
        // INVARIANT: Just opened, ours.
        let file = NonNull::new(file).ok_or(EINVAL)?;
        Ok(File { file, _live: Token::new(Kind::Files) })
    }

    /// Opens a file by its name in PID 1's root.
    pub(crate) fn open_to_read(name: &CStr) -> Result<Self> {
        // SAFETY: A C string.
        Self::from_raw(unsafe { c::bdsnap_open_to_read(name.as_char_ptr()) })
    }

    /// Writes all of `buf` at `at`.
    pub(crate) fn write(&self, buf: &[u8], at: u64) -> Result {
        // SAFETY: Open; `buf` valid for its length. The same below.
        check(unsafe { c::bdsnap_write(self.file.as_ptr(), buf.as_ptr().cast(), buf.len(), at) })
    }

    /// Makes the contents of both durable.
    pub(crate) fn fsync_both(&self, other: &Self) -> Result {
        // SAFETY: See `write`.
        check(unsafe { c::bdsnap_fsync_both(self.file.as_ptr(), other.file.as_ptr()) })
    }

    /// Whether [`Self::fsync_in_place`] may be used for files beside this one.
    pub(crate) fn one_flush_is_enough(&self) -> bool {
        // SAFETY: See `write`.
        unsafe { c::bdsnap_one_flush(self.file.as_ptr()) }
    }

    /// The same, if [`Self::one_flush_is_enough`], and all that changed of the other since the last time is
    /// content in places that it had.
    pub(crate) fn fsync_in_place(&self, other: &Self) -> Result {
        // SAFETY: See `write`.
        check(unsafe { c::bdsnap_fsync_in_place(self.file.as_ptr(), other.file.as_ptr()) })
    }

    /// Writes `bytes` zeros at `at`.
    pub(crate) fn write_zeros(&self, bytes: u64, at: u64) -> Result {
        let bytes = usize::try_from(bytes)?;
        // SAFETY: See `write`; no pages stand for zeros.
        check(unsafe { c::bdsnap_write_pages(self.file.as_ptr(), ptr::null(), bytes, at) })
    }

    /// Cuts it to `len` bytes.
    pub(crate) fn truncate(&self, len: u64) -> Result {
        // SAFETY: See `write`.
        check(unsafe { c::bdsnap_truncate(self.file.as_ptr(), len) })
    }

    /// Reads at `at`; fewer bytes than asked only at the end.
    pub(crate) fn read(&self, buf: &mut [u8], at: u64) -> Result<usize> {
        // SAFETY: See `write`.
        let n =
            unsafe { c::bdsnap_read(self.file.as_ptr(), buf.as_mut_ptr().cast(), buf.len(), at) };
        if n < 0 {
            return Err(Error::from_errno(n));
        }
        Ok(n as usize)
    }

    /// Makes it durable.
    pub(crate) fn fsync(&self, data_only: bool) -> Result {
        // SAFETY: See `write`.
        check(unsafe { c::bdsnap_fsync(self.file.as_ptr(), data_only) })
    }
}

// --- Hooks, notifiers, watch ------------------------------------------------

/// The hooks, in the order of `enum bdsnap_hook`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Submit = 0,
    Open = 1,
    Fput = 2,
    Execute = 3,
    ExecuteNowait = 4,
    Cloned = 5,
    Syscall = 6,
}

/// Installs a hook. EBUSY if somebody else redirects that function.
pub(crate) fn hook_install(hook: Hook) -> Result {
    // SAFETY: Called from tasks that may sleep, one at a time.
    check(unsafe { c::bdsnap_hook_install(hook as c_int) })
}

/// Removes a hook, if it is installed.
pub(crate) fn hook_remove(hook: Hook) {
    // SAFETY: As above.
    unsafe { c::bdsnap_hook_remove(hook as c_int) }
}

/// What must be there before anything else, and goes last.
pub(crate) struct BioSets(());

impl BioSets {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Once, at load.
        check(unsafe { c::bdsnap_bios_init() })?;
        Ok(Self(()))
    }
}

impl Drop for BioSets {
    fn drop(&mut self) {
        // SAFETY: Initialised in `new`; no bio of them is left.
        unsafe { c::bdsnap_bios_exit() }
    }
}

/// Reboot and hibernation notifiers.
pub(crate) struct Notifiers(());

impl Notifiers {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Once, at load.
        check(unsafe { c::bdsnap_notifiers_register() })?;
        Ok(Self(()))
    }
}

impl Drop for Notifiers {
    fn drop(&mut self) {
        // SAFETY: Registered in `new`.
        unsafe { c::bdsnap_notifiers_unregister() }
    }
}

/// The task that calls `bdsnap_tick` regularly.
pub(crate) struct Watch(());

impl Watch {
    pub(crate) fn new(period_ms: u64) -> Result<Self> {
        // SAFETY: Once, at load.
        check(unsafe { c::bdsnap_watch_start(period_ms.min(3_600_000) as c_uint) })?;
        Ok(Self(()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: Started in `new`.
        unsafe { c::bdsnap_watch_stop() }
    }
}

/// A uevent on the control device.
///
/// # Safety
///
/// `dev` must be a registered device.
pub(crate) unsafe fn uevent(
    dev: *mut bindings::device,
    event: &CStr,
    device: &CStr,
    session: &CStr,
    error: i32,
) {
    // SAFETY: The caller's promise; the strings are NUL-ended. May sleep.
    unsafe {
        c::bdsnap_uevent(
            dev,
            event.as_char_ptr(),
            device.as_char_ptr(),
            session.as_char_ptr(),
            error,
        )
    }
}

/// A work queue of our own; drained when dropped.
pub(crate) struct WorkQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A work queue is made for use from all tasks.
unsafe impl Send for WorkQueue {}
// SAFETY: As above.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// Unbound, with a rescuer, so that it goes on when memory is short.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM;
        // SAFETY: A format without conversions and a number of workers.
        let q = unsafe { bindings::alloc_workqueue_noprof(name.as_char_ptr(), flags, 512) };
        NonNull::new(q).map(Self).ok_or(ENOMEM)
    }

    /// As the kernel crate's type.
    pub(crate) fn queue(&self) -> &kernel::workqueue::Queue {
        // SAFETY: Valid as long as `self`.
        unsafe { kernel::workqueue::Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: Ours; waits for what runs in it.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}

// --- More of names ----------------------------------------------------------

/// A device number as sysfs writes it, `MAJOR:MINOR`.
pub(crate) fn devt(text: &[u8]) -> Result<u32> {
    let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
    let (major, minor) = text.split_once(':').ok_or(EINVAL)?;
    let major: u32 = major.parse().map_err(|_| EINVAL)?;
    let minor: u32 = minor.parse().map_err(|_| EINVAL)?;
    Ok(major << 20 | minor)
}

impl crate::pure::queue::Bios for BioList {
    type Bio = HeldBio;

    fn none() -> Self {
        Self::new()
    }

    fn push(&mut self, bio: HeldBio) {
        BioList::push(self, bio);
    }

    fn pop(&mut self) -> Option<HeldBio> {
        BioList::pop(self)
    }

    fn append(&mut self, other: &mut Self) {
        BioList::append(self, other);
    }
}
