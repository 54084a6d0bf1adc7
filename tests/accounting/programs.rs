//! Programs that read accounting rows.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use super::send;

/// A program of the test's.
fn program(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_program_is_given_the_header_and_every_row_through_failures_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    // It ends after each third row.
    let reader = program(
        dir.path(),
        "reader",
        &format!(
            "n=0\nwhile read -r line; do echo \"$1 $line\" >> {}; n=$((n+1)); [ $n -ge 4 ] && exit 3; done",
            out.display()
        ),
    );
    let r = Receiver::start();
    let mut engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file \"|{reader} one\">\n records d\n record-fields d rcpt\n retry-interval 1s\n</acct-file>",
            r.hosts()
        ),
    );
    let rows = || {
        let text = read(&out);
        let mut rows: Vec<String> = text.lines().filter(|l| l.starts_with("one d,")).map(str::to_owned).collect();
        rows.sort();
        rows.dedup();
        rows.len()
    };
    for i in 0..5 {
        send(&engine, &[&format!("u{i}@d.test")], "");
    }
    eventually("the first are read", Duration::from_secs(10), || rows() >= 3);
    eventually("its end is told", Duration::from_secs(5), || engine.log().contains("Error executing"));
    assert!(engine.log().contains("exit status: 3"));
    engine.kill_all();
    engine.start_again();
    for i in 5..9 {
        send(&engine, &[&format!("u{i}@d.test")], "");
    }
    eventually("all nine are read", Duration::from_secs(20), || rows() == 9);
    let text = read(&out);
    assert!(text.starts_with("one type,rcpt\n") || text.starts_with("one type,rcpt\r\n"), "{text}");
    assert!(text.matches("one type,rcpt").count() >= 2, "the header comes first at each start");
}

#[test]
fn a_program_that_does_not_read_holds_nothing_up_and_its_buffer_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let reader = program(dir.path(), "reader", "exec sleep 600");
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file \"|{reader}\">\n records d\n record-fields d *,header_X-Pad\n max-size 1m\n write-timeout 1s\n retry-interval 1s\n</acct-file>",
            r.hosts()
        ),
    );
    let pad = format!("X-Pad: {}\r\n", "p".repeat(900));
    let recipients: Vec<String> = (0..50).map(|i| format!("u{i}@d.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let buffer = engine.path().join("acct/pipes");
    let size = || -> u64 {
        let folders = std::fs::read_dir(&buffer).unwrap().flatten();
        folders.flat_map(|f| std::fs::read_dir(f.path()).unwrap().flatten()).map(|f| f.metadata().unwrap().len()).sum()
    };
    for round in 1..=80 {
        send(&engine, &recipients, &pad);
        if round % 20 == 0 {
            std::thread::sleep(Duration::from_millis(1200));
        }
    }
    eventually("all is delivered", Duration::from_secs(20), || engine.queued() == 0);
    eventually("rows were dropped", Duration::from_secs(20), || {
        engine.log().contains("oldest rows of its buffer were dropped")
    });
    eventually("the buffer is bounded", Duration::from_secs(20), || size() < 3 << 20);
    assert!(engine.log().contains("Error writing to"), "{}", engine.log());
}

#[test]
fn a_program_whose_block_changes_is_followed_by_the_new_one_without_a_row_twice() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let reader = program(dir.path(), "reader", &format!("cat >> {}", out.display()));
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file \"|{reader}\">\n records d\n record-fields d rcpt\n write-timeout 40s\n</acct-file>",
            r.hosts()
        ),
    );
    for round in 0..3 {
        for i in 0..20 {
            send(&engine, &[&format!("r{round}-{i}@d.test")], "");
        }
        let (from, to) = (format!("write-timeout {}s", 40 + round), format!("write-timeout {}s", 41 + round));
        engine.edit_config(&from, &to);
        assert!(engine.sluice(&["reload"]).status.success());
    }
    let rows = || -> Vec<String> { read(&out).lines().filter(|l| l.starts_with("d,")).map(str::to_owned).collect() };
    eventually("all are read", Duration::from_secs(30), || rows().len() >= 60);
    std::thread::sleep(Duration::from_secs(1));
    let mut all = rows();
    let read = all.len();
    all.sort();
    all.dedup();
    assert_eq!((all.len(), read), (60, 60));
}

#[test]
fn programs_follow_the_configuration_and_end_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let reader = program(dir.path(), "reader", &format!("cat >> {}; echo ended >> {}", out.display(), out.display()));
    let r = Receiver::start();
    let mut engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>\n#new", r.hosts()));
    engine.edit_config(
        "#new",
        &format!("<acct-file \"|{reader}\">\n records d\n format json\n record-fields d rcpt\n</acct-file>"),
    );
    assert!(engine.sluice(&["reload"]).status.success());
    eventually("it runs", Duration::from_secs(10), || engine.log().contains("a program reads accounting rows"));
    eventually("workers write for it", Duration::from_secs(10), || {
        send(&engine, &["u@d.test"], "");
        std::thread::sleep(Duration::from_millis(300));
        read(&out).contains("{\"type\":\"d\",\"rcpt\":\"u@d.test\"}\n")
    });
    send(&engine, &["last@d.test"], "");
    // A stop waits for a transaction that has its content, and for no other.
    eventually("the last arrives", Duration::from_secs(10), || r.message_to("last@d.test").is_some());
    assert!(engine.stop());
    let text = read(&out);
    assert!(text.contains("last@d.test") && text.ends_with("ended\n"), "what was accounted last is passed on: {text}");
}

#[test]
fn a_command_is_what_a_shell_makes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file \"|cd {} && NAME=rows; while read l; do echo $l; done | cat >> $NAME\">\n \
             records d\n record-fields d rcpt\n</acct-file>",
            r.hosts(),
            dir.path().display()
        ),
    );
    send(&engine, &["u@d.test"], "");
    eventually("its row is read", Duration::from_secs(10), || read(&dir.path().join("rows")).contains("d,u@d.test"));
}

#[test]
fn nothing_of_a_command_outlives_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("pid");
    let r = Receiver::start();
    let mut engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n</domain>\n<acct-file \"|cd / && sh -c 'echo $$ > {}; exec sleep 600'\">\n records d\n</acct-file>",
            r.hosts(),
            mark.display()
        ),
    );
    eventually("it runs", Duration::from_secs(10), || read(&mark).ends_with('\n'));
    let pid = read(&mark).trim().to_owned();
    assert!(Path::new("/proc").join(&pid).exists());
    engine.stop();
    eventually("it is gone", Duration::from_secs(20), || {
        let status = read(&Path::new("/proc").join(&pid).join("status"));
        status.is_empty() || status.contains("State:\tZ")
    });
}
