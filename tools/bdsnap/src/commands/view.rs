// SPDX-License-Identifier: GPL-2.0

//! `bdsnap view`: a device as it was, as a file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bdsnap_cli::{Common, Done};
use bdsnap_core::chain::Selector;
use bdsnap_core::device::Target;
use bdsnap_core::module::Module;
use bdsnap_core::restore::Accept;
use bdsnap_core::store::Store;
use bdsnap_core::view::{self, Request, View};
use bdsnap_core::{select, text, Error};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEntry, ReplyOpen,
};

use crate::{OfSession, ViewArgs};

/// Opens the view that the arguments mean.
pub(crate) fn open(common: &Common, args: &OfSession) -> Result<View, Error> {
    let store = Store::open(&common.store())?;
    // Until each of its sessions is locked.
    let _lock = store.lock_shared()?;
    let name = args.session.as_bytes();
    let (target, selector) = match &args.device {
        Some(device) => (Target::find(device)?, Selector::parse(name)),
        None => {
            let session = select::session(&store, &args.session)?;
            (view::target_of(&session)?, Selector::Name(session.dir))
        }
    };
    let module = Module::open()?.map(|m| Box::new(m) as view::Module);
    let accept = Accept { gap: args.accept_gap, loss: args.accept_loss, alone: true };
    let view = View::open(&Request { store: &store, target: &target, selector, accept }, module)?;
    for note in &view.about.notes {
        common.say(&format!("bdsnap: accepted: {}", text::escape(note.as_bytes())));
    }
    Ok(view)
}

const ROOT: u64 = 1;
const IMAGE: u64 = 2;
/// Nothing of it ever changes.
const TTL: Duration = Duration::from_secs(3600);

/// A directory with one file.
pub(crate) struct Image {
    name: Vec<u8>,
    view: Mutex<View>,
    bytes: u64,
    time: SystemTime,
    /// An error was said.
    said: AtomicBool,
}

impl Image {
    /// A view as a file of this name.
    pub(crate) fn of(view: View, name: Vec<u8>) -> Self {
        Self {
            name,
            bytes: view.bytes(),
            time: UNIX_EPOCH + Duration::from_nanos(view.about.start_ns),
            view: Mutex::new(view),
            said: AtomicBool::new(false),
        }
    }

    fn attr(&self, ino: u64) -> FileAttr {
        let dir = ino == ROOT;
        FileAttr {
            ino: INodeNo(ino),
            size: if dir { 0 } else { self.bytes },
            blocks: if dir { 0 } else { self.bytes.div_ceil(512) },
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            crtime: self.time,
            kind: if dir { FileType::Directory } else { FileType::RegularFile },
            perm: if dir { 0o500 } else { 0o400 },
            nlink: if dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Image {
    fn lookup(&self, _: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if u64::from(parent) == ROOT && name.as_bytes() == self.name {
            reply.entry(&TTL, &self.attr(IMAGE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &fuser::Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match u64::from(ino) {
            ino @ (ROOT | IMAGE) => reply.attr(&TTL, &self.attr(ino)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if u64::from(ino) != IMAGE {
            reply.error(Errno::EISDIR);
        } else if flags.0 & 3 != 0 {
            reply.error(Errno::EROFS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _: &fuser::Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if u64::from(ino) != IMAGE {
            return reply.error(Errno::EISDIR);
        }
        let len = u64::from(size).min(self.bytes.saturating_sub(offset));
        let mut buf = vec![0; len as usize];
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        match view.read(offset, &mut buf) {
            Ok(()) => reply.data(&buf),
            Err(e) => {
                if !self.said.swap(true, Ordering::Relaxed) {
                    bdsnap_cli::complain(&format!("bdsnap: {}", e.message));
                }
                reply.error(Errno::EIO);
            }
        }
    }

    fn readdir(
        &self,
        _: &fuser::Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if u64::from(ino) != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (ROOT, FileType::Directory, &b"."[..]),
            (ROOT, FileType::Directory, b".."),
            (IMAGE, FileType::RegularFile, &self.name),
        ];
        for (i, (ino, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(ino), i as u64 + 1, kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }
}

pub(crate) fn run(common: &Common, args: &ViewArgs) -> Result<Done, Error> {
    let mut view = open(common, &args.of)?;
    let mut head = vec![0; view.bytes().min(128 << 10) as usize];
    view.read(0, &mut head)?;
    let fs_type = bdsnap_core::abi::fs::Fs::of(&head).kind;
    let about = view.about.clone();
    let mut name = about.session.clone().into_bytes();
    name.extend(b".img");
    let file = text::escape(&[args.mountpoint.as_os_str().as_bytes(), b"/", &name].concat());
    let image = Image::of(view, name);

    let wish = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&wish))
            .map_err(|e| Error::io("cannot wait for signals", &e))?;
    }
    let mounted = mount(image, &args.mountpoint)?;
    common.say(&format!(
        "{file}: {} as it was at {}{}",
        text::escape(about.device.as_bytes()),
        bdsnap_cli::local_time(about.start_ns),
        if about.partial { " (PARTIAL)" } else { "" }
    ));
    common.say(&format!("  mount -o {} {file} DIRECTORY", options_for(fs_type)));
    common.say(if about.live {
        "  the device is in use meanwhile; its session goes on"
    } else {
        "  the device cannot be mounted meanwhile"
    });
    common.say(&format!("  ends with 'umount {}' or Ctrl-C", text::path(&args.mountpoint)));
    while !mounted.guard.is_finished() && !wish.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let ended =
        if mounted.guard.is_finished() { mounted.join() } else { mounted.umount_and_join() };
    ended.map_err(|e| {
        Error::io(format_args!("cannot unmount {}", text::path(&args.mountpoint)), &e)
            .hint("what is mounted from it has to be unmounted first")
    })?;
    Ok(Done::OK)
}

pub(crate) fn mount(image: Image, point: &Path) -> Result<BackgroundSession, Error> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::DefaultPermissions,
        MountOption::FSName("bdsnap".into()),
        MountOption::Subtype("bdsnap".into()),
    ];
    fuser::spawn_mount(image, point, &config).map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(2 | 19) => "the directory must exist; 'modprobe fuse' loads what is needed",
            _ => "see the kernel log",
        };
        let mut error = Error::io(format_args!("cannot mount on {}", text::path(point)), &e);
        error.hint.get_or_insert_with(|| hint.into());
        error
    })
}

/// Options that keep a file system from recovery, which a read-only image does
/// not allow, and from refusing an identity that is mounted already.
fn options_for(fs_type: &str) -> &'static str {
    match fs_type {
        "ext2" | "ext3" | "ext4" => "ro,loop,noload",
        "xfs" => "ro,loop,norecovery,nouuid",
        "btrfs" => "ro,loop,rescue=nologreplay",
        "f2fs" => "ro,loop,norecovery",
        _ => "ro,loop",
    }
}
