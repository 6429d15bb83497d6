//! Whoever sends an event chooses every character of its labels, and whoever names a file every one
//! of its name: none of them acts on the terminal, the log, the shell or the `redis-cli` of a
//! person who looks at it.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use traqq_core::model::escape;

use crate::cli::{traqq, write_config};
use crate::client::{Stand, reply};
use crate::local::{NDJSON, Site};
use crate::process::{PATIENCE, Process};
use crate::servers::{Redis, poll_until};

/// Clears a screen, sets a title, moves the cursor, ends a line, turns text around, and runs a
/// command where a shell reads it.
const HOSTILE: &str = "a\x1b[2J\x1b]0;owned\x07\x1b[31m\r\nFLUSHALL u\u{7f}\u{9b}31m\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}\u{85}\
    \u{feff}\u{e0041}{}\"'$(touch owned)`touch owned`!x \\n";

/// Nothing but line feeds, and what a person reads.
fn assert_harmless(bytes: &[u8], context: &str) {
    let text = String::from_utf8(bytes.to_vec()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let acts = |c: &char| *c != '\n' && (escape::is_active(*c) || c.is_control());
    if let Some(c) = text.chars().find(acts) {
        panic!("{context} prints {c:?}: {text:?}");
    }
    // It did not end the line that it stands in.
    let is_forged = text.lines().any(|line| line.trim_start().starts_with("FLUSHALL"));
    assert!(!is_forged, "{context} prints a line of somebody else's:\n{text}");
}

fn assert_all_harmless(output: &Output, context: &str) {
    assert_harmless(&output.stdout, context);
    assert_harmless(&output.stderr, context);
}

fn run(config: &Path, arguments: &[&OsStr]) -> Output {
    traqq().arg("--config").arg(config).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What it prints in front of a person, without the styles that are ours.
fn on_a_terminal(config: &Path, arguments: &str) -> Vec<u8> {
    let line = format!("{} --config {} {arguments}", env!("CARGO_BIN_EXE_traqq"), config.display());
    let mut script = Command::new("script");
    let output = script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n");
    let styles = ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"];
    styles.iter().fold(text, |text, style| text.replace(style, "")).into_bytes()
}

fn event() -> Value {
    json!({"event": HOSTILE, "id": HOSTILE, "ip": HOSTILE, "amount": HOSTILE, HOSTILE: HOSTILE})
}

#[test]
fn no_command_prints_what_acts_on_a_terminal() {
    let site = Site::new("", "");
    let process = site.start();
    assert_eq!(site.post(NDJSON, event().to_string().as_bytes()).unwrap().status, 200);
    site.wait_until_counted();
    let hostile = HOSTILE.replace('/', "");
    let file = |name: &str, text: &str| {
        let path = site.config.with_file_name(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let good = file(&format!("{hostile}.json"), &event().to_string());
    let bad = file(&format!("{hostile} bad.ndjson"), &format!("{}\n{{\"event\":5}}\n", json!({ HOSTILE: HOSTILE })));
    let rows = file(&format!("{hostile}.csv"), &format!("event,\"{}\"\n\"x", hostile.replace('"', "\"\"")));
    let none = site.config.with_file_name(format!("{hostile} none"));
    let [good, bad, rows, none] = [&good, &bad, &rows, &none].map(|path| path.as_os_str());
    let word = |text: &'static str| OsStr::new(text);
    let hostile = OsStr::new(HOSTILE);
    let setting = format!("store.redis.prefix={HOSTILE}");
    let no_setting = format!("{HOSTILE}={HOSTILE}");
    let header = format!("{HOSTILE}={HOSTILE}");
    let commands: Vec<Vec<&OsStr>> = vec![
        vec![word("query")],
        vec![word("query"), word("--json")],
        vec![word("find"), word("add/id")],
        vec![word("find"), word("add/id"), word("--json")],
        vec![word("find"), word("add/id"), word("--days"), word("2"), word("--per-bucket")],
        vec![word("find"), word("add/id"), word("--value"), hostile],
        vec![word("find"), hostile],
        vec![word("find"), word("add/id"), word("--order"), hostile],
        vec![word("find"), word("bitmap_by/event/ip")],
        vec![word("top")],
        vec![word("doctor")],
        vec![word("doctor"), word("--json")],
        vec![word("explain"), good],
        vec![word("explain"), good, word("--json")],
        vec![word("explain"), bad],
        vec![word("explain"), none],
        vec![word("explain"), good, word("--at"), hostile],
        vec![word("explain"), good, word("--header"), hostile],
        vec![word("explain"), good, word("--header"), OsStr::new(&header)],
        vec![word("record"), hostile],
        vec![word("record"), word("{\"event\":5}")],
        vec![word("import"), good, word("--now")],
        vec![word("import"), bad, word("--now"), good],
        vec![word("import"), rows, word("--now")],
        vec![word("import"), none],
        vec![word("config"), word("check"), word("--sample"), bad],
        vec![word("config"), word("check"), word("--sample"), none],
        vec![word("config"), word("show"), word("--set"), OsStr::new(&setting)],
        vec![word("config"), word("show"), word("--json"), word("--set"), OsStr::new(&setting)],
        vec![word("config"), word("check"), word("--set"), OsStr::new(&setting)],
        vec![word("config"), word("show"), word("--set"), OsStr::new(&no_setting)],
        vec![word("position"), word("set"), hostile, word("1")],
        vec![word("store"), word("import"), none],
        vec![word("store"), word("export"), none],
        vec![hostile],
        vec![word("find"), word("add/id"), word("--server"), hostile],
        vec![word("--log"), hostile],
    ];
    for arguments in &commands {
        assert_all_harmless(&run(&site.config, arguments), &format!("{arguments:?}"));
    }
    assert_all_harmless(&run(Path::new(none), &[word("config"), word("check")]), "--config");
    let shown = on_a_terminal(&site.config, "find add/id");
    assert!(String::from_utf8_lossy(&shown).contains("FLUSHALL u"), "{}", String::from_utf8_lossy(&shown));
    for arguments in ["find add/id", "find add/id --json", "find add/id --csv", "query", "doctor", "explain event.json"]
    {
        file("event.json", &event().to_string());
        let arguments =
            arguments.replace("event.json", &site.config.with_file_name("event.json").display().to_string());
        assert_harmless(&on_a_terminal(&site.config, &arguments), &format!("`{arguments}` on a terminal"));
    }
    let (code, log) = process.stop_and_log();
    assert_eq!(code, 0);
    assert_harmless(log.as_bytes(), "the log");
    for arguments in [&["mapping", "show"][..], &["position", "show"], &["store", "drop"]] {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        assert_all_harmless(&run(&site.config, &arguments), &format!("{arguments:?}"));
    }
}

/// A table's columns are where they would be without such labels.
#[test]
fn tables_stay_aligned_with_any_labels() {
    let site = Site::new("", "");
    let process = site.start();
    let labels = [HOSTILE, "日本語", "plain", "\x1b[31m"];
    let lines: Vec<String> = labels.iter().map(|id| json!({"event": "e", "id": id}).to_string()).collect();
    assert_eq!(site.post(NDJSON, lines.join("\n").as_bytes()).unwrap().status, 200);
    site.wait_until_counted();
    let output = run(&site.config, &["find", "add/id"].map(OsStr::new));
    let text = String::from_utf8(output.stdout).unwrap();
    use unicode_width::UnicodeWidthStr;
    let ends: Vec<usize> = text.lines().filter(|line| line.ends_with("  1")).map(UnicodeWidthStr::width).collect();
    assert_eq!(ends.len(), labels.len(), "{text}");
    assert!(ends.iter().all(|end| *end == ends[0]), "{text}");
    assert_eq!(process.stop(), 0);
}

/// What a server says of itself is no more trusted than what an event says.
#[test]
fn no_answer_of_a_server_acts_on_a_terminal() {
    let cell = json!({"data": {"exact": true, "count": 1, "values_seen": 1, "values": [{"value": HOSTILE, "count": 1}]},
        "reason": HOSTILE, "missing": {HOSTILE: 2}, "start": HOSTILE, "end": HOSTILE});
    let name = json!({"metric": HOSTILE, "pattern": HOSTILE, "of": HOSTILE});
    let both = |left: &Value, right: &Value| {
        let members = left.as_object().unwrap().iter().chain(right.as_object().unwrap());
        Value::Object(members.map(|(name, value)| (name.clone(), value.clone())).collect())
    };
    let answers = [
        json!({"bucket": HOSTILE, "results": [{"start": HOSTILE, "metrics": [both(&name, &cell)]}]}),
        json!({"bucket": "d", "from": HOSTILE, "to": HOSTILE, "buckets": 1, "time_zone": HOSTILE, "since": HOSTILE, "results": [cell]}),
        json!({"bucket": "d", "from": HOSTILE, "to": HOSTILE, "buckets": 2, "time_zone": HOSTILE, "results": [cell, cell]}),
        json!({"metrics": [both(&name, &json!({"metric": "top"}))]}),
        json!({"ready": false, "not_ready_because": HOSTILE, "totals": {"records": 2, "events": 1, "dead_letters": 1},
            "dead_letters": {"to": HOSTILE, "reasons": [{"reason": HOSTILE, "explanation": HOSTILE, "records": 1,
            "first": {"topic": HOSTILE, "partition": 0, "offset": 1, "detail": HOSTILE}}]},
            "partitions": [{"topic": HOSTILE, "partition": 0, "state": HOSTILE, "reason": HOSTILE}]}),
        json!({"detail": HOSTILE, "accepted": 0, "rejected": 1, "errors": [{"index": 0, "reason": HOSTILE, "detail": HOSTILE}]}),
        json!(HOSTILE),
    ];
    let mut bodies: Vec<String> = answers.iter().map(Value::to_string).collect();
    bodies.push(HOSTILE.to_owned());
    bodies.push(format!("{{\"{HOSTILE}"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.ndjson");
    std::fs::write(&file, "{\"event\":\"a\"}\n").unwrap();
    for body in bodies {
        for status in ["200 OK", "400 Bad Request", "503 Service Unavailable\r\nretry-after: 0"] {
            let answer = body.clone();
            let stand = Stand::start(move |_, _| reply(status, &answer));
            for arguments in [
                &["query"][..],
                &["query", "--json"],
                &["find", "add/event"],
                &["find", "add/event", "--json"],
                &["top"],
                &["record", "{\"event\":\"a\"}"],
            ] {
                let context = format!("{arguments:?} over {status} {body:?}");
                assert_all_harmless(&stand.run(arguments), &context);
            }
            // Nothing is tried again for ever.
            if !status.starts_with("503") {
                let output = stand.run(&["import", "--now", file.to_str().unwrap()]);
                assert_all_harmless(&output, &format!("import over {status} {body:?}"));
            }
        }
    }
}

/// Labels with line ends made commands of their own out of what `explain` printed.
#[test]
fn what_explain_prints_for_redis_cli_writes_exactly_these_keys() {
    let redis = Redis::start(&[]);
    let directory = tempfile::tempdir().unwrap();
    let mapping = "[store.redis]\nprefix = \"t\"\n[mapping]\nadd = [\"id\"]\ntop = [\"id\"]\nbitmap = [\"id\"]\nauto_pairs = false\n\
        bitmap_by = [{ key = \"id\", of = \"id\" }]\nadd_value = [{ key = \"id\", add_key = \"amount\" }]\n";
    let config = write_config(directory.path(), mapping);
    let event = directory.path().join("event.json");
    for label in
        [HOSTILE, "a b", "'", "\"", "\\", "\\x41", "~root", "日本語", "$(touch owned)", "a;b|c&d", "{x} [y] (z)"]
    {
        redis.cli(&["FLUSHALL"]);
        std::fs::write(&event, json!({"event": "e", "id": label, "amount": 2}).to_string()).unwrap();
        let output = run(&config, &[OsStr::new("explain"), event.as_os_str()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_all_harmless(&output, label);
        let text = String::from_utf8(output.stdout).unwrap();
        // Two lines tell a person more than a command can hold.
        let is_command =
            |line: &&str| !line.starts_with('#') && !line.contains("<the keys") && !line.contains("     (and");
        let lines: Vec<&str> = text.lines().filter(is_command).collect();
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &redis.port().to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut cli = cli.spawn().unwrap();
        cli.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
        let answers = String::from_utf8(cli.wait_with_output().unwrap().stdout).unwrap();
        let numbers = answers.lines().filter(|line| line.parse::<i64>().is_ok()).count();
        assert_eq!((numbers, answers.lines().count()), (7, 7), "{text}\n{answers}");
        assert_eq!(lines.len(), 7, "{text}");
        // The label as it is, in every place that has it.
        let mut asked = Command::new("redis-cli");
        let script = "local found = {} for _, key in ipairs(redis.call('KEYS', '*')) do local kind = redis.call('TYPE', key).ok \
            if kind == 'hash' and redis.call('HEXISTS', key, ARGV[1]) == 1 then table.insert(found, 'hash') \
            elseif kind == 'zset' and redis.call('ZSCORE', key, ARGV[1]) then table.insert(found, 'zset') \
            elseif kind == 'set' and redis.call('SISMEMBER', key, ARGV[1]) == 1 then table.insert(found, 'set') \
            elseif kind == 'string' then local by = 'id@id:' .. string.gsub(string.gsub(ARGV[1], '%%', '%%25'), ':', '%%3A') \
            table.insert(found, string.sub(key, -#by) == by and 'by' or 'string') end end table.sort(found) return table.concat(found, ' ')";
        let output = asked.args(["-p", &redis.port().to_string(), "EVAL", script, "0", label]).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            "by hash hash hash set string zset",
            "{label:?}\n{text}"
        );
        // And all of it, pasted into a shell, runs nothing.
        let mut bash = Command::new("bash");
        bash.args(["-c", &text]).current_dir(&directory).output().unwrap();
        assert!(!directory.path().join("owned").exists());
    }
}

/// The command that mends a key in quarantine names that key, whatever stands in it.
#[test]
fn what_doctor_prints_for_the_shell_takes_exactly_this_key_out() {
    let redis = Redis::start(&[]);
    let site = Site::new("", &format!("[store.redis]\nurl = \"{}\"\nprefix = \"t\"\n", redis.url()));
    let process = site.start();
    process.wait_until_ready();
    assert_eq!(process.stop(), 0);
    let keys = [HOSTILE, "t:add:d:1:it's", "a b", "\"", "-x", "日本語"];
    for key in keys {
        redis.cli(&["HSET", "t:quarantine", key, HOSTILE]);
    }
    for left in (0..keys.len()).rev() {
        let output = run(&site.config, &[OsStr::new("doctor")]);
        assert_all_harmless(&output, "doctor");
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.contains("HDEL")).unwrap_or_else(|| panic!("{text}"));
        let from = line.find("`redis-cli --quoted-input HDEL").unwrap() + 1;
        let command = &line[from..from + line[from..].find('`').unwrap()];
        let command = command.replacen("redis-cli", &format!("redis-cli -p {}", redis.port()), 1);
        let done = Command::new("sh").args(["-c", &command]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "1", "{command}");
        assert_eq!(redis.cli(&["HLEN", "t:quarantine"]), left.to_string());
    }
}

/// A log in text, and one in JSON, at the most talkative level: one line is one event.
#[test]
fn the_log_is_lines_of_which_nobody_writes_one() {
    for format in ["text", "json"] {
        let redis = Redis::start(&[]);
        let site = Site::new("", &format!("[store.redis]\nurl = \"{}\"\nprefix = \"t\"\n", redis.url()));
        let text = std::fs::read_to_string(&site.config).unwrap();
        std::fs::write(&site.config, text.replace("\"text\"", &format!("{format:?}\nlevel = \"trace\""))).unwrap();
        let process = Process::start(&site.config);
        poll_until(PATIENCE, "it takes events", || {
            site.post(NDJSON, event().to_string().as_bytes()).ok().filter(|answer| answer.status == 200)
        });
        site.wait_until_counted();
        // A key that cannot take its counts is said with its name.
        let keys = redis.cli(&[
            "EVAL",
            "for _, k in ipairs(redis.call('KEYS', 't:bmp:*@*')) do redis.call('SET', k, 'x') end return 1",
            "0",
        ]);
        assert_eq!(keys, "1");
        let other = json!({"event": HOSTILE, "id": "b", "ip": "other"});
        assert_eq!(site.post(NDJSON, other.to_string().as_bytes()).unwrap().status, 200);
        site.wait_until_counted();
        let (code, log) = process.stop_and_log();
        assert_eq!(code, 0, "{log}");
        assert!(log.contains("a key cannot take its counts"), "{log}");
        assert_harmless(log.as_bytes(), format);
        if format == "json" {
            log.lines().for_each(|line| _ = serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
        }
    }
}
