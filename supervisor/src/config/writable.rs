//! Places that the server writes to, looked at before a start would find that it cannot.

use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, User, faccessat};

use super::diagnostic::Diagnostic;
use super::files::Span;
use crate::rights;

/// A folder that a line has the server write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The line.
    pub at: Span,
    /// What is said of it, such as `spool /var/spool/sluice`.
    pub named: String,
    /// The folder.
    pub path: PathBuf,
    /// A server makes it at its start and cannot do without; else mail waits for it.
    pub at_start: bool,
}

/// Folders that the user of the server cannot write to. That user is `run-as-user` where root asks, and else the one who asks.
pub fn unwritable(run_as_user: &str, run_as_root: bool, folders: &[Folder]) -> Vec<Diagnostic> {
    let is_root = nix::unistd::geteuid().is_root();
    let user = User::from_name(run_as_user).ok().flatten().filter(|_| is_root && !run_as_root);
    let name = match &user {
        Some(u) => u.name.clone(),
        None => User::from_uid(nix::unistd::geteuid()).ok().flatten().map_or("of this check".to_owned(), |u| u.name),
    };
    // Root makes what is missing before it becomes the user, as far as it does so at a start.
    let left = |f: &&Folder| !(f.at_start && user.is_some() && rights::root_would_make(&f.path).unwrap_or(false));
    let looked_at: Vec<&Folder> = folders.iter().filter(left).collect();
    let tried = || -> Vec<io::Result<()>> { looked_at.iter().map(|f| try_folder(&f.path)).collect() };
    let tried = match &user {
        Some(u) => match rights::as_user(u.uid, u.gid, tried) {
            Ok(tried) => tried,
            // What cannot be tried is not said to be wrong.
            Err(_) => return Vec::new(),
        },
        None => tried(),
    };
    let failed = looked_at.into_iter().zip(tried).filter_map(|(f, tried)| tried.err().map(|e| (f, e)));
    let mut all: Vec<Diagnostic> = failed.map(|(f, e)| diagnostic(f, &e, &name)).collect();
    all.sort_by_key(|d| d.at);
    all
}

fn diagnostic(f: &Folder, e: &io::Error, user: &str) -> Diagnostic {
    let folder = f.path.display();
    let message = format!("{}: user {user} cannot write to the folder {folder}: {e}", f.named);
    let help = match e.kind() {
        io::ErrorKind::PermissionDenied => {
            let there = deepest(&f.path).unwrap_or(&f.path).display();
            format!(
                "chown {user} {there}, or name a folder that is the server's; started as root it is run-as-user's that counts"
            )
        }
        _ => String::new(),
    };
    let d = Diagnostic::error(f.at, "unwritable", message, help);
    Diagnostic { is_error: f.at_start, ..d }
}

/// Whether a folder can be written to, or made.
fn try_folder(folder: &Path) -> io::Result<()> {
    let there = deepest(folder)?;
    if !std::fs::metadata(there)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(faccessat(AT_FDCWD, there, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)?)
}

/// The last part of a path that is there.
fn deepest(folder: &Path) -> io::Result<&Path> {
    for part in folder.ancestors() {
        match std::fs::symlink_metadata(part) {
            Ok(_) => return Ok(part),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The folder of a `file-destination` as far as it does not depend on the message.
pub fn fixed_folder(destination: &str) -> Option<PathBuf> {
    let path = Path::new(destination);
    let fixed: PathBuf = path.components().take_while(|c| !c.as_os_str().to_string_lossy().contains('$')).collect();
    let is_whole = fixed == path;
    // A file of many messages, or a folder of them: one that is there says what it is.
    let folder = if is_whole && !path.is_dir() { fixed.parent()?.to_owned() } else { fixed };
    folder.is_absolute().then_some(folder)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::compile::compile_text;

    /// Lines and codes of what user nobody cannot write to.
    fn found(text: &str) -> Vec<String> {
        let checked = compile_text(Path::new("c.conf"), &format!("run-as-user nobody\n{text}"));
        assert!(checked.errors().is_none(), "{:?}", checked.errors());
        let wrong = unwritable(&checked.compiled.run_as_user, checked.compiled.run_as_root, &checked.writes);
        wrong.iter().map(|d| format!("{} {}", d.at.line, if d.is_error { d.code } else { "waits" })).collect()
    }

    #[test]
    fn what_the_servers_user_cannot_write_to_is_said_by_its_line() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir(at("roots")).unwrap();
        std::fs::create_dir(at("open")).unwrap();
        set_permissions(at("open"), Permissions::from_mode(0o777)).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let (roots, open, file) = (at("roots"), at("open"), at("file"));
        // What is missing root makes, but not for destinations of mail.
        assert!(found(&format!("data-dir {roots}/new\nspool {roots}/new/spool")).is_empty());
        assert!(
            found(&format!("data-dir {open}\nspool {open}/a/b\n<acct-file {open}/acct/a.csv>\n</acct-file>"))
                .is_empty()
        );
        assert_eq!(found(&format!("data-dir {roots}")), ["2 unwritable"]);
        assert_eq!(
            found(&format!("data-dir {open}\nspool {roots}\n<spool {file}/x>\n</spool>")),
            ["3 unwritable", "4 unwritable"]
        );
        let acct = format!("data-dir {open}\n<acct-file {roots}/a.csv>\n move-to {file}/x\n</acct-file>");
        assert_eq!(found(&acct), ["3 unwritable", "4 unwritable"]);
        let destination = format!("<domain d.test>\n type file\n file-destination {roots}/$domain/x\n</domain>");
        assert_eq!(found(&format!("data-dir {open}\n{destination}")), ["5 waits"]);
        // Below a folder that is not known yet nothing is known.
        assert!(found("spool spool\n<acct-file acct/a.csv>\n</acct-file>").is_empty());
        assert!(found("data-dir ./here\nspool spool").is_empty());
    }

    #[test]
    fn the_part_of_a_destination_that_is_fixed_is_known() {
        let fixed = |t: &str| fixed_folder(t).map(|p| p.display().to_string());
        assert_eq!(fixed("/var/mail/$domain/in").as_deref(), Some("/var/mail"));
        assert_eq!(fixed("/var/mail/x-$domain").as_deref(), Some("/var/mail"));
        assert_eq!(fixed("/not-there/all.mbox").as_deref(), Some("/not-there"));
        assert_eq!((fixed("mail/all"), fixed("$a")), (None, None));
    }
}
