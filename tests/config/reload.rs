//! `sluice reload`: all or nothing, said before it happens, while mail flows.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

#[test]
fn a_reload_says_what_it_changes_and_a_dry_run_changes_nothing() {
    let engine = Engine::start(2, "<domain d.test>\n max-smtp-out 5\n</domain>");
    let of_server = |directive: &str| {
        let v = engine.json(&["config", "explain", "d.test", "--why", directive, "--json"]);
        v[0]["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(of_server("max-smtp-out"), "5");
    engine.edit_config("max-smtp-out 5", "max-smtp-out 6");
    let dry = engine.sluice(&["reload", "--dry-run"]);
    assert_eq!(String::from_utf8(dry.stdout).unwrap(), "d.test: max-smtp-out 5 → 6\n");
    assert_eq!(of_server("max-smtp-out"), "5");
    let done = String::from_utf8(engine.sluice(&["reload"]).stdout).unwrap();
    assert_eq!(done, "d.test: max-smtp-out 5 → 6\nConfiguration reloaded.\n");
    assert_eq!(of_server("max-smtp-out"), "6");
    engine.edit_config("max-smtp-out 6", "max-smtp-out six");
    let wrong = engine.sluice(&["reload"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("expected a whole number"));
    engine.edit_config("max-smtp-out six", "max-smtp-out 6\n</domain>\n<virtual-mta v>\n smtp-source-host 192.0.2.1 v.test\n</virtual-mta>\n<domain e.test>");
    let foreign = engine.sluice(&["reload"]);
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("192.0.2.1"), "{foreign:?}");
    assert_eq!(of_server("max-smtp-out"), "6");
}

#[test]
fn a_dry_run_tells_of_restarts_and_of_what_this_machine_does_not_have() {
    let engine = Engine::start(1, "spool-sync group\n<source 10/8>\n always-allow-relaying no\n</source>");
    engine.edit_config("spool-sync group", "spool-sync none");
    engine.edit_config("always-allow-relaying no", "always-allow-relaying yes");
    let dry = engine.sluice(&["reload", "--dry-run"]);
    let said = "spool-sync group → none\nsource 10.0.0.0/8: always-allow-relaying no → yes\n\
        A restart is needed for: spool-sync.\n";
    assert_eq!(String::from_utf8(dry.stdout).unwrap(), said);
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap();
    engine.edit_config("spool-sync none", &format!("smtp-listener {taken}\nsmtp-source-host 192.0.2.1 v.test"));
    let dry = engine.sluice(&["reload", "--dry-run"]);
    let text = String::from_utf8(dry.stderr).unwrap();
    assert_eq!(dry.status.code(), Some(2));
    assert!(text.contains("a reload would be refused:") && text.contains("192.0.2.1"), "{text}");
    assert!(text.contains(&format!("{taken}")) && text.contains("another process listens there"), "{text}");
    let real = String::from_utf8(engine.sluice(&["reload"]).stderr).unwrap();
    assert!(real.contains("the old configuration stays in force"), "{real}");
}

#[test]
fn mail_of_a_virtual_mta_that_is_gone_waits_until_it_is_back() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "421 4.3.2 not yet");
    let vmta = "<virtual-mta v>\n</virtual-mta>";
    let engine = Engine::start(1, &format!("{vmta}\n<domain *>\n {}\n retry-after 1s\n</domain>", r.hosts()));
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "x-virtual-mta: v\r\nSubject: x\r\n\r\nx").unwrap().0, 250);
    let error = || engine.json(&["show", "queues", "--json"])[0]["last_error"].to_string();
    eventually("it is refused", Duration::from_secs(10), || error().contains("not yet"));
    engine.edit_config(vmta, "# gone");
    assert!(engine.sluice(&["reload"]).status.success());
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("the queue says why it waits", Duration::from_secs(10), || error().contains("does not exist any more"));
    assert_eq!(r.unique(), 0);
    engine.edit_config("# gone", vmta);
    assert!(engine.sluice(&["reload"]).status.success());
    eventually("it is delivered", Duration::from_secs(10), || r.unique() == 1);
    assert!(!accounting::lines(engine.path()).iter().any(|l| l.starts_with("b,")));
}

/// Half of the reloads are wrong; nothing is lost and the limit holds throughout.
#[test]
fn five_hundred_reloads_under_load() {
    let r = Receiver::start();
    let engine =
        Engine::start(2, &format!("<domain *>\n {}\n max-smtp-out 3 #A\n retry-after 1s\n</domain>", r.hosts()));
    let smtp = engine.smtp;
    let sender = std::thread::spawn(move || {
        let mut c = Client::connect(smtp).unwrap();
        for n in 0..400 {
            let to = format!("u{n}@d{}.test", n % 7);
            let (code, text) = c.send("s@x.test", &[&to], "Subject: x\r\n\r\nx").unwrap();
            assert_eq!(code, 250, "{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    for n in 0..500 {
        match n % 2 {
            0 => engine.edit_config("max-smtp-out 3 #A", "max-smtp-out three #A"),
            _ => engine.edit_config("max-smtp-out three #A", "max-smtp-out 3 #A"),
        }
        let code = engine.sluice(&["reload"]).status.code();
        assert_eq!(code, Some(if n % 2 == 0 { 2 } else { 0 }));
    }
    sender.join().unwrap();
    eventually("all arrive", Duration::from_secs(30), || r.unique() == 400);
    assert_eq!(r.duplicates(), 0);
    assert!(r.with(|s| s.open_max) <= 3 * 7);
}

#[test]
fn mail_that_is_led_elsewhere_does_not_wait_for_where_it_went_before() {
    let r = Receiver::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = format!("smtp-hosts [127.0.0.1]:{closed}");
    let engine = Engine::start(2, &format!("<domain *>\n {dead}\n retry-after 1h\n</domain>"));
    let mut c = Client::connect(engine.smtp).unwrap();
    for to in ["u@d.test", "u@e.test"] {
        assert_eq!(c.send("s@x.test", &[to], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    let waits = || {
        let rows = engine.json(&["show", "queues", "--json"]);
        rows.as_array().is_some_and(|r| r.len() == 2 && r.iter().all(|q| !q["next_retry"].is_null()))
    };
    eventually("both queues wait", Duration::from_secs(10), waits);
    engine.edit_config("retry-after 1h", "retry-after 2h");
    assert!(engine.sluice(&["reload"]).status.success());
    assert!(waits(), "what leads nowhere else goes on waiting");
    engine.edit_config(&dead, &r.hosts());
    assert!(engine.sluice(&["reload"]).status.success());
    eventually("both arrive", Duration::from_secs(10), || r.unique() == 2);
}
