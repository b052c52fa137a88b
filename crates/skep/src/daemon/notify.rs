//! Telling systemd how the daemon is doing (sd_notify(3)): a datagram to the socket it names.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Without `NOTIFY_SOCKET` there is nobody to tell. A failure is only logged: the daemon serves.
pub fn tell(state: &str) {
    let Ok(name) = std::env::var("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&name, state) {
        tracing::warn!(socket = name, %error, "systemd was not told {state}");
    }
}

fn send(name: &str, state: &str) -> std::io::Result<()> {
    let address = match name.strip_prefix('@') {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_reaches_a_socket_with_a_path_and_one_without() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify").display().to_string();
        let name = format!("@skep-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name[1..]).expect("a name");
        for (name, socket) in [
            (&path, UnixDatagram::bind(&path).expect("bound")),
            (&name, UnixDatagram::bind_addr(&abstract_address).expect("bound")),
        ] {
            send(name, "READY=1").expect("sent");
            let mut text = [0; 16];
            let count = socket.recv(&mut text).expect("received");
            assert_eq!(&text[..count], b"READY=1");
        }
    }
}
