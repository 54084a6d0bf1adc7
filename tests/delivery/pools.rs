//! A pool's mail waits in one queue, and its members pull: by weight, by what receivers say,
//! and without waiting for one that cannot.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

const WAIT: Duration = Duration::from_secs(40);

fn ip(n: u8) -> IpAddr {
    IpAddr::from([127, 0, 5, n])
}

/// A server with a pool of virtual MTAs at 127.0.5.1 and up, of these weights.
fn start(weights: &[u32], domain: &str) -> (Receiver, Engine) {
    let r = Receiver::start();
    let (mut vmtas, mut members) = (String::new(), String::new());
    for (i, w) in weights.iter().enumerate() {
        let n = i + 1;
        vmtas.push_str(&format!("<virtual-mta v{n}>\n smtp-source-host 127.0.5.{n} v{n}.test\n</virtual-mta>\n"));
        members.push_str(&format!(" virtual-mta v{n} weight={w}\n"));
    }
    let config = format!(
        "{vmtas}<virtual-mta-pool p>\n{members}</virtual-mta-pool>\n<source 127.0.0.1>\n default-virtual-mta p\n</source>\n\
         <domain *>\n {}\n{domain}\n</domain>",
        r.hosts()
    );
    (r, Engine::start(1, &config))
}

fn load(engine: &Engine, from: usize, n: usize) {
    let mut c = Client::connect(engine.smtp).unwrap();
    for i in from..from + n {
        let sent = c.send("s@x.test", &[&format!("u{i}@d.test")], "Subject: x\r\n\r\nx").unwrap();
        assert_eq!(sent.0, 250, "{}", sent.1);
    }
}

/// Messages taken from each address since a time.
fn by_source(r: &Receiver, since: Instant) -> Vec<usize> {
    r.with(|s| (1..=4).map(|n| s.taken.iter().filter(|(t, _, from)| *t >= since && *from == ip(n)).count()).collect())
}

#[test]
fn members_share_by_weight_under_load_and_message_by_message() {
    let (r, engine) = start(&[3, 1], "max-smtp-out 2");
    r.script(|s| s.delay = Duration::from_millis(5));
    let began = Instant::now();
    load(&engine, 0, 400);
    eventually("all arrive", WAIT, || r.unique() == 400);
    let got = by_source(&r, began);
    assert!((240..=340).contains(&got[0]), "under load {got:?}");
    let began = Instant::now();
    for n in 0..24 {
        load(&engine, 1000 + n, 1);
        eventually("it arrives", WAIT, || r.unique() == 401 + n);
    }
    let got = by_source(&r, began);
    assert!((15..=21).contains(&got[0]), "one by one {got:?}");
}

#[test]
fn a_member_that_is_deferred_loses_its_share_within_seconds_and_returns_in_steps() {
    let rules = "max-smtp-out 2\n retry-recipients-after 2s\n pool-probe-interval 2s";
    let (r, engine) = start(&[1, 1, 1], rules);
    r.script(|s| {
        s.rcpt_reply = Some(("451 4.7.1 reputation", Some(ip(1))));
        s.delay = Duration::from_millis(10);
    });
    load(&engine, 0, 300);
    eventually("it all arrives by the others", WAIT, || r.unique() == 300);
    let began = Instant::now();
    // Attempts by the one that is ill, from the fourth second on.
    let before = r.with(|s| s.deferred.values().sum::<u32>());
    load(&engine, 1000, 300);
    eventually("it all arrives by the others", WAIT, || r.unique() == 600);
    let probes = r.with(|s| s.deferred.values().sum::<u32>()) - before;
    assert!(probes <= 15, "{probes} of 300 were tried through the one that is deferred");
    assert_eq!(by_source(&r, began)[0], 0);
    r.script(|s| s.rcpt_reply = None);
    let rows = engine.json(&["show", "paths", "--json"]);
    let health = |n: usize| {
        let name = format!("d.test/v{n}");
        rows.as_array().unwrap().iter().find(|p| p["path"] == name.as_str()).unwrap()["health"].as_f64().unwrap()
    };
    assert!(health(1) < 0.25 && health(2) > 0.9, "{rows}");
    // Its probes succeed, and it is a member like the others again.
    let mut n = 2000;
    eventually("it has its share again", WAIT, || {
        let began = Instant::now();
        load(&engine, n, 60);
        n += 60;
        let all = 600 + n - 2000;
        eventually("they arrive", WAIT, || r.unique() == all);
        by_source(&r, began)[0] >= 12
    });
}

#[test]
fn mail_does_not_wait_behind_a_member_that_cannot_connect() {
    let (r, engine) = start(&[1, 1], "retry-after 1h\n max-smtp-out 1");
    r.script(|s| s.rcpt_reply = Some(("421 4.7.0 go away", Some(ip(2)))));
    load(&engine, 0, 100);
    eventually("nearly all arrive by the other", WAIT, || r.unique() >= 94);
    assert_eq!(by_source(&r, Instant::now() - Duration::from_secs(60))[1], 0);
    // The path as a whole may fail: the mail was not tried and goes by the other at once.
    let (r, engine) = start(&[1, 1], "retry-after 1h\n smtp-greeting-timeout 1s");
    r.script(|s| s.hang_from = Some(ip(2)));
    load(&engine, 0, 100);
    eventually("all arrive by the other", WAIT, || r.unique() == 100);
}

#[test]
fn a_greeting_that_refuses_makes_the_members_rest_and_loses_no_mail() {
    let (r, engine) = start(&[1, 1], "retry-after 3s");
    r.script(|s| s.greeting = "554 5.7.1 blocked");
    load(&engine, 0, 5);
    std::thread::sleep(Duration::from_secs(2));
    let connections = r.with(|s| s.connections);
    assert!((2..=4).contains(&connections), "{connections} connections in 2 s");
    assert_eq!(engine.queued(), 5);
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("all arrive", WAIT, || r.unique() == 5);
}

#[test]
fn a_rate_over_all_shards_that_asks_to_wait_opens_no_connections_meanwhile() {
    let (r, engine) = start(&[1], "destination-max-msg-rate 6/m");
    load(&engine, 0, 3);
    eventually("the first goes", WAIT, || r.unique() == 1);
    std::thread::sleep(Duration::from_secs(4));
    let connections = r.with(|s| s.connections);
    assert!(connections <= 2, "{connections} connections for one message");
}

#[test]
fn without_adaptation_weights_alone_count() {
    let (r, engine) = start(&[1, 1], "pool-adaptive no\n max-smtp-out 2\n retry-recipients-after 1h");
    r.script(|s| {
        s.rcpt_reply = Some(("451 4.7.1 reputation", Some(ip(1))));
        s.delay = Duration::from_millis(5);
    });
    load(&engine, 0, 100);
    eventually("half of it is deferred", WAIT, || {
        let deferred = r.with(|s| s.deferred.len());
        deferred + r.unique() == 100 && (30..=70).contains(&deferred)
    });
}

#[test]
fn mail_that_chose_no_virtual_mta_goes_by_the_pool_of_its_destination() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<virtual-mta a>\n smtp-source-host 127.0.5.1 a.mta.test\n</virtual-mta>\n\
             <virtual-mta b>\n smtp-source-host 127.0.5.2 b.mta.test\n</virtual-mta>\n\
             <virtual-mta-pool p>\n virtual-mta a\n</virtual-mta-pool>\n\
             <domain *>\n {}\n</domain>\n<domain d.test>\n virtual-mta-pool P\n</domain>\n\
             <domain e.test>\n virtual-mta-pool b\n</domain>\n\
             <source 127.0.0.2>\n always-allow-relaying yes\n default-virtual-mta b\n</source>",
            r.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    c.send("s@x.test", &["u@d.test", "u@e.test", "u@f.test"], "Subject: x\r\n\r\nx").unwrap();
    c.send("s@x.test", &["v@d.test"], "X-Virtual-MTA: b\r\nSubject: x\r\n\r\nx").unwrap();
    let mut c = Client::dial_from([127, 0, 0, 2].into(), engine.smtp).unwrap();
    c.reply().unwrap();
    c.command("EHLO c").unwrap();
    c.send("s@x.test", &["w@d.test"], "Subject: x\r\n\r\nx").unwrap();
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 5);
    let by = |to: &str| r.message_to(to).unwrap().hello;
    for (to, name) in
        [("u@d.test", "a.mta.test"), ("u@e.test", "b.mta.test"), ("v@d.test", "b.mta.test"), ("w@d.test", "b.mta.test")]
    {
        assert!(by(to).contains(name), "{to}: {}", by(to));
    }
    assert_eq!(by("u@f.test"), "mta.test");
}

#[test]
fn what_is_said_of_mailboxes_and_greylisting_costs_no_member_its_share() {
    let (r, engine) = start(&[1, 1], "retry-recipients-after 1h\n retry-after 1h\n max-smtp-out 1");
    let health = |domain: &str| {
        let rows = engine.json(&["show", "paths", "--json"]);
        let of = rows.as_array().unwrap().iter().filter(|p| p["destination"] == domain);
        let all: Vec<f64> = of.filter_map(|p| p["health"].as_f64()).collect();
        assert!(!all.is_empty(), "{rows}");
        all.into_iter().fold(1.0, f64::min)
    };
    let send = |to: &[&str]| {
        let mut c = Client::connect(engine.smtp).unwrap();
        let (code, text) = c.send("s@x.test", to, "Subject: x\r\n\r\nx").unwrap();
        assert_eq!(code, 250, "{text}");
    };
    let tried = |to: &str| {
        let said = || accounting::lines(engine.path()).iter().any(|l| l.contains(to));
        eventually(&format!("{to} is tried"), WAIT, said);
    };
    let harmless = [
        "451 4.7.1 Greylisted, please try again in 300 seconds",
        "451 Internal resource temporarily unavailable",
        "452 4.2.2 The recipient's inbox is out of storage space",
        "450 4.2.1 The user you are trying to contact is receiving mail too quickly",
        "421 4.7.1 Greylisting in action, please try again",
        "550 5.7.1 <u@d.test>: Recipient address rejected: Not in recipient list",
    ];
    for (n, reply) in harmless.into_iter().enumerate() {
        r.script(|s| s.rcpt_reply = Some((reply, None)));
        let domain = format!("r{n}.test");
        for i in 0..3 {
            let to = format!("u{i}@{domain}");
            send(&[&to]);
            tried(&to);
        }
        assert_eq!(health(&domain), 1.0, "{reply}");
    }
    r.script(|s| s.rcpt_reply = None);
    // In answer to MAIL, and to the content of a message for several.
    r.script(|s| s.mail_reply = Some(harmless[0]));
    send(&["u@m.test"]);
    tried("u@m.test");
    r.script(|s| (s.mail_reply, s.content_reply) = (None, Some(harmless[0])));
    send(&["u@c.test", "v@c.test"]);
    tried("v@c.test");
    r.script(|s| (s.content_reply, s.greeting) = (None, harmless[4]));
    send(&["u@g.test"]);
    eventually("it waits", WAIT, || engine.run(&["why", "g.test"]).contains("Greylisting"));
    for domain in ["m.test", "c.test", "g.test"] {
        assert_eq!(health(domain), 1.0, "{domain}");
    }
    // What is said of the sender counts.
    r.script(|s| (s.greeting, s.rcpt_reply) = ("220 x", Some(("451 4.7.650 rate limited due to IP reputation", None))));
    send(&["u@ill.test"]);
    tried("u@ill.test");
    assert!(health("ill.test") < 1.0);
}
