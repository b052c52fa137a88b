//! A door in front of a registry (`lab::registry`) that asks for tokens, breaks connections or lies.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Result;
use lab::Host;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// One request as the door sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What the door does with a request.
pub enum Turn {
    /// To the registry behind.
    Forward,
    /// The same, but the connection ends after so many bytes of the answer.
    Cut(usize),
    /// Status line, headers and body of its own.
    Answer(&'static str, Vec<(String, String)>, Vec<u8>),
    /// The connection is reset.
    Reset,
}

impl Turn {
    pub fn json(status: &'static str, body: &str) -> Turn {
        let headers = vec![("Content-Type".into(), "application/json".into())];
        Turn::Answer(status, headers, body.as_bytes().to_vec())
    }
}

/// A door on a port of the host; what it was asked is kept.
#[derive(Clone)]
pub struct Door {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Door {
    /// Opens it; it stays open until the test's process ends.
    ///
    /// # Errors
    /// When the host's network cannot be entered, or the port is taken.
    pub fn open(
        host: &Host,
        port: u16,
        behind: u16,
        script: impl Fn(&Asked) -> Turn + Send + Sync + 'static,
    ) -> Result<Door> {
        let network = File::open(format!("/proc/{}/ns/net", host.init_pid()))?;
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, script) = (asked.clone(), Arc::new(script));
        let (ready, opened) = mpsc::channel();
        // The thread never leaves the host's network, nor do those that it starts.
        std::thread::spawn(move || {
            let entered = move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&network),
                Some(LinkNameSpaceType::Network),
            );
            let listener = entered
                .map_err(std::io::Error::from)
                .and_then(|()| TcpListener::bind(("127.0.0.1", port)));
            let listener = match listener {
                Ok(listener) => listener,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            for client in listener.incoming().flatten() {
                let (log, script) = (log.clone(), script.clone());
                std::thread::spawn(move || {
                    // Whoever broke off, the test looks at what comes of it.
                    let _ = serve(client, behind, &log, &*script);
                });
            }
        });
        opened.recv()??;
        Ok(Door { address: format!("127.0.0.1:{port}"), asked })
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    mut client: TcpStream,
    behind: u16,
    log: &Mutex<Vec<Asked>>,
    script: &dyn Fn(&Asked) -> Turn,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    // A TLS greeting is no request: closing answers it.
    if reader.fill_buf()?.first() == Some(&0x16) {
        return Ok(());
    }
    let mut head = Vec::new();
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        head.push(line.trim_end().to_owned());
        line.clear();
    }
    let mut words = head.first().map(String::as_str).unwrap_or_default().split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let headers = head.iter().skip(1).filter_map(|line| line.split_once(": "));
    let asked = Asked {
        method: word(),
        path: word(),
        headers: headers.map(|(name, text)| (name.to_lowercase(), text.to_owned())).collect(),
    };
    log.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    match script(&asked) {
        Turn::Forward => forward(client, reader, &head, behind, u64::MAX),
        Turn::Cut(bytes) => forward(client, reader, &head, behind, bytes as u64),
        Turn::Answer(status, headers, body) => {
            let mut text = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n",
                body.len()
            );
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str("\r\n");
            client.write_all(text.as_bytes())?;
            if asked.method != "HEAD" {
                client.write_all(&body)?;
            }
            client.shutdown(Shutdown::Write)
        }
        Turn::Reset => {
            rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
            Ok(())
        }
    }
}

/// One request to the registry behind, and its answer back, up to `limit` bytes of it.
fn forward(
    mut client: TcpStream,
    mut reader: BufReader<TcpStream>,
    head: &[String],
    behind: u16,
    limit: u64,
) -> std::io::Result<()> {
    let mut registry = TcpStream::connect(("127.0.0.1", behind))?;
    for line in head.iter().filter(|line| !line.to_lowercase().starts_with("connection:")) {
        registry.write_all(format!("{line}\r\n").as_bytes())?;
    }
    registry.write_all(b"Connection: close\r\n\r\n")?;
    let mut to = registry.try_clone()?;
    let body = std::thread::spawn(move || std::io::copy(&mut reader, &mut to));
    std::io::copy(&mut registry.take(limit), &mut client)?;
    client.shutdown(Shutdown::Both)?;
    drop(body.join());
    Ok(())
}
