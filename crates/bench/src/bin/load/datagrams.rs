//! Small datagrams as fast as they go: one side sends, the other counts what arrives.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::burst::{Burst, LENGTH_MAX};

/// Of one datagram's data: what a name's question or a game's move takes.
const BYTES: usize = 64;
const SILENCE_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Sends until the time is over. What is refused or does not fit in the queue is lost.
pub async fn send(time: Duration, to: SocketAddr) -> Result<u64> {
    let over = Arc::new(AtomicBool::new(false));
    let stop = over.clone();
    let sender = tokio::task::spawn_blocking(move || flood(to, &stop));
    crate::over(time).await;
    over.store(true, Ordering::Relaxed);
    Ok(sender.await??)
}

fn flood(to: SocketAddr, over: &AtomicBool) -> io::Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let mut burst = Burst::new();
    let datagrams = vec![vec![0x5a; BYTES]; LENGTH_MAX];
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        match burst.send(&socket, &datagrams) {
            Ok(count) => sent += count as u64,
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Nobody listens yet, or a queue is full.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::WouldBlock)
        || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

/// Datagrams a second from the first that arrives, for so long.
///
/// # Errors
/// When nothing arrives for [`SILENCE_MAX`].
pub fn count(port: u16, time: Duration) -> Result<f64> {
    let listening = Instant::now();
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_read_timeout(Some(LOOK_AGAIN))?;
    let mut burst = Burst::new();
    let (mut begun, mut arrived) = (None, 0u64);
    loop {
        match burst.receive(&socket) {
            Ok(datagrams) => {
                arrived += datagrams.count() as u64;
                begun.get_or_insert_with(Instant::now);
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error.into()),
        }
        if begun.is_none() && listening.elapsed() > SILENCE_MAX {
            bail!("no datagram arrived at port {port} in {SILENCE_MAX:?}");
        }
        if let Some(passed) = begun.map(|begun| begun.elapsed()).filter(|passed| *passed >= time) {
            return Ok(arrived as f64 / passed.as_secs_f64());
        }
    }
}
