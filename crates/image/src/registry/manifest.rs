//! Manifests as registries serve them: OCI and Docker v2 schema 2, single or by platform.

use serde::Deserialize;

use crate::{Digest, Error, Platform, Result};

/// Docker's limit for what is no layer.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;

pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub platform: Option<PlatformText>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct PlatformText {
    pub architecture: String,
    pub os: String,
    pub variant: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Manifest {
    Image { config: Descriptor, layers: Vec<Descriptor> },
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Text {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Manifest {
    /// By what it holds; a media type that contradicts it is refused (one content, two meanings).
    pub fn parse(raw: &[u8], content_type: &str) -> Result<Self> {
        let broken = |cause: String| Error::Invalid(format!("manifest: {cause}"));
        let text: Text = serde_json::from_slice(raw).map_err(|cause| broken(cause.to_string()))?;
        if text.schema_version != 2 {
            return Err(Error::NotSupported(
                "not supported by skep yet: image manifests of schema version 1; push the image again with a newer client".into(),
            ));
        }
        let named = if text.media_type.is_empty() { content_type } else { &text.media_type };
        match (text.config, text.layers, text.manifests) {
            (Some(config), layers, None) if !matches!(named, DOCKER_LIST | OCI_INDEX) => {
                Ok(Self::Image { config, layers: layers.unwrap_or_default() })
            }
            (None, None, Some(manifests)) if !matches!(named, DOCKER_MANIFEST | OCI_MANIFEST) => {
                Ok(Self::Index(manifests))
            }
            _ => Err(broken(format!("unsupported manifest format {named:?}"))),
        }
    }
}

/// The entry for a platform: the same variant before none before another that runs there too.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor> {
    let rank = |entry: &Descriptor| {
        let platform = entry.platform.clone().unwrap_or_default();
        if platform.os != wanted.os || platform.architecture != wanted.architecture {
            return None;
        }
        let own = default_variant(&platform.architecture, &platform.variant);
        let asked = default_variant(&wanted.architecture, &wanted.variant);
        match (own == asked, own.as_str() < asked.as_str()) {
            (true, _) => Some(0),
            // An older variant runs on a newer machine.
            (false, true) => Some(1),
            (false, false) if wanted.variant.is_empty() => Some(2),
            _ => None,
        }
    };
    let best = entries
        .iter()
        .filter_map(|entry| Some((rank(entry)?, entry)))
        .min_by_key(|(rank, _)| *rank);
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let variant =
            if wanted.variant.is_empty() { String::new() } else { format!("/{}", wanted.variant) };
        Error::NotFound(format!(
            "no matching manifest for {}/{}{variant} in the manifest list entries",
            wanted.os, wanted.architecture
        ))
    })
}

fn default_variant(architecture: &str, variant: &str) -> String {
    match (architecture, variant) {
        ("arm64", "") => "v8".into(),
        ("arm", "") => "v7".into(),
        (_, variant) => variant.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digit: char, os: &str, architecture: &str, variant: &str) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::from_hex(&digit.to_string().repeat(64)).unwrap(),
            size: 1,
            platform: Some(PlatformText {
                architecture: architecture.into(),
                os: os.into(),
                variant: variant.into(),
            }),
        }
    }

    #[test]
    fn the_platform_s_own_manifest_is_chosen() {
        let entries = [
            entry('1', "linux", "arm", "v6"),
            entry('2', "linux", "arm", "v7"),
            entry('3', "linux", "amd64", ""),
            entry('4', "unknown", "unknown", ""),
        ];
        let check = |text: &str, expected: &str| {
            let chosen = choose(&entries, &Platform::parse(text).unwrap());
            let shown = chosen
                .map_or_else(|error| error.to_string(), |entry| entry.digest.hex()[..1].to_owned());
            assert_eq!(shown, expected, "{text}");
        };
        check("linux/amd64", "3");
        check("linux/arm/v7", "2");
        check("linux/arm/v6", "1");
        check("linux/arm", "2");
        check("linux/s390x", "no matching manifest for linux/s390x in the manifest list entries");
    }

    #[test]
    fn one_content_has_one_meaning() {
        let both = br#"{"schemaVersion":2,"config":{"digest":"sha256:aa"},"manifests":[]}"#;
        assert!(Manifest::parse(both, OCI_INDEX).is_err());
        assert!(Manifest::parse(br#"{"schemaVersion":1}"#, "").is_err());
        assert!(Manifest::parse(br#"{"schemaVersion":2,"manifests":[]}"#, OCI_MANIFEST).is_err());
        assert_eq!(
            Manifest::parse(br#"{"schemaVersion":2,"manifests":[]}"#, OCI_INDEX).unwrap(),
            Manifest::Index(vec![])
        );
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]
        #[test]
        fn any_text_is_a_manifest_or_an_error(raw in "[\\[\\]{}:,\"a-z0-9]{0,200}") {
            let _ = Manifest::parse(raw.as_bytes(), "");
        }
    }
}
