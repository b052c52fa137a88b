//! Replicated and global services; update, rollback, restart, reaping.
