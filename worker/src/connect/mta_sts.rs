//! SMTP MTA Strict Transport Security (RFC 8461): a domain says over HTTPS which mail hosts it
//! has, and that they speak TLS with a certificate for their name. Policies are kept on disk, so
//! that nobody can take one away by keeping us from reading it again.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use ipc::dice::HashSet;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::cache::Cache;
use super::mx::Resolver;
use crate::clock;
use crate::ports::{Net, Stream};

/// Bytes of a policy (RFC 8461 §3.3).
const POLICY_BYTES_MAX: usize = 64 << 10;
/// Time for reading a policy.
const FETCH_WAIT: Duration = Duration::from_secs(20);
/// After reading one failed it is tried again (RFC 8461 §3.3: at least five minutes).
const FAILURE_TTL: Duration = Duration::from_secs(300);
/// How long the record in DNS is not asked for again.
const RECORD_TTL: Duration = Duration::from_secs(300);
/// Domains that are remembered in memory, and bytes of their policies.
const DOMAINS_MAX: usize = 16_384;
const POLICIES_BYTES_MAX: usize = 32 << 20;
/// Bytes of a wrong value that the log shows.
const FOUND_BYTES_MAX: usize = 100;
/// Longest life of a policy, seconds (RFC 8461 §3.2).
const MAX_AGE_MAX: u64 = 31_557_600;
/// A policy is read again when so much of its life is left, so that it does not run out.
const REFRESH_BEFORE_MS: i64 = 86_400_000;

/// `mode:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyMode {
    /// Mail goes to nobody who does not conform.
    Enforce,
    /// It goes, and the operator is told.
    Testing,
    /// No policy any more.
    None,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What is to be done.
    pub mode: PolicyMode,
    /// Patterns of mail hosts.
    pub mx: Vec<String>,
    /// Seconds.
    pub max_age: u64,
}

impl Policy {
    /// Reads a policy (RFC 8461 §3.2).
    ///
    /// # Errors
    /// A sentence saying what it lacks.
    pub fn parse(text: &str) -> Result<Policy, String> {
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let (name, value) = (name.trim(), value.trim());
            match name {
                "version" => version = version.or(Some(value)),
                "mode" => mode = mode.or(Some(value)),
                "max_age" => max_age = max_age.or(value.parse::<u64>().ok()),
                "mx" => mx.push(value.trim_end_matches('.').to_ascii_lowercase()),
                _ => {}
            }
        }
        if version != Some("STSv1") {
            return Err(format!("version STSv1 expected, found {}", quoted(version)));
        }
        let mode = match mode {
            Some("enforce") => PolicyMode::Enforce,
            Some("testing") => PolicyMode::Testing,
            Some("none") => PolicyMode::None,
            other => return Err(format!("mode enforce, testing or none expected, found {}", quoted(other))),
        };
        let max_age = max_age.ok_or("max_age is missing")?.min(MAX_AGE_MAX);
        if mx.is_empty() && mode != PolicyMode::None {
            return Err("no mx is named".into());
        }
        Ok(Policy { mode, mx, max_age })
    }

    /// Whether a mail host is one of the domain's (RFC 8461 §4.1). `*.` stands for one label.
    pub fn allows(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.mx.iter().any(|p| match p.strip_prefix("*.") {
            Some(rest) => host.split_once('.').is_some_and(|(first, of)| !first.is_empty() && of == rest),
            None => *p == host,
        })
    }
}

/// What somebody wrote, as far as a log has room for it.
fn quoted(value: Option<&str>) -> String {
    value.map_or_else(|| "none".to_owned(), |v| format!("{:?}", ipc::text::clean(v, FOUND_BYTES_MAX)))
}

/// The `id` of a `_mta-sts` record; `None` when it is none (RFC 8461 §3.1).
pub fn record_id(txt: &str) -> Option<String> {
    let mut fields = txt.split(';').map(str::trim);
    if fields.next() != Some("v=STSv1") {
        return None;
    }
    let id = fields.find_map(|f| f.strip_prefix("id=")).map(str::trim)?;
    let fine = (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    fine.then(|| id.to_owned())
}

/// The `id` of the only record; several are none, also where just one of them can be read (RFC
/// 8461 section 3.1).
fn the_only_id(texts: &[String]) -> Option<String> {
    let is_record = |t: &&String| t.split(';').next().is_some_and(|v| v.trim_end() == "v=STSv1" && v.len() < t.len());
    let mut records = texts.iter().filter(is_record);
    let first = records.next()?;
    if records.next().is_some() { None } else { record_id(first) }
}

/// A policy that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    id: String,
    fetched_ms: i64,
    text: String,
    policy: Rc<Policy>,
}

impl Kept {
    fn ends_ms(&self) -> i64 {
        self.fetched_ms.saturating_add(self.policy.max_age as i64 * 1000)
    }

    /// As it lies on disk: a line of our own, then the policy.
    fn as_file(&self) -> String {
        format!("id={} fetched={}\n{}", self.id, self.fetched_ms, self.text)
    }

    fn of_file(text: &str) -> Option<Kept> {
        let (first, text) = text.split_once('\n')?;
        let (id, fetched) = first.strip_prefix("id=")?.split_once(" fetched=")?;
        let policy = Rc::new(Policy::parse(text).ok()?);
        Some(Kept { id: id.to_owned(), fetched_ms: fetched.parse().ok()?, text: text.to_owned(), policy })
    }
}

#[derive(Debug, Clone)]
struct Domain {
    kept: Option<Kept>,
    /// Not looked at again before.
    until: Instant,
}

/// Policies of domains.
#[derive(Debug)]
pub struct Policies {
    folder: PathBuf,
    net: Rc<dyn Net>,
    domains: RefCell<Cache<String, Domain>>,
    /// Domains whose policies are being looked for, and who waits for one of them.
    reading: RefCell<HashSet<String>>,
    read: Notify,
}

/// A policy is being looked for. Who waits for it hears when that is over, also when it is given up.
struct Reading<'a> {
    policies: &'a Policies,
    domain: &'a str,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.policies.reading.borrow_mut().remove(self.domain);
        self.policies.read.notify_waiters();
    }
}

impl Policies {
    /// Policies kept in a folder, which all shards share, and read from their hosts by `net`.
    pub fn in_folder(folder: PathBuf, net: &Rc<dyn Net>) -> Policies {
        let domains = RefCell::new(Cache::new(DOMAINS_MAX, POLICIES_BYTES_MAX));
        Policies { folder, net: Rc::clone(net), domains, reading: RefCell::default(), read: Notify::new() }
    }

    /// The policy in force for a domain. What was read before holds until its life ends,
    /// whatever DNS or the policy's host say; the record and a new policy are looked for at
    /// most every five minutes.
    pub async fn of(&self, domain: &str, resolver: &Resolver, tls: &Arc<ClientConfig>) -> Option<Rc<Policy>> {
        let now = clock::now_ms();
        let known = self.domains.borrow().get(domain).cloned();
        let until = known.as_ref().map(|d| d.until);
        let kept = match known {
            Some(d) => d.kept,
            None => self.read_kept(domain).await,
        };
        let kept = kept.filter(|k| k.ends_ms() > now);
        if until.is_some_and(|u| u > Instant::now()) {
            return kept.map(|k| k.policy);
        }
        // Others who ask meanwhile go by what is known; where nothing is, they wait.
        let first = self.reading.borrow_mut().insert(domain.to_owned());
        if !first {
            if kept.is_none() {
                let over = async {
                    while self.reading.borrow().contains(domain) {
                        self.read.notified().await;
                    }
                };
                // After this time the connection goes by the policy that is known then, if any.
                let _ = timeout(FETCH_WAIT, over).await;
            }
            let known = self.domains.borrow().get(domain).and_then(|d| d.kept.clone());
            return known.or(kept).map(|k| k.policy);
        }
        let _reading = Reading { policies: self, domain };
        self.look(domain, kept, resolver, tls).await
    }

    /// Looks for the record, and reads a policy that is new.
    async fn look(
        &self,
        domain: &str,
        kept: Option<Kept>,
        resolver: &Resolver,
        tls: &Arc<ClientConfig>,
    ) -> Option<Rc<Policy>> {
        let now = clock::now_ms();
        self.remember(domain, kept.clone(), RECORD_TTL);
        // A record that cannot be had is none, as before there was one.
        let record = resolver.txt(&format!("_mta-sts.{domain}")).await.unwrap_or_default();
        let Some(id) = the_only_id(&record) else { return kept.map(|k| k.policy) };
        let fresh = |k: &Kept| k.id == id && k.ends_ms() - now > REFRESH_BEFORE_MS.min(k.policy.max_age as i64 * 500);
        if kept.as_ref().is_some_and(fresh) {
            return kept.map(|k| k.policy);
        }
        let host = format!("mta-sts.{domain}");
        let read = match timeout(FETCH_WAIT, fetch(&host, resolver, &*self.net, tls)).await {
            Ok(r) => r,
            Err(_) => Err("no answer in time".to_owned()),
        };
        let text = read.and_then(|text| Policy::parse(&text).map(|p| (text, Rc::new(p))));
        match text {
            Ok((text, policy)) => {
                tracing::info!(domain, id, mode = ?policy.mode, "MTA-STS policy read");
                let new = Kept { id, fetched_ms: now, text, policy: Rc::clone(&policy) };
                self.write_kept(domain, &new).await;
                self.remember(domain, Some(new), RECORD_TTL);
                Some(policy)
            }
            Err(e) => {
                tracing::warn!(domain, error = e, "MTA-STS policy cannot be read");
                self.remember(domain, kept.clone(), FAILURE_TTL);
                kept.map(|k| k.policy)
            }
        }
    }

    /// A policy that was read before and holds still.
    pub async fn kept(&self, domain: &str) -> Option<Rc<Policy>> {
        let kept = self.read_kept(domain).await.filter(|k| k.ends_ms() > clock::now_ms());
        kept.map(|k| k.policy)
    }

    fn remember(&self, domain: &str, kept: Option<Kept>, ttl: Duration) {
        let bytes = kept.as_ref().map_or(0, |k| k.text.len() * 2);
        // It may lie in memory alone: then it holds to its end whatever is found later.
        let left_ms = kept.as_ref().map_or(0, |k| k.ends_ms().saturating_sub(clock::now_ms()));
        let life = Duration::from_millis(left_ms.try_into().unwrap_or(0)).max(ttl);
        let now = Instant::now();
        self.domains.borrow_mut().insert(domain.to_owned(), Domain { kept, until: now + ttl }, bytes, now + life);
    }

    async fn read_kept(&self, domain: &str) -> Option<Kept> {
        let text = tokio::fs::read_to_string(self.folder.join(domain)).await.ok()?;
        Kept::of_file(&text)
    }

    async fn write_kept(&self, domain: &str, kept: &Kept) {
        let write = async {
            tokio::fs::create_dir_all(&self.folder).await?;
            // No domain begins with a dot.
            let new = self.folder.join(format!(".{domain}.{}", std::process::id()));
            tokio::fs::write(&new, kept.as_file()).await?;
            tokio::fs::rename(&new, self.folder.join(domain)).await
        };
        if let Err(e) = write.await {
            tracing::warn!(folder = %self.folder.display(), error = %e, "MTA-STS policy is kept in memory only");
        }
    }
}

/// Reads `https://HOST/.well-known/mta-sts.txt`. Redirects are not followed (RFC 8461 §3.3).
async fn fetch(host: &str, resolver: &Resolver, net: &dyn Net, tls: &Arc<ClientConfig>) -> Result<String, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let addresses = resolver.addresses_of(host).await?;
    let mut last = "it has no address".to_owned();
    for ip in addresses.into_iter().take(4) {
        let connected = timeout(FETCH_WAIT / 4, net.connect(None, SocketAddr::new(ip, 443))).await;
        let stream = match connected {
            Ok(Ok(s)) => s,
            Ok(Err(fault)) => {
                last = format!("{ip}: {}", std::io::Error::from(fault));
                continue;
            }
            Err(_) => {
                last = format!("{ip} does not answer");
                continue;
            }
        };
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|e| e.to_string())?;
        return get(host, stream).await;
    }
    Err(last)
}

async fn get(host: &str, stream: tokio_rustls::client::TlsStream<Box<dyn Stream>>) -> Result<String, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    crate::tasks::begin("policy of MTA-STS", move || connection);
    let request = hyper::Request::get("/.well-known/mta-sts.txt")
        .header("host", host)
        .header("user-agent", "sluice")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    if answer.status() != 200 {
        return Err(format!("{host} answers {}", answer.status()));
    }
    let kind = answer.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/plain") {
        return Err(format!("{host} answers with content of type {kind:?} instead of text/plain"));
    }
    let body = Limited::new(answer.into_body(), POLICY_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
    String::from_utf8(body.to_bytes().to_vec()).map_err(|_| "the policy is not UTF-8".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "version: STSv1\r\nmode: enforce\r\nmx: mail.d.test\r\nmx: *.d.test.\r\nmax_age: 604800\r\n";

    #[test]
    fn policies_of_rfc_8461() {
        let p = Policy::parse(TEXT).unwrap();
        assert_eq!((p.mode, p.max_age), (PolicyMode::Enforce, 604_800));
        assert!(p.allows("MAIL.d.test.") && p.allows("mx1.d.test"));
        assert!(!p.allows("d.test") && !p.allows("a.b.d.test") && !p.allows("mail.e.test"));
        assert!(Policy::parse("version: STSv1\nmode: none\nmax_age: 1").is_ok());
        for wrong in [
            "mode: enforce\nmx: a\nmax_age: 1",
            "version: STSv1\nmode: enforce\nmax_age: 1",
            "version: STSv1\nmode: on\nmx: a\nmax_age: 1",
            "version: STSv1\nmode: enforce\nmx: a",
        ] {
            assert!(Policy::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_policy_whose_look_is_given_up_is_looked_for_again() {
        // Nobody answers there.
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let ports = crate::ports::Ports::of_the_system(0, PathBuf::new());
        let servers = [silent.local_addr().unwrap().to_string()];
        let resolver = Resolver::new(&servers, ipc::limits::EDNS_UDP_BYTES, &ports.dns).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = Arc::new(tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth());
        let folder = tempfile::tempdir().unwrap();
        let policies = Policies::in_folder(folder.path().to_owned(), &ports.net);
        let look = timeout(Duration::from_millis(50), policies.of("d.test", &resolver, &tls));
        assert!(look.await.is_err());
        assert!(policies.reading.borrow().is_empty());
    }

    #[test]
    fn records_of_rfc_8461() {
        assert_eq!(record_id("v=STSv1; id=20160831085700Z;").as_deref(), Some("20160831085700Z"));
        for wrong in ["v=STSv1;", "id=1; v=STSv1", "v=STSv2; id=1", "v=STSv1; id=a-b"] {
            assert_eq!(record_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn two_records_are_none_and_other_texts_do_not_count() {
        let id = |texts: &[&str]| the_only_id(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert_eq!(id(&["v=STSv1; id=1;", "v=spf1 -all", "v=STSv10; id=2", "v=STSv1"]).as_deref(), Some("1"));
        assert_eq!(id(&["v=STSv1; id=1;", "v=STSv1; id=a-b;"]), None);
        assert_eq!(id(&["v=STSv1; id=1;", "v=STSv1 ; nothing"]), None);
    }

    #[test]
    fn a_policy_of_many_hosts_is_not_cut() {
        let hosts: String = (0..2000).map(|n| format!("mx: h{n}.d.test\n")).collect();
        let p = Policy::parse(&format!("version: STSv1\nmode: enforce\nmax_age: 1\n{hosts}")).unwrap();
        assert!(p.allows("h1999.d.test"));
    }

    #[test]
    fn what_is_on_disk_is_read_again() {
        let policy = Rc::new(Policy::parse(TEXT).unwrap());
        let k = Kept { id: "1".into(), fetched_ms: 5, text: TEXT.into(), policy };
        assert_eq!(Kept::of_file(&k.as_file()), Some(k));
        assert_eq!(Kept::of_file("id=1 fetched=x\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_policy_or_not(t in "(version: STSv1\n)?(mode: (enforce|none|x)\n)?(mx: [*.a]{0,9}\n){0,3}(max_age: [0-9]{0,22})?") {
            if let Ok(p) = Policy::parse(&t) {
                prop_assert!(p.max_age <= MAX_AGE_MAX);
                let _ = p.allows("a.b");
            }
        }
    }
}
