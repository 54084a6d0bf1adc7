//! What a shard has of the world around it: the network, the name servers, the other shards. Behind these ports stands the
//! system, or a simulation; the rest of the worker is the same for both.

mod dns;
mod mesh;
mod net;
mod pending;

use std::path::PathBuf;
use std::rc::Rc;

pub use dns::Dns;
pub use mesh::{Mesh, MeshListener, MeshStream};
pub use net::{ConnectFault, Net, Stream};
pub use pending::Pending;

/// The ports of one shard.
#[derive(Debug, Clone)]
pub struct Ports {
    /// Connections to receivers.
    pub net: Rc<dyn Net>,
    /// Questions to name servers.
    pub dns: Rc<dyn Dns>,
    /// Connections between shards.
    pub mesh: Rc<dyn Mesh>,
}

impl Ports {
    /// Those of shard `number` on this machine, where the shards have their sockets in `run_dir`.
    pub fn of_the_system(number: u8, run_dir: PathBuf) -> Ports {
        Ports { net: Rc::new(net::System), dns: dns_of_the_system(), mesh: Rc::new(mesh::System { number, run_dir }) }
    }
}

/// Name servers on this machine's network.
pub fn dns_of_the_system() -> Rc<dyn Dns> {
    Rc::new(dns::System)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "a panic of what tests begin is a failure of theirs")]

    use std::cell::RefCell;
    use std::io;
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
    use hickory_proto::rr::rdata::{A, MX};
    use hickory_proto::rr::{RData, Record, RecordType};
    use ipc::ledger::Ledger;
    use ipc::shard_map::ShardMap;
    use ipc::snapshot::{Listener, MappedSnapshot, Snapshot, VirtualMta};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
    use tokio::sync::mpsc;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::accept::listener::serve;
    use crate::config::Config;
    use crate::connect::exchange::{Question, Trouble};
    use crate::connect::mx::name_of;
    use crate::shard::Parts;
    use crate::shard::Shard;
    use crate::shard::life::SpoolContents;

    const OUR_IP: [u8; 4] = [192, 0, 2, 9];
    const LISTENER: &str = "192.0.2.9:25";
    const RECEIVERS_IP: [u8; 4] = [192, 0, 2, 25];

    /// A name server that knows one domain.
    #[derive(Debug)]
    struct Table;

    impl Dns for Table {
        fn ask<'a>(
            &'a self,
            _: SocketAddr,
            question: &'a Question<'a>,
            _: Option<u16>,
            _: Duration,
        ) -> Pending<'a, Result<Message, Trouble>> {
            let mut answer = Message::new(1, MessageType::Response, OpCode::Query);
            answer.metadata.recursion_available = true;
            let name = question.name.to_ascii();
            let data = match (name.as_str(), question.kind) {
                ("d.test.", RecordType::MX) => Some(RData::MX(MX::new(10, name_of("mx.d.test").unwrap()))),
                ("mx.d.test.", RecordType::A) => Some(RData::A(A(RECEIVERS_IP.into()))),
                _ => None,
            };
            match data {
                Some(data) => answer.answers.push(Record::from_rdata(question.name.clone(), 60, data)),
                None => answer.metadata.response_code = ResponseCode::NXDomain,
            }
            Box::pin(async move { Ok(answer) })
        }
    }

    impl Stream for DuplexStream {
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok((OUR_IP, 1025).into())
        }

        fn acknowledge(&self) {}
    }

    /// A network with one receiver, which notes every line that it gets.
    #[derive(Debug, Default)]
    struct Receiver(Rc<RefCell<Vec<String>>>);

    impl Net for Receiver {
        fn connect(&self, _: Option<IpAddr>, peer: SocketAddr) -> Pending<'_, Result<Box<dyn Stream>, ConnectFault>> {
            Box::pin(async move {
                if peer != SocketAddr::from((RECEIVERS_IP, 25)) {
                    return Err(ConnectFault::Peer(io::ErrorKind::ConnectionRefused.into()));
                }
                let (ours, theirs) = duplex(4096);
                let noted = Rc::clone(&self.0);
                spawn_local(async move {
                    let (read, mut write) = tokio::io::split(theirs);
                    let (mut lines, mut data) = (BufReader::new(read).lines(), false);
                    write.write_all(b"220 mx.d.test\r\n").await.unwrap();
                    while let Ok(Some(line)) = lines.next_line().await {
                        let reply: &[u8] = match line.as_str() {
                            "." => b"250 taken\r\n",
                            _ if data => b"",
                            "DATA" => b"354 go on\r\n",
                            _ => b"250 fine\r\n",
                        };
                        data = (data || line == "DATA") && line != ".";
                        noted.borrow_mut().push(line);
                        if write.write_all(reply).await.is_err() {
                            return;
                        }
                    }
                });
                Ok(Box::new(ours) as Box<dyn Stream>)
            })
        }
    }

    /// There is no other shard.
    #[derive(Debug)]
    struct Alone;

    impl Mesh for Alone {
        fn listen(&self) -> io::Result<Box<dyn MeshListener>> {
            Ok(Box::new(Alone))
        }

        fn connect(&self, _: u8) -> Pending<'_, io::Result<MeshStream>> {
            Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
        }

        fn leave(&self) {}
    }

    impl MeshListener for Alone {
        fn accept(&mut self) -> Pending<'_, io::Result<MeshStream>> {
            Box::pin(std::future::pending())
        }
    }

    async fn shard(folder: &std::path::Path, ports: Ports) -> Rc<Shard> {
        let mut snapshot = Snapshot::default();
        snapshot.vmtas.push(VirtualMta { name: "{default}".into(), ..Default::default() });
        snapshot.vmta_by_name.insert("{default}".into(), 0);
        snapshot.global.host_name = "mta.test".into();
        snapshot.global.name_servers = vec!["192.0.2.53:53".into()];
        snapshot.global.relay_domains = vec!["d.test".into()];
        snapshot.listeners.push(Listener { address: LISTENER.into(), ..Listener::default() });
        let config = Config::of(MappedSnapshot::map(&snapshot.seal().unwrap()).unwrap()).unwrap();
        let options =
            spool::Options { path: folder.into(), shard: 0, sync: false, min_free_bytes: 0, boot: String::new() };
        let files = crate::account::file::RowFiles::new(&[], 0);
        let accounting = files.shown();
        let (tx, messages) = mpsc::channel(16);
        let each = Box::new(move |m| drop(tx.blocking_send(m)));
        let (spool, values) = spool::Spool::open(options, Box::new(files), each).unwrap();
        let shard = Shard::new(Parts {
            number: 0,
            config,
            spool,
            ledger: Ledger::create().unwrap().0,
            map: ShardMap::first(1, Vec::new()),
            ports,
            accounting,
            suppression: None,
            delivers_only: false,
        });
        let shard = shard.unwrap();
        Rc::clone(&shard).recover(SpoolContents { messages, values }).await.unwrap();
        shard.start().unwrap();
        shard
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        for _ in 0..2000 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}");
    }

    #[tokio::test]
    async fn a_message_goes_from_a_client_to_its_receiver_without_the_system() {
        let folder = tempfile::tempdir().unwrap();
        let all = async {
            let net = Receiver::default();
            let noted = Rc::clone(&net.0);
            let ports = Ports { net: Rc::new(net), dns: Rc::new(Table), mesh: Rc::new(Alone) };
            let shard = shard(folder.path(), ports).await;
            let (client, server) = duplex(4096);
            let (peer, local) = (([192, 0, 2, 1], 9999).into(), Some((OUR_IP, 25).into()));
            let served = Rc::clone(&shard);
            spawn_local(async move { serve(served, LISTENER, server, peer, local).await });
            let (read, mut write) = tokio::io::split(client);
            let mut replies = BufReader::new(read).lines();
            assert_eq!(replies.next_line().await.unwrap().unwrap().get(..4), Some("220 "));
            let transaction = "HELO c.test\r\nMAIL FROM:<s@s.test>\r\nRCPT TO:<r@d.test>\r\nDATA\r\n";
            write.write_all(transaction.as_bytes()).await.unwrap();
            for code in ["250 ", "250 ", "250 ", "354 "] {
                assert_eq!(replies.next_line().await.unwrap().unwrap().get(..4), Some(code));
            }
            write.write_all(b"Subject: x\r\n\r\nhello\r\n.\r\n").await.unwrap();
            assert_eq!(replies.next_line().await.unwrap().unwrap().get(..4), Some("250 "));
            until("delivered", || shard.counters.delivered.get()[0] == 1).await;
            let has = |line: &str| noted.borrow().iter().any(|l| l == line);
            assert!(has("RCPT TO:<r@d.test>") && has("hello"), "{:?}", noted.borrow());
            write.write_all(b"QUIT\r\n").await.unwrap();
            until("the client is gone", || shard.sessions.get() == 0).await;
            shard.stop();
            shard.has_ended_work().await;
            shard.leave().await;
        };
        LocalSet::new().run_until(all).await;
    }
}
