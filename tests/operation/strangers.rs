//! Connections of users of this machine that say nothing: they cost a place, and nobody else anything.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::engine::{Engine, binary};
use tests::eventually;

const SILENT: usize = 700;
const WAIT: Duration = Duration::from_secs(60);

/// A server that may open few descriptors.
fn small_server(config: &str) -> Engine {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
    Engine::start_by(1, config, |_| {
        let mut c = Command::new("sh");
        c.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""]).arg(binary());
        c
    })
}

fn restarts_a_worker(engine: &Engine) {
    let before = engine.workers();
    before.iter().for_each(|p| Engine::kill(*p));
    eventually("the worker is started again", WAIT, || {
        let now = engine.workers();
        now.len() == 1 && now != before
    });
    engine.wait_ready();
}

/// How many connections the server has not ended.
fn open<S: Read>(silent: &mut [S]) -> usize {
    let is_open = |s: &mut S| matches!(s.read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
    silent.iter_mut().map(is_open).filter(|open| *open).count()
}

#[test]
fn silent_connections_to_the_management_port_are_ended() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let engine = small_server(&format!("http-mgmt-port {port}"));
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let asks = |request: &str| {
        let mut c = connect();
        c.set_read_timeout(Some(WAIT)).unwrap();
        c.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        c.read_to_string(&mut answer).unwrap();
        answer
    };
    let mut silent: Vec<TcpStream> = (0..SILENT).map(|_| connect()).collect();
    silent.iter().for_each(|c| c.set_nonblocking(true).unwrap());
    restarts_a_worker(&engine);
    let status = asks("GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(status.starts_with("HTTP/1.1 200") && status.contains("application/json"), "{status}");
    let told = |request: &str| asks(request).lines().next().unwrap_or_default().to_owned();
    assert!(told("GET / HTTP/1.0\r\n\r\n").contains("200") && told("GET /x HTTP/1.0\r\n\r\n").contains("404"));
    assert!(told("POST /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").contains("405"));
    // Half a request is none.
    silent.iter_mut().for_each(|c| drop(c.write(b"GET /status HTTP/1.1\r\nX: ")));
    eventually("all of them are ended", WAIT, || open(&mut silent) == 0);
}

#[test]
fn silent_connections_to_the_control_socket_are_ended() {
    let engine = small_server("");
    let socket = engine.path().join("run/control.sock");
    let mut silent: Vec<UnixStream> = (0..SILENT).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    silent.iter().for_each(|c| c.set_nonblocking(true).unwrap());
    restarts_a_worker(&engine);
    assert!(engine.sluice(&["status"]).status.success());
    // Half a request is none.
    silent.iter_mut().for_each(|c| drop(c.write(&[0xCE, 0x51, 3, 1])));
    eventually("all of them are ended", WAIT, || open(&mut silent) == 0);
    assert!(engine.sluice(&["status"]).status.success());
}
