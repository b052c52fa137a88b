//! Hosts in network namespaces for demo, e2e and bench.
