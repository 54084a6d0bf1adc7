//! Certificates of listeners: by the name that a client asks for, of files that change, and before their end.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SignatureAlgorithm};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tests::client::Client;
use tests::engine::checked;
use tests::{eventually, tls};

use crate::start;

/// A certificate of its own authority for some names, which ends in so many days, and its key.
fn made(names: &[&str], days: u64, algorithm: &'static SignatureAlgorithm) -> String {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    params.not_after = (SystemTime::now() + Duration::from_secs(days * 86_400 + 60)).into();
    params.self_signed(&key).unwrap().pem() + &key.serialize_pem()
}

/// The certificate that a client is shown who asks for `name` and verifies signatures by such keys alone.
fn shown(at: SocketAddr, name: &str, rsa_only: bool) -> Vec<u8> {
    let default = rustls::crypto::aws_lc_rs::default_provider();
    let suites = default.cipher_suites.iter().filter(|s| !rsa_only || format!("{s:?}").contains("_RSA_"));
    let provider = CryptoProvider { cipher_suites: suites.copied().collect(), ..default };
    let versions = if rsa_only { vec![&rustls::version::TLS12] } else { rustls::ALL_VERSIONS.to_vec() };
    let verifier = Arc::new(tls::Anything { provider: provider.clone(), rsa_only });
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut io = std::net::TcpStream::connect(at).unwrap();
    session.complete_io(&mut io).unwrap();
    session.peer_certificates().unwrap()[0].to_vec()
}

fn der(pem: &str) -> Vec<u8> {
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn written(folder: &Path, name: &str, pem: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, pem).unwrap();
    path.display().to_string()
}

#[test]
fn clients_are_shown_the_certificate_of_the_name_that_they_ask_for() {
    let folder = tempfile::tempdir().unwrap();
    let curve = made(&["mta.test"], 90, &PKCS_ECDSA_P256_SHA256);
    let rsa = made(&["mta.test", "*.mta.test"], 90, &PKCS_RSA_SHA256);
    let other = made(&["other.test"], 90, &PKCS_ECDSA_P256_SHA256);
    let lines: String = [("a", &curve), ("b", &rsa), ("c", &other)]
        .map(|(name, pem)| format!(" tls-certificate {}\n", written(folder.path(), name, pem)))
        .concat();
    let at: SocketAddr = format!("127.0.0.1:{}", tests::engine::free_port()).parse().unwrap();
    let (_r, _engine) = start(&format!("<smtp-listener {at}>\n immediate-tls yes\n{lines}</smtp-listener>\n"));
    for (name, expected) in [
        ("mta.test", &curve),
        ("x.mta.test", &rsa),
        ("OTHER.test", &other),
        ("unknown.test", &curve),
        ("127.0.0.1", &curve),
    ] {
        assert_eq!(shown(at, name, false), der(expected), "{name}");
    }
    // Who verifies no signature of the first is shown the second.
    for name in ["mta.test", "unknown.test", "other.test"] {
        assert_eq!(shown(at, name, true), der(&rsa), "{name}");
    }
}

#[test]
fn a_certificate_whose_file_changes_is_in_force_without_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (made(&["mta.test"], 5, &PKCS_ECDSA_P256_SHA256), made(&["mta.test"], 90, &PKCS_RSA_SHA256));
    let file = written(folder.path(), "mta.pem", &first);
    let at: SocketAddr = format!("127.0.0.1:{}", tests::engine::free_port()).parse().unwrap();
    let (_r, engine) = start(&format!(
        "<smtp-listener {at}>\n immediate-tls yes\n</smtp-listener>\nsmtp-server-tls-certificate {file}\n"
    ));
    assert_eq!(shown(at, "mta.test", false), der(&first));
    let status = || engine.json(&["status", "--json"])["data"]["status"]["certificates"].clone();
    let ending = status();
    assert_eq!((&ending[0]["file"], &ending[0]["names"][0]), (&file.as_str().into(), &"mta.test".into()));
    assert!(ending[0]["warning"].as_str().unwrap().ends_with("ends in 5 days"), "{ending}");
    assert!((4 * 86_400..=5 * 86_400 + 60).contains(&ending[0]["expires_s"].as_i64().unwrap()), "{ending}");
    assert!(engine.run(&["status"]).contains("TLS      certificate "));
    eventually("the log says so", Duration::from_secs(5), || engine.log().contains("ends in 5 days"));
    let check = engine.sluice(&["config", "check", &engine.path().join("sluice.conf").display().to_string()]);
    assert!(String::from_utf8_lossy(&check.stdout).contains("certificate-ends"), "{check:?}");
    // What is half written, or lacks its key, changes nothing.
    written(folder.path(), "mta.pem", &second[..second.len() / 2]);
    eventually("the log says so", Duration::from_secs(20), || engine.log().contains("cannot be used"));
    assert_eq!(shown(at, "mta.test", false), der(&first));
    written(folder.path(), "mta.pem", &second);
    eventually("it is in force", Duration::from_secs(20), || shown(at, "mta.test", false) == der(&second));
    assert_eq!(status()[0]["warning"], serde_json::Value::Null);
    assert!(!engine.run(&["status"]).contains("TLS "));
}

#[test]
fn the_key_of_a_certificate_that_changes_is_opened_by_its_password() {
    if !tests::has("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let encrypted = |name: &str| {
        let plain = written(folder.path(), "plain", &made(&["mta.test"], 90, &PKCS_ECDSA_P256_SHA256));
        let key = folder.path().join("key");
        let mut openssl = Command::new("openssl");
        openssl.args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:geheim", "-in", &plain, "-out"]);
        assert!(openssl.arg(&key).status().unwrap().success());
        let text = std::fs::read_to_string(&plain).unwrap();
        let certificate = &text[..text.find("-----BEGIN PRIVATE").unwrap()];
        let both = certificate.to_owned() + &std::fs::read_to_string(key).unwrap();
        (written(folder.path(), name, &both), der(certificate))
    };
    let (file, first) = encrypted("mta.pem");
    let at: SocketAddr = format!("127.0.0.1:{}", tests::engine::free_port()).parse().unwrap();
    let (_r, engine) =
        start(&format!("<smtp-listener {at}>\n immediate-tls yes\n tls-certificate {file} geheim\n</smtp-listener>\n"));
    assert_eq!(shown(at, "mta.test", false), first);
    let (_, second) = encrypted("mta.pem");
    eventually("it is in force", Duration::from_secs(20), || shown(at, "mta.test", false) == second);
    // A client that asks for an address writes nothing into the log.
    let mut asks = Command::new("openssl");
    asks.args(["s_client", "-connect", &at.to_string(), "-servername", "127.0.0.1"]).stdin(Stdio::null());
    assert!(String::from_utf8_lossy(&asks.output().unwrap().stdout).contains("BEGIN CERTIFICATE"));
    assert!(!engine.log().contains("SNI"), "{}", engine.log());
}

#[test]
fn a_users_certificate_counts_where_an_authority_of_the_listener_issued_it() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (tls::Authority::new(), tls::Authority::new());
    let identities = [ours.identity("a.test"), others.identity("b.test")];
    let users: String = identities
        .iter()
        .enumerate()
        .map(|(n, (chain, key))| {
            let file = written(folder.path(), &format!("u{n}"), &tls::as_pem(chain, key));
            format!("<smtp-user u{n}>\n authentication-method certificate\n tls-certificate {file}\n</smtp-user>\n")
        })
        .collect();
    let listener: SocketAddr = format!("127.0.0.1:{}", tests::engine::free_port()).parse().unwrap();
    let (_r, engine) = start(&format!(
        "{users}smtp-server-tls-certificate {}\n<smtp-listener {listener}>\n tls-ca-file {}\n</smtp-listener>\n\
         <source 127/8>\n allow-starttls yes\n</source>\n",
        written(folder.path(), "mta.pem", &tls::pem()),
        written(folder.path(), "ca.pem", &ours.pem)
    ));
    let is_user = |at: SocketAddr, n: usize| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(tls::certificate()).unwrap();
        let (chain, key) = &identities[n];
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = config.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap();
        let mut c = Client::connect(at).unwrap();
        assert_eq!(c.command("STARTTLS").unwrap().0, 220);
        c.under_tls(Arc::new(config)).unwrap();
        c.command("EHLO client.test").unwrap().1.contains("AUTH EXTERNAL")
    };
    assert_eq!([0, 1].map(|n| is_user(listener, n)), [true, false]);
    assert_eq!([0, 1].map(|n| is_user(engine.smtp, n)), [true, true], "this listener asks for no authority");
    assert!(engine.log().contains("cannot be verified by tls-ca-file"), "{}", engine.log());
    let (code, said) = checked(&format!("smtp-server-tls-ca-file {}\n", written(folder.path(), "none", "nothing")));
    assert!(code == Some(2) && said.contains("found none"), "{said}");
}
