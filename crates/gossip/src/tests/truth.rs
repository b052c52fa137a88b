//! What every node should have, from the tasks that run and from nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::NetworkId;
use netplan::addr::Mac;
use netplan::objects::{Namespace, Objects, World as Planned};
use netplan::table::{Action, Match, Table};
use netplan::view::SandboxId;

use super::overlays::{Post, Task, network_id, own, virtual_address};
use super::{address, many::networks_of};

type Backends = BTreeMap<IpAddr, BTreeSet<IpAddr>>;

/// One network as all nodes on it should see it.
#[derive(Default)]
struct Network {
    zone: dns::Zone,
    /// Where an address is: the node.
    places: BTreeMap<IpAddr, usize>,
    /// By virtual address: all that answer, and those that get new connections.
    answering: Backends,
    ready: Backends,
    /// By published port, on the ingress network.
    ports: BTreeMap<u16, BTreeSet<IpAddr>>,
    ports_ready: BTreeMap<u16, BTreeSet<IpAddr>>,
}

pub struct Truth(BTreeMap<usize, Network>);

impl Truth {
    pub fn of<'t>(nodes: usize, tasks: impl Iterator<Item = &'t Task>) -> Self {
        let mut networks: BTreeMap<usize, Network> = BTreeMap::new();
        for node in 0..nodes {
            for id in networks_of(nodes, node) {
                let network = networks.entry(id).or_default();
                network.zone.network = network_id(id);
                network.places.insert(own(id, node), node);
            }
        }
        for task in tasks {
            if let Some(network) = networks.get_mut(&task.network) {
                network.add(task);
            }
            if let Some((network, address)) = networks.get_mut(&0).zip(task.entered) {
                network.places.insert(address, task.node);
                network.ports.entry(task.port()).or_default().insert(address);
                let ready = network.ports_ready.entry(task.port()).or_default();
                ready.extend(task.healthy.then_some(address));
            }
        }
        networks.values_mut().for_each(|network| {
            network.ports_ready.retain(|_, ready| !ready.is_empty());
            network.ready.retain(|_, ready| !ready.is_empty());
            sort(&mut network.zone);
        });
        Self(networks)
    }

    /// What is wrong on a node, if anything is.
    pub fn check(&self, nodes: usize, node: usize, post: &Post) -> Result<(), String> {
        let planned = post.planned();
        for id in networks_of(nodes, node) {
            let truth = &self.0[&id];
            let network = NetworkId::new(network_id(id));
            if id != 0 {
                let mut zone = post.zones.get(&network).cloned().unwrap_or_default();
                sort(&mut zone);
                same(&format!("names on {network}"), &zone.names, &truth.zone.names)?;
                same(&format!("pointers on {network}"), &zone.pointers, &truth.zone.pointers)?;
            }
            let entered = id == 0 || post.tasks().any(|task| task.network == id);
            let objects = planned.get(&Namespace::Overlay(network.clone()));
            match objects {
                Some(objects) => truth.check_ways(&network, node, objects)?,
                None if entered => return Err(format!("no namespace of {network}")),
                None => {}
            }
        }
        for task in post.tasks() {
            let sandbox = objects(&planned, &task.id)?;
            let truth = &self.0[&task.network];
            let answering = &sandbox.flows.virtual_addresses;
            same(&format!("who answers in {}", task.id), answering, &truth.answering)?;
            let ready = translations(sandbox.table.as_deref());
            same(&format!("translations in {}", task.id), &ready, &truth.ready)?;
        }
        let mesh = objects(&planned, &SandboxId::ingress().0)?;
        let ports = mesh.flows.ports.iter().map(|((_, port), who)| (*port, who.clone())).collect();
        same("who answers on ports", &ports, &self.0[&0].ports)?;
        let ready = translated_ports(mesh.table.as_deref());
        same("translations of ports", &ready, &self.0[&0].ports_ready)
    }
}

impl Network {
    fn add(&mut self, task: &Task) {
        let (name, service, address) = (task.name(), task.service_name(), task.address);
        let virtual_address = virtual_address(task.network, task.service);
        self.places.insert(address, task.node);
        self.zone.add(&name, address);
        self.zone.add(&task.container()[..12], address);
        self.zone.point(address, &name);
        self.zone.add(&service, virtual_address);
        self.zone.point(virtual_address, &service);
        self.answering.entry(virtual_address).or_default().insert(address);
        let ready = self.ready.entry(virtual_address).or_default();
        if task.healthy {
            self.zone.add(&format!("tasks.{service}"), address);
            ready.insert(address);
        }
    }

    /// Neighbours and forwarding entries: whatever is elsewhere, and no more.
    fn check_ways(&self, id: &NetworkId, node: usize, objects: &Objects) -> Result<(), String> {
        let elsewhere = || self.places.iter().filter(|(_, at)| **at != node);
        let neighbours = objects.neighbours.iter().map(|((_, addr), mac)| (*addr, *mac)).collect();
        let expected = elsewhere().map(|(addr, _)| (*addr, Mac::for_ip(*addr))).collect();
        same(&format!("neighbours on {id}"), &neighbours, &expected)?;
        let forwarding = objects.fdb.iter().map(|((_, mac), vtep)| (*mac, *vtep)).collect();
        let expected =
            elsewhere().map(|(addr, at)| (Mac::for_ip(*addr), address(*at).ip())).collect();
        same(&format!("forwarding entries on {id}"), &forwarding, &expected)
    }
}

fn objects<'p>(planned: &'p Planned, sandbox: &str) -> Result<&'p Objects, String> {
    let namespace = Namespace::Sandbox(SandboxId(sandbox.to_owned()));
    planned.get(&namespace).ok_or_else(|| format!("no sandbox {sandbox}"))
}

/// The order of several addresses is no matter: they are given at random.
fn sort(zone: &mut dns::Zone) {
    zone.names.values_mut().for_each(|addresses| addresses.sort());
}

/// Where the virtual addresses of a sandbox lead.
fn translations(table: Option<&Table>) -> Backends {
    let chains = table.into_iter().flat_map(|table| &table.chains);
    let one = |chain: &netplan::table::Chain| {
        let address = chain.name.strip_prefix("vip-")?.parse().ok()?;
        let Action::Dnat(to, None) = &chain.rules.first()?.action else { return None };
        Some((address, to.iter().copied().collect()))
    };
    chains.filter_map(one).collect()
}

fn translated_ports(table: Option<&Table>) -> BTreeMap<u16, BTreeSet<IpAddr>> {
    let rules = table.into_iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    let one = |rule: &netplan::table::NftRule| {
        let port = rule.matches.iter().find_map(|it| match it {
            Match::Dport(_, port) => Some(*port),
            _ => None,
        })?;
        let Action::Dnat(to, None) = &rule.action else { return None };
        Some((port, to.iter().copied().collect()))
    };
    rules.filter_map(one).collect()
}

/// Names a few of the differences.
fn same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let lacks = expected.iter().filter(|(key, value)| found.get(key) != Some(value));
    let has = found.iter().filter(|(key, value)| expected.get(key) != Some(value));
    let (lacks, has): (Vec<_>, Vec<_>) = (lacks.collect(), has.collect());
    Err(format!(
        "{what}: lacks {} such as {:?}, has {} such as {:?}",
        lacks.len(),
        lacks.first(),
        has.len(),
        has.first()
    ))
}

#[test]
fn a_difference_is_named() {
    let found = BTreeMap::from([(1, "a"), (2, "b")]);
    let expected = BTreeMap::from([(1, "a"), (2, "c"), (3, "d")]);
    let wrong = same("it", &found, &expected).unwrap_err();
    assert_eq!(wrong, r#"it: lacks 2 such as Some((2, "c")), has 1 such as Some((2, "b"))"#);
    assert_eq!(same("it", &found, &found.clone()), Ok(()));
}
