//! A container's log: the driver with its options, and what stands beside every line.

use std::collections::BTreeMap;

use bollard_stubs::models::{ContainerConfig, HostConfig};
use model::ContainerId;

use super::create::CreateRequest;
use super::validate;
use crate::Engine;
use crate::error::{Error, Result};

impl Engine {
    /// The driver and its options: the request's, else the daemon's.
    pub(super) fn log_config(&self, request: &CreateRequest) -> Result<runtime::LogConfig> {
        let asked = request.host_config.log_config.clone().unwrap_or_default();
        let driver = asked.typ.filter(|driver| !driver.is_empty());
        let own = driver.is_some();
        let driver = driver.unwrap_or_else(|| self.config().log_driver.clone());
        let mut options: BTreeMap<String, String> =
            asked.config.unwrap_or_default().into_iter().collect();
        if !own || driver == self.config().log_driver {
            for (key, value) in &self.config().log_opts {
                options.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        let mut log = validate::log_options(&driver, &options)?;
        log.attrs = log_attributes(&request.config, &options)?;
        Ok(log)
    }
}

/// What `--log-opt labels=…`, `env=…` and their `-regex` forms put on every line.
fn log_attributes(
    config: &ContainerConfig,
    options: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let mut attributes = BTreeMap::new();
    let labels = config.labels.iter().flatten();
    let labels = labels.map(|(name, value)| (name.as_str(), value.as_str()));
    let variables = config.env.iter().flatten().filter_map(|variable| variable.split_once('='));
    let wanted = Picked::by(options, "labels")?;
    attributes.extend(labels.filter(|(name, _)| wanted.takes(name)).map(owned));
    let wanted = Picked::by(options, "env")?;
    attributes.extend(variables.filter(|(name, _)| wanted.takes(name)).map(owned));
    Ok(attributes)
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Names listed by an option, and those that its `-regex` form fits.
struct Picked<'a> {
    names: Vec<&'a str>,
    pattern: Option<regex::Regex>,
}

impl<'a> Picked<'a> {
    fn by(options: &'a BTreeMap<String, String>, option: &str) -> Result<Self> {
        let names = options.get(option).map(String::as_str).unwrap_or_default();
        let pattern = options.get(&format!("{option}-regex")).filter(|text| !text.is_empty());
        let pattern = pattern.map(|text| regex::Regex::new(text)).transpose();
        Ok(Self {
            names: names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect(),
            pattern: pattern.map_err(|cause| {
                Error::bad_parameter(format!("invalid log opt {option}-regex: {cause}"))
            })?,
        })
    }

    fn takes(&self, name: &str) -> bool {
        self.names.contains(&name)
            || self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(name))
    }
}

/// The template of `--log-opt tag=…`, the daemon's where the request has none.
pub(super) fn tag_template(host: &HostConfig) -> Option<&str> {
    let options = host.log_config.as_ref()?.config.as_ref()?;
    options.get("tag").map(String::as_str).filter(|template| !template.is_empty())
}

/// What a tag's template may name (moby daemon/logger/loginfo.go `Info`).
pub(super) struct Named<'a> {
    pub id: &'a ContainerId,
    pub name: &'a str,
    /// `sha256:…`
    pub image: &'a str,
    pub config: &'a ContainerConfig,
}

impl Named<'_> {
    /// The template with every `{{.Field}}` filled in; anything else between braces is refused.
    pub fn tag(&self, template: &str) -> Result<String> {
        let mut tag = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("{{") {
            let unclosed = || bad_tag(template, "unclosed action");
            let (field, after) = after.split_once("}}").ok_or_else(unclosed)?;
            tag.push_str(before);
            tag.push_str(&self.field(field.trim()).ok_or_else(|| bad_tag(template, field))?);
            rest = after;
        }
        tag.push_str(rest);
        Ok(tag)
    }

    fn field(&self, name: &str) -> Option<String> {
        let short = |id: &str| id.chars().take(12).collect::<String>();
        let image = self.image.rsplit(':').next().unwrap_or_default();
        Some(match name {
            ".ID" => short(self.id.as_str()),
            ".FullID" | ".ContainerID" => self.id.to_string(),
            ".Name" => self.name.to_owned(),
            ".ContainerName" => format!("/{}", self.name),
            ".ImageID" => short(image),
            ".ImageFullID" | ".ContainerImageID" => self.image.to_owned(),
            ".ImageName" | ".ContainerImageName" => self.config.image.clone().unwrap_or_default(),
            ".DaemonName" => "docker".to_owned(),
            ".Hostname" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            ".Command" => {
                let words = self.config.entrypoint.iter().chain(&self.config.cmd).flatten();
                words.cloned().collect::<Vec<_>>().join(" ")
            }
            _ => return None,
        })
    }
}

fn bad_tag(template: &str, why: &str) -> Error {
    Error::bad_parameter(format!(
        "log-opt tag: {template}: {why}: use fields such as {{{{.ID}}}}, {{{{.Name}}}} and {{{{.ImageName}}}}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(template: &str) -> Result<String> {
        let config = ContainerConfig { image: Some("httpd".into()), ..Default::default() };
        let id = ContainerId::new("0123456789abcdef");
        let image = "sha256:fedcba9876543210";
        Named { id: &id, name: "web", image, config: &config }.tag(template)
    }

    #[test]
    fn a_tag_is_filled_in_and_a_field_nobody_knows_is_refused() {
        let filled = tag("{{.Name}}/{{ .ID }}-{{.ImageName}}.{{.ImageID}}").expect("a tag");
        assert_eq!(filled, "web/0123456789ab-httpd.fedcba987654");
        assert_eq!(tag("plain").expect("a tag"), "plain");
        assert!(tag("{{.Nope}}").is_err() && tag("{{.Name").is_err());
    }

    #[test]
    fn labels_and_variables_are_picked_by_name_and_by_pattern() {
        let config = ContainerConfig {
            labels: Some([("a".to_owned(), "1".to_owned()), ("com.x".into(), "2".into())].into()),
            env: Some(vec!["V=3".into(), "W=4".into()]),
            ..Default::default()
        };
        let options = [("labels", "a"), ("labels-regex", "^com"), ("env", "V")];
        let options = options.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let found = log_attributes(&config, &options).expect("attributes");
        let found: Vec<_> = found.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(found, ["V=3", "a=1", "com.x=2"]);
        let bad = BTreeMap::from([("env-regex".to_owned(), "(".to_owned())]);
        assert!(log_attributes(&config, &bad).is_err());
    }
}
