//! Many datagrams by one system call, in both directions, on a connected or a bound socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

/// Datagrams of one call at most.
pub const LENGTH_MAX: usize = 16;
/// Of one datagram; a longer one is cut.
const BYTES_MAX: usize = 1_024;

pub struct Burst {
    /// Apart, because sending leaves other addresses in them than receiving needs.
    incoming: MultiHeaders<SockaddrStorage>,
    outgoing: MultiHeaders<SockaddrStorage>,
    buffers: Box<[[u8; BYTES_MAX]; LENGTH_MAX]>,
}

impl Burst {
    pub fn new() -> Self {
        Self {
            incoming: MultiHeaders::preallocate(LENGTH_MAX, None),
            outgoing: MultiHeaders::preallocate(LENGTH_MAX, None),
            buffers: Box::new([[0; BYTES_MAX]; LENGTH_MAX]),
        }
    }

    /// Waits for one datagram and takes those that are there already.
    ///
    /// # Errors
    /// What the socket says, also when its time to wait is over.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<impl Iterator<Item = &[u8]>> {
        let mut slices = self.buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
        let flags = MsgFlags::MSG_WAITFORONE;
        let results =
            recvmmsg(socket.as_raw_fd(), &mut self.incoming, slices.iter_mut(), flags, None)?;
        let mut lengths = [0; LENGTH_MAX];
        let mut count = 0;
        for (length, result) in lengths.iter_mut().zip(results) {
            *length = result.bytes;
            count += 1;
        }
        let received = self.buffers.iter().zip(lengths).take(count);
        Ok(received.map(|(buffer, length)| &buffer[..length.min(BYTES_MAX)]))
    }

    /// Sends the datagrams, [`LENGTH_MAX`] at most, to the socket's peer; says how many went out.
    ///
    /// # Errors
    /// What the socket says when not even one went out.
    pub fn send(&mut self, socket: &UdpSocket, datagrams: &[Vec<u8>]) -> io::Result<usize> {
        let slices: Vec<_> = datagrams.iter().map(|one| [IoSlice::new(one)]).collect();
        let nobody = [None::<SockaddrStorage>; LENGTH_MAX];
        let flags = MsgFlags::empty();
        let sent =
            sendmmsg(socket.as_raw_fd(), &mut self.outgoing, slices.iter(), nobody, [], flags)?;
        Ok(sent.count())
    }
}
