//! Sockets and time for [`super::session`].

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use ipc::message::SourceType;
use ipc::network::Network;
use ipc::rules::SourceRules;
use rustls::pki_types::CertificateDer;
use spool::SpoolError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout, timeout_at};

use super::auth::attempts;
use super::auth::users::{Answer, Check};
use super::awaiting::Who;
use super::client_place::ClientPlace;
use super::own_name;
use super::proxied;
use super::quick_ack::QuickAck;
use super::receiving::MemoryShare;
use super::refusals;
use super::sender_checks;
use super::session::{Event, ServerSession, Transaction};
use super::strangers::Waits;
use crate::clock;
use crate::config::Config;
use crate::connect::certificate::Certificate;
use crate::connect::tls::ClientTls;
use crate::holds::{Work, doing};
use crate::log_limit;
use crate::prepare::message::{Submitter, prepare};
use crate::route::submit::submit;
use crate::shard::Shard;
use crate::smtp::command::Refusal;
use crate::smtp::content::ContentFault;
use crate::suppression::Suppresses;
use crate::tasks;

/// Connections taken in one turn, so that other workers get their share.
const ACCEPTS_PER_TURN: u32 = 8;
/// A worker with this many sessions more than the mean leaves new ones to the others.
const SESSIONS_ABOVE_MEAN: u32 = 16;
/// How long the greeting is held back from a client that may speak too early: one round trip
/// of a local network, so that what such a client sent with its handshake has come.
const EARLY_TALKER_WAIT: Duration = Duration::from_millis(3);

/// What such a client is told.
const EARLY: &str = "554 5.5.0 You spoke before the greeting\r\n";

/// How long a client may take to close after the last reply.
const PARTING_MAX: Duration = Duration::from_millis(200);
/// A wait that no clock reaches.
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Bytes of content that have to arrive within each `smtp-data-timeout`: fewer are no sending.
const CONTENT_STEP: usize = 4096;

/// Accepts on one listening socket, shared with the other workers, until the shard stops.
pub async fn accept(shard: Rc<Shard>, address: String, listener: Rc<TcpListener>) {
    let mut turn = 0;
    loop {
        let busy = {
            let mean = shard.ledger.mean_sessions(&shard.map.borrow().shards);
            shard.sessions.get() > mean + SESSIONS_ABOVE_MEAN.max(mean / 4)
        };
        if busy {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if shard.sessions.get() > 2 * shard.ledger.mean_sessions(&shard.map.borrow().shards) {
                continue;
            }
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                if !shard.serves(&address) {
                    return;
                }
                let (shard, address) = (Rc::clone(&shard), address.clone());
                let _ = stream.set_nodelay(true);
                let local = stream.local_addr().ok();
                let stream = QuickAck::new(stream);
                tasks::begin("client", move || async move { serve(shard, &address, stream, peer, local).await });
                turn += 1;
                if turn % ACCEPTS_PER_TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Err(e) => {
                if log_limit::allows_line("accepting a connection failed", &address) {
                    tracing::warn!(listener = address, error = %e, "accepting a connection failed");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one client that connected to the listener at `address`, from `peer` to `local`.
pub async fn serve(
    shard: Rc<Shard>,
    address: &str,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut peer: SocketAddr,
    mut local: Option<SocketAddr>,
) {
    let config = shard.config();
    // It may have gone with a reload.
    let Some(listening) = config.listener(address).cloned() else { return };
    let (listener, tls) = (&listening.as_configured, &listening.tls);
    if !listener.proxies.is_empty() {
        match proxied::ends(&mut stream, canonical(peer.ip()), &listener.proxies).await {
            Ok(Some(ends)) => (peer, local) = (ends.client, Some(ends.server)),
            Ok(None) => {}
            Err(e) => return e.tell(address, canonical(peer.ip())),
        }
    }
    let ip = canonical(peer.ip());
    let overlay = listener.source.clone();
    let rules = Rc::new(config.snapshot.get().source_rules(Some(ip), &[&overlay]));
    // To a client that begins with TLS words in clear mean nothing.
    let in_clear = !listener.tls.immediate;
    if !in_clear && tls.is_none() {
        if log_limit::allows_line("no certificate yet", address) {
            tracing::warn!(
                listener = address,
                "a client was turned away: the listener speaks TLS and has no certificate yet"
            );
        }
        return;
    }
    let take = || ClientPlace::take(&shard, &rules, ip, peer.port());
    let place = match listener.await_slot {
        true => {
            let who = match ClientPlace::is_of_known(&shard, &rules, ip) {
                true => Who::Known(&rules.source_group),
                false => Who::Stranger(Network::of_one_customer(ip)),
            };
            let place = shard.awaiting.place(who, rules.smtp_command_timeout, take, || shard.stopping());
            // Under TLS from the first byte the client begins; else one that says something now has not waited for its turn.
            let mut early = [0];
            tokio::select! {
                biased;
                place = place => place,
                read = stream.read(&mut early), if in_clear => {
                    if matches!(read, Ok(1)) {
                        // The client may have closed the connection already.
                        let _ = stream.write_all(EARLY.as_bytes()).await;
                        refusals::tell_of_connection(shard.number, ip, EARLY);
                    }
                    return;
                }
            }
        }
        false => take(),
    };
    let place = match place {
        Ok(place) => place,
        Err(none) => {
            let reply = none.reply(&config.global.host_name);
            refusals::tell_of_connection(shard.number, ip, &reply);
            if in_clear {
                // The client may have closed the connection already.
                let _ = stream.write_all(reply.as_bytes()).await;
            }
            return;
        }
    };
    let suppresses = Rc::clone(&shard) as Rc<dyn Suppresses>;
    let name = own_name::to_client(&config, &rules, local.map(|a| canonical(a.ip())));
    let global = Rc::clone(&config.global);
    let users = Arc::clone(&config.users);
    let mut session = ServerSession::new(name, Rc::clone(&rules), global, suppresses, users, tls.is_some());
    session.share = Some(MemoryShare::of(&shard, Some(peer.ip())));
    let mut client = Client {
        shard: &shard,
        peer,
        local,
        place: &place,
        config: Rc::clone(&config),
        overlay,
        made_room: false,
        rules,
        buf: BytesMut::new(),
        began: Instant::now(),
        waits_since: Instant::now(),
        content: 0,
    };
    if session.may_serve() {
        let after = if in_clear { client.run(&mut session, &mut stream, true).await } else { After::StartTls };
        match (after, tls) {
            (After::StartTls, Some(tls)) => client.run_tls(&mut session, stream, tls).await,
            (After::StartTls, None) => {}
            (After::Close, _) => part(stream).await,
        }
    } else {
        let text = format!("521 5.3.2 {} does not accept mail from you (smtp-service)\r\n", config.global.host_name);
        refusals::tell_of_connection(shard.number, ip, &text);
        if in_clear {
            let _ = stream.write_all(text.as_bytes()).await;
        }
    }
    if client.made_room {
        place.make_room();
    }
}

/// A time after `at`, [`TEN_YEARS`] at most.
fn later(at: Instant, by: Duration) -> Instant {
    at + by.min(TEN_YEARS)
}

/// IPv4 clients of a dual-stack socket count as IPv4.
fn canonical(ip: std::net::IpAddr) -> std::net::IpAddr {
    ip.to_canonical()
}

/// Takes leave of a client: lets the last reply arrive, for closing with unread input would reset the connection. A
/// client that takes nothing, or goes on sending, does not hold the session.
async fn part(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut rest = [0u8; 4096];
    let _ = timeout(PARTING_MAX, async {
        let _ = io.shutdown().await;
        while matches!(io.read(&mut rest).await, Ok(n) if n > 0) {}
    })
    .await;
}

/// Resolves when a client has to leave its place to others.
async fn has_to_leave(place: &ClientPlace) {
    match &place.stranger {
        Some(s) => s.has_to_leave().await,
        None => std::future::pending().await,
    }
}

enum After {
    Close,
    StartTls,
}

struct Client<'a> {
    shard: &'a Rc<Shard>,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    place: &'a ClientPlace,
    /// The configuration that the session began with.
    config: Rc<Config>,
    /// The named source of the listener; empty for none.
    overlay: String,
    /// It had to leave its place to others.
    made_room: bool,
    rules: Rc<SourceRules>,
    buf: BytesMut,
    began: Instant,
    /// When what is being waited for began: the last reply, or the last [`CONTENT_STEP`] bytes of content.
    waits_since: Instant,
    /// Bytes of content since then.
    content: usize,
}

impl Client<'_> {
    async fn run_tls(
        &mut self,
        session: &mut ServerSession,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        tls: &ClientTls,
    ) {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&tls.config));
        let handshake = timeout(self.rules.smtp_command_timeout, acceptor.accept(stream));
        self.note_wait(session);
        let done = tokio::select! {
            biased;
            () = has_to_leave(self.place) => {
                self.made_room = true;
                return;
            }
            done = handshake => done,
        };
        match done {
            Ok(Ok(mut stream)) => {
                session.tls_started();
                let known = self.look_at_certificate(session, tls, stream.get_ref().1.peer_certificates());
                self.waits_since = Instant::now();
                if let Err(refusal) = known {
                    session.out.clear();
                    session.reply(refusal.0, refusal.1, &refusal.2);
                    self.tell("connection", &refusal);
                    // Whether it hears why is no matter.
                    let _ = self.send(session, &mut stream).await;
                } else {
                    self.run(session, &mut stream, false).await;
                }
                part(stream).await;
            }
            Ok(Err(e)) => tracing::debug!(peer = %self.peer, error = %e, "TLS handshake with a client failed"),
            Err(_) => tracing::debug!(peer = %self.peer, "TLS handshake with a client timed out"),
        }
    }

    /// The client has to go on, or waits for us.
    fn note_wait(&self, session: &ServerSession) {
        // Where no `<source>` names the client, and it is no user's either.
        let Some(s) = self.place.stranger.as_ref().filter(|_| session.user().is_empty()) else { return };
        let what = match session.between_messages() {
            true if session.hello.is_empty() => Waits::ForGreeting,
            true => Waits::BetweenMessages,
            false => Waits::WithinMessage,
        };
        s.waits(what, self.waits_since);
    }

    async fn run(
        &mut self,
        session: &mut ServerSession,
        io: &mut (impl AsyncRead + AsyncWrite + Unpin),
        fresh: bool,
    ) -> After {
        self.note_wait(session);
        tokio::select! {
            biased;
            () = has_to_leave(self.place) => {}
            after = self.converse(session, io, fresh) => return after,
        }
        self.made_room = true;
        session.out.clear();
        session.reply(421, "4.3.2", "Connections are scarce and you are slow (total-max-smtp-in), try again later");
        // Whether it hears why is no matter.
        let _ = timeout(PARTING_MAX, self.send(session, io)).await;
        After::Close
    }

    async fn converse(
        &mut self,
        session: &mut ServerSession,
        io: &mut (impl AsyncRead + AsyncWrite + Unpin),
        fresh: bool,
    ) -> After {
        if fresh && self.talks_early(io).await {
            refusals::tell_of_connection(self.shard.number, canonical(self.peer.ip()), EARLY);
            let _ = io.write_all(EARLY.as_bytes()).await;
            return After::Close;
        }
        if self.send(session, io).await.is_err() {
            return After::Close;
        }
        loop {
            // Also of a client that sends so fast that nothing is ever waited for.
            if self.session_end(session) <= Instant::now() {
                session.reply(421, "4.4.2", "Session is too long (smtp-session-timeout), closing");
                let _ = self.send(session, io).await;
                return After::Close;
            }
            if self.buf.capacity() - self.buf.len() < 4096 {
                self.buf.reserve(32 << 10);
            }
            self.note_wait(session);
            let stopping = self.shard.stop_signal();
            let got = tokio::select! {
                biased;
                got = timeout_at(self.deadline(session), io.read_buf(&mut self.buf)) => got,
                () = stopping.wait(), if session.between_messages() => {
                    session.reply(421, "4.3.2", "Service is restarting, connect again");
                    let _ = self.send(session, io).await;
                    return After::Close;
                }
            };
            match got {
                Ok(Ok(0) | Err(_)) => return After::Close,
                Ok(Ok(n)) => self.arrived(session, n),
                Err(_) if self.session_end(session) <= Instant::now() => continue,
                Err(_) => {
                    session.reply(421, "4.4.2", "Timeout waiting for you, closing");
                    let _ = self.send(session, io).await;
                    return After::Close;
                }
            }
            if session.between_messages() && self.is_disowned(session) {
                session.reply(421, "4.7.0", "The configuration has changed, authenticate again");
                // Whether it hears why is no matter: the session ends.
                let _ = self.send(session, io).await;
                return After::Close;
            }
            if let Some(after) = self.consume(session, io).await {
                return after;
            }
            if self.buf.is_empty() && self.buf.capacity() > (64 << 10) {
                self.buf = BytesMut::new();
            }
        }
    }

    /// When the session ends. A message that is under way then may take as long as one more wait for content.
    fn session_end(&self, session: &ServerSession) -> Instant {
        let r = &self.rules;
        let grace = if session.between_messages() { Duration::ZERO } else { r.smtp_data_timeout };
        later(self.began, r.smtp_session_timeout.saturating_add(grace))
    }

    /// Until when what comes next has to be here: a whole command, or so much content. Single bytes put nothing off.
    fn deadline(&self, session: &ServerSession) -> Instant {
        let r = &self.rules;
        let waiting = if session.in_data() { r.smtp_data_timeout } else { r.smtp_command_timeout };
        later(self.waits_since, waiting).min(self.session_end(session))
    }

    /// Counts what was read: content goes on by steps, commands by their replies.
    fn arrived(&mut self, session: &ServerSession, bytes: usize) {
        self.content += if session.in_data() { bytes } else { 0 };
        if self.content >= CONTENT_STEP {
            (self.waits_since, self.content) = (Instant::now(), 0);
        }
    }

    /// Feeds everything received; answers how the session ends, if it does.
    async fn consume(
        &mut self,
        session: &mut ServerSession,
        io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Option<After> {
        loop {
            let (n, event) = doing(Work::Commands, || session.feed(&self.buf));
            self.buf.advance(n);
            if let Some((command, refusal)) = session.refused.take() {
                self.tell(command, &refusal);
            }
            match event {
                Event::None if n == 0 || self.buf.is_empty() => break,
                // However many commands come at once, others have their turn between them.
                Event::None => consume_budget().await,
                Event::Message(t) => {
                    // Replies to pipelined commands before the content go out first.
                    if !session.out.is_empty() && self.send(session, io).await.is_err() {
                        return Some(After::Close);
                    }
                    self.is_busy();
                    let result = self.store(session, t).await;
                    result.as_ref().err().into_iter().for_each(|r| self.tell("content", r));
                    self.waits_since = Instant::now();
                    self.note_wait(session);
                    if let Event::Close = session.stored(result) {
                        return Some(After::Close);
                    }
                }
                Event::Authenticate(check) => {
                    if !session.out.is_empty() && self.send(session, io).await.is_err() {
                        return Some(After::Close);
                    }
                    self.is_busy();
                    let event = self.authenticate(session, check).await;
                    self.waits_since = Instant::now();
                    self.note_wait(session);
                    if let Event::Close = event {
                        // Whether it hears why is no matter: the session ends.
                        let _ = self.send(session, io).await;
                        return Some(After::Close);
                    }
                }
                Event::CheckSender(sender) => {
                    if !session.out.is_empty() && self.send(session, io).await.is_err() {
                        return Some(After::Close);
                    }
                    self.is_busy();
                    let resolver = Rc::clone(&self.shard.resolver.borrow());
                    let ip = canonical(self.peer.ip());
                    let results = sender_checks::check(&*resolver, &self.rules, ip, &sender).await;
                    results.as_ref().err().into_iter().for_each(|r| self.tell("MAIL", r));
                    self.waits_since = Instant::now();
                    self.note_wait(session);
                    let event = session.sender_checked(results);
                    session.refused = None;
                    if let Event::Close = event {
                        let _ = self.send(session, io).await;
                        return Some(After::Close);
                    }
                }
                Event::StartTls => {
                    let injected = !self.buf.is_empty();
                    if injected {
                        session.out.clear();
                        session.reply(501, "5.5.1", "Commands behind STARTTLS, closing");
                    }
                    let sent = self.send(session, io).await;
                    return Some(if injected || sent.is_err() { After::Close } else { After::StartTls });
                }
                Event::Close => {
                    let _ = self.send(session, io).await;
                    return Some(After::Close);
                }
            }
        }
        if self.send(session, io).await.is_err() {
            return Some(After::Close);
        }
        None
    }

    /// A client that sends before the greeting does not wait for replies, so its pipelining
    /// cannot be trusted.
    async fn talks_early(&mut self, io: &mut (impl AsyncRead + Unpin)) -> bool {
        matches!(timeout(EARLY_TALKER_WAIT, io.read_buf(&mut self.buf)).await, Ok(Ok(n)) if n > 0)
    }

    async fn send(&mut self, session: &mut ServerSession, io: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        if session.out.is_empty() {
            return Ok(());
        }
        let written = timeout(self.rules.smtp_command_timeout, async {
            io.write_all(&session.out).await?;
            io.flush().await
        })
        .await;
        session.out.clear();
        (self.waits_since, self.content) = (Instant::now(), 0);
        written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// The client waits for us.
    fn is_busy(&self) {
        self.place.stranger.iter().for_each(|s| s.is_busy());
    }

    /// The rules for the client as a user.
    fn rules_of(&self, user: &str) -> Rc<SourceRules> {
        let named = [self.overlay.as_str(), self.config.users.source_of(user)];
        Rc::new(self.config.snapshot.get().source_rules(Some(canonical(self.peer.ip())), &named))
    }

    /// Has a claim checked, and takes the client for the user that it is. A user has a place under the limit of the group that its source is
    /// in.
    async fn authenticate(&mut self, session: &mut ServerSession, check: Check) -> Event {
        let ip = canonical(self.peer.ip());
        let rate = self.rules.smtp_max_auth_failure_rate;
        // That of now: who was a user when the session began may be none any more.
        let config = self.shard.config();
        let answer = attempts::attempt(self.shard, &config.users, ip, rate, check).await;
        let Ok(Answer::Proven(name)) = &answer else { return session.checked(answer, None) };
        let Some(name) = config.users.written(name).map(str::to_owned) else {
            return session.checked(Ok(Answer::Wrong), None);
        };
        self.config = config;
        let rules = self.rules_of(&name);
        if !self.place.join_group(&rules, self.peer.port()) {
            return session.checked(Err(no_place(454, &rules)), None);
        }
        tracing::debug!(client = %ip, user = name, "authenticated");
        self.rules = Rc::clone(&rules);
        session.checked(Ok(Answer::Proven(name)), Some(rules))
    }

    /// Whoever shows the certificate of a user is that user.
    ///
    /// # Errors
    /// The reply where the user cannot be served now.
    fn look_at_certificate(
        &mut self,
        session: &mut ServerSession,
        tls: &ClientTls,
        shown: Option<&[CertificateDer<'_>]>,
    ) -> Result<(), Refusal> {
        let shown = shown.unwrap_or_default();
        let Some(der) = shown.first().filter(|_| self.rules.allow_auth) else { return Ok(()) };
        let users = Arc::clone(&self.config.users);
        let Some(user) = users.by_certificate(der) else { return Ok(()) };
        let now_s = clock::wall_ms(clock::now_ms()) / 1000;
        let ip = canonical(self.peer.ip());
        if Certificate::of(der).is_none_or(|c| now_s < c.valid.0 || now_s > c.valid.1) {
            if log_limit::allows_line_of_client("certificate has ended", &ip.to_string()) {
                tracing::warn!(client = %ip, user, "the certificate of this user has ended, or has not begun: it counts for nothing");
            }
            return Ok(());
        }
        if let Err(why) = tls.verified(shown) {
            if log_limit::allows_line_of_client("certificate is of another issuer", &ip.to_string()) {
                tracing::warn!(client = %ip, user, why, "the certificate of this user cannot be verified by tls-ca-file: it counts for nothing");
            }
            return Ok(());
        }
        let rules = self.rules_of(user);
        if !self.place.join_group(&rules, self.peer.port()) {
            return Err(no_place(421, &rules));
        }
        session.has_shown_certificate_of(user, Rc::clone(&rules));
        self.rules = rules;
        self.is_busy();
        Ok(())
    }

    /// The user that the client is, is none any more, or proves itself by something else: the configuration in force is another one.
    fn is_disowned(&self, session: &ServerSession) -> bool {
        let now = self.shard.config();
        let user = session.user();
        !user.is_empty() && !Rc::ptr_eq(&self.config, &now) && !self.config.users.agree_on(user, &now.users)
    }

    /// Something of a message was refused.
    fn tell(&self, command: &'static str, r: &Refusal) {
        refusals::tell(self.shard.number, canonical(self.peer.ip()), command, r);
    }

    async fn store(&self, session: &ServerSession, mut t: Transaction) -> Result<String, Refusal> {
        let max = self.rules.max_message_size;
        let content = t.take_content().map_err(|f| match f {
            ContentFault::BareLineEnd => {
                Refusal(550, "5.6.0", "Message has a line end that is not CR LF (RFC 5321 section 2.3.8)".into())
            }
            ContentFault::TooLarge => super::session::too_large(max),
            ContentFault::LineTooLong => Refusal(
                550,
                "5.6.0",
                format!("Message has a line of more than {} octets", crate::smtp::content::LINE_MAX),
            ),
            ContentFault::NoRoom => super::receiving::no_room(),
        })?;
        let config = self.shard.config();
        let id = self.shard.next_message_id();
        let from = Submitter {
            source_type: SourceType::Smtp,
            name: session.hello.clone(),
            user: session.user().to_owned(),
            ip: Some(canonical(self.peer.ip())),
            local: self.local.map(|a| canonical(a.ip())),
            protocol: protocol(session, t.mail.smtputf8),
            vmta: String::new(),
            results: std::mem::take(&mut t.results),
        };
        let now = clock::now_ms();
        let recipients = t.recipients.len() as u64;
        let (envelope, body) = prepare(&config, &self.rules, &from, id, now, t.mail, t.recipients, content).await?;
        let bytes = (body[0].len() + body[1].len()) as u64;
        match submit(self.shard, envelope, body).await {
            Ok(()) => {
                self.shard.count_received(recipients, bytes);
                tracing::debug!(message = %id, recipients, bytes, peer = %self.peer, "accepted");
                Ok(id.to_string())
            }
            Err(SpoolError::Full(why)) => Err(Refusal(452, "4.3.1", format!("No room for new mail: {why}"))),
            Err(e) => {
                if log_limit::allows_line("the spool cannot take mail", "") {
                    tracing::error!(message = %id, error = %e, "the spool cannot take mail");
                }
                Err(Refusal(451, "4.3.0", "The spool cannot take mail now".into()))
            }
        }
    }
}

/// The reply to a user for whom the group of its source has no place.
fn no_place(code: u16, rules: &SourceRules) -> Refusal {
    let status = if code == 421 { "4.3.2" } else { "4.7.0" };
    Refusal(
        code,
        status,
        format!("No free connection for source group {} (max-smtp-in), try again later", rules.source_group),
    )
}

/// `with` of Received (RFC 3848, RFC 6531 §4.3).
fn protocol(session: &ServerSession, smtputf8: bool) -> &'static str {
    match (smtputf8, session.tls, !session.user().is_empty()) {
        _ if !session.esmtp => "SMTP",
        (true, true, true) => "UTF8SMTPSA",
        (true, true, false) => "UTF8SMTPS",
        (true, false, true) => "UTF8SMTPA",
        (true, false, false) => "UTF8SMTP",
        (false, true, true) => "ESMTPSA",
        (false, true, false) => "ESMTPS",
        (false, false, true) => "ESMTPA",
        (false, false, false) => "ESMTP",
    }
}
