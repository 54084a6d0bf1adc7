//! The servers that are measured.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running server.
pub struct Server {
    pub smtp: SocketAddr,
    pub dir: tempfile::TempDir,
    child: Child,
    binary: Option<PathBuf>,
}

/// CPU seconds of children that have ended, and theirs: user, system.
fn children() -> (f64, f64) {
    let u = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let s = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    (s(u.user_time()), s(u.system_time()))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

impl Server {
    /// Sluice, delivering d1.test to d`domains`.test to the sink.
    pub fn sluice(binary: &Path, workers: u32, domains: u64, sink: u16, more: &str) -> Server {
        // Beside the working directory: a spool in memory would measure nothing.
        let dir = tempfile::tempdir_in(".").unwrap();
        let smtp: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
        let mut text = format!(
            "data-dir {}\nhost-name bench.test\npostmaster p@bench.test\nworkers {workers}\nsmtp-listener {smtp}\n\
             http-mgmt-port 0\n<source 127.0.0.1>\n always-allow-relaying yes\n</source>\n\
             <acct-file acct/acct.csv>\n records d,b\n</acct-file>\n<domain *>\n max-smtp-out 20\n use-starttls no\n{more}\n</domain>\n",
            std::fs::canonicalize(dir.path()).unwrap().display()
        );
        for n in 1..=domains {
            text += &format!("<domain d{n}.test>\n smtp-hosts [127.0.2.{}]:{sink}\n</domain>\n", 1 + (n - 1) % 50);
        }
        std::fs::write(dir.path().join("sluice.conf"), text).unwrap();
        let child = Self::spawn(binary, dir.path());
        let server = Server { smtp, dir, child, binary: Some(binary.to_owned()) };
        server.wait_ready();
        server
    }

    fn spawn(binary: &Path, dir: &Path) -> Child {
        let mut c = Command::new(binary);
        let log = std::fs::File::create(dir.join("log")).unwrap();
        quiet(c.arg("run").arg("--config").arg(dir.join("sluice.conf"))).stderr(log).spawn().unwrap()
    }

    fn wait_ready(&self) {
        loop {
            let shards = self.shards();
            if !shards.is_empty() && shards.iter().all(|s| s["state"] == "serving") {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts again what was stopped or killed; the time until every shard serves.
    pub fn start_again(&mut self) -> Duration {
        let began = Instant::now();
        self.child = Self::spawn(self.binary.as_deref().unwrap(), self.dir.path());
        self.wait_ready();
        began.elapsed()
    }

    /// Rows of `show shards`.
    pub fn shards(&self) -> Vec<serde_json::Value> {
        let Some(binary) = &self.binary else { return Vec::new() };
        let out = Command::new(binary)
            .args(["show", "shards", "--json"])
            .env("SLUICE_CONTROL", self.dir.path().join("run/control.sock"))
            .output()
            .unwrap();
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    }

    /// Gives the running server a command.
    pub fn ask(&self, command: &[&str]) {
        let Some(binary) = &self.binary else { return };
        let asked = Command::new(binary)
            .args(command)
            .env("SLUICE_CONTROL", self.dir.path().join("run/control.sock"))
            .output()
            .unwrap();
        assert!(asked.status.success(), "{command:?}: {}", String::from_utf8_lossy(&asked.stderr));
    }

    /// Sum of a number over the shards.
    pub fn sum(&self, field: &str) -> u64 {
        self.shards().iter().filter_map(|s| s[field].as_u64()).sum()
    }

    /// Kills all processes at once.
    pub fn kill(&mut self) {
        let workers: Vec<i32> = self.shards().iter().filter_map(|s| s["pid"].as_i64()).map(|p| p as i32).collect();
        for p in workers.into_iter().chain([self.child.id() as i32]) {
            let _ = kill(Pid::from_raw(p), Signal::SIGKILL);
        }
        let _ = self.child.wait();
        std::thread::sleep(Duration::from_millis(300));
    }

    /// CPU seconds, user and system, of the processes whose parent is `pid`.
    fn below(pid: u32) -> (f64, f64) {
        let tick = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap() as f64;
        let mut sum = (0.0, 0.0);
        for p in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(stat) = std::fs::read_to_string(p.path().join("stat")) else { continue };
            let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
            let fields: Vec<&str> = rest.split(' ').collect();
            if fields[1].parse() == Ok(pid) {
                sum.0 += fields[11].parse::<f64>().unwrap() / tick;
                sum.1 += fields[12].parse::<f64>().unwrap() / tick;
            }
        }
        sum
    }

    /// CPU seconds of the workers so far.
    pub fn workers_cpu(&self) -> f64 {
        let (user, system) = Self::below(self.child.id());
        user + system
    }

    /// Stops in order; CPU of all its processes since it started, seconds: user, system.
    pub fn stop(&mut self) -> (f64, f64) {
        // Postfix's master kills its services and does not wait for them.
        let orphans = if self.binary.is_none() { Self::below(self.child.id()) } else { (0.0, 0.0) };
        let before = children();
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
        let after = children();
        (after.0 - before.0 + orphans.0, after.1 - before.1 + orphans.1)
    }

    /// Postfix with the same work, or `None` where it is not installed.
    pub fn postfix(domains: u64, sink: u16) -> Option<Server> {
        let daemons = ["/usr/lib/postfix/sbin", "/usr/libexec/postfix"].into_iter().find(|d| Path::new(d).is_dir())?;
        let user = nix::unistd::User::from_name("postfix").ok()??;
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        for sub in ["queue", "data", "conf"] {
            std::fs::create_dir(path.join(sub)).unwrap();
        }
        nix::unistd::chown(&path.join("data"), Some(user.uid), Some(user.gid)).unwrap();
        let port = free_port();
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {0}/queue\ndata_directory = {0}/data\n\
             command_directory = /usr/sbin\ndaemon_directory = {daemons}\nmail_owner = postfix\nsetgid_group = postdrop\n\
             maillog_file_prefixes = /\nmaillog_file = {0}/log\nmyhostname = bench.test\nmydestination =\n\
             mynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nalias_maps =\n\
             local_recipient_maps =\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtpd_recipient_restrictions =\nsmtpd_client_connection_count_limit = 0\nsmtpd_peername_lookup = no\n\
             transport_maps = texthash:{0}/conf/transport\nin_flow_delay = 0\nqmgr_message_active_limit = 40000\n\
             qmgr_message_recipient_limit = 40000\ndefault_process_limit = 200\n\
             initial_destination_concurrency = 20\nsmtp_tls_security_level = none\n",
            path.display()
        );
        let services = "cleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\npostlog unix-dgram n - n - 1 postlogd\n\
             rewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\n\
             trace unix - - n - 0 bounce\nproxymap unix - - n - - proxymap\nsmtp unix - - n - 200 smtp\n\
             error unix - - n - - error\nretry unix - - n - - error\nanvil unix - - n - 1 anvil\nscache unix - - n - 1 scache\n";
        let transport: String =
            (1..=domains).map(|n| format!("d{n}.test smtp:[127.0.2.{}]:{sink}\n", 1 + (n - 1) % 50)).collect();
        std::fs::write(path.join("conf/main.cf"), main).unwrap();
        std::fs::write(path.join("conf/master.cf"), format!("127.0.0.1:{port} inet n - n - 200 smtpd\n{services}"))
            .unwrap();
        std::fs::write(path.join("conf/transport"), transport).unwrap();
        let smtp: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        // Complains of services that are left out; makes the queue's folders.
        let _ = quiet(Command::new("postfix").arg("-c").arg(path.join("conf")).arg("check")).status();
        let child = quiet(Command::new(Path::new(daemons).join("master")).arg("-c").arg(path.join("conf")).arg("-d"))
            .spawn()
            .unwrap();
        let server = Server { smtp, dir, child, binary: None };
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(smtp).is_err() {
            if Instant::now() > until {
                eprintln!("Postfix does not start; see {}/log", path.display());
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}
