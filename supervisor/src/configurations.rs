//! The last configurations that were in force: who put them there and when, and their text, for `config log` and `config rollback`.
//! They lie in a folder of the server's user alone, because files of configurations hold passwords.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipc::operator::{GivenFile, GivenFiles, GivenInclude};
use nix::unistd::{Uid, User};

use crate::config::compile::Checked;
use crate::config::diff::{self, Change};
use crate::config::files::File;
use crate::config::source::{Given, Source};
use crate::config::{self, Overrides};

/// Configurations that are kept.
const KEPT_MAX: usize = 50;
/// Bytes of a configuration whose text is kept, at most, and of all texts together.
const TEXT_BYTES_MAX: usize = 16 << 20;
const ALL_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the sentence that is told of a configuration, at most.
const ENTRY_BYTES_MAX: u64 = 64 << 10;
/// Folder in the data folder.
const FOLDER: &str = "configurations";

/// What had a configuration put in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The server started with it.
    Start,
    /// SIGHUP, whoever sent it.
    Signal,
    /// A user's `reload`; by number, as the socket tells it.
    User(Option<u32>),
    /// A user's `config rollback` to a configuration.
    Rollback(Option<u32>, u64),
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |uid: Option<u32>| match uid {
            Some(uid) => match User::from_uid(Uid::from_raw(uid)).ok().flatten() {
                Some(u) => u.name,
                None => format!("user {uid}"),
            },
            None => "a user".to_owned(),
        };
        match *self {
            By::Start => f.write_str("start"),
            By::Signal => f.write_str("SIGHUP"),
            By::User(uid) => f.write_str(&name(uid)),
            By::Rollback(uid, to) => write!(f, "{}, rollback to {to}", name(uid)),
        }
    }
}

/// What is told of one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// Counted on from 1.
    pub number: u64,
    /// When it was put in force, Unix milliseconds.
    pub unix_ms: i64,
    /// The user, or the event, that did so.
    pub by: String,
    /// Its main file.
    pub file: String,
    /// Lines of `config diff` against the one before, where that is known.
    pub changes: Option<usize>,
    /// Its text is kept: it was not too large.
    pub has_text: bool,
    /// Of its text, CRC-32C.
    checksum: u32,
}

/// Files with their text, the main one first, and what each `include` stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Text {
    /// Path and text.
    pub files: Vec<(String, String)>,
    /// Path as it was asked for, and the files that it stood for.
    pub includes: Vec<(String, Vec<String>)>,
    #[serde(skip)]
    is_too_large: bool,
}

impl Text {
    /// What was read of a configuration, by absolute paths. Of one that is too large checksums stand in place of the text.
    pub fn of(checked: &Checked) -> Text {
        let absolute = |path: &Path| {
            let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            whole.to_string_lossy().into_owned()
        };
        let is_file = |f: &&File| !f.path.starts_with("builtin:profiles") && f.path != Path::new("(built-in)");
        let files = || checked.files.each().filter(is_file);
        let is_too_large = files().map(|f| f.text.len()).sum::<usize>() > TEXT_BYTES_MAX;
        let text = |f: &File| match is_too_large {
            true => format!("{:08x}", crc32c::crc32c(f.text.as_bytes())),
            false => f.text.to_string(),
        };
        let include = |(pattern, files): &(PathBuf, Vec<PathBuf>)| {
            (absolute(pattern), files.iter().map(|f| absolute(f)).collect())
        };
        Text {
            files: files().map(|f| (absolute(&f.path), text(f))).collect(),
            includes: checked.included.iter().map(include).collect(),
            is_too_large,
        }
    }

    fn given(self) -> GivenFiles {
        GivenFiles {
            files: self.files.into_iter().map(|(path, text)| GivenFile { path, text }).collect(),
            includes: self.includes.into_iter().map(|(pattern, files)| GivenInclude { pattern, files }).collect(),
        }
    }
}

/// The folder of a server's configurations.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER)
}

/// Keeps a configuration that was just put in force, unless the last one is the same, and removes the oldest. Answers its
/// number; the built-in configuration has none.
///
/// # Errors
/// As of files.
pub fn keep(folder: &Path, text: &Text, by: By, changes: Option<usize>, unix_ms: i64) -> io::Result<Option<u64>> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    // The built-in configuration has no file.
    let Some((file, _)) = text.files.first() else { return Ok(None) };
    let known = list(folder)?;
    let json = serde_json::to_string(text)?;
    let (checksum, has_text) = (crc32c::crc32c(json.as_bytes()), !text.is_too_large);
    let last = known.last();
    if let Some(l) = last.filter(|l| l.checksum == checksum && l.file == *file && l.has_text == has_text) {
        return Ok(Some(l.number));
    }
    let number = last.map_or(1, |l| l.number + 1);
    let entry = Entry { number, unix_ms, by: by.to_string(), file: file.clone(), changes, has_text, checksum };
    let mut bytes = serde_json::to_vec(&entry)?;
    bytes.push(b'\n');
    if has_text {
        bytes.extend_from_slice(json.as_bytes());
    }
    let new = folder.join("new");
    let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    f.write_all(&bytes)?;
    f.sync_all()?;
    std::fs::rename(&new, place(folder, number))?;
    std::fs::File::open(folder)?.sync_all()?;
    let sizes: Vec<u64> =
        known.iter().map(|e| std::fs::metadata(place(folder, e.number)).map_or(0, |m| m.len())).collect();
    let mut left: u64 = sizes.iter().sum::<u64>() + bytes.len() as u64;
    for (i, (e, size)) in known.iter().zip(sizes).enumerate() {
        if known.len() - i < KEPT_MAX && left <= ALL_BYTES_MAX {
            break;
        }
        std::fs::remove_file(place(folder, e.number))?;
        left -= size;
    }
    Ok(Some(number))
}

fn place(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}"))
}

/// Those that are kept, the oldest first. What is none is passed over.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    let read = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let mut numbers: Vec<u64> = Vec::new();
    for entry in read {
        numbers.extend(entry?.file_name().to_string_lossy().parse::<u64>());
    }
    numbers.sort_unstable();
    Ok(numbers.into_iter().filter_map(|n| open(folder, n).ok().map(|(e, _)| e)).collect())
}

fn open(folder: &Path, number: u64) -> io::Result<(Entry, BufReader<std::fs::File>)> {
    let mut all = BufReader::new(std::fs::File::open(place(folder, number))?);
    let mut line = Vec::new();
    (&mut all).take(ENTRY_BYTES_MAX).read_until(b'\n', &mut line)?;
    Ok((serde_json::from_slice(&line)?, all))
}

/// The text of one.
///
/// # Errors
/// When it is not kept, or cannot be read.
pub fn text(folder: &Path, number: u64) -> io::Result<Text> {
    let (entry, rest) = open(folder, number)?;
    if !entry.has_text {
        return Err(io::Error::other("it was too large for its text to be kept"));
    }
    let mut json = String::new();
    // What is more was not written by a server.
    rest.take(ALL_BYTES_MAX).read_to_string(&mut json)?;
    Ok(serde_json::from_str(&json)?)
}

/// What a configuration changed against the one before it.
///
/// # Errors
/// A sentence when one of them is not kept.
pub fn changes(folder: &Path, number: u64) -> Result<Vec<Change>, String> {
    let known = list(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let at = known.iter().position(|e| e.number == number);
    let at =
        at.ok_or_else(|| format!("configuration {number} is not kept; `sluice config log` lists those that are"))?;
    let before = at.checked_sub(1).and_then(|i| known.get(i));
    let before = before.ok_or_else(|| format!("the configuration before {number} is not kept"))?;
    let sealed = |n: u64| {
        let text = text(folder, n).map_err(|e| format!("configuration {n}: {e}"))?;
        let (given, main) = Given::of(text.given());
        let checked = config::compile_from(Source::Given(given), Some(&main), &Overrides::default());
        let checked = checked.map_err(|e| format!("configuration {n}: {e}"))?;
        checked.compiled.snapshot.seal().map_err(|e| e.to_string())
    };
    let (old, new) = (sealed(before.number)?, sealed(number)?);
    Ok(diff::diff(config::map(&old)?.get(), config::map(&new)?.get()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn of(text: &str) -> Text {
        let checked = config::compile::compile_text(Path::new("/etc/c.conf"), text);
        Text::of(&checked)
    }

    #[test]
    fn the_last_fifty_are_kept_each_once_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        for n in 0..60 {
            let text = of(&format!("host-name h{n}.test\n"));
            let number = keep(&folder, &text, By::User(Some(0)), Some(1), n).unwrap();
            assert_eq!((number, keep(&folder, &text, By::Start, None, n).unwrap()), (Some(n as u64 + 1), number));
        }
        let all = list(&folder).unwrap();
        assert_eq!((all.len(), all[0].number, all[49].number), (50, 11, 60));
        assert_eq!((all[0].by.as_str(), all[0].unix_ms), ("root", 10));
        assert_eq!(text(&folder, 60).unwrap(), of("host-name h59.test\n"));
        let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&place(&folder, 60))), (0o700, 0o600));
        let said: Vec<String> = changes(&folder, 60).unwrap().iter().map(Change::to_string).collect();
        assert_eq!(said, ["host-name h58.test → h59.test"]);
        assert!(changes(&folder, 11).is_err() && changes(&folder, 9).is_err());
        // Rubbish, and what a kill left, are passed over.
        std::fs::write(place(&folder, 61), "rubbish").unwrap();
        std::fs::write(folder.join("new"), "{").unwrap();
        assert_eq!(list(&folder).unwrap().len(), 50);
        assert_eq!(
            keep(&folder, &Text::default(), By::Start, None, 61).unwrap(),
            None,
            "the built-in one has no number"
        );
    }

    #[test]
    fn what_is_too_large_is_told_of_without_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        keep(&folder, &of(&"#".repeat(TEXT_BYTES_MAX + 1)), By::Start, None, 1).unwrap();
        assert!(!list(&folder).unwrap()[0].has_text && text(&folder, 1).is_err());
        for n in 0..6 {
            keep(&folder, &of(&format!("#{n}").repeat(6 << 20)), By::Signal, None, 1).unwrap();
        }
        let bytes: u64 = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= ALL_BYTES_MAX && list(&folder).unwrap().len() >= 4, "{bytes}");
    }
}
