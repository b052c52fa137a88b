//! One manager: the log, the store, the leader's loops, the dispatcher; driven by events.

pub mod dispatcher;
pub mod event;
mod attach;
mod authority;
mod bootstrap;
mod calls;
mod control;
mod keys;
mod leading;
mod logs;
mod manager;
mod membership;
mod pump;
mod streams;
mod succession;
mod start;

pub use calls::is_read;
pub use event::{
    Answer, Call, Caller, Code, Effect, Event, Failure, Leader, Message, Open, Reply, Snapshot,
    StreamId, Ticket,
};
pub use manager::{Manager, NO_LEADER};
pub use start::{Bootstrap, Identity};

#[cfg(test)]
mod tests;
