//! `sluice config check`: everything that is wrong, at once, where it is.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::engine::binary;

/// Line and code.
type Places = BTreeSet<(u64, String)>;

/// Errors and warnings, and the exit code.
fn check(file: &Path) -> (Places, Places, Option<i32>) {
    let out = Command::new(binary()).args(["config", "check", "--json"]).arg(file).output().unwrap();
    let v: Value = serde_json::from_slice(&out.stdout).unwrap();
    let all = |kind: &str| {
        let list = v[kind].as_array().unwrap().iter();
        list.map(|d| (d["line"].as_u64().unwrap(), d["code"].as_str().unwrap().to_owned())).collect()
    };
    (all("errors"), all("warnings"), out.status.code())
}

fn text_of(config: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.conf");
    std::fs::write(&file, config).unwrap();
    let out = Command::new(binary()).current_dir(dir.path()).args(["config", "check", "c.conf"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn every_wrong_line_is_named_and_no_other() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/wrong.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    let expected = |sign: &str| -> BTreeSet<(u64, String)> {
        let lines = text.lines().enumerate();
        let marked = lines.filter_map(|(i, l)| Some((i, l.rsplit_once(&format!("# {sign}"))?.1.trim())));
        marked.filter(|(_, code)| !code.contains(' ')).map(|(i, code)| (i as u64 + 1, code.to_owned())).collect()
    };
    let (errors, mut warnings, code) = check(&file);
    warnings.retain(|(_, code)| code != "pending" && code != "withheld");
    assert_eq!(errors, expected("!"));
    assert_eq!(warnings, expected("?"));
    assert_eq!(code, Some(2));
}

#[test]
fn directives_that_need_another_one_say_so_once() {
    let said = text_of(
        "<domain *>\n suppress-after 2/1d\n dkim-sign yes\n</domain>\n<domain d.test>\n suppress-after 3/1d\n dkim-sign yes\n \
         second-dkim-sign no\n</domain>\n",
    );
    for part in ["suppress-after has no effect", "dkim-sign signs nothing", "sluice dkim generate"] {
        assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
    }
    let own = "<bounce-category-patterns>\n /gone fishing/ on-holiday\n</bounce-category-patterns>\n";
    let with = "<domain *>\n suppress-on on-holiday\n suppress-after 2/1d\n dkim-sign no\n</domain>\n";
    let said = text_of(&format!("{own}{with}"));
    assert!(said.contains("0 errors, 0 warnings"), "{said}");
}

#[test]
fn a_pattern_of_bounces_that_takes_every_reply_is_allowed_and_said() {
    let said =
        text_of("<bounce-category-patterns>\n /mailbox full/ quota-issues\n // other\n</bounce-category-patterns>\n");
    assert!(
        said.contains("warning[catch-all]: // matches every reply") && said.contains("0 errors, 1 warning"),
        "{said}"
    );
}

#[test]
fn an_error_shows_the_line_the_column_and_what_to_do() {
    let text = text_of("<domain *>\n\tretry-after 10m, 5 minutes\n  max-mesg-per-connection 20\n</domain>\n");
    let expected = "\
error[bad-value]: retry-after: expected a time interval such as 90s, 10m or 4d12h, found \"5 minutes\"
 --> c.conf:2:19
  |
2 |     retry-after 10m, 5 minutes
  |                      ^^^^^^^^^
  |
  = help: unknown unit \"minutes\": w, d, h, m, s

error[unknown-directive]: unknown directive max-mesg-per-connection in <domain>
 --> c.conf:3:3
  |
3 |   max-mesg-per-connection 20
  |   ^^^^^^^^^^^^^^^^^^^^^^^
  |
  = help: did you mean max-msg-per-connection?

c.conf: 2 errors, 0 warnings
";
    assert_eq!(text, expected);
}

#[test]
fn what_is_wrong_on_a_later_line_of_a_list_is_marked_where_the_list_begins() {
    let text = text_of("<domain *>\n retry-after 10m,\n  1hd\n</domain>");
    assert!(text.contains("found \"1hd\"\n --> c.conf:2:14"), "{text}");
}

#[test]
fn two_places_are_shown_where_two_have_to_do_with_it() {
    let text = text_of("<domain a.test>\n max-smtp-out 5\n max-smtp-out 6\n</domain>\n");
    let expected = "\
warning[shadowed]: max-smtp-out is given again here, and this line is in force
 --> c.conf:3:2
  |
2 |  max-smtp-out 5
  |  ------------ has no effect
3 |  max-smtp-out 6
  |  ^^^^^^^^^^^^
  |
  = help: remove one of them

c.conf: 0 errors, 1 warning
";
    assert_eq!(text, expected);
}

#[test]
fn stanzas_that_were_forgotten_are_named() {
    let mut config = String::new();
    for n in 0..30 {
        let rate = if n < 27 { "200/h" } else { "100/h" };
        config.push_str(&format!(
            "<virtual-mta v{n}>\n<domain gmail.com>\nmax-msg-rate {rate}\n</domain>\n</virtual-mta>\n"
        ));
    }
    let text = text_of(&config);
    assert_eq!(
        text.matches("27 of 30 virtual MTAs say max-msg-rate 200/h for gmail.com, this one says 100/h").count(),
        3
    );
    assert!(text.contains("c.conf:138:1"), "{text}");
}

#[test]
fn a_default_of_a_virtual_mta_that_beats_a_named_domain_is_told_of() {
    let text = text_of(
        "<domain d.test>\n max-smtp-out 3\n</domain>\n<virtual-mta v>\n<domain *>\n max-smtp-out 9\n</domain>\n</virtual-mta>\n",
    );
    assert!(text.contains("warning[shadowed]: max-smtp-out of the virtual MTA's <domain *> also beats"), "{text}");
    assert!(text.contains("c.conf:6:2") && text.contains("has no effect for it"), "{text}");
}

#[test]
fn secrets_are_not_repeated() {
    let text =
        text_of("<smtp-user u>\n password correct horse\n password correct horse\n</smtp-user>\nhttp-api-key short\n");
    assert!(text.contains("password: the value is not valid") && text.contains("http-api-key"), "{text}");
    assert!(!text.contains("horse") && !text.contains("short"), "{text}");
}

#[test]
fn files_that_cannot_be_read_are_errors_too() {
    let out = Command::new(binary()).args(["config", "check", "--json", "/nonexistent"]).output().unwrap();
    let v: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((v["errors"][0]["code"].as_str(), out.status.code()), (Some("unreadable"), Some(2)));
}

#[test]
fn folders_that_cannot_be_written_to_are_named_before_a_start_finds_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.display();
    let config = format!(
        "data-dir {}\n<spool {file}/spool>\n</spool>\n<acct-file acct.csv>\n move-to {file}\n</acct-file>\n",
        dir.path().display()
    );
    let text = text_of(&config);
    assert!(
        text.contains("error[unwritable]: spool") && text.contains(&format!("to the folder {file}/spool")),
        "{text}"
    );
    assert!(text.contains("c.conf:5:10") && text.ends_with("2 errors, 0 warnings\n"), "{text}");
    // Where the server is started is not known, unless it is said.
    assert!(text_of("spool spool\n").ends_with("0 errors, 0 warnings\n"));
    std::fs::write(dir.path().join("c.conf"), "spool spool\n").unwrap();
    let args = ["config", "check", "c.conf", "--data-dir"];
    let out = Command::new(binary()).current_dir(dir.path()).args(args).arg(dir.path().join("file")).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("--data-dir: user") && text.ends_with("2 errors, 0 warnings\n"), "{text}");
}

#[test]
fn windows_line_ends_and_unicode_are_read() {
    let text = text_of("\u{feff}<domain b\u{fc}cher.example>\r\n  max-smtp-out 5 # \u{e4}\r\n</domain>");
    assert_eq!(text, "c.conf: 0 errors, 0 warnings\n");
}

#[test]
fn a_quote_that_is_not_closed_swallows_no_block() {
    let text = text_of(
        "<domain y.test>\n command \"/bin/true\n max-smtp-out 6\n</domain>\n<domain z.test>\n command \"/bin/true\"\n</domain>\n",
    );
    assert!(text.contains("expected a closing quote") && text.ends_with("1 error, 0 warnings\n"), "{text}");
    // What a block inherits it need not say.
    let text = text_of("<domain *>\n command \"/bin/true\"\n</domain>\n<domain x.test>\n type pipe\n</domain>\n");
    assert!(text.ends_with("0 errors, 0 warnings\n"), "{text}");
}

#[test]
fn a_web_port_that_a_listener_has_is_refused() {
    let text = text_of("smtp-listener 127.0.0.1:8081\nhttp-mgmt-port 8081\n");
    assert!(text.contains("port 8081 is that of the listener 127.0.0.1:8081, too"), "{text}");
    assert!(text.ends_with("c.conf: 1 error, 0 warnings\n"), "{text}");
}

#[test]
fn a_file_that_many_lines_miss_is_told_of_once() {
    let block = |n: u32| format!("<virtual-mta v{n}>\n domain-key s,d.test,/not/there.pem\n</virtual-mta>\n");
    let text = text_of(&(0..5).map(block).collect::<String>());
    assert_eq!(text.matches("/not/there.pem: No such file").count(), 1, "{text}");
    assert!(text.contains("and 4 more like it: lines 5, 8, 11, 14"), "{text}");
}

#[test]
fn text_on_standard_input_is_checked_and_pending_lines_can_be_hidden() {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = Command::new(binary())
        .args(["config", "check", "-", "--hide-pending"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"<domain *>\n log-commands yes\n max-smtp-out x\n</domain>\n").unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.ends_with("-: 1 error, 0 warnings\n"), "{text}");
}

#[test]
fn of_many_errors_the_first_are_named_and_the_others_counted() {
    let dir = tempfile::tempdir().unwrap();
    let checked = |text: &str, args: &[&str]| -> String {
        std::fs::write(dir.path().join("c.conf"), text).unwrap();
        let mut c = Command::new("timeout");
        c.args(["--signal=KILL", "100"]).arg(binary()).args(["config", "check", "c.conf"]).args(args);
        let out = c.current_dir(dir.path()).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    // Those of a block that come late, too, and of a list that is looked at before others.
    let text = format!("max-smtp-out x\n<domain d.test>\n{}</domain>\n</oops>\n", "max-smpt-out 1\n".repeat(300_000));
    let v: Value = serde_json::from_str(&checked(&text, &["--json"])).unwrap();
    let lines: Vec<u64> = v["errors"].as_array().unwrap().iter().map(|e| e["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [1].into_iter().chain(3..202).collect::<Vec<u64>>());
    assert_eq!(v["more_errors"], 299_802);
    assert!(v["errors"][1]["suggestion"].as_str().unwrap().contains("max-smtp-out"));
    let said = checked(&text, &[]);
    assert!(
        said.ends_with("c.conf: 300002 errors (the first 200 are shown), 0 warnings\n"),
        "{}",
        &said[said.len() - 200..]
    );
    // A quote that is open over all of them.
    let said = checked(&format!("host-name \"a\n{}", "host-name b\n".repeat(4_000_000)), &[]);
    assert!(said.contains("expected a closing quote") && said.contains("more than 3000000 lines"), "{}", said.len());
    assert!(said.len() < 1 << 20);
    let said = checked(&"host-name \"a\n".repeat(1_000_000), &[]);
    assert!(said.contains("errors (the first 200 are shown)") && said.len() < 1 << 20);
    // One word as long as a file may be, and one that is too long.
    let said = checked(&"x".repeat(20 << 20), &[]);
    assert!(said.contains("unknown directive") && said.len() < 1 << 14, "{}", said.len());
    let said = checked(&" ".repeat(130 << 20), &[]);
    assert!(said.is_empty(), "{said}");
}
