//! Servers of others that run beside the one under test.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server that is killed when it is dropped.
#[derive(Debug)]
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program whose output goes to `log` in a folder.
pub fn run(dir: &Path, program: &str, args: &[&str]) -> Server {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let child =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
    Server(child.unwrap())
}

/// A port that is free for TCP and UDP.
pub fn free_port(ip: &str) -> u16 {
    loop {
        let port = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port();
        if UdpSocket::bind((ip, port)).is_ok() {
            return port;
        }
    }
}
