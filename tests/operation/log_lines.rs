//! What happens to the server and what it refuses leaves one line each in the log, and nobody can fill it.

use std::net::IpAddr;
use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(20);

fn lines(engine: &Engine, of: &str) -> Vec<String> {
    engine.log().lines().filter(|l| l.contains(of)).map(str::to_owned).collect()
}

/// The number that a line has in a field.
fn field(line: &str, name: &str) -> u64 {
    let behind = line.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("{line}")).1;
    behind.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn mail_that_is_refused_leaves_a_line_and_a_flood_of_it_a_few_and_a_count() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        1,
        &format!(
            "<source 127.0.0.1>\n max-message-size 20000\n</source>\n<source 127.0.8.0/24>\n max-message-size 2000\n</source>\n<domain *>\n {}\n</domain>",
            r.hosts()
        ),
    );
    let dial = |n: u8| {
        let mut c = Client::dial_from(IpAddr::from([127, 0, 8, n]), engine.smtp).unwrap();
        assert_eq!(c.reply().unwrap().0, 220);
        c.command("EHLO client.test").unwrap();
        c
    };
    // One refusal, with all that follows from it.
    let mut c = dial(1);
    assert_eq!(c.command("MAIL FROM:<s@x.test> SIZE=9999").unwrap().0, 552);
    assert_eq!(c.command("RCPT TO:<u@d.test>").unwrap().0, 503);
    assert_eq!(c.command("DATA").unwrap().0, 503);
    eventually("it is told", WAIT, || !lines(&engine, "mail refused").is_empty());
    let all = lines(&engine, "mail refused");
    assert!(all.len() == 1 && all[0].contains("client=127.0.8.1") && all[0].contains("command=\"MAIL\""), "{all:?}");
    assert!(all[0].contains("552 5.3.4") && all[0].contains("(max-message-size)"), "{all:?}");
    // A flood.
    c = dial(2);
    for n in 0..1000 {
        if n % 50 == 0 {
            c = dial(2);
            assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 250);
        }
        let (code, text) = c.command(&format!("RCPT TO:<u{n}@d.test>")).unwrap();
        assert!(matches!(code, 550 | 421), "{code} {text}");
    }
    // Another client has lines of its own.
    c = dial(3);
    c.command("MAIL FROM:<s@x.test>").unwrap();
    assert_eq!(c.command("RCPT TO:<u@d.test>").unwrap().0, 550);
    eventually("it is told", WAIT, || !lines(&engine, "client=127.0.8.3").is_empty());
    let flood = lines(&engine, "client=127.0.8.2");
    assert!((1..=5).contains(&flood.len()) && flood[0].contains("(always-allow-relaying)"), "{flood:?}");
    assert_eq!(lines(&engine, "client=127.0.8.3").len(), 1);
    // Content that is refused is not repeated.
    c = Client::connect(engine.smtp).unwrap();
    let content = format!("Subject: hush\r\n\r\n{}", "topsecret\r\n".repeat(3000));
    let (code, _) = c.send("s@x.test", &["u@d.test"], &content).unwrap();
    assert_eq!(code, 552);
    eventually("it is told", WAIT, || !lines(&engine, "command=\"content\"").is_empty());
    assert_eq!(lines(&engine, "command=\"content\"").len(), 1);
    assert!(!engine.log().contains("topsecret") && !engine.log().contains("hush"));
    drop(c);
    assert!(engine.stop());
    let left_out: Vec<String> = lines(&engine, "left out of the log");
    let of_flood: Vec<&String> = left_out.iter().filter(|l| l.contains("127.0.8.2")).collect();
    assert!(of_flood.len() == 1 && field(of_flood[0], "left_out") >= 900, "{left_out:?}");
}

#[test]
fn replies_and_lost_connections_of_one_path_do_not_fill_the_log() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n smtp-pattern-list l\n retry-recipients-after 1h\n</domain>\n<smtp-pattern-list l>\n reply /noise/ \
             mode=normal\n</smtp-pattern-list>",
            r.hosts()
        ),
    );
    r.script(|s| s.rcpt_reply = Some(("451 4.3.0 noise", None)));
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..200 {
        assert_eq!(c.send("s@x.test", &[&format!("u{n}@d.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("all were tried", WAIT, || r.with(|s| s.deferred.len()) == 200);
    let told = lines(&engine, "reply matches a rule");
    assert!((1..=5).contains(&told.len()), "{}", told.len());
    assert!(engine.stop());
    let left_out = lines(&engine, "left out of the log");
    assert!(left_out.len() == 1 && field(&left_out[0], "left_out") == 195, "{left_out:?}");
    assert!(left_out[0].contains("reply matches a rule") && left_out[0].contains("d.test"), "{left_out:?}");
}

#[test]
fn reloads_starts_and_adoptions_leave_one_line_each() {
    let r = Receiver::start();
    let mut engine = Engine::start(2, &format!("<domain *>\n {}\n max-smtp-out 5\n</domain>", r.hosts()));
    let ready = lines(&engine, " ready ");
    assert!(ready.len() == 1 && ready[0].contains("version=") && ready[0].contains("sluice.conf"), "{ready:?}");
    engine.edit_config("max-smtp-out 5", "max-smtp-out 7");
    engine.run(&["reload"]);
    let done = lines(&engine, "configuration reloaded");
    assert!(done.len() == 1 && done[0].contains("max-smtp-out 5 → 7"), "{done:?}");
    engine.edit_config("max-smtp-out 7", "max-smtp-out seven\n max-smpt-out 7\n http-api-key k topsecret");
    assert!(!engine.sluice(&["reload"]).status.success());
    let refused = lines(&engine, "reload refused");
    let place = format!("{}:", engine.path().join("sluice.conf").display());
    assert!(refused.len() == 1 && refused[0].contains(&place) && refused[0].contains("more errors"), "{refused:?}");
    assert!(!engine.log().contains("topsecret"));
    // The same by a signal, and what cannot be read.
    let signal =
        || nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine.pid()), nix::sys::signal::Signal::SIGHUP).unwrap();
    signal();
    eventually("it is told", WAIT, || lines(&engine, "reload refused").len() == 2);
    engine.edit_config("max-smtp-out seven\n max-smpt-out 7\n http-api-key k topsecret", "max-smtp-out 9");
    signal();
    eventually("it is told", WAIT, || lines(&engine, "configuration reloaded").len() == 2);
    // Workers that another supervisor takes over.
    engine.kill_supervisor();
    engine.start_again();
    eventually("both are adopted", WAIT, || lines(&engine, "worker adopted").len() == 2);
    assert_eq!(lines(&engine, "adopted by").len() + lines(&engine, "waiting for it to come back").len(), 0);
    // A spool without a worker.
    assert!(engine.stop());
    engine.edit_config("workers 2", "workers 1");
    engine.start_again();
    eventually("the shard is gone", WAIT, || lines(&engine, "the shard is gone: the others have its mail").len() == 1);
    assert_eq!(lines(&engine, "spools of more shards than there are workers now").len(), 1);
    assert!(engine.log().lines().filter(|l| l.contains(" ready ")).count() == 3);
}
