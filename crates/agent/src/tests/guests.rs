//! Containers that no service made, as their node tells of them.

use super::*;

/// The task that holds a container's address.
fn attachment() -> pb::Task {
    let runtime = pb::NetworkAttachmentSpec { container_id: "c".repeat(64) };
    pb::Task {
        spec: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Attachment(runtime)),
            ..Default::default()
        }),
        networks: vec![attach(&web(), "10.0.1.7/24")],
        service_id: String::new(),
        service_annotations: None,
        endpoint: None,
        slot: 0,
        ..task(TaskState::Running)
    }
}

#[test]
fn a_container_of_the_users_has_its_own_link_is_known_by_its_id_and_may_be_renamed() {
    let mut world = World::new(vec![]);
    let _ = world.connect();
    let _ = world.assign("", "1", vec![attachment()]);
    for name in ["guest", "renamed"] {
        let guest = Guest {
            container_id: "c".repeat(64),
            name: name.into(),
            aliases: vec!["visitor".into()],
            mac: "02:00:00:00:00:77".parse().ok(),
        };
        let told = world.step(Event::Attached { task: "t1".into(), guest });
        let names = &zone(&told, "web").unwrap().names;
        assert!([name, "visitor", "cccccccccccc"].iter().all(|one| names.contains_key(*one)));
        assert_eq!(names.contains_key("guest"), name == "guest");
        let rows = |wanted: &'static str| {
            let rows = world.agent.shown.rows.iter();
            rows.filter(move |((_, table, _), _)| *table == wanted).map(|(_, row)| row.as_slice())
        };
        let peers = rows(OVERLAY_PEER_TABLE).map(|row| PeerRecord::decode(row).unwrap());
        let own = peers.filter(|peer| peer.endpoint_ip == "10.0.1.7/24");
        let macs: Vec<String> = own.map(|peer| peer.endpoint_mac).collect();
        assert_eq!(macs, ["02:00:00:00:00:77"]);
        let mut endpoints = rows(ENDPOINT_TABLE).map(|row| EndpointRecord::decode(row).unwrap());
        let said = endpoints.find(|endpoint| endpoint.endpoint_ip == "10.0.1.7").unwrap();
        assert_eq!((said.name.as_str(), said.service_name.as_str()), (name, ""));
        assert_eq!(said.task_aliases, ["visitor", "cccccccccccc"]);
    }
}
