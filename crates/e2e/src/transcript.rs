//! Transcripts: commands with the answers that the Docker Engine gave, asked again of any engine.
//!
//! A file is a list of cases. `$ ` begins a command for bash, the lines below it are its standard output and
//! error together, and `[7]` at their end is an exit status other than 0. `[..]` stands for any text within a
//! line. A line behind `[dockerd] ` or `[skep] ` is said by that engine alone: a difference on purpose,
//! with its reason in a comment (`# `). `## ` begins a case: its commands run in order in a folder of its own, and the next case starts
//! without its containers. In a command, `docker` is the CLI against the host, and [`PRELUDE`] has helpers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use lab::{Engine, Host};

/// A single command may take this long, also on a busy machine.
const COMMAND_SECONDS_MAX: &str = "90";

/// `api METHOD PATH [JSON]` prints the status and the answer; `until_ok` tries for 30 s; `again` does a
/// line again whose version of an object was no longer the newest (the swarm changes objects, too); `on_host` runs
/// a command where the daemon runs; `pty` gives a command a terminal; `second` and `third` run what
/// follows on another host of the lab.
const PRELUDE: &str = r#"
api() {
    local method=$1 path=$2 socket=${DOCKER_HOST#unix://}; shift 2
    curl -sS -m 30 -o answer -w '%{http_code}\n' -X "$method" -H 'Content-Type: application/json' \
        --unix-socket "$socket" ${1+-d "$1"} "http://docker$path"
    cat answer; rm -f answer
}
until_ok() {
    local try
    for try in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
    echo "never true: $*"; return 1
}
again() {
    local try said status
    for try in $(seq 100); do
        said=$(eval "$1"); status=$?
        [[ $said == *'update out of sequence'* ]] || break
        sleep 0.1
    done
    printf '%s\n' "$said"; return $status
}
on_host() { nsenter -t "$HOST_INIT" -n -u -i -m -p -- "$@"; }
second() { DOCKER_HOST=$DOCKER_HOST_2 HOST_INIT=$HOST_INIT_2 "$@"; }
third() { DOCKER_HOST=$DOCKER_HOST_3 HOST_INIT=$HOST_INIT_3 "$@"; }
pty() { script -qec "$*" /dev/null </dev/null | tr -d '\r\000\004' | sed 's/\^[@D]//;s/\x08//g'; return ${PIPESTATUS[0]}; }
"#;

/// One command and what it should say.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Case {
    name: String,
    steps: Vec<Step>,
}

/// Runs every case of a transcript and reports each answer that differs.
pub fn run(host: &Host, name: &str, text: &str) -> Result<()> {
    run_on(std::slice::from_ref(host), name, text)
}

/// The same with several hosts; `docker` speaks to the first.
pub fn run_on(hosts: &[Host], name: &str, text: &str) -> Result<()> {
    let host = hosts.first().context("no host")?;
    let mut failures = Vec::new();
    for case in parse(text).with_context(|| name.to_owned())? {
        let folder = host.folder.join(format!("transcript-{name}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        for step in &case.steps {
            let said = ask(hosts, &folder, &step.command)?;
            let expected = expected_of(host.engine, &step.expected);
            if !agrees(&expected, &said) {
                failures.push(format!(
                    "{name}:{} ({}): $ {}\n  expected:\n    {}\n  said:\n    {}",
                    step.line,
                    case.name,
                    step.command,
                    expected.join("\n    "),
                    said.join("\n    "),
                ));
            }
        }
        ask(hosts, &folder, "docker ps -aq | xargs -r docker rm -fv")?;
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{} answers differ\n{}\n{}", failures.len(), failures.join("\n"), host.log_tail(10))
}

fn ask(hosts: &[Host], folder: &Path, command: &str) -> Result<Vec<String>> {
    let host = &hosts[0];
    let each = hosts.iter().flat_map(|host| {
        let number = host.number;
        [
            (format!("DOCKER_HOST_{number}"), host.docker_host()),
            (format!("HOST_INIT_{number}"), host.init_pid()),
        ]
    });
    let script = format!("{PRELUDE}\nexec 2>&1\n{command}\n");
    let output = Command::new("timeout")
        .args([COMMAND_SECONDS_MAX, "bash", "-c", &script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .env("DOCKER_HOST", host.docker_host())
        .env("DOCKER_CONFIG", &host.cli)
        // Both engines speak it, so that the CLI prints the same.
        .env("DOCKER_API_VERSION", "1.41")
        .env("HOST_INIT", host.init_pid())
        .envs(each)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run bash")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut said: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    said.retain(|line| !line.is_empty() && !line.starts_with("Run 'docker "));
    match output.status.code() {
        Some(0) => {}
        Some(code) => said.push(format!("[{code}]")),
        None => said.push(format!("{}", output.status)),
    }
    Ok(said)
}

fn parse(text: &str) -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix("## ") {
            cases.push(Case { name: name.to_owned(), steps: Vec::new() });
        } else if line.is_empty() || line.starts_with("# ") {
            continue;
        } else if let Some(command) = line.strip_prefix("$ ") {
            let case = cases.last_mut().with_context(|| format!("line {}: no case", number + 1))?;
            let (line, command) = (number + 1, command.to_owned());
            case.steps.push(Step { line, command, expected: Vec::new() });
        } else {
            let step = cases.last_mut().and_then(|case| case.steps.last_mut());
            let step = step.with_context(|| format!("line {}: no command", number + 1))?;
            step.expected.push(line.to_owned());
        }
    }
    ensure!(!cases.is_empty(), "no cases");
    Ok(cases)
}

/// The lines that all engines say, and those of this one.
fn expected_of(engine: Engine, lines: &[String]) -> Vec<String> {
    let (ours, others) = match engine {
        Engine::Skep => ("[skep] ", "[dockerd] "),
        Engine::Dockerd => ("[dockerd] ", "[skep] "),
    };
    let lines = lines.iter().filter(|line| !line.starts_with(others));
    lines.map(|line| line.strip_prefix(ours).unwrap_or(line).to_owned()).collect()
}

fn agrees(expected: &[String], said: &[String]) -> bool {
    expected.len() == said.len()
        && expected.iter().zip(said).all(|(expected, said)| fits(expected, said))
}

/// `[..]` fits any text; everything else is as it stands.
fn fits(expected: &str, said: &str) -> bool {
    let parts: Vec<&str> = expected.split("[..]").collect();
    let [first, middle @ .., last] = parts.as_slice() else { return expected == said };
    let Some(mut rest) = said.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_is_cases_of_commands_and_answers() {
        let text = "# why\n## first\n$ a b\nx\n[7]\n\n$ c\n## second\n$ d\n";
        let cases = parse(text).expect("a transcript");
        assert_eq!((cases.len(), cases[0].steps.len(), cases[1].steps.len()), (2, 2, 1));
        assert_eq!(cases[0].steps[0].expected, ["x", "[7]"]);
        assert_eq!(cases[0].steps[1].line, 7);
        assert!(parse("$ a\n").is_err() && parse("## a\nb\n").is_err() && parse("").is_err());
    }

    #[test]
    fn a_line_of_one_engine_is_wanted_of_that_one_alone() {
        let lines = ["both", "[dockerd] there", "[skep] here"].map(str::to_owned);
        assert_eq!(expected_of(Engine::Skep, &lines), ["both", "here"]);
        assert_eq!(expected_of(Engine::Dockerd, &lines), ["both", "there"]);
    }

    #[test]
    fn an_ellipsis_fits_any_text_and_nothing_else_does() {
        for (expected, said, fit) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("[..]", "", true),
            ("a[..]c", "abbc", true),
            ("a[..]c", "abb", false),
            ("[..]x[..]y", "1x2y", true),
            ("[..]x[..]y", "1y2x", false),
            ("a[..]a", "a", false),
        ] {
            assert_eq!(fits(expected, said), fit, "{expected} {said}");
        }
    }
}
