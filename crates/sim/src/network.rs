//! The network between hosts: what is cut, what is lost, what comes twice and how long it takes.

use std::time::Duration;

use manager::StreamId;
use rand::Rng;
use wire::raftpb;

use crate::world::{Happening, Waiting, World};

/// A connection that is cut is noticed after so long at most.
const CUT_NOTICED_MS: u64 = 8_000;

impl World {
    pub(crate) fn linked(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&a) == self.cut.contains(&b)
    }

    pub(crate) fn latency(&mut self) -> Duration {
        Duration::from_micros(self.dice.random_range(200..8_000))
    }

    /// When a connection that was cut is found to be dead.
    pub(crate) fn noticed(&mut self) -> Duration {
        Duration::from_millis(self.dice.random_range(100..CUT_NOTICED_MS))
    }

    /// Whether a chance of the weather comes true.
    pub(crate) fn strikes(&mut self, chance: f64) -> bool {
        self.troubled && chance > 0.0 && self.dice.random_bool(chance)
    }

    pub(crate) fn send_raft(
        &mut self,
        from: usize,
        raft_id: u64,
        address: &str,
        message: Box<raftpb::Message>,
    ) {
        let weather = self.plan.weather;
        let Some(to) = self.hosts.iter().position(|host| host.address == address) else { return };
        let snapshot = message.r#type() == raftpb::MessageType::MsgSnap;
        let arrives = self.linked(from, to) && !self.deaf.contains(&to);
        if !arrives || self.strikes(weather.loss) {
            let noticed = self.noticed();
            let event = match snapshot {
                true => manager::Event::RaftSnapshotSent { raft_id, delivered: false },
                false => manager::Event::RaftUnreachable { raft_id },
            };
            return self
                .after(noticed, Happening::ToManager { host: from, event: Box::new(event) });
        }
        let mut delay = self.latency();
        if self.strikes(weather.late) {
            delay = Duration::from_millis(self.dice.random_range(100..2_000));
        }
        if snapshot {
            let delivered = manager::Event::RaftSnapshotSent { raft_id, delivered: true };
            let event = Box::new(delivered);
            self.after(delay + delay, Happening::ToManager { host: from, event });
        }
        if self.strikes(weather.double) {
            let late = delay + Duration::from_millis(self.dice.random_range(1..1_000));
            self.after(late, Happening::Raft { from, to, message: message.clone() });
        }
        self.after(delay, Happening::Raft { from, to, message });
    }

    /// The answer never comes; the caller gives up after a while.
    pub(crate) fn call_fails(&mut self, caller: &Waiting) {
        let event = match caller.heartbeat {
            true => agent::Event::SessionLost { reason: "no answer".into() },
            false => agent::Event::Reported { ok: false },
        };
        let delay = self.noticed();
        let (host, session) = (caller.host, caller.session);
        self.after(delay, Happening::ToAgent { host, session, event: Box::new(event) });
    }

    pub(crate) fn send_on(&mut self, stream: StreamId, event: agent::Event, last: bool) {
        let delay = self.latency();
        let noticed = self.noticed();
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let (host, session, manager) = (open.host, open.session, open.manager);
        let at = (self.now + delay).max(open.last);
        open.last = at;
        if self.linked(host, manager) {
            self.at(at, Happening::ToAgent { host, session, event: Box::new(event) });
            if last {
                self.streams.remove(&stream);
            }
        } else {
            self.break_stream(stream, noticed);
        }
    }

    /// Both sides find out, each in its own time.
    pub(crate) fn break_stream(&mut self, stream: StreamId, noticed: Duration) {
        let Some(open) = self.streams.remove(&stream) else { return };
        let event = Box::new(agent::Event::SessionLost { reason: "cut".into() });
        let (host, session) = (open.host, open.session);
        self.after(noticed, Happening::ToAgent { host, session, event });
        self.close_at_manager(open.manager, stream);
    }

    pub(crate) fn close_at_manager(&mut self, host: usize, stream: StreamId) {
        let delay = self.noticed();
        let event = Box::new(manager::Event::Closed { stream });
        self.after(delay, Happening::ToManager { host, event });
    }
}
