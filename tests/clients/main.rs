//! Unchanged clients that applications send with, by STARTTLS and AUTH. One that is not installed is skipped; `tests/clients/install`
//! installs them where it can.
#![allow(clippy::unwrap_used, missing_docs)]

mod relaying_postfix;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{accounting, eventually, fed, has, tls};

/// A server that takes mail of users alone; their passwords are `secret`, stored in the form that their name says.
struct Server {
    receiver: Receiver,
    engine: Engine,
    /// A listener that no other `<source>` speaks for.
    at: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let pem = folder.path().join("mta.pem");
        std::fs::write(&pem, tls::pem()).unwrap();
        let hashed = |form: &str| {
            let out = fed(Command::new(binary()).args(["user", "hash", "--form", form]), "secret\n");
            String::from_utf8(out.stdout).unwrap()
        };
        let users: String =
            [("plain", "secret".to_owned()), ("scram", hashed("scram-sha-256")), ("argon", hashed("argon2id"))]
                .map(|(name, password)| {
                    format!("<smtp-user {name}@users.test>\n password {}\n</smtp-user>\n", password.trim())
                })
                .concat();
        let at: SocketAddr = format!("127.0.3.1:{}", tests::engine::free_port()).parse().unwrap();
        let receiver = Receiver::start();
        let engine = Engine::start(
            2,
            &format!(
                "<domain *>\n {}\n</domain>\n{users}smtp-server-tls-certificate {}\nsmtp-listener {at} source={{users}}\n\
                 <source {{users}}>\n require-auth yes\n always-allow-relaying no\n allow-starttls yes\n</source>\n\
                 <source {{auth}}>\n always-allow-relaying yes\n</source>\n\
                 <acct-file acct/users.csv>\n records d\n record-fields d rcpt,rcvSmtpUser\n</acct-file>\n",
                receiver.hosts(),
                pem.display()
            ),
        );
        Server { receiver, engine, at, _folder: folder }
    }

    /// Runs a client that sends one mail to `NAME@d.test`, and sees that the mail arrives as it was sent and is said to be the user's.
    fn receives(&self, name: &str, user: &str, command: &mut Command) {
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(out.status.success(), "{command:?}\n{said}");
        self.has(name, user);
    }

    /// The mail to `NAME@d.test` arrives as it was sent and is said to be the user's.
    fn has(&self, name: &str, user: &str) {
        let to = format!("{name}@d.test");
        eventually("the mail arrives", Duration::from_secs(20), || self.receiver.message_to(&to).is_some());
        let content = self.receiver.message_to(&to).unwrap().content;
        assert!(content.contains("with ESMTPSA id ") && content.contains("line\r\n.\r\n..dots\r\n"), "{content}");
        let row = [to, user.to_owned()];
        eventually("a row says whose it was", Duration::from_secs(10), || {
            let files = std::fs::read_dir(self.engine.path().join("acct")).unwrap().flatten();
            let files = files.filter(|f| f.file_name().to_string_lossy().starts_with("users"));
            let lines: String = files.filter_map(|f| std::fs::read_to_string(f.path()).ok()).collect();
            lines.lines().any(|l| accounting::cells(l).get(1..3) == Some(&row[..]))
        });
    }

    fn host(&self) -> String {
        self.at.ip().to_string()
    }

    fn port(&self) -> String {
        self.at.port().to_string()
    }
}

/// Packages that `install` put in their folder.
fn installed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/clients")
}

const SENDER: &str = "sender@x.test";
const MESSAGE: &str = "Subject: x\r\n\r\nline\r\n.\r\n..dots\r\n";

/// A program that runs a script of this folder.
fn script(program: &str, name: &str) -> Command {
    let mut c = Command::new(program);
    c.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name));
    c
}

/// A client sends as users whose passwords are stored in each form, with a mechanism for each. `start` is followed by host, port, user,
/// password, mechanism, sender and recipient.
fn sends_by_each_mechanism(server: &Server, client: &str, start: impl Fn() -> Command) {
    for (mechanism, user) in [("PLAIN", "argon"), ("LOGIN", "scram"), ("CRAM-MD5", "plain")] {
        sends(server, &format!("{client}-{mechanism}").to_lowercase(), user, Some(mechanism), start());
    }
}

/// A client sends one mail to `NAME@d.test`; without a `mechanism` it chooses one itself.
fn sends(server: &Server, name: &str, user: &str, mechanism: Option<&str>, mut start: Command) {
    let (user, to) = (format!("{user}@users.test"), format!("{name}@d.test"));
    start.args([server.host(), server.port()]).args([user.as_str(), "secret"]).args(mechanism);
    server.receives(name, &user, start.args([SENDER, &to]));
}

#[test]
fn nodemailer() {
    let modules = ["nodemailer", "nodemailer-newest"].map(|m| installed().join("node_modules").join(m));
    if !has("node") || !modules.iter().all(|m| has(&m.display().to_string())) {
        return;
    }
    let server = Server::start();
    for (n, module) in modules.iter().enumerate() {
        sends_by_each_mechanism(&server, &format!("node{n}"), || {
            let mut c = script("node", "nodemailer.js");
            c.arg(module);
            c
        });
    }
}

#[test]
fn lettre() {
    use ::lettre::address::Envelope;
    use ::lettre::transport::smtp::authentication::{Credentials, Mechanism};
    use ::lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
    use ::lettre::{SmtpTransport, Transport};
    let server = Server::start();
    let root = Certificate::from_pem(tls::pem().as_bytes()).unwrap();
    let tls = TlsParameters::builder(tls::NAME.to_owned()).add_root_certificate(root).build().unwrap();
    for (name, mechanism, user) in [("plain", Mechanism::Plain, "argon"), ("login", Mechanism::Login, "scram")] {
        let user = format!("{user}@users.test");
        let transport = SmtpTransport::builder_dangerous(server.host())
            .port(server.at.port())
            .tls(Tls::Required(tls.clone()))
            .credentials(Credentials::new(user.clone(), "secret".into()))
            .authentication(vec![mechanism])
            .build();
        let to = format!("lettre-{name}");
        let recipients = vec![format!("{to}@d.test").parse().unwrap()];
        let envelope = Envelope::new(Some(SENDER.parse().unwrap()), recipients).unwrap();
        transport.send_raw(&envelope, MESSAGE.as_bytes()).unwrap();
        server.has(&to, &user);
    }
}

#[test]
fn python() {
    if !has("python3") {
        return;
    }
    let server = Server::start();
    sends_by_each_mechanism(&server, "smtplib", || script("python3", "by_smtplib.py"));
    if has(&installed().join("aiosmtplib").display().to_string()) {
        // It tries CRAM-MD5 first, which is of no use for how one of the passwords is stored, and goes on with another.
        for user in ["plain", "scram"] {
            let mut c = script("python3", "by_aiosmtplib.py");
            c.env("PYTHONPATH", installed());
            sends(&server, &format!("aio-{user}"), user, None, c);
        }
    }
}

#[test]
fn php() {
    let (phpmailer, symfony) =
        ("/usr/share/php/libphp-phpmailer/autoload.php", "/usr/share/php/Symfony/Component/Mailer/autoload.php");
    if !has("php") || !has(phpmailer) || !has(symfony) {
        return;
    }
    let server = Server::start();
    sends_by_each_mechanism(&server, "phpmailer", || script("php", "phpmailer.php"));
    for user in ["plain", "argon"] {
        sends(&server, &format!("symfony-{user}"), user, None, script("php", "symfony.php"));
    }
}

#[test]
fn perl() {
    if !has("perl") || !has("/usr/share/perl5/Authen/SASL.pm") || !has("/usr/share/perl5/IO/Socket/SSL.pm") {
        return;
    }
    sends_by_each_mechanism(&Server::start(), "perl", || script("perl", "net_smtp.pl"));
}

#[test]
fn programs_of_the_command_line() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let message = folder.path().join("message");
    std::fs::write(&message, MESSAGE).unwrap();
    for (mechanism, user) in [("PLAIN", "argon"), ("LOGIN", "scram"), ("CRAM-MD5", "plain"), ("SCRAM-SHA-256", "scram")]
    {
        let user = format!("{user}@users.test");
        let of = |program: &str| format!("{program}-{mechanism}").to_lowercase();
        if has("swaks") && mechanism != "SCRAM-SHA-256" {
            let to = format!("{}@d.test", of("swaks"));
            let mut c = Command::new("swaks");
            c.args([
                "--server",
                &server.at.to_string(),
                "-tls",
                "--auth",
                mechanism,
                "--auth-user",
                &user,
                "--auth-password",
                "secret",
            ]);
            c.args(["--from", SENDER, "--to", &to, "--body", "line\n.\n..dots\n"]);
            server.receives(&of("swaks"), &user, &mut c);
        }
        if has("curl") && mechanism != "SCRAM-SHA-256" {
            let mut c = Command::new("curl");
            c.args([
                "-sS",
                "-k",
                "--ssl-reqd",
                "--url",
                &format!("smtp://{}/client.test", server.at),
                "--mail-from",
                SENDER,
            ]);
            c.args(["--mail-rcpt", &format!("{}@d.test", of("curl")), "--user", &format!("{user}:secret")]);
            c.args(["--login-options", &format!("AUTH={mechanism}"), "--upload-file"]).arg(&message);
            server.receives(&of("curl"), &user, &mut c);
        }
        if has("msmtp") {
            let mut c = Command::new("msmtp");
            c.args([
                "--host",
                &server.host(),
                "--port",
                &server.port(),
                "--tls=on",
                "--tls-starttls=on",
                "--tls-certcheck=off",
            ]);
            c.args([&format!("--auth={}", mechanism.to_lowercase()), "--user", &user, "--passwordeval", "echo secret"]);
            c.args(["--from", SENDER, &format!("{}@d.test", of("msmtp"))])
                .stdin(std::fs::File::open(&message).unwrap());
            server.receives(&of("msmtp"), &user, &mut c);
        }
    }
}

#[test]
fn gsasl_proves_itself_and_has_the_server_prove_itself() {
    if !has("gsasl") {
        return;
    }
    let server = Server::start();
    let said = |user: &str, password: &str| {
        let mut c = Command::new("gsasl");
        c.args(["--smtp", "--connect", &server.at.to_string(), "--no-starttls", "--mechanism", "SCRAM-SHA-256"]);
        c.args(["--authentication-id", user, "--authorization-id", "", "--password", password]);
        let out = fed(&mut c, "");
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    };
    for user in ["plain@users.test", "scram@users.test"] {
        let right = said(user, "secret");
        assert!(right.contains("235 2.7.0"), "{right}");
        let wrong = said(user, "Secret");
        assert!(wrong.contains("535 5.7.8"), "{wrong}");
    }
    assert!(said("nobody@users.test", "secret").contains("535 5.7.8"));
}
