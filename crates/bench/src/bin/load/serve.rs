//! The server: `Connection: close` with the next answer after SIGTERM, an end when all are closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

/// How long connections that ask nothing more hold up the end.
const IDLE_MAX: Duration = Duration::from_secs(2);
const REQUEST_BYTES_MAX: usize = 8_192;

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    open: AtomicUsize,
}

pub async fn run(port: u16) -> Result<()> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let mut end = signal(SignalKind::terminate())?;
    let tcp = TcpListener::bind(("0.0.0.0", port)).await?;
    let udp = UdpSocket::bind(("0.0.0.0", port)).await?;
    let shared = Arc::new(Shared::default());
    let mut datagram = [0; 2_048];
    loop {
        tokio::select! {
            accepted = tcp.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                shared.open.fetch_add(1, Ordering::Relaxed);
                let (shared, name) = (shared.clone(), name.clone());
                tokio::spawn(async move {
                    // Whoever closes early is done.
                    let _ = answer(stream, &name, &shared).await;
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            heard = udp.recv_from(&mut datagram) => {
                if let Ok((_, from)) = heard {
                    let _ = udp.send_to(name.as_bytes(), from).await;
                }
            }
            _ = end.recv() => break,
        }
    }
    shared.stopping.store(true, Ordering::Relaxed);
    drop(tcp);
    let begun = tokio::time::Instant::now();
    while shared.open.load(Ordering::Relaxed) > 0 && begun.elapsed() < IDLE_MAX {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn answer(mut stream: TcpStream, name: &str, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut held = Vec::new();
    loop {
        while !held.ends_with(b"\r\n\r\n") {
            if held.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut held).await? == 0 {
                return Ok(());
            }
        }
        let asked = String::from_utf8_lossy(&held).to_ascii_lowercase();
        let last = asked.contains("connection: close") || shared.stopping.load(Ordering::Relaxed);
        let connection = if last { "close" } else { "keep-alive" };
        let text = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{name}",
            name.len()
        );
        stream.write_all(text.as_bytes()).await?;
        if last {
            return stream.shutdown().await;
        }
        held.clear();
    }
}
