//! Join tokens and unlock keys: their text, their check.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use model::id::base36;
use rand::RngCore;
use sha2::{Digest, Sha256};
use wire::swarmkit as pb;

/// Base-36 digits of a SHA-256 sum.
const DIGEST_DIGITS: usize = 50;
/// Base-36 digits of 16 bytes.
const SECRET_DIGITS: usize = 25;
const SECRET_BYTES: usize = 16;
const UNLOCK_PREFIX: &str = "SWMKEY-1-";
pub const UNLOCK_KEY_BYTES: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("invalid join token")]
    Malformed,
    #[error("remote CA does not match fingerprint. Expected: {expected}, got {got}", expected = short(.expected), got = short(.got))]
    OtherRoot { expected: [u8; 4], got: [u8; 4] },
}

fn short(bytes: &[u8; 4]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token as its holder reads it: no more than the digest of the root, and whether FIPS is required.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub digest: String,
    pub fips: bool,
}

impl JoinToken {
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = token.split('-').collect();
        let (fips, digest, secret) = match parts[..] {
            ["SWMTKN", "1", digest, secret] => (false, digest, secret),
            ["SWMTKN", "2", "0", digest, secret] => (false, digest, secret),
            ["SWMTKN", "2", "1", digest, secret] => (true, digest, secret),
            _ => return Err(TokenError::Malformed),
        };
        let digits =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if digest.len() != DIGEST_DIGITS || secret.len() != SECRET_DIGITS {
            return Err(TokenError::Malformed);
        }
        if !digits(digest) || !digits(secret) {
            return Err(TokenError::Malformed);
        }
        Ok(Self { digest: digest.to_owned(), fips })
    }

    /// Whether these are the roots that the token was made for.
    pub fn check_roots(&self, roots: &[u8]) -> Result<(), TokenError> {
        if digest_digits(roots) == self.digest {
            return Ok(());
        }
        let head = |text: &str| {
            let mut head = [0; 4];
            head.copy_from_slice(&Sha256::digest(text.as_bytes())[..4]);
            head
        };
        Err(TokenError::OtherRoot {
            expected: head(&self.digest),
            got: head(&digest_digits(roots)),
        })
    }
}

/// A new token for joining under these roots (the exact PEM bytes that the CA service gives out).
pub fn join_token(roots: &[u8], dice: &mut dyn RngCore) -> String {
    let mut secret = [0; SECRET_BYTES];
    dice.fill_bytes(&mut secret);
    let secret = padded(&base36(&secret), SECRET_DIGITS);
    format!("SWMTKN-1-{}-{secret}", digest_digits(roots))
}

/// The role that a token admits to, found without telling by the time taken which one it was.
pub fn role_of(token: &str, tokens: &pb::JoinTokens) -> Option<pb::NodeRole> {
    let equal =
        |expected: &str| !expected.is_empty() && same(expected.as_bytes(), token.as_bytes());
    match (equal(&tokens.manager), equal(&tokens.worker)) {
        (true, _) => Some(pb::NodeRole::Manager),
        (false, true) => Some(pb::NodeRole::Worker),
        (false, false) => None,
    }
}

/// Looks at every byte whether or not an earlier one differs.
fn same(expected: &[u8], given: &[u8]) -> bool {
    if expected.len() != given.len() {
        return false;
    }
    let difference =
        expected.iter().zip(given).fold(0, |sum, (a, b)| sum | std::hint::black_box(a ^ b));
    std::hint::black_box(difference) == 0
}

/// `RootCA.ca_cert_hash`: as SwarmKit's digest writes itself.
pub fn root_digest(roots: &[u8]) -> String {
    let sum = Sha256::digest(roots);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn digest_digits(roots: &[u8]) -> String {
    padded(&base36(&Sha256::digest(roots)), DIGEST_DIGITS)
}

fn padded(digits: &str, width: usize) -> String {
    format!("{digits:0>width$}")
}

/// A new key that unlocks managers.
pub fn new_unlock_key(dice: &mut dyn RngCore) -> Vec<u8> {
    let mut key = vec![0; UNLOCK_KEY_BYTES];
    dice.fill_bytes(&mut key);
    key
}

/// As `docker swarm unlock-key` shows it.
pub fn unlock_key_text(key: &[u8]) -> String {
    format!("{UNLOCK_PREFIX}{}", STANDARD_NO_PAD.encode(key))
}

/// What the user typed, as bytes.
pub fn parse_unlock_key(text: &str) -> Option<Vec<u8>> {
    let key = STANDARD_NO_PAD.decode(text.strip_prefix(UNLOCK_PREFIX)?).ok()?;
    (key.len() == UNLOCK_KEY_BYTES).then_some(key)
}
