//! A folder of files → a detector. The input is the files, one after another, with a separator between them.

use std::sync::OnceLock;

use pixwarden::detector::{DecodeSettings, Detector, PackageSource};
use tempfile::TempDir;

const SEPARATOR: &[u8] = b"\n--\n";
const FILES: [&str; 5] =
    ["config.json", "preprocessor_config.json", "golden.json", "model.onnx", "processor_config.json"];

/// Loads a package; whatever is in it, it is a detector or an error that names the folder.
pub fn load(data: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| TempDir::new_in("/dev/shm").expect("a folder in memory can be created")).path();
    let mut rest = data;
    for name in FILES {
        let end = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR).unwrap_or(rest.len());
        let file = folder.join(name);
        // An empty file stands for none, but for the model.
        if end > 0 || name == "model.onnx" {
            std::fs::write(&file, &rest[..end]).expect("a file can be written");
        } else if file.exists() {
            std::fs::remove_file(&file).expect("a file can be removed");
        }
        rest = rest.get(end + SEPARATOR.len()..).unwrap_or_default();
    }
    let decode_settings = DecodeSettings::default();
    let source =
        PackageSource { folder, name: Some("fuzzed"), file: None, sha256: None, shadow: false, decode_settings };
    match Detector::load(&source) {
        Ok(detector) => {
            assert!(!detector.labels.is_empty());
            assert!(detector.geometry.width > 0 && detector.geometry.height > 0);
            assert_eq!(detector.digest.len(), 64);
        }
        Err(error) => assert!(error.to_string().contains("detector"), "{error}"),
    }
}
