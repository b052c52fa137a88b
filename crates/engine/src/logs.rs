//! A container's log, read back. Owner: the runtime area.
