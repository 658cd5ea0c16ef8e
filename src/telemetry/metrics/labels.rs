//! The labels of metrics. A label with a fixed set of values is an enum; its values are listed once, in its declaration.

use metrics::{Label as Pair, SharedString};

use crate::job::event::ROUTING_KEYS;
use crate::job::{FindingOutcome, Lane, Outcome};

/// A label of a metric.
pub trait MetricLabel: Sized {
    /// The label's name in a scrape.
    const NAME: &'static str;

    /// The values that are possible in every worker, and therefore shown from the start. None for free text.
    fn known_values() -> Vec<Self>;

    /// The value in a scrape.
    fn into_value(self) -> SharedString;
}

/// The labels of one metric: none, one, or a tuple.
pub trait LabelSet: Sized {
    /// The names, in order.
    const NAMES: &'static [&'static str];

    /// Every combination of known values.
    fn known() -> Vec<Self>;

    /// Names and values, in order.
    fn into_pairs(self) -> Vec<Pair>;
}

impl LabelSet for () {
    const NAMES: &'static [&'static str] = &[];

    fn known() -> Vec<Self> {
        vec![()]
    }

    fn into_pairs(self) -> Vec<Pair> {
        Vec::new()
    }
}

impl<A: MetricLabel> LabelSet for A {
    const NAMES: &'static [&'static str] = &[A::NAME];

    fn known() -> Vec<Self> {
        A::known_values()
    }

    fn into_pairs(self) -> Vec<Pair> {
        vec![Pair::new(A::NAME, self.into_value())]
    }
}

impl<A: MetricLabel + Clone, B: MetricLabel> LabelSet for (A, B) {
    const NAMES: &'static [&'static str] = &[A::NAME, B::NAME];

    fn known() -> Vec<Self> {
        A::known_values().into_iter().flat_map(|a| B::known_values().into_iter().map(move |b| (a.clone(), b))).collect()
    }

    fn into_pairs(self) -> Vec<Pair> {
        vec![Pair::new(A::NAME, self.0.into_value()), Pair::new(B::NAME, self.1.into_value())]
    }
}

impl<A: MetricLabel + Clone, B: MetricLabel + Clone, C: MetricLabel> LabelSet for (A, B, C) {
    const NAMES: &'static [&'static str] = &[A::NAME, B::NAME, C::NAME];

    fn known() -> Vec<Self> {
        let pairs = <(A, B)>::known().into_iter();
        pairs.flat_map(|(a, b)| C::known_values().into_iter().map(move |c| (a.clone(), b.clone(), c))).collect()
    }

    fn into_pairs(self) -> Vec<Pair> {
        let (a, b, c) = self;
        let mut pairs = (a, b).into_pairs();
        pairs.push(Pair::new(C::NAME, c.into_value()));
        pairs
    }
}

/// Declares a label with a fixed set of values: `Enum("label") { Variant = "value" }`.
macro_rules! closed_label {
    ($(#[$doc:meta])* $name:ident($label:literal) { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value in a scrape.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }

        impl $crate::telemetry::metrics::labels::MetricLabel for $name {
            const NAME: &'static str = $label;

            fn known_values() -> Vec<Self> {
                Self::ALL.to_vec()
            }

            fn into_value(self) -> ::metrics::SharedString {
                ::metrics::SharedString::const_str(self.as_str())
            }
        }
    };
}
pub(in crate::telemetry) use closed_label;

/// Declares a label whose values are free text: `Struct("label")`.
macro_rules! text_label {
    ($(#[$doc:meta])* $name:ident($label:literal)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name(pub String);

        impl MetricLabel for $name {
            const NAME: &'static str = $label;

            fn known_values() -> Vec<Self> {
                Vec::new()
            }

            fn into_value(self) -> SharedString {
                self.0.into()
            }
        }
    };
}

closed_label! {
    /// How a delivery ended.
    SettlementLabel("settlement") {
        /// Its verdict is committed.
        Done = "done",
        /// It asked for no image.
        Ignored = "ignored",
        /// The verdict on its image was erased.
        Erased = "erased",
        /// It went to a delay queue.
        Retried = "retried",
        /// It went to a delay queue because its store or bucket is broken.
        Held = "held",
        /// It went to the dead letters.
        DeadLettered = "dead_lettered",
        /// Each of its records became a message.
        Split = "split",
        /// It went back to its queue.
        Returned = "returned",
    }
}

closed_label! {
    /// Why an attempt at a job failed.
    RetryCause("cause") {
        /// The object could not be fetched.
        Object = "object",
        /// No decoder process was available.
        Decoder = "decoder",
        /// The model could not score the image.
        Session = "session",
        /// The ledger refused a call for the job.
        Ledger = "ledger",
        /// The worker panicked.
        Panic = "panic",
    }
}

closed_label! {
    /// What every job needs.
    DependencyLabel("dependency") {
        /// The object store.
        Storage = "storage",
        /// The database.
        Ledger = "ledger",
    }
}

closed_label! {
    /// How a call to the ledger failed.
    LedgerErrorKind("kind") {
        /// The database did not answer, or refuses all writes.
        Down = "down",
        /// The database refused one row for its content.
        Refused = "refused",
    }
}

closed_label! {
    /// A worker's connections to the broker.
    BrokerConnection("connection") {
        /// Receives and settles deliveries.
        Consuming = "consuming",
        /// Publishes events, replies and copies.
        Publishing = "publishing",
    }
}

closed_label! {
    /// How an attempt to publish an event ended.
    PublishResult("result") {
        /// A queue holds the event, and the broker confirmed that.
        Published = "published",
        /// No queue is bound to the routing key.
        Unroutable = "unroutable",
        /// Any other error.
        Failed = "failed",
    }
}

closed_label! {
    /// How an attempt to send an event to a webhook ended.
    WebhookResult("result") {
        /// The endpoint has accepted it.
        Delivered = "delivered",
        /// It is tried again.
        Failed = "failed",
        /// It was the last attempt.
        GivenUp = "given_up",
    }
}

closed_label! {
    /// Why an image waits for a person.
    ItemKindLabel("kind") {
        /// It was drawn among images that passed.
        Sample = "sample",
        /// Its outcome.
        Review = "review",
        /// It was reported.
        Report = "report",
        /// Another decision is asked for.
        Appeal = "appeal",
        /// A legal request.
        Legal = "legal",
    }
}

closed_label! {
    /// What a person has done with an image.
    ActionLabel("action") {
        /// It must not be shown.
        Flag = "flag",
        /// It may be shown.
        Clear = "clear",
        /// It stays as it is.
        Uphold = "uphold",
        /// A person with more authority has to look.
        Escalate = "escalate",
        /// Another person has to look.
        Skip = "skip",
        /// The last decision is taken back.
        Undo = "undo",
    }
}

text_label! {
    /// The name of a webhook's endpoint.
    EndpointName("endpoint")
}

text_label! {
    /// A detector's name.
    DetectorName("detector")
}

text_label! {
    /// The name of a bank of known images.
    BankName("bank")
}

text_label! {
    /// A label of a detector.
    ScoreLabel("label")
}

text_label! {
    /// A policy's name.
    PolicyName("policy")
}

text_label! {
    /// A rule: its name, or else what it looks at.
    RuleText("rule")
}

text_label! {
    /// A detector's digest.
    DetectorDigest("digest")
}

text_label! {
    /// The device of a session: `CPU`, or a GPU with its number.
    DeviceName("device")
}

text_label! {
    /// The path of a route, with the names of its parameters.
    RouteLabel("route")
}

text_label! {
    /// The status of an answer over HTTP.
    StatusLabel("status")
}

text_label! {
    /// The full name of a queue.
    QueueName("queue")
}

/// An event's routing key. An outbox can hold keys of another version of this program, so this is text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingKey(pub String);

impl MetricLabel for RoutingKey {
    const NAME: &'static str = "routing_key";

    fn known_values() -> Vec<Self> {
        ROUTING_KEYS.iter().map(|key| Self((*key).into())).collect()
    }

    fn into_value(self) -> SharedString {
        self.0.into()
    }
}

/// The version of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramVersion;

impl MetricLabel for ProgramVersion {
    const NAME: &'static str = "version";

    fn known_values() -> Vec<Self> {
        vec![Self]
    }

    fn into_value(self) -> SharedString {
        SharedString::const_str(env!("CARGO_PKG_VERSION"))
    }
}

impl MetricLabel for Lane {
    const NAME: &'static str = "lane";

    fn known_values() -> Vec<Self> {
        Self::ALL.into()
    }

    fn into_value(self) -> SharedString {
        SharedString::const_str(self.as_str())
    }
}

impl MetricLabel for Outcome {
    const NAME: &'static str = "outcome";

    fn known_values() -> Vec<Self> {
        Self::ALL.into()
    }

    fn into_value(self) -> SharedString {
        SharedString::const_str(self.as_str())
    }
}

impl MetricLabel for FindingOutcome {
    const NAME: &'static str = "outcome";

    fn known_values() -> Vec<Self> {
        Self::ALL.into()
    }

    fn into_value(self) -> SharedString {
        SharedString::const_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_combinations_are_the_product_of_all_values() {
        let known = <(Lane, Outcome)>::known();
        assert_eq!(known.len(), Lane::ALL.len() * Outcome::ALL.len());
        for lane in Lane::ALL {
            for outcome in Outcome::ALL {
                assert!(known.contains(&(lane, outcome)), "{lane} {outcome}");
            }
        }
        assert_eq!(<()>::known().len(), 1, "a metric without labels has one series");
        assert_eq!(<(DetectorName, Lane)>::known(), [], "free text has no known values");
        let keys: Vec<_> = RoutingKey::known_values().into_iter().map(|key| key.0).collect();
        assert_eq!(keys, ROUTING_KEYS);
    }
}
