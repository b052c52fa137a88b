//! HTTP requests, each on a connection of its own or many on one.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::report::Report;

const CONNECTIONS: u32 = 16;
/// A request that takes longer has failed.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const BYTES_MAX: usize = 4_096;

pub async fn run(keep: bool, rate: u32, time: Duration, to: SocketAddr) -> Report {
    let report = Rc::new(RefCell::new(Report::default()));
    let begun = Instant::now();
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut workers = JoinSet::new();
            for _ in 0..CONNECTIONS {
                workers.spawn_local(work(keep, rate, to, begun + time, report.clone()));
            }
            tokio::select! {
                () = crate::over(time) => {}
                () = async { while workers.join_next().await.is_some() {} } => {}
            }
        })
        .await;
    let mut report = report.take();
    report.time = begun.elapsed();
    report
}

/// One connection at a time, so many requests a second as are its part.
async fn work(keep: bool, rate: u32, to: SocketAddr, end: Instant, report: Rc<RefCell<Report>>) {
    let mut tick = (rate > 0).then(|| {
        let mut tick = tokio::time::interval(Duration::from_secs(1) * CONNECTIONS / rate);
        // What was held up is made up for: the rate is what was asked for.
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        tick
    });
    let mut held = None;
    while Instant::now() < end {
        if let Some(tick) = &mut tick {
            tick.tick().await;
        }
        let begun = Instant::now();
        let answer = timeout(ANSWER_MAX, ask(keep, to, &mut held)).await;
        let mut report = report.borrow_mut();
        match answer {
            Ok(Ok(by)) => report.answer(&by, begun.elapsed()),
            Ok(Err(error)) => {
                held = None;
                report.fail_after(error, begun.elapsed());
            }
            Err(_) => {
                held = None;
                report.fail_after("no answer", begun.elapsed());
            }
        }
    }
}

async fn ask(keep: bool, to: SocketAddr, held: &mut Option<TcpStream>) -> std::io::Result<String> {
    let mut stream = match held.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    let connection = if keep { "keep-alive" } else { "close" };
    let request = format!("GET / HTTP/1.1\r\nHost: load\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let (head, body) = read(&mut stream).await?;
    if keep && !head.contains("connection: close") {
        *held = Some(stream);
    }
    Ok(body)
}

/// Head in lower case, and body.
async fn read(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return Ok((head, body[..length].trim().to_owned()));
            }
        }
        if bytes.len() > BYTES_MAX || stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
