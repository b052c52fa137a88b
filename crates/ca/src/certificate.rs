//! Keys, signing requests, roots and node certificates, in Docker's profile.

use std::time::Duration;

use model::Instant;
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use wire::swarmkit as pb;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{CA_NAME, MANAGER_UNIT, WORKER_UNIT, pem};

/// How long a root lives: Docker's 20 years of 365 days.
const ROOT_LIFETIME: Duration = Duration::from_secs(630_720_000);
/// A certificate begins this long before it is issued, for clocks that are late.
pub const BACKDATE: Duration = Duration::from_secs(3600);
/// `--cert-expiry` when nothing is said: 90 days.
pub const EXPIRY_DEFAULT: Duration = Duration::from_secs(90 * 24 * 3600);
pub const EXPIRY_MIN: Duration = Duration::from_secs(3600);
/// Bytes of a signing request or of a chain; real ones have less than two thousand.
pub const PEM_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the certificate authority's key is not on this manager")]
    NoKey,
    #[error("{what}: not readable: {detail}")]
    Unreadable { what: &'static str, detail: String },
    #[error("signing request: the signature does not belong to the key")]
    BadRequest,
    #[error("certificate of {subject}: signed by none of the roots")]
    UnknownAuthority { subject: String },
    #[error(
        "certificate of {subject}: valid from {from} to {until} (seconds since 1970), it is {now}"
    )]
    OutOfTime { subject: String, from: i64, until: i64, now: i64 },
    #[error("certificate of {subject}: {detail}")]
    Profile { subject: String, detail: &'static str },
    #[error("signing: {0}")]
    Signing(String),
}

/// A private key, ECDSA on P-256, as PKCS #8 in PEM. It has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pem: String,
}

impl Key {
    pub fn generate() -> Result<Self, Error> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(signing)?;
        let der = pair.serialize_der();
        let block = pem::Block { label: "PRIVATE KEY".into(), headers: Vec::new(), der };
        Ok(Self { pem: pem::write(&block) })
    }

    /// Reads the first private key of a PEM text; headers are not part of the key.
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        let unreadable =
            |detail: &str| Error::Unreadable { what: "private key", detail: detail.into() };
        let text = std::str::from_utf8(text).map_err(|_| unreadable("not text"))?;
        let blocks = pem::parse(text).ok_or_else(|| unreadable("broken PEM"))?;
        let mut block = blocks
            .into_iter()
            .find(|block| block.label == "PRIVATE KEY")
            .ok_or_else(|| unreadable("no PKCS #8 key in it"))?;
        block.headers.clear();
        let key = Self { pem: pem::write(&block) };
        key.pair()?;
        Ok(key)
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A signing request with an empty subject: the authority decides it.
    pub fn request(&self) -> Result<Vec<u8>, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.pair()?).map_err(signing)?;
        Ok(request.pem().map_err(signing)?.into_bytes())
    }

    /// Whether a certificate (the first of a PEM text) is for this key.
    pub fn owns(&self, chain: &[u8]) -> Result<bool, Error> {
        use rcgen::PublicKeyData;
        let der = first_der(chain)?;
        let certificate = parse(&der)?;
        Ok(certificate.public_key().raw == self.pair()?.subject_public_key_info())
    }

    fn pair(&self) -> Result<KeyPair, Error> {
        KeyPair::from_pem(&self.pem)
            .map_err(|error| Error::Unreadable { what: "private key", detail: error.to_string() })
    }
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub node_id: String,
    pub role: pb::NodeRole,
    /// The cluster's id.
    pub organization: String,
}

/// A signed certificate, with the intermediates that lead to an older root.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    pub chain: Vec<u8>,
}

/// What a verified certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub node_id: String,
    pub organization: String,
    pub units: Vec<String>,
    pub not_before: Instant,
    pub not_after: Instant,
    /// `NodeTLSInfo`: the issuer's subject and public key, in DER.
    pub issuer_subject: Vec<u8>,
    pub issuer_public_key: Vec<u8>,
}

impl Verified {
    pub fn is_manager(&self) -> bool {
        self.units.iter().any(|unit| unit == MANAGER_UNIT)
    }

    /// When to ask for the next one: somewhere between half and four fifths of its life, so that
    /// the nodes of a swarm do not all ask at once.
    pub fn renew_at(&self, dice: &mut dyn RngCore) -> Instant {
        let life = self.not_after.since(self.not_before);
        let share = 0.5 + 0.3 * f64::from(dice.next_u32()) / f64::from(u32::MAX);
        self.not_before + life.mul_f64(share)
    }
}

/// The roots that a node trusts, and on managers the key that signs.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    /// PEM, exactly as given out: the join tokens hold its digest.
    pub roots: Vec<u8>,
    /// The certificate whose key signs: the first root, or the next one while rotating.
    pub signer: Option<Signer>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Signer {
    pub certificate: Vec<u8>,
    pub key: Key,
    /// Appended to each leaf: the new root signed by the old one.
    pub intermediates: Vec<u8>,
}

impl Root {
    /// A new authority of its own.
    pub fn create(now: Instant, dice: &mut dyn RngCore) -> Result<Self, Error> {
        let key = Key::generate()?;
        let mut params = authority(CA_NAME, now, dice);
        params.serial_number = Some(serial(dice));
        let certificate = params.self_signed(&key.pair()?).map_err(signing)?;
        let certificate = pem::certificate(certificate.der()).into_bytes();
        let signer = Signer { certificate: certificate.clone(), key, intermediates: Vec::new() };
        Ok(Self { roots: certificate, signer: Some(signer) })
    }

    /// Roots to trust, without the means to sign.
    pub fn trusted(roots: Vec<u8>) -> Result<Self, Error> {
        for der in &ders(&roots)? {
            parse(der)?;
        }
        Ok(Self { roots, signer: None })
    }

    /// The authority as the cluster object holds it: while it rotates, the new key signs.
    pub fn from_cluster(root: &pb::RootCa) -> Result<Self, Error> {
        let rotation = root.root_rotation.as_ref();
        let (certificate, key, intermediates) = match rotation {
            Some(next) => (&next.ca_cert, &next.ca_key, next.cross_signed_ca_cert.clone()),
            None => (&root.ca_cert, &root.ca_key, Vec::new()),
        };
        let signer = match key.is_empty() {
            true => None,
            false => Some(Signer {
                certificate: certificate.clone(),
                key: Key::from_pem(key)?,
                intermediates,
            }),
        };
        let mut trusted = Self::trusted(root.ca_cert.clone())?;
        trusted.signer = signer;
        Ok(trusted)
    }

    /// Signs a node's request. Of the request only the public key counts.
    pub fn sign(
        &self,
        request: &[u8],
        identity: &Identity,
        now: Instant,
        expiry: Duration,
        dice: &mut dyn RngCore,
    ) -> Result<Issued, Error> {
        let signer = self.signer.as_ref().ok_or(Error::NoKey)?;
        let public = requested_key(request)?;
        let mut params = node_params(identity, now, expiry)?;
        params.serial_number = Some(serial(dice));
        let certificate = params.signed_by(&public, &signer.issuer()?).map_err(signing)?;
        let mut chain = pem::certificate(certificate.der()).into_bytes();
        chain.extend_from_slice(&signer.intermediates);
        Ok(Issued { chain })
    }

    /// The other authority's certificate, signed by this one: leads its leaves to this root.
    pub fn cross_sign(
        &self,
        other: &[u8],
        now: Instant,
        dice: &mut dyn RngCore,
    ) -> Result<Vec<u8>, Error> {
        let signer = self.signer.as_ref().ok_or(Error::NoKey)?;
        let der = first_der(other)?;
        let parsed = parse(&der)?;
        let name = parsed.subject().iter_common_name().next();
        let name = name.and_then(|name| name.as_str().ok()).unwrap_or(CA_NAME).to_owned();
        let mut params = authority(&name, now, dice);
        if let Some(id) = key_identifier(&parsed) {
            params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(id);
        }
        params.serial_number = Some(serial(dice));
        let public = SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(signing)?;
        let certificate = params.signed_by(&public, &signer.issuer()?).map_err(signing)?;
        Ok(pem::certificate(certificate.der()).into_bytes())
    }

    /// Whether a chain (leaf first) leads to one of the roots and is good at this time.
    pub fn verify(&self, chain: &[u8], now: Instant) -> Result<Verified, Error> {
        let chain = ders(chain)?;
        let roots = ders(&self.roots)?;
        let leaf = parse(&chain[0])?;
        let mut current = leaf.clone();
        for intermediate in &chain[1..] {
            if signed_by_any(&current, &roots) {
                break;
            }
            let issuer = parse(intermediate)?;
            if !issuer.is_ca() || current.verify_signature(Some(issuer.public_key())).is_err() {
                break;
            }
            check_time(&issuer, now)?;
            current = issuer;
        }
        if !signed_by_any(&current, &roots) {
            return Err(Error::UnknownAuthority { subject: leaf.subject().to_string() });
        }
        check_time(&leaf, now)?;
        let issuer_key = match chain.get(1) {
            Some(der) => parse(der)?.public_key().raw.to_vec(),
            None => issuer_key(&leaf, &roots)?,
        };
        read(&leaf, issuer_key)
    }

    /// Subject and public key of the certificate that signs, in DER: what a converged node reports.
    pub fn issuer_info(&self) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let certificate = self.signer.as_ref().map_or(&self.roots, |signer| &signer.certificate);
        issuer_info(certificate)
    }
}

/// Subject and public key, in DER, of the first certificate of a PEM text.
pub fn issuer_info(certificate: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let der = first_der(certificate)?;
    let parsed = parse(&der)?;
    Ok((parsed.subject().as_raw().to_vec(), parsed.public_key().raw.to_vec()))
}

/// What a certificate in DER says, without asking who signed it: for peers that TLS has verified.
pub fn read_der(der: &[u8]) -> Result<Verified, Error> {
    read(&parse(der)?, Vec::new())
}

impl Signer {
    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Error> {
        let der = first_der(&self.certificate)?;
        Issuer::from_ca_cert_der(&der.into(), self.key.pair()?).map_err(signing)
    }
}

fn authority(name: &str, now: Instant, _dice: &mut dyn RngCore) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date(now - BACKDATE);
    params.not_after = date(now + ROOT_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn node_params(
    identity: &Identity,
    now: Instant,
    expiry: Duration,
) -> Result<CertificateParams, Error> {
    let manager = identity.role == pb::NodeRole::Manager;
    let unit = if manager { MANAGER_UNIT } else { WORKER_UNIT };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, identity.organization.as_str());
    params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
    params.distinguished_name.push(DnType::CommonName, identity.node_id.as_str());
    let mut names = vec![unit, identity.node_id.as_str()];
    if manager {
        names.push(CA_NAME);
    }
    for name in names {
        let name = name.to_owned().try_into().map_err(signing)?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.not_before = date(now - BACKDATE);
    params.not_after = date(now + expiry);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn requested_key(request: &[u8]) -> Result<SubjectPublicKeyInfo, Error> {
    let unreadable =
        |detail: &str| Error::Unreadable { what: "signing request", detail: detail.into() };
    if request.len() > PEM_BYTES_MAX {
        return Err(unreadable("too long"));
    }
    let text = std::str::from_utf8(request).map_err(|_| unreadable("not text"))?;
    let blocks = pem::parse(text).ok_or_else(|| unreadable("broken PEM"))?;
    let block = blocks.first().ok_or_else(|| unreadable("no PEM block"))?;
    if block.label != "CERTIFICATE REQUEST" && block.label != "NEW CERTIFICATE REQUEST" {
        return Err(unreadable("another kind of PEM block"));
    }
    let (_, request) = X509CertificationRequest::from_der(&block.der)
        .map_err(|error| unreadable(&error.to_string()))?;
    request.verify_signature().map_err(|_| Error::BadRequest)?;
    let public = &request.certification_request_info.subject_pki;
    SubjectPublicKeyInfo::from_der(public.raw).map_err(signing)
}

fn read(leaf: &X509Certificate<'_>, issuer_public_key: Vec<u8>) -> Result<Verified, Error> {
    let subject = leaf.subject();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().unwrap_or_default().to_owned()
    };
    let node_id = subject.iter_common_name().next().map(text).unwrap_or_default();
    let organization = subject.iter_organization().next().map(text).unwrap_or_default();
    let units = subject.iter_organizational_unit().map(text).collect();
    if node_id.is_empty() {
        let subject = subject.to_string();
        return Err(Error::Profile { subject, detail: "it names no node" });
    }
    Ok(Verified {
        node_id,
        organization,
        units,
        not_before: instant(leaf.validity().not_before.timestamp()),
        not_after: instant(leaf.validity().not_after.timestamp()),
        issuer_subject: leaf.issuer().as_raw().to_vec(),
        issuer_public_key,
    })
}

fn signed_by_any(certificate: &X509Certificate<'_>, roots: &[Vec<u8>]) -> bool {
    issuer_key(certificate, roots).is_ok()
}

fn issuer_key(certificate: &X509Certificate<'_>, roots: &[Vec<u8>]) -> Result<Vec<u8>, Error> {
    for root in roots {
        let root = parse(root)?;
        if root.subject().as_raw() == certificate.issuer().as_raw()
            && certificate.verify_signature(Some(root.public_key())).is_ok()
        {
            return Ok(root.public_key().raw.to_vec());
        }
    }
    Err(Error::UnknownAuthority { subject: certificate.subject().to_string() })
}

fn check_time(certificate: &X509Certificate<'_>, now: Instant) -> Result<(), Error> {
    let (from, until) = (
        certificate.validity().not_before.timestamp(),
        certificate.validity().not_after.timestamp(),
    );
    let (now, _) = now.unix();
    if now < from || now > until {
        let subject = certificate.subject().to_string();
        return Err(Error::OutOfTime { subject, from, until, now });
    }
    Ok(())
}

fn key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn ders(chain: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let unreadable =
        |detail: &str| Error::Unreadable { what: "certificate", detail: detail.into() };
    if chain.len() > PEM_BYTES_MAX {
        return Err(unreadable("too long"));
    }
    pem::certificates(chain).ok_or_else(|| unreadable("no PEM certificates"))
}

fn first_der(chain: &[u8]) -> Result<Vec<u8>, Error> {
    Ok(ders(chain)?.swap_remove(0))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| Error::Unreadable { what: "certificate", detail: error.to_string() })?;
    Ok(certificate)
}

fn serial(dice: &mut dyn RngCore) -> SerialNumber {
    let mut number = [0; 20];
    dice.fill_bytes(&mut number);
    // Positive, and always of the same length (RFC 5280 §4.1.2.2).
    number[0] = number[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&number)
}

fn date(at: Instant) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.unix().0).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn instant(seconds: i64) -> Instant {
    Instant::from_nanos(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000))
}

fn signing(error: rcgen::Error) -> Error {
    Error::Signing(error.to_string())
}
