//! Name servers that fall short: without EDNS, refusing, referring elsewhere, silent.

use std::time::Duration;

use tests::dns::{Dns, Edns, Name};
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use crate::{row, send};

/// A server that asks these name servers.
fn start(servers: &[&Dns], r: &Receiver) -> Engine {
    let servers: Vec<String> = servers.iter().map(|d| d.directive()).collect();
    let engine = Engine::start_by(
        1,
        &format!(
            "{}\n<domain *>\n default-smtp-port {}\n retry-after 1s\n</domain>",
            servers.join("\n"),
            r.address.port()
        ),
        |_| std::process::Command::new(tests::engine::binary()),
    );
    engine.edit_config("records d,b,t", "records d,b,t,tq");
    engine.run(&["reload"]);
    engine
}

/// Domains whose mail goes to the receiver.
fn tell(dns: &Dns, domains: &[&str]) {
    dns.host("mx.test", [127, 0, 0, 9]);
    domains.iter().for_each(|d| dns.mx(d, &[(10, "mx.test")]));
}

#[test]
fn name_servers_without_edns_are_asked_plainly() {
    for does in [Edns::FormErr, Edns::NotImp, Edns::BadVers, Edns::Silent] {
        let (dns, r) = (Dns::start(), Receiver::start());
        tell(&dns, &["one.test", "two.test"]);
        dns.with_edns(does);
        let engine = start(&[&dns], &r);
        send(&engine, &["u@one.test"]);
        eventually(&format!("the first arrives: {does:?}"), Duration::from_secs(20), || r.unique() == 1);
        let before = dns.asked_with_edns();
        assert!(before > 0, "EDNS is tried first");
        send(&engine, &["u@two.test"]);
        eventually(&format!("the second arrives: {does:?}"), Duration::from_secs(20), || r.unique() == 2);
        assert_eq!(dns.asked_with_edns(), before, "that it wants no EDNS is remembered: {does:?}");
    }
}

#[test]
fn a_name_that_is_slow_says_nothing_of_edns() {
    let (dns, r) = (Dns::start(), Receiver::start());
    tell(&dns, &["fine.test", "later.test"]);
    let engine = start(&[&dns], &r);
    send(&engine, &["u@fine.test"]);
    eventually("the first arrives", Duration::from_secs(10), || r.unique() == 1);
    dns.set("slow.test", Name { silent: true, ..Name::default() });
    let (before, with_edns) = (dns.mx_questions("slow.test"), dns.asked_with_edns());
    send(&engine, &["u@slow.test"]);
    eventually("it is asked plainly", Duration::from_secs(10), || {
        dns.mx_questions("slow.test") - before > dns.asked_with_edns() - with_edns
    });
    tell(&dns, &["slow.test"]);
    eventually("it arrives", Duration::from_secs(20), || r.unique() == 2);
    let before = dns.asked_with_edns();
    send(&engine, &["u@later.test"]);
    eventually("another arrives", Duration::from_secs(10), || r.unique() == 3);
    assert!(dns.asked_with_edns() > before, "the server speaks EDNS");
}

#[test]
fn what_one_name_server_does_not_say_the_next_is_asked() {
    let (odd, well, r) = (Dns::start(), Dns::start(), Receiver::start());
    let domains = ["refused.test", "fails.test", "refers.test", "silent.test"];
    odd.set(domains[0], Name { refused: true, ..Name::default() });
    odd.set(domains[1], Name { servfail: true, ..Name::default() });
    odd.set(domains[2], Name { referral: true, ..Name::default() });
    odd.set(domains[3], Name { silent: true, ..Name::default() });
    odd.set("mx.test", Name { refused: true, ..Name::default() });
    tell(&well, &domains);
    let engine = start(&[&odd, &well], &r);
    let to: Vec<String> = domains.iter().map(|d| format!("u@{d}")).collect();
    send(&engine, &to.iter().map(String::as_str).collect::<Vec<_>>());
    eventually("all arrive", Duration::from_secs(20), || r.unique() == domains.len());
    let tried = |d: &str| engine.log().lines().any(|l| l.contains(d) && l.contains("deferred"));
    for d in domains {
        assert!(!tried(d), "{d} waited: {}", engine.log());
    }
}

#[test]
fn an_answer_that_is_cut_comes_whole_by_tcp() {
    let (dns, r) = (Dns::start(), Receiver::start());
    tell(&dns, &["cut.test", "plain.test"]);
    for name in ["cut.test", "plain.test", "mx.test"] {
        dns.change(name, |n| n.cut = true);
    }
    let engine = start(&[&dns], &r);
    send(&engine, &["u@cut.test"]);
    eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
    dns.with_edns(Edns::FormErr);
    send(&engine, &["u@plain.test"]);
    eventually("without EDNS, too", Duration::from_secs(10), || r.unique() == 2);
}

#[test]
fn troubles_of_name_servers_are_said_in_their_names_and_never_final() {
    let (dns, r) = (Dns::start(), Receiver::start());
    let says = [
        ("refers.test", "refers to other name servers"),
        ("refused.test", "says REFUSED"),
        ("fails.test", "says SERVFAIL"),
        ("silent.test", "does not answer"),
    ];
    dns.set(says[0].0, Name { referral: true, ..Name::default() });
    dns.set(says[1].0, Name { refused: true, ..Name::default() });
    dns.set(says[2].0, Name { servfail: true, ..Name::default() });
    dns.set(says[3].0, Name { silent: true, ..Name::default() });
    let engine = start(&[&dns], &r);
    for (domain, _) in says {
        send(&engine, &[&format!("u@{domain}")]);
    }
    for (domain, says) in says {
        let text = format!("name server {} {says}", dns.address);
        let row = row(&engine, "tq", domain);
        assert!(row.contains(&text) && row.contains("4.4.3"), "{row}");
        let why = engine.run(&["why", domain]);
        assert!(why.contains(&text), "{why}");
        assert!(engine.log().contains(&text));
    }
    assert_eq!(engine.queued(), 4, "none bounced");
    tell(&dns, &says.map(|(domain, _)| domain));
    eventually("all arrive", Duration::from_secs(30), || r.unique() == 4);
    // Nobody is there.
    engine.edit_config(&dns.address.to_string(), "127.0.0.53:9");
    engine.run(&["reload"]);
    send(&engine, &["u@other.test"]);
    let row = row(&engine, "tq", "other.test");
    assert!(row.contains("name server 127.0.0.53:9 cannot be reached: "), "{row}");
}

#[test]
fn after_an_error_of_dns_mail_waits_by_its_own_clock() {
    let (dns, r) = (Dns::start(), Receiver::start());
    dns.set("d.test", Name { servfail: true, ..Name::default() });
    dns.set("e.test", Name { servfail: true, ..Name::default() });
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<domain *>\n default-smtp-port {}\n retry-after 1h\n backoff-retry-after 1h\n</domain>\n\
             <domain d.test>\n retry-after-dns-error 2s\n</domain>",
            dns.directive(),
            r.address.port()
        ),
    );
    send(&engine, &["u@d.test"]);
    send(&engine, &["u@e.test"]);
    eventually("DNS was asked", Duration::from_secs(20), || {
        dns.mx_questions("e.test") > 0 && dns.mx_questions("d.test") > 0
    });
    tell(&dns, &["d.test", "e.test"]);
    eventually("it arrives after the wait for DNS", Duration::from_secs(20), || r.unique() == 1);
    // By default it is a minute, where retry-after is not shorter.
    let why = engine.run(&["why", "e.test"]);
    assert!(why.contains("DNS: retry-after-dns-error 1m (default)") && why.contains("SERVFAIL"), "{why}");
}

#[test]
fn answers_by_udp_may_be_as_long_as_configured() {
    for (line, expected) in
        [("", 1232), ("edns-udp-length 2000", 2000), ("edns-udp-length 9000", 2048), ("edns-udp-length 1", 512)]
    {
        let (dns, r) = (Dns::start(), Receiver::start());
        tell(&dns, &["d.test"]);
        let engine = start(&[&dns], &r);
        engine.edit_config("<domain *>", &format!("{line}\n<domain *>"));
        engine.run(&["reload"]);
        send(&engine, &["u@d.test"]);
        eventually("it arrives", Duration::from_secs(10), || r.unique() == 1);
        assert_eq!(dns.udp_bytes(), expected, "{line}");
    }
}
