//! gRPC with mutual TLS, gossip sockets.
