//! Observe and apply host-network objects: rtnetlink, nfnetlink, namespaces.
