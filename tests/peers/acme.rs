//! Certificates that Pebble, the authority that Let's Encrypt made for tests, issues; records at Knot DNS and BIND.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tests::engine::{Engine, checked};
use tests::tls::{Authority, as_pem};
use tests::{eventually, has};

use crate::beside::{Server, free_port, run};

const WAIT: Duration = Duration::from_secs(60);

/// Pebble, and the ports that it looks at.
struct Pebble {
    server: Option<Server>,
    config: PathBuf,
    dns: String,
    api: u16,
    directory: String,
    ca_file: PathBuf,
    http: u16,
    tls: u16,
}

impl Pebble {
    /// It asks the name server at `dns`, and issues certificates for so many seconds.
    fn start(dir: &Path, dns: &str, seconds: u32) -> Pebble {
        let authority = Authority::new();
        let (chain, key) = authority.identity("localhost");
        let pem = as_pem(&chain, &key);
        let at = pem.find("-----BEGIN PRIVATE").unwrap();
        for (name, text) in [("pebble.crt", &pem[..at]), ("pebble.key", &pem[at..]), ("ca.pem", &authority.pem)] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let [api, management, http, tls] = [0; 4].map(|_| free_port("127.0.0.1"));
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{api}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": dir.join("pebble.crt"),
            "privateKey": dir.join("pebble.key"),
            "httpPort": http,
            "tlsPort": tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": seconds,
        } });
        let file = dir.join("pebble.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let directory = format!("https://localhost:{api}/dir");
        let (dns, ca_file) = (dns.to_owned(), dir.join("ca.pem"));
        let mut pebble = Pebble { server: None, config: file, dns, api, directory, ca_file, http, tls };
        pebble.start_again();
        pebble
    }

    /// It keeps nothing.
    fn start_again(&mut self) {
        drop(self.server.take());
        let config = self.config.display().to_string();
        let args = ["PEBBLE_VA_NOSLEEP=1", "pebble", "-config", &config, "-dnsserver", &self.dns];
        self.server = Some(run(self.config.parent().unwrap(), "env", &args));
        let api = self.api;
        eventually("Pebble serves", WAIT, || std::net::TcpStream::connect(("127.0.0.1", api)).is_ok());
    }

    /// An `<acme>` with these lines besides, and a listener.
    fn config(&self, at: SocketAddr, lines: &str) -> String {
        format!(
            "<acme>\n directory {}\n ca-file {}\n accept-terms yes\n contact postmaster@mta.test\n{lines}\n</acme>\n\
             <smtp-listener {at}>\n immediate-tls yes\n</smtp-listener>\n",
            self.directory,
            self.ca_file.display()
        )
    }
}

/// Names that a name server of the tests answers for, with this machine's address.
fn names() -> (Server, tempfile::TempDir, SocketAddr, SocketAddr) {
    let dir = tempfile::tempdir().unwrap();
    let [dns, management] = [0; 2].map(|_| SocketAddr::from(([127, 0, 0, 1], free_port("127.0.0.1"))));
    let args =
        ["-defaultIPv6", "", "-dns01", &dns.to_string(), "-management", &management.to_string()].map(String::from);
    let none = ["-http01", "", "-https01", "", "-tlsalpn01", ""].map(String::from);
    let all: Vec<&str> = args.iter().chain(&none).map(String::as_str).collect();
    let server = run(dir.path(), "pebble-challtestsrv", &all);
    eventually("names are answered for", WAIT, || std::net::TcpStream::connect(management).is_ok());
    (server, dir, dns, management)
}

fn listener() -> SocketAddr {
    ([127, 0, 0, 1], free_port("127.0.0.1")).into()
}

/// Whether a client who asks for the first of these names is shown a certificate for all of them.
fn shows(at: SocketAddr, names: &[&str]) -> bool {
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(tests::tls::Anything::default()))
        .with_no_client_auth();
    let asked = rustls::pki_types::ServerName::try_from(names[0].replace('*', "any")).unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), asked).unwrap();
    let Ok(mut io) = std::net::TcpStream::connect(at) else { return false };
    io.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    if session.complete_io(&mut io).is_err() {
        return false;
    }
    let der = session.peer_certificates().unwrap()[0].to_vec();
    // As a dNSName of a GeneralName.
    let has = |name: &&str| {
        let wanted = [&[0x82, name.len() as u8], name.as_bytes()].concat();
        der.windows(wanted.len()).any(|w| w == wanted)
    };
    names.iter().all(has)
}

fn certificates(engine: &Engine) -> serde_json::Value {
    engine.json(&["status", "--json"])["data"]["status"]["certificates"].clone()
}

fn is_there() -> bool {
    has("pebble") && has("pebble-challtestsrv")
}

#[test]
fn certificates_come_by_themselves_and_again_before_they_end() {
    if !is_there() {
        return;
    }
    let (_names, dir, dns, _) = names();
    let pebble = Pebble::start(dir.path(), &dns.to_string(), 60);
    let at = listener();
    let lines =
        format!(" domain mail.mta.test, mta.test\n domain other.test\n http-01-listener 127.0.0.1:{}\n", pebble.http);
    let mut engine = Engine::start(2, &format!("name-server {dns}\n{}", pebble.config(at, &lines)));
    eventually("the first is in force", WAIT, || shows(at, &["mta.test", "mail.mta.test"]));
    eventually("the second is in force", WAIT, || shows(at, &["other.test"]));
    let state = certificates(&engine);
    assert_eq!((state.as_array().unwrap().len(), &state[0]["warning"]), (2, &serde_json::Value::Null), "{state}");
    let folder = engine.path().join("acme");
    let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(files[0].display().to_string().contains("account-localhost_") && files.iter().all(|f| mode(f) == 0o600));
    // Another name is another certificate, by the same account.
    let account = std::fs::read(&files[0]).unwrap();
    engine.edit_config("domain other.test", "domain other.test, third.test");
    engine.run(&["reload"]);
    eventually("it is in force", WAIT, || shows(at, &["third.test", "other.test"]));
    assert_eq!(std::fs::read(&files[0]).unwrap(), account);
    // Of a certificate that soon ends a new one is there before.
    let first = std::fs::read(&files[1]).unwrap();
    std::thread::sleep(Duration::from_secs(42));
    assert!(engine.stop());
    engine.start_again();
    eventually("it was renewed", WAIT, || std::fs::read(&files[1]).unwrap() != first);
    let log = engine.log();
    assert!(log.contains("an ACME account was made") && log.contains("a certificate was issued"), "{log}");
    assert!(log.matches("an ACME account was made").count() == 1 && !log.contains("could not be obtained"), "{log}");
}

#[test]
fn names_are_proven_under_tls_too() {
    if !is_there() {
        return;
    }
    let (_names, dir, dns, _) = names();
    let pebble = Pebble::start(dir.path(), &dns.to_string(), 3600);
    let at = listener();
    let lines =
        format!(" domain mail.mta.test\n challenge tls-alpn-01\n tls-alpn-01-listener 127.0.0.1:{}\n", pebble.tls);
    let engine = Engine::start(1, &format!("name-server {dns}\n{}", pebble.config(at, &lines)));
    eventually("it is in force", WAIT, || shows(at, &["mail.mta.test"]));
    assert!(!engine.log().contains("could not be obtained"), "{}", engine.log());
}

#[test]
fn a_command_sets_the_records_of_names_and_removes_them() {
    if !is_there() || !has("curl") {
        return;
    }
    let (_names, dir, dns, management) = names();
    let pebble = Pebble::start(dir.path(), &dns.to_string(), 3600);
    let script = dir.path().join("records");
    // The name server of the tests holds one text a name, and the two names here have the same record.
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh -e\necho \"$@\" >> {0}/calls\n[ \"$1\" = fixed ] && [ $# = 4 ]\ncase $2 in\n\
             add) curl -sf -d \"{{\\\"host\\\":\\\"$3.\\\",\\\"value\\\":\\\"$4\\\"}}\" http://{management}/set-txt ;;\n\
             remove) curl -sf -d \"{{\\\"host\\\":\\\"$3.\\\"}}\" http://{management}/clear-txt ;;\nesac\n",
            dir.path().display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let at = listener();
    let lines = format!(" domain *.mta.test, mta.test\n challenge dns-01\n dns-command {} fixed\n", script.display());
    let engine = Engine::start(1, &format!("name-server {dns}\n{}", pebble.config(at, &lines)));
    eventually("it is in force", WAIT, || shows(at, &["*.mta.test", "mta.test"]));
    let calls = std::fs::read_to_string(dir.path().join("calls")).unwrap();
    let of = |what: &str| {
        calls.lines().filter(|l| l.starts_with(&format!("fixed {what} _acme-challenge.mta.test "))).count()
    };
    assert_eq!((of("add"), of("remove"), calls.lines().count()), (2, 2, 4), "{calls}");
    assert!(engine.path().join("acme/_.mta.test.pem").exists());
}

#[test]
fn records_are_changed_at_name_servers_that_take_updates() {
    if !is_there() {
        return;
    }
    const SECRET: &str = "c2VjcmV0IG9mIHRoZSB0ZXN0cywgMzIgb2N0ZXRzIC4uLi4=";
    const ZONE: &str = "$TTL 60\n@ SOA ns root 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\nmail A 127.0.0.1\n";
    for program in ["/usr/sbin/knotd", "/usr/sbin/named"] {
        if !has(program) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        std::fs::write(dir.path().join("mta.test.zone"), ZONE).unwrap();
        let port = free_port("127.0.0.1");
        let conf = dir.path().join("conf");
        let (text, args) = match program {
            "/usr/sbin/knotd" => (
                format!(
                    "server:\n  rundir: {at}\n  listen: 127.0.0.1@{port}\ndatabase:\n  storage: {at}\nkey:\n  - id: k.test\n    \
                     algorithm: hmac-sha256\n    secret: {SECRET}\nacl:\n  - id: a\n    key: k.test\n    action: update\nzone:\n  \
                     - domain: mta.test\n    storage: {at}\n    file: mta.test.zone\n    acl: a\n"
                ),
                vec!["-c"],
            ),
            _ => (
                format!(
                    "options {{ directory \"{at}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file none; \
                     session-keyfile none; recursion no; dnssec-validation no; managed-keys-directory \"{at}\"; }};\ncontrols {{}};\n\
                     key \"k.test\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\nzone \"mta.test\" {{ type primary; \
                     file \"mta.test.zone\"; allow-update {{ key \"k.test\"; }}; }};\n"
                ),
                vec!["-g", "-c"],
            ),
        };
        std::fs::write(&conf, text).unwrap();
        let conf = conf.display().to_string();
        let _server = run(dir.path(), program, &[&args[..], &[&conf]].concat());
        eventually("the name server serves", WAIT, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        let pebble = Pebble::start(dir.path(), &format!("127.0.0.1:{port}"), 3600);
        let at = listener();
        let lines = format!(
            " domain mail.mta.test\n challenge dns-01\n dns-update 127.0.0.1:{port} k.test hmac-sha256 {SECRET}\n"
        );
        let engine = Engine::start(1, &format!("name-server 127.0.0.1:{port}\n{}", pebble.config(at, &lines)));
        eventually(&format!("it is in force by {program}"), WAIT, || shows(at, &["mail.mta.test"]));
        assert!(!engine.log().contains("stays behind"), "{}", engine.log());
        for args in [vec!["config", "explain", "--source", "127.0.0.1"], vec!["config", "log"]] {
            assert!(!engine.run(&args).contains(SECRET));
        }
        drop(engine);
        // A key that the server does not take, and a zone that it does not have.
        for (line, why) in [
            (format!("127.0.0.1:{port} k.test hmac-sha512 {SECRET}"), "says "),
            (format!("127.0.0.1:{port} other.test hmac-sha256 {SECRET}"), "says "),
        ] {
            let lines = format!(" domain mail.mta.test\n challenge dns-01\n dns-update {line}\n");
            let engine = Engine::start(1, &format!("name-server 127.0.0.1:{port}\n{}", pebble.config(at, &lines)));
            eventually("the log says why", WAIT, || engine.log().contains("could not be obtained"));
            let log = engine.log();
            assert!(
                log.contains("the record _acme-challenge.mail.mta.test cannot be changed") && log.contains(why),
                "{log}"
            );
            assert!(!log.contains(SECRET), "{log}");
        }
    }
}

#[test]
fn a_certificate_that_cannot_be_had_is_asked_for_less_and_less() {
    if !is_there() {
        return;
    }
    let (_names, dir, dns, _) = names();
    let pebble = Pebble::start(dir.path(), &dns.to_string(), 3600);
    let at = listener();
    // Nobody is at the port that the authority looks at.
    let lines = format!(" domain mail.mta.test\n http-01-listener 127.0.0.1:{}\n", free_port("127.0.0.1"));
    let mut engine = Engine::start(1, &format!("name-server {dns}\n{}", pebble.config(at, &lines)));
    eventually("the log says why", WAIT, || engine.log().contains("could not be obtained; next attempt in"));
    let warning = certificates(&engine)[0]["warning"].as_str().unwrap().to_owned();
    assert!(
        warning.contains("could not be obtained: mail.mta.test: ") && warning.contains("next attempt at"),
        "{warning}"
    );
    assert!(engine.run(&["status"]).contains("TLS      certificate "));
    assert!(engine.stop());
    engine.start_again();
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(engine.log().matches("next attempt in").count(), 1, "a restart does not ask at once: {}", engine.log());
    // What is asked for in another way is asked for at once, and mail goes on meanwhile.
    let right = format!("http-01-listener 127.0.0.1:{}", pebble.http);
    engine.edit_config(lines.trim().split_once('\n').unwrap().1.trim(), &right);
    engine.run(&["reload"]);
    eventually("it is in force", WAIT, || shows(at, &["mail.mta.test"]));
    assert_eq!(certificates(&engine)[0]["warning"], serde_json::Value::Null);
    assert!(!engine.path().join("acme/mail.mta.test.failures.json").exists());
}

#[test]
fn a_port_that_is_taken_and_an_account_that_is_forgotten_are_got_over() {
    if !is_there() {
        return;
    }
    let (_names, dir, dns, _) = names();
    let mut pebble = Pebble::start(dir.path(), &dns.to_string(), 3600);
    let at = listener();
    let taken = std::net::TcpListener::bind(("127.0.0.1", pebble.http)).unwrap();
    let lines = format!(" domain mail.mta.test\n http-01-listener 127.0.0.1:{}\n", pebble.http);
    let engine = Engine::start(1, &format!("name-server {dns}\n{}", pebble.config(at, &lines)));
    let warning = || certificates(&engine)[0]["warning"].as_str().unwrap_or_default().to_owned();
    eventually("the status says so", WAIT, || warning().contains("challenges cannot be answered: cannot listen on"));
    std::thread::sleep(Duration::from_secs(11));
    let log = engine.log();
    assert!(log.matches("no certificate is asked for").count() == 1 && !log.contains("could not be obtained"), "{log}");
    drop(taken);
    engine.run(&["reload"]);
    eventually("it is in force", WAIT, || shows(at, &["mail.mta.test"]));
    pebble.start_again();
    engine.edit_config("domain mail.mta.test", "domain mail.mta.test, second.mta.test");
    engine.run(&["reload"]);
    eventually("it is in force", WAIT, || shows(at, &["second.mta.test", "mail.mta.test"]));
    assert!(engine.log().contains("does not know the ACME account any more"), "{}", engine.log());
}

#[test]
fn what_a_block_lacks_is_said_at_check() {
    let block = |lines: &str| checked(&format!("<acme>\n{lines}\n</acme>\n"));
    for (lines, expected) in [
        ("domain mail.mta.test", "accept-terms yes"),
        ("accept-terms yes", "has no domain"),
        ("accept-terms yes\ndomain localhost", "expected the name of a host"),
        ("accept-terms yes\ndomain 192.0.2.1", "expected a domain name"),
        ("accept-terms yes\ndomain *.mta.test", "needs challenge dns-01"),
        ("accept-terms yes\ndomain mta.test\nchallenge dns-01", "no way to set records"),
        ("accept-terms yes\ndomain mta.test\ndirectory http://ca.test/dir", "expected an https:// URL"),
        (
            "accept-terms yes\ndomain mta.test\nchallenge dns-01\ndns-update 192.0.2.1 k hmac-sha256 c2VjcmV0",
            "not IP:PORT",
        ),
        (
            "accept-terms yes\ndomain mta.test\nchallenge dns-01\ndns-update 192.0.2.1:53 k hmac-md5 c2VjcmV0",
            "none of hmac-sha256",
        ),
        ("accept-terms yes\ndomain mta.test\nhttp-01-listener here:80", "expected IP:PORT"),
        ("accept-terms yes\ndomain mta.test\ndomain mta.test, b.test", "begins another certificate"),
    ] {
        let (code, text) = block(lines);
        assert!(code == Some(2) && text.contains(expected), "{lines}: {text}");
        assert!(!text.contains("c2VjcmV0"), "{text}");
    }
    let (code, text) = block("accept-terms yes\ndomain mta.test, Mail.MTA.test, bücher.test\n");
    assert_eq!(code, Some(0), "{text}");
}
