//! The templates in a service's hostname, environment, mounts, secrets and configs.
//!
//! Of Go's template language what Docker documents for services: fields and `index`; in secrets and
//! configs also `env`, `secret` and `config`.

use std::collections::BTreeMap;

use wire::swarmkit as pb;

use crate::access::container_name;

/// What a template can see.
pub struct Context {
    fields: BTreeMap<&'static str, String>,
    service_labels: BTreeMap<String, String>,
    /// These three only in secrets and configs; files by their target's name.
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Vec<u8>>,
    pub configs: BTreeMap<String, Vec<u8>>,
}

impl Context {
    pub fn new(task: &pb::Task, node: &pb::NodeDescription) -> Self {
        let service = task.service_annotations.clone().unwrap_or_default();
        let platform = node.platform.clone().unwrap_or_default();
        // A task of a global service has the node's id where others have their number.
        let slot = if task.slot == 0 { task.node_id.clone() } else { task.slot.to_string() };
        let fields = BTreeMap::from([
            (".Service.ID", task.service_id.clone()),
            (".Service.Name", service.name),
            (".Node.ID", task.node_id.clone()),
            (".Node.Hostname", node.hostname.clone()),
            (".Node.Platform.Architecture", platform.architecture),
            (".Node.Platform.OS", platform.os),
            (".Task.ID", task.id.clone()),
            (".Task.Name", container_name(task)),
            (".Task.Slot", slot),
        ]);
        Self {
            fields,
            service_labels: service.labels,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            configs: BTreeMap::new(),
        }
    }
}

/// Whether the templates of a container can be filled in at all, told in SwarmKit's words: a user is
/// better told when he creates a service than by its tasks.
pub fn check(container: &pb::ContainerSpec) -> Result<(), String> {
    let context = Context::new(&pb::Task::default(), &pb::NodeDescription::default());
    let good = |text: &str| expand(text, &context).map(drop);
    for mount in &container.mounts {
        let labels = mount.volume_options.iter().flat_map(|options| options.labels.values());
        let source = ("source", &mount.source);
        let parts = [source, ("target", &mount.target)].into_iter();
        for (part, text) in parts.chain(labels.map(|label| ("label", label))) {
            good(text).map_err(|why| {
                format!("expanding mounts failed: expanding mount {part} {text:?}: {why}")
            })?;
        }
    }
    for line in &container.env {
        good(line).map_err(|why| format!("expanding env failed: expanding env {line:?}: {why}"))?;
    }
    good(&container.hostname).map_err(|why| format!("expanding hostname failed: {why}"))
}

/// Text with its templates filled in; the error names what is not known.
pub fn expand(text: &str, context: &Context) -> Result<String, String> {
    if !text.contains("{{") {
        return Ok(text.to_owned());
    }
    let filled = fill(text, context, false)?;
    String::from_utf8(filled).map_err(|_| "template: the result is not text".to_owned())
}

/// The same for a secret's or config's payload.
pub fn expand_bytes(data: &[u8], context: &Context) -> Result<Vec<u8>, String> {
    match std::str::from_utf8(data) {
        Ok(text) => fill(text, context, true),
        Err(_) => Err("template: the payload is not text".into()),
    }
}

fn fill(text: &str, context: &Context, payload: bool) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.extend_from_slice(before.as_bytes());
        let (action, after) =
            after.split_once("}}").ok_or_else(|| "template: unclosed action".to_owned())?;
        let value = evaluate(action.trim(), context, payload)
            .ok_or_else(|| format!("template: {{{{{action}}}}} is not known"))?;
        out.extend_from_slice(&value);
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

fn evaluate(action: &str, context: &Context, payload: bool) -> Option<Vec<u8>> {
    if let Some(value) = context.fields.get(action) {
        return Some(value.clone().into_bytes());
    }
    let (function, rest) = action.split_once(char::is_whitespace)?;
    let rest = rest.trim();
    match function {
        "index" => {
            let (map, key) = rest.split_once(char::is_whitespace)?;
            let key = quoted(key)?;
            // As in Go a missing key is empty.
            (map == ".Service.Labels")
                .then(|| context.service_labels.get(key).cloned().unwrap_or_default().into_bytes())
        }
        "env" if payload => {
            Some(context.env.get(quoted(rest)?).cloned().unwrap_or_default().into_bytes())
        }
        "secret" if payload => context.secrets.get(quoted(rest)?).cloned(),
        "config" if payload => context.configs.get(quoted(rest)?).cloned(),
        _ => None,
    }
}

fn quoted(text: &str) -> Option<&str> {
    let text = text.trim();
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .or_else(|| text.strip_prefix('`').and_then(|text| text.strip_suffix('`')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        let annotations = pb::Annotations {
            name: "web".into(),
            labels: BTreeMap::from([("tier".into(), "front".into())]),
            ..Default::default()
        };
        let task = pb::Task {
            id: "t".into(),
            slot: 3,
            node_id: "n".into(),
            service_annotations: Some(annotations),
            ..Default::default()
        };
        Context::new(&task, &pb::NodeDescription { hostname: "vm1".into(), ..Default::default() })
    }

    #[test]
    fn templates_are_filled_in_or_refused_by_name() {
        for (text, expected) in [
            ("plain", Ok("plain")),
            ("{{.Node.Hostname}}-{{ .Task.Slot }}", Ok("vm1-3")),
            ("{{.Task.Name}}", Ok("web.3.t")),
            ("{{index .Service.Labels \"tier\"}}", Ok("front")),
            ("{{index .Service.Labels \"none\"}}", Ok("")),
            ("{{.Task.Colour}}", Err(())),
            ("{{env \"X\"}}", Err(())),
            ("{{.Task.ID", Err(())),
        ] {
            assert_eq!(
                expand(text, &context()).map_err(drop),
                expected.map(str::to_owned),
                "{text}"
            );
        }
    }

    #[test]
    fn a_template_that_nothing_can_fill_in_is_refused_where_it_stands() {
        let mount = |source: &str| pb::Mount { source: source.into(), ..Default::default() };
        let spec = |hostname: &str, env: &str, source: &str| pb::ContainerSpec {
            hostname: hostname.into(),
            env: vec![env.into()],
            mounts: vec![mount(source)],
            ..Default::default()
        };
        let good = spec("{{.Node.Hostname}}", "A={{.Task.Slot}}", "v{{.Service.ID}}");
        assert_eq!(check(&good), Ok(()));
        for (bad, words) in [
            (spec("{{.X}}", "", ""), "expanding hostname failed: template: {{.X}} is not known"),
            (
                spec("", "A={{.X}}", ""),
                "expanding env failed: expanding env \"A={{.X}}\": template: {{.X}} is not known",
            ),
            (
                spec("", "", "{{.X"),
                "expanding mounts failed: expanding mount source \"{{.X\": template: unclosed action",
            ),
            (
                spec("", "{{env \"A\"}}", ""),
                "expanding env failed: expanding env \"{{env \\\"A\\\"}}\": template: {{env \"A\"}} is not known",
            ),
        ] {
            assert_eq!(check(&bad), Err(words.to_owned()));
        }
    }
}
