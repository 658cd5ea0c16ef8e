//! `models fetch` against a server that behaves like the hub: small files from itself, large ones by a redirect to a
//! second server; and that misbehaves as networks, proxies and attackers do.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pixwarden::hub::{DownloadFolder, Hub, Repository, Settings};
use serde_json::{Value, json};
use sha1::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Ended;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_Qx7Zp4Vw9KtR2mN8sJ5";
/// Files from this size on are in large-file storage.
const LARGE: usize = 100_000;

/// What a server does wrong with a file.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    /// Closes the connection after so many bytes of the body, the first time.
    CutOnce(usize),
    /// Closes it there always, and does not resume either.
    CutAlways(usize),
    /// Sends other bytes of the same length.
    Corrupt,
    /// Sends more than it promised.
    TooLong,
    /// Answers 503 the first time.
    BusyOnce,
    /// Ignores `Range`.
    NoRange,
    /// Goes silent in the middle.
    Stall,
}

#[derive(Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    flaws: HashMap<String, Flaw>,
    /// Status and message of the listing, where it is not 200.
    refuses: Option<(u16, &'static str)>,
    /// Names that are listed beside the files.
    hostile: Option<String>,
    /// Which server, the path, and the head of each request.
    requests: Vec<(&'static str, String, String)>,
}

/// The two servers.
struct Servers {
    endpoint: String,
    state: Arc<Mutex<State>>,
    home: tempfile::TempDir,
}

impl Servers {
    /// Servers with the bundled detector in a repository.
    async fn with_package() -> Self {
        let servers = Self::new().await;
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cifake-32");
        for name in ["model.onnx", "config.json", "golden.json", "golden.png", "README.md", "training.jsonl"] {
            servers.file(name, std::fs::read(package.join(name)).unwrap());
        }
        servers
    }

    async fn new() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let storage = listen("storage", Arc::clone(&state), String::new()).await;
        let endpoint = listen("hub", Arc::clone(&state), storage).await;
        Self { endpoint, state, home: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, bytes: Vec<u8>) {
        self.state.lock().unwrap().files.insert(name.to_owned(), bytes);
    }

    fn flaw(&self, name: &str, flaw: Option<Flaw>) {
        let flaws = &mut self.state.lock().unwrap().flaws;
        flaws.remove(name);
        flaws.extend(flaw.map(|flaw| (name.to_owned(), flaw)));
    }

    /// The requests since the last call: server, path and head.
    fn requests(&self) -> Vec<(&'static str, String, String)> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    async fn pixwarden(&self, arguments: &[&str]) -> Ended {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pixwarden"));
        command
            .env_clear()
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_TOKEN", TOKEN)
            .current_dir(self.home.path())
            .args(arguments);
        Ended::of(command).await
    }

    async fn fetch(&self) -> Ended {
        self.pixwarden(&["models", "fetch", "hf://owner/name", "--log", "trace"]).await
    }

    /// The names in the folder that a package is fetched to.
    fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.home.path().join("models/name")) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

async fn listen(server: &'static str, state: Arc<Mutex<State>>, storage: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("http://{}", listener.local_addr().unwrap());
    drop(tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (state, storage) = (Arc::clone(&state), storage.clone());
            drop(tokio::spawn(async move {
                // A client that has had enough closes the connection; that is what some tests are about.
                drop(serve(server, client, &state, &storage).await);
            }));
        }
    }));
    own
}

async fn serve(
    server: &'static str,
    mut client: TcpStream,
    state: &Mutex<State>,
    storage: &str,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split_whitespace().nth(1).unwrap().to_owned();
    // Names of headers may be written in any case.
    let head = head.to_lowercase();
    let (answer, body, cut) = {
        let mut state = state.lock().unwrap();
        state.requests.push((server, path.clone(), head.clone()));
        answer(server, &path, &head, &mut state, storage)
    };
    client.write_all(answer.as_bytes()).await?;
    client.write_all(&body[..cut.map_or(body.len(), |(at, _)| at.min(body.len()))]).await?;
    if let Some((_, Flaw::Stall)) = cut {
        // Open and silent, until the client has had enough.
        while client.read(&mut [0; 64]).await? > 0 {}
    }
    client.shutdown().await
}

/// Head and body of an answer, and where the body is cut.
fn answer(
    server: &str,
    path: &str,
    head: &str,
    state: &mut State,
    storage: &str,
) -> (String, Vec<u8>, Option<(usize, Flaw)>) {
    let whole = |status: &str, headers: &str, body: Vec<u8>| {
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        (head, body, None)
    };
    if path.starts_with("/api/models/owner/name/revision/") {
        return match state.refuses {
            Some((status, words)) => {
                whole(&format!("{status} No"), &format!("x-error-message: {words}\r\n"), Vec::new())
            }
            None => whole("200 OK", "", listing(state).to_string().into_bytes()),
        };
    }
    let prefix = if server == "hub" { format!("/owner/name/resolve/{COMMIT}/") } else { "/blobs/".into() };
    let Some(name) = path.strip_prefix(&prefix).map(|name| name.split('?').next().unwrap().to_owned()) else {
        return whole("404 Not Found", "", Vec::new());
    };
    let Some(mut bytes) = state.files.get(&name).cloned() else { return whole("404 Not Found", "", Vec::new()) };
    if server == "hub" && bytes.len() >= LARGE {
        let location = format!("location: {storage}/blobs/{name}?signature=s\r\n");
        return whole("302 Found", &location, b"see there".to_vec());
    }
    let flaw = state.flaws.get(&name).copied();
    match flaw {
        Some(Flaw::BusyOnce) => {
            state.flaws.remove(&name);
            return whole("503 Service Unavailable", "", b"busy".to_vec());
        }
        Some(Flaw::CutOnce(_)) => {
            state.flaws.remove(&name);
        }
        Some(Flaw::Corrupt) => *bytes.last_mut().unwrap() ^= 1,
        Some(Flaw::TooLong) => bytes.extend(b"more"),
        _ => {}
    }
    let from = head.split("range: bytes=").nth(1).and_then(|range| range.split('-').next()?.parse::<usize>().ok());
    let from = from.filter(|_| !matches!(flaw, Some(Flaw::NoRange | Flaw::CutAlways(_))));
    let (answer, body, _) = match from {
        Some(from) => {
            let range = format!("content-range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            whole("206 Partial Content", &range, bytes[from..].to_vec())
        }
        None => whole("200 OK", "", bytes),
    };
    let cut = match flaw {
        Some(flaw @ (Flaw::CutOnce(at) | Flaw::CutAlways(at))) => Some((at, flaw)),
        Some(Flaw::Stall) => Some((body.len() / 2, Flaw::Stall)),
        _ => None,
    };
    (answer, body, cut)
}

fn listing(state: &State) -> Value {
    let mut siblings: Vec<Value> = state
        .files
        .iter()
        .map(|(name, bytes)| {
            let mut git = sha1::Sha1::new();
            git.update(format!("blob {}\0", bytes.len()));
            git.update(bytes);
            let mut file = json!({"rfilename": name, "size": bytes.len(), "blobId": hex::encode(git.finalize())});
            if bytes.len() >= LARGE {
                let sha256 = hex::encode(sha2::Sha256::digest(bytes));
                file["lfs"] = json!({"sha256": sha256, "size": bytes.len(), "pointerSize": 134});
            }
            file
        })
        .collect();
    if let Some(name) = &state.hostile {
        siblings.push(json!({"rfilename": name, "size": 1, "blobId": "0".repeat(40)}));
    }
    json!({"id": "owner/name", "sha": COMMIT, "siblings": siblings})
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is missing in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_fetched_checked_and_ready_to_be_configured() {
    let servers = Servers::with_package().await;
    let ended = servers.fetch().await.expect_ok();
    let package = ["README.md", "SHA256SUMS", "config.json", "golden.json", "golden.png", "model.onnx"];
    assert_eq!(servers.names(), package, "what a package needs and no more");

    let folder = servers.home.path().join("models/name");
    let sums =
        std::process::Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(&folder).output().unwrap();
    assert!(sums.status.success(), "{}", String::from_utf8_lossy(&sums.stderr));
    // What is printed is configuration, and pins what was fetched.
    let config = servers.home.path().join("somewhere/else/pixwarden.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    std::fs::write(&config, &ended.stdout).unwrap();
    let listed = servers.pixwarden(&["--config", config.to_str().unwrap(), "models", "list"]).await.expect_ok();
    let row: Value = serde_json::from_str(&listed.stdout).unwrap();
    let path = format!("path = {folder:?}");
    contains(&ended.stdout, &["sha256 = \"5d5ffd9c", &path, row["digest"].as_str().unwrap()]);

    let requests = servers.requests();
    for (server, path, head) in &requests {
        let has_token = head.contains(&format!("authorization: bearer {}", TOKEN.to_lowercase()));
        assert_eq!(has_token, *server == "hub", "{server} {path}\n{head}");
    }
    assert!(requests.iter().any(|(server, path, _)| *server == "storage" && path.contains("model.onnx")));
    // Nor any part of it: a client that traces what it sends cuts it into lines.
    for part in TOKEN.as_bytes().chunks(6).map(|part| std::str::from_utf8(part).unwrap()) {
        assert!(!ended.stderr.contains(part) && !ended.stdout.contains(part), "{part}: {}", ended.stderr);
    }

    // What is there and right is not fetched again.
    servers.fetch().await.expect_ok();
    assert_eq!(servers.requests().len(), 1, "the listing alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_download_is_resumed() {
    let servers = Servers::with_package().await;
    servers.flaw("model.onnx", Some(Flaw::CutOnce(1_000_000)));
    servers.flaw("config.json", Some(Flaw::BusyOnce));
    servers.fetch().await.expect_ok();
    let heads: Vec<_> = servers.requests().into_iter().filter(|(server, ..)| *server == "storage").collect();
    assert_eq!(heads.len(), 2);
    contains(&heads[1].2, &["range: bytes=1000000-"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_command_is_completed_by_the_next() {
    let servers = Servers::with_package().await;
    servers.flaw("model.onnx", Some(Flaw::CutAlways(700_000)));
    let ended = servers.fetch().await;
    assert_eq!(ended.status, 1);
    contains(&ended.stderr, &["error: ", "model.onnx", "the same command continues from there"]);
    let names = servers.names();
    assert!(!names.contains(&"model.onnx".to_owned()), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("model.onnx.") && name.ends_with(".part")), "{names:?}");

    servers.flaw("model.onnx", None);
    servers.requests();
    servers.fetch().await.expect_ok();
    let requests = servers.requests();
    let model: Vec<_> = requests.iter().filter(|(server, ..)| *server == "storage").collect();
    assert_eq!(model.len(), 1);
    contains(&model[0].2, &["range: bytes=700000-"]);
    assert!(servers.names().iter().all(|name| !name.ends_with(".part")), "{:?}", servers.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_resume_sends_the_whole_file_again() {
    let servers = Servers::with_package().await;
    servers.flaw("model.onnx", Some(Flaw::CutAlways(700_000)));
    assert_eq!(servers.fetch().await.status, 1);
    servers.flaw("model.onnx", Some(Flaw::NoRange));
    servers.fetch().await.expect_ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_part_of_an_earlier_download_is_discarded() {
    let servers = Servers::with_package().await;
    servers.flaw("model.onnx", Some(Flaw::CutAlways(700_000)));
    assert_eq!(servers.fetch().await.status, 1);
    let part = servers.names().into_iter().find(|name| name.ends_with(".part")).unwrap();
    std::fs::write(servers.home.path().join("models/name").join(part), vec![7; 500_000]).unwrap();
    servers.flaw("model.onnx", None);
    servers.fetch().await.expect_ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupted_bytes_never_look_like_a_file() {
    for (name, flaw, words) in [
        ("model.onnx", Flaw::Corrupt, "its SHA-256 is"),
        ("config.json", Flaw::Corrupt, "its git's SHA-1 is"),
        ("model.onnx", Flaw::TooLong, "longer than the 3121377 bytes"),
    ] {
        let servers = Servers::with_package().await;
        servers.flaw(name, Some(flaw));
        let ended = servers.fetch().await;
        assert_eq!(ended.status, 1);
        contains(&ended.stderr, &[name, words, "the download was deleted"]);
        assert!(servers.names().iter().all(|other| !other.starts_with(name)), "{:?}", servers.names());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_to_do() {
    let servers = Servers::with_package().await;
    for (status, said, words) in [
        (401, "Invalid credentials", ["denied access (401, \"Invalid credentials\")", "HF_TOKEN"]),
        (403, "Access to model is restricted", ["denied access (403", "accept the model's terms"]),
        (404, "Invalid rev id: main", ["404, \"Invalid rev id: main\"", "check owner, name and revision"]),
    ] {
        servers.state.lock().unwrap().refuses = Some((status, said));
        let ended = servers.fetch().await;
        assert_eq!(ended.status, 1);
        contains(&ended.stderr, &words);
        assert!(servers.names().is_empty());
    }
    let usage = servers.pixwarden(&["models", "fetch", "owner/name"]).await;
    assert_eq!(usage.status, 2);
    contains(&usage.stderr, &["hf://owner/name@revision"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_outside_the_folder() {
    let servers = Servers::with_package().await;
    for name in ["../evil", "/tmp/evil", "a/../../evil", "..\\evil"] {
        servers.state.lock().unwrap().hostile = Some(name.into());
        let ended = servers.fetch().await;
        assert_eq!(ended.status, 1, "{name}");
        contains(&ended.stderr, &["leads out of the folder", "nothing was downloaded"]);
        assert!(servers.names().is_empty(), "{name}: {:?}", servers.names());
    }
    // A link within the folder leads nowhere either.
    servers.state.lock().unwrap().hostile = None;
    let model = servers.state.lock().unwrap().files.remove("model.onnx").unwrap();
    servers.file("onnx/model.onnx", model);
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(servers.home.path().join("models/name")).unwrap();
    std::os::unix::fs::symlink(outside.path(), servers.home.path().join("models/name/onnx")).unwrap();
    assert_eq!(servers.fetch().await.status, 1);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_file_is_not_overwritten() {
    let servers = Servers::with_package().await;
    std::fs::create_dir_all(servers.home.path().join("models/name")).unwrap();
    let readme = servers.home.path().join("models/name/README.md");
    std::fs::write(&readme, "mine").unwrap();
    let ended = servers.fetch().await;
    assert_eq!(ended.status, 1);
    contains(&ended.stderr, &["README.md exists with other content", "--to"]);
    assert_eq!(std::fs::read_to_string(readme).unwrap(), "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_in_other_files_are_downloaded_too() {
    // ModelProto.graph { initializer { name: "w", data_location: EXTERNAL, external_data { "location", "weights.bin" } } }
    let entry = b"\x0a\x08location\x12\x0bweights.bin";
    let tensor = [&b"\x42\x01w\x70\x01\x6a\x17"[..], entry].concat();
    let model = [&b"\x3a\x20\x2a\x1e"[..], &tensor].concat();
    let servers = Servers::new().await;
    servers.file("onnx/model.onnx", model);
    servers.file("config.json", br#"{"label_names": ["a", "b"], "input_size": [3, 8, 8]}"#.to_vec());
    let missing = servers.fetch().await;
    assert_eq!(missing.status, 1);
    contains(&missing.stderr, &["keeps tensors in \"weights.bin\"", "no onnx/weights.bin"]);
    servers.file("onnx/weights.bin", vec![1; LARGE]);
    let ended = servers.fetch().await.expect_ok();
    contains(&ended.stdout, &["[[detectors]]"]);
    assert_eq!(std::fs::read(servers.home.path().join("models/name/onnx/weights.bin")).unwrap(), vec![1; LARGE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_file_of_a_repository_is_downloaded_on_request() {
    let servers = Servers::with_package().await;
    let model = servers.state.lock().unwrap().files.remove("model.onnx").unwrap();
    servers.file("onnx/model_quantized.onnx", model);
    servers.file("processor_config.json", br#"{"processor_class": "Other"}"#.to_vec());
    let refused = servers.fetch().await;
    assert_eq!(refused.status, 1);
    contains(
        &refused.stderr,
        &["has no model.onnx or", "but onnx/model_quantized.onnx", "--file onnx/model_quantized.onnx"],
    );
    assert!(servers.names().is_empty());

    let fetch = ["models", "fetch", "hf://owner/name@v1", "--file", "onnx/model_quantized.onnx"];
    let ended = servers.pixwarden(&fetch).await.expect_ok();
    contains(&ended.stdout, &["[[detectors]]", "file = \"onnx/model_quantized.onnx\"", "sha256 = "]);
    let folder = servers.home.path().join("models/name");
    assert!(folder.join("onnx/model_quantized.onnx").is_file() && folder.join("processor_config.json").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_of_pytorch_are_downloaded_on_request() {
    let servers = Servers::new().await;
    servers.file("synthetic.pt", vec![3; LARGE]);
    servers.file("README.md", b"# Card".to_vec());
    servers.file("images/example.png", b"no weights".to_vec());
    let ended = servers.fetch().await;
    assert_eq!(ended.status, 1);
    contains(&ended.stderr, &["has no ONNX model", "--raw", "models/convert.py"]);
    servers.pixwarden(&["models", "fetch", "hf://owner/name@v1", "--raw"]).await.expect_ok();
    assert_eq!(servers.names(), ["README.md", "SHA256SUMS", "synthetic.pt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_stalls_ends_with_an_error() {
    let servers = Servers::with_package().await;
    servers.flaw("model.onnx", Some(Flaw::Stall));
    let endpoint = servers.endpoint.clone();
    let folder = servers.home.path().to_owned();
    let (error, took) = tokio::task::spawn_blocking(move || {
        let mut settings =
            Settings::from_environment(|name| (name == "HF_ENDPOINT").then(|| endpoint.clone())).unwrap();
        (settings.stall, settings.attempts) = (Duration::from_millis(300), 1);
        let hub = Hub::new(settings).unwrap();
        let listing = hub.list(&"hf://owner/name".parse::<Repository>().unwrap()).unwrap();
        let model = listing.files.iter().find(|file| file.path.ends_with("model.onnx")).unwrap();
        let since = Instant::now();
        let folder = DownloadFolder::open(&folder).unwrap();
        (hub.fetch(&listing, model, &folder, &mut |_| ()).unwrap_err().to_string(), since.elapsed())
    })
    .await
    .unwrap();
    contains(&error, &["model.onnx", "timeout"]);
    assert!(took < Duration::from_secs(10), "{took:?}");
}
