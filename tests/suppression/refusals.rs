//! What becomes of mail to addresses that are on a list.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use super::{CATEGORY, DIAG, SOURCE_IP, STATUS, row, send};

#[test]
fn lists_of_the_configuration_refuse_addresses_domains_local_parts_and_expressions() {
    let r = Receiver::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("more.txt");
    std::fs::write(&file, "# ours\nFiled@d.test\n\nnobody\n").unwrap();
    let lists = format!(
        "<address-list blocked>\n domain whole.test\n domain bücher.test\n address zz@straße.test\n address One@d.test\n address abuse\n address /^spam.*@d\\.test$/\n address-file {}\n</address-list>\n\
         <address-list other>\n address two@d.test\n</address-list>\n<source 127.0.0.1>\n suppression-lists blocked\n</source>",
        file.display()
    );
    let engine = Engine::start(2, &format!("{lists}\n<domain *>\n {}\n</domain>", r.hosts()));
    for to in ["any@whole.test", "one@D.test", "ABUSE@x.test", "spammer7@d.test", "filed@d.test", "nobody@y.test"] {
        let (code, text) = send(&engine, &[to], "");
        assert_eq!(code, 550, "{to}: {text}");
        assert_eq!(text.trim_end(), format!("550 5.7.1 recipient is in suppression list \"blocked\": <{to}>"));
    }
    for to in ["x@xn--bcher-kva.test", "zz@xn--strae-oqa.test"] {
        assert_eq!(send(&engine, &[to], "").0, 550, "{to}");
    }
    // Without the file mail would go to those whom it names.
    std::fs::remove_file(&file).unwrap();
    let reload = engine.sluice(&["reload"]);
    assert!(!reload.status.success() && String::from_utf8_lossy(&reload.stderr).contains("more.txt"));
    assert_eq!(send(&engine, &["filed@d.test"], "").0, 550);
    std::fs::write(&file, "filed@d.test\n").unwrap();
    for to in ["two@d.test", "one@other.test", "any@sub.whole.test", "spam@e.test"] {
        assert_eq!(send(&engine, &[to], "").0, 250, "{to}");
    }
    engine.edit_config("suppression-lists blocked", "suppression-lists blocked,other");
    engine.run(&["reload"]);
    eventually("the other list holds too", Duration::from_secs(5), || send(&engine, &["two@d.test"], "").0 == 550);
}

#[test]
fn what_is_accepted_all_the_same_bounces_at_once() {
    let r = Receiver::start();
    let lists = "<address-list blocked>\n domain whole.test\n</address-list>\n<source 127.0.0.1>\n suppression-lists blocked\n accept-invalid-recipients yes\n</source>";
    let engine = Engine::start(2, &format!("{lists}\n<domain *>\n {}\n</domain>", r.hosts()));
    engine.run(&["suppress", "add", "gone@d.test"]);
    std::thread::sleep(Duration::from_millis(600));
    let mut c = Client::connect(engine.smtp).unwrap();
    c.command("MAIL FROM:<s@sender.test>").unwrap();
    for to in ["<u@whole.test>", "<gone@d.test>", "<fine@d.test>", "<not an address>", "<@@>"] {
        let (code, text) = c.command(&format!("RCPT TO:{to}")).unwrap();
        assert_eq!(code, 250, "{to}: {text}");
    }
    assert_eq!(c.send_content("Subject: x\r\n\r\nx").unwrap().0, 250);
    let bounced = row(&engine, "b", "u@whole.test");
    assert_eq!(bounced[STATUS], "5.7.1 (delivery not authorized)");
    assert_eq!(bounced[DIAG], "smtp;550 5.7.1 recipient is in suppression list \"blocked\": <u@whole.test>");
    assert_eq!((bounced[CATEGORY].as_str(), bounced[SOURCE_IP].as_str()), ("suppressed", ""));
    assert_eq!(
        row(&engine, "b", "gone@d.test")[DIAG],
        "smtp;550 5.7.1 recipient is in suppression list \"global\": <gone@d.test>"
    );
    let none = row(&engine, "b", "not an address");
    assert!(none[STATUS].starts_with("5.1.3") && none[CATEGORY] == "bad-mailbox", "{none:?}");
    row(&engine, "b", "@@");
    row(&engine, "d", "fine@d.test");
    // The sender is told, as of any bounce.
    eventually("a report", Duration::from_secs(10), || r.message_to("s@sender.test").is_some());
    let seen: Vec<String> = r.with(|s| s.delivered.keys().cloned().collect());
    assert!(seen.iter().all(|to| to == "fine@d.test" || to == "s@sender.test"), "{seen:?}");
}

#[test]
fn who_was_accepted_only_to_bounce_waits_for_no_receiver() {
    let lists = "<address-list blocked>\n domain whole.test\n</address-list>\n<source 127.0.0.1>\n suppression-lists blocked\n accept-invalid-recipients yes\n</source>";
    let engine = Engine::start(2, &format!("{lists}\n<domain *>\n smtp-hosts [127.0.0.77]:9\n</domain>"));
    assert_eq!(send(&engine, &["u@whole.test", "other@whole.test"], "").0, 250);
    let mut c = Client::connect(engine.smtp).unwrap();
    c.command("MAIL FROM:<>").unwrap();
    assert_eq!(c.command("RCPT TO:<no address>").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<waits@d.test>").unwrap().0, 250);
    assert_eq!(c.send_content("Subject: x\r\n\r\nx").unwrap().0, 250);
    assert_eq!(row(&engine, "b", "u@whole.test")[CATEGORY], "suppressed");
    assert_eq!(row(&engine, "b", "other@whole.test")[CATEGORY], "suppressed");
    assert!(row(&engine, "b", "no address")[STATUS].starts_with("5.1.3"));
    eventually("only the other waits", Duration::from_secs(5), || engine.queued() == 1);
    // A client that may not relay may not have reports sent to other people either.
    engine.edit_config(" always-allow-relaying yes", " always-allow-relaying no");
    engine.run(&["reload"]);
    eventually("it is refused", Duration::from_secs(5), || {
        let mut c = Client::connect(engine.smtp).unwrap();
        c.command("MAIL FROM:<>").unwrap();
        c.command("RCPT TO:<no address>").unwrap().0 == 501
    });
}

#[test]
fn whom_we_do_not_write_to_uses_up_no_rate() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!("<domain *>\n {}\n max-msg-rate 5/h\n</domain>\n<virtual-mta v1>\n</virtual-mta>", r.hosts()),
    );
    let list: Vec<String> = (0..20).map(|i| format!("gone{i}@d.test")).collect();
    let mut add = vec!["suppress", "add", "--virtual-mta", "v1"];
    add.extend(list.iter().map(String::as_str));
    engine.run(&add);
    std::thread::sleep(Duration::from_millis(600));
    for to in &list {
        assert_eq!(send(&engine, &[to], "X-Virtual-MTA: v1\r\n").0, 250);
    }
    assert_eq!(send(&engine, &["fine@d.test"], "X-Virtual-MTA: v1\r\n").0, 250);
    for to in &list {
        assert_eq!(row(&engine, "b", to)[CATEGORY], "suppressed");
    }
    row(&engine, "d", "fine@d.test");
}

#[test]
fn mail_that_waits_is_not_tried_when_its_recipient_comes_on_a_list() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("450 4.2.0 later", None)));
    let engine = Engine::start(2, &format!("<domain *>\n {}\n retry-recipients-after 2s\n</domain>", r.hosts()));
    assert_eq!(send(&engine, &["u@d.test", "v@d.test"], "").0, 250);
    row(&engine, "t", "u@d.test");
    engine.run(&["suppress", "add", "U@d.test", "--reason", "asked us"]);
    r.script(|s| s.rcpt_reply = None);
    let bounced = row(&engine, "b", "u@d.test");
    assert_eq!(bounced[CATEGORY], "suppressed");
    row(&engine, "d", "v@d.test");
    assert_eq!(r.with(|s| s.delivered.get("u@d.test").copied()), None);
    // A path is not judged by whom we do not write to.
    let health = engine.json(&["show", "paths", "--json"]);
    assert!(health.as_array().unwrap().iter().all(|p| p["mode"] == "normal"), "{health}");
}

#[test]
fn lists_of_a_virtual_mta_a_pool_and_a_job_hold_for_their_mail_alone() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<virtual-mta v1>\n</virtual-mta>\n<virtual-mta v2>\n</virtual-mta>\n<virtual-mta-pool p>\n virtual-mta v2\n</virtual-mta-pool>\n<domain *>\n {}\n</domain>",
            r.hosts()
        ),
    );
    engine.run(&["suppress", "add", "a@d.test", "--virtual-mta", "V1"]);
    engine.run(&["suppress", "add", "b@d.test", "--pool", "p"]);
    engine.run(&["suppress", "add", "c@d.test", "--job", "J7"]);
    std::thread::sleep(Duration::from_millis(600));
    let all = ["a@d.test", "b@d.test", "c@d.test"];
    for (headers, suppressed) in [
        ("X-Virtual-MTA: v1\r\n", Some("a@d.test")),
        ("X-Virtual-MTA: p\r\n", Some("b@d.test")),
        ("X-Job: j7\r\n", Some("c@d.test")),
        ("X-Virtual-MTA: v2\r\nX-Job: j8\r\n", None),
    ] {
        let before: u32 = r.with(|s| s.delivered.values().sum());
        assert_eq!(send(&engine, &all, headers).0, 250);
        if let Some(to) = suppressed {
            row(&engine, "b", to);
        }
        let expected = before + 3 - u32::from(suppressed.is_some());
        eventually("the others arrive", Duration::from_secs(10), || {
            r.with(|s| s.delivered.values().sum::<u32>()) == expected
        });
    }
    let rows = tests::accounting::lines(engine.path());
    assert_eq!(rows.iter().filter(|l| l.starts_with("b,")).count(), 3);
    assert!(rows.iter().any(|l| l.contains("suppression list \"\"virtual-mta:v1\"\"")), "{rows:?}");
}
