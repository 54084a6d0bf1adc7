//! AUTH within a session (RFC 4954).

use std::rc::Rc;

use ipc::rules::SourceRules;

use super::super::auth::exchange::{self, Exchange, Next, decoded, encoded};
use super::super::auth::mechanism::Mechanism;
use super::super::auth::users::Answer;
use super::{Event, ServerSession, State};
use crate::smtp::command::Refusal;

/// Wrong passwords before the session is closed.
const AUTH_FAILURES_MAX: u32 = 5;

impl ServerSession {
    /// A line of an exchange, which is longer than commands may be (RFC 4954 §4).
    pub(super) fn feed_auth(&mut self, exchange: Exchange, input: &[u8]) -> (usize, Event) {
        let Some(end) = memchr::memchr(b'\n', &input[..input.len().min(exchange::LINE_MAX)]) else {
            if input.len() < exchange::LINE_MAX {
                self.state = State::Auth(exchange);
                return (0, Event::None);
            }
            self.state = State::Ready;
            self.skipped = exchange::LINE_MAX;
            return (exchange::LINE_MAX, Event::None);
        };
        self.state = State::Ready;
        let line = input[..end].strip_suffix(b"\r").and_then(|l| std::str::from_utf8(l).ok());
        let event = match line {
            Some("*") => self.refuse(&Refusal(501, "5.7.0", "Authentication given up".into())),
            Some(line) => match decoded(line) {
                Ok(message) => self.heard(exchange, &message),
                Err(_) => self.refuse(&malformed_auth()),
            },
            None => self.refuse(&malformed_auth()),
        };
        (end + 1, event)
    }

    /// What the client said within AUTH.
    fn heard(&mut self, exchange: Exchange, message: &[u8]) -> Event {
        match exchange.heard(message, self.shown.as_deref()) {
            Next::Ask(asked, exchange) => self.ask(&asked, exchange),
            Next::Check(check) => {
                self.state = State::Busy;
                Event::Authenticate(check)
            }
            Next::Malformed => self.refuse(&malformed_auth()),
        }
    }

    fn begin_with_question(&mut self, exchange: Exchange) -> Event {
        let asked = exchange.first_question().to_vec();
        self.ask(&asked, exchange)
    }

    fn ask(&mut self, asked: &[u8], exchange: Exchange) -> Event {
        // A question may be longer than a reply's line (RFC 4954 section 4).
        self.out.extend_from_slice(format!("334 {}\r\n", encoded(asked)).as_bytes());
        self.state = State::Auth(exchange);
        Event::None
    }

    /// Mechanisms that this client can use now.
    pub(super) fn mechanisms(&self) -> Vec<Mechanism> {
        let known = |m: Mechanism| match m {
            Mechanism::External => self.shown.is_some(),
            m => self.users.allow(m),
        };
        let offered = Mechanism::ALL.into_iter().filter(|m| self.rules.allow_auth && known(*m));
        offered.filter(|m| m.is_safe_on(self.tls, &self.rules)).collect()
    }

    pub(super) fn auth(&mut self, arg: &str) -> Event {
        match self.begin_auth(arg) {
            Ok(event) => event,
            Err(r) => self.refuse(&r),
        }
    }

    fn begin_auth(&mut self, arg: &str) -> Result<Event, Refusal> {
        let refused = |code, status, text: &str| Err(Refusal(code, status, text.to_owned()));
        let has_any = self.shown.is_some() || Mechanism::ALL.into_iter().any(|m| self.users.allow(m));
        if !self.rules.allow_auth || !has_any {
            return refused(502, "5.5.1", "AUTH is not offered here");
        }
        match self.state {
            State::Ready if self.user.is_some() => return refused(503, "5.5.1", "You have authenticated already"),
            State::Ready if self.esmtp => {}
            State::Mail(_) => return refused(503, "5.5.1", "AUTH is not possible within a transaction"),
            _ => return refused(503, "5.5.1", "EHLO first"),
        }
        if self.rules.require_starttls_before_auth && !self.tls {
            return refused(530, "5.7.0", "STARTTLS first (require-starttls-before-auth)");
        }
        let arg = arg.trim_start_matches(' ');
        if arg.is_empty() {
            return refused(501, "5.5.4", "Expected AUTH MECHANISM [BASE64]");
        }
        let (name, initial) = arg.split_once(' ').map_or((arg, None), |(n, i)| (n, Some(i.trim())));
        let offered = self.mechanisms();
        let mechanism = match Mechanism::named(name) {
            Some(m) if offered.contains(&m) => m,
            Some(m) if self.users.allow(m) && !m.is_safe_on(self.tls, &self.rules) => {
                let text = format!("{} needs TLS: STARTTLS first (allow-unencrypted-plain-auth)", m.name());
                return refused(538, "5.7.11", &text);
            }
            _ => {
                let names: Vec<&str> = offered.iter().map(|m| m.name()).collect();
                return refused(504, "5.5.4", &format!("Expected one of {}", names.join(" ")));
            }
        };
        let Some(exchange) = Exchange::begin(mechanism, &self.name) else {
            return refused(454, "4.7.0", "No randomness for a challenge now, try again later");
        };
        Ok(match initial {
            None | Some("") => self.begin_with_question(exchange),
            Some(_) if !exchange.lets_client_begin() => {
                return refused(501, "5.7.0", &format!("With {} the server begins", mechanism.name()));
            }
            // RFC 4954 section 4: what is empty is written so.
            Some("=") => self.heard(exchange, b""),
            Some(text) => {
                let message = decoded(text).map_err(|_| malformed_auth())?;
                self.heard(exchange, &message)
            }
        })
    }

    /// A claim was checked. `rules` are those of the user that the client is, if it is one.
    pub fn checked(&mut self, answer: Result<Answer, Refusal>, rules: Option<Rc<SourceRules>>) -> Event {
        self.state = State::Ready;
        match answer {
            Ok(Answer::Ask(asked, exchange)) => self.ask(&asked, exchange),
            Ok(Answer::Proven(name)) => {
                self.become_user(name, rules);
                self.reply(235, "2.7.0", "Authentication successful");
                Event::None
            }
            Ok(answer @ (Answer::Wrong | Answer::Unusable)) => {
                self.auth_failures += u32::from(matches!(answer, Answer::Wrong));
                if self.auth_failures >= AUTH_FAILURES_MAX {
                    self.reply(421, "4.7.0", "Too many failures to authenticate, closing");
                    return Event::Close;
                }
                let event = self.refuse(&Refusal(535, "5.7.8", "Name or password is wrong".into()));
                // The log has it already, with the name.
                self.refused = None;
                event
            }
            Ok(Answer::Malformed) => self.refuse(&malformed_auth()),
            Ok(Answer::Unavailable) => {
                self.refuse(&Refusal(454, "4.7.0", "No randomness for a challenge now, try again later".into()))
            }
            Err(r) => self.refuse(&r),
        }
    }

    fn become_user(&mut self, name: String, rules: Option<Rc<SourceRules>>) {
        self.user = Some(name);
        if let Some(r) = rules {
            self.rules = r;
        }
    }

    /// The client has shown the certificate of a user, and is that user: it may say so by AUTH EXTERNAL, and need not.
    pub fn has_shown_certificate_of(&mut self, name: &str, rules: Rc<SourceRules>) {
        self.shown = Some(name.to_owned());
        self.rules = rules;
    }

    /// The user that the client is; empty for none.
    pub fn user(&self) -> &str {
        self.user.as_deref().or(self.shown.as_deref()).unwrap_or_default()
    }
}

fn malformed_auth() -> Refusal {
    Refusal(501, "5.5.2", "Expected base64 of a message of the mechanism".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use ipc::snapshot::{Global, MappedSnapshot, SmtpUser, Snapshot};

    use super::super::super::auth::users::Users;
    use super::*;

    fn users() -> Arc<Users> {
        let user = SmtpUser { name: "u".into(), password: "p".into(), ..Default::default() };
        let snapshot = Snapshot { smtp_users: vec![user], ..Default::default() };
        Arc::new(Users::of(MappedSnapshot::map(&snapshot.seal().unwrap()).unwrap().get()).unwrap())
    }

    fn session(rules: SourceRules) -> ServerSession {
        let rules = Rc::new(SourceRules { always_allow_relaying: true, allow_starttls: true, ..rules });
        ServerSession::new("mta.test".into(), rules, Rc::new(Global::default()), Rc::new(()), users(), true)
    }

    /// The codes and enhanced codes of the replies to some lines.
    fn say(s: &mut ServerSession, lines: &[&str]) -> Vec<String> {
        s.out.clear();
        for line in lines {
            let (line, mut at) = (format!("{line}\r\n"), 0);
            while at < line.len() {
                let (n, mut event) = s.feed(&line.as_bytes()[at..]);
                at += n;
                while let Event::Authenticate(check) = event {
                    event = s.checked(Ok(users().check(check)), None);
                }
            }
        }
        let out = String::from_utf8_lossy(&s.out).into_owned();
        out.lines().filter(|l| !l.starts_with("250-")).map(|l| l[..l.len().min(9)].trim_end().to_owned()).collect()
    }

    /// `u` and `p`, then a wrong password.
    const RIGHT: &str = "AHUAcA==";
    const WRONG: &str = "AHUAcQ==";

    #[test]
    fn it_has_its_place_in_a_session() {
        let mut s =
            session(SourceRules { allow_unencrypted_plain_auth: true, require_auth: true, ..Default::default() });
        let right = format!("AUTH plain {RIGHT}");
        assert_eq!(say(&mut s, &[&right]), ["503 5.5.1"], "before EHLO");
        assert_eq!(say(&mut s, &["HELO c", &right]), ["250 mta.t", "503 5.5.1"]);
        assert_eq!(say(&mut s, &["EHLO c", "MAIL FROM:<>"]), ["250 AUTH", "530 5.7.0"]);
        assert_eq!(say(&mut s, &["AUTH", "AUTH X", "AUTH EXTERNAL ="]), ["501 5.5.4", "504 5.5.4", "504 5.5.4"]);
        assert_eq!(say(&mut s, &[&right, &right, "STARTTLS"]), ["235 2.7.0", "503 5.5.1", "503 5.5.1"]);
        assert_eq!(s.user(), "u");
        assert_eq!(say(&mut s, &["RSET", "MAIL FROM:<>", &right]), ["250 2.0.0", "250 2.1.0", "503 5.5.1"]);
    }

    #[test]
    fn answers_are_base64_and_can_be_given_up() {
        let open = || session(SourceRules { allow_unencrypted_plain_auth: true, ..Default::default() });
        let mut s = open();
        assert_eq!(
            say(&mut s, &["EHLO c", "AUTH PLAIN", RIGHT.trim_end_matches('=')]),
            ["250 AUTH", "334", "235 2.7.0"]
        );
        let mut s = open();
        assert_eq!(say(&mut s, &["EHLO c", "AUTH LOGIN dQ==", "cA=="])[1..], ["334 UGFzc", "235 2.7.0"]);
        let mut s = open();
        say(&mut s, &["EHLO c"]);
        assert_eq!(say(&mut s, &["AUTH LOGIN", "*", "NOOP"]), ["334 VXNlc", "501 5.7.0", "250 2.0.0"]);
        assert_eq!(say(&mut s, &["AUTH PLAIN", "NOOP!", "AUTH PLAIN A-_A"]), ["334", "501 5.5.2", "501 5.5.2"]);
        assert_eq!(
            say(&mut s, &["AUTH CRAM-MD5 dQ==", "AUTH PLAIN =", "AUTH PLAIN AHUA"]),
            ["501 5.7.0", "501 5.5.2", "501 5.5.2"]
        );
        let long = "A".repeat(exchange::LINE_MAX);
        assert_eq!(say(&mut s, &["AUTH PLAIN", &long, "NOOP"]), ["334", "500 5.5.6", "250 2.0.0"]);
        let fits = format!("{}=", "A".repeat(exchange::LINE_MAX - 7));
        assert_eq!(say(&mut s, &["AUTH PLAIN", &fits]), ["334", "501 5.5.2"]);
    }

    #[test]
    fn wrong_passwords_end_the_session() {
        let mut s = session(SourceRules { allow_unencrypted_plain_auth: true, ..Default::default() });
        say(&mut s, &["EHLO c"]);
        let wrong = format!("AUTH PLAIN {WRONG}");
        for _ in 1..AUTH_FAILURES_MAX {
            assert_eq!(say(&mut s, &[&wrong]), ["535 5.7.8"]);
        }
        assert_eq!(say(&mut s, &[&wrong]), ["421 4.7.0"]);
        assert!(s.user().is_empty());
    }

    #[test]
    fn without_tls_only_what_shows_no_password_is_offered() {
        let offered = |rules: SourceRules, tls| {
            let mut s = session(rules);
            s.tls = tls;
            say(&mut s, &["EHLO c"]);
            let out = String::from_utf8_lossy(&s.out).into_owned();
            out.lines().filter_map(|l| l.split_once("AUTH").map(|(_, m)| m.to_owned())).collect::<Vec<_>>()
        };
        let all = " SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN";
        assert_eq!(offered(SourceRules::default(), true), [all]);
        assert_eq!(offered(SourceRules::default(), false), [" SCRAM-SHA-256 CRAM-MD5"]);
        assert_eq!(offered(SourceRules { allow_unencrypted_plain_auth: true, ..Default::default() }, false), [all]);
        assert!(offered(SourceRules { allow_auth: false, ..Default::default() }, true).is_empty());
        let old = SourceRules { broken_auth_clients: true, ..Default::default() };
        assert_eq!(offered(old, true), [all.to_owned(), format!("={}", &all[1..])]);
        let strict = SourceRules { require_starttls_before_auth: true, ..Default::default() };
        assert_eq!((offered(strict.clone(), true).len(), offered(strict.clone(), false).len()), (1, 0));
        let mut s = session(strict);
        assert_eq!(say(&mut s, &["EHLO c", "AUTH CRAM-MD5"])[1..], ["530 5.7.0"]);
        let mut s = session(SourceRules::default());
        assert_eq!(say(&mut s, &["EHLO c", "AUTH PLAIN"])[1..], ["538 5.7.1"]);
    }
}
