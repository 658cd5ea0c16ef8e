//! Reading what can only be read by waiting, a folder or a compressed file, on a thread of its own, as a stream.

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;

/// Items read ahead of whoever takes them.
const AHEAD: usize = 1_000;

/// Nobody takes items any more: there is no use in reading on.
#[derive(Debug, PartialEq, Eq)]
pub struct Enough;

/// Where a reader puts what it has read.
pub struct Sink<T>(mpsc::Sender<T>);

impl<T> Sink<T> {
    /// Hands an item over, and waits while too many are ahead.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn put(&self, item: T) -> Result<(), Enough> {
        self.0.blocking_send(item).map_err(|_| Enough)
    }
}

/// Runs `read` on a thread of its own, and gives what it puts into the sink as it comes.
pub fn stream<T: Send + 'static>(
    read: impl FnOnce(&Sink<T>) -> Result<(), Enough> + Send + 'static,
) -> BoxStream<'static, T> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let reading = tokio::task::spawn_blocking(move || read(&Sink(sender)));
    stream::unfold((receiver, reading), |(mut receiver, reading)| async move {
        if let Some(item) = receiver.recv().await {
            return Some((item, (receiver, reading)));
        }
        // A reader that panicked has not come to the end.
        match reading.await.map_err(tokio::task::JoinError::try_into_panic) {
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Ok(_) | Err(Err(_)) => None,
        }
    })
    .boxed()
}
