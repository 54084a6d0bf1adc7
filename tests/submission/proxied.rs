//! Clients by way of a proxy, and clients that wait for a place.

use std::net::SocketAddr;
use std::time::Duration;

use tests::client::Client;
use tests::engine::{Engine, free_port};
use tests::receiver::Receiver;
use tests::{eventually, tls};

use crate::start;

/// A listener for the proxy at 127.0.0.2, and one under TLS.
fn proxied() -> (Receiver, Engine, [SocketAddr; 2], tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("mta.pem");
    std::fs::write(&pem, tls::pem()).unwrap();
    let at: [SocketAddr; 2] = [3, 4].map(|n| format!("127.0.3.{n}:{}", free_port()).parse().unwrap());
    let (r, engine) = start(&format!(
        "<smtp-listener {}>\n proxy-protocol from 127.0.0.2, ::1\n proxy-protocol from 127.0.9.0/24\n</smtp-listener>\n\
         <smtp-listener {}>\n proxy-protocol from 127.0.0.2\n immediate-tls yes\n tls-certificate {}\n</smtp-listener>\n\
         <source 203.0.113.0/24>\n always-allow-relaying yes\n</source>\n\
         <source 2001:db8::/32>\n always-allow-relaying yes\n</source>\n",
        at[0],
        at[1],
        pem.display()
    ));
    (r, engine, at, folder)
}

/// A header of version 2: command, family and protocol, and what is behind them.
fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let head = [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, family], &(rest.len() as u16).to_be_bytes()];
    [&head.concat(), rest].concat()
}

#[test]
fn a_proxy_says_whom_it_speaks_for() {
    let (r, _engine, at, _folder) = proxied();
    let v4 = [203, 0, 113, 9, 192, 0, 2, 1, 0x9c, 0x40, 0, 25];
    let v6: Vec<u8> = [
        &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..],
        &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0x9c, 0x40, 0, 25],
        // What proxies add: a name that was asked for (PP2_TYPE_AUTHORITY), and padding.
        &[2, 0, 4, b'm', b't', b'a', b'1', 4, 0, 3, 0, 0, 0],
    ]
    .concat();
    let headers = [
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 25\r\n".to_vec(), "203.0.113.9"),
        (b"PROXY TCP6 2001:db8::9 2001:db8::1 40000 25\r\n".to_vec(), "IPv6:2001:db8::9"),
        (version_2(1, 0x11, &v4), "203.0.113.9"),
        (version_2(1, 0x21, &v6), "IPv6:2001:db8::9"),
    ];
    for (n, (header, ip)) in headers.iter().enumerate() {
        let mut c = Client::dial_from([127, 0, 0, 2].into(), at[0]).unwrap();
        // In pieces, and never more than the header.
        for part in header.chunks(7) {
            c.raw(part).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(c.reply().unwrap().0, 220);
        c.command("EHLO client.test").unwrap();
        let to = format!("u{n}@d.test");
        assert_eq!(c.send("s@x.test", &[&to], "Subject: x\r\n\r\nx").unwrap().0, 250, "{ip}");
        eventually("it arrives", Duration::from_secs(10), || r.message_to(&to).is_some());
        let content = r.message_to(&to).unwrap().content;
        assert!(content.contains(&format!("from client.test ([{ip}])")), "{content}");
    }
    // Under TLS from the first byte, with the header and the beginning of TLS at once.
    let mut c = Client::dial_from([127, 0, 0, 2].into(), at[1]).unwrap();
    c.raw(&headers[2].0).unwrap();
    c.under_tls(tls::client()).unwrap();
    assert_eq!(c.reply().unwrap().0, 220);
    c.command("EHLO client.test").unwrap();
    assert_eq!(c.send("s@x.test", &["tls@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    // What a proxy asks for itself, and for whom it does not say, counts as the proxy.
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ::1 ::1 1 \xff and more\r\n".to_vec(),
        version_2(0, 0, &[]),
        version_2(0, 0x11, &[1]),
    ] {
        let mut c = Client::dial_from([127, 0, 0, 2].into(), at[0]).unwrap();
        c.raw(&header).unwrap();
        assert_eq!(c.reply().unwrap().0, 220);
        c.command("EHLO client.test").unwrap();
        let (code, text) = c.send("s@x.test", &["no@d.test"], "x").unwrap();
        assert!(code == 550 && text.contains("relaying"), "{text}");
    }
}

#[test]
fn whoever_is_no_proxy_or_sends_no_header_is_disconnected() {
    let (_r, engine, at, _folder) = proxied();
    let is_closed = |from: [u8; 4], sends: &[u8]| {
        let mut c = Client::dial_from(from.into(), at[0]).unwrap();
        let _ = c.raw(sends);
        let heard = c.reply();
        assert!(heard.is_err(), "{heard:?}");
    };
    is_closed([127, 0, 0, 1], b"");
    is_closed([127, 0, 0, 1], b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 25\r\n");
    for bad in [
        &b"EHLO client.test\r\n"[..],
        b"PROXY TCP4 203.0.113.9 192.0.2.1 40000\r\n",
        b"PROXY TCP4 2001:db8::9 192.0.2.1 40000 25\r\n",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 99999\r\n",
        &version_2(1, 0x11, &[203, 0, 113, 9]),
        &version_2(2, 0x11, &[0; 12]),
        &version_2(1, 0x11, &[0; 5000]),
    ] {
        is_closed([127, 0, 0, 2], bad);
    }
    is_closed([127, 0, 0, 2], &[b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat());
    // Without a word, at last by time.
    is_closed([127, 0, 9, 7], b"PROXY TCP4");
    let log = engine.log();
    for why in ["is for its proxies alone", "is no PROXY header", "within 5 s"] {
        assert!(log.contains(why), "{why}: {log}");
    }
}

#[test]
fn clients_wait_for_a_place_where_the_listener_says_so() {
    let at: [SocketAddr; 2] = [5, 6].map(|n| format!("127.0.3.{n}:{}", free_port()).parse().unwrap());
    let (_r, _engine) = start(&format!(
        "total-max-smtp-in 3\nsmtp-await-slot yes\n<smtp-listener {}>\n</smtp-listener>\n\
         <smtp-listener {}>\n await-slot no\n</smtp-listener>\n",
        at[0], at[1]
    ));
    let mut held: Vec<Client> = (0..3).map(|_| Client::connect(at[0]).unwrap()).collect();
    let mut waiting: Vec<Client> = (0..4).map(|_| Client::dial(at[0]).unwrap()).collect();
    for c in &mut waiting {
        assert_eq!(c.reply_within(Duration::from_millis(300)), None);
    }
    let (code, text) = Client::dial(at[1]).unwrap().reply().unwrap();
    assert!(code == 421 && text.contains("total-max-smtp-in"), "{text}");
    // Those that leave, or do not wait for their turn to speak, wait no more.
    (0..200).for_each(|_| drop(Client::dial(at[0]).unwrap()));
    let mut early = Client::dial(at[0]).unwrap();
    early.raw(b"EHLO client.test\r\n").unwrap();
    assert_eq!(early.reply().unwrap().0, 554);
    for mut c in held.drain(..) {
        c.command("QUIT").unwrap();
    }
    let mut greeted = 0;
    eventually("all are greeted", Duration::from_secs(20), || {
        let now: Vec<usize> = (0..waiting.len())
            .filter(|n| waiting[*n].reply_within(Duration::from_millis(50)).is_some_and(|r| r.0 == 220))
            .collect();
        greeted += now.len();
        now.into_iter().rev().for_each(|n| drop(waiting.remove(n)));
        greeted == 4
    });
}
