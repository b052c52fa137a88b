//! Join tokens, certificates, renewal, rotation.
