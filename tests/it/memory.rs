//! Memory stays bounded for any images.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use pixwarden::job::Lane;
use serde_json::json;

use crate::observe::Scrape;
use crate::support::{Lab, figure, service};

const LIMIT_BYTES: u64 = 700 << 20;
/// A debug build decodes about one in a second.
const IMAGES: i64 = 100;

/// A 24-megapixel photograph, baseline or progressive.
fn large(progressive: bool) -> Vec<u8> {
    let script = "
import io, sys
from PIL import Image
tile = Image.radial_gradient('L').resize((400, 400))
noise = Image.effect_noise((6000, 4000), 40)
image = Image.merge('RGB', [noise, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT), noise.transpose(Image.Transpose.FLIP_TOP_BOTTOM)])
image.paste(Image.merge('RGB', [tile] * 3), (100, 100))
out = io.BytesIO()
image.save(out, 'JPEG', quality=70, progressive=sys.argv[1] == 'True')
sys.stdout.buffer.write(out.getvalue())
";
    let flag = if progressive { "True" } else { "False" };
    let made = std::process::Command::new(service("TEST_PYTHON")).args(["-c", script, flag]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_images_of_24_megapixels_take_less_than_700_mb() {
    let mut lab = Lab::new().await;
    lab.extra = "[worker]\nreuse_scores = false".into();
    let (baseline, progressive) = (large(false), large(true));
    figure(&format!("24 megapixels: {} MB baseline, {} MB progressive", baseline.len() >> 20, progressive.len() >> 20));
    lab.put("baseline", baseline).await;
    lab.put("progressive", progressive).await;
    futures_util::stream::iter(0..IMAGES)
        .map(|i| {
            let key = if i % 4 == 0 { "progressive" } else { "baseline" };
            lab.job(Lane::Backfill, json!({"id": format!("j{i}"), "image": format!("s3://{}/{key}", lab.bucket)}))
        })
        .buffer_unordered(50)
        .collect::<Vec<_>>()
        .await;
    let worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts WHERE width = 6000", IMAGES, &worker).await;
    let peak = worker.peak_bytes();
    figure(&format!("peak memory over {IMAGES} images of 24 megapixels: {} MB", peak >> 20));
    assert!(peak < LIMIT_BYTES, "{} MB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_objects_are_held_than_are_decoded_and_may_arrive() {
    const JOBS: i64 = 20;
    let mut lab = Lab::new().await;
    lab.extra = "downloads = 2\n[decode]\nthreads = 1\n[worker]\nreuse_scores = false".into();
    let image = large(false);
    #[expect(clippy::cast_precision_loss, reason = "a few megabytes")]
    let bytes = image.len() as f64;
    lab.put("baseline", image).await;
    for i in 0..JOBS {
        lab.job(Lane::Live, json!({"id": format!("j{i}"), "image": format!("s3://{}/baseline", lab.bucket)})).await;
    }
    let worker = lab.started_worker().await;
    let mut most = 0.0_f64;
    let began = Instant::now();
    while lab.count("SELECT count(*) FROM verdicts").await < JOBS {
        assert!(began.elapsed() < Duration::from_secs(200), "{}", worker.log());
        let held = Scrape::of(&worker).await.sum("pixwarden_object_memory_bytes", &[]);
        most = most.max(held / bytes);
    }
    // One object is being decoded, and two wait for a decoder.
    assert!((most - 3.0).abs() < 0.1, "{most} objects were held at a time");
}
