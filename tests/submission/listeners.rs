//! What each listener offers: TLS, and the name that it greets by.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tempfile::TempDir;
use tests::client::Client;
use tests::engine::{Engine, checked, free_port};
use tests::receiver::Receiver;
use tests::{eventually, tls};

use crate::start;

/// Starts a server with listeners of its own, at ports that are free, in place of the usual one.
fn start_with(listeners: &[&str], rest: &str) -> (Receiver, Engine, Vec<SocketAddr>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("mta.pem");
    std::fs::write(&pem, tls::pem()).unwrap();
    let ports: Vec<SocketAddr> =
        (1..).take(listeners.len()).map(|n| (IpAddr::from([127, 0, 3, n]), free_port()).into()).collect();
    let blocks: String = listeners
        .iter()
        .zip(&ports)
        .map(|(lines, at)| format!("<smtp-listener {at}>\n{lines}\n</smtp-listener>\n"))
        .collect();
    let blocks = blocks.replace("PEM", &pem.display().to_string());
    let (r, engine) =
        start(&format!("{blocks}\n<source 127/8>\n always-allow-relaying yes\n allow-starttls yes\n</source>\n{rest}"));
    (r, engine, ports, folder)
}

#[test]
fn tls_from_the_first_byte() {
    let (r, _engine, at, _folder) = start_with(&["immediate-tls yes\ntls-certificate PEM", "tls-certificate PEM"], "");
    let mut c = Client::dial(at[0]).unwrap();
    c.under_tls(tls::client()).unwrap();
    assert_eq!(c.reply().unwrap().0, 220);
    let (_, ehlo) = c.command("EHLO client.test").unwrap();
    assert!(!ehlo.contains("STARTTLS"), "{ehlo}");
    assert_eq!(c.command("STARTTLS").unwrap().0, 503);
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    assert!(r.message_to("u@d.test").unwrap().content.contains("with ESMTPS"));
    // A client that speaks in clear hears nothing in clear, and the other listener begins in clear.
    let mut clear = Client::dial(at[0]).unwrap();
    clear.raw(b"EHLO client.test\r\n").unwrap();
    let heard = clear.reply();
    assert!(heard.as_ref().map_or(true, |(code, _)| *code == 0), "{heard:?}");
    assert!(Client::connect(at[1]).unwrap().start_tls().unwrap().1.contains("PIPELINING"));
}

#[test]
fn versions_and_ciphers_that_are_not_allowed_are_not_spoken() {
    let (_r, _engine, at, _folder) = start_with(
        &[
            "immediate-tls yes\ntls-certificate PEM\ntls-allow-tlsv1.2 no",
            "immediate-tls yes\ntls-certificate PEM\ntls-allow-tlsv1.2 yes\ntls-allow-tlsv1.3 no",
            "immediate-tls yes\ntls-certificate PEM\ntls-allow-tlsv1.2 yes\ntls-ciphers aRSA",
            "immediate-tls yes\ntls-certificate PEM\ntls-allow-tlsv1.2 yes",
            "immediate-tls yes\ntls-certificate PEM",
        ],
        "smtp-server-tls-allow-tlsv1.2 no\nsmtp-server-tls-tlsv1.3-ciphersuites TLS_AES_128_GCM_SHA256",
    );
    let speaks = |n: usize, version| {
        let mut c = Client::dial(at[n]).unwrap();
        c.under_tls(tls::client_of(version)).unwrap();
        c.reply().is_ok_and(|r| r.0 == 220)
    };
    let (old, new) = (&rustls::version::TLS12, &rustls::version::TLS13);
    // Of the third no cipher fits the certificate's key; the last goes by the top level.
    let spoken = [(false, true), (true, false), (false, true), (true, true), (false, true)];
    assert_eq!([0, 1, 2, 3, 4].map(|n| (speaks(n, old), speaks(n, new))), spoken);
}

#[test]
fn tls_that_cannot_be_is_said_at_check() {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("mta.pem");
    std::fs::write(&pem, tls::pem()).unwrap();
    for (lines, expected) in [
        ("immediate-tls yes", "missing-directive"),
        (&format!("tls-certificate {}\n tls-allow-tlsv1.2 no\n tls-allow-tlsv1.3 no", pem.display()), "no-tls-version"),
        ("tls-ciphers NONE", "leaves no cipher"),
    ] {
        let (code, text) = checked(&format!("<smtp-listener 127.0.0.1:2525>\n {lines}\n</smtp-listener>"));
        assert!(code == Some(2) && text.contains(expected), "{lines}: {text}");
    }
}

#[test]
fn clients_are_greeted_by_the_name_of_the_address_that_they_came_to() {
    let (_r, _engine, at, _folder) = start_with(
        &["", "", "", ""],
        "smtp-source-host 127.0.3.3 top.mta.test\n\
         <virtual-mta one>\n smtp-source-host 127.0.3.1 one.mta.test\n</virtual-mta>\n\
         <virtual-mta two>\n smtp-source-host 127.0.3.2 two.mta.test\n smtp-source-host 127.0.3.1 other.mta.test\n</virtual-mta>\n\
         <virtual-mta-pool both>\n virtual-mta two\n virtual-mta one\n</virtual-mta-pool>\n\
         <source 127.0.0.1>\n default-virtual-mta by-smtp-source-ip\n</source>\n\
         <source 127.0.0.2>\n default-virtual-mta BOTH\n</source>",
    );
    let greeted = |from: u8, n: usize| {
        let mut c = Client::dial_from([127, 0, 0, from].into(), at[n]).unwrap();
        let name = |text: String| text.split_whitespace().nth(1).unwrap().to_owned();
        let greeting = name(c.reply().unwrap().1);
        let ehlo = c.command("EHLO client.test").unwrap().1;
        assert!(ehlo.starts_with(&format!("250-{greeting} ")), "{greeting}: {ehlo}");
        greeting
    };
    assert_eq!([0, 1, 2, 3].map(|n| greeted(1, n)), ["one.mta.test", "two.mta.test", "top.mta.test", "mta.test"]);
    assert_eq!([0, 1, 2, 3].map(|n| greeted(2, n)), ["other.mta.test", "two.mta.test", "top.mta.test", "mta.test"]);
    assert_eq!([0, 2].map(|n| greeted(3, n)), ["mta.test", "top.mta.test"]);
}
