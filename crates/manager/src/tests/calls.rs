//! Calls of users and nodes against one manager.

use prost::Message as _;
use store::Object;
use wire::swarmkit as pb;

use super::rig::{CLUSTER, Rig, manager_of, worker_of};
use crate::{Answer, Call, Caller, Code, Failure};

fn annotations(name: &str) -> Option<pb::Annotations> {
    Some(pb::Annotations { name: name.into(), ..Default::default() })
}

pub fn service(name: &str, replicas: u64) -> pb::ServiceSpec {
    let container = pb::ContainerSpec { image: "httpd:2.4".into(), ..Default::default() };
    pb::ServiceSpec {
        annotations: annotations(name),
        task: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            ..Default::default()
        }),
        mode: Some(pb::service_spec::Mode::Replicated(pb::ReplicatedService { replicas })),
        ..Default::default()
    }
}

fn create(rig: &mut Rig, spec: pb::ServiceSpec) -> Result<pb::Service, Failure> {
    let answer = rig.control(pb::CreateServiceRequest { spec: Some(spec) })?;
    Ok(answer.service.expect("it is answered"))
}

fn refused<T>(result: Result<T, Failure>, code: Code, part: &str) {
    let failure = result.err().expect("it is refused");
    assert!(failure.message.contains(part), "{part:?} is not in {:?}", failure.message);
    assert_eq!(failure.code, code, "{}", failure.message);
}

#[test]
fn a_new_cluster_has_what_swarmkit_puts_into_it() {
    let rig = Rig::new(1);
    let store = rig.manager("node1").store();
    let cluster = store.cluster().unwrap();
    assert_eq!(cluster.id, CLUSTER);
    let root = cluster.root_ca.as_ref().unwrap();
    assert!(root.join_tokens.as_ref().unwrap().worker.starts_with("SWMTKN-1-"));
    assert_eq!(cluster.network_bootstrap_keys.len(), 6);
    assert_eq!((cluster.subnet_size, cluster.vxlanudp_port), (24, 4789));
    let mut names: Vec<_> = store.all::<pb::Network>().map(|n| n.name().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["bridge", "host", "ingress"]);
    let node = store.get::<pb::Node>("node1").unwrap();
    assert_eq!(node.role(), pb::NodeRole::Manager);
    let first = &rig.hosts["node1"].disk.recovered.entries[2];
    assert_eq!((first.index(), first.term()), (3, 2));
    let request = pb::InternalRaftRequest::decode(first.data()).unwrap();
    let versions = request
        .action
        .iter()
        .map(|action| store::object::version_of_target(action.target.as_ref().expect("an object")));
    assert!(versions.eq([2; 5]), "proposed when entry 2 was committed");
}

#[test]
fn the_ingress_network_avoids_what_the_host_reaches_from_the_beginning() {
    let rig = Rig::on_a_host_that_reaches(1, &["10.0.0.0/24"]);
    let ingress = rig.manager("node1").store().ingress_network().unwrap();
    assert_eq!(ingress.ipam.as_ref().unwrap().configs[0].subnet, "10.0.1.0/24");
}

#[test]
fn reading_a_cluster_shows_tokens_and_no_keys() {
    let mut rig = Rig::new(2);
    let answer = rig.control(pb::ListClustersRequest::default()).unwrap();
    let cluster = &answer.clusters[0];
    let root = cluster.root_ca.as_ref().unwrap();
    assert!(root.ca_key.is_empty() && !root.ca_cert.is_empty());
    assert!(!root.join_tokens.as_ref().unwrap().manager.is_empty());
    assert!(cluster.network_bootstrap_keys.is_empty() && cluster.unlock_keys.is_empty());
}

#[test]
fn services_are_created_once_updated_in_sequence_and_removed() {
    let mut rig = Rig::new(3);
    let web = create(&mut rig, service("web", 2)).unwrap();
    assert_eq!(web.id.len(), 25);
    refused(create(&mut rig, service("WEB", 1)), Code::AlreadyExists, "service WEB already exists");
    let version = web.meta.as_ref().unwrap().version;
    let update = |spec| pb::UpdateServiceRequest {
        service_id: web.id.clone(),
        service_version: version,
        spec: Some(spec),
        ..Default::default()
    };
    let updated = rig.control(update(service("web", 5))).unwrap().service.unwrap();
    assert_eq!(updated.previous_spec, web.spec);
    assert_eq!(updated.spec_version, version);
    refused(rig.control(update(service("web", 6))), Code::Unknown, "update out of sequence");
    let renamed = pb::UpdateServiceRequest {
        service_version: updated.meta.unwrap().version,
        ..update(service("other", 5))
    };
    refused(rig.control(renamed), Code::Unimplemented, "renaming services is not supported");
    let remove = pb::RemoveServiceRequest { service_id: web.id.clone() };
    rig.control(remove.clone()).unwrap();
    refused(rig.control(remove), Code::NotFound, &format!("service {} not found", web.id));
}

#[test]
fn a_rollback_brings_the_previous_spec_and_its_version_back() {
    let mut rig = Rig::new(4);
    let first = create(&mut rig, service("web", 1)).unwrap();
    let request = |service: &pb::Service, spec, rollback| pb::UpdateServiceRequest {
        service_id: service.id.clone(),
        service_version: service.meta.as_ref().unwrap().version,
        spec: Some(spec),
        rollback,
    };
    let none = request(&first, service("web", 1), 1);
    refused(rig.control(none), Code::FailedPrecondition, "does not have a previous spec");
    let second = rig.control(request(&first, service("web", 2), 0)).unwrap().service.unwrap();
    let back = rig.control(request(&second, service("web", 2), 1)).unwrap().service.unwrap();
    assert_eq!(back.spec, first.spec);
    assert_eq!(back.spec_version, first.spec_version);
    assert_eq!(back.previous_spec, second.spec);
    let state = back.update_status.unwrap().state();
    assert_eq!(state, pb::update_status::UpdateState::RollbackStarted);
}

#[test]
fn what_cannot_be_a_service_is_refused_with_the_reason() {
    let mut rig = Rig::new(5);
    let cases: Vec<(Box<dyn Fn(&mut pb::ServiceSpec)>, Code, &str)> = vec![
        (
            Box::new(|s| s.annotations = annotations("")),
            Code::InvalidArgument,
            "name must be provided",
        ),
        (
            Box::new(|s| s.annotations = annotations("a.b")),
            Code::InvalidArgument,
            "DNS name component",
        ),
        (Box::new(|s| s.task = None), Code::InvalidArgument, "InvalidArgument"),
        (
            Box::new(|s| s.task.as_mut().unwrap().runtime = None),
            Code::InvalidArgument,
            "missing runtime",
        ),
        (
            Box::new(|s| {
                s.mode = Some(pb::service_spec::Mode::GlobalJob(pb::GlobalJob {}));
                s.update = Some(pb::UpdateConfig::default());
            }),
            Code::InvalidArgument,
            "Jobs may not have an update config",
        ),
        (
            Box::new(|s| {
                let placement =
                    pb::Placement { constraints: vec!["x".into()], ..Default::default() };
                s.task.as_mut().unwrap().placement = Some(placement);
            }),
            Code::InvalidArgument,
            "constraint expected one operator",
        ),
        (
            Box::new(|s| {
                let port =
                    pb::PortConfig { target_port: 80, published_port: 80, ..Default::default() };
                let ports = vec![port.clone(), port];
                s.endpoint = Some(pb::EndpointSpec { ports, ..Default::default() });
            }),
            Code::InvalidArgument,
            "duplicate published ports",
        ),
    ];
    for (number, (change, code, part)) in cases.into_iter().enumerate() {
        let mut spec = service(&format!("s{number}"), 1);
        change(&mut spec);
        refused(create(&mut rig, spec), code, part);
    }
    assert_eq!(rig.manager("node1").store().count::<pb::Service>(), 0);
}

#[test]
fn each_change_of_a_job_begins_another_run() {
    let mut rig = Rig::new(3);
    let job = pb::ReplicatedJob { max_concurrent: 2, total_completions: 3 };
    let mode = Some(pb::service_spec::Mode::ReplicatedJob(job));
    let spec = pb::ServiceSpec { mode, ..service("job", 0) };
    let mut stored = create(&mut rig, spec.clone()).unwrap();
    for run in 0..3 {
        let status = stored.job_status.unwrap();
        assert_eq!(status.job_iteration.unwrap().index, run);
        assert!(status.last_execution.is_some());
        let update = pb::UpdateServiceRequest {
            service_id: stored.id,
            service_version: stored.meta.unwrap().version,
            spec: Some(spec.clone()),
            rollback: i32::from(run == 1),
        };
        stored = rig.control(update).unwrap().service.unwrap();
    }
    let ask = pb::ListServiceStatusesRequest { services: vec![stored.id] };
    let status = &rig.control(ask).unwrap().statuses[0];
    assert_eq!((status.desired_tasks, status.completed_tasks), (2, 0));
}

#[test]
fn a_published_port_belongs_to_one_service() {
    let mut rig = Rig::new(6);
    let with_port = |name: &str, mode| {
        let port = pb::PortConfig {
            target_port: 80,
            published_port: 8080,
            publish_mode: mode,
            ..Default::default()
        };
        let endpoint = pb::EndpointSpec { ports: vec![port], ..Default::default() };
        pb::ServiceSpec { endpoint: Some(endpoint), ..service(name, 1) }
    };
    create(&mut rig, with_port("one", 0)).unwrap();
    refused(
        create(&mut rig, with_port("two", 0)),
        Code::InvalidArgument,
        "port '8080' is already in use by service 'one'",
    );
    refused(create(&mut rig, with_port("three", 1)), Code::InvalidArgument, "already in use");
}

#[test]
fn secrets_are_kept_hidden_and_not_removed_while_used() {
    let mut rig = Rig::new(7);
    let spec = pb::SecretSpec {
        annotations: annotations("pass.word"),
        data: b"hush".to_vec(),
        ..Default::default()
    };
    let create_secret = pb::CreateSecretRequest { spec: Some(spec.clone()) };
    let secret = rig.control(create_secret.clone()).unwrap().secret.unwrap();
    assert!(secret.spec.as_ref().unwrap().data.is_empty());
    refused(rig.control(create_secret), Code::AlreadyExists, "secret pass.word already exists");
    let stored = rig.manager("node1").store().get::<pb::Secret>(&secret.id).unwrap();
    assert_eq!(stored.spec.as_ref().unwrap().data, b"hush");
    let mut using = service("web", 1);
    let file = pb::FileTarget { name: "p".into(), ..Default::default() };
    let reference = |id: &str, name: &str| pb::SecretReference {
        secret_id: id.into(),
        secret_name: name.into(),
        target: Some(pb::secret_reference::Target::File(file.clone())),
    };
    let Some(pb::task_spec::Runtime::Container(container)) =
        &mut using.task.as_mut().unwrap().runtime
    else {
        panic!("a container")
    };
    container.secrets = vec![reference("nothing", "gone")];
    refused(create(&mut rig, using.clone()), Code::InvalidArgument, "secret not found: gone");
    let Some(pb::task_spec::Runtime::Container(container)) =
        &mut using.task.as_mut().unwrap().runtime
    else {
        panic!("a container")
    };
    container.secrets = vec![reference(&secret.id, "pass.word")];
    let web = create(&mut rig, using).unwrap();
    let remove = pb::RemoveSecretRequest { secret_id: secret.id.clone() };
    refused(
        rig.control(remove.clone()),
        Code::InvalidArgument,
        "secret 'pass.word' is in use by the following service: web",
    );
    rig.control(pb::RemoveServiceRequest { service_id: web.id }).unwrap();
    rig.control(remove).unwrap();
}

#[test]
fn networks_in_use_and_the_hosts_own_stay() {
    let mut rig = Rig::new(8);
    let spec = pb::NetworkSpec { annotations: annotations("net"), ..Default::default() };
    let create_network = |spec| pb::CreateNetworkRequest { spec: Some(spec) };
    let network = rig.control(create_network(spec.clone())).unwrap().network.unwrap();
    refused(rig.control(create_network(spec)), Code::AlreadyExists, "network net already exists");
    let mut using = service("web", 1);
    let attachment =
        pb::NetworkAttachmentConfig { target: network.id.clone(), ..Default::default() };
    using.task.as_mut().unwrap().networks = vec![attachment];
    let web = create(&mut rig, using).unwrap();
    let remove =
        |id: &str| pb::RemoveNetworkRequest { network_id: id.into(), ..Default::default() };
    let reason = format!("network {} is in use by service {}", network.id, web.id);
    refused(rig.control(remove(&network.id)), Code::FailedPrecondition, &reason);
    let host =
        rig.manager("node1").store().by_name::<pb::Network>("host").next().unwrap().id.clone();
    refused(rig.control(remove(&host)), Code::FailedPrecondition, "pre-defined");
    let second_ingress =
        pb::NetworkSpec { annotations: annotations("in2"), ingress: true, ..Default::default() };
    refused(rig.control(create_network(second_ingress)), Code::AlreadyExists, "already present");
}

#[test]
fn wrong_networks_are_refused_by_what_is_wrong_and_change_nothing() {
    let mut rig = Rig::new(12);
    let pool = |subnet: &str| pb::IpamConfig { subnet: subnet.into(), ..Default::default() };
    let spec = |name: &str, pools: Vec<pb::IpamConfig>, options: &[(&str, &str)]| {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        pb::NetworkSpec {
            annotations: annotations(name),
            driver_config: Some(pb::Driver { name: "overlay".into(), options }),
            ipam: Some(pb::IpamOptions { driver: None, configs: pools }),
            ..Default::default()
        }
    };
    let create = |rig: &mut Rig, spec| rig.control(pb::CreateNetworkRequest { spec: Some(spec) });
    let vni = allocator::VNI_OPTION;
    let first = spec("first", vec![pool("10.5.0.0/16")], &[(vni, "5000")]);
    create(&mut rig, first).unwrap();
    let count = |rig: &Rig| rig.manager("node1").store().all::<pb::Network>().count();
    let before = count(&rig);
    let aux = |name: &str, address: &str| pb::IpamConfig {
        reserved: [(name.to_owned(), address.to_owned())].into(),
        ..pool("10.6.0.0/24")
    };
    let (bad, denied) = (Code::InvalidArgument, Code::PermissionDenied);
    let via = |gateway: &str| pb::IpamConfig { gateway: gateway.into(), ..pool("10.6.0.0/24") };
    let mtu = "com.docker.network.driver.mtu";
    for (spec, code, part) in [
        (
            spec("a", vec![pool("10.5.7.0/24")], &[]),
            denied,
            "10.5.7.0/24 with 10.5.0.0/16 of network first",
        ),
        (
            spec("a", vec![pool("10.6.0.0/24"), pool("10.6.0.0/16")], &[]),
            denied,
            "of the same request",
        ),
        (spec("a", vec![via("10.7.0.1")], &[]), bad, "does not contain gateway 10.7.0.1"),
        (spec("a", vec![via("10.6.0.255")], &[]), bad, "10.6.0.255 is no host's address"),
        (spec("a", vec![aux("x", "10.7.0.9")], &[]), bad, "auxiliary address x=10.7.0.9"),
        (
            spec("a", vec![pb::IpamConfig { subnet: String::new(), ..via("10.6.0.1") }], &[]),
            bad,
            "needs a subnet",
        ),
        (
            spec("a", vec![pool("fd00:6::/64")], &[]),
            bad,
            "subnet fd00:6::/64 is IPv6, which the network does not have: create it with --ipv6",
        ),
        (spec("a", vec![], &[(vni, "5000")]), denied, "VXLAN id 5000 is in use by network first"),
        (spec("a", vec![], &[(vni, "0")]), bad, "invalid VXLAN id"),
        (spec("a", vec![], &[(vni, "7,7")]), bad, "given twice"),
        (spec("a", vec![], &[(mtu, "12")]), bad, "invalid MTU"),
        (spec("a", vec![], &[(mtu, "much")]), bad, "invalid MTU"),
        (spec("a", vec![], &[("encrypted", "")]), Code::Unimplemented, "encrypted"),
    ] {
        refused(create(&mut rig, spec), code, part);
    }
    assert_eq!(count(&rig), before, "nothing was made");
}

#[test]
fn a_token_admits_a_node_with_the_tokens_role() {
    let mut rig = Rig::new(9);
    let root = rig.cluster().root_ca.unwrap();
    let tokens = root.join_tokens.clone().unwrap();
    refused(rig.enroll("SWMTKN-1-x-y"), Code::InvalidArgument, "A valid join token is necessary");
    let (worker, chain) = rig.enroll(&tokens.worker).unwrap();
    let trusted = ca::Root::trusted(root.ca_cert.clone()).unwrap();
    let verified = trusted.verify(&chain, rig.now).unwrap();
    assert_eq!(
        (verified.node_id.as_str(), verified.organization.as_str()),
        (worker.as_str(), CLUSTER)
    );
    assert_eq!(verified.units, [ca::WORKER_UNIT]);
    let (manager, chain) = rig.enroll(&tokens.manager).unwrap();
    assert!(trusted.verify(&chain, rig.now).unwrap().is_manager());
    let role =
        |rig: &Rig, id: &str| rig.manager("node1").store().get::<pb::Node>(id).unwrap().role();
    assert_eq!(role(&rig, &worker), pb::NodeRole::Worker);
    assert_eq!(role(&rig, &manager), pb::NodeRole::Manager);
}

#[test]
fn a_request_that_cannot_be_signed_fails_and_is_answered_so() {
    let mut rig = Rig::new(10);
    let token = rig.cluster().root_ca.unwrap().join_tokens.unwrap().worker;
    let request = pb::IssueNodeCertificateRequest {
        csr: b"no request".to_vec(),
        token,
        ..Default::default()
    };
    let answer = rig.call("node1", Caller::default(), Call::IssueNodeCertificate(request)).unwrap();
    let Answer::IssueNodeCertificate(issued) = answer else { panic!("another answer") };
    let request = pb::NodeCertificateStatusRequest { node_id: issued.node_id };
    let answer =
        rig.call("node1", Caller::default(), Call::NodeCertificateStatus(request)).unwrap();
    let Answer::NodeCertificateStatus(status) = answer else { panic!("another answer") };
    assert_eq!(status.status.unwrap().state(), pb::issuance_status::State::Failed);
}

#[test]
fn calls_need_the_right_certificate() {
    let mut rig = Rig::new(11);
    let control = || Call::Control(pb::ListNodesRequest::default().into());
    refused(
        rig.call("node1", Caller::default(), control()),
        Code::PermissionDenied,
        "Permission denied",
    );
    refused(rig.call("node1", worker_of("w"), control()), Code::PermissionDenied, "manager");
    let stranger = Caller { organization: "other".into(), ..manager_of("m") };
    refused(rig.call("node1", stranger, control()), Code::PermissionDenied, "another swarm");
    assert!(rig.call("node1", manager_of("node1"), control()).is_ok());
    let roots = Call::GetRootCaCertificate(pb::GetRootCaCertificateRequest {});
    assert!(rig.call("node1", Caller::default(), roots).is_ok());
}

#[test]
fn an_address_that_a_container_cannot_have_is_named() {
    let mut rig = Rig::new(14);
    let driver = pb::Driver { name: "overlay".into(), ..Default::default() };
    let spec = pb::NetworkSpec {
        annotations: annotations("web"),
        driver_config: Some(driver),
        attachable: true,
        ..Default::default()
    };
    let network = rig.control(pb::CreateNetworkRequest { spec: Some(spec) }).unwrap();
    let id = network.network.unwrap().id;
    let mut attach = |address: &str| {
        let addresses = vec![address.to_owned()];
        let config =
            pb::NetworkAttachmentConfig { target: id.clone(), addresses, ..Default::default() };
        let request = pb::AttachNetworkRequest { config: Some(config), container_id: "c".into() };
        rig.call("node1", manager_of("node1"), Call::AttachNetwork(request))
    };
    assert!(attach("10.0.1.77").is_ok());
    refused(attach("10.0.1.77"), Code::FailedPrecondition, "10.0.1.77 is in use already");
    refused(attach("10.7.7.7"), Code::FailedPrecondition, "none of the network's subnets");
    assert!(attach("10.0.1.99").is_ok());
}

#[test]
fn a_removed_node_is_revoked_and_its_tasks_orphaned() {
    let mut rig = Rig::new(12);
    let token = rig.cluster().root_ca.unwrap().join_tokens.unwrap().worker;
    let (node, _) = rig.enroll(&token).unwrap();
    rig.control(pb::RemoveNodeRequest { node_id: node.clone(), force: false }).unwrap();
    let cluster = rig.cluster();
    assert!(cluster.blacklisted_certificates.contains_key(&node));
    let call = Call::AttachNetwork(pb::AttachNetworkRequest::default());
    refused(rig.call("node1", worker_of(&node), call), Code::PermissionDenied, "revoked");
    let own = pb::RemoveNodeRequest { node_id: "node1".into(), force: true };
    refused(rig.control(own), Code::FailedPrecondition, "must be demoted to worker before removal");
}

#[test]
fn tokens_and_unlock_keys_are_rotated_on_request() {
    let mut rig = Rig::new(13);
    let before = rig.cluster();
    let update = |cluster: &pb::Cluster, lock: bool, rotation: pb::KeyRotation| {
        let mut spec = cluster.spec.clone().unwrap();
        spec.encryption_config = Some(pb::EncryptionConfig { auto_lock_managers: lock });
        pb::UpdateClusterRequest {
            cluster_id: cluster.id.clone(),
            cluster_version: cluster.meta.as_ref().unwrap().version,
            spec: Some(spec),
            rotation: Some(rotation),
        }
    };
    let rotation = pb::KeyRotation { worker_join_token: true, ..Default::default() };
    rig.control(update(&before, true, rotation)).unwrap();
    let after = rig.cluster();
    let tokens = |cluster: &pb::Cluster| cluster.root_ca.clone().unwrap().join_tokens.unwrap();
    assert_ne!(tokens(&before).worker, tokens(&after).worker);
    assert_eq!(tokens(&before).manager, tokens(&after).manager);
    let key = |rig: &mut Rig| {
        let call = Call::GetUnlockKey(pb::GetUnlockKeyRequest {});
        match rig.call("node1", manager_of("node1"), call) {
            Ok(Answer::GetUnlockKey(answer)) => answer.unlock_key,
            _ => panic!("another answer"),
        }
    };
    let first = key(&mut rig);
    assert_eq!(first.len(), 32);
    let rotation = pb::KeyRotation { manager_unlock_key: true, ..Default::default() };
    rig.control(update(&after, true, rotation)).unwrap();
    assert_ne!(key(&mut rig), first);
    let last = rig.cluster();
    rig.control(update(&last, false, pb::KeyRotation::default())).unwrap();
    assert!(key(&mut rig).is_empty());
    refused(
        rig.control(update(&before, false, pb::KeyRotation::default())),
        Code::Unknown,
        "update out of sequence",
    );
}

#[test]
fn a_forced_rotation_of_the_authority_ends_when_every_node_has_renewed() {
    let mut rig = Rig::new(14);
    let before = rig.cluster();
    let mut spec = before.spec.clone().unwrap();
    spec.ca_config.get_or_insert_default().force_rotate = 1;
    let request = pb::UpdateClusterRequest {
        cluster_id: before.id.clone(),
        cluster_version: before.meta.as_ref().unwrap().version,
        spec: Some(spec),
        rotation: None,
    };
    rig.control(request).unwrap();
    let rotating = rig.cluster().root_ca.unwrap();
    assert!(rotating.root_rotation.is_some());
    let state = |rig: &Rig| {
        let node = rig.manager("node1").store().get::<pb::Node>("node1").unwrap();
        node.certificate.as_ref().unwrap().status.as_ref().unwrap().state()
    };
    assert_eq!(state(&rig), pb::issuance_status::State::Rotate);
    let csr = ca::Key::generate().unwrap().request().unwrap();
    let renew = pb::IssueNodeCertificateRequest { csr, ..Default::default() };
    rig.call("node1", manager_of("node1"), Call::IssueNodeCertificate(renew)).unwrap();
    let node = rig.manager("node1").store().get::<pb::Node>("node1").unwrap();
    let chain = node.certificate.as_ref().unwrap().certificate.clone();
    let old = ca::Root::trusted(before.root_ca.unwrap().ca_cert).unwrap();
    let new = ca::Root::trusted(rotating.root_rotation.unwrap().ca_cert).unwrap();
    assert!(old.verify(&chain, rig.now).is_ok() && new.verify(&chain, rig.now).is_ok());
}
