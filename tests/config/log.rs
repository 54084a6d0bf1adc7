//! `config log` and `config rollback`: what was in force, who put it there, and back to it.

use std::time::Duration;

use serde_json::Value;
use tests::engine::Engine;
use tests::eventually;

/// Number, who, and changes of each configuration, the one in force last.
fn log(engine: &Engine) -> Vec<(u64, String, Option<u64>)> {
    let all = engine.json(&["config", "log", "--json"]);
    let row = |e: &Value| (e["number"].as_u64().unwrap(), e["by"].as_str().unwrap().to_owned(), e["changes"].as_u64());
    all["configurations"].as_array().unwrap().iter().map(row).collect()
}

fn in_force(engine: &Engine) -> String {
    let all = engine.json(&["config", "explain", "d.test", "--why", "max-smtp-out", "--json"]);
    all[0]["value"].as_str().unwrap().to_owned()
}

#[test]
fn configurations_in_force_are_kept_and_an_earlier_one_is_put_back() {
    let mut engine = Engine::start(1, "<domain *>\n max-smtp-out 3\n auth-password secret-word\n</domain>");
    let known = |n: usize| eventually("it is kept", Duration::from_secs(10), || log(&engine).len() == n);
    known(1);
    engine.edit_config("max-smtp-out 3", "max-smtp-out 4");
    engine.run(&["reload"]);
    // One that is refused never was in force, and the same once more is not another.
    engine.edit_config("max-smtp-out 4", "max-smtp-out four");
    assert_eq!(engine.sluice(&["reload"]).status.code(), Some(2));
    engine.edit_config("max-smtp-out four", "max-smtp-out 4");
    engine.run(&["reload"]);
    let all = log(&engine);
    let (start, reload) = (&all[0], &all[1]);
    assert_eq!((all.len(), start.1.as_str(), reload.0, reload.2), (2, "start", 2, Some(1)));
    let user = String::from_utf8(std::process::Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    assert_eq!(reload.1, user.trim());
    assert_eq!(
        engine.run(&["config", "log", "--diff", "2"]).trim(),
        "d.test: max-smtp-out 3 → 4".replace("d.test", "*")
    );
    assert_eq!(engine.sluice(&["config", "log", "--diff", "1"]).status.code(), Some(2));
    // What was edited and is in force nowhere is not lost.
    engine.edit_config("max-smtp-out 4", "max-smtp-out 5");
    let refused = engine.sluice(&["config", "rollback"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("sluice.conf was changed and is not in force"));
    engine.edit_config("max-smtp-out 5", "max-smtp-out 4");
    engine.run(&["config", "rollback"]);
    assert_eq!(in_force(&engine), "3");
    let text = std::fs::read_to_string(engine.path().join("sluice.conf")).unwrap();
    assert!(text.contains("max-smtp-out 3"), "the next start loads it, too");
    let all = log(&engine);
    assert_eq!((all.len(), all[2].1.clone()), (3, format!("{}, rollback to 1", user.trim())));
    engine.run(&["config", "rollback", "2"]);
    assert_eq!(in_force(&engine), "4");
    for wrong in ["4", "9"] {
        assert_eq!(engine.sluice(&["config", "rollback", wrong]).status.code(), Some(2), "{wrong}");
    }
    assert!(engine.stop());
    engine.start_again();
    engine.wait_ready();
    assert_eq!(log(&engine).len(), 4, "a start with what was in force is no other");
    assert!(!engine.run(&["config", "log", "--json"]).contains("secret-word"));
}

#[test]
fn files_that_wildcards_take_in_are_put_back_or_it_is_refused() {
    let engine = Engine::start(1, "include parts/*.conf");
    let part = |name: &str| engine.path().join("parts").join(name);
    std::fs::create_dir_all(engine.path().join("parts")).unwrap();
    let limit = |n: u32| format!("<domain *>\n max-smtp-out {n}\n</domain>\n");
    std::fs::write(part("a.conf"), limit(3)).unwrap();
    engine.run(&["reload"]);
    std::fs::remove_file(part("a.conf")).unwrap();
    std::fs::write(part("b.conf"), limit(4)).unwrap();
    engine.run(&["reload"]);
    eventually("it is kept", Duration::from_secs(10), || log(&engine).len() == 3);
    let refused = engine.sluice(&["config", "rollback"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("b.conf now, and did not then: move it away"));
    assert!(!part("a.conf").exists() && in_force(&engine) == "4");
    // It is gone: the one before is written again.
    std::fs::rename(part("b.conf"), part("b.old")).unwrap();
    engine.run(&["config", "rollback"]);
    assert_eq!((in_force(&engine), std::fs::read_to_string(part("a.conf")).unwrap()), ("3".into(), limit(3)));
}
