//! What goes over streams and who gets table news: push/pull, bulk sync, table gossip.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{Instant, NetworkId};
use prost::Message as _;
use wire::memberlist::StreamMessage;
use wire::networkdb as pb;

use crate::database::{APPLIED_AGAIN_MAX, Database, envelope};
use crate::event::{DialId, Member};
use crate::inplace::{compound_of, envelope_of};
use crate::io::{Io, Out};
use crate::queue::Queue;
use crate::swim::Swim;

/// NetworkDB's `bulkSyncInterval`.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);
/// With a partner that knows no digests, a difference is found only by a sync.
const SYNC_INTERVAL_DOCKER: Duration = Duration::from_secs(10);
/// News is on its way for about so long.
const QUIET: Duration = Duration::from_millis(500);
/// Where it is never quiet, so many differences in a row are enough; twice as many among many nodes,
/// where news is on its way nearly always.
const DIFFERENCES_MAX: u32 = 4;
const NODES_MANY: usize = 64;
/// When more than those missed something together, about so many exchange their tables at a time;
/// what they learn reaches the others as news, and the others compare digests.
const SYNCS: usize = 16;
/// After a miss: soon, then each time twice as late.
const SYNC_HURRIED: Duration = Duration::from_millis(700);
/// Several syncs' worth of streams; a host that swallows connections holds one for 10 seconds.
const DIALS_MAX: usize = 128;
/// The runner reports every dial within 10 seconds; this only bounds what a fault there could hold.
const DIAL_KEPT: Duration = Duration::from_secs(60);
const GOSSIP_NODES: usize = 3;
/// So many nodes are looked at to find one of ours.
const LOOKED_AT: usize = 8;
/// Nodes that hear of a new row at once; the others hear by gossip.
const FLUSH_NODES: usize = 64;
/// Packets per network, node and tick: a burst of rows takes a few ticks, not minutes.
const PACKETS_PER_TICK: usize = 16;
/// One bulk sync message, well below memberlist's largest frame.
const PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// Around each event in a compound of events, and around the compound.
const EVENT_OVERHEAD: usize = 8;
const COMPOUND_OVERHEAD: usize = 16;
/// Envelope and sender's name around the rows that were applied.
const APPLIED_OVERHEAD: usize = 192;

/// Why a stream was opened.
pub(crate) enum Purpose {
    PushPull,
    BulkSync {
        network: NetworkId,
    },
    Ping {
        seq: u32,
    },
    /// See [`crate::paths`].
    Try {
        seq: u32,
    },
}

/// Streams that are under way.
#[derive(Default)]
pub(crate) struct Dials {
    next: u64,
    open: BTreeMap<DialId, (Purpose, SocketAddr, Instant)>,
}

impl Dials {
    /// Whether there was room for one more.
    pub fn open(
        &mut self,
        io: &mut Io<'_>,
        to: SocketAddr,
        message: Arc<[u8]>,
        purpose: Purpose,
    ) -> bool {
        self.open.retain(|_, (.., began)| io.now.since(*began) < DIAL_KEPT);
        if self.open.len() >= DIALS_MAX {
            io.count("dials_full");
            return false;
        }
        self.next += 1;
        let dial = DialId(self.next);
        let reply = !matches!(purpose, Purpose::BulkSync { .. });
        self.open.insert(dial, (purpose, to, io.now));
        io.out.push(Out::Dial { dial, to, message, reply });
        true
    }

    pub fn close(&mut self, dial: DialId) -> Option<(Purpose, SocketAddr)> {
        self.open.remove(&dial).map(|(purpose, to, _)| (purpose, to))
    }
}

/// This node's side of a push/pull.
pub(crate) fn push_pull(swim: &Swim, database: &Database, join: bool) -> Arc<[u8]> {
    let versions = (swim.version, database.network_clock);
    let mut said = database.said.borrow_mut();
    if let Some((known, message)) = said.get(&join)
        && *known == versions
    {
        return message.clone();
    }
    let user = envelope(pb::MessageType::PushPull, &database.attachments());
    let message = StreamMessage::PushPull { join, nodes: swim.states(), user };
    let message: Arc<[u8]> = message.encode().into();
    said.insert(join, (versions, message.clone()));
    message
}

/// The other side's view of nodes and networks; the nodes were merged before.
pub(crate) fn merge_networks(database: &mut Database, io: &mut Io<'_>, user: &[u8]) {
    let Some(remote) = pb::GossipMessage::decode(user)
        .ok()
        .filter(|message| message.r#type == pb::MessageType::PushPull as i32)
        .and_then(|message| pb::NetworkPushPull::decode(message.data.as_slice()).ok())
    else {
        if !user.is_empty() {
            io.count("malformed");
        }
        return;
    };
    let node = pb::NodeEvent {
        r#type: crate::database::JOIN,
        l_time: remote.l_time,
        node_name: remote.node_name,
    };
    database.heard_node_event(io, &node, false);
    for entry in remote.networks {
        let what = if entry.leaving { crate::database::LEAVE } else { crate::database::JOIN };
        let event = pb::NetworkEvent {
            r#type: what,
            l_time: entry.l_time,
            node_name: entry.node_name,
            network_id: entry.network_id,
        };
        database.heard_network_event(io, &event, true);
    }
}

/// Sends a network's whole table to a node, in as many messages as it needs.
pub(crate) fn send_table(
    database: &Database,
    dials: &mut Dials,
    io: &mut Io<'_>,
    to: SocketAddr,
    network: &NetworkId,
    unsolicited: bool,
) {
    let ours = database.networks.get(network).and_then(|it| it.ours.as_ref());
    io.count("tables_sent");
    let incomplete = ours.is_none_or(|ours| ours.incomplete(io.now));
    let mut events = database.row_events(io.now, network).into_iter().peekable();
    let mut first = true;
    while first || events.peek().is_some() {
        let mut messages = Vec::new();
        let mut size = 0;
        while let Some(event) =
            events.next_if(|event| size == 0 || size + event.len() < PAYLOAD_BYTES_MAX)
        {
            size += event.len() + EVENT_OVERHEAD;
            messages.push(event);
        }
        let sync = pb::BulkSyncMessage {
            l_time: database.table_time(),
            // One answer is enough.
            unsolicited: unsolicited && first,
            node_name: database.name.clone(),
            networks: vec![network.to_string()],
            payload: events_compound(&messages),
            incomplete,
        };
        let message = StreamMessage::User(envelope(pb::MessageType::BulkSync, &sync));
        let purpose = Purpose::BulkSync { network: network.clone() };
        dials.open(io, to, message.encode().into(), purpose);
        first = false;
    }
}

fn events_compound(events: &[impl AsRef<[u8]>]) -> Vec<u8> {
    envelope_of(pb::MessageType::Compound, &compound_of(events))
}

/// The bulk syncs that are due: one partner per network.
pub(crate) fn sync_due(database: &mut Database, dials: &mut Dials, io: &mut Io<'_>) {
    for id in database.joined() {
        let Some(ours) = ours(database, &id) else { continue };
        if ours.sync_at.is_some_and(|at| at > io.now) {
            continue;
        }
        let hurried = ours.hurried > 0;
        let factor = 1
            << (crate::database::HURRIED_SYNCS - ours.hurried.min(crate::database::HURRIED_SYNCS));
        ours.hurried = ours.hurried.saturating_sub(1);
        let returned = std::mem::take(&mut ours.returned);
        let mut partners: Vec<Arc<Member>> = database.partners(&id).to_vec();
        let alone = partners.is_empty() && !database.peers.is_empty();
        let known = partners.len();
        let docker = !partners.iter().all(|partner| partner.is_skep());
        if docker && !hurried {
            // The others compare their digests every second.
            partners.retain(|partner| !partner.is_skep());
        }
        let (back, others): (Vec<Arc<Member>>, Vec<Arc<Member>>) =
            partners.into_iter().partition(|partner| returned.contains(&partner.name));
        let chosen = io.pick(if back.is_empty() { others } else { back.clone() }, 1).pop();
        let jitter = Duration::from_millis(io.below(300) as u64);
        let Some(ours) = self::ours(database, &id) else { continue };
        ours.sync_at = Some(
            io.now
                + jitter
                + match (hurried, docker) {
                    (true, _) => SYNC_HURRIED * factor,
                    (false, true) => SYNC_INTERVAL_DOCKER,
                    (false, false) => SYNC_INTERVAL,
                },
        );
        // Where nobody is, this node is the first one there.
        ours.synced |= alone;
        let Some(partner) = chosen else { continue };
        let back = back.into_iter().map(|it| it.name.clone());
        ours.returned.extend(back.filter(|name| *name != partner.name));
        let others_do = hurried && known > NODES_MANY && io.below(known) >= SYNCS;
        let whole = !others_do || !partner.is_skep() || !ours.synced;
        match whole {
            true => send_table(database, dials, io, partner.address, &id, true),
            false => send_digest(database, io, partner.address, Some(&id)),
        }
    }
}

/// Tells one partner per network what this node knows, in a number.
pub(crate) fn send_digests(database: &Database, swim: &Swim, io: &mut Io<'_>) {
    if let Some(other) = swim.pick_skep(io) {
        send_digest(database, io, other.address, None);
    }
    for (id, network) in &database.networks {
        if network.ours.is_some()
            && let Some(partner) = pick_skep(io, database.partners(id))
        {
            send_digest(database, io, partner.address, Some(id));
        }
    }
}

/// One of ours; all are looked at only where most are Docker Engine nodes.
fn pick_skep<'m>(io: &mut Io<'_>, partners: &'m [Arc<Member>]) -> Option<&'m Arc<Member>> {
    let ours = |partner: &&Arc<Member>| partner.is_skep();
    let picked = io.pick_of(partners, LOOKED_AT).into_iter().find(ours);
    picked.or_else(|| io.pick(partners.iter().filter(ours).collect(), 1).pop())
}

fn send_digest(database: &Database, io: &mut Io<'_>, to: SocketAddr, network: Option<&NetworkId>) {
    let message = envelope(pb::MessageType::Digest, &digest(database, io.now, network));
    io.send(to, vec![wire::memberlist::Message::User(message).encode().into()]);
}

fn digest(database: &Database, now: Instant, network: Option<&NetworkId>) -> pb::Digest {
    let ours = network.and_then(|id| database.networks.get(id)?.ours.as_ref());
    let changed = ours.map_or(database.changed, |ours| ours.changed);
    let (entries, sum) = match network {
        Some(id) => database.rows_digest(id),
        None => database.attachments_digest(),
    };
    pb::Digest {
        node_name: database.name.clone(),
        network_id: network.map(ToString::to_string).unwrap_or_default(),
        entries,
        sum,
        quiet: now.since(changed) > QUIET,
    }
}

/// A partner's number: if it differs for longer than news travels, something was missed.
/// Whether the two should exchange their nodes.
pub(crate) fn heard_digest(
    database: &mut Database,
    dials: &mut Dials,
    io: &mut Io<'_>,
    theirs: &pb::Digest,
) -> Option<SocketAddr> {
    let to = database.peers.get(&theirs.node_name)?.member.address;
    let id = (!theirs.network_id.is_empty()).then(|| NetworkId::new(theirs.network_id.clone()));
    let known = |id: &NetworkId| database.networks.get(id).is_some_and(|it| it.ours.is_some());
    if id.as_ref().is_some_and(|id| !known(id)) {
        return None;
    }
    let mine = digest(database, io.now, id.as_ref());
    let differed = match &id {
        Some(id) => &mut ours(database, id)?.differed,
        None => &mut database.differed,
    };
    if (mine.entries, mine.sum) == (theirs.entries, theirs.sum) {
        *differed = 0;
        return None;
    }
    *differed += 1;
    let differed = *differed;
    let nodes = id.as_ref().map_or(database.peers.len(), |id| database.partners(id).len());
    let enough = DIFFERENCES_MAX * if nodes > NODES_MANY { 2 } else { 1 };
    if !(mine.quiet && theirs.quiet) && differed < enough {
        return None;
    }
    match &id {
        Some(id) => ours(database, id)?.differed = 0,
        None => database.differed = 0,
    }
    io.count("digest_differed");
    match id {
        Some(id) => {
            send_table(database, dials, io, to, &id, true);
            None
        }
        None => Some(to),
    }
}

/// Tells a node which of its rows are at work here, now and with the next round of gossip once more.
pub(crate) fn send_applied(
    database: &mut Database,
    swim: &Swim,
    io: &mut Io<'_>,
    to: &str,
    rows: Vec<u64>,
) {
    tell_applied(database, swim, io, to, &rows);
    let again = database.applied.entry(to.to_owned()).or_default();
    again.extend(rows);
    again.truncate(APPLIED_AGAIN_MAX);
}

pub(crate) fn send_applied_again(database: &mut Database, swim: &Swim, io: &mut Io<'_>) {
    for (to, rows) in std::mem::take(&mut database.applied) {
        tell_applied(database, swim, io, &to, &rows);
    }
}

fn tell_applied(database: &Database, swim: &Swim, io: &mut Io<'_>, to: &str, rows: &[u64]) {
    let Some(peer) = database.peers.get(to).filter(|peer| peer.member.is_skep()) else { return };
    let in_a_packet = (swim.user_room().saturating_sub(APPLIED_OVERHEAD) / size_of::<u64>()).max(1);
    for rows in rows.chunks(in_a_packet) {
        let message = pb::Applied { node_name: database.name.clone(), rows: rows.to_vec() };
        let message = envelope(pb::MessageType::Applied, &message);
        let message = wire::memberlist::Message::User(message).encode();
        io.send(peer.member.address, vec![message.into()]);
    }
}

fn ours<'d>(database: &'d mut Database, id: &NetworkId) -> Option<&'d mut crate::database::Ours> {
    database.networks.get_mut(id)?.ours.as_mut()
}

/// Tells everyone on the network of rows that were just announced here.
pub(crate) fn flush_due(database: &mut Database, swim: &Swim, io: &mut Io<'_>) {
    let due: Vec<NetworkId> = database
        .networks
        .iter()
        .filter(|(_, network)| {
            let at = network.ours.as_ref().and_then(|ours| ours.flush_at);
            at.is_some_and(|at| at <= io.now)
        })
        .map(|(id, _)| id.clone())
        .collect();
    for id in due {
        let partners = io.pick_of(database.partners(&id), FLUSH_NODES);
        let partners: Vec<Arc<Member>> = partners.into_iter().cloned().collect();
        let Some(ours) = ours(database, &id) else { continue };
        ours.flush_at = None;
        let fresh = std::mem::take(&mut ours.fresh);
        let mut latest: BTreeMap<&str, &Arc<[u8]>> = BTreeMap::new();
        for (subject, event) in &fresh {
            latest.insert(subject, event);
        }
        let mut packet = Vec::new();
        let mut size = 0;
        for event in latest.values() {
            if size + event.len() + EVENT_OVERHEAD > event_room(swim) && !packet.is_empty() {
                tell(io, &partners, &std::mem::take(&mut packet));
                size = 0;
            }
            size += event.len() + EVENT_OVERHEAD;
            packet.push(Arc::clone(event));
        }
        if !packet.is_empty() {
            tell(io, &partners, &packet);
        }
        for (subject, event) in fresh {
            ours.own.push_told(subject, event, u32::from(!partners.is_empty()));
        }
    }
}

/// The regular telling of rows: to a few random partners on each network.
pub(crate) fn gossip_rows(database: &mut Database, swim: &Swim, io: &mut Io<'_>) {
    for id in database.joined() {
        let idle =
            ours(database, &id).is_none_or(|ours| ours.own.is_empty() && ours.heard.is_empty());
        if idle {
            continue;
        }
        let partners = database.partners(&id);
        let nodes = partners.len() + 1;
        let partners: Vec<Arc<Member>> =
            io.pick_of(partners, GOSSIP_NODES).into_iter().cloned().collect();
        let Some(ours) = ours(database, &id) else { continue };
        let queues = [&mut ours.own, &mut ours.heard];
        let room = event_room(swim);
        for events in Queue::take_round(queues, room, EVENT_OVERHEAD, nodes, PACKETS_PER_TICK) {
            tell(io, &partners, &events);
        }
    }
}

fn event_room(swim: &Swim) -> usize {
    swim.user_room().saturating_sub(COMPOUND_OVERHEAD)
}

fn tell(io: &mut Io<'_>, partners: &[Arc<Member>], events: &[Arc<[u8]>]) {
    let message = wire::memberlist::Message::User(events_compound(events)).encode();
    let message: Arc<[u8]> = message.into();
    for partner in partners {
        io.send(partner.address, vec![message.clone()]);
    }
}
