//! Layers that are packed with zstd.

use anyhow::{Context, Result};
use e2e::{answers, hosts, refused};
use lab::{Engine, registry};
use serde_json::json;

use crate::images::{OCI_MANIFEST, PLAIN, app, manifest, put};

/// The Docker Engine reads them from 23.0 on: 20.10 refuses the tar.
#[test]
fn layers_packed_with_zstd_are_pulled() -> Result<()> {
    let lab = hosts(1)?;
    let host = lab.host(1);
    registry::start(host, PLAIN, &[])?;
    // A layer that is not here under another name, so that it is asked for.
    host.docker(&["run", "--name", "maker", "httpd", "sh", "-c", "echo packed > /packed"])?;
    host.dk(&format!("commit maker {}", app(":packed")))?;
    host.dk("rm maker")?;
    host.dk(&format!("push -q {}", app(":packed")))?;
    host.dk(&format!("rmi {}", app(":packed")))?;
    let mut image = manifest(host, "packed")?;
    let repository = format!("http://127.0.0.1:{PLAIN}/v2/team/app");
    let script = format!(
        "cd {folder} && curl -sSf {repository}/blobs/{gzip} | gzip -dc | zstd -q -f -o layer.zst &&
         sum=sha256:$(sha256sum < layer.zst | cut -d' ' -f1) &&
         to=$(curl -sSf -X POST -D - {repository}/blobs/uploads/ | tr -d '\\r' | sed -n 's/^Location: //Ip') &&
         curl -sSf -X PUT --data-binary @layer.zst -H 'Content-Type: application/octet-stream' \"$to&digest=$sum\" &&
         echo $sum $(stat -c %s layer.zst)",
        folder = host.folder.display(),
        gzip = image["layers"][1]["digest"].as_str().context("a layer")?,
    );
    let sent = host.exec(&["sh", "-c", &script])?;
    let (digest, size) = sent.split_once(' ').context("no digest")?;
    image["mediaType"] = json!(OCI_MANIFEST);
    image["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    image["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
    image["layers"][1] = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
        "digest": digest, "size": size.parse::<u64>()?,
    });
    put(host, "zstd", OCI_MANIFEST, &image)?;
    let pull = format!("pull {}", app(":zstd"));
    if lab.plan.engines[0] == Engine::Dockerd {
        return refused(host, &pull, "failed to register layer");
    }
    host.dk(&pull)?;
    answers(host, &format!("run --rm {} cat /packed", app(":zstd")), "packed")?;
    lab.down()
}
