//! The process table as `docker top` shows it, read from /proc.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

const TICKS_PER_SECOND: u64 = 100;
const DEFAULT: &str = "-ef";
const PID: &str = "PID";

/// One process, as far as any column needs it.
#[derive(Default)]
struct Process {
    pid: u32,
    ppid: i64,
    pgid: i64,
    sid: i64,
    uid: u32,
    gid: u32,
    state: String,
    tty: i64,
    ticks: u64,
    start_ticks: u64,
    nice: i64,
    threads: i64,
    vsize: u64,
    rss_pages: u64,
    name: String,
    command: String,
}

/// What is the same for all rows.
struct Host {
    uptime: u64,
    now: u64,
    memory_kib: u64,
    users: HashMap<u32, String>,
}

/// Titles and rows.
pub type Table = (Vec<String>, Vec<Vec<String>>);

/// Titles and rows of the given processes, for arguments as `ps` has them.
pub fn table(pids: &[u32], ps_args: &str) -> Result<Table> {
    let Some(columns) = columns(ps_args) else { return by_ps(pids, ps_args) };
    if !columns.iter().any(|(_, heading)| heading == PID) {
        return Err(no_pids());
    }
    let host = Host::read();
    let titles = columns.iter().map(|(_, title)| title.clone()).collect();
    let rows = pids
        .iter()
        .filter_map(|pid| Process::read(*pid))
        .map(|p| columns.iter().map(|(name, _)| p.column(name, &host)).collect())
        .collect();
    Ok((titles, rows))
}

/// What the host's `ps` says, for arguments that are not known here.
fn by_ps(pids: &[u32], ps_args: &str) -> Result<Table> {
    let list: Vec<String> = pids.iter().map(u32::to_string).collect();
    // Some options do not go together with a choice of processes.
    let said = match ps(ps_args, Some(&format!("-q{}", list.join(",")))) {
        Ok(said) if said.status.success() => Ok(said),
        _ => ps(ps_args, None),
    };
    let said = said.map_err(|cause| {
        Error::invalid(format!(
            "ps {ps_args}: {cause}: without ps on the host there are -ef, aux and -o with columns"
        ))
    })?;
    if !said.status.success() {
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        let line = text.lines().find(|line| !line.is_empty()).map(str::to_owned);
        let status = || format!("exit status {}", said.status.code().unwrap_or(-1));
        return Err(Error::invalid(format!("ps: {}", line.unwrap_or_else(status))));
    }
    of_pids(pids, &String::from_utf8_lossy(&said.stdout))
}

fn ps(arguments: &str, chosen: Option<&str>) -> std::io::Result<std::process::Output> {
    std::process::Command::new("ps").args(arguments.split_whitespace()).args(chosen).output()
}

/// The lines of `ps` that are about the given processes; what is behind the last title may have blanks.
fn of_pids(pids: &[u32], text: &str) -> Result<Table> {
    let mut lines = text.lines();
    let titles: Vec<String> =
        lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let at = titles.iter().position(|title| title == PID).ok_or_else(no_pids)?;
    let row = |line: &str| {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let pid = words.get(at)?.parse().ok()?;
        if words.len() > titles.len() {
            let last = words.split_off(titles.len() - 1).join(" ");
            words.push(last);
        }
        pids.contains(&pid).then_some(words)
    };
    let rows = lines.filter_map(row).collect();
    Ok((titles, rows))
}

fn no_pids() -> Error {
    Error::invalid("Couldn't find PID field in ps output")
}

/// (column, title) for `-ef`, `aux` and `-o` lists; none for anything else.
fn columns(ps_args: &str) -> Option<Vec<(String, String)>> {
    let text = if ps_args.trim().is_empty() { DEFAULT } else { ps_args.trim() };
    let named =
        |list: &[&str]| list.iter().map(|n| ((*n).to_owned(), title(n))).collect::<Vec<_>>();
    let mut chosen: Vec<(String, String)> = Vec::new();
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let list = match word {
            "-o" | "o" | "--format" => words.next(),
            _ => word
                .strip_prefix("-eo")
                .or(word.strip_prefix("-o"))
                .or(word.strip_prefix("--format=")),
        };
        // `-eo` alone takes the next word.
        let list = if list == Some("") { words.next() } else { list };
        match (list, word) {
            (Some(list), _) => {
                for item in list.split(',').filter(|i| !i.is_empty()) {
                    let (name, heading) = match item.split_once('=') {
                        Some((name, heading)) => (name, heading.to_owned()),
                        None => (item, title(item)),
                    };
                    if title(name).is_empty() {
                        return None;
                    }
                    chosen.push((name.to_owned(), heading));
                }
            }
            (None, "-ef" | "-f" | "-e -f" | "-Af") => {
                chosen = named(&["user", "pid", "ppid", "c", "stime", "tname", "time", "cmd"]);
            }
            (None, "aux" | "-aux" | "u" | "axu" | "ux") => {
                chosen = named(&[
                    "euser", "pid", "%cpu", "%mem", "vsz", "rss", "tt", "stat", "start", "cputime",
                    "args",
                ]);
                for (name, heading) in &mut chosen {
                    *heading = match name.as_str() {
                        "euser" => "USER".to_owned(),
                        "tt" => "TTY".to_owned(),
                        "cputime" => "TIME".to_owned(),
                        _ => std::mem::take(heading),
                    };
                }
            }
            (None, "-e" | "-A" | "ax" | "a" | "x" | "-a") => {
                if chosen.is_empty() {
                    chosen = named(&["pid", "tname", "time", "comm"]);
                    for (name, heading) in &mut chosen {
                        if name == "comm" {
                            *heading = "CMD".to_owned();
                        }
                    }
                }
            }
            _ => return None,
        }
    }
    Some(chosen)
}

fn title(column: &str) -> String {
    let known = match column {
        "user" | "uname" | "ruser" => "UID",
        "euser" => "EUSER",
        "uid" | "euid" | "ruid" => "UID",
        "gid" | "egid" | "rgid" => "GID",
        "pid" => "PID",
        "ppid" => "PPID",
        "pgid" | "pgrp" => "PGID",
        "sid" | "sess" => "SID",
        "c" => "C",
        "stime" => "STIME",
        "start" => "START",
        "tname" => "TTY",
        "tt" | "tty" => "TT",
        "time" | "cputime" => "TIME",
        "etime" => "ELAPSED",
        "etimes" => "ELAPSED",
        "cmd" => "CMD",
        "args" | "command" => "COMMAND",
        "comm" | "ucmd" => "COMMAND",
        "%cpu" | "pcpu" => "%CPU",
        "%mem" | "pmem" => "%MEM",
        "vsz" | "vsize" => "VSZ",
        "rss" | "rssize" => "RSS",
        "stat" => "STAT",
        "s" | "state" => "S",
        "ni" | "nice" => "NI",
        "nlwp" | "thcount" => "NLWP",
        _ => "",
    };
    known.to_owned()
}

impl Host {
    fn read() -> Host {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        };
        Host {
            uptime: uptime.split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0),
            now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            memory_kib: memory.split_whitespace().nth(1).and_then(|k| k.parse().ok()).unwrap_or(1),
            users: passwd.lines().filter_map(user).collect(),
        }
    }
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, rest) = stat.rsplit_once(") ")?;
        let name = head.split_once(" (")?.1.to_owned();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |n: usize| fields.get(n).and_then(|f| f.parse::<i64>().ok()).unwrap_or(0);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let id = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = raw.split(|b| *b == 0).filter(|w| !w.is_empty());
        let command =
            words.map(|w| String::from_utf8_lossy(w).into_owned()).collect::<Vec<_>>().join(" ");
        Some(Process {
            pid,
            ppid: number(1),
            pgid: number(2),
            sid: number(3),
            tty: number(4),
            state: (*fields.first()?).to_owned(),
            ticks: (number(11) + number(12)) as u64,
            nice: number(16),
            threads: number(17),
            start_ticks: number(19) as u64,
            vsize: number(20) as u64,
            rss_pages: number(21) as u64,
            uid: id("Uid:").unwrap_or(0),
            gid: id("Gid:").unwrap_or(0),
            command: if command.is_empty() { format!("[{name}]") } else { command },
            name,
        })
    }

    fn column(&self, name: &str, host: &Host) -> String {
        let age = host.uptime.saturating_sub(self.start_ticks / TICKS_PER_SECOND);
        let seconds = self.ticks / TICKS_PER_SECOND;
        let rss = self.rss_pages * rustix::param::page_size() as u64 / 1024;
        match name {
            "user" | "uname" | "ruser" | "euser" => {
                host.users.get(&self.uid).cloned().unwrap_or_else(|| self.uid.to_string())
            }
            "uid" | "euid" | "ruid" => self.uid.to_string(),
            "gid" | "egid" | "rgid" => self.gid.to_string(),
            "pid" => self.pid.to_string(),
            "ppid" => self.ppid.to_string(),
            "pgid" | "pgrp" => self.pgid.to_string(),
            "sid" | "sess" => self.sid.to_string(),
            "c" => (self.ticks.checked_div(age).unwrap_or(0)).min(99).to_string(),
            "%cpu" | "pcpu" => {
                let tenths = (self.ticks * 10).checked_div(age).unwrap_or(0);
                format!("{}.{}", tenths / 10, tenths % 10)
            }
            "%mem" | "pmem" => {
                let tenths = rss * 1000 / host.memory_kib.max(1);
                format!("{}.{}", tenths / 10, tenths % 10)
            }
            "stime" | "start" => start_time(host.now.saturating_sub(age), host.now),
            "tname" | "tt" | "tty" => terminal(self.tty),
            "time" | "cputime" => clock(seconds),
            "etime" => elapsed(age),
            "etimes" => age.to_string(),
            "cmd" | "args" | "command" => self.command.clone(),
            "comm" | "ucmd" => self.name.clone(),
            "vsz" | "vsize" => (self.vsize / 1024).to_string(),
            "rss" | "rssize" => rss.to_string(),
            "stat" => {
                let leader = if self.sid == i64::from(self.pid) { "s" } else { "" };
                let threads = if self.threads > 1 { "l" } else { "" };
                format!("{}{leader}{threads}", self.state)
            }
            "s" | "state" => self.state.clone(),
            "ni" | "nice" => self.nice.to_string(),
            "nlwp" | "thcount" => self.threads.to_string(),
            _ => "-".to_owned(),
        }
    }
}

/// `HH:MM` of today, the day otherwise; in UTC, as the daemon has no other zone.
fn start_time(at: u64, now: u64) -> String {
    let Ok(time) = time::OffsetDateTime::from_unix_timestamp(at as i64) else {
        return "?".to_owned();
    };
    if at / 86_400 == now / 86_400 {
        format!("{:02}:{:02}", time.hour(), time.minute())
    } else {
        format!("{:.3}{:02}", time.month().to_string(), time.day())
    }
}

fn terminal(number: i64) -> String {
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00));
    match major {
        0 => "?".to_owned(),
        4 => format!("tty{minor}"),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn elapsed(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24) {
        (0, 0) => format!("{:02}:{:02}", seconds / 60, seconds % 60),
        (0, _) => clock(seconds),
        (days, hours) => format!("{days}-{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_arguments_have_the_usual_titles() {
        let titles = |args: &str| {
            table(&[std::process::id()], args).map(|(t, rows)| (t.join(" "), rows[0].len()))
        };
        assert_eq!(titles("").unwrap(), ("UID PID PPID C STIME TTY TIME CMD".to_owned(), 8));
        assert_eq!(titles("-eo pid,comm").unwrap(), ("PID COMMAND".to_owned(), 2));
        assert_eq!(titles("-o pid,args=WHAT").unwrap(), ("PID WHAT".to_owned(), 2));
        assert!(titles("aux").unwrap().0.starts_with("USER PID %CPU"));
        assert!(titles("-o comm").is_err());
        assert!(titles("--nonsense").is_err());
        assert!(titles("-eo pid=,args=").is_err());
    }

    #[test]
    fn other_arguments_are_for_the_hosts_ps() {
        let text = "F   PID CMD\n4     7 sleep 60\n4     8 sleep 61\n    - x\n";
        let (titles, rows) = of_pids(&[7], text).unwrap();
        assert_eq!(titles, ["F", "PID", "CMD"]);
        assert_eq!(rows, [["4", "7", "sleep 60"]]);
        assert!(of_pids(&[7], "F CMD\n4 sleep\n").is_err());
        assert!(columns("-efH").is_none() && columns("-o pid,wchan").is_none());
    }
}
