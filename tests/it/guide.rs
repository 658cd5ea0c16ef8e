//! Programs of the guide do what the guide shows.

use std::collections::VecDeque;

use tokio::process::Command;

use crate::support::{Ended, Lab, service};

/// The code blocks of a document that are in a language, in order.
fn blocks<'t>(text: &'t str, language: &str) -> VecDeque<&'t str> {
    let begin = format!("\n```{language}\n");
    text.split(begin.as_str()).skip(1).map(|rest| rest.split_once("```").unwrap().0).collect()
}

/// A command of a document, without its prompt, and what it prints.
fn session(block: &str) -> (Vec<String>, &str) {
    let (mut words, mut rest) = (Vec::new(), block.strip_prefix("$ ").unwrap());
    loop {
        let (line, after) = rest.split_once('\n').unwrap();
        rest = after;
        let (line, continues) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        words.extend(line.split_whitespace().map(str::to_owned));
        if !continues {
            return (words, rest);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_program_that_waits_for_replies_prints_what_the_guide_shows() {
    let text = include_str!("../../docs/guide/replies.md");
    let program = blocks(text, "python").pop_front().unwrap();
    let (command, expected) = session(blocks(text, "text").pop_front().unwrap());
    assert_eq!(command[..2], ["python", "screen.py"]);

    // As in the guide: the bundled detector, and the samples in the bucket `uploads`.
    let mut lab = Lab::new().await;
    lab.detectors = format!("{:?}", concat!(env!("CARGO_MANIFEST_DIR"), "/models/cifake-32"));
    let objects = lab.folder.path().join("objects");
    std::fs::create_dir_all(objects.join("uploads/samples")).unwrap();
    for sample in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/models/samples")).unwrap() {
        let sample = sample.unwrap();
        std::fs::copy(sample.path(), objects.join("uploads/samples").join(sample.file_name())).unwrap();
    }
    (lab.objects, lab.bucket) = (format!("file://{}", objects.display()), "uploads".into());
    let _worker = lab.started_worker().await;

    // Every test has its own exchange. Nothing else is changed.
    assert_eq!(program.matches("\"pixwarden.jobs\"").count(), 1);
    let program = program.replace("\"pixwarden.jobs\"", &format!("{:?}", lab.topology.jobs()));
    std::fs::write(lab.folder.path().join("screen.py"), program).unwrap();
    let mut screen = Command::new(service("TEST_PYTHON"));
    screen
        .args(&command[1..])
        .current_dir(lab.folder.path())
        .env("PIXWARDEN_QUEUE", lab.queue_as("pixwarden-publisher"))
        .kill_on_drop(true);
    let printed = Ended::of(screen).await.expect_ok();
    assert_eq!(printed.stdout, expected, "{}", printed.stderr);
}
