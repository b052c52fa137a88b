//! Ways to other nodes on which the gossip is blocked, as the log and `docker info` tell them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use ::gossip::PathState;
use wire::swarmkit as pb;

use super::agent_task::locked;

/// The blocked ways, by the address at their other end.
#[derive(Default)]
pub struct Paths(Mutex<BTreeMap<SocketAddr, PathState>>);

impl Paths {
    /// The gossip tells each change once, and so does the log.
    pub fn note(&self, to: SocketAddr, state: PathState) {
        let mut blocked = locked(&self.0);
        match state {
            PathState::Open => {
                blocked.remove(&to);
                tracing::info!(address = %to, "the gossip passes by UDP and TCP again");
            }
            PathState::Unknown => {
                blocked.remove(&to);
                tracing::info!(address = %to, "a node that the gossip reached by half does not answer at all any more");
            }
            PathState::Blocked { udp, tcp } => {
                blocked.insert(to, state);
                tracing::warn!(address = %to, udp, tcp, "a node lives and the gossip does not pass to it by these protocols: is the port open between the two hosts?");
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        locked(&self.0).is_empty()
    }

    /// What `docker info` warns of. `here` is this node; `nodes` are those whose names are known.
    pub fn warnings(&self, here: &str, nodes: &[pb::Node]) -> Vec<String> {
        let blocked = locked(&self.0).clone();
        blocked.into_iter().map(|(to, state)| warning(here, to, state, nodes)).collect()
    }
}

fn warning(here: &str, to: SocketAddr, state: PathState, nodes: &[pb::Node]) -> String {
    let there = match name_of(to.ip(), nodes) {
        Some(name) => format!("{name} ({})", to.ip()),
        None => to.ip().to_string(),
    };
    let port = to.port();
    let (what, way) = match state {
        PathState::Blocked { udp: true, tcp: true } => (
            format!(
                "Neither {port}/udp nor {port}/tcp gets through between {here} and {there}, which answers other nodes"
            ),
            format!("open {port}/udp and {port}/tcp between the two"),
        ),
        PathState::Blocked { tcp: true, .. } => (
            format!(
                "{port}/tcp does not get through from {here} to {there}, which answers by {port}/udp"
            ),
            format!("open {port}/tcp between the two"),
        ),
        _ => (
            format!(
                "{port}/udp does not get through between {here} and {there}, which answers by {port}/tcp"
            ),
            format!("open {port}/udp between the two"),
        ),
    };
    format!(
        "WARNING: {what}. Names and addresses of containers reach the other node late or not at all: {way}."
    )
}

fn name_of(address: IpAddr, nodes: &[pb::Node]) -> Option<&str> {
    let at = |node: &&pb::Node| {
        let told = node.status.as_ref().map(|status| status.addr.as_str());
        told.and_then(|told| told.parse::<IpAddr>().ok()) == Some(address)
    };
    let description = nodes.iter().find(at)?.description.as_ref()?;
    Some(&description.hostname).filter(|name| !name.is_empty()).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: &str = "192.0.2.2:7946";

    fn told(states: &[PathState], nodes: &[pb::Node]) -> Vec<String> {
        let paths = Paths::default();
        for state in states {
            paths.note(THERE.parse().unwrap(), *state);
        }
        paths.warnings("vm1 (192.0.2.1)", nodes)
    }

    #[test]
    fn a_warning_names_both_ends_the_port_and_what_to_do() {
        let node = |addr: &str, hostname: &str| pb::Node {
            status: Some(pb::NodeStatus { addr: addr.into(), ..Default::default() }),
            description: Some(pb::NodeDescription {
                hostname: hostname.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let nodes = [node("192.0.2.3", "vm3"), node("192.0.2.2", "vm2")];
        let blocked = |udp, tcp| PathState::Blocked { udp, tcp };
        for (state, nodes, words) in [
            (
                blocked(true, false),
                &nodes[..],
                [
                    "7946/udp does not get through between vm1 (192.0.2.1) and vm2 (192.0.2.2)",
                    "open 7946/udp between",
                ],
            ),
            (
                blocked(false, true),
                &[],
                [
                    "7946/tcp does not get through from vm1 (192.0.2.1) to 192.0.2.2,",
                    "open 7946/tcp between",
                ],
            ),
            (
                blocked(true, true),
                &nodes[..],
                ["Neither 7946/udp nor 7946/tcp", "open 7946/udp and 7946/tcp between"],
            ),
        ] {
            let told = told(&[state], nodes);
            let [warning] = &told[..] else { panic!("{told:?}") };
            assert!(words.iter().all(|words| warning.contains(words)), "{warning}");
        }
    }

    #[test]
    fn a_warning_goes_with_its_cause() {
        let udp = PathState::Blocked { udp: true, tcp: false };
        assert_eq!(told(&[udp, udp], &[]).len(), 1);
        for end in [PathState::Open, PathState::Unknown] {
            assert_eq!(told(&[udp, end], &[]), Vec::<String>::new());
        }
    }
}
