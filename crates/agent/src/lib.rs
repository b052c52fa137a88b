//! A worker: task stages, its view of the network, what it reports.
