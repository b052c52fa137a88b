//! A program on a terminal of its own, and what stands there when it has ended.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Write, stdout};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::command::shown;
use crate::interrupt;

/// Wide and high enough that nothing wraps and nothing scrolls away.
const SIZE: Winsize = Winsize { ws_row: 60, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };

/// Runs to the end as a user at a terminal would; who looks on through a terminal of his own sees
/// it happen. The answer is the last state of the screen.
///
/// # Errors
/// When the program is missing or ends with another status than 0.
pub fn run(command: &mut Command) -> Result<String> {
    interrupt::check()?;
    let (ours, theirs) = pair().context("no terminal could be made")?;
    command.env("TERM", "xterm");
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", shown(command)))?;
    // Our copies of the program's side: while one is open, reading never ends.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let running = interrupt::Running::new(&child)?;
    let screen = drawn(ours)?;
    drop(running);
    let status = child.wait()?;
    interrupt::check()?;
    if !status.success() {
        bail!("{} failed ({status}): {screen}", shown(command));
    }
    Ok(screen)
}

/// Both sides of a new terminal.
fn pair() -> Result<(File, File)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    tcsetwinsize(&ours, SIZE)?;
    let name = ptsname(&ours, Vec::new())?;
    let path = std::ffi::OsStr::from_bytes(name.as_bytes());
    let flags = i32::try_from(OFlags::NOCTTY.bits())?;
    let theirs = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    Ok((File::from(ours), theirs))
}

/// Reads until the program's side is closed, which reads as EIO.
fn drawn(mut terminal: File) -> Result<String> {
    let show = stdout().is_terminal();
    let mut screen = Screen::default();
    let mut chunk = [0; 4096];
    let mut rest = Vec::new();
    while let Ok(count) = terminal.read(&mut chunk) {
        if count == 0 {
            break;
        }
        if show {
            stdout().write_all(&chunk[..count])?;
            stdout().flush()?;
        }
        rest.extend_from_slice(&chunk[..count]);
    }
    screen.draw(&String::from_utf8_lossy(&rest));
    Ok(screen.text())
}

/// Rows of characters and the place of the cursor: as much of ECMA-48 as progress bars use.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Screen {
    fn draw(&mut self, text: &str) {
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\n' => self.row += 1,
                '\r' => self.column = 0,
                '\u{8}' => self.column = self.column.saturating_sub(1),
                '\u{1b}' if characters.next_if_eq(&'[').is_some() => {
                    let mut sequence = String::new();
                    while let Some(next) = characters.next_if(|c| !c.is_ascii_alphabetic()) {
                        sequence.push(next);
                    }
                    self.control(&sequence, characters.next().unwrap_or_default());
                }
                _ if character.is_control() => {}
                _ => self.put(character),
            }
        }
    }

    fn put(&mut self, character: char) {
        let (row, column) = (self.row, self.column);
        if self.rows.len() <= row {
            self.rows.resize(row + 1, Vec::new());
        }
        let cells = &mut self.rows[row];
        if cells.len() <= column {
            cells.resize(column + 1, ' ');
        }
        cells[column] = character;
        self.column += 1;
    }

    /// Cursor up, down, right, left; erase in line. Colours and the rest change no character.
    fn control(&mut self, parameters: &str, kind: char) {
        let count = parameters.parse().unwrap_or(1);
        match kind {
            'A' => self.row = self.row.saturating_sub(count),
            'B' => self.row += count,
            'C' => self.column += count,
            'D' => self.column = self.column.saturating_sub(count),
            'K' => {
                let keep = if parameters == "2" { 0 } else { self.column };
                if let Some(row) = self.rows.get_mut(self.row) {
                    row.truncate(keep);
                }
            }
            _ => {}
        }
    }

    fn text(&self) -> String {
        let rows = self.rows.iter().map(|row| row.iter().collect::<String>());
        let rows: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
        rows.join("\n").trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_that_was_drawn_over_stands_there_once() {
        let mut screen = Screen::default();
        screen
            .draw("overall: 0 of 2\r\n1/2: new\r\n\u{1b}[2A\u{1b}[2K\roverall: 2 of 2\u{1b}[2B\r");
        screen.draw("\u{1b}[1A\u{1b}[2K\r1/2: running\u{1b}[1B\r\u{1b}[0mdone\r\n");
        assert_eq!(screen.text(), "overall: 2 of 2\n1/2: running\ndone");
    }

    #[test]
    fn a_program_sees_a_terminal_and_its_failure_is_told() -> Result<()> {
        assert_eq!(
            run(Command::new("sh").args(["-c", "test -t 0 && test -t 1 && echo yes"]))?,
            "yes"
        );
        let error =
            run(Command::new("sh").args(["-c", "echo no; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("no") && error.contains('3'), "{error}");
        Ok(())
    }
}
