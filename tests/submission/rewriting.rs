//! Addresses that are others when mail leaves: aliases and rewrite lists.

use std::time::Duration;

use tests::client::Client;
use tests::engine::{Engine, checked};
use tests::{accounting, eventually};

use crate::start;

const WAIT: Duration = Duration::from_secs(20);

/// The cells of delivered recipients behind the first, which names them, in order.
fn rows(engine: &Engine) -> Vec<Vec<String>> {
    let files = std::fs::read_dir(engine.path().join("acct")).unwrap().flatten();
    let files = files.filter(|f| f.file_name().to_string_lossy().starts_with("rewritten"));
    let lines: String = files.map(|f| std::fs::read_to_string(f.path()).unwrap()).collect();
    let mut rows: Vec<_> = lines.lines().map(accounting::cells).filter(|c| c[0] == "d").collect();
    rows.sort();
    rows
}

#[test]
fn mail_to_an_alias_goes_to_those_that_it_stands_for() {
    let (r, engine) = start(
        "<acct-file acct/rewritten.csv>\n records d\n record-fields d rcpt,orcpt,orig,vmta\n</acct-file>\n\
         alias *@old.test keeper@new.test\nalias Team <Ann@d.test>, bob+x@d.test,list@d.test\n\
         <aliases>\n alias list@d.test carl@d.test,ann@d.test,list@d.test\n alias root postmaster\n</aliases>\n\
         relay-domain old.test\nhost-name mta.test\n<virtual-mta v>\n</virtual-mta>\n\
         <pattern-list by-recipient>\n rcpt-to /^team@/ virtual-mta=v\n</pattern-list>\n\
         <source 127.0.0.2>\n always-allow-relaying no\n</source>\n\
         <source 127.0.0.3>\n always-allow-relaying yes\n pattern-list by-recipient\n</source>\n\
         <source 127.0.0.4>\n always-allow-relaying yes\n bcc team@mta.test\n</source>\n",
    );
    // Whether it may be sent is asked of the address that was given.
    let mut c = Client::dial_from([127, 0, 0, 2].into(), engine.smtp).unwrap();
    c.reply().unwrap();
    c.command("EHLO client.test").unwrap();
    c.command("MAIL FROM:<s@x.test>").unwrap();
    for (to, code) in [
        ("any@old.test", 250),
        ("TEAM@mta.test", 250),
        ("abuse@mta.test ORCPT=rfc822;a@b.test", 250),
        ("keeper@new.test", 550),
        ("list@d.test", 550),
    ] {
        let (to, more) = to.split_once(' ').unwrap_or((to, ""));
        assert_eq!(c.command(format!("RCPT TO:<{to}> {more}").trim_end()).unwrap().0, code, "{to}");
    }
    assert_eq!(c.send_content("Subject: x\r\n\r\nx").unwrap().0, 250);
    let mut expected = [
        ["d", "Ann@d.test", "rfc822;TEAM@mta.test", "s@x.test", "{default}"],
        // Spelled otherwise on the list: whether case matters is her server's to say.
        ["d", "ann@d.test", "rfc822;TEAM@mta.test", "s@x.test", "{default}"],
        ["d", "bob+x@d.test", "rfc822;TEAM@mta.test", "s@x.test", "{default}"],
        ["d", "carl@d.test", "rfc822;TEAM@mta.test", "s@x.test", "{default}"],
        ["d", "keeper@new.test", "rfc822;any@old.test", "s@x.test", "{default}"],
        ["d", "list@d.test", "rfc822;TEAM@mta.test", "s@x.test", "{default}"],
        ["d", "admin@mta.test", "rfc822;a@b.test", "s@x.test", "{default}"],
    ];
    expected.sort_unstable();
    eventually("all is delivered", WAIT, || rows(&engine) == expected);
    assert_eq!(r.unique(), 7);
    // The virtual MTA is that of the address that was given, and operators' mail is led the same way.
    let mut c = Client::dial_from([127, 0, 0, 3].into(), engine.smtp).unwrap();
    c.reply().unwrap();
    c.command("EHLO client.test").unwrap();
    c.send("s@x.test", &["team@mta.test", "ann@d.test"], "Subject: y\r\n\r\nx").unwrap();
    let file = engine.path().join("message");
    std::fs::write(&file, "Subject: x\r\n\r\nx\r\n").unwrap();
    // A copy that an alias leads to nobody is told of.
    let mut hidden = Client::dial_from([127, 0, 0, 4].into(), engine.smtp).unwrap();
    hidden.reply().unwrap();
    hidden.command("EHLO client.test").unwrap();
    hidden.send("s@x.test", &["bob+x@d.test"], "Subject: z\r\n\r\nx").unwrap();
    let orcpts =
        || rows(&engine).into_iter().filter(|c| c[3] == "s@x.test" && c[1] == "bob+x@d.test").map(|c| c[2].clone());
    eventually("it is delivered", WAIT, || orcpts().any(|o| o.is_empty()));
    let inject = engine.sluice(&["inject", "--from", "s@x.test", "--to", "root@mta.test", file.to_str().unwrap()]);
    assert!(inject.status.success(), "{inject:?}");
    let of = |rcpt: &str, vmta: &str| rows(&engine).iter().filter(|c| c[1] == rcpt && c[4] == vmta).count();
    eventually("both are delivered", WAIT, || of("carl@d.test", "v") == 1 && of("admin@mta.test", "{default}") == 2);
    eventually("each address once", WAIT, || of("ann@d.test", "v") == 2 && r.duplicates() > 0);
}

#[test]
fn reports_follow_aliases() {
    let (r, engine) = start(
        "alias sender@x.test real@d.test,other@e.test,third@f.test\n<domain gone.test>\n type discard\n discard-as-bounce yes\n</domain>\n",
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("sender@x.test", &["u@gone.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    // Each destination has an owner, which sends to it.
    for to in ["real@d.test", "other@e.test", "third@f.test"] {
        eventually("the report arrives", WAIT, || r.message_to(to).is_some());
        assert!(r.message_to(to).unwrap().content.contains("Delivery Status Notification"));
    }
    eventually("nothing is left", WAIT, || engine.queued() == 0);
    assert_eq!((r.unique(), r.duplicates()), (3, 0));
}

#[test]
fn what_was_delivered_is_copied() {
    let (r, engine) = start(
        "<domain copied.test>\n bcc-upon-delivery archive@a.test\n</domain>\n<domain a.test>\n bcc-upon-delivery archive@a.test\n</domain>\n\
         <domain *.copied.test>\n bcc-upon-delivery \"\"\n</domain>\n",
    );
    r.script(|s| s.answers = Some(("RCPT TO:<NOBODY@", "550 5.1.1 nobody")));
    let mut c = Client::connect(engine.smtp).unwrap();
    let content = "X-Job: j1\r\nSubject: what\r\n\r\nbody";
    assert_eq!(c.send("s@x.test", &["a@copied.test", "b@copied.test", "nobody@copied.test"], content).unwrap().0, 250);
    assert_eq!(c.send("s@x.test", &["c@d.test", "d@x.copied.test"], content).unwrap().0, 250);
    assert_eq!(c.send("", &["nobody@copied.test"], content).unwrap().0, 250);
    eventually("all arrive", WAIT, || r.unique() == 6 && engine.queued() == 0);
    let copies: Vec<_> = r.with(|s| s.messages.iter().filter(|m| m.rcpts == ["archive@a.test"]).cloned().collect());
    assert_eq!(copies.len(), 1, "one for the transaction, and none of the copy");
    assert!(copies[0].mail.starts_with("MAIL FROM:<>") && copies[0].content.ends_with("Subject: what\r\n\r\nbody\r\n"));
    assert!(r.message_to("s@x.test").is_some(), "the report of whom nobody is");
}

#[test]
fn senders_and_from_are_rewritten_on_the_way_out() {
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("key.pem");
    std::fs::write(&key, rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem()).unwrap();
    let files = keys.path().join("files");
    let (r, engine) = start(&format!(
        "<acct-file acct/rewritten.csv>\n records d\n record-fields d rcpt,orig\n</acct-file>\n\
         <rewrite-list Own>\n mail-from *@x.test *@own.test\n from-domain [*.]x.test own.test\n</rewrite-list>\n\
         <rewrite-list pools>\n mail-from s@* bounce@pool.test\n mail-from <> null@pool.test\n\
         from-domain * pool.test\n</rewrite-list>\n\
         <virtual-mta own>\n rewrite-list own\n</virtual-mta>\n<virtual-mta plain>\n</virtual-mta>\n\
         <virtual-mta member>\n</virtual-mta>\n<virtual-mta never>\n rewrite-list \"\"\n</virtual-mta>\n\
         <virtual-mta-pool all>\n virtual-mta member\n rewrite-list pools\n</virtual-mta-pool>\n\
         <virtual-mta-pool two>\n virtual-mta never\n rewrite-list pools\n</virtual-mta-pool>\n\
         domain-key s1,*,{}\n<domain *>\n dkim-sign yes\n</domain>\n\
         <domain file.test>\n type file\n file-destination {}/\n file-format newfile-pickup\n</domain>\n\
         <source 127.0.0.2>\n always-allow-relaying yes\n process-x-virtual-mta yes\n rewrite-list own\n</source>\n",
        key.display(),
        files.display(),
    ));
    let header = "From: \"a@x.test\" <A@X.test> (x.test),\r\n b@sub.x.test\r\nSubject: x\r\n\r\nFrom: a@x.test";
    let mut c = Client::connect(engine.smtp).unwrap();
    for (vmta, sender, to, verp) in [
        ("own", "s@x.test", "own@d.test", ""),
        ("own", "other@y.test", "other@d.test", ""),
        ("own", "s@x.test", "verp@d.test", " VERP"),
        ("plain", "s@x.test", "plain@d.test", ""),
        ("all", "S@x.test", "pool@d.test", ""),
        ("all", "", "null@d.test", ""),
        ("two", "s@x.test", "never@d.test", ""),
        ("own", "s@x.test", "u@file.test", ""),
    ] {
        assert_eq!(c.command(&format!("MAIL FROM:<{sender}>{verp}")).unwrap().0, 250);
        assert_eq!(c.command(&format!("RCPT TO:<{to}>")).unwrap().0, 250);
        assert_eq!(c.send_content(&format!("X-Virtual-MTA: {vmta}\r\n{header}")).unwrap().0, 250);
    }
    eventually("all arrive", WAIT, || r.unique() == 7 && engine.queued() == 0);
    let own = "From: \"a@x.test\" <A@own.test> (x.test),\r\n b@own.test\r\n";
    let pool = "From: \"a@x.test\" <A@pool.test> (x.test),\r\n b@pool.test\r\n";
    let stays = "From: \"a@x.test\" <A@X.test> (x.test),\r\n b@sub.x.test\r\n";
    for (to, sender, from, domain) in [
        ("own@d.test", "s@own.test", own, "own.test"),
        ("other@d.test", "other@y.test", own, "own.test"),
        ("verp@d.test", "s-verp=d.test@own.test", own, "own.test"),
        ("plain@d.test", "s@x.test", stays, "x.test"),
        ("pool@d.test", "bounce@pool.test", pool, "pool.test"),
        ("null@d.test", "null@pool.test", pool, "pool.test"),
        ("never@d.test", "s@x.test", stays, "x.test"),
    ] {
        let m = r.message_to(to).unwrap();
        assert!(m.mail.starts_with(&format!("MAIL FROM:<{sender}>")), "{to}: {}", m.mail);
        assert!(m.content.contains(from) && m.content.ends_with("\r\n\r\nFrom: a@x.test\r\n"), "{to}: {}", m.content);
        assert!(m.content.to_lowercase().contains(&format!("d={domain};")), "{to}: {}", m.content);
    }
    let file = std::fs::read_dir(&files).unwrap().flatten().next().unwrap();
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert!(text.starts_with("x-sender: s@own.test\n") && text.contains("<A@own.test>"), "{text}");
    // Rows have the sender that the application gave, or by VERP what is made of it.
    let orig = |to: &str| rows(&engine).into_iter().find(|c| c[1] == to).map(|c| c[2].clone());
    eventually("rows are written", WAIT, || rows(&engine).len() == 8);
    assert_eq!(orig("own@d.test").as_deref(), Some("s@x.test"));
    assert_eq!(orig("pool@d.test").as_deref(), Some("S@x.test"));
    assert_eq!(orig("verp@d.test").as_deref(), Some("s-verp=d.test@x.test"));
    // That of a source is in force before all else.
    let mut c = Client::dial_from([127, 0, 0, 2].into(), engine.smtp).unwrap();
    c.reply().unwrap();
    c.command("EHLO client.test").unwrap();
    assert_eq!(c.send("s@x.test", &["source@d.test"], &format!("X-Virtual-MTA: all\r\n{header}")).unwrap().0, 250);
    eventually("it arrives", WAIT, || r.message_to("source@d.test").is_some());
    let m = r.message_to("source@d.test").unwrap();
    assert!(m.mail.starts_with("MAIL FROM:<bounce@pool.test>") && m.content.contains(pool), "{}", m.content);
    eventually("the row is written", WAIT, || orig("source@d.test").as_deref() == Some("s@own.test"));
    // Reports of the server's own stay nobody's.
    let refused = "X-Virtual-MTA: all\r\nSubject: x\r\n\r\nx";
    r.script(|s| s.answers = Some(("RCPT TO:<REFUSED@D.TEST>", "550 5.1.1 nobody")));
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@d.test", &["refused@d.test"], refused).unwrap().0, 250);
    eventually("the report arrives", WAIT, || r.message_to("s@d.test").is_some());
    assert!(r.message_to("s@d.test").unwrap().mail.starts_with("MAIL FROM:<>"));
    // What would become of mail says the same.
    let file = engine.path().join("sluice.conf");
    let args = ["config", "trace", "--from", "s@x.test", "--to", "u@d.test", "--header", "X-Virtual-MTA: own"];
    let said = engine.run(&[&args[..], &["--header", "From: a@x.test", file.to_str().unwrap()]].concat());
    assert!(said.contains("sender <s@own.test> (rewrite-list own)") && said.contains("d=own.test"), "{said}");
}

#[test]
fn lines_that_are_no_alias_are_refused() {
    for (line, said) in [
        ("alias a@b.test", "ADDRESS TARGET"),
        ("alias * a@b.test", "expected an e-mail address, its local part, or *@DOMAIN"),
        ("alias *@b_/.test a@b.test", "is not a domain name"),
        ("alias a@b.test c@d.test,@e.test", "found \"@e.test\""),
        ("alias info ann bob", "found \"ann bob\""),
        ("alias info j\u{f6}rg@e.test", "whose local part is ASCII"),
        ("alias a@b.test c@d.test,,e@f.test", "expected an e-mail address"),
    ] {
        let (code, text) = checked(line);
        assert!(code == Some(2) && text.contains(said), "{line}: {text}");
    }
    let (code, text) = checked("alias a@d.test b@d.test\nalias b@d.test a@d.test");
    assert!(code == Some(0) && text.contains("warning[alias-circle]: aliases lead from a@d.test back"), "{text}");
    let many: Vec<String> = (0..1001).map(|n| format!("u{n}@d.test")).collect();
    let (code, text) = checked(&format!("alias all@d.test {}", many.join(",")));
    assert!(code == Some(2) && text.contains("more than 1000 addresses"), "{text}");
}
