//! Unary calls: who may make them, which are answered at once and which wait to be agreed on.

use model::Instant;
use wire::control::Request;
use wire::swarmkit as pb;

use crate::control::{Decision, Desk, decide};
use crate::dispatcher::Ask;
use crate::manager::{CALLS_WAITING_MAX, CERTIFICATE_WAITERS_MAX, Manager, NO_LEADER, Then};
use crate::membership::{self, Joining};
use crate::{Answer, Call, Caller, Code, Effect, Failure, Reply, Ticket, attach, authority};

impl Manager {
    pub(crate) fn call(
        &mut self,
        now: Instant,
        ticket: Ticket,
        caller: Caller,
        call: Call,
        out: &mut Vec<Effect>,
    ) {
        let reply = match self.admit(&caller, &call) {
            Err(failure) => Some(Err(failure)),
            Ok(()) => self.answer_or_wait(now, ticket, caller, call, out),
        };
        if let Some(reply) = reply {
            out.push(Effect::Reply { ticket, reply });
        }
    }

    /// SwarmKit's roles: the certificate's organization is the cluster, its unit the role.
    fn admit(&self, caller: &Caller, call: &Call) -> Result<(), Failure> {
        let open = matches!(
            call,
            Call::GetRootCaCertificate(_)
                | Call::IssueNodeCertificate(_)
                | Call::NodeCertificateStatus(_)
                | Call::Health(_)
        );
        if open {
            return Ok(());
        }
        self.check_member(caller)?;
        let for_workers = matches!(
            call,
            Call::Heartbeat(_)
                | Call::UpdateTaskStatus(_)
                | Call::UpdateVolumeStatus(_)
                | Call::AttachNetwork(_)
                | Call::DetachNetwork(_)
                | Call::PublishLogs(_)
        );
        if !for_workers && !caller.is_manager() {
            return Err(denied("a manager's certificate is needed"));
        }
        Ok(())
    }

    /// A certificate of this cluster that was not revoked.
    pub(crate) fn check_member(&self, caller: &Caller) -> Result<(), Failure> {
        if !caller.is_member() {
            return Err(denied(
                "unauthorized peer role: rpc error: code = PermissionDenied desc = no client certificates in request",
            ));
        }
        if caller.organization != self.identity.cluster_id {
            return Err(denied("remote certificate is of another swarm"));
        }
        let revoked = self
            .store
            .cluster()
            .is_some_and(|cluster| cluster.blacklisted_certificates.contains_key(&caller.node_id));
        if revoked {
            return Err(denied(&format!("certificate of {} is revoked", caller.node_id)));
        }
        Ok(())
    }

    /// `None` when the answer comes later.
    fn answer_or_wait(
        &mut self,
        now: Instant,
        ticket: Ticket,
        caller: Caller,
        call: Call,
        out: &mut Vec<Effect>,
    ) -> Option<Reply> {
        let here = matches!(
            call,
            Call::GetRootCaCertificate(_)
                | Call::GetUnlockKey(_)
                | Call::ResolveAddress(_)
                | Call::Health(_)
        );
        let begins = self.raft.leads() && self.leading.is_none();
        if begins && !here && self.early.len() < CALLS_WAITING_MAX {
            self.early.push((ticket, caller, call));
            return None;
        }
        match call {
            Call::Control(request) if is_read(&request) => Some(self.read(now, request)),
            Call::GetRootCaCertificate(_) => {
                Some(authority::roots(&self.store).map(Answer::GetRootCaCertificate))
            }
            Call::GetUnlockKey(_) => {
                Some(authority::unlock_key(&self.store).map(Answer::GetUnlockKey))
            }
            Call::ResolveAddress(request) => Some(self.resolve(&request)),
            Call::Health(request) => Some(self.health(&request)),
            _ if self.leading.is_none() => Some(Err(self.not_leading())),
            Call::NodeCertificateStatus(request) => self.certificate_status(ticket, request),
            Call::Join(request) => self.join_set(ticket, &caller, &request, out),
            Call::Leave(request) => match membership::leave(&self.raft, &caller, &request) {
                Err(failure) => Some(Err(failure)),
                Ok(change) => {
                    self.changes.push_back((change, Some(ticket)));
                    None
                }
            },
            Call::Heartbeat(request) => {
                self.dispatch(now, Ask::Heartbeat { ticket, node: &caller.node_id, request }, out)
            }
            Call::UpdateTaskStatus(request) => {
                let ask = Ask::UpdateTaskStatus { ticket, node: &caller.node_id, request };
                self.dispatch(now, ask, out)
            }
            Call::UpdateVolumeStatus(request) => {
                let ask = Ask::UpdateVolumeStatus { ticket, node: &caller.node_id, request };
                self.dispatch(now, ask, out)
            }
            Call::PublishLogs(message) => {
                let leading = self.leading.as_mut()?;
                let (reply, effects) = leading.logs.publish(&caller.node_id, message);
                self.push_streams(effects, out);
                Some(reply)
            }
            call if self.waiting.len() < CALLS_WAITING_MAX => {
                self.waiting.push_back((ticket, caller, call));
                None
            }
            _ => {
                let reason = format!("{CALLS_WAITING_MAX} calls are waiting already: try again");
                Some(Err(Failure::new(Code::ResourceExhausted, reason)))
            }
        }
    }

    pub(crate) fn not_leading(&self) -> Failure {
        match self.leader() {
            None => Failure::new(Code::Unknown, NO_LEADER),
            Some(leader) if leader.here => {
                Failure::new(Code::Unavailable, "this manager has just begun to lead: try again")
            }
            Some(leader) => {
                let reason = format!("this manager does not lead: ask {}", leader.address);
                Failure::new(Code::Unavailable, reason)
            }
        }
    }

    fn read(&mut self, now: Instant, request: Request) -> Reply {
        let mut desk = Desk { store: &self.store, raft: &self.raft, now, dice: &mut self.dice };
        match decide(&mut desk, request)? {
            Decision::Answer(response) => Ok(Answer::Control(response)),
            Decision::Write { .. } => Err(Failure::new(Code::Internal, "a read that writes")),
        }
    }

    /// What a waiting call comes to, decided over committed state.
    pub(crate) fn decide(
        &mut self,
        now: Instant,
        caller: &Caller,
        call: Call,
    ) -> Result<(Vec<pb::StoreAction>, Then), Failure> {
        let version = self.raft.commit_index();
        match call {
            Call::Control(request) => {
                let mut desk =
                    Desk { store: &self.store, raft: &self.raft, now, dice: &mut self.dice };
                match decide(&mut desk, request)? {
                    Decision::Answer(response) => {
                        Ok((Vec::new(), Box::new(move |_| Ok(Answer::Control(response)))))
                    }
                    Decision::Write { actions, then } => {
                        Ok((actions, Box::new(move |store| then(store).map(Answer::Control))))
                    }
                }
            }
            Call::IssueNodeCertificate(request) => {
                let (transaction, node_id) =
                    authority::issue(&self.store, caller, &request, &mut self.dice)?;
                let actions = transaction.finish(now, version);
                let node_membership = pb::node_spec::Membership::Accepted as i32;
                let answer = pb::IssueNodeCertificateResponse { node_id, node_membership };
                Ok((actions, Box::new(move |_| Ok(Answer::IssueNodeCertificate(answer)))))
            }
            Call::AttachNetwork(request) => {
                let (transaction, attachment_id) =
                    attach::attach(&self.store, caller, request, now, &mut self.dice)?;
                let answer = pb::AttachNetworkResponse { attachment_id };
                let actions = transaction.finish(now, version);
                Ok((actions, Box::new(move |_| Ok(Answer::AttachNetwork(answer)))))
            }
            Call::DetachNetwork(request) => {
                let actions = attach::detach(&self.store, caller, &request)?.finish(now, version);
                let answer = Answer::DetachNetwork(pb::DetachNetworkResponse {});
                Ok((actions, Box::new(move |_| Ok(answer))))
            }
            _ => Err(Failure::new(Code::Internal, "this call does not write")),
        }
    }

    fn certificate_status(
        &mut self,
        ticket: Ticket,
        request: pb::NodeCertificateStatusRequest,
    ) -> Option<Reply> {
        match authority::status(&self.store, &request.node_id) {
            Ok(Some(status)) => Some(Ok(Answer::NodeCertificateStatus(status))),
            Err(failure) => Some(Err(failure)),
            Ok(None) if self.certificate_waiters.len() >= CERTIFICATE_WAITERS_MAX => {
                Some(Err(Failure::new(Code::Unavailable, "too many nodes wait for certificates")))
            }
            Ok(None) => {
                self.certificate_waiters.insert(ticket, request.node_id);
                None
            }
        }
    }

    fn join_set(
        &mut self,
        ticket: Ticket,
        caller: &Caller,
        request: &pb::JoinRequest,
        out: &mut Vec<Effect>,
    ) -> Option<Reply> {
        match membership::join(&self.store, &self.raft, caller, request, &mut self.dice) {
            Err(failure) => Some(Err(failure)),
            Ok(Joining::Known(raft_id)) => {
                Some(Ok(Answer::Join(membership::join_response(&self.raft, raft_id))))
            }
            Ok(Joining::Change(change)) => {
                if let consensus::MemberChange::Add(member)
                | consensus::MemberChange::Update(member) = &change
                {
                    out.push(Effect::Probe { ticket, address: member.addr.clone() });
                }
                self.probes.insert(ticket, change);
                None
            }
        }
    }

    fn resolve(&self, request: &pb::ResolveAddressRequest) -> Reply {
        match self.raft.members().get(request.raft_id) {
            Some(member) => {
                Ok(Answer::ResolveAddress(pb::ResolveAddressResponse { addr: member.addr.clone() }))
            }
            None => {
                let reason = format!("member not found: {:x}", request.raft_id);
                Err(Failure::new(Code::NotFound, reason))
            }
        }
    }

    fn health(&self, request: &pb::HealthCheckRequest) -> Reply {
        use pb::health_check_response::ServingStatus;
        let status = match request.service.as_str() {
            "" | "Raft" if !self.raft.is_removed() => ServingStatus::Serving,
            "" | "Raft" => ServingStatus::NotServing,
            _ => return Err(Failure::new(Code::NotFound, "unknown service")),
        };
        Ok(Answer::Health(pb::HealthCheckResponse { status: status as i32 }))
    }
}

/// Whether it only asks: any manager can answer it from its own copy of the store.
pub fn is_read(request: &Request) -> bool {
    let method = request.method();
    method.starts_with("Get") || method.starts_with("List")
}

pub(crate) fn denied(what: &str) -> Failure {
    Failure::new(Code::PermissionDenied, format!("Permission denied: {what}"))
}
