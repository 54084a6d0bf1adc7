//! What the process gives up before it serves.

use nix::unistd::{User, geteuid, setgid, setgroups, setuid};
use std::path::Path;

/// Becomes `user` if started as root; the folders it needs are made its own first.
///
/// # Errors
/// A sentence when the user exists and yet cannot be become.
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
        std::fs::create_dir_all(f)
            .and_then(|()| std::os::unix::fs::chown(f, Some(u.uid.as_raw()), Some(u.gid.as_raw())))
            .map_err(|e| format!("{}: {e}", f.display()))?;
    }
    setgroups(&[u.gid])
        .and_then(|()| setgid(u.gid))
        .and_then(|()| setuid(u.uid))
        .map_err(|e| format!("becoming user {user}: {e}"))
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
