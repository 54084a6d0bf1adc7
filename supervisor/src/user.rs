//! `sluice user`: stored forms of passwords.

use std::io::{BufRead, IsTerminal};

use worker::accept::auth::stored::{Form, ITERATIONS, PASSWORD_MAX, made};

use crate::Failure;
use crate::cli::HashForm;

/// The value of `password` for a password that is asked for on the terminal, twice, or read from the first line of standard input.
///
/// # Errors
/// When there is no password, it is too long, or what was entered twice differs.
pub fn hash(form: HashForm, iterations: Option<u32>) -> Result<String, Failure> {
    if form == HashForm::Argon2id && iterations.is_some() {
        return Err(Failure::Wrong("--iterations is for --form scram-sha-256".into()));
    }
    let password = if std::io::stdin().is_terminal() { asked()? } else { read(std::io::stdin().lock())? };
    let form = match form {
        HashForm::Argon2id => Form::Argon2id,
        HashForm::ScramSha256 => Form::ScramSha256(iterations.unwrap_or(ITERATIONS)),
    };
    made(&password, form).map(|value| value + "\n").map_err(|e| Failure::Wrong(e.to_string()))
}

fn asked() -> Result<String, Failure> {
    let ask =
        |prompt: &str| rpassword::prompt_password(prompt).map_err(|e| Failure::Failed(format!("the terminal: {e}")));
    let password = ask("Password: ")?;
    match ask("The same again: ")? == password {
        true => Ok(password),
        false => Err(Failure::Wrong("the two passwords differ".into())),
    }
}

/// The first line, without its end.
fn read(from: impl BufRead) -> Result<String, Failure> {
    let mut line = Vec::new();
    let mut bounded = from.take(PASSWORD_MAX as u64 + 2);
    bounded.read_until(b'\n', &mut line).map_err(|e| Failure::Failed(format!("standard input: {e}")))?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8(line.to_vec()).map_err(|_| Failure::Wrong("expected a password in UTF-8".into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        for (given, expected) in [("a b\n", "a b"), ("a\r\nb\n", "a"), ("a", "a"), ("", "")] {
            assert_eq!(read(given.as_bytes()).unwrap(), expected);
        }
        let long = "x".repeat(PASSWORD_MAX + 1);
        assert!(
            made(&read(long.as_bytes()).unwrap(), Form::Argon2id).is_err(),
            "what is cut off is not taken for all of it"
        );
        assert!(read(&b"\xff\n"[..]).is_err());
    }
}
