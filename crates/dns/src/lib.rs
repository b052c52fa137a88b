//! What the embedded resolver answers: a function of the names that a sandbox can see.

pub mod kernel;
pub mod lookup;
pub mod message;
pub mod names;
pub mod prebuilt;

pub use lookup::answer;
pub use message::{Carrier, Code, Kind, Query, Question, Reject};
pub use names::{Names, Upstream, Zone};
pub use prebuilt::{Prebuilt, Reply};

use std::net::IpAddr;

/// What to do with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name is known; empty when it has no address of the family asked for.
    Addresses(Vec<IpAddr>),
    /// The names behind an address (PTR).
    Pointers(Vec<String>),
    /// Not ours: ask the upstream servers.
    Forward,
    /// Not ours, and nobody may be asked.
    Refuse,
}

#[cfg(test)]
mod tests;
