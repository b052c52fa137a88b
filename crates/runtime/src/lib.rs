//! Containers: OCI specs, libcontainer in a re-executed child, shims, logs, exec.
