//! Every SwarmKit service of a manager, turned into calls on one queue or forwarded to the leader.

mod control_service;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream as Streaming;
use futures_util::StreamExt;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use wire::control;
use wire::raftpb;
use wire::swarmkit as pb;

use crate::MESSAGE_BYTES_MAX;
use crate::call::{Call, Reply, STREAM_WAITING_MAX, Stream};
use crate::gate::{Connection, Counters, Gate, Need, Peer, Route};
use crate::grpc;

/// A raft snapshot put together from its chunks may not grow beyond this.
pub const SNAPSHOT_BYTES_MAX: usize = 512 << 20;
/// How long a call waits for room in the queue.
const QUEUE_WAIT: Duration = Duration::from_secs(2);
const FORWARD_TIMEOUT: Duration = Duration::from_secs(30);

type Messages<T> = Pin<Box<dyn Streaming<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
pub(crate) struct Front {
    pub gate: Arc<Gate>,
    pub calls: mpsc::Sender<Call>,
}

/// Who may call a method, and whether only the leader answers it.
#[derive(Clone, Copy)]
struct Method {
    path: &'static str,
    need: Need,
    leader: bool,
}

macro_rules! method {
    ($name:literal, $need:ident, $where:ident) => {
        Method {
            path: concat!("/docker.swarmkit.v1.", $name),
            need: Need::$need,
            leader: matches!(Where::$where, Where::Leader),
        }
    };
}

enum Where {
    Leader,
    #[allow(dead_code)]
    Here,
}

impl Front {
    fn admit<T>(&self, request: &Request<T>, need: Need) -> Result<Peer, Status> {
        let connection = request
            .extensions()
            .get::<Connection>()
            .ok_or_else(|| Status::internal("a request without a connection"))?;
        self.gate.admit(connection, request.metadata(), need)
    }

    /// The leader's channel when the call has to go there.
    fn elsewhere(&self, method: Method, metadata: &MetadataMap) -> Result<Option<Channel>, Status> {
        if !method.leader {
            return Ok(None);
        }
        match self.gate.route() {
            Route::Local => Ok(None),
            // One hop only: the other manager's idea of who leads is stale, and it will ask again.
            Route::Leader(_) if metadata.get("redirect").is_some() => {
                Err(Status::new(Code::ResourceExhausted, "more than one redirect to leader"))
            }
            Route::Leader(channel) => {
                Counters::count(&self.gate.counters.calls_forwarded);
                Ok(Some(channel))
            }
            Route::Nobody => Err(no_leader()),
        }
    }

    async fn submit(&self, call: Call) -> Result<(), Status> {
        match self.calls.send_timeout(call, QUEUE_WAIT).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                Counters::count(&self.gate.counters.calls_refused);
                Err(Status::resource_exhausted("the manager has too many calls waiting"))
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(stopping()),
        }
    }

    async fn unary<Q, A>(
        &self,
        method: Method,
        request: Request<Q>,
        make: impl FnOnce(Peer, Q, Reply<A>) -> Call + Send,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let peer = self.admit(&request, method.need)?;
        if let Some(leader) = self.elsewhere(method, request.metadata())? {
            let request = self.vouched(&peer, request.into_inner());
            return forward_unary(leader, method, request).await;
        }
        let (reply, answer) = oneshot::channel();
        self.submit(make(peer, request.into_inner(), reply)).await?;
        answer.await.map_err(|_| stopping())?.map(Response::new)
    }

    async fn streaming<Q, A>(
        &self,
        method: Method,
        request: Request<Q>,
        make: impl FnOnce(Peer, Q, Stream<A>) -> Call + Send,
    ) -> Result<Response<Messages<A>>, Status>
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let peer = self.admit(&request, method.need)?;
        if let Some(leader) = self.elsewhere(method, request.metadata())? {
            let request = self.vouched(&peer, request.into_inner());
            let mut client = ready(leader).await?;
            let response = client
                .server_streaming(request, path(method), ProstCodec::<Q, A>::default())
                .await?
                .into_inner();
            return Ok(Response::new(Box::pin(response)));
        }
        let (stream, messages) = mpsc::channel(STREAM_WAITING_MAX);
        self.submit(make(peer, request.into_inner(), stream)).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    fn vouched<T>(&self, peer: &Peer, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.gate.vouch(peer, request.metadata_mut());
        request
    }

    async fn control<C>(
        &self,
        path: &'static str,
        request: Request<C>,
    ) -> Result<Response<C::Answer>, Status>
    where
        C: control::Call + Message + Default + Send + Sync + 'static,
        C::Answer: Message + Default + Send + Sync + 'static,
    {
        let method = Method { path, need: Need::Manager, leader: true };
        let peer = self.admit(&request, method.need)?;
        if let Some(leader) = self.elsewhere(method, request.metadata())? {
            let request = self.vouched(&peer, request.into_inner());
            return forward_unary(leader, method, request).await;
        }
        let (reply, answer) = oneshot::channel();
        self.submit(Call::Control { peer, request: request.into_inner().into(), reply }).await?;
        let response = answer.await.map_err(|_| stopping())??;
        C::answer(response)
            .map(Response::new)
            .ok_or_else(|| Status::internal("the answer belongs to another call"))
    }

    async fn raft_message(&self, peer: Peer, message: raftpb::Message) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        self.submit(Call::RaftMessage { peer, message, reply }).await?;
        answer.await.map_err(|_| stopping())?
    }
}

fn path(method: Method) -> tonic::codegen::http::uri::PathAndQuery {
    tonic::codegen::http::uri::PathAndQuery::from_static(method.path)
}

async fn ready(channel: Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    client
        .ready()
        .await
        .map_err(|e| Status::unavailable(format!("the leader does not answer: {e}")))?;
    Ok(client)
}

async fn forward_unary<Q, A>(
    leader: Channel,
    method: Method,
    mut request: Request<Q>,
) -> Result<Response<A>, Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    request.set_timeout(FORWARD_TIMEOUT);
    let mut client = ready(leader).await?;
    client.unary(request, path(method), ProstCodec::<Q, A>::default()).await
}

fn stopping() -> Status {
    Status::unavailable("the manager is stopping or has lost the leadership")
}

pub(crate) fn no_leader() -> Status {
    Status::unavailable(
        "The swarm does not have a leader. It's possible that too few managers are online. \
         Make sure more than half of the managers are online.",
    )
}

#[tonic::async_trait]
impl grpc::ca_server::Ca for Front {
    async fn get_root_ca_certificate(
        &self,
        request: Request<pb::GetRootCaCertificateRequest>,
    ) -> Result<Response<pb::GetRootCaCertificateResponse>, Status> {
        let method = method!("CA/GetRootCACertificate", Nothing, Here);
        self.unary(method, request, |_, _, reply| Call::RootCertificate { reply }).await
    }

    async fn get_unlock_key(
        &self,
        request: Request<pb::GetUnlockKeyRequest>,
    ) -> Result<Response<pb::GetUnlockKeyResponse>, Status> {
        let method = method!("CA/GetUnlockKey", Manager, Leader);
        self.unary(method, request, |peer, _, reply| Call::UnlockKey { peer, reply }).await
    }
}

#[tonic::async_trait]
impl grpc::node_ca_server::NodeCa for Front {
    async fn issue_node_certificate(
        &self,
        request: Request<pb::IssueNodeCertificateRequest>,
    ) -> Result<Response<pb::IssueNodeCertificateResponse>, Status> {
        let method = method!("NodeCA/IssueNodeCertificate", Nothing, Leader);
        let make = |peer, request, reply| Call::IssueCertificate { peer, request, reply };
        let issued = self.unary(method, request, make).await;
        if issued.as_ref().is_err_and(|status| status.code() == Code::InvalidArgument) {
            Counters::count(&self.gate.counters.tokens_refused);
        }
        issued
    }

    async fn node_certificate_status(
        &self,
        request: Request<pb::NodeCertificateStatusRequest>,
    ) -> Result<Response<pb::NodeCertificateStatusResponse>, Status> {
        let method = method!("NodeCA/NodeCertificateStatus", Nothing, Leader);
        self.unary(method, request, |peer, request, reply| Call::CertificateStatus {
            peer,
            request,
            reply,
        })
        .await
    }
}

#[tonic::async_trait]
impl grpc::dispatcher_server::Dispatcher for Front {
    type SessionStream = Messages<pb::SessionMessage>;
    async fn session(
        &self,
        request: Request<pb::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let method = method!("Dispatcher/Session", Member, Leader);
        self.streaming(method, request, |peer, request, stream| Call::Session {
            peer,
            request,
            stream,
        })
        .await
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let method = method!("Dispatcher/Heartbeat", Member, Leader);
        self.unary(method, request, |peer, request, reply| Call::Heartbeat { peer, request, reply })
            .await
    }

    async fn update_task_status(
        &self,
        request: Request<pb::UpdateTaskStatusRequest>,
    ) -> Result<Response<pb::UpdateTaskStatusResponse>, Status> {
        let method = method!("Dispatcher/UpdateTaskStatus", Member, Leader);
        self.unary(method, request, |peer, request, reply| Call::TaskStatus {
            peer,
            request,
            reply,
        })
        .await
    }

    async fn update_volume_status(
        &self,
        request: Request<pb::UpdateVolumeStatusRequest>,
    ) -> Result<Response<pb::UpdateVolumeStatusResponse>, Status> {
        let method = method!("Dispatcher/UpdateVolumeStatus", Member, Leader);
        self.unary(method, request, |peer, request, reply| Call::VolumeStatus {
            peer,
            request,
            reply,
        })
        .await
    }

    type TasksStream = Messages<pb::TasksMessage>;
    async fn tasks(
        &self,
        request: Request<pb::TasksRequest>,
    ) -> Result<Response<Self::TasksStream>, Status> {
        let method = method!("Dispatcher/Tasks", Member, Leader);
        self.streaming(method, request, |peer, request, stream| Call::Tasks {
            peer,
            request,
            stream,
        })
        .await
    }

    type AssignmentsStream = Messages<pb::AssignmentsMessage>;
    async fn assignments(
        &self,
        request: Request<pb::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        let method = method!("Dispatcher/Assignments", Member, Leader);
        self.streaming(method, request, |peer, request, stream| Call::Assignments {
            peer,
            request,
            stream,
        })
        .await
    }
}

#[tonic::async_trait]
impl grpc::raft_server::Raft for Front {
    async fn process_raft_message(
        &self,
        request: Request<pb::ProcessRaftMessageRequest>,
    ) -> Result<Response<pb::ProcessRaftMessageResponse>, Status> {
        let peer = self.admit(&request, Need::Manager)?;
        let message = request
            .into_inner()
            .message
            .ok_or_else(|| Status::invalid_argument("no raft message"))?;
        self.raft_message(peer, message).await?;
        Ok(Response::new(pb::ProcessRaftMessageResponse {}))
    }

    async fn stream_raft_message(
        &self,
        request: Request<tonic::Streaming<pb::StreamRaftMessageRequest>>,
    ) -> Result<Response<pb::StreamRaftMessageResponse>, Status> {
        let peer = self.admit(&request, Need::Manager)?;
        let message = assemble(request.into_inner()).await?;
        self.raft_message(peer, message).await?;
        Ok(Response::new(pb::StreamRaftMessageResponse {}))
    }

    async fn resolve_address(
        &self,
        request: Request<pb::ResolveAddressRequest>,
    ) -> Result<Response<pb::ResolveAddressResponse>, Status> {
        let method = method!("Raft/ResolveAddress", Manager, Here);
        self.unary(method, request, |peer, request, reply| Call::ResolveAddress {
            peer,
            request,
            reply,
        })
        .await
    }
}

/// One raft message; a snapshot comes in chunks that agree in type and index.
async fn assemble(
    mut chunks: impl Streaming<Item = Result<pb::StreamRaftMessageRequest, Status>> + Unpin,
) -> Result<raftpb::Message, Status> {
    let mut whole: Option<raftpb::Message> = None;
    let mut data = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let part = chunk?.message.ok_or_else(|| Status::invalid_argument("no raft message"))?;
        let more = part.snapshot.as_ref().and_then(|snapshot| snapshot.data.clone());
        let more = more.unwrap_or_default();
        if data.len() + more.len() > SNAPSHOT_BYTES_MAX {
            return Err(Status::resource_exhausted("the raft snapshot is too large"));
        }
        data.extend_from_slice(&more);
        let Some(message) = &whole else {
            whole = Some(part);
            continue;
        };
        let snapshot = raftpb::MessageType::MsgSnap as i32;
        if message.r#type() as i32 != snapshot
            || part.r#type() as i32 != snapshot
            || part.index() != message.index()
        {
            return Err(Status::invalid_argument(
                "the chunks of a raft message do not belong together",
            ));
        }
    }
    let mut whole = whole.ok_or_else(|| Status::invalid_argument("no raft message"))?;
    if let Some(snapshot) = whole.snapshot.as_mut().filter(|_| !data.is_empty()) {
        snapshot.data = Some(data.into());
    }
    Ok(whole)
}

#[tonic::async_trait]
impl grpc::raft_membership_server::RaftMembership for Front {
    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        let method = method!("RaftMembership/Join", Manager, Leader);
        self.unary(method, request, |peer, request, reply| Call::MemberJoin {
            peer,
            request,
            reply,
        })
        .await
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveResponse>, Status> {
        let method = method!("RaftMembership/Leave", Manager, Leader);
        self.unary(method, request, |peer, request, reply| Call::MemberLeave {
            peer,
            request,
            reply,
        })
        .await
    }
}

#[tonic::async_trait]
impl grpc::resource_allocator_server::ResourceAllocator for Front {
    async fn attach_network(
        &self,
        request: Request<pb::AttachNetworkRequest>,
    ) -> Result<Response<pb::AttachNetworkResponse>, Status> {
        let method = method!("ResourceAllocator/AttachNetwork", Member, Leader);
        self.unary(method, request, |peer, request, reply| Call::AttachNetwork {
            peer,
            request,
            reply,
        })
        .await
    }

    async fn detach_network(
        &self,
        request: Request<pb::DetachNetworkRequest>,
    ) -> Result<Response<pb::DetachNetworkResponse>, Status> {
        let method = method!("ResourceAllocator/DetachNetwork", Member, Leader);
        self.unary(method, request, |peer, request, reply| Call::DetachNetwork {
            peer,
            request,
            reply,
        })
        .await
    }
}

#[tonic::async_trait]
impl grpc::health_server::Health for Front {
    async fn check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        let method = method!("Health/Check", Manager, Here);
        self.unary(method, request, |_, request, reply| Call::Health { request, reply }).await
    }
}

#[tonic::async_trait]
impl grpc::logs_server::Logs for Front {
    type SubscribeLogsStream = Messages<pb::SubscribeLogsMessage>;
    async fn subscribe_logs(
        &self,
        request: Request<pb::SubscribeLogsRequest>,
    ) -> Result<Response<Self::SubscribeLogsStream>, Status> {
        let method = method!("Logs/SubscribeLogs", Manager, Leader);
        self.streaming(method, request, |peer, request, stream| Call::SubscribeLogs {
            peer,
            request,
            stream,
        })
        .await
    }
}

#[tonic::async_trait]
impl grpc::log_broker_server::LogBroker for Front {
    type ListenSubscriptionsStream = Messages<pb::SubscriptionMessage>;
    async fn listen_subscriptions(
        &self,
        request: Request<pb::ListenSubscriptionsRequest>,
    ) -> Result<Response<Self::ListenSubscriptionsStream>, Status> {
        let method = method!("LogBroker/ListenSubscriptions", Member, Leader);
        self.streaming(method, request, |peer, _, stream| Call::ListenSubscriptions {
            peer,
            stream,
        })
        .await
    }

    async fn publish_logs(
        &self,
        request: Request<tonic::Streaming<pb::PublishLogsMessage>>,
    ) -> Result<Response<pb::PublishLogsResponse>, Status> {
        let method = method!("LogBroker/PublishLogs", Member, Leader);
        let peer = self.admit(&request, method.need)?;
        let leader = self.elsewhere(method, request.metadata())?;
        let (sender, messages) = mpsc::channel(STREAM_WAITING_MAX);
        let mut incoming = request.into_inner();
        let pump = async move {
            while let Some(Ok(message)) = incoming.next().await {
                if sender.send(message).await.is_err() {
                    break;
                }
            }
        };
        if let Some(leader) = leader {
            let request = self.vouched(&peer, ReceiverStream::new(messages));
            let mut client = ready(leader).await?;
            let codec = ProstCodec::<pb::PublishLogsMessage, pb::PublishLogsResponse>::default();
            return tokio::join!(pump, client.client_streaming(request, path(method), codec)).1;
        }
        let (reply, answer) = oneshot::channel();
        self.submit(Call::PublishLogs { peer, messages, reply }).await?;
        let (_, answer) = tokio::join!(pump, answer);
        answer.map_err(|_| stopping())?.map(Response::new)
    }
}

#[tonic::async_trait]
impl grpc::watch_server::Watch for Front {
    type WatchStream = Messages<pb::WatchMessage>;
    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let method = method!("Watch/Watch", Manager, Here);
        self.streaming(method, request, |peer, request, stream| Call::Watch {
            peer,
            request,
            stream,
        })
        .await
    }
}

pub(crate) use control_service::control_call;
