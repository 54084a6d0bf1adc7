//! What the authority finds at this server when it looks whether a name is its own.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::error::AcmeError;
use crate::config::acme::Challenge;
use crate::listen::{self, Place, Places};

/// Connections that may be open at once.
const CONNECTIONS_MAX: usize = 64;
/// How long one may take.
const CONNECTION_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a request.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Where the authority looks (RFC 8555 §8.3).
const PATH: &str = "/.well-known/acme-challenge/";
/// What the authority speaks below TLS (RFC 8737 §3).
const ALPN: &[u8] = b"acme-tls/1";

/// What is to be found now.
#[derive(Debug, Default)]
pub struct Answers {
    /// By token.
    files: Mutex<HashMap<String, String>>,
    /// By name.
    certificates: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Answers {
    /// Has a file found; until it is forgotten.
    pub fn put_file(&self, token: &str, text: &str) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(token.to_owned(), text.to_owned());
    }

    /// Has a certificate found that says so much of a name (RFC 8737 §3); until it is forgotten.
    ///
    /// # Errors
    /// [`AcmeError::Request`], [`AcmeError::Unusable`]
    pub fn put_certificate(&self, name: &str, digest: &[u8]) -> Result<(), AcmeError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let certificate = params.self_signed(&key)?.der().clone();
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // The usual way to make a pair reads the certificate, and refuses the extension that this is about.
        let key = any_supported_type(&der).map_err(|e| AcmeError::Unusable(e.to_string()))?;
        let pair = CertifiedKey::new(vec![certificate], key);
        let mut certificates = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        certificates.insert(name.to_owned(), Arc::new(pair));
        Ok(())
    }

    /// Forgets all of it.
    pub fn clear(&self) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn file(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(PATH)?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }
}

impl ResolvesServerCert for Answers {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if !hello.alpn()?.any(|p| p == ALPN) {
            return None;
        }
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).get(hello.server_name()?).cloned()
    }
}

/// Answers at a listening socket, as the challenge wants it, until the task ends.
pub async fn serve(answers: Arc<Answers>, challenge: Challenge, listener: TcpListener) {
    let accept = async || listener.accept().await;
    let places = Places::new(CONNECTIONS_MAX);
    if challenge == Challenge::Http01 {
        let serve = |(io, _): (TcpStream, SocketAddr), place| answer_http(Arc::clone(&answers), io, place);
        return listen::serve_each(accept, places, serve).await;
    }
    let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(answers);
    config.alpn_protocols = vec![ALPN.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let serve = |(io, _): (TcpStream, SocketAddr), _| {
        let acceptor = acceptor.clone();
        async move {
            // The handshake is all that the authority wants; whether it hears the end is no matter.
            if let Ok(Ok(mut stream)) = timeout(CONNECTION_WAIT, acceptor.accept(io)).await {
                let _ = timeout(CONNECTION_WAIT, tokio::io::AsyncWriteExt::shutdown(&mut stream)).await;
            }
        }
    };
    listen::serve_each(accept, places, serve).await;
}

async fn answer_http(answers: Arc<Answers>, io: TcpStream, place: Rc<Place>) {
    let service = service_fn(|request: Request<Incoming>| {
        place.is_silent();
        let found = answers.file(request.uri().path());
        let is_asked = matches!(*request.method(), Method::GET | Method::HEAD);
        async move {
            let text = found.filter(|_| is_asked);
            let status = if text.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
            let mut response = Response::new(Full::<Bytes>::from(text.unwrap_or_default()));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_WAIT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    // Whoever asks breaks off as it likes.
    let _ = timeout(2 * CONNECTION_WAIT, connection).await;
}
