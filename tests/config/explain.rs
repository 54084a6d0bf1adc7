//! `config explain` and `config diff`: which line says so, and what a change would do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tests::dns::Dns;
use tests::engine::{Engine, binary};

const OLD: &str = "\
domain-macro family smallmail.test, bigmail.test
<profile careful>
 max-smtp-out 3
 max-msg-rate 100/h
</profile>
<domain *>
 max-smtp-out 10
 log-tls yes
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
    assert!(text.contains("log-tls (pending)"));
    for args in [["bigmail.test", "nobody"], ["bigmail.test", "--why=max-smt-out"]] {
        let out = run(d, &["config", "explain", "--config", "old.conf", args[0], args[1]]);
        assert_eq!(out.status.code(), Some(2));
    }
}

/// Name, value, line and layer of each row, and what the first overrides.
type Rows = Vec<(String, String, u64, String)>;

fn rows_of(dir: &Path, args: &[&str]) -> (Rows, Vec<String>) {
    let out = run(dir, &[&["config", "explain", "--config", "c.conf", "--json"], args].concat());
    let all: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let row = |e: &Value| {
        let from = &e["origin"];
        (text(&e["name"]), text(&e["value"]), from["line"].as_u64().unwrap(), text(&from["layer"]))
    };
    let over = all
        .first()
        .map_or(Vec::new(), |e| e["overrides"].as_array().unwrap().iter().map(|o| text(&o["value"])).collect());
    (all.iter().map(row).collect(), over)
}

#[test]
fn the_queue_that_mail_lands_in_is_shown_with_the_line_that_says_so() {
    let dns = Dns::start();
    dns.mx("rolled.test", &[(10, "mx1.edge.test"), (20, "other.test")]);
    dns.mx("alone.test", &[(10, "other.test")]);
    dns.mx("google.test", &[(10, "aspmx.l.google.com")]);
    let dir = tempfile::tempdir().unwrap();
    let lines = "<domain sent.test>\n max-smtp-out 9\n queue-to one.queue\n</domain>\n<domain one.queue>\n queue-to two.queue\n</domain>\n\
                 <domain two.queue>\n smtp-hosts [127.0.0.1]\n max-smtp-out 3\n</domain>\n<mx-rollup-list>\n mx *.edge.test edge.rollup\n\
                 </mx-rollup-list>\n<domain edge.rollup>\n max-smtp-out 2\n</domain>\n";
    file(dir.path(), "c.conf", &format!("{lines}{}\n", dns.directive()));
    let of = |args: &[&str]| rows_of(dir.path(), args);
    let (rows, over) = of(&["sent.test"]);
    assert_eq!(
        (rows[0].0.as_str(), rows[0].1.as_str(), rows[0].2, over),
        ("queue", "two.queue", 6, vec!["one.queue".to_owned()])
    );
    // All else goes by the queue's own lines, but the line that sends mail there.
    let (out, _) = of(&["sent.test", "--why", "max-smtp-out"]);
    assert_eq!((out[0].1.as_str(), out[0].2), ("3", 10));
    assert_eq!(of(&["sent.test", "--why", "queue-to"]).0[0].1, "one.queue");
    // Hosts are looked up where that is asked for.
    let queue = |domain: &str| of(&[domain, "--why", "queue", "--lookup"]).0.remove(0);
    assert!(of(&["rolled.test"]).0[0].3.contains("--lookup"));
    let found = queue("rolled.test");
    assert_eq!((found.1.as_str(), found.2, found.3.as_str()), ("edge.rollup", 13, "<mx-rollup-list> mx *.edge.test"));
    assert_eq!(of(&["rolled.test", "--why", "max-smtp-out", "--lookup"]).0[0].1, "2");
    let found = queue("alone.test");
    assert_eq!((found.1.as_str(), found.2), ("alone.test", 0));
    let found = queue("google.test");
    assert_eq!((found.1.as_str(), found.3.contains("receiver profile google")), ("google.rollup", true));
    // A running server looks them up itself.
    let engine = Engine::start(1, &format!("{lines}{}", dns.directive()));
    let asked = engine.json(&["config", "explain", "rolled.test", "--lookup", "--why", "queue", "--json"]);
    assert_eq!(asked[0]["value"], "edge.rollup");
    let asked = engine.json(&["config", "explain", "--source", "127.0.0.1", "--why", "process-x-job", "--json"]);
    assert_eq!(asked[0]["origin"]["layer"], "<source 127.0.0.1>");
    let none = run(dir.path(), &["config", "explain", "--config", "c.conf", "none.test", "--lookup"]);
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn of_two_limits_for_every_source_address_the_last_one_counts() {
    let shown = |lines: &str| {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path(), "c.conf", &format!("<domain a.test>\n{lines}</domain>\n"));
        let (rows, over) = rows_of(dir.path(), &["a.test", "--why", "source-ip-max-smtp-out"]);
        let said = String::from_utf8(run(dir.path(), &["config", "check", "c.conf"]).stdout).unwrap();
        assert!(said.contains("warning[shadowed]") && said.contains("c.conf:3:1"), "{said}");
        (rows.iter().map(|r| format!("{} {}", r.1, r.2)).collect::<Vec<_>>(), over)
    };
    let (new, old) = ("source-ip-max-smtp-out 0/0 9\n", "max-smtp-out-per-source-ip 2\n");
    assert_eq!(shown(&format!("{new}{old}")), (vec!["0/0 2 3".to_owned()], vec!["0/0 9".to_owned()]));
    assert_eq!(shown(&format!("{old}{new}")), (vec!["0/0 9 3".to_owned()], vec!["0/0 2".to_owned()]));
}

#[test]
fn what_a_policy_stands_for_is_shown_and_lines_that_beat_it() {
    let dir = tempfile::tempdir().unwrap();
    file(
        dir.path(),
        "c.conf",
        "<domain a.test>\n backoff-policy aggressive\n max-smtp-out 4\n</domain>\n<domain *>\n backoff-max-msg-rate 5/h\n</domain>\n",
    );
    let of = |name: &str| {
        let (mut rows, over) = rows_of(dir.path(), &["a.test", "--why", name]);
        let (_, value, line, layer) = rows.remove(0);
        (value, line, layer.starts_with("backoff-policy aggressive, global <domain a.test>"), over)
    };
    let owned = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    assert_eq!(of("backoff-max-smtp-out"), ("1".into(), 2, true, owned(&["20"])));
    assert_eq!(of("backoff-retry-after"), ("1h".into(), 2, true, owned(&["1h"])));
    // A line beats it, wherever it stands.
    assert_eq!(of("backoff-max-msg-rate"), ("5/h".into(), 6, false, owned(&["60/h", "as max-msg-rate"])));
}

#[test]
fn what_is_in_force_for_a_client_is_shown_by_its_source() {
    let dir = tempfile::tempdir().unwrap();
    file(
        dir.path(),
        "c.conf",
        "<source 10.1.0.0/16>\n always-allow-relaying yes\n process-x-job yes\n</source>\n<source 0/0>\n always-allow-relaying no\n\
         max-message-size 5M\n</source>\n<source app>\n max-message-size 9M\n</source>\nsmtp-listener 127.0.0.1:25 source=app\n",
    );
    let of = |who: &str, name: &str| {
        let (mut rows, over) = rows_of(dir.path(), &["--source", who, "--why", name]);
        let (_, value, line, layer) = rows.remove(0);
        (value, line, layer, over)
    };
    let owned = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let relaying = of("10.1.2.3", "always-allow-relaying");
    assert_eq!(relaying, ("yes".into(), 2, "<source 10.1.0.0/16>".into(), owned(&["no", "no"])));
    assert_eq!(of("10.2.0.1", "always-allow-relaying").1, 6);
    assert_eq!(of("10.1.2.3,app", "max-message-size").1, 10);
    assert_eq!(of("App", "max-message-size").3, owned(&["unlimited"]));
    let (all, _) = rows_of(dir.path(), &["--source", "10.1.2.3"]);
    assert!(all.len() > 20 && all.iter().any(|r| r.0 == "allow-starttls" && r.3 == "default"));
    for wrong in
        [&["--source", "ap"][..], &["--source", "app", "--why", "max-smtp-out"], &["--source", "app", "d.test"], &[]]
    {
        let out = run(dir.path(), &[&["config", "explain", "--config", "c.conf"], wrong].concat());
        assert_eq!(out.status.code(), Some(2), "{wrong:?}");
    }
}

/// What the file to begin with says of every domain is nothing that receivers' profiles have figures for.
#[test]
fn the_shipped_file_leaves_receivers_profiles_in_force() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/sluice.conf");
    let explain = |args: &[&str]| -> Vec<Value> {
        let out = run(Path::new("/"), &[&["config", "explain", "gmail.com", "--json"], args].concat());
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let of_profile = |all: &[Value]| -> Vec<(Value, Value)> {
        let from = all.iter().filter(|e| e["origin"]["layer"].as_str().unwrap().starts_with("receiver profile"));
        from.map(|e| (e["name"].clone(), e["value"].clone())).collect()
    };
    let empty = tempfile::NamedTempFile::new().unwrap();
    let without = of_profile(&explain(&["--config", empty.path().to_str().unwrap()]));
    assert!(without.len() >= 4, "{without:?}");
    assert_eq!(of_profile(&explain(&["--config", file.to_str().unwrap()])), without);
}

#[test]
fn a_list_of_every_domain_leaves_those_of_receivers_profiles_in_force() {
    let config = "<smtp-pattern-list mine>\n reply /busy/ mode=backoff\n</smtp-pattern-list>\n<domain *>\n smtp-pattern-list mine\n</domain>\n\
                  <domain yahoo.com>\n smtp-pattern-list mine\n</domain>\n";
    let list = |domain: &str| layers_of(config, &[domain], "smtp-pattern-list").0;
    assert_eq!([list("gmail.com"), list("yahoo.com"), list("d.test")], ["mine, then google", "mine", "mine"]);
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "c.conf", config);
    let said = String::from_utf8(run(dir.path(), &["config", "check", "c.conf"]).stdout).unwrap();
    // Where one names the receiver itself the profile's is not asked, and that is said.
    assert!(said.contains("c.conf:8:2") && said.contains("`sluice config profiles yahoo` shows"), "{said}");
    assert!(said.contains("warning[profile-rules]") && said.ends_with("0 errors, 1 warning\n"), "{said}");
    file(dir.path(), "c.conf", &format!("{config}receiver-profiles no\n"));
    let said = String::from_utf8(run(dir.path(), &["config", "check", "c.conf"]).stdout).unwrap();
    assert!(said.ends_with("0 errors, 0 warnings\n"), "{said}");
}

/// What each of the given lines of `<domain d.test>` through a virtual MTA is, and its layer.
fn layers_of(config: &str, path: &[&str], directive: &str) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "c.conf", config);
    let mut args = vec!["config", "explain", "--config", "c.conf", "--json", "--why", directive];
    args.extend(path);
    let v: Value = serde_json::from_slice(&run(dir.path(), &args).stdout).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    (text(&v[0]["value"]), text(&v[0]["origin"]["layer"]))
}

const PROFILES: &str = "\
<profile a>
 max-smtp-out 3
 max-msg-rate 100/h
</profile>
<profile b>
 max-smtp-out 4
</profile>
";

#[test]
fn profiles_stand_beneath_the_lines_of_their_block_and_later_ones_win() {
    for (block, out, rate) in [
        ("use-profile a", "3", "100/h"),
        ("use-profile a\n use-profile b", "4", "100/h"),
        ("use-profile b\n use-profile a", "3", "100/h"),
        ("max-smtp-out 9\n use-profile a", "9", "100/h"),
        ("use-profile a\n</domain>\n<domain d.test>\n use-profile b", "4", "100/h"),
        ("max-smtp-out 9\n</domain>\n<domain d.test>\n use-profile a", "9", "100/h"),
    ] {
        let config = format!("{PROFILES}<domain d.test>\n {block}\n</domain>\n");
        assert_eq!(layers_of(&config, &["d.test"], "max-smtp-out").0, out, "{config}");
        assert_eq!(layers_of(&config, &["d.test"], "max-msg-rate").0, rate, "{config}");
    }
}

#[test]
fn a_pool_gives_its_profile_to_its_members() {
    let config = format!(
        "{PROFILES}<virtual-mta v>\n</virtual-mta>\n<virtual-mta-pool p>\n virtual-mta v\n use-profile a\n</virtual-mta-pool>\n"
    );
    let (value, layer) = layers_of(&config, &["d.test", "v"], "max-smtp-out");
    assert_eq!((value.as_str(), layer.as_str()), ("3", "pool p <domain *> profile a"));
}

#[test]
fn a_block_speaks_for_all_local_domains() {
    let config = "host-name one.test\nhost-name two.test\n<domain local>\n max-smtp-out 3\n</domain>\n\
        <domain two.test>\n max-smtp-out 4\n</domain>\n<domain *.test>\n max-smtp-out 5\n</domain>\n";
    let of = |d: &str| layers_of(config, &[d], "max-smtp-out");
    assert_eq!(of("one.test"), ("3".into(), "global <domain local>".into()));
    assert_eq!(of("two.test").0, "4");
    assert_eq!(of("three.test").0, "5");
    let machine = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(of(&machine).0, "3");
}

#[test]
fn a_value_of_a_macro_is_traced_to_the_block_as_it_is_written() {
    let config = "domain-macro isp big, small\n<domain $isp.test>\n max-smtp-out 3\n</domain>\n\
        <domain big.test>\n max-msg-rate 5/h\n</domain>\n";
    let of = |directive: &str| layers_of(config, &["big.test"], directive);
    assert_eq!(of("max-smtp-out"), ("3".into(), "global <domain $isp.test>".into()));
    assert_eq!(of("max-msg-rate"), ("5/h".into(), "global <domain big.test>".into()));
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
virtual MTA v3: gone
virtual MTA v4: new
virtual MTA v1: smtp-source-host 127.0.0.1 v1.test → 127.0.0.1 w1.test
* × 2 virtual MTAs: max-smtp-out 10 → 11
bigmail.test: max-msg-rate 50/h → 60/h
bigmail.test/v2: retry-after 5m,1h → 5m,2h
";
    assert_eq!(String::from_utf8(out.stdout).unwrap(), expected);
    let same = run(dir.path(), &["config", "diff", "old.conf", "--config", "old.conf"]);
    assert_eq!(same.stdout, b"Nothing changes.\n");
}

#[test]
fn what_is_asked_about_is_understood_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "old.conf", OLD);
    assert_eq!(why(dir.path(), &["bigmail.test/v1"], "max-smtp-out").0, "4");
    assert_eq!(why(dir.path(), &["[127.0.0.1]"], "max-smtp-out").0, "10");
    for (path, says) in [
        (&["u@d.test"][..], "did you mean d.test?"),
        (&["*"][..], "a pattern has no single answer"),
        (&["*.d.test"][..], "a pattern has no single answer"),
        (&[""][..], "expected a domain"),
        (&["d.test/v1", "v2"][..], "name one"),
        (&["d.test", "v9"][..], "neither a virtual MTA nor a pool"),
        (&["d.test", "--why", "max-smtp-outt"][..], "did you mean max-smtp-out?"),
        (&["d.test", "--why", "always-allow-relaying"][..], "valid in source"),
        (&["d.test", "--why", "use-profile"][..], "no value of its own"),
    ] {
        let mut args = vec!["config", "explain", "--config", "old.conf"];
        args.extend(path);
        let out = run(dir.path(), &args);
        let text = String::from_utf8(out.stderr).unwrap();
        assert!(text.contains(says), "{path:?}: {text}");
        assert_eq!(out.status.code(), Some(2), "{path:?}");
    }
}

#[test]
fn lines_beside_domains_are_traced_over_their_levels() {
    let config = "host-name all.test\nsmtp-source-host 127.0.0.9 g.test\n<virtual-mta v>\n host-name v.test\n max-smtp-out 7\n\
        </virtual-mta>\n<virtual-mta w>\n</virtual-mta>\n<virtual-mta-pool p>\n virtual-mta v\n virtual-mta w\n\
        max-smtp-out 9\n</virtual-mta-pool>\n";
    let of = |path: &[&str], directive: &str| layers_of(config, path, directive);
    assert_eq!(of(&["d.test", "v"], "host-name"), ("v.test".into(), "virtual-mta v".into()));
    assert_eq!(of(&["d.test", "w"], "host-name"), ("all.test".into(), "global".into()));
    assert_eq!(of(&["d.test", "w"], "smtp-source-host"), ("127.0.0.9 g.test".into(), "global".into()));
    assert_eq!(of(&["d.test"], "relay-domain"), ("local domains".into(), "default".into()));
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "c.conf", config);
    let out = run(dir.path(), &["config", "explain", "d.test", "v", "--config", "c.conf", "--why", "max-smtp-out"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        text.contains("max-smtp-out 20\n  default") && text.contains("max-smtp-out 7\n  c.conf:5 (virtual-mta v)"),
        "{text}"
    );
}

#[test]
fn members_of_a_pool_that_have_another_value_are_named() {
    let config = "<virtual-mta v>\n <domain *>\n max-smtp-out 4\n </domain>\n</virtual-mta>\n<virtual-mta w>\n</virtual-mta>\n\
        <virtual-mta-pool p>\n virtual-mta v\n virtual-mta w\n <domain *>\n max-smtp-out 9\n </domain>\n</virtual-mta-pool>\n";
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "c.conf", config);
    let explain = ["config", "explain", "d.test", "p", "--config", "c.conf", "--why", "max-smtp-out"];
    let text = String::from_utf8(run(dir.path(), &explain).stdout).unwrap();
    assert!(text.starts_with("max-smtp-out 9\n"), "{text}");
    assert!(text.ends_with("is 4 for v: c.conf:3 (virtual-mta v <domain *>)\n"), "{text}");
}

#[test]
fn a_limit_that_a_pool_gives_is_traced_at_its_members() {
    let config = "<virtual-mta v>\n</virtual-mta>\n<virtual-mta-pool p>\n virtual-mta v\n max-smtp-msg-rate 6/m\n</virtual-mta-pool>\n";
    assert_eq!(layers_of(config, &["d.test", "v"], "max-smtp-msg-rate"), ("6/m".into(), "pool p".into()));
}

#[test]
fn a_difference_is_an_object_for_scripts() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "old.conf", "workers 1\n<domain d.test>\n max-smtp-out 5\n</domain>\n");
    file(dir.path(), "new.conf", "workers 2\n<domain d.test>\n max-smtp-out unlimited\n</domain>\n");
    let out = run(dir.path(), &["config", "diff", "new.conf", "--config", "old.conf", "--json"]);
    let v: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((v[0]["directive"].as_str(), v[0]["needs_restart"].as_bool()), (Some("workers"), Some(true)));
    assert_eq!((v[1]["path"].as_str(), v[1]["before"].as_str()), (Some("d.test"), Some("5")));
    assert_eq!((v[1]["after"].as_str(), v[1]["change"].as_str()), (Some("unlimited"), Some("changed")));
}
