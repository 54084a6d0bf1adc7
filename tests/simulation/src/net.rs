//! The network of the world: receivers at their addresses, name servers, and the connections between shards.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, MX};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::sync::mpsc;
use tokio::time::sleep;
use worker::connect::exchange::{Question, Trouble};
use worker::ports::{ConnectFault, Dns, Mesh, MeshListener, MeshStream, Net, Pending, Stream};

use crate::book::{Book, Life};
use crate::dice::Dice;
use crate::fragile::{Fragile, Panics};
use crate::pipe::{End, Latency, Scissors, connection};
use crate::receiver::Receiver;

/// Seconds that answers of name servers may be kept.
const TTL_S: u32 = 300;

/// What all processes share.
#[derive(Debug)]
pub struct Network {
    dice: Dice,
    receivers: BTreeMap<IpAddr, Rc<Receiver>>,
    /// Addresses by the name of a domain.
    zone: BTreeMap<String, IpAddr>,
    /// Connections with receivers that may still stand, with the process that opened them.
    open: RefCell<Vec<(Life, Scissors)>>,
    /// A source address of which there may be so many connections, over all receivers, and those that there are.
    limited: (IpAddr, usize),
    from_limited: RefCell<Vec<Scissors>>,
    book: Rc<RefCell<Book>>,
    /// Connections between shards, with the process at either end.
    between: RefCell<Vec<([u8; 2], Scissors)>>,
    /// Shards that listen for others.
    listening: RefCell<BTreeMap<u8, mpsc::UnboundedSender<MeshStream>>>,
    /// Pairs of shards that do not reach each other.
    parted: RefCell<Vec<[u8; 2]>>,
    /// Name servers do not answer.
    pub is_dns_dead: Cell<bool>,
    /// How long bytes take between shards.
    pub mesh_latency: Latency,
    /// How long bytes take to receivers.
    pub latency: Latency,
    /// How often tasks of shards panic at connections.
    pub panics: Rc<Panics>,
}

impl Network {
    /// A network with these receivers, one address each, and a source address of which there may be so many connections.
    pub fn new(
        receivers: Vec<Rc<Receiver>>,
        dice: Dice,
        latency: Duration,
        limited: (IpAddr, usize),
        book: Rc<RefCell<Book>>,
    ) -> Rc<Network> {
        let address = |n: usize| IpAddr::from([10, 20, (n / 200) as u8, (n % 200) as u8 + 1]);
        let zone = receivers.iter().enumerate().map(|(n, r)| (r.domain.clone(), address(n))).collect();
        let receivers = receivers.into_iter().enumerate().map(|(n, r)| (address(n), r)).collect();
        Rc::new(Network {
            panics: Panics::new(dice.fork()),
            dice,
            receivers,
            zone,
            open: RefCell::default(),
            limited,
            from_limited: RefCell::default(),
            book,
            between: RefCell::default(),
            listening: RefCell::default(),
            parted: RefCell::default(),
            is_dns_dead: Cell::new(false),
            mesh_latency: Rc::default(),
            latency: Rc::new(Cell::new(latency)),
        })
    }

    /// The receivers.
    pub fn receivers(&self) -> impl Iterator<Item = &Rc<Receiver>> {
        self.receivers.values()
    }

    /// A process is gone: what it had open is reset, and nobody listens in its place.
    pub fn lose(&self, life: Life) {
        self.listening.borrow_mut().remove(&life.shard);
        self.open.borrow().iter().filter(|(of, _)| *of == life).for_each(|(_, s)| s.cut());
        self.between.borrow().iter().filter(|(ends, _)| ends.contains(&life.shard)).for_each(|(_, s)| s.cut());
        self.forget();
    }

    fn forget(&self) {
        self.open.borrow_mut().retain(|(_, s)| !s.is_over());
        self.between.borrow_mut().retain(|(_, s)| !s.is_over());
    }

    /// A process has opened a connection, or was connected to.
    pub fn opened(&self, life: Life, scissors: Scissors) {
        self.open.borrow_mut().push((life, scissors));
        if self.open.borrow().len().is_multiple_of(256) {
            self.forget();
        }
    }

    /// A connection from a source address stands.
    fn count(&self, source: IpAddr, scissors: &Scissors) {
        let (limited, most) = self.limited;
        if source != limited {
            return;
        }
        let mut all = self.from_limited.borrow_mut();
        all.retain(|c| !c.is_closed());
        all.push(scissors.clone());
        if all.len() > most {
            let what = format!("I3 {} connections from {source} at once, {most} may be", all.len());
            self.book.borrow_mut().violation(what);
        }
    }

    /// Two shards do not reach each other any more, or do again.
    pub fn part(&self, pair: [u8; 2], are_parted: bool) {
        let is_it = |ends: &[u8; 2]| ends.contains(&pair[0]) && ends.contains(&pair[1]);
        self.parted.borrow_mut().retain(|ends| !is_it(ends));
        if are_parted {
            self.parted.borrow_mut().push(pair);
            self.between.borrow().iter().filter(|(ends, _)| is_it(ends)).for_each(|(_, s)| s.cut());
        }
        self.forget();
    }

    /// Cuts one connection in so many of a thousand.
    pub fn cut_some(&self, permille: u64) {
        self.forget();
        self.open.borrow().iter().filter(|_| self.dice.permille(permille)).for_each(|(_, s)| s.cut());
    }
}

/// Tasks that stay when a process is killed: receivers.
pub type Spawn = Rc<dyn Fn(std::pin::Pin<Box<dyn Future<Output = ()>>>)>;

/// The network as one process of a shard has it.
pub struct Port {
    /// The process.
    pub life: Life,
    /// What all share.
    pub network: Rc<Network>,
    /// Starts what outlives it.
    pub spawn: Spawn,
    /// The next port number of its end.
    pub next_port: Cell<u16>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").field("life", &self.life).finish_non_exhaustive()
    }
}

impl Net for Port {
    fn connect(&self, source: Option<IpAddr>, peer: SocketAddr) -> Pending<'_, Result<Box<dyn Stream>, ConnectFault>> {
        Box::pin(async move {
            sleep(self.network.latency.get()).await;
            let Some(receiver) = self.network.receivers.get(&peer.ip()) else {
                return Err(ConnectFault::Peer(io::ErrorKind::ConnectionRefused.into()));
            };
            let source = source.unwrap_or(IpAddr::V4(Ipv4Addr::new(10, 10, 0, 1)));
            let port = self.next_port.get();
            self.next_port.set(port.checked_add(1).unwrap_or(1024));
            let (ours, theirs, scissors) = connection([(source, port).into(), peer], &self.network.latency);
            self.network.opened(self.life, scissors.clone());
            self.network.count(source, &scissors);
            (self.spawn)(Box::pin(Rc::clone(receiver).serve(theirs, source, self.life, scissors.clone())));
            let ours = Fragile::new(ours, &self.network.panics, scissors);
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }
}

impl Dns for Port {
    fn ask<'a>(
        &'a self,
        _: SocketAddr,
        question: &'a Question<'a>,
        _: Option<u16>,
        wait: Duration,
    ) -> Pending<'a, Result<Message, Trouble>> {
        Box::pin(async move {
            if self.network.is_dns_dead.get() {
                sleep(wait).await;
                return Err(Trouble::Silent);
            }
            sleep(self.network.latency.get()).await;
            let name = question.name.to_ascii();
            let name = name.trim_end_matches('.');
            let zone = &self.network.zone;
            let mut m = Message::new(1, MessageType::Response, OpCode::Query);
            m.metadata.recursion_available = true;
            let exists = zone.contains_key(name.trim_start_matches("mx."));
            let data = match question.kind {
                RecordType::MX if zone.contains_key(name) => {
                    Name::from_ascii(format!("mx.{name}.")).ok().map(|host| RData::MX(MX::new(10, host)))
                }
                RecordType::A => match name.strip_prefix("mx.").and_then(|d| zone.get(d)) {
                    Some(IpAddr::V4(ip)) => Some(RData::A(A(*ip))),
                    _ => None,
                },
                _ => None,
            };
            match data {
                Some(data) => {
                    m.answers.push(Record::from_rdata(question.name.clone(), TTL_S, data));
                }
                None if exists => {}
                None => m.metadata.response_code = ResponseCode::NXDomain,
            }
            Ok(m)
        })
    }
}

fn streams(end: End, panics: &Rc<Panics>, scissors: &Scissors) -> MeshStream {
    let (read, write) = tokio::io::split(end);
    let read = Fragile::new(read, panics, scissors.clone());
    MeshStream { read: Box::new(read), write: Box::new(Fragile::new(write, panics, scissors.clone())) }
}

impl Mesh for Port {
    fn listen(&self) -> io::Result<Box<dyn MeshListener>> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.network.listening.borrow_mut().insert(self.life.shard, tx);
        Ok(Box::new(Listener(rx)))
    }

    fn connect(&self, number: u8) -> Pending<'_, io::Result<MeshStream>> {
        Box::pin(async move {
            let pair = [self.life.shard, number];
            let are_parted = self.network.parted.borrow().iter().any(|p| p.contains(&pair[0]) && p.contains(&pair[1]));
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            if are_parted {
                // As where no descriptor is left: it says nothing of whether the other is there.
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let listening = self.network.listening.borrow().get(&number).cloned().ok_or_else(refused)?;
            let address = |shard: u8| SocketAddr::from(([127, 0, 0, 1], 1000 + u16::from(shard)));
            let (ours, theirs, scissors) = connection(pair.map(address), &self.network.mesh_latency);
            self.network.between.borrow_mut().push((pair, scissors.clone()));
            let panics = &self.network.panics;
            listening.send(streams(theirs, panics, &scissors)).map_err(|_| refused())?;
            Ok(streams(ours, panics, &scissors))
        })
    }

    fn leave(&self) {
        self.network.listening.borrow_mut().remove(&self.life.shard);
    }
}

struct Listener(mpsc::UnboundedReceiver<MeshStream>);

impl MeshListener for Listener {
    fn accept(&mut self) -> Pending<'_, io::Result<MeshStream>> {
        Box::pin(async move { self.0.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into()) })
    }
}
