//! Folders that operators look into.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Permissions of a folder that is made: its user's, and the group's to look.
const MODE: u32 = 0o750;

/// Makes a folder where it is missing, and those above it. The group may look into what was made, whatever the umask is.
///
/// # Errors
/// As `mkdir(2)`.
pub fn make(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|p| !p.as_os_str().is_empty() && std::fs::symlink_metadata(p).is_err()).collect();
    std::fs::create_dir_all(folder)?;
    missing.into_iter().try_for_each(|p| std::fs::set_permissions(p, std::fs::Permissions::from_mode(MODE)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_group_looks_into_what_was_made_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o701)).unwrap();
        let (parent, folder) = (dir.path().join("a"), dir.path().join("a/b"));
        make(&folder).unwrap();
        make(&folder).unwrap();
        assert_eq!([dir.path(), &parent, &folder].map(mode), [0o701, MODE, MODE]);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(make(&dir.path().join("file/c")).is_err());
    }
}
