//! A scripted DNS server: names that are not set do not exist.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const MX: u16 = 15;
const PTR: u16 = 12;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const TLSA: u16 = 52;

/// Bytes of a question behind its name.
const KIND_AND_CLASS: usize = 4;

const NOERROR: u8 = 0;
const FORMERR: u8 = 1;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// What is known of one name.
#[derive(Debug, Clone, Default)]
pub struct Name {
    pub mx: Vec<(u16, &'static str)>,
    pub a: Vec<Ipv4Addr>,
    pub aaaa: Vec<Ipv6Addr>,
    pub cname: Option<&'static str>,
    pub txt: Vec<String>,
    pub ptr: Vec<&'static str>,
    /// Data of TLSA records.
    pub tlsa: Vec<Vec<u8>>,
    /// Answers carry AD: a resolver has validated them.
    pub secure: bool,
    /// Questions are answered with SERVFAIL.
    pub servfail: bool,
    /// Questions are answered with REFUSED.
    pub refused: bool,
    /// Questions are not answered.
    pub silent: bool,
    /// Answers only name other name servers.
    pub referral: bool,
    /// Answers by UDP are cut; by TCP they are whole.
    pub cut: bool,
    /// How long answers may be kept, seconds; 0 for a minute.
    pub ttl: u8,
}

/// What the server does with questions that carry an OPT record (EDNS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edns {
    /// It answers without one.
    Ignored,
    /// FORMERR, nothing behind the header.
    FormErr,
    NotImp,
    /// It knows another version of EDNS.
    BadVers,
    Silent,
}

/// The server.
#[derive(Debug, Clone)]
pub struct Dns {
    pub address: SocketAddr,
    names: Arc<Mutex<HashMap<String, Name>>>,
    asked: Arc<Mutex<HashMap<(String, u16), u32>>>,
    edns: Arc<Mutex<Edns>>,
    /// Questions that carried an OPT record.
    asked_with_edns: Arc<AtomicU32>,
    /// Bytes of an answer by UDP that the last of them had room for.
    udp_bytes: Arc<AtomicU32>,
}

impl Dns {
    pub fn start() -> Dns {
        let (socket, listener) = loop {
            let socket = UdpSocket::bind("127.0.0.53:0").unwrap();
            if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()) {
                break (socket, listener);
            }
        };
        let dns = Dns {
            address: socket.local_addr().unwrap(),
            names: Arc::default(),
            asked: Arc::default(),
            edns: Arc::new(Mutex::new(Edns::Ignored)),
            asked_with_edns: Arc::default(),
            udp_bytes: Arc::default(),
        };
        let me = dns.clone();
        std::thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((n, from)) = socket.recv_from(&mut query) {
                if let Some(answer) = me.answer(&query[..n], true) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        let me = dns.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = me.answer_by_tcp(stream);
            }
        });
        dns
    }

    /// Sets what is known of a name.
    pub fn set(&self, name: &str, known: Name) {
        self.names.lock().unwrap().insert(name.to_owned(), known);
    }

    /// A name with one address.
    pub fn host(&self, name: &str, a: [u8; 4]) {
        self.set(name, Name { a: vec![a.into()], ..Name::default() });
    }

    /// A name with mail exchangers.
    pub fn mx(&self, name: &str, mx: &[(u16, &'static str)]) {
        self.set(name, Name { mx: mx.to_vec(), ..Name::default() });
    }

    /// Changes what is known of a name.
    pub fn change(&self, name: &str, f: impl FnOnce(&mut Name)) {
        f(self.names.lock().unwrap().entry(name.to_owned()).or_default());
    }

    /// MX questions seen for a name.
    pub fn mx_questions(&self, name: &str) -> u32 {
        self.asked.lock().unwrap().get(&(name.to_owned(), MX)).copied().unwrap_or(0)
    }

    /// What becomes of questions with EDNS.
    pub fn with_edns(&self, does: Edns) {
        *self.edns.lock().unwrap() = does;
    }

    /// Questions with EDNS so far.
    pub fn asked_with_edns(&self) -> u32 {
        self.asked_with_edns.load(Relaxed)
    }

    /// Bytes of an answer by UDP that the last question with EDNS had room for.
    pub fn udp_bytes(&self) -> u32 {
        self.udp_bytes.load(Relaxed)
    }

    /// `name-server` that leads here.
    pub fn directive(&self) -> String {
        format!("name-server {}", self.address)
    }

    fn answer_by_tcp(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut query)?;
        let answer = self.answer(&query, false).unwrap_or_default();
        stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat())
    }

    fn answer(&self, query: &[u8], by_udp: bool) -> Option<Vec<u8>> {
        let (mut at, mut labels) = (12, Vec::new());
        while *query.get(at)? != 0 {
            let n = usize::from(query[at]);
            labels.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + n)?).to_lowercase());
            at += n + 1;
        }
        let name = labels.join(".");
        let kind = u16::from_be_bytes([*query.get(at + 1)?, *query.get(at + 2)?]);
        *self.asked.lock().unwrap().entry((name.clone(), kind)).or_default() += 1;
        let question = &query[12..at + 1 + KIND_AND_CLASS];
        // No other record stands behind a question.
        let has_opt = query.get(10..12)? != [0, 0];
        if has_opt {
            self.asked_with_edns.fetch_add(1, Relaxed);
            // Behind the root's name and the type the class says how many bytes there is room for.
            let at = at + 1 + KIND_AND_CLASS;
            let room = query.get(at + 3..at + 5)?;
            self.udp_bytes.store(u16::from_be_bytes([room[0], room[1]]).into(), Relaxed);
            let header =
                |rcode, counts: [u8; 8]| [&query[..2], &[0x80 | (query[2] & 1), 0x80 | rcode], &counts[..]].concat();
            let does = *self.edns.lock().unwrap();
            match does {
                Edns::Ignored => {}
                Edns::Silent => return None,
                Edns::FormErr => return Some(header(FORMERR, [0; 8])),
                Edns::NotImp => return Some([&header(NOTIMP, [0, 1, 0, 0, 0, 0, 0, 0])[..], question].concat()),
                Edns::BadVers => {
                    let opt = [0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0];
                    return Some([&header(NOERROR, [0, 1, 0, 0, 0, 0, 0, 1])[..], question, &opt].concat());
                }
            }
        }
        let known = self.names.lock().unwrap().get(&name).cloned();
        let rcode = match &known {
            Some(k) if k.silent => return None,
            Some(k) if k.servfail => SERVFAIL,
            Some(k) if k.refused => REFUSED,
            Some(_) => NOERROR,
            None => NXDOMAIN,
        };
        let mut answers: Vec<(String, u16, Vec<u8>)> = Vec::new();
        let cut = by_udp && known.as_ref().is_some_and(|k| k.cut);
        let refers = known.as_ref().is_some_and(|k| k.referral);
        if rcode == NOERROR && !refers && !cut {
            self.collect(&name, kind, &mut answers);
        }
        let negative = answers.is_empty() && !cut && matches!(rcode, NOERROR | NXDOMAIN);
        let mut out = query[..2].to_vec();
        let (ttl, secure) = known.as_ref().map_or((0, false), |k| (k.ttl, k.secure));
        let ttl = if ttl == 0 { 60 } else { ttl };
        // An answer is vouched for when all that it is made of is.
        let target = known.as_ref().and_then(|k| k.cname).filter(|_| kind != CNAME);
        let reached = target.and_then(|t| self.names.lock().unwrap().get(t).cloned()).or(known);
        let vouched = secure && reached.is_some_and(|k| k.secure);
        let ad = if vouched { 0x20 } else { 0 };
        out.extend([
            0x84 | (query[2] & 1) | if cut { 2 } else { 0 },
            0x80 | ad | rcode,
            0,
            1,
            0,
            answers.len() as u8,
            0,
            u8::from(negative),
            0,
            0,
        ]);
        out.extend(question);
        if refers {
            answers.push(("test".into(), NS, encoded("ns.test")));
        } else if negative {
            let mut soa = encoded("ns.test");
            soa.extend(encoded("root.test"));
            for n in [1u32, 3600, 600, 86400, 60] {
                soa.extend(n.to_be_bytes());
            }
            answers.push(("test".into(), SOA, soa));
        }
        for (owner, kind, data) in answers {
            out.extend(encoded(&owner));
            out.extend(kind.to_be_bytes());
            out.extend([0, 1, 0, 0, 0, ttl]);
            out.extend((data.len() as u16).to_be_bytes());
            out.extend(data);
        }
        Some(out)
    }

    fn collect(&self, name: &str, kind: u16, answers: &mut Vec<(String, u16, Vec<u8>)>) {
        let Some(known) = self.names.lock().unwrap().get(name).cloned() else { return };
        if let Some(target) = known.cname {
            answers.push((name.to_owned(), CNAME, encoded(target)));
            if answers.len() < 8 {
                self.collect(target, kind, answers);
            }
            return;
        }
        let data: Vec<Vec<u8>> = match kind {
            A => known.a.iter().map(|a| a.octets().to_vec()).collect(),
            AAAA => known.aaaa.iter().map(|a| a.octets().to_vec()).collect(),
            // A record's text in strings of at most 255 bytes.
            TXT => {
                let strings = |t: &String| {
                    t.as_bytes().chunks(255).flat_map(|c| [&[c.len() as u8][..], c].concat()).collect::<Vec<u8>>()
                };
                known.txt.iter().map(strings).collect()
            }
            TLSA => known.tlsa.clone(),
            PTR => known.ptr.iter().map(|n| encoded(n)).collect(),
            MX => known.mx.iter().map(|(p, h)| [&p.to_be_bytes()[..], &encoded(h)].concat()).collect(),
            _ => Vec::new(),
        };
        answers.extend(data.into_iter().map(|d| (name.to_owned(), kind, d)));
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}
