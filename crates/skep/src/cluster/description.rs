//! What this node tells the managers about itself.

use engine::Engine;
use transport::Keys;
use wire::swarmkit as pb;

const NETWORK_DRIVERS: &[&str] = &["bridge", "host", "null", "overlay"];
const LOG_DRIVERS: &[&str] = &["json-file", "local", "none"];
const VOLUME_DRIVERS: &[&str] = &["local"];

pub fn describe(engine: &Engine, keys: &Keys) -> pb::NodeDescription {
    let plugins = [("Network", NETWORK_DRIVERS), ("Log", LOG_DRIVERS), ("Volume", VOLUME_DRIVERS)];
    let mut plugins: Vec<pb::PluginDescription> = plugins
        .iter()
        .flat_map(|(kind, names)| names.iter().map(move |name| (*kind, *name)))
        .map(|(kind, name)| pb::PluginDescription { r#type: kind.into(), name: name.into() })
        .collect();
    plugins.sort_by(|a, b| (&a.r#type, &a.name).cmp(&(&b.r#type, &b.name)));
    let labels = engine
        .config()
        .labels
        .iter()
        .map(|label| {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect();
    pb::NodeDescription {
        hostname: hostname(),
        platform: Some(pb::Platform {
            architecture: std::env::consts::ARCH.into(),
            os: "linux".into(),
        }),
        resources: Some(pb::Resources {
            nano_cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as i64)
                * 1_000_000_000,
            memory_bytes: memory_bytes(),
            generic: engine
                .config()
                .node_generic_resources
                .iter()
                .filter_map(|text| generic(text))
                .collect(),
        }),
        engine: Some(pb::EngineDescription {
            engine_version: env!("CARGO_PKG_VERSION").into(),
            labels,
            plugins,
        }),
        tls_info: Some(keys.identity().tls_info()),
        fips: false,
        csi_info: Vec::new(),
    }
}

pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn memory_bytes() -> i64 {
    let info = rustix::system::sysinfo();
    (info.totalram as i64).saturating_mul(i64::from(info.mem_unit))
}

/// `gpu=UUID1` is a named resource, `apple=3` a number of them.
fn generic(text: &str) -> Option<pb::GenericResource> {
    use pb::generic_resource::Resource;
    let (kind, value) = text.split_once('=')?;
    let kind = kind.to_owned();
    let resource = match value.parse::<i64>() {
        Ok(value) => Resource::DiscreteResourceSpec(pb::DiscreteGenericResource { kind, value }),
        Err(_) => {
            Resource::NamedResourceSpec(pb::NamedGenericResource { kind, value: value.to_owned() })
        }
    };
    Some(pb::GenericResource { resource: Some(resource) })
}
