//! Which topics of Kafka are counted, and what is said when they are not there.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use traqq_log::kafka::{Config, Topics};

use crate::process::{PATIENCE, Process, post, total, wait_for_total};
use crate::scene::{Scene, create_topics, delete_topics, numbered, produce, unique};
use crate::servers::{Nodes, kafka_brokers, poll_until};

/// Topics are looked at once a second.
const SOON: &str = "\"topic.metadata.refresh.interval.ms\" = \"1000\"\n";
const CLASSIC: &str = "[broker.kafka.properties]\n";
const NEW_PROTOCOL: &str = "[broker.kafka.properties]\n\"group.protocol\" = \"consumer\"\n";

fn named_as(prefix: &str, ends: &[&str]) -> Vec<String> {
    ends.iter().map(|end| format!("{prefix}{end}")).collect()
}

/// A scene whose worker counts what matches.
fn scene_of(name: &str, protocol: &str, pattern: &str) -> Scene {
    let mut scene = Scene::new(&format!("{name}-unused"), 1, &format!("{protocol}{SOON}"));
    let named = format!("topics = [\"{}\"]", scene.topic);
    scene.file = scene.changed("pattern", &named, &format!("topic_pattern = '{pattern}'"));
    scene
}

/// It was checked by one dialect and matched by two others: `^ev\d+$` was good, two partitions
/// began, and none was read.
fn a_pattern_is_matched_in_one_dialect_and_followed(name: &str, protocol: &str) {
    let brokers = kafka_brokers();
    let prefix = unique(name);
    let [one, two, other, later] = &named_as(&prefix, &["1", "22", "d", "333"])[..] else { unreachable!() };
    create_topics(&brokers, &[one, two, other], 2);
    let scene = scene_of(name, protocol, &format!(r"^{prefix}\d+$"));
    let (is_good, text) = scene.doctor();
    assert!(is_good && text.contains(&format!("topics: {one}, {two} (topic_pattern")), "{text}");
    assert!(text.contains("4 partitions of 2 topics"), "{text}");
    let worker = Process::start(&scene.file);
    let line = worker.wait_for_line("counting begins");
    assert!(line.contains("partitions=4"), "{line}");
    let mut events = 0;
    let mut count = |topic: &str| {
        produce(topic, &numbered(events..events + 700));
        events += 700;
        events
    };
    count(one);
    let before = count(two);
    wait_for_total(&scene.redis, before as i64);
    worker.wait_until_ready();
    // One that is made later is counted from its beginning; its neighbours go on.
    create_topics(&brokers, &[later], 2);
    count(later);
    let before = count(one);
    wait_for_total(&scene.redis, before as i64);
    poll_until(PATIENCE, "six partitions", || (worker.metric("traqq_partitions") == 6.0).then_some(()));
    // One that is deleted is gone, and no fault of those that are left.
    delete_topics(&brokers, &[two]);
    poll_until(PATIENCE, "four partitions", || (worker.metric("traqq_partitions") == 4.0).then_some(()));
    let before = count(later);
    wait_for_total(&scene.redis, before as i64);
    worker.wait_until_ready();
    assert_eq!(worker.metric("traqq_records_skipped_total"), 0.0);
    let (code, log) = worker.stop_and_log();
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("partition stopped"), "{log}");
    scene.assert_exact(before);
}

#[test]
fn a_pattern_is_matched_in_one_dialect_and_followed_by_a_classic_group() {
    a_pattern_is_matched_in_one_dialect_and_followed("it-dialect", CLASSIC);
}

#[test]
fn a_pattern_is_matched_in_one_dialect_and_followed_by_the_new_group_protocol() {
    a_pattern_is_matched_in_one_dialect_and_followed("it-dialect848", NEW_PROTOCOL);
}

/// Two workers see a new topic at different times; all of it is counted once meanwhile.
#[test]
fn members_of_a_group_that_know_different_topics_for_a_while_count_once() {
    let brokers = kafka_brokers();
    let prefix = unique("it-differ");
    let [one, two] = &named_as(&prefix, &["1", "2"])[..] else { unreachable!() };
    create_topics(&brokers, &[one], 2);
    let mut scene = scene_of("it-differ", CLASSIC, &format!("^{prefix}"));
    let quick = scene.worker("quick");
    scene.file = scene.changed("slow", "\"1000\"", "\"6000\"");
    let slow = scene.worker("slow");
    poll_until(PATIENCE, "both read", || {
        [&quick, &slow].iter().all(|worker| worker.metric("traqq_partitions") == 1.0).then_some(())
    });
    produce(one, &numbered(0..700));
    create_topics(&brokers, &[two], 4);
    produce(two, &numbered(700..1_400));
    wait_for_total(&scene.redis, 1_400);
    produce(two, &numbered(1_400..2_100));
    poll_until(PATIENCE, "both know both topics", || {
        [&quick, &slow].iter().all(|worker| worker.metric("traqq_partitions") == 3.0).then_some(())
    });
    wait_for_total(&scene.redis, 2_100);
    assert_eq!((quick.stop(), slow.stop()), (0, 0));
    scene.assert_exact(2_100);
}

/// Each commit was a record of `__consumer_offsets`, which was counted as a dead letter, which was
/// committed.
#[test]
fn a_pattern_that_matches_everything_does_not_feed_itself() {
    let nodes = Nodes::up_with("kafka", &["--heap", "256m"]);
    let mut scene = Scene::at(nodes.variable("KAFKA_BROKERS"), "it-all", 1, &format!("{CLASSIC}{SOON}"));
    create_topics(&scene.brokers, &["letters"], 1);
    scene.file = scene.changed("pattern", &format!("topics = [\"{}\"]", scene.topic), "topic_pattern = '^.*'");
    scene.file = scene.changed("letters", "\"discard\"", "\"letters\"");
    let worker = scene.worker("worker");
    scene.produce(&[], &["this is no event".to_owned()]);
    for round in 0..4 {
        scene.produce(&[], &numbered(round * 70..(round + 1) * 70));
        wait_for_total(&scene.redis, (round as i64 + 1) * 70);
        // The group's offsets have a record more after each of these.
        let position = format!("{}", (round + 1) * 70 + 1);
        poll_until(PATIENCE, "the position is committed", || {
            let groups = scene.tool("groups", &["--describe", "--group", &scene.topic]);
            groups.lines().any(|line| line.split_whitespace().nth(3) == Some(&position)).then_some(())
        });
    }
    assert_eq!(worker.metric("traqq_records_total"), 281.0);
    assert_eq!(worker.metric("traqq_dead_letters_total"), 1.0);
    assert_eq!(worker.metric("traqq_partitions"), 1.0);
    let (is_good, text) = scene.doctor();
    assert!(is_good && text.contains(&format!("topics: {} (topic_pattern", scene.topic)), "{text}");
    assert_eq!(worker.stop(), 0);
}

#[test]
fn a_pattern_that_nothing_matches_yet_is_said_and_waited_for() {
    let name = unique("it-nothing");
    let scene = scene_of("it-nothing", CLASSIC, &format!("^{name}$"));
    let (is_good, text) = scene.doctor();
    assert!(is_good && text.contains("warn  topics") && text.contains("no topic matches"), "{text}");
    let worker = Process::start(&scene.file);
    worker.wait_until_unready("no topic matches broker.kafka.topic_pattern");
    create_topics(&scene.brokers, &[&name], 2);
    worker.wait_until_ready();
    produce(&name, &numbered(0..700));
    wait_for_total(&scene.redis, 700);
    assert_eq!(worker.stop(), 0);
}

/// The worker was ready with no lag, and whoever sent an event waited for half a minute.
#[test]
fn a_topic_that_is_deleted_under_a_worker_is_said_to_whoever_asks_or_sends() {
    let scene = Scene::new("it-deleted", 2, &format!("{CLASSIC}{SOON}"));
    let worker = Process::start(&scene.file);
    let http = worker.address().port();
    let send = || post(http, "", r#"{"event":"a"}"#);
    poll_until(PATIENCE, "an event comes in", || send().starts_with("HTTP/1.1 200").then_some(()));
    wait_for_total(&scene.redis, 1);
    worker.wait_until_ready();
    delete_topics(&scene.brokers, &[&scene.topic]);
    for _ in 0..2 {
        let since = Instant::now();
        let answer = poll_until(PATIENCE, "it is refused", || Some(send()).filter(|answer| !answer.contains(" 200 ")));
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("there is no topic"), "{answer}");
        assert!(answer.to_lowercase().contains("retry-after"), "{answer}");
        // It was thirty seconds for each.
        assert!(since.elapsed() < Duration::from_secs(15), "after {:?}", since.elapsed());
    }
    worker.wait_until_unready(&format!("there is no topic \\\"{}\\\"", scene.topic));
    let (is_good, text) = scene.doctor();
    assert!(!is_good && text.contains("there is no topic"), "{text}");
    assert_eq!(worker.stop(), 0);
}

#[test]
fn one_topic_of_several_that_is_deleted_makes_the_worker_unready_and_the_others_go_on() {
    let mut scene = Scene::new("it-one-of", 1, &format!("{CLASSIC}{SOON}"));
    let gone = format!("{}-gone", scene.topic);
    create_topics(&scene.brokers, &[&gone], 1);
    scene.file = scene.changed(
        "two",
        &format!("topics = [\"{}\"", scene.topic),
        &format!("topics = [\"{gone}\", \"{}\"", scene.topic),
    );
    let worker = Process::start(&scene.file);
    scene.produce(&[], &numbered(0..70));
    wait_for_total(&scene.redis, 70);
    worker.wait_until_ready();
    delete_topics(&scene.brokers, &[&gone]);
    worker.wait_until_unready(&format!("there is no topic \\\"{gone}\\\""));
    scene.produce(&[], &numbered(70..140));
    wait_for_total(&scene.redis, 140);
    create_topics(&scene.brokers, &[&gone], 1);
    worker.wait_until_ready();
    assert_eq!(total(&scene.redis), 140);
    assert_eq!(worker.stop(), 0);
}

/// A pattern of what the dialects have in common, for names of few letters, so that many match.
fn patterns() -> impl Strategy<Value = String> {
    let atom = prop_oneof![
        "[abz019]",
        Just(r"\.".to_owned()),
        Just("-".to_owned()),
        Just("_".to_owned()),
        Just(".".to_owned()),
        Just(r"\d".to_owned()),
        Just(r"\w".to_owned()),
        Just(r"\W".to_owned()),
        Just("[a-c]".to_owned()),
        Just("[^a1]".to_owned()),
        Just(r"[\d_]".to_owned()),
        Just(r"\b".to_owned()),
    ];
    let expression = atom.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("({})", parts.join("|"))),
            (inner, prop_oneof![Just("*"), Just("+"), Just("?"), Just("{2}"), Just("{1,3}"), Just("*?"), Just("+?")])
                .prop_map(|(part, times)| format!("(?:{part}){times}")),
        ]
    });
    (expression, proptest::bool::ANY).prop_map(|(body, ends)| format!("^(?:{body}){}", if ends { "$" } else { "" }))
}

/// Matches in our dialect are those of Python's `re`, which shares no code with it, for what both
/// can say.
#[test]
fn topic_patterns_match_what_an_independent_implementation_matches() {
    const CASES: usize = 400;
    const CHECK: &str = "import json, re, sys\n\
        for line in sys.stdin:\n    pattern, names = json.loads(line)\n    \
        print(json.dumps([name for name in names if re.search(pattern, name, re.ASCII)]))\n";
    let mut runner = TestRunner::deterministic();
    let names = proptest::collection::vec("[abz019._-]{1,6}", 12);
    let mut asked = String::new();
    let mut ours = Vec::new();
    for _ in 0..CASES {
        let pattern = patterns().new_tree(&mut runner).unwrap().current();
        let mut names = names.new_tree(&mut runner).unwrap().current();
        names.retain(|name| !name.starts_with("__"));
        names.sort();
        names.dedup();
        let config = Config { topic_pattern: pattern.clone(), ..Config::default() };
        let topics = Topics::new(&config).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        let counted: Vec<String> = topics.counted(names.iter().map(String::as_str)).into_iter().collect();
        asked += &format!("{}\n", serde_json::json!([pattern, names]));
        ours.push((pattern, counted));
    }
    let matching = ours.iter().map(|(_, counted)| counted.len()).sum::<usize>();
    assert!(matching > CASES, "{matching} matches say little");
    let python = std::env::var("TRAQQ_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut python =
        Command::new(python).args(["-c", CHECK]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = python.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(asked.as_bytes()).unwrap());
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap();
    let theirs = String::from_utf8(output.stdout).unwrap();
    assert_eq!(theirs.lines().count(), CASES);
    for ((pattern, counted), line) in ours.iter().zip(theirs.lines()) {
        let theirs: Vec<String> = serde_json::from_str(line).unwrap();
        assert_eq!(counted, &theirs, "{pattern}");
    }
}
