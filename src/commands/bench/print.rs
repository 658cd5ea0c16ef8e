//! The figures to stdout: a page for people, a document for machines.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::super::console::stdout;
use super::super::output::table;
use super::BenchFormat;
use crate::bench::{
    BatchResult, BenchReport, Conclusions, LoadResult, MillionImages, RecommendedOptions, SampleOrigin, ServiceResult,
    SessionResult, as_f64,
};
use crate::config::{Config, Isolation};

pub(super) fn print(
    format: BenchFormat,
    config: &Config,
    report: &BenchReport,
    conclusions: &Conclusions,
) -> io::Result<()> {
    let isolation = config.decode.isolation;
    match format {
        BenchFormat::Table => stdout().write_all(page(isolation, report, conclusions).as_bytes()),
        BenchFormat::Json => writeln!(stdout(), "{}", document(isolation, report, conclusions)),
    }
}

fn document(isolation: Isolation, report: &BenchReport, conclusions: &Conclusions) -> Value {
    let BenchReport { sample, one_decoder, all_decoders, sessions, pipeline, storage, objects, ledger, broker } =
        report;
    let decoding = |result: &LoadResult| {
        json!({
            "images_per_s": result.per_second(),
            "ms_per_image": 1e3 / result.per_second(),
            "cpu_ms_per_image": result.processor_ms(),
        })
    };
    let not_measured: Map<String, Value> = [("storage", storage), ("ledger", ledger), ("broker", broker)]
        .into_iter()
        .filter_map(|(name, measured)| Some((name.to_owned(), json!(measured.why_not()?))))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cores": conclusions.cores,
        "images": {
            "source": sample.origin.as_str(),
            "found": sample.found,
            "count": sample.images.len(),
            "undecodable": sample.undecodable,
            "megapixels": sample.megapixels(),
            "bytes": sample.mean(|image| as_f64(image.bytes.len() as u64)),
            "frames": sample.mean(|image| as_f64(image.frames as u64)),
        },
        "decode": {
            "isolation": isolation,
            "one": decoding(&one_decoder.result),
            "decoders": all_decoders.decoders,
            "all": decoding(&all_decoders.result),
        },
        "detectors": sessions.iter().map(session).collect::<Vec<_>>(),
        "pipeline": {
            "in_flight": pipeline.in_flight,
            "images_per_s": pipeline.result.per_second(),
            "cpu_ms_per_image": pipeline.result.processor_ms(),
            "parts_allow_images_per_s": conclusions.capacity,
        },
        "storage": storage.result().zip(objects.as_ref()).map(|(service, objects)| json!({
            "objects": objects.different,
            "bytes": objects.mean_bytes,
            "downloads": service.in_flight,
            "images_per_s": service.result.per_second(),
            "p50_ms": service.result.percentile_ms(0.5),
            "p95_ms": service.result.percentile_ms(0.95),
        })),
        "ledger": ledger.result().map(|service| json!({
            "in_flight": service.in_flight,
            "rows_per_s": service.result.per_second(),
            "p50_ms": service.result.percentile_ms(0.5),
            "p95_ms": service.result.percentile_ms(0.95),
        })),
        "broker": broker.result().map(|service| json!({
            "in_flight": service.in_flight,
            "messages_per_s": service.result.per_second(),
            "p50_ms": service.result.percentile_ms(0.5),
            "p95_ms": service.result.percentile_ms(0.95),
        })),
        "not_measured": not_measured,
        "bound": {"by": conclusions.bottleneck.name, "images_per_s": conclusions.bottleneck.images_per_s},
        "recommended": conclusions.recommended,
        "million_images": conclusions.million,
        "caution": conclusions.warning,
    })
}

fn session(session: &SessionResult) -> Value {
    let batch = |batch: &BatchResult| {
        json!({
            "batch": batch.size,
            "runs": batch.result.completed,
            "images_per_s": batch.images_per_s(),
            "p50_ms": batch.result.percentile_ms(0.5),
            "p95_ms": batch.result.percentile_ms(0.95),
            "cpu_ms_per_image": batch.processor_ms(),
        })
    };
    json!({
        "name": session.detector,
        "digest": session.digest,
        "device": session.device,
        "max_batch": session.batches.last().map(|batch| batch.size),
        "batches": session.batches.iter().map(batch).collect::<Vec<_>>(),
    })
}

const BENCH_COLUMNS: [&str; 6] = ["part", "in flight", "per second", "p50 ms", "p95 ms", "CPU ms"];

fn page(isolation: Isolation, report: &BenchReport, conclusions: &Conclusions) -> String {
    let BenchReport { one_decoder, all_decoders, sessions, pipeline, storage, ledger, broker, .. } = report;
    let mut rows = Vec::new();
    let mut add = |part: String, in_flight: usize, rate: f64, ms: Option<&LoadResult>, processor_ms: Option<f64>| {
        let percentile = |fraction: f64| ms.map(|result| short(result.percentile_ms(fraction)));
        let cells = [
            json!(part),
            json!(in_flight),
            json!(short(rate)),
            json!(percentile(0.5)),
            json!(percentile(0.95)),
            json!(processor_ms.map(short)),
        ];
        rows.push(BENCH_COLUMNS.map(str::to_owned).into_iter().zip(cells).collect::<Map<_, _>>());
    };
    // Decoders and pipeline have no percentiles: an image mostly waits there, since the load keeps them busy.
    for decoding in [one_decoder, all_decoders] {
        let result = &decoding.result;
        add("decoders: images".into(), decoding.decoders, result.per_second(), None, result.processor_ms());
    }
    for session in sessions {
        for batch in &session.batches {
            let name = format!("{} on {}: images", session.detector, session.device);
            add(name, batch.size, batch.images_per_s(), Some(&batch.result), batch.processor_ms());
        }
    }
    let result = &pipeline.result;
    add("pipeline: images".into(), pipeline.in_flight, result.per_second(), None, result.processor_ms());
    for (name, service) in [("storage: objects", storage), ("ledger: rows", ledger), ("broker: messages", broker)] {
        if let Some(ServiceResult { in_flight, result }) = service.result() {
            add(name.into(), *in_flight, result.per_second(), Some(result), None);
        }
    }

    let mut text = describe_sample(isolation, report, conclusions.cores);
    text += &table(&BENCH_COLUMNS, &rows);
    text += "\n";
    for (name, service) in [("storage", storage), ("ledger", ledger), ("broker", broker)] {
        if let Some(why) = service.why_not() {
            let why = why.lines().next().unwrap_or_default();
            text += &format!("not measured: {name}, {why}\n");
        }
    }
    text + &describe_conclusions(report, conclusions)
}

fn describe_sample(isolation: Isolation, report: &BenchReport, cores: usize) -> String {
    let sample = &report.sample;
    let origin = match sample.origin {
        SampleOrigin::Paths => format!("of the {} found", sample.found),
        SampleOrigin::Samples => "from the bundled samples, not your own".into(),
        SampleOrigin::Noise => "generated from noise, not your own".into(),
    };
    let mut text = format!(
        "{} {} {origin}: {} megapixels and {} kB on average\n",
        sample.images.len(),
        if sample.images.len() == 1 { "image" } else { "images" },
        short(sample.megapixels()),
        short(sample.mean(|image| as_f64(image.bytes.len() as u64)) / 1e3)
    );
    if sample.undecodable > 0 {
        text += &format!("{} more do not decode and were left out\n", sample.undecodable);
    }
    let decoders = match isolation {
        Isolation::Process => "decoder processes",
        Isolation::Thread => "threads of this process",
    };
    text + &format!("{cores} cores; images are decoded in {decoders}\n\n")
}

fn describe_conclusions(report: &BenchReport, conclusions: &Conclusions) -> String {
    let RecommendedOptions { prefetch, max_batch, threads } = conclusions.recommended;
    let (rate, result) = (conclusions.bottleneck.images_per_s, &report.pipeline.result);
    let mut text = format!(
        "\nthe pipeline, fed from memory, reaches {:.0} % of the {} images per second that its parts allow",
        result.per_second() / conclusions.capacity * 100.0,
        short(conclusions.capacity)
    );
    if let Some(share) = conclusions.decode_share {
        text += &format!("; decoding takes {:.0} % of the processor time", share * 100.0);
    }
    text += &format!("\nbottleneck: {}, {} images per second\n", conclusions.bottleneck.name, short(rate));
    text += &format!(
        "\nrecommended, as lines for pixwarden.toml:\n[decode]\nthreads = {threads}\n[inference]\nmax_batch = {max_batch}\n[worker]\nprefetch = {prefetch}\n"
    );
    text += &format!("\na million such images: {} hours", short(conclusions.million.hours));
    text += &match conclusions.million {
        MillionImages { cost: Some(cost), price_per_hour: Some(price), .. } => {
            format!(", {} at {} per hour", money(cost), money(price))
        }
        _ => "; --price-per-hour adds the cost".into(),
    };
    text += "\n";
    if report.sample.origin != SampleOrigin::Paths {
        text += "hint: name a PATH to measure with your own images\n";
    }
    if let Some(warning) = &conclusions.warning {
        text += &format!("warning: {warning}\n");
    }
    text
}

/// At least three significant digits, and no decimals from 100 on.
fn short(x: f64) -> String {
    let digits = match x.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{x:.digits$}")
}

/// Two decimals; four for amounts below 0.1.
fn money(x: f64) -> String {
    if x >= 0.1 { format!("{x:.2}") } else { format!("{x:.4}") }
}
