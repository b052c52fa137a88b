//! Calls that are answered by streams, and everything that goes to the dispatcher and the log broker.

use model::Instant;
use wire::swarmkit as pb;

use crate::calls::denied;
use crate::dispatcher::Ask;
use crate::manager::Manager;
use crate::{Caller, Code, Effect, Failure, Open, Reply, StreamId};

/// Each manager is as good as another.
const MANAGER_WEIGHT: i64 = 10;

impl Manager {
    pub(crate) fn open(
        &mut self,
        now: Instant,
        stream: StreamId,
        caller: &Caller,
        open: Open,
        out: &mut Vec<Effect>,
    ) {
        if let Err(failure) = self.admit_stream(caller, &open) {
            out.push(Effect::Close { stream, end: Err(failure) });
            return;
        }
        self.streams.insert(stream);
        let node = caller.node_id.as_str();
        let address = caller.address.map(|address| address.to_string()).unwrap_or_default();
        let ask = match open {
            Open::Session(request) => Ask::Session { stream, node, address, request },
            Open::Tasks(request) => Ask::Tasks { stream, node, request },
            Open::Assignments(request) => Ask::Assignments { stream, node, request },
            Open::ListenSubscriptions(_) => {
                let Some(leading) = &mut self.leading else { return };
                let effects = leading.logs.listen(&self.store, stream, node);
                return self.push_streams(effects, out);
            }
            Open::SubscribeLogs(request) => {
                let Some(leading) = &mut self.leading else { return };
                let dice = &mut self.dice;
                let effects = leading.logs.subscribe(&self.store, stream, request, dice);
                return self.push_streams(effects, out);
            }
            Open::Watch(_) => {
                let reason = "not supported by skep yet: the Watch service";
                let end = Err(Failure::new(Code::Unimplemented, reason));
                return self.push_streams(vec![Effect::Close { stream, end }], out);
            }
        };
        let _answered_later = self.dispatch(now, ask, out);
    }

    fn admit_stream(&self, caller: &Caller, open: &Open) -> Result<(), Failure> {
        self.check_member(caller)?;
        let for_managers = matches!(open, Open::SubscribeLogs(_) | Open::Watch(_));
        if for_managers && !caller.is_manager() {
            return Err(denied("a manager's certificate is needed"));
        }
        if self.leading.is_none() {
            return Err(self.not_leading());
        }
        Ok(())
    }

    /// The other side went away.
    pub(crate) fn closed(&mut self, now: Instant, stream: StreamId, out: &mut Vec<Effect>) {
        if !self.streams.remove(&stream) {
            return;
        }
        if let Some(leading) = &mut self.leading {
            let effects = leading.logs.closed(stream);
            self.push_streams(effects, out);
        }
        let _answered_later = self.dispatch(now, Ask::Closed { stream }, out);
    }

    /// Asks the dispatcher; it answers by effects.
    pub(crate) fn dispatch(
        &mut self,
        now: Instant,
        ask: Ask<'_>,
        out: &mut Vec<Effect>,
    ) -> Option<Reply> {
        let leading = self.leading.as_mut()?;
        // A beat alone leaves nothing to be planned.
        let beat = matches!(ask, Ask::Heartbeat { .. });
        let effects = leading.dispatcher.step(now, &self.store, ask);
        if !beat {
            leading.mark_dirty();
        }
        self.push_streams(effects, out);
        None
    }

    /// Nodes whose time is over.
    pub(crate) fn expire(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let deadline = self.leading.as_ref().and_then(|leading| leading.dispatcher.deadline());
        if deadline.is_some_and(|deadline| deadline <= now) {
            let _no_reply = self.dispatch(now, Ask::Deadline, out);
        }
    }

    pub(crate) fn tell_nodes_of_managers(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let managers = self.raft.members().iter().map(|member| pb::WeightedPeer {
            peer: Some(pb::Peer { node_id: member.node_id.clone(), addr: member.addr.clone() }),
            weight: MANAGER_WEIGHT,
        });
        let managers = managers.collect();
        let _no_reply = self.dispatch(now, Ask::Managers(managers), out);
    }

    /// Effects of the parts that own streams; what they close is forgotten here, too.
    pub(crate) fn push_streams(&mut self, effects: Vec<Effect>, out: &mut Vec<Effect>) {
        for effect in effects {
            let closed = match &effect {
                Effect::Close { stream, .. } => Some(*stream),
                _ => None,
            };
            // What is not open any more was closed by both sides at once.
            if closed.is_none_or(|stream| self.streams.remove(&stream)) {
                out.push(effect);
            }
        }
    }
}
