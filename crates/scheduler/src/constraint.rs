//! Placement constraints: `node.labels.disk == ssd`.

use wire::swarmkit as pb;

/// One constraint, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    key: String,
    equal: bool,
    value: String,
}

/// Why an expression is none. The texts are SwarmKit's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("constraint expected one operator from ==, !=")]
    Operator,
    #[error("invalid constraint \"{0}\"")]
    Invalid(String),
}

impl Constraint {
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        let invalid = || ConstraintError::Invalid(text.to_owned());
        let (key, equal, value) = match (text.split_once("=="), text.split_once("!=")) {
            (Some((key, value)), _) if !key.contains("!=") => (key, true, value),
            (_, Some((key, value))) => (key, false, value),
            _ => return Err(ConstraintError::Operator),
        };
        let (key, value) = (key.trim(), value.trim());
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if key.is_empty() || !key.chars().all(word) || value.is_empty() {
            return Err(invalid());
        }
        let printable = |c: char| c.is_ascii_graphic() || c == ' ';
        if !value.chars().all(printable) || value.contains("==") || value.contains("!=") {
            return Err(invalid());
        }
        Ok(Self { key: key.to_owned(), equal, value: value.to_owned() })
    }

    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>, ConstraintError> {
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    /// Whether a node is allowed. A key that no node has is never equal to anything.
    pub fn allows(&self, node: &pb::Node) -> bool {
        let description = node.description.as_ref();
        let key = self.key.to_ascii_lowercase();
        match key.as_str() {
            "node.id" => self.compare(&node.id),
            "node.hostname" => self.compare(description.map_or("", |d| &d.hostname)),
            "node.ip" => self.compare_address(node),
            "node.role" => self.compare(match node.role() {
                pb::NodeRole::Manager => "manager",
                pb::NodeRole::Worker => "worker",
            }),
            "node.platform.os" => {
                let platform = description.and_then(|d| d.platform.as_ref());
                self.compare(platform.map_or("", |p| &p.os))
            }
            "node.platform.arch" => {
                let platform = description.and_then(|d| d.platform.as_ref());
                self.compare_arch(platform.map_or("", |p| &p.architecture))
            }
            _ => self.allows_label(node, &key),
        }
    }

    fn allows_label(&self, node: &pb::Node, key: &str) -> bool {
        let own = node.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
        let engine = node.description.as_ref().and_then(|d| d.engine.as_ref());
        // The label's own name keeps its case.
        let (labels, name) = if key.starts_with("node.labels.") {
            (own.map(|own| &own.labels), &self.key["node.labels.".len()..])
        } else if key.starts_with("engine.labels.") {
            (engine.map(|engine| &engine.labels), &self.key["engine.labels.".len()..])
        } else {
            return false;
        };
        self.compare(labels.and_then(|labels| labels.get(name)).map_or("", |value| value))
    }

    fn compare(&self, value: &str) -> bool {
        self.value.eq_ignore_ascii_case(value) == self.equal
    }

    fn compare_arch(&self, value: &str) -> bool {
        let same = crate::filter::architecture(&self.value.to_ascii_lowercase())
            == crate::filter::architecture(&value.to_ascii_lowercase());
        same == self.equal
    }

    /// An address or a subnet.
    fn compare_address(&self, node: &pb::Node) -> bool {
        let address = node.status.as_ref().and_then(|status| status.addr.parse().ok());
        let Some(address): Option<std::net::IpAddr> = address else { return !self.equal };
        let same = match self.value.split_once('/') {
            None => self.value.parse() == Ok(address),
            Some((base, prefix)) => match (base.parse(), prefix.parse()) {
                (Ok(base), Ok(prefix)) => in_subnet(address, base, prefix),
                _ => return false,
            },
        };
        same == self.equal
    }
}

fn in_subnet(address: std::net::IpAddr, base: std::net::IpAddr, prefix: u32) -> bool {
    use std::net::IpAddr::{V4, V6};
    match (address, base) {
        (V4(a), V4(b)) => {
            let free = 32u32.saturating_sub(prefix);
            u32::from(a).checked_shr(free) == u32::from(b).checked_shr(free)
        }
        (V6(a), V6(b)) => {
            let free = 128u32.saturating_sub(prefix);
            u128::from(a).checked_shr(free) == u128::from(b).checked_shr(free)
        }
        _ => false,
    }
}

/// Whether a node satisfies all constraints of a placement; one that cannot be read allows none.
pub fn satisfied(placement: Option<&pb::Placement>, node: &pb::Node) -> bool {
    let texts = placement.map(|placement| placement.constraints.as_slice()).unwrap_or_default();
    match Constraint::parse_all(texts) {
        Ok(constraints) => constraints.iter().all(|constraint| constraint.allows(node)),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn node() -> pb::Node {
        let labels = BTreeMap::from([("Disk".to_owned(), "ssd".to_owned())]);
        let engine_labels = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
        pb::Node {
            id: "n1".into(),
            role: pb::NodeRole::Manager as i32,
            spec: Some(pb::NodeSpec {
                annotations: Some(pb::Annotations { labels, ..Default::default() }),
                ..Default::default()
            }),
            description: Some(pb::NodeDescription {
                hostname: "host-a".into(),
                platform: Some(pb::Platform { architecture: "x86_64".into(), os: "linux".into() }),
                engine: Some(pb::EngineDescription { labels: engine_labels, ..Default::default() }),
                ..Default::default()
            }),
            status: Some(pb::NodeStatus { addr: "10.1.2.3".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn every_key_with_both_operators() {
        for (text, allowed) in [
            ("node.id == n1", true),
            ("node.id!=n1", false),
            ("node.hostname == HOST-A", true),
            ("node.role == worker", false),
            ("node.role != worker", true),
            ("node.platform.os == linux", true),
            ("node.platform.arch == amd64", true),
            ("node.platform.arch != aarch64", true),
            ("node.ip == 10.1.0.0/16", true),
            ("node.ip != 10.1.2.3", false),
            ("node.labels.Disk == ssd", true),
            ("node.labels.disk == ssd", false),
            ("node.labels.none != ssd", true),
            ("engine.labels.zone == b", true),
            ("node.unknown == b", false),
            ("node.unknown != b", false),
        ] {
            assert_eq!(Constraint::parse(text).unwrap().allows(&node()), allowed, "{text}");
        }
    }

    #[test]
    fn what_is_no_constraint_is_refused() {
        for text in ["node.id", "node.id = n1", "== n1", "no de == a", "a == b == c", "a =="] {
            assert!(Constraint::parse(text).is_err(), "{text}");
        }
    }
}
