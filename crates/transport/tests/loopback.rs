//! The manager's port over the loopback: who gets in, who is refused, and that both are counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ca::{Key, Root};
use model::Instant;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use transport::client::Manager;
use transport::{Call, Code, Gate, Identity, Keys, Route};
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
        let root = root();
        let keys = Keys::new(member(&root, "m1", pb::NodeRole::Manager, CLUSTER, now())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gate = Arc::new(Gate::new(CLUSTER, address.clone()));
        gate.set_route(Route::Local);
        let (calls, queue) = mpsc::channel(transport::call::CALLS_WAITING_MAX);
        let server = tokio::spawn(transport::server::serve(listener, keys, gate.clone(), calls));
        tokio::spawn(answer(queue, root.clone()));
        Self { address, gate, root, server }
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

async fn answer(mut queue: mpsc::Receiver<Call>, root: Root) {
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
    // The connection is as good as before.
    client.dispatcher().heartbeat(pb::HeartbeatRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_node_joins_by_its_token_alone() {
    let port = Port::open().await;
    let token = ca::join_token(&port.root.roots, &mut dice());
    let addresses = [port.address.clone()];
    let identity = transport::join::join(&addresses, &token, transport::join::Wishes::default())
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
