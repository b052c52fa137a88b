//! Hundreds of nodes with thousands of rows, cut in two under churn.
//!
//! `GOSSIP_NODES=500 GOSSIP_ROWS=5000 cargo test --release -p gossip many` does it at the size that CONTRIBUTING.md names.

use super::*;

/// What one run is like.
struct Plan {
    seed: u64,
    nodes: usize,
    rows: usize,
    /// Seconds.
    cut: f64,
}

fn given(name: &str, otherwise: usize) -> usize {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Rows that come, change and go, and what every node should know of them.
struct Churn {
    rows: BTreeMap<String, String>,
    owners: BTreeMap<String, usize>,
    count: usize,
}

impl Churn {
    fn begin(world: &mut World, rows: usize) -> Self {
        let mut churn = Self { rows: BTreeMap::new(), owners: BTreeMap::new(), count: 0 };
        // Services are deployed one after another.
        for part in 0..20 {
            (part * rows / 20..(part + 1) * rows / 20).for_each(|_| churn.add(world));
            world.run(seconds(1.0));
        }
        churn
    }

    fn add(&mut self, world: &mut World) {
        let node = self.count % world.nodes.len();
        let (key, value) = (format!("{:025x}", self.count), format!("10.0.{node}"));
        self.count += 1;
        world.put(node, &key, &value);
        self.owners.insert(key.clone(), node);
        self.rows.insert(key, value);
    }

    /// A tenth of a percent of the rows goes, as many come, and some change.
    fn second(&mut self, world: &mut World) {
        let some = (self.rows.len() / 1_000).max(2);
        for _ in 0..some {
            let place = world.dice.random_range(0..self.rows.len());
            let key = self.rows.keys().nth(place).unwrap().clone();
            let node = self.owners[&key];
            if world.dice.random_bool(0.5) {
                world.delete(node, &key);
                self.rows.remove(&key);
                self.add(world);
            } else {
                let value = format!("changed {}", world.now.as_nanos());
                world.put(node, &key, &value);
                self.rows.insert(key, value);
            }
        }
    }
}

fn survive(plan: &Plan) {
    let Plan { seed, nodes, rows, cut } = *plan;
    let mut world = World::new(seed);
    world.forgetful = true;
    for node in 0..nodes {
        world.start(node, &format!("{node:012x}"));
        world.give(node, Event::JoinNetwork { network: net() });
        // Hosts are not switched on in one millisecond.
        world.run(Duration::from_millis(10));
    }
    world.run(seconds(10.0));
    let mut churn = Churn::begin(&mut world, rows);
    world.run(seconds(20.0));
    world.check_agreed(&churn.rows, &format!("seed {seed}, before the cut"));
    world.split = Some(world.dice.random_range(1..nodes));
    for _ in 0..cut as usize {
        world.run(seconds(1.0));
        churn.second(&mut world);
    }
    world.split = None;
    world.run(seconds(10.0));
    world.check_agreed(&churn.rows, &format!("seed {seed}, {nodes} nodes, cut for {cut} s"));
}

#[test]
fn many_nodes_agree_ten_seconds_after_a_cut() {
    let (nodes, rows) = (given("GOSSIP_NODES", 20), given("GOSSIP_ROWS", 200));
    for (seed, cut) in [1.0, 10.0, 30.0, 120.0].into_iter().enumerate() {
        survive(&Plan { seed: given("GOSSIP_SEED", 0) as u64 + seed as u64, nodes, rows, cut });
    }
}
