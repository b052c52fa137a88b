//! A client joined to a container's streams. Owner: the runtime area.
