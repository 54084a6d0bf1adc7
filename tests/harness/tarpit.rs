//! Receivers that accept connections and never come to the point, on every address of 127.0.0.0/8 at once.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Gone, with all its connections, when it is dropped.
#[derive(Debug)]
pub struct Tarpit {
    pub port: u16,
    connections: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tarpit {
    /// Says `line` in every connection, again and again; nothing when it is empty.
    pub fn start(line: &'static str) -> Tarpit {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, over, held) = <(Arc<AtomicUsize>, Arc<AtomicBool>, Arc<Mutex<Vec<TcpStream>>>)>::default();
        let accept = {
            let (connections, over, held) = (Arc::clone(&connections), Arc::clone(&over), Arc::clone(&held));
            move || {
                while !over.load(Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            stream.set_nonblocking(true).unwrap();
                            held.lock().unwrap().push(stream);
                            connections.fetch_add(1, Relaxed);
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
                held.lock().unwrap().clear();
            }
        };
        let drip = {
            let over = Arc::clone(&over);
            move || {
                while !over.load(Relaxed) {
                    std::thread::sleep(Duration::from_millis(500));
                    // Connections that the other end has closed are dropped.
                    let stays = |mut s: &TcpStream| {
                        let gone = matches!(s.peek(&mut [0]), Ok(0)) || s.take_error().is_ok_and(|e| e.is_some());
                        !gone && s.write_all(line.as_bytes()).is_ok()
                    };
                    held.lock().unwrap().retain(|s| stays(s));
                }
            }
        };
        let threads = vec![std::thread::spawn(accept), std::thread::spawn(drip)];
        Tarpit { port, connections, over, threads }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

impl Drop for Tarpit {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        self.threads.drain(..).for_each(|t| drop(t.join()));
    }
}
