//! What goes wrong: cuts, crashes, lost power; and its end.

use std::time::Duration;

use manager::{Manager, StreamId, Ticket};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::world::{Happening, World};

impl World {
    pub(crate) fn fault(&mut self) {
        if !self.troubled {
            return;
        }
        self.report.faults += 1;
        let pause = Duration::from_millis(self.dice.random_range(1_000..8_000));
        self.after(pause, Happening::Fault);
        let host = self.dice.random_range(0..self.hosts.len());
        match self.dice.random_range(0..11) {
            0..=2 => self.cut_some(),
            10 => self.deafen_one(),
            3 | 4 => self.crash_agent(host),
            5 | 6 => {
                let manager = self.dice.random_range(0..self.plan.managers);
                if self.hosts[manager].manager.is_some() {
                    // In the midst of what it does: written or not, sent or not.
                    self.hosts[manager].dies_after = Some(self.dice.random_range(0..20));
                }
            }
            7 => self.lose_power(host),
            _ => self.fail_a_container(host),
        }
    }

    pub(crate) fn cut_some(&mut self) {
        if !self.cut.is_empty() {
            self.cut.clear();
            return;
        }
        let count = self.dice.random_range(1..=self.hosts.len().div_ceil(2));
        for _ in 0..count {
            self.cut.insert(self.dice.random_range(0..self.hosts.len()));
        }
    }

    /// One manager hears nobody, and is heard; or everyone hears again.
    fn deafen_one(&mut self) {
        if !self.deaf.is_empty() {
            return self.deaf.clear();
        }
        self.deaf.insert(self.dice.random_range(0..self.plan.managers));
    }

    /// The daemon's agent dies; its containers do not.
    pub(crate) fn crash_agent(&mut self, host: usize) {
        if self.hosts[host].agent.take().is_some() {
            self.hosts[host].executor_life += 1;
            self.close_session(host);
            let delay = Duration::from_millis(self.dice.random_range(200..20_000));
            self.after(delay, Happening::Restart { host, agent: true, manager: false });
        }
    }

    /// Everything on the host dies; what was written stays.
    pub(crate) fn lose_power(&mut self, host: usize) {
        self.hosts[host].dies_after = None;
        self.hosts[host].containers.values_mut().for_each(|container| container.running = false);
        self.hosts[host].agent = None;
        self.hosts[host].executor_life += 1;
        self.close_session(host);
        if self.hosts[host].manager.take().is_some() {
            self.forget_manager(host);
        }
        let delay = Duration::from_millis(self.dice.random_range(500..25_000));
        self.after(delay, Happening::Restart { host, agent: true, manager: true });
    }

    pub(crate) fn forget_manager(&mut self, host: usize) {
        self.hosts[host].manager_life += 1;
        self.hosts[host].manager_begun += 1;
        let streams: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, open)| open.manager == host)
            .map(|(stream, _)| *stream)
            .collect();
        for stream in streams {
            let noticed = self.noticed();
            self.break_stream(stream, noticed);
        }
        let calls: Vec<Ticket> = self
            .calls
            .iter()
            .filter(|(_, caller)| caller.manager == host)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in calls {
            if let Some(caller) = self.calls.remove(&ticket) {
                self.call_fails(&caller);
            }
        }
    }

    pub(crate) fn restart(&mut self, host: usize, agent: bool, manager: bool) {
        if agent && self.hosts[host].agent.is_none() {
            self.start_agent(host);
        }
        let identity = self.hosts[host].identity.clone();
        if let Some(identity) = identity.filter(|_| manager && self.hosts[host].manager.is_none()) {
            let dice = self.fork();
            // The wall clock is read once in a daemon's life: this one may have been set meanwhile.
            (self.hosts[host].skew, self.hosts[host].drift_ppm) = self.roll_clock();
            let now = self.hosts[host].local(self.now);
            let recovered = self.hosts[host].disk.read();
            let (manager, effects) = Manager::restore(now, dice, identity, recovered);
            self.hosts[host].manager = Some(manager);
            self.do_for_manager(host, effects);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.troubled = false;
        self.cut.clear();
        self.deaf.clear();
        for host in 0..self.hosts.len() {
            self.hosts[host].dies_after = None;
            self.restart(host, true, true);
        }
    }

    pub(crate) fn fork(&mut self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.dice.next_u64())
    }
}
