//! A detector's self-test at start: its golden image, on the device that will be used.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Ended, Lab, fixtures, service};

/// The package `spread-nhwc` with a golden image. If `swapped`, its model is replaced by one that reads red as blue.
fn package(at: &Path, swapped: bool) -> PathBuf {
    let folder = at.join("spread-nhwc");
    if swapped {
        let script = "
import sys, pathlib
from reference import detectors
detectors.planted()['swapped channels'].write(pathlib.Path(sys.argv[1]))
";
        let made = std::process::Command::new(service("TEST_PYTHON"))
            .args(["-c", script])
            .arg(at)
            .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    } else {
        std::fs::create_dir(&folder).unwrap();
        for file in ["config.json", "model.onnx"] {
            std::fs::copy(fixtures().join("detectors/spread-nhwc").join(file), folder.join(file)).unwrap();
        }
    }
    std::fs::copy(image(), folder.join("golden.png")).unwrap();
    // The scores of the reference, as the converter stores them.
    let golden = json!({"image": "golden.png", "scores": expected()["scores"]["spread-nhwc"]});
    std::fs::write(folder.join("golden.json"), golden.to_string()).unwrap();
    folder
}

/// The reference's line about a fixture, with its scores.
fn expected() -> Value {
    let lines = std::fs::read_to_string(fixtures().join("expected.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.into_iter().find(|line| line["format"] == "png" && line["frames"] == 1).unwrap()
}

fn image() -> PathBuf {
    fixtures().join(expected()["file"].as_str().unwrap())
}

/// Runs a command that needs no service.
async fn run(folder: &Path, arguments: &[&str]) -> Ended {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pixwarden"));
    command.env_clear().env("ORT_DYLIB_PATH", service("ORT_DYLIB_PATH")).current_dir(folder).args(arguments);
    Ended::of(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detector_that_scores_as_its_package_says_passes_its_self_test() {
    let folder = tempfile::tempdir().unwrap();
    let path = package(folder.path(), false);
    let (path, image) = (path.to_str().unwrap(), image());
    let ended = run(folder.path(), &["scan", "--detector", path, image.to_str().unwrap()]).await.expect_ok();
    assert!(ended.stderr.contains("golden image agrees within"), "{}", ended.stderr);

    let check = run(folder.path(), &["models", "check", "--detector", path]).await.expect_ok();
    let row: Value = serde_json::from_str(&check.stdout).unwrap();
    assert_eq!(
        (&row["device"], &row["proved"], &row["labels"]),
        (&json!("CPU"), &json!(true), &json!(["by human", "by AI"]))
    );
    // The reference's tolerance, which is far below that of the self-test.
    assert!(row["deviation"].as_f64().unwrap() <= 0.005, "{row}");
    let model = std::fs::read(Path::new(path).join("model.onnx")).unwrap();
    assert_eq!(row["model_sha256"], json!(hex::encode(<sha2::Sha256 as sha2::Digest>::digest(model))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_model_refuses_to_start_and_the_error_names_the_figure() {
    let lab = Lab::new().await;
    let path = package(lab.folder.path(), true);
    let path = path.to_str().unwrap();
    let image = image();
    for arguments in [&["worker"][..], &["scan", image.to_str().unwrap()], &["models", "check"]] {
        let ended = lab.run(&[arguments, &["--log", "off", "--detector", path]].concat()).await;
        assert_eq!(ended.status, 1, "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        for part in ["error: detector spread-nhwc on CPU", "scores 0.", "golden.json has 0.", "tolerance 0.02", "hint:"]
        {
            assert!(ended.stderr.contains(part), "\"{part}\" is missing in:\n{}", ended.stderr);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_lists_failed_detectors_beside_those_that_pass() {
    let folder = tempfile::tempdir().unwrap();
    let (swapped, broken) = (package(folder.path(), true), folder.path().join("broken"));
    std::fs::create_dir(&broken).unwrap();
    let untested = fixtures().join("detectors/multi");
    let paths = [&broken, &swapped, &untested].map(|path| path.to_str().unwrap());
    let ended = run(
        folder.path(),
        &["models", "check", "--detector", paths[0], "--detector", paths[1], "--detector", paths[2]],
    )
    .await;
    assert_eq!(ended.status, 1, "{}", ended.stderr);
    let rows: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 3);
    assert!(rows[0]["error"].as_str().unwrap().contains("neither model.onnx nor"), "{}", rows[0]);
    assert!(rows[1]["error"].as_str().unwrap().contains("golden.json has"), "{}", rows[1]);
    assert_eq!(
        (&rows[2]["name"], &rows[2]["proved"], &rows[2]["error"]),
        (&json!("multi"), &json!(false), &Value::Null)
    );
    assert_eq!(ended.stderr.matches("error: detector").count(), 2, "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_without_a_golden_image_is_told_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = package(folder.path(), false);
    for file in ["golden.png", "golden.json"] {
        std::fs::remove_file(path.join(file)).unwrap();
    }
    let check = ["models", "check", "--log", "off", "--detector", path.to_str().unwrap()];
    let without = run(folder.path(), &check).await.expect_ok();
    assert!(without.stdout.contains("\"proved\":false"), "{}", without.stdout);
    assert!(without.stderr.contains("hint: `pixwarden models check --write-golden IMAGE`"), "{}", without.stderr);

    let image = image();
    let write = [&check[..], &["--write-golden", image.to_str().unwrap()]].concat();
    let written = run(folder.path(), &write).await.expect_ok();
    assert!(written.stdout.contains("\"proved\":true") && written.stderr.is_empty(), "{}", written.stderr);
    // The scores are those of the reference, which this program agrees with.
    let golden: Value = serde_json::from_slice(&std::fs::read(path.join("golden.json")).unwrap()).unwrap();
    for (label, score) in expected()["scores"]["spread-nhwc"].as_object().unwrap() {
        assert!((score.as_f64().unwrap() - golden["scores"][label].as_f64().unwrap()).abs() <= 0.005, "{golden}");
    }
    let again = run(folder.path(), &write).await;
    assert_eq!(again.status, 1, "{}", again.stderr);
    assert!(again.stderr.contains("hint: if it is wrong, delete golden.json"), "{}", again.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bundled_detector_is_found_from_any_working_directory() {
    let folder = tempfile::tempdir().unwrap();
    let listed = run(folder.path(), &["models", "list"]).await.expect_ok();
    assert!(listed.stdout.contains("\"name\":\"cifake-32\""), "{}", listed.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_golden_image_has_no_part_in_the_digest_and_a_broken_one_is_refused_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = package(folder.path(), false);
    let list = ["models", "list", "--detector", path.to_str().unwrap()];
    let with = run(folder.path(), &list).await.expect_ok().stdout;
    std::fs::remove_file(path.join("golden.png")).unwrap();
    let ended = run(folder.path(), &list).await;
    assert_eq!(ended.status, 2);
    assert!(ended.stderr.contains("`image` in golden.json: cannot read golden.png"), "{}", ended.stderr);
    std::fs::remove_file(path.join("golden.json")).unwrap();
    assert_eq!(run(folder.path(), &list).await.expect_ok().stdout, with);
}
