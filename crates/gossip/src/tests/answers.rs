//! What nodes answer: a node that starts again, a push/pull, what they tell each other to have applied.

use super::*;

#[test]
fn a_node_that_starts_again_without_anybody_to_join_is_met_within_seconds() {
    let mut world = World::joined(16, 4);
    world.put(3, "a", "1");
    world.run(seconds(1.0));
    world.stop(0);
    world.run(seconds(1.0));
    // The first node joins by its own address alone, as a swarm's only manager does.
    world.start(0, "000000000000");
    world.give(0, Event::JoinNetwork { network: net() });
    world.run(seconds(3.0));
    world.check_agreed(&expected(&[("a", "1")]), "met");
    let synced =
        |effect: &Effect| matches!(effect, Effect::Synced { network } if *network == net());
    assert!(world.effects.iter().any(|(_, node, effect)| *node == 0 && synced(effect)));
}

#[test]
fn a_node_that_starts_again_is_heard_as_soon_as_it_has_met_somebody() {
    for seed in 100..120 {
        let mut world = World::joined(seed, 4);
        for change in 0..20 {
            world.put(3, "a", &change.to_string());
        }
        world.run(seconds(1.0));
        world.stop(3);
        world.run(seconds(1.0));
        world.effects.clear();
        // Its tasks are here before a manager has given it the keys.
        world.start_without_keys(3, "000000000003");
        world.give(3, Event::JoinNetwork { network: net() });
        // What the others know of its rows is newer than its clock.
        world.put(3, "a", "19");
        world.put(3, "b", "1");
        world.run(Duration::from_millis(100));
        world.give(3, Event::Join { addresses: vec![address(0)] });
        world.give(3, Event::SetKeys(vec![key(1), key(2), key(3)]));
        world.run(Duration::from_millis(250));
        world.check_agreed(&expected(&[("a", "19"), ("b", "1")]), &format!("seed {seed}"));
        for node in 0..3 {
            let told = |(_, at, effect): &(Instant, usize, Effect)| {
                *at == node
                    && matches!(effect, Effect::RowChanged { key, old, new, .. }
                        if key == "a" && old == new && new.is_some())
            };
            assert!(world.effects.iter().any(told), "{node} was asked who follows the row");
        }
    }
}

#[test]
fn the_owner_hears_who_follows_its_rows_also_when_packets_are_lost() {
    let mut world = World::joined(17, 3);
    world.loss = 0.2;
    let rows: Vec<u64> = (0..1_000).collect();
    world.effects.clear();
    for node in [1, 2] {
        world.give(node, Event::Applied { to: "000000000000".into(), rows: rows.clone() });
    }
    world.run(seconds(1.0));
    let mut heard: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (_, node, effect) in &world.effects {
        if let Effect::Applied { by, rows } = effect {
            assert_eq!(*node, 0, "told to the owner alone");
            heard.entry(by.clone()).or_default().extend(rows);
        }
    }
    for by in ["000000000001", "000000000002"] {
        // Each packet is said twice; both may be lost.
        assert!(heard[by].len() > 700, "{by}: {}", heard[by].len());
    }
    let stranger = pb::Applied { node_name: "ffffffffffff".into(), rows };
    let message = Message::User(envelope(pb::MessageType::Applied, &stranger)).encode();
    let bytes = seal_packet(&Cipher::new(&[2; 16]).unwrap(), [0; 12], &message);
    world.give(0, Event::Packet { from: address(1), bytes });
    assert_eq!(world.counter(0, "applied_by_stranger"), 1);
}

#[test]
fn a_table_of_which_rows_were_refused_does_not_count_as_whole() {
    let mut gossip = Gossip::new(Config::new("000000000000", address(0), [1; 32]));
    let now = Instant::from_nanos(1_000_000_000);
    let _ = gossip.step(now, Event::SetKeys(vec![key(1)]));
    let _ = gossip.step(now, Event::JoinNetwork { network: net() });
    let sync = pb::BulkSyncMessage {
        node_name: "000000000001".into(),
        networks: vec![net().to_string()],
        ..Default::default()
    };
    let message = StreamMessage::User(envelope(pb::MessageType::BulkSync, &sync));
    let bytes = seal_frame(&Cipher::new(&[1; 16]).unwrap(), [0; 12], &message.encode());
    let event = Event::StreamRequest { stream: StreamId(1), from: address(1), bytes };
    let synced = |effect: &Effect| matches!(effect, Effect::Synced { .. });
    assert!(!gossip.step(now, event).iter().any(synced), "nobody knows that the sender is there");
}

#[test]
fn what_is_told_again_has_its_bound() {
    let mut world = World::joined(18, 2);
    for round in 0..3u64 {
        let rows = (0..10_000).map(|row| round * 10_000 + row).collect();
        world.give(1, Event::Applied { to: "000000000000".into(), rows });
    }
    let again = &world.nodes[1].as_ref().unwrap().database.applied["000000000000"];
    assert_eq!(again.len(), crate::database::APPLIED_AGAIN_MAX);
}

#[test]
fn a_push_pull_is_answered_in_kind() {
    let mut world = World::joined(15, 2);
    let cipher = Cipher::new(&[1; 16]).unwrap();
    let message = StreamMessage::PushPull { join: true, nodes: Vec::new(), user: Vec::new() };
    let bytes = seal_frame(&cipher, [0; 12], &message.encode());
    let gossip = world.nodes[0].as_mut().unwrap();
    let event = Event::StreamRequest { stream: StreamId(9), from: address(7), bytes };
    let effects = gossip.step(world.now, event);
    let Some(Effect::ReplyStream { stream: StreamId(9), bytes }) = effects.first() else {
        panic!("no reply");
    };
    let plain = wire::memberlist::open_frame(&[Cipher::new(&[2; 16]).unwrap()], bytes).unwrap();
    let StreamMessage::PushPull { nodes, user, join: false } =
        StreamMessage::decode(&plain).unwrap()
    else {
        panic!("another kind of reply");
    };
    assert_eq!(nodes.len(), 2);
    let message = <pb::GossipMessage as prost::Message>::decode(user.as_slice()).unwrap();
    assert_eq!(message.r#type, pb::MessageType::PushPull as i32);
}
