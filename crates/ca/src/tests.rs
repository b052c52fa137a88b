//! What the authority promises, checked with openssl where it is the better judge.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use model::Instant;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use wire::swarmkit as pb;

use crate::certificate::EXPIRY_DEFAULT;
use crate::{Error, Identity, JoinToken, Key, Root, TokenError, join_token, pem, token};

const NOW: Instant = Instant::from_nanos(1_790_000_000_000_000_000);

fn dice() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(4)
}

fn identity(role: pb::NodeRole) -> Identity {
    Identity { node_id: "node0".into(), role, organization: "cluster0".into() }
}

fn openssl(arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().expect("piped").write_all(input).expect("openssl reads");
    let output = child.wait_with_output().expect("openssl ends");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_root_is_as_dockers() {
    let root = Root::create(NOW, &mut dice()).unwrap();
    let text = openssl(&["x509", "-noout", "-text", "-nameopt", "RFC2253"], &root.roots);
    for line in [
        "Issuer: CN=swarm-ca",
        "Subject: CN=swarm-ca",
        "ASN1 OID: prime256v1",
        "ecdsa-with-SHA256",
        "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign",
        "X509v3 Basic Constraints: critical\n                CA:TRUE",
        "X509v3 Subject Key Identifier",
    ] {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
}

#[test]
fn node_certificates_are_as_dockers() {
    let root = Root::create(NOW, &mut dice()).unwrap();
    let key = Key::generate().unwrap();
    let sign = |role| {
        let issued =
            root.sign(&key.request().unwrap(), &identity(role), NOW, EXPIRY_DEFAULT, &mut dice());
        issued.unwrap().chain
    };
    let text = openssl(&["x509", "-noout", "-text"], &sign(pb::NodeRole::Manager));
    for line in [
        "Subject: O = cluster0, OU = swarm-manager, CN = node0",
        "DNS:swarm-manager, DNS:node0, DNS:swarm-ca",
        "X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
        "X509v3 Authority Key Identifier",
        "X509v3 Subject Key Identifier",
    ] {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
    let worker = sign(pb::NodeRole::Worker);
    let text = openssl(&["x509", "-noout", "-text"], &worker);
    assert!(text.contains("DNS:swarm-worker, DNS:node0\n"), "{text}");
    let verified = root.verify(&worker, NOW).unwrap();
    assert_eq!(verified.node_id, "node0");
    assert_eq!(verified.units, ["swarm-worker"]);
    assert_eq!(
        verified.not_after.since(verified.not_before),
        EXPIRY_DEFAULT + Duration::from_secs(3600)
    );
    assert!(key.owns(&worker).unwrap());
    assert!(!Key::generate().unwrap().owns(&worker).unwrap());
}

#[test]
fn openssl_verifies_the_chain_and_its_requests_are_signed() {
    let root = Root::create(NOW, &mut dice()).unwrap();
    let request = openssl(
        &[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            "/dev/null",
            "-subj",
            "/CN=whoever",
        ],
        b"",
    );
    let start = request.find("-----BEGIN CERTIFICATE REQUEST").unwrap();
    let issued = root
        .sign(
            &request.as_bytes()[start..],
            &identity(pb::NodeRole::Worker),
            NOW,
            EXPIRY_DEFAULT,
            &mut dice(),
        )
        .unwrap();
    let folder = std::env::temp_dir().join(format!("skep-ca-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("root.pem");
    std::fs::write(&path, &root.roots).unwrap();
    let time = (NOW.unix().0).to_string();
    let answer =
        openssl(&["verify", "-attime", &time, "-CAfile", path.to_str().unwrap()], &issued.chain);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(answer.contains("stdin: OK"), "{answer}");
}

#[test]
fn a_rotated_authoritys_leaf_is_good_under_the_old_and_the_new_root() {
    let old = Root::create(NOW, &mut dice()).unwrap();
    let new = Root::create(NOW, &mut dice()).unwrap();
    let cross = old.cross_sign(&new.roots, NOW, &mut dice()).unwrap();
    let signer = new.signer.clone().unwrap();
    let cluster = pb::RootCa {
        ca_cert: old.roots.clone(),
        ca_key: old.signer.clone().unwrap().key.pem().into(),
        root_rotation: Some(pb::RootRotation {
            ca_cert: new.roots.clone(),
            ca_key: signer.key.pem().into(),
            cross_signed_ca_cert: cross,
        }),
        ..Default::default()
    };
    let rotating = Root::from_cluster(&cluster).unwrap();
    let request = Key::generate().unwrap().request().unwrap();
    let issued = rotating
        .sign(&request, &identity(pb::NodeRole::Manager), NOW, EXPIRY_DEFAULT, &mut dice())
        .unwrap();
    let under_old = Root::trusted(old.roots.clone()).unwrap().verify(&issued.chain, NOW).unwrap();
    let under_new = Root::trusted(new.roots.clone()).unwrap().verify(&issued.chain, NOW).unwrap();
    assert_eq!(under_old.issuer_public_key, new.issuer_info().unwrap().1);
    assert_eq!(under_new.issuer_subject, new.issuer_info().unwrap().0);
    let stranger = Root::create(NOW, &mut ChaCha8Rng::seed_from_u64(9)).unwrap();
    let refused = stranger.verify(&issued.chain, NOW);
    assert!(matches!(refused, Err(Error::UnknownAuthority { .. })));
}

#[test]
fn a_certificate_is_good_only_in_its_time() {
    let root = Root::create(NOW, &mut dice()).unwrap();
    let request = Key::generate().unwrap().request().unwrap();
    let hour = Duration::from_secs(3600);
    let issued =
        root.sign(&request, &identity(pb::NodeRole::Worker), NOW, hour, &mut dice()).unwrap();
    let late = root.verify(&issued.chain, NOW + hour + Duration::from_secs(1));
    assert!(matches!(late, Err(Error::OutOfTime { .. })));
    let early = root.verify(&issued.chain, NOW - hour - Duration::from_secs(1));
    assert!(matches!(early, Err(Error::OutOfTime { .. })));
    let verified = root.verify(&issued.chain, NOW).unwrap();
    let renewal = verified.renew_at(&mut dice()).since(verified.not_before);
    assert!(renewal >= hour && renewal <= Duration::from_secs(2 * 3600 * 8 / 10 + 1));
}

#[test]
fn requests_that_are_no_requests_are_refused() {
    let root = Root::create(NOW, &mut dice()).unwrap();
    let good = Key::generate().unwrap().request().unwrap();
    let mut blocks = pem::parse(std::str::from_utf8(&good).unwrap()).unwrap();
    let last = blocks[0].der.len() - 1;
    blocks[0].der[last] ^= 1;
    for bad in [
        Vec::new(),
        b"hello".to_vec(),
        good[..good.len() / 2].to_vec(),
        pem::write(&blocks[0]).into_bytes(),
        root.roots.clone(),
        vec![b'A'; crate::certificate::PEM_BYTES_MAX + 1],
    ] {
        let refused =
            root.sign(&bad, &identity(pb::NodeRole::Worker), NOW, EXPIRY_DEFAULT, &mut dice());
        assert!(refused.is_err());
    }
}

#[test]
fn a_token_names_its_roots_and_its_role() {
    let root = Root::create(NOW, &mut dice()).unwrap();
    let mut dice = dice();
    let tokens = pb::JoinTokens {
        worker: join_token(&root.roots, &mut dice),
        manager: join_token(&root.roots, &mut dice),
    };
    assert_eq!(tokens.worker.len(), "SWMTKN-1-".len() + 50 + 1 + 25);
    assert_eq!(token::role_of(&tokens.worker, &tokens), Some(pb::NodeRole::Worker));
    assert_eq!(token::role_of(&tokens.manager, &tokens), Some(pb::NodeRole::Manager));
    assert_eq!(token::role_of("", &pb::JoinTokens::default()), None);
    assert_eq!(token::role_of(&tokens.worker[..60], &tokens), None);
    let parsed = JoinToken::parse(&tokens.worker).unwrap();
    parsed.check_roots(&root.roots).unwrap();
    let other = parsed.check_roots(b"other");
    assert!(matches!(other, Err(TokenError::OtherRoot { .. })));
    for bad in ["", "SWMTKN-1-abc-def", &tokens.worker[1..], &format!("{}x", tokens.worker)] {
        assert_eq!(JoinToken::parse(bad).err(), Some(TokenError::Malformed));
    }
}

#[test]
fn an_unlock_key_survives_its_text() {
    let key = token::new_unlock_key(&mut dice());
    let text = token::unlock_key_text(&key);
    assert!(text.starts_with("SWMKEY-1-") && text.len() == 9 + 43, "{text}");
    assert_eq!(token::parse_unlock_key(&text), Some(key));
    assert_eq!(token::parse_unlock_key("SWMKEY-1-AAAA"), None);
}

#[test]
fn pem_headers_and_blocks_are_kept() {
    let block = pem::Block {
        label: "PRIVATE KEY".into(),
        headers: vec![("raft-dek".into(), "abc=".into()), ("kek-version".into(), "0".into())],
        der: (0..100).collect(),
    };
    let text = pem::write(&block);
    assert!(text.starts_with("-----BEGIN PRIVATE KEY-----\nkek-version: 0\nraft-dek: abc=\n\n"));
    let parsed = pem::parse(&text).unwrap();
    assert_eq!(parsed[0].der, block.der);
    assert_eq!(parsed[0].headers.len(), 2);
    assert!(pem::parse(&text[..text.len() - 3]).is_none());
}
