//! `sluice sink`: an SMTP server for tries and tests that takes mail, delivers none of it, and misbehaves by rules.

mod rules;
mod session;
mod tls;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use crate::{Failure, rights};
use rules::{Rules, Verdict};

/// Bytes of a file of rules.
const RULES_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a message's content that are printed.
const PRINTED_MAX: usize = 64 << 10;

/// `sluice sink`
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Options {
    /// Address and port to listen on; port 0 for any, which is printed
    #[arg(default_value = "127.0.0.1:2600")]
    address: SocketAddr,
    /// How to misbehave, see below; repeat for several
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<String>,
    /// File with rules, one a line, which come behind those of --rule
    #[arg(long = "rules", value_name = "FILE")]
    rules_file: Option<PathBuf>,
    /// Print each message: envelope, header and content
    #[arg(long)]
    print: bool,
    /// Keep messages as files in this folder: 000001.eml, 000002.eml …
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Keep no more than so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    keep_max: u64,
    /// Print counts so often, if anything came
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = |t: &str| crate::config::value::duration(t).map_err(|p| p.message))]
    every: u64,
    /// End when so many messages were taken
    #[arg(long, value_name = "N")]
    until: Option<u64>,
    /// Largest message
    #[arg(long, value_name = "BYTES", default_value_t = 10 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    max_size: u64,
    /// Connections at a time; the next are told to come later
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_connections: u32,
}

const HELP: &str = "\
Rules are RECIPIENT ACTION [REPLY|TIME] [CONDITION]. The first whose recipient and condition hold
decides; without one mail is taken. RECIPIENT is an address in which * stands for any
characters, or a domain.
  accept                    take it, whatever the rules behind say
  defer [REPLY]             450 4.2.1, or a reply in quotes that begins with 4
  refuse [REPLY]            550 5.1.1, or a reply in quotes that begins with 5
  greylist [TIME]           450 4.7.1 until the same sender comes to the recipient again after TIME (1m)
  slow TIME                 wait before the answer; the rules behind decide it
  drop                      end the connection without a word
  close [REPLY]             421 4.3.2, or a reply that begins with 4 or 5, and end the connection
  at=content                the end of the content is answered so, and not RCPT (at=rcpt)
  share=N%                  only that share of its recipients, evenly
  every=N, nth=N, first=N   only each N-th of them, only the N-th, only the first N
Counts are printed at the end (Ctrl-C), on SIGUSR1, and as often as --every says.

Examples:
  sluice sink
  sluice sink --print --rule 'later-* defer first=1' --rule 'full.example refuse \"552 5.2.2 full\"'
  sluice sink 127.0.0.1:2601 --rule '* drop share=2%' --rule '* slow 200ms at=content'";

/// What has come so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    connections: u64,
    /// Those that went on in TLS.
    in_tls: u64,
    turned_away: u64,
    messages: u64,
    bytes: u64,
    accepted: u64,
    deferred: u64,
    refused: u64,
    dropped: u64,
}

impl Counts {
    fn recipient(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Accept => self.accepted += 1,
            Verdict::Reply { text, .. } if text.starts_with('4') => self.deferred += 1,
            Verdict::Reply { .. } => self.refused += 1,
            Verdict::Drop => self.dropped += 1,
        }
    }

    fn content(&mut self, verdict: &Verdict, size: u64) {
        match verdict {
            Verdict::Accept => {
                self.messages += 1;
                self.bytes += size;
            }
            Verdict::Reply { text, .. } if text.starts_with('4') => self.deferred += 1,
            Verdict::Reply { .. } => self.refused += 1,
            Verdict::Drop => self.dropped += 1,
        }
    }
}

/// The receiver.
pub struct Sink {
    rules: RefCell<Rules>,
    size_max: u64,
    print: bool,
    keep: Option<PathBuf>,
    keep_max: u64,
    until: u64,
    counts: RefCell<Counts>,
    tls: TlsAcceptor,
    /// Bytes of content that sessions hold.
    held: Cell<usize>,
    done: Notify,
}

/// Runs the receiver until it is stopped, or has what it waits for.
///
/// # Errors
/// [`Failure`]
pub fn run(options: Options) -> Result<(), Failure> {
    let mut rules = Rules::default();
    for (n, text) in options.rules.iter().enumerate() {
        rules.add(text).map_err(|(_, why)| Failure::Wrong(format!("--rule {}: {why}: {text}", n + 1)))?;
    }
    if let Some(file) = &options.rules_file {
        let shown = file.display();
        let wrong = |e: std::io::Error| Failure::Wrong(format!("cannot read {shown}: {e}"));
        if file.metadata().map_err(wrong)?.len() > RULES_BYTES_MAX {
            return Err(Failure::Wrong(format!("{shown} is larger than {RULES_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(file).map_err(wrong)?;
        rules.add(&text).map_err(|(line, why)| Failure::Wrong(format!("{shown}:{line}: {why}")))?;
    }
    if let Some(dir) = &options.keep {
        std::fs::create_dir_all(dir)
            .map_err(|e| Failure::Failed(format!("cannot keep messages in {}: {e}", dir.display())))?;
    }
    rights::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Failed(format!("the runtime cannot be built: {e}")))?;
    tokio::task::LocalSet::new().block_on(&runtime, serve(options, rules))
}

async fn serve(options: Options, rules: Rules) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("cannot listen on {}: {e}", options.address));
    let listener = TcpListener::bind(options.address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let sink = Rc::new(Sink {
        rules: RefCell::new(rules),
        size_max: options.max_size,
        print: options.print,
        keep: options.keep,
        keep_max: options.keep_max,
        until: options.until.unwrap_or(u64::MAX),
        counts: RefCell::default(),
        tls: tls::acceptor(vec!["localhost".into(), address.ip().to_string()])
            .map_err(|e| Failure::Failed(format!("cannot make a certificate: {e}")))?,
        held: Cell::new(0),
        done: Notify::new(),
    });
    say(&format!("listening on {address}; what comes is counted and thrown away"));
    if !address.ip().is_loopback() {
        say("this address is not only for this machine: whoever reaches it may send");
    }
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(options.max_connections as usize));
    let mut ends = [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).ok());
    let mut asked = signal(SignalKind::user_defined1()).ok();
    let mut tick = tokio::time::interval(Duration::from_millis(options.every.max(100)));
    let mut shown = Counts::default();
    let [interrupt, terminate] = &mut ends;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((io, _)) => {
                    sink.count(|c| c.connections += 1);
                    match std::sync::Arc::clone(&places).try_acquire_owned().ok() {
                        Some(place) => {
                            let sink = Rc::clone(&sink);
                            tokio::task::spawn_local(async move {
                                // A client that goes away is the client's matter.
                                if let Ok(session) = session::Session::new(sink, io) {
                                    let _ = session.run().await;
                                }
                                drop(place);
                            });
                        }
                        None => {
                            sink.count(|c| c.turned_away += 1);
                            let _ = io.try_write(b"421 4.3.2 Too many connections\r\n");
                        }
                    }
                }
                // No descriptor is free: some end soon.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            () = sink.done.notified() => break,
            Some(()) = heard(interrupt) => break,
            Some(()) = heard(terminate) => break,
            Some(()) = heard(&mut asked) => sink.tell(),
            _ = tick.tick() => {
                let now = *sink.counts.borrow();
                if now != shown && options.every > 0 {
                    shown = now;
                    say(&summary(&now));
                }
            }
        }
    }
    // Replies to what was taken last are on their way.
    tokio::time::sleep(Duration::from_millis(100)).await;
    sink.tell();
    Ok(())
}

async fn heard(signal: &mut Option<tokio::signal::unix::Signal>) -> Option<()> {
    match signal {
        Some(s) => s.recv().await,
        None => std::future::pending().await,
    }
}

impl Sink {
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.borrow_mut());
        if self.counts.borrow().messages >= self.until {
            self.done.notify_one();
        }
    }

    /// Bytes of a message that are wanted.
    fn held_max(&self) -> usize {
        match (&self.keep, self.print) {
            (Some(_), _) => self.size_max as usize,
            (None, true) => PRINTED_MAX,
            (None, false) => 0,
        }
    }

    /// A message was taken.
    fn took(&self, from: &str, recipients: &[String], size: u64, content: &[u8]) {
        let n = self.counts.borrow().messages;
        if self.print {
            let content = &content[..content.len().min(PRINTED_MAX)];
            let cut = if size > content.len() as u64 { "\n[more is not shown]" } else { "" };
            let envelope = format!("message {n} from <{from}> to <{}>, {size} bytes", recipients.join(">, <"));
            say(&format!("{envelope}\n{}{cut}\n", shown(content)));
        }
        if let Some(dir) = self.keep.as_ref().filter(|_| n <= self.keep_max) {
            let path = dir.join(format!("{n:06}.eml"));
            if let Err(e) = std::fs::write(&path, content) {
                say(&format!("cannot write {}: {e}", path.display()));
            }
            if n == self.keep_max {
                say(&format!("{n} messages are kept; further ones are not (--keep-max)"));
            }
        }
    }

    /// Prints what has come, and how often each rule held.
    fn tell(&self) {
        let mut text = summary(&self.counts.borrow());
        for (rule, hits) in self.rules.borrow().hits() {
            text.push_str(&format!("\n  {hits:>8}  {rule}"));
        }
        say(&text);
    }
}

fn summary(c: &Counts) -> String {
    let in_tls = if c.in_tls > 0 { format!(" ({} in TLS)", c.in_tls) } else { String::new() };
    let mut text = format!(
        "{} messages of {} bytes in {} connections{in_tls}; recipients: {} accepted",
        c.messages, c.bytes, c.connections, c.accepted
    );
    for (n, what) in [(c.deferred, "deferred"), (c.refused, "refused"), (c.dropped, "dropped")] {
        if n > 0 {
            text.push_str(&format!(", {n} {what}"));
        }
    }
    if c.turned_away > 0 {
        text.push_str(&format!("; {} connections were too many", c.turned_away));
    }
    text
}

/// Content for a terminal: of control characters only line ends and tabs.
fn shown(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content).replace("\r\n", "\n");
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c }).collect()
}

/// A line on standard output; nobody there is no failure.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}
