//! A server of its own folder and ports.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;

/// A running `sluice`.
#[derive(Debug)]
pub struct Engine {
    /// Deleted with the engine, unless the folder is the caller's.
    _own: Option<tempfile::TempDir>,
    dir: PathBuf,
    child: Child,
    pub smtp: SocketAddr,
}

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("SLUICE_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/sluice"), PathBuf::from)
}

/// What `config check` says of a configuration, and its exit code.
pub fn checked(config: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("checked.conf");
    std::fs::write(&file, format!("postmaster a@b.test\n{config}\n")).unwrap();
    let out = Command::new(binary()).args(["config", "check"]).arg(&file).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Engine {
    /// Starts a server with `workers` workers; `config` is added to listener, source and
    /// accounting.
    pub fn start(workers: u32, config: &str) -> Engine {
        Self::start_by(workers, config, |_| Command::new(binary()))
    }

    /// Starts a server by a command of the caller's, to which `run --config …` is added.
    pub fn start_by(workers: u32, config: &str, by: impl FnOnce(SocketAddr) -> Command) -> Engine {
        let own = tempfile::tempdir().unwrap();
        let mut engine = Self::start_in(own.path(), workers, config, by);
        engine._own = Some(own);
        engine
    }

    /// Starts a server in the caller's folder.
    pub fn start_in(dir: &Path, workers: u32, config: &str, by: impl FnOnce(SocketAddr) -> Command) -> Engine {
        let smtp: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
        let text = format!(
            "data-dir {}\nhost-name mta.test\npostmaster admin@mta.test\nworkers {workers}\nsmtp-listener {smtp}\nhttp-mgmt-port 0\n\
             <source 127.0.0.1>\n always-allow-relaying yes\n process-x-virtual-mta yes\n process-x-job yes\n</source>\n\
             <acct-file acct/acct.csv>\n records d,b,t\n</acct-file>\n{config}\n",
            dir.display()
        );
        std::fs::write(dir.join("sluice.conf"), text).unwrap();
        let child = Self::spawn(dir, by(smtp));
        let engine = Engine { _own: None, dir: dir.to_owned(), child, smtp };
        engine.wait_ready();
        engine
    }

    fn spawn(dir: &Path, mut command: Command) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        command
            .args(["run", "--config"])
            .arg(dir.join("sluice.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary is built")
    }

    /// Waits until every shard serves.
    pub fn wait_ready(&self) {
        eventually("every shard serves", Duration::from_secs(30), || {
            let rows = self.json(&["show", "shards", "--json"]);
            // That a process was killed may not be known yet.
            let serves = |s: &serde_json::Value| {
                s["state"] == "serving" && s["pid"].as_i64().is_some_and(|pid| is_alive(pid as i32))
            };
            let all = rows.as_array().is_some_and(|r| !r.is_empty() && r.iter().all(serves));
            all && TcpStream::connect(self.smtp).is_ok()
        });
    }

    /// Runs a client command.
    pub fn sluice(&self, args: &[&str]) -> Output {
        Command::new(binary()).args(args).env("SLUICE_CONTROL", self.dir.join("run/control.sock")).output().unwrap()
    }

    /// Runs a client command that must succeed; what it printed.
    pub fn run(&self, args: &[&str]) -> String {
        let out = self.sluice(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a client command and parses its JSON; null if it fails.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_slice(&self.sluice(args).stdout).unwrap_or_default()
    }

    /// Process ids of the workers.
    pub fn workers(&self) -> Vec<i32> {
        let rows = self.json(&["show", "shards", "--json"]);
        let pids = rows.as_array().cloned().unwrap_or_default();
        pids.iter().filter_map(|s| s["pid"].as_i64()).map(|p| p as i32).filter(|p| *p > 0).collect()
    }

    /// Recipients queued in all shards.
    pub fn queued(&self) -> u64 {
        let rows = self.json(&["show", "shards", "--json"]);
        rows.as_array().map_or(u64::MAX, |r| r.iter().filter_map(|s| s["recipients"].as_u64()).sum())
    }

    /// Kills a process at once; it does nothing more when this returns.
    pub fn kill(pid: i32) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        eventually("it is dead", Duration::from_secs(30), || !is_alive(pid));
    }

    /// Stops all processes at this instant; answers them, to be killed.
    pub fn freeze(&self) -> Vec<i32> {
        let all: Vec<i32> = self.workers().into_iter().chain([self.child.id() as i32]).collect();
        for pid in &all {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
        }
        all
    }

    /// Process id of the supervisor.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Kills the supervisor alone.
    pub fn kill_supervisor(&mut self) {
        Self::kill(self.child.id() as i32);
        let _ = self.child.wait();
    }

    /// Kills supervisor and workers.
    pub fn kill_all(&mut self) {
        let workers = self.workers();
        self.kill_supervisor();
        workers.into_iter().for_each(Self::kill);
    }

    /// Starts the supervisor again.
    pub fn start_again(&mut self) {
        self.start_again_by(Command::new(binary()));
    }

    /// The same by a command of the caller's.
    pub fn start_again_by(&mut self, command: Command) {
        self.child = Self::spawn(&self.dir, command);
        self.wait_ready();
    }

    /// Replaces text in the configuration file.
    pub fn edit_config(&self, from: &str, to: &str) {
        let path = self.dir.join("sluice.conf");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Stops in order; answers whether the exit code was 0.
    pub fn stop(&mut self) -> bool {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        self.child.wait().unwrap().success()
    }

    /// The data folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

/// Whether a process is there, and more than an end that nobody has asked for yet.
fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in ["shards", "queues"] {
                eprintln!("--- {what}\n{}", String::from_utf8_lossy(&self.sluice(&["show", what]).stdout));
            }
            let ends = crate::accounting::lines(&self.dir);
            for line in ends.iter().filter(|l| !l.starts_with("d,")).take(5) {
                eprintln!("--- accounted: {line}");
            }
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the server's log\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        self.kill_all();
    }
}
