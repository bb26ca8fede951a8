// SPDX-License-Identifier: GPL-2.0

//! Which installed kernels have the module, and why others don't: for a user
//! who finds his devices unprotected.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::fsutil;
use crate::text;

/// The first Linux that the module is for.
const FIRST: (u32, u32) = (7, 2);
/// The note in which the loader keeps what the linker called the module.
const RUNNING_ID: &str = "sys/module/bdsnap/notes/.note.gnu.build-id";
/// Longest module that is looked into, in bytes.
const FILE_MAX: usize = 64 << 20;

/// An installed kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// Its module, if it has one.
    pub module: Option<PathBuf>,
}

/// Why something is not so, and what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Why.
    pub cause: String,
    /// What the user can do.
    pub cure: String,
}

fn reason(cause: impl Into<String>, cure: impl Into<String>) -> Reason {
    Reason { cause: cause.into(), cure: cure.into() }
}

/// The machine's files; tests have others.
#[derive(Debug, Clone)]
pub struct System {
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl System {
    /// A system whose files are below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    fn word(&self, below: impl AsRef<Path>) -> Option<String> {
        let bytes = std::fs::read(self.path(below)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The running kernel's release.
    pub fn running(&self) -> String {
        self.word("proc/sys/kernel/osrelease").unwrap_or_default()
    }

    /// The installed kernels: those with drivers or with a module of ours.
    pub fn kernels(&self) -> Vec<Kernel> {
        let Ok(dir) = self.path("lib/modules").read_dir() else { return Vec::new() };
        let mut kernels: Vec<_> = dir
            .flatten()
            .filter(|e| e.path().join("kernel").is_dir())
            .map(|e| {
                let release = e.file_name().to_string_lossy().into_owned();
                Kernel { module: self.module(&release), release }
            })
            .collect();
        kernels.sort_by_key(|k| numbers(&k.release));
        kernels
    }

    /// The module's file for a kernel, as modprobe would find it.
    pub fn module(&self, release: &str) -> Option<PathBuf> {
        let dir = Path::new("lib/modules").join(release);
        let index = std::fs::read(self.path(dir.join("modules.dep"))).ok()?;
        let index = String::from_utf8_lossy(&index);
        let file =
            index.lines().filter_map(|line| line.split_once(':')).find_map(|(path, _)| {
                let name = path.rsplit('/').next()?;
                (name == "bdsnap.ko" || name.starts_with("bdsnap.ko.")).then_some(path)
            })?;
        let path = self.path(dir).join(file);
        path.is_file().then_some(path)
    }

    /// Why a kernel has no module.
    pub fn why_no_module(&self, release: &str) -> Reason {
        let dir = Path::new("lib/modules").join(release);
        let is_there = |p: &Path| self.path(p).exists();
        let again = format!("dkms autoinstall -k {release}");
        if numbers(release) < vec![FIRST.0, FIRST.1] {
            return reason(
                "it is older than Linux 7.2",
                "boot a kernel of Linux 7.2 or later; Debian 13 has them in trixie-backports \
                 (linux-image-amd64/trixie-backports)",
            );
        }
        if !self.has_source() {
            return reason("the package bdsnap-dkms is not installed", "apt install bdsnap-dkms");
        }
        if !is_there(&dir.join("build/include")) {
            return reason(
                "its headers are not installed",
                format!("apt install linux-headers-{release}"),
            );
        }
        if let Some(why) = self.word(format!("var/cache/bdsnap/kbuild/{release}.reason")) {
            return reason(text::escape(why.as_bytes()), again);
        }
        let config = self.word(dir.join("build/include/config/auto.conf")).unwrap_or_default();
        if !config.lines().any(|l| l == "CONFIG_RUST=y") {
            return reason(
                "it is built without Rust (CONFIG_RUST)",
                "boot one of Debian's own kernels of Linux 7.2 or later",
            );
        }
        reason("DKMS has not built it yet, or failed to: see 'dkms status'", again)
    }

    fn has_source(&self) -> bool {
        self.path("usr/src").read_dir().is_ok_and(|dir| {
            dir.flatten().any(|e| {
                e.file_name().as_encoded_bytes().starts_with(b"bdsnap-")
                    && e.path().join("dkms.conf").exists()
            })
        })
    }

    /// Why the kernel takes signed modules only; `None` if it takes others.
    fn signatures(&self) -> Option<&'static str> {
        if self.word("sys/module/module/parameters/sig_enforce").as_deref() == Some("Y") {
            return Some("module.sig_enforce, or Secure Boot");
        }
        let lockdown = self.word("sys/kernel/security/lockdown")?;
        (!lockdown.contains("[none]")).then_some("lockdown")
    }

    /// Why the module is not loaded, as an error for all that needs it.
    pub fn not_loaded(&self) -> Error {
        let running = self.running();
        let release = text::escape(running.as_bytes());
        let error = |r: Reason| {
            Error::not_found(format!(
                "the bdsnap module is not loaded, and there is none for the running kernel \
                 {release}: {}",
                r.cause
            ))
            .hint(r.cure)
        };
        if self.module(&running).is_none() {
            return error(self.why_no_module(&running));
        }
        let e = Error::not_found("the bdsnap module is not loaded");
        match self.signatures() {
            None => e.hint("modprobe bdsnap"),
            Some(why) => Error::not_found(format!(
                "{}; this kernel loads only modules signed with a key that it knows ({why})",
                e.message
            ))
            .hint(ENROL),
        }
    }

    /// What modprobe's complaint means.
    pub fn load_failed(&self, said: &str) -> Error {
        let running = self.running();
        if self.module(&running).is_none() {
            return self.not_loaded();
        }
        let e = Error::other(format!("modprobe bdsnap: {}", text::escape(said.trim().as_bytes())));
        let unsigned =
            ["Key was rejected", "Required key", "Operation not permitted", "Bad message"];
        if unsigned.iter().any(|u| said.contains(u)) && self.signatures().is_some() {
            return e.hint(ENROL);
        }
        e.hint("the kernel log says more: journalctl -k -g bdsnap")
    }

    /// Whether the installed module is another build than the one that runs;
    /// `None` if that cannot be told. Compression and signature do not count.
    pub fn is_outdated(&self) -> Option<bool> {
        let running = build_id(&std::fs::read(self.path(RUNNING_ID)).ok()?)?.to_vec();
        let file = self.module(&self.running())?;
        Some(running != elf_build_id(&unpacked(&file)?)?)
    }
}

/// The content of a module's file, which may be compressed.
fn unpacked(path: &Path) -> Option<Vec<u8>> {
    let program = match path.extension()?.to_str()? {
        "ko" => return fsutil::read_small(path, FILE_MAX).ok(),
        "xz" => "/usr/bin/xz",
        "zst" => "/usr/bin/zstd",
        "gz" => "/usr/bin/gzip",
        _ => return None,
    };
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(File::open(path).ok()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut bytes = Vec::new();
    let read = child.stdout.take()?.take(FILE_MAX as u64).read_to_end(&mut bytes);
    // Of what is longer it cannot write the rest, and fails.
    let ended = child.wait().is_ok_and(|s| s.success());
    (read.is_ok() && ended).then_some(bytes)
}

/// What the linker called a module: it is in a section of notes.
fn elf_build_id(elf: &[u8]) -> Option<Vec<u8>> {
    const SHT_NOTE: usize = 7;
    // 64 bits, little-endian
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (start, size, count) =
        (number(elf, 0x28, 8)?, number(elf, 0x3a, 2)?, number(elf, 0x3c, 2)?);
    for i in 0..count {
        let header = start.checked_add(i * size)?;
        let field = |at: usize, len| number(elf, header.checked_add(at)?, len);
        if field(4, 4)? != SHT_NOTE {
            continue;
        }
        let (from, len) = (field(0x18, 8)?, field(0x20, 8)?);
        let notes = elf.get(from..from.checked_add(len)?)?;
        if let Some(id) = build_id(notes) {
            return Some(id.to_vec());
        }
    }
    None
}

/// The one of these notes that is a build's identity.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: usize = 3;
    loop {
        let (name_len, len) = (number(notes, 0, 4)?, number(notes, 4, 4)?);
        let kind = number(notes, 8, 4)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let from = 12 + name_len.checked_next_multiple_of(4)?;
        let content = notes.get(from..from.checked_add(len)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && !content.is_empty() {
            return Some(content);
        }
        notes = notes.get(from + len.checked_next_multiple_of(4)?..)?;
    }
}

/// A little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let mut word = [0; 8];
    word[..len].copy_from_slice(bytes.get(at..at.checked_add(len)?)?);
    usize::try_from(u64::from_le_bytes(word)).ok()
}

const ENROL: &str = "enrol DKMS's key once (it asks for a password, and at the next boot the \
                     firmware asks for it again): mokutil --import /var/lib/dkms/mok.pub, then \
                     reboot";

/// The leading numbers of a release: 7.3.4+deb13-amd64 is 7, 3, 4.
fn numbers(release: &str) -> Vec<u32> {
    let end = release.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(release.len());
    release[..end].split('.').map_while(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        dir: tempfile::TempDir,
        system: System,
    }

    fn fake(release: &str) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake { system: System::at(dir.path()), dir };
        fake.write("proc/sys/kernel/osrelease", release);
        fake.write(&format!("lib/modules/{release}/kernel/x"), "");
        fake
    }

    impl Fake {
        fn write(&self, path: &str, content: &str) {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        fn says(&self, cause: &str, cure: &str) {
            let e = self.system.not_loaded();
            assert!(e.message.contains(cause), "{} / {cause}", e.message);
            assert!(e.hint.as_deref().unwrap().contains(cure), "{:?} / {cure}", e.hint);
        }
    }

    #[test]
    fn each_reason_has_its_cure() {
        fake("6.12.107+deb13-amd64").says("older than Linux 7.2", "trixie-backports");
        let k = "7.3.4+deb13-amd64";
        let f = fake(k);
        f.says("bdsnap-dkms is not installed", "apt install bdsnap-dkms");
        f.write("usr/src/bdsnap-0.1.0/dkms.conf", "");
        f.says("headers", "apt install linux-headers-7.3.4+deb13-amd64");
        f.write(&format!("lib/modules/{k}/build/include/config/auto.conf"), "CONFIG_X=y\n");
        f.says("without Rust", "Debian's own");
        f.write(&format!("lib/modules/{k}/build/include/config/auto.conf"), "CONFIG_RUST=y\n");
        f.says("not built it yet", "dkms autoinstall -k 7.3.4+deb13-amd64");
        f.write(&format!("var/cache/bdsnap/kbuild/{k}.reason"), "no rustc: install it\x1b[1m\n");
        f.says("no rustc: install it\\u{1b}[1m", "dkms autoinstall");
        f.write(
            &format!("lib/modules/{k}/modules.dep"),
            "kernel/a/xbdsnap.ko: b\nupdates/bdsnap.ko.xz:\n",
        );
        f.says("no rustc", "dkms");
        f.write(&format!("lib/modules/{k}/updates/bdsnap.ko.xz"), "1");
        f.says("is not loaded", "modprobe bdsnap");
        f.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n");
        f.says("is not loaded", "modprobe bdsnap");
        f.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
        f.says("lockdown", "mokutil");
        f.write("sys/module/module/parameters/sig_enforce", "Y\n");
        f.says("sig_enforce", "mokutil");
        let e =
            f.system.load_failed("ERROR: could not insert 'bdsnap': Key was rejected by service");
        assert!(e.hint.unwrap().contains("mokutil"));
    }

    #[test]
    fn kernels_in_order_with_their_modules() {
        let f = fake("7.3.4+deb13-amd64");
        f.write("lib/modules/7.10.1+deb13-amd64/kernel/x", "");
        f.write("lib/modules/7.2.12+deb13-amd64/kernel/x", "");
        f.write("lib/modules/7.2.12+deb13-amd64/modules.dep", "updates/dkms/bdsnap.ko.xz:\n");
        f.write("lib/modules/7.2.12+deb13-amd64/updates/dkms/bdsnap.ko.xz", "");
        f.write("lib/modules/7.2.11+deb13-amd64/build/x", "");
        let found: Vec<_> =
            f.system.kernels().into_iter().map(|k| (k.release, k.module.is_some())).collect();
        let of = |r: &str, has| (format!("{r}+deb13-amd64"), has);
        assert_eq!(found, [of("7.2.12", true), of("7.3.4", false), of("7.10.1", false)]);
    }

    /// A note as the linker writes it.
    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for n in [name.len() as u32, content.len() as u32, kind] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for part in [name, content] {
            out.extend_from_slice(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    /// A module with these notes, in sections of their own, and other bytes.
    fn module(notes: &[Vec<u8>], code: &[u8]) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(0x40, 0);
        out.extend_from_slice(code);
        let mut sections = vec![(1u32, 0x40, code.len())];
        for n in notes {
            sections.push((7, out.len(), n.len()));
            out.extend_from_slice(n);
        }
        let start = out.len() as u64;
        out[0x28..0x30].copy_from_slice(&start.to_le_bytes());
        out[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        out[0x3c..0x3e].copy_from_slice(&(sections.len() as u16).to_le_bytes());
        for (kind, at, len) in sections {
            let mut header = [0; 64];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            out.extend_from_slice(&header);
        }
        out
    }

    fn id(seed: u8) -> Vec<u8> {
        note(b"GNU\0", 3, &[seed; 20])
    }

    #[test]
    fn another_module_than_the_one_that_runs() {
        let other = note(b"Linux\0", 0x101, b"x");
        let f = fake("7.3.4");
        let put = |path: &str, bytes: &[u8]| {
            f.write(path, "");
            std::fs::write(f.dir.path().join(path), bytes).unwrap();
        };
        let install = |bytes: &[u8]| put("lib/modules/7.3.4/updates/bdsnap.ko", bytes);
        let is_outdated = || f.system.is_outdated();
        f.write("lib/modules/7.3.4/modules.dep", "updates/bdsnap.ko:\n");
        assert_eq!(is_outdated(), None, "neither runs nor is there");
        install(&module(&[other.clone(), id(1)], b"code"));
        assert_eq!(is_outdated(), None, "none runs, or nobody says which");
        put(RUNNING_ID, &id(1));
        assert_eq!(is_outdated(), Some(false));
        install(
            &[module(&[id(1)], b"stripped"), b"~Module signature appended~\n".to_vec()].concat(),
        );
        assert_eq!(is_outdated(), Some(false), "stripped and signed");
        install(&module(&[other.clone(), id(2)], b"code"));
        assert_eq!(is_outdated(), Some(true));
        install(&module(&[other], b"code"));
        assert_eq!(is_outdated(), None, "linked without");
        for odd in [&b""[..], b"\x7fELF\x02\x01", &module(&[id(2)], b"code")[..100]] {
            install(odd);
            assert_eq!(is_outdated(), None, "no module");
        }
        install(&module(&[id(2)], b"code"));
        put(RUNNING_ID, &id(2)[..20]);
        assert_eq!(is_outdated(), None, "half a note");
    }

    #[test]
    fn of_compressed_modules() {
        for (program, end) in [("xz", "xz"), ("gzip", "gz"), ("zstd", "zst")] {
            let f = fake("7.3.4");
            let path = format!("lib/modules/7.3.4/updates/dkms/bdsnap.ko.{end}");
            f.write("lib/modules/7.3.4/modules.dep", &format!("updates/dkms/bdsnap.ko.{end}:\n"));
            f.write(RUNNING_ID, "");
            std::fs::write(f.dir.path().join(RUNNING_ID), id(1)).unwrap();
            for (seed, outdated) in [(1, false), (2, true)] {
                let plain = f.dir.path().join("plain");
                std::fs::write(&plain, module(&[id(seed)], b"code")).unwrap();
                let packed = Command::new(program).arg("-c").arg(&plain).output();
                // Not each machine has all of them, and then nothing is told.
                let (packed, known) = match packed {
                    Ok(o) => (o.stdout, Some(outdated)),
                    Err(_) => (b"?".to_vec(), None),
                };
                f.write(&path, "");
                std::fs::write(f.dir.path().join(&path), &packed).unwrap();
                assert_eq!(f.system.is_outdated(), known, "{program}");
                std::fs::write(f.dir.path().join(&path), &packed[..packed.len() / 2]).unwrap();
                assert_eq!(f.system.is_outdated(), None, "{program}, cut");
            }
        }
    }

    #[test]
    fn notes_that_lie() {
        for bytes in [&[0xff; 64][..], &[0; 5], &note(b"GNU\0", 3, b"")] {
            assert_eq!(build_id(bytes), None);
        }
        let mut elf = module(&[id(1)], b"code");
        let (at, end) = (elf.len() - 64, elf.len());
        for i in at..end {
            let was = std::mem::replace(&mut elf[i], 0xff);
            // Whatever it finds, it comes back.
            let _ = elf_build_id(&elf);
            elf[i] = was;
        }
        assert_eq!(elf_build_id(&elf), Some(vec![1; 20]));
    }
}
