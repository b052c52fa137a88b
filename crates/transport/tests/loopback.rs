//! The manager's port over the loopback: who gets in, who is refused, and that both are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ca::{Key, Root};
use model::Instant;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use transport::client::Manager;
use transport::server::Limits;
use transport::{Call, Code, Gate, Identity, Keys, Route, Status};
use wire::swarmkit as pb;

const CLUSTER: &str = "cluster0";
const EXPIRY: Duration = Duration::from_secs(90 * 24 * 3600);

fn now() -> Instant {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Instant::from_nanos(since.as_nanos() as u64)
}

fn dice() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(7)
}

fn root() -> Root {
    Root::create(now(), &mut dice()).unwrap()
}

fn member(root: &Root, node_id: &str, role: pb::NodeRole, cluster: &str, at: Instant) -> Identity {
    let key = Key::generate().unwrap();
    let identity = ca::Identity { node_id: node_id.into(), role, organization: cluster.into() };
    let issued = root.sign(&key.request().unwrap(), &identity, at, EXPIRY, &mut dice()).unwrap();
    Identity::from_pem(&issued.chain, key.pem().as_bytes(), &root.roots).unwrap()
}

/// The same roots on the client's side, whoever signed its certificate.
fn trusting(mut identity: Identity, root: &Root) -> Identity {
    identity.root_pem = root.roots.clone();
    identity
}

struct Port {
    address: String,
    gate: Arc<Gate>,
    root: Root,
    token: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Port {
    /// A manager that answers health checks, roots and log streams, and signs whatever it is asked to.
    async fn open() -> Self {
        Self::within(Limits::default()).await
    }

    async fn within(limits: Limits) -> Self {
        let root = root();
        let keys = Keys::new(member(&root, "m1", pb::NodeRole::Manager, CLUSTER, now())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gate = Arc::new(Gate::new(CLUSTER, address.clone()));
        gate.set_route(Route::Local);
        let (calls, queue) = mpsc::channel(transport::call::CALLS_WAITING_MAX);
        let server =
            tokio::spawn(transport::server::serve(listener, keys, gate.clone(), calls, limits));
        let token = ca::join_token(&root.roots, &mut dice());
        tokio::spawn(answer(queue, root.clone(), token.clone()));
        Self { address, gate, root, token, server }
    }

    fn client(&self, identity: Identity) -> Manager {
        Manager::new(self.address.clone(), Keys::new(identity).unwrap()).unwrap()
    }

    async fn health(&self, identity: Identity) -> Result<(), Code> {
        let request = pb::HealthCheckRequest { service: "Raft".into() };
        let answer = self.client(identity).health().check(request).await;
        answer.map(drop).map_err(|status| status.code())
    }

    async fn heartbeat(&self, identity: Identity) -> Result<(), Code> {
        let answer =
            self.client(identity).dispatcher().heartbeat(pb::HeartbeatRequest::default()).await;
        answer.map(drop).map_err(|status| status.code())
    }

    fn worker(&self) -> Identity {
        member(&self.root, "w1", pb::NodeRole::Worker, CLUSTER, now())
    }
}

async fn answer(mut queue: mpsc::Receiver<Call>, root: Root, token: String) {
    let mut csr = Vec::new();
    while let Some(call) = queue.recv().await {
        match call {
            Call::Health { reply, .. } => {
                let status = pb::health_check_response::ServingStatus::Serving as i32;
                let _ = reply.send(Ok(pb::HealthCheckResponse { status }));
            }
            Call::Heartbeat { reply, .. } => drop(reply.send(Ok(pb::HeartbeatResponse::default()))),
            Call::RootCertificate { reply } => {
                let _ = reply
                    .send(Ok(pb::GetRootCaCertificateResponse { certificate: root.roots.clone() }));
            }
            Call::IssueCertificate { request, reply, .. } if request.token != token => {
                let _ = reply.send(Err(Status::new(Code::InvalidArgument, "no such token")));
            }
            Call::IssueCertificate { request, reply, .. } => {
                csr = request.csr;
                let answer =
                    pb::IssueNodeCertificateResponse { node_id: "w9".into(), node_membership: 1 };
                let _ = reply.send(Ok(answer));
            }
            Call::CertificateStatus { reply, .. } => {
                let identity = ca::Identity {
                    node_id: "w9".into(),
                    role: pb::NodeRole::Worker,
                    organization: CLUSTER.into(),
                };
                let issued = root.sign(&csr, &identity, now(), EXPIRY, &mut dice()).unwrap();
                let status = pb::IssuanceStatus {
                    state: pb::issuance_status::State::Issued as i32,
                    err: String::new(),
                };
                let certificate = pb::Certificate {
                    csr: csr.clone(),
                    certificate: issued.chain,
                    ..Default::default()
                };
                let answer = pb::NodeCertificateStatusResponse {
                    status: Some(status),
                    certificate: Some(certificate),
                };
                let _ = reply.send(Ok(answer));
            }
            // As a manager does it: who does not read is told no more.
            Call::Assignments { stream, .. } => {
                while stream.try_send(Ok(assignments())).is_ok() {
                    SENT.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            // Dropped replies are answered "unavailable".
            _ => {}
        }
    }
}

#[tokio::test]
async fn members_get_in_by_their_role() {
    let port = Port::open().await;
    let manager = member(&port.root, "m2", pb::NodeRole::Manager, CLUSTER, now());
    assert_eq!(port.health(manager.clone()).await, Ok(()));
    assert_eq!(port.heartbeat(manager).await, Ok(()));
    assert_eq!(port.heartbeat(port.worker()).await, Ok(()));
    assert_eq!(port.health(port.worker()).await, Err(Code::PermissionDenied));
    assert_eq!(port.gate.counters.calls_refused.load(Ordering::Relaxed), 1);
    port.gate.set_blacklist(["w1".to_owned()]);
    assert_eq!(port.heartbeat(port.worker()).await, Err(Code::PermissionDenied));
}

#[tokio::test]
async fn foreign_and_expired_certificates_are_refused_and_counted() {
    let port = Port::open().await;
    let other = Root::create(now(), &mut ChaCha8Rng::seed_from_u64(8)).unwrap();
    let wrong_root =
        trusting(member(&other, "m1", pb::NodeRole::Manager, CLUSTER, now()), &port.root);
    assert!(port.health(wrong_root).await.is_err());
    let long_ago = now() - Duration::from_secs(400 * 24 * 3600);
    let expired = member(&port.root, "m1", pb::NodeRole::Manager, CLUSTER, long_ago);
    assert!(port.health(expired).await.is_err());
    assert!(port.gate.counters.handshakes_refused.load(Ordering::Relaxed) >= 2);
    // Signed by the same root, but for another swarm.
    let foreign = member(&port.root, "m1", pb::NodeRole::Manager, "cluster1", now());
    assert_eq!(port.health(foreign).await, Err(Code::PermissionDenied));
    assert_eq!(port.gate.counters.calls_refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_counted_on_a_connection_that_is_open() {
    let port = Port::open().await;
    let client = port.client(port.worker());
    client.dispatcher().heartbeat(pb::HeartbeatRequest::default()).await.unwrap();
    port.gate.set_blacklist(["w1".to_owned()]);
    let refused = client.dispatcher().heartbeat(pb::HeartbeatRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(port.gate.counters.calls_refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_client_does_not_talk_to_another_authority() {
    let port = Port::open().await;
    let other = Root::create(now(), &mut ChaCha8Rng::seed_from_u64(9)).unwrap();
    let identity = trusting(port.worker(), &other);
    assert!(port.heartbeat(identity).await.is_err());
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused() {
    let port = Port::open().await;
    let client = port.client(port.worker());
    let request = pb::HeartbeatRequest { session_id: "x".repeat(transport::MESSAGE_BYTES_MAX + 1) };
    let status = client.dispatcher().heartbeat(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(port.gate.counters.messages_refused.load(Ordering::Relaxed), 1);
    // The connection is as good as before.
    client.dispatcher().heartbeat(pb::HeartbeatRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_node_joins_by_its_token_alone() {
    let port = Port::open().await;
    let addresses = [port.address.clone()];
    let identity =
        transport::join::join(&addresses, &port.token, transport::join::Wishes::default())
            .await
            .unwrap();
    assert_eq!(
        (identity.subject.node_id.as_str(), identity.subject.role),
        ("w9", pb::NodeRole::Worker)
    );
    assert_eq!(port.heartbeat(identity).await, Ok(()));
    // A token of another swarm does not vouch for these roots.
    let other = Root::create(now(), &mut ChaCha8Rng::seed_from_u64(10)).unwrap();
    let foreign = ca::join_token(&other.roots, &mut dice());
    let refused =
        transport::join::join(&addresses, &foreign, transport::join::Wishes::default()).await;
    assert!(matches!(refused, Err(transport::Refused::Digest { .. })));
}

#[tokio::test]
async fn keys_are_replaced_while_serving() {
    let port = Port::open().await;
    let keys = Keys::new(member(&port.root, "w1", pb::NodeRole::Worker, CLUSTER, now())).unwrap();
    let health = |keys: Arc<Keys>, address: String| async move {
        let request = pb::HealthCheckRequest { service: "Raft".into() };
        let client = Manager::new(address, keys).unwrap();
        client.health().check(request).await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(health(keys.clone(), port.address.clone()).await, Err(Code::PermissionDenied));
    keys.replace(member(&port.root, "w1", pb::NodeRole::Manager, CLUSTER, now())).unwrap();
    assert_eq!(health(keys, port.address.clone()).await, Ok(()));
}

/// A TCP connection whose other side may do with it what it likes.
async fn raw(port: &Port) -> tokio::net::TcpStream {
    tokio::net::TcpStream::connect(&port.address).await.unwrap()
}

/// TLS without a certificate, as a node that wants to join, and nothing above it yet.
async fn stranger(port: &Port) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let mut pem = &port.root.roots[..];
    let certificates = rustls_pemfile::certs(&mut pem).map(Result::unwrap);
    roots.add_parsable_certificates(certificates);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from("swarm-ca").unwrap();
    connector.connect(name, raw(port).await).await.unwrap()
}

/// Until the server has closed the connection; what it says meanwhile does not matter.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut bytes = [0; 1024];
    let reading = async { while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(SOON, reading).await.expect("the server keeps the connection");
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

const SOON: Duration = Duration::from_secs(30);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn value(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn what_is_no_tls_is_refused_and_counted() {
    let port = Port::open().await;
    let mut stream = raw(&port).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    closed(&mut stream).await;
    assert_eq!(value(&port.gate.counters.handshakes_refused), 1);
}

#[tokio::test]
async fn a_handshake_that_comes_drop_by_drop_ends_in_its_time() {
    let limits = Limits { handshake_time: Duration::from_millis(200), ..Limits::default() };
    let port = Port::within(limits).await;
    let (mut read, mut write) = raw(&port).await.into_split();
    let dripping = tokio::spawn(async move {
        // The head of a handshake record of 512 bytes, and then one byte at a time.
        let mut sent = write.write_all(&[22, 3, 1, 2, 0]).await;
        while sent.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            sent = write.write_all(&[1]).await;
        }
    });
    closed(&mut read).await;
    dripping.abort();
    assert_eq!(value(&port.gate.counters.handshakes_refused), 1);
}

#[tokio::test]
async fn handshakes_beyond_the_limit_are_refused_while_members_stay() {
    let limits = Limits { handshakes: 2, ..Limits::default() };
    let port = Port::within(limits).await;
    let member = port.client(port.worker());
    member.dispatcher().heartbeat(pb::HeartbeatRequest::default()).await.unwrap();
    // They connect and say nothing.
    let _silent = [raw(&port).await, raw(&port).await];
    let mut third = raw(&port).await;
    closed(&mut third).await;
    assert!(value(&port.gate.counters.handshakes_refused) >= 1);
    member.dispatcher().heartbeat(pb::HeartbeatRequest::default()).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_counted() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let port = Port::within(limits).await;
    let _held = [stranger(&port).await, stranger(&port).await];
    let mut third = raw(&port).await;
    closed(&mut third).await;
    assert_eq!(value(&port.gate.counters.connections_refused), 1);
}

#[tokio::test]
async fn strangers_beyond_the_limit_are_refused_and_members_are_not() {
    let limits = Limits { strangers: 1, ..Limits::default() };
    let port = Port::within(limits).await;
    let _first = stranger(&port).await;
    until("the first is in", || value(&port.gate.counters.connections) == 1).await;
    let mut second = stranger(&port).await;
    closed(&mut second).await;
    assert_eq!(value(&port.gate.counters.connections_refused), 1);
    assert_eq!(port.heartbeat(port.worker()).await, Ok(()));
}

#[tokio::test]
async fn a_stranger_that_does_not_join_has_to_go() {
    let limits = Limits { stranger_time: Duration::from_millis(200), ..Limits::default() };
    let port = Port::within(limits).await;
    let mut lingering = stranger(&port).await;
    lingering.write_all(PREFACE).await.unwrap();
    closed(&mut lingering).await;
    assert_eq!(value(&port.gate.counters.connections_refused), 1);
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_gone() {
    let limits = Limits { keepalive: Duration::from_millis(100), ..Limits::default() };
    let port = Port::within(limits).await;
    let mut silent = stranger(&port).await;
    // The preface, empty settings, and a request whose headers never end.
    silent.write_all(PREFACE).await.unwrap();
    silent.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    silent.write_all(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]).await.unwrap();
    closed(&mut silent).await;
    until("it is counted", || value(&port.gate.counters.connections_broken) == 1).await;
}

#[tokio::test]
async fn malformed_and_oversized_frames_end_the_connection_and_are_counted() {
    let port = Port::open().await;
    let frames: [&[u8]; 4] = [
        b"this is not the preface of HTTP/2, it is something else altogether",
        // A frame of 16 MiB, where 16 KiB are allowed.
        &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        // Settings of five bytes: they come in sixes.
        &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        // Data for a stream that was never opened.
        &[0, 0, 1, 0, 0, 0, 0, 0, 7, 9],
    ];
    for (number, frame) in frames.into_iter().enumerate() {
        let mut stream = stranger(&port).await;
        if number > 0 {
            stream.write_all(PREFACE).await.unwrap();
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        }
        stream.write_all(frame).await.unwrap();
        closed(&mut stream).await;
        let counted = number as u64 + 1;
        until("it is counted", || value(&port.gate.counters.connections_broken) == counted).await;
    }
    assert_eq!(port.heartbeat(port.worker()).await, Ok(()));
}

#[tokio::test]
async fn a_message_that_does_not_decode_is_refused_and_counted() {
    let port = Port::open().await;
    // A session's first field is a message; as a number it is none.
    let client = port.client(port.worker());
    let mut grpc = tonic::client::Grpc::new(client.channel());
    grpc.ready().await.unwrap();
    let path = "/docker.swarmkit.v1.Dispatcher/Heartbeat".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<Garbage, pb::HeartbeatResponse>::default();
    let garbage = Garbage { session_id: 7 };
    let refused = grpc.unary(tonic::Request::new(garbage), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
    assert_eq!(value(&port.gate.counters.messages_refused), 1);
    assert_eq!(port.heartbeat(port.worker()).await, Ok(()));
}

/// A heartbeat whose session is a number where a text should be.
#[derive(Clone, PartialEq, prost::Message)]
struct Garbage {
    #[prost(uint64, tag = "1")]
    session_id: u64,
}

#[tokio::test]
async fn a_token_with_another_secret_is_refused_and_counted() {
    let port = Port::open().await;
    let token = ca::join_token(&port.root.roots, &mut ChaCha8Rng::seed_from_u64(11));
    assert_ne!(token, port.token);
    let wishes = transport::join::Wishes::default();
    let refused = transport::join::join(std::slice::from_ref(&port.address), &token, wishes).await;
    assert!(refused.is_err());
    assert!(value(&port.gate.counters.tokens_refused) >= 1);
}

#[tokio::test]
async fn a_token_that_is_none_is_refused_before_anything_is_sent() {
    let port = Port::open().await;
    let addresses = [port.address.clone()];
    for token in ["", "SWMTKN", "SWMTKN-1-x-y", "SWMTKN-3-0-0-0", "x"] {
        let wishes = transport::join::Wishes::default();
        let refused = transport::join::join(&addresses, token, wishes).await;
        assert!(refused.is_err(), "{token:?}");
    }
    assert_eq!(value(&port.gate.counters.connections), 0);
}

/// Messages that the manager of the test with a reader could send.
static SENT: AtomicUsize = AtomicUsize::new(0);

fn assignments() -> pb::AssignmentsMessage {
    pb::AssignmentsMessage { applies_to: "x".repeat(100_000), ..Default::default() }
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_a_bounded_amount() {
    let port = Port::open().await;
    let client = port.client(port.worker());
    let opened = client.dispatcher().assignments(pb::AssignmentsRequest::default()).await;
    let mut unread = opened.unwrap().into_inner();
    // The one loop of this manager answers again once the reader was given up.
    let given_up = tokio::time::timeout(Duration::from_secs(30), port.heartbeat(port.worker()));
    assert_eq!(given_up.await, Ok(Ok(())), "messages are taken for ever");
    let sent = SENT.load(Ordering::Relaxed);
    // Its queue, and what the connection's own windows take.
    let windows = (8 << 20) / assignments().applies_to.len();
    let most = transport::call::STREAM_WAITING_MAX + windows;
    assert!((transport::call::STREAM_WAITING_MAX..most).contains(&sent), "{sent} messages");
    let mut read = 0;
    while let Ok(Some(_)) = unread.message().await {
        read += 1;
    }
    assert_eq!(read, sent, "what was taken arrives");
}

#[tokio::test]
async fn a_member_that_takes_nothing_costs_a_bounded_amount() {
    use transport::raft::{BYTES_WAITING_MAX, Members};
    // It accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let root = root();
    let keys = Keys::new(member(&root, "m1", pb::NodeRole::Manager, CLUSTER, now())).unwrap();
    let (reports, mut reported) = mpsc::channel(16);
    let mut members = Members::new(keys, reports);
    let length = 1 << 20;
    let entry = wire::raftpb::Entry { data: Some(vec![1; length].into()), ..Default::default() };
    let append = wire::raftpb::Message {
        r#type: Some(wire::raftpb::MessageType::MsgApp as i32),
        entries: vec![entry],
        ..Default::default()
    };
    for _ in 0..100 {
        members.send(2, &address, append.clone());
        assert!(members.waiting(2) <= BYTES_WAITING_MAX + 2 * length);
    }
    assert!(members.waiting(2) >= BYTES_WAITING_MAX, "so much is kept for who is a little late");
    let report = tokio::time::timeout(Duration::from_secs(30), reported.recv()).await.unwrap();
    assert!(matches!(report, Some(transport::raft::Report::Unreachable { member: 2, .. })));
    drop(silent);
    // Refused now, each at once: nothing is left waiting.
    tokio::spawn(async move { while reported.recv().await.is_some() {} });
    until("the queue to empty", || members.waiting(2) == 0).await;
}
