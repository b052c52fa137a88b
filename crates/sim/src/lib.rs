//! Seeded clusters in one thread.
