//! Against programs that others wrote: swaks, smtp-source, Postfix, Exim, Python's email. A test
//! whose program is missing says so and passes; `tests/run` installs them where it can.
#![allow(clippy::unwrap_used, missing_docs)]

mod acme;
mod beside;
mod dnssec;
mod exim;
mod haproxy;
mod spf;

use std::process::{Command, Output};
use std::time::Duration;

use exim::Exim;
use tests::engine::Engine;
use tests::postfix::Postfix;
use tests::receiver::Receiver;
use tests::{eventually, has};

fn run(program: &str, args: &[&str]) -> Output {
    let out = Command::new(program).args(args).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(out.status.success(), "{program} {args:?}\n{}{}", text(&out.stdout), text(&out.stderr));
    out
}

/// Evaluates Python over a message on standard input as `m`.
fn python(message: &str, expression: &str) -> String {
    use std::io::Write;
    let code = format!(
        "import sys, email, email.policy\nm = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)\nprint({expression})"
    );
    let mut child = Command::new("python3")
        .args(["-c", &code])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(message.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[test]
fn swaks_to_postfix() {
    let Some(postfix) = Postfix::start() else { return };
    if !has("swaks") {
        return;
    }
    let config = format!("<domain *>\n {}\n</domain>", postfix.hosts());
    let engine = Engine::start(2, &config);
    let server = engine.smtp.to_string();
    for n in 0..5 {
        let body = format!("line {n}\n.\n..dots\nübermut");
        let to = format!("u{n}@mailbox.test");
        run("swaks", &["--server", &server, "--from", "s@x.test", "--to", &to, "--body", &body]);
    }
    eventually("Postfix has all", Duration::from_secs(30), || postfix.mailbox().len() == 5);
    let mail = postfix.mailbox();
    assert!(mail.iter().all(|m| m.contains("\n.\n..dots\nübermut")), "{}", mail[0]);
    assert_eq!(python(&mail[0], "len(m.defects), m['from'] is not None, len(m.get_all('received'))"), "0 True 2");
}

#[test]
fn postfix_refuses_and_the_report_parses() {
    let Some(postfix) = Postfix::start() else { return };
    if !has("python3") {
        return;
    }
    let reports = Receiver::start();
    let config =
        format!("<domain x.test>\n {}\n</domain>\n<domain *>\n {}\n</domain>", reports.hosts(), postfix.hosts());
    let engine = Engine::start(1, &config);
    let mut c = tests::client::Client::connect(engine.smtp).unwrap();
    c.send("s@x.test", &["u@elsewhere.test"], "Subject: refused\r\n\r\nbody").unwrap();
    eventually("the report arrives", Duration::from_secs(20), || reports.unique() == 1);
    let report = reports.message_to("s@x.test").unwrap().content;
    let parts = "m.get_content_type(), m.get_param('report-type'), [p.get_content_type() for p in m.iter_parts()]";
    assert_eq!(
        python(&report, parts),
        "multipart/report delivery-status ['text/plain', 'message/delivery-status', 'text/rfc822-headers']"
    );
    let fields = "[(k, f[k]) for f in list(m.iter_parts())[1].get_payload() for k in ('Action', 'Status') if f[k]]";
    assert_eq!(python(&report, fields), "[('Action', 'failed'), ('Status', '5.7.1')]");
}

/// Postfix counts connections, messages and recipients of a client in windows of its own; they
/// begin and end with whole seconds, so that one of 5 s may last for 6.
const ANTI_ABUSE: &str = "\
smtpd_client_event_limit_exceptions =
anvil_rate_time_unit = 5s
smtpd_client_connection_rate_limit = 10
smtpd_client_connection_count_limit = 2
smtpd_client_message_rate_limit = 20
smtpd_client_recipient_rate_limit = 20
";

#[test]
fn limits_that_fit_those_of_postfix_are_never_refused() {
    let Some(postfix) = Postfix::start_with(ANTI_ABUSE) else { return };
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n max-smtp-out 2\n max-connect-rate 7/5s\n max-msg-rate 15/5s\n max-msg-per-connection 5\n \
             use-starttls no\n</domain>",
            postfix.hosts()
        ),
    );
    let mut c = tests::client::Client::connect(engine.smtp).unwrap();
    for i in 0..70 {
        assert_eq!(c.send("s@x.test", &[&format!("u{i}@mailbox.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("Postfix has all", Duration::from_secs(60), || postfix.mailbox().len() == 70);
    let log = postfix.log();
    let refused: Vec<&str> = log.lines().filter(|l| l.contains("limit exceeded") || l.contains("too many")).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn what_postfix_refuses_for_its_limits_arrives_later() {
    let Some(postfix) = Postfix::start_with(ANTI_ABUSE) else { return };
    let engine = Engine::start(
        1,
        &format!(
            "<smtp-pattern-list limits>\n reply /too (many|much)/ mode=backoff\n</smtp-pattern-list>\n<domain *>\n {}\n \
             smtp-pattern-list limits\n max-smtp-out 10\n retry-after 2s\n backoff-retry-after 2s\n \
             retry-recipients-after 2s\n backoff-max-smtp-out 1\n backoff-max-msg-rate 15/5s\n backoff-to-normal-after \
             1h\n use-starttls no\n</domain>",
            postfix.hosts()
        ),
    );
    let mut c = tests::client::Client::connect(engine.smtp).unwrap();
    for i in 0..60 {
        assert_eq!(c.send("s@x.test", &[&format!("u{i}@mailbox.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("Postfix has all", Duration::from_secs(90), || postfix.mailbox().len() == 60);
    assert!(postfix.log().contains("limit exceeded"), "its limits were never met");
    let paths = engine.json(&["show", "paths", "--json"]);
    assert_eq!(paths[0]["mode"], "backoff", "{paths}");
}

/// The first connections to a receiver whose postscreen does not know us yet are answered 450 once all tests are
/// passed; the same client is let through from then on.
#[test]
fn postscreen_lets_us_pass_its_tests() {
    let tests = "\
postscreen_greet_wait = 2s
postscreen_greet_action = enforce
postscreen_pipelining_enable = yes
postscreen_pipelining_action = enforce
postscreen_non_smtp_command_enable = yes
postscreen_non_smtp_command_action = enforce
postscreen_bare_newline_enable = yes
postscreen_bare_newline_action = enforce
postscreen_access_list =
postscreen_cache_map = btree:$data_directory/postscreen_cache
";
    let Some(postfix) = Postfix::start_behind_postscreen(tests) else { return };
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n retry-after 2s\n retry-recipients-after 2s\n use-starttls no\n</domain>",
            postfix.hosts()
        ),
    );
    let mut c = tests::client::Client::connect(engine.smtp).unwrap();
    for i in 0..20 {
        assert_eq!(c.send("s@x.test", &[&format!("u{i}@mailbox.test")], "Subject: x\r\n\r\n.x").unwrap().0, 250);
    }
    eventually("Postfix has all", Duration::from_secs(90), || postfix.mailbox().len() == 20);
    let log = postfix.log();
    assert!(log.contains("PASS NEW"), "{log}");
    for violation in ["PREGREET", "COMMAND PIPELINING", "BARE NEWLINE", "NON-SMTP COMMAND"] {
        assert!(!log.contains(violation), "{violation}: {log}");
    }
}

#[test]
fn limits_that_fit_those_of_exim_are_never_refused() {
    let Some(exim) = Exim::start() else { return };
    let engine = Engine::start(
        2,
        &format!(
            "<domain *>\n {}\n max-smtp-out 2\n max-connect-rate 7/5s\n max-msg-rate 15/5s\n max-msg-per-connection 5\n \
             use-starttls no\n</domain>",
            exim.hosts()
        ),
    );
    let mut c = tests::client::Client::connect(engine.smtp).unwrap();
    for i in 0..50 {
        assert_eq!(c.send("s@x.test", &[&format!("u{i}@mailbox.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("Exim has all", Duration::from_secs(60), || exim.delivered() == 50);
    let log = exim.log();
    let refused: Vec<&str> = log.lines().filter(|l| l.to_lowercase().contains("too many")).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn what_exim_refuses_for_its_limits_arrives_later() {
    let Some(exim) = Exim::start() else { return };
    let engine = Engine::start(
        1,
        &format!(
            "<smtp-pattern-list limits>\n reply /too many/ mode=backoff\n</smtp-pattern-list>\n<domain *>\n {}\n \
             smtp-pattern-list limits\n max-smtp-out 10\n retry-after 2s\n backoff-retry-after 2s\n \
             retry-recipients-after 2s\n backoff-max-smtp-out 1\n backoff-max-msg-rate 15/5s\n \
             backoff-max-connect-rate 7/5s\n backoff-to-normal-after 1h\n use-starttls no\n</domain>",
            exim.hosts()
        ),
    );
    let mut c = tests::client::Client::connect(engine.smtp).unwrap();
    for i in 0..60 {
        assert_eq!(c.send("s@x.test", &[&format!("u{i}@mailbox.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("Exim has all", Duration::from_secs(90), || exim.delivered() == 60);
    assert!(exim.log().to_lowercase().contains("too many"), "its limits were never met");
    let paths = engine.json(&["show", "paths", "--json"]);
    assert_eq!(paths[0]["mode"], "backoff", "{paths}");
}

#[test]
fn smtp_source_floods() {
    if !has("smtp-source") {
        return;
    }
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    let to = engine.smtp.to_string();
    // -N numbers the recipients, -d keeps the connections.
    let flood = ["-s", "20", "-m", "2000", "-l", "4000", "-N", "-d", "-f", "s@x.test", "-t", "u@flood.test", &to];
    run("smtp-source", &flood);
    eventually("all arrive", Duration::from_secs(60), || r.unique() == 2000);
    assert_eq!(r.duplicates(), 0);
}
