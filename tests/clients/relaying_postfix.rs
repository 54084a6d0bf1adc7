//! Postfix as a client: it sends everything to us, with the SASL library of Cyrus.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::eventually;

use super::{MESSAGE, SENDER, Server, has};

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
relayhost = [@HOST@]:@RELAY@
smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = inline:{ { [@HOST@]:@RELAY@ = @USER@:secret } }
smtp_sasl_security_options = noanonymous
smtp_sasl_mechanism_filter = @MECHANISM@
smtp_tls_security_level = encrypt
";

const MASTER: &str = "\
127.0.0.1:@PORT@ inet n - n - 20 smtpd
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
";

struct Postfix {
    dir: tempfile::TempDir,
    port: u16,
    master: Child,
}

impl Postfix {
    fn start(server: &Server, user: &str, mechanism: &str) -> Option<Postfix> {
        let daemons = ["/usr/lib/postfix/sbin", "/usr/libexec/postfix"].into_iter().find(|d| Path::new(d).is_dir())?;
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: Postfix starts as root only");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = tests::engine::free_port();
        let owner = nix::unistd::User::from_name("postfix").unwrap()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for sub in ["queue", "data", "conf"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        nix::unistd::chown(&dir.path().join("data"), Some(owner.uid), Some(owner.gid)).unwrap();
        let fill = |text: &str| {
            text.replace("@DIR@", &dir.path().display().to_string())
                .replace("@DAEMONS@", daemons)
                .replace("@HOST@", &server.host())
                .replace("@RELAY@", &server.port())
                .replace("@USER@", user)
                .replace("@MECHANISM@", mechanism)
                .replace("@PORT@", &port.to_string())
        };
        let conf = dir.path().join("conf");
        std::fs::write(conf.join("main.cf"), fill(MAIN)).unwrap();
        std::fs::write(conf.join("master.cf"), fill(MASTER)).unwrap();
        let quiet =
            |c: &mut Command| c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Makes the queue's folders; complains of services that are left out.
        quiet(Command::new("postfix").arg("-c").arg(&conf).arg("check")).wait().unwrap();
        let master = quiet(Command::new(Path::new(daemons).join("master")).arg("-c").arg(&conf).arg("-d"));
        let started = Postfix { dir, port, master };
        eventually("Postfix listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Some(started)
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.master.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.master.wait();
    }
}

#[test]
fn postfix_relays_with_the_mechanisms_of_cyrus() {
    let scram = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let scram = scram.map(|d| d.path().join("sasl2/libscram.so")).any(|f| f.exists());
    if !scram {
        println!("skipped: the mechanisms of libsasl2-modules are not installed");
    }
    if !has("postfix") || !scram {
        return;
    }
    let server = Server::start();
    let stuffed = MESSAGE.trim_end().replace("\r\n.", "\r\n..");
    for (mechanism, user) in [("SCRAM-SHA-256", "scram"), ("CRAM-MD5", "plain"), ("PLAIN", "argon"), ("LOGIN", "scram")]
    {
        let user = format!("{user}@users.test");
        let Some(postfix) = Postfix::start(&server, &user, mechanism) else { return };
        let name = format!("postfix-{mechanism}").to_lowercase();
        let mut c = tests::client::Client::connect(([127, 0, 0, 1], postfix.port).into()).unwrap();
        assert_eq!(c.send(SENDER, &[&format!("{name}@d.test")], &stuffed).unwrap().0, 250);
        let log = || std::fs::read_to_string(postfix.dir.path().join("log")).unwrap_or_default();
        eventually(&format!("Postfix delivers: {}", log()), Duration::from_secs(30), || log().contains("status=sent"));
        server.receives(&name, &user, &mut Command::new("true"));
    }
}
