//! A node's certificate, its key and the roots it trusts, and what the certificate says.

use rustls::pki_types::CertificateDer;
use wire::swarmkit::NodeRole;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate, key or token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{what}: no certificate in PEM form found")]
    NoCertificate { what: &'static str },
    #[error("no private key in PEM form found")]
    NoKey,
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    #[error("the certificate lacks {0} in its subject")]
    Subject(&'static str),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("no certificate verifier from these roots: {0}")]
    Roots(String),
    #[error("remote CA does not match fingerprint. Expected: {expected}")]
    Digest { expected: String },
    #[error("invalid join token")]
    Token,
    #[error("{0}")]
    Remote(tonic::Status),
    #[error("no manager answered: {0}")]
    Unreachable(String),
    #[error("key or request not made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the certificate was not issued: {0}")]
    NotIssued(String),
}

impl From<tonic::Status> for Refused {
    fn from(status: tonic::Status) -> Self {
        Self::Remote(status)
    }
}

/// What a node certificate says of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// CN
    pub node_id: String,
    /// O
    pub cluster_id: String,
    /// OU
    pub role: NodeRole,
}

pub const WORKER_OU: &str = "swarm-worker";
pub const MANAGER_OU: &str = "swarm-manager";

impl Subject {
    pub fn of(der: &[u8]) -> Result<Self, Refused> {
        let (_, cert) =
            X509Certificate::from_der(der).map_err(|e| Refused::Unreadable(e.to_string()))?;
        let name = cert.subject();
        let node_id = one(name.iter_common_name()).ok_or(Refused::Subject("a common name"))?;
        let cluster_id =
            one(name.iter_organization()).ok_or(Refused::Subject("an organization"))?;
        let unit = one(name.iter_organizational_unit())
            .ok_or(Refused::Subject("an organizational unit"))?;
        let role = role_of(&unit).ok_or(Refused::Subject("a known role"))?;
        Ok(Self { node_id, cluster_id, role })
    }
}

pub fn role_of(unit: &str) -> Option<NodeRole> {
    match unit {
        WORKER_OU => Some(NodeRole::Worker),
        MANAGER_OU => Some(NodeRole::Manager),
        _ => None,
    }
}

pub fn unit_of(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => WORKER_OU,
        NodeRole::Manager => MANAGER_OU,
    }
}

fn one<'a>(
    mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
) -> Option<String> {
    values.next()?.as_str().ok().map(str::to_owned)
}

/// A member's whole identity. No Debug: it holds the private key.
#[derive(Clone)]
pub struct Identity {
    pub subject: Subject,
    pub certificate_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
    /// The bundle of roots, byte for byte as the managers gave it.
    pub root_pem: Vec<u8>,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
    /// Subject of the issuer and its public key, both as DER (`NodeTLSInfo`).
    pub issuer_subject: Vec<u8>,
    pub issuer_public_key: Vec<u8>,
}

impl Identity {
    pub fn from_pem(
        certificate_pem: &[u8],
        key_pem: &[u8],
        root_pem: &[u8],
    ) -> Result<Self, Refused> {
        let chain = certificates(certificate_pem);
        let roots = certificates(root_pem);
        let leaf = chain.first().ok_or(Refused::NoCertificate { what: "node certificate" })?;
        if roots.is_empty() {
            return Err(Refused::NoCertificate { what: "root certificate" });
        }
        if rustls_pemfile::private_key(&mut &key_pem[..]).ok().flatten().is_none() {
            return Err(Refused::NoKey);
        }
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|e| Refused::Unreadable(e.to_string()))?;
        let issuer_subject = parsed.issuer().as_raw().to_vec();
        // The issuer is an intermediate of the chain (during a rotation) or one of the roots.
        let issuer_public_key = chain[1..]
            .iter()
            .chain(&roots)
            .filter_map(|der| X509Certificate::from_der(der).ok())
            .find(|(_, ca)| {
                ca.subject().as_raw() == issuer_subject
                    && parsed.verify_signature(Some(ca.public_key())).is_ok()
            })
            .map(|(_, ca)| ca.public_key().raw.to_vec())
            .ok_or_else(|| {
                Refused::NotIssued("the certificate was signed by none of the roots".into())
            })?;
        Ok(Self {
            subject: Subject::of(leaf)?,
            certificate_pem: certificate_pem.to_vec(),
            key_pem: key_pem.to_vec(),
            root_pem: root_pem.to_vec(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            issuer_subject,
            issuer_public_key,
        })
    }

    /// As the dispatcher wants to hear it from an agent.
    pub fn tls_info(&self) -> wire::swarmkit::NodeTlsInfo {
        wire::swarmkit::NodeTlsInfo {
            trust_root: self.root_pem.clone(),
            cert_issuer_subject: self.issuer_subject.clone(),
            cert_issuer_public_key: self.issuer_public_key.clone(),
        }
    }
}

/// Every certificate of a PEM bundle; what is none is passed over.
pub fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    rustls_pemfile::certs(&mut &pem[..]).filter_map(Result::ok).collect()
}
