//! The overlays on their way into the kernel and their names on theirs to the resolver; who waits for both.

use std::sync::Arc;
use std::time::Duration;

use engine::network::OverlayState;
use tokio::sync::{mpsc, watch};
use transport::gossip;

use super::names_told::{Names, Zones};

/// Between looks whether the resolver process still knows the names that it was told.
const NAMES_AGAIN: Duration = Duration::from_secs(2);

/// Applies the newest overlay state with its names, and tells up to which one it got.
pub async fn apply_overlays(
    engine: Arc<engine::Engine>,
    mut names: Names<resolver::Client>,
    mut wanted: watch::Receiver<(u64, agent::OverlayState, Zones)>,
    applied: watch::Sender<u64>,
    data_path: std::net::IpAddr,
) {
    loop {
        match tokio::time::timeout(NAMES_AGAIN, wanted.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                let zones = wanted.borrow().2.clone();
                names = tell_names(names, zones).await;
                continue;
            }
        }
        let (generation, state, zones) = wanted.borrow_and_update().clone();
        let state = OverlayState {
            overlays: state.overlays,
            names: state.names,
            data_path: Some(data_path),
            vxlan_port: state.vxlan_port,
            in_swarm: true,
        };
        if let Err(error) = engine.network.set_overlays(state).await {
            // The sweep tries again; tasks must not wait for a neighbour's broken network.
            tracing::warn!(%error, "overlay networks not applied in full");
        }
        names = tell_names(names, zones).await;
        applied.send_replace(generation);
    }
}

/// The calls block: a resolver that hangs must hold up nothing but its own names.
async fn tell_names(mut names: Names<resolver::Client>, zones: Zones) -> Names<resolver::Client> {
    let telling = tokio::task::spawn_blocking(move || {
        if let Err(error) = names.tell(&zones) {
            tracing::warn!(%error, "names of overlay networks not handed to the resolver yet");
        }
        names
    });
    match telling.await {
        Ok(names) => names,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Tells the owners of rows that this node's kernel follows them.
pub async fn answer_when_applied(
    mut due: mpsc::Receiver<(u64, ::gossip::Event)>,
    mut applied: watch::Receiver<u64>,
    gossip: gossip::Handle,
) {
    while let Some((generation, answer)) = due.recv().await {
        if applied.wait_for(|applied| *applied >= generation).await.is_err() {
            return;
        }
        gossip.send(answer).await;
    }
}
