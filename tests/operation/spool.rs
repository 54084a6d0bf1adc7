//! The spool's files, from outside.

use std::path::PathBuf;
use std::time::Duration;

use tests::client::Client;
use tests::engine::{Engine, binary};
use tests::eventually;
use tests::receiver::Receiver;

use crate::send;

fn folder(engine: &Engine) -> PathBuf {
    engine.path().join("spool/shard-00")
}

fn start(r: &Receiver) -> Engine {
    Engine::start(1, &format!("<domain *>\n {}\n retry-after 1s\n retry-recipients-after 2s\n</domain>", r.hosts()))
}

#[test]
fn an_index_deleted_by_hand_is_rebuilt() {
    let r = Receiver::start();
    let mut engine = start(&r);
    send(&engine, 100, "later-", "d.test");
    send(&engine, 100, "u", "e.test");
    eventually("all were tried", Duration::from_secs(20), || r.unique() == 100 && r.with(|s| s.deferred.len() == 100));
    assert!(engine.stop());
    std::fs::remove_dir_all(folder(&engine).join("index")).unwrap();
    engine.start_again();
    assert_eq!(engine.queued(), 100, "what was deferred is there, what was delivered is not");
    r.with(|s| s.deferred.clear());
    eventually("all are tried again", Duration::from_secs(20), || r.with(|s| s.deferred.len() == 100));
    assert_eq!((r.unique(), r.duplicates()), (100, 0));
}

#[test]
fn a_damaged_index_is_rebuilt() {
    let r = Receiver::start();
    let mut engine = start(&r);
    send(&engine, 50, "later-", "d.test");
    eventually("all were tried", Duration::from_secs(20), || r.with(|s| s.deferred.len() == 50));
    assert!(engine.stop());
    for f in std::fs::read_dir(folder(&engine).join("index")).unwrap().flatten() {
        if f.metadata().unwrap().is_file() {
            let len = f.metadata().unwrap().len() as usize;
            std::fs::write(f.path(), vec![0xA5; len]).unwrap();
        }
    }
    engine.start_again();
    assert_eq!(engine.queued(), 50);
}

#[test]
fn damaged_log_bytes_go_to_quarantine_and_the_rest_is_delivered() {
    let r = Receiver::start();
    r.script(|s| s.greeting = "421 later");
    let mut engine = start(&r);
    send(&engine, 40, "u", "d.test");
    engine.kill_all();
    let log = folder(&engine).join("log");
    let mut segments: Vec<PathBuf> = std::fs::read_dir(log).unwrap().flatten().map(|f| f.path()).collect();
    segments.sort();
    let mut bytes = std::fs::read(&segments[0]).unwrap();
    let used = bytes.iter().rposition(|b| *b != 0).unwrap();
    bytes[used / 2..used / 2 + 50].fill(0xFF);
    std::fs::write(&segments[0], bytes).unwrap();
    std::fs::remove_dir_all(folder(&engine).join("index")).unwrap();
    engine.start_again();
    let queued = engine.queued();
    assert!((37..40).contains(&queued), "{queued}");
    assert!(folder(&engine).join("quarantine").read_dir().unwrap().count() > 0);
    r.script(|s| s.greeting = "220 receiver.test");
    eventually("the rest arrives", Duration::from_secs(20), || r.unique() as u64 == queued);
}

#[test]
fn the_disk_is_given_back() {
    let r = Receiver::start();
    let engine = start(&r);
    let size = || {
        let files = std::fs::read_dir(folder(&engine).join("log")).unwrap().flatten();
        files.map(|f| std::os::unix::fs::MetadataExt::blocks(&f.metadata().unwrap()) * 512).sum::<u64>()
    };
    let body = format!("Subject: x\r\n\r\n{}", "0123456789abcdef0123456789abcdef\r\n".repeat(3000));
    let mut c = Client::connect(engine.smtp).unwrap();
    for n in 0..1500 {
        assert_eq!(c.send("", &[&format!("u{n}@d.test")], &body).unwrap().0, 250);
    }
    eventually("all arrive", Duration::from_secs(60), || r.unique() == 1500);
    eventually("at most two segments are left", Duration::from_secs(30), || size() <= 130 << 20);
}

/// Standard error is a file on a full disk: every line of the log fails.
#[test]
fn a_log_that_takes_no_line_stops_nobody() {
    let receiver = Receiver::start();
    let config = format!("<domain *>\n {}\n</domain>", receiver.hosts());
    let mut engine = Engine::start_by(2, &config, |_| {
        let mut c = std::process::Command::new("sh");
        c.args(["-c", "exec \"$0\" \"$@\" 2>/dev/full"]).arg(binary());
        c
    });
    // Workers and supervisor have something to say of this.
    engine.workers().into_iter().for_each(Engine::kill);
    engine.wait_ready();
    send(&engine, 10, "u", "d.test");
    eventually("all arrive", Duration::from_secs(20), || receiver.unique() == 10);
    assert!(engine.stop());
}

#[test]
fn a_spool_that_only_delivers_takes_no_new_mail() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("450 4.2.0 later", None)));
    let mut engine = Engine::start(
        1,
        &format!(
            "<spool old>\n priority 1\n</spool>\n#new\n<domain *>\n {}\n retry-recipients-after 1s\n</domain>",
            r.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    engine.edit_config(" priority 1\n", " priority 1\n deliver-only yes\n");
    engine.edit_config("#new", "<spool new>\n</spool>");
    assert!(engine.stop());
    engine.start_again();
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@x.test", &["v@d.test"], "Subject: x\r\n\r\nx").unwrap();
    assert!(code == 452 && text.contains("deliver-only"), "{code} {text}");
    r.script(|s| s.rcpt_reply = None);
    eventually("what is there is delivered", Duration::from_secs(20), || r.unique() == 1 && engine.queued() == 0);
    // Emptied, it may go, and what is new lies in the other.
    assert!(engine.stop());
    std::fs::remove_dir_all(engine.path().join("old")).unwrap();
    engine.start_again();
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["v@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it arrives", Duration::from_secs(20), || r.unique() == 2);
    assert!(engine.path().join("new/shard-00/log").exists() && !engine.path().join("old/shard-00/log").exists());
}
