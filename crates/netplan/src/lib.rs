//! The host network a node should have, the steps to it, printed like ip and nft commands.

pub mod addr;
pub mod view;

pub use addr::{AddrError, Cidr, Mac};
pub use view::*;
