//! Clients by way of HAProxy.

use std::net::SocketAddr;
use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{eventually, has};

use crate::beside::{free_port, run};

const WAIT: Duration = Duration::from_secs(20);

#[test]
fn haproxy_says_whom_it_speaks_for_in_both_versions() {
    if !has("/usr/sbin/haproxy") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [first, second, behind] = [0; 3].map(|_| SocketAddr::from(([127, 0, 0, 1], free_port("127.0.0.1"))));
    let conf = dir.path().join("haproxy.cfg");
    // Its own checks are a header that speaks for nobody (LOCAL), and a greeting.
    std::fs::write(
        &conf,
        format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen one\n bind {first}\n server s {behind} send-proxy\n\
             listen two\n bind {second}\n option smtpchk EHLO proxy.test\n server s {behind} send-proxy-v2 check check-send-proxy inter 1s\n"
        ),
    )
    .unwrap();
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<smtp-listener {behind}>\n proxy-protocol from 127.0.0.1\n</smtp-listener>\n\
             <source 127.0.0.77>\n always-allow-relaying yes\n</source>\n<source 127.0.0.1>\n always-allow-relaying no\n</source>\n\
             <domain *>\n {}\n</domain>\n",
            r.hosts()
        ),
    );
    let _haproxy = run(dir.path(), "/usr/sbin/haproxy", &["-f", &conf.display().to_string(), "-db"]);
    for (n, at) in [first, second].into_iter().enumerate() {
        eventually("HAProxy serves", WAIT, || {
            Client::dial_from([127, 0, 0, 77].into(), at).and_then(|mut c| c.reply()).is_ok_and(|r| r.0 == 220)
        });
        let mut c = Client::dial_from([127, 0, 0, 77].into(), at).unwrap();
        assert_eq!(c.reply().unwrap().0, 220);
        c.command("EHLO client.test").unwrap();
        let to = format!("u{n}@d.test");
        assert_eq!(c.send("s@x.test", &[&to], "Subject: x\r\n\r\nx").unwrap().0, 250);
        eventually("it arrives", WAIT, || r.message_to(&to).is_some());
        assert!(r.message_to(&to).unwrap().content.contains("from client.test ([127.0.0.77])"));
    }
    let log = engine.log();
    assert!(!log.contains("a connection was closed"), "{log}");
}
