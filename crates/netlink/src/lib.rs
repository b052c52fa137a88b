//! Observe and apply host-network objects: rtnetlink, nfnetlink, namespaces.

pub mod kernel;
pub mod advert;
pub mod bpf;
pub mod features;
pub mod filter;
pub mod listening;
pub mod names;
mod observe;
mod strangers;
pub mod namespace;
pub mod nft;
mod challenge;
pub mod conntrack;
pub mod route;
pub mod socket;
pub mod expressions;
pub mod message;

pub use kernel::{Failure, Kernel};
pub use strangers::Closed;
