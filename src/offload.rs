//! Blocking reads, of a folder or a compressed file, on a separate thread, as a stream.

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;

/// The number of items that are read ahead.
const MAX_ITEMS_AHEAD: usize = 1_000;

/// The stream was dropped, so that reading on is useless.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReceiverDropped;

/// Takes the items that a reader has read.
pub(crate) struct ItemSink<T>(mpsc::Sender<T>);

impl<T> ItemSink<T> {
    /// Sends an item to the stream, and waits while too many items are ahead.
    ///
    /// # Errors
    /// When the stream was dropped.
    pub(crate) fn put(&self, item: T) -> Result<(), ReceiverDropped> {
        self.0.blocking_send(item).map_err(|_| ReceiverDropped)
    }
}

/// Runs `read` on a separate thread, and returns the items that it puts into the sink as a stream.
pub(crate) fn stream_from_thread<T: Send + 'static>(
    read: impl FnOnce(&ItemSink<T>) -> Result<(), ReceiverDropped> + Send + 'static,
) -> BoxStream<'static, T> {
    let (sender, receiver) = mpsc::channel(MAX_ITEMS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || read(&ItemSink(sender)));
    stream::unfold((receiver, reading), |(mut receiver, reading)| async move {
        if let Some(item) = receiver.recv().await {
            return Some((item, (receiver, reading)));
        }
        // A panic of the reader must not look like the end of the items.
        match reading.await.map_err(tokio::task::JoinError::try_into_panic) {
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Ok(_) | Err(Err(_)) => None,
        }
    })
    .boxed()
}
