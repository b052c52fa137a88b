//! Containers on one host.

use anyhow::Result;
use e2e::{answers, cases, hosts, refused};
use lab::Lab;

#[test]
fn one_host() -> Result<()> {
    let lab = hosts(1)?;
    cases(
        &lab,
        &[
            ("a container prints and ends", a_container_prints_and_ends),
            ("an exit code is passed on", an_exit_code_is_passed_on),
            ("unknown things are named", unknown_things_are_named),
        ],
    )
}

fn a_container_prints_and_ends(lab: &Lab) -> Result<()> {
    answers(lab.host(1), "run --rm httpd echo hello", "hello")?;
    answers(lab.host(1), "ps -aq", "")
}

fn an_exit_code_is_passed_on(lab: &Lab) -> Result<()> {
    let status = lab.host(1).try_docker(&["run", "--rm", "httpd", "sh", "-c", "exit 7"])?.status;
    anyhow::ensure!(status.code() == Some(7), "{status}");
    Ok(())
}

fn unknown_things_are_named(lab: &Lab) -> Result<()> {
    refused(lab.host(1), "inspect --type container nobody", "No such container: nobody")?;
    refused(lab.host(1), "network rm nowhere", "nowhere")
}
