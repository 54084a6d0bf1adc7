//! What systemd sees and gives: readiness, watchdog, reload, sockets.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::engine::{Engine, binary};
use tests::eventually;
use tests::receiver::Receiver;

use crate::send;

#[test]
fn tells_systemd_of_its_life() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut heard = String::new();
    let mut hear = |word: &str| {
        eventually(word, Duration::from_secs(20), || {
            let mut buf = [0; 1024];
            while let Ok(n) = socket.recv(&mut buf) {
                heard.push_str(&String::from_utf8_lossy(&buf[..n]));
                heard.push('\n');
            }
            heard.contains(word)
        });
        heard.clear();
    };
    let mut engine = Engine::start_by(2, "", |_| {
        let mut c = Command::new(binary());
        c.env("NOTIFY_SOCKET", &path);
        c
    });
    hear("READY=1");
    hear("WATCHDOG=1\nSTATUS=2 of 2 shards serve");
    assert!(engine.sluice(&["reload"]).status.success());
    hear("RELOADING=1\nMONOTONIC_USEC=");
    assert!(engine.stop());
    hear("STOPPING=1");
}

#[test]
fn takes_its_listener_from_systemd() {
    let r = Receiver::start();
    let mut held = None;
    let engine = Engine::start_by(2, &format!("<domain *>\n {}\n</domain>", r.hosts()), |smtp| {
        // The socket exists before the server, as with an activation.
        let listener = std::net::TcpListener::bind(smtp).unwrap();
        held = Some(listener.try_clone().unwrap());
        let mut c = Command::new("sh");
        c.args(["-c", "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "sh"]).arg(binary());
        c.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
        c
    });
    send(&engine, 5, "u", "d.test");
    eventually("all arrive", Duration::from_secs(10), || r.unique() == 5);
}

/// Values of a setting of the unit, of all its lines.
fn values(name: &str) -> Vec<String> {
    let unit = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/sluice.service")).unwrap();
    let all = unit.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    all.flat_map(|v| v.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn workers_may_restrict_themselves_and_are_pinned() {
    // No group of systemd 252 has these, or the unit takes their group away.
    let calls = values("SystemCallFilter");
    for needed in
        ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp", "sched_setaffinity"]
    {
        assert!(calls.iter().any(|c| c == needed), "{needed}: {calls:?}");
    }
    assert_eq!(values("SystemCallErrorNumber"), ["EPERM"], "what else is called fails and kills nothing");
    // What a configuration names beside the data folder; PowerMTA's folders where they exist.
    assert_eq!(
        (values("StateDirectory"), values("LogsDirectory")),
        (vec!["sluice".to_owned()], vec!["sluice".to_owned()])
    );
    assert_eq!(values("ReadWritePaths"), ["-/var/log/pmta", "-/var/spool/pmta"]);
    assert_eq!(values("UMask"), ["0077"], "mail is for nobody else");
}
