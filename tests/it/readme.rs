//! The quick start: every command of it is run, in its order, as it stands there, and answers what
//! is shown there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::servers::{free_port, poll_until};

/// What a test that runs has done already.
const DONE: &str = "git clone https://github.com/traqq/traqq && cd traqq";

/// What runs in the background; it ends with the test.
struct Background(Vec<Child>);

impl Drop for Background {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A command, and what is shown of its output, if anything is.
struct Step {
    command: String,
    shown: Option<String>,
}

fn steps() -> Vec<Step> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split("\n## Quick start\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let (mut steps, mut lines) = (Vec::new(), section.lines());
    while let Some(line) = lines.next() {
        if let Some(command) = line.strip_prefix("    ") {
            let command = command.split("  #").next().unwrap().trim().to_owned();
            steps.push(Step { command, shown: None });
        } else if line.starts_with("```") {
            let shown: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            steps.last_mut().unwrap().shown = Some(shown.join("\n"));
        }
    }
    steps
}

/// Without the days, which are others every day.
fn undated(output: &str) -> String {
    let date = regex::Regex::new(r"\d{4}-\d{2}-\d{2}T").unwrap();
    date.replace_all(output.trim_end(), "DAY").into_owned()
}

#[test]
fn every_command_of_the_quick_start_works() {
    let directory = tempfile::tempdir().unwrap();
    let (http, tcp, demo) = (free_port(), free_port(), free_port());
    let run = |command: &str| {
        let command = command
            .replace("cargo run --release demo", "target/release/traqq demo")
            .replace("traqq demo", &format!("traqq demo --listen 127.0.0.1:{demo}"))
            .replace("target/release/traqq", env!("CARGO_BIN_EXE_traqq"))
            .replace("localhost:9877", &format!("localhost:{http}"));
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {command}")]).current_dir(directory.path());
        shell
            .env("TRAQQ_SERVER__HTTP", format!("127.0.0.1:{http}"))
            .env("TRAQQ_SERVER__TCP", format!("127.0.0.1:{tcp}"));
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        shell
    };
    let steps = steps();
    assert_eq!(steps[0].command, DONE);
    let mut background = Background(Vec::new());
    let mut outputs = Vec::new();
    for Step { command, shown } in &steps[1..] {
        if let Some(background_command) = command.strip_suffix('&') {
            let log = directory.path().join("log");
            let said = std::fs::File::create(&log).unwrap();
            background.0.push(run(background_command).stdout(Stdio::null()).stderr(said).spawn().unwrap());
            let child = background.0.last_mut().unwrap();
            // The next line is typed by a person.
            let port = if command.contains("demo") { demo } else { http };
            poll_until(Duration::from_secs(60), "it is ready", || {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{command}: {ended:?}: {}", std::fs::read_to_string(&log).unwrap());
                let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
                write!(stream, "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                answer.contains(" 200 ").then_some(())
            });
            continue;
        }
        let output = || {
            let mut child = run(command).spawn().unwrap();
            let mut output = String::new();
            child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
            assert!(child.wait().unwrap().success(), "{command}: {output}");
            output
        };
        let mut printed = output();
        if let Some(shown) = shown {
            // An event is counted a moment after it was taken. One that is sent again would count
            // twice.
            if !command.starts_with("curl --json") {
                poll_until(Duration::from_secs(60), "the output that is shown", || {
                    printed = output();
                    (undated(&printed) == undated(shown)).then_some(())
                });
            }
            assert_eq!(undated(&printed), undated(shown), "{command}");
        }
        outputs.push(printed);
    }
    assert!(outputs.len() >= 6 && outputs.iter().all(|output| !output.trim().is_empty()), "{outputs:?}");
    assert_eq!(steps.iter().filter(|step| step.shown.is_some()).count(), 3);
    // The demo keeps to itself.
    let stats = run("curl -s localhost:9877/api/v1/stats").output().unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
    assert_eq!(stats["totals"]["events"], 2, "{stats}");
    assert!(directory.path().join("traqq-demo").is_dir());
}
