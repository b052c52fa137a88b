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
const STREAMS_PER_CONNECTION_MAX: u32 = 512;
const HEADER_BYTES_MAX: u32 = 16 << 10;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);

/// Serves until dropped; every connection ends with it.
pub async fn serve(
    listener: TcpListener,
    keys: Arc<Keys>,
    gate: Arc<Gate>,
    calls: mpsc::Sender<Call>,
) {
    let routes = routes(Front { gate: gate.clone(), calls });
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
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
        let (routes, strangers, gate, config) =
            (routes.clone(), strangers.clone(), gate.clone(), keys.server());
        connections.spawn(async move {
            let _permit = permit;
            connection(stream, address, TlsAcceptor::from(config), routes, strangers, gate).await;
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

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    routes: Routes,
    strangers: Arc<Semaphore>,
    gate: Arc<Gate>,
) {
    let _ = stream.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            Counters::count(&gate.counters.handshakes_refused);
            return debug!(%address, %error, "TLS refused");
        }
        Err(_) => {
            Counters::count(&gate.counters.handshakes_refused);
            return debug!(%address, "TLS not agreed on in time");
        }
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let subject = match certificate.map(|der| Subject::of(&der)).transpose() {
        Ok(subject) => subject,
        Err(error) => {
            Counters::count(&gate.counters.handshakes_refused);
            return debug!(%address, %error, "certificate refused");
        }
    };
    Counters::count(&gate.counters.connections);
    let time_max = match subject {
        Some(_) => Duration::MAX,
        None => STRANGER_TIME_MAX,
    };
    let _stranger = match subject {
        Some(_) => None,
        None => match strangers.try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => return Counters::count(&gate.counters.connections_refused),
        },
    };
    let facts = Connection { address, subject };
    let service =
        hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(facts.clone());
            let routes = routes.clone();
            async move {
                match routes.oneshot(request.map(tonic::body::Body::new)).await {
                    Ok(response) => Ok::<_, Infallible>(response),
                    Err(never) => match never {},
                }
            }
        });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(tls), service);
    match tokio::time::timeout(time_max, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%address, %error, "connection ended"),
        Err(_) => Counters::count(&gate.counters.connections_refused),
    }
}
