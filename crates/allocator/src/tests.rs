//! Allocation as tables: what is stored, what becomes of it.

use std::collections::BTreeMap;

use rand::SeedableRng;
use store::Transaction;

use super::*;

/// A store, an allocator, and rounds of plan and commit.
struct World {
    store: Store,
    allocator: Allocator,
    touched: Vec<Touched>,
    version: u64,
}

impl World {
    fn new() -> Self {
        let dice = ChaCha8Rng::seed_from_u64(1);
        let mut world = World {
            store: Store::default(),
            allocator: Allocator::new(dice),
            touched: Vec::new(),
            version: 0,
        };
        world.create(network("ingress", true, &[]));
        world
    }

    fn commit(&mut self, changes: Vec<Change>) {
        self.version += 1;
        let mut transaction = Transaction::new(&self.store);
        for change in changes {
            transaction.apply(change).unwrap();
        }
        let actions = transaction.finish(Instant::from_nanos(self.version), self.version);
        self.touched.extend(self.store.apply(actions));
    }

    fn create<T: store::Object>(&mut self, object: T) {
        self.commit(vec![Change::create(object)]);
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            let touched = std::mem::take(&mut self.touched);
            let changes = self.allocator.plan(Instant::from_nanos(1), &self.store, &touched);
            if changes.is_empty() {
                return;
            }
            self.commit(changes);
        }
        panic!("the allocator never comes to rest");
    }

    fn lead_anew(&mut self) {
        self.allocator = Allocator::new(ChaCha8Rng::seed_from_u64(2));
        self.touched.clear();
    }

    fn end(&mut self, id: &str) {
        let mut task = pb::Task::clone(self.store.get(id).unwrap());
        task.set_desired_state(access::TaskState::Shutdown);
        task.status.as_mut().unwrap().set_state(access::TaskState::Shutdown);
        self.commit(vec![Change::update(task)]);
    }

    fn addresses(&self, id: &str) -> Vec<String> {
        let task = self.store.get::<pb::Task>(id).unwrap();
        task.networks.iter().flat_map(|n| n.addresses.clone()).collect()
    }

    fn vips(&self, id: &str) -> Vec<String> {
        let service = self.store.get::<pb::Service>(id).unwrap();
        let vips = service.endpoint.iter().flat_map(|endpoint| &endpoint.virtual_ips);
        vips.map(|vip| vip.addr.clone()).collect()
    }
}

fn named(name: &str) -> Option<pb::Annotations> {
    Some(pb::Annotations { name: name.into(), ..Default::default() })
}

fn network(name: &str, ingress: bool, subnets: &[&str]) -> pb::Network {
    let configs = subnets
        .iter()
        .map(|subnet| pb::IpamConfig { subnet: (*subnet).into(), ..Default::default() })
        .collect();
    let spec = pb::NetworkSpec {
        annotations: named(name),
        ingress,
        ipam: Some(pb::IpamOptions { driver: None, configs }),
        ..Default::default()
    };
    pb::Network { id: name.into(), spec: Some(spec), ..Default::default() }
}

fn port(published: u32) -> pb::PortConfig {
    pb::PortConfig { target_port: 80, published_port: published, ..Default::default() }
}

fn service(name: &str, networks: &[&str], ports: Vec<pb::PortConfig>) -> pb::Service {
    let networks = networks
        .iter()
        .map(|id| pb::NetworkAttachmentConfig { target: (*id).into(), ..Default::default() })
        .collect();
    let spec = pb::ServiceSpec {
        annotations: named(name),
        task: Some(pb::TaskSpec { networks, ..Default::default() }),
        endpoint: Some(pb::EndpointSpec { ports, ..Default::default() }),
        ..Default::default()
    };
    pb::Service { id: name.into(), spec: Some(spec), ..Default::default() }
}

fn task(world: &World, id: &str, service: &str) -> pb::Task {
    let stored = world.store.get::<pb::Service>(service).unwrap();
    let mut task = pb::Task {
        id: id.into(),
        service_id: service.into(),
        spec: stored.spec.as_ref().unwrap().task.clone(),
        ..Default::default()
    };
    task.set_desired_state(access::TaskState::Running);
    task
}

#[test]
fn ingress_and_the_first_user_network_get_dockers_numbers() {
    let mut world = World::new();
    world.create(network("web", false, &[]));
    world.settle();
    for (id, vni, subnet, gateway) in
        [("ingress", "4096", "10.0.0.0/24", "10.0.0.1"), ("web", "4097", "10.0.1.0/24", "10.0.1.1")]
    {
        let network = world.store.get::<pb::Network>(id).unwrap();
        let driver = network.driver_state.as_ref().unwrap();
        assert_eq!((driver.name.as_str(), driver.options[VNI_OPTION].as_str()), ("overlay", vni));
        let ipam = network.ipam.as_ref().unwrap();
        assert_eq!(ipam.driver.as_ref().unwrap().name, "default");
        assert_eq!(ipam.configs[0].subnet, subnet);
        assert_eq!(ipam.configs[0].gateway, gateway);
        assert_eq!(ipam.configs[0].family(), pb::ipam_config::AddressFamily::Ipv4);
    }
}

#[test]
fn a_service_comes_first_then_its_tasks_then_the_node() {
    let mut world = World::new();
    world.create(network("web", false, &[]));
    world.create(service("s", &["web"], vec![port(8080)]));
    world.create(task(&world, "t1", "s"));
    world.create(task(&world, "t2", "s"));
    world.settle();
    assert_eq!(world.vips("s"), ["10.0.0.2/24", "10.0.1.2/24"]);
    assert_eq!(world.addresses("t1"), ["10.0.0.3/24", "10.0.1.3/24"]);
    assert_eq!(world.addresses("t2"), ["10.0.0.4/24", "10.0.1.4/24"]);
    let stored = world.store.get::<pb::Task>("t1").unwrap();
    assert_eq!(access::state(stored), access::TaskState::Pending);
    assert_eq!(stored.endpoint, world.store.get::<pb::Service>("s").unwrap().endpoint);
    let attached = stored.networks[1].network.as_ref().unwrap();
    assert!(attached.driver_state.is_some() && attached.ipam.is_some());

    world.create(pb::Node { id: "n".into(), ..Default::default() });
    let mut assigned = pb::Task::clone(stored_task(&world, "t1"));
    assigned.node_id = "n".into();
    assigned.status.as_mut().unwrap().set_state(access::TaskState::Assigned);
    world.commit(vec![Change::update(assigned)]);
    world.settle();
    let node = world.store.get::<pb::Node>("n").unwrap();
    let held: Vec<_> = node.attachments.iter().flat_map(|a| a.addresses.clone()).collect();
    assert_eq!(held, ["10.0.0.5/24", "10.0.1.5/24"]);

    world.end("t1");
    world.settle();
    let node = world.store.get::<pb::Node>("n").unwrap();
    assert_eq!(node.attachments.len(), 1, "only ingress stays");
}

fn stored_task<'a>(world: &'a World, id: &str) -> &'a pb::Task {
    world.store.get::<pb::Task>(id).unwrap()
}

#[test]
fn an_exhausted_subnet_is_named_on_the_task_and_frees_itself() {
    let mut world = World::new();
    world.create(network("tiny", false, &["10.9.0.0/29"]));
    world.create(service("s", &["tiny"], vec![]));
    for number in 1..=5 {
        world.create(task(&world, &format!("t{number}"), "s"));
    }
    world.settle();
    let stuck = stored_task(&world, "t5");
    assert_eq!(access::state(stuck), access::TaskState::New);
    assert_eq!(
        stuck.status.as_ref().unwrap().err,
        "no address for the task: network tiny: 10.9.0.0/29: 5 of 5 in use by 4 tasks, 1 service"
    );
    world.end("t2");
    world.settle();
    assert_eq!(world.addresses("t5"), ["10.9.0.4/29"]);
    assert_eq!(stored_task(&world, "t5").status.as_ref().unwrap().err, "");
}

#[test]
fn what_is_stuck_is_looked_at_only_when_an_address_comes_back() {
    let mut world = World::new();
    world.create(network("tiny", false, &["10.9.0.0/29"]));
    world.create(service("s", &["tiny"], vec![]));
    world.create(pb::Node { id: "n".into(), ..Default::default() });
    for number in 1..=4 {
        world.create(task(&world, &format!("t{number}"), "s"));
    }
    world.settle();
    let mut assigned = pb::Task::clone(stored_task(&world, "t1"));
    assigned.node_id = "n".into();
    assigned.status.as_mut().unwrap().set_state(access::TaskState::Assigned);
    world.commit(vec![Change::update(assigned)]);
    world.settle();
    let on_tiny = |world: &World| {
        let node = world.store.get::<pb::Node>("n").unwrap();
        node.attachments.iter().any(|held| held.addresses.iter().any(|a| a.starts_with("10.9.")))
    };
    assert!(!on_tiny(&world), "four tasks and a virtual address fill it");
    assert!(world.allocator.dirty.is_empty());
    assert_eq!(world.allocator.stuck.len(), 1);

    let mut running = pb::Task::clone(stored_task(&world, "t1"));
    running.status.as_mut().unwrap().set_state(access::TaskState::Running);
    world.commit(vec![Change::update(running)]);
    let touched = std::mem::take(&mut world.touched);
    assert!(matches!(books::given_back(&touched[0]), GivenBack::In(none) if none.is_empty()));
    assert!(world.allocator.plan(Instant::from_nanos(1), &world.store, &touched).is_empty());
    world.create(service("other", &[], vec![]));
    let touched = std::mem::take(&mut world.touched);
    assert!(matches!(books::given_back(&touched[0]), GivenBack::In(none) if none.is_empty()));
    let plan = world.allocator.plan(Instant::from_nanos(1), &world.store, &touched);
    let concerns = |change: &Change| matches!(change, Change::Update(target) if store::object::id_of(target) == "other");
    assert!(plan.iter().all(concerns), "the new service alone is looked at: {plan:?}");
    assert_eq!(world.allocator.stuck.len(), 1, "a new service gives nothing back");

    world.end("t3");
    world.settle();
    assert!(on_tiny(&world));
    assert!(world.allocator.stuck.is_empty());
}

#[test]
fn a_new_leader_gives_nothing_twice() {
    let mut world = World::new();
    world.create(network("web", false, &[]));
    world.create(service("s", &["web"], vec![port(0)]));
    world.create(task(&world, "t1", "s"));
    world.settle();
    world.lead_anew();
    world.create(service("s2", &["web"], vec![port(0)]));
    world.create(network("more", false, &[]));
    world.create(task(&world, "t2", "s"));
    world.settle();
    assert_eq!(world.vips("s2")[1], "10.0.1.4/24");
    assert_eq!(world.addresses("t2"), ["10.0.0.5/24", "10.0.1.5/24"]);
    let published = |id: &str| {
        let service = world.store.get::<pb::Service>(id).unwrap();
        service.endpoint.as_ref().unwrap().ports[0].published_port
    };
    assert_eq!((published("s"), published("s2")), (30000, 30001));
    let more = world.store.get::<pb::Network>("more").unwrap();
    assert_eq!(more.driver_state.as_ref().unwrap().options[VNI_OPTION], "4098");
    assert_eq!(more.ipam.as_ref().unwrap().configs[0].subnet, "10.0.2.0/24");
}

#[test]
fn a_port_that_is_taken_keeps_the_second_service_waiting_with_the_reason() {
    let mut world = World::new();
    world.create(service("a", &[], vec![port(80)]));
    world.settle();
    world.create(service("b", &[], vec![port(80)]));
    world.create(task(&world, "t", "b"));
    world.settle();
    let err = &stored_task(&world, "t").status.as_ref().unwrap().err;
    assert_eq!(err, "port 80 is already in use by service a");
    world.commit(vec![Change::remove::<pb::Service>("a")]);
    world.settle();
    assert_eq!(access::state(stored_task(&world, "t")), access::TaskState::Pending);
}

/// Whichever of the two comes first in the service.
#[test]
fn a_port_that_a_service_names_is_not_also_given_to_it_as_a_free_one() {
    for ports in [[0, 30_000], [30_000, 0]] {
        let mut world = World::new();
        world.create(service("s", &[], ports.map(port).into()));
        world.settle();
        let stored = world.store.get::<pb::Service>("s").unwrap();
        let given = stored.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        let given: Vec<u32> = given.map(|port| port.published_port).collect();
        assert_eq!(given, ports.map(|port| if port == 0 { 30_001 } else { port }));
    }
}

#[test]
fn a_port_that_a_service_publishes_on_its_hosts_is_not_given_to_the_mesh() {
    let mut world = World::new();
    let mut on_host = port(30_000);
    on_host.set_publish_mode(pb::port_config::PublishMode::Host);
    world.create(service("h", &[], vec![on_host]));
    world.create(service("a", &[], vec![port(0)]));
    world.settle();
    let published = |world: &World, id: &str| {
        let service = world.store.get::<pb::Service>(id).unwrap();
        service.endpoint.as_ref().unwrap().ports[0].published_port
    };
    assert_eq!(published(&world, "a"), 30_001);
    world.commit(vec![Change::remove::<pb::Service>("h")]);
    world.create(service("b", &[], vec![port(0)]));
    world.settle();
    assert_eq!(published(&world, "b"), 30_000);
}

#[test]
fn a_node_for_which_the_ingress_network_is_full_says_so_until_it_has_an_address() {
    let mut world = World::new();
    world.commit(vec![Change::remove::<pb::Network>("ingress")]);
    world.create(network("in", true, &["10.9.0.0/30"]));
    for id in ["n1", "n2"] {
        world.create(pb::Node { id: id.into(), ..Default::default() });
    }
    world.settle();
    let said = |world: &World, id: &str| {
        let status = world.store.get::<pb::Node>(id).unwrap().status.clone();
        status.unwrap_or_default().message
    };
    let full = "published ports are closed on this node: network in has no address left; give it a larger subnet";
    assert_eq!((said(&world, "n1"), said(&world, "n2")), (String::new(), full.to_owned()));
    let mut down = pb::Node::clone(world.store.get::<pb::Node>("n2").unwrap());
    down.status.as_mut().unwrap().message = "heartbeat failure".into();
    world.commit(vec![Change::update(down.clone())]);
    world.settle();
    assert_eq!(said(&world, "n2"), "heartbeat failure");
    down = pb::Node::clone(world.store.get::<pb::Node>("n2").unwrap());
    down.status.as_mut().unwrap().message.clear();
    world.commit(vec![Change::update(down)]);
    world.settle();
    assert_eq!(said(&world, "n2"), full);
    world.create(pb::Node { id: "n3".into(), ..Default::default() });
    world.settle();
    world.commit(vec![Change::remove::<pb::Node>("n1")]);
    let touched = world.touched.clone();
    let plan = world.allocator.plan(Instant::from_nanos(1), &world.store, &touched);
    assert_eq!(plan.len(), 1, "the other one that waits has nothing new to say: {plan:?}");
    world.settle();
    assert_eq!(said(&world, "n2"), "");
    assert_eq!(world.store.get::<pb::Node>("n2").unwrap().attachments.len(), 1);
}

#[test]
fn overlapping_subnets_and_foreign_gateways_are_named() {
    let mut world = World::new();
    world.create(network("web", false, &["10.5.0.0/16"]));
    world.settle();
    world.create(network("clash", false, &["10.5.3.0/24"]));
    world.settle();
    let mut odd = network("odd", false, &["10.6.0.0/24"]);
    let ipam = odd.spec.as_mut().unwrap().ipam.as_mut().unwrap();
    ipam.configs[0].gateway = "10.7.0.1".into();
    world.create(odd);
    for (service_name, net) in [("s1", "clash"), ("s2", "odd")] {
        world.create(service(service_name, &[net], vec![]));
        world.create(task(&world, &format!("of-{service_name}"), service_name));
    }
    world.settle();
    let err = |id: &str| stored_task(&world, id).status.as_ref().unwrap().err.clone();
    assert_eq!(
        err("of-s1"),
        "network clash: subnet 10.5.3.0/24 overlaps 10.5.0.0/16 of network web"
    );
    assert_eq!(err("of-s2"), "network odd: gateway 10.7.0.1 is not in 10.6.0.0/24");
}

#[test]
fn what_the_managers_host_reaches_is_avoided_while_there_is_something_else() {
    let mut world = World::new();
    world.settle();
    let avoided = ["10.0.1.0/24", "10.0.2.128/25", "fd00::/8"];
    world.allocator.avoid(avoided.iter().filter_map(|text| Subnet::parse(text)).collect());
    world.create(network("a", false, &[]));
    world.create(network("asked", false, &["10.0.1.0/24"]));
    world.settle();
    let subnet = |world: &World, name: &str| {
        let network = world.store.get::<pb::Network>(&network(name, false, &[]).id).unwrap();
        network.ipam.as_ref().unwrap().configs[0].subnet.clone()
    };
    assert_eq!(subnet(&world, "a"), "10.0.3.0/24");
    assert_eq!(subnet(&world, "asked"), "10.0.1.0/24", "who asks for it gets it");
    world.allocator.avoid(Subnet::parse("10.0.0.0/8").into_iter().collect());
    world.create(network("b", false, &[]));
    world.settle();
    assert_eq!(subnet(&world, "b"), "10.0.2.0/24", "there is nothing else");
}

#[test]
fn large_several_and_v6_subnets_serve() {
    let mut world = World::new();
    let mut wide = network("wide", false, &["10.32.0.0/29", "10.64.0.0/12", "fd00:5::/64"]);
    let spec = wide.spec.as_mut().unwrap();
    spec.ipv6_enabled = true;
    spec.ipam.as_mut().unwrap().configs[1].reserved =
        BTreeMap::from([("router".to_owned(), "10.64.0.2".to_owned())]);
    world.create(wide);
    world.create(service("s", &["wide"], vec![]));
    for number in 1..=6 {
        world.create(task(&world, &format!("t{number}"), "s"));
    }
    world.settle();
    let wide = world.store.get::<pb::Network>("wide").unwrap();
    assert_eq!(wide.driver_state.as_ref().unwrap().options[VNI_OPTION], "4097,4098");
    assert_eq!(world.addresses("t1"), ["10.32.0.3/29", "fd00:5::3/64"]);
    assert_eq!(world.addresses("t5"), ["10.64.0.3/12", "fd00:5::7/64"]);
}

#[test]
fn a_network_with_ipv6_gives_one_address_of_each_family_ipv4_first() {
    let mut world = World::new();
    let mut six = network("six", false, &[]);
    six.spec.as_mut().unwrap().ipv6_enabled = true;
    world.create(six);
    world.create(service("s", &["six"], vec![]));
    world.create(task(&world, "t1", "s"));
    world.settle();
    let stored = world.store.get::<pb::Network>("six").unwrap();
    let configs = &stored.ipam.as_ref().unwrap().configs;
    let subnet = subnet::Subnet::parse(&configs[1].subnet).unwrap();
    assert!(configs[1].subnet.starts_with("fd") && subnet.prefix() == 64, "{configs:?}");
    for given in [world.vips("s"), world.addresses("t1")] {
        let families: Vec<bool> = given.iter().map(|text| text.contains(':')).collect();
        assert_eq!(families, [false, true], "{given:?}");
    }
    let before = world.vips("s");
    world.lead_anew();
    world.settle();
    assert_eq!(world.vips("s"), before, "another leader keeps them");
    // Who asks for one address gets one of the other family beside it.
    let mut asking = task(&world, "t2", "s");
    asking.spec.as_mut().unwrap().networks[0].addresses = vec!["10.0.1.77".into()];
    world.create(asking);
    world.settle();
    let given = world.addresses("t2");
    assert_eq!((given[0].as_str(), given.len()), ("10.0.1.77/24", 2), "{given:?}");
}
