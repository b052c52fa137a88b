//! Registries, layers, root file systems.
