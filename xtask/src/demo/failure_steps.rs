//! Step 10: the number of replicas is kept whatever ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::Host;
use lab::host::wait_until;

use super::show::{docker, must, title};
use super::walk::Walk;

/// A task's default restart delay is 5 s; a lost host is noticed after three heartbeats of 5 s.
const REPLACED_MAX: Duration = Duration::from_secs(60);

impl Walk<'_> {
    pub fn always_running(&mut self) -> Result<()> {
        title(10, "six replicas, always");
        self.task_killed()?;
        let last = self.lab.host(self.lab.hosts.len()).clone();
        self.host_stopped(&last)?;
        self.host_back(&last)?;
        docker(self.manager(), "service ps web").map(drop)
    }

    fn task_killed(&self) -> Result<()> {
        let task = self.task_on(1)?.clone();
        docker(self.lab.host(1), &format!("kill {}", task.name))?;
        let start = Instant::now();
        self.wait_for_six(|running| !running.contains(&task.name))
            .context("after a task was killed")?;
        println!(
            "  a new task runs {:.1} s after the old one was killed",
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// The host loses its cable: nothing that it does can be heard any more.
    fn host_stopped(&self, host: &Host) -> Result<()> {
        println!("\n{} is cut off", host.name);
        host.cut()?;
        let start = Instant::now();
        self.wait_for_six(|running| !running.contains(&host.name))
            .context("after a host was cut off")?;
        println!(
            "  six tasks run on the other hosts {:.1} s after {} was cut off",
            start.elapsed().as_secs_f64(),
            host.name
        );
        docker(self.manager(), "service ps web").map(drop)
    }

    fn host_back(&self, host: &Host) -> Result<()> {
        println!("\n{} is back", host.name);
        host.heal()?;
        let start = Instant::now();
        let ready = || {
            let format = "{{.Hostname}} {{.Status}}";
            let list = self.manager().docker(&["node", "ls", "--format", format])?;
            Ok(list.lines().any(|line| line == format!("{} Ready", host.name)))
        };
        wait_until(REPLACED_MAX, ready).context("the host is not Ready again")?;
        println!(
            "  {} is Ready {:.1} s after its cable was back",
            host.name,
            start.elapsed().as_secs_f64()
        );
        docker(self.manager(), "service scale web=8")?;
        let running = self.running()?;
        must(running.contains(&host.name), &format!("{} takes part again", host.name), &running)?;
        docker(self.manager(), "service scale web=6").map(drop)
    }

    fn wait_for_six(&self, more: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(REPLACED_MAX, || {
            let running = self.running()?;
            Ok(running.lines().count() == 6 && more(&running))
        })
        .with_context(|| self.manager().dk("service ps web").unwrap_or_default())
    }

    /// A line for each task that runs and should: its name and node.
    fn running(&self) -> Result<String> {
        let format = "{{.Name}}.{{.ID}} {{.Node}} {{.DesiredState}} {{.CurrentState}}";
        let list =
            self.manager().docker(&["service", "ps", "--no-trunc", "--format", format, "web"])?;
        let rows = list.lines().filter(|row| row.contains(" Running Running "));
        Ok(rows.map(|row| format!("{row}\n")).collect())
    }
}
