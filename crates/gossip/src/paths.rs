//! Whether UDP and TCP both lead to each node: memberlist lives on with one of them, and says nothing.
//!
//! A node that does not answer at all is down, and the failure detector's business. One that answers
//! by TCP, or to others, and never by UDP (or the other way round) is behind a rule or a device that
//! swallows half of its gossip: news reaches it late, and whole tables never. Such a path is tried on
//! purpose, with both protocols at the same time, and is blocked when one fails again and again
//! while the node is seen to live.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use model::Instant;
use wire::memberlist::{Message, Ping, StreamMessage};

use crate::Gossip;
use crate::event::{Effect, PathState};
use crate::io::{Io, Out};
use crate::sync::Purpose;

/// One node at random is tried so often without a reason. A UDP path is in use all the time; TCP may
/// rest for minutes.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// A doubtful path is tried so often.
const TRY_INTERVAL: Duration = Duration::from_secs(3);
/// The UDP question is asked again after so long, for a packet may be lost.
const UDP_AGAIN: Duration = Duration::from_secs(1);
const UDP_WAIT: Duration = Duration::from_secs(3);
/// TCP repeats what was lost by itself, after 1 and 3 seconds.
const TCP_WAIT: Duration = Duration::from_secs(5);
/// So many tries in a row must fail, over no less than so long. With every third packet lost each way, one
/// row of UDP tries in 3,000 does.
const UDP_FAILED: u32 = 6;
const TCP_FAILED: u32 = 3;
const FAILED_FOR: Duration = Duration::from_secs(15);
/// And so many in a row answered before it is open again.
const ANSWERED: u32 = 3;
/// After so many tries that met no life, nothing is known of a blocked path any more.
const LIFELESS: u32 = 5;
/// A node that does not live is looked at no sooner again.
const LIFELESS_PAUSE: Duration = Duration::from_secs(30);
/// Doubtful paths at a time.
const DOUBTS_MAX: usize = 32;

/// The paths that are looked at, by the address of the node at their other end.
#[derive(Default)]
pub(crate) struct Paths {
    watched: BTreeMap<SocketAddr, Watched>,
    /// When one is looked at without a reason.
    pub look_at: Option<Instant>,
}

#[derive(Default)]
struct Watched {
    current: Option<Try>,
    next: Option<Instant>,
    udp: Line,
    tcp: Line,
    /// What was said of it last.
    told: PathState,
    lifeless: u32,
}

/// What one protocol did in the tries so far.
#[derive(Default)]
struct Line {
    failed: u32,
    since: Option<Instant>,
    answered: u32,
    blocked: bool,
}

/// Both protocols at the same time, and another node that asks.
struct Try {
    began: Instant,
    seq: u32,
    asked_again: bool,
    through_other: u32,
    udp: bool,
    tcp: Option<bool>,
    /// Another node hears it.
    heard_by_other: bool,
}

impl Line {
    fn take(&mut self, now: Instant, answered: bool, failures: u32) {
        if answered {
            (self.failed, self.since) = (0, None);
            self.answered += 1;
            self.blocked &= self.answered < ANSWERED;
        } else {
            self.answered = 0;
            self.failed += 1;
            let since = *self.since.get_or_insert(now);
            self.blocked |= self.failed >= failures && now.since(since) >= FAILED_FOR;
        }
    }

    fn forget(&mut self) {
        (self.failed, self.since, self.answered) = (0, None, 0);
    }

    fn is_sound(&self) -> bool {
        self.failed == 0 && !self.blocked
    }

    /// It has failed, and not for long enough to say so.
    fn is_unsure(&self) -> bool {
        self.failed > 0 && !self.blocked
    }
}

impl Try {
    fn ends_at(&self) -> Option<Instant> {
        let udp = (!self.udp).then_some(self.began + UDP_WAIT);
        let tcp = self.tcp.is_none().then_some(self.began + TCP_WAIT);
        udp.max(tcp)
    }

    fn due_at(&self) -> Option<Instant> {
        let again = (!self.udp && !self.asked_again).then_some(self.began + UDP_AGAIN);
        [again, self.ends_at()].into_iter().flatten().min()
    }

    fn is_over(&self, now: Instant) -> bool {
        self.ends_at().is_none_or(|at| at <= now)
    }
}

impl Watched {
    fn state(&self) -> PathState {
        match (self.udp.blocked, self.tcp.blocked) {
            (false, false) => PathState::Open,
            (udp, tcp) => PathState::Blocked { udp, tcp },
        }
    }

    /// Whether it is worth watching still.
    fn take(&mut self, now: Instant, done: &Try) -> bool {
        let tcp = done.tcp == Some(true);
        if !(done.udp || tcp || done.heard_by_other) {
            // It is down: that says nothing about the path.
            self.udp.forget();
            self.tcp.forget();
            self.lifeless += 1;
            return self.told != PathState::Open && self.lifeless < LIFELESS;
        }
        self.lifeless = 0;
        self.udp.take(now, done.udp, UDP_FAILED);
        self.tcp.take(now, tcp, TCP_FAILED);
        !(self.udp.is_sound() && self.tcp.is_sound())
    }

    /// What is to be said now: both protocols at once, where both are in doubt.
    fn news(&mut self) -> Option<PathState> {
        let unsure = self.udp.is_unsure() || self.tcp.is_unsure();
        let state = self.state();
        (!unsure && std::mem::replace(&mut self.told, state) != state).then_some(state)
    }
}

impl Paths {
    pub fn deadline(&self) -> Option<Instant> {
        let due = self.watched.values().filter_map(|path| match &path.current {
            Some(current) => current.due_at(),
            None => path.next,
        });
        due.chain(self.look_at).min()
    }

    /// Something went wrong on the way to a node: it is looked at.
    pub fn doubt(&mut self, io: &mut Io<'_>, address: SocketAddr) {
        if self.watched.contains_key(&address) {
            return;
        }
        if self.watched.len() >= DOUBTS_MAX {
            return io.count("path_doubts_full");
        }
        self.watched.insert(address, Watched { next: Some(io.now), ..Default::default() });
    }

    /// A node failed or left: what was known of the way to it is void.
    pub fn forget(&mut self, io: &mut Io<'_>, address: Option<SocketAddr>) {
        let Some(address) = address else { return };
        if self.watched.get(&address).is_some_and(|path| path.told != PathState::Open) {
            self.watched.remove(&address);
            tell(io, address, PathState::Unknown);
        }
    }

    /// Whether an answer by UDP was one to a try.
    pub fn heard_ack(&mut self, seq: u32) -> bool {
        for current in self.watched.values_mut().filter_map(|path| path.current.as_mut()) {
            if current.seq == seq {
                current.udp = true;
                return true;
            }
            if current.through_other == seq {
                current.heard_by_other = true;
                return true;
            }
        }
        false
    }

    /// The end of a stream that a try opened.
    pub fn heard_tcp(&mut self, address: SocketAddr, seq: u32, answered: bool) {
        let current = self.watched.get_mut(&address).and_then(|path| path.current.as_mut());
        if let Some(current) = current.filter(|current| current.seq == seq) {
            current.tcp = Some(answered);
        }
    }
}

fn tell(io: &mut Io<'_>, to: SocketAddr, state: PathState) {
    match state {
        PathState::Blocked { udp, tcp } => {
            if udp {
                io.count("path_blocked_udp");
            }
            if tcp {
                io.count("path_blocked_tcp");
            }
        }
        PathState::Open => io.count("path_open_again"),
        PathState::Unknown => io.count("path_unknown"),
    }
    io.effect(Effect::Path { to, state });
}

impl Gossip {
    /// Looks at the paths that are due.
    pub(crate) fn try_paths(&mut self, now: Instant, out: &mut Vec<Out>) {
        if self.swim.is_leaving() {
            self.paths = Paths::default();
            return;
        }
        self.look_around(now, out);
        let due = |path: &Watched| match &path.current {
            Some(current) => current.is_over(now) || current.due_at().is_some_and(|at| at <= now),
            None => path.next.is_some_and(|at| at <= now),
        };
        let watched = self.paths.watched.iter();
        let due: Vec<SocketAddr> =
            watched.filter(|(_, path)| due(path)).map(|(to, _)| *to).collect();
        for to in due {
            self.go_on(now, to, out);
        }
    }

    fn look_around(&mut self, now: Instant, out: &mut Vec<Out>) {
        let Self { dice, swim, counters, paths, .. } = self;
        if paths.look_at.is_some_and(|at| at > now) {
            return;
        }
        paths.look_at = Some(now + LOOK_INTERVAL);
        let mut io = Io { now, dice, out, counters };
        if let Some(other) = swim.pick_alive(&mut io, 1).first() {
            paths.doubt(&mut io, other.address);
        }
    }

    fn go_on(&mut self, now: Instant, to: SocketAddr, out: &mut Vec<Out>) {
        let Some(path) = self.paths.watched.get_mut(&to) else { return };
        let silent = path.lifeless > 0 && path.told == PathState::Open;
        match &mut path.current {
            Some(current) if current.is_over(now) => self.end_try(now, to, out),
            Some(current) => {
                current.asked_again = true;
                let seq = current.seq;
                let ping = Message::Ping(self.path_ping(to, seq)).encode();
                out.push(Out::Packet { to, messages: vec![ping.into()] });
            }
            // It was silent, and may be looked at again.
            None if silent => drop(self.paths.watched.remove(&to)),
            None => self.begin_try(now, to, out),
        }
    }

    fn path_ping(&self, to: SocketAddr, seq: u32) -> Ping {
        Ping { seq, node: self.swim.name_at(to).unwrap_or_default(), source: self.swim.source() }
    }

    fn begin_try(&mut self, now: Instant, to: SocketAddr, out: &mut Vec<Out>) {
        let (seq, through_other) = (self.swim.prober.seq(), self.swim.prober.seq());
        let ping = self.path_ping(to, seq);
        let Self { dice, swim, dials, counters, paths, .. } = self;
        let mut io = Io { now, dice, out, counters };
        let others = swim.pick_alive(&mut io, 2).into_iter().map(|it| it.address);
        let other = others.into_iter().find(|other| *other != to);
        if let Some(other) = other {
            let request = Message::IndirectPing {
                seq: through_other,
                target: to,
                node: ping.node.clone(),
                nack: false,
                source: ping.source.clone(),
            };
            io.send(other, vec![request.encode().into()]);
        }
        io.send(to, vec![Message::Ping(ping.clone()).encode().into()]);
        let message = StreamMessage::Ping(ping).encode().into();
        let dialled = dials.open(&mut io, to, message, Purpose::Try { seq });
        if let Some(path) = paths.watched.get_mut(&to) {
            path.next = Some(now + TRY_INTERVAL);
            // Without a stream it is no try.
            path.current = dialled.then_some(Try {
                began: now,
                seq,
                asked_again: false,
                through_other,
                udp: false,
                tcp: None,
                heard_by_other: false,
            });
        }
    }

    fn end_try(&mut self, now: Instant, to: SocketAddr, out: &mut Vec<Out>) {
        let Self { dice, counters, paths, .. } = self;
        let mut io = Io { now, dice, out, counters };
        let Some(path) = paths.watched.get_mut(&to) else { return };
        let Some(done) = path.current.take() else { return };
        path.next = Some(now.max(done.began + TRY_INTERVAL));
        let news = match path.take(now, &done) {
            true => path.news(),
            false if path.lifeless == 0 => {
                let news = path.news();
                paths.watched.remove(&to);
                news
            }
            false => {
                let known = path.told != PathState::Open;
                let next = Some(now + LIFELESS_PAUSE);
                *path = Watched { next, lifeless: 1, ..Default::default() };
                known.then_some(PathState::Unknown)
            }
        };
        if let Some(state) = news {
            tell(&mut io, to, state);
        }
    }
}
