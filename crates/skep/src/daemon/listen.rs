//! The API's sockets: unix, TCP, TCP with TLS, and those that systemd hands over.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::settings::Settings;

/// The whole API as one service.
pub type Api = docker_api::version::Negotiated;

/// Connections at once on one socket; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// A client that does not send its headers, or does not finish its handshake, holds a place.
const HEADERS_MAX: Duration = Duration::from_secs(30);
const PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// A socket that is bound.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

/// Every socket of the API, bound and not served yet.
pub struct Sockets {
    listeners: Vec<Listener>,
    files: Files,
}

/// The files of unix sockets that this daemon made; they go with it.
#[derive(Default)]
pub struct Files(Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::debug!(path = %path.display(), %error, "the socket was not removed");
            }
        }
    }
}

impl Sockets {
    /// Answers on all of them until the process ends.
    pub fn serve(self, api: &Api) -> Files {
        for listener in self.listeners {
            tokio::spawn(serve(listener, api.clone()));
        }
        self.files
    }
}

/// Binds every socket that the settings name.
///
/// # Errors
/// The socket that cannot be bound, with the reason; none is left then.
pub async fn bind(settings: &Settings) -> Result<Sockets> {
    let tls = if settings.tls || settings.tls_verify { Some(acceptor(settings)?) } else { None };
    let mut sockets = Sockets { listeners: Vec::new(), files: Files::default() };
    for host in &settings.hosts {
        let bound = bind_one(host, settings, tls.as_ref()).await;
        sockets
            .listeners
            .extend(bound.with_context(|| format!("failed to load listeners: {host}"))?);
        sockets.files.0.extend(host.strip_prefix("unix://").map(PathBuf::from));
    }
    Ok(sockets)
}

async fn bind_one(
    host: &str,
    settings: &Settings,
    tls: Option<&TlsAcceptor>,
) -> Result<Vec<Listener>> {
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(vec![Listener::Unix(unix(Path::new(path), settings.group.as_deref())?)]);
    }
    if let Some(address) = host.strip_prefix("tcp://") {
        let address = tcp_address(address, tls.is_some())?;
        if tls.is_none() && !address.ip().is_loopback() {
            tracing::warn!(%address, "the API listens without TLS: whoever reaches it is root on this host");
        }
        return Ok(vec![Listener::Tcp(TcpListener::bind(address).await?, tls.cloned())]);
    }
    if host.starts_with("fd://") {
        return handed_over(tls);
    }
    bail!("only unix://, tcp:// and fd:// are sockets")
}

fn tcp_address(text: &str, tls: bool) -> Result<SocketAddr> {
    let port = if tls { TLS_PORT } else { PORT };
    let text = text.trim_end_matches('/');
    let text = match text {
        "" => format!("127.0.0.1:{port}"),
        _ if text.starts_with(':') => format!("0.0.0.0{text}"),
        _ if text.starts_with('[') && text.ends_with(']') => format!("{text}:{port}"),
        _ if !text.contains(':') => format!("{text}:{port}"),
        _ => text.to_owned(),
    };
    let text = text.replace("localhost", "127.0.0.1");
    text.parse().with_context(|| format!("{text} is not ADDRESS:PORT"))
}

/// A socket file that nobody answers on is a leftover and is replaced.
fn unix(path: &Path, group: Option<&str>) -> Result<UnixListener> {
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            bail!("{} is there and is no socket", path.display());
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("another daemon answers on it");
        }
        std::fs::remove_file(path)?;
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    let id = match group {
        // dockerd's default group need not be there.
        None => group_id("docker").ok(),
        Some("") => None,
        Some(name) => Some(group_id(name)?),
    };
    if let Some(id) = id {
        std::os::unix::fs::chown(path, None, Some(id))?;
    }
    Ok(listener)
}

/// The id of a group by its name in /etc/group, or of a number.
fn group_id(name: &str) -> Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let table = std::fs::read_to_string("/etc/group")?;
    let row = table.lines().find(|row| row.split(':').next() == Some(name));
    row.and_then(|row| row.split(':').nth(2))
        .and_then(|id| id.parse().ok())
        .with_context(|| format!("group {name} not found"))
}

/// The sockets that systemd opened for us (sd_listen_fds(3)), unix or TCP.
fn handed_over(tls: Option<&TlsAcceptor>) -> Result<Vec<Listener>> {
    let mut given = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for number in 0..given.len() {
        if let Ok(Some(listener)) = given.take_unix_listener(number) {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Unix(UnixListener::from_std(listener)?));
        } else if let Some(listener) = given.take_tcp_listener(number)? {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Tcp(TcpListener::from_std(listener)?, tls.cloned()));
        }
    }
    if listeners.is_empty() {
        bail!("no sockets found: fd:// is for a daemon that systemd starts with a socket unit");
    }
    Ok(listeners)
}

fn acceptor(settings: &Settings) -> Result<TlsAcceptor> {
    let certificates = CertificateDer::pem_file_iter(&settings.tls_certificate)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .with_context(|| {
            format!("could not load the certificate {}", settings.tls_certificate.display())
        })?;
    let key = PrivateKeyDer::from_pem_file(&settings.tls_key)
        .with_context(|| format!("could not load the key {}", settings.tls_key.display()))?;
    let builder = rustls::ServerConfig::builder();
    let builder = if settings.tls_verify {
        builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder(Arc::new(roots(&settings.tls_ca)?)).build()?,
        )
    } else {
        builder.with_no_client_auth()
    };
    Ok(TlsAcceptor::from(Arc::new(builder.with_single_cert(certificates, key)?)))
}

fn roots(file: &PathBuf) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(file)
        .with_context(|| format!("could not load the CA {}", file.display()))?;
    for certificate in found {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// Serves the API on a socket until the process ends.
async fn serve(listener: Listener, api: Api) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let api = api.clone();
        let accepted = match &listener {
            Listener::Unix(socket) => socket.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    connection(stream, api).await;
                    drop(place);
                });
            }),
            Listener::Tcp(socket, tls) => socket.accept().await.map(|(stream, peer)| {
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => connection(stream, api).await,
                        Some(tls) => match tokio::time::timeout(HEADERS_MAX, tls.accept(stream))
                            .await
                        {
                            Ok(Ok(stream)) => connection(stream, api).await,
                            Ok(Err(error)) => {
                                tracing::info!(%peer, %error, "TLS handshake refused")
                            }
                            Err(_) => tracing::info!(%peer, "TLS handshake not finished in time"),
                        },
                    }
                    drop(place);
                });
            }),
        };
        if let Err(error) = accepted {
            // Out of descriptors, mostly: the next accept would fail at once as well.
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, api: Api) {
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), api).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_addresses_get_dockers_ports() {
        for (text, tls, expected) in [
            ("127.0.0.1:4000", false, "127.0.0.1:4000"),
            ("127.0.0.1", false, "127.0.0.1:2375"),
            (":2376", true, "0.0.0.0:2376"),
            ("localhost", true, "127.0.0.1:2376"),
            ("[::1]", true, "[::1]:2376"),
        ] {
            assert_eq!(tcp_address(text, tls).expect(text).to_string(), expected);
        }
        assert!(tcp_address("nowhere:x", false).is_err());
    }

    #[tokio::test]
    async fn a_leftover_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let first = unix(&path, None).expect("replaced");
        assert!(unix(&path, None).expect_err("in use").to_string().contains("another daemon"));
        drop(first);
        let file = folder.path().join("f");
        std::fs::write(&file, "").expect("written");
        assert!(unix(&file, None).expect_err("a file").to_string().contains("no socket"));
    }
}
