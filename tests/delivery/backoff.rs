//! What receivers' replies do: backoff and back, source addresses left out, hosts skipped,
//! queues bounced or deferred, mail rerouted; and who is told.

use std::time::Duration;

use tests::accounting;
use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use super::{row, send};

const WAIT: Duration = Duration::from_secs(20);

/// A server with one rule for replies, and a receiver.
fn with(workers: u32, rule: &str, global: &str, domain: &str) -> (Receiver, Engine) {
    let r = Receiver::start();
    let engine = Engine::start(
        workers,
        &format!(
            "<smtp-pattern-list l>\n reply {rule}\n</smtp-pattern-list>\n{global}\n<domain *>\n {}\n smtp-pattern-list l\n \
             retry-recipients-after 1s\n retry-after 1s\n{domain}\n</domain>",
            r.hosts()
        ),
    );
    (r, engine)
}

fn mode(engine: &Engine, path: &str) -> String {
    let rows = engine.json(&["show", "paths", "--json"]);
    let found = rows.as_array().unwrap().iter().find(|p| p["path"] == path).cloned();
    found.map(|p| p["mode"].as_str().unwrap().to_owned()).unwrap_or_default()
}

fn limit(engine: &Engine, path: &str) -> u64 {
    let rows = engine.json(&["show", "paths", "--json"]);
    let found = rows.as_array().unwrap().iter().find(|p| p["path"] == path).cloned();
    found.map_or(0, |p| p["max_smtp_out"].as_u64().unwrap())
}

#[test]
fn a_path_goes_into_backoff_and_comes_back_in_steps() {
    let rules = "max-smtp-out 9\n backoff-max-smtp-out 1\n backoff-to-normal-after 3s\n backoff-return-steps 2\n \
                 backoff-notify ops@ops.test";
    // What tells of it is not itself told of.
    let quiet = "<domain ops.test>\n backoff-notify \"\"\n smtp-pattern-list \"\"\n</domain>";
    let (r, engine) = with(1, "/slow down/ mode=backoff", quiet, rules);
    r.script(|s| s.rcpt_reply = Some(("451 4.7.1 Slow Down please", None)));
    send(&engine, &["u@d.test"]);
    eventually("it is in backoff", WAIT, || mode(&engine, "d.test/{default}") == "backoff");
    assert_eq!(limit(&engine, "d.test/{default}"), 1);
    r.script(|s| s.rcpt_reply = None);
    eventually("it is on its way back", WAIT, || mode(&engine, "d.test/{default}") == "normal (0/2)");
    for n in 0..10 {
        send(&engine, &[&format!("a{n}@d.test")]);
    }
    eventually("a step is done", WAIT, || mode(&engine, "d.test/{default}") == "normal (1/2)");
    assert_eq!(limit(&engine, "d.test/{default}"), 5);
    for n in 0..10 {
        send(&engine, &[&format!("b{n}@d.test")]);
    }
    eventually("it is back", WAIT, || limit(&engine, "d.test/{default}") == 9);
    let notices = || {
        r.with(|s| {
            s.messages.iter().filter(|m| m.rcpts == ["ops@ops.test"]).map(|m| m.content.clone()).collect::<Vec<_>>()
        })
    };
    eventually("operators are told of both", WAIT, || notices().len() == 2);
    let all = notices().join("\n");
    assert!(all.contains("Subject: d.test/{default}: backoff mode") && all.contains("Slow Down please"), "{all}");
    assert!(all.contains("Subject: d.test/{default}: normal mode"), "{all}");
}

#[test]
fn a_policy_sets_what_backoff_is_and_a_delivery_may_end_it() {
    let rules =
        "max-smtp-out 20\n backoff-policy standard\n backoff-to-normal-after-delivery yes\n backoff-return-steps 0";
    let (r, engine) = with(1, "/slow/ mode=backoff", "", rules);
    r.script(|s| s.rcpt_reply = Some(("451 slow", None)));
    send(&engine, &["u@d.test"]);
    eventually("it is in backoff", WAIT, || mode(&engine, "d.test/{default}") == "backoff");
    assert_eq!(limit(&engine, "d.test/{default}"), 2);
    r.script(|s| s.rcpt_reply = None);
    eventually("the delivery ended it", WAIT, || mode(&engine, "d.test/{default}") == "normal");
    assert_eq!(limit(&engine, "d.test/{default}"), 20);
}

#[test]
fn a_trigger_in_time_waits_for_its_count() {
    let (r, engine) = with(1, "/slow/ mode=backoff,after=3/1m", "", "retry-recipients-after 1h");
    r.script(|s| s.rcpt_reply = Some(("451 slow", None)));
    send(&engine, &["a@d.test"]);
    send(&engine, &["b@d.test"]);
    row(&engine, "t", "b@d.test");
    assert_eq!(mode(&engine, "d.test/{default}"), "normal");
    send(&engine, &["c@d.test"]);
    eventually("the third is enough", WAIT, || mode(&engine, "d.test/{default}") == "backoff");
}

#[test]
fn a_rule_says_how_long_its_backoff_lasts() {
    let (r, engine) = with(1, "/slow/ mode=backoff,backoff-to-normal-after=2s", "", "backoff-to-normal-after 1h");
    r.script(|s| s.rcpt_reply = Some(("451 slow", None)));
    send(&engine, &["u@d.test"]);
    eventually("it is in backoff", WAIT, || mode(&engine, "d.test/{default}") == "backoff");
    r.script(|s| s.rcpt_reply = None);
    eventually("it is on its way back", WAIT, || mode(&engine, "d.test/{default}").starts_with("normal"));
}

#[test]
fn mail_is_rerouted_while_its_path_is_in_backoff() {
    let vmtas = "<virtual-mta a>\n smtp-source-host 127.0.4.1 a.test\n <domain *>\n backoff-reroute-to-virtual-mta b\n </domain>\n\
                 </virtual-mta>\n<virtual-mta b>\n smtp-source-host 127.0.4.2 b.test\n</virtual-mta>\n<source 127.0.0.1>\n \
                 default-virtual-mta a\n</source>";
    let (r, engine) = with(1, "/slow/ mode=backoff", vmtas, "");
    r.script(|s| s.rcpt_reply = Some(("451 slow", Some("127.0.4.1".parse().unwrap()))));
    send(&engine, &["first@d.test"]);
    eventually("it is in backoff", WAIT, || mode(&engine, "d.test/a") == "backoff");
    send(&engine, &["second@d.test"]);
    eventually("both arrive by the other", WAIT, || r.unique() == 2);
    assert!(["first@d.test", "second@d.test"].iter().all(|to| r.message_to(to).unwrap().hello == "b.test"));
    assert!(row(&engine, "d", "second@d.test").contains("d.test/b"));
    // Mail that comes when the queue was empty for so long that it is forgotten goes the same way, also to a pool.
    let queue = |name: &str| engine.run(&["show", "queues"]).contains(name);
    eventually("the empty queue is forgotten", WAIT, || !queue("d.test/a"));
    send(&engine, &["third@d.test"]);
    eventually("it arrives by the other", WAIT, || r.unique() == 3);
    assert_eq!(r.message_to("third@d.test").unwrap().hello, "b.test");
    assert!(!r.with(|s| s.deferred.contains_key("third@d.test")), "and was not attempted before");
    for pid in engine.workers() {
        Engine::kill(pid);
    }
    engine.wait_ready();
    send(&engine, &["after@d.test"]);
    eventually("it arrives by the other", WAIT, || r.message_to("after@d.test").is_some());
    assert!(!r.with(|s| s.deferred.contains_key("after@d.test")), "backoff outlives its worker");
    engine.edit_config("backoff-reroute-to-virtual-mta b", "backoff-reroute-to-virtual-mta p");
    engine.edit_config(
        "<source 127.0.0.1>\n default",
        "<virtual-mta-pool p>\n virtual-mta b\n</virtual-mta-pool>\n<source 127.0.0.1>\n default",
    );
    engine.run(&["reload"]);
    send(&engine, &["fourth@d.test"]);
    eventually("it arrives by the pool", WAIT, || r.unique() == 5);
    assert!(row(&engine, "d", "fourth@d.test").ends_with("d.test/b,p"), "{}", row(&engine, "d", "fourth@d.test"));
}

#[test]
fn a_source_address_is_left_out_and_comes_back() {
    let vmta = "<virtual-mta v>\n smtp-source-host 127.0.4.1 a.test\n smtp-source-host 127.0.4.2 b.test\n</virtual-mta>\n\
                <source 127.0.0.1>\n default-virtual-mta v\n</source>";
    let (r, engine) = with(1, "/blocked/ disable-source-ip,reenable-after=4s", vmta, "max-msg-per-connection 1");
    r.script(|s| s.rcpt_reply = Some(("451 blocked", Some("127.0.4.1".parse().unwrap()))));
    for n in 0..6 {
        send(&engine, &[&format!("u{n}@d.test")]);
    }
    eventually("all arrive by the other", WAIT, || r.unique() == 6);
    let hellos = |r: &Receiver| r.with(|s| s.messages.iter().map(|m| m.hello.clone()).collect::<Vec<_>>());
    assert!(hellos(&r).iter().all(|h| h == "b.test"), "{:?}", hellos(&r));
    assert!(engine.log().contains("source address is not used any more"));
    r.script(|s| s.rcpt_reply = None);
    std::thread::sleep(Duration::from_secs(4));
    for n in 0..6 {
        send(&engine, &[&format!("v{n}@d.test")]);
    }
    eventually("all arrive", WAIT, || r.unique() == 12);
    assert!(hellos(&r).iter().any(|h| h == "a.test"), "{:?}", hellos(&r));
}

#[test]
fn when_all_source_addresses_are_left_out_the_queue_holds() {
    let (r, engine) = with(
        1,
        "/blocked/ disable-source-ip,reenable-after=3s",
        "smtp-source-host 127.0.4.1 a.test",
        "backoff-upon-all-sources-disabled yes",
    );
    r.script(|s| s.rcpt_reply = Some(("451 blocked", None)));
    send(&engine, &["u@d.test"]);
    eventually("it is in backoff", WAIT, || mode(&engine, "d.test/{default}") == "backoff");
    assert!(engine.log().contains("All SMTP sources for queue d.test/{default} are now disabled."));
    let before = r.with(|s| s.connections);
    r.script(|s| s.rcpt_reply = None);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(r.with(|s| s.connections), before);
    eventually("it arrives when the address is back", WAIT, || r.unique() == 1);
}

#[test]
fn a_host_is_skipped_and_the_mail_goes_to_the_next() {
    let (r, second) = (Receiver::start(), Receiver::at("127.0.0.10:0"));
    let next = second.hosts().replace("smtp-hosts ", "");
    let engine = Engine::start(
        1,
        &format!(
            "<smtp-pattern-list l>\n reply /not here/ skip-mx\n</smtp-pattern-list>\n<domain *>\n {}; {next}\n \
             smtp-pattern-list l\n</domain>",
            r.hosts()
        ),
    );
    // Whatever the reply was, the mail stays.
    r.script(|s| s.rcpt_reply = Some(("550 5.7.1 not here", None)));
    send(&engine, &["a@d.test"]);
    eventually("it goes to the next", WAIT, || second.unique() == 1);
    send(&engine, &["b@d.test"]);
    eventually("the first is left out", WAIT, || second.unique() == 2);
    assert_eq!(r.with(|s| s.rcpts.len()), 1);
    let (r, second) = (Receiver::start(), Receiver::at("127.0.0.10:0"));
    r.script(|s| s.greeting = "554 not here");
    let next = second.hosts().replace("smtp-hosts ", "");
    let engine = Engine::start(
        1,
        &format!(
            "<smtp-pattern-list l>\n reply /^554 not here/ skip-mx\n</smtp-pattern-list>\n<domain *>\n {}; {next}\n \
             smtp-pattern-list l\n</domain>",
            r.hosts()
        ),
    );
    send(&engine, &["c@d.test"]);
    eventually("a greeting counts as well", WAIT, || second.unique() == 1);
}

#[test]
fn a_queue_is_bounced_or_deferred_as_a_whole_and_a_recipient_at_once() {
    let (r, engine) = with(1, "/gone for good/ bounce-queue", "", "max-smtp-out 1\n max-msg-per-connection 1");
    r.script(|s| {
        s.rcpt_reply = Some(("451 gone for good", None));
        s.greeting = "421 busy";
    });
    for n in 0..5 {
        send(&engine, &[&format!("u{n}@d.test")]);
    }
    eventually("all wait", WAIT, || engine.queued() == 5);
    r.script(|s| s.greeting = "220 receiver.test");
    for n in 0..5 {
        assert!(row(&engine, "b", &format!("u{n}@d.test")).contains("gone for good"));
    }
    let asked = |s: &mut tests::receiver::Seen| s.commands.iter().filter(|c| c.contains("@d.test")).count();
    assert_eq!(r.with(asked), 1);

    let (r, engine) = with(1, "/no such person/ bounce-rcpt", "", "");
    for (reply, to) in [("450 4.2.1 No such person", "u@d.test"), ("421 4.2.1 No such person", "v@d.test")] {
        r.script(|s| s.rcpt_reply = Some((reply, None)));
        send(&engine, &[to]);
        let b = row(&engine, "b", to);
        assert!(b.contains("4.2.1") && b.contains("No such person"), "{b}");
    }

    let (r, engine) = with(1, "/come back later/ defer-queue", "", "retry-after 3s\n max-smtp-out 1");
    r.script(|s| s.rcpt_reply = Some(("451 come back later", None)));
    for n in 0..4 {
        send(&engine, &[&format!("u{n}@d.test")]);
    }
    row(&engine, "t", "@d.test");
    std::thread::sleep(Duration::from_millis(1200));
    let tried = r.with(|s| s.rcpts.len());
    assert!(tried <= 2, "{tried} were tried while the queue was deferred");
    r.script(|s| s.rcpt_reply = None);
    eventually("all arrive", WAIT, || r.unique() == 4);
    let rows = || accounting::lines(engine.path()).iter().filter(|l| l.starts_with("d,")).count();
    eventually("each has its row", WAIT, || rows() == 4);
}

#[test]
fn a_positive_greeting_or_ehlo_defers_and_bounces_as_well() {
    let (r, engine) = with(
        1,
        "/maintenance/ defer-queue",
        "<acct-file acct/queues.csv>\n records tq\n</acct-file>",
        "retry-after 3s",
    );
    r.script(|s| s.greeting = "220 receiver.test maintenance");
    send(&engine, &["u@d.test", "v@d.test"]);
    let t = row(&engine, "tq", "d.test/{default}");
    assert!(t.contains("4.0.0") && t.contains("220 receiver.test maintenance"), "{t}");
    eventually("it takes leave", WAIT, || r.with(|s| s.commands.last().is_some_and(|c| c == "QUIT")));
    assert_eq!(r.with(|s| (s.connections, s.rcpts.len())), (1, 0));
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("the mail arrives by the retry", WAIT, || r.unique() == 2);

    let (r, engine) = with(1, "/^250.*closed for good/ bounce-queue", "", "");
    r.script(|s| s.extensions.push("closed for good"));
    send(&engine, &["u@d.test", "v@d.test"]);
    for to in ["u@d.test", "v@d.test"] {
        let b = row(&engine, "b", to);
        assert!(b.contains("5.0.0") && b.contains("closed for good"), "{b}");
    }
    assert_eq!(r.with(|s| s.rcpts.len()), 0);
}

#[test]
fn the_rules_of_a_receiver_profile_are_in_force() {
    let r = Receiver::start();
    let engine =
        Engine::start(1, &format!("<domain yahoo.com>\n {}\n retry-recipients-after 1h\n</domain>", r.hosts()));
    r.script(|s| {
        s.rcpt_reply =
            Some(("421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to user complaints", None))
    });
    send(&engine, &["u@yahoo.com"]);
    eventually("it is in backoff", WAIT, || mode(&engine, "yahoo.com/{default}") == "backoff");
}

#[test]
fn mail_of_a_domain_is_queued_where_queue_to_says() {
    let r = Receiver::start();
    let config = format!(
        "<domain one.test>\n queue-to both.queue\n</domain>\n<domain two.test>\n queue-to \"Both.queue\"\n max-smtp-out 9\n</domain>\n\
         <domain both.queue>\n {}\n queue-to both.queue\n max-smtp-out 1\n</domain>",
        r.hosts()
    );
    let engine = Engine::start(2, &config);
    r.script(|s| s.delay = Duration::from_millis(50));
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..10 {
        let to = [format!("a{n}@one.test"), format!("b{n}@two.test")];
        assert_eq!(c.send("s@x.test", &[&to[0], &to[1]], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("all arrive", WAIT, || r.unique() == 20);
    r.with(|s| assert_eq!(s.open_max, 1));
    let d = row(&engine, "d", "b9@two.test");
    assert!(d.contains("both.queue/{default}"), "{d}");
    // Both recipients of a message travel together.
    assert_eq!(r.with(|s| s.messages.len()), 10);
}

#[test]
fn backoff_and_sources_left_out_outlive_a_kill_and_a_move() {
    let vmta = "<virtual-mta v>\n smtp-source-host 127.0.4.1 a.test\n smtp-source-host 127.0.4.2 b.test\n</virtual-mta>\n\
                <source 127.0.0.1>\n default-virtual-mta v\n</source>";
    let rules = "backoff-to-normal-after 1h\n backoff-return-steps 0";
    let (r, engine) = with(1, "/slow/ mode=backoff\n reply /slow/ disable-source-ip,reenable-after=1h", vmta, rules);
    r.script(|s| s.rcpt_reply = Some(("451 slow", Some("127.0.4.1".parse().unwrap()))));
    for n in 0..4 {
        send(&engine, &[&format!("u{n}@d.test")]);
    }
    eventually("all arrive by the other", WAIT, || r.unique() == 4);
    assert_eq!(mode(&engine, "d.test/v"), "backoff");
    let first_is_left_out = |n: usize| {
        for i in 0..4 {
            send(&engine, &[&format!("x{n}-{i}@d.test")]);
        }
        eventually("all arrive", WAIT, || r.unique() == 4 + 4 * n);
        assert_eq!(mode(&engine, "d.test/v"), "backoff", "round {n}");
        r.with(|s| assert!(s.messages.iter().all(|m| m.hello == "b.test"), "round {n}"));
    };
    first_is_left_out(1);
    Engine::kill(engine.workers()[0]);
    engine.wait_ready();
    first_is_left_out(2);
    for n in [4, 1] {
        assert!(engine.sluice(&["scale", &n.to_string()]).status.success());
    }
    first_is_left_out(3);
    assert!(engine.sluice(&["set", "queue", "--mode=normal", "d.test/v"]).status.success());
    Engine::kill(engine.workers()[0]);
    engine.wait_ready();
    send(&engine, &["last@d.test"]);
    eventually("it arrives", WAIT, || r.unique() == 17);
    assert_ne!(mode(&engine, "d.test/v"), "backoff");
    // What an operator enabled is not undone either.
    r.script(|s| s.rcpt_reply = None);
    assert!(engine.sluice(&["enable", "source", "127.0.4.1", "d.test/v"]).status.success());
    Engine::kill(engine.workers()[0]);
    engine.wait_ready();
    let mut n = 0;
    eventually("the first is used again", WAIT, || {
        n += 1;
        send(&engine, &[&format!("y{n}@d.test")]);
        r.with(|s| s.messages.iter().any(|m| m.hello == "a.test"))
    });
}

#[test]
fn sources_disabled_by_command_are_all_of_them() {
    let (_r, engine) =
        with(1, "/none/ skip-mx", "smtp-source-host 127.0.4.1 a.test", "backoff-upon-all-sources-disabled yes");
    send(&engine, &["u@d.test"]);
    eventually("the path is there", WAIT, || !mode(&engine, "d.test/{default}").is_empty());
    let out = engine.sluice(&["disable", "source", "127.0.4.1", "d.test/{default}"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    eventually("it is in backoff", WAIT, || mode(&engine, "d.test/{default}") == "backoff");
}

#[test]
fn a_host_that_is_skipped_is_tried_again_when_it_is_the_only_one() {
    let (r, engine) = with(1, "/skip me/ skip-mx", "", "");
    r.script(|s| s.rcpt_reply = Some(("550 skip me", None)));
    send(&engine, &["u@d.test"]);
    eventually("it was tried", WAIT, || r.with(|s| s.deferred.len()) == 1);
    r.script(|s| s.rcpt_reply = None);
    eventually("it arrives", WAIT, || r.unique() == 1);
}

#[test]
fn matches_of_before_a_reload_that_changes_other_things_count() {
    let (r, engine) = with(1, "/three/ mode=backoff,after=3/1m", "<domain other.test>\n max-smtp-out 7\n</domain>", "");
    r.script(|s| s.rcpt_reply = Some(("451 three", None)));
    for n in 0..3 {
        assert_ne!(mode(&engine, "d.test/{default}"), "backoff");
        send(&engine, &[&format!("u{n}@d.test")]);
        eventually("it was refused", WAIT, || r.with(|s| s.deferred.contains_key(&format!("u{n}@d.test"))));
        engine.edit_config(&format!("max-smtp-out {}", 7 + n), &format!("max-smtp-out {}", 8 + n));
        engine.run(&["reload"]);
    }
    eventually("the path is in backoff", WAIT, || mode(&engine, "d.test/{default}") == "backoff");
}

#[test]
fn reserved_connections_do_not_stop_other_mail_in_backoff() {
    let rules = "max-smtp-out 10\n reserved-smtp-out 2\n backoff-max-smtp-out 1\n backoff-to-normal-after 1h\n \
                 backoff-return-steps 0";
    let (r, engine) = with(1, "/slow down/ mode=backoff", "", rules);
    r.script(|s| s.rcpt_reply = Some(("451 slow down", None)));
    send(&engine, &["u@d.test"]);
    eventually("the path is in backoff", WAIT, || mode(&engine, "d.test/{default}") == "backoff");
    r.script(|s| s.rcpt_reply = None);
    send(&engine, &["v@d.test"]);
    eventually("ordinary mail arrives", WAIT, || r.unique() == 2);
}
