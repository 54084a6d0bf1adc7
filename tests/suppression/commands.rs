//! `sluice suppress`.

use std::io::Write;
use std::time::{Duration, Instant};

use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

use super::send;

#[test]
fn additions_and_removals_hold_in_every_shard_within_a_second_and_outlive_kills() {
    let r = Receiver::start();
    let mut engine = Engine::start(3, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    let add = ["suppress", "add", "A@d.test", "b@d.test", "--reason", "wrote to us", "--expires-after", "1h"];
    let out = engine.run(&add);
    let since = Instant::now();
    assert_eq!(out, "2 addresses suppressed, 2 of them new.\n");
    std::thread::sleep(Duration::from_millis(900).saturating_sub(since.elapsed()));
    // Sessions come to shards as they may.
    for _ in 0..30 {
        assert_eq!(send(&engine, &["a@D.test"], "").0, 550);
    }
    engine.kill_all();
    engine.start_again();
    assert_eq!(send(&engine, &["b@d.test"], "").0, 550, "what was answered is on the disk");
    assert_eq!(
        engine.run(&["suppress", "add", "a@d.test", "--list", "Other"]),
        "1 address suppressed, 1 of them new.\nNothing goes by the list other yet: the configuration has no suppression-lists other.\n"
    );
    let nobody = engine.run(&["suppress", "add", "a@d.test", "--virtual-mta", "nope"]);
    assert!(nobody.ends_with("virtual-mta:nope yet: the configuration has no virtual MTA nope.\n"), "{nobody}");
    engine.run(&["suppress", "remove", "a@d.test", "--virtual-mta", "nope"]);
    let json: serde_json::Value = serde_json::from_str(&engine.run(&["suppress", "list", "--json"])).unwrap();
    let all: Vec<(&str, &str, &str)> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["address"].as_str().unwrap(), e["list"].as_str().unwrap(), e["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(
        all,
        [("a@d.test", "global", "wrote to us"), ("b@d.test", "global", "wrote to us"), ("a@d.test", "other", "")]
    );
    assert!(json[0]["expires"].as_str().is_some_and(|t| t.ends_with('Z')) && json[2]["expires"].is_null());
    assert!(engine.run(&["suppress", "list", "--list", "other"]).contains("a@d.test"));
    assert_eq!(engine.run(&["suppress", "remove", "a@d.test", "nobody@d.test"]), "1 of 2 addresses removed.\n");
    eventually("it is written to again", Duration::from_secs(1), || send(&engine, &["a@d.test"], "").0 == 250);
    assert_eq!(engine.run(&["suppress", "list", "a@d.test"]).lines().count(), 1, "off every list");
    let wrong = engine.sluice(&["suppress", "add", "no-address"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("expected an e-mail address, found \"no-address\""));
}

#[test]
fn csv_goes_in_whole_or_not_at_all_and_comes_out_again() {
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    let file = engine.path().join("in.csv");
    let mut text = String::from(
        "reason,address,added,expires,list\r\n\"no, thanks\",First@d.test,2026-01-31T09:00:00Z,,\r\nx,over@d.test,,2020-01-01,\r\n",
    );
    for i in 0..30_000 {
        text += &format!("r{},user{i}@d{}.test,,,{}\r\n", i % 7, i % 100, if i % 2 == 0 { "" } else { "mine" });
    }
    std::fs::write(&file, &text).unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(engine.run(&["suppress", "import", path, "--list", "base"]), "30002 addresses imported.\n");
    let first: serde_json::Value =
        serde_json::from_str(&engine.run(&["suppress", "list", "first@d.test", "--json"])).unwrap();
    assert_eq!(
        first,
        serde_json::json!([{"address": "first@d.test", "list": "base", "reason": "no, thanks", "source": "import", "added": "2026-01-31T09:00:00Z", "expires": null}])
    );
    let out = engine.run(&["suppress", "export", "--list", "mine"]);
    assert_eq!((out.lines().next(), out.lines().count()), (Some("address,list,reason,source,added,expires"), 15_001));
    // What is exported is what is imported, with what changed since.
    engine.run(&["suppress", "remove", "user0@d0.test"]);
    engine.run(&["suppress", "add", "new@d.test", "--list", "base"]);
    let all = engine.run(&["suppress", "export"]);
    assert_eq!(all.lines().count(), 1 + 30_001, "what is over is gone");
    let other = Engine::start(1, "");
    std::fs::write(other.path().join("all.csv"), &all).unwrap();
    other.run(&["suppress", "import", other.path().join("all.csv").to_str().unwrap()]);
    let sorted = |t: &str| {
        let mut lines: Vec<String> = t.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&other.run(&["suppress", "export"])), sorted(&all));
    // All or nothing.
    std::fs::write(&file, "a@x.test\nb@x.test\nwrong\n").unwrap();
    let wrong = engine.sluice(&["suppress", "import", path]);
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("in.csv:3: expected an e-mail address, found \"wrong\"; nothing was imported"), "{said}");
    assert_eq!(engine.run(&["suppress", "list", "a@x.test"]).lines().count(), 1);
    let left = std::fs::read_dir(engine.path().join("suppression")).unwrap().flatten();
    assert!(left.into_iter().all(|e| !e.file_name().to_string_lossy().starts_with("import")), "nothing is left behind");
}

#[test]
fn an_import_that_breaks_off_imports_nothing_and_addresses_alone_will_do() {
    let engine = Engine::start(1, "");
    let mut child = std::process::Command::new(tests::engine::binary())
        .args(["suppress", "import", "-"])
        .env("SLUICE_CONTROL", engine.path().join("run/control.sock"))
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for i in 0..9_000 {
        writeln!(input, "u{i}@d.test").unwrap();
    }
    input.flush().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    child.kill().unwrap();
    let _ = child.wait();
    drop(input);
    assert_eq!(engine.run(&["suppress", "export"]).lines().count(), 1);
    let said = tests::fed(
        std::process::Command::new(tests::engine::binary())
            .args(["suppress", "import", "-", "--reason", "old"])
            .env("SLUICE_CONTROL", engine.path().join("run/control.sock")),
        "# from the old system\nu1@d.test\nu2@d.test\n\nu1@d.test\n",
    );
    assert!(said.status.success());
    let out = engine.run(&["suppress", "export"]);
    assert_eq!(out.lines().count(), 3);
    assert!(out.contains("u1@d.test,global,old,import,"), "{out}");
}

#[test]
fn acknowledged_changes_are_there_whenever_the_server_is_killed() {
    let mut engine = Engine::start(2, "");
    let mut expected = std::collections::BTreeSet::new();
    for round in 0..6 {
        for i in 0..15 {
            let address = format!("u{}@d.test", (round * 7 + i * 3) % 40);
            if i % 4 == 3 {
                engine.run(&["suppress", "remove", &address]);
                expected.remove(&address);
            } else {
                engine.run(&["suppress", "add", &address]);
                expected.insert(address);
            }
        }
        let file = engine.path().join("in.csv");
        std::fs::write(&file, format!("i{round}@d.test\n")).unwrap();
        engine.run(&["suppress", "import", file.to_str().unwrap()]);
        expected.insert(format!("i{round}@d.test"));
        engine.kill_all();
        engine.start_again();
        let out = engine.run(&["suppress", "export"]);
        let found: std::collections::BTreeSet<String> =
            out.lines().skip(1).map(|l| l.split(',').next().unwrap().to_owned()).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn what_is_exported_can_be_imported_and_odd_rows_are_named() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    engine.run(&["suppress", "add", "\"a b\"@d.test", "\"x\\\"y@z\"@d.test", "plain+tag@d.test"]);
    let csv = engine.run(&["suppress", "export"]);
    let file = engine.path().join("export.csv");
    std::fs::write(&file, &csv).unwrap();
    engine.run(&["suppress", "remove", "\"a b\"@d.test", "\"x\\\"y@z\"@d.test", "plain+tag@d.test"]);
    let said = engine.run(&["suppress", "import", &file.display().to_string()]);
    assert!(said.starts_with("3 addresses imported"), "{said}");
    let rows = |csv: &str| {
        let mut rows: Vec<String> = csv.lines().map(str::to_owned).collect();
        rows.sort();
        rows
    };
    assert_eq!(rows(&engine.run(&["suppress", "export"])), rows(&csv));
    for (wrong, named) in [
        ("a@i.test,b@i.test\n", "expected one address"),
        ("address,reason\nc@i.test,because, really\n", "expected 2 cells, found 3"),
        ("a@b@c.test\n", "expected an e-mail address"),
        ("address,list\nd@i.test,bad list\n", "expected the name of a list"),
    ] {
        std::fs::write(&file, wrong).unwrap();
        let out = engine.sluice(&["suppress", "import", &file.display().to_string()]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains(named), "{wrong}: {said}");
    }
}
