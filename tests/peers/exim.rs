//! An Exim of our own: one listener with anti-abuse limits, mailboxes for one domain.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::eventually;

const CONFIGURATION: &str = "\
primary_hostname = exim.test
spool_directory = @DIR@/spool
log_file_path = @DIR@/spool/%slog
pid_file_path = @DIR@/spool/pid
local_interfaces = 127.0.0.26
daemon_smtp_ports = @PORT@
disable_ipv6 = true
keep_environment =
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
deliver_drop_privilege = true
smtp_accept_max_per_host = 2
smtp_accept_max_per_connection = 5
acl_smtp_connect = connection
acl_smtp_rcpt = recipient

begin acl
connection:
  defer message = too many connections, come back later
        ratelimit = 10 / 5s / strict / per_conn
  accept
recipient:
  deny  message = relay not permitted
        !domains = mailbox.test
  defer message = too many recipients, come back later
        ratelimit = 20 / 5s / strict / per_rcpt
  accept

begin routers
all:
  driver = accept
  transport = maildir

begin transports
maildir:
  driver = appendfile
  directory = @DIR@/spool/mail
  create_directory
  maildir_format
  user = Debian-exim
";

/// A running Exim.
pub struct Exim {
    dir: tempfile::TempDir,
    port: u16,
    daemon: Child,
}

impl Exim {
    /// Starts it, or says why there is none.
    pub fn start() -> Option<Exim> {
        if !crate::has("exim4") {
            return None;
        }
        let Some(user) = nix::unistd::User::from_name("Debian-exim").unwrap() else {
            println!("skipped: Exim's user Debian-exim does not exist");
            return None;
        };
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: Exim starts as root only");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let spool = dir.path().join("spool");
        std::fs::create_dir(&spool).unwrap();
        nix::unistd::chown(&spool, Some(user.uid), Some(user.gid)).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.26:0").unwrap().local_addr().unwrap().port();
        let fill = CONFIGURATION.replace("@DIR@", &dir.path().display().to_string());
        let conf = dir.path().join("exim.conf");
        std::fs::write(&conf, fill.replace("@PORT@", &port.to_string())).unwrap();
        let mut daemon = Command::new("exim4");
        daemon.arg("-C").arg(&conf).arg("-bdf").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Exim { dir, port, daemon: daemon.spawn().unwrap() };
        eventually("Exim listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.26", port)).is_ok()
        });
        Some(started)
    }

    /// `smtp-hosts` that leads here.
    pub fn hosts(&self) -> String {
        format!("smtp-hosts [127.0.0.26]:{}", self.port)
    }

    /// What it logged of mail, and of what it refused.
    pub fn log(&self) -> String {
        let read = |name| std::fs::read_to_string(self.dir.path().join("spool").join(name)).unwrap_or_default();
        read("mainlog") + &read("rejectlog")
    }

    /// How many messages came.
    pub fn delivered(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("spool/mail/new")).map_or(0, Iterator::count)
    }
}

impl Drop for Exim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let pid = nix::unistd::Pid::from_raw(self.daemon.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}
