//! Questions to the resolver of the container in whose network namespace this runs.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::burst::Burst;
use crate::report::Report;

/// How the questions come: so many a second, or the next as soon as one is answered.
#[derive(Clone, Copy)]
pub struct Pace {
    pub askers: u32,
    /// Questions of each asker that are under way at once when there is no rate.
    pub under_way: usize,
    /// All askers' questions a second; 0 is as fast as they are answered.
    pub rate: u32,
}

const ANSWER_MAX: Duration = Duration::from_secs(2);
/// NOERROR and at least one answer.
const RCODE: u8 = 0x0f;

pub async fn run(time: Duration, pace: Pace, names: Vec<String>) -> Result<Report> {
    let over = Arc::new(AtomicBool::new(false));
    let asking = over.clone();
    let report = tokio::task::spawn_blocking(move || ask_all(&asking, pace, &names));
    crate::over(time).await;
    over.store(true, Ordering::Relaxed);
    report.await?
}

fn ask_all(over: &Arc<AtomicBool>, pace: Pace, names: &[String]) -> Result<Report> {
    let begun = Instant::now();
    let askers: Vec<_> = (0..pace.askers)
        .map(|_| {
            let (names, over) = (names.to_vec(), over.clone());
            thread::spawn(move || ask(&names, pace, &over))
        })
        .collect();
    let mut report = Report::default();
    for asker in askers {
        report.merge(asker.join().map_err(|_| anyhow::anyhow!("an asker panicked"))??);
    }
    report.time = begun.elapsed();
    Ok(report)
}

fn ask(names: &[String], pace: Pace, over: &AtomicBool) -> io::Result<Report> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect("127.0.0.11:53")?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let mut asker =
        Asker { socket, burst: Burst::new(), names, sent: vec![None; 1 << 16], next: 0 };
    let mut report = Report::default();
    let pause = (pace.rate > 0).then(|| Duration::from_secs(1) * pace.askers / pace.rate);
    asker.send(if pause.is_some() { 1 } else { pace.under_way })?;
    let mut due = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let ended = asker.receive(&mut report);
        if let Some(pause) = pause {
            due += pause;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        asker.send(ended)?;
    }
    Ok(report)
}

struct Asker<'a> {
    socket: UdpSocket,
    burst: Burst,
    names: &'a [String],
    sent: Vec<Option<Instant>>,
    next: u16,
}

impl Asker<'_> {
    fn send(&mut self, count: usize) -> io::Result<()> {
        let questions: Vec<Vec<u8>> = (0..count).map(|_| self.question()).collect();
        let mut rest = questions.as_slice();
        while !rest.is_empty() {
            match self.burst.send(&self.socket, rest) {
                Ok(sent) => rest = &rest[sent..],
                // Nobody listens: told by the answer to an earlier question.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn question(&mut self) -> Vec<u8> {
        self.next = self.next.wrapping_add(1);
        self.sent[usize::from(self.next)] = Some(Instant::now());
        question(self.next, &self.names[usize::from(self.next) % self.names.len()])
    }

    /// How many questions have their end, answered or not.
    fn receive(&mut self, report: &mut Report) -> usize {
        let answers = match self.burst.receive(&self.socket) {
            Ok(answers) => answers,
            Err(error) => {
                report.fail(error.kind());
                return 1;
            }
        };
        let now = Instant::now();
        let mut ended = 0;
        for answer in answers {
            ended += 1;
            note(answer, &mut self.sent, now, report);
        }
        ended
    }
}

fn note(answer: &[u8], sent: &mut [Option<Instant>], now: Instant, report: &mut Report) {
    if answer.len() < 12 {
        return report.fail("short");
    }
    let id = u16::from_be_bytes([answer[0], answer[1]]);
    let answers = u16::from_be_bytes([answer[6], answer[7]]);
    match sent[usize::from(id)].take() {
        Some(at) if answer[3] & RCODE == 0 && answers > 0 => {
            report.answer("127.0.0.11", now.saturating_duration_since(at));
        }
        Some(_) => report.fail(format!("code {}, {answers} answers", answer[3] & RCODE)),
        None => report.fail("not asked"),
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
