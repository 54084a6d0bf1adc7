//! What receivers publish of their security: policies and records of MTA-STS, and certificates.
#![no_main]

use fuzz::{expand, peak};
use libfuzzer_sys::{Corpus, fuzz_target};
use worker::connect::certificate::Certificate;
use worker::connect::mta_sts::{Policy, PolicyMode, record_id};

/// Bytes of a policy.
const POLICY_MAX: usize = 64 << 10;
/// Bytes of a certificate.
const CERTIFICATE_MAX: usize = 256 << 10;

fn policy(text: &str) {
    let (read, held) = peak(|| Policy::parse(text));
    // A line of a byte becomes a text of its own.
    assert!(held <= 64 * (text.len() + 64), "{held} bytes for a policy of {}", text.len());
    match read {
        Ok(p) => {
            assert!(p.max_age <= 31_557_600 && (p.mode == PolicyMode::None || !p.mx.is_empty()));
            let first = p.mx.first().cloned().unwrap_or_default();
            assert!(p.mx.is_empty() || first.starts_with("*.") || p.allows(&first), "{first:?}");
            assert!(!p.allows("not.named.example") || p.mx.iter().any(|m| m.ends_with("named.example")));
        }
        Err(why) => assert!(why.len() < 1000 && !why.contains(char::is_control), "{} bytes of error", why.len()),
    }
}

fn certificate(der: &[u8]) {
    let (read, held) = peak(|| {
        let c = Certificate::of(der)?;
        let _ = (c.public_key(), c.is_for("192.0.2.1"));
        Some((c, c.is_for("mx.test")))
    });
    assert!(held <= 64 * (der.len() + 64), "{held} bytes for a certificate of {}", der.len());
    if let Some((c, _)) = read {
        assert!(c.issuer.len() + c.subject.len() + c.key_info.len() <= der.len());
    }
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((kind, script)) = input.split_first() else { return Corpus::Reject };
    match kind % 3 {
        0 => policy(&String::from_utf8_lossy(&expand(script, POLICY_MAX))),
        1 => {
            let text = String::from_utf8_lossy(script);
            let id = record_id(&text);
            assert!(id.is_none_or(|id| (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric())));
        }
        // Zeroes stand for long runs in a script, and for themselves in a certificate.
        _ if kind & 0x80 == 0 => certificate(script),
        _ => certificate(&expand(script, CERTIFICATE_MAX)),
    }
    Corpus::Keep
});
