//! `cargo xtask dist`: a release as one tarball and one Debian package, for machines without Rust.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use lab::command::{run, sh};

use crate::{setup, suite, tidy};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Files that are copied as they are, and where they go.
const FILES: &[(&str, &str)] = &[
    ("packaging/skep.service", "usr/lib/systemd/system/skep.service"),
    ("packaging/skep.socket", "usr/lib/systemd/system/skep.socket"),
    ("LICENSE", "usr/share/doc/skep/copyright"),
];

/// Pages beside the folder `docs`, which goes along whole: what a page links to is there, too.
const PAGES: &[&str] = &["README.md", "CHANGELOG.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
const PAGES_TARGET: &str = "usr/share/doc/skep";

/// What the program prints about itself, and where that goes.
const PRINTED: &[(&[&str], &str)] = &[
    (&["completion", "bash"], "usr/share/bash-completion/completions/skep"),
    (&["completion", "zsh"], "usr/share/zsh/vendor-completions/_skep"),
    (&["completion", "fish"], "usr/share/fish/vendor_completions.d/skep.fish"),
    (&["man"], "usr/share/man/man8/skep.8"),
    (&["man", "daemon"], "usr/share/man/man8/skep-daemon.8"),
];

/// Libraries that the binary may need, by the package of each; anything else must be linked in.
const LIBRARIES: &[(&str, &str)] = &[
    ("libc.so.6", "libc6"),
    ("libm.so.6", "libc6"),
    ("ld-linux-x86-64.so.2", "libc6"),
    ("ld-linux-aarch64.so.1", "libc6"),
    ("libgcc_s.so.1", "libgcc-s1"),
];

/// Where the files of a release lie.
pub struct Release {
    pub tarball: PathBuf,
    pub package: PathBuf,
}

pub fn main(words: &[String]) -> Result<()> {
    if let Some(word) = words.first() {
        bail!("dist takes no arguments, got {word}");
    }
    setup::install()?;
    suite::cargo(&["build", "--release", "--package", "skep"])?;
    let target = suite::target_folder()?.parent().context("no target folder")?.to_path_buf();
    let release = pack(&target.join("release/skep"), &target.join("dist"))?;
    println!("{}\n{}", release.tarball.display(), release.package.display());
    Ok(())
}

/// Packs a binary that was built, and all that goes with it, below `folder`.
///
/// # Errors
/// When the binary needs a library that is not on every Debian, or a file or program is missing.
pub fn pack(binary: &Path, folder: &Path) -> Result<Release> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    stage(binary, &root)?;
    let architecture = sh("dpkg --print-architecture")?;
    let tarball = folder.join(format!("skep-{VERSION}-{architecture}.tar.gz"));
    // The same sources make the same bytes.
    let epoch = sh("git log -1 --format=%ct").unwrap_or_else(|_| "0".into());
    run(Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{epoch}"))
        .arg("-C")
        .arg(&root)
        .arg("-czf")
        .arg(&tarball)
        .arg("."))?;
    control(&root, &architecture)?;
    let package = folder.join(format!("skep_{VERSION}_{architecture}.deb"));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "-z1", "--build"])
        .arg(&root)
        .arg(&package)
        .env("SOURCE_DATE_EPOCH", epoch))?;
    Ok(Release { tarball, package })
}

fn stage(binary: &Path, root: &Path) -> Result<()> {
    let program = root.join("usr/bin/skep");
    make_room(&program)?;
    run(Command::new("strip").arg("-o").arg(&program).arg(binary))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    for (from, to) in FILES {
        copy(Path::new(from), &root.join(to))?;
    }
    for page in pages()? {
        copy(&page, &root.join(PAGES_TARGET).join(&page))?;
    }
    for (words, to) in PRINTED {
        let target = root.join(to);
        make_room(&target)?;
        let text = run(Command::new(&program).args(*words))?;
        fs::write(&target, format!("{text}\n"))?;
    }
    Ok(())
}

fn copy(from: &Path, target: &Path) -> Result<()> {
    make_room(target)?;
    fs::copy(tidy::workspace().join(from), target).with_context(|| from.display().to_string())?;
    Ok(fs::set_permissions(target, fs::Permissions::from_mode(0o644))?)
}

/// What there is to read, by its place in the repository.
fn pages() -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = PAGES.iter().map(PathBuf::from).collect();
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(tidy::workspace().join(&folder))? {
            let entry = entry?;
            let list = if entry.file_type()?.is_dir() { &mut folders } else { &mut found };
            list.push(folder.join(entry.file_name()));
        }
    }
    Ok(found)
}

fn make_room(file: &Path) -> Result<()> {
    Ok(fs::create_dir_all(file.parent().context("a file at the root")?)?)
}

/// The package's description and the steps around its installation.
fn control(root: &Path, architecture: &str) -> Result<()> {
    let program = root.join("usr/bin/skep");
    let folder = root.join("DEBIAN");
    fs::create_dir_all(&folder)?;
    let text = format!(
        "Package: skep\nVersion: {VERSION}\nArchitecture: {architecture}\nSection: admin\nPriority: optional\n\
         Maintainer: The skep project <skep@localhost>\nDepends: {}\n\
         Recommends: apparmor, ca-certificates, docker-cli | docker-ce-cli | docker.io, iproute2\nInstalled-Size: {}\n\
         Description: swarm-mode container engine for the docker command\n \
         One program that makes Linux hosts members of a swarm: containers, overlay\n \
         networks, services and a routing mesh, driven by the unmodified docker\n \
         command, beside Docker Engine nodes if there are any.\n",
        depends(&program)?,
        fs::metadata(&program)?.len() / 1024
    );
    fs::write(folder.join("control"), text)?;
    for script in ["postinst", "prerm", "postrm"] {
        let target = folder.join(script);
        fs::copy(tidy::workspace().join("packaging").join(script), &target)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Debian's names of the libraries that the binary needs, with the lowest libc that will do.
fn depends(program: &Path) -> Result<String> {
    let said =
        run(Command::new("readelf").args(["--dynamic", "--version-info", "--wide"]).arg(program))?;
    let mut packages = Vec::new();
    for library in said.lines().filter(|line| line.contains("(NEEDED)")).filter_map(in_brackets) {
        let known = LIBRARIES.iter().find(|known| known.0 == library);
        let package = known.with_context(|| format!("{library} is not linked into the binary"))?.1;
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    let libc = format!("libc6 (>= {})", libc_version(&said));
    let names =
        packages.into_iter().map(|name| if name == "libc6" { libc.clone() } else { name.into() });
    Ok(names.collect::<Vec<String>>().join(", "))
}

fn in_brackets(line: &str) -> Option<&str> {
    line.split_once('[')?.1.split_once(']').map(|parts| parts.0)
}

/// The highest `GLIBC_2.N` that a symbol asks for.
fn libc_version(said: &str) -> String {
    let versions = said.split("GLIBC_2.").skip(1);
    let minors = versions.filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    format!("2.{}", minors.max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_libc_that_will_do_is_the_highest_that_a_symbol_names() {
        let said =
            "0x0010: Name: GLIBC_2.9 Flags\n0x0020: Name: GLIBC_2.34\n0x0030: Name: GLIBC_2.2.5";
        assert_eq!(libc_version(said), "2.34");
        assert_eq!(in_brackets(" 0x1 (NEEDED) Shared library: [libm.so.6]"), Some("libm.so.6"));
    }
    /// The places that a page links to, without those on other machines and in the same page.
    fn links(text: &str) -> Vec<&str> {
        let ends = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        let places = ends.filter_map(|(link, _)| link.split('#').next());
        places.filter(|place| !place.is_empty() && !place.contains("://")).collect()
    }

    #[test]
    fn what_a_page_links_to_goes_along() -> Result<()> {
        assert_eq!(
            links("[a](b.md#c), [d](#e), [f](https://g)\n![h](i/j.svg)"),
            ["b.md", "i/j.svg"]
        );
        let readme = fs::read_to_string(tidy::workspace().join("README.md"))?;
        let pages = pages()?;
        for place in links(&readme) {
            let goes = pages.iter().any(|page| page.starts_with(place));
            assert!(goes, "README.md links to {place}, which is not packed");
        }
        Ok(())
    }
}
