//! The picture as it is told: what changed of it goes to the kernel, the resolver and the gossip.

use model::{Instant, NetworkId};

use crate::Agent;
use crate::event::Effect;
use crate::network::{self, Picture, Subject};

impl Agent {
    /// Compares the picture with what was shown last and tells the difference.
    pub(crate) fn show(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.is_settling(now) {
            return self.show_rows_only(now, effects);
        }
        self.settles = None;
        let mut new = self.picture();
        self.shut_mesh(now, &mut new);
        self.join(&new, effects);
        if new.state != self.shown.state {
            effects.push(Effect::Overlays(new.state.clone()));
        }
        if new.zones != self.shown.zones {
            effects.push(Effect::Zones(new.zones.clone()));
        }
        self.answer(&new, effects);
        self.announce(now, &new, effects);
        self.leave(&new, effects);
        self.claims_refused += new.refused.difference(&self.shown.refused).count() as u64;
        self.shown = new;
    }

    /// Others must hear of this node's tasks before its own networks are touched again.
    fn show_rows_only(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let new = self.picture();
        self.join(&new, effects);
        self.announce(now, &new, effects);
        self.shown.rows = new.rows;
        self.look_at = self.settles;
    }

    /// What comes in through the mesh goes to tasks of other nodes, and what they answer is lost
    /// there until they know this node on the ingress network: a client would ask again after a
    /// second. Refused it knows at once, as it did while the host was off.
    fn shut_mesh(&mut self, now: Instant, new: &mut Picture) {
        let until = self.mesh_shut.then(|| self.known_at()).flatten().filter(|at| *at > now);
        self.mesh_shut = until.is_some();
        let Some(at) = until else { return };
        self.look_at = Some(self.look_at.map_or(at, |look| look.min(at)));
        let meshes = new.state.overlays.values_mut().filter_map(|overlay| overlay.ingress.as_mut());
        meshes.for_each(|mesh| mesh.ports.clear());
    }

    /// Until when others may not know where this node is on the ingress network.
    fn known_at(&self) -> Option<Instant> {
        let own = |network: &NetworkId| {
            let key = network::endpoint_id(&self.config.node_id, network);
            let row = (network.clone(), gossip::ENDPOINT_TABLE, key);
            let value = self.shown.rows.get(&row)?;
            let said = (network, row.2.as_str(), value.as_slice());
            self.told.until(said, &self.rows, self.news_time(), false)
        };
        self.joined.iter().filter_map(own).max()
    }

    fn picture(&self) -> Picture {
        network::picture(&Subject {
            own_name: &self.config.gossip_name,
            own_id: &self.config.node_id,
            data_path: self.config.data_path,
            node: self.node.as_ref(),
            lives: &self.lives,
            rows: &self.rows,
        })
    }

    fn join(&mut self, new: &Picture, effects: &mut Vec<Effect>) {
        for network in new.state.overlays.keys() {
            if self.joined.insert(network.clone()) {
                effects.push(Effect::JoinNetwork(network.clone()));
            }
        }
    }

    fn leave(&mut self, new: &Picture, effects: &mut Vec<Effect>) {
        let gone = self.joined.iter().filter(|id| !new.state.overlays.contains_key(*id));
        for network in gone.cloned().collect::<Vec<_>>() {
            self.joined.remove(&network);
            self.rows.forget_network(&network);
            effects.push(Effect::LeaveNetwork(network));
        }
    }

    fn announce(&mut self, now: Instant, new: &Picture, effects: &mut Vec<Effect>) {
        for (key, value) in &self.shown.rows {
            if new.rows.get(key) != Some(value) {
                self.told.gone(key, value);
            }
        }
        for (key, value) in &new.rows {
            if self.shown.rows.get(key) != Some(value) {
                self.told.put(now, key, value);
                let ((network, table, key), value) = (key.clone(), value.clone());
                effects.push(Effect::PutRow { network, table, key, value });
            }
        }
        for key in self.shown.rows.keys().filter(|key| !new.rows.contains_key(*key)) {
            let (network, table, key) = key.clone();
            effects.push(Effect::DeleteRow { network, table, key });
        }
    }
}
