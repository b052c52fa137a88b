//! Calls to another manager over one connection that is made when first used and again when lost.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use wire::control;
use wire::swarmkit as pb;

use crate::MESSAGE_BYTES_MAX;
use crate::grpc;
use crate::services::control_call;
use crate::tls::{CA_NAME, Keys, MANAGER_NAME};

pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How the far end is known.
#[derive(Clone)]
pub(crate) enum Trust {
    /// Mutual TLS with the node's identity of the moment.
    Mutual(Arc<Keys>, &'static str),
    /// A fixed configuration without a certificate of our own.
    Given(Arc<ClientConfig>, &'static str),
}

impl Trust {
    fn config(&self) -> (Arc<ClientConfig>, &'static str) {
        match self {
            Trust::Mutual(keys, name) => (keys.client(), name),
            Trust::Given(config, name) => (config.clone(), name),
        }
    }
}

/// A channel that connects when it is first used. `address` is `host:port`.
pub(crate) fn channel(address: &str, trust: Trust) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Status::invalid_argument(format!("{address} is no address of a manager")))?
        .connect_timeout(CONNECT_TIME_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connector = tower::service_fn(move |uri: Uri| {
        let (config, name) = trust.config();
        async move { connect(uri, config, name).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn connect(
    uri: Uri,
    config: Arc<ClientConfig>,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let work = async {
        let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(2377))).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT_TIME_MAX, work).await.unwrap_or_else(|_| {
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "not connected in time"))
    })
}

/// One manager, by its address.
#[derive(Clone)]
pub struct Manager {
    pub address: String,
    channel: Channel,
}

macro_rules! clients {
    ($($call:ident -> $module:ident :: $client:ident),* $(,)?) => { $(
        pub fn $call(&self) -> grpc::$module::$client<Channel> {
            grpc::$module::$client::new(self.channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
        }
    )* };
}

impl Manager {
    /// Over mutual TLS, as a member of the swarm.
    pub fn new(address: impl Into<String>, keys: Arc<Keys>) -> Result<Self, Status> {
        let address = address.into();
        let channel = channel(&address, Trust::Mutual(keys, MANAGER_NAME))?;
        Ok(Self { address, channel })
    }

    /// Over mutual TLS, for the CA's own methods.
    pub fn ca_of(address: impl Into<String>, keys: Arc<Keys>) -> Result<Self, Status> {
        let address = address.into();
        let channel = channel(&address, Trust::Mutual(keys, CA_NAME))?;
        Ok(Self { address, channel })
    }

    pub(crate) fn with(address: &str, trust: Trust) -> Result<Self, Status> {
        Ok(Self { address: address.to_owned(), channel: channel(address, trust)? })
    }

    /// What `gate::Route::Leader` takes.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    clients! {
        ca -> ca_client::CaClient,
        node_ca -> node_ca_client::NodeCaClient,
        dispatcher -> dispatcher_client::DispatcherClient,
        raft -> raft_client::RaftClient,
        raft_membership -> raft_membership_client::RaftMembershipClient,
        resource_allocator -> resource_allocator_client::ResourceAllocatorClient,
        health -> health_client::HealthClient,
        logs -> logs_client::LogsClient,
        log_broker -> log_broker_client::LogBrokerClient,
        watch -> watch_client::WatchClient,
    }

    /// Any call of the Control service.
    pub async fn control(&self, request: control::Request) -> Result<control::Response, Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        client.ready().await.map_err(|e| {
            Status::unavailable(format!("manager {} does not answer: {e}", self.address))
        })?;
        control_call(&mut client, request).await
    }

    /// Whether the far end serves raft, within `time_max` (asked before a member is added or trusted with a vote).
    pub async fn serves_raft(&self, time_max: Duration) -> bool {
        let mut request = Request::new(pb::HealthCheckRequest { service: "Raft".into() });
        request.set_timeout(time_max);
        let serving = pb::health_check_response::ServingStatus::Serving;
        let asked = async move { self.health().check(request).await };
        matches!(tokio::time::timeout(time_max, asked).await,
            Ok(Ok(answer)) if answer.get_ref().status() == serving)
    }
}
