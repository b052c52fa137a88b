//! What a container uses, and its processes. Owner: the runtime area.
