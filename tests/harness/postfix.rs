//! A Postfix of our own: as a receiver, with mailboxes for one domain and everything else refused, or as a client that sends everything to us.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::eventually;

const MAIN: &str = "\
compatibility_level = 3.6
queue_directory = @DIR@/queue
data_directory = @DIR@/data
command_directory = /usr/sbin
daemon_directory = @DAEMONS@
mail_owner = postfix
setgid_group = postdrop
maillog_file_prefixes = /
maillog_file = @DIR@/log
myhostname = postfix.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
";

/// Mailboxes for one domain.
const RECEIVER: &str = "\
local_recipient_maps =
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions =
smtpd_peername_lookup = no
virtual_mailbox_domains = mailbox.test
virtual_mailbox_base = @DIR@/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:@UID@
virtual_gid_maps = static:@UID@
virtual_minimum_uid = 1
";

/// As a client: what a listener takes from this machine goes to a relay.
const CLIENT: &str = "\
127.0.0.25:@PORT@ inet n - n - 20 smtpd
tlsmgr unix - - n 1000? 1 tlsmgr
";

const SMTPD: &str = "127.0.0.25:@PORT@ inet n - n - 20 smtpd\n";
const POSTSCREEN: &str = "\
127.0.0.25:@PORT@ inet n - n - 1 postscreen
smtpd pass - - n - - smtpd
dnsblog unix - - n - 0 dnsblog
tlsproxy unix - - n - 0 tlsproxy
";
const MASTER: &str = "\
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
";

/// A running Postfix.
pub struct Postfix {
    dir: tempfile::TempDir,
    port: u16,
    master: Child,
}

impl Postfix {
    /// Starts it, or says why there is none.
    pub fn start() -> Option<Postfix> {
        Self::start_with("")
    }

    /// The same with more lines in its `main.cf`.
    pub fn start_with(more: &str) -> Option<Postfix> {
        Self::start_as(SMTPD, &format!("{RECEIVER}{more}"))
    }

    /// The same with postscreen in front.
    pub fn start_behind_postscreen(more: &str) -> Option<Postfix> {
        Self::start_as(POSTSCREEN, &format!("{RECEIVER}{more}"))
    }

    /// One that takes mail of this machine and sends all of it as `main` says, more lines of its `main.cf`.
    pub fn start_as_client(main: &str) -> Option<Postfix> {
        Self::start_as(CLIENT, main)
    }

    fn start_as(listener: &str, more: &str) -> Option<Postfix> {
        let daemons = ["/usr/lib/postfix/sbin", "/usr/libexec/postfix"].into_iter().find(|d| Path::new(d).is_dir());
        let Some(daemons) = daemons else {
            println!("skipped: postfix is not installed");
            return None;
        };
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: Postfix starts as root only");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.25:0").unwrap().local_addr().unwrap().port();
        let user = nix::unistd::User::from_name("postfix").unwrap()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for sub in ["queue", "data", "mail", "conf"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        for sub in ["data", "mail"] {
            nix::unistd::chown(&dir.path().join(sub), Some(user.uid), Some(user.gid)).unwrap();
        }
        let fill = |text: &str| {
            text.replace("@DIR@", &dir.path().display().to_string())
                .replace("@DAEMONS@", daemons)
                .replace("@UID@", &user.uid.to_string())
                .replace("@PORT@", &port.to_string())
        };
        let conf = dir.path().join("conf");
        std::fs::write(conf.join("main.cf"), fill(MAIN) + &fill(more)).unwrap();
        std::fs::write(conf.join("master.cf"), fill(listener) + &fill(MASTER)).unwrap();
        let quiet =
            |c: &mut Command| c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Makes the queue's folders; complains of services that are left out.
        quiet(Command::new("postfix").arg("-c").arg(&conf).arg("check")).wait().unwrap();
        let master = quiet(Command::new(Path::new(daemons).join("master")).arg("-c").arg(&conf).arg("-d"));
        let started = Postfix { dir, port, master };
        eventually("Postfix listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.25", port)).is_ok()
        });
        Some(started)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 25], self.port).into()
    }

    /// `smtp-hosts` that leads here.
    pub fn hosts(&self) -> String {
        format!("smtp-hosts [127.0.0.25]:{}", self.port)
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// All mail that came.
    pub fn mailbox(&self) -> Vec<String> {
        let new: PathBuf = self.dir.path().join("mail/all/new");
        let Ok(files) = std::fs::read_dir(new) else { return Vec::new() };
        files.flatten().filter_map(|f| std::fs::read_to_string(f.path()).ok()).collect()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let pid = nix::unistd::Pid::from_raw(self.master.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.master.wait();
    }
}
