//! What users of the same machine may do: nothing by the server that they may not do by themselves.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo};
use tests::engine::{Engine, binary};

const NOBODY: u32 = 65_534;

/// A command that is killed if it does not end.
fn ends(program: &Path, args: &[&str]) -> Command {
    let mut c = Command::new("timeout");
    c.args(["--signal=KILL", "60"]).arg(program).args(args).stdin(Stdio::null());
    c
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&[&out.stdout[..], &out.stderr].concat()).into_owned()
}

/// The server's folder is left to everybody, as far as its files allow it.
fn open_to_all(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_member_of_the_control_group_reads_no_file_by_the_server() {
    if !Uid::effective().is_root() {
        return;
    }
    let engine = Engine::start(1, "<domain d.test>\n max-smtp-out 5\n</domain>");
    open_to_all(engine.path());
    // Where another user finds it.
    let sluice = engine.path().join("sluice");
    std::fs::copy(binary(), &sluice).unwrap();
    let diff = |file: &Path| {
        let mut c = Command::new("setpriv");
        c.args(["--reuid=65534", "--regid=0", "--clear-groups", "timeout", "60"]).arg(&sluice);
        c.args(["config", "diff"]).arg(file).arg("--control").arg(engine.path().join("run/control.sock"));
        c.output().unwrap()
    };
    let file = |name: &str, text: &str, mode: u32| -> PathBuf {
        let path = engine.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let key = file("dkim.pem", "MIIEsecret\n", 0o600);
    let config = std::fs::read_to_string(engine.path().join("sluice.conf")).unwrap();
    let changed = config.replace("max-smtp-out 5", "max-smtp-out 6");
    file("six.inc", "<domain d.test>\n max-smtp-out 6\n</domain>", 0o644);
    let included = config.replace("<domain d.test>\n max-smtp-out 5\n</domain>", "include s?x.inc");
    for text in [&changed, &included] {
        let told = diff(&file("new.conf", text, 0o644));
        assert_eq!(String::from_utf8_lossy(&told.stdout), "d.test: max-smtp-out 5 → 6\n", "{}", said(&told));
    }
    let include = file("include.conf", &format!("{config}\ninclude {}\n", key.display()), 0o644);
    for file in [&key, &include] {
        let told = diff(file);
        assert_eq!(told.status.code(), Some(2), "{}", said(&told));
        assert!(said(&told).contains("Permission denied") && !said(&told).contains("MIIEsecret"), "{}", said(&told));
    }
    // Nor is what directives name opened, or a folder made.
    let names = format!(
        "{config}\n<address-list l>\n address-file {}\n</address-list>\ndomain-key s,d.test,{}\n\
         <acct-file {}/made/a.csv>\n records d\n</acct-file>\n",
        key.display(),
        key.display(),
        engine.path().display()
    );
    let told = diff(&file("names.conf", &names, 0o644));
    assert!(told.status.success() && !said(&told).contains("MIIEsecret"), "{}", said(&told));
    assert!(!engine.path().join("made").exists());
    // Workers are given the keys, and nobody else is.
    let mode = |name: &str| std::fs::metadata(engine.path().join("run").join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("supervisor.sock"), mode("control.sock")), (0o600, 0o660));
}

#[test]
fn a_named_pipe_in_place_of_a_file_keeps_nobody_waiting() {
    let engine = Engine::start(1, "#HERE");
    let pipe = engine.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let pipe = pipe.display().to_string();
    let config = engine.path().join("sluice.conf");
    let right = std::fs::read_to_string(&config).unwrap();
    let run = |args: &[&str]| {
        ends(&binary(), args).env("SLUICE_CONTROL", engine.path().join("run/control.sock")).output().unwrap()
    };
    for line in [
        format!("include {pipe}"),
        format!("domain-key s,d.test,{pipe}"),
        format!("smtp-server-tls-certificate {pipe}"),
        format!("<domain d.test>\n smtp-client-certificate {pipe}\n</domain>"),
        format!("<address-list l>\n address-file {pipe}\n</address-list>"),
        format!("<dns>\n precached-domains-file {pipe}\n</dns>"),
    ] {
        std::fs::write(&config, right.replace("#HERE", &line)).unwrap();
        let told = said(&run(&["config", "check", &config.display().to_string()]));
        assert!(told.contains("named pipe"), "{line}: {told}");
        // Of a list that can be done without it is a warning.
        let list = line.contains("precached");
        for args in [&["reload"][..], &["reload", "--dry-run"]] {
            let told = run(args);
            assert_eq!(told.status.success(), list, "{line}: {}", said(&told));
            assert!(list || said(&told).contains("named pipe"), "{line}: {}", said(&told));
        }
    }
    std::fs::remove_file(&config).unwrap();
    mkfifo(&config, Mode::S_IRWXU).unwrap();
    let shown = config.display().to_string();
    for args in
        [&["reload"][..], &["config", "check", &shown], &["config", "diff", &shown], &["run", "--config", &shown]]
    {
        let told = run(args);
        assert_eq!(told.status.code(), Some(2), "{args:?}: {}", said(&told));
        assert!(said(&told).contains("named pipe"), "{args:?}: {}", said(&told));
    }
    std::fs::remove_file(&config).unwrap();
    std::fs::write(&config, right).unwrap();
    assert!(run(&["reload"]).status.success());
}

#[test]
fn the_server_answers_while_it_reads_a_configuration_that_is_wrong_everywhere() {
    let engine = Engine::start(1, "#HERE");
    engine.edit_config("#HERE", &"wrong line\n".repeat(400_000));
    let (reloaded, answered) = std::thread::scope(|s| {
        let reload = s.spawn(|| engine.sluice(&["reload"]));
        let mut answered = 0;
        while !reload.is_finished() {
            assert!(engine.sluice(&["status"]).status.success());
            answered += 1;
        }
        (reload.join().unwrap(), answered)
    });
    let told = said(&reloaded);
    assert!(told.contains("and 399800 more errors"), "{}", &told[..told.len().min(2000)]);
    assert!(reloaded.status.code() == Some(2) && answered > 1, "{answered} answers");
}

/// A server that ends by itself: what it says.
fn refused(config: &Path) -> String {
    let out = ends(&binary(), &["run", "--config"]).arg(config).output().unwrap();
    assert!(matches!(out.status.code(), Some(1 | 2)), "{}", said(&out));
    said(&out)
}

#[test]
fn root_gives_away_what_it_just_made_and_nothing_else() {
    if !Uid::effective().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    let at = |name: &str| dir.path().join(name);
    let owner = |name: &str| std::fs::symlink_metadata(at(name)).map(|m| m.uid()).unwrap();
    std::fs::create_dir(at("own")).unwrap();
    chown(at("own"), Some(NOBODY), Some(NOBODY)).unwrap();
    let user = "run-as-user nobody";
    let mut engine =
        Engine::start_in(&at("own"), 1, &format!("{user}\n<spool {}>\n</spool>", at("new/spool").display()), |_| {
            Command::new(binary())
        });
    assert_eq!(["own/run", "new", "new/spool", "own/acct"].map(owner), [NOBODY, 0, NOBODY, NOBODY]);
    assert!(engine.stop());
    // Folders that are there, and where links lead to, stay whose they are.
    for folder in ["roots", "taken"] {
        std::fs::create_dir(at(folder)).unwrap();
    }
    std::fs::remove_dir_all(at("own/run")).unwrap();
    symlink(at("roots"), at("own/run")).unwrap();
    let config = at("own/sluice.conf");
    assert!(refused(&config).contains("nobody cannot write to the folder"));
    std::fs::remove_file(at("own/run")).unwrap();
    symlink(at("roots/new"), at("own/run")).unwrap();
    assert!(refused(&config).contains("own/run"));
    std::fs::remove_file(at("own/run")).unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("<acct-file acct/", &format!("<acct-file {}/", at("taken").display())))
        .unwrap();
    let told = refused(&config);
    assert!(told.contains("what exists is not given away: chown nobody") && told.contains("taken"), "{told}");
    assert_eq!((owner("roots"), owner("taken")), (0, 0));
    assert!(!at("roots/new").exists());
}
