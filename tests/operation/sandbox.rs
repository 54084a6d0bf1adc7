//! Processes that hold themselves to what they need (`sandbox`).

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

use crate::send;

fn status(pid: i32, name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(":")?.trim().parse().ok())
}

fn is_confined(engine: &Engine) -> bool {
    let mut all = engine.workers();
    if all.is_empty() {
        return false;
    }
    all.push(engine.pid());
    // 2 is a filter of system calls.
    all.iter().all(|w| (status(*w, "Seccomp"), status(*w, "NoNewPrivs")) == (Some(2), Some(1)))
}

#[test]
fn workers_in_the_sandbox_do_all_that_mail_asks_for() {
    let (r, target) = (Receiver::start(), tempfile::tempdir().unwrap());
    let (first, second) = (target.path().join("first"), target.path().join("second"));
    let mut engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n</domain>\n<domain f.test>\n type file\n file-destination {}/$to\n</domain>\n\
             <domain g.test>\n type file\n file-destination {}\n</domain>\n#more",
            r.hosts(),
            first.display(),
            first.display()
        ),
    );
    assert!(is_confined(&engine), "{}", engine.log());
    send(&engine, 20, "u", "d.test");
    send(&engine, 1, "u", "f.test");
    let files = |folder: &std::path::Path| std::fs::read_dir(folder).map_or(0, Iterator::count);
    eventually("all arrive", Duration::from_secs(10), || {
        r.unique() == 20 && files(&first.join("u0@f.test")) == 1 && engine.queued() == 0
    });
    engine.run(&["suppress", "add", "gone@d.test"]);
    engine.run(&["scale", "1"]);
    engine.run(&["scale", "3"]);
    engine.run(&["shard", "restart", "0"]);
    send(&engine, 20, "v", "d.test");
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 40);
    eventually("each has its row", Duration::from_secs(10), || {
        accounting::rows(engine.path()).keys().filter(|(kind, _)| kind == "d").count() == 41
    });

    // A folder that no worker may write to: others take their place.
    let before = engine.workers();
    engine.edit_config(
        &format!("file-destination {}\n", first.display()),
        &format!("file-destination {}\n", second.display()),
    );
    engine.run(&["reload"]);
    eventually("workers start anew", Duration::from_secs(10), || {
        let now = engine.workers();
        now.len() == 3 && now.iter().all(|w| !before.contains(w)) && is_confined(&engine)
    });
    eventually("mail is taken", Duration::from_secs(10), || {
        engine.run(&["show", "shards"]).matches("serving").count() == 3
    });
    send(&engine, 3, "w", "g.test");
    eventually("it is in the new folder", Duration::from_secs(10), || files(&second) == 3);

    // Programs are outside of that of workers.
    let (script, taken) = (target.path().join("script"), target.path().join("taken"));
    let text = format!("#!/bin/sh\n{{ echo $1; cat /proc/self/status -; }} > {}\nexit 67\n", taken.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let before = engine.workers();
    engine.edit_config(
        "#more",
        &format!("<domain p.test>\n type pipe\n command \"{} $to\"\n</domain>", script.display()),
    );
    engine.run(&["reload"]);
    send(&engine, 1, "p", "p.test");
    eventually("the program has the last word", Duration::from_secs(10), || {
        accounting::rows(engine.path()).contains_key(&("b".into(), "p0@p.test".into()))
    });
    let taken = std::fs::read_to_string(&taken).unwrap();
    // Its filters are the supervisor's; a worker has those and its own.
    let filters = |pid| status(pid, "Seccomp_filters").unwrap();
    let line = format!("Seccomp_filters:\t{}\n", filters(engine.pid()));
    assert!(taken.starts_with("p0@p.test\n") && taken.contains(&line), "{taken}");
    assert!(filters(before[0]) > filters(engine.pid()));
    assert!(taken.contains("Subject: ") && taken.ends_with('\n') && !taken.contains('\r'), "{taken}");
    assert!(is_confined(&engine) && engine.workers() == before);
    assert!(engine.stop());
}

#[test]
fn a_program_that_has_mail_in_hand_is_heard_out_at_a_stop() {
    let target = tempfile::tempdir().unwrap();
    let (script, taken) = (target.path().join("script"), target.path().join("taken"));
    let text = format!("#!/bin/sh\necho $1 >> {}\nsleep 2\ncat > /dev/null\n", taken.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let pipe = format!("<domain *>\n type pipe\n command \"{} $to\"\n max-smtp-out 1\n</domain>", script.display());
    let engine = Engine::start(1, &format!("stop-grace 2m\n{pipe}"));
    send(&engine, 2, "u", "d.test");
    let lines = || std::fs::read_to_string(&taken).map_or(0, |t| t.lines().count());
    eventually("one is begun", Duration::from_secs(10), || lines() == 1);
    engine.run(&["shard", "restart", "0"]);
    let rows = || accounting::rows(engine.path());
    eventually("both are delivered", Duration::from_secs(20), || {
        (0..2).all(|n| rows().contains_key(&("d".into(), format!("u{n}@d.test"))))
    });
    assert_eq!(lines(), 2, "each is given to the program once");
    assert!(rows().keys().all(|(kind, _)| kind != "t"), "the one that was not begun had no attempt: {:?}", rows());
}
