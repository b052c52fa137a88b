//! Which address a node listens on, and under which one the others reach it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use docker_api::swarm::{ControlCode, ControlError};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

pub const MANAGER_PORT: u16 = 2377;
const LISTEN_WRONG: &str =
    "listen address must be an IP address or network interface (with optional port number)";
const ADVERTISE_WRONG: &str = "advertise address must be a non-zero IP address or network interface (with optional port number)";
const DATA_PATH_WRONG: &str =
    "data path address must be a non-zero IP address or network interface (without a port number)";

/// What the user's words come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub listen: SocketAddr,
    pub advertise: SocketAddr,
    pub data_path: IpAddr,
}

fn invalid(message: impl Into<String>) -> ControlError {
    ControlError::new(ControlCode::BadParameter, message)
}

/// `remote` is a manager to join: what is reached through is what is advertised.
pub async fn resolve(
    listen: &str,
    advertise: &str,
    data_path: &str,
    remote: Option<&str>,
) -> Result<Addresses, ControlError> {
    if listen.is_empty() {
        return Err(invalid("invalid ListenAddr \"\": invalid empty address"));
    }
    let (host, port) = split(listen)?;
    // As in Go, nothing in front of the colon is every address.
    let ip = match host.is_empty() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => host_address(&host).ok_or_else(|| invalid(LISTEN_WRONG))?,
    };
    let listen = SocketAddr::new(ip, port.unwrap_or(MANAGER_PORT));
    let advertise = match advertise {
        "" if !listen.ip().is_unspecified() => listen,
        "" => SocketAddr::new(route_source(remote).await?, listen.port()),
        given => {
            let (host, port) = split(given)?;
            let ip = host_address(&host).filter(|ip| !ip.is_unspecified());
            let ip = ip.ok_or_else(|| invalid(ADVERTISE_WRONG))?;
            SocketAddr::new(ip, port.unwrap_or(listen.port()))
        }
    };
    let data_path = match data_path {
        "" => advertise.ip(),
        given => {
            let ip = host_address(given).filter(|ip| !ip.is_unspecified());
            ip.ok_or_else(|| invalid(DATA_PATH_WRONG))?
        }
    };
    Ok(Addresses { listen, advertise, data_path })
}

/// `host`, `host:port`, `[v6]:port`.
fn split(text: &str) -> Result<(String, Option<u16>), ControlError> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text.to_owned(), None));
    }
    match text.rsplit_once(':') {
        None => Ok((text.to_owned(), None)),
        Some((host, port)) => {
            let port = port
                .parse()
                .map_err(|_| invalid(format!("invalid port {port:?} in address {text:?}")))?;
            Ok((host.trim_matches(['[', ']']).to_owned(), Some(port)))
        }
    }
}

/// With the usual port when none is given.
pub fn with_port(address: &str) -> Result<String, ControlError> {
    let (host, port) = split(address)?;
    let port = port.unwrap_or(MANAGER_PORT);
    Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

/// An address, or the address of an interface of this host.
fn host_address(host: &str) -> Option<IpAddr> {
    match host.parse() {
        Ok(ip) => Some(ip),
        Err(_) if host.is_empty() => None,
        Err(_) => interface_address(host),
    }
}

/// The link's own first address; IPv6 where it has no IPv4. Asking the kernel for a source would not
/// do: without an address on the link it takes one of another.
fn interface_address(name: &str) -> Option<IpAddr> {
    let addresses = netlink::kernel::addresses_of(name).ok()?;
    addresses.into_iter().map(|cidr| cidr.addr).min_by_key(IpAddr::is_ipv6)
}

/// Opens a manager's port. Every address of the host is both families', as Go has it: a manager
/// that advertises IPv6 is told to listen on 0.0.0.0, too, unless its user says something else.
pub async fn listener(listen: &str) -> std::io::Result<TcpListener> {
    let port = listen.strip_prefix("0.0.0.0:").and_then(|port| port.parse().ok());
    match port {
        Some(port) => match of_both_families(port) {
            Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
                TcpListener::bind(listen).await
            }
            bound => bound,
        },
        None => TcpListener::bind(listen).await,
    }
}

/// Said aloud: a host may have it that sockets of IPv6 are of IPv6 alone (`net.ipv6.bindv6only`).
fn of_both_families(port: u16) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(1_024)
}

/// The source that the kernel takes towards a manager, or towards the world.
async fn route_source(remote: Option<&str>) -> Result<IpAddr, ControlError> {
    let towards = match remote {
        Some(address) => with_port(address)?,
        None => "192.0.2.1:9".to_owned(),
    };
    let find = async {
        let target =
            tokio::net::lookup_host(&towards).await?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let any: SocketAddr =
            if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(target).await?;
        socket.local_addr()
    };
    match find.await {
        Ok(local) if !local.ip().is_unspecified() => Ok(local.ip()),
        Err(error) if remote.is_some() => Err(ControlError::new(
            ControlCode::Failed,
            format!("could not find local IP address: {towards}: {error}"),
        )),
        _ => Err(invalid(
            "could not choose an IP address to advertise - specify one with --advertise-addr",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_said_follows_from_what_is() {
        let all = resolve("127.0.0.1:5000", "", "", None).await.unwrap();
        assert_eq!(all.advertise.to_string(), "127.0.0.1:5000");
        let all = resolve(":2377", "10.1.2.3", "", None).await.unwrap();
        assert_eq!(
            (all.listen.to_string(), all.advertise.to_string()),
            ("0.0.0.0:2377".into(), "10.1.2.3:2377".into())
        );
        assert_eq!(all.data_path.to_string(), "10.1.2.3");
        let all = resolve("lo:3000", "lo", "10.9.9.9", None).await.unwrap();
        // Which of its addresses the loopback interface gives first is the machine's affair.
        assert_eq!((all.advertise.port(), all.advertise.ip()), (3000, all.listen.ip()));
        assert_eq!(all.data_path.to_string(), "10.9.9.9");
        assert_eq!(with_port("10.0.0.1").unwrap(), "10.0.0.1:2377");
        assert_eq!(with_port("fd00::1").unwrap(), "[fd00::1]:2377");
    }

    #[test]
    fn every_address_of_the_host_is_both_families_wherever_ipv6_is_alone_by_itself() {
        let reached = netlink::namespace::scratch(|| {
            std::fs::write("/proc/sys/net/ipv6/bindv6only", "1")?;
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
            assert!(up.success());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = listener("0.0.0.0:0").await?;
                let port = listener.local_addr()?.port();
                for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
                    tokio::net::TcpStream::connect((ip, port)).await?;
                }
                Ok(())
            })
        });
        reached.unwrap();
    }

    #[tokio::test]
    async fn every_address_of_the_host_is_both_families() {
        let listener = listener("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            tokio::net::TcpStream::connect((ip, port)).await.unwrap();
        }
        let listener = super::listener("127.0.0.1:0").await.unwrap();
        assert!(listener.local_addr().unwrap().is_ipv4());
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_in_dockers_words() {
        for (listen, advertise, data_path, words) in [
            ("", "", "", "invalid ListenAddr \"\": invalid empty address"),
            ("no-such-interface", "", "", LISTEN_WRONG),
            (":2377", "no-such-interface", "", ADVERTISE_WRONG),
            (":2377", "0.0.0.0", "", ADVERTISE_WRONG),
            (":2377", ":2377", "", ADVERTISE_WRONG),
            (":2377", "lo", "no-such-interface", DATA_PATH_WRONG),
            (":2377", "lo", "0.0.0.0", DATA_PATH_WRONG),
            (":2377", "lo", "lo:4789", DATA_PATH_WRONG),
            ("0.0.0.0:x", "", "", "invalid port \"x\" in address \"0.0.0.0:x\""),
        ] {
            let error = resolve(listen, advertise, data_path, None).await.unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (ControlCode::BadParameter, words));
        }
    }
}
