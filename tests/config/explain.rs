//! `config explain` and `config diff`: which line says so, and what a change would do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tests::engine::binary;

const OLD: &str = "\
domain-macro family smallmail.test, bigmail.test
<profile careful>
 max-smtp-out 3
 max-msg-rate 100/h
</profile>
<domain *>
 max-smtp-out 10
 queue-priority 60
</domain>
<domain $family>
 max-smtp-out 7
</domain>
<domain bigmail.test>
 max-msg-rate 50/h
 use-profile careful
</domain>
<virtual-mta v1>
 smtp-source-host 127.0.0.1 v1.test
 <domain *>
  max-smtp-out 4
 </domain>
</virtual-mta>
<virtual-mta v2>
</virtual-mta>
<virtual-mta v3>
</virtual-mta>
<virtual-mta-pool p>
 virtual-mta v2
 <domain bigmail.test>
  retry-after 5m,1h
 </domain>
</virtual-mta-pool>
";

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(binary()).current_dir(dir).args(args).output().unwrap()
}

fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Value in force, line, and values that were overridden.
fn why(dir: &Path, path: &[&str], directive: &str) -> (String, u64, Vec<String>) {
    let mut args = vec!["config", "explain", "--config", "old.conf", "--json", "--why", directive];
    args.extend(path);
    let out = run(dir, &args);
    let v: Value = serde_json::from_slice(&out.stdout).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let over = v[0]["overrides"].as_array().unwrap().iter().map(|o| text(&o["value"])).collect();
    (text(&v[0]["value"]), v[0]["origin"]["line"].as_u64().unwrap(), over)
}

#[test]
fn every_value_is_traced_to_its_line() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "old.conf", OLD);
    let d = dir.path();
    let owned = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    assert_eq!(why(d, &["a.test"], "max-smtp-out"), ("10".into(), 7, owned(&["20"])));
    // An explicit block beats a macro's; lines beat the profile that they stand beside.
    assert_eq!(why(d, &["bigmail.test"], "max-smtp-out"), ("3".into(), 3, owned(&["7", "10", "20"])));
    assert_eq!(why(d, &["BigMail.test", "v2"], "max-msg-rate"), ("50/h".into(), 14, owned(&["100/h", "unlimited"])));
    // Scope comes before specificity.
    assert_eq!(why(d, &["bigmail.test", "v1"], "max-smtp-out").0, "4");
    // Members inherit from their pool, and a pool can be asked about.
    for via in ["v2", "p"] {
        assert_eq!(why(d, &["bigmail.test", via], "retry-after"), ("5m,1h".into(), 30, owned(&["10m"])));
    }
    assert_eq!(why(d, &["bigmail.test", "v3"], "retry-after").0, "10m");
    let whole = run(d, &["config", "explain", "bigmail.test", "v1", "--config", "old.conf", "--json"]);
    let whole: Value = serde_json::from_slice(&whole.stdout).unwrap();
    let host = whole.as_array().unwrap().iter().find(|e| e["name"] == "smtp-source-host").unwrap();
    assert_eq!((host["value"].as_str(), host["origin"]["line"].as_u64()), (Some("127.0.0.1 v1.test"), Some(18)));
    // A receiver's profile lies below everything that is written.
    assert_eq!(why(d, &["gmail.com"], "max-smtp-out"), ("10".into(), 7, owned(&["5", "20"])));
    assert_eq!(why(d, &["gmail.com"], "max-msg-per-connection").0, "50");
    let all = run(d, &["config", "explain", "bigmail.test", "--config", "old.conf"]);
    let text = String::from_utf8(all.stdout).unwrap();
    let rate = text.lines().find(|l| l.starts_with("max-msg-rate")).unwrap();
    assert!(rate.contains("old.conf:14 (global <domain bigmail.test>)"), "{rate}");
    assert!(text.contains("queue-priority (pending)"));
    for args in [["bigmail.test", "nobody"], ["bigmail.test", "--why=max-smt-out"]] {
        let out = run(d, &["config", "explain", "--config", "old.conf", args[0], args[1]]);
        assert_eq!(out.status.code(), Some(2));
    }
}

#[test]
fn a_difference_is_told_by_path() {
    let dir = tempfile::tempdir().unwrap();
    let new = OLD
        .replace("max-smtp-out 10", "max-smtp-out 11")
        .replace("50/h", "60/h")
        .replace("v1.test", "w1.test")
        .replace("5m,1h", "5m,2h")
        .replace("<virtual-mta v3>", "<virtual-mta v4>");
    file(dir.path(), "old.conf", OLD);
    file(dir.path(), "new.conf", &new);
    let out = run(dir.path(), &["config", "diff", "new.conf", "--config", "old.conf"]);
    let expected = "\
virtual MTA v4: new
virtual MTA v3: gone
virtual MTA v1: smtp-source-host 127.0.0.1 v1.test → 127.0.0.1 w1.test
* × 2 virtual MTAs: max-smtp-out 10 → 11
bigmail.test: max-msg-rate 50/h → 60/h
bigmail.test/v2: retry-after 5m,1h → 5m,2h
";
    assert_eq!(String::from_utf8(out.stdout).unwrap(), expected);
    let same = run(dir.path(), &["config", "diff", "old.conf", "--config", "old.conf"]);
    assert_eq!(same.stdout, b"Nothing changes.\n");
}
