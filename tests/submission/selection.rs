//! What a source adds to its mail, and what chooses for it.

use std::time::Duration;

use tests::client::Client;
use tests::engine::{Engine, checked};
use tests::receiver::Receiver;
use tests::{accounting, eventually};

use crate::start;

const WAIT: Duration = Duration::from_secs(20);

/// Sends a message to one recipient, and answers what arrived.
fn arrived(r: &Receiver, engine: &Engine, to: &str, header: &str) -> String {
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &[to], &format!("{header}Subject: x\r\n\r\nbody")).unwrap().0, 250);
    eventually("it arrives", WAIT, || r.message_to(to).is_some());
    r.message_to(to).unwrap().content
}

/// The cell behind a recipient's in the rows of an accounting file.
fn row(engine: &Engine, rcpt: &str) -> Option<String> {
    let files = std::fs::read_dir(engine.path().join("acct")).unwrap().flatten();
    let files = files.filter(|f| f.file_name().to_string_lossy().starts_with("jobs"));
    let lines: String = files.map(|f| std::fs::read_to_string(f.path()).unwrap()).collect();
    lines.lines().map(accounting::cells).find(|c| c.get(1).is_some_and(|c| c == rcpt)).map(|c| c[2].clone())
}

const JOBS: &str = "<acct-file acct/jobs.csv>\n records d\n record-fields d rcpt,jobId\n</acct-file>\n";

#[test]
fn a_job_has_its_name_of_another_header_and_a_prefix() {
    let (r, engine) = start(&format!(
        "{JOBS}<source 127/8>\n jobid-header X-Campaign\n jobid-prefix app1-\n</source>\n\
         <smtp-user a b>\n password secret\n</smtp-user>\n\
         <source {{auth}}>\n jobid-prefix {{auth}}\n allow-unencrypted-plain-auth yes\n always-allow-relaying yes\n</source>\n\
         <source 127.0.0.1>\n allow-unencrypted-plain-auth yes\n</source>\n"
    ));
    for (to, header, job) in [
        ("named@d.test", "X-Job: j1\r\nX-Campaign: other\r\n", "app1-j1"),
        ("other@d.test", "x-campaign: Spring \u{fc}\r\n sale\r\n", "app1-Spring___sale"),
        ("none@d.test", "", ""),
    ] {
        let content = arrived(&r, &engine, to, header);
        assert_eq!(
            content.to_lowercase().contains("x-campaign:"),
            header.to_lowercase().contains("x-campaign"),
            "{content}"
        );
        eventually("the row is written", WAIT, || row(&engine, to).is_some());
        assert_eq!(row(&engine, to).unwrap(), job, "{to}");
    }
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("AUTH PLAIN AGEgYgBzZWNyZXQ=").unwrap().0, 235);
    c.send("s@x.test", &["user@d.test"], "X-Job: j2\r\nSubject: x\r\n\r\nx").unwrap();
    eventually("the row is written", WAIT, || row(&engine, "user@d.test").is_some());
    assert_eq!(row(&engine, "user@d.test").unwrap(), "a_bj2");
}

#[test]
fn fields_of_files_stand_behind_received() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        format!("include-headers-from {}", folder.path().join(name).display())
    };
    let (r, engine) = start(&format!(
        "{}\n<virtual-mta one>\n {}\n</virtual-mta>\n<virtual-mta two>\n</virtual-mta>\n\
         <virtual-mta-pool both>\n virtual-mta two\n {}\n</virtual-mta-pool>\n",
        file("all", "X-All: 1\nX-Folded: a\n\tb\n"),
        file("one", "X-One: 1\r\n"),
        file("both", "X-Both: 1\n"),
    ));
    let all = "X-All: 1\r\nX-Folded: a\r\n\tb\r\n";
    for (to, vmta, own) in [
        ("a@d.test", "", ""),
        ("b@d.test", "X-Virtual-MTA: ONE\r\n", "X-One: 1\r\n"),
        ("c@d.test", "X-Virtual-MTA: both\r\n", "X-Both: 1\r\n"),
    ] {
        let content = arrived(&r, &engine, to, vmta);
        let (received, rest) = content.split_once(all).unwrap();
        assert!(received.starts_with("Received: ") && received.matches("\r\n").count() == 3, "{content}");
        assert!(rest.starts_with(&format!("{own}Subject: x\r\n")), "{content}");
    }
    let (code, said) = checked(&file("wrong", "X-All: 1\n\nno field\n"));
    assert!(code == Some(2) && said.contains("expected header fields") && said.contains("no field"), "{said}");
}

#[test]
fn domains_without_a_dot_are_given_the_suffix() {
    let (r, engine) = start(
        "domain-suffix corp.test\n<source 127.0.0.2>\n always-allow-relaying yes\n auto-qualify-domain no\n</source>\n",
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    let (_, said) = c.command("MAIL FROM:<s@host>").unwrap();
    assert!(said.contains("<s@host.corp.test>"), "{said}");
    for to in ["u@host", "u@d.test", "u@[127.0.0.1]"] {
        assert_eq!(c.command(&format!("RCPT TO:<{to}>")).unwrap().0, 250);
    }
    assert_eq!(c.send_content("Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("all arrive", WAIT, || r.unique() == 3);
    assert!(r.message_to("u@host.corp.test").is_some() && r.message_to("u@d.test").is_some());
    assert!(r.message_to("u@d.test").unwrap().mail.contains("<s@host.corp.test>"));
    let mut c = Client::dial_from([127, 0, 0, 2].into(), engine.smtp).unwrap();
    c.reply().unwrap();
    c.command("EHLO client.test").unwrap();
    assert!(c.command("MAIL FROM:<s@host>").unwrap().1.contains("<s@host>"));
}

#[test]
fn a_client_is_left_in_place_of_a_reply_that_says_later() {
    let (_r, engine) =
        start("<source 127/8>\n disconnect-on-transient-error yes\n max-rcpt-per-message 1\n</source>\n");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<no address>").unwrap().0, 501, "what is wrong for good is said");
    assert_eq!(c.command("RCPT TO:<a@d.test>").unwrap().0, 250);
    // Replies to what came before arrive.
    c.raw(b"NOOP\r\nRCPT TO:<b@d.test>\r\nNOOP\r\n").unwrap();
    assert_eq!(c.reply().unwrap().0, 250);
    let heard = c.reply();
    assert!(heard.is_err(), "{heard:?}");
}

#[test]
fn a_copy_of_each_message_goes_to_bcc() {
    let (r, engine) = start("<source 127/8>\n bcc archive@copies.test\n</source>\n");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["a@d.test", "b@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    assert_eq!(
        c.send("s@x.test", &["Archive@copies.test", "archive@Copies.test"], "Subject: x\r\n\r\nx").unwrap().0,
        250
    );
    eventually("all arrive", WAIT, || r.unique() == 5);
    let content = r.message_to("archive@copies.test").unwrap().content;
    assert!(!content.contains("archive@") && !content.contains("for <"), "{content}");
}

#[test]
fn what_is_known_at_delivery_is_written_then() {
    let (r, engine) = start(
        "<source 127/8>\n add-x-virtual-mta-header yes\n add-date-header yes\n date-header-time delivery\n retain-x-virtual-mta yes\n</source>\n\
         <virtual-mta out-1>\n</virtual-mta>\n<virtual-mta-pool p>\n virtual-mta out-1\n</virtual-mta-pool>\n\
         <source 127.0.0.3>\n always-allow-relaying yes\n default-virtual-mta p\n</source>\n\
         <domain d.test>\n retry-recipients-after 1s\n</domain>\n",
    );
    r.script(|s| s.rcpt_reply = Some(("450 4.2.0 later", None)));
    let mut c = Client::connect(engine.smtp).unwrap();
    c.send("s@x.test", &["a@d.test"], "Subject: x\r\n\r\nx").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    r.script(|s| s.rcpt_reply = None);
    eventually("it arrives", WAIT, || r.message_to("a@d.test").is_some());
    let content = r.message_to("a@d.test").unwrap().content;
    assert!(content.contains("X-Virtual-MTA: {default}\r\n"), "{content}");
    let date = content.lines().find_map(|l| l.strip_prefix("Date: ")).unwrap();
    let received = content.split_once("; ").unwrap().1.lines().next().unwrap();
    assert!(date != received && date.len() == received.len(), "{date} is not {received}");
    let content = arrived(&r, &engine, "b@d.test", "X-Virtual-MTA: p\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n");
    assert!(
        content.contains("X-Virtual-MTA: p\r\n") && !content.contains("out-1"),
        "one that is kept stays: {content}"
    );
    assert_eq!(content.matches("Date: ").count(), 1);
    let mut c = Client::dial_from([127, 0, 0, 3].into(), engine.smtp).unwrap();
    c.reply().unwrap();
    c.command("EHLO client.test").unwrap();
    assert_eq!(c.send("s@x.test", &["c@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it arrives", WAIT, || r.message_to("c@d.test").is_some());
    assert!(r.message_to("c@d.test").unwrap().content.contains("X-Virtual-MTA: out-1\r\n"));
}

#[test]
fn a_sender_is_another_to_each_recipient() {
    let (r, mut engine) = start(
        "<acct-file acct/jobs.csv>\n records r,d,b\n record-fields r rcpt,orig\n record-fields d rcpt,orig\n record-fields b rcpt,orig\n</acct-file>\n\
         <source 127.0.0.2>\n always-allow-relaying yes\n verp-default yes\n</source>\n",
    );
    r.script(|s| s.answers = Some(("TO:<GONE@", "550 5.1.1 no such user")));
    let mut c = Client::connect(engine.smtp).unwrap();
    assert!(c.command("EHLO client.test").unwrap().1.contains("250-VERP\r\n"));
    assert_eq!(c.command("MAIL FROM:<n@back.test> VERP=x").unwrap().0, 501);
    assert_eq!(c.command("MAIL FROM:<n@back.test> VERP").unwrap().0, 250);
    for to in ["a@d.test", "b+c@d.test", "gone@d.test"] {
        assert_eq!(c.command(&format!("RCPT TO:<{to}>")).unwrap().0, 250);
    }
    // What waits over a restart is known to be such mail.
    engine.run(&["pause", "queue", "later.test/*"]);
    assert_eq!(c.command("RCPT TO:<x@later.test>").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<y@later.test>").unwrap().0, 250);
    assert_eq!(c.send_content("Subject: x\r\n\r\nx").unwrap().0, 250);
    let report = "n-gone=d.test@back.test";
    eventually("they arrive, and the report", WAIT, || {
        r.message_to("a@d.test").is_some() && r.message_to(report).is_some()
    });
    eventually("the other too", WAIT, || r.message_to("b+c@d.test").is_some());
    let sender = |to: &str| r.message_to(to).unwrap().mail;
    assert!(sender("a@d.test").contains("<n-a=d.test@back.test>"), "{}", sender("a@d.test"));
    assert!(sender("b+c@d.test").contains("<n-b+c=d.test@back.test>"));
    assert!(sender(report).contains("<>") && r.message_to(report).unwrap().content.contains("gone@d.test"));
    for to in ["a@d.test", "gone@d.test"] {
        eventually("the row is written", WAIT, || row(&engine, to).is_some());
        assert_eq!(row(&engine, to).unwrap(), format!("n-{}=d.test@back.test", to.split('@').next().unwrap()));
    }
    assert!(engine.stop());
    engine.start_again();
    engine.run(&["resume", "queue", "later.test/*"]);
    eventually("they arrive", WAIT, || {
        r.message_to("x@later.test").is_some() && r.message_to("y@later.test").is_some()
    });
    assert!(sender("y@later.test").contains("<n-y=later.test@back.test>"));
    let mut c = Client::dial_from([127, 0, 0, 2].into(), engine.smtp).unwrap();
    c.reply().unwrap();
    c.command("EHLO client.test").unwrap();
    assert_eq!(c.send("\"q s\"@back.test", &["e@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    assert_eq!(c.send("", &["f@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("they arrive", WAIT, || r.message_to("e@d.test").is_some() && r.message_to("f@d.test").is_some());
    assert!(sender("e@d.test").contains("<\"q s-e=d.test\"@back.test>"), "{}", sender("e@d.test"));
    assert!(sender("f@d.test").contains("<>"));
}

#[test]
fn receivers_are_told_how_to_unsubscribe_and_complain() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.pem");
    std::fs::write(&key, rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem()).unwrap();
    let (r, engine) = start(&format!(
        "domain-key sel,x.test,{}\n<domain *>\n dkim-sign yes\n</domain>\n\
         <source 127/8>\n one-click-unsubscribe https://u.test/?r=${{recipient}}&m=${{message-id}}\n cfbl-address fbl@x.test\n \
         feedback-id ${{job}}:${{domain}}:news:x\n</source>\n",
        key.display()
    ));
    let mut c = Client::connect(engine.smtp).unwrap();
    let content = "From: s@x.test\r\nMessage-ID: <1@x.test>\r\nX-Job: j1\r\nSubject: x\r\n\r\nx";
    assert_eq!(c.send("s@x.test", &["a+1@d.test", "b@d.test"], content).unwrap().0, 250);
    eventually("both arrive", WAIT, || r.unique() == 2);
    let [a, b] = ["a+1@d.test", "b@d.test"].map(|to| r.message_to(to).unwrap());
    assert_eq!((a.rcpts.len(), b.rcpts.len()), (1, 1), "each by itself");
    // A tag of the signature, which comes first.
    let tag = |m: &tests::receiver::Message, name: &str| {
        let field = m.content.strip_prefix("DKIM-Signature:").unwrap().replace("\r\n\t", "").replace("\r\n ", "");
        let tags = field.lines().next().unwrap().split(';').map(str::trim);
        tags.filter_map(|t| t.strip_prefix(name)).map(str::to_lowercase).next().unwrap()
    };
    for (m, to) in [(&a, "a%2B1%40d.test"), (&b, "b%40d.test")] {
        let text = &m.content;
        assert!(text.contains(&format!("List-Unsubscribe: <https://u.test/?r={to}&m=1%40x.test>\r\n")), "{text}");
        assert!(text.contains("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"), "{text}");
        assert!(text.contains("CFBL-Address: fbl@x.test; report=arf\r\nFeedback-ID: j1:x.test:news:x\r\n"), "{text}");
        let signed = tag(m, "h=");
        for name in ["list-unsubscribe", "list-unsubscribe-post", "cfbl-address", "feedback-id"] {
            assert!(signed.split(':').any(|f| f.trim() == name), "{name}: {signed}");
        }
    }
    assert_ne!(tag(&a, "b="), tag(&b, "b="));
    let content = arrived(
        &r,
        &engine,
        "c@d.test",
        "List-Unsubscribe: <mailto:u@x.test>\r\nFeedback-ID: own\r\nFrom: s@x.test\r\n",
    );
    assert!(
        !content.contains("u.test/") && !content.contains("One-Click") && !content.contains(":news:x"),
        "{content}"
    );
    for (line, expected) in [
        ("one-click-unsubscribe http://u.test/", "https://"),
        ("feedback-id ${subject}", "expected one of recipient"),
        ("cfbl-address nobody", "ADDRESS [arf|xarf]"),
    ] {
        let (code, said) = checked(&format!("<source 0/0>\n {line}\n</source>\n"));
        assert!(code == Some(2) && said.contains(expected), "{said}");
    }
}
