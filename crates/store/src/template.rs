//! The templates in a service's hostname, environment, mounts, secrets and configs.
//!
//! Of Go's template language everything but blocks and variables; in secrets and configs also the
//! functions `env`, `secret` and `config`.

mod expression;

use std::collections::BTreeMap;

use wire::swarmkit as pb;

use crate::access::task_name;
use expression::Value;

/// What a template can see.
pub struct Context {
    fields: Value,
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
        let architecture = Value::text(platform.architecture);
        let platform = vec![("Architecture", architecture), ("OS", Value::text(platform.os))];
        let service = vec![
            ("ID", Value::text(&task.service_id)),
            ("Name", Value::text(service.name)),
            ("Labels", Value::Map(service.labels)),
        ];
        let node = vec![
            ("ID", Value::text(&task.node_id)),
            ("Hostname", Value::text(&node.hostname)),
            ("Platform", Value::Record(platform)),
        ];
        let own = vec![
            ("ID", Value::text(&task.id)),
            ("Name", Value::text(task_name(task))),
            ("Slot", Value::text(slot)),
        ];
        let fields = [("Service", service), ("Node", node), ("Task", own)];
        Self {
            fields: Value::Record(
                fields.into_iter().map(|(name, of)| (name, Value::Record(of))).collect(),
            ),
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
        let (whole, after) =
            after.split_once("}}").ok_or_else(|| "template: unclosed action".to_owned())?;
        // `{{- ` and ` -}}` take the space beside them away.
        let left = whole.strip_prefix('-').filter(|rest| rest.starts_with(char::is_whitespace));
        if left.is_some() {
            out.truncate(out.trim_ascii_end().len());
        }
        let action = left.unwrap_or(whole);
        let right = action.strip_suffix('-').filter(|rest| rest.ends_with(char::is_whitespace));
        rest = if right.is_some() { after.trim_start() } else { after };
        let action = right.unwrap_or(action).trim();
        if action.starts_with("/*") && action.ends_with("*/") {
            continue;
        }
        let more = |function: &str, arguments: &[Value]| {
            if payload { of_payload(context, function, arguments) } else { None }
        };
        let value = expression::evaluate(action, &context.fields, &more)
            .ok_or_else(|| format!("template: {{{{{whole}}}}} {}", unknown(action, context)))?;
        out.extend(value.print());
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

/// What is wrong with an action; of a secret or config that is not there, which ones are.
fn unknown(action: &str, context: &Context) -> String {
    let (what, known) = match action.split_whitespace().next() {
        Some("secret") if !context.secrets.is_empty() => ("secrets", &context.secrets),
        Some("config") if !context.configs.is_empty() => ("configs", &context.configs),
        _ => return "is not known".to_owned(),
    };
    let known: Vec<&str> = known.keys().map(String::as_str).collect();
    format!("is not known; {what} are named by their targets: {}", known.join(", "))
}

/// The functions of secrets and configs.
fn of_payload(context: &Context, function: &str, arguments: &[Value]) -> Option<Value> {
    let [Value::Text(name)] = arguments else { return None };
    let name = std::str::from_utf8(name).ok()?;
    match function {
        "env" => Some(Value::text(context.env.get(name).cloned().unwrap_or_default())),
        "secret" => context.secrets.get(name).cloned().map(Value::Text),
        "config" => context.configs.get(name).cloned().map(Value::Text),
        _ => None,
    }
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
            // What the Docker Engine made of these.
            ("{{.Service.Labels}} {{.Task}}", Ok("map[tier:front] {t web.3.t 3}")),
            ("{{.Service}}", Ok("{ web map[tier:front]}")),
            ("{{join \"-\" .Task.Slot .Node.Hostname \"x\"}}", Ok("3-vm1-x")),
            ("{{join \" \" (index .Service.Labels \"tier\") (print 1)}}", Ok("front 1")),
            ("{{.Task.Slot|printf \"%s|%v|%q\" \"a\" 5}}", Ok("a|5|\"3\"")),
            ("{{len .Service.Labels}} {{len \"abc\"}} {{eq .Task.Slot \"3\"}}", Ok("1 3 true")),
            ("{{ne .Task.Slot \"3\"}} {{not true}}", Ok("false false")),
            ("{{and \"a\" \"b\"}} {{or \"\" \"c\"}}", Ok("b c")),
            ("a {{- \" b \" -}} c{{/* no */}}d", Ok("a b cd")),
            ("{{print \"a\" 1 2 \"b\"}} {{println \"x\"}}y", Ok("a1 2b x\ny")),
            ("{{\"q\\\"uo\"}} {{`raw`}} {{12}} {{true}}", Ok("q\"uo raw 12 true")),
            ("{{join \"a\"}}{{index \"abc\" 1}}", Ok("98")),
            ("{{.Task.Colour}}", Err(())),
            ("{{lower \"A\"}}", Err(())),
            ("{{join}}", Err(())),
            ("{{.Task.Slot.X}}", Err(())),
            ("{{}}", Err(())),
            ("{{\"a}}", Err(())),
            ("{{.Task.Slot | nosuch}}", Err(())),
            ("{{(print 1}}", Err(())),
            ("{{.Service.labels}}", Err(())),
            ("{{if true}}x{{end}}", Err(())),
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
    fn a_config_that_is_not_there_is_told_with_those_that_are() {
        let mut context = context();
        let expand = |text: &str, context: &Context| expand_bytes(text.as_bytes(), context);
        let unknown = "template: {{config \"a\"}} is not known";
        assert_eq!(expand("{{config \"a\"}}", &context), Err(unknown.into()));
        context.configs.insert("/etc/a".into(), b"A".into());
        let why = format!("{unknown}; configs are named by their targets: /etc/a");
        assert_eq!(expand("{{config \"a\"}}", &context), Err(why));
        assert_eq!(expand("{{config \"/etc/a\"}}", &context), Ok(b"A".into()));
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
