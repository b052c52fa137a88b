//! The host network a node should have, the steps to it, printed like ip and nft commands.
