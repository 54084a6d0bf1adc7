//! Transactions with receivers of all kinds.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

use crate::{row, send};

fn start(more: &str) -> (Receiver, Engine) {
    let r = Receiver::start();
    let rules = "retry-after 1s\n retry-recipients-after 1s";
    let engine = Engine::start(1, &format!("<domain *>\n {}\n {rules}\n {more}\n</domain>", r.hosts()));
    (r, engine)
}

#[test]
fn chunking_is_used_where_it_is_offered() {
    let (r, engine) = start("");
    r.script(|s| s.extensions.push("CHUNKING"));
    let mut c = Client::connect(engine.smtp).unwrap();
    let content = format!("Subject: x\r\n\r\n..dot\r\n{}", "long line \r\n".repeat(2000));
    assert_eq!(c.send("s@x.test", &["u@d.test"], &content).unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    assert!(r.with(|s| s.commands.iter().any(|c| c.starts_with("BDAT"))));
    let m = r.message_to("u@d.test").unwrap();
    assert!(m.content.contains("\r\n\r\n.dot\r\nlong line \r\n") && m.content.ends_with("long line \r\n\r\n"));
}

#[test]
fn recipients_share_transactions_up_to_the_limit() {
    let (r, engine) = start("max-rcpt-per-transaction 2");
    send(&engine, &["a@d.test", "b@d.test", "c@d.test", "d@d.test", "e@d.test"]);
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 5);
    let mut sizes = r.with(|s| s.messages.iter().map(|m| m.rcpts.len()).collect::<Vec<_>>());
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 2, 2]);
}

#[test]
fn dsn_parameters_go_through() {
    let (r, engine) = start("");
    r.script(|s| s.extensions.push("DSN"));
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test> RET=HDRS ENVID=QQ314159").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<u@d.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;U+2Bx@d.test").unwrap().0, 250);
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: x\r\n\r\nx\r\n.").unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    r.with(|s| {
        assert!(s.commands.iter().any(|c| c.contains("RET=HDRS") && c.contains("ENVID=QQ314159")), "{:?}", s.commands);
        let rcpt = s.commands.iter().find(|c| c.starts_with("RCPT")).unwrap();
        assert!(rcpt.contains("NOTIFY=SUCCESS,DELAY") && rcpt.contains("ORCPT=rfc822;U+2Bx@d.test"), "{rcpt}");
    });
}

#[test]
fn success_is_reported_where_the_receiver_will_not() {
    let (r, engine) = start("");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test> RET=HDRS ENVID=e1").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<u@d.test> NOTIFY=SUCCESS").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<bad-quiet@d.test> NOTIFY=NEVER").unwrap().0, 250);
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: x\r\n\r\nsecret body\r\n.").unwrap().0, 250);
    eventually("the report arrives", Duration::from_secs(10), || r.message_to("s@x.test").is_some());
    let report = r.message_to("s@x.test").unwrap();
    assert!(report.mail.contains("<>"), "{}", report.mail);
    for part in ["Action: relayed", "Original-Envelope-Id: e1", "Final-Recipient: rfc822; u@d.test"] {
        assert!(report.content.contains(part), "{part} in {}", report.content);
    }
    assert!(!report.content.contains("secret body") && !report.content.contains("bad-quiet"));
    row(&engine, "b", "bad-quiet@d.test");
}

#[test]
fn delay_is_reported_once_an_interval() {
    let (r, engine) = start("notify-of-delay-every 2s");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<later-1@d.test> NOTIFY=DELAY").unwrap().0, 250);
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: x\r\n\r\nx\r\n.").unwrap().0, 250);
    std::thread::sleep(Duration::from_millis(7500));
    let reports = r.with(|s| s.messages.iter().filter(|m| m.content.contains("Action: delayed")).count());
    assert!((2..=3).contains(&reports), "{reports} in 7.5 s");
}

#[test]
fn what_the_receiver_cannot_take_bounces_without_being_sent() {
    let (r, engine) = start("");
    r.script(|s| s.extensions = vec!["PIPELINING", "SIZE 2000"]);
    let mut c = Client::connect(engine.smtp).unwrap();
    let large = format!("Subject: x\r\n\r\n{}", "x\r\n".repeat(2000));
    assert_eq!(c.send("s@x.test", &["large@d.test"], &large).unwrap().0, 250);
    assert_eq!(c.command("MAIL FROM:<s@x.test> SMTPUTF8").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<ü@d.test>").unwrap().0, 250);
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: ü\r\n\r\nx\r\n.").unwrap().0, 250);
    assert!(row(&engine, "b", "large@d.test").contains("5.3.4"));
    assert!(row(&engine, "b", "ü@d.test").contains("5.6.7"));
    r.script(|s| s.extensions = vec!["PIPELINING", "8BITMIME", "SMTPUTF8"]);
    assert_eq!(c.command("MAIL FROM:<s@x.test> SMTPUTF8").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<ö@é.test>").unwrap().0, 250);
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: ö\r\n\r\nx\r\n.").unwrap().0, 250);
    eventually("another receiver takes it", Duration::from_secs(10), || r.message_to("ö@é.test").is_some());
    assert!(r.message_to("ö@é.test").unwrap().mail.contains("SMTPUTF8"));
}

#[test]
fn replies_to_the_content_count_for_every_recipient() {
    let (r, engine) = start("");
    r.script(|s| s.content_reply = Some("554 5.7.1 spam"));
    send(&engine, &["a@d.test", "b@d.test"]);
    assert!(row(&engine, "b", "a@d.test").contains("5.7.1"));
    row(&engine, "b", "b@d.test");
    r.script(|s| s.content_reply = Some("451 4.7.1 greylisted"));
    send(&engine, &["c@d.test"]);
    assert!(row(&engine, "t", "c@d.test").contains("4.7.1"));
    // Neither yes nor no: what the receiver waits for is unknown, and the session ends.
    r.script(|s| s.content_reply = Some("354 go on"));
    send(&engine, &["d@d.test"]);
    let deferred = row(&engine, "t", "d@d.test");
    assert!(deferred.contains("4.5.0") && deferred.contains("354 go on"), "{deferred}");
    assert_eq!(r.with(|s| s.behind_354.clone()), [""; 0], "nothing is said behind it");
    r.script(|s| s.content_reply = None);
    eventually("both arrive later", Duration::from_secs(10), || {
        r.message_to("c@d.test").is_some() && r.message_to("d@d.test").is_some()
    });
}

#[test]
fn a_connection_that_breaks_is_tried_again() {
    let (r, engine) = start("");
    for at in ["EHLO", "MAIL", "RCPT", "DATA"] {
        r.script(|s| s.close_at = Some(at));
        let to = format!("{}@d.test", at.to_lowercase());
        send(&engine, &[&to]);
        eventually("the command was seen", Duration::from_secs(10), || {
            r.with(|s| s.commands.iter().any(|c| c.starts_with(at)))
        });
        r.script(|s| s.close_at = None);
        eventually(&to, Duration::from_secs(10), || r.message_to(&to).is_some());
        r.with(|s| s.commands.clear());
    }
    assert_eq!(r.duplicates(), 0);
    assert!(!accounting::lines(engine.path()).iter().any(|l| l.starts_with("b,")));
}

#[test]
fn a_greeting_that_refuses_bounces_or_defers_the_queue() {
    let (r, engine) = start(
        "\n</domain>\n<domain gives-up.test>\n bounce-upon-5xx-greeting yes\n</domain>\n<domain *>\n bounce-upon-5xx-greeting no",
    );
    r.script(|s| s.greeting = "554 5.7.1 not today");
    send(&engine, &["a@d.test", "b@gives-up.test"]);
    assert!(row(&engine, "b", "b@gives-up.test").contains("not today"));
    let error = || engine.json(&["show", "queues", "--json"])[0]["last_error"].to_string();
    eventually("the queue says why", Duration::from_secs(10), || error().contains("not today"));
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("it arrives", Duration::from_secs(10), || r.message_to("a@d.test").is_some());
}

#[test]
fn nothing_but_354_lets_the_content_go() {
    let (r, engine) = start("");
    r.script(|s| s.data_reply = Some("250 what"));
    send(&engine, &["u@d.test"]);
    row(&engine, "t", "u@d.test");
    r.script(|s| s.data_reply = None);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
}

#[test]
fn more_recipients_than_are_taken_at_once_go_at_once() {
    let (r, engine) = start("\n</domain>\n<domain many.test>\n retry-recipients-after 1h");
    r.script(|s| s.rcpt_max = 2);
    let to: Vec<String> = (0..9).map(|n| format!("u{n}@many.test")).collect();
    send(&engine, &to.iter().map(String::as_str).collect::<Vec<_>>());
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 9);
    assert!(!accounting::lines(engine.path()).iter().any(|l| l.starts_with("t,")));
}

#[test]
fn ascii_needs_no_8bitmime_whatever_was_declared() {
    let (r, engine) = start("");
    r.script(|s| s.extensions = vec!["PIPELINING"]);
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test> BODY=8BITMIME").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<u@d.test>").unwrap().0, 250);
    assert_eq!(c.send_content("Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    // The report of a message that is not ASCII is.
    let eight = "Subject: \u{fc}\r\n\r\n\u{fc}";
    assert_eq!(c.send("s@x.test", &["bad-1@d.test"], eight).unwrap().0, 250);
    eventually("the report arrives", Duration::from_secs(10), || r.message_to("s@x.test").is_some());
    let report = r.message_to("s@x.test").unwrap().content;
    assert!(report.is_ascii() && report.contains("Subject: =C3=BC"), "{report}");
}

#[test]
fn delay_is_reported_when_no_connection_stands() {
    let r = Receiver::start();
    let reports = Receiver::start();
    r.script(|s| s.greeting = "421 4.3.2 come back later");
    let rules = "retry-after 60s\n bounce-after 5s\n notify-of-delay-every 2s";
    let engine = Engine::start(
        1,
        &format!(
            "<domain d.test>\n {}\n {rules}\n</domain>\n<domain x.test>\n {}\n</domain>",
            r.hosts(),
            reports.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<u@d.test> NOTIFY=DELAY,FAILURE").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<quiet@d.test> NOTIFY=FAILURE").unwrap().0, 250);
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: x\r\n\r\nx\r\n.").unwrap().0, 250);
    let expired = row(&engine, "b", "u@d.test");
    let delayed: Vec<String> = reports.with(|s| {
        s.messages.iter().filter(|m| m.content.contains("Action: delayed")).map(|m| m.content.clone()).collect()
    });
    assert_eq!(delayed.len(), 2, "{delayed:?}");
    assert!(!delayed[0].contains("quiet@d.test"));
    for text in ["Status: 4.3.2", "Diagnostic-Code: smtp; 421 4.3.2 come back later", "Remote-MTA: dns; [127."] {
        assert!(delayed[0].contains(text), "{text} in {}", delayed[0]);
    }
    // What the host said stands in the row of the failure as well.
    let host = r.address.ip().to_string();
    assert!(expired.contains("smtp;421 4.3.2 come back later") && expired.contains(&format!("({host})")), "{expired}");
}

#[test]
fn delay_is_reported_after_a_restart() {
    let r = Receiver::start();
    let reports = Receiver::start();
    r.script(|s| s.greeting = "421 4.3.2 come back later");
    let rules = "retry-after 60s\n notify-of-delay-every 4s";
    let mut engine = Engine::start(
        1,
        &format!(
            "<domain d.test>\n {}\n {rules}\n</domain>\n<domain x.test>\n {}\n</domain>",
            r.hosts(),
            reports.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<u@d.test> NOTIFY=DELAY").unwrap().0, 250);
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: x\r\n\r\nx\r\n.").unwrap().0, 250);
    assert!(engine.stop());
    engine.start_again();
    eventually("a report arrives", Duration::from_secs(10), || reports.message_to("s@x.test").is_some());
}

#[test]
fn ascii_recipients_do_not_share_the_fate_of_others() {
    let (r, engine) = start("");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.command("MAIL FROM:<s@x.test> SMTPUTF8").unwrap().0, 250);
    for to in ["plain@d.test", "\u{fc}@d.test", "other@d.test"] {
        assert_eq!(c.command(&format!("RCPT TO:<{to}>")).unwrap().0, 250);
    }
    assert_eq!(c.command("DATA").unwrap().0, 354);
    assert_eq!(c.command("Subject: x\r\n\r\nx\r\n.").unwrap().0, 250);
    assert!(row(&engine, "b", "\u{fc}@d.test").contains("5.6.7"));
    row(&engine, "d", "plain@d.test");
    row(&engine, "d", "other@d.test");
    assert!(!r.message_to("plain@d.test").unwrap().mail.contains("SMTPUTF8"));
}

#[test]
fn a_421_in_a_transaction_ends_the_session_where_the_receiver_or_the_configuration_says_so() {
    for (closes, rule, connections) in [(false, "", 1), (true, "", 3), (false, "smtp-421-means-mx-unavailable yes", 1)]
    {
        let r = Receiver::start();
        r.script(|s| {
            s.rcpt_reply = Some(("421 4.7.0 slow down", None));
            s.closes_at_421 = closes;
        });
        let engine = Engine::start(
            1,
            &format!("<domain *>\n {}\n max-smtp-out 1\n retry-recipients-after 1h\n {rule}\n</domain>", r.hosts()),
        );
        send(&engine, &["one@d.test"]);
        let transient = row(&engine, "t", "one@d.test");
        assert!(transient.contains("smtp;421 4.7.0 slow down"), "{transient}");
        if !rule.is_empty() {
            // Its only host is left out for a while.
            send(&engine, &["two@d.test"]);
            eventually("both wait", Duration::from_secs(10), || engine.queued() == 2);
            r.with(|s| assert_eq!(s.connections, connections));
            continue;
        }
        send(&engine, &["two@d.test"]);
        row(&engine, "t", "two@d.test");
        r.script(|s| s.rcpt_reply = None);
        send(&engine, &["three@d.test"]);
        eventually("the next is delivered", Duration::from_secs(10), || r.unique() == 1);
        r.with(|s| assert_eq!(s.connections, connections, "closes: {closes}"));
    }
}

#[test]
fn a_receiver_that_takes_its_time_with_the_content_after_a_421_gets_it_once() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_secs(11));
    let engine = Engine::start(1, &format!("<domain *>\n {}\n retry-recipients-after 1s\n</domain>", r.hosts()));
    send(&engine, &["busy-1@d.test", "u@d.test"]);
    row(&engine, "d", "u@d.test");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(r.duplicates(), 0);
    r.with(|s| assert_eq!(s.messages.len(), 1));
}

/// Holds the queue while messages to `all` come in, so that one connection gets them in this order.
fn in_order(engine: &Engine, all: &[&str]) {
    engine.sluice(&["pause", "queue", "d.test/*"]);
    for to in all {
        send(engine, &[to]);
    }
    engine.sluice(&["resume", "queue", "d.test/*"]);
}

#[test]
fn a_transaction_whose_recipients_were_refused_leaves_nothing_to_the_next() {
    for (extensions, go) in [
        (vec!["PIPELINING", "CHUNKING", "8BITMIME"], false),
        (vec!["PIPELINING", "8BITMIME"], false),
        (vec!["PIPELINING", "8BITMIME"], true),
        (vec!["8BITMIME"], false),
    ] {
        let (r, engine) = start("max-smtp-out 1\n retry-recipients-after 1h");
        r.script(|s| {
            s.extensions.clone_from(&extensions);
            s.data_without_recipients = go;
        });
        in_order(&engine, &["bad-1@d.test", "good-1@d.test", "later-1@d.test", "good-2@d.test"]);
        row(&engine, "d", "good-1@d.test");
        row(&engine, "d", "good-2@d.test");
        row(&engine, "b", "bad-1@d.test");
        row(&engine, "t", "later-1@d.test");
        r.with(|s| {
            assert_eq!(s.out_of_order, 0, "{extensions:?} {go}: {:?}", s.commands);
            let whole = s.messages.iter().filter(|m| m.content.contains("Subject:")).count();
            assert_eq!(whole, s.messages.iter().filter(|m| !m.rcpts.is_empty()).count(), "{:?}", s.messages);
        });
    }
}

#[test]
fn a_reply_about_our_own_commands_is_no_verdict() {
    for (has, reply) in [
        ("BDAT", "503 5.5.1 out of order"),
        ("SIZE=", "555 5.5.4 parameters not recognised"),
        ("SIZE=", "501 syntax error in parameters"),
        ("NOTIFY=", "504 not implemented"),
    ] {
        let (r, engine) = start("max-smtp-out 1\n retry-recipients-after 1h");
        r.script(|s| {
            s.extensions = vec!["PIPELINING", "CHUNKING", "SIZE 0", "DSN"];
            s.answers = Some((has, reply));
        });
        let mut c = Client::connect(engine.smtp).unwrap();
        for to in ["u@d.test", "v@d.test"] {
            assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 250);
            assert_eq!(c.command(&format!("RCPT TO:<{to}> NOTIFY=FAILURE")).unwrap().0, 250);
            assert_eq!(c.send_content("Subject: x\r\n\r\nx").unwrap().0, 250);
            row(&engine, "d", to);
        }
        let counted = || engine.json(&["status", "--json"])["data"]["status"]["traffic"]["total"]["outOfStep"].clone();
        eventually("it is counted once", Duration::from_secs(10), || counted() == 1);
        r.with(|s| assert_eq!(s.connections, 2, "{has} {reply}: {:?}", s.commands));
    }
}

#[test]
fn an_address_that_the_receiver_cannot_parse_is_a_verdict() {
    let (r, engine) = start("");
    r.script(|s| s.rcpt_reply = Some(("501 5.1.3 bad recipient address syntax", None)));
    send(&engine, &["u@d.test"]);
    assert!(row(&engine, "b", "u@d.test").contains("5.1.3"));
}

#[test]
fn who_was_not_asked_when_a_receiver_hung_up_is_asked_at_once() {
    let (r, engine) = start("max-smtp-out 1\n retry-recipients-after 1h");
    r.script(|s| s.refusals_max = 2);
    let to = ["bad-1@d.test", "bad-2@d.test", "bad-3@d.test", "u@d.test", "bad-4@d.test", "v@d.test", "w@d.test"];
    send(&engine, &to);
    for to in to {
        row(&engine, if to.starts_with("bad") { "b" } else { "d" }, to);
    }
    // A sender gets a report of each failure or one of several, by when they come.
    r.with(|s| assert!(to.iter().all(|to| s.delivered.get(*to).is_none_or(|n| *n == 1)), "{:?}", s.delivered));
    assert!(!accounting::lines(engine.path()).iter().any(|l| l.starts_with("t,")));
    // From now on sessions end before the receiver ends them.
    let before = r.with(|s| s.connections);
    in_order(&engine, &["bad-5@d.test", "bad-6@d.test", "bad-7@d.test", "x@d.test"]);
    row(&engine, "d", "x@d.test");
    row(&engine, "b", "bad-7@d.test");
    r.with(|s| assert!(s.connections - before <= 2, "{:?}", s.commands));
}

#[test]
fn limits_that_a_receiver_announces_are_kept() {
    let (r, engine) = start("max-smtp-out 1");
    r.script(|s| s.extensions = vec!["PIPELINING", "LIMITS MAILMAX=2 RCPTMAX=3"]);
    let to: Vec<String> = (0..10).map(|n| format!("u{n}@d.test")).collect();
    send(&engine, &to.iter().map(String::as_str).collect::<Vec<_>>());
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 10);
    r.with(|s| {
        assert!(s.messages.iter().all(|m| m.rcpts.len() <= 3), "{:?}", s.messages);
        assert_eq!((s.messages_per_connection_max, s.connections), (2, 2));
    });
}

#[test]
fn replies_are_read_while_the_content_goes_out() {
    // A receiver that takes nothing more until its replies are read: its buffer holds few of them.
    let r = std::net::TcpListener::bind("127.0.0.9:0").unwrap();
    let at = r.local_addr().unwrap();
    let served = std::thread::spawn(move || {
        use std::io::{BufRead, BufReader, Read, Write};
        let (mut io, _) = r.accept().unwrap();
        socket2::SockRef::from(&io).set_send_buffer_size(4096).unwrap();
        let mut input = BufReader::new(io.try_clone().unwrap());
        io.write_all(b"220 x\r\n").unwrap();
        let mut line = String::new();
        let mut refused = 0;
        while input.read_line(&mut line).unwrap_or(0) > 0 {
            let reply = match line.get(..4).unwrap_or_default() {
                "EHLO" => "250-x\r\n250-PIPELINING\r\n250 CHUNKING\r\n".to_owned(),
                "RCPT" => {
                    refused += 1;
                    format!("550 5.1.1 {}\r\n", "nobody of this name is here ".repeat(30))
                }
                "BDAT" => {
                    let n: u64 = line.split(' ').nth(1).unwrap().trim().parse().unwrap();
                    std::io::copy(&mut input.by_ref().take(n), &mut std::io::sink()).unwrap();
                    "503 no recipients\r\n".to_owned()
                }
                _ => "250 ok\r\n".to_owned(),
            };
            if io.write_all(reply.as_bytes()).is_err() || line.starts_with("QUIT") {
                break;
            }
            line.clear();
        }
        refused
    });
    let mut engine = Engine::start(
        1,
        &format!(
            "<domain *>\n smtp-hosts [{}]:{}\n max-smtp-out 1\n data-send-timeout 10s\n</domain>",
            at.ip(),
            at.port()
        ),
    );
    let to: Vec<String> = (0..900).map(|n| format!("u{n}@d.test")).collect();
    let mut c = Client::connect(engine.smtp).unwrap();
    let content = format!("Subject: x\r\n\r\n{}", "line of a large message\r\n".repeat(400_000));
    assert_eq!(c.send("", &to.iter().map(String::as_str).collect::<Vec<_>>(), &content).unwrap().0, 250);
    row(&engine, "b", "u899@d.test");
    assert!(engine.stop());
    assert_eq!(served.join().unwrap(), 900);
}
