//! Who may call: the identity behind a request, the role a method needs, and where the leader is.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};
use wire::swarmkit::NodeRole;

use crate::identity::{Subject, role_of, unit_of};

/// The caller of a request, by its own certificate or by the one that a forwarding manager vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    pub subject: Option<Subject>,
    /// Set when another manager forwarded the call.
    pub forwarded_by: Option<String>,
}

impl Peer {
    /// Empty for a caller without certificate.
    pub fn node_id(&self) -> &str {
        self.subject.as_ref().map_or("", |subject| &subject.node_id)
    }
}

/// What a method asks of its caller (protocol: table of services).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    Member,
    Manager,
}

/// Who answers calls that only a leader can answer.
#[derive(Clone, Default)]
pub enum Route {
    Local,
    Leader(Channel),
    #[default]
    Nobody,
}

/// What was let in and what was refused since start.
#[derive(Debug, Default)]
pub struct Counters {
    pub connections: AtomicU64,
    pub handshakes_refused: AtomicU64,
    /// For want of room, or a stranger whose time was over.
    pub connections_refused: AtomicU64,
    /// Ended by an error: malformed frames, no answer to a ping, a broken cable.
    pub connections_broken: AtomicU64,
    /// Messages that do not decode, are too large or name no method.
    pub messages_refused: AtomicU64,
    /// Requests for a certificate with a token that is not this swarm's.
    pub tokens_refused: AtomicU64,
    pub calls: AtomicU64,
    pub calls_refused: AtomicU64,
    pub calls_forwarded: AtomicU64,
}

impl Counters {
    /// Each counter by its name, what it counts, and its value now.
    pub fn all(&self) -> [(&'static str, &'static str, u64); 9] {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("connections", "Connections let in", value(&self.connections)),
            (
                "handshakes_refused",
                "Handshakes refused: wrong, expired or slow",
                value(&self.handshakes_refused),
            ),
            (
                "connections_refused",
                "Connections refused for want of room or time",
                value(&self.connections_refused),
            ),
            (
                "connections_broken",
                "Connections that ended by an error",
                value(&self.connections_broken),
            ),
            (
                "messages_refused",
                "Messages that are malformed, too large or of no known method",
                value(&self.messages_refused),
            ),
            (
                "tokens_refused",
                "Requests for a certificate without a valid join token",
                value(&self.tokens_refused),
            ),
            ("calls", "Calls let in", value(&self.calls)),
            ("calls_refused", "Calls by somebody who may not", value(&self.calls_refused)),
            ("calls_forwarded", "Calls forwarded to the leader", value(&self.calls_forwarded)),
        ]
    }

    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The door of one manager's server; shared with whoever knows the cluster's state.
pub struct Gate {
    cluster_id: String,
    own_address: String,
    blacklist: RwLock<BTreeSet<String>>,
    route: RwLock<Route>,
    pub counters: Arc<Counters>,
}

impl Gate {
    pub fn new(cluster_id: impl Into<String>, own_address: impl Into<String>) -> Self {
        Self::counting(cluster_id, own_address, Arc::default())
    }

    /// Goes on with counters that are older than this gate: a manager may begin anew.
    pub fn counting(
        cluster_id: impl Into<String>,
        own_address: impl Into<String>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            own_address: own_address.into(),
            blacklist: RwLock::default(),
            route: RwLock::default(),
            counters,
        }
    }

    /// Nodes whose certificates are no longer good, though not expired (`Cluster.blacklisted_certificates`).
    pub fn set_blacklist(&self, nodes: impl IntoIterator<Item = String>) {
        *self.blacklist.write().unwrap_or_else(|poison| poison.into_inner()) =
            nodes.into_iter().collect();
    }

    pub fn set_route(&self, route: Route) {
        *self.route.write().unwrap_or_else(|poison| poison.into_inner()) = route;
    }

    pub fn route(&self) -> Route {
        self.route.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    pub fn own_address(&self) -> &str {
        &self.own_address
    }

    /// The caller behind a request, when it may call a method with this need.
    pub(crate) fn admit(
        &self,
        connection: &Connection,
        metadata: &MetadataMap,
        need: Need,
    ) -> Result<Peer, Status> {
        let admitted = self.caller(connection, metadata).and_then(|peer| self.check(peer, need));
        match &admitted {
            Ok(_) => Counters::count(&self.counters.calls),
            Err(_) => Counters::count(&self.counters.calls_refused),
        }
        admitted
    }

    fn caller(&self, connection: &Connection, metadata: &MetadataMap) -> Result<Peer, Status> {
        let direct = Peer {
            address: connection.address,
            subject: connection.subject.clone(),
            forwarded_by: None,
        };
        if text(metadata, "forwarded_cert").as_deref() != Some("true") {
            return Ok(direct);
        }
        // Only a manager of this cluster may speak for somebody else.
        let forwarder = self.check(direct, Need::Manager)?;
        let subject =
            match (text(metadata, "forwarded_cert_cn"), text(metadata, "forwarded_cert_org")) {
                (Some(node_id), Some(cluster_id)) if !node_id.is_empty() => {
                    let role = text(metadata, "forwarded_cert_ou")
                        .and_then(|unit| role_of(&unit))
                        .ok_or_else(|| denied("the forwarded certificate has no known role"))?;
                    Some(Subject { node_id, cluster_id, role })
                }
                _ => None,
            };
        let address = text(metadata, "remote_addr")
            .and_then(|addr| addr.parse().ok())
            .unwrap_or(connection.address);
        Ok(Peer { address, subject, forwarded_by: Some(forwarder.node_id().to_owned()) })
    }

    fn check(&self, peer: Peer, need: Need) -> Result<Peer, Status> {
        if need == Need::Nothing {
            return Ok(peer);
        }
        let Some(subject) = &peer.subject else {
            return Err(denied("unauthorized peer: the call needs a certificate of this swarm"));
        };
        if subject.cluster_id != self.cluster_id {
            return Err(denied(format!(
                "unauthorized peer: certificate of another swarm {}",
                subject.cluster_id
            )));
        }
        if self
            .blacklist
            .read()
            .unwrap_or_else(|poison| poison.into_inner())
            .contains(&subject.node_id)
        {
            return Err(denied(format!("node {} was removed from the swarm", subject.node_id)));
        }
        if need == Need::Manager && subject.role != NodeRole::Manager {
            return Err(denied(format!(
                "unauthorized peer role: {} calls a method for managers",
                unit_of(subject.role)
            )));
        }
        Ok(peer)
    }

    /// The metadata that lets the leader see the original caller.
    pub(crate) fn vouch(&self, peer: &Peer, metadata: &mut MetadataMap) {
        let (node_id, cluster_id, unit) = match &peer.subject {
            Some(subject) => (&*subject.node_id, &*subject.cluster_id, unit_of(subject.role)),
            None => ("", "", ""),
        };
        let address = peer.address.to_string();
        for (key, value) in [
            ("redirect", &*self.own_address),
            ("forwarded_cert", "true"),
            ("forwarded_cert_cn", node_id),
            ("forwarded_cert_org", cluster_id),
            ("forwarded_cert_ou", unit),
            ("remote_addr", &*address),
        ] {
            if let Ok(value) = value.parse() {
                metadata.insert(key, value);
            }
        }
    }
}

/// One TLS connection's facts, in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub address: SocketAddr,
    pub subject: Option<Subject>,
}

fn text(metadata: &MetadataMap, key: &str) -> Option<String> {
    metadata.get(key)?.to_str().ok().map(str::to_owned)
}

fn denied(message: impl Into<String>) -> Status {
    Status::new(Code::PermissionDenied, format!("Permission denied: {}", message.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(role: Option<NodeRole>, cluster: &str) -> Connection {
        Connection {
            address: ([127, 0, 0, 1], 1).into(),
            subject: role.map(|role| Subject {
                node_id: "n1".into(),
                cluster_id: cluster.into(),
                role,
            }),
        }
    }

    fn forwarded(cn: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in [
            ("forwarded_cert", "true"),
            ("forwarded_cert_cn", cn),
            ("forwarded_cert_org", "c1"),
            ("forwarded_cert_ou", "swarm-worker"),
            ("remote_addr", "10.0.0.9:77"),
        ] {
            metadata.insert(key, value.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn a_method_admits_only_the_roles_it_names() {
        let gate = Gate::new("c1", "");
        let none = MetadataMap::new();
        let worker = connection(Some(NodeRole::Worker), "c1");
        let manager = connection(Some(NodeRole::Manager), "c1");
        let stranger = connection(None, "");
        let foreign = connection(Some(NodeRole::Manager), "c2");
        for (who, need, allowed) in [
            (&stranger, Need::Nothing, true),
            (&stranger, Need::Member, false),
            (&worker, Need::Member, true),
            (&worker, Need::Manager, false),
            (&manager, Need::Manager, true),
            (&foreign, Need::Member, false),
            (&foreign, Need::Nothing, true),
        ] {
            assert_eq!(gate.admit(who, &none, need).is_ok(), allowed, "{who:?} {need:?}");
        }
        gate.set_blacklist(["n1".to_owned()]);
        assert!(gate.admit(&worker, &none, Need::Member).is_err());
    }

    #[test]
    fn only_a_manager_may_vouch_for_somebody_else() {
        let gate = Gate::new("c1", "");
        assert!(
            gate.admit(&connection(Some(NodeRole::Worker), "c1"), &forwarded("n2"), Need::Nothing)
                .is_err()
        );
        assert!(gate.admit(&connection(None, ""), &forwarded("n2"), Need::Nothing).is_err());
        let manager = connection(Some(NodeRole::Manager), "c1");
        let peer = gate.admit(&manager, &forwarded("n2"), Need::Member).unwrap();
        assert_eq!((peer.node_id(), peer.forwarded_by.as_deref()), ("n2", Some("n1")));
        assert_eq!(peer.address.to_string(), "10.0.0.9:77");
        // The caller's role counts, not the forwarder's.
        assert!(gate.admit(&manager, &forwarded("n2"), Need::Manager).is_err());
        // Blank values: a caller without certificate.
        assert_eq!(gate.admit(&manager, &forwarded(""), Need::Nothing).unwrap().subject, None);
        assert!(gate.admit(&manager, &forwarded(""), Need::Member).is_err());
    }
}
