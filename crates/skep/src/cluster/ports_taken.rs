//! Published ports that other processes on this host have: the agent tells the managers.

use std::collections::BTreeSet;

use agent::Event;
use netplan::view::Proto;
use tokio::sync::{mpsc, watch};

use super::agent_task::Input;

/// Tells which published ports other processes have, whenever that changes.
pub async fn tell(
    mut ports: watch::Receiver<BTreeSet<(Proto, u16)>>,
    told: mpsc::WeakSender<Input>,
) {
    loop {
        let taken = ports.borrow_and_update().clone();
        let Some(inputs) = told.upgrade() else { return };
        let sent = inputs.send(Input::Event(Event::PortsTaken(taken))).await;
        drop(inputs);
        if sent.is_err() || ports.changed().await.is_err() {
            return;
        }
    }
}
