//! The accept loop of a manager's port: TLS, limits, HTTP/2, and one queue of calls behind it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::Code;
use tonic::service::Routes;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::MESSAGE_BYTES_MAX;
use crate::call::Call;
use crate::gate::{Connection, Counters, Gate};
use crate::grpc;
use crate::identity::Subject;
use crate::services::Front;
use crate::tls::Keys;

/// Connections at a time, whoever they are from.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Connections without a certificate at a time: nodes that are about to join, or somebody who never will.
pub const STRANGERS_MAX: usize = 256;
/// A stranger has this long to get a certificate.
pub const STRANGER_TIME_MAX: Duration = Duration::from_secs(120);
/// TLS has to be agreed on within this time.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Handshakes at a time: who never finishes one takes no seat from those who do.
pub const HANDSHAKES_MAX: usize = 512;
const STREAMS_PER_CONNECTION_MAX: u32 = 512;
const HEADER_BYTES_MAX: u32 = 16 << 10;
const KEEPALIVE: Duration = Duration::from_secs(15);

/// What one port bears; the default is a manager's.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    pub handshakes: usize,
    pub strangers: usize,
    pub handshake_time: Duration,
    pub stranger_time: Duration,
    /// A peer that does not answer a ping within this time, asked as often, is gone.
    pub keepalive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            handshakes: HANDSHAKES_MAX,
            strangers: STRANGERS_MAX,
            handshake_time: HANDSHAKE_TIME_MAX,
            stranger_time: STRANGER_TIME_MAX,
            keepalive: KEEPALIVE,
        }
    }
}

/// What every connection of a port shares.
struct Port {
    limits: Limits,
    routes: Routes,
    gate: Arc<Gate>,
    handshakes: Semaphore,
    strangers: Semaphore,
}

/// Serves until dropped; every connection ends with it.
pub async fn serve(
    listener: TcpListener,
    keys: Arc<Keys>,
    gate: Arc<Gate>,
    calls: mpsc::Sender<Call>,
    limits: Limits,
) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let port = Arc::new(Port {
        limits,
        routes: routes(Front { gate: gate.clone(), calls }),
        gate: gate.clone(),
        handshakes: Semaphore::new(limits.handshakes),
        strangers: Semaphore::new(limits.strangers),
    });
    let mut connections = JoinSet::new();
    loop {
        let (stream, address) = match listener.accept().await {
            // A socket of both families has IPv4 callers as ::ffff:a.b.c.d.
            Ok((stream, from)) => (stream, SocketAddr::new(from.ip().to_canonical(), from.port())),
            Err(error) => {
                // Out of file descriptors: wait for connections to end rather than spin.
                warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().try_acquire_owned() else {
            Counters::count(&gate.counters.connections_refused);
            continue;
        };
        let (port, acceptor) = (port.clone(), TlsAcceptor::from(keys.server()));
        connections.spawn(async move {
            let _permit = permit;
            connection(stream, address, acceptor, &port).await;
        });
    }
}

fn routes(front: Front) -> Routes {
    macro_rules! service {
        ($module:ident :: $server:ident) => {
            grpc::$module::$server::new(front.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
        };
    }
    Routes::new(service!(ca_server::CaServer))
        .add_service(service!(node_ca_server::NodeCaServer))
        .add_service(service!(dispatcher_server::DispatcherServer))
        .add_service(service!(raft_server::RaftServer))
        .add_service(service!(raft_membership_server::RaftMembershipServer))
        .add_service(service!(resource_allocator_server::ResourceAllocatorServer))
        .add_service(service!(health_server::HealthServer))
        .add_service(service!(logs_server::LogsServer))
        .add_service(service!(log_broker_server::LogBrokerServer))
        .add_service(service!(watch_server::WatchServer))
        .add_service(service!(control_server::ControlServer))
        .prepare()
}

async fn connection(stream: TcpStream, address: SocketAddr, acceptor: TlsAcceptor, port: &Port) {
    let counters = &port.gate.counters;
    let Some((tls, subject)) = handshake(stream, address, acceptor, port).await else { return };
    Counters::count(&counters.connections);
    let _stranger = match subject {
        Some(_) => None,
        None => match port.strangers.try_acquire() {
            Ok(permit) => Some(permit),
            Err(_) => return Counters::count(&counters.connections_refused),
        },
    };
    let time_max = match subject {
        Some(_) => Duration::MAX,
        None => port.limits.stranger_time,
    };
    let facts = Connection { address, subject };
    let (routes, gate) = (port.routes.clone(), port.gate.clone());
    let service =
        hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(facts.clone());
            let (routes, gate) = (routes.clone(), gate.clone());
            async move {
                match routes.oneshot(request.map(tonic::body::Body::new)).await {
                    Ok(response) => {
                        count_malformed(&gate.counters, &response);
                        Ok::<_, Infallible>(response)
                    }
                    Err(never) => match never {},
                }
            }
        });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(port.limits.keepalive)
        .keep_alive_timeout(port.limits.keepalive)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(tls), service);
    match tokio::time::timeout(time_max, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            Counters::count(&counters.connections_broken);
            debug!(%address, %error, "connection broke off");
        }
        Err(_) => Counters::count(&counters.connections_refused),
    }
}

/// TLS within its time; the subject is `None` for a stranger. What fails is counted.
async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    port: &Port,
) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, Option<Subject>)> {
    let _ = stream.set_nodelay(true);
    let refused = |reason: String| {
        Counters::count(&port.gate.counters.handshakes_refused);
        debug!(%address, reason, "TLS refused");
        None
    };
    let Ok(_seat) = port.handshakes.try_acquire() else {
        return refused("too many handshakes at a time".into());
    };
    let tls = match tokio::time::timeout(port.limits.handshake_time, acceptor.accept(stream)).await
    {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return refused(error.to_string()),
        Err(_) => return refused("not agreed on in time".into()),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    match certificate.map(|der| Subject::of(&der)).transpose() {
        Ok(subject) => Some((tls, subject)),
        Err(error) => refused(error.to_string()),
    }
}

/// Messages that do not decode, are too large or name no method never reach the gate: tonic
/// answers them by itself, in headers without a body.
fn count_malformed<T>(counters: &Counters, response: &hyper::Response<T>) {
    let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok());
    let code = code.and_then(|code| code.parse().ok()).map(tonic::Code::from_i32);
    if matches!(code, Some(Code::Internal | Code::OutOfRange | Code::Unimplemented)) {
        Counters::count(&counters.messages_refused);
    }
}
