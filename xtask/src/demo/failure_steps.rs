//! Step 10: the number of replicas is kept whatever ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::Host;
use lab::host::wait_until;

use super::show::{docker, docker_at_terminal, held, must, title};
use super::walk::Walk;

/// A task's default restart delay is 5 s, a lost host is noticed after three heartbeats; the rest
/// is for a busy machine.
const REPLACED_MAX: Duration = Duration::from_secs(180);

impl Walk<'_> {
    pub fn always_running(&mut self) -> Result<()> {
        title(10, "six replicas, always");
        self.task_killed()?;
        let last = (*self.busy_hosts().last().context("no host has a task")?).clone();
        self.host_stopped(&last)?;
        self.host_back(&last)?;
        docker(self.manager(), "service ps web").map(drop)
    }

    fn task_killed(&self) -> Result<()> {
        let host = *self.busy_hosts().first().context("no host has a task")?;
        let task = self.task_on(host)?;
        docker(host, &format!("kill {}", task.name))?;
        let start = Instant::now();
        self.wait_for_six(|running| !running.contains(&task.name))
            .context("after a task was killed")?;
        held(&format!("six tasks run again {} after one was killed", seconds(start)));
        Ok(())
    }

    fn host_stopped(&self, host: &Host) -> Result<()> {
        println!("\n{} is switched off", host.name);
        host.power_off()?;
        let start = Instant::now();
        self.wait_for_six(|running| !running.contains(&host.name))
            .with_context(|| format!("after {} was switched off", host.name))?;
        let others = if self.options.host_count() == 2 { "host" } else { "hosts" };
        held(&format!(
            "six tasks run on the other {others} {} after {} went off",
            seconds(start),
            host.name
        ));
        docker(self.manager(), "service ps web").map(drop)
    }

    fn host_back(&self, host: &Host) -> Result<()> {
        println!("\n{} is switched on again", host.name);
        let start = Instant::now();
        host.power_on()?;
        let ready = || {
            let format = "{{.Hostname}} {{.Status}}";
            let list = self.manager().docker(&["node", "ls", "--format", format])?;
            Ok(list.lines().any(|line| line == format!("{} Ready", host.name)))
        };
        wait_until(REPLACED_MAX, ready).context("the host is not Ready again")?;
        held(&format!("{} is Ready {} after its start", host.name, seconds(start)));
        self.answers_without_a_task(host)?;
        // With one more task for each host, none is so full that the emptiest gets nothing.
        let more = 6 + self.options.host_count();
        docker_at_terminal(self.manager(), &format!("service scale web={more}"))?;
        let running = self.running()?;
        must(running.contains(&host.name), &format!("{} takes part again", host.name), &running)?;
        docker_at_terminal(self.manager(), "service scale web=6").map(drop)
    }

    /// The returned host runs nothing yet, and answers the published port all the same.
    fn answers_without_a_task(&self, host: &Host) -> Result<()> {
        let running = self.running()?;
        if !self.balances(host) || running.contains(&host.name) {
            return Ok(());
        }
        // The node is Ready before it has heard of every task's place.
        wait_until(REPLACED_MAX, || Ok(self.ask_from_outside(&host.address, "/").is_ok()))?;
        // Each of the six tasks in turn: their hosts must know the way back to this one.
        for _ in 1..6 {
            self.ask_from_outside(&host.address, "/")?;
        }
        let answer = self.ask_from_outside(&host.address, "/")?;
        println!("\nclient# curl {}\n{answer}", host.address);
        must(!answer.is_empty(), &format!("{} answers, though it has no task", host.name), &answer)
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

fn seconds(start: Instant) -> String {
    format!("{:.1} s", start.elapsed().as_secs_f64())
}
