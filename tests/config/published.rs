//! Forms that operators write and PowerMTA takes: each is accepted, and means what its author meant.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tests::client::Client;
use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{eventually, fed};

const WAIT: Duration = Duration::from_secs(20);

/// Runs `sluice` in a folder that holds the configuration as `c.conf`.
fn sluice(dir: &Path, config: &str, args: &[&str]) -> Output {
    std::fs::write(dir.join("c.conf"), config).unwrap();
    Command::new(binary()).current_dir(dir).args(args).output().unwrap()
}

/// `line code` of every error, then of every warning. What is not in force yet is somebody else's subject.
fn said_in(dir: &Path, config: &str) -> (Vec<String>, Vec<String>) {
    let out = sluice(dir, config, &["config", "check", "--json", "c.conf"]);
    let v: Value = serde_json::from_slice(&out.stdout).unwrap();
    let all = |kind: &str| {
        let each = v[kind].as_array().unwrap().iter();
        let each = each.map(|d| format!("{} {}", d["line"], d["code"].as_str().unwrap()));
        each.filter(|d| !d.ends_with(" pending")).collect()
    };
    (all("errors"), all("warnings"))
}

fn said(config: &str) -> (Vec<String>, Vec<String>) {
    said_in(tempfile::tempdir().unwrap().path(), config)
}

/// It is accepted, with these warnings.
fn accepted(config: &str, warnings: &[&str]) {
    let (errors, found) = said(config);
    assert!(errors.is_empty(), "{config}\n{errors:?}");
    assert_eq!(found, warnings, "{config}");
}

/// What `config check` prints for people.
fn text_of(dir: &Path, config: &str) -> String {
    String::from_utf8(sluice(dir, config, &["config", "check", "c.conf"]).stdout).unwrap()
}

/// The value that is in force for a domain, and the line it stands on.
fn explained(config: &str, directive: &str) -> (String, u64) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.conf"), config).unwrap();
    let args = ["config", "explain", "d.test", "--config", "c.conf", "--why", directive, "--json"];
    let out = Command::new(binary()).current_dir(dir.path()).args(args).output().unwrap();
    let v: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let said = &v[0];
    let line = said["origin"]["line"].as_u64().unwrap_or_else(|| panic!("{directive}: {v} {out:?}"));
    (said["value"].as_str().unwrap().to_owned(), line)
}

#[test]
fn an_expression_that_goes_on_over_a_line_end_is_one() {
    let config = "<bounce-category-patterns>\n /(box|user) (is )?(now|for\n    +)?(closed|gone)/ inactive-mailbox # why\n /quota/ quota-issues\n\
                  </bounce-category-patterns>\n";
    accepted(config, &["2 continued"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.conf"), config).unwrap();
    let mut classify = Command::new(binary());
    classify.current_dir(dir.path()).args(["bounce", "classify", "--config", "c.conf"]);
    let out = fed(&mut classify, "550 user for   gone\n550 box is now closed\n550 quota\n");
    let found = String::from_utf8(out.stdout).unwrap();
    assert_eq!(found, "inactive-mailbox\ninactive-mailbox\nquota-issues\n");
    let shown = text_of(dir.path(), config);
    assert!(shown.contains("c.conf:2:2") && shown.contains("ends here"), "{shown}");
    // So do those of other lists.
    accepted(
        "<smtp-pattern-list p>\n reply /too many\n  connections/ skip-mx\n</smtp-pattern-list>\n<domain *>\n smtp-pattern-list p\n</domain>\n",
        &["2 continued"],
    );
    // One that nobody closes is an error where it begins, and the lines below are read.
    let (errors, _) =
        said("<bounce-category-patterns>\n /a b other\n /c/ spam-related x\n</bounce-category-patterns>\nhost-name\n");
    assert_eq!(errors, ["2 unclosed-expression", "3 bad-value", "5 bad-value"]);
}

#[test]
fn two_quotes_inside_of_quotes_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("with blank");
    let domain = |command: &str| format!("<domain d.test>\n type pipe\n command {command}\n</domain>\n");
    let line = format!("\"/usr/bin/tee --append \"\"{}\"\"\"", target.display());
    assert_eq!(explained(&domain(&line), "command"), (format!("/usr/bin/tee --append \"{}\"", target.display()), 3));
    let engine = Engine::start(1, &domain(&line));
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nbody").unwrap().0, 250);
    eventually("the program has it", WAIT, || std::fs::read_to_string(&target).is_ok_and(|t| t.contains("body")));
}

#[test]
fn programs_that_cannot_be_started_are_told_of_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("no-program"), "text").unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let config = format!(
        "<domain a.test>\n type pipe\n command \"{} --to=\"\"$to\"\"\"\n</domain>\n<domain b.test>\n command {}\n</domain>\n\
         <domain c.test>\n command \"{}\"\n</domain>\n<domain e.test>\n command \"cat $to\"\n</domain>\n\
         <domain f.test>\n command /opt/$user/take\n</domain>\n<acct-file | {}>\n</acct-file>\n<domain g.test>\n command no-such-program-anywhere\n</domain>\n",
        at("missing"),
        at("missing"),
        at("no-program"),
        at("gone"),
    );
    assert_eq!(said(&config), (vec![], ["3", "9", "17", "20"].map(|l| format!("{l} missing-program")).to_vec()));
}

#[test]
fn yes_and_no_may_be_true_and_false() {
    accepted("<source 0/0>\n add-date-header true\n</source>\n<domain *>\n dkim-sign FALSE\n</domain>\n", &[]);
    accepted("<source 0/0>\n Add-Date-Header False\n</source>\n", &[]);
}

#[test]
fn macros_stand_in_domains_of_keys_and_lists() {
    let dir = tempfile::tempdir().unwrap();
    let made = sluice(dir.path(), "", &["dkim", "generate", "s1", "one.test", "--file", "key.pem"]);
    assert!(made.status.success(), "{made:?}");
    let pem = dir.path().join("key.pem").display().to_string();
    let macros = "domain-macro brand one, two\ndomain-macro tld test, example\n";
    let key = format!("domain-key s1,$brand.$tld,{pem}\n");
    let list = "<address-list quiet>\n domain three.$tld\n</address-list>\n<source 127.0.0.1>\n suppression-lists quiet\n</source>\n";
    let r = Receiver::start();
    let hosts = r.hosts();
    let engine = Engine::start(1, &format!("{macros}{key}{list}<domain *>\n dkim-sign yes\n {hosts}\n</domain>"));
    let mut c = Client::connect(engine.smtp).unwrap();
    for sender in ["one.test", "two.example", "four.test"] {
        let to = format!("{sender}@d.test");
        let content = format!("From: a@{sender}\r\nSubject: x\r\n\r\nbody");
        assert_eq!(c.send(&format!("s@{sender}"), &[&to], &content).unwrap().0, 250);
        eventually("it arrives", WAIT, || r.message_to(&to).is_some());
        let signed = r.message_to(&to).unwrap().content.contains(&format!("d={sender}"));
        assert_eq!(signed, sender != "four.test", "{sender}");
    }
    c.command("MAIL FROM:<s@one.test>").unwrap();
    assert_eq!(c.command("RCPT TO:<u@three.example>").unwrap().0, 550);
    assert_eq!(c.command("RCPT TO:<u@four.test>").unwrap().0, 250);
    // A name that is not defined is said where it stands.
    assert_eq!(said(&format!("domain-key s1,a.$none,{pem}\n")).0, ["1 macro"]);
    assert_eq!(said("domain-macro odd a..b\n<address-list l>\n domain $odd\n</address-list>\n").0, ["3 bad-value"]);
}

#[test]
fn fields_of_other_versions_are_known() {
    let file = |line: &str| format!("<acct-file a.csv>\n records b, rb\n record-fields {line}\n</acct-file>\n");
    accepted(&file("rb timeLogged, rcpt, dsnAction, dsnReportingMta, format, userString, header_X-Job"), &[]);
    accepted(&file("b jobId,*,!timeImprinted,!rcpt,!rcvSourceIp"), &[]);
    accepted(&file("b jobId,timeImprinted,rcpt"), &["3 obsolete"]);
    assert_eq!(said(&file("b jobId,timeImprintd")).0, ["3 bad-value"]);
    assert_eq!(said(&file("b jobId,!timeImprintd")).0, ["3 bad-value"]);
}

#[test]
fn sources_have_any_name_in_braces() {
    accepted(
        "<source {/var/spool/app/pickup}>\n default-virtual-mta v\n</source>\n<virtual-mta v>\n</virtual-mta>\n\
         <source {feeder: 10.0.0.0/8}>\n</source>\n<source {team-a}>\n</source>\nsmtp-listener 127.0.0.1:2525 source={Team-A}\n",
        &[],
    );
    assert_eq!(said("<source /var/spool>\n</source>\n").0, ["1 bad-value"]);
}

#[test]
fn a_listener_may_be_a_network() {
    let port = std::net::TcpListener::bind("127.0.41.2:0").unwrap().local_addr().unwrap().port();
    let engine = Engine::start(1, &format!("smtp-listener 127.0.41.0/30:{port}\nsmtp-listener 127.0.41.3:{port}"));
    for host in 0..4 {
        let to = format!("127.0.41.{host}:{port}").parse().unwrap();
        assert_eq!(Client::dial(to).unwrap().reply().unwrap().0, 220, "{to}");
    }
    assert!(Client::dial(format!("127.0.41.4:{port}").parse().unwrap()).is_err());
    // One that this machine has no address in is not started with, nor taken by a reload.
    let foreign = "smtp-listener 203.0.113.0/24:2525\n";
    accepted(foreign, &["1 no-address"]);
    let dir = tempfile::tempdir().unwrap();
    let config = format!("data-dir .\nhttp-mgmt-port 0\n{foreign}");
    let out = sluice(dir.path(), &config, &["run", "--config", "c.conf"]);
    let why = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && why.contains("cannot listen on 203.0.113.0/24:2525"), "{why}");
    engine.edit_config("smtp-listener 127.0.41.3", &format!("{foreign}smtp-listener 127.0.41.3"));
    let out = engine.sluice(&["reload"]);
    let why = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && why.contains("203.0.113.0/24:2525"), "{why}");
}

#[test]
fn the_same_listener_twice_is_no_error_where_both_mean_the_same() {
    let sources = "<source a>\n</source>\n<source b>\n</source>\n";
    accepted("smtp-listener 127.0.0.1:2525\n<smtp-listener 127.0.0.1:2525>\n</smtp-listener>\n", &["2 duplicate"]);
    accepted(
        &format!(
            "{sources}smtp-listener 127.0.0.1:2525 source=a\nsmtp-listener 127.0.0.1:2525 source=A\nsmtp-listener 127.0.0.2:25 source=b\n"
        ),
        &["6 duplicate"],
    );
    let (errors, _) =
        said(&format!("{sources}smtp-listener 127.0.0.1:2525 source=a\nsmtp-listener 127.0.0.1:2525 source=b\n"));
    assert_eq!(errors, ["6 duplicate"]);
    // What names an address beats what names its network.
    accepted(&format!("{sources}smtp-listener 127.0.5.0/30:25 source=a\nsmtp-listener 127.0.5.1:25 source=b\n"), &[]);
}

#[test]
fn a_client_certificate_may_have_a_password_that_nobody_sees() {
    let dir = tempfile::tempdir().unwrap();
    let line =
        |file: &str| format!("<domain d.test>\n smtp-client-certificate {file} Geheim1\n max-smtp-out x\n</domain>\n");
    std::fs::write(dir.path().join("plain.pem"), tests::tls::pem()).unwrap();
    assert_eq!(said_in(dir.path(), &line("plain.pem")).0, ["3 bad-value"]);
    let encrypted = include_str!("encrypted.pem");
    std::fs::write(dir.path().join("encrypted.pem"), encrypted).unwrap();
    assert_eq!(said_in(dir.path(), &line("encrypted.pem")).0, ["3 bad-value"]);
    for wrong in ["", "Geheim1 ?", "geheim1"] {
        let config = line("encrypted.pem").replace("Geheim1", wrong);
        assert_eq!(said_in(dir.path(), &config).0, ["2 encrypted-key", "3 bad-value"], "{wrong}");
        assert!(wrong.is_empty() || !text_of(dir.path(), &config).contains(wrong));
    }
    accepted(
        &format!("smtp-server-tls-certificate {} Geheim1\n", dir.path().join("encrypted.pem").display()),
        &["1 readable-key"],
    );
    for file in ["plain.pem", "encrypted.pem", "missing.pem"] {
        let shown = text_of(dir.path(), &line(file));
        assert!(!shown.contains("Geheim1") && shown.contains("max-smtp-out x"), "{shown}");
    }
    let value = sluice(
        dir.path(),
        &line("plain.pem").replace(" max-smtp-out x\n", ""),
        &["config", "explain", "d.test", "--config", "c.conf"],
    );
    let value = String::from_utf8(value.stdout).unwrap();
    assert!(value.contains("plain.pem") && !value.contains("Geheim1"), "{value}");
}

#[test]
fn old_names_stand_for_what_has_another_one_now() {
    for (old, value, name, new) in [
        ("421-means-mx-unavailable", "true", "smtp-421-means-mx-unavailable", "yes"),
        ("max-rcpt-per-message", "7", "max-rcpt-per-transaction", "7"),
        ("max-smtp-out-per-source-ip", "3", "source-ip-max-smtp-out", "0/0 3"),
    ] {
        let config = format!("<domain d.test>\n {old} {value}\n</domain>\n");
        accepted(&config, &[]);
        for asked in [old, name] {
            assert_eq!(explained(&config, asked), (new.to_owned(), 2), "{old}");
        }
    }
    let config = "<virtual-mta v>\n smtp-source-ip 127.0.0.9\n host-name v.test\n</virtual-mta>\nsmtp-port 2525\nsmtp-ip 127.0.0.3\n";
    accepted(config, &[]);
    accepted(&format!("{config}smtp-listener 127.0.0.1:25\n"), &["5 no-effect", "6 no-effect"]);
}

#[test]
fn what_has_no_effect_here_is_said_and_stops_nothing() {
    accepted(
        "enable-signals true\ntotal-max-file 100\ndummy-smtp-has-mailmerge yes\n",
        &["1 ignored", "2 ignored", "3 ignored"],
    );
    accepted(
        "<virtual-mta v>\n auto-cold-virtual-mta 127.0.0.1 a.test\n cold-virtual-mta 127.0.0.1 a.test\n enable-signals true,subaccount=2\n</virtual-mta>\n",
        &["2 ignored", "3 ignored", "4 ignored"],
    );
    accepted(
        "<signals>\n api-key nothing\n what-ever x\n</signals>\n<signals-filter f>\n</signals-filter>\n<sparkpost-analytics>\n</sparkpost-analytics>\n",
        &["1 ignored", "5 ignored", "7 ignored"],
    );
    accepted(
        "<source 0/0>\n check-mfrom-inbound yes\n check-pra-inbound yes\n</source>\n<domain *>\n dk-sign yes\n dk-headers a, b\n add-gm-token yes\n \
         sparkpost-sandbox yes\n smtp-tls-allow-sslv3 yes\n</domain>\n",
        &["2 obsolete", "3 obsolete", "6 obsolete", "7 obsolete", "8 obsolete", "9 ignored", "10 obsolete"],
    );
    accepted(
        "smtp-server-tls-allow-sslv3 yes\nhttp-tls-allow-sslv3 yes\n<smtp-listener 127.0.0.1:25>\n tls-allow-sslv3 true\n</smtp-listener>\n",
        &["1 obsolete", "2 obsolete", "4 obsolete"],
    );
    // One that says no says what happens anyway.
    accepted(
        "enable-signals false\nsmtp-server-tls-allow-sslv3 no\n<domain *>\n dk-sign no\n add-gm-token false\n</domain>\n",
        &[],
    );
    // Of many the first is shown.
    let blocks: String =
        (0..50).map(|n| format!("<virtual-mta v{n}>\n enable-signals true\n</virtual-mta>\n")).collect();
    let dir = tempfile::tempdir().unwrap();
    let shown = text_of(dir.path(), &blocks);
    assert!(shown.contains("(50 lines, the first is shown)") && shown.ends_with("0 errors, 1 warning\n"), "{shown}");
    // Names that nobody ever had stay errors.
    assert_eq!(said("total-max-fiel 100\n").0, ["1 unknown-directive"]);
}

#[test]
fn tags_and_names_are_written_as_people_write_them() {
    accepted(
        "< domain *>\n Max-SMTP-Out 5\n< / domain >\n<DOMAIN d.test >\n</ domain>\n<Domain e.test>\n</DOMAIN E.test>\n",
        &[],
    );
    accepted("Pickup /var/spool/in /var/spool/bad\nPostMaster a@b.test\n", &[]);
    accepted("<acct-file | /bin/cat>\n Records d\n</acct-file>\n", &[]);
}

#[test]
fn lists_may_stand_behind_the_lines_that_name_them() {
    let config = "<source 0/0>\n pattern-list p\n suppression-lists l\n</source>\n<domain *>\n smtp-pattern-list s\n</domain>\n\
         <pattern-list p>\n mail-from /x/ virtual-mta=v\n</pattern-list>\n<smtp-pattern-list s>\n reply /x/ skip-mx\n</smtp-pattern-list>\n\
         <address-list l>\n domain d.test\n</address-list>\n<virtual-mta v>\n</virtual-mta>\n";
    accepted(config, &[]);
    // The list decides all the same.
    let engine = Engine::start(
        1,
        "<source 127.0.0.1>\n pattern-list p\n</source>\n<pattern-list p>\n mail-from /@x\\.test/ virtual-mta=v\n</pattern-list>\n\
         <virtual-mta v>\n</virtual-mta>\n<domain *>\n type discard\n</domain>",
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nbody").unwrap().0, 250);
    let row = || tests::accounting::lines(engine.path()).into_iter().find(|l| l.starts_with("d,"));
    eventually("it is accounted", WAIT, || row().is_some());
    assert_eq!(tests::accounting::cells(&row().unwrap())[18], "v");
}

#[test]
fn a_limit_of_every_domain_that_receivers_domains_share_is_told_of() {
    let rate = "<domain *>\n max-msg-rate 100/h\n max-smtp-out 2\n</domain>\n";
    accepted(rate, &["2 shared-limit"]);
    accepted(
        "<domain *>\n max-smtp-out 20\n max-msg-rate unlimited\n</domain>\n<domain d.test>\n max-msg-rate 5/h\n</domain>\n",
        &[],
    );
    accepted(&format!("receiver-profiles no\n{rate}"), &[]);
    for value in ["0", "unlimited"] {
        let config = format!("<domain d.test>\n max-smtp-out {value}\n</domain>\n");
        assert_eq!(explained(&config, "max-smtp-out"), (value.to_owned(), 2));
    }
}

#[test]
fn the_values_of_a_pool_are_those_of_its_members() {
    let pool = |other: &str| {
        let config = format!(
            "<virtual-mta v1>\n <domain *>\n  max-msg-rate 1000/h\n </domain>\n</virtual-mta>\n<virtual-mta v2>\n <domain *>\n  \
             max-msg-rate {other}\n </domain>\n</virtual-mta>\n<virtual-mta-pool p>\n virtual-mta v1\n virtual-mta v2\n\
             </virtual-mta-pool>\n<domain gmail.test>\n max-msg-rate 250/h\n</domain>\n"
        );
        let dir = tempfile::tempdir().unwrap();
        let args = ["config", "explain", "gmail.test/p", "--config", "c.conf", "--why", "max-msg-rate", "--json"];
        let out = sluice(dir.path(), &config, &args);
        let v: Value = serde_json::from_slice(&out.stdout).unwrap();
        v[0].clone()
    };
    let one = pool("1000/h");
    assert_eq!((one["value"].as_str(), &one["members"]), (Some("1000/h"), &Value::Null), "{one}");
    let two = pool("500/h");
    let members = two["members"].as_array().unwrap().iter();
    assert_eq!(members.map(|m| m["value"].as_str().unwrap()).collect::<Vec<_>>(), ["1000/h", "500/h"], "{two}");
}

#[test]
fn directives_of_the_later_guide_are_known() {
    let later = "edns-udp-length 2048\nmax-memory-usage-percent 80\nsmtp-server-tls-allow-tlsv1.3 yes\nsmtp-server-tls-dh-key-length 2048\n\
         http-tls-allow-tlsv1.3 yes\nvolume-audit-api-key abc\n<domain *>\n retry-after-dns-error 2m\n use-mta-sts yes\n</domain>\n\
         <acct-file x.json>\n records d\n</acct-file>\n";
    accepted(later, &[]);
    // What is not in force loads.
    accepted(
        "track-time-first-attempt yes\ndsn-failed-from-template \"${hostname} <>\"\n<acct-file w.csv>\n \
         http-webhook-url https://hooks.example/a\n http-webhook-max-interval 1m\n http-webhook-transfer-encoding gzip\n</acct-file>\n",
        &[],
    );
    accepted("<signals>\n engagement-tracking sparkpost\n customer-id 7\n use-https yes\n</signals>\n", &["1 ignored"]);
    let vault = "<vault>\n server-url https://vault.example:8200\n access-token s.secret\n</vault>\n\
         <virtual-mta v>\n domain-key {selector}, {domain}, {vault}:/v1/keys/data/${selector}/${domain}:dk\n</virtual-mta>\n";
    accepted(vault, &["6 withheld"]);
    assert!(!tests::engine::checked(vault).1.contains("s.secret"));
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n type discard\n smtp-hosts [127.0.0.1]:9\n</domain>\n<domain d.test>\n type smtp\n</domain>\n{vault}"
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "X-Virtual-MTA: v\r\nSubject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it waits", WAIT, || {
        let why = engine.sluice(&["why", "d.test"]);
        String::from_utf8_lossy(&why.stdout).contains("domain-key (of Vault) is not in force")
    });
}
