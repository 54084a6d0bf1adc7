//! Real mail servers, started by the scripts of `servers/`. All of them refuse by the same names (a sender
//! `mail450…`, `data450…`, `end450…`, a recipient `no450…`, and the same with 550) and keep what they take in files.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::client::Client;
use tests::eventually;

use crate::say;

/// A server, and what it can be configured to refuse by itself.
#[derive(Debug)]
pub struct Kind {
    /// Name of its script.
    pub name: &'static str,
    /// The folder below `target/peers` that its packages are unpacked in.
    pub unpacked: bool,
    /// Its own configuration refuses MAIL, RCPT, DATA, the content.
    pub refuses: [bool; 4],
    /// Listeners at 127.0.0.60 to 63: as it is, without CHUNKING, without PIPELINING, without both.
    pub listeners: bool,
}

/// A message as a server kept it.
#[derive(Debug)]
pub struct Kept {
    pub sender: String,
    pub recipient: String,
    pub content: String,
}

/// A running server.
pub struct Server {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Server {
    /// Starts it, or says why there is none.
    pub fn start(kind: &Kind) -> Option<Server> {
        if !nix::unistd::Uid::effective().is_root() {
            say(&format!("skipped: receivers {}: servers are started as root only", kind.name));
            return None;
        }
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("receivers");
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers").canonicalize().unwrap_or_default();
        let tree = peers.join(kind.name);
        let is_there = match kind.name {
            "postfix" => Path::new("/usr/lib/postfix/sbin/master").exists(),
            "smtp-server" => peers.join("npm/node_modules/smtp-server").exists(),
            "haraka" => peers.join("npm/node_modules/Haraka").exists(),
            "aiosmtpd" => peers.join("python/aiosmtpd").exists(),
            _ => tree.exists(),
        };
        if !is_there {
            say(&format!("skipped: receivers {}: its package is not there (tests/receivers/install)", kind.name));
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mail = dir.path().join("mail");
        std::fs::create_dir(&mail).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&mail, std::fs::Permissions::from_mode(0o777)).unwrap();
        // Where every server's user can read it.
        let deliver = dir.path().join("deliver");
        std::fs::copy(here.join("deliver"), &deliver).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.60:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(here.join("within"));
        let child = command
            .arg(if kind.unpacked { &tree } else { Path::new("/nothing") })
            .arg(here.join("servers").join(kind.name))
            .env("DIR", dir.path())
            .env("IP", "127.0.0.60")
            .env("PORT", port.to_string())
            .env("MAIL", &mail)
            .env("DELIVER", &deliver)
            .env("PEERS", &peers)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Server { dir, child, port };
        eventually(&format!("{} listens", kind.name), Duration::from_secs(60), || {
            TcpStream::connect(server.address(0)).is_ok()
        });
        Some(server)
    }

    /// Where its n-th listener is.
    pub fn address(&self, n: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 60 + n], self.port))
    }

    /// What it offers.
    pub fn offers(&self) -> String {
        let mut c = Client::dial(self.address(0)).unwrap();
        c.reply().unwrap();
        c.command("EHLO client.test").unwrap().1
    }

    /// All that it took and delivered.
    pub fn kept(&self) -> Vec<Kept> {
        let files = std::fs::read_dir(self.dir.path().join("mail")).unwrap();
        let of = |p: PathBuf| {
            let text = String::from_utf8_lossy(&std::fs::read(p).ok()?).replace("\r\n", "\n");
            let (sender, rest) = text.split_once('\n')?;
            let (recipient, content) = rest.split_once('\n')?;
            Some(Kept { sender: sender.into(), recipient: recipient.into(), content: content.into() })
        };
        files.flatten().map(|f| f.path()).filter(|p| !p.to_string_lossy().contains("/new.")).filter_map(of).collect()
    }

    /// The end of what it logged.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        text.lines().rev().take(30).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log, last line first\n{}", self.log());
        }
        // Its namespace ends with it, and with that all its processes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
