//! What name servers answer: `connect::exchange` and what `connect::dns` and `connect::secure_dns` make of it.
#![no_main]

use fuzz::{expand, peak};
use hickory_proto::rr::RecordType;
use libfuzzer_sys::{Corpus, fuzz_target};
use worker::connect::dns::{self, Said, bytes_of};
use worker::connect::exchange::{Question, answer_of};
use worker::connect::mx::name_of;
use worker::connect::secure_dns;

/// Bytes of the longest answer, by TCP.
const ANSWER_MAX: usize = 65_535;
/// Heap that reading one may take: a record of a few bytes takes some hundred.
const HEAP_MAX: usize = 16 << 20;
const ID: u16 = 0x1234;
const KINDS: [RecordType; 6] =
    [RecordType::MX, RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::TLSA, RecordType::CNAME];

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((kind, script)) = input.split_first() else { return Corpus::Reject };
    // Zeroes, which stand for long runs in a script, are everywhere in ordinary answers.
    let mut bytes = if kind & 0x80 == 0 { script.to_vec() } else { expand(script, ANSWER_MAX) };
    let kind = KINDS[usize::from(kind & 0x7f) % KINDS.len()];
    // Whatever has another number is passed over.
    bytes.splice(..bytes.len().min(2), ID.to_be_bytes());
    let name = name_of("d.test").expect("a name");
    let question = Question { name: &name, kind, authentic: kind == RecordType::TLSA };

    let (answer, held) = peak(|| answer_of(&bytes, ID, &question));
    assert!(held <= HEAP_MAX, "{held} bytes for an answer of {}", bytes.len());
    let Ok(Some(m)) = answer else { return Corpus::Keep };
    assert_eq!(m.metadata.id, ID);
    match dns::read(&m, &question) {
        Ok((ttl, Said::Found(found))) => {
            assert!((1..=86_400).contains(&ttl), "{ttl} s");
            assert!(found.records().iter().all(|r| r.record_type() == kind));
            assert!(bytes_of(found.records()) <= HEAP_MAX);
        }
        Ok((ttl, Said::Alias(target))) => assert!((1..=86_400).contains(&ttl) && target != name),
        Err(why) => assert!(why.to_string().len() < 1000),
    }
    if let Ok((ttl, answer)) = secure_dns::read(&m, &question) {
        assert!((5..=86_400).contains(&ttl.as_secs()), "{ttl:?}");
        assert!(answer.secure == m.metadata.authentic_data && answer.canonical.len() <= 1024);
    }
    Corpus::Keep
});
