//! Every target over its committed corpus and a bounded number of mutations of it, the same ones in every run.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

const SEED: u64 = 2_026;

/// `FUZZ_ROUNDS=20` tries twenty times as much, `FUZZ_SEED=7` something else.
fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

fn fuzz(name: &str) -> Result<()> {
    let target = fuzz::target(name).context("no such target")?;
    let plan = fuzz::Plan {
        seed: number("FUZZ_SEED", SEED)?,
        rounds: target.rounds * u32::try_from(number("FUZZ_ROUNDS", 1)?)?,
        findings: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("findings"),
    };
    let outcome = fuzz::run(target, &plan)?;
    ensure!(
        outcome.findings.is_empty(),
        "{name}: these inputs made it panic; mend it and add them to {}: {:?}",
        fuzz::corpus(name).display(),
        outcome.findings
    );
    Ok(())
}

macro_rules! targets {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test] fn $test() -> Result<()> { fuzz($name) })*

        #[test]
        fn every_target_is_run() {
            let run = [$($name),*];
            let all: Vec<&str> = fuzz::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, run);
        }
    };
}

targets! {
    layers: "tar-layer",
    archives: "image-archive",
    manifests: "image-manifest",
    engine_api: "engine-api",
    dns_messages: "dns-message",
    gossip_events: "gossip",
    memberlist_codec: "memberlist",
    raft_messages: "raft-message",
    swarmkit_messages: "swarmkit-message",
    raft_log: "raft-log",
    join_tokens: "join-token",
    certificates: "certificate",
}
