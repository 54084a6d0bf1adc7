//! TLS that is demanded by others than the operator: DANE (RFC 7672) and MTA-STS (RFC 8461); and
//! how it is negotiated: resumption, client certificates, versions, ciphers.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use tests::dns::{Dns, Name};
use tests::engine::Engine;
use tests::eventually;
use tests::policy_host::PolicyHost;
use tests::receiver::Receiver;
use tests::tls::Authority;

use crate::send;

const WAIT: Duration = Duration::from_secs(20);

/// TLSA data.
fn tlsa(usage: u8, selector: u8, of: &[u8]) -> Vec<u8> {
    [&[usage, selector, 1], digest(&SHA256, of).as_ref()].concat()
}

fn last_error(engine: &Engine, domain: &str) -> String {
    let queues = engine.json(&["show", "queues", "--json"]);
    let rows = queues.as_array().cloned().unwrap_or_default();
    let of = rows.iter().find(|q| q["destination"] == domain);
    of.and_then(|q| q["last_error"].as_str()).unwrap_or_default().to_owned()
}

fn waits(engine: &Engine, domain: &str, why: &str) {
    eventually(&format!("{domain} waits for {why}"), WAIT, || last_error(engine, domain).contains(why));
}

struct World {
    dns: Dns,
    authority: Authority,
    port: u16,
}

impl World {
    fn new() -> World {
        World { dns: Dns::start(), authority: Authority::new(), port: 0 }
    }

    /// A receiver that offers STARTTLS, and shows a certificate for `host`.
    fn receiver(&mut self, ip: &str, host: &'static str) -> (Receiver, tests::tls::Issued) {
        let r = Receiver::at(&format!("{ip}:{}", self.port));
        self.port = r.address.port();
        let issued = self.authority.server(host);
        let config = Arc::clone(&issued.config);
        r.script(|s| {
            s.extensions.push("STARTTLS");
            s.tls = Some(config);
        });
        let std::net::IpAddr::V4(a) = r.address.ip() else { panic!("IPv4") };
        self.dns.set(host, Name { a: vec![a], secure: true, ..Name::default() });
        (r, issued)
    }

    fn domain(&self, name: &str, host: &'static str) {
        self.dns.set(name, Name { mx: vec![(10, host)], secure: true, ..Name::default() });
    }

    fn tlsa(&self, host: &str, data: &[u8]) {
        let known = Name { tlsa: vec![data.to_vec()], secure: true, ..Name::default() };
        self.dns.set(&format!("_{}._tcp.{host}", self.port), known);
    }

    fn engine(&self, more: &str) -> Engine {
        let rules = format!("default-smtp-port {}\n retry-after 1s", self.port);
        Engine::start(1, &format!("{}\n<domain *>\n {rules}\n</domain>\n{more}", self.dns.directive()))
    }
}

#[test]
fn dane_demands_what_the_records_say() {
    let mut w = World::new();
    let (good, by_key) = w.receiver("127.0.0.21", "good.mx.test");
    let (clear, _) = w.receiver("127.0.0.22", "clear.mx.test");
    clear.script(|s| s.extensions.retain(|x| *x != "STARTTLS"));
    let (other, _) = w.receiver("127.0.0.23", "other.mx.test");
    let (issued, _) = w.receiver("127.0.0.24", "issued.mx.test");
    let (wrong_name, _) = w.receiver("127.0.0.25", "named.mx.test");
    wrong_name.script(|s| s.tls = Some(w.authority.server("somebody.else.test").config));
    for (d, host) in [
        ("good.test", "good.mx.test"),
        ("clear.test", "clear.mx.test"),
        ("other.test", "other.mx.test"),
        ("issued.test", "issued.mx.test"),
        ("named.test", "named.mx.test"),
        ("off.test", "other.mx.test"),
    ] {
        w.domain(d, host);
    }
    // Not signed: whoever forges MX can forge the rest.
    w.dns.mx("unsigned.test", &[(10, "other.mx.test")]);
    w.tlsa("good.mx.test", &tlsa(3, 1, &by_key.key));
    w.tlsa("clear.mx.test", &tlsa(3, 1, &by_key.key));
    w.tlsa("other.mx.test", &tlsa(3, 0, &by_key.certificate));
    w.tlsa("issued.mx.test", &tlsa(2, 0, &w.authority.der()));
    w.tlsa("named.mx.test", &tlsa(2, 0, &w.authority.der()));
    let engine = w.engine("<domain off.test>\n use-dane no\n</domain>");
    for d in ["good", "clear", "other", "issued", "named", "off", "unsigned"] {
        send(&engine, &[&format!("u@{d}.test")]);
    }
    eventually("those that conform arrive", WAIT, || good.unique() == 1 && issued.unique() == 1 && other.unique() == 2);
    assert!(good.message_to("u@good.test").unwrap().tls && issued.message_to("u@issued.test").unwrap().tls);
    assert!(other.message_to("u@off.test").is_some() && other.message_to("u@unsigned.test").is_some());
    waits(&engine, "clear.test", "dane");
    waits(&engine, "other.test", "TLS");
    waits(&engine, "named.test", "TLS");
    assert_eq!(clear.unique() + wrong_name.unique(), 0);
    // The receiver mends its record.
    w.tlsa("other.mx.test", &[]);
    w.dns.change(&format!("_{}._tcp.other.mx.test", w.port), |n| n.tlsa.clear());
}

#[test]
fn a_bare_key_a_common_name_and_a_signed_alias_are_as_good() {
    let mut w = World::new();
    let (bare, _) = w.receiver("127.0.0.61", "bare.mx.test");
    let (other, _) = w.receiver("127.0.0.62", "other.mx.test");
    let (named, _) = w.receiver("127.0.0.63", "named.mx.test");
    let (aliased, key) = w.receiver("127.0.0.64", "unsigned.mx.test");
    let (forged, _) = w.receiver("127.0.0.65", "forged.mx.test");
    for (r, host) in [(&bare, "bare.mx.test"), (&other, "other.mx.test"), (&named, "named.mx.test")] {
        let config = w.authority.server_by_common_name(host);
        r.script(|s| s.tls = Some(config));
    }
    let raw = |key: &[u8]| [&[2, 1, 0], key].concat();
    w.tlsa("bare.mx.test", &raw(&w.authority.key()));
    w.tlsa("other.mx.test", &raw(&Authority::new().key()));
    w.tlsa("named.mx.test", &tlsa(2, 1, &w.authority.key()));
    let shown = w.authority.server("named.mx.test").config;
    named.script(|s| s.tls = Some(shown));
    // The alias is signed, what it leads to is not: the records are at the alias (RFC 7672 section 2.2.2).
    for (alias, host, of) in [
        ("alias.mx.test", "unsigned.mx.test", &key.key),
        ("forged-alias.mx.test", "forged.mx.test", &w.authority.key()),
    ] {
        w.dns.change(host, |n| n.secure = false);
        w.dns.set(alias, Name { cname: Some(host), secure: true, ..Name::default() });
        w.tlsa(alias, &tlsa(3, 1, of));
    }
    for (domain, host) in [
        ("bare.test", "bare.mx.test"),
        ("other.test", "other.mx.test"),
        ("named.test", "named.mx.test"),
        ("alias.test", "alias.mx.test"),
        ("forged.test", "forged-alias.mx.test"),
    ] {
        w.domain(domain, host);
    }
    let engine = w.engine("");
    for d in ["bare", "other", "named", "alias", "forged"] {
        send(&engine, &[&format!("u@{d}.test")]);
    }
    let arrived = || [&bare, &named, &aliased].iter().all(|r| r.unique() == 1);
    eventually("those that conform arrive", WAIT, arrived);
    assert!(aliased.message_to("u@alias.test").unwrap().tls);
    waits(&engine, "other.test", "TLS");
    waits(&engine, "forged.test", "TLS");
    assert_eq!(other.unique() + forged.unique(), 0);
}

#[test]
fn records_that_cannot_be_had_defer_and_a_plain_upstream_does_not() {
    let mut w = World::new();
    let (r, _) = w.receiver("127.0.0.26", "lost.mx.test");
    w.domain("lost.test", "lost.mx.test");
    w.dns.set(&format!("_{}._tcp.lost.mx.test", w.port), Name { servfail: true, ..Name::default() });
    w.dns.set("plain.mx.test", Name { a: vec!["127.0.0.26".parse().unwrap()], ..Name::default() });
    w.dns.mx("plain.test", &[(10, "plain.mx.test")]);
    w.dns.set(&format!("_{}._tcp.plain.mx.test", w.port), Name { servfail: true, ..Name::default() });
    let engine = w.engine("");
    send(&engine, &["u@lost.test"]);
    send(&engine, &["u@plain.test"]);
    eventually("the plain one arrives", WAIT, || r.unique() == 1);
    waits(&engine, "lost.test", "DANE");
    w.dns.set(&format!("_{}._tcp.lost.mx.test", w.port), Name { secure: true, ..Name::default() });
    eventually("it goes once DNS says that there is none", Duration::from_secs(30), || r.unique() == 2);
}

#[test]
fn an_enforced_mta_sts_policy_is_obeyed_and_outlives_its_host() {
    let mut w = World::new();
    let (good, _) = w.receiver("127.0.0.31", "mx.sts.test");
    let (bad, _) = w.receiver("127.0.0.32", "bad.sts.test");
    bad.script(|s| s.tls = None);
    let names = ["good.test", "bad.test", "off-list.test", "testing.test"].map(|d| format!("mta-sts.{d}"));
    let web = w.authority.server_of(&names).config;
    let host = match PolicyHost::start([127, 0, 0, 81].into(), web) {
        Ok(h) => h,
        Err(e) => return eprintln!("skipped: port 443 cannot be served here ({e})"),
    };
    for (d, mx, mode, allowed) in [
        ("good.test", "mx.sts.test", "enforce", "mx.sts.test"),
        ("bad.test", "bad.sts.test", "enforce", "*.sts.test"),
        ("off-list.test", "mx.sts.test", "enforce", "elsewhere.test"),
        ("testing.test", "bad.sts.test", "testing", "elsewhere.test"),
    ] {
        w.dns.mx(d, &[(10, mx)]);
        w.dns.set(&format!("_mta-sts.{d}"), Name { txt: vec!["v=STSv1; id=1;".into()], ..Name::default() });
        w.dns.host(&format!("mta-sts.{d}"), [127, 0, 0, 81]);
        let policy = format!("version: STSv1\nmode: {mode}\nmx: {allowed}\nmax_age: 86400\n");
        host.set(&format!("mta-sts.{d}"), &policy);
    }
    // A neighbour on the same host that has no policy.
    w.dns.mx("neighbour.test", &[(10, "bad.sts.test")]);
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &w.authority.pem).unwrap();
    let mut engine = w.engine(&format!("<domain *>\n smtp-tls-ca-file {}\n</domain>", ca.display()));
    for d in ["good", "bad", "off-list", "testing", "neighbour"] {
        send(&engine, &[&format!("u@{d}.test")]);
    }
    eventually("those that conform arrive", WAIT, || good.unique() == 1 && bad.unique() == 2);
    assert!(good.message_to("u@good.test").unwrap().tls);
    waits(&engine, "bad.test", "TLS");
    waits(&engine, "off-list.test", "MTA-STS");
    // What was read holds without DNS and without the web server.
    for d in ["good", "bad", "off-list"] {
        w.dns.set(&format!("_mta-sts.{d}.test"), Name { servfail: true, ..Name::default() });
    }
    let asked = host.asked.load(std::sync::atomic::Ordering::SeqCst);
    assert!(engine.stop());
    engine.start_again();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(engine.queued(), 2);
    assert_eq!(host.asked.load(std::sync::atomic::Ordering::SeqCst), asked);
    // The certificate is mended, and the mail goes.
    let mended = w.authority.server("bad.sts.test").config;
    bad.script(|s| s.tls = Some(mended));
    eventually("it arrives", WAIT, || bad.unique() == 3);
    assert!(bad.message_to("u@bad.test").unwrap().tls);
}

#[test]
fn certificates_that_nobody_has_to_trust_are_not_judged() {
    use rcgen::PublicKeyData;
    let mut w = World::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let made = |change: fn(&mut rcgen::CertificateParams)| {
        let mut params = rcgen::CertificateParams::new(vec!["mx.test".to_owned()]).unwrap();
        change(&mut params);
        params.self_signed(&key).unwrap().der().to_vec()
    };
    let authority = made(|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    let unknown = made(|p| {
        let mut x = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 1], vec![5, 0]);
        x.set_criticality(true);
        p.custom_extensions.push(x);
    });
    let old = tests::tls::as_version_1(&made(|_| {}));
    let shown = [
        ("127.0.0.36", "authority.test", authority),
        ("127.0.0.37", "unknown.test", unknown),
        ("127.0.0.38", "old.test", old),
    ];
    let mut receivers = Vec::new();
    for (ip, domain, certificate) in shown {
        for (n, dane) in [(0, false), (10, true)] {
            let host: &'static str = format!("mx{n}.{domain}").leak();
            let last: u8 = ip.rsplit('.').next().unwrap().parse().unwrap();
            let (r, _) = w.receiver(&format!("127.0.0.{}", last + n), host);
            let config = tests::tls::shows(certificate.clone(), &key);
            r.script(|s| {
                s.tls = Some(config);
                s.needs_tls = Some(("MAIL", "550 5.7.1 not in the clear"));
            });
            if dane {
                w.tlsa(host, &tlsa(3, 1, &key.subject_public_key_info()));
            }
            let domain = format!("d{n}.{domain}");
            w.domain(&domain, host);
            receivers.push((r, domain));
        }
    }
    for (ip, host, d) in
        [("127.0.0.66", "mx.short.test", "short.test"), ("127.0.0.67", "mx.dane-short.test", "dane-short.test")]
    {
        let (r, _) = w.receiver(ip, host);
        let short = tests::tls::short_rsa(host);
        if d.starts_with("dane") {
            w.tlsa(host, &tlsa(3, 1, &short.key));
        }
        r.script(|s| {
            s.tls = Some(short.config);
            s.needs_tls = Some(("MAIL", "550 5.7.1 not in the clear"));
        });
        w.domain(d, host);
        receivers.push((r, d.to_owned()));
    }
    let engine = w.engine("");
    receivers.iter().for_each(|(_, d)| send(&engine, &[&format!("u@{d}")]));
    for (r, d) in &receivers {
        eventually(&format!("{d} takes it by TLS"), WAIT, || r.unique() == 1);
    }
}

#[test]
fn sessions_are_resumed_and_versions_ciphers_and_client_certificates_are_as_configured() {
    let mut w = World::new();
    let (r, _) = w.receiver("127.0.0.27", "mx.resume.test");
    let (asks, issued) = w.receiver("127.0.0.28", "mx.asks.test");
    let roots = {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(w.authority.der())).unwrap();
        Arc::new(roots)
    };
    let verifier = rustls::server::WebPkiClientVerifier::builder(roots).allow_unauthenticated().build().unwrap();
    let (chain, key) = w.authority.identity("client.test");
    let (own_chain, own_key) = w.authority.identity("mx.asks.test");
    let asking = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_client_cert_verifier(verifier)
        .with_single_cert(own_chain, own_key)
        .unwrap();
    asks.script(|s| s.tls = Some(Arc::new(asking)));
    drop(issued);
    w.dns.mx("resume.test", &[(10, "mx.resume.test")]);
    w.dns.mx("asks.test", &[(10, "mx.asks.test")]);
    w.dns.mx("new-only.test", &[(10, "mx.asks.test")]);
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("client.pem");
    std::fs::write(&pem, tests::tls::as_pem(&chain, &key)).unwrap();
    let engine = w.engine(&format!(
        "<domain resume.test>\n max-msg-per-connection 1\n max-smtp-out 1\n</domain>\n<domain asks.test>\n          smtp-client-certificate {}\n</domain>\n<domain new-only.test>\n smtp-tls-allow-tlsv1.2 no\n          require-starttls yes\n</domain>",
        pem.display()
    ));
    for i in 0..10 {
        send(&engine, &[&format!("u{i}@resume.test")]);
    }
    send(&engine, &["u@asks.test"]);
    send(&engine, &["u@new-only.test"]);
    eventually("all arrive", WAIT, || r.unique() == 10 && asks.unique() == 1);
    // Handshakes of new-only.test fail there, before the session that counts is over.
    let has_shown = |s: &tests::receiver::Seen| s.tls.iter().any(|(_, shown)| *shown > 0);
    eventually("sessions are over", WAIT, || r.with(|s| s.tls.len() == 10) && asks.with(|s| has_shown(s)));
    let resumed = r.with(|s| s.tls.iter().filter(|(resumed, _)| *resumed).count());
    assert!(resumed >= 9, "{resumed} of 10 sessions were resumed");
    asks.with(|s| assert!(s.tls.iter().any(|(_, shown)| *shown == 2), "{:?}", s.tls));
    waits(&engine, "new-only.test", "TLS");
}
