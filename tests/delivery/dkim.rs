//! DKIM signatures as receivers verify them: by dkimpy, with keys that `sluice dkim` makes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::client::Client;
use tests::dns::Dns;
use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{eventually, fed};

const WAIT: Duration = Duration::from_secs(20);

/// Verifies every signature of a message, with one record for each selector; prints a line each.
const VERIFY: &str = "
import sys, json, dkim
records = json.loads(sys.argv[1])
def txt(name, timeout=5):
    return records[name.decode().split('.')[0]].encode()
raw = sys.stdin.buffer.read()
v = dkim.DKIM(raw)
n = sum(1 for h, _ in v.headers if h.lower() == b'dkim-signature')
for i in range(n):
    try:
        print(v.verify(idx=i, dnsfunc=txt))
    except dkim.ValidationError:
        print(False)
";

fn has_dkimpy() -> bool {
    Command::new("/usr/bin/python3")
        .args(["-c", "import dkim, nacl"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Whether OpenDKIM takes all signatures of what a receiver got for good; `None` where it is not
/// installed.
fn opendkim_verifies(content: &str, records: &[(&str, &str)]) -> Option<bool> {
    let dir = tempfile::tempdir().unwrap();
    let data: String = records.iter().map(|(s, r)| format!("{s}._domainkey.sender.test {r}\n")).collect();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let data = file("records", &data);
    let mode = "Mode v\nSyslog no\nSendReports no\n";
    let settings = file("settings", &format!("{mode}TestDNSData file:{}\n", data.display()));
    let mail = file("mail", content);
    let run =
        Command::new("opendkim").arg("-x").arg(settings).arg("-t").arg(mail).env("PATH", "/usr/sbin:/usr/bin").output();
    let out = run.ok()?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("verification"), "{said}");
    Some(said.contains("succeeded") && !said.contains("failed"))
}

/// Makes a key in `dir`; its file and its record.
fn key(dir: &Path, selector: &str, more: &[&str]) -> (String, String) {
    let file = dir.join(format!("{selector}.pem")).to_str().unwrap().to_owned();
    let out = Command::new(binary())
        .args(["dkim", "generate", selector, "sender.test", "--file", &file])
        .args(more)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8(out.stdout).unwrap();
    let record = said.lines().find(|l| l.contains("IN TXT")).unwrap();
    let strings: String = record.split('"').skip(1).step_by(2).collect();
    (file, strings)
}

/// What dkimpy says of each signature of what a receiver got.
fn verified(content: &str, records: &[(&str, &str)]) -> Vec<bool> {
    let records: serde_json::Map<String, serde_json::Value> =
        records.iter().map(|(s, r)| ((*s).to_owned(), (*r).into())).collect();
    let records = serde_json::to_string(&records).unwrap();
    let out = fed(Command::new("/usr/bin/python3").args(["-c", VERIFY, &records]), content);
    String::from_utf8(out.stdout).unwrap().lines().map(|l| l == "True").collect()
}

fn send(engine: &Engine, to: &str, content: &str) {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("bounce@sender.test", &[to], content).unwrap();
    assert_eq!(code, 250, "{text}");
}

/// The unfolded fields of a name.
fn fields(content: &str, name: &str) -> Vec<String> {
    let header = content.split("\r\n\r\n").next().unwrap().replace("\r\n\t", " ").replace("\r\n ", " ");
    let prefix = format!("{}:", name.to_lowercase());
    header.split("\r\n").filter(|l| l.to_lowercase().starts_with(&prefix)).map(str::to_owned).collect()
}

fn tag(signature: &str, name: &str) -> Option<String> {
    let (_, tags) = signature.split_once(':').unwrap();
    let found = tags.split(';').filter_map(|t| t.trim().split_once('='));
    found.into_iter().find(|(n, _)| *n == name).map(|(_, v)| v.split_whitespace().collect())
}

/// Mail in forms that canonicalisation must not trip over.
fn messages() -> Vec<String> {
    let from = "From: \"A. Name\" <a@sender.test>\r\nSubject: x\r\n";
    vec![
        format!("{from}\r\nbody\r\n"),
        format!("{from}\r\n"),
        from.to_owned(),
        format!(
            "{from}To: b@d.test,\r\n\tc@d.test\r\n  , d@d.test\r\nReceived: one\r\nReceived: two\r\n\r\n a  b \t\r\n\r\n\r\nc\r\n\r\n\r\n"
        ),
        format!("{from}X-Long: {}\r\n\r\n{}\r\n", "y".repeat(900), "z".repeat(99_000)),
        format!("{from}Content-Type: text/plain; charset=utf-8\r\n\r\n.dot\r\nÄöü\t\r\n..\r\n \r\n"),
        format!("{from}Subject: twice\r\nCC:\r\n c@d.test\r\n\r\nno end of line"),
    ]
}

#[test]
fn what_is_made_where_mail_leaves_is_verified() {
    if !has_dkimpy() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (file, record) = key(dir.path(), "e", &["--algorithm", "ed25519"]);
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "domain-key e,sender.test,{file}\n<domain *>\n {}\n dkim-sign yes\n remove-header X-Gone\n</domain>\n\
             <rewrite-list l>\n from-domain inside.test sender.test\n</rewrite-list>\n<virtual-mta v>\n rewrite-list l\n</virtual-mta>\n\
             <source 127/8>\n default-virtual-mta v\n add-x-virtual-mta-header yes\n date-header-time delivery\n add-date-header yes\n \
             one-click-unsubscribe https://u.test/${{recipient}}\n feedback-id ${{recipient}}:x\n</source>\n",
            r.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    let content = "X-Gone: 1\r\nFrom: \"A (b\" <a@inside.test>,\r\n b@inside. (c) test\r\nSubject: x\r\n\r\nbody";
    assert_eq!(c.send("s@x.test", &["a@d.test", "b@d.test"], content).unwrap().0, 250);
    eventually("both arrive", WAIT, || r.unique() == 2);
    let both = ["a@d.test", "b@d.test"].map(|to| r.message_to(to).unwrap().content);
    assert_ne!(tag(&fields(&both[0], "DKIM-Signature")[0], "b"), tag(&fields(&both[1], "DKIM-Signature")[0], "b"));
    for content in &both {
        assert!(content.contains("<a@sender.test>,\r\n b@sender.test\r\n"), "{content}");
        assert_eq!(verified(content, &[("e", record.as_str())]), [true], "{content}");
        let forged = content.replace("u.test/", "w.test/");
        assert_eq!(verified(&forged, &[("e", record.as_str())]), [false]);
    }
}

#[test]
fn what_is_signed_is_verified_whatever_its_form() {
    if !has_dkimpy() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (rsa, rsa_record) = key(dir.path(), "r", &[]);
    let (ed, ed_record) = key(dir.path(), "e", &["--algorithm", "ed25519"]);
    let records = [("r", rsa_record.as_str()), ("e", ed_record.as_str())];
    for (canon, second) in [("simple", "relaxed"), ("relaxed", "simple")] {
        let r = Receiver::start();
        let engine = Engine::start(
            1,
            &format!(
                "domain-key r,sender.test,{rsa}\ndomain-key e,sender.test,{ed}\n<domain *>\n {}\n dkim-sign yes\n \
                 dkim-algorithm rsa-sha256\n dkim-headers-canon {canon}\n dkim-body-canon {second}\n second-dkim-sign yes\n \
                 second-dkim-algorithm ed25519-sha256\n second-dkim-headers-canon {second}\n second-dkim-body-canon {canon}\n\
                 </domain>",
                r.hosts()
            ),
        );
        for (n, m) in messages().iter().enumerate() {
            let to = format!("u{n}@d.test");
            send(&engine, &to, m);
            eventually("it arrives", WAIT, || r.message_to(&to).is_some());
            let content = r.message_to(&to).unwrap().content;
            assert_eq!(verified(&content, &records), [true, true], "{canon}: {content:.600}");
            let all = fields(&content, "DKIM-Signature");
            assert_eq!(all.iter().map(|s| tag(s, "a").unwrap()).collect::<Vec<_>>(), ["rsa-sha256", "ed25519-sha256"]);
            assert_eq!(tag(&all[0], "c").unwrap(), format!("{canon}/{second}"));
            // It reads no message without an empty line behind the header.
            if content.contains("\r\n\r\n") {
                assert_ne!(opendkim_verifies(&content, &records), Some(false), "{canon}: {content:.600}");
            }
        }
        // One that is changed is not.
        let content = r.message_to("u0@d.test").unwrap().content.replace("body", "bodY");
        assert_eq!(verified(&content, &records), [false, false]);
        assert_ne!(opendkim_verifies(&content, &records), Some(true));
    }
}

#[test]
fn tags_are_those_that_the_configuration_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let (file, record) = key(dir.path(), "s1", &[]);
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "domain-key s1,sender.test,{file}\n<domain *>\n {}\n dkim-sign yes\n</domain>\n<domain full.test>\n \
             dkim-add-timestamp yes\n dkim-add-body-limit yes\n dkim-expire-after 2d\n dkim-query-method dns/txt\n \
             dkim-identity @mail.sender.test\n dkim-headers X-Mine, /^x-also-/\n dkim-disallow-adding-headers Subject, Reply-To\n\
             </domain>\n<domain off.test>\n dkim-sign no\n</domain>",
            r.hosts()
        ),
    );
    let mail = "From: a@sub.sender.test\r\nSubject: s\r\nX-Mine: 1\r\nX-Also-this: 2\r\nX-Other: 3\r\nBcc: x@y.test\r\n\r\nabc\r\n";
    for to in ["u@plain.test", "u@full.test", "u@off.test"] {
        send(&engine, to, mail);
    }
    send(&engine, "other@plain.test", &mail.replace("sub.sender.test", "elsewhere.test"));
    send(
        &engine,
        "by-sender@plain.test",
        &format!("Sender: s@sender.test\r\n{}", mail.replace("sub.sender.test", "elsewhere.test")),
    );
    eventually("all arrive", WAIT, || r.unique() == 5);
    let of = |to: &str| fields(&r.message_to(to).unwrap().content, "DKIM-Signature");
    let plain = &of("u@plain.test")[0];
    assert_eq!((tag(plain, "d").as_deref(), tag(plain, "s").as_deref()), (Some("sender.test"), Some("s1")));
    assert_eq!(["t", "x", "l", "q", "i"].map(|t| tag(plain, t)), [None, None, None, None, None]);
    assert_eq!(tag(plain, "h").unwrap().to_lowercase(), "subject:from");
    let full = &of("u@full.test")[0];
    let number = |t| tag(full, t).unwrap().parse::<i64>().unwrap();
    assert_eq!((number("x") - number("t"), number("l")), (2 * 86_400, 5));
    assert_eq!((tag(full, "q").as_deref(), tag(full, "i").as_deref()), (Some("dns/txt"), Some("@mail.sender.test")));
    assert_eq!(tag(full, "h").unwrap().to_lowercase(), "x-also-this:x-mine:subject:from:subject:reply-to");
    assert!(of("u@off.test").is_empty() && of("other@plain.test").is_empty());
    assert_eq!(tag(&of("by-sender@plain.test")[0], "d").as_deref(), Some("sender.test"));
    if has_dkimpy() {
        for to in ["u@plain.test", "u@full.test"] {
            assert_eq!(verified(&r.message_to(to).unwrap().content, &[("s1", &record)]), [true]);
        }
    }
}

#[test]
fn keys_go_by_virtual_mta_then_by_domain_and_attempts_later_are_signed_too() {
    let dir = tempfile::tempdir().unwrap();
    let (file, record) = key(dir.path(), "g", &[]);
    let (own, own_record) = key(dir.path(), "own", &["--bits", "3072"]);
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "domain-key any,*,{file}\ndomain-key late,sender.test,{own}\n<virtual-mta v>\n smtp-source-host 127.0.4.9 v.test\n \
             domain-key own,sender.test,{own}\n</virtual-mta>\n<virtual-mta w>\n smtp-source-host 127.0.4.8 w.test\n</virtual-mta>\n\
             <domain *>\n {}\n dkim-sign yes\n retry-recipients-after 1s\n</domain>\n<domain strict.test>\n dkim-identity strict-from\n\
             </domain>\n<domain fallback.test>\n dkim-identity @none.test\n dkim-identity-fallback @sender.test\n</domain>",
            r.hosts()
        ),
    );
    let mail = |vmta: &str, from: &str| format!("x-virtual-mta: {vmta}\r\nFrom: a@{from}\r\nSubject: s\r\n\r\nabc\r\n");
    r.script(|s| s.rcpt_reply = Some(("450 later", None)));
    send(&engine, "v@d.test", &mail("v", "sender.test"));
    send(&engine, "w@d.test", &mail("w", "sender.test"));
    send(&engine, "x@d.test", &mail("v", "elsewhere.test"));
    send(&engine, "s@strict.test", &mail("v", "sub.sender.test"));
    send(&engine, "f@fallback.test", &mail("v", "elsewhere.test"));
    eventually("all are deferred", WAIT, || r.with(|s| s.deferred.len()) == 5);
    r.script(|s| s.rcpt_reply = None);
    eventually("all arrive", WAIT, || r.unique() == 5);
    let of = |to: &str| {
        let all = fields(&r.message_to(to).unwrap().content, "DKIM-Signature");
        all.first().map(|s| format!("{} {}", tag(s, "s").unwrap(), tag(s, "d").unwrap())).unwrap_or_default()
    };
    assert_eq!(of("v@d.test"), "own sender.test");
    assert_eq!(of("w@d.test"), "any sender.test");
    assert_eq!(of("x@d.test"), "any elsewhere.test");
    assert_eq!(of("s@strict.test"), "");
    assert_eq!(of("f@fallback.test"), "any none.test");
    if has_dkimpy() {
        let records = [("any", record.as_str()), ("own", own_record.as_str())];
        for to in ["v@d.test", "w@d.test", "x@d.test", "f@fallback.test"] {
            assert_eq!(verified(&r.message_to(to).unwrap().content, &records), [true], "{to}");
        }
    }
}

#[test]
fn keys_are_checked_before_they_are_used_and_against_what_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let (file, record) = key(dir.path(), "pub", &[]);
    let (other, _) = key(dir.path(), "other", &[]);
    let dns = Dns::start();
    for selector in ["pub", "other"] {
        dns.change(&format!("{selector}._domainkey.sender.test"), |n| n.txt = vec![record.clone()]);
    }
    let conf = dir.path().join("c.conf");
    let text = |keys: &str| format!("name-server {}\n{keys}\n", dns.address);
    let check = |keys: &str| {
        std::fs::write(&conf, text(keys)).unwrap();
        let out = Command::new(binary()).args(["dkim", "check", conf.to_str().unwrap()]).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
    };
    let (code, said) = check(&format!("domain-key pub,sender.test,{file}"));
    assert!(code == Some(0) && said.contains("pub._domainkey.sender.test: published"), "{said}");
    let (code, said) = check(&format!(
        "domain-key other,sender.test,{other}\ndomain-key none,sender.test,{file}\ndomain-key a,*,{file}"
    ));
    assert!(
        code == Some(1) && said.contains(": differs") && said.contains(": missing") && said.contains("any domain"),
        "{said}"
    );
    let short = dir.path().join("short.pem");
    let made = Command::new("openssl")
        .args(["genrsa", "-out", short.to_str().unwrap(), "1024"])
        .stderr(Stdio::null())
        .status();
    let config = |file: &Path| {
        std::fs::write(&conf, text(&format!("domain-key s,sender.test,{}", file.display()))).unwrap();
        let out = Command::new(binary()).args(["config", "check", conf.to_str().unwrap()]).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
    };
    if made.is_ok_and(|s| s.success()) {
        let (code, said) = config(&short);
        assert!(code == Some(0) && said.contains("1024 bits"), "{said}");
    }
    std::fs::write(dir.path().join("no.pem"), "nothing").unwrap();
    let (code, said) = config(&dir.path().join("no.pem"));
    assert!(code == Some(2) && said.contains("expected an unencrypted RSA or Ed25519"), "{said}");
    assert_eq!(config(&dir.path().join("missing.pem")).0, Some(2));
}

#[test]
fn a_key_file_that_changes_is_used_without_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let (file, first) = key(dir.path(), "s1", &[]);
    let (other, second) = key(dir.path(), "s2", &["--algorithm", "ed25519"]);
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!("domain-key s1,sender.test,{file}\n<domain *>\n {}\n dkim-sign yes\n</domain>", r.hosts()),
    );
    let sent = |n: usize| {
        let to = format!("u{n}@d.test");
        send(&engine, &to, "From: a@sender.test\r\n\r\nx\r\n");
        eventually("it arrives", WAIT, || r.message_to(&to).is_some());
        r.message_to(&to).unwrap().content
    };
    let algorithm = |content: &str| tag(&fields(content, "DKIM-Signature")[0], "a").unwrap();
    assert_eq!(algorithm(&sent(0)), "rsa-sha256");
    // A file that is no key for a while changes nothing.
    std::fs::write(&file, "half").unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(algorithm(&sent(1)), "rsa-sha256");
    std::fs::rename(&other, &file).unwrap();
    let mut n = 1;
    eventually("the new key signs", WAIT, || {
        n += 1;
        std::thread::sleep(Duration::from_millis(500));
        algorithm(&sent(n)) == "ed25519-sha256"
    });
    if has_dkimpy() {
        assert_eq!(verified(&sent(1000), &[("s1", &second)]), [true]);
        assert_eq!(verified(&r.message_to("u0@d.test").unwrap().content, &[("s1", &first)]), [true]);
    }
}

#[test]
fn messages_choose_key_identity_and_list_by_their_own_options() {
    let dir = tempfile::tempdir().unwrap();
    let (one, _) = key(dir.path(), "one", &[]);
    let (two, two_record) = key(dir.path(), "two", &["--algorithm", "ed25519"]);
    let r = Receiver::start();
    let engine = Engine::start(
        2,
        &format!(
            "domain-key one,sender.test,{one}\ndomain-key two,sender.test,{two}\n<domain-key-list Clients>\n domain-key client,client.test,{two}\n \
             domain-key wild,*,{two}\n</domain-key-list>\n<source 127.0.0.1>\n process-x-dkim-options yes\n process-x-dkim-key yes\n</source>\n\
             <domain *>\n {}\n dkim-sign yes\n retry-recipients-after 1s\n</domain>\n<domain asked.test>\n dkim-sign if-x-dkim-options-present\n</domain>\n\
             <domain off.test>\n dkim-sign no\n</domain>",
            r.hosts()
        ),
    );
    let own = std::fs::read_to_string(&two).unwrap().trim().replace('\n', "\r\n ");
    // Deferred first, so that what is signed comes from the disk and, by then, another process.
    r.script(|s| s.rcpt_reply = Some(("450 later", None)));
    let cases: Vec<(&str, String, &str)> = vec![
        ("plain@d.test", String::new(), "one sender.test"),
        ("s@d.test", "X-DKIM-Options: s=two\r\n".into(), "two sender.test"),
        ("nosel@d.test", "X-DKIM-Options: s=three\r\n".into(), ""),
        ("d@d.test", "X-DKIM-Options: d=sender.test; q=dns/txt\r\n".into(), "one sender.test"),
        ("other@d.test", "X-DKIM-Options: d=other.test\r\n".into(), ""),
        ("i@d.test", "X-DKIM-Options: s=two;\r\n i=@mail.sender.test\r\n".into(), "two sender.test @mail.sender.test"),
        ("apart@d.test", "X-DKIM-Options: d=sender.test; i=@other.test\r\n".into(), ""),
        ("list@d.test", "X-DKIM-Options: key-list=clients; d=client.test\r\n".into(), "client client.test"),
        ("wild@d.test", "X-DKIM-Options: key-list=clients; s=wild; d=any.test\r\n".into(), "wild any.test"),
        ("nolist@d.test", "X-DKIM-Options: key-list=none\r\n".into(), ""),
        ("key@d.test", format!("X-DKIM-Options: s=mine; d=sender.test\r\nX-DKIM-Key: {own}\r\n"), "mine sender.test"),
        ("asked@asked.test", "X-DKIM-Options: s=one\r\n".into(), "one sender.test"),
        ("unasked@asked.test", String::new(), ""),
        ("off@off.test", "X-DKIM-Options: s=one\r\n".into(), ""),
    ];
    for (to, options, _) in &cases {
        send(&engine, to, &format!("{options}From: a@sender.test\r\nSubject: s\r\n\r\nabc\r\n"));
    }
    eventually("all are deferred", WAIT, || r.with(|s| s.deferred.len()) == cases.len());
    engine.workers().into_iter().for_each(Engine::kill);
    r.script(|s| s.rcpt_reply = None);
    eventually("all arrive", WAIT, || r.unique() == cases.len());
    for (to, _, expected) in &cases {
        let content = r.message_to(to).unwrap().content;
        let all = fields(&content, "DKIM-Signature");
        let said = all.first().map(|s| {
            let i = tag(s, "i").map(|i| format!(" {i}")).unwrap_or_default();
            format!("{} {}{i}", tag(s, "s").unwrap(), tag(s, "d").unwrap())
        });
        assert_eq!(said.unwrap_or_default(), *expected, "{to}");
        assert!(!content.to_lowercase().contains("x-dkim-") && !content.contains("PRIVATE"), "{content}");
        assert!(content.contains("\r\n\r\nabc\r\n"), "{content:?}");
    }
    let q = |to: &str| tag(&fields(&r.message_to(to).unwrap().content, "DKIM-Signature")[0], "q");
    assert_eq!((q("d@d.test").as_deref(), q("s@d.test")), (Some("dns/txt"), None));
    if has_dkimpy() {
        for (to, selector) in
            [("key@d.test", "mine"), ("s@d.test", "two"), ("list@d.test", "client"), ("wild@d.test", "wild")]
        {
            assert_eq!(verified(&r.message_to(to).unwrap().content, &[(selector, &two_record)]), [true], "{to}");
        }
    }
}

#[test]
fn options_that_are_not_processed_stay_and_keys_do_not() {
    let r = Receiver::start();
    let engine = Engine::start(1, &format!("<domain *>\n {}\n</domain>\n#rules", r.hosts()));
    let mail = "X-DKIM-Options: s=one\r\nX-DKIM-Key: secret\r\nFrom: a@sender.test\r\n\r\nabc\r\n";
    send(&engine, "u1@d.test", mail);
    engine.edit_config("#rules", "<source 127.0.0.1>\n process-x-dkim-options yes\n retain-x-dkim-options yes\n retain-x-dkim-key yes\n</source>");
    assert!(engine.sluice(&["reload"]).status.success());
    std::thread::sleep(Duration::from_millis(300));
    send(&engine, "u2@d.test", mail);
    eventually("both arrive", WAIT, || r.unique() == 2);
    let first = r.message_to("u1@d.test").unwrap().content;
    assert!(first.contains("X-DKIM-Options: s=one") && !first.contains("secret"), "{first}");
    let second = r.message_to("u2@d.test").unwrap().content;
    assert_eq!((second.matches("X-DKIM-Options: s=one").count(), second.matches("secret").count()), (1, 1), "{second}");
}

#[test]
fn a_key_whose_record_is_another_is_told_at_start_and_reload() {
    let dir = tempfile::tempdir().unwrap();
    let (file, record) = key(dir.path(), "s1", &[]);
    let dns = Dns::start();
    let publish = |text: &str| dns.change("s1._domainkey.sender.test", |n| n.txt = vec![text.to_owned()]);
    publish("v=DKIM1; k=rsa; p=AAAA");
    let engine = Engine::start(1, &format!("name-server {}\ndomain-key s1,sender.test,{file}", dns.address));
    eventually("it is told", WAIT, || engine.log().contains("s1._domainkey.sender.test: differs"));
    let status = || engine.json(&["status", "--json"])["data"]["status"]["dkim"].clone();
    eventually("it is counted", WAIT, || status() == serde_json::json!({"keys": 1, "unpublished": 1}));
    publish(&record);
    assert!(engine.sluice(&["reload"]).status.success());
    eventually("all is well", WAIT, || status() == serde_json::json!({"keys": 1, "unpublished": 0}));
}

#[test]
fn a_pools_key_signs_what_comes_by_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let [g, one, two] = ["g", "one", "two"].map(|s| key(dir.path(), s, &["--algorithm", "ed25519"]).0);
    let r = Receiver::start();
    let engine = Engine::start(
        1,
        &format!(
            "domain-key g,sender.test,{g}\n<virtual-mta v>\n smtp-source-host 127.0.4.9 v.test\n</virtual-mta>\n\
             <virtual-mta-pool p1>\n domain-key one,sender.test,{one}\n virtual-mta v\n</virtual-mta-pool>\n\
             <virtual-mta-pool p2>\n domain-key two,sender.test,{two}\n virtual-mta v\n</virtual-mta-pool>\n\
             <domain *>\n {}\n dkim-sign yes\n</domain>",
            r.hosts()
        ),
    );
    for (to, by) in [("a@d.test", "p1"), ("b@d.test", "p2"), ("c@d.test", "v")] {
        send(&engine, to, &format!("x-virtual-mta: {by}\r\nFrom: a@sender.test\r\nSubject: s\r\n\r\nabc\r\n"));
    }
    eventually("all arrive", WAIT, || r.unique() == 3);
    let of = |to: &str| tag(&fields(&r.message_to(to).unwrap().content, "DKIM-Signature")[0], "s").unwrap();
    assert_eq!((of("a@d.test"), of("b@d.test"), of("c@d.test")), ("one".into(), "two".into(), "one".into()));
}
