//! The keys of gossip and of encrypted overlays: three of each at any time, replaced every half day.

use std::time::Duration;

use model::Instant;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use store::{Change, Store};
use wire::swarmkit as pb;

/// Docker refuses a set with another number of keys.
const KEYS_EACH: usize = 3;
const KEY_BYTES: usize = 16;
const ROTATION: Duration = Duration::from_secs(12 * 3600);
const SUBSYSTEMS: [&str; 2] = ["networking:gossip", "networking:ipsec"];

/// Rotates from when this manager began to lead.
pub(crate) struct Keys {
    next_rotation: Instant,
}

impl Keys {
    pub fn new(now: Instant) -> Self {
        Self { next_rotation: now + ROTATION }
    }

    pub fn deadline(&self) -> Instant {
        self.next_rotation
    }

    pub fn plan(&mut self, now: Instant, store: &Store, dice: &mut ChaCha8Rng) -> Option<Change> {
        let cluster = store.cluster()?;
        if cluster.network_bootstrap_keys.is_empty() {
            let mut cluster = pb::Cluster::clone(cluster);
            // A random start, so that keys of two clusters do not look like each other's.
            cluster.encryption_key_lamport_clock = u64::from(dice.random::<u16>());
            cluster.network_bootstrap_keys = (0..KEYS_EACH)
                .flat_map(|_| SUBSYSTEMS)
                .map(|subsystem| {
                    new_key(&mut cluster.encryption_key_lamport_clock, subsystem, dice)
                })
                .collect();
            return Some(Change::update(cluster));
        }
        if now < self.next_rotation {
            return None;
        }
        self.next_rotation = now + ROTATION;
        let mut cluster = pb::Cluster::clone(cluster);
        for subsystem in SUBSYSTEMS {
            rotate(&mut cluster, subsystem, dice);
        }
        Some(Change::update(cluster))
    }
}

/// Drops the oldest key and adds a newer one: the key in use is the second oldest, so every node
/// knows the next one long before it is used.
fn rotate(cluster: &mut pb::Cluster, subsystem: &str, dice: &mut ChaCha8Rng) {
    let of_subsystem = |key: &pb::EncryptionKey| key.subsystem == subsystem;
    let mut times: Vec<u64> = cluster
        .network_bootstrap_keys
        .iter()
        .filter(|key| of_subsystem(key))
        .map(|key| key.lamport_time)
        .collect();
    times.sort_unstable();
    let dropped = times.len().saturating_sub(KEYS_EACH - 1);
    let dropped = &times[..dropped];
    cluster
        .network_bootstrap_keys
        .retain(|key| !of_subsystem(key) || !dropped.contains(&key.lamport_time));
    while cluster.network_bootstrap_keys.iter().filter(|key| of_subsystem(key)).count() < KEYS_EACH
    {
        let key = new_key(&mut cluster.encryption_key_lamport_clock, subsystem, dice);
        cluster.network_bootstrap_keys.push(key);
    }
}

fn new_key(clock: &mut u64, subsystem: &str, dice: &mut ChaCha8Rng) -> pb::EncryptionKey {
    *clock += 1;
    let mut key = vec![0; KEY_BYTES];
    dice.fill_bytes(&mut key);
    pb::EncryptionKey {
        subsystem: subsystem.into(),
        algorithm: pb::encryption_key::Algorithm::Aes128Gcm as i32,
        key,
        lamport_time: *clock,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use store::Transaction;

    fn carry_out(store: &mut Store, change: Change) {
        let mut transaction = Transaction::new(store);
        transaction.apply(change).unwrap();
        let actions = transaction.finish(Instant::default(), 1);
        store.apply(actions);
    }

    #[test]
    fn three_keys_each_the_oldest_replaced_after_half_a_day() {
        let mut dice = ChaCha8Rng::seed_from_u64(1);
        let mut store = Store::default();
        let annotations = pb::Annotations { name: "default".into(), ..Default::default() };
        let spec = pb::ClusterSpec { annotations: Some(annotations), ..Default::default() };
        let cluster = pb::Cluster { id: "c".into(), spec: Some(spec), ..Default::default() };
        carry_out(&mut store, Change::create(cluster));
        let now = Instant::from_nanos(1);
        let mut keys = Keys::new(now);
        let first = keys.plan(now, &store, &mut dice).unwrap();
        carry_out(&mut store, first);
        assert!(keys.plan(now, &store, &mut dice).is_none());
        let before = store.cluster().unwrap().network_bootstrap_keys.clone();
        let second = keys.plan(now + ROTATION, &store, &mut dice).unwrap();
        carry_out(&mut store, second);
        let after = store.cluster().unwrap().network_bootstrap_keys.clone();
        for subsystem in SUBSYSTEMS {
            let times = |keys: &[pb::EncryptionKey]| {
                let of = keys.iter().filter(|key| key.subsystem == subsystem);
                let mut times: Vec<u64> = of.map(|key| key.lamport_time).collect();
                times.sort_unstable();
                times
            };
            assert_eq!(times(&before).len(), 3);
            assert_eq!(times(&after).len(), 3);
            assert_eq!(times(&before)[1..], times(&after)[..2]);
        }
        let mut all: Vec<u64> = after.iter().map(|key| key.lamport_time).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6, "a key's time names it");
    }
}
