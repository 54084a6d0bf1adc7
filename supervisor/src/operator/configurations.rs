//! `config log` and `config rollback`.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use ipc::operator::Request;

use super::client::{Target, act, read};
use super::output::{print, table};
use crate::Failure;
use crate::config::source::Source;
use crate::configurations::{self, Entry, Text};

/// Characters of a line that are shown.
const LINE_MAX: usize = 1000;

/// What a server tells of the configurations that were in force.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Log {
    /// Where they are kept.
    pub folder: PathBuf,
    /// The file that the server loads; none where it runs on its built-in configuration.
    pub file: Option<PathBuf>,
    /// Number of the one in force; none where that is not kept.
    pub in_force: Option<u64>,
    /// The oldest first.
    pub configurations: Vec<Entry>,
}

impl Log {
    /// What is in force, where that is none of those that are listed.
    fn not_kept(&self) -> Option<String> {
        match (&self.file, self.in_force) {
            (_, Some(_)) => None,
            (None, None) => {
                Some("In force: the built-in configuration, for the server was started without a file.".to_owned())
            }
            (Some(f), None) => Some(format!("In force: {}, which could not be kept; the log says why.", f.display())),
        }
    }

    /// The newest first, the one in force with a star.
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |e: &Entry| {
            let star = if Some(e.number) == self.in_force { " *" } else { "" };
            let number = format!("{}{star}", e.number);
            let changes = e.changes.map_or("-".to_owned(), |n| n.to_string());
            vec![number, worker::shown_time(e.unix_ms), e.by.clone(), changes, e.file.clone()]
        };
        self.configurations.iter().rev().map(row).collect()
    }
}

/// `config log`
///
/// # Errors
/// [`Failure`]
pub fn log(target: &Target, diff: Option<u64>, as_json: bool) -> Result<(), Failure> {
    if let Some(number) = diff {
        return act(target, Request::ConfigurationChanges { number, json: as_json });
    }
    let log: Log = read(target, &Request::Configurations)?;
    if as_json {
        let text = serde_json::to_string_pretty(&log).map_err(|e| Failure::Failed(e.to_string()))?;
        return print(format!("{text}\n").as_bytes());
    }
    if let Some(remark) = log.not_kept() {
        print(format!("{remark}\n").as_bytes())?;
    }
    table(&["number", "since", "by", "changes", "file"], log.rows())
}

/// `config rollback`: puts the files of an earlier configuration in their places, and has the server load them. The server is
/// asked to read nothing on behalf of somebody else: both is done with the rights of whoever runs the command.
///
/// # Errors
/// [`Failure`]; files are as they were before, or the server could not be asked whether it loaded them.
pub fn rollback(target: &Target, number: Option<u64>, yes: bool) -> Result<(), Failure> {
    let log: Log = read(target, &Request::Configurations)?;
    let wrong = |text: String| Err(Failure::Wrong(text));
    if log.file.is_none() {
        return wrong("the server runs on its built-in configuration: there is no file to put back".into());
    }
    let Some(at) = log.configurations.iter().position(|e| Some(e.number) == log.in_force) else {
        return wrong("the configuration in force is not kept, so that writing its files could lose it".into());
    };
    let current = &log.configurations[at];
    let before = at.checked_sub(1).map(|i| log.configurations[i].number);
    let Some(number) = number.or(before) else { return wrong("no earlier configuration is kept".into()) };
    if number == current.number {
        return wrong(format!("configuration {number} is in force"));
    }
    let Some(wanted) = log.configurations.iter().find(|e| e.number == number) else {
        return wrong(format!("configuration {number} is not kept; `sluice config log` lists those that are"));
    };
    if wanted.file != current.file {
        return wrong(format!(
            "configuration {number} is that of {}, and the server loads {}",
            wanted.file, current.file
        ));
    }
    let text = |n: u64| {
        configurations::text(&log.folder, n).map_err(|e| {
            let help = "; only root and the server's user may read them, for they hold passwords";
            let help = if e.kind() == io::ErrorKind::PermissionDenied { help } else { "" };
            Failure::Failed(format!("configuration {n} in {}: {e}{help}", log.folder.display()))
        })
    };
    let (current, wanted) = (text(current.number)?, text(number)?);
    let changed = to_be_written(&current, &wanted).map_err(Failure::Wrong)?;
    let before: HashMap<&str, &str> = current.files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    let main = Path::new(wanted.files.first().map_or("", |(path, _)| path));
    may_be_written(&log.folder, main, &changed, &before, yes)?;
    let newest = log.configurations.last().map_or(0, |e| e.number);
    let written = changed.iter().try_for_each(|(path, text)| {
        replace(Path::new(path), text, main).map_err(|e| Failure::Failed(format!("{path} cannot be written: {e}")))
    });
    let was_written = written.is_ok();
    written.and_then(|()| act(target, Request::Rollback { number })).inspect_err(|_| {
        // A server that took it says so, whatever one of its workers lacks.
        let took = match read::<Log>(target, &Request::Configurations) {
            _ if !was_written => Some(false),
            Ok(now) => Some(now.configurations.last().is_some_and(|e| e.number > newest)),
            Err(_) => None,
        };
        if took != Some(false) {
            let how =
                if took.is_some() { "are" } else { "stay, for the server cannot be asked whether it loaded them:" };
            let _ = writeln!(io::stderr(), "sluice: the files {how} those of configuration {number}");
            return;
        }
        for (path, _) in &changed {
            let file = Path::new(path);
            let undone = match before.get(path) {
                Some(text) => replace(file, text, main),
                None => std::fs::remove_file(file),
            };
            if let Err(e) = undone.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }) {
                let _ = writeln!(io::stderr(), "sluice: {path} is not as it was before: {e}");
            }
        }
    })?;
    let files: Vec<&str> = changed.iter().map(|(p, _)| *p).collect();
    print(format!("Configuration {number} is in force again. Written: {}.\n", files.join(", ")).as_bytes())
}

/// Whether files may be written on the word of what is kept. The server's user can write to that folder, and what root writes by it could
/// give that user more rights than it has: root writes only files that the configuration on disk loads, and once somebody has looked at what changes.
fn may_be_written(
    folder: &Path,
    main: &Path,
    changed: &[(&str, &str)],
    before: &HashMap<&str, &str>,
    yes: bool,
) -> Result<(), Failure> {
    let of_root = std::fs::metadata(folder).is_ok_and(|m| m.uid() == 0);
    if !nix::unistd::geteuid().is_root() || of_root {
        return Ok(());
    }
    let loaded = crate::config::given_files(main)?;
    if let Some((path, _)) = changed.iter().find(|(p, _)| !loaded.files.iter().any(|f| f.path == **p)) {
        return Err(Failure::Wrong(format!(
            "{path} is none of the files that {} loads now: root writes no other on the word of the server's user; put it there yourself",
            main.display()
        )));
    }
    if yes {
        return Ok(());
    }
    let changes = changed.iter().map(|(path, text)| changed_lines(path, before.get(path).copied().unwrap_or(""), text));
    print(changes.collect::<String>().as_bytes())?;
    Err(Failure::Failed(
        "nothing is written yet: the server's user can write to the folder that this comes from. Look at the lines above, and give --yes".into(),
    ))
}

/// Lines that a file has no more, and has instead, in their order.
fn changed_lines(path: &str, before: &str, after: &str) -> String {
    let only = |of: &str, other: &str, mark: char| {
        let mut left: HashMap<&str, usize> = HashMap::new();
        other.lines().for_each(|l| *left.entry(l).or_default() += 1);
        let is_new = |l: &&str| match left.get_mut::<str>(l).filter(|n| **n > 0) {
            Some(n) => {
                *n -= 1;
                false
            }
            None => true,
        };
        let lines = of.lines().filter(is_new).map(|l| format!("{mark} {}\n", ipc::text::clean(l, LINE_MAX)));
        lines.collect::<String>()
    };
    format!("{path}\n{}{}", only(before, after, '-'), only(after, before, '+'))
}

/// Files of `wanted` that are not on disk as it has them. What is on disk must be in force, or it would be lost; and what
/// wildcards take in must be what they took in then.
fn to_be_written<'t>(current: &Text, wanted: &'t Text) -> Result<Vec<(&'t str, &'t str)>, String> {
    let on_disk = |path: &str| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot read {path}: {e}")),
    };
    for (path, text) in &current.files {
        if on_disk(path)?.is_some_and(|t| t != *text) {
            return Err(format!(
                "{path} was changed and is not in force as it is: `sluice reload` puts it in force, and then it is kept; \
                 or undo the change"
            ));
        }
    }
    let loaded: HashSet<&str> = current.files.iter().map(|(p, _)| p.as_str()).collect();
    let mut changed = Vec::new();
    for (path, text) in &wanted.files {
        match on_disk(path)? {
            Some(t) if t == *text => {}
            Some(_) if !loaded.contains(path.as_str()) => {
                return Err(format!("{path} is there with another text, and is not in force: move it away"));
            }
            _ => changed.push((path.as_str(), text.as_str())),
        }
    }
    for (pattern, files) in &wanted.includes {
        // A file that is missing is written.
        let now = Source::Command.included(Path::new(pattern), &mut 0).unwrap_or_default();
        if let Some(other) = now.iter().find(|p| !files.iter().any(|f| Path::new(f) == p.as_path())) {
            return Err(format!("include {pattern} takes in {} now, and did not then: move it away", other.display()));
        }
    }
    Ok(changed)
}

/// Writes a file as a whole or not at all, with the owner and the rights that it has; one that is missing gets those of `like`.
/// A link stays one.
fn replace(path: &Path, text: &str, like: &Path) -> io::Result<()> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let meta = std::fs::metadata(&path).or_else(|_| std::fs::metadata(like))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.rollback-{}", std::process::id()));
    let mut f = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = (|| {
        f.write_all(text.as_bytes())?;
        let own = f.metadata()?;
        if (own.uid(), own.gid()) != (meta.uid(), meta.gid()) {
            fchown(&f, Some(meta.uid()), Some(meta.gid()))?;
        }
        f.set_permissions(std::fs::Permissions::from_mode(meta.permissions().mode() & 0o777))?;
        f.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(folder)?.sync_all()
    })();
    written.inspect_err(|_| drop(std::fs::remove_file(&new)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_star_is_at_what_is_in_force_and_nowhere_where_that_is_not_kept() {
        let entry = |number: u64| {
            let told = serde_json::json!({"number": number, "unix_ms": 0, "by": "start", "file": "/c", "changes": null, "has_text": true, "checksum": 1});
            serde_json::from_value::<Entry>(told).unwrap()
        };
        let log = |file: Option<&str>, in_force| Log {
            folder: PathBuf::new(),
            file: file.map(PathBuf::from),
            in_force,
            configurations: vec![entry(1), entry(2)],
        };
        let numbers = |l: &Log| l.rows().iter().map(|r| r[0].clone()).collect::<Vec<_>>();
        let kept = log(Some("/c"), Some(2));
        assert_eq!((numbers(&kept), kept.not_kept()), (vec!["2 *".to_owned(), "1".to_owned()], None));
        for (file, said) in [(None, "the built-in configuration"), (Some("/c"), "/c, which could not be kept")] {
            let l = log(file, None);
            assert_eq!(numbers(&l), ["2", "1"]);
            assert!(l.not_kept().unwrap().contains(said), "{:?}", l.not_kept());
        }
    }

    #[test]
    fn lines_that_change_are_shown_and_others_are_not() {
        let text = changed_lines("/c", "a\nb\nb\nc\n", "a\nb\nd\u{1b}\n");
        assert!(text.starts_with("/c\n- b\n- c\n+ d") && !text.contains('\u{1b}') && !text.contains(" a\n"), "{text}");
    }
}
