//! Options that several commands have in common and that are also options of the configuration.
//!
//! A command flattens the groups that it uses into its arguments, and no others: an option that a command would ignore is a
//! usage error of the argument parser.

use clap::{Args, ValueEnum};

use super::numbers;
use crate::config::{Device, LogFormat, Overlay};

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct EveryCommand {
    /// Configuration file [default: pixwarden.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE", env = "PIXWARDEN_CONFIG")]
    config: Option<std::path::PathBuf>,
    /// Log filter, such as info or pixwarden=debug
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// Format of log lines
    #[arg(long, global = true, value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

impl EveryCommand {
    /// The first flags of the layer.
    pub(super) fn overlay(&self) -> Overlay {
        let mut overlay = Overlay { file: self.config.clone(), values: Vec::new() };
        overlay.set("log.filter", "--log", self.log.clone());
        overlay.set("log.format", "--log-format", self.log_format.map(choice_name));
        overlay
    }
}

/// For commands that connect to the broker. `global` is for commands with subcommands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct QueueOption {
    /// Broker, amqp://user:password@host:5672/vhost
    #[arg(long, global = true, value_name = "URL")]
    queue: Option<String>,
}

impl QueueOption {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        overlay.set("queue", "--queue", self.queue.clone());
    }
}

/// For commands that read or write verdicts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct LedgerOption {
    /// Database of the verdicts, postgres://user:password@host/database or sqlite://FILE
    #[arg(long, value_name = "URL")]
    ledger: Option<String>,
}

impl LedgerOption {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        overlay.set("ledger.url", "--ledger", self.ledger.clone());
    }

    /// Whether the option was given. `scan` uses no other ledger.
    pub(super) fn is_given(&self) -> bool {
        self.ledger.is_some()
    }
}

/// For commands that read images from the object store. Where a command selects verdicts, `--bucket` is a filter instead.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct ObjectsOptions {
    /// Object store of the images, s3:// or file:///FOLDER
    #[arg(long, value_name = "URL")]
    objects: Option<String>,
    /// A bucket that jobs may name; "*" stands for any characters [repeatable]
    #[arg(long, value_name = "NAME")]
    bucket: Vec<String>,
}

impl ObjectsOptions {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        overlay.set("objects", "--objects", self.objects.clone());
        overlay.set_list("buckets", "--bucket", &self.bucket);
    }
}

/// For commands that read model packages. Where a command selects verdicts, `--detector` is a filter instead.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct DetectorOption {
    /// A model package; without one, the bundled detector [repeatable]
    #[arg(long, value_name = "DIR")]
    detector: Vec<String>,
}

impl DetectorOption {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        overlay.set_list("detectors", "--detector", &self.detector);
    }
}

/// For commands that resolve a policy. Where a command selects verdicts, `--label` is a filter instead.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct LabelOption {
    /// Label of the default rule
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
}

impl LabelOption {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        overlay.set("policy.label", "--label", self.label.clone());
    }
}

/// For commands that judge scores.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct ThresholdOptions {
    /// Review threshold of the default rule; a higher value sends fewer images to people, and misses more
    #[arg(long, value_name = "P", value_parser = numbers::share)]
    review_at: Option<f64>,
    /// Flagging threshold of the default rule; a higher value flags fewer images, and misses more
    #[arg(long, value_name = "P", value_parser = numbers::share)]
    flag_at: Option<f64>,
}

impl ThresholdOptions {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        overlay.set("policy.review_at", "--review-at", self.review_at);
        overlay.set("policy.flag_at", "--flag-at", self.flag_at);
    }
}

/// For commands that run models.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct DeviceOption {
    /// Where models run; with cpu or cuda the start fails if that device is not available
    #[arg(long, value_name = "DEVICE", value_enum)]
    device: Option<Device>,
}

impl DeviceOption {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        overlay.set("inference.device", "--device", self.device.map(choice_name));
    }
}

/// For commands that resolve the policies: detectors and the default rule.
#[derive(Debug, Args)]
pub(super) struct PolicyOptions {
    #[command(flatten)]
    detector: DetectorOption,
    #[command(flatten)]
    label: LabelOption,
    #[command(flatten)]
    thresholds: ThresholdOptions,
}

impl PolicyOptions {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        self.detector.set(overlay);
        self.label.set(overlay);
        self.thresholds.set(overlay);
    }
}

/// For commands that screen images: detectors, the default rule and the device.
#[derive(Debug, Args)]
pub(super) struct ScreeningOptions {
    #[command(flatten)]
    policy: PolicyOptions,
    #[command(flatten)]
    device: DeviceOption,
}

impl ScreeningOptions {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        self.policy.set(overlay);
        self.device.set(overlay);
    }
}

/// For commands that use every service: broker, ledger and object store.
#[derive(Debug, Args)]
pub(super) struct ServiceOptions {
    #[command(flatten)]
    queue: QueueOption,
    #[command(flatten)]
    ledger: LedgerOption,
    #[command(flatten)]
    objects: ObjectsOptions,
}

impl ServiceOptions {
    pub(super) fn set(&self, overlay: &mut Overlay) {
        self.queue.set(overlay);
        self.ledger.set(overlay);
        self.objects.set(overlay);
    }
}

/// The name of a choice in the configuration file.
fn choice_name(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    /// Every option of the configuration that is a flag of several commands, with a value.
    const SHARED: [(&str, &str); 9] = [
        ("--queue", "amqp://host"),
        ("--ledger", "sqlite://file"),
        ("--objects", "file:///folder"),
        ("--bucket", "uploads"),
        ("--detector", "models/one"),
        ("--label", "fake"),
        ("--review-at", "0.4"),
        ("--flag-at", "0.8"),
        ("--device", "cpu"),
    ];
    const SCREENING: [&str; 5] = ["--detector", "--label", "--review-at", "--flag-at", "--device"];
    const DIGITS: &str = "0707070707070707070707070707070707070707070707070707070707070707";
    const MD5: &str = "md5:07070707070707070707070707070707";
    const FILTERS: [&str; 3] = ["--bucket", "--detector", "--label"];

    /// Each command with its required arguments, and the options of the configuration that it takes.
    fn commands() -> Vec<(&'static [&'static str], Vec<&'static str>)> {
        let all = SHARED.map(|(flag, _)| flag).to_vec();
        let backfill = ["--queue", "--ledger", "--objects", "--bucket", "--detector"].to_vec();
        let policy = ["--detector", "--label", "--review-at", "--flag-at"].to_vec();
        let bench = [&backfill[..], &["--label", "--device"]].concat();
        vec![
            (&["worker"], all.clone()),
            (&["serve"], all.clone()),
            (&["key", "create", "app"], vec![]),
            (&["check"], all),
            (&["scan", "PATH"], [&["--ledger"][..], &SCREENING].concat()),
            (&["evaluate", "--dataset", "n=l:p"], SCREENING.to_vec()),
            (&["bench"], bench),
            (&["enqueue", "s3://b/k"], vec!["--queue"]),
            (&["backfill", "s3://b/"], backfill),
            (&["show", "ID"], vec!["--ledger"]),
            (&["export"], vec!["--ledger"]),
            (&["rejudge"], vec!["--queue", "--ledger", "--review-at", "--flag-at"]),
            (&["compare"], vec!["--ledger"]),
            (&["prune", "--older-than", "90d"], vec!["--ledger"]),
            (&["erase", "--image", "s3://b/k"], vec!["--ledger"]),
            (&["hold", "add", "--sha256", DIGITS, "--reference", "r", "--until", "2099-01-01"], vec!["--ledger"]),
            (&["hold", "list"], vec!["--ledger"]),
            (&["hold", "release", "00000000-0000-0000-0000-000000000000"], vec!["--ledger"]),
            (&["bank", "list"], vec!["--ledger"]),
            (&["bank", "create", "b", "--kind", "deny"], vec!["--ledger"]),
            (&["bank", "set", "b", "--disabled"], vec!["--ledger"]),
            (&["bank", "drop", "b", "--yes"], vec!["--ledger"]),
            (&["bank", "import", "b", "FILE"], vec!["--ledger"]),
            (&["bank", "export", "b"], vec!["--ledger"]),
            (&["bank", "add", "b", MD5], vec!["--ledger"]),
            (&["bank", "remove", "b", MD5], vec!["--ledger"]),
            (&["bank", "match", "b"], [&["--ledger"][..], &policy].concat()),
            (&["bank", "confirm", "b", "7"], vec!["--ledger"]),
            (&["bank", "deconfirm", "b", "7"], vec!["--ledger"]),
            (&["policy", "check"], policy.clone()),
            (&["policy", "show"], policy.clone()),
            (&["policy", "explain", "ID"], [&["--ledger"][..], &policy].concat()),
            (&["migrate"], vec!["--ledger"]),
            (&["dead", "list"], vec!["--queue"]),
            (&["dead", "show", "ID"], vec!["--queue"]),
            (&["dead", "replay", "--all"], vec!["--queue"]),
            (&["dead", "drop", "--all", "--yes"], vec!["--queue"]),
            (&["webhook", "list"], vec!["--ledger"]),
            (&["webhook", "replay", "7"], vec!["--ledger"]),
            (&["webhook", "test", "NAME"], vec![]),
            (&["models", "list"], vec!["--detector"]),
            (&["models", "check"], vec!["--detector", "--device"]),
            (&["models", "fetch", "hf://o/n"], vec![]),
            (&["completions", "bash"], vec![]),
            (&["man", "DIR"], vec![]),
        ]
    }

    fn parse(before: &[&str], command: &[&str], after: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["pixwarden"], before, command, after].concat())
    }

    /// The flags that reach the configuration.
    fn flags(cli: &Cli) -> Vec<&'static str> {
        let mut overlay = cli.every.overlay();
        cli.command.overlay(&mut overlay);
        overlay.values.iter().map(|given| given.flag).collect()
    }

    #[test]
    fn a_command_takes_only_options_that_change_its_configuration() {
        for (command, taken) in commands() {
            for (flag, value) in SHARED {
                // Commands that select verdicts have filters of these names, and a key is bound to buckets. That is no part
                // of the configuration.
                let is_filter = (["export", "rejudge", "compare", "prune"].contains(&command[0])
                    && FILTERS.contains(&flag))
                    || (command[0] == "key" && flag == "--bucket");
                match parse(&[], command, &[flag, value]) {
                    Ok(cli) if taken.contains(&flag) => assert_eq!(flags(&cli), [flag], "{command:?} {flag}"),
                    Ok(cli) => assert!(is_filter && flags(&cli).is_empty(), "{command:?} ignores {flag}"),
                    Err(error) => {
                        assert!(!taken.contains(&flag), "{command:?} {flag}: {error}");
                        assert_eq!(error.exit_code(), 2);
                    }
                }
            }
        }
    }

    #[test]
    fn a_wrong_number_is_refused_in_our_words() {
        for (command, flag, text, expected) in [
            ("worker", "--flag-at", "x", "\"x\" is not a number from 0 to 1"),
            ("worker", "--review-at", "0,5", "\"0,5\" is not a number from 0 to 1"),
            ("worker", "--prefetch", "x", "\"x\" is not a whole number from 0 to 65535"),
            ("worker", "--attempts", "0", "\"0\" is not a whole number from 1 to 4294967295"),
            ("bench", "--seconds", "NaN", "\"NaN\" is not a number from 0.01 to 3600"),
        ] {
            let error = parse(&[], &[command, flag, text], &[]).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn the_list_has_every_command() {
        fn leaves(command: &clap::Command, path: &str, into: &mut Vec<String>) {
            let visible = |inner: &&clap::Command| inner.get_name() != "help" && !inner.is_hide_set();
            for inner in command.get_subcommands().filter(visible) {
                let path = format!("{path} {}", inner.get_name());
                if inner.has_subcommands() { leaves(inner, &path, into) } else { into.push(path.trim().to_owned()) }
            }
        }
        let mut all = Vec::new();
        leaves(&<Cli as clap::CommandFactory>::command(), "", &mut all);
        let listed: Vec<String> = commands().into_iter().map(|(command, _)| command.join(" ")).collect();
        for command in all {
            assert!(listed.iter().any(|listed| listed.starts_with(&command)), "{command} is not in the list");
        }
    }

    #[test]
    fn options_of_every_command_work_before_and_after_it() {
        let options = ["--config", "some.toml", "--log", "debug", "--log-format", "json"];
        for (command, _) in commands() {
            for cli in [parse(&options, command, &[]), parse(&[], command, &options)] {
                let cli = cli.unwrap();
                assert_eq!(flags(&cli), ["--log", "--log-format"], "{command:?}");
                assert_eq!(cli.every.overlay().file.unwrap(), std::path::Path::new("some.toml"));
            }
        }
    }

    #[test]
    fn an_option_before_the_command_is_refused_with_its_place() {
        let error = parse(&["--queue", "amqp://host"], &["worker"], &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("'worker --queue' exists"), "{error}");
    }
}
