//! A message as it travels between shards and lies in the spool: identity, envelope,
//! recipients.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use rkyv::{Archive, Deserialize, Serialize};

use crate::windows::Windows;

/// Identity of one accepted message, the same in every shard that holds a share of it.
///
/// 48 bits of Unix milliseconds, 8 bits of shard, 72 bits of counter started from the
/// process's start time in nanoseconds, so identities do not repeat across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// The identity made at `unix_ms` by `shard` with this `counter`.
    pub fn new(unix_ms: i64, shard: u8, counter: u64) -> Self {
        let v = (u128::from(unix_ms as u64 & 0xFFFF_FFFF_FFFF) << 80) | (u128::from(shard) << 72) | u128::from(counter);
        MessageId(v.to_be_bytes())
    }
}

impl std::str::FromStr for MessageId {
    type Err = String;

    /// As it is displayed, in either case.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected the id of a message, 26 letters and digits, found {text:?}");
        if text.len() != 26 {
            return Err(wrong());
        }
        let mut v = 0u128;
        for b in text.bytes().map(|b| b.to_ascii_lowercase()) {
            let digit = ALPHABET.iter().position(|a| *a == b).ok_or_else(wrong)?;
            v = v << 5 | digit as u128;
        }
        Ok(MessageId(v.to_be_bytes()))
    }
}

/// Crockford's base 32.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl fmt::Display for MessageId {
    /// 26 characters of Crockford's base 32, sortable by time of acceptance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = u128::from_be_bytes(self.0);
        let text: [u8; 26] = std::array::from_fn(|i| ALPHABET[(v >> (5 * (25 - i)) & 31) as usize]);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// How mail came in; the accounting field `srcType`. Append only: spools hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug, PartialEq))]
pub enum SourceType {
    /// An SMTP session.
    Smtp,
    /// `sluice inject`, later HTTP.
    Api,
    /// A report that Sluice made itself.
    Report,
}

/// BODY= of RFC 6152. Append only: spools hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug, PartialEq))]
pub enum BodyType {
    /// BODY=7BIT or not given, and no octet above 127 seen.
    SevenBit,
    /// BODY=8BITMIME, or octets above 127 seen.
    EightBit,
}

/// RET= of RFC 3461 §4.3. Append only: spools hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug, PartialEq))]
pub enum Ret {
    /// Not given.
    Unset,
    /// RET=FULL
    Full,
    /// RET=HDRS
    Headers,
}

/// NOTIFY= of RFC 3461 §4.1 as bits; 0 means not given.
pub mod notify {
    /// NOTIFY=NEVER
    pub const NEVER: u8 = 1;
    /// NOTIFY=SUCCESS
    pub const SUCCESS: u8 = 2;
    /// NOTIFY=FAILURE
    pub const FAILURE: u8 = 4;
    /// NOTIFY=DELAY
    pub const DELAY: u8 = 8;
    /// What NOTIFY= says.
    pub const GIVEN: u8 = NEVER | SUCCESS | FAILURE | DELAY;
    /// Not of RFC 3461: the recipient was only accepted to be bounced
    /// (`accept-invalid-recipients`).
    pub const NOT_TO_BE_SENT: u8 = 128;
    /// Beside that: it is no address.
    pub const NO_ADDRESS: u8 = 64;
}

/// Fields in front of stored content.
pub mod kept {
    /// `X-DKIM-Options`
    pub const DKIM_OPTIONS: u8 = 1;
    /// `X-DKIM-Key`
    pub const DKIM_KEY: u8 = 2;
    /// The names of fields that do not go out: `remove-header` of the source.
    pub const REMOVED: u8 = 4;
    /// Fields that are added when the message is delivered.
    pub const ADDED: u8 = 8;
    /// The sender is another to each recipient, see [`super::verp`].
    pub const VERP: u8 = 16;
    /// Fields that are another to each recipient.
    pub const EACH: u8 = 32;
}

/// Identity of a share that one shard hands to another, see architecture "The life of a message" 4.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct HandoffId {
    /// The shard that hands it over.
    pub origin: u8,
    /// Random, another in each of its processes, so that no identity comes again whatever became of
    /// the clock or the spool; 0 in envelopes of versions that had none. It lies where envelopes had
    /// nothing before.
    pub incarnation: u32,
    /// Grows with each share of that process.
    pub sequence: u64,
}

/// One recipient.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct Recipient {
    /// The address as given in RCPT TO, without angle brackets.
    pub address: String,
    /// What it is queued under, see [`destination_of`] and [`queue_part`].
    pub destination: String,
    /// [`notify`] bits.
    pub notify: u8,
    /// One more than the priority it was given; 0 for none, see [`priority`]. It lies where
    /// envelopes had nothing before.
    pub priority_given: u8,
    /// How often the same address was given again: it is delivered once, and accounted as often as it was given. It lies where
    /// envelopes had nothing before.
    pub given_again: u16,
    /// ORCPT= as given, xtext not decoded; empty when not given.
    pub orcpt: String,
}

impl ArchivedRecipient {
    /// How often the address was given.
    pub fn times_given(&self) -> usize {
        usize::from(self.given_again.to_native()) + 1
    }
}

/// State that goes with recipients to another owner. Their receipt is accounted already.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct Moved {
    /// When they may be tried next, Unix milliseconds; 0 before the first attempt.
    pub due_unix_ms: i64,
    /// Delay reports sent so far.
    pub delay_reports: u8,
    /// Attempts made so far.
    pub attempts: u8,
    /// The last reply.
    pub last_reply: String,
}

/// Everything about a message but its content. Recipients are sorted by destination, so
/// that those of one queue are a range of indexes.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct Envelope {
    /// Identity of the message.
    pub id: MessageId,
    /// When the message was accepted, Unix milliseconds.
    pub received_unix_ms: i64,
    /// Reverse-path without angle brackets; empty for the null sender.
    pub sender: String,
    /// Virtual MTA or pool that the message chose; empty for `{default}`.
    pub vmta: String,
    /// x-job.
    pub job_id: String,
    /// ENVID= (xtext not decoded) or x-envid; empty when not given.
    pub envid: String,
    /// RET=
    pub ret: Ret,
    /// BODY=
    pub body_type: BodyType,
    /// SMTPUTF8 given (RFC 6531).
    pub smtputf8: bool,
    /// `suppress-local-dsn` of the source.
    pub suppress_dsn: bool,
    /// How it came in.
    pub source_type: SourceType,
    /// [`kept`] bits: fields that stand in front of the stored content and do not go out. They lie
    /// where envelopes had nothing before.
    pub kept: u8,
    /// EHLO name of the submitter, and behind a blank the user that it authenticated as: an EHLO name has no blank. See
    /// [`source_name`].
    pub source_name: String,
    /// Address of the submitter; empty for other than SMTP.
    pub source_ip: String,
    /// Our address that it connected to; empty for other than SMTP. Behind a blank, where there is one, stand the windows that the mail is
    /// delivered within: see [`Envelope::set_windows`].
    pub local_ip: String,
    /// Set on shares that came over the mesh, and on shares kept under handoff.
    pub handoff: Option<HandoffId>,
    /// The shard that was asked to take the share. Its answer may be lost, so it is asked
    /// again as long as it exists, whoever owns the destination by then.
    pub asked: Option<u8>,
    /// Set on mail that moved from one owner to another after it was accepted (`sluice
    /// scale`).
    pub moved: Option<Moved>,
    /// The recipients of this share.
    pub recipients: Vec<Recipient>,
}

impl Envelope {
    /// Its mail is delivered within windows.
    pub fn set_windows(&mut self, windows: &Windows) {
        let ip = self.local_ip.split(' ').next().unwrap_or_default();
        self.local_ip = format!("{ip} {}", windows.kept());
    }
}

/// [`Envelope::source_name`] of an EHLO name and a user; `user` is empty where nobody authenticated.
pub fn source_name(hello: &str, user: &str) -> String {
    if user.is_empty() { hello.to_owned() } else { format!("{hello} {user}") }
}

/// The sender of a message to one of its recipients, so that a bounce tells which it is about (variable envelope return paths):
/// `s@d` to `r@e` is `s-r=e@d`. What cannot stand in a local part without quotes is quoted.
pub fn verp(sender: &str, recipient: &str) -> String {
    let (Some((local, domain)), Some((to, host))) = (sender.rsplit_once('@'), recipient.rsplit_once('@')) else {
        return sender.to_owned();
    };
    let inside = |l: &str| l.strip_prefix('"').and_then(|l| l.strip_suffix('"')).map(str::to_owned);
    match (inside(local), inside(to)) {
        (None, None) if !host.starts_with('[') => format!("{local}-{to}={host}@{domain}"),
        (s, r) => {
            let (s, r) = (s.unwrap_or_else(|| local.to_owned()), r.unwrap_or_else(|| to.to_owned()));
            format!("\"{s}-{r}={host}\"@{domain}")
        }
    }
}

impl ArchivedEnvelope {
    /// Our address that the submitter connected to; empty for other than SMTP.
    pub fn local_ip(&self) -> &str {
        self.local_ip.split_once(' ').map_or(self.local_ip.as_str(), |(ip, _)| ip)
    }

    /// The windows that its mail is delivered within; `None` for whenever it can be.
    pub fn windows(&self) -> Option<Windows> {
        self.local_ip.split_once(' ').and_then(|(_, windows)| Windows::of_kept(windows))
    }

    /// The sender is another to each recipient.
    pub fn is_verp(&self) -> bool {
        self.kept & kept::VERP != 0 && !self.sender.is_empty()
    }

    /// Each recipient has a transaction of its own: the sender, or the content, is another to each.
    pub fn is_alone(&self) -> bool {
        self.is_verp() || self.kept & kept::EACH != 0
    }

    /// The sender to a recipient.
    pub fn sender_to(&self, recipient: &str) -> Cow<'_, str> {
        match self.is_verp() {
            true => Cow::Owned(verp(&self.sender, recipient)),
            false => Cow::Borrowed(self.sender.as_str()),
        }
    }

    /// EHLO name of the submitter.
    pub fn hello(&self) -> &str {
        self.source_name.split_once(' ').map_or(self.source_name.as_str(), |(hello, _)| hello)
    }

    /// The user that the submitter authenticated as (`<smtp-user>`); empty for none.
    pub fn smtp_user(&self) -> &str {
        self.source_name.split_once(' ').map_or("", |(_, user)| user)
    }

    /// Its identity as a share, if it was or is one.
    pub fn handoff_id(&self) -> Option<HandoffId> {
        self.handoff.as_ref().map(|h| HandoffId {
            origin: h.origin,
            incarnation: h.incarnation.to_native(),
            sequence: h.sequence.to_native(),
        })
    }

    /// Whether `shard`, which holds it, accepted it for another one.
    pub fn is_kept_by(&self, shard: u8) -> bool {
        self.handoff.as_ref().is_some_and(|h| h.origin == shard)
    }
}

/// The queue's part of a destination: of mail that rolled up it is `QUEUE/DOMAIN`, and the
/// domain's hosts take it.
pub fn queue_part(destination: &str) -> &str {
    destination.split_once('/').map_or(destination, |(queue, _)| queue)
}

/// The domain whose hosts take mail that rolled up; `None` for other mail.
pub fn origin_part(destination: &str) -> Option<&str> {
    destination.split_once('/').map(|(_, domain)| domain)
}

/// Priority of a recipient that was given none.
pub const PRIORITY_DEFAULT: u8 = 50;

/// The priority of a recipient, 0 to 100, by [`Recipient::priority_given`].
pub fn priority(given: u8) -> u8 {
    given.checked_sub(1).map_or(PRIORITY_DEFAULT, |p| p.min(100))
}

/// What an address is queued under: the domain as lower-case A-labels without a final dot
/// (RFC 5890), or the address literal in lower case.
///
/// # Errors
/// A sentence naming what is wrong with the domain.
pub fn destination_of(address: &str) -> Result<String, String> {
    let (_, domain) = address.rsplit_once('@').ok_or_else(|| format!("address <{address}> has no domain"))?;
    normalise_domain(domain)
}

/// A domain or address literal in the one spelling that queues and limits use.
///
/// # Errors
/// A sentence naming what is wrong.
pub fn normalise_domain(domain: &str) -> Result<String, String> {
    if let Some(literal) = domain.strip_prefix('[').and_then(|d| d.strip_suffix(']')) {
        return match parse_literal(literal) {
            Some(std::net::IpAddr::V4(v4)) => Ok(format!("[{v4}]")),
            Some(std::net::IpAddr::V6(v6)) => Ok(format!("[ipv6:{v6}]")),
            None => Err(format!("[{literal}] is not an address literal (RFC 5321 section 4.1.3)")),
        };
    }
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let not_a_domain = || format!("{domain} is not a domain name");
    let ascii = if domain.is_ascii() {
        domain.to_ascii_lowercase()
    } else {
        // Label by label: one in ASCII is what it is, also where it begins with xn-- and says nothing.
        let label = |l: &str| match l.is_ascii() {
            true => Ok(l.to_ascii_lowercase()),
            false => idna::domain_to_ascii(l).map_err(|_| not_a_domain()),
        };
        domain.split('.').map(label).collect::<Result<Vec<_>, _>>()?.join(".")
    };
    let is_label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(is_octet_of_domain);
    if ascii.len() > 253 || !ascii.split('.').all(is_label) {
        return Err(not_a_domain());
    }
    Ok(ascii)
}

/// DNS names may hold any octet (RFC 2181 section 11), and mail is sent to domains with odd ones. Left out are those
/// that part words of SMTP (RFC 5321 section 4.1.2), or mean something in our own names of queues: `/`, `*`, braces.
fn is_octet_of_domain(b: u8) -> bool {
    b.is_ascii_graphic() && !b"\"(),:;<>@[\\]/*{}".contains(&b)
}

/// Whether a domain, normalised, has only what names of hosts have (RFC 952, RFC 1123), or underscores.
pub fn is_plain_domain(domain: &str) -> bool {
    domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// A destination as people read it: in Unicode where it is internationalised.
pub fn shown_domain(destination: &str) -> String {
    if !destination.contains("xn--") {
        return destination.to_owned();
    }
    let (shown, result) = idna::domain_to_unicode(destination);
    if result.is_ok() { shown } else { destination.to_owned() }
}

/// The address inside an address literal, without its brackets.
pub fn parse_literal(literal: &str) -> Option<std::net::IpAddr> {
    if literal.get(..5).is_some_and(|p| p.eq_ignore_ascii_case("ipv6:")) {
        return literal[5..].parse::<Ipv6Addr>().ok().map(Into::into);
    }
    literal.parse::<Ipv4Addr>().ok().map(Into::into)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_names_its_recipient() {
        for (sender, to, expected) in [
            ("n@b.test", "a@e.test", "n-a=e.test@b.test"),
            ("n-1@b.test", "a+b=c@e.test", "n-1-a+b=c=e.test@b.test"),
            ("\"n m\"@b.test", "a@e.test", "\"n m-a=e.test\"@b.test"),
            ("n@b.test", "\"a\\\"@\"@e.test", "\"n-a\\\"@=e.test\"@b.test"),
            ("n@b.test", "a@[192.0.2.1]", "\"n-a=[192.0.2.1]\"@b.test"),
            ("", "a@e.test", ""),
        ] {
            assert_eq!(verp(sender, to), expected);
        }
    }

    #[test]
    fn one_spelling_for_a_destination() {
        assert_eq!(destination_of("a@EXAMPLE.Com.").unwrap(), "example.com");
        assert_eq!(destination_of("a@bücher.example").unwrap(), "xn--bcher-kva.example");
        assert_eq!(shown_domain("xn--bcher-kva.example"), "bücher.example");
        assert_eq!(shown_domain("xn--\u{1}"), "xn--\u{1}");
        assert_eq!(destination_of("\"x@y\"@b.test").unwrap(), "b.test");
        assert_eq!(destination_of("a@[127.0.0.1]").unwrap(), "[127.0.0.1]");
        assert_eq!(destination_of("a@[IPv6:::1]").unwrap(), "[ipv6:::1]");
        assert!(destination_of("a@b..c").is_err() && destination_of("a@[1.2.3]").is_err());
        assert!(destination_of("local").is_err());
    }

    #[test]
    fn domains_hold_what_dns_names_hold() {
        for domain in ["my_shop.test", "_a.b_.test", "-b.c", "b-.c", "xn--a.test", "xn--.test", "a+b.test", "a'b!.test"]
        {
            assert_eq!(normalise_domain(domain).as_deref(), Ok(domain));
        }
        assert_eq!(normalise_domain("XN--A.B\u{fc}cher.Test.").unwrap(), "xn--a.xn--bcher-kva.test");
        let long = format!("{}.test", "a".repeat(64));
        for none in
            ["", ".", "a..b", ".a", "a.test..", "a b", "a/b", "*.a", "{a}", "a@b", "a\u{ff0f}b", "a\u{7f}", &long]
        {
            assert!(normalise_domain(none).is_err(), "{none}");
        }
    }

    #[test]
    fn identities_sort_by_time_and_print_as_26_characters() {
        let (a, b) = (MessageId::new(1, 9, 9), MessageId::new(2, 0, 0));
        assert!(a < b && a.to_string() < b.to_string());
        assert_eq!(a.to_string().len(), 26);
    }

    #[test]
    fn envelopes_lie_in_spools_as_they_always_did() {
        let to = |address: &str, orcpt: &str| Recipient {
            address: address.into(),
            destination: "d.test".into(),
            notify: notify::FAILURE,
            priority_given: 0,
            given_again: 0,
            orcpt: orcpt.into(),
        };
        let full = Envelope {
            id: MessageId([7; 16]),
            received_unix_ms: 0x0102_0304_0506_0708,
            sender: "somebody@sender.test".into(),
            vmta: "v".into(),
            job_id: "a-job-that-lies-out-of-line".into(),
            envid: "e".into(),
            ret: Ret::Headers,
            body_type: BodyType::EightBit,
            smtputf8: true,
            suppress_dsn: false,
            source_type: SourceType::Report,
            kept: kept::DKIM_KEY,
            source_name: "client.test".into(),
            source_ip: "192.0.2.1".into(),
            local_ip: "192.0.2.2".into(),
            handoff: Some(HandoffId { origin: 1, incarnation: 0x0203_0405, sequence: 6 }),
            asked: Some(2),
            moved: Some(Moved { due_unix_ms: -2, delay_reports: 3, attempts: 4, last_reply: "421 4.7.0 later".into() }),
            recipients: vec![
                to("a@d.test", ""),
                Recipient { priority_given: 51, given_again: 258, ..to("b@d.test", "rfc822;b@d.test") },
            ],
        };
        let bare = Envelope {
            ret: Ret::Unset,
            body_type: BodyType::SevenBit,
            source_type: SourceType::Smtp,
            handoff: None,
            asked: None,
            moved: None,
            ..full.clone()
        };
        let other = Envelope { ret: Ret::Full, source_type: SourceType::Api, recipients: Vec::new(), ..bare.clone() };
        crate::assert_layout!(full, record: "\
            736f6d65626f64794073656e6465722e74657374612d6a6f622d746861742d6c6965732d6f75742d6f662d6c696e65636c69656e742e7465
            73743139322e302e322e313139322e302e322e3234323120342e372e30206c617465727266633832323b6240642e7465737400006140642e
            74657374642e74657374ffff04000000ffffffffffffffff6240642e74657374642e74657374ffff043302018f000000bfffffff00000000
            0707070707070707070707070707070708070605040302019400000040ffffff76ffffffffffffff9b00000044ffffff65ffffffffffffff
            02010100020200008b00000047ffffff890000004affffff890000004bffffff010000000000000001000000050403020600000000000000
            01020000000000000100000000000000feffffffffffffff030400008f00000018ffffff000000002cffffff02000000");
        crate::assert_layout!(bare, record: "\
            736f6d65626f64794073656e6465722e74657374612d6a6f622d746861742d6c6965732d6f75742d6f662d6c696e65636c69656e742e7465
            73743139322e302e322e313139322e302e322e327266633832323b6240642e74657374006140642e74657374642e74657374ffff04000000
            ffffffffffffffff6240642e74657374642e74657374ffff043302018f000000c0ffffff0000000007070707070707070707070707070707
            08070605040302019400000050ffffff76ffffffffffffff9b00000054ffffff65ffffffffffffff00000100000200008b00000057ffffff
            890000005affffff890000005bffffff00000000000000000000000000000000000000000000000000000000000000000000000000000000
            0000000000000000000000000000000000000000000000002cffffff02000000");
        crate::assert_layout!(other, record: "\
            736f6d65626f64794073656e6465722e74657374612d6a6f622d746861742d6c6965732d6f75742d6f662d6c696e65636c69656e742e7465
            73743139322e302e322e313139322e302e322e32000000000707070707070707070707070707070708070605040302019400000098ffffff
            76ffffffffffffff9b0000009cffffff65ffffffffffffff01000100010200008b0000009fffffff89000000a2ffffff89000000a3ffffff
            0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
            000000000000000064ffffff00000000");
    }
}
