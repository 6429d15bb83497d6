//! What a person types and what they get.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::servers::{Redis, free_port, kafka_brokers};

pub fn traqq() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_traqq"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TRAQQ_")) {
        command.env_remove(name);
    }
    command
}

fn run(config: &Path, arguments: &[&str]) -> Output {
    traqq().arg("--config").arg(config).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The last line of standard error: what a person reads.
fn complaint(output: &Output) -> String {
    text(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

pub fn write_config(directory: &Path, text: &str) -> PathBuf {
    let file = directory.join("traqq.toml");
    std::fs::write(&file, text).unwrap();
    file
}

const MAPPING: &str = r#"
[mapping]
bitmap = ["ip"]
add = ["event", "event~geo"]
auto_pairs = false
add_value = [{ key = "event~geo", add_key = "amount" }]
top = ["geo"]
"#;

#[test]
fn explain_prints_the_worked_example() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), &format!("[store.redis]\nprefix = \"myapp\"\n{MAPPING}"));
    let event = directory.path().join("event.json");
    std::fs::write(&event, r#"{"event":"purchase","ip":"1.2.3.4","geo":"US","amount":99.99,"ts":1700000000}"#).unwrap();
    let output = run(&config, &["explain", event.to_str().unwrap(), "--at", "2023-11-14T22:13:20Z"]);
    assert!(output.status.success(), "{}", complaint(&output));
    let shown = text(&output.stdout);
    let mut lines: Vec<&str> = shown.lines().filter(|line| !line.starts_with('#')).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "HINCRBY myapp:add:d:1699920000:event purchase 1",
            "HINCRBY myapp:add:d:1699920000:event~geo purchase~US 1",
            "HINCRBY myapp:adv:d:1699920000:amount:event~geo purchase~US 99990000",
            "HINCRBY myapp:adv:d:1699920000:amount:event~geo:i sum 99990000     (and count 1, min 99990000, max 99990000)",
            "HINCRBY myapp:adv:d:1699920000:amount:event~geo:n purchase~US 1",
            "PFADD   myapp:bmp:d:1699920000:ip 1.2.3.4",
            "SADD    myapp:k:d:1699920000 <the keys above>",
            "ZINCRBY myapp:top:d:1699920000:geo 1 US",
        ]
    );
}

#[test]
fn a_dead_letter_is_explained_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), MAPPING);
    let event = directory.path().join("event.json");
    std::fs::write(&event, "{}").unwrap();
    let output = run(&config, &["explain", event.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("no_event"), "{}", complaint(&output));
}

/// A mapping that names what events do not have was called good, and `explain` printed nothing.
#[test]
fn a_wrong_mapping_is_not_silent() {
    let directory = tempfile::tempdir().unwrap();
    let mapping =
        "[broker.kafka]\ntopics = [\"t\"]\n[mapping]\nadd = [\"events\", \"items.*.sku\"]\nauto_pairs = false\n";
    let config = write_config(directory.path(), mapping);
    let event = directory.path().join("event.json");
    std::fs::write(&event, r#"{"event":"buy","items":[{"sku":1}],"ts":1700000000}"#).unwrap();
    let output = run(&config, &["explain", event.to_str().unwrap(), "--at", "2023-11-14T22:13:20Z"]);
    let shown = text(&output.stdout);
    for part in
        ["# buy, at 2023-11-14T22:13:20Z (from ts)", "items.*.sku: no such field", "event, items (an array), ts"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("counts nowhere"), "{}", complaint(&output));

    let config = write_config(directory.path(), &mapping.replace("\"events\"", "\"event\""));
    let sample = directory.path().join("sample.ndjson");
    std::fs::write(&sample, "{\"event\":\"a\"}\n{\"name\":\"b\",\"items\":[]}\n{\"x\":1}\n").unwrap();
    let output = run(&config, &["config", "check", "--sample", sample.to_str().unwrap()]);
    let shown = text(&output.stdout);
    for part in ["2 of 2", "0 of 2", "items.*.sku: no such field (2)", "1 would be dead letters", "the event has x"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("add items.*.sku"), "{}", complaint(&output));
}

/// `TRAQQ_SERVER_TOKEN` set no token, and nobody said so.
#[test]
fn variables_near_ours_are_errors_and_others_are_warnings() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), MAPPING);
    let check = |name: &str, value: &str| {
        traqq().env(name, value).arg("--config").arg(&config).args(["config", "check"]).output().unwrap()
    };
    let output = check("TRAQQ_SERVER_TOKEN", "hush");
    let error = "error: TRAQQ_SERVER_TOKEN is set, and sets nothing: is TRAQQ_SERVER__TOKEN meant?";
    assert_eq!((complaint(&output).as_str(), output.status.code()), (error, Some(2)));
    let output = check("TRAQQ_VERSION", "1");
    assert!(output.status.success() && complaint(&output).starts_with("warning: TRAQQ_VERSION is set"));
    for (name, value) in [("TRAQQ_SERVICE_HOST", "10.0.0.1"), ("TRAQQ_PORT", "tcp://10.0.0.1:9877")] {
        let output = check(name, value);
        assert_eq!((complaint(&output).as_str(), output.status.code()), ("", Some(0)), "{name}");
    }
}

/// What our own scripts and tests set is inherited by every traqq that they start.
#[test]
fn variables_of_our_scripts_are_known() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reads = regex::Regex::new(
        r#"(?:(?:var|var_os|number)\("|environ(?:\.get\(|\[)["']|\$\{?)(TRAQQ_[A-Z]+(?:_[A-Z]+)*)\b[^_]"#,
    )
    .unwrap();
    let mut names = std::collections::BTreeSet::new();
    for place in ["tests/run", "tests/servers", "tests/chaos", "tests/page/run.py", "tests/it", "benches", "fuzz/run"] {
        let place = root.join(place);
        let files = if place.is_dir() {
            std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect()
        } else {
            vec![place]
        };
        for file in files.iter().filter(|file| file.is_file()) {
            let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
            names.extend(reads.captures_iter(&text).map(|found| found[1].to_owned()));
        }
    }
    assert!(names.len() > 8 && names.contains("TRAQQ_PYTHON") && names.contains("TRAQQ_SEED"), "{names:?}");
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), MAPPING);
    let mut command = traqq();
    command.envs(names.iter().map(|name| (name, "x"))).arg("--config").arg(&config).args(["config", "check"]);
    let output = command.output().unwrap();
    assert_eq!((complaint(&output).as_str(), output.status.code()), ("", Some(0)));
}

/// Everything that can be wrong without a server: one line that names it, exit code 2.
#[test]
fn wrong_configurations_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let topics = "[broker.kafka]\ntopics = [\"events\"]\n";
    for (config, parts) in [
        ("[worker]\nbatch_evnts = 5\n".to_owned(), &["batch_evnts", "traqq.toml"][..]),
        (format!("{topics}[buckets]\ntime_zone = \"Mars/Base\"\n{MAPPING}"), &["Mars/Base", "IANA"]),
        (format!("{topics}[mapping]\nadd = [\"a~b\", \"b~a\"]\n"), &["mapping.add", "twice"]),
        (format!("{topics}[mapping]\nadd = [\"a~\"]\n"), &["mapping.add", "empty"]),
        (topics.to_owned(), &["mapping", "empty"]),
        (format!("[broker]\nkind = \"kafka\"\n{MAPPING}"), &["broker.kafka.topics"]),
        (format!("{topics}[broker]\nkind = \"local\"\n{MAPPING}"), &["broker.kind", "remove one"]),
        (
            format!("{topics}[store]\nkind = \"embedded\"\n[store.redis]\nprefix = \"p\"\n{MAPPING}"),
            &["store.kind", "remove one"],
        ),
        (format!("[broker.local]\npartitions = 2\n{MAPPING}"), &["broker.local.partition_by"]),
        (format!("[data]\nreserve_bytes = 5\n{MAPPING}"), &["data.reserve_bytes"]),
        (format!("[data]\ndurability = \"always\"\n{MAPPING}"), &["data.durability", "every-write"]),
        (
            format!("{topics}{MAPPING}[broker.kafka.properties]\n\"enable.auto.commit\" = \"true\"\n"),
            &["enable.auto.commit", "belongs to traqq"],
        ),
        (format!("{topics}{MAPPING}[broker.kafka.properties]\n\"no.such.property\" = \"1\"\n"), &["no.such.property"]),
        (format!("{topics}{MAPPING}[store.redis]\nurl = \"http://x\"\n"), &["store.redis.url"]),
        (format!("{topics}{MAPPING}[worker]\nmemory_max_bytes = 5\n"), &["worker.memory_max_bytes"]),
        (format!("{topics}{MAPPING}[server]\nhttp = \"0.0.0.0:9877\"\n"), &["token"]),
        (format!("{topics}start = \"yesterday\"\n{MAPPING}"), &["broker.kafka.start", "earliest"]),
    ] {
        let file = write_config(directory.path(), &config);
        let output = run(&file, &["config", "check"]);
        let complaint = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{config}\n{complaint}");
        for part in parts {
            assert!(complaint.contains(part), "{part:?} is not in: {complaint}");
        }
        assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
    }
    let output = traqq().args(["--config", "no-such-file.toml", "config", "check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("no-such-file.toml"));
}

#[test]
fn config_show_names_origins_and_hides_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), "[worker]\nbatch_events = 7\n");
    let secret = directory.path().join("password");
    std::fs::write(&secret, "hunter2\n").unwrap();
    let output = traqq()
        .arg("--config")
        .arg(&config)
        .args(["--set", "worker.batch_age_ms=9", "config", "show", "--json"])
        .env("TRAQQ_STORE__REDIS__PASSWORD_FILE", &secret)
        .env("TRAQQ_WORKER__FOLD_THREADS", "3")
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    assert!(!shown.contains("hunter2"), "{shown}");
    let values: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap();
    let origin = |key: &str| {
        let value = values.iter().find(|value| value["key"] == key).unwrap_or_else(|| panic!("no {key}"));
        (value["value"].as_str().unwrap().to_owned(), value["origin"].as_str().unwrap().to_owned())
    };
    assert!(origin("worker.batch_events").1.ends_with("traqq.toml"));
    assert_eq!(origin("worker.batch_age_ms"), ("9".to_owned(), "flag".to_owned()));
    assert_eq!(origin("worker.fold_threads"), ("3".to_owned(), "environment".to_owned()));
    assert_eq!(origin("worker.batch_bytes").1, "default");
    assert_eq!(origin("store.redis.password"), ("\"********\"".to_owned(), "environment".to_owned()));
}

#[test]
fn example_configurations_are_good() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let file = entry.unwrap().path();
        let is_sidecar = file.file_stem().is_some_and(|stem| stem == "sidecar");
        let check: &[&str] = if is_sidecar { &["config", "check", "--sidecar"] } else { &["config", "check"] };
        let output = traqq().arg("--config").arg(&file).args(check).env("TRAQQ_SERVER__TOKEN", "t").output().unwrap();
        assert!(output.status.success(), "{}: {}", file.display(), complaint(&output));
        count += 1;
    }
    assert!(count >= 4);
}

#[test]
fn completions_are_printed() {
    let output = traqq().args(["completions", "bash"]).output().unwrap();
    assert!(text(&output.stdout).contains("_traqq"));
}

fn worker_config(directory: &Path, redis: &str, more: &str) -> PathBuf {
    let brokers = kafka_brokers();
    write_config(
        directory,
        &format!(
            "[broker.kafka]\nbrokers = \"{brokers}\"\ntopics = [\"no-such-topic\"]\n[store.redis]\nurl = \"{redis}\"\n\
             [server]\nhttp = \"127.0.0.1:0\"\ntcp = \"off\"\n{more}\n{MAPPING}"
        ),
    )
}

#[test]
fn a_worker_in_front_of_kafka_refuses_what_a_person_must_mend() {
    let directory = tempfile::tempdir().unwrap();
    let redis = Redis::start(&[]);
    let file = worker_config(directory.path(), &redis.url(), "");
    let output = run(&file, &["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("there is no topic \"no-such-topic\""), "{}", complaint(&output));

    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let output = run(&file, &["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("noeviction"), "{}", complaint(&output));
    let doctor = run(&file, &["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    assert!(text(&doctor.stdout).contains("CONFIG SET maxmemory-policy noeviction"), "{}", text(&doctor.stdout));

    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.cli(&["CONFIG", "SET", "requirepass", "right"]);
    let wrong = redis.url().replace("redis://", "redis://:wrong@");
    let file = worker_config(directory.path(), &wrong, "");
    let output = run(&file, &["run"]);
    assert_eq!(output.status.code(), Some(1));
    let complaint = complaint(&output);
    assert!(complaint.contains("password") && !complaint.contains("wrong"), "{complaint}");
}

#[test]
fn a_broker_that_is_down_is_said_by_doctor() {
    let directory = tempfile::tempdir().unwrap();
    let redis = Redis::start(&[]);
    let port = free_port();
    let file = write_config(
        directory.path(),
        &format!(
            "[broker.kafka]\nbrokers = \"127.0.0.1:{port}\"\ntopics = [\"x\"]\n[store.redis]\nurl = \"{}\"\n{MAPPING}",
            redis.url()
        ),
    );
    let doctor = run(&file, &["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    let shown = text(&doctor.stdout);
    assert!(shown.contains(&format!("127.0.0.1:{port}")) && shown.contains("cannot be reached"), "{shown}");
}

/// Looking at counts makes no data directory.
#[test]
fn a_data_directory_that_is_not_there_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let config = write_config(directory.path(), &format!("[data]\ndirectory = {data:?}\n{MAPPING}"));
    for arguments in [&["mapping", "show"][..], &["position", "show"], &["store", "export", "x.zst"]] {
        let output =
            traqq().arg("--config").arg(&config).args(arguments).current_dir(directory.path()).output().unwrap();
        let complaint = complaint(&output);
        assert!(!output.status.success() && complaint.contains("data.directory"), "{arguments:?}: {complaint}");
    }
    let output = run(&config, &["doctor"]);
    assert!(
        output.status.success() && text(&output.stdout).contains("is made by the first run"),
        "{}",
        text(&output.stdout)
    );
    assert!(!data.exists() && !directory.path().join("x.zst").exists());
}
