//! Files in PEM that directives name: what they have to hold, and how they are read again when they change.

use std::path::Path;

use worker::connect::tls;
use worker::dkim::key::Key;
use worker::regular_file;

use super::encrypted_key;
use super::source::PEM_BYTES_MAX;

/// What a file has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Form {
    /// A key that DKIM signs with (`domain-key`).
    SigningKey,
    /// A certificate chain and its key (`tls-certificate`, `smtp-client-certificate`).
    Identity,
    /// Certificates that receivers are verified by (`smtp-tls-ca-file`).
    Roots,
    /// Certificates of authorities that clients' certificates have to be issued by (`tls-ca-file`).
    Issuers,
}

impl Form {
    /// Whether `pem` is of this form.
    ///
    /// # Errors
    /// A sentence saying what it lacks.
    pub fn check(self, pem: &str) -> Result<(), String> {
        match self {
            Form::SigningKey => Key::from_pem(pem).map(drop),
            Form::Identity => tls::check_identity(pem),
            Form::Roots => tls::check_roots(pem),
            Form::Issuers => tls::check_issuers(pem),
        }
    }

    /// Only the server should be able to read it.
    pub fn is_secret(self) -> bool {
        matches!(self, Form::SigningKey | Form::Identity)
    }

    /// For sentences.
    pub fn what(self) -> &'static str {
        match self {
            Form::SigningKey => "DKIM key",
            Form::Identity => "certificate",
            Form::Roots | Form::Issuers => "file of root certificates",
        }
    }
}

/// A file, as some line names it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PemFile {
    /// As written.
    pub path: String,
    /// What that line needs of it.
    pub form: Form,
    /// What opens its key; empty for none.
    pub password: String,
}

impl std::fmt::Debug for PemFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password is not shown.
        f.debug_struct("PemFile").field("path", &self.path).field("form", &self.form).finish_non_exhaustive()
    }
}

impl PemFile {
    /// A certificate chain and a key that no password protects.
    pub fn identity(path: String) -> PemFile {
        PemFile { path, form: Form::Identity, password: String::new() }
    }

    /// Its text now, with the key in plain.
    ///
    /// # Errors
    /// A sentence saying why it cannot be read or used.
    pub fn read(&self) -> Result<String, String> {
        let text = regular_file::read_to_string(Path::new(&self.path), PEM_BYTES_MAX).map_err(|e| e.to_string())?;
        let pem = encrypted_key::in_plain(&self.path, text, &self.password).map_err(|p| p.message)?;
        self.form.check(&pem).map(|()| pem)
    }
}
