//! Debian's docker-registry on a lab host.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::{Host, wait_until};

const UP_MAX: Duration = Duration::from_secs(30);

/// Starts docker-registry on 127.0.0.1:`port` of the host; `settings` are its environment. It ends
/// with the lab.
///
/// # Errors
/// When it does not answer.
pub fn start(host: &Host, port: u16, settings: &[(&str, &str)]) -> Result<()> {
    let config = host.folder.join(format!("registry-{port}.yml"));
    let data = host.folder.join(format!("registry-{port}"));
    fs::write(
        &config,
        format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            data.display()
        ),
    )?;
    let log = File::create(host.folder.join(format!("registry-{port}.log")))?;
    let mut process = host
        .inside(&["docker-registry", "serve", &config.display().to_string()])
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    std::thread::spawn(move || process.wait());
    let ask = format!("curl -s -o /dev/null http://127.0.0.1:{port}/v2/");
    wait_until(UP_MAX, || Ok(host.sh(&ask).is_ok())).context("docker-registry does not answer")
}
