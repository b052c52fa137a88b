//! What the user may ask of the demo.

use anyhow::{Context, Result, bail};

pub const USAGE: &str = "usage: cargo xtask demo [OPTIONS]
  --hosts N         2 to 9 hosts (default 2); from 3 on, three of them are managers
  --routed          hosts on different subnets behind a router
  --ipv6            hosts and the network web also have IPv6
  --image ARCHIVE   serve this image, an archive made by `docker save REF -o ARCHIVE`,
                    instead of the one made on the spot; its reference is given as ARCHIVE=REF
  --with-dockerd    one more host runs the Docker Engine and joins the same swarm
  --keep            leave everything up and print how to go on by hand";

const HOSTS_MAX: usize = 9;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Hosts that run skep.
    pub hosts: usize,
    pub routed: bool,
    pub ipv6: bool,
    /// The archive to load on every host.
    pub image: Option<String>,
    /// The image's name in the service.
    pub reference: String,
    pub with_dockerd: bool,
    pub keep: bool,
}

impl Options {
    /// `None` when the user asked for help.
    pub fn parse(words: &[String]) -> Result<Option<Options>> {
        let mut options = Options {
            hosts: 2,
            routed: false,
            ipv6: false,
            image: None,
            reference: "httpd".into(),
            with_dockerd: false,
            keep: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--hosts" => options.hosts = count(words.next())?,
                "--image" => options.set_image(words.next())?,
                "--routed" => options.routed = true,
                "--ipv6" => options.ipv6 = true,
                "--with-dockerd" => options.with_dockerd = true,
                "--keep" => options.keep = true,
                "--help" | "-h" => return Ok(None),
                other => bail!("demo does not know {other}\n{USAGE}"),
            }
        }
        Ok(Some(options))
    }

    /// All hosts, those with the Docker Engine included.
    pub fn host_count(&self) -> usize {
        self.hosts + usize::from(self.with_dockerd)
    }

    /// One manager for two hosts, three from three hosts on.
    pub fn managers(&self) -> usize {
        if self.hosts >= 3 { 3 } else { 1 }
    }

    fn set_image(&mut self, word: Option<&String>) -> Result<()> {
        let (archive, reference) =
            word.and_then(|word| word.split_once('=')).context("--image wants ARCHIVE=REF")?;
        self.image = Some(archive.to_owned());
        self.reference = reference.to_owned();
        Ok(())
    }
}

fn count(word: Option<&String>) -> Result<usize> {
    let number = word.and_then(|word| word.parse().ok()).filter(|n| (2..=HOSTS_MAX).contains(n));
    number.with_context(|| format!("--hosts wants a number from 2 to {HOSTS_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn from_three_hosts_on_there_are_three_managers() {
        let managers = |line| parse(line).ok().flatten().map(|o| o.managers());
        assert_eq!(managers(""), Some(1));
        assert_eq!(managers("--hosts 3"), Some(3));
        assert_eq!(managers("--hosts 9 --routed"), Some(3));
    }

    #[test]
    fn wrong_words_are_refused_with_what_was_expected() {
        for line in ["--hosts", "--hosts 1", "--hosts 10", "--hosts x", "--image x", "--fast"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(matches!(parse("--help"), Ok(None)));
    }
}
