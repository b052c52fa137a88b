//! A stream of messages from this manager to one reader.

use futures_util::future::BoxFuture;
use manager::Message;
use tokio::sync::mpsc::error::TrySendError;
use transport::Status;

pub struct Outgoing {
    send: Box<dyn Fn(Message) -> bool + Send>,
    end: Box<dyn Fn(Status) + Send>,
    room: Box<dyn Fn() -> Option<BoxFuture<'static, ()>> + Send>,
    /// Tells when the far end has gone; ends with this.
    watcher: tokio::task::AbortHandle,
}

impl Outgoing {
    /// A stream of one kind of message; `gone` runs when nobody reads it any more.
    pub fn new<T: Send + 'static>(
        stream: transport::Stream<T>,
        pick: impl Fn(Message) -> Option<T> + Send + 'static,
        gone: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (sender, closer, queue) = (stream.clone(), stream.clone(), stream.clone());
        let watcher = tokio::spawn(async move {
            stream.closed().await;
            gone.await;
        });
        Self {
            send: Box::new(move |message| {
                pick(message).is_none_or(|message| sender.try_send(Ok(message)).is_ok())
            }),
            end: Box::new(move |status| {
                // Who is slow hears why the stream ends, too, if later.
                if let Err(TrySendError::Full(status)) = closer.try_send(Err(status)) {
                    let closer = closer.clone();
                    tokio::spawn(async move { closer.send(status).await });
                }
            }),
            room: Box::new(move || {
                let queue = (queue.capacity() == 0).then(|| queue.clone())?;
                Some(Box::pin(async move { drop(queue.reserve().await) }))
            }),
            watcher: watcher.abort_handle(),
        }
    }

    /// False when the reader takes nothing now.
    pub fn send(&self, message: Message) -> bool {
        (self.send)(message)
    }

    /// The last that the reader hears.
    pub fn end(&self, status: Status) {
        (self.end)(status);
    }

    /// What to wait for until the reader takes another message; `None` when it does so now.
    pub fn room(&self) -> Option<BoxFuture<'static, ()>> {
        (self.room)()
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::swarmkit as pb;

    #[tokio::test]
    async fn a_slow_reader_is_waited_for_and_hears_why_its_stream_ended() {
        let (stream, mut reader) = tokio::sync::mpsc::channel(2);
        let pick = |message| match message {
            Message::Logs(logs) => Some(logs),
            _ => None,
        };
        let outgoing = Outgoing::new(stream, pick, async {});
        let line = || Message::Logs(pb::SubscribeLogsMessage::default());
        assert!(outgoing.send(line()) && outgoing.room().is_none());
        assert!(outgoing.send(line()));
        let room = outgoing.room().expect("the queue is full");
        assert!(!outgoing.send(line()));
        assert!(reader.recv().await.unwrap().is_ok());
        room.await;
        assert!(outgoing.send(line()));
        outgoing.end(Status::internal("gaps"));
        drop(outgoing);
        let mut last = None;
        while let Some(message) = reader.recv().await {
            last = Some(message);
        }
        assert_eq!(last.unwrap().unwrap_err().message(), "gaps");
    }
}
