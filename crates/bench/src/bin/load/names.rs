//! Questions to the resolver of the container in whose network namespace this runs.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::report::Report;

const ASKERS: u32 = 2;
/// Questions of each asker that are under way when no rate is asked for.
const UNDER_WAY: u16 = 16;
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// NOERROR and at least one answer.
const RCODE: u8 = 0x0f;

pub async fn run(time: Duration, rate: u32, names: Vec<String>) -> Result<Report> {
    let over = Arc::new(AtomicBool::new(false));
    let asking = over.clone();
    let report = tokio::task::spawn_blocking(move || ask_all(&asking, rate, &names));
    crate::over(time).await;
    over.store(true, Ordering::Relaxed);
    report.await?
}

fn ask_all(over: &Arc<AtomicBool>, rate: u32, names: &[String]) -> Result<Report> {
    let begun = Instant::now();
    let askers: Vec<_> = (0..ASKERS)
        .map(|_| {
            let (names, over) = (names.to_vec(), over.clone());
            thread::spawn(move || ask(&names, rate, &over))
        })
        .collect();
    let mut report = Report::default();
    for asker in askers {
        report.merge(asker.join().map_err(|_| anyhow::anyhow!("an asker panicked"))??);
    }
    report.time = begun.elapsed();
    Ok(report)
}

fn ask(names: &[String], rate: u32, over: &AtomicBool) -> io::Result<Report> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect("127.0.0.11:53")?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let mut asker = Asker { socket, names, sent: vec![None; 1 << 16], next: 0 };
    let mut report = Report::default();
    let pause = (rate > 0).then(|| Duration::from_secs(1) * ASKERS / rate);
    for _ in 0..if pause.is_some() { 1 } else { UNDER_WAY } {
        asker.send()?;
    }
    let mut due = Instant::now();
    while !over.load(Ordering::Relaxed) {
        asker.receive(&mut report);
        if let Some(pause) = pause {
            due += pause;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        asker.send()?;
    }
    Ok(report)
}

struct Asker<'a> {
    socket: UdpSocket,
    names: &'a [String],
    sent: Vec<Option<Instant>>,
    next: u16,
}

impl Asker<'_> {
    fn send(&mut self) -> io::Result<()> {
        self.next = self.next.wrapping_add(1);
        self.sent[usize::from(self.next)] = Some(Instant::now());
        let name = &self.names[usize::from(self.next) % self.names.len()];
        match self.socket.send(&question(self.next, name)) {
            // Nobody listens: told by the answer to an earlier question.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            sent => sent.map(drop),
        }
    }

    fn receive(&mut self, report: &mut Report) {
        let mut buffer = [0; 1_024];
        match self.socket.recv(&mut buffer) {
            Err(error) => report.fail(error.kind()),
            Ok(length) if length < 12 => report.fail("short"),
            Ok(_) => {
                let id = u16::from_be_bytes([buffer[0], buffer[1]]);
                let answers = u16::from_be_bytes([buffer[6], buffer[7]]);
                match self.sent[usize::from(id)].take() {
                    Some(at) if buffer[3] & RCODE == 0 && answers > 0 => {
                        report.answer("127.0.0.11", at.elapsed());
                    }
                    Some(_) => {
                        report.fail(format!("code {}, {answers} answers", buffer[3] & RCODE))
                    }
                    None => report.fail("not asked"),
                }
            }
        }
    }
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}
