//! `traqq import` and files as they are: what is lost is said, and nothing is counted on a day that
//! is not its own.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::client::{Files, Request, Stand, Traqq, ndjson, reply, taken, text};
use crate::servers::poll_until;

/// Takes everything.
fn stand() -> Stand {
    Stand::start(|_, request| taken(request))
}

fn import(stand: &Stand, file: &str) -> Output {
    stand.run(&["import", "--now", "--at-least-once", file])
}

/// What was sent, in the order of the batches.
fn sent(requests: &[Request]) -> String {
    requests.iter().map(|request| text(&request.body)).collect()
}

/// One stray quote, and the rest of the file was one cell: "imported 101 events", exit code 0.
#[test]
fn a_quote_that_is_never_closed_loses_no_row_unsaid() {
    let files = Files::new();
    let rows = |count: usize, stray: usize| -> String {
        let row = |index: usize| if index == stray { "buy,\"x\n".to_owned() } else { format!("buy,{index}\n") };
        std::iter::once("event,geo\n".to_owned()).chain((1..=count).map(row)).collect()
    };
    for (text_of_file, line, from) in [
        ("event,geo\nbuy,DE\nbuy,\"x\nbuy,FR\nbuy,ES\n".to_owned(), 3, "it"),
        (rows(20_000, 100), 101, "it"),
        (rows(20_000, 5000), 5001, "line 4002 on"),
        // Longer than a row may be, so that it was "rejected", and 399,900 with it.
        (rows(400_000, 100), 101, "it"),
    ] {
        let stand = stand();
        let output = import(&stand, &files.write("s.csv", text_of_file));
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(&format!("s.csv: line {line}: ")), "{complaint}");
        let end = if from == "it" { "nothing of it was imported" } else { "nothing from line 4002 on was imported" };
        assert!(complaint.contains(end), "{complaint}");
        let imported = sent(&stand.requests()).lines().count();
        assert_eq!(imported, if from == "it" { 0 } else { 4000 });
        assert_eq!(text(&output.stdout), if imported == 0 { "" } else { "imported 4,000 events\n" });
    }
}

/// Mended, the same command goes on where it ended, and nothing is there twice.
#[test]
fn a_mended_file_goes_on() {
    let files = Files::new();
    let mut rows: Vec<String> = (0..2500).map(|index| format!("buy,{index}")).collect();
    let server = Traqq::start("run", "[mapping]\nadd = [\"event\", \"geo\"]\n");
    rows[1700] = "buy,\"1700".to_owned();
    let file = files.write("s.csv", format!("event,geo\n{}\n", rows.join("\n")));
    let output = server.run(&["import", "--now", &file]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("imported 1,000 events\n", Some(1)));
    rows[1700] = "buy,1700".to_owned();
    let file = files.write("s.csv", format!("event,geo\n{}\n", rows.join("\n")));
    let output = server.run(&["import", "--now", &file]);
    assert_eq!(text(&output.stdout), "imported 1,500 events, skipped 1,000 that were there already\n");
    poll_until(Duration::from_secs(20), "all is counted", || (server.count("buy") >= 2500).then_some(()));
    assert_eq!(server.count("buy"), 2500);
}

#[test]
fn rows_that_are_bad_are_named_and_the_others_imported() {
    let long = "x".repeat((1 << 20) + 1);
    let files = Files::new();
    for (rows, bad, events) in [
        ("buy,\"x\" y\nbuy,FR\n".to_owned(), "line 2: text follows the closing quote of cell 2", 1),
        ("buy\nbuy,FR\nbuy,ES,1\n".to_owned(), "line 2: the row has 1 cells, the header 2", 1),
        (format!("buy,{long}\nbuy,\"{long}\"\nbuy,FR\n"), "line 2: longer than 1048576 bytes", 1),
        (
            "buy,\"F\nR\",1\nbuy,ES\n".to_owned(),
            "line 2: the row has 3 cells, the header 2; the row goes on to line 3",
            1,
        ),
    ] {
        let stand = stand();
        let output = import(&stand, &files.write("s.csv", format!("event,geo\n{rows}")));
        let complaint = text(&output.stderr);
        assert!(complaint.starts_with(bad) && output.status.code() == Some(1), "{complaint}");
        assert!(text(&output.stdout).contains(&format!("imported {events} event, rejected ")), "{complaint}");
        assert_eq!(sent(&stand.requests()).lines().count(), events);
    }
}

/// Whatever separates cells and ends lines, in whatever encoding and packing: the same events.
#[test]
fn files_of_every_layout_are_read() {
    let files = Files::new();
    let plain = "event,geo\nbuy,DE\nview,\"F,R\"\n";
    let utf16 = |unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("\u{feff}{}", plain.replace('\n', "\r\n")).encode_utf16().flat_map(unit).collect()
    };
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |text: &str| zstd::bulk::compress(text.as_bytes(), 1).unwrap();
    let skippable = b"\x50\x2a\x4d\x18\x04\0\0\0\x10\0\0\0".to_vec();
    for (name, bytes) in [
        ("s.csv", plain.into()),
        ("s.csv", plain.replace('\n', "\r\n").into()),
        ("s.csv", plain.replace('\n', "\r").into()),
        ("s.csv", format!("\u{feff}{plain}").into_bytes()),
        ("s.csv", "sep=;\r\nevent;geo\r\nbuy;DE\r\nview;F,R\r\n".into()),
        ("s.csv", "event;geo\nbuy;DE\nview;F,R".into()),
        ("s.tsv", "event\tgeo\nbuy\tDE\nview\tF,R\n".into()),
        ("s.csv", utf16(u16::to_le_bytes)),
        ("s.csv", utf16(u16::to_be_bytes)),
        ("s.csv", [gzip("event,geo\nbuy,DE\n"), gzip("view,\"F,R\"\n"), vec![0; 1000]].concat()),
        ("s.csv.zst", [skippable.clone(), zstd("event,geo\nbuy,DE\n"), skippable, zstd("view,\"F,R\"\n")].concat()),
    ] {
        let stand = stand();
        let output = import(&stand, &files.write(name, &bytes));
        assert_eq!(text(&output.stdout), "imported 2 events\n", "{}: {}", bytes.escape_ascii(), text(&output.stderr));
        let expected = "{\"event\":\"buy\",\"geo\":\"DE\"}\n{\"event\":\"view\",\"geo\":\"F,R\"}\n";
        assert_eq!(sent(&stand.requests()), expected, "{}", bytes.escape_ascii());
    }
    // Garbage behind the end, and an end that is missing.
    for (bytes, part) in [
        ([gzip(plain), b"garbage".to_vec()].concat(), "no gzip"),
        (gzip(plain).split_last().unwrap().1.to_vec(), "the gzip stream is cut short"),
        (zstd(plain).split_last().unwrap().1.to_vec(), "the zstd stream is cut short"),
    ] {
        let stand = stand();
        let output = import(&stand, &files.write("s.csv", bytes));
        let complaint = text(&output.stderr);
        assert!(complaint.contains(part) && complaint.contains("nothing of it was imported"), "{complaint}");
        assert_eq!((output.status.code(), stand.requests().len()), (Some(1), 0));
    }
}

#[test]
fn files_that_are_no_events_are_refused_by_name() {
    let files = Files::new();
    for (name, bytes, part) in [
        ("a.csv.bz2", &b"BZh91AY&SY\0\x01"[..], "it is bzip2; `bzip2 -dc FILE | traqq import -`"),
        ("a.csv.xz", b"\xfd7zXZ\0\0\x04", "xz -dc FILE"),
        ("a.zip", b"PK\x03\x04\x14\0\0\0\x08\0a.csv", "unzip -p FILE"),
        ("a.parquet", b"PAR1\x15\x04\x15", "Parquet"),
        ("a.xlsx", b"PK\x03\x04\x14\0\x06\0\x08\0[Content_Types].xml", "Excel"),
        ("a.bin", b"ab\0\0\0", "binary"),
        ("a.txt", b"event,geo\nbuy,DE\n", "--format csv"),
        ("a.json", b"[\n{}\n]\n", "jq -c '.[]'"),
        ("a.json", b"{\n  \"event\": \"a\"\n}\n", "jq -c ."),
        ("a.ndjson", b"{\"event\":\"a\"}\r{\"event\":\"b\"}\r", "tr '\\r' '\\n'"),
        ("a.csv", b"event;geo,x\n1;2,3\n", "--separator"),
        ("a.csv", b"event,geo,geo\n1,2,3\n", "twice"),
        ("a.csv", b"event,\"geo\n1,2\n", "line 1: a quote is opened in cell 2 and never closed"),
    ] {
        let stand = stand();
        let output = import(&stand, &files.write(name, bytes));
        let complaint = text(&output.stderr);
        assert!(complaint.contains(part) && complaint.contains(name), "{name}: {complaint}");
        assert_eq!((output.status.code(), stand.requests().len()), (Some(1), 0), "{name}");
    }
}

#[test]
fn a_file_without_events_is_said_to_have_none() {
    let files = Files::new();
    let (empty, header) = (files.write("empty", ""), files.write("header.csv", "event,geo\r\n"));
    let stand = stand();
    let output = stand.run(&["import", &empty, &files.write("a", ndjson(1)), &header]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("imported 1 event\n", Some(0)));
    let complaint = text(&output.stderr);
    assert!(complaint.contains("empty: there are no events in it"), "{complaint}");
    assert!(complaint.contains("header.csv: there are no events in it"), "{complaint}");
    let output = stand.run(&["import", "-", "-"]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("once"), "{output:?}");
    let mut child = stand.command(&["import", "--now", "--format", "csv", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"event\nbuy\n").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "imported 1 event\n");
}

/// A week in a column `created` was counted today, for good. It is the server that knows which
/// fields are times.
#[test]
fn events_without_a_time_are_refused() {
    let files = Files::new();
    let file = files.write("week.csv", "event,geo,created\nbuy,DE,2026-11-21T10:00:00Z\nbuy,FR,2026-11-22T10:00:00Z\n");
    let stand = stand();
    let output = stand.run(&["import", &file]);
    let complaint = text(&output.stderr);
    for part in
        ["week.csv: line 2: its events have no time", "at, ts;", "event, geo, created", "--time-field created", "--now"]
    {
        assert!(complaint.contains(part), "{complaint}");
    }
    assert_eq!((output.status.code(), stand.requests().len()), (Some(1), 0));
    let output = stand.run(&["import", "--time-field", "created", &file]);
    assert_eq!(text(&output.stdout), "imported 2 events\n", "{}", text(&output.stderr));
    let body = text(&stand.requests()[0].body);
    assert!(
        body.starts_with(r#"{"event":"buy","geo":"DE","created":"2026-11-21T10:00:00Z","at":"2026-11-21T10:00:00Z"}"#)
    );
    // One event among others.
    let file = files.write("some", "{\"event\":\"a\",\"at\":1}\n{\"event\":\"a\"}\n{\"event\":\"a\",\"ts\":1}\n");
    let output = stand.run(&["import", &file]);
    assert_eq!(
        (text(&output.stdout).contains("imported 2 events, rejected 1 (first: line 2: "), output.status.code()),
        (true, Some(1))
    );
    assert_eq!(text(&stand.run(&["import", "--now", &file]).stdout), "imported 3 events\n");
    let output = stand.run(&["import", "--time-field", "ts", &file]);
    assert!(text(&output.stderr).contains("its events have no ts; they have at, event"), "{output:?}");
    let both = stand.run(&["import", "--time-field", "ts", "--now", &file]);
    assert_eq!(both.status.code(), Some(2));
}

/// The key of a batch is the file's; a server that had it with another time says so, and nothing is
/// counted twice.
#[test]
fn other_options_do_not_count_a_file_twice() {
    let files = Files::new();
    let yesterday = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() - 86_400;
    let file = files.write("week.csv", format!("event,created\n{}", format!("buy,{yesterday}\n").repeat(10)));
    let server = Traqq::start("run", "[mapping]\nadd = [\"event\"]\n[events]\ntime_fields = [\"when\"]\n");
    let output = server.run(&["import", "--time-field", "created", &file]);
    assert_eq!(text(&output.stdout), "imported 10 events\n", "{}", text(&output.stderr));
    let output = server.run(&["import", "--time-field", "created", &file]);
    assert_eq!(text(&output.stdout), "imported 0 events, skipped 10 that were there already\n");
    let output = server.run(&["import", "--now", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("with other options"), "{}", text(&output.stderr));
    let counted = || {
        let output = server.run(&["find", "add/event", "--days", "2", "--json"]);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["results"][0]["data"]["count"].as_i64()
    };
    poll_until(Duration::from_secs(20), "all is counted", || (counted() >= Some(10)).then_some(()));
    assert_eq!((counted(), server.count("buy")), (Some(10), 0));
}

/// An older server does not say how it reads events, and is taken to read them as it is configured
/// here.
#[test]
fn a_server_that_does_not_say_how_it_reads_events_is_believed_to_do_as_configured() {
    let files = Files::new();
    let stand = Stand::start_with(None, |_, request| match request.head.starts_with("GET ") {
        true => reply("405 Method Not Allowed", r#"{"detail":"use POST"}"#),
        false => taken(request),
    });
    let file = files.write("a", "{\"event\":\"a\",\"ts\":1}\n");
    assert_eq!(text(&stand.run(&["import", &file]).stdout), "imported 1 event\n");
    let output = stand.run(&["--set", "events.time_fields=[\"when\"]", "import", &file]);
    assert!(text(&output.stderr).contains("none of when"), "{}", text(&output.stderr));
}
