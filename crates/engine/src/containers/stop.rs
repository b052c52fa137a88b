//! `docker stop`, `kill`, `restart`, `pause` and `wait`.

use std::sync::Arc;
use std::time::Duration;

use super::container::{Container, Life, Phase};
use crate::Engine;
use crate::error::{Error, Kind, Result};

pub(super) const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// Docker's default before SIGKILL.
const STOP_SECONDS: i64 = 10;
/// After SIGKILL a process in the kernel may still need a while.
const KILLED_SECONDS_MAX: u64 = 30;

/// When `wait` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    NotRunning,
    NextExit,
    Removed,
}

impl Engine {
    /// `NotModified` when it does not run. `None`: the container's own timeout; negative: for ever.
    pub async fn stop(
        self: &Arc<Self>,
        name: &str,
        seconds: Option<i64>,
        signal: Option<&str>,
    ) -> Result<()> {
        let container = self.container(name)?;
        let signal = signal.map(signal_number).transpose()?;
        self.stop_container(&container, seconds, signal).await
    }

    async fn stop_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        seconds: Option<i64>,
        signal: Option<i32>,
    ) -> Result<()> {
        // Between two looks the restart policy may have started it, or an exit may have come.
        let mut stopped = false;
        loop {
            match container.phase() {
                Phase::Running | Phase::Paused => {
                    self.stop_running(container, seconds, signal).await?;
                }
                Phase::Restarting => self.stop_restarting(container).await,
                _ if stopped => break,
                _ => return Err(Error::not_modified("container already stopped")),
            }
            stopped = true;
        }
        self.publish(container, "stop", []);
        let removed = container.spec().host_config.auto_remove.unwrap_or_default();
        if removed && !container.keeps_next_exit() {
            // Who stops a container of `--rm` expects that its name is free.
            let mut life = container.life();
            let patience = Duration::from_secs(KILLED_SECONDS_MAX);
            let _ = tokio::time::timeout(patience, life.wait_for(|life| life.removed)).await;
        }
        Ok(())
    }

    /// Asks with the signal, then insists with SIGKILL.
    async fn stop_running(
        self: &Arc<Self>,
        container: &Arc<Container>,
        seconds: Option<i64>,
        signal: Option<i32>,
    ) -> Result<()> {
        let spec = container.spec();
        let own = spec.config.stop_signal.as_deref().filter(|text| !text.is_empty());
        let signal = match signal {
            Some(signal) => signal,
            None => own.map(signal_number).transpose()?.unwrap_or(SIGTERM),
        };
        let seconds = seconds.or(spec.config.stop_timeout).unwrap_or(STOP_SECONDS);
        let mut life = container.life();
        let exits = life.borrow_and_update().exits;
        container.change_state(|state| state.stopped_by_user = true);
        if !self.send_while_running(container, signal).await? {
            return Ok(());
        }
        let patience = u64::try_from(seconds).ok().map(Duration::from_secs);
        if !ended_within(&mut life, exits, patience).await {
            if !self.send_while_running(container, SIGKILL).await? {
                return Ok(());
            }
            let patience = Some(Duration::from_secs(KILLED_SECONDS_MAX));
            if !ended_within(&mut life, exits, patience).await {
                return Err(Error::internal(format!(
                    "cannot stop container: {}: tried to kill container, but did not receive an exit event",
                    container.name()
                )));
            }
        }
        Ok(())
    }

    /// False when it has ended by itself in the meantime.
    async fn send_while_running(
        self: &Arc<Self>,
        container: &Arc<Container>,
        signal: i32,
    ) -> Result<bool> {
        match self.send(container, signal).await {
            // The process has ended; its exit may still be on the way.
            Err(error) if error.kind == Kind::Conflict => Ok(container.is_running()),
            sent => sent.map(|()| true),
        }
    }

    /// A container that waits for its next start is stopped by taking the start away.
    pub(super) async fn stop_restarting(self: &Arc<Self>, container: &Arc<Container>) {
        let _operation = container.operation.lock().await;
        container.cancel_plans();
        if container.phase() == Phase::Restarting {
            container.change_state(|state| {
                state.phase = Phase::Exited;
                state.stopped_by_user = true;
            });
        }
    }

    pub async fn kill(self: &Arc<Self>, name: &str, signal: Option<&str>) -> Result<()> {
        let container = self.container(name)?;
        let number = match signal.filter(|signal| !signal.is_empty()) {
            Some(signal) => signal_number(signal)?,
            None => SIGKILL,
        };
        let spec = container.spec();
        let own = spec.config.stop_signal.as_deref().filter(|text| !text.is_empty());
        let ends = number == SIGKILL
            || own.is_none_or(|own| signal_number(own).is_ok_and(|own| own == number));
        if ends && container.phase() == Phase::Restarting {
            self.stop_restarting(&container).await;
            if !container.is_running() {
                return Ok(());
            }
        }
        if !container.is_running() {
            return Err(Error::conflict(format!(
                "cannot kill container: {name}: container {} is not running",
                container.id()
            )));
        }
        if ends {
            container.change_state(|state| state.stopped_by_user = true);
        }
        let mut life = container.life();
        let exits = life.borrow_and_update().exits;
        self.send(&container, number).await?;
        if number == SIGKILL {
            // Docker's answer to SIGKILL means that the container has ended.
            ended_within(&mut life, exits, Some(Duration::from_secs(KILLED_SECONDS_MAX))).await;
        }
        Ok(())
    }

    /// Sends a signal; a paused container is resumed so that it can take it.
    async fn send(self: &Arc<Self>, container: &Arc<Container>, signal: i32) -> Result<()> {
        let sent = self.runtime.kill(container.id(), signal).await;
        self.publish(container, "kill", [("signal".to_owned(), signal.to_string())]);
        match sent {
            Ok(()) => {}
            // It ended on its own at this moment: what the caller wanted.
            Err(error) if error.kind == runtime::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::from(error).context("cannot kill container")),
        }
        if container.is_paused() && matches!(signal, SIGKILL | SIGTERM) {
            self.runtime.resume(container.id()).await?;
            container.change_state(|state| {
                if state.phase == Phase::Paused {
                    state.phase = Phase::Running;
                }
            });
        }
        Ok(())
    }

    pub async fn restart(
        self: &Arc<Self>,
        name: &str,
        seconds: Option<i64>,
        signal: Option<&str>,
    ) -> Result<()> {
        let container = self.container(name)?;
        let signal = signal.map(signal_number).transpose()?;
        let kept = container.keep_next_exit();
        let stopped = self.stop_container(&container, seconds, signal).await;
        drop(kept);
        match stopped {
            Err(error) if error.kind != Kind::NotModified => return Err(error),
            _ => {}
        }
        self.start(container.id()).await?;
        self.publish(&container, "restart", []);
        Ok(())
    }

    pub async fn pause(self: &Arc<Self>, name: &str) -> Result<()> {
        let container = self.container(name)?;
        let _operation = container.operation.lock().await;
        let id = container.id();
        match container.phase() {
            Phase::Running => {}
            Phase::Paused => {
                return Err(Error::conflict(format!("container {id} is already paused")));
            }
            Phase::Restarting => {
                return Err(Error::conflict(format!(
                    "Container {id} is restarting, wait until the container is running"
                )));
            }
            _ => return Err(Error::conflict(format!("container {id} is not running"))),
        }
        self.runtime.pause(id).await.map_err(|error| {
            Error::from(error).context(format_args!("cannot pause container {id}"))
        })?;
        container.change_state(|state| state.phase = Phase::Paused);
        self.publish(&container, "pause", []);
        Ok(())
    }

    pub async fn unpause(self: &Arc<Self>, name: &str) -> Result<()> {
        let container = self.container(name)?;
        let _operation = container.operation.lock().await;
        let id = container.id();
        if !container.is_paused() {
            return Err(Error::conflict(format!("container {id} is not paused")));
        }
        self.runtime.resume(id).await.map_err(|error| {
            Error::from(error).context(format_args!("cannot unpause container {id}"))
        })?;
        container.change_state(|state| state.phase = Phase::Running);
        self.publish(&container, "unpause", []);
        Ok(())
    }

    /// Registers at once; the future ends with the exit code and the error of a failed start.
    pub fn wait(
        &self,
        name: &str,
        condition: WaitFor,
    ) -> Result<impl Future<Output = (i32, String)> + Send + 'static + use<>> {
        let container = self.container(name)?;
        let mut life = container.life();
        let exits = life.borrow_and_update().exits;
        Ok(async move {
            let done = |life: &Life| match condition {
                WaitFor::NotRunning => !life.running || life.exits > exits || life.removed,
                WaitFor::NextExit => life.exits > exits || life.removed,
                WaitFor::Removed => life.removed,
            };
            match life.wait_for(done).await {
                Ok(life) => (life.exit_code, life.error.clone()),
                // The container is gone without a word: as good as removed.
                Err(_) => (0, String::new()),
            }
        })
    }
}

/// True when one more run has ended within the time; `None` waits for ever.
async fn ended_within(
    life: &mut tokio::sync::watch::Receiver<Life>,
    exits: u64,
    patience: Option<Duration>,
) -> bool {
    let ended = life.wait_for(|life| life.exits > exits || life.removed);
    match patience {
        None => ended.await.is_ok(),
        Some(patience) => tokio::time::timeout(patience, ended).await.is_ok(),
    }
}

/// `9`, `KILL`, `SIGKILL`, in any case, and real-time signals `RTMIN+3`.
pub fn signal_number(text: &str) -> Result<i32> {
    let invalid = || Error::bad_parameter(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = SIGNALS.iter().position(|signal| *signal == name) {
        return i32::try_from(at + 1).map_err(|_| invalid());
    }
    // Linux: SIGRTMIN is 34 to programs, SIGRTMAX 64.
    let real_time = match name {
        "IOT" => Some(6),
        "CLD" => Some(17),
        "POLL" => Some(29),
        "RTMIN" => Some(34),
        "RTMAX" => Some(64),
        _ => name
            .strip_prefix("RTMIN+")
            .and_then(|offset| offset.parse::<i32>().ok())
            .map(|offset| 34 + offset)
            .or_else(|| {
                let offset = name.strip_prefix("RTMAX-")?;
                offset.parse::<i32>().ok().map(|offset| 64 - offset)
            })
            .filter(|number| (34..=64).contains(number)),
    };
    real_time.ok_or_else(invalid)
}

const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", 37), ("SYS", 31), ("HUP", 1)]
        {
            assert_eq!(signal_number(text).expect(text), number);
        }
        for text in ["0", "65", "NOPE", "SIGRTMIN+99", ""] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }
}
