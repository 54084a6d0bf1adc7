//! One certificate, from the account to its chain (RFC 8555 §7).

use std::path::Path;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, ExternalAccountKey, Identifier, NewAccount, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use worker::connect::tls;

use super::answers::Answers;
use super::dns::{self, Change};
use super::error::{AcmeError, TIME_MAX};
use super::files;
use crate::config::acme::{Acme, Challenge, Wanted};

/// How long the authority may take to look at the answers, or to issue.
const PATIENCE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(180));

/// Where this server's own name servers are asked.
#[derive(Debug, Clone)]
pub struct NameServers {
    /// `name-server`; empty for the system's.
    pub addresses: Vec<String>,
    /// `edns-udp-length`
    pub udp_bytes: u16,
}

/// Obtains a certificate: its chain and key in PEM.
///
/// # Errors
/// [`AcmeError`]; what was set up for the authority to look at is gone then, too.
pub async fn obtain(
    acme: &Acme,
    wanted: &Wanted,
    data_dir: &Path,
    answers: &Answers,
    name_servers: &NameServers,
) -> Result<String, AcmeError> {
    let mut records = Vec::new();
    let obtained = async {
        let account = account(acme, data_dir).await?;
        let identifiers: Vec<Identifier> = wanted.names.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        prove(acme, &mut order, answers, name_servers, &mut records).await?;
        issue(wanted, &mut order).await
    };
    let obtained = tokio::time::timeout(TIME_MAX, obtained).await.unwrap_or(Err(AcmeError::Late));
    answers.clear();
    for (name, value) in records {
        if let Err(error) = dns::change(acme, Change::Remove, &name, &value).await {
            tracing::warn!(error = %error, "the record of a challenge stays behind");
        }
    }
    obtained
}

/// The account at the directory, which is made where there is none yet.
async fn account(acme: &Acme, data_dir: &Path) -> Result<Account, AcmeError> {
    let builder = match acme.ca_file.as_str() {
        "" => Account::builder()?,
        file => Account::builder_with_root(file)?,
    };
    if let Some(known) = files::account(data_dir, &acme.directory)? {
        return Ok(builder.from_credentials(known).await?);
    }
    let contact: Vec<&str> = acme.contacts.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let external = acme.external_account.as_ref().map(|(id, key)| ExternalAccountKey::new(id.clone(), key));
    let (account, credentials) = builder.create(&new, acme.directory.clone(), external.as_ref()).await?;
    files::keep_account(data_dir, &acme.directory, &credentials)?;
    tracing::info!(directory = acme.directory, account = account.id(), "an ACME account was made");
    Ok(account)
}

/// Has the authority look whether the names are this server's.
async fn prove(
    acme: &Acme,
    order: &mut Order,
    answers: &Answers,
    name_servers: &NameServers,
    records: &mut Vec<(String, String)>,
) -> Result<(), AcmeError> {
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
        let kind = match acme.challenge {
            Challenge::Http01 => ChallengeType::Http01,
            Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Challenge::Dns01 => ChallengeType::Dns01,
        };
        let not_offered = || AcmeError::NotOffered { name: name.clone(), challenge: acme.challenge };
        let mut challenge = authorization.challenge(kind).ok_or_else(not_offered)?;
        let key = challenge.key_authorization();
        match acme.challenge {
            Challenge::Http01 => answers.put_file(&challenge.token, key.as_str()),
            Challenge::TlsAlpn01 => answers.put_certificate(&name, key.digest().as_ref())?,
            Challenge::Dns01 => {
                let (record, value) = (dns::record_name(&name), key.dns_value());
                // It may be there though something went wrong.
                records.push((record.clone(), value.clone()));
                dns::change(acme, Change::Add, &record, &value).await?;
                let NameServers { addresses, udp_bytes } = name_servers;
                if !dns::is_seen(addresses, *udp_bytes, &record, &value).await {
                    tracing::warn!(
                        record,
                        "the record of a challenge is not seen yet by this server's name servers; the authority is told to look all the same"
                    );
                }
            }
        }
        challenge.set_ready().await?;
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
    Ok(pem)
}
