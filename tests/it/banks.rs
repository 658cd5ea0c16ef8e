//! Banks in Postgres: their versions, and the commands that write them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use pixwarden::config::SecretUrl;
use pixwarden::job::{BankKind, KnownHash, Pdq};
use pixwarden::ledger::{
    Bank, BankChanges, Banks, EntryKey, KnownEntry, MatchMark, NewBank, NewEntry, OtherEntries, Postgres, Removal,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use crate::support::{Ended, Lab, figure};

/// A hash of 32 bytes that a number names.
fn hash(number: u64) -> [u8; 32] {
    Sha256::digest(number.to_be_bytes()).into()
}

/// Lines of PDQ hashes with their type.
fn list(numbers: impl IntoIterator<Item = u64>) -> String {
    numbers.into_iter().fold(String::new(), |mut text, number| {
        writeln!(text, "pdq {}", hex::encode(hash(number))).unwrap();
        text
    })
}

impl Lab {
    async fn bank(&self, words: &[&str]) -> Ended {
        self.run(&[&["bank"], words].concat()).await
    }

    /// Imports a list from a file.
    async fn import(&self, bank: &str, text: &str, options: &[&str]) -> Ended {
        let file = self.folder.path().join(format!("{}.txt", uuid::Uuid::new_v4()));
        std::fs::write(&file, text).unwrap();
        self.bank(&[&["import", bank, file.to_str().unwrap()], options].concat()).await
    }

    async fn create_bank(&self, bank: &str) {
        self.bank(&["create", bank, "--kind", "deny"]).await.expect_ok();
    }

    /// The line of `bank list` on a bank.
    async fn listed(&self, bank: &str) -> Value {
        let listed = self.bank(&["list"]).await.expect_ok().stdout;
        let mut lines = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["name"] == bank).unwrap()
    }

    /// The lines of `bank export`, sorted.
    async fn exported(&self, bank: &str) -> Vec<String> {
        let text = self.bank(&["export", bank]).await.expect_ok().stdout;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// An import that reads from a pipe.
    fn import_from_pipe(&self, bank: &str) -> Child {
        let mut command = self.command();
        command.arg("--config").arg(self.config_of("bank")).args(["bank", "import", bank, "-"]);
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until a query returns true.
    async fn until_true(&self, query: &'static str) {
        let began = Instant::now();
        while !sqlx::query_scalar::<_, bool>(query).fetch_one(&self.db).await.unwrap() {
            assert!(began.elapsed() < Duration::from_secs(60), "not true: {query}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The ledger as the role that the commands have.
    async fn operator(&self) -> Postgres {
        Postgres::open(&SecretUrl::from(self.ledger_as("pixwarden_operator"))).await.unwrap()
    }

    /// The ledger as the role of a worker.
    async fn reader(&self) -> Postgres {
        Postgres::open(&SecretUrl::from(self.ledger_as("pixwarden_worker"))).await.unwrap()
    }
}

fn pdq_lines(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    let mut lines: Vec<String> = list(numbers).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_is_exported_and_an_entry_that_is_there_is_skipped() {
    let lab = Lab::new().await;
    let none = lab.bank(&["list"]).await.expect_ok();
    assert!(none.stdout.is_empty() && none.stderr.contains("no banks"), "{}", none.stderr);
    lab.bank(&["create", "known", "--kind", "deny", "--restricted"]).await.expect_ok();
    lab.bank(&["create", "ours", "--kind", "allow", "--disabled"]).await.expect_ok();
    let again = lab.bank(&["create", "known", "--kind", "allow"]).await;
    assert!(again.status == 1 && again.stderr.contains("there is already a bank \"known\""), "{}", again.stderr);

    let (sha256, md5) = (hex::encode(hash(7)), hex::encode(&hash(8)[..16]));
    let text = format!("{}\r\n\nsha256 {sha256}\nMD5 {md5}\npdq {}", list(0..3), hex::encode(hash(0)));
    let imported = lab.import("known", &text, &[]).await.expect_ok();
    let words = "the bank \"known\" is at version 1: 5 entries added; 1 skipped, which it has";
    assert!(imported.stderr.contains(words), "{}", imported.stderr);
    let mut expected = pdq_lines(0..3);
    expected.extend([format!("video_md5 {md5}"), format!("video_sha256 {sha256}")]);
    expected.sort();
    assert_eq!(lab.exported("known").await, expected);

    // All of it again makes no version, and the export is a list.
    let again = lab.import("known", &text, &[]).await.expect_ok();
    assert!(again.stderr.contains("at version 1: 0 entries added; 6 skipped"), "{}", again.stderr);
    lab.import("ours", &lab.bank(&["export", "known"]).await.stdout, &[]).await.expect_ok();
    assert_eq!(lab.exported("ours").await, expected);
    lab.import("ours", &md5, &["--type", "md5"]).await.expect_ok();
    let listed = lab.bank(&["list"]).await.expect_ok().stdout;
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fields = |row: &Value, names: [&str; 7]| names.map(|name| row[name].clone());
    let names = ["name", "kind", "restricted", "enabled", "version", "pdq", "md5"];
    assert_eq!(
        fields(&listed[0], names),
        [json!("known"), json!("deny"), true.into(), true.into(), 1.into(), 3.into(), 1.into()]
    );
    assert_eq!(
        fields(&listed[1], names),
        [json!("ours"), json!("allow"), false.into(), false.into(), 1.into(), 3.into(), 1.into()]
    );

    // One by one, with people's words on matches.
    let (old, new) = (format!("pdq:{}", hex::encode(hash(0))), format!("pdq:{}", hex::encode(hash(9))));
    let added = lab.bank(&["add", "known", &new, &old]).await.expect_ok();
    assert!(added.stderr.contains("at version 2: 1 entry added; 1 skipped"), "{}", added.stderr);
    let confirmed = lab.bank(&["confirm", "known", &new]).await.expect_ok();
    assert!(confirmed.stderr.contains("has 1 true and 0 false matches"), "{}", confirmed.stderr);
    let csv = lab.bank(&["export", "known", "--format", "csv"]).await.expect_ok().stdout;
    let row = csv.lines().find(|line| line.contains(&new[4..])).unwrap().to_owned();
    assert!(csv.starts_with("type,hash,metadata,entry,true_matches,false_matches,added_at\n"), "{csv}");
    let entry = row.split(',').nth(3).unwrap();
    assert!(row.contains(&format!(",{entry},1,0,20")), "{row}");
    lab.bank(&["deconfirm", "known", entry]).await.expect_ok();
    assert_eq!(lab.listed("known").await["false_matches"], 1);
    let removed = lab.bank(&["remove", "known", "--entry", entry]).await.expect_ok();
    assert!(removed.stderr.contains("at version 3: 0 entries added; 1 removed"), "{}", removed.stderr);
    // One that is not there keeps all the others.
    let missing = lab.bank(&["remove", "known", &old, &new]).await;
    assert!(
        missing.status == 1 && missing.stderr.contains(&format!("no entry with {new}; nothing")),
        "{}",
        missing.stderr
    );
    assert_eq!(lab.exported("known").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_removes_what_the_list_does_not_have_and_an_empty_list_replaces_nothing() {
    let lab = Lab::new().await;
    lab.create_bank("feed").await;
    lab.import("feed", &list(0..100), &[]).await.expect_ok();
    let replaced = lab.import("feed", &list(90..120), &["--replace"]).await.expect_ok();
    let words = "at version 2: 20 entries added; 10 skipped, which it has; 90 removed";
    assert!(replaced.stderr.contains(words), "{}", replaced.stderr);
    assert_eq!(lab.exported("feed").await, pdq_lines(90..120));
    let empty = lab.import("feed", "\n", &["--replace"]).await;
    assert!(empty.status == 1 && empty.stderr.contains("would empty the bank"), "{}", empty.stderr);
    // What was removed can come back.
    lab.import("feed", &list(0..1), &[]).await.expect_ok();
    assert_eq!(lab.listed("feed").await["pdq"], 31);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_while_it_reads_leaves_the_old_version() {
    let lab = Lab::new().await;
    lab.create_bank("feed").await;
    lab.import("feed", &list(0..3), &[]).await.expect_ok();
    let mut import = lab.import_from_pipe("feed");
    // More than two parts; the pipe stays open.
    let mut pipe = import.stdin.take().unwrap();
    pipe.write_all(list(0..45_000).as_bytes()).await.unwrap();
    pipe.flush().await.unwrap();
    lab.until_true("SELECT coalesce(sum(pg_relation_size(oid)), 0) > 3000000 FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'").await;
    // Another writer of the bank does not wait for it.
    lab.bank(&["add", "feed", &format!("pdq:{}", hex::encode(hash(9)))]).await.expect_ok();
    import.kill().await.unwrap();
    drop(pipe);
    lab.until_true("SELECT NOT EXISTS (SELECT FROM pg_class WHERE relpersistence = 't')").await;
    assert_eq!(lab.listed("feed").await["version"], 2);
    assert_eq!(lab.exported("feed").await, pdq_lines([0, 1, 2, 9]));
    assert_eq!(lab.count("SELECT count(*) FROM bank_entries").await, 4, "nothing is left of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_while_it_writes_leaves_the_old_version() {
    let lab = Lab::new().await;
    lab.create_bank("feed").await;
    lab.import("feed", &list(0..3), &[]).await.expect_ok();
    // An entry that sorts behind all others. The import waits for this transaction when it has written them.
    let mut other = lab.db.begin().await.unwrap();
    let last = [0xff; 32];
    let insert = "INSERT INTO bank_entries (bank, added, kind, hash) SELECT id, 2, 1, $1 FROM banks";
    sqlx::query(insert).bind(last.to_vec()).execute(&mut *other).await.unwrap();
    let mut import = lab.import_from_pipe("feed");
    let mut pipe = import.stdin.take().unwrap();
    let text = format!("{}pdq {}\n", list(10..2_000), hex::encode(last));
    pipe.write_all(text.as_bytes()).await.unwrap();
    drop(pipe);
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO bank_entries%')";
    lab.until_true(waits).await;
    import.kill().await.unwrap();
    other.rollback().await.unwrap();
    lab.until_true("SELECT NOT EXISTS (SELECT FROM pg_class WHERE relpersistence = 't')").await;
    assert_eq!(lab.listed("feed").await["version"], 1);
    assert_eq!(lab.exported("feed").await, pdq_lines(0..3));
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_into_one_bank_follow_each_other() {
    let lab = Lab::new().await;
    lab.create_bank("feed").await;
    let texts: Vec<String> = (0..4).map(|part| list(part * 1_500..part * 1_500 + 2_000)).collect();
    let imports = texts.iter().map(|text| lab.import("feed", text, &[]));
    let mut versions = BTreeSet::new();
    for ended in futures_util::future::join_all(imports).await {
        let ended = ended.expect_ok();
        let (_, version) = ended.stderr.split_once("at version ").unwrap();
        versions.insert(version.split(':').next().unwrap().to_owned());
    }
    assert_eq!(versions.len(), 4, "each makes its own version: {versions:?}");
    assert_eq!(lab.exported("feed").await, pdq_lines(0..6_500));
    assert_eq!(lab.listed("feed").await["version"], 4);
    assert_eq!(lab.count("SELECT count(DISTINCT added) FROM bank_entries WHERE added BETWEEN 1 AND 4").await, 4);
}

/// The entries of a version by their ids.
async fn entries(banks: &Postgres, bank: &Bank, version: i64) -> BTreeMap<i64, KnownHash> {
    let pages: Vec<Vec<KnownEntry>> = banks.entries_of(bank.id, version).try_collect().await.unwrap();
    pages.into_iter().flatten().map(|entry| (entry.id, entry.hash)).collect()
}

fn new_entries(numbers: impl IntoIterator<Item = u64>) -> Vec<NewEntry> {
    let entry =
        |number| NewEntry { hash: KnownHash::Pdq(Pdq(hash(number))), metadata: Some(json!({"number": number})) };
    numbers.into_iter().map(entry).collect()
}

async fn bank_of(banks: &Postgres, name: &str) -> Bank {
    banks.bank_versions().await.unwrap().into_iter().find(|bank| bank.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_since_any_version_give_exactly_what_a_full_load_gives() {
    let lab = Lab::new().await;
    let (writer, reader) = (lab.operator().await, lab.reader().await);
    let new = |name: &str| NewBank { name: name.into(), kind: BankKind::Deny, restricted: false, enabled: true };
    // Entries of another bank are in between.
    for name in ["feed", "other"] {
        assert!(writer.create_bank(&new(name)).await.unwrap());
    }
    let bank = bank_of(&reader, "feed").await;
    let (mut model, mut versions) = (BTreeSet::new(), vec![BTreeMap::new()]);
    for step in 0..24u64 {
        writer.add_entries("other", &new_entries([step])).await.unwrap();
        let version = match step % 4 {
            // A few are there already.
            0 => {
                let numbers: Vec<u64> = (step * 10..step * 10 + 25).collect();
                model.extend(numbers.iter().copied());
                writer.add_entries("feed", &new_entries(numbers)).await.unwrap().unwrap().version
            }
            1 | 3 => {
                let gone: Vec<u64> = model.iter().copied().filter(|number| number % 7 == step % 7).collect();
                model.retain(|number| !gone.contains(number));
                let keys: Vec<_> =
                    gone.iter().map(|number| EntryKey::Hash(KnownHash::Pdq(Pdq(hash(*number))))).collect();
                match writer.remove_entries("feed", &keys).await.unwrap().unwrap() {
                    Removal::Done(written) => written.version,
                    Removal::Missing(missing) => panic!("{missing:?}"),
                }
            }
            _ => {
                // What was removed comes back under another number.
                let numbers: Vec<u64> = (step * 5..step * 5 + 60).collect();
                model = numbers.iter().copied().collect();
                let mut import = writer.begin_import().await.unwrap();
                import.gather(&new_entries(numbers[..30].iter().copied())).await.unwrap();
                import.gather(&new_entries(numbers[30..].iter().copied())).await.unwrap();
                import.commit("feed", OtherEntries::Remove).await.unwrap().unwrap().version
            }
        };
        let loaded = entries(&reader, &bank, version).await;
        let expected: BTreeSet<_> = model.iter().map(|number| KnownHash::Pdq(Pdq(hash(*number)))).collect();
        assert_eq!(loaded.values().copied().collect::<BTreeSet<_>>(), expected, "step {step}");
        assert_eq!(loaded.len(), expected.len());
        if version == i64::try_from(versions.len()).unwrap() {
            versions.push(loaded);
        }
        assert_eq!(version, i64::try_from(versions.len()).unwrap() - 1, "versions grow by one");
        assert_eq!(bank_of(&reader, "feed").await.version, version);
    }
    assert!(versions.len() > 15, "{}", versions.len());
    // Every version can still be read, and from each one the changes lead to the newest.
    let newest = versions.len() - 1;
    for (version, loaded) in versions.iter().enumerate() {
        let since = i64::try_from(version).unwrap();
        assert_eq!(&entries(&reader, &bank, since).await, loaded, "version {version}");
        let changes = reader.changes_since(bank.id, since).await.unwrap().unwrap();
        let BankChanges { version: now, added, removed } = changes;
        assert_eq!(now, i64::try_from(newest).unwrap());
        let mut entries = loaded.clone();
        for id in removed {
            assert!(entries.remove(&id).is_some(), "an entry that version {version} does not have was removed");
        }
        for entry in added {
            assert_eq!(entries.insert(entry.id, entry.hash), None, "an entry that version {version} has was added");
        }
        assert_eq!(entries, versions[newest], "from version {version}");
    }
    // A reader that began before a change does not see it.
    let before = reader.entries_of(bank.id, i64::try_from(newest).unwrap());
    writer.add_entries("feed", &new_entries([1_000_000])).await.unwrap();
    let pages: Vec<Vec<KnownEntry>> = before.try_collect().await.unwrap();
    assert_eq!(pages.concat().len(), versions[newest].len());
    // A person's word makes no version, and the metadata is kept.
    let known = EntryKey::Hash(KnownHash::Pdq(Pdq(hash(1_000_000))));
    let version = bank_of(&reader, "feed").await.version;
    writer.mark_entry("feed", known, MatchMark::False).await.unwrap().unwrap();
    assert_eq!(bank_of(&reader, "feed").await.version, version);
    let listed: Vec<_> = writer.listed_entries_of(bank.id, version).try_concat().await.unwrap();
    for entry in &listed {
        let number = entry.metadata.as_ref().unwrap()["number"].as_u64().unwrap();
        assert_eq!(entry.entry.hash, KnownHash::Pdq(Pdq(hash(number))));
    }
    let last = listed.last().unwrap();
    assert_eq!((last.true_matches, last.false_matches, &last.metadata), (0, 1, &Some(json!({"number": 1_000_000}))));
    let age = time::OffsetDateTime::now_utc() - last.added_at;
    assert!(age.whole_seconds().abs() < 60, "{age}");
    // A bank that was dropped is not one of the same name.
    assert!(reader.changes_since(bank.id + 100, 0).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enabled_bank_with_entries_is_not_dropped() {
    let lab = Lab::new().await;
    lab.create_bank("feed").await;
    lab.create_bank("empty").await;
    lab.import("feed", &list(0..3), &[]).await.expect_ok();
    let refused = lab.bank(&["drop", "feed"]).await;
    assert!(refused.status == 2 && refused.stderr.contains("no terminal to ask on"), "{}", refused.stderr);
    let refused = lab.bank(&["drop", "feed", "--yes"]).await;
    assert_eq!(refused.status, 1);
    for words in ["it is enabled and has 3 entries", "pixwarden bank set feed --disabled"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    lab.bank(&["set", "feed", "--disabled", "--restricted"]).await.expect_ok();
    let listed = lab.listed("feed").await;
    assert_eq!((&listed["enabled"], &listed["restricted"]), (&json!(false), &json!(true)));
    lab.bank(&["drop", "feed", "--yes"]).await.expect_ok();
    lab.bank(&["drop", "empty", "--yes"]).await.expect_ok();
    assert_eq!(lab.count("SELECT (SELECT count(*) FROM banks) + (SELECT count(*) FROM bank_entries)").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_a_wrong_line_and_a_ledger_without_banks_are_explained() {
    let lab = Lab::new().await;
    let says = async |words: &[&str], status: i32, expected: &[&str]| {
        let ended = lab.bank(words).await;
        assert_eq!(ended.status, status, "{words:?}: {}", ended.stderr);
        for words in expected {
            assert!(ended.stderr.contains(words), "{words:?} is missing in: {}", ended.stderr);
        }
    };
    let md5 = format!("md5:{}", "0a".repeat(16));
    says(&["add", "nothing", &md5], 1, &["there is no bank \"nothing\"", "hint: there are no banks"]).await;
    lab.create_bank("one").await;
    says(&["confirm", "nothing", "7"], 1, &["hint: the only bank is \"one\""]).await;
    lab.create_bank("two").await;
    for words in [
        &["export", "nothing"][..],
        &["set", "nothing", "--enabled"],
        &["drop", "nothing", "--yes"],
        &["remove", "nothing", &md5],
        &["import", "nothing", "/dev/null"],
    ] {
        says(words, 1, &["there is no bank \"nothing\"", "hint: the banks are \"one\", \"two\""]).await;
    }
    says(&["create", "Upper", "--kind", "deny"], 2, &["lower-case letters, digits, - and _"]).await;
    says(&["add", "one", "sha1:0a"], 2, &["pdq:HEX, sha256:HEX or md5:HEX"]).await;
    says(&["confirm", "one", "7"], 1, &["the bank \"one\" has no entry with the number 7", "bank export one"]).await;
    says(&["import", "one", "not-there.txt"], 1, &["cannot open not-there.txt: no such file"]).await;
    let wrong = lab.import("one", &format!("{}xyz\n", list(0..2)), &[]).await;
    assert_eq!(wrong.status, 1);
    for words in [
        "cannot import /",
        "the bank \"one\" stays as it was: line 3: \"xyz\" is neither a PDQ hash nor a digest",
        "hint: a line is",
    ] {
        assert!(wrong.stderr.contains(words), "{}", wrong.stderr);
    }
    let bare = lab.import("one", &hex::encode(hash(1)), &[]).await;
    assert!(bare.status == 1 && bare.stderr.contains("hint: give --type pdq|sha256|md5"), "{}", bare.stderr);
    assert_eq!(lab.listed("one").await["version"], 0);

    let file = format!("sqlite://{}", lab.folder.path().join("ledger.db").display());
    lab.run(&["migrate", "--ledger", &file]).await.expect_ok();
    for words in [&["list"][..], &["create", "one", "--kind", "deny"], &["import", "one", "/dev/null"]] {
        says(&[words, &["--ledger", &file]].concat(), 2, &["banks need PostgreSQL", "hint: name a PostgreSQL"]).await;
    }
}

/// For figures TEST_BANK_ENTRIES says how many entries.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_list_is_imported_loaded_and_exported_in_seconds() {
    let entries: u64 = std::env::var("TEST_BANK_ENTRIES").map_or(100_000, |text| text.parse().unwrap());
    let lab = Lab::new().await;
    lab.create_bank("feed").await;
    let text = list(0..entries);
    let began = Instant::now();
    lab.import("feed", &text, &[]).await.expect_ok();
    figure(&format!("{entries} PDQ lines imported in {:.1} s", began.elapsed().as_secs_f64()));
    let banks = lab.reader().await;
    let bank = bank_of(&banks, "feed").await;
    let began = Instant::now();
    let mut pages = banks.entries_of(bank.id, bank.version);
    let (mut loaded, mut pages_read) = (0, 0);
    while let Some(page) = pages.try_next().await.unwrap() {
        (loaded, pages_read) = (loaded + page.len() as u64, pages_read + 1);
    }
    figure(&format!("{loaded} entries loaded in {:.1} s, {pages_read} pages", began.elapsed().as_secs_f64()));
    assert_eq!(loaded, entries, "more than one page");
    let began = Instant::now();
    let exported = lab.bank(&["export", "feed"]).await.expect_ok().stdout;
    figure(&format!("{entries} entries exported in {:.1} s", began.elapsed().as_secs_f64()));
    let mut exported: Vec<&str> = exported.lines().collect();
    exported.sort_unstable();
    assert_eq!(exported, pdq_lines(0..entries));
    let text = list(entries / 10..entries / 10 * 11);
    let began = Instant::now();
    lab.import("feed", &text, &["--replace"]).await.expect_ok();
    figure(&format!("a tenth of them replaced in {:.1} s", began.elapsed().as_secs_f64()));
    let began = Instant::now();
    let changes = banks.changes_since(bank.id, 1).await.unwrap().unwrap();
    figure(&format!(
        "{} changes read in {:.2} s",
        changes.added.len() + changes.removed.len(),
        began.elapsed().as_secs_f64()
    ));
    for relation in ["bank_entries", "bank_entries_pkey", "bank_entries_by_hash", "bank_entries_by_version"] {
        let bytes: i64 = sqlx::query_scalar("SELECT pg_relation_size(to_regclass($1))")
            .bind(relation)
            .fetch_one(&lab.db)
            .await
            .unwrap();
        let rows = i64::try_from(entries / 10 * 11).unwrap();
        figure(&format!("{relation}: {} bytes an entry", bytes / rows));
    }
}
