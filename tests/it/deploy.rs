//! What an operator applies must be true: names that exist, files that parse, limits that fit each
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use regex::Regex;
use serde_json::Value;
use traqq::config::{Config, load};
use traqq::telemetry::names;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The sources of all crates.
fn sources() -> Vec<PathBuf> {
    ["src", "crates"].iter().flat_map(|place| files(place, "rs")).collect()
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(directory)).unwrap_or_else(|error| panic!("{directory}: {error}")) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            let inner = path.strip_prefix(root()).expect("below the root").to_str().expect("UTF-8").to_owned();
            found.extend(files(&inner, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; `tests/run` installs what is missing"))
}

fn assert_runs(command: &mut Command) {
    let output = run(command);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{printed}");
}

/// YAML as a person's tools read it: anchors and merges resolved, a key that stands twice refused.
fn yaml(path: &Path) -> Value {
    const READ: &str = "
import json, sys, yaml
class Loader(yaml.SafeLoader): pass
def mapping(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value if key.value != '<<']
    twice = {str(key) for key in keys if keys.count(key) > 1}
    if twice: sys.exit(f'line {node.start_mark.line + 1}: {twice} stands twice')
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)
Loader.add_constructor('tag:yaml.org,2002:map', mapping)
print(json.dumps(yaml.load(open(sys.argv[1]), Loader)))";
    let python = std::env::var("TRAQQ_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = run(Command::new(python).args(["-c", READ]).arg(path));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaint}", path.display());
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn matches<'t>(pattern: &str, text: &'t str) -> BTreeSet<&'t str> {
    Regex::new(pattern).expect("a pattern").find_iter(text).map(|found| found.as_str()).collect()
}

/// The keys of a configuration and their values, lists and maps of free names whole.
fn leaves(value: &Value, prefix: &str, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) if prefix != "broker.kafka.properties" => {
            for (name, member) in members {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                leaves(member, &key, into);
            }
        }
        _ => drop(into.insert(prefix.to_owned(), value.clone())),
    }
}

fn default_keys() -> BTreeMap<String, Value> {
    let mut keys = BTreeMap::new();
    leaves(&serde_json::to_value(Config::default()).expect("plain data"), "", &mut keys);
    keys
}

fn configuration(path: &str) -> Config {
    let loaded = load(Some(&root().join(path)), &[]).unwrap_or_else(|error| panic!("{error}"));
    loaded.config
}

fn bytes(size: &str) -> usize {
    let number = size.strip_suffix('M').unwrap_or_else(|| panic!("{size:?} is not in mebibytes"));
    number.parse::<usize>().unwrap_or_else(|error| panic!("{size:?}: {error}")) << 20
}

fn seconds(duration: &str) -> u64 {
    let number = duration.strip_suffix('s').unwrap_or_else(|| panic!("{duration:?} is not in seconds"));
    number.parse().unwrap_or_else(|error| panic!("{duration:?}: {error}"))
}

/// What the process that runs a configuration needs from whoever starts it.
fn assert_room(who: &str, config: &Config, memory_bytes: usize, stop_s: u64) {
    let memory_bytes_min = config.worker.memory_max_bytes / 2 * 3;
    assert!(memory_bytes >= memory_bytes_min, "{who}: {memory_bytes} bytes are too few for worker.memory_max_bytes");
    // Batches in flight, then leaving the group.
    let stop_ms_min = 2 * config.worker.drain_timeout_ms;
    assert!(stop_s * 1000 > stop_ms_min, "{who}: {stop_s} s to stop are too few for worker.drain_timeout_ms");
}

// ---- configuration ----------------------------------------------------------------------

#[test]
fn every_example_configuration_is_good() {
    for file in files("config", "toml") {
        let name = file.file_name().and_then(|name| name.to_str()).expect("UTF-8").to_owned();
        let config = configuration(&format!("config/{name}"));
        let checked = if name == "sidecar.toml" { config.check_server() } else { config.check_worker().map(|_| ()) };
        assert_eq!(checked, Ok(()), "{name}");
    }
}

/// A key nobody documented is one nobody finds; a documented default that is none misleads.
#[test]
fn the_reference_has_every_key_with_its_default() {
    const EXAMPLES: [&str; 7] = [
        "broker.kafka.topics",
        "broker.kafka.properties",
        "mapping.bitmap",
        "mapping.bitmap_by",
        "mapping.add",
        "mapping.add_value",
        "mapping.top",
    ];
    let reference = text("config/reference.toml");
    let mut section = String::new();
    let mut documented: BTreeMap<String, bool> = BTreeMap::new();
    let key = Regex::new(r"^(# )?([a-z_]+) = ").expect("a pattern");
    for line in reference.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some(found) = key.captures(line) {
            let twice = documented.insert(format!("{section}.{}", &found[2]), found.get(1).is_some());
            assert_eq!(twice, None, "{line:?} in [{section}] stands twice");
        } else if section == "broker.kafka.properties" {
            documented.insert(section.clone(), false);
        }
    }
    let defaults = default_keys();
    let expected: BTreeSet<&String> = defaults.keys().collect();
    assert_eq!(documented.keys().collect::<BTreeSet<_>>(), expected, "keys of config/reference.toml and of the code");
    let mut set = BTreeMap::new();
    let config = configuration("config/reference.toml");
    leaves(&serde_json::to_value(config).expect("plain data"), "", &mut set);
    for (key, value) in &defaults {
        if !EXAMPLES.contains(&key.as_str()) {
            assert_eq!(set[key], *value, "the default of {key}");
        }
        assert_eq!(documented[key], value.is_null(), "{key}: a key without a default stands behind `#`, no other does");
    }
    // What stands behind `#` parses too.
    let uncommented =
        Regex::new(r#"(?m)^# ((?:"[a-z.]+"|[a-z_]+) = .*)$"#).expect("a pattern").replace_all(&reference, "$1");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("uncommented.toml");
    fs::write(&file, &*uncommented).expect("a file");
    let config = load(Some(&file), &[]).unwrap_or_else(|error| panic!("{error}")).config;
    assert!(config.broker.kafka.properties.len() > 3 && config.store.redis.tls_ca_file.is_some());
    assert_eq!(config.broker.kafka.check(), Ok(()));
}

#[test]
fn what_is_written_about_keys_names_keys_that_exist() {
    let keys = default_keys();
    let sections = r"\b(?:broker\.kafka|store\.redis|worker|server|events|buckets|mapping|log)\.[a-z_]+\b";
    for path in ["deploy/README.md", "deploy/compose.yaml", "deploy/traqq.service", "deploy/Dockerfile"]
        .into_iter()
        .chain(["deploy/prometheus/alerts.yaml", "deploy/prometheus/prometheus.yaml", "CHANGELOG.md"])
        .chain(["config/minimal.toml", "config/compose.toml", "config/systemd.toml", "config/sidecar.toml"])
    {
        let text = text(path);
        for key in matches(sections, &text) {
            let is_section = keys.keys().any(|known| known.starts_with(&format!("{key}.")));
            assert!(keys.contains_key(key) || is_section, "{path}: there is no {key}");
        }
        for variable in matches(r"\bTRAQQ_[A-Z_]*__[A-Z_]+\b", &text) {
            let name = variable.trim_start_matches("TRAQQ_");
            let key = name.strip_suffix("_FILE").unwrap_or(name).replace("__", ".").to_ascii_lowercase();
            assert!(keys.contains_key(&key), "{path}: {variable} sets nothing");
        }
    }
}

// ---- prometheus ----------------------------------------------------------------------

#[test]
fn promtool_accepts_configuration_rules_and_their_tests() {
    let directory = root().join("deploy/prometheus");
    for file in files("deploy/prometheus", "yaml") {
        assert!(yaml(&file).is_object(), "{}", file.display());
    }
    for args in [
        ["check", "config", "prometheus.yaml"],
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ] {
        assert_runs(Command::new("promtool").args(args).current_dir(&directory));
    }
}

#[test]
fn every_metric_that_is_written_about_exists() {
    let mut known: BTreeSet<String> = names::all().map(|definition| definition.name.to_owned()).collect();
    known.insert(format!("{}_bucket", traqq_pipeline::names::COMMIT_SECONDS));
    for path in
        ["deploy/prometheus/alerts.yaml", "deploy/prometheus/alerts_test.yaml", "deploy/README.md", "RELIABILITY.md"]
    {
        let text = text(path);
        let named = matches(r"\btraqq_[a-z0-9_]+", &text);
        assert!(!named.is_empty(), "{path}");
        for name in named {
            assert!(known.contains(name), "{path}: telemetry/names.rs has no {name}");
        }
    }
}

#[test]
fn every_metric_is_written_about() {
    let table = text("docs/metrics.md");
    for definition in names::all().chain(names::PROCESS) {
        let name = definition.name;
        assert!(table.contains(&format!("`{name}`")), "docs/metrics.md does not name {name}");
    }
}

/// What is said to be shown by a test is.
#[test]
fn the_matrix_of_faults_names_tests_that_exist() {
    let matrix = text("RELIABILITY.md");
    let named = matches(r"`[a-z_]+::[a-z_0-9]+`", &matrix);
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        let (file, test) = name.trim_matches('`').split_once("::").unwrap();
        let tests = text(&format!("tests/it/{file}.rs"));
        assert!(tests.contains(&format!("fn {test}(")), "RELIABILITY.md: there is no {name}");
    }
}

#[test]
fn every_alert_says_what_to_do_and_is_tested() {
    let rules = yaml(&root().join("deploy/prometheus/alerts.yaml"));
    let tests = text("deploy/prometheus/alerts_test.yaml");
    let readme = text("deploy/README.md");
    let anchors: BTreeSet<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            heading.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
        })
        .collect();
    for link in matches(r"\]\(#[^)]+\)", &readme) {
        assert!(anchors.contains(&link[3..link.len() - 1]), "deploy/README.md: {link} leads nowhere");
    }
    let groups = rules["groups"].as_array().expect("groups");
    let alerts = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"));
    for alert in alerts {
        let name = alert["alert"].as_str().expect("a name");
        let annotation = |key: &str| alert["annotations"][key].as_str().unwrap_or_default();
        assert!(annotation("summary").len() > 10, "{name}: summary");
        assert!(annotation("description").len() > 80, "{name}: the description must say what to do");
        assert!(["critical", "warning"].map(Some).contains(&alert["labels"]["severity"].as_str()), "{name}: severity");
        let anchor = annotation("runbook").strip_prefix("deploy/README.md#").unwrap_or_default();
        assert!(anchors.contains(anchor), "{name}: there is no runbook {anchor:?}");
        assert!(matches(&format!(r"\b{name}\b"), &tests).len() == 1, "{name}: alerts_test.yaml does not test it");
    }
}

// ---- runbooks ----------------------------------------------------------------------

/// Who searches for the message of a stopped partition must find it.
#[test]
fn the_runbooks_quote_messages_as_they_are() {
    let readme = text("deploy/README.md");
    let sources: String = sources().iter().map(|path| fs::read_to_string(path).expect("a source file")).collect();
    for message in [
        "the log begins at",
        "records were removed before they were counted",
        "the log ends at",
        "is not the one that was counted last",
        "its checkpoint is gone from the store though its counts may be there",
        "this is a bug",
        "the store lost everything; counting again from the recorded start",
        "the dead-letter destination refuses; the partition waits",
        "out of memory",
        "is counted otherwise",
        "layout version",
        "the time zone database is",
        "is a replica; point store.redis.url at the primary",
        "refuses the user name or password",
        "lacks a permission",
        "there is no topic",
        "there is no stream",
        "is there and does not come",
        "what is written to the bucket does not come back",
    ] {
        assert!(readme.contains(message), "deploy/README.md does not have {message:?}");
        assert!(sources.contains(message), "no source says {message:?} any more");
    }
    for header in matches("`traqq-[a-z0-9-]+`", &readme) {
        assert!(sources.contains(&header.replace('`', "\"")), "src writes no header {header}");
    }
    for reason in traqq_core::decode::Reason::ALL {
        assert!(readme.contains(&format!("`{}`", reason.name())), "deploy/README.md: {}", reason.name());
    }
}

// ---- image ----------------------------------------------------------------------

/// Instructions with their arguments, continuation lines joined.
fn instructions() -> Vec<(String, String)> {
    let joined = text("deploy/Dockerfile").replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').expect("an instruction has arguments"))
        .map(|(i, a)| (i.into(), a.trim().into()))
        .collect()
}

/// A digest, or a tag with a whole version: of Debian that has two numbers, of others three.
fn is_pinned(image: &str) -> bool {
    if let Some((_, digest)) = image.split_once("@sha256:") {
        return digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    let (name, tag) = image.rsplit('/').next().and_then(|name| name.split_once(':')).unwrap_or_default();
    let version = tag.trim_start_matches('v').split('-').next().unwrap_or_default();
    let numbers = version.split('.').filter(|part| part.parse::<u32>().is_ok()).count();
    numbers == if name == "debian" { 2 } else { 3 }
}

#[test]
fn images_are_pinned_to_whole_versions_or_digests() {
    let digest = "a".repeat(64);
    for good in ["rust:1.90.0-slim-bookworm", "debian:12.12-slim", "prom/prometheus:v3.5.0", "traqq:0.3.0"] {
        assert!(is_pinned(good) && is_pinned(&format!("redis@sha256:{digest}")), "{good}");
    }
    for bad in [
        "rust",
        "rust:latest",
        "rust:1-slim-bookworm",
        "redis:7.2-bookworm",
        "debian:bookworm-slim",
        "debian:12-slim",
        "redis@sha256:abc",
    ] {
        assert!(!is_pinned(bad), "{bad}");
    }
}

#[test]
fn the_image_is_pinned_and_runs_as_nobody() {
    let instructions = instructions();
    let last = |name: &str| {
        let found = instructions.iter().rfind(|(instruction, _)| instruction == name);
        found.map(|(_, arguments)| arguments.as_str()).unwrap_or_else(|| panic!("there is no {name}"))
    };
    let final_stage = instructions.iter().rposition(|(instruction, _)| instruction == "FROM").expect("FROM");
    for (instruction, arguments) in &instructions {
        match instruction.as_str() {
            "FROM" => assert!(is_pinned(arguments.split(' ').next().expect("an image")), "FROM {arguments}"),
            "ENTRYPOINT" | "CMD" => {
                let parsed: Result<Vec<String>, _> = serde_json::from_str(arguments);
                assert!(parsed.is_ok(), "{instruction} {arguments}: a shell would swallow SIGTERM; write a list");
            }
            "RUN" if arguments.contains("apt-get install") => {
                assert!(arguments.contains("--no-install-recommends"), "RUN {arguments}");
                assert!(arguments.contains("rm -rf /var/lib/apt/lists/*"), "RUN {arguments}");
            }
            "RUN" if arguments.contains("cargo build") => assert!(arguments.contains("--locked"), "RUN {arguments}"),
            "ADD" => panic!("ADD {arguments}: COPY does what is meant"),
            _ => {}
        }
    }
    let user = instructions[final_stage..].iter().rfind(|(instruction, _)| instruction == "USER");
    let (_, user) = user.expect("the final stage has a USER");
    let ids: Vec<u32> =
        user.split(':').map(|id| id.parse().unwrap_or_else(|_| panic!("USER {user} is no number"))).collect();
    assert!(!ids.contains(&0), "USER {user} is root");
    assert_eq!(last("STOPSIGNAL"), "SIGTERM");
    assert!(last("LABEL").contains("org.opencontainers.image.licenses"));
    let version = format!("VERSION={}", env!("CARGO_PKG_VERSION"));
    assert!(instructions.contains(&("ARG".to_owned(), version.clone())), "there is no ARG {version}");
}

/// A target that Cargo.toml names, or a file that the sources include, must come along into the
/// image's build.
#[test]
fn the_build_context_is_enough() {
    let ignore = text(".dockerignore");
    assert!(ignore.lines().any(|line| line == "*"), ".dockerignore must begin with nothing");
    let admitted: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (instruction, arguments) in instructions() {
        if instruction != "COPY" || arguments.starts_with("--from") {
            continue;
        }
        let words: Vec<&str> = arguments.split_whitespace().collect();
        for source in &words[..words.len() - 1] {
            assert!(admitted.contains(source), ".dockerignore keeps {source} out");
            // Everything lies in the image's build where it lies here.
            let place = directory.path().join(Path::new(source).parent().expect("a relative path"));
            fs::create_dir_all(&place).expect("a directory");
            assert_runs(Command::new("cp").arg("-R").arg(root().join(source)).arg(place));
        }
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--offline", "--no-deps", "--format-version", "1"]).current_dir(directory.path());
    assert_runs(&mut metadata);
    assert_eq!(directory.path().join("build.rs").exists(), root().join("build.rs").exists(), "build.rs");
    let include = Regex::new(r#"include_(?:str|bytes)!\("([^"]+)"\)"#).expect("a pattern");
    for source in sources() {
        let inner = directory.path().join(source.strip_prefix(root()).expect("below the root"));
        for found in include.captures_iter(&fs::read_to_string(&source).expect("a source file")) {
            let included = inner.parent().expect("a directory").join(&found[1]);
            assert!(included.is_file(), "{}: {} is not in the build context", source.display(), &found[1]);
        }
    }
}

// ---- compose ----------------------------------------------------------------------

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().expect("a string")).collect()
}

#[test]
fn compose_is_closed_and_bounded() {
    let compose = yaml(&root().join("deploy/compose.yaml"));
    let services = compose["services"].as_object().expect("services");
    for (name, service) in services {
        let image = service["image"].as_str().unwrap_or_else(|| panic!("{name}: there is no image"));
        assert!(is_pinned(image), "{name}: {image} has no fixed tag");
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port} is published beyond this machine");
        }
        assert_eq!(service["read_only"], true, "{name}: read_only");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}: cap_drop");
        assert!(strings(&service["security_opt"]).contains(&"no-new-privileges:true"), "{name}: security_opt");
        assert!(service["privileged"].is_null() && service["network_mode"].is_null(), "{name}");
        for limit in ["memory", "cpus", "pids"] {
            assert!(!service["deploy"]["resources"]["limits"][limit].is_null(), "{name}: no limit of {limit}");
        }
        let runs_once = service["restart"] == "on-failure";
        assert!(runs_once || service["healthcheck"]["test"].is_array(), "{name}: healthcheck");
        for volume in strings(&service["volumes"]) {
            let source = volume.split(':').next().expect("a source");
            if source.starts_with('.') {
                assert!(root().join("deploy").join(source).is_file(), "{name}: there is no {source}");
                assert!(volume.ends_with(":ro"), "{name}: {volume}");
            } else {
                assert!(compose["volumes"].get(source).is_some(), "{name}: volume {source} is not declared");
            }
        }
        for (other, how) in service["depends_on"].as_object().into_iter().flatten() {
            let condition = how["condition"].as_str().unwrap_or_else(|| panic!("{name}: depends_on {other}"));
            let other = services.get(other).unwrap_or_else(|| panic!("{name}: there is no service {other}"));
            let fits = match condition {
                "service_healthy" => other["healthcheck"].is_object(),
                "service_completed_successfully" => other["restart"] == "on-failure",
                condition => condition == "service_started",
            };
            assert!(fits, "{name}: {condition}");
        }
    }
}

#[test]
fn compose_fits_its_configuration() {
    let compose = yaml(&root().join("deploy/compose.yaml"));
    let services = &compose["services"];
    let config = configuration("config/compose.toml");
    let worker = &services["worker"];
    let memory = worker["deploy"]["resources"]["limits"]["memory"].as_str().expect("a limit");
    assert_room("worker", &config, bytes(memory), seconds(worker["stop_grace_period"].as_str().expect("a time")));
    assert!(worker["image"].as_str().expect("an image").ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))));
    assert!(
        root()
            .join("deploy")
            .join(worker["build"]["context"].as_str().expect("a context"))
            .join("Cargo.toml")
            .is_file()
    );
    let create = services["topics"]["command"].to_string();
    let kafka = &config.broker.kafka;
    for topic in kafka.topics.iter().chain(&kafka.dead_letters()) {
        assert!(create.contains(&format!("--topic {topic} ")), "nobody creates the topic {topic}");
    }
    let advertised = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].as_str().expect("listeners");
    assert!(advertised.contains(&format!("://{}", kafka.brokers)), "{} is not advertised", kafka.brokers);
    let redis = strings(&services["redis"]["command"]).join(" ");
    assert!(redis.contains("--appendonly yes") && redis.contains("--maxmemory-policy noeviction"), "{redis}");
    let scrape = text("deploy/prometheus/prometheus.yaml");
    let port = config.server.http.rsplit_once(':').expect("a port").1;
    assert!(scrape.contains("names: [worker]") && scrape.contains(&format!("port: {port}")));
    assert!(scrape.contains(&format!("\"serve:{port}\"")));
}

// ---- systemd ----------------------------------------------------------------------

#[test]
fn the_unit_fits_its_configuration() {
    let unit = text("deploy/traqq.service");
    let value = |name: &str| {
        let found = unit.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("there is no {name}"))
    };
    let config = configuration("config/systemd.toml");
    assert_room("traqq.service", &config, bytes(value("MemoryMax")), seconds(value("TimeoutStopSec")));
    for (name, expected) in [
        ("Type", "exec"),
        ("DynamicUser", "yes"),
        ("ProtectSystem", "strict"),
        ("CapabilityBoundingSet", ""),
        ("NoNewPrivileges", "yes"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "2"),
        ("KillSignal", "SIGTERM"),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    let credentials = matches(r"(?m)^LoadCredential=[a-z-]+", &unit);
    let used = matches(r"(?m)_FILE=%d/[a-z-]+$", &unit);
    let names = |lines: &BTreeSet<&str>, split| -> BTreeSet<String> {
        lines.iter().map(|line| line.rsplit_once::<char>(split).expect("a name").1.to_owned()).collect()
    };
    assert_eq!(names(&credentials, '='), names(&used, '/'), "credentials that are loaded and used");
    assert!(!credentials.is_empty());
}

#[test]
fn systemd_accepts_the_unit() {
    /// Of 10; what remains is the network, which a worker needs.
    const EXPOSURE_MAX: &str = "--threshold=20";
    /// Settings newer than the systemd of Debian 12, which passes over them.
    const NEWER: [&str; 2] = ["RestartSteps", "RestartMaxDelaySec"];
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("traqq.service");
    let installed = "/usr/local/bin/traqq";
    let unit = text("deploy/traqq.service");
    assert!(unit.contains(&format!("ExecStart={installed} run")));
    fs::write(&file, unit.replace(installed, env!("CARGO_BIN_EXE_traqq"))).expect("a file");
    let output = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file));
    let complaints = String::from_utf8_lossy(&output.stderr);
    let unexpected: Vec<&str> = complaints
        .lines()
        // Of other units of this machine it complains too.
        .filter(|line| line.contains("traqq") && !NEWER.iter().any(|name| line.contains(&format!("'{name}'"))))
        .collect();
    assert!(output.status.success() && unexpected.is_empty(), "{complaints}");
    assert_runs(Command::new("systemd-analyze").args(["security", "--offline=true", EXPOSURE_MAX]).arg(&file));
}
