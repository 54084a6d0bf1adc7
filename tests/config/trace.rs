//! What `config trace` says of a message is what becomes of it.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::client::Client;
use tests::dns::Dns;
use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{accounting, eventually};

/// A message, sent by a client at 127.0.0.`client`.
#[derive(Clone, Copy)]
struct Mail<'a> {
    client: u8,
    from: &'a str,
    to: &'a str,
    header: &'a str,
}

const fn mail<'a>(client: u8, from: &'a str, to: &'a str, header: &'a str) -> Mail<'a> {
    Mail { client, from, to, header }
}

/// What is said of it.
fn traced(engine: &Engine, m: Mail<'_>, more: &[&str]) -> Value {
    let file = engine.path().join("sluice.conf");
    let client = format!("127.0.0.{}", m.client);
    let mut args = vec!["config", "trace", file.to_str().unwrap(), "--from", m.from, "--to", m.to, "--client", &client];
    if !m.header.is_empty() {
        args.extend(["--header", m.header]);
    }
    args.extend(["--json"]);
    args.extend(more);
    let out = Command::new(binary()).args(&args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Sends it; the code of the last reply, which is the first that is not 2yz or 3yz.
fn sent(engine: &Engine, m: Mail<'_>) -> u16 {
    let mut c = Client::dial_from(IpAddr::from([127, 0, 0, m.client]), engine.smtp).unwrap();
    let lines = [
        "EHLO client.test".to_owned(),
        format!("MAIL FROM:<{}>", m.from),
        format!("RCPT TO:<{}>", m.to),
        "DATA".into(),
    ];
    let greeting = c.reply().unwrap().0;
    if greeting != 220 {
        return greeting;
    }
    for line in lines {
        let code = c.command(&line).unwrap().0;
        if code >= 400 {
            return code;
        }
    }
    let more = if m.header.is_empty() { String::new() } else { format!("{}\r\n", m.header) };
    c.command(&format!("From: <{}>\r\nTo: <{}>\r\n{more}\r\nx\r\n.", m.from, m.to)).unwrap().0
}

/// The tags of a DKIM signature in content that was delivered: domain and selector.
fn signed(content: &str) -> Option<String> {
    let field = content.replace("\r\n\t", " ");
    let field = field.lines().find(|l| l.starts_with("DKIM-Signature:"))?;
    let tag = |name: &str| field.split(';').find_map(|t| t.trim().strip_prefix(name)).unwrap().to_owned();
    Some(format!("d={} s={}", tag("d="), tag("s=")))
}

/// Sends each, and compares.
fn compared(r: &Receiver, engine: &Engine, all: &[Mail<'_>], more: &[&str]) {
    for m in all {
        let what = format!("{} to {} from 127.0.0.{} {}", m.from, m.to, m.client, m.header);
        let said = traced(engine, *m, more);
        let code = said["replies"].as_array().unwrap().last().unwrap().as_str().unwrap()[..3].parse::<u16>().unwrap();
        assert_eq!(sent(engine, *m), code, "{what}: {said:#}");
        let Some(way) = said["recipients"].get(0) else { continue };
        let mut row = Vec::new();
        eventually(&what, Duration::from_secs(20), || {
            let rows = accounting::lines(engine.path());
            row = rows
                .iter()
                .filter(|l| l.starts_with("d,"))
                .map(|l| accounting::cells(l))
                .find(|c| c[4] == m.to)
                .unwrap_or_default();
            !row.is_empty()
        });
        let (queue, vmta) = (&row[21], &row[18]);
        // Accounting names the virtual MTA that carried it, where the queue is that of a pool.
        let domain = |q: &str| q.split('/').next().unwrap().to_owned();
        assert_eq!(domain(way["queue"]["value"].as_str().unwrap()), domain(queue), "{what}: {said:#}");
        let members = way["members"].as_array().unwrap();
        let member = members.iter().find(|x| x["virtual_mta"] == vmta.as_str());
        let member = member.unwrap_or_else(|| panic!("{what}: it left by {vmta}: {said:#}"));
        let got = r.message_to(m.to).unwrap();
        let from = format!("{} {}", got.from, got.hello.split_whitespace().last().unwrap());
        let sources = member["sources"].as_array().unwrap();
        assert!(sources.is_empty() || sources.iter().any(|s| *s == from.as_str()), "{what}: from {from}: {said:#}");
        let signatures = member["signatures"].as_array().unwrap();
        match signed(&got.content) {
            Some(tags) => assert_eq!(signatures[0]["value"], tags.as_str(), "{what}"),
            None => assert!(signatures[0]["value"].as_str().unwrap().starts_with("none"), "{what}: {said:#}"),
        }
        assert_eq!(said["job"], row[19].as_str(), "{what}");
    }
}

#[test]
fn sources_lists_patterns_and_ways_out_are_those_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("k.pem");
    let made = Command::new(binary()).args(["dkim", "generate", "sel", "x.test", "--file"]).arg(&key).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let r = Receiver::start();
    let key = key.display();
    let engine = Engine::start(
        2,
        &format!(
            "domain-macro brand x.test, y.test\ndomain-key sel,$brand,{key}\nrelay-domain [*.]open.test\nsmtp-source-host 127.0.6.9 top.mta.test\n\
             <source 127.0.0.1>\n pattern-list l\n suppression-lists gone\n</source>\n\
             <source 127.0.0.2>\n always-allow-relaying yes\n default-virtual-mta v2\n</source>\n\
             <source 127.0.0.3>\n always-allow-relaying yes\n require-auth yes\n</source>\n\
             <source 127.0.0.4>\n smtp-service no\n</source>\n\
             <source 127.0.0.6>\n always-allow-relaying yes\n check-spf-inbound yes\n</source>\n\
             <pattern-list l>\n mail-from /@NEWS\\./ virtual-mta=p\n header subject /urgent/ virtual-mta=v1\n rcpt-to /^vip/ virtual-mta=v2\n</pattern-list>\n\
             <address-list gone>\n domain gone.test\n address one@d.test\n</address-list>\n\
             <virtual-mta v1>\n smtp-source-host 127.0.6.1 v1.mta.test\n</virtual-mta>\n\
             <virtual-mta v2>\n smtp-source-host 127.0.6.2 v2.mta.test\n domain-key own,*,{key}\n</virtual-mta>\n\
             <virtual-mta-pool p>\n virtual-mta v1\n virtual-mta v2\n</virtual-mta-pool>\n\
             <domain *>\n {}\n dkim-sign yes\n</domain>\n\
             <domain alias.test>\n queue-to d.test\n</domain>\n\
             <domain pool.test>\n virtual-mta-pool p\n</domain>\n\
             <domain round.test>\n reroute-to-virtual-mta v1\n</domain>\n\
             <domain plain.test>\n dkim-sign no\n</domain>\n",
            r.hosts()
        ),
    );
    compared(
        &r,
        &engine,
        &[
            mail(1, "s@x.test", "a@d.test", ""),
            mail(1, "s@z.test", "b@d.test", ""),
            mail(1, "s@y.test", "c@alias.test", ""),
            mail(1, "s@news.test", "d@d.test", ""),
            mail(1, "s@x.test", "e@d.test", "Subject: URGENT"),
            mail(1, "s@x.test", "f@d.test", "X-Virtual-MTA: V2"),
            mail(1, "s@x.test", "g@d.test", "X-Virtual-MTA: nobody"),
            mail(1, "s@x.test", "h@d.test", "X-Job: j1"),
            mail(1, "s@x.test", "vip@d.test", ""),
            mail(1, "s@x.test", "i@pool.test", ""),
            mail(1, "s@x.test", "j@round.test", ""),
            mail(1, "s@x.test", "k@plain.test", ""),
            mail(1, "s@x.test", "u@gone.test", ""),
            mail(1, "s@x.test", "one@d.test", ""),
            mail(2, "s@x.test", "l@d.test", "X-Virtual-MTA: v1"),
            mail(2, "s@x.test", "m@pool.test", ""),
            mail(3, "s@x.test", "n@d.test", ""),
            mail(4, "s@x.test", "o@d.test", ""),
            mail(5, "s@x.test", "p@d.test", ""),
            mail(5, "s@x.test", "q@sub.open.test", ""),
            mail(6, "s@x.test", "r@d.test", ""),
        ],
        &[],
    );
    // The lines that decided are named.
    let line = |v: &Value| v["origin"]["line"].as_u64().unwrap();
    let text = std::fs::read_to_string(engine.path().join("sluice.conf")).unwrap();
    let at = |l: u64| text.lines().nth(l as usize - 1).unwrap().trim().to_owned();
    let said = traced(&engine, mail(1, "s@news.test", "d@d.test", ""), &[]);
    assert_eq!(at(line(&said["virtual_mta"])), "mail-from /@NEWS\\./ virtual-mta=p");
    let key_of = |said: &Value, n: usize| at(line(&said["recipients"][0]["members"][n]["signatures"][0]));
    assert!(key_of(&said, 1).contains("own,*,"), "{said:#}");
    let said = traced(&engine, mail(1, "s@y.test", "a@d.test", ""), &[]);
    assert!(key_of(&said, 0).contains("sel,$brand,"), "{said:#}");
    let said = traced(&engine, mail(1, "s@x.test", "c@alias.test", ""), &[]);
    assert_eq!(at(line(&said["recipients"][0]["queue"])), "queue-to d.test");
    let said = traced(&engine, mail(1, "s@x.test", "j@round.test", ""), &[]);
    assert_eq!(at(line(&said["recipients"][0]["rerouted"][0])), "reroute-to-virtual-mta v1");
    let said = traced(&engine, mail(2, "s@x.test", "l@d.test", ""), &[]);
    assert_eq!(at(line(&said["virtual_mta"])), "default-virtual-mta v2");
}

#[test]
fn a_queue_of_several_domains_is_found_by_their_mail_hosts() {
    let (dns, r) = (Dns::start(), Receiver::start());
    dns.host("mx.host.test", [127, 0, 0, 9]);
    ["one.test", "two.test"].iter().for_each(|d| dns.mx(d, &[(10, "mx.host.test")]));
    let engine = Engine::start(
        1,
        &format!(
            "{}\n<mx-rollup-list>\n mx *.host.test shared.rollup\n</mx-rollup-list>\n<domain *>\n default-smtp-port {}\n</domain>\n\
             <domain shared.rollup>\n max-smtp-out 3\n</domain>\n",
            dns.directive(),
            r.address.port()
        ),
    );
    compared(
        &r,
        &engine,
        &[mail(1, "s@x.test", "a@one.test", ""), mail(1, "s@x.test", "b@two.test", "")],
        &["--lookup"],
    );
    let said = traced(&engine, mail(1, "s@x.test", "a@one.test", ""), &["--lookup"]);
    let limits = said["recipients"][0]["members"][0]["limits"].as_array().unwrap();
    assert!(limits.iter().any(|l| l["name"] == "max-smtp-out" && l["value"] == "3"), "{said:#}");
}

#[test]
fn what_is_no_message_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.conf");
    std::fs::write(&file, "host-name mta.test\n").unwrap();
    let run = |args: &[&str]| {
        let out = Command::new(binary()).args(["config", "trace"]).arg(&file).args(args).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    for (args, expected) in [
        (&["--from", "s@x.test", "--to", "u@mta.test", "--header", "no colon"][..], "X-Virtual-MTA: mta1"),
        (&["--from", "s@x.test\r\nRCPT TO:<y@z.test>", "--to", "u@mta.test"], "line end"),
        (&["--from", "s@x.test", "--to", "u@mta.test", "--source", "none"], "name of a <source>"),
        (&["--from", "s@x.test"], "--to"),
    ] {
        let (code, text) = run(args);
        assert!(code == Some(2) && text.contains(expected), "{args:?}: {code:?} {text}");
    }
    let (code, text) = run(&["--from", "", "--to", "postmaster@mta.test", "--to", "u@d.test"]);
    assert!(code == Some(0) && text.contains("550 5.7.1 <u@d.test> relaying is not allowed"), "{code:?} {text}");
    std::fs::write(&file, "max-smtp-out many\n").unwrap();
    assert_eq!(run(&["--from", "", "--to", "u@mta.test"]).0, Some(2));
}
