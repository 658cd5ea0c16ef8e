//! Answers that need a queue and review are as `openapi.json` describes them. `tests/serve/openapi.py` causes the others.

use tokio::process::Command;

use crate::http::worker_with_http;
use crate::support::{Ended, Lab, good_image, service};

#[tokio::test]
async fn answers_with_queue_and_review_are_as_the_document_describes() {
    let mut lab = Lab::new().await;
    let (_worker, client) = worker_with_http(&mut lab, "").await;
    lab.put("a.png", good_image()).await;
    let mut check = Command::new(service("TEST_PYTHON"));
    check.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/openapi.py"));
    let key = client.headers[0].1.trim_start_matches("Bearer ");
    let image = format!("s3://{}/a.png", lab.bucket);
    check.args(["--worker", &format!("http://{}", client.address), key, &image]).kill_on_drop(true);
    let checked = Ended::of(check).await.expect_ok();
    assert!(checked.stdout.contains("openItems 200"), "{}", checked.stdout);
}
