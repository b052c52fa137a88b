//! Agents in the world: their sessions, their calls, and what their effects become.

use agent::Agent;
use manager::{Call, Open, StreamId};
use wire::swarmkit as pb;

use crate::world::{Happening, Stream, Waiting, World};

impl World {
    pub(crate) fn tell_agent(&mut self, host: usize, event: agent::Event) {
        let now = self.hosts[host].local(self.now);
        let Some(agent) = self.hosts[host].agent.as_mut() else { return };
        let effects = agent.step(now, event);
        for effect in effects {
            self.one_for_agent(host, effect);
        }
        self.hosts[host].agent_life += 1;
        let life = self.hosts[host].agent_life;
        if let Some(at) = self.hosts[host].agent.as_ref().and_then(Agent::deadline) {
            let at = self.hosts[host].global(at);
            self.at(at, Happening::AgentDeadline { host, life });
        }
    }

    pub(crate) fn one_for_agent(&mut self, host: usize, effect: agent::Effect) {
        match effect {
            agent::Effect::OpenSession(request) => self.open_session(host, request),
            agent::Effect::CloseSession => self.close_session(host),
            agent::Effect::OpenAssignments(request) => {
                if let Some(manager) = self.hosts[host].session_manager {
                    self.open(host, manager, Open::Assignments(request));
                }
            }
            agent::Effect::Heartbeat(request) => self.call(host, Call::Heartbeat(request)),
            agent::Effect::Report(request) => self.call(host, Call::UpdateTaskStatus(request)),
            agent::Effect::Managers(peers) => {
                let peers = peers.into_iter().filter_map(|peer| peer.peer);
                self.hosts[host].managers = peers.map(|peer| peer.addr).collect();
            }
            agent::Effect::Persist(record) => {
                let id = record.task.id.clone();
                self.hosts[host].records.insert(id, *record);
            }
            agent::Effect::Forget { task } => drop(self.hosts[host].records.remove(&task)),
            effect => self.execute(host, effect),
        }
    }

    /// Through any manager to the one that leads, as that one knows it.
    pub(crate) fn way_to_leader(&self, host: usize) -> Option<usize> {
        let known = &self.hosts[host].managers;
        let address = known.get(self.hosts[host].turn % known.len().max(1))?;
        let first = self.hosts.iter().position(|other| other.address == *address)?;
        let manager = self.hosts[first].manager.as_ref()?;
        let leader = manager.leader()?;
        let leader = self.hosts.iter().position(|other| other.address == leader.address)?;
        let through = self.linked(host, first) && self.linked(first, leader);
        (through && self.hosts[leader].manager.is_some()).then_some(leader)
    }

    pub(crate) fn open_session(&mut self, host: usize, request: pb::SessionRequest) {
        self.close_session(host);
        self.hosts[host].turn += 1;
        match self.way_to_leader(host) {
            Some(leader) => {
                self.hosts[host].session_manager = Some(leader);
                self.open(host, leader, Open::Session(request));
            }
            None => {
                let event = Box::new(agent::Event::SessionLost { reason: "no way".into() });
                let delay = self.latency();
                let session = self.hosts[host].session;
                self.after(delay, Happening::ToAgent { host, session, event });
            }
        }
    }

    pub(crate) fn close_session(&mut self, host: usize) {
        self.hosts[host].session += 1;
        self.hosts[host].session_manager = None;
        for stream in std::mem::take(&mut self.hosts[host].streams) {
            if let Some(open) = self.streams.remove(&stream) {
                self.close_at_manager(open.manager, stream);
            }
        }
    }

    pub(crate) fn open(&mut self, host: usize, manager: usize, open: Open) {
        let stream = StreamId(self.ticket().0);
        let session = self.hosts[host].session;
        let delay = self.latency();
        self.streams.insert(stream, Stream { host, session, manager, last: self.now });
        self.hosts[host].streams.push(stream);
        if self.linked(host, manager) && self.hosts[manager].manager.is_some() {
            let caller = self.caller(host);
            let event = Box::new(manager::Event::Open { stream, caller, open });
            self.after(delay, Happening::ToManager { host: manager, event });
        } else {
            let noticed = self.noticed();
            self.break_stream(stream, noticed);
        }
    }

    pub(crate) fn call(&mut self, host: usize, call: Call) {
        let session = self.hosts[host].session;
        let heartbeat = matches!(call, Call::Heartbeat(_));
        let Some(manager) = self.hosts[host].session_manager else {
            return self.call_fails(&Waiting { host, session, manager: host, heartbeat });
        };
        let caller = Waiting { host, session, manager, heartbeat };
        if !self.linked(host, manager) || self.hosts[manager].manager.is_none() {
            return self.call_fails(&caller);
        }
        let ticket = self.ticket();
        self.calls.insert(ticket, caller);
        let caller = self.caller(host);
        let event = Box::new(manager::Event::Call { ticket, caller, call: Box::new(call) });
        let delay = self.latency();
        self.after(delay, Happening::ToManager { host: manager, event });
    }
}
