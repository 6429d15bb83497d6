//! A worker that cannot read its stream says so and why, whatever keeps it from reading, and what
//! comes in over it is refused for good only where it could never be taken.

use async_nats::jetstream::stream;
use serde_json::Value;

use crate::cli::traqq;
use crate::nats::{STREAM, Scene, with};
use crate::process::{PATIENCE, Process, post};
use crate::servers::{Nats, free_port, poll_until};

/// A stream of four partitions, otherwise as `change` wants it.
fn make(scene: &Scene, change: impl FnOnce(&mut stream::Config)) {
    let transform = stream::SubjectTransform {
        source: format!("{STREAM}.*"),
        destination: format!("{STREAM}.{{{{partition(4,1)}}}}.{{{{wildcard(1)}}}}"),
    };
    let mut config = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec![format!("{STREAM}.*")],
        subject_transform: Some(transform),
        ..stream::Config::default()
    };
    change(&mut config);
    let letters = stream::Config { name: "letters".to_owned(), ..plain(&["dead"]) };
    with(&scene.nats, |jetstream| async move {
        jetstream.create_stream(config).await.unwrap();
        jetstream.create_stream(letters).await.unwrap();
    });
}

fn not_ready(worker: &Process) -> Option<String> {
    worker.get("/readyz").ok().filter(|answer| answer.starts_with("HTTP/1.1 503"))
}

fn wait_for_reason(worker: &Process, reason: &str) -> String {
    poll_until(PATIENCE, &format!("not ready: {reason}"), || not_ready(worker).filter(|answer| answer.contains(reason)))
}

fn wait_until_ready(worker: &Process) {
    poll_until(PATIENCE, "ready", || worker.is_ready().then_some(()));
}

fn partitions(worker: &Process) -> Vec<Value> {
    let answer = worker.get("/api/v1/stats").unwrap();
    let stats: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    stats["partitions"].as_array().unwrap().clone()
}

fn doctor(scene: &Scene) -> (Option<i32>, String) {
    let output = traqq().arg("--config").arg(&scene.file).arg("doctor").output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// Three of four partitions were never read, and the worker was ready, with an end of 1 and no lag.
#[test]
fn a_limit_of_consumers_is_said_and_the_end_is_that_of_the_log() {
    let scene = Scene::without_stream(4, "");
    make(&scene, |stream| stream.max_consumers = 1);
    scene.publish(400);
    let worker = scene.worker(0);
    let answer = wait_for_reason(&worker, "maximum consumers limit reached");
    assert!(!answer.contains("events/1: events/1"), "{answer}");
    let unreadable = poll_until(PATIENCE, "three are not read, and end where the log does", || {
        let all = partitions(&worker);
        let unreadable: Vec<Value> = all.into_iter().filter(|each| each["state"] == "unreadable").collect();
        let is_known = |each: &Value| each["end"].as_i64().unwrap() > 300 && each["lag_records"].as_i64().unwrap() > 0;
        (unreadable.len() == 3 && unreadable.iter().all(is_known)).then_some(unreadable)
    });
    assert!(unreadable[0]["reason"].as_str().unwrap().contains("maximum consumers"), "{unreadable:?}");
    assert_eq!(worker.metric("traqq_partitions_unreadable"), 3.0);
    assert!(worker.metric("traqq_lag_records") > 0.0);
    let (code, text) = doctor(&scene);
    assert!(code == Some(1) && text.contains("each of the 4 partitions needs one"), "{text}");
    assert_eq!(worker.stop(), 0);
}

/// Nothing was counted, and the lag was 0.
#[test]
fn a_limit_of_the_stream_on_what_is_unacknowledged_is_worked_with() {
    let scene = Scene::without_stream(4, "");
    let limits = stream::ConsumerLimits { max_ack_pending: 10, inactive_threshold: std::time::Duration::from_secs(5) };
    make(&scene, |stream| stream.consumer_limits = Some(limits));
    counts_all(&scene);
}

/// The same of the server, and one on what is pulled at once.
#[test]
fn limits_of_the_server_are_worked_with() {
    let nats = Nats::start_with("jetstream { limits { max_ack_pending: 10, max_request_batch: 7 } }");
    let scene = Scene::on(nats, 4, "", "127.0.0.1:0", "");
    make(&scene, |_| {});
    counts_all(&scene);
}

fn counts_all(scene: &Scene) {
    scene.publish(500);
    let worker = scene.worker(0);
    scene.wait_for_total(500);
    scene.publish(500);
    scene.wait_for_total(1_000);
    wait_until_ready(&worker);
    poll_until(PATIENCE, "no lag", || (worker.metric("traqq_lag_records") == 0.0).then_some(()));
    let (code, text) = doctor(scene);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(worker.stop(), 0);
}

/// A consumer that somebody paused, or made into another one under its name, delivers nothing and
/// says nothing.
#[test]
fn a_consumer_that_does_not_deliver_is_made_anew() {
    let scene = Scene::without_stream(4, "");
    make(&scene, |_| {});
    let push = async_nats::jetstream::consumer::push::Config {
        durable_name: Some("traqq-1".to_owned()),
        deliver_subject: "somewhere".to_owned(),
        ..Default::default()
    };
    with(&scene.nats, |jetstream| async move {
        _ = jetstream.get_stream(STREAM).await.unwrap().create_consumer(push).await.unwrap();
    });
    let worker = scene.worker(0);
    scene.publish(400);
    scene.wait_for_total(400);
    with(&scene.nats, |jetstream| async move {
        for number in 0..4 {
            let until = serde_json::json!({ "pause_until": "2100-01-01T00:00:00Z" });
            let subject = format!("CONSUMER.PAUSE.{STREAM}.traqq-{number}");
            let answer: Value = jetstream.request(subject, &until).await.unwrap();
            assert_eq!(answer["paused"], true, "{answer}");
        }
    });
    scene.publish(400);
    scene.wait_for_total(800);
    wait_until_ready(&worker);
    assert_eq!(worker.stop(), 0);
}

/// The server refuses to the connection and not to who asks; a worker that saw no answer went on
/// waiting, and was ready.
#[test]
fn a_user_who_may_not_read_is_unready_and_doctor_names_the_subject() {
    let denied = [
        format!("$JS.API.CONSUMER.CREATE.{STREAM}.>"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.>"),
        format!("$KV.traqq-traqq-{STREAM}.>"),
    ];
    let scenes = denied.map(|denied| {
        let users = format!(
            "authorization {{ users: [{{ user: counter, password: p, permissions: {{ publish: {{ allow: \">\", deny: \"{denied}\" }} }} }}, \
             {{ user: all, password: p }}] }}, no_auth_user: all"
        );
        let access = "username = \"counter\"\npassword = \"p\"";
        let scene = Scene::on(Nats::start_with(&users), 4, access, "127.0.0.1:0", "");
        make(&scene, |_| {});
        scene.publish(40);
        let worker = scene.worker(0);
        (denied.trim_end_matches('>').to_owned(), scene, worker)
    });
    for (subject, scene, worker) in scenes {
        let answer = wait_for_reason(&worker, &format!("Publish to \\\"{subject}"));
        assert!(answer.contains("Permissions Violation"), "{answer}");
        let (code, text) = doctor(&scene);
        assert!(code == Some(1) && text.contains(&format!("may not publish to {subject}")), "{text}");
        assert_eq!(worker.stop(), 0);
    }
}

/// Also of a worker that has nothing to read, because there are more workers than partitions: that
/// alone is no reason.
#[test]
fn a_stream_that_is_deleted_leaves_every_worker_unready() {
    let scene = Scene::new(1, "");
    let workers = [scene.worker(0), scene.worker(1)];
    scene.publish(10);
    scene.wait_for_total(10);
    for worker in &workers {
        worker.wait_for_line("listening");
        wait_until_ready(worker);
    }
    let held = || workers.iter().map(|worker| partitions(worker).len()).sum::<usize>();
    poll_until(PATIENCE, "one has the partition", || (held() == 1).then_some(()));
    assert!(workers.iter().all(Process::is_ready));
    with(&scene.nats, |jetstream| async move { _ = jetstream.delete_stream(STREAM).await.unwrap() });
    for worker in &workers {
        wait_for_reason(worker, "there is no stream \\\"events\\\"");
    }
}

/// A gauge of 0 stood for every partition that a worker had once had.
#[test]
fn a_partition_that_is_given_back_takes_its_series_with_it() {
    let scene = Scene::new(2, "");
    let worker = scene.worker(0);
    scene.publish(200);
    scene.wait_for_total(200);
    let series = || {
        let answer = worker.get("/metrics").unwrap();
        let of = |line: &&str| line.starts_with("traqq_position{");
        let mut all: Vec<String> = answer.lines().filter(of).map(str::to_owned).collect();
        all.sort();
        all
    };
    let both = poll_until(PATIENCE, "both at their ends", || {
        let all = series();
        (all.len() == 2 && all.iter().any(|line| line.ends_with(" 201"))).then_some(all)
    });
    let other = scene.worker(1);
    poll_until(PATIENCE, "one is given back", || (series().len() == 1).then_some(()));
    assert!(!series()[0].ends_with(" 0"), "{:?}", series());
    assert_eq!(other.stop(), 0);
    let is_back = |all: &[String]| all.len() == 2 && all.iter().all(|line| !line.ends_with(" 0"));
    poll_until(PATIENCE, "it comes back with its value", || is_back(&series()).then_some(()));
    let name = |line: &String| line.split(' ').next().map(str::to_owned);
    assert_eq!(series().iter().map(name).collect::<Vec<_>>(), both.iter().map(name).collect::<Vec<_>>());
    assert_eq!(worker.stop(), 0);
}

/// What events meet that come in over HTTP.
fn answer_of(nats: Nats, access: &str, streams: Vec<stream::Config>, seal: bool) -> String {
    let http = free_port();
    let scene = Scene::on(nats, 1, access, &format!("127.0.0.1:{http}"), "");
    with(&scene.nats, |jetstream| async move {
        for config in streams {
            let mut made = jetstream.create_stream(config).await.unwrap();
            if seal && made.info().await.unwrap().config.name == STREAM {
                let config = stream::Config { sealed: true, ..made.cached_info().config.clone() };
                jetstream.update_stream(config).await.unwrap();
            }
        }
    });
    scene.create();
    let worker = scene.worker(0);
    worker.wait_for_line("listening");
    post(http, "content-type: application/json\r\n", r#"{"event":"e","ip":"10.0.0.1"}"#)
}

fn plain(subjects: &[&str]) -> stream::Config {
    let subjects = subjects.iter().map(ToString::to_string).collect();
    stream::Config { name: STREAM.to_owned(), subjects, ..stream::Config::default() }
}

/// They were asked to send again, for ever.
#[test]
fn events_that_can_never_come_in_are_refused_for_good_with_the_reason() {
    let origin = stream::Config { name: "origin".to_owned(), ..plain(&["o.*"]) };
    let source = || stream::Source { name: "origin".to_owned(), ..stream::Source::default() };
    let mirror = stream::Config { mirror: Some(source()), ..plain(&[]) };
    let sourced = stream::Config { sources: Some(vec![source()]), ..plain(&[]) };
    let silent = stream::Config { no_ack: true, ..plain(&["e.*"]) };
    let other = stream::Config { name: "other".to_owned(), ..plain(&["elsewhere.*"]) };
    let elsewhere = "ingest_subject = \"elsewhere.*\"";
    let cases = [
        ("ingest_subject", "", vec![plain(&["a", "b"])], false),
        ("is a mirror of origin", "", vec![origin.clone(), mirror], false),
        ("other streams only", "", vec![origin, sourced], false),
        ("is sealed", "", vec![plain(&["e.*"])], true),
        ("no_ack", "", vec![silent], false),
        ("taken by stream other, and events is counted", elsewhere, vec![other, plain(&["e.*"])], false),
        ("no stream takes subject elsewhere.", elsewhere, vec![plain(&["e.*"])], false),
    ];
    for (reason, access, streams, seal) in cases {
        let answer = answer_of(Nats::start(), access, streams, seal);
        assert!(answer.starts_with("HTTP/1.1 501") && answer.contains(reason), "{reason}: {answer}");
        assert!(!answer.to_lowercase().contains("retry-after"), "{reason}: {answer}");
    }
    let users = "authorization { users: [{ user: counter, password: p, permissions: { publish: { deny: \"e.*\" } } }, \
                 { user: all, password: p }] }, no_auth_user: all";
    let access = "username = \"counter\"\npassword = \"p\"";
    let answer = answer_of(Nats::start_with(users), access, vec![plain(&["e.*"])], false);
    assert!(answer.starts_with("HTTP/1.1 501") && answer.contains("Permissions Violation"), "{answer}");
}

/// What passes is worth sending again.
#[test]
fn events_that_a_full_stream_refuses_are_asked_for_again() {
    let full = |stream: stream::Config| stream::Config { discard: stream::DiscardPolicy::New, ..stream };
    let of_stream = full(stream::Config { max_bytes: 1, ..plain(&["e.*"]) });
    let of_subject =
        full(stream::Config { max_messages_per_subject: 1, discard_new_per_subject: true, ..plain(&["one"]) });
    let answer = answer_of(Nats::start(), "", vec![of_stream], false);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.to_lowercase().contains("retry-after"), "{answer}");
    assert!(answer.contains("maximum bytes exceeded"), "{answer}");
    let http = free_port();
    let scene = Scene::on(Nats::start(), 1, "", &format!("127.0.0.1:{http}"), "");
    with(&scene.nats, |jetstream| async move { _ = jetstream.create_stream(of_subject).await.unwrap() });
    scene.create();
    let worker = scene.worker(0);
    worker.wait_for_line("listening");
    let send = || post(http, "content-type: application/json\r\n", r#"{"event":"e","ip":"10.0.0.1"}"#);
    assert!(send().starts_with("HTTP/1.1 200"));
    let answer = send();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("maximum messages per subject"), "{answer}");
    assert_eq!(worker.stop(), 0);
}

/// Each dead letter was read and became another one.
#[test]
fn dead_letters_that_lead_back_into_the_stream_are_refused() {
    let dead = || stream::Config { name: "letters".to_owned(), ..plain(&["dead"]) };
    let source = || stream::Source { name: "letters".to_owned(), ..stream::Source::default() };
    for streams in [
        vec![plain(&["e.*", "dead"])],
        vec![dead(), stream::Config { sources: Some(vec![source()]), ..plain(&["e.*"]) }],
    ] {
        let mut scene = Scene::without_stream(1, "");
        let made = streams.clone();
        with(&scene.nats, |jetstream| async move {
            for config in made {
                jetstream.create_stream(config).await.unwrap();
            }
        });
        let refused = traqq().arg("--config").arg(&scene.file).arg("run").output().unwrap();
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && text.contains("leads into events"), "{text}");
        if streams.len() > 1 {
            continue;
        }
        // A server that is asked too early cannot say so; the first dead letter does.
        scene.nats.kill9();
        let worker = scene.worker(0);
        worker.wait_for_line("starting all the same");
        scene.nats.restart();
        with(&scene.nats, |jetstream| async move {
            jetstream.publish("e.bad", "not json".into()).await.unwrap().await.unwrap();
        });
        wait_for_reason(&worker, "leads into events");
        let messages = with(&scene.nats, |jetstream| async move {
            jetstream.get_stream(STREAM).await.unwrap().cached_info().state.messages
        });
        assert_eq!(messages, 1);
    }
}

/// It was asked once whether they do, and subjects of streams change.
#[test]
fn dead_letters_that_come_to_lead_back_into_the_stream_are_refused() {
    let letters = || stream::Config { name: "letters".to_owned(), ..plain(&["dead"]) };
    let scene = Scene::without_stream(1, "");
    let publish = || {
        with(&scene.nats, |jetstream| async move {
            jetstream.publish("e.bad", "not json".into()).await.unwrap().await.unwrap();
        });
    };
    let messages = |name: &'static str| {
        with(
            &scene.nats,
            |jetstream| async move { jetstream.get_stream(name).await.unwrap().cached_info().state.messages },
        )
    };
    with(&scene.nats, |jetstream| async move {
        jetstream.create_stream(plain(&["e.*"])).await.unwrap();
        jetstream.create_stream(letters()).await.unwrap();
    });
    let worker = scene.worker(0);
    publish();
    poll_until(PATIENCE, "a dead letter", || (messages("letters") == 1).then_some(()));
    with(&scene.nats, |jetstream| async move {
        jetstream.delete_stream("letters").await.unwrap();
        jetstream.update_stream(plain(&["e.*", "dead"])).await.unwrap();
    });
    publish();
    wait_for_reason(&worker, "leads into events");
    assert_eq!(messages(STREAM), 3);
    with(&scene.nats, |jetstream| async move {
        jetstream.update_stream(plain(&["e.*"])).await.unwrap();
        jetstream.create_stream(letters()).await.unwrap();
    });
    // Its own, and the one that went astray.
    poll_until(PATIENCE, "both dead letters", || (messages("letters") == 2).then_some(()));
    wait_until_ready(&worker);
    assert_eq!((messages(STREAM), worker.stop()), (3, 0));
}
