//! memberlist and NetworkDB state machines.
