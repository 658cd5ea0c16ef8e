//! What was erased does not come back, a legal hold keeps it, and a removed object is marked.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use pixwarden::job::Lane;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::backfill::backfill;
use crate::support::{Lab, good_image, judged_fixtures};

/// Every row of every table as text.
async fn dump(lab: &Lab) -> String {
    let query = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'";
    let tables: Vec<String> = sqlx::query_scalar(query).fetch_all(&lab.db).await.unwrap();
    let mut all = String::new();
    for table in tables {
        let query = format!("SELECT coalesce(string_agg(row::text, E'\\n'), '') FROM {table} AS row");
        all += &sqlx::query_scalar::<_, String>(AssertSqlSafe(query)).fetch_one(&lab.db).await.unwrap();
    }
    all
}

async fn reply_queue(channel: &Channel, lab: &Lab) -> String {
    let queue = format!("replies-{}", lab.prefix);
    channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
    queue
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_comes_back_by_no_redelivery_and_no_backfill_and_a_new_picture_is_screened() {
    let lab = Lab::new().await;
    let flagged = judged_fixtures().into_iter().find(|fixture| fixture.outcome == "flagged").unwrap().bytes;
    lab.put("private/anna.jpg", flagged.clone()).await;
    lab.put("kept.jpg", good_image()).await;
    let image = format!("s3://{}/private/anna.jpg", lab.bucket);
    let mut worker = lab.started_worker().await;
    let job = json!({"image": image, "metadata": {"user": "anna-4711"}});
    lab.job(Lane::Live, job.clone()).await;
    lab.job(Lane::Live, json!({"image": format!("s3://{}/kept.jpg", lab.bucket)})).await;
    lab.until("SELECT count(*) FROM verdicts", 2, &worker).await;
    lab.until_settled(&worker).await;
    let sha256: String = sqlx::query_scalar("SELECT encode(sha256, 'hex') FROM verdicts WHERE key LIKE 'private/%'")
        .fetch_one(&lab.db)
        .await
        .unwrap();
    let before = dump(&lab).await;
    let words = ["anna.jpg", "anna-4711", sha256.as_str()];
    assert!(words.iter().all(|word| before.contains(word)));

    // Without a terminal it needs --yes, and a dry run counts.
    assert_eq!(lab.run(&["erase", "--image", &image]).await.status, 2);
    let counted = lab.run(&["erase", "--image", &image, "--dry-run"]).await.expect_ok();
    assert!(counted.stderr.contains("1 verdict would be erased"), "{}", counted.stderr);
    let erased = lab.run(&["erase", "--metadata", "user=anna-4711", "--yes"]).await.expect_ok();
    assert!(erased.stdout.contains(r#"{"table":"verdicts","deleted":1}"#), "{}", erased.stdout);
    let nothing = lab.run(&["erase", "--image", &image, "--yes"]).await.expect_ok();
    assert!(nothing.stderr.contains("has no verdict on s3://"), "{}", nothing.stderr);

    // The same job again, with an answer; another one; and a backfill.
    let replies = reply_queue(&lab.channel, &lab).await;
    let properties = BasicProperties::default().with_reply_to(replies.as_str().into());
    lab.publish(Lane::Live, job.to_string(), properties).await;
    let (reply, _) = lab.next(&replies).await;
    assert_eq!(reply["error"]["code"], "erased", "{reply}");
    lab.job(Lane::Live, json!({"id": "another", "image": image})).await;
    lab.until_settled(&worker).await;
    let source = format!("s3://{}/", lab.bucket);
    let found = backfill(&lab, &[&source]).await;
    assert_eq!((found.met, found.screened, found.published), (2, 1, 0), "{found:?}");
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 1);
    assert_eq!(lab.drain(&lab.topology.dead()).await.len(), 0);
    let settled = worker.get("/metrics").await.1;
    assert!(settled.contains(r#"pixwarden_deliveries_total{lane="live",settlement="erased"} 2"#), "{settled}");
    let export = lab.run(&["export", "--lag", "0s"]).await.expect_ok().stdout;
    let after = dump(&lab).await;
    for word in words {
        assert!(!after.contains(word) && !export.contains(word), "{word} is left");
    }
    let log = std::fs::read_to_string(lab.folder.path().join("worker.log")).unwrap();
    let line = log.lines().find(|line| line.contains("because that was erased")).unwrap();
    assert!(words.iter().all(|word| !line.contains(word)), "{line}");

    // Another picture at this place is a new image, by a job and by a backfill.
    lab.put("private/anna.jpg", good_image()).await;
    lab.job(Lane::Live, json!({"image": image})).await;
    lab.until("SELECT count(*) FROM verdicts WHERE key LIKE 'private/%' AND outcome = 'passed'", 1, &worker).await;
    // And so is the erased one at another place.
    lab.put("elsewhere.jpg", flagged).await;
    assert_eq!(backfill(&lab, &[&source]).await.published, 1);
    lab.until("SELECT count(*) FROM verdicts WHERE key = 'elsewhere.jpg' AND outcome = 'flagged'", 1, &worker).await;
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_refuses_erase_and_prune_leaves_what_it_holds() {
    let lab = Lab::new().await;
    let mut worker = lab.started_worker().await;
    for key in ["a.jpg", "b.jpg"] {
        lab.put(key, good_image()).await;
        let image = format!("s3://{}/{key}", lab.bucket);
        lab.job(Lane::Live, json!({"image": image, "metadata": {"user": 7}})).await;
    }
    lab.until("SELECT count(*) FROM verdicts", 2, &worker).await;
    assert!(worker.terminate().await.success());
    let image = format!("s3://{}/a.jpg", lab.bucket);
    let add = ["hold", "add", "--image", &image, "--reference", "case 12", "--until", "2099-01-01"];
    let added: Value = serde_json::from_str(&lab.run(&add).await.expect_ok().stdout).unwrap();
    assert_eq!((&added["subject"], &added["until"]), (&json!(image), &json!("2099-01-01T00:00:00Z")));

    // Nothing is erased, also not what is not held.
    for dry_run in ["--yes", "--dry-run"] {
        let refused = lab.run(&["erase", "--metadata", "user=7", dry_run]).await;
        assert_eq!(refused.status, 1, "{}", refused.stderr);
        for words in ["\"case 12\" until 2099-01-01T00:00:00Z", "nothing was erased", "hint: `pixwarden hold release "]
        {
            assert!(refused.stderr.contains(words), "{}", refused.stderr);
        }
    }
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 2);
    let pruned = lab.run(&["prune", "--until", "2099-01-01", "--yes"]).await.expect_ok();
    let words = "1 verdict deleted; 1 stays, because it is under a legal hold";
    assert!(pruned.stderr.contains(words), "{}", pruned.stderr);

    let listed: Value = serde_json::from_str(&lab.run(&["hold", "list"]).await.expect_ok().stdout).unwrap();
    assert_eq!((&listed["id"], &listed["state"]), (&added["id"], &json!("holds")));
    let id = added["id"].as_str().unwrap();
    lab.run(&["hold", "release", id]).await.expect_ok();
    assert_eq!(lab.run(&["hold", "release", id]).await.status, 1);
    lab.run(&["erase", "--metadata", "user=7", "--yes"]).await.expect_ok();
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_removal_of_an_object_is_shown_and_a_newer_upload_is_not_marked() {
    let lab = Lab::new().await;
    let mut worker = lab.started_worker().await;
    lab.put("a b.jpg", good_image()).await;
    let image = format!("s3://{}/a b.jpg", lab.bucket);
    lab.job(Lane::Live, json!({"id": "job", "image": image})).await;
    lab.until("SELECT count(*) FROM verdicts WHERE object_at IS NOT NULL", 1, &worker).await;
    let query = "SELECT object_at FROM verdicts";
    let object_at: time::OffsetDateTime = sqlx::query_scalar(query).fetch_one(&lab.db).await.unwrap();
    let age = time::OffsetDateTime::now_utc() - object_at;
    assert!(age.abs() < time::Duration::minutes(5), "{object_at}");
    let text = |at: time::OffsetDateTime| at.format(&time::format_description::well_known::Rfc3339).unwrap();
    let removal = |at: time::OffsetDateTime| {
        json!({"Records": [{"eventName": "ObjectRemoved:Delete", "eventTime": text(at),
            "s3": {"bucket": {"name": lab.bucket}, "object": {"key": "a+b.jpg"}}}]})
    };
    // The object was stored after this removal: it was uploaded again.
    lab.job(Lane::Live, removal(object_at - time::Duration::SECOND)).await;
    lab.until_settled(&worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE deleted_at IS NOT NULL").await, 0);
    let at = object_at + time::Duration::SECOND;
    lab.job(Lane::Live, removal(at)).await;
    lab.until("SELECT count(*) FROM verdicts WHERE deleted_at IS NOT NULL", 1, &worker).await;
    lab.until_settled(&worker).await;
    let settled = worker.get("/metrics").await.1;
    assert!(settled.contains(r#"pixwarden_deliveries_total{lane="live",settlement="ignored"} 2"#), "{settled}");
    assert!(worker.terminate().await.success());
    let shown: Value = serde_json::from_str(&lab.run(&["show", "job"]).await.expect_ok().stdout).unwrap();
    let exported: Value = serde_json::from_str(&lab.run(&["export", "--lag", "0s"]).await.expect_ok().stdout).unwrap();
    for row in [shown, exported] {
        assert_eq!((&row["object_at"], &row["deleted_at"]), (&json!(text(object_at)), &json!(text(at))));
    }
}
