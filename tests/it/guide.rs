//! Programs of the guide do what the guide shows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lapin::BasicProperties;
use pixwarden::broker::Message;
use pixwarden::job::Lane;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{Ended, Lab, fixtures, judged_fixtures, service};

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

/// The program of `docs/guide/replies.md` in this language prints what stands behind it.
async fn prints_what_the_guide_shows(language: &str, start: [&str; 2], program: Command, lab: &mut Lab) {
    let text = include_str!("../../docs/guide/replies.md");
    let (_, section) = text.split_once(&format!("\n```{language}\n")).unwrap();
    let (code, rest) = section.split_once("```").unwrap();
    let (command, expected) = session(blocks(rest, "text").pop_front().unwrap());
    assert_eq!(command[..2], start);

    // As in the guide: the bundled detector, and the samples in the bucket `uploads`.
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
    assert_eq!(code.matches("\"pixwarden.jobs\"").count(), 1);
    let code = code.replace("\"pixwarden.jobs\"", &format!("{:?}", lab.topology.jobs()));
    std::fs::write(lab.folder.path().join(start[1]), code).unwrap();
    let mut screen = program;
    screen
        .args(&command[1..])
        .current_dir(lab.folder.path())
        .env("PIXWARDEN_QUEUE", lab.queue_as("pixwarden-publisher"))
        .kill_on_drop(true);
    let printed = Ended::of(screen).await.expect_ok();
    assert_eq!(printed.stdout, expected, "{}", printed.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_program_that_waits_for_replies_prints_what_the_guide_shows() {
    let (mut lab, python) = (Lab::new().await, Command::new(service("TEST_PYTHON")));
    prints_what_the_guide_shows("python", ["python", "screen.py"], python, &mut lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_program_that_waits_for_replies_prints_what_the_guide_shows() {
    let (mut lab, node) = (Lab::new().await, Command::new(service("TEST_NODE")));
    // An `import` looks for packages beside the program.
    std::os::unix::fs::symlink(service("TEST_NODE_MODULES"), lab.folder.path().join("node_modules")).unwrap();
    prints_what_the_guide_shows("js", ["node", "screen.mjs"], node, &mut lab).await;
}

#[test]
fn the_guide_names_the_release_of_amqplib_that_is_tested() {
    let package: serde_json::Value = serde_json::from_str(include_str!("../guide/package.json")).unwrap();
    let version = package["dependencies"]["amqplib"].as_str().unwrap();
    let (release, _) = version.rsplit_once('.').unwrap();
    let named = format!("[amqplib](https://www.npmjs.com/package/amqplib) {release} (");
    assert!(include_str!("../../docs/guide/replies.md").contains(&named), "{version}");
}

/// The rows of a table that has these columns: the cells without their backquotes.
fn table<'t>(text: &'t str, columns: &str) -> Vec<Vec<&'t str>> {
    let (_, rows) = text.split_once(&format!("\n{columns}\n")).unwrap_or_else(|| panic!("no table {columns}"));
    let rows = rows.lines().skip(1).take_while(|line| line.starts_with('|'));
    let cells = |line: &'t str| -> Vec<&'t str> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()
    };
    rows.map(cells).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_consumer_of_the_guide_keeps_the_last_word() {
    let lab = Lab::new().await;
    let program = blocks(include_str!("../../docs/guide/events.md"), "python").pop_front().unwrap();
    let queues = ["flagged", "unscreened", "updates"];
    let program = queues.iter().fold(program.to_owned(), |program, queue| {
        assert_eq!(program.matches(&format!("\"pixwarden.{queue}\"")).count(), 1);
        program.replace(&format!("pixwarden.{queue}"), &format!("{}.{queue}", lab.prefix))
    });
    std::fs::write(lab.folder.path().join("keep.py"), program).unwrap();
    let mut keep = Command::new(service("TEST_PYTHON"));
    keep.arg("keep.py").current_dir(lab.folder.path()).env("PIXWARDEN_QUEUE", &lab.queue);
    let mut keep = keep.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(keep.stdout.take().unwrap()).lines();

    // Each is published when the program has printed what it made of the one before. The digits of the times differ, so that
    // the texts would be in another order.
    for (key, allow, revision, judged_at, printed) in [
        ("image.flagged", false, 1, "2026-11-29T23:40:42.9Z", "hide"),
        ("image.cleared", true, 3, "2026-11-29T23:40:42.94Z", "show"),
        ("image.review", false, 2, "2026-11-29T23:40:42.93386619Z", "nothing new"),
        ("image.flagged", false, 1, "2026-11-29T23:40:42.9Z", "nothing new"),
        ("image.failed", false, 2, "2026-11-29T23:40:42.94Z", "nothing new"),
        ("image.cleared", true, 3, "2026-11-29T23:40:42.94Z", "nothing new"),
        ("image.flagged", false, 4, "2026-11-29T23:40:42.94Z", "hide"),
    ] {
        let data = json!({"verdict_id": "v", "allow": allow, "revision": revision, "judged_at": judged_at});
        let payload = json!({"subject": "s3://uploads/a.jpg", "data": data}).to_string();
        let (exchange, properties) = (lab.topology.events(), BasicProperties::default());
        let message = Message { exchange: &exchange, routing_key: key, payload: payload.as_bytes(), properties };
        lab.publisher.publish(message).await.unwrap();
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap();
        assert_eq!(line.as_deref(), Some(&*format!("s3://uploads/a.jpg {printed}")), "{key}, revision {revision}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_of_the_guide_verifies_what_a_worker_sends() {
    let text = include_str!("../../docs/guide/webhooks.md");
    let (mut lab, program) = (Lab::new().await, blocks(text, "python").pop_front().unwrap());
    std::fs::write(lab.folder.path().join("receive.py"), program).unwrap();
    // The table of the guide, with an address of this machine, and all events.
    let entry = blocks(text, "toml").pop_front().unwrap();
    let secret = entry.lines().find_map(|line| line.strip_prefix("secret = ")).unwrap().trim_matches('"');
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/");
    lab.extra = entry.replace("https://shop.example.com/hooks/pixwarden", &url);
    let mut receive = Command::new(service("TEST_PYTHON"));
    receive.arg("receive.py").current_dir(lab.folder.path());
    receive.env("PORT", port.to_string()).env("WEBHOOK_SECRET", secret);
    let mut receive = receive.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(receive.stdout.take().unwrap()).lines();
    let worker = lab.started_worker().await;
    let flagged = judged_fixtures().into_iter().find(|fixture| fixture.outcome == "flagged").unwrap();
    lab.put("a.jpg", flagged.bytes).await;
    lab.job(Lane::Live, json!({"image": format!("s3://{}/a.jpg", lab.bucket)})).await;
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line, Some(format!("s3://{}/a.jpg hide", lab.bucket)));
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", 1, &worker).await;

    // The same once more, and one with a wrong signature.
    sqlx::query("UPDATE webhook_deliveries SET delivered_at = NULL, due_at = now()").execute(&lab.db).await.unwrap();
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", 1, &worker).await;
    let other = secret.replace('M', "N");
    lab.extra = lab.extra.replace(secret, &other);
    let refused = lab.run(&["webhook", "test", "shop"]).await;
    assert!(refused.status == 1 && refused.stderr.contains("HTTP status 401, after "), "{}", refused.stderr);
    drop(receive.start_kill());
    assert_eq!(lines.next_line().await.unwrap(), None, "nothing new");
}

const TENANTS: [(&str, &str); 3] = [("kids", "kids-uploads"), ("dating", "dating-photos"), ("market", "market")];

/// What the guide's three tenants want, apart from its configuration.
fn wanted(tenant: &str, nsfw: f32, ai_made: f32) -> &'static str {
    match tenant {
        "kids" if nsfw >= 0.2 => "flagged",
        "kids" if ai_made >= 0.5 => "noted",
        "dating" if ai_made >= 0.9 => "flagged",
        "dating" if ai_made >= 0.5 || nsfw >= 0.98 => "review",
        "dating" if nsfw >= 0.5 => "noted",
        "market" if nsfw >= 0.9 => "flagged",
        "market" if nsfw >= 0.5 || ai_made >= 0.9 => "review",
        _ => "passed",
    }
}

/// Copies a package under other labels.
fn copy_package(from: &Path, to: &Path, labels: &[(&str, &str)]) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let mut bytes = std::fs::read(file.path()).unwrap();
        if file.path().extension().is_some_and(|extension| extension == "json") {
            let text = String::from_utf8(bytes).unwrap();
            bytes = labels.iter().fold(text, |text, (from, to)| text.replace(from, to)).into();
        }
        std::fs::write(to.join(file.file_name()), bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_tenants_get_what_the_guide_says_from_one_deployment() {
    let text = include_str!("../../docs/guide/policy.md");
    for row in table(text, "| `nsfw` | `ai-made` | kids | dating | market |") {
        let [nsfw, ai_made] = [row[0], row[1]].map(|score| score.parse().unwrap());
        let wanted = TENANTS.map(|(tenant, _)| wanted(tenant, nsfw, ai_made));
        assert_eq!(row[2..], wanted, "nsfw {nsfw}, ai-made {ai_made}");
    }

    // The configuration as it stands, beside packages with the labels of its detectors.
    let mut lab = Lab::new().await;
    let folder = lab.folder.path().to_owned();
    let config = blocks(text, "toml").into_iter().find(|block| block.contains("kids-uploads")).unwrap();
    let file = folder.join("pixwarden.toml");
    std::fs::write(&file, config).unwrap();
    let models = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models"));
    copy_package(&models.join("cifake-32"), &folder.join("models/cifake-32"), &[]);
    let labels = [("by human", "normal"), ("by AI", "nsfw")];
    copy_package(&fixtures().join("detectors/spread-nhwc"), &folder.join("models/nsfw_image_detection"), &labels);

    // Every image goes to every tenant.
    let images: Vec<_> =
        judged_fixtures().into_iter().filter(|fixture| fixture.outcome != "undecodable").step_by(2).collect();
    for (tenant, bucket) in TENANTS {
        let objects = folder.join("objects").join(bucket);
        std::fs::create_dir_all(&objects).unwrap();
        for (number, image) in images.iter().enumerate() {
            std::fs::write(objects.join(number.to_string()), &image.bytes).unwrap();
            let job = json!({"id": format!("{tenant} {number}"), "image": format!("s3://{bucket}/{number}")});
            lab.job(Lane::Live, job).await;
        }
    }
    lab.environment = vec![
        ("PIXWARDEN_QUEUE", lab.queue_as("pixwarden-worker")),
        ("PIXWARDEN_LEDGER", lab.ledger_as("pixwarden_worker")),
        ("PIXWARDEN_OBJECTS", format!("file://{}", folder.join("objects").display())),
        ("PIXWARDEN_PREFIX", lab.prefix.clone()),
        ("PIXWARDEN_METRICS_LISTEN", "off".into()),
    ];
    let worker = lab.worker_of(&file);
    lab.until("SELECT count(*) FROM verdicts", i64::try_from(3 * images.len()).unwrap(), &worker).await;

    let rows: Vec<(String, String, String, i32, f32, f32)> = sqlx::query_as(
        "SELECT job_id, outcome, policy->>'name', coalesce(jsonb_array_length(findings), 0), \
         (scores->'nsfw'->>'nsfw')::real, (scores->'ai-made'->>'by AI')::real FROM verdicts",
    )
    .fetch_all(&lab.db)
    .await
    .unwrap();
    let (mut answers, mut by_image) = (BTreeSet::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for (job, outcome, policy, findings, nsfw, ai_made) in rows {
        let (tenant, image) = job.split_once(' ').unwrap();
        assert_eq!(tenant, policy);
        let answer = if outcome == "passed" && findings > 0 { "noted" } else { &outcome };
        assert_eq!(answer, wanted(tenant, nsfw, ai_made), "{job}: nsfw {nsfw}, ai-made {ai_made}");
        answers.insert(format!("{tenant} {answer}"));
        by_image.entry(image.into()).or_default().insert(answer.into());
    }
    assert!(answers.len() > 7, "{answers:?}");
    assert!(by_image.values().any(|answers| answers.len() == 3), "three answers to one image: {by_image:?}");
}

#[test]
fn every_category_of_the_guide_is_in_its_list() {
    let taxonomy = include_str!("../../docs/guide/taxonomy.md");
    let paths = table(taxonomy, "| path | what is in the picture |");
    let paths: BTreeSet<&str> = paths.iter().map(|row| row[0]).collect();
    for path in &paths {
        let parent = path.rsplit_once('/').map_or(*path, |(parent, _)| parent);
        assert!(paths.contains(parent), "{path} is below a path that the list has not");
    }
    let detectors = table(taxonomy, "| detector | label | path |");
    let rekognition = table(taxonomy, "| first level | second level | path |");
    for row in detectors.iter().chain(&rekognition) {
        assert!(paths.contains(row[2]), "{row:?}");
    }
    let first_levels: BTreeSet<&str> = rekognition.iter().map(|row| row[0]).collect();
    assert_eq!(first_levels.len(), 10, "as version 7 has: {first_levels:?}");
    let examples = include_str!("../../docs/guide/policy.md").lines();
    for category in examples.filter_map(|line| line.strip_prefix("category = ")) {
        assert!(paths.contains(category.trim_matches('"')), "{category}");
    }
}
