//! A websocket's messages as a stream of bytes, and back.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const PIECE: usize = 32 * 1024;

/// Both directions, until the stream has ended and the client was told so, or the client has left.
pub async fn pass_on(socket: WebSocket, stream: DuplexStream, binary: bool) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let output = async {
        let mut piece = BytesMut::with_capacity(PIECE);
        while from_stream.read_buf(&mut piece).await.is_ok_and(|count| count > 0) {
            let bytes = piece.split().freeze();
            let message = match binary {
                true => Message::Binary(bytes),
                false => Message::Text(String::from_utf8_lossy(&bytes).into_owned().into()),
            };
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        let done = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        let _ = to_client.send(Message::Close(Some(done))).await;
    };
    let input = async {
        while let Some(Ok(message)) = from_client.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => break,
                // Answered by the websocket itself.
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            if to_stream.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to_stream.shutdown().await;
    };
    // A client that closes its websocket has left: nobody is there for further output.
    tokio::select! {
        () = output => {}
        () = input => {}
    }
}
