//! Published ports that something else on the host has.

use super::*;

#[test]
fn a_published_port_of_another_process_is_on_the_task_while_it_is() {
    let mut published = task(TaskState::Running);
    let port = pb::PortConfig { published_port: 8080, target_port: 80, ..Default::default() };
    published.endpoint = Some(pb::Endpoint { ports: vec![port], ..Default::default() });
    let mut world = World::new(vec![]);
    let _ = world.connect();
    let _ = world.assign("", "1", vec![published]);
    let _ = world.step(Event::Reported { ok: true });
    let _ = world.step(Event::PortsTaken([(Proto::Tcp, 8080), (Proto::Udp, 80)].into()));
    let _ = world.staged(Stage::Prepare);
    assert_eq!(world.agent.lives["t1"].status.err, "", "it does not run yet");
    let _ = world.step(Event::Reported { ok: true });
    let started = world.staged(Stage::Start);
    assert!(short(&started).contains(&"report Running".to_owned()));
    let said = &world.agent.lives["t1"].status;
    assert!(said.err.starts_with("port 8080/tcp is in use by another process"), "{}", said.err);
    let _ = world.step(Event::Reported { ok: true });
    let freed = world.step(Event::PortsTaken([].into()));
    assert!(short(&freed).contains(&"report Running".to_owned()), "{:?}", short(&freed));
    assert_eq!(world.agent.lives["t1"].status.err, "");
    assert_eq!(world.agent.lives["t1"].state(), TaskState::Running);
}
