//! A task's and a node's addresses.

use std::collections::BTreeSet;

use store::{Store, access};
use wire::swarmkit as pb;

use crate::Stuck;
use crate::books::{Books, address_of};
use crate::network;
use crate::service::{self, in_network, resolve};
use crate::subnet::Holder;

const PENDING: &str = "pending task scheduling";

/// What the task still waits for, in the user's words, or nothing to say yet.
pub enum Wait {
    /// Something else is allocated first; it comes by itself.
    Soon,
    Because(String),
}

/// The task with its addresses, ready to be scheduled.
pub fn allocate(
    books: &mut Books,
    store: &Store,
    now: &prost_types::Timestamp,
    task: &pb::Task,
) -> Result<pb::Task, Wait> {
    let mut allocated = task.clone();
    if !task.service_id.is_empty() {
        let service = store.get::<pb::Service>(&task.service_id).ok_or(Wait::Soon)?;
        let wanted = service.spec.as_ref().and_then(|spec| spec.endpoint.as_ref());
        if service.endpoint.as_ref().and_then(|endpoint| endpoint.spec.as_ref()) != wanted {
            return Err(Wait::Soon);
        }
        allocated.endpoint = service.endpoint.clone();
    }
    let spec = task.spec.clone().unwrap_or_default();
    let mut attachments = Vec::new();
    if service::publishes_by_ingress(allocated.endpoint.as_ref().and_then(|e| e.spec.as_ref())) {
        let ingress = store.ingress_network().ok_or(Wait::Soon)?;
        attachments.push(attach(books, task, ingress, &pb::NetworkAttachmentConfig::default())?);
    }
    for wanted in &spec.networks {
        let network = resolve(store, &wanted.target)
            .ok_or_else(|| Wait::Because(format!("network {} not found", wanted.target)))?;
        attachments.push(attach(books, task, network, wanted)?);
    }
    allocated.networks = attachments;
    let status = allocated.status.get_or_insert_default();
    if status.state() < access::TaskState::Pending {
        status.set_state(access::TaskState::Pending);
        status.message = PENDING.to_owned();
        status.err.clear();
        status.timestamp = Some(*now);
    }
    Ok(allocated)
}

fn attach(
    books: &mut Books,
    task: &pb::Task,
    network: &pb::Network,
    wanted: &pb::NetworkAttachmentConfig,
) -> Result<pb::NetworkAttachment, Wait> {
    if !network::is_allocated(network) {
        return Err(Wait::Soon);
    }
    let mut addresses = Vec::new();
    if network::is_overlay(network) {
        let holder = Holder::Task(task.id.clone());
        let asked: Vec<_> = wanted.addresses.iter().filter_map(|text| address_of(text)).collect();
        let exactly: Result<Vec<String>, String> = asked
            .iter()
            .map(|address| books.take_exactly(&network.id, *address, &holder))
            .collect();
        let given = exactly.and_then(|mut given| {
            given.extend(books.take_besides(&network.id, &holder, &asked)?);
            Ok(given)
        });
        addresses = given.map_err(|full| {
            Wait::Because(format!("no address for the task: {}", in_network(network, &full)))
        })?;
        // IPv4 first: it is the one that all nodes know an endpoint by.
        addresses.sort_by_key(|address| address.contains(':'));
    }
    Ok(pb::NetworkAttachment {
        network: Some(network.clone()),
        addresses,
        aliases: wanted.aliases.clone(),
        driver_attachment_opts: wanted.driver_attachment_opts.clone(),
    })
}

/// The overlay networks on which a node needs an address of its own: ingress, and those of the
/// tasks that live there.
pub fn networks_of_node<'a>(store: &'a Store, node: &str) -> Vec<&'a pb::Network> {
    let mut ids = BTreeSet::new();
    let mut networks: Vec<&pb::Network> = Vec::new();
    let living = store.tasks_of_node(node).filter(|task| !access::has_ended(task));
    let on = living
        .flat_map(|task| &task.networks)
        .filter_map(|attachment| attachment.network.as_ref())
        .filter_map(|network| store.get::<pb::Network>(&network.id));
    for network in store.ingress_network().into_iter().chain(on) {
        let useful = network::is_overlay(network) && network::is_allocated(network);
        if useful && ids.insert(&network.id) {
            networks.push(network);
        }
    }
    networks
}

const MESH_CLOSED: &str = "published ports are closed on this node";

/// The node with one attachment for each of its networks; `None` when it has them already.
pub fn allocate_node(
    books: &mut Books,
    store: &Store,
    node: &pb::Node,
) -> (Option<pb::Node>, Result<(), Stuck>) {
    let holder = Holder::Node(node.id.clone());
    let mut attachments = Vec::new();
    let mut why = Ok(());
    for network in networks_of_node(store, &node.id) {
        let kept = node.attachments.iter().find(|attachment| {
            let same = attachment.network.as_ref().is_some_and(|held| held.id == network.id);
            let mut addresses = attachment.addresses.iter().filter_map(|text| address_of(text));
            same && !attachment.addresses.is_empty()
                && addresses.all(|address| books.holds(&network.id, address, &holder))
        });
        if let Some(kept) = kept {
            attachments.push(kept.clone());
            continue;
        }
        match books.take(&network.id, &holder) {
            Ok(addresses) => attachments.push(pb::NetworkAttachment {
                network: Some(network.clone()),
                addresses,
                ..Default::default()
            }),
            Err(full) => {
                let stuck =
                    why.as_mut().err().and_then(|stuck: &mut Stuck| stuck.networks.as_mut());
                match stuck {
                    Some(networks) => drop(networks.insert(network.id.clone())),
                    None => {
                        let networks = Some(BTreeSet::from([network.id.clone()]));
                        why = Err(Stuck { why: in_network(network, &full), networks });
                    }
                }
            }
        }
    }
    let mut allocated = pb::Node { attachments, ..node.clone() };
    let full = why.as_ref().err().and_then(|stuck| stuck.networks.as_ref());
    let ingress = store.ingress_network().filter(|it| full.is_some_and(|f| f.contains(&it.id)));
    tell_of_ingress(&mut allocated, ingress.map(|network| &**network));
    (Some(allocated).filter(|allocated| allocated != node), why)
}

/// A node without an address in the ingress network opens no port of the mesh: that is told on the
/// node, unless something graver is. No counts: a node that waits costs nothing while they change.
fn tell_of_ingress(node: &mut pb::Node, full: Option<&pb::Network>) {
    let said = node.status.as_ref().map_or("", |status| &status.message);
    if !said.is_empty() && !said.starts_with(MESH_CLOSED) {
        return;
    }
    let told = full.map_or_else(String::new, |network| {
        let name = network::name(network);
        format!("{MESH_CLOSED}: network {name} has no address left; give it a larger subnet")
    });
    if said != told {
        node.status.get_or_insert_default().message = told;
    }
}
