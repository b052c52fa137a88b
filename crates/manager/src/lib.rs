//! One manager: the log, the store, the leader's loops, the dispatcher; driven by events.

pub mod dispatcher;
pub mod event;
mod start;

pub use event::{
    Answer, Call, Caller, Code, Effect, Event, Failure, Leader, Message, Open, Reply, StreamId,
    Ticket,
};
pub use start::{Bootstrap, Identity};
