//! What black-box tests need: a running server, scripted receivers, an SMTP client, and
//! accounting counted. Everything listens on 127.0.0.0/8 with ports from the kernel.
#![allow(clippy::unwrap_used, missing_docs)] // a test that cannot set up should stop there

pub mod accounting;
pub mod beside;
pub mod client;
pub mod dns;
pub mod engine;
pub mod policy_host;
pub mod postfix;
pub mod receiver;
pub mod tarpit;
pub mod tls;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Whether a program is installed, or a file is there; says so where it is not.
pub fn has(what: &str) -> bool {
    let found = match what.starts_with('/') {
        true => Path::new(what).exists(),
        false => Command::new("sh").args(["-c", &format!("command -v {what}")]).output().unwrap().status.success(),
    };
    if !found {
        println!("skipped: {what} is not installed");
    }
    found
}

/// Runs a program with this on its standard input, to its end.
pub fn fed(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Lets this process hold as many descriptors as it may.
pub fn many_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Waits until `done`, or panics naming what did not happen.
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Numbers for tests that vary: printed, and set with SLUICE_SEED to repeat a run.
#[derive(Debug)]
pub struct Seed(u64);

impl Seed {
    pub fn new() -> Seed {
        let from_env = std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = from_env.unwrap_or(now.as_nanos() as u64 | 1);
        println!("SLUICE_SEED={seed}");
        Seed(seed)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

impl Default for Seed {
    fn default() -> Self {
        Self::new()
    }
}
