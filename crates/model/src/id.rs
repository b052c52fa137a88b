//! Ids that cannot be mixed up, and how new ones are made.

use std::fmt;
use std::ops::Deref;

use rand::RngCore;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn new(id: impl Into<String>) -> Self { Self(id.into()) }
            pub fn as_str(&self) -> &str { &self.0 }
            pub fn into_string(self) -> String { self.0 }
        }
        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str { &self.0 }
        }
        impl From<String> for $name { fn from(id: String) -> Self { Self(id) } }
        impl From<&str> for $name { fn from(id: &str) -> Self { Self(id.to_owned()) } }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl std::borrow::Borrow<str> for $name { fn borrow(&self) -> &str { &self.0 } }
    )* };
}

ids! {
    /// A member of the swarm; the CN of its certificate.
    NodeId,
    ServiceId,
    TaskId,
    /// A network of the swarm (25 characters) or of one host (64 hex digits).
    NetworkId,
    SecretId,
    ConfigId,
    /// 64 hex digits.
    ContainerId,
}

/// A new id in SwarmKit's form: 17 random bytes with the top bit set, as a base-36 number,
/// without its first digit, 25 characters long (swarmkit `identity.NewID`).
pub fn swarm_id(dice: &mut dyn RngCore) -> String {
    let mut bytes = [0u8; 17];
    dice.fill_bytes(&mut bytes);
    bytes[0] |= 0x80;
    base36(&bytes).chars().skip(1).take(25).collect()
}

/// A big-endian number in base 36, digits `0-9a-z`, without leading zeros.
pub fn base36(number: &[u8]) -> String {
    let mut number = number.to_vec();
    let mut digits = Vec::new();
    while number.iter().any(|byte| *byte != 0) {
        let mut rest = 0u32;
        for byte in number.iter_mut() {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 36) as u8;
            rest = value % 36;
        }
        digits.push(char::from_digit(rest, 36).unwrap_or('0'));
    }
    if digits.is_empty() {
        digits.push('0');
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn base36_matches_known_numbers() {
        assert_eq!(base36(&[0]), "0");
        assert_eq!(base36(&[35]), "z");
        assert_eq!(base36(&[1, 0]), "74");
        assert_eq!(base36(&[0xff, 0xff, 0xff, 0xff]), "1z141z3");
    }

    #[test]
    fn a_swarm_id_has_25_digits_and_follows_its_seed() {
        let mut dice = rand::rngs::StdRng::seed_from_u64(1);
        let id = swarm_id(&mut dice);
        assert_eq!(id.len(), 25);
        assert!(id.chars().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase()));
        assert_eq!(id, swarm_id(&mut rand::rngs::StdRng::seed_from_u64(1)));
        assert_ne!(id, swarm_id(&mut dice));
    }
}
