//! What a pull, push, load or import says while it works: Docker's JSON messages as values.

use serde::Serialize;
use tokio::sync::mpsc;

/// Messages that may wait for a slow client before the work waits for it.
pub const PROGRESS_QUEUE_MAX: usize = 256;

/// One line of the stream, in the form the CLI's progress bars read.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    /// The bar as text, for clients that do not draw their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Detail {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Progress {
    pub fn status(status: impl Into<String>) -> Self {
        Self { status: Some(status.into()), ..Self::default() }
    }

    pub fn stream(text: impl Into<String>) -> Self {
        Self { stream: Some(text.into()), ..Self::default() }
    }

    /// `id: status`, without a bar.
    pub fn of(id: impl Into<String>, status: impl Into<String>) -> Self {
        Self {
            id: Some(id.into()),
            status: Some(status.into()),
            detail: Some(Detail::default()),
            ..Self::default()
        }
    }

    /// `id: status [==>  ] current/total`
    pub fn bar(id: impl Into<String>, status: impl Into<String>, current: u64, total: u64) -> Self {
        Self {
            id: Some(id.into()),
            status: Some(status.into()),
            detail: Some(Detail { current, total }),
            progress: Some(bar(current, total)),
            ..Self::default()
        }
    }
}

/// The bar of Docker's jsonmessage package: 50 cells, then the two sizes.
fn bar(current: u64, total: u64) -> String {
    if total == 0 {
        return format!("{:>8}", human(current));
    }
    let filled = (current.min(total) * 50 / total) as usize;
    let head = if filled < 50 { ">" } else { "" };
    let bar = format!("[{}{head}{}]", "=".repeat(filled), " ".repeat(50 - filled - head.len()));
    format!("{bar} {:>8}/{}", human(current), human(total))
}

/// A size as go-units prints it: four significant digits, decimal units.
pub fn human(size: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = size as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits =
        if value >= 1000.0 { 0 } else { 3 - (value.max(1.0).log10().floor() as usize).min(3) };
    let text = format!("{value:.digits$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// Where progress goes; a reader that went away does not stop the work.
#[derive(Clone)]
pub struct ProgressSender(Option<mpsc::Sender<Progress>>);

impl ProgressSender {
    pub fn new(to: mpsc::Sender<Progress>) -> Self {
        Self(Some(to))
    }

    pub fn nobody() -> Self {
        Self(None)
    }

    pub async fn send(&self, message: Progress) {
        if let Some(to) = &self.0 {
            let _ = to.send(message).await;
        }
    }

    /// From a thread that may block.
    pub fn send_blocking(&self, message: Progress) {
        if let Some(to) = &self.0 {
            let _ = to.blocking_send(message);
        }
    }

    /// For bars: a message that finds the queue full is dropped, the next one says more.
    pub fn offer(&self, message: Progress) {
        if let Some(to) = &self.0 {
            let _ = to.try_send(message);
        }
    }
}

/// A reader that draws its bar while it is read.
pub(crate) struct Watched<R> {
    from: R,
    total: u64,
    read: u64,
    told: u64,
    id: String,
    status: &'static str,
    progress: ProgressSender,
}

impl<R> Watched<R> {
    pub fn new(
        from: R,
        total: u64,
        id: String,
        status: &'static str,
        progress: ProgressSender,
    ) -> Self {
        Self { from, total, read: 0, told: 0, id, status, progress }
    }
}

impl<R: std::io::Read> std::io::Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.read += count as u64;
        if count > 0 && (self.read - self.told > self.total / 50 || self.read == self.total) {
            self.told = self.read;
            self.progress.offer(Progress::bar(&self.id, self.status, self.read, self.total));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_writes_them() {
        for (size, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_234_567, "1.235MB"),
            (42_100_000, "42.1MB"),
            (123_456, "123.5kB"),
        ] {
            assert_eq!(human(size), text);
        }
    }

    #[test]
    fn a_bar_fills_from_the_left() {
        assert!(bar(50, 100).starts_with(&format!("[{}>", "=".repeat(25))));
        assert!(bar(100, 100).starts_with(&format!("[{}]", "=".repeat(50))));
    }
}
