//! Messages that are made to stop a worker, or to command the stream of dead letters.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::jetstream::stream;
use futures_util::StreamExt;

use crate::nats::{Raw, STREAM, Scene, publish_raw, with};
use crate::process::{PATIENCE, Process};
use crate::servers::poll_until;

fn message(subject: &str, headers: &[u8], payload: &str) -> Raw {
    Raw { subject: subject.to_owned(), headers: headers.to_vec(), payload: payload.to_owned() }
}

fn event(number: usize, subject: &str, headers: &[u8]) -> Raw {
    message(subject, headers, &format!(r#"{{"event":"hostile","ip":"10.2.0.{number}"}}"#))
}

/// The client of NATS ended for good over a header value with a lone CR, everything that was asked
/// said "channel closed", and the worker was ready. Whoever was started next ended over it as well.
#[test]
fn messages_that_end_the_client_stop_nobody() {
    let kills: Vec<Raw> = [
        // The client panics.
        (&b"NATS/1.0\r\nX: a\rb\r\n\r\n"[..], "k1"),
        (b"NATS/1.0\r\nX: a\r\n b\rc\r\n\r\n", "k2"),
        // The client splits the head of the message in other places than the server.
        (b"NATS/1.0\r\nX: a\r\n\r\n", "k\u{2003}3"),
        (b"NATS/1.0\r\nX: a\r\n\r\n", "k\u{b}4"),
        (b"NATS/1.0\r\n continued: first\r\n\r\n", "k5"),
    ]
    .iter()
    .enumerate()
    .map(|(number, (headers, key))| event(number, &format!("{STREAM}.{key}"), headers))
    .collect();
    let scene = Scene::new(2, "");
    scene.publish(100);
    publish_raw(&scene.nats, &kills);
    scene.publish(100);
    let worker = scene.worker(0);
    scene.wait_for_total(205);
    worker.wait_for_line("the client of NATS ended");
    // One at a time, each as the last message that there is.
    for (number, kill) in kills.iter().enumerate() {
        publish_raw(&scene.nats, std::slice::from_ref(kill));
        scene.wait_for_total(206 + number as i64);
    }
    poll_until(PATIENCE, "ready", || worker.is_ready().then_some(()));
    assert_eq!(worker.stop(), 0);
    let worker = scene.worker(0);
    scene.publish(10);
    scene.wait_for_total(220);
    poll_until(PATIENCE, "ready", || worker.is_ready().then_some(()));
    assert_eq!(worker.metric("traqq_dead_letters_total"), 0.0);
    assert_eq!(worker.stop(), 0);
}

/// A stream of dead letters that obeys rollups, which remove what it has.
fn obedient(scene: &Scene) {
    let letters = stream::Config {
        name: "letters".to_owned(),
        subjects: vec!["dead".to_owned()],
        allow_rollup: true,
        ..stream::Config::default()
    };
    with(&scene.nats, |jetstream| async move {
        jetstream.create_stream(letters).await.unwrap();
    });
    scene.create();
}

/// All dead letters, by the offset of their record.
fn letters(scene: &Scene, count: u64) -> BTreeMap<i64, HeaderMap> {
    poll_until(PATIENCE, &format!("{count} dead letters"), || {
        let messages = with(&scene.nats, |jetstream| async move {
            jetstream.get_stream("letters").await.unwrap().cached_info().state.messages
        });
        (messages == count).then_some(())
    });
    with(&scene.nats, |jetstream| async move {
        let stream = jetstream.get_stream("letters").await.unwrap();
        let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
        let messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        let letters: Vec<_> = messages.take(count as usize).collect().await;
        letters
            .into_iter()
            .map(|letter| {
                let headers = letter.unwrap().message.headers.unwrap();
                (headers.get("traqq-offset").unwrap().as_str().parse().unwrap(), headers)
            })
            .collect()
    })
}

/// A dead letter took over the producer's headers: `Nats-Expected-Stream` held the partition up for
/// ever, and `Nats-Rollup`, hidden behind a lone LF, left one dead letter of six.
#[test]
fn headers_of_a_record_are_no_commands_to_the_stream_of_dead_letters() {
    let scene = Scene::without_stream(1, "");
    obedient(&scene);
    let headers: [&[u8]; 7] = [
        b"NATS/1.0\r\nNats-Expected-Stream: events\r\n\r\n",
        b"NATS/1.0\r\nX: a\nNats-Rollup: all\r\n\r\n",
        b"NATS/1.0\r\nX: a\nnats-rollup: all\nNats-TTL: 1s\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: mine\r\nX: \x1b[2J\r\n\r\n",
        b"NATS/1.0\r\ntraqq-reason: too_old\r\nTraqq-Offset: 77\r\ntraqq-topic: other\r\n\r\n",
        b"NATS/1.0\r\ntraqq-key: k\r\nPlain: yes\r\n\r\n",
        b"NATS/1.0\r\nX: a\rNats-Rollup: all\r\n\r\n",
    ];
    let bad: Vec<Raw> = headers.iter().map(|headers| message(&format!("{STREAM}.k"), headers, "not json")).collect();
    publish_raw(&scene.nats, &bad);
    scene.publish(10);
    let worker: Process = scene.worker(0);
    scene.wait_for_total(10);
    let letters = letters(&scene, 7);
    for (offset, headers) in &letters {
        assert_eq!(headers.get("traqq-reason").unwrap().as_str(), "invalid_json", "{headers:?}");
        assert_eq!(headers.get_all("traqq-offset").count(), 1, "{offset}: {headers:?}");
        let commands = headers.iter().map(|(name, _)| name.to_string().to_ascii_lowercase());
        let commands: Vec<String> =
            commands.filter(|name| name.starts_with("nats-") && name != "nats-msg-id").collect();
        assert!(commands.is_empty(), "{offset}: {headers:?}");
    }
    let of = |offset: i64, name: &str| letters[&offset].get(name).map(|value| value.as_str().to_owned());
    assert_eq!(of(1, "traqq-original-Nats-Expected-Stream").as_deref(), Some("events"));
    assert_eq!(of(4, "traqq-original-Nats-Msg-Id").as_deref(), Some("mine"));
    assert_eq!(of(4, "X").as_deref(), Some("%1B[2J"));
    assert_eq!(of(5, "traqq-original-traqq-reason").as_deref(), Some("too_old"));
    assert_eq!(of(5, "traqq-original-Traqq-Offset").as_deref(), Some("77"));
    assert_eq!(of(6, "Plain").as_deref(), Some("yes"));
    assert_eq!(of(7, "X").as_deref(), Some("a%0DNats-Rollup: all"));
    assert_eq!(worker.metric("traqq_dead_letter_retries_total"), 0.0);
    assert_eq!(worker.stop(), 0);
}

/// What a destination refuses for good is sent as its beginning, without key and headers.
#[test]
fn a_dead_letter_that_is_refused_for_good_holds_nobody_up() {
    let scene = Scene::without_stream(1, "");
    let stream = stream::Config {
        name: "letters".to_owned(),
        subjects: vec!["dead".to_owned()],
        max_message_size: 1_500,
        ..stream::Config::default()
    };
    with(&scene.nats, |jetstream| async move {
        jetstream.create_stream(stream).await.unwrap();
    });
    scene.create();
    let long = format!("NATS/1.0\r\nX: {}\r\n\r\n", "x".repeat(4_000));
    publish_raw(&scene.nats, &[message(&format!("{STREAM}.k"), long.as_bytes(), "not json")]);
    scene.publish(10);
    let worker = scene.worker(0);
    scene.wait_for_total(10);
    let letters = letters(&scene, 1);
    assert_eq!(letters[&1].get("traqq-value-bytes").unwrap().as_str(), "8");
    assert!(letters[&1].get("X").is_none());
    assert_eq!(worker.stop(), 0);
}

/// Where counting begins at a time, a consumer had to deliver the first message after it.
#[test]
fn counting_begins_at_a_time_whatever_the_first_message_looks_like() {
    let scene = Scene::new(2, "");
    scene.publish(50);
    let begin = chrono::Utc::now() + chrono::TimeDelta::milliseconds(2);
    poll_until(PATIENCE, "the time", || (chrono::Utc::now() > begin).then_some(()));
    let kills: Vec<Raw> =
        (0..8).map(|number| event(number, &format!("{STREAM}.k{number}"), b"NATS/1.0\r\nX: a\rb\r\n\r\n")).collect();
    publish_raw(&scene.nats, &kills);
    scene.publish(50);
    let text = std::fs::read_to_string(&scene.file).unwrap();
    let begin = begin.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    std::fs::write(&scene.file, text.replace("key_field", &format!("start = \"{begin}\"\nkey_field"))).unwrap();
    let worker = scene.worker(0);
    scene.wait_for_total(58);
    assert_eq!(worker.stop(), 0);
}

/// Who reads a partition, by when its consumer was made.
fn consumer_of(scene: &Scene, partition: i32) -> Option<String> {
    with(&scene.nats, |jetstream| async move {
        let stream = jetstream.get_stream(STREAM).await.unwrap();
        stream.consumer_info(format!("traqq-{partition}")).await.ok().map(|info| info.created.to_string())
    })
}

/// Each of them ended the client of all partitions, so that a few of them a second stopped
/// everybody.
#[test]
fn messages_that_end_the_client_interrupt_no_other_partition() {
    let scene = Scene::new(2, "");
    let worker = scene.worker(0);
    // One key of each partition.
    let of_key = |number: usize| {
        publish_raw(&scene.nats, &[event(number, &format!("{STREAM}.k{number}"), b"NATS/1.0\r\n\r\n")]);
        with(&scene.nats, |jetstream| async move {
            let stream = jetstream.get_stream(STREAM).await.unwrap();
            let last = stream.get_raw_message(stream.cached_info().state.last_sequence).await.unwrap();
            last.subject.split('.').nth(1).unwrap().parse::<usize>().unwrap()
        })
    };
    let attacked = of_key(0);
    let honest = (1..).find(|number| of_key(*number) != attacked).unwrap();
    let count = honest as i64 + 1;
    scene.wait_for_total(count);
    let poison = |number: usize| {
        publish_raw(&scene.nats, &[event(number, &format!("{STREAM}.k0"), b"NATS/1.0\r\nX: a\rb\r\n\r\n")]);
    };
    // The first one ends the client that both are read with.
    poison(0);
    scene.wait_for_total(count + 1);
    worker.wait_for_line("messages have headers or subjects");
    let other = 1 - attacked as i32;
    let mut expected = count + 1;
    let send_honest = |expected: &mut i64| {
        publish_raw(&scene.nats, &[event(0, &format!("{STREAM}.k{honest}"), b"NATS/1.0\r\n\r\n")]);
        *expected += 1;
        scene.wait_for_total(*expected);
    };
    send_honest(&mut expected);
    let before = poll_until(PATIENCE, "the other partition is read", || consumer_of(&scene, other));
    for number in 0..20 {
        poison(number);
        expected += 1;
        send_honest(&mut expected);
    }
    assert_eq!(consumer_of(&scene, other), Some(before), "its consumer was never made anew");
    assert!(worker.is_ready());
    poll_until(PATIENCE, "no lag", || (worker.metric("traqq_lag_records") == 0.0).then_some(()));
    let (code, log) = worker.stop_and_log();
    assert_eq!(code, 0);
    // Of the library, in the form of the log and not of each.
    assert!(log.contains("panicked place=") && log.matches("panicked").count() < 10, "{log}");
}

/// Nobody could be given a partition any more.
#[test]
fn entries_that_end_the_client_are_removed_from_the_bucket() {
    let scene = Scene::new(2, "");
    scene.publish(100);
    let worker = scene.worker(0);
    scene.wait_for_total(100);
    let poison = || {
        let bucket = format!("$KV.traqq-traqq-{STREAM}");
        let entry = |key: &str, headers: &[u8]| message(&format!("{bucket}.{key}"), headers, "x");
        publish_raw(
            &scene.nats,
            &[
                entry("zzz", b"NATS/1.0\r\nX: a\rb\r\n\r\n"),
                entry("mark.0", b"NATS/1.0\r\nX: a\rb\r\n\r\n"),
                entry("yyy", b"NATS/1.0 200\r\n\r\n"),
                entry("lease.+1", b"NATS/1.0\r\n\r\n"),
            ],
        );
    };
    poison();
    worker.wait_for_line("entries of the group's bucket that nobody can read were removed");
    scene.publish(100);
    scene.wait_for_total(200);
    poll_until(PATIENCE, "ready", || worker.is_ready().then_some(()));
    assert_eq!(worker.stop(), 0);
    poison();
    let worker = scene.worker(0);
    scene.publish(100);
    scene.wait_for_total(300);
    poll_until(PATIENCE, "ready", || worker.is_ready().then_some(()));
    assert_eq!(worker.stop(), 0);
}
