//! How long a large configuration takes to check, and how much memory.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Virtual MTAs with as many `<domain>` blocks each.
fn many(vmtas: u32, domains: u32) -> String {
    let mut t = String::new();
    for v in 0..vmtas {
        let _ = writeln!(t, "<virtual-mta v{v}>\n smtp-source-host 127.0.0.1 v{v}.test");
        for d in 0..domains {
            let _ = writeln!(t, " <domain d{d}.test>\n  max-msg-rate {}/h\n </domain>", 100 + v % 50);
        }
        t.push_str("</virtual-mta>\n");
    }
    t
}

/// Checks, explains and compares; prints seconds and the most memory it took.
pub fn measure(binary: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let time = |what: &str, args: &[&str]| {
        let began = Instant::now();
        let mut child = Command::new(binary).args(args).stdout(Stdio::null()).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut memory = 0;
        let ended = loop {
            let peak = std::fs::read_to_string(&status).unwrap_or_default();
            let line = peak.lines().find_map(|l| l.strip_prefix("VmHWM:"));
            let kb = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
            memory = memory.max(kb.unwrap_or_default());
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(ended.success(), "{what}");
        println!("{what}: {:.2} s, {} MB", began.elapsed().as_secs_f64(), memory >> 10);
    };
    let lines: String = (0..25_000)
        .map(|n| format!("<domain d{n}.test>\n max-smtp-out {} # lines\n max-msg-rate 100/h\n</domain>\n", n % 50 + 1))
        .collect();
    // One that many operators have: the same kinds of findings in each of 50 virtual MTAs.
    let usual = many(50, 15).replace("max-msg-rate", "max-smtp-out 5\n  max-smtp-out 5\n  max-msg-rate");
    let usual = file("usual.conf", &usual);
    time("4,000 lines of 50 virtual MTAs checked", &["config", "check", usual.to_str().unwrap()]);
    let small = file("100k.conf", &lines);
    time("100,000 lines checked", &["config", "check", small.to_str().unwrap()]);
    let text = many(10_000, 50);
    let large = file("large.conf", &text);
    let changed = file("changed.conf", &text.replace("107/h", "207/h"));
    let (large, changed) = (large.to_str().unwrap(), changed.to_str().unwrap());
    time("10,000 virtual MTAs with 50 domains each checked", &["config", "check", large]);
    time("one path of it explained", &["config", "explain", "d7.test", "v77", "--config", large]);
    time("compared with another, both read", &["config", "diff", changed, "--config", large]);
}
