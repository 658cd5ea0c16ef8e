//! Counters, gauges and histograms that know the types of their labels. The macros of the `metrics` crate take any text as
//! a name or a label, so they are used in this file only.
#![expect(clippy::disallowed_macros, reason = "this file wraps them")]

use std::marker::PhantomData;
use std::time::Duration;

use metrics::{Label as Pair, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::labels::LabelSet;

/// What is known about a metric without its labels' types.
#[derive(Debug)]
pub struct Metric {
    /// The name in a scrape. Its last word, apart from `total`, is the unit, if it has one.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// One line of explanation in a scrape.
    pub help: &'static str,
    /// Every combination of label values that is possible in every worker.
    pub(super) known: fn() -> Vec<Vec<Pair>>,
}

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    /// Only grows. Shown as 0 from the start, so that a rate includes the first increment.
    Counter,
    /// The amount that this process holds. Shown as 0 from the start.
    Gauge,
    /// A measurement. Absent until it was taken once: 0 would be a wrong answer.
    MeasuredGauge,
    /// Values counted in buckets with these upper bounds, and one more bucket for larger values. Shown from the start.
    Histogram(&'static [f64]),
}

impl MetricKind {
    /// Prometheus' name of the kind.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge | Self::MeasuredGauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

impl Metric {
    const fn new<L: LabelSet>(name: &'static str, kind: MetricKind, help: &'static str) -> Self {
        Self { name, kind, labels: L::NAMES, help, known: known::<L> }
    }

    /// Describes the metric, and shows its known series.
    pub(super) fn register(&self) {
        let &Self { name, help, .. } = self;
        match self.kind {
            MetricKind::Counter => describe_counter!(name, help),
            MetricKind::Gauge | MetricKind::MeasuredGauge => describe_gauge!(name, help),
            MetricKind::Histogram(_) => describe_histogram!(name, help),
        }
        for labels in (self.known)() {
            match self.kind {
                MetricKind::Counter => counter!(name, labels).increment(0),
                MetricKind::Gauge => gauge!(name, labels).set(0),
                MetricKind::MeasuredGauge => {}
                MetricKind::Histogram(_) => drop(histogram!(name, labels)),
            }
        }
    }
}

fn known<L: LabelSet>() -> Vec<Vec<Pair>> {
    L::known().into_iter().map(L::into_pairs).collect()
}

/// A metric that only grows.
#[derive(Debug)]
pub(super) struct Counter<L> {
    pub(super) metric: Metric,
    labels: PhantomData<fn(L)>,
}

impl<L: LabelSet> Counter<L> {
    pub(super) const fn new(name: &'static str, help: &'static str) -> Self {
        Self { metric: Metric::new::<L>(name, MetricKind::Counter, help), labels: PhantomData }
    }

    pub(super) fn add(&self, labels: L, amount: u64) {
        counter!(self.metric.name, labels.into_pairs()).increment(amount);
    }

    /// One series, shown as 0 from now on. It is added to without looking its labels up.
    pub(super) fn series(&self, labels: L) -> CounterSeries {
        let series = counter!(self.metric.name, labels.into_pairs());
        series.increment(0);
        CounterSeries(series)
    }
}

/// One series of a counter.
pub(super) struct CounterSeries(metrics::Counter);

impl CounterSeries {
    pub(super) fn increment(&self) {
        self.0.increment(1);
    }
}

/// A metric that rises and falls.
#[derive(Debug)]
pub(super) struct Gauge<L> {
    pub(super) metric: Metric,
    labels: PhantomData<fn(L)>,
}

impl<L: LabelSet> Gauge<L> {
    /// A gauge that is shown as 0 from the start.
    pub(super) const fn new(name: &'static str, help: &'static str) -> Self {
        Self { metric: Metric::new::<L>(name, MetricKind::Gauge, help), labels: PhantomData }
    }

    /// A gauge that is absent until it is set.
    pub(super) const fn measured(name: &'static str, help: &'static str) -> Self {
        Self { metric: Metric::new::<L>(name, MetricKind::MeasuredGauge, help), labels: PhantomData }
    }

    pub(super) fn set(&self, labels: L, value: impl Into<f64>) {
        gauge!(self.metric.name, labels.into_pairs()).set(value.into());
    }

    /// Adds an amount for as long as the returned value lives.
    pub(super) fn hold(&self, labels: L, amount: u64) -> GaugeGuard {
        let gauge = gauge!(self.metric.name, labels.into_pairs());
        let amount = number(amount);
        gauge.increment(amount);
        GaugeGuard { gauge, amount }
    }
}

/// An amount that a gauge includes for as long as this value lives.
#[derive(Debug)]
pub struct GaugeGuard {
    gauge: metrics::Gauge,
    amount: f64,
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.decrement(self.amount);
    }
}

/// A metric that counts values in buckets.
#[derive(Debug)]
pub(super) struct Histogram<L> {
    pub(super) metric: Metric,
    labels: PhantomData<fn(L)>,
}

impl<L: LabelSet> Histogram<L> {
    pub(super) const fn new(name: &'static str, buckets: &'static [f64], help: &'static str) -> Self {
        Self { metric: Metric::new::<L>(name, MetricKind::Histogram(buckets), help), labels: PhantomData }
    }

    pub(super) fn record(&self, labels: L, value: u64) {
        histogram!(self.metric.name, labels.into_pairs()).record(number(value));
    }

    pub(super) fn record_duration(&self, labels: L, value: Duration) {
        histogram!(self.metric.name, labels.into_pairs()).record(value);
    }

    /// One series, shown from now on. It is recorded to without looking its labels up.
    pub(super) fn series(&self, labels: L) -> HistogramSeries {
        HistogramSeries(histogram!(self.metric.name, labels.into_pairs()))
    }
}

/// One series of a histogram.
pub(super) struct HistogramSeries(metrics::Histogram);

impl HistogramSeries {
    pub(super) fn record(&self, value: f64) {
        self.0.record(value);
    }
}

/// An integer as a sample's value.
#[expect(clippy::cast_precision_loss, reason = "bytes and counts stay far below 2^53")]
pub(super) fn number(n: u64) -> f64 {
    n as f64
}
