//! Seeds that our own encoders write: two nodes of the gossip meet, a raft set elects and agrees.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use consensus::{Effect, Event, Raft};
use gossip::Gossip;
use model::{Instant, NetworkId};
use prost::Message as _;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::memberlist::{Cipher, open_frame, open_packet};
use wire::swarmkit as pb;

use crate::targets::{ca as authority, gossip as rumour, raft};
use crate::{chunks, corpus};

const SECOND: u64 = 1_000_000_000;

/// Writes them all into the corpus; committed, so that a later encoder does not change what is tested.
pub fn write() -> Result<()> {
    save("gossip", "meeting", &meeting()?)?;
    let meeting = meeting()?;
    // One of each length: most packets say the same again.
    let different: BTreeMap<usize, (u8, &[u8])> = chunks::split(&meeting)
        .into_iter()
        .map(|(kind, plain)| (plain.len(), (kind, plain)))
        .collect();
    for (length, (kind, plain)) in different {
        save("memberlist", &format!("{kind}-{length}"), plain)?;
    }
    let Agreement { messages, answers, entries } = agreement()?;
    let joined = |first: u8, messages: &[Vec<u8>]| {
        let all = messages.iter().map(|message| (raft::MESSAGE, message.as_slice()));
        chunks::join(std::iter::once((first, [].as_slice())).chain(all))
    };
    save("raft-message", "agreement", &joined(0, &messages))?;
    save("raft-message", "answers", &joined(raft::LEADER, &answers))?;
    for (number, message) in messages.iter().take(8).enumerate() {
        save("swarmkit-message", &format!("raft-{number}"), &[&[11], message.as_slice()].concat())?;
    }
    for (number, entry) in entries.iter().enumerate() {
        save("swarmkit-message", &format!("entry-{number}"), &[&[0], entry.as_slice()].concat())?;
    }
    save("raft-log", "three-records", &sealed_log()?)?;
    certificates()
}

fn save(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = corpus(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes).with_context(|| name.to_owned())
}

/// What the first of two nodes hears while they meet and tell each other their rows.
fn meeting() -> Result<Vec<u8>> {
    let cipher = Cipher::new(&rumour::SECRET).context("a cipher")?;
    let ciphers = [cipher];
    let mut nodes = [rumour::node(1), rumour::node(2)];
    let mut now = Instant::from_nanos(SECOND);
    let mut heard = Vec::new();
    for node in &mut nodes {
        for event in introduction() {
            let _ = node.step(now, event);
        }
    }
    let join = gossip::Event::Join { addresses: vec!["192.0.2.1:7946".parse()?] };
    let mut waiting = vec![(1, nodes[1].step(now, join))];
    for _ in 0..200 {
        for (from, effects) in std::mem::take(&mut waiting) {
            for effect in effects {
                if let Some((to, event, plain)) = deliver(from, effect, &ciphers) {
                    if to == 0 {
                        heard.push(plain);
                    }
                    waiting.push((to, nodes[to].step(now, event)));
                }
            }
        }
        if waiting.is_empty() {
            let next = nodes.iter().filter_map(Gossip::deadline).min().context("a deadline")?;
            now = now.max(next);
            for (number, node) in nodes.iter_mut().enumerate() {
                waiting.push((number, node.step(now, gossip::Event::Deadline)));
            }
        }
    }
    let heard = heard.iter().filter(|(_, plain)| plain.len() < 4_000).take(32);
    Ok(chunks::join(heard.map(|(kind, plain)| (*kind, plain.as_slice()))))
}

fn introduction() -> [gossip::Event; 3] {
    let network = NetworkId::new(rumour::NETWORK);
    [
        gossip::Event::SetKeys(vec![gossip::Key { lamport: 1, secret: rumour::SECRET }]),
        gossip::Event::JoinNetwork { network: network.clone() },
        gossip::Event::PutRow {
            network,
            table: gossip::OVERLAY_PEER_TABLE.into(),
            key: "10.0.1.3/24 02:42:0a:00:01:03".into(),
            value: wire::networktable::PeerRecord {
                endpoint_ip: "10.0.1.3/24".into(),
                endpoint_mac: "02:42:0a:00:01:03".into(),
                tunnel_endpoint_ip: "192.0.2.2".into(),
            }
            .encode_to_vec(),
        },
    ]
}

/// An effect of one node as the event of the other, and the plain bytes in it with their kind.
fn deliver(
    from: usize,
    effect: gossip::Effect,
    ciphers: &[Cipher],
) -> Option<(usize, gossip::Event, (u8, Vec<u8>))> {
    let sender = format!("192.0.2.{}:7946", from + 1).parse().ok()?;
    match effect {
        gossip::Effect::SendPacket { bytes, .. } => {
            let plain = open_packet(ciphers, &bytes).ok()?;
            let event = gossip::Event::Packet { from: sender, bytes };
            Some((1 - from, event, (rumour::PACKET, plain)))
        }
        gossip::Effect::OpenStream { dial, bytes, .. } => {
            let plain = open_frame(ciphers, &bytes).ok()?;
            let stream = gossip::StreamId(dial.0);
            let event = gossip::Event::StreamRequest { stream, from: sender, bytes };
            Some((1 - from, event, (rumour::STREAM, plain)))
        }
        gossip::Effect::ReplyStream { stream, bytes } => {
            let plain = open_frame(ciphers, &bytes).ok()?;
            let event = gossip::Event::StreamReply { dial: gossip::DialId(stream.0), bytes };
            Some((1 - from, event, (rumour::STREAM, plain)))
        }
        _ => None,
    }
}

#[derive(Default)]
struct Agreement {
    /// What the second member hears.
    messages: Vec<Vec<u8>>,
    /// What the leader hears.
    answers: Vec<Vec<u8>>,
    /// What they agree on.
    entries: Vec<Vec<u8>>,
}

fn agreement() -> Result<Agreement> {
    let begin = Instant::from_nanos(0);
    let mut leader = raft::leader();
    let (mut listener, _) = raft::listener();
    let mut all = Agreement::default();
    let entry = pb::InternalRaftRequest {
        id: 1,
        action: vec![pb::StoreAction {
            action: pb::StoreActionKind::Create as i32,
            target: Some(pb::store_action::Target::Service(service())),
        }],
    }
    .encode_to_vec();
    let mut effects = leader.step(begin, Event::Deadline);
    let mut now = 0;
    for round in 0..20 {
        let mut answers = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(message) if message.to() == raft::LISTENER => {
                    all.messages.push(message.encode_to_vec());
                    answers.extend(listener.step(begin, Event::Message(message)));
                }
                Effect::Committed { data, .. } => all.entries.push(data.to_vec()),
                _ => {}
            }
        }
        effects = Vec::new();
        for answer in answers {
            if let Effect::Send(message) = answer {
                all.answers.push(message.encode_to_vec());
                effects.extend(leader.step(begin, Event::Message(message)));
            }
        }
        if round % 4 == 3 {
            effects.extend(leader.propose(entry.clone())?.1);
        }
        now += SECOND;
        effects.extend(leader.step(Instant::from_nanos(now), Event::Deadline));
    }
    Ok(all)
}

fn service() -> pb::Service {
    let annotations = pb::Annotations {
        name: "web".into(),
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        indices: Vec::new(),
    };
    pb::Service {
        id: "service000000000000000000".into(),
        spec: Some(pb::ServiceSpec {
            annotations: Some(annotations),
            task: Some(pb::TaskSpec { force_update: 2, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn sealed_log() -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let key = disk::DataKey::from_bytes(&raft::LOG_KEY).context("a key")?;
    let (mut log, _) = disk::RaftLog::open(folder.path(), key)?;
    let dice = ChaCha8Rng::from_seed([1; 32]);
    let (mut leader, effects) = Raft::bootstrap(Instant::from_nanos(0), dice, raft::member(1));
    let more = leader.propose(b"an entry".to_vec())?.1;
    for effect in effects.into_iter().chain(more) {
        if let Effect::Persist(write) = effect {
            log.write(&write)?;
        }
    }
    Ok(fs::read(folder.path().join("log"))?)
}

fn certificates() -> Result<()> {
    let mut dice = ChaCha8Rng::from_seed([4; 32]);
    let root = ca::Root::create(authority::NOW, &mut dice)?;
    let key = ca::Key::generate()?;
    let identity = ca::Identity {
        node_id: "node000000000000000000000".into(),
        role: pb::NodeRole::Manager,
        organization: "cluster000000000000000000".into(),
    };
    let request = key.request()?;
    let life = std::time::Duration::from_secs(86_400);
    let issued = root.sign(&request, &identity, authority::NOW, life, &mut dice)?;
    save("certificate", "root", &root.roots)?;
    save("certificate", "request", &request)?;
    save("certificate", "chain", &[issued.chain.as_slice(), &root.roots].concat())?;
    let ders = ca::pem::certificates(&issued.chain).context("a certificate")?;
    save("certificate", "leaf.der", &ders[0])?;
    save("join-token", "one", ca::join_token(&root.roots, &mut dice).as_bytes())?;
    save(
        "join-token",
        "two",
        b"SWMTKN-2-1-0000000000000000000000000000000000000000000000000a-0000000000000000000000000",
    )?;
    save("join-token", "unlock", ca::token::unlock_key_text(&[5; 32]).as_bytes())
}
