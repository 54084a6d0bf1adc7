//! Limits as receivers count them: connections, their rate, recipients, bytes; of paths, source
//! addresses, virtual MTAs, hosts and destinations.

use std::time::{Duration, Instant};

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(40);

/// Sends `n` messages to recipients of their own at each of `domains`, by `vmta` if one is named.
fn load(engine: &Engine, n: usize, domains: &[&str], vmta: &str, bytes: usize) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let header = if vmta.is_empty() { String::new() } else { format!("x-virtual-mta: {vmta}\r\n") };
    let content = format!("{header}Subject: x\r\n\r\n{}", format!("{}\r\n", "x".repeat(76)).repeat(bytes / 78));
    for i in 0..n {
        for d in domains {
            let sent = c.send("s@x.test", &[&format!("{vmta}-{i}@{d}")], &content).unwrap();
            assert_eq!(sent.0, 250, "{}", sent.1);
        }
    }
}

fn vmtas(names: &[&str]) -> String {
    let one = |(i, n): (usize, &&str)| {
        format!("<virtual-mta {n}>\n smtp-source-host 127.0.3.{} {n}.test\n#{n}\n</virtual-mta>\n", i + 1)
    };
    names.iter().enumerate().map(one).collect()
}

#[test]
fn connections_are_opened_no_faster_than_the_rate_and_the_ramp_up_say() {
    for (rules, most, per) in [
        ("max-connect-rate 4/2s", 5, Duration::from_secs(2)),
        ("smtp-out-rampup-interval 1s", 1, Duration::from_millis(950)),
    ] {
        let r = Receiver::start();
        r.script(|s| s.delay = Duration::from_millis(100));
        let engine =
            Engine::start(1, &format!("<domain *>\n {}\n {rules}\n max-msg-per-connection 2\n</domain>", r.hosts()));
        load(&engine, 12, &["one.test"], "", 10);
        eventually("all are delivered", WAIT, || r.unique() == 12);
        let opened: Vec<(Instant, usize)> = r.with(|s| s.opened.iter().map(|(t, _)| (*t, 1)).collect());
        assert!(opened.len() >= 4, "{rules}: {}", opened.len());
        Receiver::assert_window(&opened, most, per);
    }
}

#[test]
fn bytes_and_hours_are_limited_too() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n max-data-volume-rate 100K/2s\n</domain>\n<domain slow.test>\n max-msg-per-hour 3600\n \
             max-data-volume-rate unlimited\n</domain>",
            r.hosts()
        ),
    );
    load(&engine, 30, &["one.test"], "", 10_000);
    load(&engine, 4, &["slow.test"], "", 10);
    eventually("all are delivered", WAIT, || r.unique() == 34);
    let taken: Vec<(Instant, usize)> =
        r.with(|s| s.taken.iter().filter(|(_, n, _)| *n > 1000).map(|(t, n, _)| (*t, *n)).collect());
    // One message more at the window's edge.
    Receiver::assert_window(&taken, 102_400 + 11_000, Duration::from_secs(2));
    let all = taken[taken.len() - 1].0 - taken[0].0;
    assert!(all < Duration::from_millis(7000), "300 KB at 50 KB/s took {all:?}");
    assert!(all > Duration::from_millis(4000), "300 KB at 50 KB/s took only {all:?}");
}

#[test]
fn source_addresses_have_limits_of_their_own() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(50));
    let engine = Engine::start(
        1,
        &format!(
            "<virtual-mta v>\n smtp-source-host 127.0.3.1 a.test\n smtp-source-host 127.0.3.2 b.test\n</virtual-mta>\n\
             <source 127.0.0.1>\n default-virtual-mta v\n</source>\n<domain *>\n {}\n max-smtp-out 10\n \
             source-ip-max-smtp-out 127.0.3.0/24 4\n source-ip-max-smtp-out 127.0.3.2 2\n \
             source-ip-max-msg-rate 127.0.3.1 20/s\n</domain>",
            r.hosts()
        ),
    );
    load(&engine, 150, &["one.test"], "", 10);
    eventually("all are delivered", WAIT, || r.unique() == 150);
    r.with(|s| {
        let most = |ip: &str| s.open_from.get(&ip.parse().unwrap()).map_or(0, |(_, most)| *most);
        assert!((1..=4).contains(&most("127.0.3.1")) && (1..=2).contains(&most("127.0.3.2")), "{:?}", s.open_from);
        let first = "127.0.3.1".parse::<std::net::IpAddr>().unwrap();
        let of_first: Vec<(Instant, usize)> =
            s.taken.iter().filter(|(_, _, ip)| *ip == first).map(|(t, _, _)| (*t, 1)).collect();
        Receiver::assert_window(&of_first, 22, Duration::from_secs(1));
    });
}

#[test]
fn a_virtual_mta_has_limits_over_all_destinations_and_shards() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(30));
    let own = vmtas(&["v", "w"]).replace("#v", " max-smtp-out 3\n max-smtp-msg-rate 30/s");
    let engine = Engine::start(2, &format!("{own}<domain *>\n {}\n</domain>", r.hosts()));
    let domains = ["a.test", "b.test", "c.test", "d.test", "e.test", "f.test"];
    load(&engine, 20, &domains, "v", 10);
    load(&engine, 5, &domains, "w", 10);
    eventually("all are delivered", WAIT, || r.unique() == 150);
    r.with(|s| {
        let most = s.open_from[&"127.0.3.1".parse().unwrap()].1;
        assert!((2..=3).contains(&most), "{most} connections");
        let of_v: Vec<(Instant, usize)> = s
            .taken
            .iter()
            .filter(|(_, _, ip)| *ip == "127.0.3.1".parse::<std::net::IpAddr>().unwrap())
            .map(|(t, _, _)| (*t, 1))
            .collect();
        Receiver::assert_window(&of_v, 34, Duration::from_secs(1));
    });
}

#[test]
fn limits_of_a_pool_are_each_members() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(30));
    let pool = "<virtual-mta-pool p>\n virtual-mta v\n virtual-mta w\n max-smtp-out 2\n</virtual-mta-pool>\n";
    let engine = Engine::start(1, &format!("{}{pool}<domain *>\n {}\n</domain>", vmtas(&["v", "w"]), r.hosts()));
    load(&engine, 30, &["a.test", "b.test", "c.test"], "p", 10);
    eventually("all are delivered", WAIT, || r.unique() == 90);
    r.with(|s| {
        assert_eq!(s.open_from.len(), 2);
        assert!(s.open_from.values().all(|(_, most)| *most <= 2), "{:?}", s.open_from);
    });
}

#[test]
fn a_destination_has_limits_over_all_virtual_mtas() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(30));
    let rules = "destination-max-smtp-out 3\n destination-max-msg-rate 40/s";
    let config = format!("{}<domain *>\n {}\n {rules}\n</domain>", vmtas(&["u", "v", "w"]), r.hosts());
    let engine = Engine::start(2, &config);
    for v in ["u", "v", "w"] {
        load(&engine, 40, &["one.test"], v, 10);
    }
    eventually("all are delivered", WAIT, || r.unique() == 120);
    r.with(|s| assert!((2..=3).contains(&s.open_max), "{} connections", s.open_max));
    r.assert_rate(42, Duration::from_secs(1));
    // A worker that dies with connections open gives their places back.
    load(&engine, 40, &["one.test"], "u", 10);
    engine.workers().into_iter().for_each(Engine::kill);
    eventually("the rest is delivered", WAIT, || engine.queued() == 0 && r.with(|s| s.open) == 0);
}

#[test]
fn a_host_has_limits_whoever_delivers_to_it() {
    for limit in ["mx-connection-limit * 2", "ip-connection-limit 127.0.0.0/8 2"] {
        let r = Receiver::start();
        r.script(|s| s.delay = Duration::from_millis(30));
        let engine = Engine::start(2, &format!("{limit}\n<domain *>\n {}\n</domain>", r.hosts()));
        load(&engine, 15, &["a.test", "b.test", "c.test", "d.test"], "", 10);
        eventually("all are delivered", WAIT, || r.unique() == 60);
        r.with(|s| assert!(s.open_max <= 2, "{limit}: {} connections", s.open_max));
    }
}

#[test]
fn a_path_is_one_whether_mail_names_it_or_a_pool() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_millis(30));
    let pool = "<virtual-mta-pool p>\n virtual-mta v\n</virtual-mta-pool>\n";
    let config =
        format!("{}{pool}<domain *>\n {}\n max-smtp-out 2\n max-msg-rate 30/s\n</domain>", vmtas(&["v"]), r.hosts());
    let engine = Engine::start(1, &config);
    load(&engine, 30, &["one.test"], "v", 10);
    load(&engine, 30, &["one.test"], "p", 10);
    eventually("all are delivered", WAIT, || r.unique() == 60);
    r.with(|s| assert!(s.open_max <= 2, "{} connections", s.open_max));
    r.assert_rate(32, Duration::from_secs(1));
}

#[test]
fn windows_of_source_addresses_outlive_restarts_kills_and_moves() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<virtual-mta v>\n smtp-source-host 127.0.3.1 a.test\n</virtual-mta>\n<source 127.0.0.1>\n \
             default-virtual-mta v\n</source>\n<domain *>\n {}\n source-ip-max-msg-rate 0/0 60/6s\n</domain>",
            r.hosts()
        ),
    );
    load(&engine, 200, &["one.test"], "", 10);
    for n in 0..3 {
        std::thread::sleep(Duration::from_millis(1500));
        match n {
            0 => assert!(engine.sluice(&["shard", "restart", "0"]).status.success()),
            1 => assert!(engine.sluice(&["scale", "3"]).status.success()),
            _ => engine.workers().into_iter().for_each(Engine::kill),
        }
    }
    engine.wait_ready();
    eventually("all are delivered", WAIT, || r.unique() == 200);
    r.assert_rate(61, Duration::from_secs(6));
}

#[test]
fn rates_over_all_shards_outlive_the_whole_server() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        2,
        &format!(
            "<virtual-mta v>\n max-smtp-msg-rate 1/h\n</virtual-mta>\n<source 127.0.0.1>\n always-allow-relaying yes\n \
             process-x-virtual-mta yes\n</source>\n<domain *>\n {}\n</domain>\n<domain one.test>\n destination-max-msg-rate 1/h\n</domain>\n\
             <domain two.test>\n spread 2\n max-msg-rate 1/h\n</domain>",
            r.hosts()
        ),
    );
    load(&engine, 3, &["one.test", "two.test"], "", 10);
    load(&engine, 3, &["a.test", "b.test", "c.test"], "v", 10);
    eventually("what the rates allow goes", WAIT, || r.unique() == 3);
    // They are written every second.
    std::thread::sleep(Duration::from_millis(1500));
    engine.kill_all();
    engine.start_again();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(r.unique(), 3, "after a kill");
    assert!(engine.stop());
    engine.start_again();
    load(&engine, 1, &["free.test"], "", 10);
    eventually("others go", WAIT, || r.unique() == 4);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((r.unique(), engine.queued()), (4, 12), "after a stop");
    // One that is raised counts from now on.
    engine.edit_config("max-smtp-msg-rate 1/h", "max-smtp-msg-rate 36000/h");
    assert!(engine.sluice(&["reload"]).status.success());
    eventually("what the virtual MTA may send goes", WAIT, || r.unique() == 12);
    assert!(engine.stop());
    engine.edit_config("destination-max-msg-rate 1/h", "destination-max-msg-rate 36000/h");
    engine.start_again();
    eventually("what the destination may get goes", WAIT, || r.unique() == 14);
}

#[test]
fn a_limit_that_thousands_wait_for_is_used_to_the_full() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!("total-max-smtp-out 20\n<domain *>\n {}\n connection-idle-timeout 0s\n</domain>", r.hosts()),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    for i in 0..4000 {
        assert_eq!(c.send("", &[&format!("u@d{i}.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("all are delivered", WAIT, || r.unique() == 4000);
    assert!(r.with(|s| s.open_max) <= 20);
}

#[test]
fn limits_over_several_paths_are_used_by_connections_that_are_short() {
    for (global, rules) in [
        ("", "destination-max-smtp-out 10"),
        ("", "source-ip-max-smtp-out 0/0 10"),
        ("", "max-smtp-out 10\n spread 2"),
        ("ip-connection-limit 127.0.0.0/8 10\n", ""),
        ("total-max-smtp-out 10\n", ""),
    ] {
        let r = Receiver::start();
        r.script(|s| s.delay = Duration::from_millis(100));
        let config = format!(
            "{global}{}<domain *>\n {}\n max-msg-per-connection 1\n {rules}\n</domain>",
            vmtas(&["v"]),
            r.hosts()
        );
        let engine = Engine::start(2, &config);
        load(&engine, 200, &["d.test"], "v", 100);
        eventually("all arrive", WAIT, || r.unique() == 200);
        let (open_max, opened) = r.with(|s| (s.open_max, s.opened.clone()));
        assert!(open_max <= 11, "{rules}: {open_max} at once");
        // Ten at a time, each of 100 ms and a little, are never ten on a busy machine; waiting for each place
        // that was given back they were less than two.
        let half = &opened[opened.len() / 2..];
        let took = half[half.len() - 1].0 - half[0].0;
        let at_once = half.len() as f64 * 0.1 / took.as_secs_f64();
        assert!(at_once > 3.0, "{global}{rules}: {at_once:.1} of 10 places were used");
    }
}

#[test]
fn who_ends_connections_soon_has_its_part_beside_who_keeps_them() {
    let (long, short) = (Receiver::start(), Receiver::start());
    [&long, &short].into_iter().for_each(|r| r.script(|s| s.delay = Duration::from_millis(200)));
    let config = format!(
        "total-max-smtp-out 8\n<domain long.test>\n {}\n</domain>\n<domain short.test>\n {}\n max-msg-per-connection 1\n</domain>",
        long.hosts(),
        short.hosts()
    );
    let engine = Engine::start(1, &config);
    load(&engine, 500, &["long.test", "short.test"], "", 100);
    std::thread::sleep(Duration::from_secs(4));
    let before = (long.unique(), short.unique());
    std::thread::sleep(Duration::from_secs(4));
    let (of_long, of_short) = (long.unique() - before.0, short.unique() - before.1);
    assert!(of_short * 3 >= of_long, "{of_short} of the short, {of_long} of the long connections");
}

#[test]
fn who_another_limit_holds_up_keeps_nobody_from_a_place() {
    let (held, free) = (Receiver::start(), Receiver::start());
    [&held, &free].into_iter().for_each(|r| r.script(|s| s.delay = Duration::from_millis(100)));
    let config = format!(
        "total-max-smtp-out 12\n<domain held.test>\n {}\n destination-max-smtp-out 1\n</domain>\n<domain free.test>\n {}\n \
         max-msg-per-connection 1\n</domain>",
        held.hosts(),
        free.hosts()
    );
    let engine = Engine::start(1, &config);
    load(&engine, 300, &["held.test", "free.test"], "", 100);
    eventually("the free one has all", Duration::from_secs(20), || free.unique() == 300);
    let opened = free.with(|s| s.opened.clone());
    let half = &opened[opened.len() / 2..];
    let at_once = half.len() as f64 * 0.1 / (half[half.len() - 1].0 - half[0].0).as_secs_f64();
    assert!(at_once > 3.0, "{at_once:.1} of 11 places were used");
    assert!(held.with(|s| s.open_max) <= 2);
}

#[test]
fn long_windows_let_no_burst_go() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n max-msg-rate 5000/d\n</domain>", r.hosts()));
    load(&engine, 20, &["d.test"], "", 100);
    eventually("the first arrives", WAIT, || r.unique() >= 1);
    std::thread::sleep(Duration::from_secs(3));
    assert!(r.unique() <= 2, "{} at once", r.unique());
}

#[test]
fn a_message_of_as_many_recipients_as_the_rate_is_one_transaction() {
    let many: Vec<String> = (0..100).map(|i| format!("r{i}")).collect();
    for rules in ["max-msg-rate 100/3s", "destination-max-msg-rate 100/3s"] {
        let r = Receiver::start();
        let engine = Engine::start(
            1,
            &format!("<domain *>\n {}\n max-rcpt-per-transaction 1000\n {rules}\n</domain>", r.hosts()),
        );
        let mut c = Client::connect(engine.smtp).unwrap();
        for _ in 0..3 {
            let to: Vec<String> = many.iter().map(|l| format!("{l}@one.test")).collect();
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            assert_eq!(c.send("s@x.test", &to, "Subject: x\r\n\r\nx\r\n").unwrap().0, 250);
        }
        eventually("all are delivered", WAIT, || r.with(|s| s.taken.len()) >= 3);
        let mut times: Vec<(Instant, usize)> = r.with(|s| s.taken.iter().map(|(t, ..)| (*t, 1)).collect());
        times.sort_unstable();
        assert_eq!(times.len(), 3, "{rules}");
        Receiver::assert_window(&times, 1, Duration::from_millis(2850));
    }
}
