//! How a node gets its certificate: root by token, signing request, waiting for the signature; and renewal.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use ring::digest;
use tonic::{Code, Request, Status};
use wire::swarmkit as pb;
use wire::swarmkit::issuance_status::State;

use crate::client::{Manager, Trust};
use crate::identity::{Identity, Refused, certificates};
use crate::tls::{CA_NAME, Keys, anonymous_client, trusting_client};

const ROOT_ATTEMPTS: u32 = 5;
const ROOT_PAUSE: Duration = Duration::from_secs(2);
const CALL_TIME_MAX: Duration = Duration::from_secs(5);
const STATUS_PAUSE_MIN: Duration = Duration::from_millis(250);
const STATUS_PAUSE_MAX: Duration = Duration::from_secs(10);
const ISSUE_ATTEMPTS: u32 = 5;

/// A join token's parts.
#[derive(Clone)]
pub struct Token {
    whole: String,
    digest: String,
}

impl Token {
    pub fn parse(token: &str) -> Result<Self, Refused> {
        let parts: Vec<&str> = token.split('-').collect();
        let (digest, secret) = match parts[..] {
            ["SWMTKN", "1", digest, secret] => (digest, secret),
            ["SWMTKN", "2", fips, digest, secret] if fips == "0" || fips == "1" => (digest, secret),
            _ => return Err(Refused::Token),
        };
        let base36 =
            |text: &str| text.chars().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase());
        if digest.len() != 50 || secret.len() != 25 || !base36(digest) || !base36(secret) {
            return Err(Refused::Token);
        }
        Ok(Self { whole: token.to_owned(), digest: digest.to_owned() })
    }

    /// Whether this bundle of roots is the one the token speaks of.
    pub fn vouches_for(&self, root_pem: &[u8]) -> bool {
        bundle_digest(root_pem) == self.digest
    }
}

/// SHA-256 of the bundle's very bytes as 50 digits in base 36.
pub fn bundle_digest(root_pem: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, root_pem);
    format!("{:0>50}", model::id::base36(digest.as_ref()))
}

/// A new key (PKCS 8, PEM) and a signing request for it (PEM). The subject is the signer's affair.
pub fn key_and_request() -> Result<(Vec<u8>, Vec<u8>), Refused> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem().into_bytes(), request.into_bytes()))
}

/// What a node asks for when it joins.
#[derive(Clone, Copy, Default)]
pub struct Wishes {
    pub availability: pb::node_spec::Availability,
}

/// The whole sequence of a joining node. Tries the addresses in turn.
pub async fn join(addresses: &[String], token: &str, wishes: Wishes) -> Result<Identity, Refused> {
    let token = Token::parse(token)?;
    let (address, root_pem) = fetch_root(addresses, &token).await?;
    let (key_pem, csr) = key_and_request()?;
    let trust = Trust::Given(anonymous_client(&root_pem)?, CA_NAME);
    let manager = Manager::with(&address, trust)?;
    let request = pb::IssueNodeCertificateRequest {
        role: pb::NodeRole::Worker as i32,
        csr: csr.clone(),
        token: token.whole,
        availability: wishes.availability as i32,
    };
    let issued = issue(&manager, request).await?;
    let certificate = wait_for(&manager, &issued.node_id, &csr).await?;
    Identity::from_pem(&certificate, &key_pem, &root_pem)
}

/// The bundle of roots from the first manager that answers, checked against the token.
async fn fetch_root(addresses: &[String], token: &Token) -> Result<(String, Vec<u8>), Refused> {
    let mut last = Refused::Unreachable("no address given".into());
    for attempt in 0..ROOT_ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(ROOT_PAUSE).await;
        }
        for address in addresses {
            let manager = Manager::with(address, Trust::Given(trusting_client()?, CA_NAME))?;
            match timed(manager.ca().get_root_ca_certificate(pb::GetRootCaCertificateRequest {}))
                .await
            {
                Ok(answer) => {
                    let root_pem = answer.certificate;
                    if !token.vouches_for(&root_pem) {
                        return Err(Refused::Digest { expected: token.digest.clone() });
                    }
                    return Ok((address.clone(), root_pem));
                }
                Err(status) => {
                    last = Refused::Unreachable(format!("{address}: {}", status.message()))
                }
            }
        }
    }
    Err(last)
}

/// The bundle of roots of a manager that is trusted already (the caller checks it).
pub async fn root_of(address: &str, keys: Arc<Keys>) -> Result<Vec<u8>, Refused> {
    let manager = Manager::ca_of(address, keys)?;
    Ok(timed(manager.ca().get_root_ca_certificate(pb::GetRootCaCertificateRequest {}))
        .await?
        .certificate)
}

/// A new certificate for a member, with a new key; the role is what the cluster wishes by now.
pub async fn renew(address: &str, keys: Arc<Keys>, root_pem: &[u8]) -> Result<Identity, Refused> {
    let (key_pem, csr) = key_and_request()?;
    let manager = Manager::ca_of(address, keys.clone())?;
    let request = pb::IssueNodeCertificateRequest { csr: csr.clone(), ..Default::default() };
    let issued = issue(&manager, request).await?;
    if issued.node_id != keys.identity().subject.node_id {
        return Err(Refused::NotIssued("it was issued to another node".into()));
    }
    let certificate = wait_for(&manager, &issued.node_id, &csr).await?;
    Identity::from_pem(&certificate, &key_pem, root_pem)
}

/// A manager's key-encrypting key, when autolock is on.
pub async fn unlock_key(
    address: &str,
    keys: Arc<Keys>,
) -> Result<pb::GetUnlockKeyResponse, Refused> {
    let manager = Manager::ca_of(address, keys)?;
    Ok(timed(manager.ca().get_unlock_key(pb::GetUnlockKeyRequest {})).await?)
}

async fn issue(
    manager: &Manager,
    request: pb::IssueNodeCertificateRequest,
) -> Result<pb::IssueNodeCertificateResponse, Refused> {
    let mut attempt = 1;
    loop {
        match timed(manager.node_ca().issue_node_certificate(request.clone())).await {
            Ok(answer) => return Ok(answer),
            // A leader that is just starting says Aborted; an election says Unavailable.
            Err(status)
                if attempt < ISSUE_ATTEMPTS
                    && matches!(
                        status.code(),
                        Code::Aborted | Code::Unavailable | Code::DeadlineExceeded
                    ) =>
            {
                attempt += 1;
                tokio::time::sleep(ROOT_PAUSE).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

async fn wait_for(manager: &Manager, node_id: &str, csr: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut pause = STATUS_PAUSE_MIN;
    loop {
        let request = pb::NodeCertificateStatusRequest { node_id: node_id.to_owned() };
        match timed(manager.node_ca().node_certificate_status(request)).await {
            Ok(answer) => {
                let certificate = answer.certificate.unwrap_or_default();
                let status = answer.status.unwrap_or_default();
                match status.state() {
                    // A certificate for another request is one that was issued before.
                    State::Issued | State::Rotate
                        if certificate.csr == csr
                            && !certificates(&certificate.certificate).is_empty() =>
                    {
                        return Ok(certificate.certificate);
                    }
                    State::Failed => return Err(Refused::NotIssued(status.err)),
                    _ => {}
                }
            }
            Err(status)
                if matches!(
                    status.code(),
                    Code::DeadlineExceeded | Code::Unavailable | Code::Aborted | Code::Cancelled
                ) => {}
            Err(status) => return Err(status.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(STATUS_PAUSE_MAX);
    }
}

async fn timed<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIME_MAX, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// SHA-256 in hex.
pub fn hex_digest(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A request with the usual time limit.
pub fn within<T>(message: T, time_max: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time_max);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_four_parts_of_fixed_length() {
        let (digest, secret) = ("1".repeat(50), "z".repeat(25));
        for (token, good) in [
            (format!("SWMTKN-1-{digest}-{secret}"), true),
            (format!("SWMTKN-2-0-{digest}-{secret}"), true),
            (format!("SWMTKN-2-7-{digest}-{secret}"), false),
            (format!("SWMTKN-1-{digest}"), false),
            (format!("SWMTKN-1-{}-{secret}", "A".repeat(50)), false),
            (format!("SWMTKN-1-{digest}-{secret}x"), false),
            (String::new(), false),
        ] {
            assert_eq!(Token::parse(&token).is_ok(), good, "{token}");
        }
    }
}
