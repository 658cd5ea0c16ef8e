//! `pixwarden check`: every dependency is tried, and each failure is told with what to do about it.

use crate::broker::{Topology, connect, depth};
use crate::config::Config;
use crate::job::Lane;
use crate::ledger;
use crate::objects::Fetcher;
use crate::screen::Screen;

/// What a check found, in words.
type Finding = Result<String, String>;

pub(super) async fn run(config: &Config) -> anyhow::Result<u8> {
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let mut failed = 0u32;
    let mut tell = |what: &str, finding: Finding| {
        let (mark, words) = match &finding {
            Ok(words) if ["nobody listening", "missing: "].iter().any(|sign| words.contains(sign)) => ("look  ", words),
            Ok(words) => ("ok    ", words),
            Err(words) => ("FAILED", words),
        };
        failed += u32::from(finding.is_err());
        println!("{mark}  {what:<9}  {}", words.replace('\n', "\n                   "));
    };
    tell("queue", queue(config, &topology).await);
    tell("events", events(config, &topology).await);
    tell("ledger", ledger(config).await);
    for (bucket, finding) in objects(config).await {
        tell("objects", finding.map(|()| format!("the store answers for the bucket \"{bucket}\"")));
    }
    match Screen::start(config) {
        Ok(screen) => {
            tell("decoding", Ok(screen.describe_decoding()));
            screen.describe_detectors().for_each(|words| tell("detector", Ok(words)));
        }
        Err(e) => tell("detector", Err(e.to_string())),
    }
    Ok(u8::from(failed > 0))
}

async fn queue(config: &Config, topology: &Topology) -> Finding {
    let url = config.queue().map_err(|e| e.to_string())?;
    let connection = connect(url, "check").await.map_err(|e| e.to_string())?;
    let mut words = format!("{url} answers");
    let mut declared = true;
    for lane in Lane::ALL {
        let queue = topology.lane(lane);
        words += &match depth(&connection, &queue).await.map_err(|e| e.to_string())? {
            Some((messages, consumers)) => format!("; {queue}: {messages} waiting, {consumers} consuming"),
            None => {
                declared = false;
                format!("; {queue} is not declared yet, the first worker does that")
            }
        };
    }
    if declared {
        // Changes nothing any more, and says what a worker's user would not be allowed to do.
        topology.declare(&connection).await.map_err(|e| e.to_string())?;
    }
    Ok(words)
}

/// Whether a flag would be heard. Other bindings than the default queue's cannot be seen without publishing.
async fn events(config: &Config, topology: &Topology) -> Finding {
    if !config.events.default_queue {
        return Ok(format!("events.default_queue is off; bind a queue of your own to {}", topology.events()));
    }
    let url = config.queue().map_err(|e| e.to_string())?;
    let connection = connect(url, "check").await.map_err(|e| e.to_string())?;
    let queue = topology.flagged();
    Ok(match depth(&connection, &queue).await.map_err(|e| e.to_string())? {
        Some((messages, 0)) if messages > 0 => format!("{queue}: {messages} waiting and nobody listening"),
        Some((messages, consumers)) => format!("{queue}: {messages} waiting, {consumers} listening"),
        None => format!("{queue} is not declared yet, the first worker does that"),
    })
}

async fn ledger(config: &Config) -> Finding {
    let ledger = ledger::open(config).await.map_err(|e| e.to_string())?;
    ledger.check_schema().await.map_err(|e| e.to_string())?;
    ledger.ping().await.map_err(|e| e.to_string())?;
    let lacks = ledger.missing_privileges().await.map_err(|e| e.to_string())?;
    if !lacks.is_empty() {
        return Err(format!(
            "{} answers, but a worker would need {}\n  hint: deploy/postgres/roles.sql grants it; run it again after each `pixwarden migrate`",
            config.ledger,
            lacks.join(", ")
        ));
    }
    let scope = if config.ledger.file().is_some() { "; a file serves one worker" } else { "" };
    Ok(format!("{} answers and its schema is up to date{scope}", config.ledger))
}

async fn objects(config: &Config) -> Vec<(String, Result<(), String>)> {
    let fetcher = match Fetcher::open(config).await {
        Ok(fetcher) => fetcher,
        Err(e) => return vec![(String::new(), Err(e.to_string()))],
    };
    let mut findings = Vec::new();
    for bucket in fetcher.named_buckets() {
        let finding = fetcher.probe(&bucket).await.map_err(|e| format!("bucket \"{bucket}\": {e}"));
        findings.push((bucket, finding));
    }
    findings
}
