#!/usr/bin/env bash
# What a server must know of rustls 0.23.46 (crates.io) that answers the challenge tls-alpn-01 (RFC 8737): can it show the certificate
# that the challenge asks for?
#
# That certificate has the extension id-pe-acmeIdentifier, which RFC 8737 section 3 says has to be critical. rcgen 0.14.10 makes such
# a one with CustomExtension::new_acme_identifier. Seen:
#   ServerConfig::with_single_cert       refuses: invalid peer certificate: Other(OtherError(UnsupportedCriticalExtension))
#   CertifiedKey::from_der               the same
#   CertifiedKey::new, by a resolver     shows it, and the handshake with acme-tls/1 succeeds
# The first two compare the key with the certificate, and read the certificate for that as one that is to be trusted: a critical
# extension that they do not know is an error there. What is shown to others they need not judge. The same certificate without the
# extension is taken by all three.
# Needs cargo and a C compiler. Fails when rustls does otherwise.
set -euo pipefail
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "challenge"
version = "0.1.0"
edition = "2024"

[dependencies]
rustls = { version = "=0.23.46", default-features = false, features = ["std", "aws_lc_rs", "tls12"] }
rcgen = { version = "=0.14.10", default-features = false, features = ["aws_lc_rs"] }
TOML
cat >src/main.rs <<'RUST'
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{default_provider, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

fn made(with_extension: bool) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["mail.test".to_owned()]).unwrap();
    if with_extension {
        params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
    }
    let der = params.self_signed(&key).unwrap().der().clone();
    (der, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

fn said<T, E: std::fmt::Display>(r: Result<T, E>) -> String {
    r.map_or_else(|e| e.to_string(), |_| "taken".to_owned())
}

/// Both sides of a handshake in memory, as far as the server gets.
fn shown(config: ServerConfig) -> bool {
    let mut client = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    client.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let mut client = ClientConnection::new(Arc::new(client), "mail.test".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    // It answers with its certificate; what this client makes of it is not what is asked.
    server.process_new_packets().is_ok() && server.alpn_protocol() == Some(&b"acme-tls/1"[..])
}

fn main() {
    for with_extension in [false, true] {
        let (der, key) = made(with_extension);
        let single = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![der.clone()], key.clone_key());
        println!("{with_extension} with_single_cert: {}", said(single));
        println!("{with_extension} from_der: {}", said(CertifiedKey::from_der(vec![der.clone()], key.clone_key(), &default_provider())));
        let pair = CertifiedKey::new(vec![der], any_supported_type(&key).unwrap());
        let resolver = Arc::new(SingleCertAndKey::from(pair));
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
        println!("{with_extension} new: {}", if shown(config) { "shown" } else { "not shown" });
    }
}
RUST
refused="invalid peer certificate: Other(OtherError(UnsupportedCriticalExtension))"
cat >expected <<EOF
false with_single_cert: taken
false from_der: taken
false new: shown
true with_single_cert: $refused
true from_der: $refused
true new: shown
EOF
cargo run --quiet >seen
cat seen
diff expected seen
