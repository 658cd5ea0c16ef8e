//! Images that crash, stall or take over their decoder: decoder processes cannot do anything else, and are replaced.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use pixwarden::job::Lane;
use serde_json::{Value, json};

use crate::support::{Lab, Worker, figure, fixtures, good_image, service};

const BINARY: &str = env!("CARGO_BIN_EXE_pixwarden");

/// Twelve megapixels.
const LARGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/samples/large-12-megapixels.jpg");

/// SIGSYS, by which seccomp kills.
const BAD_SYSTEM_CALL: i32 = 31;

/// A good JPEG whose comment asks `decoder.py` to misbehave.
fn marked(mark: &str) -> Vec<u8> {
    let script = "
import io, sys
from PIL import Image
out = io.BytesIO()
Image.new('RGB', (64, 64), (200, 120, 40)).save(out, 'JPEG', comment=b'please ' + sys.argv[1].encode())
sys.stdout.buffer.write(out.getvalue())
";
    let made = Command::new(service("TEST_PYTHON")).args(["-c", script, mark]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

/// One good JPEG, made once.
fn marked_once() -> &'static [u8] {
    static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    GOOD.get_or_init(|| marked("nothing"))
}

/// A lab whose worker has two decoder processes that run `decoder.py`.
async fn lab_with_helper(deadline_ms: u32) -> (Lab, PathBuf) {
    let mut lab = Lab::new().await;
    let helper = lab.folder.path().join("decoder.py");
    let code = format!("#!{}\nREAL = {BINARY:?}\n{}", service("TEST_PYTHON"), include_str!("decoder.py"));
    std::fs::write(&helper, code).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o700)).unwrap();
    lab.extra = format!(
        "[decode]\nisolation = \"process\"\nthreads = 2\nhelper = {helper:?}\ndeadline_ms = {deadline_ms}\n\
         [worker]\nreuse_scores = false"
    );
    let tries = lab.folder.path().join("decoder.py.tries");
    (lab, tries)
}

/// Processes whose parent is the worker: ids and states (proc_pid_stat(5)).
fn children(worker: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let after_name: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        if after_name[1] == worker.to_string() {
            found.push((pid, after_name[0].to_owned()));
        }
    }
    found
}

async fn until_gone(pids: &[u32]) {
    let since = Instant::now();
    while pids.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()) {
        assert!(since.elapsed() < Duration::from_secs(10), "still there: {pids:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn reason(lab: &Lab, job: &str) -> (String, String) {
    sqlx::query_as("SELECT outcome, reason FROM verdicts WHERE job_id = $1").bind(job).fetch_one(&lab.db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_256_images_the_one_that_crashes_its_decoder_costs_only_itself() {
    let (lab, tries) = lab_with_helper(10_000).await;
    lab.put("good", good_image()).await;
    lab.put("deadly", marked("DIE")).await;
    for i in 0..256 {
        let key = if i == 100 { "deadly" } else { "good" };
        lab.job(Lane::Live, json!({"id": format!("j{i}"), "image": format!("s3://{}/{key}", lab.bucket)})).await;
    }
    let mut worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", 256, &worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE outcome = 'passed'").await, 255);
    let found = reason(&lab, "j100").await;
    assert_eq!(found, ("undecodable".into(), "the decoder process failed on the image: signal 11".into()));
    assert_eq!(std::fs::read_to_string(tries).unwrap(), "DIE\nDIE\n");
    assert!(worker.child.try_wait().unwrap().is_none(), "{}", worker.log());
    let children = children(worker.child.id().unwrap());
    assert!(children.iter().all(|(_, state)| state != "Z"), "{children:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoder_that_hangs_or_lies_is_replaced() {
    let (lab, tries) = lab_with_helper(1_000).await;
    lab.put("good", good_image()).await;
    for mark in ["HANG", "SPIN", "WAIT", "LIE", "BOAST", "EVIL"] {
        lab.put(mark, marked(mark)).await;
    }
    for (id, key) in [
        ("a", "good"),
        ("b", "HANG"),
        ("c", "SPIN"),
        ("d", "WAIT"),
        ("e", "LIE"),
        ("f", "EVIL"),
        ("g", "good"),
        ("h", "good"),
        ("i", "BOAST"),
    ] {
        lab.job(Lane::Live, json!({"id": id, "image": format!("s3://{}/{key}", lab.bucket)})).await;
    }
    let worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", 9, &worker).await;
    // An image whose decoder only has to wait, as on a busy machine, is not undecodable.
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE scores IS NOT NULL").await, 4);
    let undecodable = |why: &str| ("undecodable".to_owned(), why.to_owned());
    assert_eq!(reason(&lab, "b").await, undecodable("decoding took longer than 3000 ms"));
    assert_eq!(reason(&lab, "c").await, undecodable("decoding took longer than 1000 ms of processor time"));
    // Too many views, and a hash of a quality above 100.
    for id in ["e", "i"] {
        assert_eq!(
            reason(&lab, id).await,
            undecodable(
                "the decoder process failed on the image: invalid message: it is not allowed at this point of the protocol"
            )
        );
    }
    let (outcome, why) = reason(&lab, "f").await;
    assert_eq!(outcome, "undecodable", "{why}");
    assert!(why.contains("forged line") && why.len() < 1_200 && !why.contains(char::is_control), "{why:?}");
    let mut tries: Vec<_> = std::fs::read_to_string(tries).unwrap().lines().map(str::to_owned).collect();
    tries.sort();
    assert_eq!(tries, ["BOAST", "BOAST", "EVIL", "EVIL", "HANG", "HANG", "LIE", "LIE", "SPIN", "SPIN", "WAIT"]);
}

/// A kill from outside, most often for memory, shows nothing about the image. It costs an attempt.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_decoders_are_killed_from_outside_is_tried_again() {
    let (lab, tries) = lab_with_helper(10_000).await;
    lab.put("killed", marked("KILL")).await;
    lab.job(Lane::Live, json!({"id": "k", "image": format!("s3://{}/killed", lab.bucket)})).await;
    let worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts WHERE scores IS NOT NULL AND attempts = 2", 1, &worker).await;
    // Two processes killed, and a second attempt.
    assert_eq!(std::fs::read_to_string(tries).unwrap(), "KILL\nKILL\nKILL\n");
    assert!(worker.log().contains("decoder processes were killed while they decoded the image"), "{}", worker.log());
}

/// A process that ends while it is idle does not count as one of the next image's tries.
#[tokio::test(flavor = "multi_thread")]
async fn a_decoder_that_ends_before_it_has_an_image_does_not_count() {
    let (mut lab, tries) = lab_with_helper(10_000).await;
    lab.extra = lab.extra.replace("threads = 2", "threads = 1");
    lab.put("good", good_image()).await;
    lab.put("leave", marked("LEAVE")).await;
    lab.put("once", marked("ONCE")).await;
    let worker = lab.started_worker().await;
    for (i, key) in ["leave", "once", "good"].iter().enumerate() {
        lab.job(Lane::Live, json!({"id": format!("j{i}"), "image": format!("s3://{}/{key}", lab.bucket)})).await;
        lab.until("SELECT count(*) FROM verdicts WHERE scores IS NOT NULL", i64::try_from(i + 1).unwrap(), &worker)
            .await;
    }
    // It ended after the first image, crashed once on the second, and was replaced for a second try.
    assert_eq!(std::fs::read_to_string(tries).unwrap(), "LEAVE\nONCE\nONCE\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoder_is_replaced_after_a_thousand_images() {
    let (lab, _) = lab_with_helper(10_000).await;
    let images = lab.folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for i in 0..1_001 {
        std::fs::write(images.join(format!("{i}.jpg")), marked_once()).unwrap();
    }
    let helper = lab.folder.path().join("decoder.py");
    let ended = Command::new(BINARY)
        .args(["scan", "--format", "jsonl", "--detector"])
        .arg(fixtures().join("detectors/spread-nhwc"))
        .args(["--label", "by AI"])
        .arg(&images)
        .envs([("PIXWARDEN_DECODE_ISOLATION", "process"), ("PIXWARDEN_DECODE_THREADS", "1")])
        .env("PIXWARDEN_DECODE_HELPER", &helper)
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(std::fs::read_to_string(lab.folder.path().join("decoder.py.starts")).unwrap(), "start\nstart\n");
}

/// Otherwise what it sends before a question would be taken for the answer to it.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_an_image_that_is_yet_to_come_is_not_taken() {
    let (mut lab, _) = lab_with_helper(10_000).await;
    lab.extra = lab.extra.replace("threads = 2", "threads = 1");
    lab.put("good", good_image()).await;
    lab.put("ahead", marked("AHEAD")).await;
    let worker = lab.started_worker().await;
    for (i, key) in ["ahead", "good", "good"].iter().enumerate() {
        lab.job(Lane::Live, json!({"id": format!("j{i}"), "image": format!("s3://{}/{key}", lab.bucket)})).await;
        lab.until("SELECT count(*) FROM verdicts WHERE scores IS NOT NULL", i64::try_from(i + 1).unwrap(), &worker)
            .await;
    }
}

/// A worker with two real decoders, and their ids.
async fn confined() -> (Lab, Worker, Vec<u32>) {
    let mut lab = Lab::new().await;
    lab.extra = "[decode]\nisolation = \"process\"\nthreads = 2".into();
    lab.environment.push(("SECRET", "not for decoders".into()));
    let worker = lab.started_worker().await;
    let pids: Vec<u32> = children(worker.child.id().unwrap()).into_iter().map(|(pid, _)| pid).collect();
    assert_eq!(pids.len(), 2);
    (lab, worker, pids)
}

#[tokio::test(flavor = "multi_thread")]
async fn decoder_processes_have_nothing_and_end_with_their_worker() {
    let (_lab, mut worker, pids) = confined().await;
    for pid in &pids {
        let of = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        assert_eq!(of("environ"), "");
        assert_eq!(of("oom_score_adj").trim(), "1000");
        let status = of("status");
        // 2: with a filter (proc_pid_status(5)).
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "Threads:\t1"] {
            assert!(status.contains(line), "{line} is not in {status}");
        }
        let limits = of("limits");
        let unlimited = limits.lines().find(|line| line.starts_with("Max address space")).unwrap();
        assert!(!unlimited.contains("unlimited"), "{unlimited}");
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let open = std::fs::read_link(entry.path()).unwrap().to_str().unwrap().to_owned();
            assert!(open.starts_with("socket:") || open == "/dev/null", "{open}");
        }
    }
    assert!(worker.terminate().await.success(), "{}", worker.log());
    until_gone(&pids).await;
}

/// A stopped process does not read its socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_no_decoder_not_even_one_that_hangs() {
    let (_lab, mut worker, pids) = confined().await;
    assert!(Command::new("kill").args(["-STOP", &pids[0].to_string()]).status().unwrap().success());
    worker.kill().await;
    until_gone(&pids).await;
}

#[test]
fn a_decoder_cannot_reach_the_network_a_file_a_program_a_descriptor_or_more_memory() {
    for what in ["network", "file", "program", "descriptor", "memory"] {
        let ended = Command::new(BINARY).args(["decoder", "--attempt", what]).env_clear().output().unwrap();
        let words = String::from_utf8_lossy(&ended.stderr);
        let is_refused = match what {
            "memory" => ended.status.success(),
            // Opening fails, so that libraries which look how many threads there may be go on. A program that is to be run has
            // its standard input opened first.
            "file" | "program" => ended.status.success() && words.contains("Operation not permitted"),
            _ => ended.status.signal() == Some(BAD_SYSTEM_CALL),
        };
        assert!(is_refused, "{what}: {} {words}", ended.status);
    }
}

/// Scans every fixture and one large photograph, with these options of `decode`.
fn scan(options: &[(&str, &str)], flags: &[&str]) -> String {
    let folder = fixtures();
    let variables = options.iter().map(|(option, value)| (format!("PIXWARDEN_DECODE_{option}"), value));
    let ended = Command::new(BINARY)
        .args(["scan", "--format", "jsonl", "--label", "by AI", "--detector"])
        .arg(folder.join("detectors/spread-nhwc"))
        .args([folder.join("images"), folder.join("bad"), LARGE.into()])
        .args(flags)
        .envs(variables)
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

#[test]
fn threads_and_processes_decode_alike() {
    for mode in ["exact", "fast"] {
        let in_a = |isolation| scan(&[("MODE", mode), ("ISOLATION", isolation)], &[]);
        let (thread, process) = (in_a("thread"), in_a("process"));
        figure(&format!("{} images and damaged files are decoded alike, {mode}", thread.lines().count()));
        assert!(thread.lines().count() > 100);
        for (thread, process) in thread.lines().zip(process.lines()) {
            assert_eq!(thread, process);
        }
        assert_eq!(thread.len(), process.len());
    }
}

#[test]
fn fast_scores_are_near_the_exact_ones_and_never_taken_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = format!("sqlite://{}", folder.path().join("scan.db").display());
    let scan = |mode: &str, flags: &[&str]| -> Vec<Value> {
        let said = scan(&[("MODE", mode)], flags);
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let exact = scan("exact", &["--ledger", &ledger]);
    let fast = scan("fast", &[]);
    assert_eq!(scan("fast", &["--ledger", &ledger]), fast, "only exact scores are in the ledger");
    assert_eq!(scan("exact", &["--ledger", &ledger]), exact);
    let mut differ = Vec::new();
    for (exact, fast) in exact.iter().zip(&fast) {
        for field in ["image", "sha256", "format", "width", "height", "frames"] {
            assert_eq!(exact[field], fast[field]);
        }
        if exact["score"] == fast["score"] {
            assert_eq!(exact, fast);
        } else {
            let [exact, fast] = [exact, fast].map(|row| row["score"].as_f64().unwrap());
            differ.push((exact - fast).abs());
        }
    }
    let largest = differ.iter().copied().fold(0.0, f64::max);
    figure(&format!("fast changes the score of {} of {} files, by {largest:.4} at most", differ.len(), exact.len()));
    assert_ne!(exact.last().unwrap()["score"], fast.last().unwrap()["score"], "the large one was decoded whole");
    assert!(largest < 0.05, "{largest}");
}
