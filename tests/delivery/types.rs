//! `type discard`, `file` and `pipe`.

use std::path::PathBuf;
use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::receiver::Receiver;
use tests::{accounting, eventually};

use super::{row, send};

fn files(dir: &PathBuf) -> Vec<String> {
    let Ok(all) = std::fs::read_dir(dir) else { return Vec::new() };
    let named = |p: &PathBuf| p.extension().is_some_and(|e| e == "msg");
    all.flatten().map(|f| f.path()).filter(named).map(|p| std::fs::read_to_string(p).unwrap()).collect()
}

#[test]
fn mail_is_discarded_and_accounted() {
    let engine = Engine::start(
        1,
        "<domain gone.test>\n type discard\n</domain>\n<domain bounced.test>\n type discard\n discard-as-bounce yes\n</domain>\n\
         <domain silent.test>\n type discard\n disable-acct-records d\n</domain>",
    );
    send(&engine, &["a@gone.test", "b@bounced.test", "c@silent.test"]);
    let d = accounting::cells(&row(&engine, "d", "a@gone.test"));
    assert_eq!((d[6].as_str(), d[13].as_str()), ("relayed", "discard"));
    assert!(row(&engine, "b", "b@bounced.test").contains("discarded"));
    eventually("nothing waits", Duration::from_secs(10), || engine.queued() == 0);
    assert!(!accounting::lines(engine.path()).iter().any(|l| l.contains("silent.test")));
}

#[test]
fn mail_is_written_to_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let rules = |domain: &str, format: &str, to: &str| {
        format!(
            "<domain {domain}>\n type file\n file-format {format}\n file-destination \"{}\"\n</domain>\n",
            at(to).display()
        )
    };
    let config = rules("plain.test", "newfile-plain", "plain/$user")
        + &rules("pickup.test", "newfile-pickup", "pickup")
        + &rules("mbox.test", "append-mbox", "$domain.mbox")
        + &rules("bad.test", "append-mbox", "plain/u")
        + &rules("link.test", "append-mbox", "link.mbox")
        + &rules("pipe.test", "append-mbox", "pipe.mbox")
        + "<domain *>\n retry-recipients-after 1s\n</domain>";
    let engine = Engine::start(1, &config);
    send(&engine, &["U+x@plain.test", "/evil@plain.test", "v@pickup.test", "w@mbox.test", "x@mbox.test"]);
    for to in ["U+x@plain.test", "/evil@plain.test", "v@pickup.test", "w@mbox.test", "x@mbox.test"] {
        assert_eq!(accounting::cells(&row(&engine, "d", to))[13], "file");
    }
    assert!(files(&at("plain/u"))[0].contains("Subject: x\n\nx"));
    assert_eq!(files(&at("plain/_evil")).len(), 1);
    assert!(files(&at("pickup"))[0].starts_with("x-sender: s@sender.test\nx-receiver: v@pickup.test\n"));
    let mbox = std::fs::read_to_string(at("mbox.test.mbox")).unwrap();
    assert_eq!(mbox.matches("From s@sender.test ").count(), 2, "{mbox}");
    // What cannot be written waits: the mbox is a folder.
    send(&engine, &["y@bad.test"]);
    assert!(row(&engine, "t", "y@bad.test").contains("cannot write"));
    // Nor does it go where somebody else lays a link, or wait for the other end of a pipe.
    std::fs::write(at("victim"), "kept").unwrap();
    std::os::unix::fs::symlink("victim", at("link.mbox")).unwrap();
    nix::unistd::mkfifo(&at("pipe.mbox"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    send(&engine, &["z@link.test", "z@pipe.test"]);
    assert!(row(&engine, "t", "z@link.test").contains("not a regular file but a symbolic link"));
    assert!(row(&engine, "t", "z@pipe.test").contains("not a regular file but a named pipe"));
    assert_eq!(std::fs::read_to_string(at("victim")).unwrap(), "kept");
}

#[test]
fn mail_is_fed_to_programs_whose_exit_code_decides() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("take.sh");
    let text = "#!/bin/sh\ncat > \"$1/$2.out\"\necho \"$3\" > \"$1/$2.args\"\ncase $2 in nobody) exit 67;; later) exit 75;; esac\n";
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let engine = Engine::start(
        1,
        &format!(
            "<domain *>\n type pipe\n command \"{} {} $$user \\\"$to from $from\\\"\"\n retry-recipients-after 1h\n</domain>",
            program.display(),
            dir.path().display()
        )
        .replace("$$user", "$user"),
    );
    send(&engine, &["one@d.test", "nobody@d.test", "later@d.test"]);
    let d = accounting::cells(&row(&engine, "d", "one@d.test"));
    assert_eq!(d[13], "pipe");
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(read("one.out").ends_with("Subject: x\n\nx\n"), "{:?}", read("one.out"));
    assert_eq!(read("one.args"), "one@d.test from s@sender.test\n");
    assert!(row(&engine, "b", "nobody@d.test").contains("5.1.1"));
    assert!(row(&engine, "t", "later@d.test").contains("4.0.0"));
}

#[test]
fn a_program_has_its_own_environment_and_cpus_and_no_address_for_an_option() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let script =
        "#!/bin/sh\ncd ${0%/*}\nenv > env\ngrep Cpus_allowed_list /proc/self/status > cpus\necho \"$@\" >> told\n";
    std::fs::write(at("take.sh"), script).unwrap();
    std::fs::set_permissions(at("take.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = at("take.sh").display().to_string();
    let config = format!(
        "<domain *>\n type pipe\n command \"{program} $to\"\n</domain>\n\
         <domain behind.test>\n command \"{program} -- $to\"\n</domain>"
    );
    let engine = Engine::start_by(1, &config, |_| {
        let mut c = std::process::Command::new(tests::engine::binary());
        c.env("OF_THE_SERVER", "secret").env("NOTIFY_SOCKET", at("none"));
        c
    });
    send(&engine, &["-x@plain.test"]);
    let refused = row(&engine, "b", "-x@plain.test");
    assert!(refused.contains("5.3.0") && refused.contains("for an option"), "{refused}");
    send(&engine, &["-y@behind.test"]);
    row(&engine, "d", "-y@behind.test");
    let read = |name: &str| std::fs::read_to_string(at(name)).unwrap();
    // The report of the refused one goes to the sender.
    assert!(read("told").contains("-- -y@behind.test\n") && !read("told").contains("-x@"), "{}", read("told"));
    let env = read("env");
    assert!(env.contains("PATH=") && !env.contains("OF_THE_SERVER") && !env.contains("NOTIFY_SOCKET"), "{env}");
    let of_worker = std::fs::read_to_string(format!("/proc/{}/status", engine.workers()[0])).unwrap();
    let worker = of_worker.lines().find(|l| l.starts_with("Cpus_allowed_list")).unwrap();
    let there_are_others = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    assert_eq!(read("cpus").trim() != worker, there_are_others, "{worker}");
}

#[test]
fn fields_that_are_removed_do_not_go_out_and_are_accounted_for() {
    let (r, folder) = (Receiver::start(), tempfile::tempdir().unwrap());
    let hosts = r.hosts();
    // The old name of smtp-hosts, without brackets.
    let route = hosts.replace("smtp-hosts", "route").replace(['[', ']'], "");
    assert_ne!(hosts, route);
    let config = format!(
        "<source 127.0.0.1>\n remove-header X-Campaign, x-trace\n</source>\n<domain *>\n {route}\n remove-header X-Mailer\n retry-after 1s\n retry-recipients-after 1s\n</domain>\n\
         <domain keeps.test>\n remove-header \"\"\n</domain>\n<domain f.test>\n type file\n file-destination {}/\n</domain>\n\
         <acct-file acct/campaigns.csv>\n records d\n record-fields d rcpt,header_X-Campaign\n</acct-file>",
        folder.path().display()
    );
    let mut engine = Engine::start(1, &config);
    let content = "X-Campaign: spring\r\nSubject: x\r\nX-TRACE: 1\r\n\t2\r\nX-Mailer: m\r\n\r\nX-Trace: in the text";
    let to = ["u@d.test", "u@keeps.test", "u@f.test"];
    for t in to {
        let mut c = Client::connect(engine.smtp).unwrap();
        assert_eq!(c.send("s@sender.test", &[t], content).unwrap().0, 250);
    }
    eventually("all arrive", Duration::from_secs(10), || engine.queued() == 0 && r.unique() == 2);
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    let in_file = std::fs::read_to_string(file.path()).unwrap().replace('\n', "\r\n");
    let of = |t: &str| r.message_to(t).map(|m| m.content);
    for (got, mailer) in [(of(to[0]).unwrap(), false), (of(to[1]).unwrap(), true), (in_file, false)] {
        assert!(!got.contains("spring") && !got.contains("X-TRACE"), "{got}");
        assert!(got.contains("Subject: x\r\n") && got.contains("\r\n\r\nX-Trace: in the text"), "{got}");
        assert_eq!(got.contains("X-Mailer"), mailer, "{got}");
    }
    let rows = || accounting::lines(engine.path()).join("\n");
    eventually("rows have what came", Duration::from_secs(10), || rows().matches("spring").count() == 3);
    // Also when it is read back from the spool.
    r.script(|s| s.content_reply = Some("451 4.3.0 later"));
    let mut c = Client::connect(engine.smtp).unwrap();
    c.send("s@sender.test", &["v@d.test"], content).unwrap();
    row(&engine, "t", "v@d.test");
    engine.kill_all();
    r.script(|s| s.content_reply = None);
    engine.start_again();
    eventually("it arrives", Duration::from_secs(20), || of("v@d.test").is_some());
    assert!(!of("v@d.test").unwrap().contains("spring"), "{:?}", of("v@d.test"));
}
