//! `GET /v1/detectors`: what scores images here, what its authors say of it, and the rules that judge the scores.

use std::path::Path;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::App;
use super::access::{Caller, Look};
use super::routes::Answer;
use super::screen::json_answer;

/// A card's first bytes. Its purpose and its limits are there.
const MAX_CARD_BYTES: u64 = 64 << 10;

/// All loaded detectors with their cards, and the policies that the caller is not barred from.
pub(super) async fn loaded(app: Arc<App>, caller: Caller<Look>, _request: Request) -> Answer {
    let mut detectors = Vec::new();
    for engine in app.processor.screen.engines() {
        let detector = &engine.detector;
        detectors.push(json!({
            "name": detector.name,
            "labels": detector.labels,
            "digest": detector.digest,
            "shadow": detector.shadow,
            "card": card(&detector.model).await,
        }));
    }
    let mut policies = app.processor.policies.all().collect::<Vec<_>>();
    policies.retain(|policy| caller.may_use_policy(&policy.reference.name));
    let policies = policies.into_iter().map(|policy| {
        let mut rules: Value = serde_json::from_str(&policy.canonical_text()).unwrap_or_default();
        let (name, sha256) = (&policy.reference.name, &policy.reference.sha256);
        json!({"name": name, "sha256": sha256, "rules": rules["rules"].take()})
    });
    let policies: Vec<Value> = policies.collect();
    Ok(json_answer(StatusCode::OK, json!({"detectors": detectors, "policies": policies})))
}

/// The package's `README.md`, if it has one: beside the model, or above the folder `onnx` that holds it.
async fn card(model: &Path) -> Option<String> {
    let folder = model.parent()?;
    let package = if folder.file_name().is_some_and(|name| name == "onnx") { folder.parent()? } else { folder };
    let file = tokio::fs::File::open(package.join("README.md")).await.ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_CARD_BYTES).read_to_end(&mut bytes).await.ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_card_is_found_in_both_layouts_and_is_cut_where_it_is_too_long() {
        let package = tempfile::tempdir().unwrap();
        let [plain, nested] = ["model.onnx", "onnx/model.onnx"].map(|path| package.path().join(path));
        assert_eq!(card(&plain).await, None);
        std::fs::write(package.path().join("README.md"), "# A card").unwrap();
        assert_eq!(card(&plain).await.as_deref(), Some("# A card"));
        assert_eq!(card(&nested).await.as_deref(), Some("# A card"));
        std::fs::write(package.path().join("README.md"), "x".repeat(100_000)).unwrap();
        assert_eq!(card(&plain).await.unwrap().len(), 64 << 10);
    }
}
