//! The image's settings under the container's own.

use std::collections::HashMap;

use bollard_stubs::models::{ContainerConfig, HealthConfig};
use image::RunConfig;

use crate::error::{Error, Result};

/// What the request leaves open comes from the image (moby `runconfig` and `mergeAndVerifyConfig`).
pub(crate) fn merge(config: &mut ContainerConfig, image: &RunConfig) -> Result<()> {
    fill(&mut config.user, &image.user);
    fill(&mut config.working_dir, &image.working_dir);
    config.env = Some(merged_env(config.env.take().unwrap_or_default(), &image.env));
    merge_command(config, image);
    merge_labels(config, image);
    config.exposed_ports = union(config.exposed_ports.take(), &image.exposed_ports);
    config.volumes = union(config.volumes.take(), &image.volumes);
    if config.stop_signal.as_deref().unwrap_or_default().is_empty() {
        config.stop_signal = image.stop_signal.clone();
    }
    if config.stop_timeout.is_none() {
        config.stop_timeout = image.stop_timeout;
    }
    if config.shell.as_ref().is_none_or(Vec::is_empty) {
        config.shell = image.shell.clone();
    }
    merge_health(config, image);
    let entrypoint = config.entrypoint.as_deref().unwrap_or_default();
    let command = config.cmd.as_deref().unwrap_or_default();
    if entrypoint.is_empty() && command.is_empty() {
        return Err(Error::bad_parameter("no command specified"));
    }
    Ok(())
}

fn fill(own: &mut Option<String>, image: &str) {
    if own.as_deref().unwrap_or_default().is_empty() && !image.is_empty() {
        *own = Some(image.to_owned());
    }
}

/// A variable that the request names hides the image's.
fn merged_env(own: Vec<String>, image: &[String]) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let named: std::collections::BTreeSet<String> = own.iter().map(|v| name(v)).collect();
    let mut all = own;
    all.extend(image.iter().filter(|variable| !named.contains(&name(variable))).cloned());
    all
}

/// An entrypoint of its own makes the image's command meaningless.
fn merge_command(config: &mut ContainerConfig, image: &RunConfig) {
    let own_entrypoint = config.entrypoint.as_ref().is_some_and(|words| !words.is_empty());
    if !own_entrypoint {
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd = image.cmd.clone();
            config.args_escaped = image.args_escaped.filter(|escaped| *escaped);
        }
        if config.entrypoint.is_none() {
            config.entrypoint = image.entrypoint.clone();
        }
    }
    // `--entrypoint ""` is how the image's is switched off.
    if config.entrypoint.as_deref() == Some(&[String::new()]) {
        config.entrypoint = None;
    }
}

fn merge_labels(config: &mut ContainerConfig, image: &RunConfig) {
    let own = config.labels.take().unwrap_or_default();
    let mut all: HashMap<String, String> =
        image.labels.clone().unwrap_or_default().into_iter().collect();
    all.extend(own);
    config.labels = Some(all);
}

fn union<V>(
    own: Option<Vec<String>>,
    image: &Option<std::collections::BTreeMap<String, V>>,
) -> Option<Vec<String>> {
    let mut all = own.unwrap_or_default();
    for key in image.iter().flatten().map(|(key, _)| key) {
        if !all.contains(key) {
            all.push(key.clone());
        }
    }
    all.sort();
    (!all.is_empty()).then_some(all)
}

fn merge_health(config: &mut ContainerConfig, image: &RunConfig) {
    let Some(from) = &image.healthcheck else { return };
    let own = config.healthcheck.get_or_insert_with(HealthConfig::default);
    if own.test.as_ref().is_none_or(Vec::is_empty) {
        own.test = from.test.clone();
    }
    for (mine, theirs) in [
        (&mut own.interval, from.interval),
        (&mut own.timeout, from.timeout),
        (&mut own.start_period, from.start_period),
        (&mut own.start_interval, from.start_interval),
        (&mut own.retries, from.retries),
    ] {
        if mine.unwrap_or_default() == 0 {
            *mine = theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Vec<String>> {
        Some(text.split_whitespace().map(str::to_owned).collect())
    }

    fn command(own: (&str, &str), image: (&str, &str)) -> String {
        let option = |text: &str| if text == "-" { None } else { words(text) };
        let mut config =
            ContainerConfig { entrypoint: option(own.0), cmd: option(own.1), ..Default::default() };
        let image =
            RunConfig { entrypoint: option(image.0), cmd: option(image.1), ..Default::default() };
        match merge(&mut config, &image) {
            Ok(()) => format!(
                "{} | {}",
                config.entrypoint.unwrap_or_default().join(" "),
                config.cmd.unwrap_or_default().join(" ")
            ),
            Err(error) => error.message,
        }
    }

    #[test]
    fn command_and_entrypoint_follow_docker() {
        assert_eq!(command(("-", "-"), ("e", "c")), "e | c");
        assert_eq!(command(("-", "x"), ("e", "c")), "e | x");
        assert_eq!(command(("y", "-"), ("e", "c")), "y | ");
        assert_eq!(command(("y", "x"), ("e", "c")), "y | x");
        assert_eq!(command(("-", "-"), ("-", "-")), "no command specified");
    }

    #[test]
    fn the_image_s_variables_yield() {
        let own = vec!["A=1".into(), "B".into()];
        let image = ["A=2".into(), "B=3".into(), "C=4".into()];
        assert_eq!(merged_env(own, &image), ["A=1", "B", "C=4"]);
    }
}
