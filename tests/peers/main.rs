//! Against programs that others wrote: swaks, smtp-source, Postfix, Python's email. A test
//! whose program is missing says so and passes; `tests/run` installs them where it can.
#![allow(clippy::unwrap_used, missing_docs)]

mod dnssec;
mod postfix;

use std::process::{Command, Output};
use std::time::Duration;

use postfix::Postfix;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

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
