//! A docker command at a terminal: what is typed, what is seen, and the size of the window.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::Host;
use lab::host::wait_until;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// `script` makes the terminal; its other end is held here.
pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
    /// Where in `seen` the next answer may begin.
    read: usize,
    device: String,
}

impl Terminal {
    /// Runs `docker <line>` at a terminal of 24 rows and 80 columns.
    pub fn open(host: &Host, line: &str) -> Result<Terminal> {
        let mut child = Command::new("script")
            .args(["-qefc", &format!("stty rows 24 cols 80; tty; exec docker {line}"), "/dev/null"])
            .env("DOCKER_HOST", host.docker_host())
            .env("DOCKER_CONFIG", &host.cli)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run script (package bsdutils)")?;
        let keyboard = child.stdin.take().context("no standard input")?;
        let mut screen = child.stdout.take().context("no standard output")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shown = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                let mut seen = shown.lock().unwrap_or_else(PoisonError::into_inner);
                seen.extend_from_slice(&buffer[..count]);
            }
        });
        let device = String::new();
        let mut terminal = Terminal { child, keyboard, seen, read: 0, device };
        terminal.expect("/dev/pts/")?;
        terminal.expect("\n")?;
        let text = terminal.text(0);
        terminal.device = text.lines().next().unwrap_or_default().trim().to_owned();
        Ok(terminal)
    }

    pub fn type_in(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes())?;
        self.keyboard.flush().context("the terminal takes no more keys")
    }

    /// Waits until `text` is seen after what was expected before.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        self.expect_within(text, PATIENCE)
    }

    pub fn expect_within(&mut self, text: &str, limit: Duration) -> Result<()> {
        let from = self.read;
        let found = wait_until(limit, || Ok(self.text(from).contains(text)));
        found.with_context(|| format!("{text:?} is not in {:?}", self.text(from)))?;
        self.read = from + self.text(from).find(text).unwrap_or_default() + text.len();
        Ok(())
    }

    /// Changes the window; the kernel tells the program in it.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = ["rows", &rows.to_string(), "cols", &columns.to_string()].map(str::to_owned);
        let status = Command::new("stty").args(["-F", &self.device]).args(size).status()?;
        if !status.success() {
            bail!("stty cannot change {}", self.device);
        }
        Ok(())
    }

    /// Waits for the end; the command's exit status.
    pub fn end(mut self) -> Result<i32> {
        let mut status = None;
        wait_until(PATIENCE, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
        .with_context(|| format!("the command does not end: {:?}", self.text(0)))?;
        status.and_then(|status| status.code()).context("the command was ended by a signal")
    }

    fn text(&self, from: usize) -> String {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Only ASCII is looked for, so a cut character changes nothing.
        seen[from..].iter().map(|byte| char::from(byte & 0x7f)).collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
