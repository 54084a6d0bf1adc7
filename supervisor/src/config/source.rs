//! Where the files of a configuration come from, and how much of them is read.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use ipc::operator::GivenFiles;
use worker::regular_file;

/// Files that a configuration may consist of.
pub const FILES_MAX: usize = 10_000;
/// Bytes that they may have in all, with the files that directives name.
pub const BYTES_MAX: u64 = 128 << 20;
/// Entries of folders that are looked at for the wildcards of its `include`s.
const ENTRIES_MAX: usize = 100_000;
/// Bytes of a file in PEM that a directive names.
pub const PEM_BYTES_MAX: u64 = 4 << 20;

/// Why a file or what it includes was not read.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// It cannot be.
    #[error("{0}")]
    Failed(#[from] io::Error),
    /// It would be more than a configuration may be.
    #[error("{0}")]
    TooMuch(String),
}

/// What configuration files are read from.
#[derive(Debug, Default)]
pub enum Source {
    /// The disk, for an operator's command: the main file may also come through a pipe.
    #[default]
    Command,
    /// The disk, for a server.
    Server,
    /// What an operator's command has read, with its own rights: nothing else is opened, also not
    /// what directives name, for its content would reach somebody who may not read it.
    Given(Given),
}

/// Files and what each `include` stands for.
#[derive(Debug, Default)]
pub struct Given {
    files: HashMap<PathBuf, String>,
    includes: HashMap<PathBuf, Vec<PathBuf>>,
}

impl Given {
    /// What was sent, and the path of the main file.
    pub fn of(sent: GivenFiles) -> (Given, PathBuf) {
        let main = sent.files.first().map(|f| PathBuf::from(&f.path)).unwrap_or_default();
        let files = sent.files.into_iter().map(|f| (f.path.into(), f.text)).collect();
        let paths = |all: Vec<String>| all.into_iter().map(PathBuf::from).collect();
        let includes = sent.includes.into_iter().map(|i| (i.pattern.into(), paths(i.files))).collect();
        (Given { files, includes }, main)
    }
}

/// Whether a file is a pipe that the operator's shell made for the command.
fn is_own_pipe(file: &Path) -> bool {
    file == Path::new("/dev/stdin") || file.starts_with("/dev/fd") || file.starts_with("/proc/self/fd")
}

impl Source {
    /// The content of a file, where `left` bytes are left of [`BYTES_MAX`].
    ///
    /// # Errors
    /// [`NotRead`]; also for what is no regular file.
    pub fn read(&self, file: &Path, left: u64) -> Result<Vec<u8>, NotRead> {
        let disk = match self {
            Source::Command if is_own_pipe(file) => std::fs::File::open(file)?,
            Source::Command | Source::Server => regular_file::open(file)?,
            Source::Given(given) => {
                let text = given.files.get(file).ok_or_else(not_sent)?;
                return within(text.as_bytes().to_vec(), left);
            }
        };
        let mut bytes = Vec::new();
        disk.take(left + 1).read_to_end(&mut bytes)?;
        within(bytes, left)
    }

    /// The files that the path of an `include` stands for, in lexical order; `looked_at` counts what was looked at.
    ///
    /// # Errors
    /// [`NotRead`]; also when a path without wildcards leads nowhere.
    pub fn included(&self, pattern: &Path, looked_at: &mut usize) -> Result<Vec<PathBuf>, NotRead> {
        match self {
            Source::Command | Source::Server => matching(pattern, looked_at),
            Source::Given(given) => match given.includes.get(pattern).ok_or_else(not_sent)? {
                files if files.len() > FILES_MAX => Err(too_many_files()),
                files => Ok(files.clone()),
            },
        }
    }

    /// What a file is known by, whatever path leads to it.
    pub fn identity(&self, file: &Path) -> PathBuf {
        match self {
            Source::Command | Source::Server => std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned()),
            Source::Given(_) => file.to_owned(),
        }
    }

    /// Whether files that directives name are opened.
    pub fn opens_named_files(&self) -> bool {
        !matches!(self, Source::Given(_))
    }
}

fn not_sent() -> io::Error {
    io::Error::other("it was not sent along")
}

fn within(bytes: Vec<u8>, left: u64) -> Result<Vec<u8>, NotRead> {
    match bytes.len() as u64 > left {
        true => Err(NotRead::TooMuch(format!("the configuration is larger than {BYTES_MAX} bytes"))),
        false => Ok(bytes),
    }
}

/// Files that a path stands for; wildcards may stand in any part, and `**` is any number of folders. Without one the
/// file must be there.
fn matching(pattern: &Path, looked_at: &mut usize) -> Result<Vec<PathBuf>, NotRead> {
    if !pattern.to_string_lossy().contains(WILDCARDS) {
        std::fs::metadata(pattern)?;
        return Ok(vec![pattern.to_owned()]);
    }
    let mut search = Search { found: Vec::new(), looked_at };
    let parts: Vec<Component<'_>> = pattern.components().collect();
    search.walk(Path::new(""), &parts)?;
    search.found.sort_unstable();
    search.found.dedup();
    Ok(search.found)
}

/// For a configuration of more than [`FILES_MAX`].
pub fn too_many_files() -> NotRead {
    NotRead::TooMuch(format!("a configuration of more than {FILES_MAX} files"))
}

const WILDCARDS: [char; 3] = ['*', '?', '['];

struct Search<'c> {
    found: Vec<PathBuf>,
    looked_at: &'c mut usize,
}

impl Search<'_> {
    fn walk(&mut self, at: &Path, parts: &[Component<'_>]) -> Result<(), NotRead> {
        let Some((part, rest)) = parts.split_first() else {
            return if at.is_file() { self.take(at) } else { Ok(()) };
        };
        let name = part.as_os_str().to_string_lossy();
        if !name.contains(WILDCARDS) {
            return self.walk(&at.join(part), rest);
        }
        let any_depth = name == "**";
        if any_depth {
            // No folder between, too.
            let behind = rest.iter().position(|p| p.as_os_str() != "**").unwrap_or(rest.len());
            self.walk(at, &rest[behind..])?;
        }
        let wanted = glob::Pattern::new(&name).map_err(|e| io::Error::other(e.to_string()))?;
        for entry in self.entries(at)? {
            let path = at.join(entry.file_name());
            if any_depth {
                // Links to folders may lead round in circles.
                if entry.file_type()?.is_dir() {
                    self.walk(&path, parts)?;
                }
            } else if wanted.matches(&entry.file_name().to_string_lossy()) {
                self.walk(&path, rest)?;
            }
        }
        Ok(())
    }

    fn entries(&mut self, folder: &Path) -> Result<Vec<std::fs::DirEntry>, NotRead> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let entries = match std::fs::read_dir(folder) {
            Err(e) if matches!(e.kind(), NotFound | NotADirectory) => return Ok(Vec::new()),
            other => other?,
        };
        let mut all = Vec::new();
        for e in entries {
            *self.looked_at += 1;
            if *self.looked_at > ENTRIES_MAX {
                let why = "files and folders would have to be looked at for what is included";
                return Err(NotRead::TooMuch(format!("more than {ENTRIES_MAX} {why}")));
            }
            all.push(e?);
        }
        Ok(all)
    }

    fn take(&mut self, file: &Path) -> Result<(), NotRead> {
        if self.found.len() >= FILES_MAX {
            return Err(too_many_files());
        }
        self.found.push(file.to_owned());
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_in_any_part_and_for_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for file in ["a/x.conf", "a/b/x.conf", "a/b/c/y.conf", "a/b/c/.z.conf", "d/x.conf"] {
            std::fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            std::fs::write(at(file), "").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), at("a/b/round")).unwrap();
        let found = |pattern: &str| -> Vec<String> {
            let shown = |p: PathBuf| p.strip_prefix(dir.path()).unwrap().display().to_string();
            matching(&at(pattern), &mut 0).unwrap().into_iter().map(shown).collect()
        };
        assert_eq!(found("a/x.conf"), ["a/x.conf"]);
        assert_eq!(found("?/x.*"), ["a/x.conf", "d/x.conf"]);
        assert_eq!(found("a/*/x.conf"), ["a/b/x.conf"]);
        assert_eq!(found("a/**/*.conf"), ["a/b/c/.z.conf", "a/b/c/y.conf", "a/b/x.conf", "a/x.conf"]);
        assert_eq!(found("**/b/**/**/[y].conf"), ["a/b/c/y.conf"]);
        assert_eq!(found("none/*.conf"), [""; 0]);
        assert_eq!(found("a/x.conf/*"), [""; 0]);
        assert!(matching(&at("none.conf"), &mut 0).is_err());
    }

    #[test]
    fn a_search_ends() {
        let dir = tempfile::tempdir().unwrap();
        (0..=FILES_MAX).for_each(|n| std::fs::write(dir.path().join(format!("{n}")), "").unwrap());
        let many = matching(&dir.path().join("*"), &mut 0).unwrap_err();
        assert!(many.to_string().contains("more than 10000 files"), "{many}");
        let mut looked_at = ENTRIES_MAX - FILES_MAX;
        let far = matching(&dir.path().join("x?"), &mut looked_at).unwrap_err();
        assert!(far.to_string().contains("more than 100000 files and folders"), "{far}");
    }

    #[test]
    fn what_was_given_is_all_there_is() {
        let file = |path: &str, text: &str| ipc::operator::GivenFile { path: path.into(), text: text.into() };
        let include = |pattern: &str, files: &[&str]| ipc::operator::GivenInclude {
            pattern: pattern.into(),
            files: files.iter().map(|f| (*f).to_owned()).collect(),
        };
        let (given, main) = Given::of(GivenFiles {
            files: vec![file("/etc/a.conf", "one"), file("/etc/b.conf", "two")],
            includes: vec![include("/etc/*.conf", &["/etc/a.conf", "/etc/b.conf"])],
        });
        assert_eq!(main, Path::new("/etc/a.conf"));
        let s = Source::Given(given);
        assert_eq!(s.read(Path::new("/etc/b.conf"), 3).unwrap(), b"two");
        assert!(s.read(Path::new("/etc/b.conf"), 2).is_err());
        assert!(
            s.read(Path::new("/etc/passwd"), 1 << 20).is_err() && s.included(Path::new("/etc/passwd"), &mut 0).is_err()
        );
        assert_eq!(s.included(Path::new("/etc/*.conf"), &mut 0).unwrap().len(), 2);
        assert!(!s.opens_named_files());
    }
}
