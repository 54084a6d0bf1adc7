//! The secret of an installation by which SCRAM salts are made for names that no user has: such a name must be asked with the same salt
//! each time, over restarts too, as the name of a user is.

use std::io::ErrorKind;
use std::path::Path;

use ipc::snapshot::SaltKey;
use worker::accept::auth::stored::secret;

use crate::secret_file;

/// Name of the file in the data folder; only its owner may read it.
const FILE: &str = "salt-key";
const BYTES: usize = 32;

/// The secret for a configuration with so many users; `known` is the one that is in use. Without users there is no need for one.
///
/// A file that cannot be read or written stops nothing: another secret is used until the server ends, and the log says so.
pub fn for_users(users: usize, known: SaltKey, data_dir: &Path) -> SaltKey {
    if users == 0 || known != SaltKey::default() {
        return known;
    }
    let kept = kept(data_dir).or_else(|reason| {
        let why = "SCRAM asks with other salts after a restart, which tells names that nobody has from users";
        tracing::warn!(reason, "{why}");
        secret().map_err(|e| e.to_string())
    });
    kept.map(SaltKey).unwrap_or_else(|reason| {
        tracing::error!(reason, "there is no secret for salts");
        known
    })
}

/// The secret in the data folder, which is made where there is none yet.
///
/// # Errors
/// A sentence where the file cannot be read or written.
fn kept(data_dir: &Path) -> Result<[u8; BYTES], String> {
    let path = data_dir.join(FILE);
    let cannot = |e: std::io::Error| format!("{}: {e}", path.display());
    match std::fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|b: Vec<u8>| {
            format!(
                "{}: expected {BYTES} bytes, found {}: remove the file, and another is made",
                path.display(),
                b.len()
            )
        }),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let key = secret().map_err(|e| e.to_string())?;
            secret_file::write(&path, &key).map_err(cannot)?;
            Ok(key)
        }
        Err(e) => Err(cannot(e)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let key = kept(dir.path()).unwrap();
        assert!(key != [0; BYTES] && kept(dir.path()).unwrap() == key);
        let file = dir.path().join(FILE);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "short").unwrap();
        assert!(kept(dir.path()).unwrap_err().contains("found 5: remove the file"));
        let none = SaltKey::default();
        assert!(for_users(0, none, dir.path()) == none, "nobody needs one");
        let other = for_users(1, none, dir.path());
        assert!(other != none && other != SaltKey(key) && for_users(1, other, dir.path()) == other);
    }
}
