//! I1 under power loss: the disk is copied in mid-write, and the copy is what another boot of
//! the machine finds.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tests::engine::{Engine, binary};
use tests::receiver::Receiver;
use tests::{Seed, eventually};

use crate::i1_nothing_lost::inject;

/// A mounted file system in a file.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn mount(image: &Path, at: &Path) -> Option<Disk> {
        std::fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-o", "loop"]).arg(image).arg(at).output().ok()?;
        if !done.status.success() {
            println!("skipped: no loop device to be had: {}", String::from_utf8_lossy(&done.stderr).trim());
            return None;
        }
        Some(Disk { at: at.to_owned() })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
}

/// The server as another boot of the machine would see it.
fn after_reboot(folder: &Path) -> Command {
    let boot = folder.join("boot_id");
    std::fs::write(&boot, "00000000-0000-4000-8000-000000000000\n").unwrap();
    let mut c = Command::new("unshare");
    let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", boot.display());
    c.args(["-m", "sh", "-c", &script, "sh"]).arg(binary());
    c
}

#[test]
fn what_was_acknowledged_is_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    let made =
        run("truncate", &["-s", "900M", image.to_str().unwrap()]) && run("mkfs.ext4", &["-q", image.to_str().unwrap()]);
    if !made || !run("unshare", &["-m", "true"]) {
        println!("skipped: mkfs.ext4 or unshare is not to be had here");
        return;
    }
    let mut seed = Seed::new();
    for round in 0..3 {
        let receiver = Receiver::start();
        // In odd rounds nothing leaves before the power does.
        let greeting = if round % 2 == 1 { "421 later" } else { "220 receiver.test" };
        receiver.script(|s| s.greeting = greeting);
        let config = format!("<domain *>\n {}\n retry-after 1s\n</domain>", receiver.hosts());
        let Some(disk) = Disk::mount(&image, &folder.path().join("before")) else { return };
        let data = disk.at.join(format!("round-{round}"));
        std::fs::create_dir(&data).unwrap();
        let engine = Engine::start_in(&data, 2, &config, |_| Command::new(binary()));
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashSet::new())));
        let lanes: Vec<_> = (0..6)
            .map(|lane| {
                let (smtp, stop, accepted) = (engine.smtp, Arc::clone(&stop), Arc::clone(&accepted));
                std::thread::spawn(move || inject(smtp, lane, &stop, &accepted))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(1000 + seed.below(2500)));
        let promised = accepted.lock().unwrap().clone();
        let frozen = engine.freeze();
        let copy = folder.path().join(format!("copy-{round}"));
        assert!(run("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]));
        stop.store(true, Relaxed);
        frozen.into_iter().for_each(Engine::kill);
        lanes.into_iter().for_each(|l| l.join().unwrap());
        drop((engine, disk));

        let Some(disk) = Disk::mount(&copy, &folder.path().join("after")) else { return };
        let data = disk.at.join(format!("round-{round}"));
        receiver.script(|s| s.greeting = "220 receiver.test");
        let mut engine = Engine::start_in(&data, 2, &config, |_| after_reboot(folder.path()));
        assert!(engine.log().contains("rebuilt=true"), "the index of another boot is not trusted");
        let missing = || promised.iter().filter(|r| !receiver.with(|s| s.delivered.contains_key(*r))).count();
        eventually("everything promised is delivered", Duration::from_secs(60), || missing() == 0);
        assert!(engine.stop());
        println!("round {round}: {} promised, lost 0, delivered twice {}", promised.len(), receiver.duplicates());
        drop((engine, disk));
        std::fs::remove_file(copy).unwrap();
    }
}
