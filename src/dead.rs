//! Dead letters: reading them without consuming them, sending them back, discarding them.

mod letter;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use lapin::Connection;
use lapin::message::Delivery;

use crate::broker::{
    BrokerError, Fate, Message, PublishError, Publisher, Topology, connect, visit_messages, with_timeout,
};
use crate::config::Config;
use crate::job::Lane;
pub(crate) use letter::DeadLetter;
use letter::{LetterMessage, Positions};

/// Conditions on a dead letter; it is selected where it meets all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LetterSelection {
    /// The reason contains this text.
    pub reason: Option<String>,
    /// Dead for at least this long.
    pub older_than: Option<Duration>,
    /// The id of its job or message, or its position, is one of these; empty for any.
    pub ids: Vec<String>,
}

impl LetterSelection {
    /// Whether there is no condition, so that every dead letter is selected.
    pub(crate) fn is_unconditional(&self) -> bool {
        self.reason.is_none() && self.older_than.is_none() && self.ids.is_empty()
    }

    fn selects(&self, letter: &DeadLetter) -> bool {
        let reason = self.reason.as_ref().is_none_or(|text| letter.reason.as_ref().is_some_and(|r| r.contains(text)));
        // A dead letter of unknown age is not older than any limit.
        let age = self.older_than.is_none_or(|limit| letter.age().is_some_and(|age| age >= limit));
        reason && age && (self.ids.is_empty() || self.ids.iter().any(|id| letter.is_called(id)))
    }
}

/// Why dead letters could not be processed to the end. Those processed before stay so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeadLetterError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("cannot replay a dead letter: {0}")]
    Publish(#[from] PublishError),
}

/// The numbers of selected dead letters.
#[derive(Debug, Default)]
pub(crate) struct SelectedCounts {
    pub by_reason: BTreeMap<String, u64>,
    /// Selected, but not replayed: the message names no lane, and none was given.
    pub without_lane: u64,
}

impl SelectedCounts {
    fn add(&mut self, letter: &DeadLetter) {
        let reason = letter.reason.as_deref().unwrap_or("without a reason");
        *self.by_reason.entry(reason.to_owned()).or_default() += 1;
    }
}

/// The queue of dead letters.
pub(crate) struct DeadLetterQueue<'a> {
    config: &'a Config,
    topology: Topology,
    connection: Connection,
    queue: String,
}

impl<'a> DeadLetterQueue<'a> {
    /// Connects to the broker and declares the queue where it does not exist.
    ///
    /// # Errors
    /// When no broker is configured, or it cannot be reached or refuses.
    pub(crate) async fn open(config: &'a Config) -> anyhow::Result<Self> {
        let topology = Topology::new(&config.prefix, config.events.default_queue);
        let connection = connect(config.queue()?, "dead").await?;
        let queue = topology.dead();
        topology.ensure(&connection, &queue).await?;
        Ok(Self { config, topology, connection, queue })
    }

    /// The selected dead letters, those that died first at the front, and the number of selected ones beyond `limit`. Every
    /// message in the queue is read: what is returned to a quorum queue comes back in another order, so its first messages
    /// would be others each time.
    ///
    /// # Errors
    /// When the broker does not respond as it should.
    pub(crate) async fn list(
        &self,
        selection: &LetterSelection,
        limit: usize,
    ) -> Result<(Vec<DeadLetter>, usize), BrokerError> {
        let (mut oldest, mut beyond) = (BTreeMap::new(), 0);
        let list = async |_: &LetterMessage<'_>, letter: DeadLetter| {
            if selection.selects(&letter) {
                oldest.insert(letter.order(), letter);
                if oldest.len() > limit {
                    beyond += 1;
                    drop(oldest.pop_last());
                }
            }
            Ok::<_, BrokerError>(Fate::Keep)
        };
        self.visit(list).await?;
        Ok((oldest.into_values().collect(), beyond))
    }

    /// Passes every dead letter with this job id, message id or position to `print`, as JSON. Returns how many there are.
    ///
    /// # Errors
    /// When the broker does not respond as it should, or `print` fails.
    pub(crate) async fn show(&self, id: &str, mut print: impl FnMut(&str) -> io::Result<()>) -> anyhow::Result<u32> {
        let mut found = 0;
        let show = async |message: &LetterMessage<'_>, letter: DeadLetter| {
            if letter.is_called(id) {
                found += 1;
                print(&letter::as_json(message, &letter))?;
            }
            Ok::<_, anyhow::Error>(Fate::Keep)
        };
        self.visit(show).await?;
        Ok(found)
    }

    /// Visits each dead letter that is in the queue now, and removes those for which `decide` returns [`Fate::Remove`].
    async fn visit<E: From<BrokerError>>(
        &self,
        mut decide: impl AsyncFnMut(&LetterMessage<'_>, DeadLetter) -> Result<Fate, E>,
    ) -> Result<(), E> {
        let (mut positions, jobs) = (Positions::default(), self.topology.jobs());
        let visit = async |delivery: &Delivery| {
            let message = LetterMessage::of(delivery);
            let letter = DeadLetter::of(&message, positions.next(&message), &jobs);
            decide(&message, letter).await
        };
        visit_messages(&self.connection, &self.queue, visit).await
    }

    /// Sends the selected dead letters back to their lane, or to `lane` where they name none. A dead letter leaves the
    /// queue only once the broker has confirmed its successor. With `dry_run` only counts.
    ///
    /// # Errors
    /// When the broker does not respond as it should, or does not accept a message. `counts` is valid in either case.
    pub(crate) async fn replay(
        &self,
        selection: &LetterSelection,
        lane: Option<Lane>,
        dry_run: bool,
        counts: &mut SelectedCounts,
    ) -> anyhow::Result<()> {
        let publisher = Publisher::new(self.config.queue()?.clone(), "replay", 1);
        let exchange = self.topology.jobs();
        let replay = async |message: &LetterMessage<'_>, letter: DeadLetter| {
            if !selection.selects(&letter) {
                return Ok(Fate::Keep);
            }
            let Some(lane) = letter.lane.or(lane) else {
                counts.without_lane += 1;
                return Ok(Fate::Keep);
            };
            counts.add(&letter);
            if dry_run {
                return Ok(Fate::Keep);
            }
            let revived: Message<'_> = letter::revived(message, &exchange, lane);
            publisher.publish(revived).await?;
            Ok::<_, DeadLetterError>(Fate::Remove)
        };
        let sifted = self.visit(replay).await;
        publisher.close().await;
        Ok(sifted?)
    }

    /// Discards the selected dead letters. With `dry_run` only counts.
    ///
    /// # Errors
    /// When the broker does not respond as it should. `counts` is valid in either case.
    pub(crate) async fn discard(
        &self,
        selection: &LetterSelection,
        dry_run: bool,
        counts: &mut SelectedCounts,
    ) -> Result<(), BrokerError> {
        let discard = async |_: &LetterMessage<'_>, letter: DeadLetter| {
            if !selection.selects(&letter) {
                return Ok::<_, BrokerError>(Fate::Keep);
            }
            counts.add(&letter);
            Ok(if dry_run { Fate::Keep } else { Fate::Remove })
        };
        self.visit(discard).await
    }

    pub(crate) async fn close(self) -> Result<(), BrokerError> {
        with_timeout("closing the connection", self.connection.close(200, "done".into())).await
    }
}
