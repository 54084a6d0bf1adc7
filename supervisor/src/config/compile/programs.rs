//! Programs that commands begin with.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Compiler, Statement};

impl Compiler<'_> {
    /// Warns of a command whose program cannot be started: the mail or the rows that the program is to get would wait. Each program is looked for once.
    pub(super) fn program(&mut self, s: &Statement, command: &str) {
        let Some(program) = worker::programs::words(command).into_iter().next() else { return };
        // One that macros choose is known when mail comes.
        if program.contains('$') || !self.reader.source.opens_named_files() || !self.programs.insert(program.clone()) {
            return;
        }
        let found = match program.contains('/') {
            true => can_be_started(Path::new(&program)),
            false => worker::programs::folders()
                .any(|folder| can_be_started(&folder.join(&program)) == Ok(()))
                .then_some(())
                .ok_or("is in none of the folders that programs are looked for in"),
        };
        if let Err(why) = found {
            let message = format!("{}: {program} {why}", s.name.trim_matches(['<', '>']));
            self.warning(s.value_at(), "missing-program", message, "what is for it waits until it can be started");
        }
    }
}

fn can_be_started(path: &Path) -> Result<(), &'static str> {
    match std::fs::metadata(path) {
        Ok(m) if m.is_file() && m.permissions().mode() & 0o111 != 0 => Ok(()),
        Ok(_) => Err("is no program: nobody may execute it"),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err("does not exist"),
        // The user that runs `config check` may have no right to look there; the server's user may have.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_that_may_be_executed_are_programs() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("take");
        assert_eq!(can_be_started(&file), Err("does not exist"));
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        assert!(can_be_started(&file).is_err() && can_be_started(dir.path()).is_err());
        assert_eq!(can_be_started(&file.join("x")), Err("does not exist"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(can_be_started(&file), Ok(()));
    }
}
