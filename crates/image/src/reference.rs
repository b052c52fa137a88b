//! Image names as people write them and as registries want them (distribution's reference grammar, Docker's defaults).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, Error, Result};

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// `domain/path[:tag][@digest]`, always with its domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// What a person wrote; `busybox` is `docker.io/library/busybox`.
    pub fn parse(text: &str) -> Result<Self> {
        if Digest::from_hex(text).is_some() {
            return Err(Error::Invalid(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (domain, rest) = split_domain(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Error::Invalid(format!(
                "invalid reference format: repository name ({path}) must be lowercase"
            )));
        }
        if !is_domain(domain) || !is_path(path) || tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(Error::Invalid("invalid reference format".into()));
        }
        let path = match domain == DEFAULT_DOMAIN && !path.contains('/') {
            true => format!("{OFFICIAL}{path}"),
            false => path.to_owned(),
        };
        if domain.len() + 1 + path.len() > NAME_BYTES_MAX {
            return Err(Error::Invalid(
                "repository name must not be more than 255 characters".into(),
            ));
        }
        let digest = digest.map(parse_digest).transpose()?;
        Ok(Self { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }
    /// The repository within its registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
    /// `docker.io/library/busybox`
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }
    /// `busybox`: the shortest text that means this repository.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.path.clone(),
        }
    }
    /// `busybox:latest`, as lists show it.
    pub fn familiar(&self) -> String {
        suffixed(self.familiar_name(), self.tag(), self.digest)
    }
    /// The same with `:latest` when neither tag nor digest was given.
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        if !is_tag(tag) {
            return Err(Error::Invalid("invalid tag format".into()));
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
    pub fn without_suffix(&self) -> Self {
        Self { tag: None, digest: None, ..self.clone() }
    }
}

fn suffixed(mut name: String, tag: Option<&str>, digest: Option<Digest>) -> String {
    if let Some(tag) = tag {
        name.push(':');
        name.push_str(tag);
    }
    if let Some(digest) = digest {
        name.push('@');
        name.push_str(&digest.to_string());
    }
    name
}

fn split_domain(text: &str) -> (&str, &str) {
    let (domain, rest) = match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    };
    if domain == "index.docker.io" { (DEFAULT_DOMAIN, rest) } else { (domain, rest) }
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let hex = !address.is_empty()
                && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
            return hex && (port.is_empty() || port.strip_prefix(':').is_some_and(is_number));
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(is_number)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_component)
}

/// `[a-z0-9]+` joined by one dot, one or two underscores, or any number of dashes.
fn is_component(text: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    bytes.split(word).filter(|separator| !separator.is_empty()).all(|separator| {
        matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn parse_digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|error| match error {
        Error::Invalid(reason) if reason.contains("algorithm") => Error::Invalid(reason),
        _ => Error::Invalid("invalid reference format".into()),
    })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&suffixed(self.name(), self.tag(), self.digest))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        Reference::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let read = match Reference::parse(text) {
            Ok(reference) => format!("{reference} | {}", reference.familiar()),
            Err(error) => error.to_string(),
        };
        assert_eq!(read, expected, "{text}");
    }

    #[test]
    fn names_are_completed_as_docker_does() {
        check("busybox", "docker.io/library/busybox | busybox");
        check("busybox:1.36", "docker.io/library/busybox:1.36 | busybox:1.36");
        check("docker.io/busybox", "docker.io/library/busybox | busybox");
        check("index.docker.io/library/busybox", "docker.io/library/busybox | busybox");
        check("user/app", "docker.io/user/app | user/app");
        check("localhost/app", "localhost/app | localhost/app");
        check("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t | 127.0.0.1:5000/a/b:t");
        check("[::1]:5000/app", "[::1]:5000/app | [::1]:5000/app");
        check("Host/app", "Host/app | Host/app");
        let digest = "a".repeat(64);
        check(
            &format!("a/b:t@sha256:{digest}"),
            &format!("docker.io/a/b:t@sha256:{digest} | a/b:t@sha256:{digest}"),
        );
    }

    #[test]
    fn what_is_not_a_name_is_refused_in_docker_s_words() {
        for bad in [
            "",
            "a b",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:",
            "a:.x",
            "a@sha256:12",
            "/a",
            "a/",
            "h:p/x",
        ] {
            check(bad, "invalid reference format");
        }
        check("BusyBox", "invalid reference format: repository name (BusyBox) must be lowercase");
        check(
            &"a".repeat(64),
            &format!(
                "invalid repository name ({}), cannot specify 64-byte hexadecimal strings",
                "a".repeat(64)
            ),
        );
        check(&"b".repeat(250), "repository name must not be more than 255 characters");
        check(&format!("a:{}", "t".repeat(129)), "invalid reference format");
    }
}
