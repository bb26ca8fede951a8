// SPDX-License-Identifier: GPL-2.0

//! The control ABI of `/dev/bdsnap`.
//!
//! All structures are `repr(C)`, made of fixed-size integers without implicit
//! padding, the same for 32-bit callers (pointers travel as `u64`). Each
//! request begins with the ABI's version; the kernel answers `EPROTONOSUPPORT`
//! to another, and `ENOTTY` to a request that it does not know.
//!
//! Structures grow at their end, and are taken over by the length that both
//! sides know: a request's number says how long the caller's is, a status how
//! long the module's are. What a request lacks is zero. What it has beyond must
//! be zero (`E2BIG`), for it asks for something that the module cannot do; what
//! a status has beyond is passed over. So neither side need be the newer one.
//!
//! All calls need CAP_SYS_ADMIN in the initial user namespace (`EPERM`).

/// Version of this ABI.
pub const ABI_VERSION: u32 = 1;
/// Node of the control device.
pub const DEVICE_NODE: &str = "/dev/bdsnap";
/// Longest device name, in bytes (a longer one: `ENAMETOOLONG`).
pub const NAME_MAX: usize = 4095;
/// Longest password, in bytes (a longer one: `ENAMETOOLONG`).
pub const PASSWORD_MAX: usize = 255;
/// Longest secret line handed over, in bytes.
pub const SECRET_MAX: usize = 511;
/// Longest list of devices handed over, in bytes (1 MiB).
pub const DEVICES_MAX: usize = 1 << 20;
/// Longest status, in bytes (16 MiB).
pub const STATUS_MAX: usize = 16 << 20;

const TYPE: u32 = 0xbd;

/// `_IOWR(0xbd, nr, size)`: direction 3 in bits 30-31, size in bits 16-29.
const fn iowr(nr: u32, size: usize) -> u32 {
    (3 << 30) | ((size as u32) << 16) | (TYPE << 8) | nr
}

/// Number of [`IOC_ACTIVATE`].
pub const NR_ACTIVATE: u32 = 1;
/// Number of [`IOC_DEACTIVATE`].
pub const NR_DEACTIVATE: u32 = 2;
/// Number of [`IOC_HAND_OVER`].
pub const NR_HAND_OVER: u32 = 3;
/// Number of [`IOC_SETTLE`].
pub const NR_SETTLE: u32 = 4;
/// Number of [`IOC_STATUS`].
pub const NR_STATUS: u32 = 5;
/// Number of [`IOC_RESTORE`].
pub const NR_RESTORE: u32 = 6;
/// Number of [`IOC_IDENTIFY`].
pub const NR_IDENTIFY: u32 = 7;

/// Register a device: [`Control`].
pub const IOC_ACTIVATE: u32 = iowr(NR_ACTIVATE, core::mem::size_of::<Control>());
/// Remove a registration: [`Control`].
pub const IOC_DEACTIVATE: u32 = iowr(NR_DEACTIVATE, core::mem::size_of::<Control>());
/// Hand over secret, store and device list: [`HandOver`]. Once per load;
/// later ones get `EALREADY`.
pub const IOC_HAND_OVER: u32 = iowr(NR_HAND_OVER, core::mem::size_of::<HandOver>());
/// Look up registered names again, as after a udev event: [`Simple`].
pub const IOC_SETTLE: u32 = iowr(NR_SETTLE, core::mem::size_of::<Simple>());
/// Read the status: [`StatusRequest`].
pub const IOC_STATUS: u32 = iowr(NR_STATUS, core::mem::size_of::<StatusRequest>());
/// A restore of a device begins or ends: [`Restore`].
pub const IOC_RESTORE: u32 = iowr(NR_RESTORE, core::mem::size_of::<Restore>());
/// Say what a registered device is recognised by: [`Identify`]. `ENODEV` if none has this name.
pub const IOC_IDENTIFY: u32 = iowr(NR_IDENTIFY, core::mem::size_of::<Identify>());

/// A request's number, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Which one: `NR_…`.
    pub nr: u32,
    /// Bytes of the caller's structure.
    pub len: usize,
}

impl Call {
    /// `None` if it is no request of this ABI, of whatever age.
    pub const fn of(request: u32) -> Option<Self> {
        let Self { nr, len } =
            Self { nr: request & 0xff, len: ((request >> 16) & 0x3fff) as usize };
        if request == iowr(nr, len) {
            Some(Self { nr, len })
        } else {
            None
        }
    }
}

/// Bytes that both sides know of a structure that has `own` bytes here and
/// `theirs` there.
pub const fn known_to_both(own: usize, theirs: usize) -> usize {
    if own < theirs {
        own
    } else {
        theirs
    }
}

/// Takes over a structure of `theirs` bytes, which `read` gives one after the
/// other. What it lacks becomes zero in `own`. Returns whether all that it has
/// beyond is zero.
///
/// # Errors
///
/// That of `read`.
pub fn take_over<E>(
    own: &mut [u8],
    theirs: usize,
    mut read: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<bool, E> {
    let (known, lacking) = own.split_at_mut(known_to_both(own.len(), theirs));
    read(known)?;
    lacking.fill(0);
    let mut beyond = theirs - known.len();
    let mut piece = [0; 64];
    while beyond > 0 {
        let piece = &mut piece[..known_to_both(64, beyond)];
        read(piece)?;
        if piece.iter().any(|&b| b != 0) {
            return Ok(false);
        }
        beyond -= piece.len();
    }
    Ok(true)
}

/// For [`IOC_ACTIVATE`] and [`IOC_DEACTIVATE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Control {
    /// [`ABI_VERSION`].
    pub version: u32,
    /// 0: the module's default; 1: strict; 2: async.
    pub durability: u32,
    /// Address of the device's name (bytes, no NUL).
    pub name: u64,
    /// Its length, 1 to [`NAME_MAX`].
    pub name_len: u64,
    /// Address of the password.
    pub password: u64,
    /// Its length, 0 to [`PASSWORD_MAX`].
    pub password_len: u64,
    /// Out: `CONTROL_…` flags.
    pub flags: u64,
}

/// Out of [`IOC_ACTIVATE`]: the device is mounted, protection begins with
/// its next mount.
pub const CONTROL_MOUNTED: u64 = 1;
/// Out of [`IOC_ACTIVATE`]: no such device now; it is registered by name.
pub const CONTROL_ABSENT: u64 = 2;
/// Out of [`IOC_ACTIVATE`]: was registered already (perhaps by another name).
/// Out of [`IOC_DEACTIVATE`]: was not registered.
pub const CONTROL_ALREADY: u64 = 4;

/// For [`IOC_HAND_OVER`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct HandOver {
    /// [`ABI_VERSION`].
    pub version: u32,
    /// Must be 0.
    pub flags: u32,
    /// Address of the secret's line (see [`super::secret`]).
    pub secret: u64,
    /// Its length, at most [`SECRET_MAX`]; 0: no secret, control is refused.
    pub secret_len: u64,
    /// Address of the store's path, absolute.
    pub store: u64,
    /// Its length; 0: `/snapshot`.
    pub store_len: u64,
    /// Address of the devices to register: names, each ended by a NUL.
    pub devices: u64,
    /// Their length, at most [`DEVICES_MAX`].
    pub devices_len: u64,
    /// Out: how many of them were registered.
    pub registered: u64,
}

/// For [`IOC_SETTLE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Simple {
    /// [`ABI_VERSION`].
    pub version: u32,
    /// [`SETTLE_RAW`] or 0.
    pub flags: u32,
}

/// For [`IOC_SETTLE`]: raw sessions are to be ended, as if nobody had written
/// for a while.
pub const SETTLE_RAW: u32 = 1;

/// For [`IOC_STATUS`]: the answer is a [`StatusHead`], then the entries.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct StatusRequest {
    /// [`ABI_VERSION`].
    pub version: u32,
    /// Must be 0.
    pub flags: u32,
    /// Address of the buffer.
    pub buf: u64,
    /// Its length.
    pub len: u64,
    /// Out: length of the whole answer. If larger than `len` nothing was
    /// written: call again with more.
    pub needed: u64,
}

/// For [`IOC_RESTORE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Restore {
    /// [`ABI_VERSION`].
    pub version: u32,
    /// [`RESTORE_BEGIN`], [`RESTORE_WRITE`], [`RESTORE_END`], [`RESTORE_ABORT`].
    pub phase: u32,
    /// Address of the device's node (`/dev/vdb`) or of the image's path.
    pub name: u64,
    /// Its length.
    pub name_len: u64,
    /// Out: `RESTORE_…` flags.
    pub flags: u64,
    /// Out: the session that the chain now ends with (id), zeros if none.
    pub tail: [u8; 16],
}

/// Writes to the device from now on are the restore's own. `EBUSY` while a
/// session runs on it, somebody writes to it, or another restore does.
pub const RESTORE_BEGIN: u32 = 1;
/// The restore is complete and the chain's tail file says so.
pub const RESTORE_END: u32 = 2;
/// The restore was given up after it had begun to write: a gap.
pub const RESTORE_ABORT: u32 = 3;

/// The restore is about to write. `EBUSY` if somebody has written since
/// [`RESTORE_BEGIN`].
pub const RESTORE_WRITE: u32 = 4;

/// Out of [`IOC_RESTORE`]: the device is registered.
pub const RESTORE_REGISTERED: u64 = 1;
/// Out of [`RESTORE_BEGIN`]: a write outside a session was seen since the
/// last one.
pub const RESTORE_WRITTEN: u64 = 2;
/// Out of [`RESTORE_BEGIN`]: the module watched the device without a break
/// since the chain's tail was written.
pub const RESTORE_WATCHED: u64 = 4;
/// Out of [`RESTORE_END`] and [`RESTORE_ABORT`]: others wrote to the device
/// while the restore wrote.
pub const RESTORE_OTHERS: u64 = 8;
/// Out of [`RESTORE_BEGIN`]: the disk's statistics cannot vouch that nothing
/// was written past the module.
pub const RESTORE_UNSEEN: u64 = 16;

/// For [`IOC_IDENTIFY`]: what a kernel module cannot ask of a device itself. It goes into the headers of its sessions.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Identify {
    /// [`ABI_VERSION`].
    pub version: u32,
    /// Must be 0.
    pub flags: u32,
    /// Address of the device's registered name.
    pub name: u64,
    /// Its length, 1 to [`NAME_MAX`].
    pub name_len: u64,
    /// The sequence number of the medium that the rest was asked of. Sessions of another one do not say it.
    pub diskseq: u64,
    /// The partition's identity, as its table has it: raw, filled up with zeros; zeros: not known.
    pub partuuid: [u8; 16],
    /// Bytes of `serial` in use, at most [`super::format::SERIAL_MAX`] (more: `EINVAL`).
    pub serial_len: u64,
    /// The device's serial number, or what else stands for it.
    pub serial: [u8; 136],
}

impl Default for Identify {
    fn default() -> Self {
        Self {
            version: 0,
            flags: 0,
            name: 0,
            name_len: 0,
            diskseq: 0,
            partuuid: [0; 16],
            serial_len: 0,
            serial: [0; 136],
        }
    }
}

/// The beginning of a status.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct StatusHead {
    /// [`ABI_VERSION`].
    pub version: u32,
    /// Bytes of this structure: entries begin there.
    pub head_len: u32,
    /// This load of the module.
    pub load_id: [u8; 16],
    /// `MODULE_…` flags.
    pub flags: u64,
    /// Number of the activating system call, 0 if there is none.
    pub sysc_activate: u32,
    /// Number of the deactivating system call.
    pub sysc_deactivate: u32,
    /// Number of registrations, each an [`Entry`] below.
    pub registrations: u64,
    /// Sessions recording now.
    pub sessions: u64,
    /// Sessions since load.
    pub sessions_total: u64,
    /// Sessions broken since load.
    pub sessions_broken: u64,
    /// Bios held since load.
    pub held_bios: u64,
    /// Pre-images saved since load, in bytes.
    pub saved_bytes: u64,
    /// Discards completed without reaching a device, in bytes.
    pub absorbed_bytes: u64,
    /// Memory for pre-images now, in bytes.
    pub memory_bytes: u64,
    /// The most that it was.
    pub memory_peak_bytes: u64,
    /// Its limit.
    pub memory_limit_bytes: u64,
    /// Longest a bio may be held, in milliseconds.
    pub hold_timeout_ms: u64,
    /// Space in the store below which sessions break, in bytes; 0: default.
    pub min_free_bytes: u64,
    /// Default chunk size in bytes.
    pub chunk_size: u32,
    /// Default durability: 1 strict, 2 async.
    pub durability: u32,
    /// 0 absorb, 1 copy, 2 pass.
    pub discard: u32,
    /// Result of the self-test: 0 passed, else a positive errno; `u32::MAX`:
    /// not run yet (it runs at the first registration).
    pub self_test: u32,
    /// Live objects by kind; see [`LIVE_KINDS`].
    pub live: [u64; 8],
    /// Wrong passwords since load.
    pub auth_failures: u64,
    /// Bytes of `store` in use.
    pub store_len: u64,
    /// Path of the store.
    pub store: [u8; 1024],
    /// The version of the store's format that it writes (`format::Version`); 0: the first.
    pub format_version: u32,
    /// 0.
    pub reserved: u32,
}

impl Default for StatusHead {
    fn default() -> Self {
        Self {
            version: 0,
            head_len: 0,
            load_id: [0; 16],
            flags: 0,
            sysc_activate: 0,
            sysc_deactivate: 0,
            registrations: 0,
            sessions: 0,
            sessions_total: 0,
            sessions_broken: 0,
            held_bios: 0,
            saved_bytes: 0,
            absorbed_bytes: 0,
            memory_bytes: 0,
            memory_peak_bytes: 0,
            memory_limit_bytes: 0,
            hold_timeout_ms: 0,
            min_free_bytes: 0,
            chunk_size: 0,
            durability: 0,
            discard: 0,
            self_test: 0,
            live: [0; 8],
            auth_failures: 0,
            store_len: 0,
            store: [0; 1024],
            format_version: 0,
            reserved: 0,
        }
    }
}

/// Names of the counters in [`StatusHead::live`].
pub const LIVE_KINDS: [&str; 8] =
    ["bios", "pages", "sessions", "files", "works", "volumes", "claims", "slices"];

/// In [`StatusHead::flags`]: a secret was handed over.
pub const MODULE_SECRET: u64 = 1;
/// The hand-over took place; another is refused.
pub const MODULE_SEALED: u64 = 2;
/// The hooks on bios and claims are installed.
pub const MODULE_HOOKS: u64 = 4;
/// The hook behind the system calls is installed.
pub const MODULE_SYSCALLS: u64 = 8;

/// A registration, and its session if one runs. Followed by the name, filled
/// up with zeros to a multiple of eight bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Entry {
    /// Bytes of this structure without the name.
    pub len: u32,
    /// Bytes of the name (without the filling).
    pub name_len: u32,
    /// `ENTRY_…` flags.
    pub flags: u64,
    /// Device number, if present.
    pub major: u32,
    /// Device number, if present.
    pub minor: u32,
    /// Start on its disk, in sectors.
    pub start: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Claims by filesystems now.
    pub claims: u64,
    /// Its last or running session.
    pub session_id: [u8; 16],
    /// That session's place in the chain; 0: it has written nothing.
    pub chain_seq: u64,
    /// When it started, ns since 1970.
    pub start_ns: u64,
    /// State (`format::State`), 0: no session since load.
    pub state: u32,
    /// Durability: 1 strict, 2 async.
    pub durability: u32,
    /// Why it broke: a positive errno.
    pub errno: u32,
    /// `format::Gap` before it.
    pub gap_before: u32,
    /// Sector (from the device's start) that could not be saved.
    pub broken_sector: u64,
    /// When it broke, ns since 1970.
    pub broken_ns: u64,
    /// Bios held in it.
    pub held_bios: u64,
    /// Bios held now.
    pub holding: u64,
    /// Chunks saved in it.
    pub saved_chunks: u64,
    /// Bytes saved in it.
    pub saved_bytes: u64,
    /// Bytes of discards absorbed in it.
    pub absorbed_bytes: u64,
    /// Memory of its saved-set in bytes.
    pub saved_set_bytes: u64,
    /// Bytes of the session's directory name that follow the device name
    /// (in its own filled-up field); 0: none made.
    pub dir_len: u64,
    /// Bytes that the disk's statistics say were written and that did not pass
    /// the module, since the last session; `u64::MAX`: cannot be told.
    pub unseen_bytes: u64,
}

impl Entry {
    /// One of which nothing was said: what a module that does not know a field
    /// leaves it at.
    pub fn unsaid() -> Self {
        Self { unseen_bytes: u64::MAX, ..Self::default() }
    }
}

/// In [`Entry::flags`]: the device is there.
pub const ENTRY_PRESENT: u64 = 1;
/// A session is recording.
pub const ENTRY_RECORDING: u64 = 2;
/// Writes were seen outside a session since the last one.
pub const ENTRY_WRITTEN: u64 = 4;
/// It is an image file.
pub const ENTRY_IMAGE: u64 = 8;
/// It was mounted when it was registered, and is unprotected until remounted.
pub const ENTRY_UNPROTECTED: u64 = 16;
/// The device cannot be protected; `errno` says why.
pub const ENTRY_REFUSED: u64 = 32;
/// A restore is writing to it.
pub const ENTRY_RESTORING: u64 = 64;
/// The session that records is a raw one.
pub const ENTRY_RAW: u64 = 128;
/// Others wrote during the last restore.
pub const ENTRY_OTHERS: u64 = 256;
/// Writes passed that no session has saved: by what was seen of them, or by the disk's statistics.
pub const ENTRY_UNSEEN: u64 = 512;

const _: () = {
    assert!(core::mem::size_of::<Control>() == 48);
    assert!(core::mem::size_of::<HandOver>() == 64);
    assert!(core::mem::size_of::<Simple>() == 8);
    assert!(core::mem::size_of::<StatusRequest>() == 32);
    assert!(core::mem::size_of::<Restore>() == 48);
    assert!(core::mem::size_of::<Identify>() == 192);
    assert!(core::mem::size_of::<StatusHead>() == 1264);
    assert!(core::mem::size_of::<Entry>() == 176);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(own: usize, theirs: &[u8]) -> (Vec<u8>, bool, usize) {
        let (mut own, mut at) = (vec![0xee; own], 0);
        let read = |piece: &mut [u8]| {
            piece.copy_from_slice(&theirs[at..at + piece.len()]);
            at += piece.len();
            Ok::<_, ()>(())
        };
        let clean = take_over(&mut own, theirs.len(), read).unwrap();
        (own, clean, at)
    }

    #[test]
    fn shorter_equal_longer() {
        assert_eq!(taken(4, &[1, 2]), (vec![1, 2, 0, 0], true, 2));
        assert_eq!(taken(4, &[]), (vec![0; 4], true, 0));
        assert_eq!(taken(2, &[1, 2]), (vec![1, 2], true, 2));
        assert_eq!(taken(2, &[1, 2, 0, 0, 0]), (vec![1, 2], true, 5));
        assert_eq!(taken(2, &[1, 2, 0, 0, 3]), (vec![1, 2], false, 5));
        let mut long = vec![0; 2 + 3 * 64];
        assert_eq!(taken(2, &long), (vec![0; 2], true, long.len()));
        *long.last_mut().unwrap() = 1;
        assert!(!taken(2, &long).1);
    }

    #[test]
    fn what_cannot_be_read() {
        let mut own = [0xee; 4];
        assert_eq!(take_over(&mut own, 8, |_| Err(14)), Err(14));
        let mut first = true;
        let beyond = |_: &mut [u8]| if std::mem::take(&mut first) { Ok(()) } else { Err(14) };
        assert_eq!(take_over(&mut own, 8, beyond), Err(14), "beyond");
    }

    #[test]
    fn numbers() {
        let all = [
            (IOC_ACTIVATE, NR_ACTIVATE, size_of::<Control>()),
            (IOC_DEACTIVATE, NR_DEACTIVATE, size_of::<Control>()),
            (IOC_HAND_OVER, NR_HAND_OVER, size_of::<HandOver>()),
            (IOC_SETTLE, NR_SETTLE, size_of::<Simple>()),
            (IOC_STATUS, NR_STATUS, size_of::<StatusRequest>()),
            (IOC_RESTORE, NR_RESTORE, size_of::<Restore>()),
            (IOC_IDENTIFY, NR_IDENTIFY, size_of::<Identify>()),
        ];
        for (request, nr, len) in all {
            assert_eq!(Call::of(request), Some(Call { nr, len }));
        }
        assert_eq!(Call::of(0xc030_bd01), Some(Call { nr: NR_ACTIVATE, len: 48 }), "for ever");
        assert_eq!(Call::of(0xc0f8_bd01), Some(Call { nr: NR_ACTIVATE, len: 0xf8 }));
        for other in [0, 0xbd01, 0x4030_bd01, 0x8030_bd01, 0xc030_bc01, 0x5401, u32::MAX] {
            assert_eq!(Call::of(other), None, "{other:x}");
        }
    }

    proptest! {
        #[test]
        fn any_lengths(own in 0usize..300, theirs in prop::collection::vec(0u8..2, 0..300)) {
            let (got, clean, read) = taken(own, &theirs);
            let known = known_to_both(own, theirs.len());
            prop_assert_eq!(&got[..known], &theirs[..known]);
            prop_assert!(got[known..].iter().all(|&b| b == 0));
            prop_assert_eq!(clean, theirs[known..].iter().all(|&b| b == 0));
            prop_assert!(read <= theirs.len());
            prop_assert!(!clean || read == theirs.len());
        }
    }
}
