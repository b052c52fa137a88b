//! A node with the keys that speaks of rows which are another's.

use super::*;

/// A row of node 3 on every node, as node `by` would have it.
fn forged(by: usize, r#type: i32, value: &str) -> Event {
    let event = pb::TableEvent {
        r#type,
        l_time: 1_000,
        node_name: format!("{by:012x}"),
        network_id: net().to_string(),
        table_name: TABLE.into(),
        key: "a".into(),
        value: value.into(),
        ..Default::default()
    };
    let message = Message::User(envelope(pb::MessageType::TableEvent, &event)).encode();
    let cipher = Cipher::new(&key(2).secret).unwrap();
    Event::Packet { from: address(by), bytes: seal_packet(&cipher, [7; 12], &message) }
}

#[test]
fn a_row_is_its_owners_while_that_is_there() {
    for (kind, value) in [(crate::database::UPDATE, "2"), (crate::database::DELETE, "1")] {
        let mut world = World::joined(8, 5);
        world.put(3, "a", "1");
        world.run(seconds(1.0));
        world.effects.clear();
        (0..5).for_each(|node| world.give(node, forged(4, kind, value)));
        world.run(seconds(2.0));
        let changed = |(_, node, effect): &(Instant, usize, Effect)| {
            *node != 3
                && matches!(effect, Effect::RowChanged { new, .. } if new.as_deref() != Some(b"1"))
        };
        assert!(!world.effects.iter().any(changed), "nobody was led astray");
        assert!(world.counter(0, "row_of_another") > 0);
        world.check_agreed(&expected(&[("a", "1")]), "forged");
    }
}

#[test]
fn a_row_of_a_node_that_failed_or_has_another_name_now_may_be_anothers() {
    let mut world = World::joined(9, 5);
    world.put(3, "a", "1");
    world.run(seconds(1.0));
    world.stop(3);
    world.run(seconds(15.0));
    world.put(4, "a", "2");
    world.run(seconds(2.0));
    world.check_agreed(&expected(&[("a", "2")]), "the owner is gone");
}
