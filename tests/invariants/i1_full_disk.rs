//! I1 and I2 on a disk that fills up: nothing is lost or delivered twice, and when there is room
//! again new mail is taken without help. `SLUICE_ROUNDS` runs more rounds than usual.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tests::client::Client;
use tests::engine::{Engine, binary};
use tests::eventually;
use tests::receiver::Receiver;

/// A small file system in memory.
pub struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    /// Mounts one of so many megabytes; says so where it may not.
    pub fn at(folder: &Path, megabytes: u32) -> Option<Mounted<'_>> {
        let size = format!("size={megabytes}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder).output().ok()?;
        if !done.status.success() {
            println!("skipped: {}", String::from_utf8_lossy(&done.stderr).trim());
            return None;
        }
        Some(Mounted(folder))
    }

    /// Takes the rest of it.
    pub fn fill(&self) {
        let mut hog = std::fs::File::create(self.0.join("hog")).unwrap();
        for size in [1 << 20, 4096] {
            while hog.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Gives that back.
    pub fn free(&self) {
        std::fs::remove_file(self.0.join("hog")).unwrap();
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// What happens while the disk is full.
#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    Restart,
    Kill,
}

/// Offers `count` messages of 60 KB and adds those that were taken.
fn offer(engine: &Engine, count: usize, name: &str, taken: &Arc<Mutex<HashSet<String>>>) {
    let body = format!("Subject: x\r\n\r\n{}", format!("{}\r\n", "x".repeat(70)).repeat(830));
    let lanes: Vec<_> = (0..8)
        .map(|lane| {
            let (smtp, body, taken, name) = (engine.smtp, body.clone(), Arc::clone(taken), name.to_owned());
            std::thread::spawn(move || {
                let mut c = Client::connect(smtp).unwrap();
                for n in 0..count / 8 {
                    let to = format!("{name}-{lane}-{n}@d.test");
                    if c.send("s@s.test", &[&to], &body).unwrap().0 == 250 {
                        taken.lock().unwrap().insert(to);
                    }
                }
            })
        })
        .collect();
    lanes.into_iter().for_each(|l| l.join().unwrap());
}

fn refuses(engine: &Engine) -> bool {
    engine.run(&["status"]).contains("Refused  new mail of shard 0 since")
}

/// How long it took until new mail was taken again; `None` when there is no disk to be had.
fn round(used_before: bool, then: Then) -> Option<Duration> {
    let folder = tempfile::tempdir().unwrap();
    let disk = Mounted::at(folder.path(), 120)?;
    let receiver = Receiver::start();
    let config = format!("<domain *>\n {}\n retry-after 1s\n max-smtp-out 20\n</domain>", receiver.hosts());
    let mut engine = Engine::start_in(folder.path(), 1, &config, |_| Command::new(binary()));
    let taken = Arc::new(Mutex::new(HashSet::new()));
    let count = || taken.lock().unwrap().len();
    if used_before {
        // The index was written before: it holds what is delivered now.
        offer(&engine, 400, "before", &taken);
        eventually("all arrive", Duration::from_secs(60), || receiver.unique() == count());
    }
    receiver.script(|s| s.greeting = "421 later");
    offer(&engine, 1600, "queued", &taken);
    disk.fill();
    eventually("the operator is told", Duration::from_secs(20), || refuses(&engine));
    receiver.script(|s| s.greeting = "220 receiver.test");
    eventually("all arrive on a full disk", Duration::from_secs(120), || receiver.unique() == count());
    // The index follows the log, and a kill finds no group on its way.
    std::thread::sleep(Duration::from_secs(3));
    match then {
        Then::Nothing => {}
        Then::Restart => drop(engine.run(&["shard", "restart", "0"])),
        Then::Kill => {
            engine.kill_all();
            engine.start_again();
        }
    }
    disk.free();
    let freed = Instant::now();
    let probe = |n: u32| {
        let to = format!("probe-{n}@d.test");
        let Ok(mut c) = Client::connect(engine.smtp) else { return false };
        let is_taken = c.send("s@s.test", &[&to], "Subject: x\r\n\r\nx").is_ok_and(|r| r.0 == 250);
        is_taken && taken.lock().unwrap().insert(to)
    };
    let mut n = 0;
    eventually("new mail is taken again", Duration::from_secs(60), || {
        n += 1;
        probe(n)
    });
    let waited = freed.elapsed();
    eventually("nothing is refused any more", Duration::from_secs(20), || !refuses(&engine));
    engine.run(&["shard", "restart", "0"]);
    engine.wait_ready();
    eventually("nothing is left", Duration::from_secs(60), || receiver.unique() == count() && engine.queued() == 0);
    let missing = taken.lock().unwrap().iter().filter(|t| receiver.message_to(t).is_none()).count();
    assert_eq!((missing, receiver.duplicates()), (0, 0), "lost and twice of {}", count());
    receiver.with(|s| s.messages.clear());
    assert!(engine.stop());
    Some(waited)
}

#[test]
fn a_full_disk_loses_nothing_and_takes_mail_again() {
    let rounds = std::env::var("SLUICE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let mut longest = Duration::ZERO;
    for n in 0..rounds {
        let then = [Then::Nothing, Then::Kill, Then::Restart][n % 3];
        let Some(waited) = round(n % 2 == 1, then) else { return };
        println!("round {}: {then:?}, mail is taken again after {waited:?}", n + 1);
        longest = longest.max(waited);
    }
    println!("{rounds} rounds: nothing lost, nothing twice, mail is taken again within {longest:?}");
}

/// Accounting begins another file each day, also at a start on a disk that is full.
#[test]
fn a_server_starts_on_a_full_disk_without_a_file_for_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Mounted::at(folder.path(), 120) else { return };
    let receiver = Receiver::start();
    let config = format!("<domain *>\n {}\n</domain>", receiver.hosts());
    let mut engine = Engine::start_in(folder.path(), 1, &config, |_| Command::new(binary()));
    engine.kill_all();
    std::fs::remove_dir_all(folder.path().join("acct")).unwrap();
    disk.fill();
    engine.start_again();
    disk.free();
    let to = "r@d.test";
    eventually("new mail is taken again", Duration::from_secs(60), || {
        Client::connect(engine.smtp)
            .is_ok_and(|mut c| c.send("s@s.test", &[to], "Subject: x\r\n\r\nx").is_ok_and(|r| r.0 == 250))
    });
    eventually("it arrives", Duration::from_secs(20), || receiver.unique() == 1);
    assert!(engine.stop());
    let rows = tests::accounting::rows(folder.path());
    assert_eq!(rows.get(&("d".into(), to.into())), Some(&1), "below a header line");
}
