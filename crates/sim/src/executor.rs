//! What a host's containers do: come up, fail now and then, and survive the agent.

use std::time::Duration;

use agent::{Effect, Event, Stage, StageError};
use rand::Rng;

use crate::check;
use crate::host::Container;
use crate::world::{Happening, World};

/// What an executor tells of a container that ended.
pub(crate) fn ended(task: &str, exit_code: i32) -> agent::Container {
    agent::Container { container_id: task.to_owned(), exit_code, ..Default::default() }
}

impl World {
    /// Carries out what an agent asked of its executor.
    pub(crate) fn execute(&mut self, host: usize, effect: Effect) {
        let (task, stage) = match effect {
            Effect::Prepare(work) => {
                let id = work.task.id.clone();
                let container =
                    Container { work: *work, running: false, stopped: false, finished: false };
                self.hosts[host].containers.insert(id.clone(), container);
                (id, Stage::Prepare)
            }
            Effect::Start { task } => (task, Stage::Start),
            Effect::Shutdown { task } => {
                // Also a start that is still under way comes to nothing.
                if let Some(container) = self.hosts[host].containers.get_mut(&task) {
                    container.stopped = true;
                }
                (task, Stage::Shutdown)
            }
            Effect::Remove { task } => (task, Stage::Remove),
            _ => return,
        };
        let delay = Duration::from_millis(self.dice.random_range(1..200));
        let life = self.hosts[host].executor_life;
        self.after(delay, Happening::Staged { host, life, task, stage });
    }

    /// A stage is done: the container changes, and the agent hears of it if it lives.
    pub(crate) fn staged(&mut self, host: usize, task: String, stage: Stage) {
        let fails = self.troubled && self.dice.random_bool(0.02);
        let result = match stage {
            Stage::Prepare | Stage::Start if fails => {
                let message = "it does not want to".to_owned();
                Err(StageError { message, reject: false })
            }
            _ => Ok(agent::Container { container_id: task.clone(), ..Default::default() }),
        };
        match (stage, &result) {
            (Stage::Start, Ok(_)) => self.started(host, &task),
            (Stage::Shutdown, _) => {
                if let Some(container) = self.hosts[host].containers.get_mut(&task) {
                    container.running = false;
                }
            }
            (Stage::Remove, _) => drop(self.hosts[host].containers.remove(&task)),
            _ => {}
        }
        self.tell_agent(host, Event::Staged { task, stage, result });
    }

    fn started(&mut self, host: usize, task: &str) {
        let Some(container) = self.hosts[host].containers.get_mut(task) else { return };
        container.running = !container.stopped;
        self.starts += usize::from(container.running);
        if container.running && container.work.task.job_iteration.is_some() {
            let delay = Duration::from_millis(self.dice.random_range(50..15_000));
            self.after(delay, Happening::Finished { host, task: task.to_owned() });
        }
    }

    /// A job's container has done its work, unless it was stopped before.
    pub(crate) fn finished(&mut self, host: usize, task: String) {
        let Some(container) = self.hosts[host].containers.get_mut(&task) else { return };
        if !std::mem::take(&mut container.running) {
            return;
        }
        container.finished = true;
        let task_of_job = &container.work.task;
        let slot = check::slot_of_job(task_of_job, check::is_of_global_job(task_of_job));
        if let Err(broken) = self.count_completion(slot) {
            self.broken.get_or_insert(broken);
        }
        let container = Some(ended(&task, 0));
        self.tell_agent(host, Event::Exited { task, container, message: String::new() });
    }

    /// One of the containers that run here ends by itself.
    pub(crate) fn fail_a_container(&mut self, host: usize) {
        let running: Vec<String> = self.hosts[host]
            .containers
            .iter()
            .filter(|(_, container)| container.running)
            .map(|(task, _)| task.clone())
            .collect();
        if running.is_empty() {
            return;
        }
        let task = running[self.dice.random_range(0..running.len())].clone();
        if let Some(container) = self.hosts[host].containers.get_mut(&task) {
            container.running = false;
        }
        let container = Some(ended(&task, 1));
        self.tell_agent(host, Event::Exited { task, container, message: String::new() });
    }
}
