//! Directives that the table calls supported: another value, and a client, a receiver or a
//! file sees something else.

use std::time::{Duration, Instant};

use tests::client::Client;
use tests::engine::{Engine, checked};
use tests::receiver::Receiver;
use tests::{accounting, eventually};

/// A server whose lines change while it runs.
struct Live {
    engine: Engine,
    receiver: Receiver,
    source: String,
    domain: String,
    messages: u32,
}

const SOURCE: &str = "#source-begin";
const DOMAIN: &str = "#domain-begin";

impl Live {
    fn start(global: &str) -> Live {
        let receiver = Receiver::start();
        let engine = Engine::start(
            1,
            &format!(
                "{global}\n<virtual-mta v>\n</virtual-mta>\n<source 127.0.0.1>\n{SOURCE}\n</source>\n\
                 <domain *>\n {}\n retry-after 1s\n{DOMAIN}\n</domain>",
                receiver.hosts()
            ),
        );
        Live { engine, receiver, source: SOURCE.into(), domain: DOMAIN.into(), messages: 0 }
    }

    fn reload(&self) {
        let out = self.engine.sluice(&["reload"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// Puts these lines in force for clients.
    fn source(&mut self, lines: &str) -> &mut Self {
        let new = format!("{SOURCE}\n{lines}\n#source-end");
        self.engine.edit_config(&self.source, &new);
        self.source = new;
        self.reload();
        self
    }

    /// Puts these lines in force for destinations.
    fn domain(&mut self, lines: &str) -> &mut Self {
        let new = format!("{DOMAIN}\n{lines}\n#domain-end");
        self.engine.edit_config(&self.domain, &new);
        self.domain = new;
        self.reload();
        self
    }

    fn client(&self) -> Client {
        Client::connect(self.engine.smtp).unwrap()
    }

    fn ehlo(&self) -> String {
        let mut c = Client::dial(self.engine.smtp).unwrap();
        c.reply().unwrap();
        c.command("EHLO client.test").unwrap().1
    }

    /// Sends a message with these header lines to a recipient of its own, and answers the
    /// reply.
    fn send(&mut self, headers: &str) -> (u16, String, String) {
        self.messages += 1;
        let to = format!("u{}@d.test", self.messages);
        let (code, text) = self.client().send("s@x.test", &[&to], &format!("{headers}Subject: x\r\n\r\nbody")).unwrap();
        (code, text, to)
    }

    /// Sends one, and answers it as the receiver got it.
    fn sent(&mut self, headers: &str) -> String {
        let (code, text, to) = self.send(headers);
        assert_eq!(code, 250, "{text}");
        eventually("it arrives", Duration::from_secs(10), || self.receiver.message_to(&to).is_some());
        self.receiver.message_to(&to).unwrap().content
    }

    /// Cells of a recipient's row.
    fn row(&self, kind: &str, to: &str) -> Vec<String> {
        let mut found = None;
        eventually(&format!("a {kind} row for {to}"), Duration::from_secs(20), || {
            let all = accounting::lines(self.engine.path());
            found = all.into_iter().find(|l| l.starts_with(&format!("{kind},")) && l.contains(to));
            found.is_some()
        });
        accounting::cells(&found.unwrap())
    }
}

/// What a check warns of on this machine the log of a start has, too; mail from an address that is not there waits.
#[test]
fn a_start_says_what_the_machine_is_not_ready_for() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<virtual-mta v>\n smtp-source-host 203.0.113.9 v.test\n</virtual-mta>\n<domain *>\n {}\n max-smtp-out 999999999\n</domain>",
            r.hosts()
        ),
    );
    let log = engine.log();
    assert!(log.contains("this machine does not have the address 203.0.113.9"), "{log}");
    assert!(log.contains("max-smtp-out is above the") && log.contains("line="), "{log}");
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "X-Virtual-MTA: v\r\n\r\nx").unwrap().0, 250);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((r.unique(), engine.queued()), (0, 1));
}

#[test]
fn headers_of_accepted_mail() {
    let mut l = Live::start("host-id 77");
    let plain = l.sent("X-Job: j\r\nX-Virtual-MTA: v\r\nX-Envid: e1\r\n");
    assert!(plain.contains("from client.test") && !plain.contains("X-Job") && !plain.contains("X-Virtual-MTA"));
    assert!(plain.contains("X-Envid: e1") && !plain.contains("Date: ") && !plain.contains("Message-ID: "));
    l.source("retain-x-job yes\nretain-x-virtual-mta yes\nprocess-x-envid yes\nhide-message-source yes\nadd-date-header true\nadd-message-id-header yes");
    let kept = l.sent("X-Job: j\r\nX-Virtual-MTA: v\r\nX-Envid: e1\r\n");
    assert!(kept.contains("X-Job: j") && kept.contains("X-Virtual-MTA: v") && !kept.contains("X-Envid"), "{kept}");
    assert!(kept.contains("Received: by") && !kept.contains("client.test") && kept.contains("Date: "), "{kept}");
    assert!(kept.contains(".77@mta.test>"), "host-id: {kept}");
    assert_eq!(l.row("d", "u2@d.test")[20], "e1");
    l.source("add-received-header no");
    assert!(!l.sent("").contains("Received: "));
    assert!(l.sent("Date: Mon, 1 Jan 2024 00:00:00 +0000\r\n").contains("2024"));
    l.source("add-date-header override");
    assert!(!l.sent("Date: Mon, 1 Jan 2024 00:00:00 +0000\r\n").contains("2024"));
}

#[test]
fn limits_on_clients() {
    let mut l = Live::start("");
    let hops = "Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n".repeat(3);
    assert_eq!(l.send(&hops).0, 250);
    assert!(l.ehlo().contains("CHUNKING") && l.ehlo().contains("SMTPUTF8"));
    l.source("max-message-hops 2\nallow-chunking no\nallow-smtputf8 no\nmax-message-size 1K");
    assert_eq!(l.send(&hops).0, 554);
    assert_eq!(l.send(&format!("X-Long: {}\r\n", "x".repeat(900)).repeat(2)).0, 552);
    assert!(!l.ehlo().contains("CHUNKING") && !l.ehlo().contains("SMTPUTF8"));
    for (fails, code) in [("no", 354), ("yes", 554)] {
        l.source(&format!("max-rcpt-per-message 1\ntoo-many-rcpts-fails-message {fails}"));
        let mut c = l.client();
        c.command("MAIL FROM:<s@x.test>").unwrap();
        assert_eq!(c.command("RCPT TO:<a@d.test>").unwrap().0, 250);
        assert_eq!(c.command("RCPT TO:<b@d.test>").unwrap().0, 452);
        assert_eq!(c.command("DATA").unwrap().0, code);
    }
    l.source("max-smtp-commands 4");
    let mut c = l.client();
    let codes: Vec<u16> = (0..5).map_while(|_| c.command("NOOP").ok()).map(|r| r.0).collect();
    assert!(codes.contains(&421) && codes.len() < 5, "{codes:?}");
    l.source("smtp-service no");
    assert_eq!(Client::dial(l.engine.smtp).unwrap().reply().unwrap().0, 521);
}

#[test]
fn patience_with_clients() {
    let mut l = Live::start("");
    let ends_within = |l: &Live, seconds: u64, first: &[&str]| {
        let mut c = l.client();
        first.iter().for_each(|line| drop(c.command(line).unwrap()));
        let began = Instant::now();
        let last = c.reply();
        assert!(last.is_err() || last.as_ref().is_ok_and(|r| r.0 == 421), "{last:?}");
        assert!(began.elapsed() < Duration::from_secs(seconds + 3), "{:?}", began.elapsed());
    };
    l.source("smtp-command-timeout 1s");
    ends_within(&l, 1, &[]);
    l.source("smtp-data-timeout 1s");
    ends_within(&l, 1, &["MAIL FROM:<s@x.test>", "RCPT TO:<u@d.test>", "DATA"]);
    l.source("smtp-session-timeout 2s");
    ends_within(&l, 2, &["NOOP"]);
}

#[test]
fn choice_of_the_virtual_mta() {
    let mut l = Live::start("");
    l.sent("");
    assert_eq!(l.row("d", "u1@d.test")[18], "{default}");
    l.source("default-virtual-mta v");
    l.sent("");
    assert_eq!(l.row("d", "u2@d.test")[18], "v");
    assert_eq!(l.send("X-Virtual-MTA: nobody\r\n").0, 550);
    assert_eq!(l.send("X-Virtual-MTA: \r\n").0, 550);
    l.source("default-virtual-mta v\nallow-empty-x-virtual-mta yes\nreject-invalid-virtual-mta no");
    let (code, _, to) = l.send("X-Virtual-MTA: \r\n");
    assert_eq!((code, l.row("d", &to)[18].as_str()), (250, "{default}"));
    let (code, _, to) = l.send("X-Virtual-MTA: nobody\r\n");
    assert_eq!((code, l.row("b", &to)[7].as_str()), (250, "5.3.5 (no such virtual MTA)"));
    l.engine.edit_config("<virtual-mta v>", "invalid-virtual-mta-fallback v\n<virtual-mta v>");
    l.reload();
    let (_, _, to) = l.send("X-Virtual-MTA: nobody\r\n");
    assert_eq!(l.row("d", &to)[18], "v");
    l.source("process-x-virtual-mta no");
    assert!(l.sent("X-Virtual-MTA: nobody\r\n").contains("X-Virtual-MTA: nobody"));
}

#[test]
fn who_may_relay() {
    let mut l = Live::start("relay-domain [*.]mine.test\nrelay-address one@other.test");
    l.source("always-allow-relaying no");
    for (to, code) in [("a@mine.test", 250), ("a@b.mine.test", 250), ("one@other.test", 250), ("two@other.test", 550)] {
        let mut c = l.client();
        c.command("MAIL FROM:<s@x.test>").unwrap();
        assert_eq!(c.command(&format!("RCPT TO:<{to}>")).unwrap().0, code, "{to}");
    }
}

#[test]
fn reports_as_configured() {
    let mut l = Live::start("custom-dsn-from-header \"Robot <robot@mta.test>\"");
    let bounce = |l: &Live, from: &str| {
        let (code, _) = l.client().send(from, &["bad-1@d.test"], "Subject: x\r\n\r\nsecret body").unwrap();
        assert_eq!(code, 250);
    };
    bounce(&l, "s1@x.test");
    eventually("the report arrives", Duration::from_secs(10), || l.receiver.message_to("s1@x.test").is_some());
    let report = l.receiver.message_to("s1@x.test").unwrap().content;
    assert!(report.contains("From: Robot <robot@mta.test>") && !report.contains("secret body"), "{report}");
    l.source("dsn-return-default full");
    bounce(&l, "s2@x.test");
    eventually("the report arrives", Duration::from_secs(10), || l.receiver.message_to("s2@x.test").is_some());
    assert!(l.receiver.message_to("s2@x.test").unwrap().content.contains("secret body"));
    l.source("suppress-local-dsn yes");
    bounce(&l, "s3@x.test");
    bounce(&l, "s4@x.test");
    std::thread::sleep(Duration::from_secs(2));
    assert!(l.receiver.message_to("s3@x.test").is_none());
}

#[test]
fn extensions_of_receivers_that_are_left_unused() {
    let mut l = Live::start("");
    l.receiver.script(|s| s.extensions = vec!["PIPELINING", "CHUNKING", "DSN", "8BITMIME", "SIZE 0"]);
    let commands = |l: &Live| l.receiver.with(|s| std::mem::take(&mut s.commands)).join("\n");
    let transaction = |l: &mut Live| {
        let mut c = l.client();
        c.command("MAIL FROM:<s@x.test> RET=HDRS BODY=8BITMIME").unwrap();
        l.messages += 1;
        let to = format!("u{}@d.test", l.messages);
        c.command(&format!("RCPT TO:<{to}> NOTIFY=FAILURE")).unwrap();
        assert_eq!(c.send_content("Subject: x\r\n\r\n\u{e9}").unwrap().0, 250);
        eventually("it arrives", Duration::from_secs(10), || l.receiver.message_to(&to).is_some());
    };
    transaction(&mut l);
    let all = commands(&l);
    for used in ["BDAT", "NOTIFY=FAILURE", "RET=HDRS", "BODY=8BITMIME"] {
        assert!(all.contains(used), "{used}: {all}");
    }
    l.domain("ignore-chunking yes\nignore-dsn yes\nignore-8bitmime yes");
    transaction(&mut l);
    let few = commands(&l);
    for unused in ["BDAT", "NOTIFY", "RET=", "BODY="] {
        assert!(!few.contains(unused), "{unused}: {few}");
    }
    // Without pipelining nothing is sent behind a recipient that is refused.
    let refused = |l: &Live| {
        let code = l.client().send("s@x.test", &["bad-1@d.test"], "Subject: x\r\n\r\nx").unwrap().0;
        assert_eq!(code, 250);
        eventually("RCPT comes", Duration::from_secs(10), || {
            l.receiver.with(|s| s.commands.iter().any(|c| c.contains("bad-1")))
        });
        std::thread::sleep(Duration::from_millis(300));
        commands(l)
    };
    assert!(refused(&l).contains("DATA"));
    l.domain("ignore-chunking yes\nignore-pipelining yes");
    let one_by_one = refused(&l);
    let after = one_by_one.split("bad-1").nth(1).unwrap().split("MAIL").next().unwrap();
    assert!(!after.contains("DATA"), "{one_by_one}");
}

#[test]
fn connections_as_configured() {
    let mut l = Live::start("");
    let connections = |l: &Live| l.receiver.with(|s| s.connections);
    // A connection that idles is kept for as long as is said.
    l.domain("connection-idle-timeout 5s");
    l.sent("");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(l.receiver.with(|s| s.open), 1);
    l.domain("connection-idle-timeout 0");
    l.sent("");
    eventually("it is closed", Duration::from_secs(8), || l.receiver.with(|s| s.open) == 0);
    l.domain("max-errors-per-connection 1\nmax-smtp-out 1");
    let before = connections(&l);
    for n in 0..3 {
        l.client().send("", &[&format!("bad-{n}@d.test")], "Subject: x\r\n\r\nx").unwrap();
    }
    l.row("b", "bad-2@d.test");
    assert_eq!(connections(&l) - before, 3);
    l.domain("disable-acct-records b");
    l.client().send("", &["bad-9@d.test"], "Subject: x\r\n\r\nx").unwrap();
    l.sent("");
    std::thread::sleep(Duration::from_millis(700));
    assert!(!accounting::lines(l.engine.path()).iter().any(|r| r.contains("bad-9@")));
}

#[test]
fn patience_with_receivers() {
    let mut l = Live::start("");
    let error = |l: &Live| l.engine.json(&["show", "queues", "--json"])[0]["last_error"].to_string();
    l.receiver.script(|s| s.hang = true);
    l.domain("smtp-greeting-timeout 1s\nmax-msg-per-connection 1");
    let (_, _, to) = l.send("");
    eventually("the greeting is not waited for", Duration::from_secs(8), || error(&l).contains("ETIMEDOUT"));
    l.receiver.script(|s| s.hang = false);
    eventually("it arrives", Duration::from_secs(10), || l.receiver.message_to(&to).is_some());
    // Single bytes put nothing off.
    for (reply, patience) in [
        ("220 ", "smtp-greeting-timeout 1s"),
        ("250-receiver.test", "smtp-multiple-line-response-timeout 1s"),
        ("250 2.1.5", "smtp-multiple-line-response-timeout 1s"),
        ("250 2.0.0 accepted", "smtp-data-termination-timeout 1s"),
    ] {
        l.receiver.script(|s| s.drips = Some(reply));
        l.domain(&format!("{patience}\nretry-recipients-after 1s\nmax-msg-per-connection 1"));
        let given_up = |l: &Live| l.engine.log().matches("ETIMEDOUT").count();
        let before = given_up(&l);
        let (_, _, to) = l.send("");
        let what = format!("a reply that drips is not waited for: {reply}");
        eventually(&what, Duration::from_secs(8), || given_up(&l) > before);
        l.receiver.script(|s| s.drips = None);
        eventually("it arrives", Duration::from_secs(10), || l.receiver.message_to(&to).is_some());
    }
    l.receiver.script(|s| s.delay = Duration::from_secs(4));
    l.domain("smtp-data-termination-timeout 1s\nretry-recipients-after 1h");
    let (_, _, to) = l.send("");
    assert!(l.row("t", &to).join(",").contains("ETIMEDOUT"));
    l.receiver.script(|s| s.delay = Duration::ZERO);
    // A queue that waits is woken by new mail only where that is wanted.
    for (wakes, arrives) in [("no", false), ("yes", true)] {
        l.receiver.script(|s| s.greeting = "421 later");
        l.domain(&format!("retry-after 1h\nretry-upon-new-mail {wakes}\nmax-msg-per-connection 1"));
        let domain = format!("{wakes}.test");
        let one = |l: &Live, to: &str| assert_eq!(l.client().send("", &[to], "Subject: x\r\n\r\nx").unwrap().0, 250);
        one(&l, &format!("a@{domain}"));
        eventually("it is refused", Duration::from_secs(8), || {
            let rows = l.engine.json(&["show", "queues", "--json"]);
            rows.as_array()
                .unwrap()
                .iter()
                .any(|q| q["destination"] == domain.as_str() && q["last_error"].to_string().contains("421 later"))
        });
        l.receiver.script(|s| s.greeting = "220 receiver.test");
        one(&l, &format!("b@{domain}"));
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(l.receiver.message_to(&format!("b@{domain}")).is_some(), arrives, "retry-upon-new-mail {wakes}");
    }
}

#[test]
fn hosts_that_are_tried() {
    let r = Receiver::start();
    let down = "[127.0.1.99]:1";
    let up = r.hosts().replace("smtp-hosts ", "");
    let engine = Engine::start(
        1,
        &format!(
            "<domain one.test>\n smtp-hosts {down}; {up}\n mx-connection-attempts 1\n retry-after 1h\n</domain>\n\
             <domain two.test>\n smtp-hosts {down}; {up}\n mx-connection-attempts 2\n retry-after 1h\n</domain>"
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@one.test", "u@two.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    eventually("two attempts reach it", Duration::from_secs(10), || r.message_to("u@two.test").is_some());
    assert!(r.message_to("u@one.test").is_none());
}

#[test]
fn files_as_configured() {
    use std::os::unix::fs::PermissionsExt;
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<acct-file acct2/all.csv>\n records d\n iso-times no\n world-readable yes\n</acct-file>\n<domain *>\n {}\n</domain>",
            r.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    let line = || {
        let files = std::fs::read_dir(engine.path().join("acct2")).ok()?.flatten().next()?;
        let text = std::fs::read_to_string(files.path()).ok()?;
        Some((text.lines().nth(1)?.to_owned(), files.metadata().ok()?.permissions().mode() & 0o777))
    };
    eventually("a row is written", Duration::from_secs(10), || line().is_some());
    let (row, mode) = line().unwrap();
    assert!(row.split(',').nth(1).unwrap().parse::<u64>().is_ok(), "{row}");
    assert_eq!(mode & 0o004, 0o004, "{mode:o}");
}

#[test]
fn a_spool_without_room_refuses() {
    for line in ["spool-min-free-space 999999999", "<spool spool>\n min-free-space 900T\n</spool>"] {
        let engine = Engine::start(1, line);
        let mut c = Client::connect(engine.smtp).unwrap();
        let (code, text) = c.send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap();
        assert_eq!(code, 452, "{line}: {text}");
    }
}

#[test]
fn a_host_that_does_not_take_the_connection_is_given_up() {
    // A backlog that is full: the kernel drops what asks for more.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let fill = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let held: Vec<_> = std::iter::repeat_with(fill).take_while(Result::is_ok).take(16).collect();
    assert!(held.len() < 16);
    let config = |timeout: &str| {
        format!("<domain *>\n smtp-hosts [127.0.0.1]:{}\n connect-timeout {timeout}\n</domain>", address.port())
    };
    for (timeout, gives_up) in [("1s", true), ("1h", false)] {
        let engine = Engine::start(1, &config(timeout));
        Client::connect(engine.smtp).unwrap().send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap();
        let error = || engine.json(&["show", "queues", "--json"])[0]["last_error"].to_string();
        if gives_up {
            eventually("it is given up", Duration::from_secs(8), || error().contains("ETIMEDOUT"));
        } else {
            std::thread::sleep(Duration::from_secs(3));
            assert!(!error().contains("ETIMEDOUT"));
        }
    }
}

#[test]
fn a_host_that_stops_reading_is_given_up() {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for io in listener.incoming().flatten() {
            let mut reader = BufReader::with_capacity(512, io.try_clone().unwrap());
            let say = |text: &str| drop((&io).write_all(text.as_bytes()));
            say("220 slow.test\r\n");
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                if line.starts_with("DATA") {
                    say("354 go on\r\n");
                    break;
                }
                say("250 ok\r\n");
                line.clear();
            }
            held.push(io.try_clone().unwrap());
        }
    });
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n smtp-hosts [127.0.0.1]:{port}\n data-send-timeout 1s\n retry-recipients-after 1h\n</domain>"
        ),
    );
    let body = "x".repeat(76) + "\r\n";
    let message = format!("Subject: x\r\n\r\n{}", body.repeat(200_000));
    assert_eq!(Client::connect(engine.smtp).unwrap().send("s@x.test", &["u@d.test"], &message).unwrap().0, 250);
    eventually("it is given up", Duration::from_secs(15), || {
        accounting::lines(engine.path()).iter().any(|l| l.starts_with("t,") && l.contains("ETIMEDOUT"))
            || engine.json(&["show", "queues", "--json"])[0]["last_error"].to_string().contains("ETIMEDOUT")
    });
}

#[test]
fn processors_and_patience_at_the_end_as_configured() {
    let r = Receiver::start();
    r.script(|s| s.delay = Duration::from_secs(60));
    let config = format!("worker-cpus 1,0\nstop-grace 1s\n<domain *>\n {}\n</domain>", r.hosts());
    let mut engine = Engine::start(2, &config);
    let cpus: Vec<i64> = engine
        .json(&["show", "shards", "--json"])
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["cpu"].as_i64().unwrap())
        .collect();
    assert_eq!(cpus, [1, 0]);
    Client::connect(engine.smtp).unwrap().send("s@x.test", &["u@d.test"], "Subject: x\r\n\r\nx").unwrap();
    eventually("it is being delivered", Duration::from_secs(8), || r.with(|s| s.open) == 1);
    let began = Instant::now();
    assert!(engine.stop());
    // The receiver's answer would have come later by far.
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn files_end_and_go_as_configured() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<acct-file acct3/a.csv>\n records d\n max-size 1M\n delete-after 1s\n</acct-file>\n<domain *>\n {}\n</domain>",
            r.hosts()
        ),
    );
    let files = || {
        let all = std::fs::read_dir(engine.path().join("acct3")).unwrap().flatten();
        all.map(|f| f.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    // What its name says of its age is no matter: it counts from when the server sees it.
    let old = engine.path().join("acct3/a-2020-01-01-0000.csv");
    std::fs::write(&old, "type\r\n").unwrap();
    let mut c = Client::connect(engine.smtp).unwrap();
    let to: Vec<String> = (0..100).map(|n| format!("user-{n:050}@d.test")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    for _ in 0..60 {
        assert_eq!(c.send("s@x.test", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    let whole = |f: &String| f.starts_with("a-") && !f.contains("2020");
    eventually("a second file begins", Duration::from_secs(20), || files().iter().filter(|f| whole(f)).count() >= 2);
    // Files are looked through whenever another is begun.
    eventually("the old file is gone", Duration::from_secs(20), || {
        assert_eq!(c.send("s@x.test", &to, "Subject: x\r\n\r\nx").unwrap().0, 250);
        assert!(engine.sluice(&["rotate", "acct"]).status.success());
        !old.exists()
    });
}

#[test]
fn zero_connections_send_nothing_and_zero_rates_are_no_limit() {
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n {}\n max-msg-rate 0\n</domain>\n<domain trap.test>\n max-smtp-out 0\n backoff-max-smtp-out 5\n retry-after 1s\n</domain>\n\
             <domain open.test>\n max-smtp-out unlimited\n</domain>",
            r.hosts()
        ),
    );
    for to in ["u@trap.test", "u@open.test", "u@d.test"] {
        let mut c = Client::connect(engine.smtp).unwrap();
        assert_eq!(c.send("s@x.test", &[to], "Subject: x\r\n\r\nx").unwrap().0, 250);
    }
    eventually("the others arrive", Duration::from_secs(10), || r.unique() == 2 && engine.queued() == 1);
    let why = engine.run(&["why", "trap.test"]);
    assert!(why.contains("max-smtp-out 0"), "{why}");
    engine.edit_config("max-smtp-out 0", "max-smtp-out 1");
    engine.run(&["reload"]);
    eventually("it arrives, too", Duration::from_secs(10), || r.unique() == 3);
    // Back to none: what is open ends.
    engine.edit_config("max-smtp-out 1", "max-smtp-out 0");
    engine.run(&["reload"]);
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["v@trap.test"], "Subject: x\r\n\r\nx").unwrap().0, 250);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((r.unique(), engine.queued()), (3, 1));

    let (code, said) = checked(
        "<domain a.test>\n max-msg-rate 0\n max-msg-per-hour 0\n max-smtp-out 0\n</domain>\n<virtual-mta v>\n max-smtp-out 0\n</virtual-mta>",
    );
    assert!(code == Some(0) && said.matches("warning[zero]").count() == 3, "{said}");
    assert!(said.contains("max-msg-rate 0 is no limit") && said.contains("sluice pause"), "{said}");
}
