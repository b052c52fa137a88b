//! `-it`: typing, detaching, the window's size and exit codes, at a real terminal.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::terminal::Terminal;
use e2e::{answers, cases, hosts};
use lab::host::wait_until;
use lab::{Host, Lab};

#[test]
fn terminals() -> Result<()> {
    let lab = hosts(1)?;
    cases(
        &lab,
        &[
            ("run -it talks and passes the exit code on", run_talks),
            ("the detach keys leave the container running", detach_keys_leave_it_running),
            ("keys of one's own detach too", own_keys_detach),
            ("the window's size follows, of attach and of exec", the_size_follows),
            ("an exec at a terminal has its exit code", an_exec_has_its_code),
            ("start -ai attaches again", start_attaches_again),
            ("a first size is there from the beginning", a_first_size_is_there),
        ],
    )
}

fn run_talks(lab: &Lab) -> Result<()> {
    let mut terminal = Terminal::open(lab.host(1), "run -it --name talk httpd sh")?;
    terminal.type_in("echo to$((40+2))\n")?;
    terminal.expect("to42")?;
    terminal.type_in("exit 6\n")?;
    ensure!(terminal.end()? == 6, "the exit code is lost");
    answers(lab.host(1), "inspect -f {{.State.ExitCode}} talk", "6")?;
    lab.host(1).dk("rm talk").map(drop)
}

fn detach_keys_leave_it_running(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -dit --name held httpd sh")?;
    let mut terminal = Terminal::open(host, "attach held")?;
    terminal.type_in("echo is$((1+1))\n")?;
    terminal.expect("is2")?;
    terminal.type_in("\x10\x11")?;
    terminal.expect("read escape sequence")?;
    ensure!(terminal.end()? == 1, "the CLI ends with 1 after the detach keys");
    answers(host, "inspect -f {{.State.Status}} held", "running")?;
    // Its own end is its own: what is typed at the next attach arrives.
    let mut terminal = Terminal::open(host, "attach held")?;
    terminal.type_in("exit 5\n")?;
    ensure!(terminal.end()? == 5, "the exit code is lost");
    answers(host, "wait held", "5")?;
    host.dk("rm held").map(drop)
}

fn own_keys_detach(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -dit --name keys httpd sh")?;
    let mut terminal = Terminal::open(host, "attach --detach-keys ctrl-a,d keys")?;
    // The beginning of the keys alone goes to the container.
    terminal.type_in("echo k$((2+2))\n")?;
    terminal.expect("k4")?;
    terminal.type_in("\x01d")?;
    terminal.expect("read escape sequence")?;
    terminal.end()?;
    let mut terminal = Terminal::open(host, "exec -it --detach-keys ctrl-x keys sh")?;
    terminal.type_in("echo e$((3+3))\n")?;
    terminal.expect("e6")?;
    terminal.type_in("\x18")?;
    terminal.end()?;
    answers(host, "inspect -f {{.State.Status}} keys", "running")?;
    host.dk("rm -f keys").map(drop)
}

/// The CLI passes a change of its window on; asked until the new size is seen. It listens for changes
/// only some time after its start, so the change is made again until then.
fn sees_size(terminal: &mut Terminal, rows: u16, columns: u16) -> Result<()> {
    let ask = format!(
        "until stty size | grep -q '{rows} {columns}'; do sleep 0.1; done; echo got$((1+{rows}))\n"
    );
    terminal.type_in(&ask)?;
    let answer = format!("got{}", 1 + rows);
    for _ in 0..15 {
        terminal.resize(rows, columns + 1)?;
        terminal.resize(rows, columns)?;
        if terminal.expect_within(&answer, Duration::from_secs(2)).is_ok() {
            return Ok(());
        }
    }
    terminal.expect(&answer)
}

fn the_size_follows(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -dit --name window httpd sh")?;
    let mut terminal = Terminal::open(host, "attach window")?;
    sees_size(&mut terminal, 40, 100)?;
    sees_size(&mut terminal, 30, 90)?;
    drop(terminal);
    let mut terminal = Terminal::open(host, "exec -it window sh")?;
    sees_size(&mut terminal, 41, 101)?;
    drop(terminal);
    host.dk("rm -f window").map(drop)
}

fn an_exec_has_its_code(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name box httpd")?;
    let mut terminal = Terminal::open(host, "exec -it box sh")?;
    terminal.type_in("tty\n")?;
    terminal.expect("/dev/pts/")?;
    terminal.type_in("exit 9\n")?;
    ensure!(terminal.end()? == 9, "the exit code is lost");
    wait_until(Duration::from_secs(10), || Ok(host.dk("inspect -f {{.ExecIDs}} box")? == "[]"))?;
    host.dk("rm -f box").map(drop)
}

fn start_attaches_again(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("create -it --name again httpd sh")?;
    for code in [3, 4] {
        let mut terminal = Terminal::open(host, "start -ai again")?;
        terminal.type_in(&format!("exit {code}\n"))?;
        ensure!(terminal.end()? == code, "the exit code is lost");
    }
    host.dk("rm again").map(drop)
}

fn a_first_size_is_there(lab: &Lab) -> Result<()> {
    fn first_size(host: &Host, line: &str) -> Result<()> {
        let mut terminal = Terminal::open(host, line)?;
        terminal.expect("24 80")?;
        terminal.end().map(drop)
    }
    let host = lab.host(1);
    host.dk("run -d --name sized httpd")?;
    // Docker sets an exec's and a container's size only after its start: the command waits for it.
    let wait = "until stty size | grep -v '^0 0'; do sleep 0.1; done";
    first_size(host, &format!("exec -it sized sh -c \"{wait}\""))?;
    first_size(host, &format!("run --rm -it httpd sh -c \"{wait}\""))?;
    host.dk("rm -f sized").map(drop)
}
