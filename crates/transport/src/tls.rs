//! TLS as SwarmKit wants it: both sides show certificates of the cluster's root, and both can be replaced while running.

use std::sync::{Arc, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::identity::{Identity, Refused, certificates};

/// The server name of every mutual TLS connection to a manager.
pub const MANAGER_NAME: &str = "swarm-manager";
/// The server name of calls to the CA.
pub const CA_NAME: &str = "swarm-ca";

const ALPN: &[u8] = b"h2";

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

struct Loaded {
    identity: Identity,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// This node's identity as both sides of TLS use it. New connections see a replacement at once.
pub struct Keys {
    loaded: RwLock<Arc<Loaded>>,
}

impl Keys {
    pub fn new(identity: Identity) -> Result<Arc<Self>, Refused> {
        Ok(Arc::new(Self { loaded: RwLock::new(Arc::new(load(identity)?)) }))
    }

    pub fn replace(&self, identity: Identity) -> Result<(), Refused> {
        let loaded = Arc::new(load(identity)?);
        *self.loaded.write().unwrap_or_else(|poison| poison.into_inner()) = loaded;
        Ok(())
    }

    pub fn identity(&self) -> Identity {
        self.loaded().identity.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.loaded().server.clone()
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.loaded().client.clone()
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.loaded.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }
}

fn load(identity: Identity) -> Result<Loaded, Refused> {
    let roots = Arc::new(root_store(&identity.root_pem)?);
    let server = server_config(&identity, roots.clone())?;
    let client = client_config(&identity, roots)?;
    Ok(Loaded { identity, server: Arc::new(server), client: Arc::new(client) })
}

fn root_store(pem: &[u8]) -> Result<RootCertStore, Refused> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates(pem));
    if added == 0 {
        return Err(Refused::NoCertificate { what: "root certificate" });
    }
    Ok(store)
}

fn chain_and_key(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Refused> {
    let key = rustls_pemfile::private_key(&mut &identity.key_pem[..])
        .map_err(|_| Refused::NoKey)?
        .ok_or(Refused::NoKey)?;
    Ok((certificates(&identity.certificate_pem), key))
}

fn server_config(identity: &Identity, roots: Arc<RootCertStore>) -> Result<ServerConfig, Refused> {
    // A node that wants to join has no certificate yet: asked for, verified when given, never required.
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| Refused::Roots(e.to_string()))?;
    let (chain, key) = chain_and_key(identity)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would carry a certificate past its expiry and past a change of roots.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(identity: &Identity, roots: Arc<RootCertStore>) -> Result<ClientConfig, Refused> {
    let (chain, key) = chain_and_key(identity)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// A client that verifies the server by these roots but has no certificate of its own yet.
pub(crate) fn anonymous_client(root_pem: &[u8]) -> Result<Arc<ClientConfig>, Refused> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(root_store(root_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// A client that knows no root yet: only for fetching the root, which the token's digest then vouches for.
pub(crate) fn trusting_client() -> Result<Arc<ClientConfig>, Refused> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting { algorithms }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Trusting {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
