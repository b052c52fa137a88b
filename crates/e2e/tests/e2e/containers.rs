//! Containers under the docker CLI: transcripts of the Docker Engine, asked of this one.

use anyhow::Result;
use e2e::hosts;
use e2e::transcript::run;

macro_rules! transcripts {
    ($($name:literal),*) => {{
        let lab = hosts(1)?;
        let mut failed = Vec::new();
        $(
            let text = include_str!(concat!("../transcripts/", $name, ".txt"));
            failed.extend(run(lab.host(1), $name, text).err().map(|error| format!("{error:#}")));
        )*
        anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
        lab.down()
    }};
}

#[test]
fn containers_run_as_with_docker() -> Result<()> {
    transcripts!("run", "exec", "files", "options", "odd")
}

#[test]
fn containers_are_managed_as_with_docker() -> Result<()> {
    transcripts!("states", "logs", "list", "health", "refusals")
}
