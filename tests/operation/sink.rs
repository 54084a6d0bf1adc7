//! `sluice sink`: the receiver for tries, and the first message on a machine without DNS.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::client::Client;
use tests::engine::{Engine, binary};
use tests::{accounting, eventually};

struct Sink {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    address: std::net::SocketAddr,
}

impl Sink {
    fn start(args: &[&str]) -> Sink {
        let mut child =
            Command::new(binary()).args(["sink", "127.0.0.1:0"]).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        out.read_line(&mut first).unwrap();
        let address = first.strip_prefix("listening on ").and_then(|l| l.split(';').next());
        let address = address.unwrap_or_else(|| panic!("{first}")).parse().unwrap();
        Sink { child, out, address }
    }

    fn hosts(&self) -> String {
        format!("smtp-hosts [127.0.0.1]:{}", self.address.port())
    }

    /// Ends it; what it printed.
    fn end(mut self) -> String {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.rest()
    }

    fn rest(&mut self) -> String {
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        text
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn refused(rule: &str) -> String {
    let out = Command::new(binary()).args(["sink", "--rule", rule]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_sink_takes_what_its_rules_allow_and_says_how_much() {
    let keep = tempfile::tempdir().unwrap();
    let kept = keep.path().join("mail");
    let rules = keep.path().join("rules");
    std::fs::write(&rules, "# for a try\nfull.test refuse \"552 5.2.2 full\" at=content\nlater-* defer first=1\n*@d.test slow 1ms\ncut-* drop\n").unwrap();
    let sink = Sink::start(&[
        "--rules",
        rules.to_str().unwrap(),
        "--print",
        "--keep",
        kept.to_str().unwrap(),
        "--keep-max",
        "1",
    ]);
    let mut c = Client::connect(sink.address).unwrap();
    let (code, text) = c.send("s@x.test", &["one@d.test"], "Subject: hello\r\n\r\n..\u{1b}dot").unwrap();
    assert_eq!(code, 250, "{text}");
    assert_eq!(c.send("s@x.test", &["two@d.test"], "Subject: two\r\n\r\nx").unwrap().0, 250);
    assert_eq!(c.send("s@x.test", &["u@full.test"], "x").unwrap(), (552, "552 5.2.2 full\r\n".into()));
    assert_eq!(c.command("MAIL FROM:<s@x.test>").unwrap().0, 250);
    assert_eq!(c.command("RCPT TO:<later-1@d.test>").unwrap().0, 450);
    assert_eq!(c.command("RCPT TO:<later-1@d.test>").unwrap().0, 250);
    assert!(c.command("RCPT TO:<cut-1@d.test>").is_err(), "no reply");
    let said = sink.end();
    assert!(
        said.contains("message 1 from <s@x.test> to <one@d.test>") && said.contains("Subject: hello\n\n. dot\n"),
        "{said}"
    );
    assert!(said.contains("2 messages of ") && said.contains("4 accepted, 1 deferred, 1 refused, 1 dropped"), "{said}");
    assert!(said.contains("       1  later-* defer first=1"), "{said}");
    let files: Vec<_> = std::fs::read_dir(&kept).unwrap().flatten().map(|f| f.file_name()).collect();
    assert_eq!(files, ["000001.eml"]);
    assert!(std::fs::read_to_string(kept.join("000001.eml")).unwrap().ends_with("\r\n\r\n.\u{1b}dot\r\n"));
}

#[test]
fn a_wrong_rule_is_named_and_nothing_listens() {
    assert!(refused("x.test bounce").contains("--rule 1: expected accept, defer"));
    let out = Command::new(binary()).args(["sink", "--rules", "/nowhere"]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("cannot read /nowhere"));
    // The configuration for tries leads to it.
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../etc/try.conf");
    let out = Command::new(binary()).args(["config", "check", file]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).ends_with("0 errors, 0 warnings\n"));
    assert!(std::fs::read_to_string(file).unwrap().contains("smtp-hosts [127.0.0.1]:2600"));
}

#[test]
fn mail_is_delivered_to_a_sink_that_misbehaves() {
    let mut sink =
        Sink::start(&["--rule", "gone-* refuse", "--rule", "* defer nth=2", "--rule", "* drop nth=4", "--until", "4"]);
    // A report of the refused one would be a message to the sink too.
    let config = format!(
        "<domain *>\n {}\n retry-after 1s\n retry-recipients-after 1s\n max-smtp-out 1\n</domain>\n\
         <domain x.test>\n deliver-local-dsn no\n</domain>",
        sink.hosts()
    );
    let engine = Engine::start(1, &config);
    let mut c = Client::connect(engine.smtp).unwrap();
    for to in ["one", "two", "gone-3", "four", "five"] {
        assert_eq!(c.send("s@x.test", &[&format!("{to}@d.test")], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    let said = sink.rest();
    assert!(said.contains("4 messages of "), "{said}");
    eventually("all are accounted", Duration::from_secs(20), || {
        let lines = accounting::lines(engine.path());
        let n = |kind: &str| lines.iter().filter(|l| l.starts_with(kind)).count();
        (n("d,"), n("b,")) == (4, 1)
    });
}

#[test]
fn mail_is_delivered_to_a_sink_in_tls() {
    let sink = Sink::start(&[]);
    let engine = Engine::start(
        1,
        &format!("<domain *>\n {}\n use-starttls yes\n require-starttls yes\n</domain>", sink.hosts()),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["one@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("it is delivered", Duration::from_secs(20), || {
        accounting::lines(engine.path()).iter().any(|l| l.starts_with("d,"))
    });
    let mut plain = Client::connect(sink.address).unwrap();
    assert!(plain.command("EHLO x.test").unwrap().1.contains("250-STARTTLS\r\n"));
    assert_eq!(plain.command("STARTTLS now").unwrap().0, 501);
    let said = sink.end();
    assert!(said.contains("1 messages of ") && said.contains("2 connections (1 in TLS)"), "{said}");
}

#[test]
fn a_drop_does_not_take_replies_back_that_were_due_before() {
    let sink = Sink::start(&["--rule", "cut-* drop"]);
    let mut io = std::net::TcpStream::connect(sink.address).unwrap();
    let all = "HELO x.test\r\nMAIL FROM:<s@x.test>\r\nRCPT TO:<u@d.test>\r\nDATA\r\n";
    std::io::Write::write_all(&mut io, all.as_bytes()).unwrap();
    let mut said = Vec::new();
    let mut room = [0; 4096];
    while !String::from_utf8_lossy(&said).contains("354 ") {
        let n = io.read(&mut room).unwrap();
        assert!(n > 0);
        said.extend_from_slice(&room[..n]);
    }
    // The end of one message and the next in one piece, as clients pipeline.
    let next = "x\r\n.\r\nMAIL FROM:<s@x.test>\r\nRCPT TO:<cut-1@d.test>\r\n";
    std::io::Write::write_all(&mut io, next.as_bytes()).unwrap();
    let mut rest = String::new();
    io.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n", "the message, MAIL, and no word to RCPT");
}

#[test]
fn a_server_that_starts_with_mail_says_that_it_waits_and_how_to_let_it_go() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut engine = Engine::start(2, &format!("<domain *>\n smtp-hosts [127.0.0.1]:{closed}\n</domain>"));
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    drop(c);
    assert!(!engine.log().contains("mail waits from before"), "nothing waited");
    assert!(engine.stop());
    engine.start_again();
    eventually("it is told of", Duration::from_secs(10), || {
        let log = engine.log();
        let line = log.lines().find(|l| l.contains("mail waits from before"));
        line.is_some_and(|l| l.contains("sluice schedule") && l.contains("recipients=1"))
    });
}

/// First words of a command line, and the name that `top` shows.
fn names(pid: i32) -> (String, String) {
    let of = |file: &str| std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(file)).unwrap();
    (of("cmdline").split('\0').next().unwrap().to_owned(), of("comm").trim().to_owned())
}

#[test]
fn processes_are_called_by_what_they_are() {
    let engine = Engine::start(2, "");
    assert_eq!(names(engine.pid()), ("sluice: supervisor".into(), "sluice:super".into()));
    let workers: Vec<_> = engine.workers().into_iter().map(names).collect();
    assert_eq!(workers, [0, 1].map(|n| (format!("sluice: worker {n}"), format!("sluice:work {n}"))));
}
