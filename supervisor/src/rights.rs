//! What the process gives up before it serves.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{AccessFlags, Gid, Uid, User, access, fchown, getegid, geteuid, getgroups};
use nix::unistd::{setegid, seteuid, setgid, setgroups, setuid};

/// Links that a path may lead through.
const LINKS_MAX: usize = 40;

/// Becomes `user` if started as root. Of the folders that the server needs, root makes those that are missing and
/// gives them to the user; folders that are there keep their owner.
///
/// # Errors
/// A sentence when the user exists and yet cannot be become, or could not write to a folder.
pub fn drop_to(user: &str, folders: &[&Path]) -> Result<(), String> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let found = User::from_name(user).map_err(|e| format!("user {user}: {e}"))?;
    let Some(u) = found else {
        tracing::warn!(user, "started as root and the user does not exist; going on as root (run-as-user)");
        return Ok(());
    };
    for f in folders {
        make_for(f, u.uid, u.gid).map_err(|e| format!("{}: {e}", f.display()))?;
    }
    setgroups(&[u.gid])
        .and_then(|()| setgid(u.gid))
        .and_then(|()| setuid(u.uid))
        .map_err(|e| format!("becoming user {user}: {e}"))?;
    folders.iter().try_for_each(|f| take_over(f, user))
}

/// Makes a folder that the process needs, and looks whether it may write there.
fn take_over(folder: &Path, user: &str) -> Result<(), String> {
    let made = worker::folder::make(folder);
    made.and_then(|()| access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)).map_err(|e| {
        let f = folder.display();
        format!("user {user} cannot write to the folder {f}: {e}; what exists is not given away: chown {user} {f}")
    })
}

/// Makes a folder that is missing and gives it to a user. Root does so only where every folder of the path is root's alone, so that no other user
/// can lead the path elsewhere; behind a folder of another user, the server makes the rest itself as `run-as-user`.
fn make_for(folder: &Path, uid: Uid, gid: Gid) -> io::Result<()> {
    along(folder, |at, name, is_last| {
        // The user passes through the folders above, which everybody may; the last is for the user and its group.
        let made = make(at, name, if is_last { 0o750 } else { 0o755 })?;
        if is_last {
            fchown(&made, Some(uid), Some(gid))?;
        }
        Ok(Some(made))
    })
    .map(drop)
}

/// Whether root would make a folder at a start, and give it to the user.
///
/// # Errors
/// As of the calls that go along the path.
pub fn root_would_make(folder: &Path) -> io::Result<bool> {
    along(folder, |_, _, _| Ok(None))
}

/// Walks a path as far as its folders are root's alone. For each part that is missing, calls `missing` with the folder, the name, and whether it is
/// the last part; where `missing` makes nothing the walk ends there, and this answers true.
fn along(
    folder: &Path,
    mut missing: impl FnMut(&OwnedFd, &OsStr, bool) -> io::Result<Option<OwnedFd>>,
) -> io::Result<bool> {
    let look = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = || openat(AT_FDCWD, "/", look, Mode::empty());
    let mut at: OwnedFd = root()?;
    let mut left: VecDeque<OsString> = parts(folder).collect();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if !is_roots_alone(&fstat(&at)?) {
            return Ok(false);
        }
        let found = match fstatat(&at, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(nix::Error::ENOENT) => {
                match missing(&at, &name, left.is_empty())? {
                    Some(made) => at = made,
                    None => return Ok(true),
                }
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        if SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFLNK {
            links += 1;
            if found.st_uid != 0 {
                // Another user made the link, in a folder such as /tmp.
                return Ok(false);
            }
            if links > LINKS_MAX {
                return Err(nix::Error::ELOOP.into());
            }
            let target = readlinkat(&at, name.as_os_str())?;
            if Path::new(&target).is_absolute() {
                at = root()?;
            }
            parts(Path::new(&target)).rev().for_each(|p| left.push_front(p));
            continue;
        }
        at = openat(&at, name.as_os_str(), look, Mode::empty())?;
    }
    Ok(false)
}

/// Does something with a user's rights, and takes those of root back. For a command: all threads of the process change.
///
/// # Errors
/// When the user cannot be become.
pub fn as_user<T>(uid: Uid, gid: Gid, work: impl FnOnce() -> T) -> nix::Result<T> {
    let (groups, own) = (getgroups()?, getegid());
    setgroups(&[gid])?;
    let done = setegid(gid).and_then(|()| seteuid(uid)).map(|()| work());
    let back = seteuid(Uid::from_raw(0)).and_then(|()| setegid(own)).and_then(|()| setgroups(&groups));
    back.and(done)
}

/// A new folder, by a descriptor that is the folder's and not its name's.
fn make(at: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<OwnedFd> {
    mkdirat(at, name, Mode::S_IRWXU)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(at, name, flags, Mode::empty())?;
    // Whatever the umask is.
    fchmod(&made, Mode::from_bits_truncate(mode))?;
    Ok(made)
}

/// Names on the way; `..` is one of them.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Only root can put anything into the folder; or, as in /tmp, other users can but cannot move what is root's.
fn is_roots_alone(folder: &FileStat) -> bool {
    let mode = Mode::from_bits_truncate(folder.st_mode);
    let others_write = mode.contains(Mode::S_IWOTH) || (mode.contains(Mode::S_IWGRP) && folder.st_gid != 0);
    folder.st_uid == 0 && (!others_write || mode.contains(Mode::S_ISVTX))
}

/// Closes a folder to all but its user and group. A link in its place is left alone.
///
/// # Errors
/// As `open(2)` and `fchmod(2)`.
pub fn close_to_others(folder: &Path) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(AT_FDCWD, folder, flags, Mode::empty())?;
    Ok(fchmod(&opened, Mode::from_bits_truncate(0o750))?)
}

/// Lets this process and its workers open as many descriptors as the system allows them: the
/// soft limit of a shell is too few for a thousand connections.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        tracing::warn!(error = %e, "the limit on descriptors stays as it is");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Gid, Uid, geteuid, make_for};
    use std::io;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use std::path::Path;

    const NOBODY: u32 = 65_534;

    fn make(folder: &Path) -> io::Result<()> {
        make_for(folder, Uid::from_raw(NOBODY), Gid::from_raw(NOBODY))
    }

    #[test]
    fn what_root_just_made_is_given_away_and_nothing_else() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let owner = |name: &str| std::fs::symlink_metadata(at(name)).map(|m| m.uid()).ok();
        make(&at("a/b")).unwrap();
        assert_eq!((owner("a"), owner("a/b")), (Some(0), Some(NOBODY)));
        std::fs::create_dir(at("old")).unwrap();
        make(&at("old")).unwrap();
        assert_eq!(owner("old"), Some(0), "it was there");
        // The user's folder holds a link to root's: nothing becomes of what it leads to.
        symlink(at("old"), at("a/b/run")).unwrap();
        make(&at("a/b/run")).unwrap();
        make(&at("a/b/run/new")).unwrap();
        make(&at("a/b/mine")).unwrap();
        assert_eq!((owner("old"), owner("old/new"), owner("a/b/mine")), (Some(0), None, None));
        // Root's own links lead on, and `..` goes up.
        symlink("old", at("to-old")).unwrap();
        make(&at("to-old/../to-old/sub")).unwrap();
        assert_eq!(owner("old/sub"), Some(NOBODY));
        symlink("loop", at("loop")).unwrap();
        assert!(make(&at("loop/x")).is_err());
        // Where all may write, what root makes stays where it is; another's link leads nowhere.
        std::fs::create_dir(at("tmp")).unwrap();
        std::fs::set_permissions(at("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        symlink(at("old"), at("tmp/link")).unwrap();
        std::os::unix::fs::lchown(at("tmp/link"), Some(NOBODY), Some(NOBODY)).unwrap();
        make(&at("tmp/link/x")).unwrap();
        make(&at("tmp/y")).unwrap();
        assert_eq!((owner("old/x"), owner("tmp/y")), (None, Some(NOBODY)));
        std::fs::set_permissions(at("tmp"), std::fs::Permissions::from_mode(0o777)).unwrap();
        make(&at("tmp/z")).unwrap();
        assert_eq!(owner("tmp/z"), None, "left to the user");
        chown(at("tmp"), Some(NOBODY), None).unwrap();
        make(&at("tmp/z")).unwrap();
        assert_eq!(owner("tmp/z"), None);
    }
}
