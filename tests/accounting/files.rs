//! Files as a whole: what begins one, what ends it, and a disk without room.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::client::Client;
use tests::engine::{Engine, checked};
use tests::eventually;
use tests::receiver::Receiver;

use super::{cell, send, table, texts};

#[test]
fn a_reload_changes_columns_adds_files_and_drops_them() {
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file x/x.csv>\n records d\n record-fields d rcpt\n</acct-file>\n\
             <acct-file gone/gone.csv>\n records d\n move-to gone/done\n</acct-file>\n#new",
            r.hosts()
        ),
    );
    send(&engine, &["one@d.test"], "");
    table(&engine.path().join("x"), 1);
    table(&engine.path().join("gone"), 1);
    engine.edit_config("record-fields d rcpt", "record-fields d rcpt,queue");
    engine.edit_config("<acct-file gone/gone.csv>\n records d\n move-to gone/done\n</acct-file>", "");
    engine.edit_config("#new", "<acct-file new/new.csv>\n records d\n</acct-file>");
    assert!(engine.sluice(&["reload"]).status.success());
    eventually("the new file is there", Duration::from_secs(10), || !texts(&engine.path().join("new")).is_empty());
    eventually("the dropped file is moved", Duration::from_secs(10), || {
        !texts(&engine.path().join("gone/done")).is_empty()
    });
    let mut n = 1;
    eventually("rows go by the new configuration", Duration::from_secs(10), || {
        n += 1;
        send(&engine, &["two@d.test"], "");
        std::thread::sleep(Duration::from_millis(100));
        texts(&engine.path().join("new")).concat().lines().count() > 1
    });
    let rows = table(&engine.path().join("x"), n);
    assert_eq!((rows[0].len(), cell(&rows[0], "rcpt")), (2, "one@d.test"));
    assert_eq!(cell(rows.last().unwrap(), "queue"), "d.test/{default}");
    assert_eq!(texts(&engine.path().join("gone/done"))[0].lines().count(), 2);
}

#[test]
fn a_reload_with_a_file_that_cannot_be_made_changes_nothing() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!("<domain *>\n {}\n</domain>\n<acct-file x/x.csv>\n records d\n</acct-file>\n#new", r.hosts()),
    );
    engine.edit_config("#new", "<acct-file /dev/null/no/new.csv>\n records d\n</acct-file>");
    let out = engine.sluice(&["reload"]);
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(!out.status.success() && said.contains("/dev/null/no"), "{said}");
    send(&engine, &["u@d.test"], "");
    table(&engine.path().join("x"), 1);
    assert!(engine.sluice(&["rotate", "acct"]).status.success());
}

#[test]
fn a_file_with_other_columns_is_not_continued_after_a_restart() {
    let r = Receiver::start();
    let mut engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file x/x.csv>\n records d\n record-fields d rcpt\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["one@d.test"], "");
    table(&engine.path().join("x"), 1);
    assert!(engine.stop());
    engine.start_again();
    send(&engine, &["two@d.test"], "");
    table(&engine.path().join("x"), 2);
    assert_eq!(texts(&engine.path().join("x")).len(), 1, "the same columns go on in the same file");
    assert!(engine.stop());
    engine.edit_config("record-fields d rcpt", "record-fields d rcpt,vmta");
    engine.start_again();
    send(&engine, &["three@d.test"], "");
    let rows = table(&engine.path().join("x"), 3);
    assert_eq!(cell(&rows[2], "vmta"), "{default}");
    assert_eq!(texts(&engine.path().join("x")).len(), 2);
}

#[test]
fn one_file_is_rotated_by_name_and_moved_records_are_counted() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file x/x.csv>\n records d,b\n move-to done\n count-moved-records yes\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["u@d.test", "v@d.test", "bad-1@d.test"], "");
    table(&engine.path().join("x"), 3);
    let out = engine.sluice(&["rotate", "acct", "x.csv"]);
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("Accounting file rotated."));
    eventually("it is moved and counted", Duration::from_secs(10), || {
        engine.log().contains("records=3") && engine.log().contains("b 1, d 2")
    });
    assert_eq!(texts(&engine.path().join("acct")).len(), 1, "the other file goes on");
    assert!(engine.sluice(&["rotate", "acct", "x/x.csv"]).status.success(), "as the configuration has it");
    let wrong = engine.sluice(&["rotate", "acct", "nosuch.csv"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("x.csv"));
}

/// A small file system of its own; `None` where the tests may not mount one.
fn small_disk(at: &Path) -> bool {
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m,mode=777", "none"]).arg(at).status();
    mounted.is_ok_and(|s| s.success())
}

/// Makes a file as large as the disk lets it.
fn fill(path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    let mut at = 0;
    while file.write_at(&[0; 512], at).is_ok_and(|n| n > 0) {
        at += 512;
    }
}

fn unmount(at: &Path) {
    let _ = Command::new("umount").arg("-l").arg(at).status();
}

#[test]
fn a_full_disk_of_accounting_refuses_mail_and_loses_no_row() {
    let disk = tempfile::tempdir().unwrap();
    if !small_disk(disk.path()) {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    }
    let r = Receiver::start();
    let acct = disk.path().display();
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file {acct}/x.csv>\n records d\n min-free-space 1m\n max-size 1m\n delete-after never\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["first@d.test"], "");
    table(disk.path(), 1);
    // Above the limit at which mail is refused there is room for what is under way.
    std::fs::write(disk.path().join("filler"), vec![0; 5_200_000]).unwrap();
    eventually("mail is refused", Duration::from_secs(20), || {
        let mut c = Client::connect(engine.smtp).unwrap();
        let (code, text) = c.send("s@sender.test", &["no@d.test"], "Subject: x\r\n\r\nx").unwrap();
        assert!(code == 250 || (code == 452 && text.contains("4.3.1")), "{text}");
        code == 452
    });
    // To the last byte: rows wait in the log.
    fill(&disk.path().join("rest"));
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    std::fs::remove_file(disk.path().join("rest")).unwrap();
    let mut sent = 0;
    eventually("mail is taken again", Duration::from_secs(10), || {
        let mut c = Client::connect(engine.smtp).unwrap();
        let taken = c.send("s@sender.test", &["again@d.test"], "Subject: x\r\n\r\nx").unwrap().0 == 250;
        sent += u32::from(taken);
        taken
    });
    let accepted = || r.with(|s| s.delivered.values().sum::<u32>());
    eventually("every delivery has its row", Duration::from_secs(20), || {
        let rows: usize = texts(disk.path()).iter().map(|t| t.lines().count() - 1).sum();
        engine.queued() == 0 && rows as u32 == accepted() && sent > 0
    });
    drop(engine);
    unmount(disk.path());
}

#[test]
fn rows_that_find_no_room_are_written_later() {
    let disk = tempfile::tempdir().unwrap();
    if !small_disk(disk.path()) {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    }
    let r = Receiver::start();
    let acct = disk.path().display();
    let mut engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file {acct}/x.csv>\n records d\n min-free-space 0\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["first@d.test"], "");
    table(disk.path(), 1);
    fill(&disk.path().join("filler"));
    let to: Vec<String> = (0..40).map(|i| format!("{}{i}@d{i}.test", "u".repeat(50))).collect();
    for t in &to {
        send(&engine, &[t], "");
    }
    eventually("all is delivered", Duration::from_secs(20), || engine.queued() == 0 && r.unique() == 41);
    eventually("it is told", Duration::from_secs(10), || engine.log().contains("accounting cannot be written"));
    engine.kill_all();
    engine.start_again();
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    let rows = || texts(disk.path()).concat().lines().filter(|l| l.starts_with("d,")).count();
    eventually("every row is written", Duration::from_secs(30), || rows() >= 41);
    assert_eq!(rows(), 41);
    drop(engine);
    unmount(disk.path());
}

#[test]
fn a_full_disk_of_accounting_keeps_neither_orders_nor_other_files_waiting() {
    let disk = tempfile::tempdir().unwrap();
    if !small_disk(disk.path()) {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    }
    let r = Receiver::start();
    let acct = disk.path().display();
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file {acct}/x.csv>\n records d\n min-free-space 0\n</acct-file>",
            r.hosts()
        ),
    );
    send(&engine, &["first@d.test"], "");
    table(disk.path(), 1);
    fill(&disk.path().join("filler"));
    let some = |from: u32| (from..from + 40).for_each(|i| send(&engine, &[&format!("u{i}@d{i}.test")], ""));
    some(0);
    eventually("all is delivered", Duration::from_secs(20), || engine.queued() == 0 && r.unique() == 41);
    eventually("status says what waits", Duration::from_secs(10), || {
        let status = engine.run(&["status"]);
        status.contains("Waiting  rows of shard") && status.contains("No space left")
    });
    assert!(engine.run(&["pause", "queue", "d0.test/*"]).contains("paused"), "an order is kept in the spool");
    engine.edit_config(&format!("<acct-file {acct}/x.csv>"), "<acct-file other/x.csv>");
    engine.run(&["reload"]);
    some(40);
    // The full disk may have had room for a few.
    let other = engine.path().join("other");
    let rows = || [disk.path(), &other].map(|p| texts(p).concat().lines().filter(|l| l.starts_with("d,")).count());
    eventually("the rest is in the other file", Duration::from_secs(20), || rows().iter().sum::<usize>() >= 81);
    assert!(rows()[1] >= 40 && rows().iter().sum::<usize>() == 81, "none is in both: {:?}", rows());
    eventually("nothing waits any more", Duration::from_secs(10), || !engine.run(&["status"]).contains("Waiting"));
    drop(engine);
    unmount(disk.path());
}

#[test]
fn what_cannot_be_meant_is_said_by_config_check() {
    for (inside, code, said) in [
        ("record-fields d rcpp", 2, "rcpt"),
        ("record-fields r dsnDiag", 2, "other types of records have it"),
        ("record-fields t rcpt", 0, "takes no records of type t"),
        ("map-header-to-field tq header_X vmta", 2, "tq"),
        ("map-header-to-field d X rcpt", 2, "header_NAME"),
        ("privacy-policy siphash", 2, "key of siphash is missing"),
        ("privacy-policy siphash 12345678901234567", 2, "17 bytes"),
        ("queue-filter {x}/v", 2, "braces"),
        ("write-timeout 3s", 0, "program"),
        ("format xml", 2, "csv, json"),
        ("record-fields d *,!type", 2, "always the first"),
    ] {
        let (found, text) = checked(&format!("<acct-file a.csv>\n records d\n {inside}\n</acct-file>"));
        assert!(found == Some(code) && text.contains(said), "{inside}: {found:?} {text}");
        assert!(!text.contains("1234567890123456"), "keys are not shown: {text}");
    }
    assert_eq!(checked("<acct-file \"|\">\n</acct-file>").0, Some(2));
    assert_eq!(checked("<acct-file a/b.csv>\n</acct-file>\n<acct-file ./a/./b.csv>\n</acct-file>").0, Some(2));
}

#[test]
fn a_file_that_comes_with_a_reload_has_the_rows_of_mail_behind_it() {
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>\n#more", r.hosts()));
    send(&engine, &["before@d.test"], "");
    engine.edit_config("#more", "<acct-file acct/new.csv>\n records d\n record-fields d rcpt\n</acct-file>");
    engine.run(&["reload"]);
    for n in 0..20 {
        send(&engine, &[&format!("u{n}@d{n}.test")], "");
    }
    eventually("every one has its row", Duration::from_secs(10), || {
        let text: String = texts(&engine.path().join("acct")).concat();
        (0..20).all(|n| text.lines().any(|l| l.trim_end() == format!("d,u{n}@d{n}.test")))
    });
}

#[test]
fn move_interval_goes_on_over_restarts() {
    let r = Receiver::start();
    let config = format!(
        "<domain *>\n {}\n</domain>\n<acct-file moved/moved.csv>\n records d\n move-to done\n move-interval 9s\n</acct-file>",
        r.hosts()
    );
    let mut engine = Engine::start(1, &config);
    send(&engine, &["one@d.test"], "");
    table(&engine.path().join("moved"), 1);
    // No server lives for as long as the interval.
    for _ in 0..6 {
        std::thread::sleep(Duration::from_secs(2));
        assert!(engine.stop());
        engine.start_again();
    }
    eventually("it is moved", Duration::from_secs(4), || !texts(&engine.path().join("done")).is_empty());
}
