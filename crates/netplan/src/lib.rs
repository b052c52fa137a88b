//! The host network a node should have, the steps to it, printed like ip and nft commands.

pub mod addr;
pub mod view;
pub mod desired;
pub mod objects;
pub mod table;
pub mod diff;
pub mod print;

pub use addr::{AddrError, Cidr, Mac};
pub use desired::{desired, mark_of, mesh6::twin as mesh_twin, overlay_mtu, sandbox::RESOLVER};
pub use diff::{Step, diff};
pub use objects::{
    BridgePort, Flows, LinkKind, LinkObject, Namespace, Objects, Route, Rule, TABLE_LOCAL,
    TABLE_MAIN, World,
};
pub use table::{TABLE_NAME, Table};
pub use view::*;
