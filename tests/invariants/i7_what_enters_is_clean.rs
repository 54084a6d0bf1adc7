//! I7: text of strangers is bounded, and harmless to whoever reads it.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

/// Moves a terminal's cursor, rings its bell, ends its string, turns the writing round.
const UNFIT: &str = "a\u{1b}[2Jb\u{7}c\u{9b}d\u{202e}e\u{2066}f";

fn assert_fit(what: &str, text: &str) {
    let bad = |c: char| {
        (c.is_control() && !"\r\n\t".contains(c)) || ('\u{2028}'..='\u{202e}').contains(&c) || c == '\u{2066}'
    };
    assert!(!text.contains(bad), "{what}: {:?}", text.chars().filter(|c| bad(*c)).take(9).collect::<String>());
}

#[test]
fn in_accounting_listings_and_logs() {
    let receiver = Receiver::start();
    let keywords: Vec<String> =
        (0..60).map(|n| format!("X{UNFIT}{n} {UNFIT}")).chain((0..300).map(|n| format!("XK{n:020}"))).collect();
    let keywords: Vec<&'static str> = keywords.into_iter().map(|k| &*k.leak()).chain(["8BITMIME"]).collect();
    let refusal: &'static str = format!("450 4.2.0 {UNFIT}").leak();
    receiver.script(|s| {
        s.extensions = keywords;
        s.rcpt_reply = Some((refusal, None));
    });
    let engine = Engine::start(
        1,
        &format!(
            "<source 127.0.0.1>\n reject-invalid-virtual-mta no\n</source>\n<domain *>\n {}\n</domain>\n<acct-file acct/more.csv>\n records r,t\n record-fields r *,header_Subject\n \
             record-fields t *,header_Subject\n</acct-file>",
            receiver.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    let subject = format!("Subject: {UNFIT}\r\n");
    assert_eq!(c.send("s@x.test", &["u@d.test"], &format!("{subject}\r\nx")).unwrap().0, 250);
    // A name of a megabyte that nothing has, and with everything in it.
    let name = format!("{UNFIT}{}", " \r\n v".repeat(200_000));
    for n in 0..20 {
        let vmta = format!("X-Virtual-MTA: {n}{name}\r\n{subject}\r\nx");
        assert_eq!(c.send("s@x.test", &[&format!("u{n}@e{n}.test")], &vmta).unwrap().0, 250);
    }
    let (code, text) = c.command(&format!("MAIL FROM:<s@x.test> {UNFIT}")).unwrap();
    assert_eq!(code / 100, 5);
    assert_fit("a reply", &text);
    eventually("the refusal is accounted", Duration::from_secs(15), || {
        accounting::lines(engine.path()).iter().any(|l| l.starts_with("t,") && l.contains("u@d.test"))
    });
    for of in [
        &["show", "queues"][..],
        &["show", "paths"],
        &["show", "queues", "--json"],
        &["why", "d.test"],
        &["why", "x.test"],
    ] {
        let said = engine.run(of);
        assert_fit(of[0], &said);
        assert!(said.len() < 40_000, "{of:?} prints {} bytes", said.len());
    }
    assert_fit("the log", &engine.log());
    for file in std::fs::read_dir(engine.path().join("acct")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert_fit("accounting", &text);
        assert!(text.lines().all(|l| l.len() < 8000), "a row of {:?} bytes", text.lines().map(str::len).max());
    }
}
