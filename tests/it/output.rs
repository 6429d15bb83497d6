//! Standard output and standard error that take nothing: full, closed, or a terminal that has gone.

use std::fs::File;
use std::io::{PipeReader, Read, Write, pipe};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::cli::{traqq, write_config};
use crate::local::{NDJSON, Site, event};
use crate::process::{PATIENCE, Process};
use crate::servers::poll_until;

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    pipe().unwrap().1.into()
}

fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = traqq();
    command.arg("--config").arg(config).args(arguments).stdin(Stdio::null());
    command
}

/// Every command that prints while a server runs, and those that need the data directory for
/// themselves.
const BESIDE_A_SERVER: [&[&str]; 20] = [
    &["--help"],
    &["--version"],
    &["find", "--help"],
    &["help", "store", "export"],
    &["query"],
    &["query", "--json"],
    &["find", "add/event"],
    &["find", "add/event", "--json"],
    &["find", "add/event", "--days", "2", "--per-bucket"],
    &["top"],
    &["config", "show"],
    &["config", "show", "--json"],
    &["config", "check"],
    &["doctor"],
    &["doctor", "--json"],
    &["completions", "bash"],
    &["explain", "EVENT"],
    &["explain", "EVENT", "--json"],
    &["record", r#"{"event":"recorded"}"#],
    &["import", "EVENT", "--again", "--now"],
];
const WITHOUT_A_SERVER: [&[&str]; 7] = [
    &["mapping", "show"],
    &["mapping", "show", "--json"],
    &["mapping", "apply", "--dry-run"],
    &["mapping", "apply"],
    &["position", "show"],
    &["position", "show", "--json"],
    &["store", "export", "-"],
];

fn assert_told(config: &Path, arguments: &[&str]) {
    let name = arguments.join(" ");
    let output = |stdout| command(config, arguments).stdout(stdout).output().unwrap();
    let complaint = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let whole = output(Stdio::piped());
    assert!(whole.status.success() && !whole.stdout.is_empty(), "{name}: {}", complaint(&whole));
    let unwritten = output(full());
    assert_eq!(unwritten.status.code(), Some(1), "{name}: {}", complaint(&unwritten));
    let told = complaint(&unwritten);
    assert!(told.contains("standard output") && told.contains("No space left"), "{name}: {told}");
    let unread = output(closed());
    let is_export = arguments.contains(&"export") && arguments.contains(&"-");
    // Half an export is none, whoever closed the pipe.
    assert_eq!(unread.status.code(), Some(i32::from(is_export)), "{name}: {}", complaint(&unread));
    assert_eq!(complaint(&unread).is_empty(), !is_export, "{name}: {}", complaint(&unread));
}

/// `traqq find --json > /dev/full` ended with 0, and so did every other command.
#[test]
fn an_answer_that_cannot_be_written_whole_is_an_error_in_every_command() {
    let site = Site::new("", "");
    let process = site.start();
    assert_eq!(site.post(NDJSON, event("a", 1).as_bytes()).unwrap().status, 200);
    site.wait_until_counted();
    let file = site.config.with_file_name("event.json");
    std::fs::write(&file, event("b", 2)).unwrap();
    let of = |arguments: &'static [&'static str]| -> Vec<&str> {
        arguments.iter().map(|word| if *word == "EVENT" { file.to_str().unwrap() } else { word }).collect()
    };
    for arguments in BESIDE_A_SERVER {
        assert_told(&site.config, &of(arguments));
    }
    assert_eq!(process.stop(), 0);
    for arguments in WITHOUT_A_SERVER {
        assert_told(&site.config, &of(arguments));
    }
}

/// An export written to `-` was a file of that name.
#[test]
fn an_export_goes_through_pipes() {
    let site = Site::new("", "");
    let process = site.start();
    assert_eq!(site.post(NDJSON, event("a", 1).as_bytes()).unwrap().status, 200);
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);
    let directory = tempfile::tempdir().unwrap();
    let export = command(&site.config, &["store", "export", "-"]).current_dir(&directory).output().unwrap();
    let message = String::from_utf8_lossy(&export.stderr).into_owned();
    assert!(export.status.success() && message.contains("exported"), "{message}");
    assert_eq!(&export.stdout[..4], [0x28, 0xb5, 0x2f, 0xfd], "nothing but zstd");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    let other = Site::new("", "");
    let import = |bytes: &[u8]| {
        let mut import = command(&other.config, &["store", "import", "-"]);
        let mut child = import.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        _ = child.stdin.take().unwrap().write_all(bytes);
        child.wait_with_output().unwrap()
    };
    let half = import(&export.stdout[..export.stdout.len() / 2]);
    assert_eq!(half.status.code(), Some(1), "half an export");
    let whole = import(&export.stdout);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let again = command(&other.config, &["store", "export", "-"]).output().unwrap();
    assert_eq!(lines(&again.stdout)[1..], lines(&export.stdout)[1..]);
}

fn lines(export: &[u8]) -> Vec<String> {
    let text = zstd::stream::decode_all(export).unwrap();
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

/// A worker whose log cannot be written; it must not be left behind.
struct Silent(Child);

impl Silent {
    fn start(site: &Site, level: &str, stderr: Stdio) -> Self {
        let level = format!("log.level={level}");
        Self(command(&site.config, &["--set", &level, "run"]).stderr(stderr).spawn().unwrap())
    }

    /// That it counts, and what it knows of lost lines.
    fn counts(&mut self, site: &Site, id: &str) -> f64 {
        poll_until(PATIENCE, "it takes events", || {
            assert_eq!(self.0.try_wait().unwrap(), None, "it ended");
            site.post(NDJSON, event(id, 1).as_bytes()).ok().filter(|answer| answer.status == 200)
        });
        site.wait_until_counted();
        let text = site.text("/metrics");
        let lost = text.lines().find_map(|line| line.strip_prefix("traqq_log_lines_lost_total ")).unwrap();
        lost.parse().unwrap()
    }

    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// `traqq run 2>/dev/full` ended with a panic at its first line, and a log whose disk filled up
/// later ended it then.
#[test]
fn counting_goes_on_without_a_log() {
    for (level, format) in [("info", "text"), ("trace", "json")] {
        let site = Site::new("", "");
        let text = std::fs::read_to_string(&site.config).unwrap();
        std::fs::write(&site.config, text.replace("\"text\"", &format!("{format:?}"))).unwrap();
        let mut never = Silent::start(&site, level, full());
        assert!(never.counts(&site, "a") > 0.0);
        never.stop();
        // There is one at first, and then there is none.
        let (mut reader, writer) = pipe().unwrap();
        let mut later = Silent::start(&site, level, writer.into());
        read_until(&mut reader, "listening for TCP");
        drop(reader);
        later.counts(&site, "b");
        later.stop();
    }
}

fn read_until(reader: &mut PipeReader, part: &str) {
    let (mut text, mut chunk) = (String::new(), [0; 4096]);
    while !text.contains(part) {
        let length = reader.read(&mut chunk).unwrap();
        assert_ne!(length, 0, "{text}");
        text += &String::from_utf8_lossy(&chunk[..length]);
    }
}

/// What goes wrong is told by the exit code where the message cannot be.
#[test]
fn a_message_that_cannot_be_written_changes_no_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), "[worker]\nbatch_event = 5\n");
    for (arguments, code) in [
        (&["config", "check"][..], 2),
        (&["config", "chekc"], 2),
        (&["--nonsense"], 2),
        (&["store", "import", "/nowhere"], 2),
    ] {
        for stderr in [full(), closed()] {
            let status = command(&config, arguments).stderr(stderr).stdout(full()).status().unwrap();
            assert_eq!(status.code(), Some(code), "{arguments:?}");
        }
    }
}

/// A terminal that closes ended the process at once, with what it had in flight; one that was
/// started by `nohup` is to go on.
#[test]
fn a_terminal_that_closes_is_a_reason_to_stop_and_to_drain() {
    let site = Site::new("", "");
    let process = site.start();
    assert_eq!(site.post(NDJSON, event("a", 1).as_bytes()).unwrap().status, 200);
    let (code, log) = process.stop_by("-HUP");
    assert_eq!(code, 0, "{log}");
    let mut nohup = Command::new("nohup");
    nohup.arg(env!("CARGO_BIN_EXE_traqq")).stdin(Stdio::null()).stdout(Stdio::null());
    let process = Process::launch(&site.config, nohup, "log");
    process.wait_for_line("listening for TCP");
    process.signal("-HUP");
    assert_eq!(site.post(NDJSON, event("b", 2).as_bytes()).unwrap().status, 200);
    site.wait_until_counted();
    assert_eq!(process.stop(), 0);
}
