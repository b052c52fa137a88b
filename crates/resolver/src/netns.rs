//! Opening sockets inside a network namespace, each time on a thread that ends with the visit.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use dns::kernel::Caches;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::message::Ports;

/// Docker's address of the embedded resolver.
const LISTEN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const STACK_BYTES: usize = 128 << 10;
/// A burst of about a thousand questions waits rather than being lost.
const QUESTIONS_BYTES_WAITING: usize = 1 << 20;

/// A sandbox's two sockets.
pub(crate) struct Listeners {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
    pub ports: Ports,
}

/// Opens a sandbox's sockets: on these ports if they are given, else wherever there is room.
pub(crate) fn listen(
    netns: BorrowedFd<'_>,
    ports: Option<Ports>,
    caches: &dyn Caches,
) -> io::Result<Listeners> {
    let ports = ports.unwrap_or(Ports { udp: 0, tcp: 0 });
    visit(netns, || {
        let udp = UdpSocket::bind((LISTEN, ports.udp))?;
        let tcp = TcpListener::bind((LISTEN, ports.tcp))?;
        // Best effort: the default holds some two hundred questions.
        let _ =
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&udp, QUESTIONS_BYTES_WAITING);
        // Without a signature no cache speaks for it.
        if let Err(error) = caches.sign(udp.as_fd()) {
            tracing::debug!(%error, "names are not answered in the kernel");
        }
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let ports = Ports { udp: udp.local_addr()?.port(), tcp: tcp.local_addr()?.port() };
        Ok(Listeners { udp, tcp, ports })
    })
}

/// A UDP socket to an upstream server, from a namespace or from the process's own.
pub(crate) async fn dial_udp(
    netns: Option<Arc<OwnedFd>>,
    server: SocketAddr,
) -> io::Result<UdpSocket> {
    inside(netns, move || {
        let any: SocketAddr = if server.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })
    .await
}

/// A TCP connection to an upstream server; occupies a thread until it stands.
pub(crate) async fn dial_tcp(
    netns: Option<Arc<OwnedFd>>,
    server: SocketAddr,
    wait_max: Duration,
) -> io::Result<TcpStream> {
    inside(netns, move || {
        let stream = TcpStream::connect_timeout(&server, wait_max)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    })
    .await
}

/// Runs something on a thread that ends with it, inside a namespace or the process's own.
pub(crate) async fn inside<T: Send + 'static>(
    netns: Option<Arc<OwnedFd>>,
    open: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, opened) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("visit".into()).stack_size(STACK_BYTES).spawn(move || {
        let result = match netns {
            Some(netns) => enter(netns.as_fd()).and_then(|()| open()),
            None => open(),
        };
        // The asker may have given up.
        let _ = done.send(result);
    })?;
    opened.await.map_err(|_| io::Error::other("the visiting thread ended"))?
}

/// Runs something inside a namespace and waits for it.
pub(crate) fn visit<T: Send>(
    netns: BorrowedFd<'_>,
    act: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || enter(netns).and_then(|()| act()))?
            .join()
            .map_err(|_| io::Error::other("the visiting thread panicked"))?
    })
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}
