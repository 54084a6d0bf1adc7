//! What SPF says, beside pyspf.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::client::Client;
use tests::dns::{Dns, Name};
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

/// Reads `IP SENDER` lines, and writes a result for each.
const PYSPF: &str = "
import sys, dns.resolver, spf
r = dns.resolver.Resolver(configure=False)
r.nameservers, r.port = [sys.argv[1]], int(sys.argv[2])
dns.resolver.default_resolver = r
spf.DNSLookup = spf.DNSLookup_dnspython
for line in sys.stdin:
    ip, sender = line.split()
    print(spf.query(i=ip, s=sender, h='client.test').check()[0])
";

const RECORDS: &[(&str, &str)] = &[
    ("plain", "v=spf1 ip4:127.0.0.2 -all"),
    ("net", "v=spf1 ip4:127.0.0.0/30 ~all"),
    ("a", "v=spf1 a:hosts.test ?all"),
    ("prefix", "v=spf1 a:hosts.test/30//64 -all"),
    ("mx", "v=spf1 mx:mail.test -all"),
    ("ptr", "v=spf1 ptr:named.test -all"),
    ("exists", "v=spf1 exists:%{ir}.%{l1r-}.list.test -all"),
    ("escaped", "v=spf1 exists:%{L}.%{d2}.list.test -all"),
    ("include", "v=spf1 include:plain.test include:a.test -all"),
    ("negative", "v=spf1 -include:plain.test +all"),
    ("nested", "v=spf1 ~include:inner.test +all"),
    ("inner", "v=spf1 include:plain.test -all"),
    ("redirect", "v=spf1 redirect=plain.test"),
    ("nowhere", "v=spf1 redirect=none.test"),
    ("loop", "v=spf1 include:loop.test -all"),
    ("deep0", "v=spf1 include:deep1.test -all"),
    ("deep1", "v=spf1 a:x1.test a:x2.test a:x3.test -all"),
    ("syntax", "v=spf1 ip4:127.0.0.2 ipv4:127.0.0.3 -all"),
    ("case", "V=sPf1 IP4:127.0.0.2 -ALL"),
    ("spaces", "v=spf1  ip4:127.0.0.2   -all "),
    ("modifier", "v=spf1 x-other=%{d} ip4:127.0.0.2 exp=why.test -all"),
    (
        "wide",
        "v=spf1 a:hosts.test a:hosts.test a:hosts.test a:hosts.test a:hosts.test a:hosts.test a:hosts.test a:hosts.test a:hosts.test a:hosts.test a:hosts.test +all",
    ),
    ("other", "v=spf2 +all"),
];

#[test]
fn spf_says_what_pyspf_says() {
    let has = Command::new("/usr/bin/python3").args(["-c", "import spf, dns.resolver"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|s| s.success()) {
        eprintln!("skipped: pyspf is not installed");
        return;
    }
    let (dns, r) = (Dns::start(), Receiver::start());
    for (name, text) in RECORDS {
        dns.set(&format!("{name}.test"), Name { txt: vec![(*text).to_owned()], ..Name::default() });
    }
    dns.set("twice.test", Name { txt: vec!["v=spf1 +all".into(), "v=spf1 -all".into()], ..Name::default() });
    dns.host("hosts.test", [127, 0, 0, 2]);
    dns.mx("mail.test", &[(20, "hosts.test"), (10, "none.test")]);
    dns.set("2.0.0.127.in-addr.arpa", Name { ptr: vec!["host.named.test"], ..Name::default() });
    dns.host("host.named.test", [127, 0, 0, 2]);
    dns.host("2.0.0.127.news.list.test", [127, 0, 0, 2]);
    dns.host("news.escaped.test.list.test", [127, 0, 0, 2]);
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<domain *>\n {}\n</domain>\n<source 127/8>\n always-allow-relaying yes\n check-spf-inbound yes\n \
             reject-spf-check-fail no\n reject-spf-check-permerror no\n reject-spf-check-temperror no\n</source>\n",
            dns.directive(),
            r.hosts()
        ),
    );
    let domains = RECORDS.iter().map(|(name, _)| *name).chain(["twice", "none"]);
    let asked: Vec<(u8, String)> =
        domains.flat_map(|d| [(2, format!("news@{d}.test")), (9, format!("news@{d}.test"))]).collect();
    let ours: Vec<String> = asked
        .iter()
        .enumerate()
        .map(|(n, (last, sender))| {
            let mut c = Client::dial_from([127, 0, 0, *last].into(), engine.smtp).unwrap();
            c.reply().unwrap();
            c.command("EHLO client.test").unwrap();
            let to = format!("u{n}@d.test");
            assert_eq!(c.send(sender, &[&to], "Subject: x\r\n\r\nx").unwrap().0, 250);
            eventually("it arrives", Duration::from_secs(20), || r.message_to(&to).is_some());
            let content = r.message_to(&to).unwrap().content;
            let result = content.split("spf=").nth(1).unwrap();
            result.split_whitespace().next().unwrap().to_owned()
        })
        .collect();
    let (ip, port) = (dns.address.ip().to_string(), dns.address.port().to_string());
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", PYSPF, &ip, &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = asked.iter().map(|(last, sender)| format!("127.0.0.{last} {sender}\n")).collect();
    python.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let out = python.wait_with_output().unwrap();
    let theirs = String::from_utf8_lossy(&out.stdout).into_owned();
    let theirs: Vec<&str> = theirs.lines().collect();
    let differ: Vec<_> = asked.iter().zip(ours.iter().zip(&theirs)).filter(|(_, (a, b))| a != *b).collect();
    assert!(theirs.len() == asked.len() && differ.is_empty(), "{differ:?}");
}
