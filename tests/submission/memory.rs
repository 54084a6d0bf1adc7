//! How much of what is being received is in memory.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;

use crate::start;

fn receiving_kb(engine: &Engine) -> u64 {
    engine.json(&["status", "--json"])["data"]["status"]["conn"]["smtpIn"]["kb"].as_u64().unwrap()
}

/// Begins a message and sends so many bytes of it.
fn begun(engine: &Engine, bytes: usize) -> Client {
    let mut c = Client::connect(engine.smtp).unwrap();
    c.command("MAIL FROM:<s@x.test>").unwrap();
    c.command("RCPT TO:<u@d.test>").unwrap();
    assert_eq!(c.command("DATA").unwrap().0, 354);
    c.raw(b"Subject: x\r\n\r\n").unwrap();
    let line = format!("{}\r\n", "x".repeat(1022));
    c.raw(line.repeat(bytes / 1024).as_bytes()).unwrap();
    c
}

#[test]
fn of_all_sessions_together_has_a_budget() {
    let (_r, engine) = start("total-max-smtp-in-size 8M");
    let mut held: Vec<Client> = (0..12).map(|_| begun(&engine, 3 << 20)).collect();
    eventually("it is counted", Duration::from_secs(10), || receiving_kb(&engine) > 1024);
    assert!(receiving_kb(&engine) <= 8 << 10, "{}", receiving_kb(&engine));
    // Small mail gets in, whoever sends it, and large mail is told to come later, by its size or by its content.
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    let (code, text) = c.command("MAIL FROM:<s@x.test> SIZE=6000000").unwrap();
    assert!(code == 452 && text.starts_with("452 4.3.1"), "{text}");
    let (code, text) = c.command("MAIL FROM:<s@x.test> SIZE=8000000").unwrap();
    assert!(code == 552 && text.contains("total-max-smtp-in-size"), "{text}");
    let replies: Vec<u16> = held.iter_mut().map(|c| c.command("\r\n.").unwrap().0).collect();
    let taken = replies.iter().filter(|c| **c == 250).count();
    assert!(taken >= 1 && replies.iter().all(|c| matches!(c, 250 | 452)) && taken < replies.len(), "{replies:?}");
    eventually("nothing is held", Duration::from_secs(10), || receiving_kb(&engine) == 0);
    // A client that was refused tries again.
    assert_eq!(begun(&engine, 6 << 20).command("\r\n.").unwrap().0, 250);
}

#[test]
fn recipients_and_chunks_count_as_well() {
    let (_r, engine) = start("total-max-smtp-in-size 1M");
    let mut c = Client::connect(engine.smtp).unwrap();
    c.command("MAIL FROM:<s@x.test>").unwrap();
    let long = "u".repeat(900);
    let refused = (0..2000).find_map(|n| {
        let (code, text) = c.command(&format!("RCPT TO:<{n}{long}@d.test>")).unwrap();
        (code != 250).then_some(text)
    });
    assert!(refused.as_ref().is_some_and(|t| t.starts_with("452 4.3.1")), "{refused:?}");
    assert!(receiving_kb(&engine) > 512);
    c.command("RSET").unwrap();
    c.command("MAIL FROM:<s@x.test>").unwrap();
    c.command("RCPT TO:<u@d.test>").unwrap();
    c.raw(format!("BDAT 600000\r\n{}", "x\r\n".repeat(200_000)).as_bytes()).unwrap();
    assert_eq!(c.reply().unwrap().0, 250);
    assert_eq!(c.command("BDAT 500000").unwrap().0, 452);
    drop(c);
    eventually("a session that is gone holds nothing", Duration::from_secs(10), || receiving_kb(&engine) == 0);
}

#[test]
fn a_server_that_has_too_much_of_the_machines_memory_sends_mail_away() {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total_kb: usize = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    let percent = total_kb * 10;
    if percent > 1 << 30 {
        println!("skipped: a hundredth of this machine's memory is more than a test should take");
        return;
    }
    let (r, engine) = start("total-max-smtp-in-size 8G\nmax-memory-usage-percent 1");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    let large = begun(&engine, percent + (32 << 20));
    let mut said = String::new();
    eventually("clients are sent away", Duration::from_secs(20), || {
        let (code, text) = Client::connect(engine.smtp).unwrap().command("MAIL FROM:<s@x.test>").unwrap();
        said = text;
        code == 452
    });
    assert!(said.starts_with("452 4.3.2 ") && said.contains("max-memory-usage-percent"), "{said}");
    assert!(engine.log().contains("max-memory-usage-percent 1 "));
    // With the end of what needs it all goes on.
    drop(large);
    eventually("mail is taken again", Duration::from_secs(20), || {
        Client::connect(engine.smtp).unwrap().command("MAIL FROM:<s@x.test>").unwrap().0 == 250
    });
    eventually("all arrives", Duration::from_secs(60), || r.unique() == 1);
}
