//! ESMTP as clients speak it.

use std::time::Duration;

use tests::client::Client;
use tests::{eventually, tls};

use crate::start;

#[test]
fn extensions_are_announced() {
    let (_r, engine) = start("");
    let mut c = Client::dial(engine.smtp).unwrap();
    assert!(c.reply().unwrap().1.starts_with("220 mta.test ESMTP"));
    let (_, ehlo) = c.command("EHLO client.test").unwrap();
    for x in ["PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES"] {
        assert!(ehlo.contains(x), "{x} in {ehlo}");
    }
    assert!(!ehlo.contains("STARTTLS"), "without a certificate: {ehlo}");
    let (code, helo) = c.command("HELO client.test").unwrap();
    assert!(code == 250 && !helo.contains("PIPELINING"), "{helo}");
}

#[test]
fn starttls_protects_a_session() {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("mta.pem");
    std::fs::write(&pem, tls::pem()).unwrap();
    let (r, engine) = start(&format!(
        "smtp-server-tls-certificate {}\n<source 127.0.0.1>\n allow-starttls yes\n</source>",
        pem.display()
    ));
    let mut c = Client::connect(engine.smtp).unwrap();
    let (_, ehlo) = c.start_tls().unwrap();
    assert!(ehlo.contains("PIPELINING") && !ehlo.contains("STARTTLS"), "{ehlo}");
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    let content = r.message_to("u@d.test").unwrap().content;
    assert!(content.contains("with ESMTPS"), "{content}");
    // What comes in clear behind STARTTLS must never be taken for protected (RFC 3207 §5).
    let mut evil = Client::connect(engine.smtp).unwrap();
    evil.raw(b"STARTTLS\r\nMAIL FROM:<evil@x.test>\r\n").unwrap();
    let first = evil.reply().unwrap();
    assert!(first.0 != 220, "{}", first.1);
}

#[test]
fn chunks_make_a_message() {
    let (r, engine) = start("");
    let mut c = Client::connect(engine.smtp).unwrap();
    c.raw(b"MAIL FROM:<s@x.test> BODY=8BITMIME\r\nRCPT TO:<u@d.test>\r\nBDAT 14\r\nSubject: x\r\n\r\nBDAT 5\r\n.one\rBDAT 3 LAST\r\n\ny\r")
        .unwrap();
    for _ in 0..5 {
        let (code, text) = c.reply().unwrap();
        assert_eq!(code, 250, "{text}");
    }
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    assert!(r.message_to("u@d.test").unwrap().content.contains("\r\n\r\n.one\r\ny\r"));
    c.raw(b"BDAT 3 LAST\r\nabc").unwrap();
    assert_eq!(c.reply().unwrap().0, 503, "a chunk without recipients");
    assert_eq!(c.command("NOOP").unwrap().0, 250, "its bytes were not taken for commands");
}

#[test]
fn pipelined_commands_get_their_replies_in_order() {
    let (r, engine) = start("");
    let mut c = Client::connect(engine.smtp).unwrap();
    c.raw(b"MAIL FROM:<s@x.test>\r\nRCPT TO:<nonsense>\r\nRCPT TO:<u@d.test>\r\nDATA\r\n").unwrap();
    let codes: Vec<u16> = (0..4).map(|_| c.reply().unwrap().0).collect();
    assert!(codes[0] == 250 && codes[1] / 100 == 5 && codes[2] == 250 && codes[3] == 354, "{codes:?}");
    c.raw(b"Subject: x\r\n\r\nx\r\n.\r\nRSET\r\nNOOP\r\nQUIT\r\n").unwrap();
    let codes: Vec<u16> = (0..4).map(|_| c.reply().unwrap().0).collect();
    assert_eq!(codes, [250, 250, 250, 221]);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
}

#[test]
fn who_speaks_before_the_greeting_is_refused() {
    let (_r, engine) = start("");
    let mut c = Client::dial(engine.smtp).unwrap();
    c.raw(b"EHLO client.test\r\nMAIL FROM:<s@x.test>\r\n").unwrap();
    assert_eq!(c.reply().unwrap().0, 554);
    assert!(c.reply().is_err());
}

#[test]
fn senders_and_recipients_of_every_form() {
    let (r, engine) = start("");
    let mut c = Client::connect(engine.smtp).unwrap();
    let to = ["\"quoted local\"@d.test", "u+tag@D.TEST", "postmaster@d.test"];
    assert_eq!(c.send("", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 3);
    assert!(r.with(|s| s.messages[0].mail.contains("MAIL FROM:<>")));
    for bad in
        ["RCPT TO:<@>", "RCPT TO:u@d.test extra", "RCPT TO:<u@d/x.test>", "RCPT TO:<u@[300.1.1.1]>", "RCPT TO:<>"]
    {
        c.command("RSET").unwrap();
        c.command("MAIL FROM:<s@x.test>").unwrap();
        let (code, text) = c.command(bad).unwrap();
        assert!((500..560).contains(&code), "{bad}: {text}");
    }
    assert_eq!(c.command("MAIL FROM:<s@x.test> SIZE=99999999999").unwrap().0 / 100, 5);
}

#[test]
fn header_fields_are_added_once() {
    let (r, engine) = start("<source 127.0.0.1>\n add-date-header yes\n add-message-id-header yes\n</source>");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["a@d.test"], "Subject: bare\r\n\r\nx").unwrap().0, 250);
    let own = "Date: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <1@x.test>\r\nSubject: own\r\n\r\nx";
    assert_eq!(c.send("s@x.test", &["b@d.test"], own).unwrap().0, 250);
    eventually("both arrive", Duration::from_secs(10), || r.unique() == 2);
    for to in ["a@d.test", "b@d.test"] {
        let content = r.message_to(to).unwrap().content.to_lowercase();
        for field in ["received: from", "\r\ndate: ", "\r\nmessage-id: "] {
            assert_eq!(content.matches(field).count(), 1, "{field} in {content}");
        }
    }
}

#[test]
fn the_postmaster_needs_no_domain() {
    let (r, engine) = start("");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["Postmaster"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(10), || r.message_to("admin@mta.test").is_some());
}

#[test]
fn names_that_could_pass_for_structure_are_refused() {
    let (_r, engine) = start("");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("EHLO x)(y").unwrap().0, 501);
    assert_eq!(c.command("EHLO [IPv6:::1]").unwrap().0, 250);
    assert_eq!(c.command("STARTTLS now").unwrap().0 / 100, 5);
}

#[test]
fn a_nul_in_the_header_is_refused() {
    let (_r, engine) = start("");
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@x.test", &["u@d.test"], "Subject: a\0b\r\n\r\nx").unwrap();
    assert!(code == 550 && text.contains("NUL"), "{text}");
    assert_eq!(
        c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\na\0b").unwrap().0,
        250,
        "content is the sender's own"
    );
}
