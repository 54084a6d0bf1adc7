//! `sluice show message`: everything that is known of one message, and the message as it would be sent.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(20);

/// The id that the server answered.
fn send(engine: &Engine, to: &[&str], headers: &str) -> String {
    let mut c = Client::connect(engine.smtp).unwrap();
    let (code, text) = c.send("s@x.test", to, &format!("{headers}Subject: x\r\n\r\nbody\r\n")).unwrap();
    assert_eq!(code, 250, "{text}");
    text.split(|c: char| !c.is_ascii_alphanumeric()).find(|w| w.len() == 26).unwrap().to_owned()
}

#[test]
fn everything_that_is_known_of_a_message_is_shown() {
    let r = Receiver::start();
    let vmta =
        "<virtual-mta a>\n smtp-source-host 127.0.6.41 a.test\n</virtual-mta>\n<virtual-mta b>\n</virtual-mta>\n";
    let rules = format!("{vmta}<domain *>\n {}\n retry-recipients-after 1h\n bounce-after 2d\n</domain>", r.hosts());
    let engine = Engine::start(2, &rules);
    engine.run(&["pause", "queue", "e.test"]);
    r.script(|s| s.rcpt_reply = Some(("451 4.2.1 wait a while", None)));
    let id = send(&engine, &["u@d.test", "v@e.test", "w@e.test"], "x-virtual-mta: a\r\nx-job: spring\r\n");
    eventually("one is deferred", WAIT, || r.with(|s| s.deferred.len()) == 1);
    let shown = || engine.json(&["show", "message", &id, "--json"]);
    // Its other share may be kept for another shard some moments after the 250.
    let all = || shown()["recipients"].as_array().cloned().unwrap_or_default();
    eventually("its other share is in its queue", WAIT, || {
        all().iter().filter(|r| r["state"] == "paused").count() == 2
    });
    let recipient = |address: &str| {
        let all = all();
        assert_eq!(all.len(), 3, "{all:?}");
        all.into_iter().find(|r| r["recipient"] == address).unwrap()
    };
    eventually("its reply is written down", WAIT, || recipient("u@d.test")["last_reply"] != "");
    let m = shown();
    assert_eq!(
        (&m["message"], &m["sender"], &m["job"]),
        (&id.to_lowercase().into(), &"s@x.test".into(), &"spring".into())
    );
    assert!(m["size"].as_u64().unwrap() > 20 && m["received"] != "" && m["source"] == "smtp", "{m}");
    let u = recipient("u@d.test");
    assert_eq!((&u["state"], &u["queue"], &u["attempts"]), (&"waits".into(), &"d.test/a".into(), &1.into()), "{u}");
    assert!(
        u["last_reply"].as_str().unwrap().contains("wait a while") && u["next_attempt"] != "" && u["expires"] != "",
        "{u}"
    );
    let v = recipient("v@e.test");
    assert_eq!((&v["state"], &v["queue"], &v["attempts"]), (&"paused".into(), &"e.test/a".into(), &0.into()), "{v}");
    let text = engine.run(&["show", "message", &id]);
    for part in ["sender       s@x.test", "job          spring", "vmta         a", "wait a while", "e.test/a"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Rerouted, it is still one message, with the same past.
    engine.run(&["reroute", "d.test", "--to", "b"]);
    let u = recipient("u@d.test");
    assert_eq!((&u["vmta"], &u["queue"], &u["attempts"]), (&"b".into(), &"d.test/b".into(), &1.into()), "{u}");
    assert!(u["last_reply"].as_str().unwrap().contains("wait a while") && u["next_attempt"] != "", "{u}");
    // What has ended is told apart.
    engine.run(&["delete", "--queue", "e.test", "--rcpt", "v@e.test"]);
    assert_eq!(recipient("v@e.test")["state"], "ended");
    assert_eq!(recipient("w@e.test")["state"], "paused");
    engine.run(&["delete", "--queue", "*"]);
    let out = engine.sluice(&["show", "message", &id]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("accounting"), "{out:?}");
    assert_eq!(engine.sluice(&["show", "message", "no-id"]).status.code(), Some(2));
}

#[test]
fn the_content_is_what_the_receiver_gets() {
    let r = Receiver::start();
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("k.pem");
    let made = std::process::Command::new(tests::engine::binary())
        .args(["dkim", "generate", "s1", "x.test", "--algorithm", "ed25519", "--file"])
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success());
    let engine = Engine::start(
        1,
        &format!(
            "<virtual-mta a>\n domain-key s1,x.test,{}\n</virtual-mta>\n<domain *>\n {}\n dkim-sign yes\n remove-header X-Secret\n</domain>",
            key.display(),
            r.hosts()
        ),
    );
    engine.run(&["pause", "queue", "*"]);
    let id = send(&engine, &["u@d.test"], "x-virtual-mta: a\r\nFrom: s@x.test\r\nX-Secret: y\r\n");
    let shown = engine.run(&["show", "message", &id, "--content"]);
    assert!(
        shown.starts_with("DKIM-Signature:") && shown.contains("d=x.test") && shown.contains("\r\n\r\nbody\r\n"),
        "{shown}"
    );
    assert!(!shown.contains("X-Secret") && !shown.to_lowercase().contains("x-virtual-mta"), "{shown}");
    engine.run(&["resume", "queue", "*"]);
    eventually("it goes", WAIT, || r.unique() == 1);
    // Signatures tell when they were made.
    let unsigned = |t: &str| t.split_once("Received:").map(|(_, rest)| rest.trim_end().to_owned());
    assert_eq!(unsigned(&shown), unsigned(&r.message_to("u@d.test").unwrap().content));
}

#[test]
fn a_share_that_is_kept_for_a_shard_that_is_down_is_shown() {
    let r = Receiver::start();
    let engine = Engine::start(2, &format!("<domain *>\n {}\n</domain>", r.hosts()));
    engine.run(&["pause", "queue", "*"]);
    let to: Vec<String> = (0..12).map(|n| format!("u@d{n}.test")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    // One that stands still answers nobody, and is there again once the other has kept its share.
    let stopped = nix::unistd::Pid::from_raw(engine.workers()[1]);
    nix::sys::signal::kill(stopped, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let id = send(&engine, &to, "");
    let shown =
        || engine.json(&["show", "message", &id, "--json"])["recipients"].as_array().cloned().unwrap_or_default();
    let states = || shown().iter().map(|r| r["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let kept = |all: &[String]| all.iter().filter(|s| *s == "kept for shard 1").count();
    let all = states();
    assert!(all.len() == to.len() && kept(&all) > 0 && kept(&all) < all.len(), "{all:?}");
    nix::sys::signal::kill(stopped, nix::sys::signal::Signal::SIGCONT).unwrap();
    eventually("it is where it belongs", WAIT, || {
        let all = states();
        all.len() == to.len() && all.iter().all(|s| s == "paused")
    });
}
