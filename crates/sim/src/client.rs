//! A user who creates, changes and removes services, and remembers what was acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use manager::{Answer, Call, Reply, Ticket};
use rand::Rng;
use wire::control::Request;
use wire::swarmkit as pb;
use wire::swarmkit::service_spec::Mode;

use crate::world::{Happening, World};

/// What the names of global jobs begin with.
pub(crate) const GLOBAL_JOB: &str = "global";

/// What may be stored of a service: the last acknowledged value, or one asked for since.
#[derive(Default, Clone, Debug)]
pub struct Expected {
    /// `None`: it does not exist.
    pub acknowledged: Option<Option<(u64, String)>>,
    pub possible: Vec<Option<(u64, String)>>,
}

#[derive(Default)]
pub struct Client {
    pub services: BTreeMap<String, Expected>,
    open: BTreeMap<Ticket, (String, Option<(u64, String)>)>,
    pub acknowledged: usize,
}

/// What the user asked for, as it is stored.
pub fn stored(service: &pb::Service) -> (u64, String) {
    let spec = service.spec.as_ref();
    let container = spec.and_then(|spec| spec.task.as_ref()).and_then(store::object::container);
    let image = container.map_or("", |container| container.image.as_str());
    (wanted(service), image.to_owned())
}

/// How many tasks shall run, or complete.
pub fn wanted(service: &pb::Service) -> u64 {
    match service.spec.as_ref().and_then(|spec| spec.mode.as_ref()) {
        Some(Mode::Replicated(mode)) => mode.replicas,
        Some(Mode::ReplicatedJob(job)) => job.total_completions,
        _ => 0,
    }
}

/// The same as a job, two at a time.
fn job(name: &str, total: u64, image: &str, network: &str) -> pb::ServiceSpec {
    let job = pb::ReplicatedJob { max_concurrent: 2, total_completions: total };
    let mode = Some(Mode::ReplicatedJob(job));
    pb::ServiceSpec { mode, update: None, ..spec(name, total, image, network) }
}

/// One task on each node.
fn everywhere(name: &str, _: u64, image: &str, network: &str) -> pb::ServiceSpec {
    let mode = Some(Mode::Global(pb::GlobalService {}));
    pb::ServiceSpec { mode, ..spec(name, 0, image, network) }
}

/// One completion on each node.
fn global_job(name: &str, _: u64, image: &str, network: &str) -> pb::ServiceSpec {
    let mode = Some(Mode::GlobalJob(pb::GlobalJob {}));
    pb::ServiceSpec { mode, update: None, ..spec(name, 0, image, network) }
}

pub fn spec(name: &str, replicas: u64, image: &str, network: &str) -> pb::ServiceSpec {
    let container = pb::ContainerSpec { image: image.into(), ..Default::default() };
    let networks =
        vec![pb::NetworkAttachmentConfig { target: network.into(), ..Default::default() }];
    let restart = pb::RestartPolicy {
        condition: pb::restart_policy::RestartCondition::Any as i32,
        delay: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    pb::ServiceSpec {
        annotations: Some(pb::Annotations { name: name.into(), ..Default::default() }),
        task: Some(pb::TaskSpec {
            runtime: Some(pb::task_spec::Runtime::Container(container)),
            networks,
            restart: Some(restart),
            ..Default::default()
        }),
        mode: Some(Mode::Replicated(pb::ReplicatedService { replicas })),
        update: Some(pb::UpdateConfig {
            parallelism: 2,
            failure_action: pb::update_config::FailureAction::Continue as i32,
            ..Default::default()
        }),
        endpoint: Some(pb::EndpointSpec::default()),
        ..Default::default()
    }
}

impl World {
    /// The user does something now, and again in a while.
    pub(crate) fn user_acts(&mut self) {
        let pause = Duration::from_millis(self.dice.random_range(500..4_000));
        if self.troubled {
            self.after(pause, Happening::User);
        }
        let Some(leader) = self.leader() else { return };
        let number = self.dice.random_range(0..8);
        let (name, spec): (_, fn(&str, u64, &str, &str) -> _) = match number {
            0..4 => (format!("service{number}"), spec),
            4..6 => (format!("job{number}"), job),
            6 => (GLOBAL_JOB.to_owned(), global_job),
            _ => ("everywhere".to_owned(), everywhere),
        };
        if self.client.open.values().any(|(busy, _)| *busy == name) {
            return;
        }
        let Some(manager) = &self.hosts[leader].manager else { return };
        let known = manager.store().by_name::<pb::Service>(&name).next();
        let known = known.map(|service| pb::Service::clone(service));
        let network = self.network.clone();
        // Those on each node have no number.
        let replicas = if number < 6 { self.dice.random_range(0..6) } else { 0 };
        let image = format!("image{}", self.dice.random_range(0..3));
        let wanted = Some((replicas, image.clone()));
        let (request, wanted): (Request, _) = match known {
            None => {
                let spec = Some(spec(&name, replicas, &image, &network));
                (pb::CreateServiceRequest { spec }.into(), wanted)
            }
            Some(service) if self.dice.random_bool(0.15) => {
                (pb::RemoveServiceRequest { service_id: service.id }.into(), None)
            }
            Some(service) => {
                let request = pb::UpdateServiceRequest {
                    service_id: service.id.clone(),
                    service_version: service.meta.and_then(|meta| meta.version),
                    spec: Some(spec(&name, replicas, &image, &network)),
                    ..Default::default()
                };
                (request.into(), wanted)
            }
        };
        let ticket = self.ticket();
        self.client.services.entry(name.clone()).or_default().possible.push(wanted.clone());
        self.client.open.insert(ticket, (name, wanted));
        let caller = self.caller(leader);
        let call = Box::new(Call::Control(request));
        self.tell_manager(leader, manager::Event::Call { ticket, caller, call });
        self.after(Duration::from_secs(20), Happening::UserGivesUp(ticket));
    }

    pub(crate) fn user_gives_up(&mut self, ticket: Ticket) {
        self.client.open.remove(&ticket);
    }

    pub(crate) fn user_hears(&mut self, ticket: Ticket, reply: &Reply) {
        let Some((name, wanted)) = self.client.open.remove(&ticket) else { return };
        let expected = self.client.services.entry(name).or_default();
        if let Ok(Answer::Control(_)) = reply {
            self.client.acknowledged += 1;
            // What was asked before may have come true too, but before this.
            expected.possible.clear();
            expected.acknowledged = Some(wanted);
        }
    }

    /// What the user was promised is there.
    pub(crate) fn check_promises(&self, store: &store::Store) -> Result<(), String> {
        for (name, expected) in &self.client.services {
            let is = store.by_name::<pb::Service>(name).next().map(|service| stored(service));
            let acknowledged = expected.acknowledged.clone().unwrap_or(None);
            if is != acknowledged && !expected.possible.contains(&is) {
                return Err(format!("{name} is {is:?} but was acknowledged as {expected:?}"));
            }
        }
        Ok(())
    }
}
