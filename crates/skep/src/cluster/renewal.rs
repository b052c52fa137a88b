//! When a node asks for its next certificate.

use std::time::Duration;

use model::Instant;
use transport::Identity;

/// A timer does not run while the host sleeps, nor see that its clock is set.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Half of the certificate's life at least, four fifths at most, spread by the node's own key.
fn renew_at(identity: &Identity) -> u64 {
    let spread = identity.issuer_public_key.len() as u64
        + identity.certificate_pem.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let life = identity.not_after.saturating_sub(identity.not_before).max(0) as u64;
    identity.not_before.max(0) as u64 + life / 2 + life * 3 / 10 * (spread % 1_000) / 1_000
}

fn left(identity: &Identity, now: Instant) -> Duration {
    Duration::from_secs(renew_at(identity).saturating_sub(now.as_nanos() / 1_000_000_000))
}

pub fn is_due(identity: &Identity, now: Instant) -> bool {
    left(identity, now) <= Duration::from_secs(1)
}

pub fn look_in(identity: &Identity, now: Instant) -> Duration {
    left(identity, now).clamp(Duration::from_secs(1), LOOK_AGAIN)
}
