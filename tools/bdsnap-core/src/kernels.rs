// SPDX-License-Identifier: GPL-2.0

//! Which installed kernels have the module, and why others don't: for a user
//! who finds his devices unprotected.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::fsutil;
use crate::text;

/// The first Linux that the module is for.
const FIRST: (u32, u32) = (7, 2);
/// Written by the hand-over, read by `status`: which file was loaded.
const LOADED: &str = "run/bdsnap/loaded";
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

    /// Notes which file was loaded, for [`System::is_outdated`].
    pub fn note_loaded(&self) -> crate::Result<()> {
        let path = self.path(LOADED);
        let Some(print) = self.fingerprint() else {
            // Loaded from elsewhere: nothing to compare with.
            let _ = std::fs::remove_file(&path);
            return Ok(());
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(text::path(dir), &e))?;
        }
        fsutil::replace(&path, print.as_bytes(), 0o600)
    }

    /// Whether the installed module is another than the one that was loaded.
    pub fn is_outdated(&self) -> bool {
        match (self.word(LOADED), self.fingerprint()) {
            (Some(loaded), Some(now)) => loaded != now,
            _ => false,
        }
    }

    fn fingerprint(&self) -> Option<String> {
        use sha2::{Digest, Sha256};
        let bytes = fsutil::read_small(&self.module(&self.running())?, FILE_MAX).ok()?;
        Some(text::hex(&Sha256::digest(bytes)))
    }
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

    #[test]
    fn another_module_than_the_loaded_one() {
        let k = "7.3.4";
        let f = fake(k);
        f.write("lib/modules/7.3.4/modules.dep", "updates/bdsnap.ko:\n");
        assert!(!f.system.is_outdated(), "there is none");
        f.write("lib/modules/7.3.4/updates/bdsnap.ko", "1");
        assert!(!f.system.is_outdated(), "nothing was noted");
        f.system.note_loaded().unwrap();
        assert!(!f.system.is_outdated());
        f.write("lib/modules/7.3.4/updates/bdsnap.ko", "2");
        assert!(f.system.is_outdated());
        f.system.note_loaded().unwrap();
        assert!(!f.system.is_outdated());
    }
}
