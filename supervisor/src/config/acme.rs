//! `<acme>`: what the configuration asks for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Let's Encrypt.
pub const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Folder in the data folder; its owner alone may look into it.
pub const FOLDER: &str = "acme";

/// How it is proven that a name is this server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Challenge {
    /// A file at port 80 (RFC 8555 §8.3).
    #[default]
    Http01,
    /// A certificate at port 443 (RFC 8737).
    TlsAlpn01,
    /// A record of the name's zone (RFC 8555 §8.4).
    Dns01,
}

impl Challenge {
    /// As the directive has it, by the place in its list of words.
    pub fn of(place: u64) -> Challenge {
        [Challenge::Http01, Challenge::TlsAlpn01, Challenge::Dns01][place.min(2) as usize]
    }
}

/// An `<acme>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Acme {
    /// `directory`
    pub directory: String,
    /// `contact`, as URLs.
    pub contacts: Vec<String>,
    /// `external-account`: number and key (RFC 8555 §7.3.4).
    pub external_account: Option<(String, Vec<u8>)>,
    /// `domain`, each line.
    pub certificates: Vec<Wanted>,
    /// `challenge`
    pub challenge: Challenge,
    /// Each `http-01-listener` or `tls-alpn-01-listener`; none with `dns-01`.
    pub listeners: Vec<SocketAddr>,
    /// `dns-command` and its arguments; empty for none.
    pub dns_command: Vec<String>,
    /// `dns-update`
    pub dns_update: Option<DnsUpdate>,
    /// What `ca-file` has, by which the directory's certificate is verified; empty for the system's roots.
    pub roots: String,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its names, as DNS has them; `*.` stands for all of a domain.
    pub names: Vec<String>,
}

impl Wanted {
    /// Its file in a data folder.
    pub fn path(&self, data_dir: &Path) -> PathBuf {
        let name = self.names.first().map_or("", String::as_str).replace('*', "_");
        data_dir.join(FOLDER).join(format!("{name}.pem"))
    }
}

/// Where records are changed (RFC 2136), and the key that signs that (RFC 8945).
#[derive(Clone, PartialEq, Eq)]
pub struct DnsUpdate {
    /// The name server, by its address.
    pub server: SocketAddr,
    /// Name of the key.
    pub key: String,
    /// `hmac-sha256`, `hmac-sha384`, `hmac-sha512`
    pub algorithm: String,
    /// The key.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for Acme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It has secrets.
        f.debug_struct("Acme").field("directory", &self.directory).finish_non_exhaustive()
    }
}
