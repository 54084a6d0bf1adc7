//! `<smtp-user>`: those that clients may authenticate as.

use std::collections::HashSet;
use std::path::Path;

use ipc::rules::{SourceKey, Value};
use ipc::snapshot::{Listener, SmtpUser, Source};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use worker::accept::auth::mechanism::Mechanism;
use worker::accept::auth::stored::{NAME_MAX, StoredPassword, looks_like_a_hash, prepared, sha256};
use worker::connect::certificate::Certificate;

use super::{Accepted, Compiler, Diagnostic, Problem, Span, Statement};

/// The source that holds for users that name none.
const AUTH_SOURCE: &str = "{auth}";
const OFFER_TLS: &str =
    "name a certificate with smtp-server-tls-certificate, and say allow-starttls yes in the <source> of these clients";
/// Bytes of a file with a client's certificate.
const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;

/// What sources say of AUTH that has to come together with other lines.
#[derive(Debug, Default)]
pub(super) struct SaidOfAuth {
    /// The first `require-auth yes`.
    required: Option<Span>,
    /// The first beside `allow-auth no`.
    required_and_not_allowed: Option<Span>,
    /// The first `require-starttls-before-auth yes`.
    requires_starttls: Option<Span>,
    /// Some source says `allow-unencrypted-plain-auth yes`.
    allows_plain: bool,
    /// Some source says `allow-starttls yes`.
    allows_starttls: bool,
}

impl SaidOfAuth {
    /// Takes the lines of one source, and their places.
    pub fn take(&mut self, lines: &[(SourceKey, bool, Span)]) {
        let says =
            |key, value| lines.iter().rfind(|(k, ..)| *k == key).filter(|(_, v, _)| *v == value).map(|(.., at)| *at);
        let required = says(SourceKey::RequireAuth, true);
        self.required = self.required.or(required);
        let both = required.filter(|_| says(SourceKey::AllowAuth, false).is_some());
        self.required_and_not_allowed = self.required_and_not_allowed.or(both);
        self.requires_starttls = self.requires_starttls.or(says(SourceKey::RequireStarttlsBeforeAuth, true));
        self.allows_plain |= says(SourceKey::AllowUnencryptedPlainAuth, true).is_some();
        self.allows_starttls |= says(SourceKey::AllowStarttls, true).is_some();
    }
}

/// How a user proves who it is, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Password,
    System,
    Certificate,
}

impl Method {
    fn of(n: u64) -> Method {
        match n {
            1 => Method::System,
            2 => Method::Certificate,
            _ => Method::Password,
        }
    }
}

/// Names of the mechanisms that a stored password allows.
fn allowed_by(password: &StoredPassword) -> Vec<&'static str> {
    Mechanism::ALL.into_iter().filter(|m| password.allows(*m)).map(Mechanism::name).collect()
}

/// How users prove who they are, by which mechanisms, and how many users do so; in the order in which the first of each stands in the
/// configuration.
pub fn users_by_form(users: &[SmtpUser]) -> Vec<(&'static str, Vec<&'static str>, usize)> {
    let mut forms: Vec<(&'static str, Vec<&'static str>, usize)> = Vec::new();
    for u in users {
        let (form, mechanisms) = match StoredPassword::read(&u.password) {
            Ok(p) if u.certificate.is_empty() => (p.form(), allowed_by(&p)),
            _ => ("certificate", vec![Mechanism::External.name()]),
        };
        match forms.iter_mut().find(|(f, ..)| *f == form) {
            Some((.., n)) => *n += 1,
            None => forms.push((form, mechanisms, 1)),
        }
    }
    forms
}

impl<'s> Compiler<'s> {
    pub(super) fn smtp_user(&mut self, s: &'s Statement) {
        let name = &*s.value;
        let compared = prepared(name);
        if name.len() > NAME_MAX || compared.is_empty() || compared.contains(char::is_control) {
            let found = if name.len() > NAME_MAX { format!("{} octets", name.len()) } else { name.to_owned() };
            let expected = format!("a name of 1 to {NAME_MAX} octets that can be seen");
            return self.problem(s, Problem::expected(&expected, &found));
        }
        if let Some(first) = self.users.insert(compared, s.at) {
            let message = format!("<smtp-user {name}> is defined again, as names are compared (SASLprep, RFC 4013)");
            let d = Diagnostic::error(s.value_at(), "duplicate", message, "keep one of them");
            return self.reader.diagnostics.push(d.with(first, "the first one"));
        }
        let mut user = SmtpUser { name: name.to_owned(), source: AUTH_SOURCE.into(), ..SmtpUser::default() };
        let (mut method, mut password, mut certificate) = (Method::Password, None, None);
        for i in &s.inside {
            match (&*i.name, self.check("smtp-user", i).and_then(Accepted::in_force)) {
                ("password", Some(Value::Text(t))) => password = Some((i, t)),
                ("authentication-method", Some(Value::Number(n))) => {
                    method = Method::of(n);
                    if method == Method::System {
                        let message = "authentication-method system: no program of this machine is asked for passwords";
                        let help = "keep the password here, as `sluice user hash` prints it";
                        self.error(i.value_at(), "unsupported", message, help);
                    }
                }
                ("tls-certificate", Some(Value::Text(path))) => certificate = Some((i, path)),
                // What is wrong with these lines was said.
                ("password" | "tls-certificate", None) => return,
                ("source", Some(Value::Text(t))) => user.source = t.to_lowercase(),
                _ => {}
            }
        }
        match (method, password, certificate) {
            (Method::Password, Some((i, value)), certificate) => {
                user.password = self.password(i, value);
                self.without_use(certificate.map(|(i, _)| i), "tls-certificate", "certificate");
            }
            (Method::Certificate, password, Some((i, path))) => {
                user.certificate = self.certificate_of_client(i, &path);
                let same = |u: &&SmtpUser| u.certificate.len() > 1 && u.certificate == user.certificate;
                if let Some(other) = self.snapshot.smtp_users.iter().find(same).map(|u| u.name.clone()) {
                    let message = format!("tls-certificate: <smtp-user {other}> has the same certificate");
                    self.error(i.value_at(), "duplicate", message, "each user with a certificate has one of its own");
                }
                self.without_use(password.map(|(i, _)| i), "password", "password");
            }
            (Method::Password, None, _) => self.lacks(s, "password", "`sluice user hash` prints the line's value"),
            (Method::Certificate, _, None) => {
                self.lacks(s, "tls-certificate", "name the file of the client's certificate")
            }
            (Method::System, ..) => {}
        }
        if !user.password.is_empty() || !user.certificate.is_empty() {
            self.snapshot.smtp_users.push(user);
        }
    }

    fn lacks(&mut self, s: &Statement, what: &str, help: &str) {
        self.error(s.at, "missing-directive", format!("<smtp-user {}> has no {what}", &*s.value), help);
    }

    fn without_use(&mut self, line: Option<&Statement>, what: &str, method: &str) {
        if let Some(i) = line {
            let message = format!("{what} has no effect: the authentication-method of this user is another one");
            self.warning(i.at, "no-effect", message, format!("remove the line, or say authentication-method {method}"));
        }
    }

    /// A password as it is stored; empty where it cannot be.
    fn password(&mut self, s: &Statement, value: String) -> String {
        let stored = match StoredPassword::read(&value) {
            Ok(stored) => stored,
            Err(fault) => {
                self.error(s.at, "bad-value", format!("password: {fault}"), "`sluice user hash` prints such a value");
                return String::new();
            }
        };
        if looks_like_a_hash(&value) && matches!(stored, StoredPassword::Plain(_)) {
            let message =
                "password: this looks like a hash of a form that is none here, and is taken for the password itself";
            let help = "forms begin with $argon2id$ or SCRAM-SHA-256$: `sluice user hash` makes one of a password";
            self.warning(s.at, "plain-password", message, help);
        } else if matches!(stored, StoredPassword::Plain(_)) {
            let message = "password in plain text: whoever can read this file can send as this user";
            let help = format!(
                "`sluice user hash` makes one of it that only proves passwords; clients lose CRAM-MD5 by that (now: {})",
                allowed_by(&stored).join(", ")
            );
            self.warning(s.at, "plain-password", message, help);
        }
        value
    }

    /// SHA-256 of the first certificate of a file; empty where there is none.
    fn certificate_of_client(&mut self, s: &Statement, path: &str) -> Vec<u8> {
        if !self.reader.source.opens_named_files() {
            // What another user's file holds is not looked at; the line counts as one that has a certificate.
            return vec![0];
        }
        let read =
            self.reader.named_file(Path::new(path), CERTIFICATE_BYTES_MAX).map_err(|e| Problem::missing(path, &e));
        let first = read.and_then(|pem| {
            CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|e| Problem::other(format!("{path}: expected a certificate in PEM: {e}")))
        });
        match first {
            Ok(der) => {
                let now_s = jiff::Timestamp::now().as_second();
                if Certificate::of(&der).is_none_or(|c| now_s < c.valid.0 || now_s > c.valid.1) {
                    let message =
                        format!("{path}: this certificate has ended, or has not begun: it counts for nothing");
                    self.warning(s.value_at(), "no-effect", message, "name the one that the client shows now");
                }
                sha256(&der).to_vec()
            }
            Err(p) => {
                self.problem(s, p);
                Vec::new()
            }
        }
    }

    /// What users and sources ask for that cannot come together.
    pub(super) fn authentication(&mut self) {
        if let Some(at) = self.auth.required.filter(|_| self.users.is_empty()) {
            let message = "require-auth, and there is no <smtp-user>: mail of these clients is refused with 530";
            self.warning(
                at,
                "contradiction",
                message,
                "add a <smtp-user>, or list the addresses that may send without",
            );
        }
        if let Some(at) = self.auth.required_and_not_allowed {
            let message = "require-auth and allow-auth no: mail of these clients is refused with 530";
            self.warning(at, "contradiction", message, "remove one of the two lines");
        }
        self.lines_that_come_too_late();
        let has_certificates = self.snapshot.smtp_users.iter().any(|u| !u.certificate.is_empty());
        if let Some(at) = self.issuers_at.filter(|_| !has_certificates) {
            let message = "tls-ca-file has no effect: no <smtp-user> has authentication-method certificate";
            self.warning(at, "no-effect", message, "clients' certificates count for their users alone");
        }
        let offers_tls =
            |l: &Listener| !l.tls.certificates.is_empty() && (l.tls.immediate || self.auth.allows_starttls);
        if self.snapshot.listeners.iter().any(offers_tls) || !self.reader.source.opens_named_files() {
            return;
        }
        if let Some(at) = self.auth.requires_starttls.filter(|_| !self.users.is_empty()) {
            let message = "require-starttls-before-auth, and no listener offers TLS: nobody can authenticate there";
            self.warning(at, "contradiction", message, OFFER_TLS);
        }
        let is_shut_out = |u: &SmtpUser| match StoredPassword::read(&u.password) {
            Ok(p) if u.certificate.is_empty() => !self.auth.allows_plain && !p.allows(Mechanism::ScramSha256),
            _ => true,
        };
        let of = |u: &SmtpUser| Some((u.name.clone(), *self.users.get(&prepared(&u.name))?));
        let all = self.snapshot.smtp_users.iter();
        let shut_out: Vec<(String, Span)> = all.filter(|u| is_shut_out(u)).filter_map(of).collect();
        for (name, at) in shut_out {
            let message = format!("<smtp-user {name}> cannot authenticate: no listener offers TLS");
            self.warning(at, "no-effect", message, OFFER_TLS);
        }
    }

    /// Lines about how clients authenticate do nothing in a source that holds only once they have.
    fn lines_that_come_too_late(&mut self) {
        let of_users: HashSet<&str> = self.snapshot.smtp_users.iter().map(|u| u.source.as_str()).collect();
        let of_listeners: HashSet<String> = self.snapshot.listeners.iter().map(|l| l.source.to_lowercase()).collect();
        let late = |s: &&Source| of_users.contains(s.name.as_str()) && !of_listeners.contains(&s.name);
        let lines = self.snapshot.sources.iter().filter(late).flat_map(|s| s.settings.iter());
        let keys = [
            SourceKey::AllowAuth,
            SourceKey::AllowUnencryptedPlainAuth,
            SourceKey::BrokenAuthClients,
            SourceKey::RequireAuth,
            SourceKey::RequireStarttlsBeforeAuth,
            SourceKey::SmtpMaxAuthFailureRate,
        ];
        let about_auth =
            lines.filter_map(|s| keys.iter().find(|k| **k as u16 == s.key).map(|k| ((s.file, s.line), *k)));
        for (place, key) in about_auth.collect::<Vec<_>>() {
            let message = format!("{} has no effect here: this source holds once a user has authenticated", key.name());
            let help = "write it in the <source> of the clients' addresses, or of the listener";
            self.warning(self.line_at(place), "no-effect", message, help);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use worker::accept::auth::stored::{Form, ITERATIONS_MIN, made};

    use crate::config::compile::compile_text;

    /// Names and sources of users, and lines and codes of what is wrong.
    fn found(text: &str) -> (Vec<String>, Vec<String>) {
        let checked = compile_text(Path::new("c.conf"), text);
        let users = checked.compiled.snapshot.smtp_users.iter().map(|u| format!("{} {}", u.name, u.source));
        let wrong = checked.diagnostics.iter().filter(|d| d.code != "unused");
        (users.collect(), wrong.map(|d| format!("{} {}", d.at.line, d.code)).collect())
    }

    #[test]
    fn users_have_a_password_and_a_source() {
        let scram = made("secret", Form::ScramSha256(ITERATIONS_MIN)).unwrap();
        let text = format!(
            "<smtp-user a@b.test>\n password {scram}\n source {{X}}\n</smtp-user>\n<smtp-user B>\n password plain\n</smtp-user>\n\
             <source {{x}}>\n</source>\n"
        );
        assert_eq!(found(&text), (vec!["a@b.test {x}".into(), "B {auth}".into()], vec!["6 plain-password".into()]));
    }

    #[test]
    fn names_that_are_one_when_compared_are_one() {
        let user = |name: &str| format!("<smtp-user {name}>\n password x\n</smtp-user>\n");
        let codes = |a: &str, b: &str| found(&format!("{}{}", user(a), user(b))).1;
        assert!(codes("shop", "sho\u{ad}p").contains(&"4 duplicate".to_owned()));
        assert!(!codes("shop", "Shop").contains(&"4 duplicate".to_owned()));
        assert!(codes("a", "\u{ad}").contains(&"4 bad-value".to_owned()));
    }

    #[test]
    fn what_nobody_can_log_in_by_is_told() {
        let argon2id = made("secret", Form::Argon2id).unwrap();
        let user = format!("<smtp-user a>\n password {argon2id}\n</smtp-user>\n");
        assert_eq!(found(&user).1, ["1 no-effect"], "there is no TLS");
        assert_eq!(found(&format!("{user}<source 0/0>\n allow-unencrypted-plain-auth yes\n</source>")).1, [""; 0]);
        assert_eq!(found("<smtp-user a>\n</smtp-user>").1, ["1 missing-directive"]);
        assert_eq!(
            found("<smtp-user a>\n password x\n authentication-method system\n</smtp-user>").1,
            ["3 unsupported"]
        );
        assert_eq!(found("<smtp-user a>\n authentication-method certificate\n</smtp-user>").1, ["1 missing-directive"]);
        let twice = format!(
            "{}<smtp-user a>\n password $argon2id$x\n</smtp-user>\n",
            user.replace("<smtp-user a>", "<smtp-user b>")
        );
        assert_eq!(found(&twice).1, ["1 no-effect", "5 bad-value"]);
        assert!(found(&format!("{user}{user}")).1.contains(&"4 duplicate".to_owned()));
        assert_eq!(found("<source 0/0>\n require-auth yes\n</source>").1, ["2 contradiction"]);
        let plain = "<smtp-user a>\n password x\n</smtp-user>\n";
        let beside = |lines: &str| found(&format!("{plain}<source 0/0>\n{lines}</source>")).1;
        assert_eq!(beside(" require-auth yes\n allow-auth no\n"), ["2 plain-password", "5 contradiction"]);
        assert_eq!(beside(" require-starttls-before-auth yes\n"), ["2 plain-password", "5 contradiction"]);
        let late =
            format!("{plain}<source {{auth}}>\n max-message-size 1M\n smtp-max-auth-failure-rate 2/h\n</source>");
        assert_eq!(found(&late).1, ["2 plain-password", "6 no-effect"]);
    }
}
