//! Subnets, addresses, virtual addresses, VNIs and published ports.
