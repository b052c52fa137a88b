//! When a container is reached from another host.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::Host;
use crate::command::sh;

/// A client gives up on one connection after so long, and tries the next.
const TRY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);

/// When `to` first accepts a connection from the network of a container, which tries all the time
/// that `start` takes and afterwards.
///
/// # Errors
/// Those of `start`, or that nobody answers.
pub fn first_answer(
    from: &Host,
    container: &str,
    to: SocketAddr,
    start: impl FnOnce() -> Result<()>,
) -> Result<SystemTime> {
    let netns = from.netns_of(container)?;
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| from.within(&netns, || ask(to)));
        start()?;
        asked.join().unwrap_or_else(|_| anyhow::bail!("the client panicked"))
    })
}

fn ask(to: SocketAddr) -> Result<SystemTime> {
    let began = Instant::now();
    while TcpStream::connect_timeout(&to, TRY).is_err() {
        ensure!(began.elapsed() < PATIENCE, "{to} does not answer");
    }
    Ok(SystemTime::now())
}

/// When a container's process began to run.
pub fn started_at(host: &Host, container: &str) -> Result<SystemTime> {
    let time = host.docker(&["inspect", "-f", "{{.State.StartedAt}}", container])?;
    let seconds = sh(&format!("date -u -d {time} +%s.%N"))?;
    let since_1970 = seconds.parse().with_context(|| format!("{container}: {time}"))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(since_1970))
}
