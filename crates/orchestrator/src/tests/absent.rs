//! Images that are none: how often they are asked for, and what an update makes of them.

use super::*;

#[test]
fn an_image_that_is_none_is_asked_for_once_in_a_restart_delay() {
    for mode in ["replicated", "global", "job"] {
        let mut world = World::new(&["a"]);
        world.absent.insert("none".into());
        world.deploy("none", |spec| match mode {
            "global" => spec.mode = Some(pb::service_spec::Mode::Global(Default::default())),
            "job" => {
                let job = pb::ReplicatedJob { max_concurrent: 1, total_completions: 1 };
                spec.mode = Some(pb::service_spec::Mode::ReplicatedJob(job));
            }
            _ => {}
        });
        for tasks in 2..5 {
            world.settle();
            assert_eq!(world.store.count::<pb::Task>(), tasks, "{mode}");
            world.pass(Duration::from_millis(4_900));
            assert_eq!(world.store.count::<pb::Task>(), tasks, "{mode}");
            world.pass(Duration::from_millis(100));
        }
        // Not what comes after it, though.
        world.deploy("v1", |_| {});
        world.settle();
        assert_eq!(world.running().len(), 1, "{mode}");
    }
}

#[test]
fn an_update_to_an_image_that_is_none_is_not_complete_however_failures_are_taken() {
    let mut world = World::new(&["a"]);
    world.absent.insert("none".into());
    world.deploy("v1", |spec| {
        let mut update = pb::UpdateConfig { parallelism: 1, ..Default::default() };
        update.set_failure_action(pb::update_config::FailureAction::Continue);
        spec.update = Some(update);
    });
    world.settle();
    world.deploy("none", |_| {});
    world.pass(SECOND * 60);
    assert_eq!(world.update_state().0, pb::update_status::UpdateState::Updating);
}
