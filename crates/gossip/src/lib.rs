//! Who is in the cluster and which rows they announced: memberlist and NetworkDB as one state machine.
//!
//! [`Gossip::step`] takes bytes and deadlines and gives bytes back; sockets belong to the shell.

pub mod event;
mod swim;
mod probe;
mod suspicion;
mod queue;
mod database;
mod network;
mod row;
mod rows;
mod inplace;
mod sync;
mod paths;
mod receive;
mod io;

pub use database::row_print;
pub use event::{Config, DialId, Effect, Event, Key, Member, PathState, Row, StreamId};

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use model::{Instant, NetworkId};
use rand::RngCore;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::memberlist::{Cipher, Message, NONCE_BYTES, compound, seal_frame, seal_packet};

use database::Database;
use io::{Counters, Io, Out};
use paths::Paths;
use swim::{Notice, Swim};
use sync::{Dials, Purpose};

/// Rows about endpoints: names, services, virtual addresses (`wire::networktable::EndpointRecord`).
pub const ENDPOINT_TABLE: &str = "endpoint_table";
/// Rows about where an endpoint's packets go (`wire::networktable::PeerRecord`).
pub const OVERLAY_PEER_TABLE: &str = "overlay_peer_table";
/// The metadata by which skep nodes know each other; Docker Engine nodes announce none.
pub const SKEP_META: &[u8] = b"skep1";

/// memberlist's and NetworkDB's `GossipInterval`.
const GOSSIP_INTERVAL: Duration = Duration::from_millis(200);
/// NetworkDB's `reapPeriod`.
const REAP_INTERVAL: Duration = Duration::from_secs(5);
/// NetworkDB's `retryInterval`: one failed node is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often managers that are missing among the nodes are asked again. Docker's 60 seconds are
/// too long for a node whose first attempt met a manager that was just starting.
const REJOIN_INTERVAL: Duration = Duration::from_secs(2);
/// How often partners compare what they know.
const DIGEST_INTERVAL: Duration = Duration::from_secs(1);
const BOOTSTRAP_MAX: usize = 64;

/// One node's gossip.
pub struct Gossip {
    dice: ChaCha8Rng,
    /// The one that seals first.
    ciphers: Vec<Cipher>,
    swim: Swim,
    database: Database,
    dials: Dials,
    paths: Paths,
    counters: Counters,
    bootstrap: Vec<SocketAddr>,
    timers: Option<Timers>,
    /// A stranger is met no sooner.
    meet_at: Option<Instant>,
}

/// When the regular work is next due.
struct Timers {
    gossip: Instant,
    push_pull: Instant,
    reap: Instant,
    retry: Instant,
    rejoin: Instant,
    digest: Instant,
}

impl Gossip {
    pub fn new(config: Config) -> Self {
        Self {
            dice: ChaCha8Rng::from_seed(config.seed),
            ciphers: Vec::new(),
            swim: Swim::new(&config),
            database: Database::new(config.name, config.advertise.ip()),
            dials: Dials::default(),
            paths: Paths::default(),
            counters: Counters::default(),
            bootstrap: Vec::new(),
            timers: None,
            meet_at: None,
        }
    }

    /// Takes one event and says what follows from it.
    #[must_use]
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.begin(now);
        match event {
            Event::Deadline => {}
            Event::SetKeys(keys) => self.set_keys(now, &keys),
            event => self.act(now, event, &mut out),
        }
        self.do_due(now, &mut out);
        self.seal(out)
    }

    /// When [`Event::Deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let timers = self.timers.as_ref()?;
        let mut soonest = timers.gossip.min(timers.push_pull).min(timers.reap).min(timers.retry);
        soonest = soonest.min(timers.rejoin).min(timers.digest);
        let networks = self.database.networks.values().filter_map(|network| network.ours.as_ref());
        let rows = networks.flat_map(|ours| [ours.flush_at, ours.sync_at]).flatten().min();
        let again = self.database.reannounce_at;
        let paths = self.paths.deadline();
        let rest = [self.swim.prober.deadline(), self.swim.next_suspect(), rows, again, paths];
        Some(rest.into_iter().flatten().fold(soonest, Instant::min))
    }

    /// This node's name on the gossip.
    pub fn name(&self) -> &str {
        &self.swim.name
    }

    /// Every node known to be alive, this one included.
    pub fn members(&self) -> Vec<Member> {
        self.swim.alive().map(|node| node.member.clone()).collect()
    }

    /// The nodes attached to a network, this one included when it is: name and address.
    pub fn peers(&self, network: &NetworkId) -> Vec<(String, IpAddr)> {
        self.database.peers_of(network)
    }

    /// The rows of one table of one network, by key.
    pub fn rows(&self, network: &NetworkId, table: &str) -> BTreeMap<String, Row> {
        self.database.rows(network, table)
    }

    /// What was dropped and why, by a fixed name.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.counters.table()
    }

    fn begin(&mut self, now: Instant) {
        if self.timers.is_some() {
            return;
        }
        self.swim.begin(now);
        self.database.begin(now);
        let mut spread = |interval: Duration| {
            // Nodes that start together do not act together.
            now + interval.mul_f64(f64::from(self.dice.next_u32()) / f64::from(u32::MAX))
        };
        self.paths.look_at = Some(spread(paths::LOOK_INTERVAL));
        self.timers = Some(Timers {
            gossip: spread(GOSSIP_INTERVAL),
            push_pull: spread(Duration::from_secs(30)),
            reap: spread(REAP_INTERVAL),
            retry: spread(RETRY_INTERVAL),
            rejoin: now + REJOIN_INTERVAL,
            digest: spread(DIGEST_INTERVAL),
        });
    }

    /// Takes the keys in force; the second-oldest seals, as every node agrees without being told.
    fn set_keys(&mut self, now: Instant, keys: &[Key]) {
        if self.ciphers.is_empty() {
            self.speak_up(now);
        }
        let mut keys: Vec<&Key> = keys.iter().collect();
        keys.sort_by_key(|key| key.lamport);
        if keys.len() > 1 {
            let primary = keys.remove(1);
            keys.insert(0, primary);
        }
        self.ciphers = keys.iter().filter_map(|key| Cipher::new(&key.secret)).collect();
    }

    fn act(&mut self, now: Instant, event: Event, out: &mut Vec<Out>) {
        let Self { dice, swim, database, dials, counters, .. } = self;
        let mut io = Io { now, dice, out, counters };
        match event {
            Event::Deadline | Event::SetKeys(_) => {}
            Event::Packet { from, bytes } => self.receive_packet(now, from, &bytes, out),
            Event::StreamRequest { stream, bytes, .. } => {
                self.receive_stream(now, stream, &bytes, out);
            }
            Event::StreamReply { dial, bytes } => self.receive_reply(now, dial, &bytes, out),
            Event::StreamSent { dial } => drop(dials.close(dial)),
            Event::StreamFailed { dial } => self.stream_failed(now, dial, out),
            Event::HostAnswered { name } => database.host_answered(&name),
            Event::Join { addresses } => self.join(now, addresses, out),
            Event::JoinNetwork { network } => database.join_network(&mut io, &network),
            Event::LeaveNetwork { network } => database.leave_network(&mut io, &network),
            Event::PutRow { network, table, key, value } => {
                database.put_row(&mut io, &network, (table, key), value);
            }
            Event::DeleteRow { network, table, key } => {
                database.delete_row(&mut io, &network, (table, key));
            }
            Event::Applied { to, rows } => sync::send_applied(database, swim, &mut io, &to, rows),
            Event::LeaveCluster => {
                database.leave();
                swim.leave(&mut io);
                if let Some(timers) = &mut self.timers {
                    timers.gossip = now;
                }
            }
        }
        self.carry(now, out);
    }

    /// Carries what memberlist noticed to the tables, and the tables' events to memberlist's queue.
    fn carry(&mut self, now: Instant, out: &mut Vec<Out>) {
        let Self { dice, swim, database, counters, paths, .. } = self;
        let mut io = Io { now, dice, out, counters };
        for notice in std::mem::take(&mut swim.notices) {
            match notice {
                Notice::Up(member) => database.node_up(&mut io, member),
                Notice::Updated(member) => database.node_updated(&mut io, member),
                Notice::Failed(name) => {
                    paths.forget(&mut io, swim.nodes.get(&name).map(|it| it.member.address));
                    database.node_failed(&mut io, &name);
                }
                Notice::Left(name) => {
                    paths.forget(&mut io, swim.nodes.get(&name).map(|it| it.member.address));
                    database.node_left(&mut io, &name);
                }
                Notice::Accused => database.reannounce_soon(now),
            }
        }
        database.tell_peers(&mut io);
        for (subject, event) in database.events.drain(..) {
            swim.queue.push(subject, Message::User(event).encode());
        }
    }

    /// The managers to join: at once, and again for as long as one is missing.
    fn join(&mut self, now: Instant, mut addresses: Vec<SocketAddr>, out: &mut Vec<Out>) {
        addresses.truncate(BOOTSTRAP_MAX);
        if addresses != self.bootstrap {
            self.bootstrap = addresses;
            self.rejoin(now, out);
        }
    }

    fn rejoin(&mut self, now: Instant, out: &mut Vec<Out>) {
        let missing = self.bootstrap.iter().filter(|address| {
            **address != self.swim.advertise
                && !self.swim.alive().any(|node| node.member.address == **address)
        });
        for to in missing.copied().collect::<Vec<_>>() {
            self.dial_push_pull(now, to, true, out);
        }
    }

    pub(crate) fn dial_push_pull(
        &mut self,
        now: Instant,
        to: SocketAddr,
        join: bool,
        out: &mut Vec<Out>,
    ) {
        let Self { dice, swim, database, dials, counters, .. } = self;
        let mut io = Io { now, dice, out, counters };
        let message = sync::push_pull(swim, database, join);
        dials.open(&mut io, to, message, Purpose::PushPull);
    }

    /// Everything whose time has come.
    fn do_due(&mut self, now: Instant, out: &mut Vec<Out>) {
        if self.ciphers.is_empty() {
            return self.postpone(now);
        }
        self.expire_and_probe(now, out);
        self.try_paths(now, out);
        self.carry(now, out);
        let Self { dice, swim, database, dials, counters, timers, .. } = self;
        let Some(timers) = timers else { return };
        let mut io = Io { now, dice, out, counters };
        database.reannounce_due(&mut io);
        sync::flush_due(database, swim, &mut io);
        sync::sync_due(database, dials, &mut io);
        if timers.gossip <= now {
            timers.gossip = now + GOSSIP_INTERVAL;
            swim.gossip(&mut io);
            sync::send_applied_again(database, swim, &mut io);
            sync::gossip_rows(database, swim, &mut io);
        }
        if timers.digest <= now {
            timers.digest = now + DIGEST_INTERVAL;
            sync::send_digests(database, swim, &mut io);
        }
        if timers.reap <= now {
            timers.reap = now + REAP_INTERVAL;
            database.reap(&mut io);
        }
        let mut to = Vec::new();
        if timers.push_pull <= now {
            timers.push_pull = now + swim.push_pull_interval();
            to.extend(swim.pick_alive(&mut io, 1).first().map(|member| (member.address, false)));
        }
        if timers.retry <= now {
            timers.retry = now + RETRY_INTERVAL;
            database.ask_hosts(&mut io);
            let failed = io.pick(database.failed().collect(), 1);
            to.extend(failed.into_iter().map(|member| (member.address, true)));
        }
        let rejoin = timers.rejoin <= now;
        if rejoin {
            timers.rejoin = now + REJOIN_INTERVAL;
        }
        if swim.is_leaving() {
            return;
        }
        for (to, join) in to {
            self.dial_push_pull(now, to, join, out);
        }
        if rejoin {
            self.rejoin(now, out);
        }
    }

    fn expire_and_probe(&mut self, now: Instant, out: &mut Vec<Out>) {
        let Self { dice, swim, dials, counters, .. } = self;
        let mut io = Io { now, dice, out, counters };
        swim.expire_suspects(&mut io);
        if let Some(ping) = swim.probe(&mut io) {
            dials.open(
                &mut io,
                ping.to,
                ping.message.encode().into(),
                Purpose::Ping { seq: ping.seq },
            );
        }
    }

    /// The first keys are here: what waited for them waits no longer.
    fn speak_up(&mut self, now: Instant) {
        if let Some(timers) = &mut self.timers {
            timers.gossip = now;
            // Managers that were named before the keys could not be asked.
            timers.rejoin = now;
        }
        for network in self.database.networks.values_mut() {
            if let Some(ours) = &mut network.ours {
                ours.flush_at = ours.flush_at.map(|_| now);
            }
        }
    }

    /// Without keys nothing can be said; the timers wait for them.
    fn postpone(&mut self, now: Instant) {
        let later = now + RETRY_INTERVAL;
        if let Some(timers) = &mut self.timers {
            for timer in [
                &mut timers.gossip,
                &mut timers.push_pull,
                &mut timers.reap,
                &mut timers.retry,
                &mut timers.rejoin,
                &mut timers.digest,
            ] {
                *timer = (*timer).max(later);
            }
        }
        self.swim.prober.next = Some(later);
        self.paths.look_at = self.paths.look_at.map(|at| at.max(later));
        self.database.reannounce_at = self.database.reannounce_at.map(|at| at.max(later));
        for network in self.database.networks.values_mut() {
            if let Some(ours) = &mut network.ours {
                ours.flush_at = ours.flush_at.map(|at| at.max(later));
                ours.sync_at = ours.sync_at.map(|at| at.max(later));
            }
        }
    }

    /// Seals what goes out. Without keys nothing goes out in the clear.
    fn seal(&mut self, out: Vec<Out>) -> Vec<Effect> {
        let primary = self.ciphers.first().cloned();
        let mut effects = Vec::with_capacity(out.len());
        for result in out {
            let mut nonce = [0u8; NONCE_BYTES];
            self.dice.fill_bytes(&mut nonce);
            let effect = match (result, &primary) {
                (Out::Effect(effect), _) => effect,
                (Out::Packet { to, messages }, Some(cipher)) => Effect::SendPacket {
                    to,
                    bytes: seal_packet(cipher, nonce, &compound(&messages)),
                },
                (Out::Dial { dial, to, message, reply }, Some(cipher)) => Effect::OpenStream {
                    dial,
                    to,
                    bytes: seal_frame(cipher, nonce, &message),
                    reply,
                },
                (Out::Reply { stream, message }, Some(cipher)) => {
                    let bytes = seal_frame(cipher, nonce, &message);
                    Effect::ReplyStream { stream, bytes }
                }
                (Out::Reply { stream, .. }, None) => Effect::CloseStream { stream },
                (Out::Dial { dial, .. }, None) => {
                    self.dials.close(dial);
                    continue;
                }
                (Out::Packet { .. }, None) => continue,
            };
            effects.push(effect);
        }
        effects
    }
}

#[cfg(test)]
mod tests;
