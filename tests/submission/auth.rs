//! AUTH: users, what holds for them, and who is kept out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tests::client::Client;
use tests::engine::{binary, checked};
use tests::{accounting, eventually, fed, tls};

use crate::start;

/// The value of `password` for "secret".
fn hashed(form: &str) -> String {
    let out = fed(std::process::Command::new(binary()).args(["user", "hash", "--form", form]), "secret\n");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// AUTH PLAIN, and its reply.
fn plain(c: &mut Client, user: &str, password: &str) -> (u16, String) {
    let message = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
    c.command(&format!("AUTH PLAIN {message}")).unwrap()
}

/// Sessions from some address of this machine, which the source that all servers here have does not name.
fn connect(from: [u8; 4], to: SocketAddr) -> Client {
    let mut c = Client::dial_from(IpAddr::from(from), to).unwrap();
    assert_eq!(c.reply().unwrap().0, 220);
    c.command("EHLO client.test").unwrap();
    c
}

const STRANGERS: &str = "<source 127.0.2.0/24>\n require-auth yes\n allow-unencrypted-plain-auth yes\n</source>\n";

#[test]
fn users_send_as_their_source_says_and_rows_say_who_sent() {
    let users: String =
        [("plain@x.test", "secret".to_owned()), ("scram", hashed("scram-sha-256")), ("argon", hashed("argon2id"))]
            .map(|(name, password)| {
                format!("<smtp-user {name}>\n password {password}\n source {{{name}}}\n</smtp-user>\n")
            })
            .concat();
    let sources: String = ["plain@x.test", "scram", "argon"]
        .map(|name| {
            format!(
                "<source {{{name}}}>\n always-allow-relaying yes\n default-virtual-mta pool-{}\n</source>\n",
                &name[..5]
            )
        })
        .concat();
    let pools: String = ["plain", "scram", "argon"]
        .map(|n| format!("<virtual-mta m-{n}>\n smtp-source-host 127.0.0.1 {n}.test\n</virtual-mta>\n<virtual-mta-pool pool-{n}>\n virtual-mta m-{n}\n</virtual-mta-pool>\n"))
        .concat();
    let accounting = "<acct-file acct/users.csv>\n records d,r\n record-fields d rcpt,vmta,rcvSmtpUser\n record-fields r rcpt,rcvSmtpUser,srcMta\n</acct-file>\n";
    let (r, engine) = start(&format!("{users}{sources}{pools}{accounting}{STRANGERS}"));
    for name in ["plain@x.test", "scram", "argon"] {
        let mut c = connect([127, 0, 2, 1], engine.smtp);
        assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 530);
        assert_eq!(plain(&mut c, name, "wrong").0, 535);
        assert_eq!(plain(&mut c, name, "secret"), (235, "235 2.7.0 Authentication successful\r\n".to_owned()));
        let to = format!("{}@d.test", &name[..5]);
        assert_eq!(c.send("s@x.test", &[&to], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("all arrive", Duration::from_secs(20), || r.unique() == 3);
    let content = r.message_to("scram@d.test").unwrap().content;
    assert!(content.contains("with ESMTPA id") && content.contains("from client.test ([127.0.2.1])"), "{content}");
    let row = |kind: &str, short: &str| {
        let text = std::fs::read_dir(engine.path().join("acct")).unwrap().flatten();
        let text = text.filter(|f| f.file_name().to_string_lossy().starts_with("users"));
        let lines: String = text.map(|f| std::fs::read_to_string(f.path()).unwrap()).collect();
        lines.lines().map(accounting::cells).find(|c| c[0] == kind && c[1] == format!("{short}@d.test"))
    };
    for name in ["plain@x.test", "scram", "argon"] {
        let short = &name[..5];
        eventually("the rows are written", Duration::from_secs(10), || row("d", short).is_some());
        assert_eq!(row("d", short).unwrap()[2..4], [format!("m-{short}"), name.to_owned()]);
        assert_eq!(row("r", short).unwrap()[4], "client.test (127.0.2.1)", "the name of EHLO alone");
        assert!(row("r", short).unwrap().contains(&name.to_owned()));
    }
}

#[test]
fn addresses_and_users_that_fail_too_often_are_shut_out_by_all_shards() {
    let config = format!(
        "<smtp-user a>\n password secret\n</smtp-user>\n<smtp-user b>\n password secret\n</smtp-user>\n{STRANGERS}\
         <source 127/8>\n smtp-max-auth-failure-rate 6/h\n</source>\n<source {{auth}}>\n always-allow-relaying yes\n</source>\n"
    );
    let (_r, engine) = start(&config);
    let attempt = |from: [u8; 4], user: &str, password: &str| plain(&mut connect(from, engine.smtp), user, password);
    for n in 0..6 {
        assert_eq!(attempt([127, 0, 2, 1], "a", "wrong").0, 535, "attempt {n}");
    }
    for _ in 0..6 {
        // Whichever shard has the session.
        let (code, text) = attempt([127, 0, 2, 1], "a", "secret");
        assert!(code == 454 && text.contains("(smtp-max-auth-failure-rate), try again in "), "{text}");
    }
    assert_eq!(attempt([127, 0, 2, 1], "b", "secret").0, 454, "the address is shut out");
    assert_eq!(attempt([127, 0, 2, 2], "a", "secret").0, 454, "and the user");
    assert_eq!(attempt([127, 0, 2, 2], "\u{ff41}\u{ad}", "secret").0, 454, "however it is spelt");
    assert_eq!(attempt([127, 0, 2, 2], "b", "secret").0, 235, "nobody else");
    let log = engine.log();
    assert!(log.contains("authentication failed") && !log.contains("wrong"), "{log}");
    // A mechanism that is of no use for how a password is stored guesses nothing.
    let mut c = connect([127, 0, 2, 3], engine.smtp);
    assert_eq!(c.command("AUTH CRAM-MD5 eA==").unwrap().0, 501);
}

#[test]
fn what_a_client_tries_first_for_other_users_shuts_nobody_out() {
    let config = format!(
        "<smtp-user p>\n password secret\n</smtp-user>\n<smtp-user s>\n password {}\n</smtp-user>\n{STRANGERS}\
         <source 127/8>\n smtp-max-auth-failure-rate 2/h\n</source>\n",
        hashed("argon2id")
    );
    let (_r, engine) = start(&config);
    for _ in 0..5 {
        let mut c = connect([127, 0, 2, 1], engine.smtp);
        assert_eq!(c.command("AUTH CRAM-MD5").unwrap().0, 334);
        let answer = BASE64_STANDARD.encode(format!("s {}", "0".repeat(32)));
        assert_eq!(c.command(&answer).unwrap().0, 535);
        assert_eq!(plain(&mut c, "s", "secret").0, 235);
    }
}

/// A client's certificate that is valid so many days before now and after, its key, and the certificate in PEM.
fn certificate(from_days: i64, to_days: i64) -> (CertificateDer<'static>, PrivateKeyDer<'static>, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["app.test".to_owned()]).unwrap();
    let day = |n: i64| std::time::SystemTime::now() + Duration::from_secs(86_400 * n.unsigned_abs()) * u32::from(n > 0);
    params.not_before = if from_days < 0 { rcgen::date_time_ymd(2020, 1, 1) } else { day(from_days).into() };
    params.not_after = if to_days < 0 { rcgen::date_time_ymd(2021, 1, 1) } else { day(to_days).into() };
    let c = params.self_signed(&key).unwrap();
    (c.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap(), c.pem())
}

#[test]
fn whoever_shows_the_certificate_of_a_user_is_that_user() {
    let folder = tempfile::tempdir().unwrap();
    let server = folder.path().join("mta.pem");
    std::fs::write(&server, tls::pem()).unwrap();
    let (own, stranger, ended) = (certificate(-1, 2), certificate(-1, 2), certificate(-1, -1));
    let mut users = String::new();
    for (name, c) in [("own", &own), ("ended", &ended)] {
        let file = folder.path().join(format!("{name}.pem"));
        std::fs::write(&file, &c.2).unwrap();
        users += &format!(
            "<smtp-user {name}>\n authentication-method certificate\n tls-certificate {}\n</smtp-user>\n",
            file.display()
        );
    }
    let (r, engine) = start(&format!(
        "{users}smtp-server-tls-certificate {}\n{STRANGERS}<source 127/8>\n allow-starttls yes\n</source>\n\
         <source {{auth}}>\n always-allow-relaying yes\n</source>\n",
        server.display()
    ));
    let shown = |c: Option<&(CertificateDer<'static>, PrivateKeyDer<'static>, String)>| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(tls::certificate()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match c {
            Some((der, key, _)) => config.with_client_auth_cert(vec![der.clone()], key.clone_key()).unwrap(),
            None => config.with_no_client_auth(),
        };
        let mut client = connect([127, 0, 2, 1], engine.smtp);
        assert_eq!(client.command("STARTTLS").unwrap().0, 220);
        client.under_tls(Arc::new(config)).unwrap();
        let ehlo = client.command("EHLO client.test").unwrap().1;
        (client, ehlo)
    };
    let (mut c, ehlo) = shown(Some(&own));
    assert!(ehlo.contains("AUTH EXTERNAL"), "{ehlo}");
    assert_eq!(c.send("s@x.test", &["without@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    assert_eq!(c.command("AUTH EXTERNAL b3RoZXI=").unwrap().0, 535, "in another's name");
    assert_eq!(c.command("AUTH EXTERNAL =").unwrap().0, 235);
    assert_eq!(c.send("s@x.test", &["with@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    for other in [None, Some(&stranger), Some(&ended)] {
        let (mut c, ehlo) = shown(other);
        assert!(!ehlo.contains("AUTH"), "{ehlo}");
        assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 530);
        assert_eq!(c.command("AUTH EXTERNAL =").unwrap().0, 502);
    }
    eventually("both arrive", Duration::from_secs(20), || r.unique() == 2);
    assert!(r.message_to("with@d.test").unwrap().content.contains("with ESMTPSA"));
    assert!(engine.log().contains("has ended"), "{}", engine.log());
}

#[test]
fn a_user_is_one_as_long_as_the_configuration_says() {
    let user = "<smtp-user a>\n password secret\n</smtp-user>\n";
    let (_r, engine) = start(&format!(
        "{user}{STRANGERS}<smtp-user b>\n password other\n source {{no}}\n</smtp-user>\n<source {{no}}>\n smtp-service no\n</source>\n"
    ));
    let mut open = connect([127, 0, 2, 1], engine.smtp);
    assert_eq!(plain(&mut open, "a", "secret").0, 235);
    let mut before = connect([127, 0, 2, 1], engine.smtp);
    let mut shut = connect([127, 0, 2, 1], engine.smtp);
    assert_eq!(plain(&mut shut, "b", "other").0, 235);
    let (code, text) = shut.command("MAIL FROM:<s@x.test>").unwrap();
    assert!(code == 550 && text.contains("smtp-service"), "{text}");
    engine.edit_config(user, "");
    engine.run(&["reload"]);
    assert_eq!(plain(&mut connect([127, 0, 2, 1], engine.smtp), "a", "secret").0, 535);
    let (code, text) = open.command("MAIL FROM:<s@x.test>").unwrap();
    assert!(code == 421 && text.contains("authenticate again"), "{text}");
    // Nor does a session that began before know the user any more.
    assert_eq!(plain(&mut before, "a", "secret").0, 535);
}

#[test]
fn users_have_places_under_the_limit_of_their_group() {
    let (_r, engine) = start(&format!(
        "<smtp-user a>\n password secret\n</smtp-user>\n{STRANGERS}<source {{auth}}>\n source-group g\n</source>\n<source-group g>\n max-smtp-in 2\n</source-group>\n"
    ));
    let mut sessions: Vec<Client> = (0..3).map(|_| connect([127, 0, 2, 1], engine.smtp)).collect();
    let codes: Vec<u16> = sessions.iter_mut().map(|c| plain(c, "a", "secret").0).collect();
    assert_eq!(codes, [235, 235, 454]);
    sessions.remove(0);
    eventually("the place is free", Duration::from_secs(10), || plain(&mut sessions[1], "a", "secret").0 == 235);
}

#[test]
fn a_check_says_which_mechanisms_each_form_allows() {
    let (code, said) = checked(&format!(
        "<smtp-user a>\n password secret\n</smtp-user>\n<smtp-user b>\n password {}\n</smtp-user>\n<source 0/0>\n allow-unencrypted-plain-auth yes\n</source>\n",
        hashed("argon2id")
    ));
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(
            "1 smtp-user by plain text: SCRAM-SHA-256, CRAM-MD5, PLAIN, LOGIN\n1 smtp-user by Argon2id: PLAIN, LOGIN\n"
        ),
        "{said}"
    );
    assert!(said.contains("warning[plain-password]") && !said.contains("secret"), "{said}");
    // A line that is mistyped does not show what it was to hide.
    for line in ["password=hunter2", "pasword hunter2", "passwordhunter2", "pwd hunter2", "smtp-password \"hunter2\""] {
        let (code, said) = checked(&format!("<smtp-user a>\n {line}\n</smtp-user>\n"));
        assert!(code == Some(2) && !said.contains("hunter2"), "{said}");
    }
    let (code, said) = checked("<smtp-user a>\n password SCRAM-SHA-256$secret\n</smtp-user>\n");
    assert!(
        code == Some(2) && said.contains("expected SCRAM-SHA-256$ITERATIONS") && !said.contains("$secret"),
        "{said}"
    );
}
