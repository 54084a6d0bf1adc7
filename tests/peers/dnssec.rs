//! DANE over a zone that Knot DNS signs and Unbound validates.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;
use tests::tls::Authority;

use crate::beside::{free_port, run};
use crate::has;

const WAIT: Duration = Duration::from_secs(30);

#[test]
fn dane_under_a_zone_that_is_signed_and_validated() {
    if !has("/usr/sbin/knotd") || !has("/usr/sbin/unbound") {
        return;
    }
    let authority = Authority::new();
    let r = Receiver::at("127.0.0.41:0");
    let other = Receiver::at(&format!("127.0.0.42:{}", r.address.port()));
    let issued = authority.server("mx.signed.test");
    let config = Arc::clone(&issued.config);
    r.script(|s| {
        s.extensions.push("STARTTLS");
        s.tls = Some(config);
    });
    other.script(|s| s.extensions.push("STARTTLS"));
    let hex: String = digest(&SHA256, &issued.key).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let port = r.address.port();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let zone = |more: &str| format!("$TTL 60\n@ SOA ns root 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.54\n{more}");
    let of_mx =
        |target: &str, ip: &str| format!("@ MX 10 {target}\n{target} A {ip}\n_{port}._tcp.{target} TLSA 3 1 1 {hex}\n");
    let signed = of_mx("mx", "127.0.0.41")
        + &format!("bad MX 10 wrong\nwrong A 127.0.0.42\n_{port}._tcp.wrong TLSA 3 1 1 {hex}\n");
    std::fs::write(dir.path().join("signed.zone"), zone(&signed)).unwrap();
    std::fs::write(dir.path().join("plain.zone"), zone(&of_mx("mx", "127.0.0.42"))).unwrap();
    let (knot, unbound) = (free_port("127.0.0.54"), free_port("127.0.0.55"));
    std::fs::write(
        dir.path().join("knot.conf"),
        format!(
            "server:\n  rundir: {at}\n  listen: 127.0.0.54@{knot}\ndatabase:\n  storage: {at}\npolicy:\n  - id: p\n    \
             algorithm: ecdsap256sha256\nzone:\n  - domain: signed.test\n    storage: {at}\n    file: signed.zone\n    \
             dnssec-signing: on\n    dnssec-policy: p\n    zonefile-sync: -1\n    journal-content: none\n  - domain: \
             plain.test\n    storage: {at}\n    file: plain.zone\n"
        ),
    )
    .unwrap();
    let conf = dir.path().join("knot.conf").display().to_string();
    let _knot = run(dir.path(), "/usr/sbin/knotd", &["-c", &conf]);
    let mut ds = String::new();
    eventually("the zone has a key", WAIT, || {
        let out = Command::new("/usr/sbin/keymgr").args(["-c", &conf, "signed.test.", "ds"]).output();
        let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        ds = text.lines().find(|l| l.contains(" DS ") && l.contains(" 2 ")).unwrap_or_default().to_owned();
        !ds.is_empty()
    });
    std::fs::write(
        dir.path().join("unbound.conf"),
        format!(
            "server:\n interface: 127.0.0.55@{unbound}\n directory: \"{at}\"\n chroot: \"\"\n username: \"\"\n pidfile: \
             \"\"\n use-syslog: no\n do-daemonize: no\n do-not-query-localhost: no\n module-config: \"validator \
             iterator\"\n local-zone: \"test.\" nodefault\n trust-anchor: \"{ds}\"\nremote-control:\n control-enable: \
             no\nstub-zone:\n name: signed.test\n stub-addr: 127.0.0.54@{knot}\nstub-zone:\n name: plain.test\n stub-addr: \
             127.0.0.54@{knot}\n"
        ),
    )
    .unwrap();
    let conf = dir.path().join("unbound.conf").display().to_string();
    let _unbound = run(dir.path(), "/usr/sbin/unbound", &["-d", "-c", &conf]);
    let resolver: SocketAddr = format!("127.0.0.55:{unbound}").parse().unwrap();
    eventually("the resolver serves", WAIT, || std::net::TcpStream::connect(resolver).is_ok());
    let engine = Engine::start(
        1,
        &format!("name-server {resolver}\n<domain *>\n default-smtp-port {port}\n retry-after 1s\n</domain>"),
    );
    for d in ["signed.test", "bad.signed.test", "plain.test"] {
        let mut c = Client::connect(engine.smtp).unwrap();
        assert_eq!(c.send("s@x.test", &[&format!("u@{d}")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("the signed one that matches and the unsigned one arrive", WAIT, || {
        r.unique() == 1 && other.unique() == 1
    });
    assert!(r.message_to("u@signed.test").unwrap().tls && other.message_to("u@plain.test").is_some());
    eventually("the one that does not match waits", WAIT, || {
        let queues = engine.json(&["show", "queues", "--json"]);
        queues.to_string().contains("bad.signed.test") && queues.to_string().contains("TLS handshake failed")
    });
}
