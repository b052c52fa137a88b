//! What a swarm refuses and in which words: transcripts of the Docker Engine, asked of this one.

use anyhow::Result;
use e2e::hosts;
use e2e::transcript::run_on;

#[test]
fn a_swarm_answers_as_with_docker() -> Result<()> {
    let lab = hosts(2)?;
    let mut failed = Vec::new();
    for (name, text) in [
        ("swarm-begin", include_str!("../transcripts/swarm-begin.txt")),
        ("swarm-objects", include_str!("../transcripts/swarm-objects.txt")),
        ("swarm-services", include_str!("../transcripts/swarm-services.txt")),
    ] {
        failed.extend(run_on(&lab.hosts, name, text).err().map(|error| format!("{error:#}")));
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
    lab.down()
}
