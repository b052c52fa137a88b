//! Join tokens, unlock keys, PEM and certificates.

use std::sync::LazyLock;
use std::time::Duration;

use ca::{Identity, JoinToken, Key, Root};
use model::Instant;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::swarmkit::NodeRole;

/// Where the seeds' certificates are good: 2026.
pub const NOW: Instant = Instant::from_nanos(1_785_542_400_000_000_000);

static AUTHORITY: LazyLock<Option<Root>> =
    LazyLock::new(|| Root::create(NOW, &mut ChaCha8Rng::from_seed([1; 32])).ok());

/// What a user types or pastes.
pub fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(token) = JoinToken::parse(&text) {
        // A digest over any roots is compared, never trusted.
        let _ = token.check_roots(data);
    }
    let _ = transport::join::Token::parse(&text);
    if let Some(key) = ca::token::parse_unlock_key(&text) {
        assert_eq!(ca::token::unlock_key_text(&key), text);
    }
}

/// Certificates, keys and signing requests, in PEM or DER, from peers and from files.
pub fn certificate(data: &[u8]) {
    let _ = ca::certificate::read_der(data);
    let _ = ca::certificate::issuer_info(data);
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(blocks) = ca::pem::parse(text)
    {
        let written: String = blocks.iter().map(ca::pem::write).collect();
        assert!(ca::pem::parse(&written).is_some_and(|again| again == blocks), "{written}");
    }
    if let Ok(key) = Key::from_pem(data) {
        let _ = key.owns(data);
    }
    if let Ok(root) = Root::trusted(data.to_vec()) {
        let _ = root.verify(data, NOW);
    }
    let Some(authority) = &*AUTHORITY else { return };
    assert!(authority.verify(data, NOW).is_err(), "a key that is in no seed signed nothing");
    let mut dice = ChaCha8Rng::from_seed([2; 32]);
    let identity =
        Identity { node_id: "node".into(), role: NodeRole::Worker, organization: "cluster".into() };
    let issued = authority.sign(data, &identity, NOW, Duration::from_secs(7_200), &mut dice);
    if let Ok(issued) = issued {
        let verified = authority.verify(&issued.chain, NOW);
        assert!(
            verified.is_ok_and(|verified| verified.node_id == "node" && !verified.is_manager())
        );
    }
    let _ = authority.cross_sign(data, NOW, &mut dice);
}
