//! What the user may ask of the demo.

use anyhow::{Context, Result, bail};

pub const USAGE: &str = "usage: cargo xtask demo [OPTIONS]
  --hosts N         2 to 9 hosts (default 2); from 3 on, three of them are managers
  --routed          hosts on different subnets behind a router
  --ipv6            hosts and the network web also have IPv6
  --image REF       serve this image on port 80 instead of the httpd made on the spot: your docker
                    command's engine is asked for it, then its registry; ARCHIVE=REF takes it
                    from a file that `docker save REF -o ARCHIVE` made
  --with-dockerd    one more host runs the Docker Engine and joins the same swarm
  --keep            leave everything up and print how to go on by hand
SKEP_BIN=FILE runs that skep instead of building one.";

const HOSTS_MAX: usize = 9;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Hosts that run skep.
    pub hosts: usize,
    pub routed: bool,
    pub ipv6: bool,
    /// `REF` or `ARCHIVE=REF`.
    pub image: Option<String>,
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
            with_dockerd: false,
            keep: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--hosts" => options.hosts = count(words.next())?,
                "--image" => {
                    options.image = Some(words.next().context("--image wants a reference")?.clone())
                }
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
        for line in ["--hosts", "--hosts 1", "--hosts 10", "--hosts x", "--image", "--fast"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(matches!(parse("--help"), Ok(None)));
    }
}
