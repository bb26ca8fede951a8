// SPDX-License-Identifier: GPL-2.0

//! `/etc/bdsnap`: the secret that passwords are checked against, and the
//! devices to register when the module is loaded.

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bdsnap_abi::ioctl::{DEVICES_MAX, NAME_MAX, PASSWORD_MAX, SECRET_MAX};
use bdsnap_abi::secret::{Secret, HASH_LEN, ITERATIONS_DEFAULT};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::{Context, Error, Kind, Result};
use crate::fsutil;
use crate::text;

/// Where the configuration is unless told otherwise.
pub const DEFAULT_DIR: &str = "/etc/bdsnap";

/// The configuration's directory.
#[derive(Debug, Clone)]
pub struct Config {
    dir: PathBuf,
}

impl Config {
    /// The configuration in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Path of the secret.
    pub fn secret_path(&self) -> PathBuf {
        self.dir.join("secret")
    }

    /// Path of the device list.
    pub fn devices_path(&self) -> PathBuf {
        self.dir.join("devices")
    }

    /// Sets the password that the module will ask for from its next load on.
    pub fn set_password(&self, password: &[u8]) -> Result<()> {
        check_password(password)?;
        let mut salt = [0; 16];
        fsutil::random_bytes(&mut salt)?;
        let line = secret_line(password, &salt, ITERATIONS_DEFAULT);
        self.make_dir()?;
        fsutil::replace(&self.secret_path(), line.as_bytes(), 0o600)
    }

    /// The secret's line, `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] if others than root could read or change the file,
    /// or if it is not a secret's line.
    pub fn secret(&self) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let path = self.secret_path();
        let Some(line) = read_private(&path, SECRET_MAX + 1, 0o077)? else { return Ok(None) };
        Secret::parse(&line).map_err(|e| Error::refused(format!("{}: {e}", text::path(&path))))?;
        Ok(Some(line))
    }

    /// The devices to register at load.
    pub fn devices(&self) -> Result<Vec<Vec<u8>>> {
        let path = self.devices_path();
        let Some(list) = read_private(&path, DEVICES_MAX, 0o022)? else { return Ok(Vec::new()) };
        Ok(parse_devices(&list))
    }

    /// Adds a device to the list (or, with `keep` false, takes it out).
    /// Returns whether the list has changed.
    pub fn persist(&self, device: &Path, keep: bool) -> Result<bool> {
        let name = crate::device::absolute(device);
        let name = name.as_os_str().as_bytes();
        if name.contains(&b'\n') || name.len() > NAME_MAX {
            return Err(Error::new(
                Kind::Usage,
                "a name with a line feed, or longer than 4095 bytes, cannot be kept",
            ));
        }
        let path = self.devices_path();
        let old = match fsutil::read_small(&path, DEVICES_MAX) {
            Ok(list) => list,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e).on("read", &path),
        };
        let Some(new) = edit_devices(&old, name, keep) else { return Ok(false) };
        if new.len() > DEVICES_MAX {
            return Err(Error::other("the list of devices would be longer than 1 MiB"));
        }
        self.make_dir()?;
        fsutil::replace(&path, &new, 0o600)?;
        Ok(true)
    }

    fn make_dir(&self) -> Result<()> {
        if !self.dir.is_dir() {
            std::fs::create_dir_all(&self.dir).on("make", &self.dir)?;
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&self.dir, mode).on("protect", &self.dir)?;
        }
        Ok(())
    }
}

/// Refuses passwords that the module could not take.
pub fn check_password(password: &[u8]) -> Result<()> {
    let wrong = if password.is_empty() {
        "the password is empty"
    } else if password.len() > PASSWORD_MAX {
        "the password is longer than 255 bytes"
    } else if password.contains(&0) {
        "the password contains a NUL byte"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Usage, wrong))
}

/// Reads a password: all of the input but one line feed at its end.
pub fn read_password(input: impl Read) -> Result<Zeroizing<Vec<u8>>> {
    // Large enough from the start, so that no copy is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    input
        .take(PASSWORD_MAX as u64 + 3)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("cannot read the password", &e))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    check_password(&bytes)?;
    Ok(bytes)
}

/// The secret's line for a password.
fn secret_line(password: &[u8], salt: &[u8], iterations: u32) -> Zeroizing<String> {
    let mut hash = Zeroizing::new([0; HASH_LEN]);
    pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, iterations, &mut *hash);
    Zeroizing::new(format!(
        "bdsnap1:pbkdf2-sha256:{iterations}:{}:{}\n",
        text::hex(salt),
        text::hex(&*hash)
    ))
}

/// Reads a regular file of root's that others have no permission (of
/// `forbidden`) on; `None` if there is none.
fn read_private(path: &Path, max: usize, forbidden: u32) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let file = match fsutil::open_regular(path) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).on("open", path),
    };
    let meta = file.metadata().on("examine", path)?;
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & forbidden != 0 {
        return Err(Error::refused(format!(
            "{} is not used: it must belong to root, and to nobody else",
            text::path(path)
        ))
        .hint(format!("chown root {0}; chmod 600 {0}", text::path(path))));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(max.min(1 << 16)));
    file.take(max as u64 + 1).read_to_end(&mut bytes).on("read", path)?;
    if bytes.len() > max {
        return Err(Error::other(format!("{} is too long", text::path(path))));
    }
    Ok(Some(bytes))
}

/// One name a line; empty lines, and lines that begin with `#`, say nothing.
fn parse_devices(list: &[u8]) -> Vec<Vec<u8>> {
    list.split(|&b| b == b'\n')
        .filter(|l| !l.is_empty() && !l.starts_with(b"#"))
        .map(<[u8]>::to_vec)
        .collect()
}

/// The list with a name added or taken out; `None` if that changes nothing.
fn edit_devices(old: &[u8], name: &[u8], keep: bool) -> Option<Vec<u8>> {
    let mut lines: Vec<&[u8]> = old.split(|&b| b == b'\n').collect();
    if lines.last().is_some_and(|l| l.is_empty()) {
        lines.pop();
    }
    let there = lines.contains(&name);
    if there == keep {
        return None;
    }
    if keep {
        lines.push(name);
    } else {
        lines.retain(|l| *l != name);
    }
    let mut new = lines.join(&b'\n');
    if !new.is_empty() {
        new.push(b'\n');
    }
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_what_the_module_reads() {
        // Of RFC 7914, section 11: P = "passwd", S = "salt", c = 1.
        let line = secret_line(b"passwd", b"salt", 1);
        assert!(line.ends_with(
            ":1:73616c74:55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc\n"
        ));
        let tmp = tempfile::tempdir().unwrap();
        let config = Config::new(tmp.path().join("bdsnap"));
        assert!(config.secret().unwrap().is_none());
        config.set_password(b"geheim").unwrap();
        let line = config.secret().unwrap().unwrap();
        let secret = Secret::parse(&line).unwrap();
        assert_eq!((secret.iterations, secret.salt().len()), (ITERATIONS_DEFAULT, 16));
        let mode = |m| {
            let mode = std::fs::Permissions::from_mode(m);
            std::fs::set_permissions(config.secret_path(), mode).unwrap();
        };
        assert_eq!(config.secret_path().metadata().unwrap().mode() & 0o777, 0o600);
        mode(0o640);
        assert_eq!(config.secret().unwrap_err().kind, Kind::Refused);
        mode(0o600);
        std::fs::write(config.secret_path(), "bdsnap1:x").unwrap();
        assert_eq!(config.secret().unwrap_err().kind, Kind::Refused);
    }

    #[test]
    fn passwords() {
        assert_eq!(&**read_password(&b"a b\n"[..]).unwrap(), b"a b");
        assert_eq!(&**read_password(&b"a\n\n"[..]).unwrap(), b"a\n");
        assert_eq!(read_password(&[b'x'; 255][..]).unwrap().len(), 255);
        for bad in [&b""[..], b"\n", b"a\0b", &[b'x'; 256], &[b'x'; 5000]] {
            assert_eq!(read_password(bad).unwrap_err().kind, Kind::Usage);
        }
    }

    #[test]
    fn device_list() {
        let list = b"# comment\n/dev/vdb\n\n/srv/a b.img\n/dev/vdc";
        assert_eq!(parse_devices(list), [&b"/dev/vdb"[..], b"/srv/a b.img", b"/dev/vdc"]);
        assert_eq!(edit_devices(list, b"/dev/vdb", true), None);
        assert_eq!(edit_devices(list, b"/dev/vdd", false), None);
        assert_eq!(edit_devices(b"", b"/dev/vdb", true).unwrap(), b"/dev/vdb\n");
        assert_eq!(edit_devices(b"/dev/vdb\n", b"/dev/vdb", false).unwrap(), b"");
        assert_eq!(
            edit_devices(list, b"/dev/vdc", false).unwrap(),
            b"# comment\n/dev/vdb\n\n/srv/a b.img\n"
        );
        let tmp = tempfile::tempdir().unwrap();
        let config = Config::new(tmp.path());
        assert!(config.persist(Path::new("/dev/vdb"), true).unwrap());
        assert!(!config.persist(Path::new("/dev/vdb"), true).unwrap());
        assert_eq!(config.devices().unwrap(), [b"/dev/vdb"]);
        assert!(config.persist(Path::new("/a\nb"), true).is_err());
        assert!(config.persist(Path::new("/dev/vdb"), false).unwrap());
        assert!(config.devices().unwrap().is_empty());
    }
}
