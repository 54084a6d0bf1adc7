//! A web server for `https://mta-sts.DOMAIN/.well-known/mta-sts.txt`.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;

/// Policies by host name; it serves as long as it lives.
#[derive(Debug, Clone)]
pub struct PolicyHost {
    policies: Arc<Mutex<HashMap<String, String>>>,
    /// Requests so far.
    pub asked: Arc<AtomicU32>,
}

impl PolicyHost {
    /// Serves on port 443 of an address; fails without the right to.
    pub fn start(at: Ipv4Addr, config: Arc<ServerConfig>) -> std::io::Result<PolicyHost> {
        let listener = TcpListener::bind((at, 443))?;
        let host = PolicyHost { policies: Arc::default(), asked: Arc::default() };
        let me = host.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(connection) = rustls::ServerConnection::new(Arc::clone(&config)) else { continue };
                let _ = me.answer(rustls::StreamOwned::new(connection, stream));
            }
        });
        Ok(host)
    }

    /// Sets the policy of a host.
    pub fn set(&self, host: &str, policy: &str) {
        self.policies.lock().unwrap().insert(host.to_owned(), policy.to_owned());
    }

    fn answer(&self, mut io: impl Read + Write) -> std::io::Result<()> {
        let mut request = Vec::new();
        let mut block = [0; 4096];
        while !request.windows(4).any(|w| w == b"\r\n\r\n") {
            match io.read(&mut block)? {
                0 => return Ok(()),
                n => request.extend_from_slice(&block[..n]),
            }
        }
        self.asked.fetch_add(1, SeqCst);
        let request = String::from_utf8_lossy(&request).into_owned();
        let host = request.lines().find_map(|l| l.to_lowercase().strip_prefix("host:").map(|h| h.trim().to_owned()));
        let policy = host.and_then(|h| self.policies.lock().unwrap().get(&h).cloned());
        let right = request.starts_with("GET /.well-known/mta-sts.txt ");
        let answer = match policy.filter(|_| right) {
            Some(p) => format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{p}", p.len()),
            None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
        };
        io.write_all(answer.as_bytes())?;
        io.flush()
    }
}
