//! The figures to stdout: a page for people, a document for machines.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::super::output::table;
use super::findings::{Allowed, Basis, Million, Part, Recommended, bound, caution};
use super::load::{Tally, count};
use super::parts::{Batch, Session};
use super::sample::Origin;
use super::services::Service;
use super::{Bench, Format, Measured, Report};
use crate::config::Isolation;

/// The figures and what follows from them.
pub(super) struct Context<'a> {
    report: &'a Report,
    cores: usize,
    isolation: Isolation,
    /// What the parts of the screen allow together, images a second.
    allowed: f64,
    /// Part of the processor time that decoding takes.
    decode_part: Option<f64>,
    bound: Part,
    recommended: Recommended,
    million: Million,
    caution: Option<String>,
}

impl<'a> Context<'a> {
    pub(super) fn of(bench: &Bench<'_>, report: &'a Report, price_per_hour: Option<f64>) -> Self {
        let Report { sample, one, all, sessions, pipeline, storage, ledger, broker, .. } = report;
        let cores = num_cpus::get();
        let frames = sample.mean(|image| count(image.frames as u64));
        let on_gpu = sessions.iter().all(|session| !session.is_on_processor());
        // Sessions on one GPU take turns; on the processor each has its own thread, and they meet at the cores.
        let rates = sessions.iter().map(|session| session.fastest().rate() / frames);
        let sessions_rate =
            if on_gpu { 1.0 / rates.map(|rate| 1.0 / rate).sum::<f64>() } else { rates.fold(f64::INFINITY, f64::min) };
        let decode_ms = all.tally.processor_ms();
        let sessions_ms: Option<f64> = sessions.iter().map(|session| session.fastest().processor_ms()).sum();
        let processor_ms = decode_ms.zip(sessions_ms).map(|(decode, sessions)| decode + sessions * frames);
        let decode_rate = all.tally.rate();
        let allowed = Allowed { cores, processor_ms, decode: decode_rate, sessions: sessions_rate }.rate();

        let services = [("storage", storage), ("ledger", ledger), ("broker", broker)];
        let services = services.into_iter().filter_map(|(name, measured)| match measured {
            Measured::Yes(service) => Some(Part { name, images_per_s: service.tally.rate() }),
            Measured::Not(_) | Measured::Failed(_) => None,
        });
        let screen = Part { name: "pipeline", images_per_s: pipeline.tally.rate() };
        let bound = bound(screen, (decode_rate, sessions_rate), services);

        let batches: Vec<Vec<(usize, f64)>> = sessions.iter().map(Session::rates).collect();
        let basis = Basis {
            cores,
            downloads: bench.config.storage.downloads,
            on_gpu,
            one_decoder: one.tally.rate(),
            sessions: sessions_rate,
            batches: &batches,
        };
        Self {
            report,
            cores,
            isolation: bench.config.decode.isolation,
            allowed,
            decode_part: decode_ms.zip(processor_ms).map(|(decode, all)| decode / all),
            recommended: basis.recommend(),
            million: Million::at(bound.images_per_s, price_per_hour),
            caution: all.tally.processor_s.and_then(|used| caution(used, all.tally.seconds, all.decoders.min(cores))),
            bound,
        }
    }
}

pub(super) fn print(format: Format, context: &Context<'_>) -> io::Result<()> {
    match format {
        Format::Table => io::stdout().write_all(text(context).as_bytes()),
        Format::Json => writeln!(io::stdout(), "{}", document(context)),
    }
}

fn document(context: &Context<'_>) -> Value {
    let Report { sample, one, all, sessions, pipeline, storage, objects, ledger, broker } = context.report;
    let decoding = |tally: &Tally| {
        json!({
            "images_per_s": tally.rate(),
            "ms_per_image": 1e3 / tally.rate(),
            "cpu_ms_per_image": tally.processor_ms(),
        })
    };
    let not_measured: Map<String, Value> = [("storage", storage), ("ledger", ledger), ("broker", broker)]
        .into_iter()
        .filter_map(|(name, measured)| Some((name.to_owned(), json!(measured.why_not()?))))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cores": context.cores,
        "images": {
            "source": sample.origin.as_str(),
            "found": sample.found,
            "count": sample.images.len(),
            "undecodable": sample.undecodable,
            "megapixels": sample.megapixels(),
            "bytes": sample.mean(|image| count(image.bytes.len() as u64)),
            "frames": sample.mean(|image| count(image.frames as u64)),
        },
        "decode": {
            "isolation": context.isolation,
            "one": decoding(&one.tally),
            "decoders": all.decoders,
            "all": decoding(&all.tally),
        },
        "detectors": sessions.iter().map(session).collect::<Vec<_>>(),
        "pipeline": {
            "in_flight": pipeline.in_flight,
            "images_per_s": pipeline.tally.rate(),
            "cpu_ms_per_image": pipeline.tally.processor_ms(),
            "parts_allow_images_per_s": context.allowed,
        },
        "storage": storage.yes().zip(objects.as_ref()).map(|(service, objects)| json!({
            "objects": objects.different,
            "bytes": objects.mean_bytes,
            "downloads": service.in_flight,
            "images_per_s": service.tally.rate(),
            "p50_ms": service.tally.percentile_ms(0.5),
            "p95_ms": service.tally.percentile_ms(0.95),
        })),
        "ledger": ledger.yes().map(|service| json!({
            "in_flight": service.in_flight,
            "rows_per_s": service.tally.rate(),
            "p50_ms": service.tally.percentile_ms(0.5),
            "p95_ms": service.tally.percentile_ms(0.95),
        })),
        "broker": broker.yes().map(|service| json!({
            "in_flight": service.in_flight,
            "messages_per_s": service.tally.rate(),
            "p50_ms": service.tally.percentile_ms(0.5),
            "p95_ms": service.tally.percentile_ms(0.95),
        })),
        "not_measured": not_measured,
        "bound": {"by": context.bound.name, "images_per_s": context.bound.images_per_s},
        "recommended": context.recommended,
        "million_images": context.million,
        "caution": context.caution,
    })
}

fn session(session: &Session) -> Value {
    let batch = |batch: &Batch| {
        json!({
            "batch": batch.size,
            "runs": batch.tally.done,
            "images_per_s": batch.rate(),
            "p50_ms": batch.tally.percentile_ms(0.5),
            "p95_ms": batch.tally.percentile_ms(0.95),
            "cpu_ms_per_image": batch.processor_ms(),
        })
    };
    json!({
        "name": session.detector,
        "digest": session.digest,
        "device": session.place,
        "max_batch": session.batches.last().map(|batch| batch.size),
        "batches": session.batches.iter().map(batch).collect::<Vec<_>>(),
    })
}

const COLUMNS: [&str; 6] = ["part", "at a time", "images a second", "p50 ms", "p95 ms", "CPU ms an image"];

fn text(context: &Context<'_>) -> String {
    let Report { sample, one, all, sessions, pipeline, storage, ledger, broker, .. } = context.report;
    let mut rows = Vec::new();
    let mut add = |part: String, at_a_time: usize, rate: f64, ms: Option<&Tally>, processor_ms: Option<f64>| {
        let percentile = |part: f64| ms.map(|tally| few(tally.percentile_ms(part)));
        let cells = [
            json!(part),
            json!(at_a_time),
            json!(few(rate)),
            json!(percentile(0.5)),
            json!(percentile(0.95)),
            json!(processor_ms.map(few)),
        ];
        rows.push(COLUMNS.map(str::to_owned).into_iter().zip(cells).collect::<Map<_, _>>());
    };
    // Of decoders and pipeline the time of one image is mostly waiting, as they are kept busy.
    for decoding in [one, all] {
        let tally = &decoding.tally;
        add("decoders".into(), decoding.decoders, tally.rate(), None, tally.processor_ms());
    }
    for session in sessions {
        for batch in &session.batches {
            let name = format!("{} on {}", session.detector, session.place);
            add(name, batch.size, batch.rate(), Some(&batch.tally), batch.processor_ms());
        }
    }
    let tally = &pipeline.tally;
    add("pipeline, from memory".into(), pipeline.in_flight, tally.rate(), None, tally.processor_ms());
    for (name, measured) in [("storage: objects", storage), ("ledger: rows", ledger), ("broker: messages", broker)] {
        if let Some(Service { in_flight, tally }) = measured.yes() {
            add(name.into(), *in_flight, tally.rate(), Some(tally), None);
        }
    }

    let mut text = describe(context);
    text += &table(&COLUMNS, &rows);
    text += "\n";
    for (name, measured) in [("storage", storage), ("ledger", ledger), ("broker", broker)] {
        if let Some(why) = measured.why_not() {
            let why = why.lines().next().unwrap_or_default();
            text += &format!("not measured: {name}, {why}\n");
        }
    }
    text + &conclude(context, sample.origin)
}

/// What was measured with.
fn describe(context: &Context<'_>) -> String {
    let sample = &context.report.sample;
    let whose = match sample.origin {
        Origin::Paths => format!("of the {} found", sample.found),
        Origin::Samples => "of the bundled samples, not pictures of yours".into(),
        Origin::Noise => "made of noise, not pictures of yours".into(),
    };
    let mut text = format!(
        "{} {} {whose}: {} megapixels and {} kB on average\n",
        sample.images.len(),
        if sample.images.len() == 1 { "image" } else { "images" },
        few(sample.megapixels()),
        few(sample.mean(|image| count(image.bytes.len() as u64)) / 1e3)
    );
    if sample.undecodable > 0 {
        text += &format!("{} more cannot be decoded and were left out\n", sample.undecodable);
    }
    let place = match context.isolation {
        Isolation::Process => "in processes of their own",
        Isolation::Thread => "on threads of this process",
    };
    text + &format!("{} cores; images are decoded {place}\n\n", context.cores)
}

/// What follows.
fn conclude(context: &Context<'_>, origin: Origin) -> String {
    let Recommended { prefetch, max_batch, threads } = context.recommended;
    let (rate, tally) = (context.bound.images_per_s, &context.report.pipeline.tally);
    let mut text = format!(
        "\nfrom memory the pipeline does {:.0} % of the {} images a second that its parts allow",
        tally.rate() / context.allowed * 100.0,
        few(context.allowed)
    );
    if let Some(part) = context.decode_part {
        text += &format!("; {:.0} % of the processor time is decoding", part * 100.0);
    }
    text += &format!("\nbound by: {}, {} images a second\n", context.bound.name, few(rate));
    text += &format!(
        "\nrecommended, as lines for pixwarden.toml:\n[decode]\nthreads = {threads}\n[inference]\nmax_batch = {max_batch}\n[worker]\nprefetch = {prefetch}\n"
    );
    text += &format!("\na million such images: {} hours", few(context.million.hours));
    text += &match context.million {
        Million { cost: Some(cost), price_per_hour: Some(price), .. } => {
            format!(", {} at {} an hour", money(cost), money(price))
        }
        _ => "; what they cost is told with --price-per-hour".into(),
    };
    text += if origin == Origin::Paths { "\n" } else { "\nname a PATH to have it measured with pictures of yours\n" };
    if let Some(caution) = &context.caution {
        text += &format!("caution: {caution}\n");
    }
    text
}

/// Three digits, or all of a larger number.
fn few(x: f64) -> String {
    let digits = match x.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{x:.digits$}")
}

/// Hundredths, or more digits of less than that.
fn money(x: f64) -> String {
    if x >= 0.1 { format!("{x:.2}") } else { format!("{x:.4}") }
}

impl Measured {
    fn yes(&self) -> Option<&Service> {
        match self {
            Self::Yes(service) => Some(service),
            Self::Not(_) | Self::Failed(_) => None,
        }
    }

    fn why_not(&self) -> Option<&str> {
        match self {
            Self::Yes(_) => None,
            Self::Not(why) => Some(why),
            Self::Failed(why) => Some(why),
        }
    }
}
