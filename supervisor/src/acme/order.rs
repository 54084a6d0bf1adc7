//! One certificate, from the account to its chain (RFC 8555 §7).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use instant_acme::{
    Account, AuthorizationStatus, BodyWrapper, ChallengeType, ExternalAccountKey, Identifier, NewAccount, NewOrder,
    Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use worker::connect::tls;

use super::answers::Answers;
use super::dns::{self, Change};
use super::error::{AcmeError, TIME_MAX};
use super::files;
use crate::config::acme::{Acme, Challenge, Wanted};
use crate::config::certificate::InForce;

/// How long the authority may take to look at the answers, or to issue.
const PATIENCE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(180));

/// The problem of an account that is none.
const UNKNOWN_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// What a certificate is obtained by.
#[derive(Debug)]
pub struct Means {
    /// Where the authority finds files and certificates.
    pub answers: Arc<Answers>,
    /// `name-server`; empty for the system's.
    pub name_servers: Vec<String>,
    /// `edns-udp-length`
    pub udp_bytes: u16,
    /// CPUs that no program is to use.
    pub cpus_of_workers: Vec<usize>,
}

/// Obtains a certificate: its chain and key in PEM.
///
/// # Errors
/// [`AcmeError`]; what was set up for the authority to look at is gone then, too.
pub async fn obtain(acme: &Acme, wanted: &Wanted, data_dir: &Path, by: &Means) -> Result<String, AcmeError> {
    let mut records = Vec::new();
    let obtained = async {
        let identifiers: Vec<Identifier> = wanted.names.iter().cloned().map(Identifier::Dns).collect();
        let new = NewOrder::new(&identifiers);
        let known = account(acme, data_dir).await?;
        let mut order = match known.new_order(&new).await {
            Err(e) if says(&e, UNKNOWN_ACCOUNT) => {
                let text = "the authority does not know the ACME account any more; another one is made";
                tracing::warn!(directory = acme.directory, "{text}");
                files::forget_account(data_dir, &acme.directory)?;
                account(acme, data_dir).await?.new_order(&new).await?
            }
            order => order?,
        };
        prove(acme, &mut order, by, &mut records).await?;
        issue(wanted, &mut order).await
    };
    let obtained = tokio::time::timeout(TIME_MAX, obtained).await.unwrap_or(Err(AcmeError::Late));
    by.answers.clear();
    for (name, value) in records {
        if let Err(error) = dns::change(acme, Change::Remove, &name, &value, &by.cpus_of_workers).await {
            tracing::warn!(error = %error, "the record of a challenge stays behind");
        }
    }
    obtained
}

/// The authority says that something is wrong, of this kind (RFC 8555 §6.7).
fn says(e: &instant_acme::Error, kind: &str) -> bool {
    matches!(e, instant_acme::Error::Api(p) if p.r#type.as_deref() == Some(kind))
}

/// The account at the directory, which is made where there is none yet.
async fn account(acme: &Acme, data_dir: &Path) -> Result<Account, AcmeError> {
    let builder = match acme.roots.as_str() {
        "" => Account::builder()?,
        pem => Account::builder_with_http(Box::new(http_by(pem)?)),
    };
    let contact: Vec<&str> = acme.contacts.iter().map(String::as_str).collect();
    if let Some(known) = files::account(data_dir, &acme.directory)? {
        let account = builder.from_credentials(known).await?;
        if !contact.is_empty()
            && let Err(error) = account.update_contacts(&contact).await
            && !says(&error, UNKNOWN_ACCOUNT)
        {
            // Certificates do not depend on it.
            tracing::warn!(error = %error, "the authority does not take the contact of <acme>");
        }
        return Ok(account);
    }
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let external = acme.external_account.as_ref().map(|(id, key)| ExternalAccountKey::new(id.clone(), key));
    let (account, credentials) = builder.create(&new, acme.directory.clone(), external.as_ref()).await?;
    files::keep_account(data_dir, &acme.directory, &credentials)?;
    tracing::info!(directory = acme.directory, account = account.id(), "an ACME account was made");
    Ok(account)
}

/// A client for HTTPS that verifies by these roots alone.
fn http_by(pem: &str) -> Result<impl instant_acme::HttpClient, AcmeError> {
    let mut roots = RootCertStore::empty();
    for c in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let added = c.map_err(|e| e.to_string()).and_then(|c| roots.add(c).map_err(|e| e.to_string()));
        added.map_err(AcmeError::Unusable)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let https = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().enable_http2();
    Ok(Client::builder(TokioExecutor::new()).build::<_, BodyWrapper<Bytes>>(https.build()))
}

/// Has the authority look whether the names are this server's.
async fn prove(
    acme: &Acme,
    order: &mut Order,
    by: &Means,
    records: &mut Vec<(String, String)>,
) -> Result<(), AcmeError> {
    let kind = || match acme.challenge {
        Challenge::Http01 => ChallengeType::Http01,
        Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        Challenge::Dns01 => ChallengeType::Dns01,
    };
    let not_offered = |name: &str| AcmeError::NotOffered { name: name.to_owned(), challenge: acme.challenge };
    let mut all = order.authorizations();
    while let Some(authorization) = all.next().await {
        let mut authorization = authorization?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            // It was proven of late.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => return Err(AcmeError::NotProven { name, why: format!("the authorization is {other:?}") }),
        }
        let challenge = authorization.challenge(kind()).ok_or_else(|| not_offered(&name))?;
        let key = challenge.key_authorization();
        match acme.challenge {
            Challenge::Http01 => by.answers.put_file(&challenge.token, key.as_str()),
            Challenge::TlsAlpn01 => by.answers.put_certificate(&name, key.digest().as_ref())?,
            Challenge::Dns01 => {
                let (record, value) = (dns::record_name(&name), key.dns_value());
                let added = dns::change(acme, Change::Add, &record, &value, &by.cpus_of_workers).await;
                if let Err(e) = added {
                    // It may be there all the same. That it was not is the usual case, and why is told of the first.
                    let _ = dns::change(acme, Change::Remove, &record, &value, &by.cpus_of_workers).await;
                    return Err(e);
                }
                records.push((record, value));
            }
        }
    }
    if !dns::are_seen(&by.name_servers, by.udp_bytes, records).await {
        let text = "records of challenges are not seen yet by this server's name servers; the authority is told to look all the same";
        tracing::warn!("{text}");
    }
    let mut all = order.authorizations();
    while let Some(authorization) = all.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Pending {
            let name = authorization.identifier().to_string();
            authorization.challenge(kind()).ok_or_else(|| not_offered(&name))?.set_ready().await?;
        }
    }
    let why = match order.poll_ready(&PATIENCE).await {
        Ok(OrderStatus::Ready | OrderStatus::Valid) => return Ok(()),
        Ok(status) => format!("the order is {status:?}"),
        Err(instant_acme::Error::Api(problem)) => problem.to_string(),
        Err(e) => return Err(e.into()),
    };
    Err(refusal(order, why).await)
}

/// What the authority found wrong with a name; `why` is what it says of the whole order.
async fn refusal(order: &mut Order, why: String) -> AcmeError {
    let mut all = order.authorizations();
    while let Some(Ok(mut authorization)) = all.next().await {
        let name = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(error) = state.challenges.iter().find_map(|c| c.error.as_ref()) {
            return AcmeError::NotProven { name, why: error.to_string() };
        }
    }
    AcmeError::NotProven { name: "the order".into(), why }
}

async fn issue(wanted: &Wanted, order: &mut Order) -> Result<String, AcmeError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(wanted.names.clone())?;
    params.distinguished_name = DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&PATIENCE).await?;
    let pem = format!("{}\n{}", chain.trim_end(), key.serialize_pem());
    tls::check_identity(&pem).map_err(AcmeError::Unusable)?;
    match InForce::of("", &pem) {
        Some(c) if !c.is_for_all(&wanted.names) => Err(AcmeError::Unusable("it is not for all names".into())),
        Some(c) if c.is_due() => Err(AcmeError::Unusable("it has ended, or ends at once: is the clock right?".into())),
        Some(_) => Ok(pem),
        None => Err(AcmeError::Unusable("it cannot be read".into())),
    }
}
