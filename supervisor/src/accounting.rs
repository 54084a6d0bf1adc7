//! Accounting files: their names, when they are finished, where they go. Workers write them;
//! the supervisor names them and moves them once every worker has switched.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use ipc::control::AccountingFile;
use ipc::snapshot::Accounting;

/// The files in use.
#[derive(Debug, Default)]
pub struct Files {
    /// Named to workers.
    pub current: Vec<AccountingFile>,
    begun: Vec<Instant>,
    /// Finished, to be moved when all workers have switched.
    finished: Vec<(PathBuf, PathBuf)>,
    /// Number of the last switch.
    pub switch: u64,
}

fn today() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    worker::local_time(now.as_secs() as i64, "%Y-%m-%d")
}

/// `stem-DATE-NNNN.ext` beside `path`.
fn numbered(path: &Path, date: &str, n: u32) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ext = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{date}-{n:04}{ext}"))
}

/// Whether a file's name is one that [`numbered`] gives for `path`; `acct.csv` must leave the
/// files of `acct-bounces.csv` alone.
fn is_numbered(name: &str, path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ext = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    let middle = name.strip_prefix(&*stem).and_then(|n| n.strip_suffix(&ext));
    middle.is_some_and(|m| m.len() == 16 && m.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
}

/// The highest number in use today, in the file's own folder and where files are moved.
fn last_number(a: &Accounting, date: &str) -> Option<u32> {
    let path = Path::new(&a.path);
    let moved =
        |p: &Path| (!a.move_to.is_empty()).then(|| Path::new(&a.move_to).join(p.file_name().unwrap_or_default()));
    (0..10_000)
        .take_while(|n| {
            let p = numbered(path, date, *n);
            p.exists() || moved(&p).is_some_and(|m| m.exists())
        })
        .last()
}

impl Files {
    /// Goes on with today's last files, or begins the first ones.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn begin(all: &[Accounting]) -> std::io::Result<Files> {
        let mut files = Files::default();
        let date = today();
        for (i, a) in all.iter().enumerate() {
            for folder in [Path::new(&a.path).parent(), Some(Path::new(&a.move_to))].into_iter().flatten() {
                if !folder.as_os_str().is_empty() {
                    std::fs::create_dir_all(folder)?;
                }
            }
            let last = last_number(a, &date).unwrap_or(0);
            let mut path = numbered(Path::new(&a.path), &date, last);
            if !path.exists() && last_number(a, &date).is_some() {
                path = numbered(Path::new(&a.path), &date, last + 1);
            }
            touch(&path, a)?;
            files.current.push(AccountingFile { index: i as u32, path: path.display().to_string() });
            files.begun.push(Instant::now());
        }
        Ok(files)
    }

    /// Goes on with what running workers write, if it is what the configuration asks for;
    /// else they are switched to it.
    pub fn adopt(&mut self, current: Vec<AccountingFile>, all: &[Accounting]) {
        let fits = |f: &AccountingFile| {
            let (path, a) = (Path::new(&f.path), all.get(f.index as usize));
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            a.is_some_and(|a| path.parent() == Path::new(&a.path).parent() && is_numbered(&name, Path::new(&a.path)))
        };
        if current.len() == all.len() && current.iter().all(fits) {
            self.begun = vec![Instant::now(); current.len()];
            self.current = current;
        } else if self.switch == 0 {
            self.switch = 1;
        }
    }

    /// Begins new files where the old are due (or all, by `force`); true when workers have
    /// to switch.
    ///
    /// # Errors
    /// When a new file cannot be made; the old stay in use.
    pub fn rotate(&mut self, all: &[Accounting], force: bool) -> std::io::Result<bool> {
        let date = today();
        let mut changed = false;
        for (f, begun) in self.current.iter_mut().zip(&mut self.begun) {
            let Some(a) = all.get(f.index as usize) else { continue };
            let path = PathBuf::from(&f.path);
            let size = std::fs::metadata(&path).map_or(0, |m| m.len());
            let has_rows = size > 1000 || std::fs::read_to_string(&path).is_ok_and(|t| t.lines().count() > 1);
            let yesterday = !f.path.contains(&format!("-{date}-"));
            let interval = Duration::from_millis(a.move_interval_ms);
            let due = a.move_interval_ms > 0 && !a.move_to.is_empty() && begun.elapsed() >= interval;
            if !(has_rows && (force || due || size >= a.max_size || yesterday)) {
                continue;
            }
            let n = last_number(a, &date).map_or(0, |n| n + 1);
            let next = numbered(Path::new(&a.path), &date, n);
            touch(&next, a)?;
            if !a.move_to.is_empty() {
                let to = Path::new(&a.move_to).join(path.file_name().unwrap_or_default());
                self.finished.push((path, to));
            }
            f.path = next.display().to_string();
            *begun = Instant::now();
            changed = true;
        }
        self.switch += u64::from(changed);
        Ok(changed)
    }

    /// Every worker has switched: moves what is finished, deletes what is old.
    pub fn switched(&mut self, all: &[Accounting]) {
        for (from, to) in std::mem::take(&mut self.finished) {
            if let Err(e) = std::fs::rename(&from, &to) {
                tracing::error!(from = %from.display(), to = %to.display(), error = %e, "accounting file could not be moved (move-to)");
            }
        }
        for a in all.iter().filter(|a| a.move_to.is_empty() && a.delete_after_ms < ipc::rules::NEVER_MS) {
            self.delete_old(a);
        }
    }

    fn delete_old(&self, a: &Accounting) {
        let path = Path::new(&a.path);
        let Ok(entries) = std::fs::read_dir(path.parent().unwrap_or(Path::new("."))) else { return };
        for e in entries.flatten() {
            let old = e.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            let ours = is_numbered(&e.file_name().to_string_lossy(), path);
            let used = self.current.iter().any(|f| Path::new(&f.path) == e.path());
            let due = old.is_some_and(|age| age >= Duration::from_millis(a.delete_after_ms));
            if ours
                && !used
                && due
                && let Err(error) = std::fs::remove_file(e.path())
            {
                tracing::warn!(path = %e.path().display(), %error, "an old accounting file cannot be deleted (delete-after)");
            }
        }
    }
}

/// Makes the file with its header line.
fn touch(path: &Path, a: &Accounting) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let mut f = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
    if f.metadata()?.len() == 0 {
        let kinds: Vec<u8> = a.records.iter().filter_map(|k| k.bytes().next()).collect();
        f.write_all(worker::account::file::Target::header(&kinds).as_bytes())?;
        f.set_permissions(std::fs::Permissions::from_mode(if a.world_readable { 0o644 } else { 0o640 }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_files_are_deleted() {
        let path = Path::new("/a/acct.csv");
        let own = numbered(path, "2026-01-31", 7);
        assert!(is_numbered(&own.file_name().unwrap_or_default().to_string_lossy(), path));
        assert!(!is_numbered("acct-bounces-2026-01-31-0007.csv", path));
        assert!(!is_numbered("acct.csv", path));
    }
}
