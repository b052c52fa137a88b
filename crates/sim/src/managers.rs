//! Managers in the world: their events, and what their effects become.

use manager::{Answer, Caller, Effect, Manager, Message, Ticket};

use crate::host::Host;
use crate::world::{CLUSTER, Happening, World};

/// A snapshot takes as long as so many messages.
const SNAPSHOT_LATENCIES: u32 = 20;

impl World {
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |host: &Host| host.manager.as_ref().is_some_and(Manager::leads);
        self.hosts.iter().position(leads)
    }

    pub(crate) fn caller(&self, host: usize) -> Caller {
        let host = &self.hosts[host];
        let unit = if host.identity.is_some() { ca::MANAGER_UNIT } else { ca::WORKER_UNIT };
        Caller {
            node_id: host.node_id.clone(),
            organization: CLUSTER.into(),
            units: vec![unit.into()],
            address: host.address.split(':').next().and_then(|ip| ip.parse().ok()),
            ..Default::default()
        }
    }

    pub(crate) fn tell_manager(&mut self, host: usize, event: manager::Event) {
        let now = self.hosts[host].local(self.now);
        let Some(manager) = self.hosts[host].manager.as_mut() else { return };
        let effects = manager.step(now, event);
        self.do_for_manager(host, effects);
    }

    pub(crate) fn do_for_manager(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            if let Some(left) = &mut self.hosts[host].dies_after {
                if *left == 0 {
                    if let Effect::Persist(write) = effect {
                        self.hosts[host].disk.tear(*write);
                    }
                    return self.lose_power(host);
                }
                *left -= 1;
            }
            self.one_for_manager(host, effect);
            if self.hosts[host].manager.is_none() {
                return;
            }
        }
        if let Err(broken) = self.check_leader(host) {
            self.broken.get_or_insert(broken);
        }
        self.hosts[host].manager_life += 1;
        let life = self.hosts[host].manager_life;
        let deadline = self.hosts[host].manager.as_ref().and_then(Manager::deadline);
        if let Some(at) = deadline {
            let at = self.hosts[host].global(at);
            self.at(at, Happening::ManagerDeadline { host, life });
        }
    }

    pub(crate) fn one_for_manager(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::Persist(write) => self.hosts[host].disk.write(*write),
            Effect::Send { raft_id, address, message } => {
                self.send_raft(host, raft_id, &address, message);
            }
            Effect::Probe { ticket, .. } => {
                self.tell_manager(host, manager::Event::Probed { ticket, healthy: true });
            }
            Effect::Reply { ticket, reply } => self.reply(host, ticket, reply),
            Effect::Message { stream, message } => {
                let event = match *message {
                    Message::Session(message) => agent::Event::Session(Box::new(message)),
                    Message::Assignments(message) => agent::Event::Assignments(message),
                    _ => return,
                };
                self.send_on(stream, event, false);
            }
            Effect::Close { stream, .. } => {
                let reason = "closed by the manager".to_owned();
                self.send_on(stream, agent::Event::SessionLost { reason }, true);
            }
            Effect::Snapshot(snapshot) => {
                // Encoded aside: the manager goes on meanwhile, or dies of something.
                let begun = self.hosts[host].manager_begun;
                let snapshot = Box::new(snapshot.encode());
                let delay = self.latency() * SNAPSHOT_LATENCIES;
                self.after(delay, Happening::Snapshot { host, begun, snapshot });
            }
            Effect::Touched(touched) => {
                if let Err(broken) = self.check_applied(&touched) {
                    self.broken.get_or_insert(broken);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn reply(&mut self, manager: usize, ticket: Ticket, reply: manager::Reply) {
        self.user_hears(ticket, &reply);
        let Some(caller) = self.calls.remove(&ticket) else {
            self.replies.insert(ticket, reply);
            return;
        };
        let event = match (&reply, caller.heartbeat) {
            (Ok(Answer::Heartbeat(answer)), _) => {
                let period = answer.period.unwrap_or_default();
                let nanos = period.seconds as u64 * 1_000_000_000 + period.nanos as u64;
                agent::Event::HeartbeatDone { period_nanos: nanos }
            }
            (Err(_), true) => agent::Event::SessionLost { reason: "refused".into() },
            (answer, _) => agent::Event::Reported { ok: answer.is_ok() },
        };
        let delay = self.latency();
        let answer_lost = self.plan.weather.answer_lost;
        if self.linked(manager, caller.host) && !self.strikes(answer_lost) {
            let (host, session) = (caller.host, caller.session);
            self.after(delay, Happening::ToAgent { host, session, event: Box::new(event) });
        } else {
            self.call_fails(&caller);
        }
    }
}
