//! TLS of traqq's own listeners: what other programs and its own commands see of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::certificates;
use crate::cli::{traqq, write_config};
use crate::process::{PATIENCE, Process};
use crate::servers::{free_port, poll_until};

pub struct Site {
    directory: TempDir,
    config: PathBuf,
    pub http: u16,
    pub tcp: u16,
}

impl Site {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates::make(&directory);
        let (http, tcp) = (free_port(), free_port());
        let path = directory.path();
        let text = format!(
            "[data]\ndirectory = {:?}\n[mapping]\nadd = [\"event\"]\n[log]\nformat = \"text\"\n\
             [server]\nhttp = \"127.0.0.1:{http}\"\ntcp = \"127.0.0.1:{tcp}\"\nheader_timeout_ms = 1000\n\
             tls_cert_file = {:?}\ntls_key_file = {:?}\n",
            path.join("data"),
            path.join("server.pem"),
            path.join("server.key"),
        );
        let config = write_config(path, &text);
        Self { directory, config, http, tcp }
    }

    pub fn start(&self) -> Process {
        let process = Process::start(&self.config);
        process.wait_for_line("listening for TCP");
        process
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command of ours that trusts this authority.
    fn run(&self, authority: &str, arguments: &[&str]) -> Output {
        let mut command = traqq();
        command.env("TRAQQ_SERVER__TLS_CA_FILE", self.file(authority));
        command.arg("--config").arg(&self.config).args(arguments).output().unwrap()
    }

    /// What `openssl s_client` is answered to `input`, a client that is not ours.
    fn ask(&self, port: u16, input: &str, until: &str) -> String {
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-connect", &format!("127.0.0.1:{port}"), "-CAfile"])
            .arg(self.file("ca.pem"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        client.stdin.as_mut().unwrap().write_all(input.as_bytes()).unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut answer = String::new();
        while !answer.contains(until) {
            answer += &lines.next().unwrap_or_else(|| panic!("{until:?} is not in the answer: {answer}"));
            answer.push('\n');
        }
        client.kill().unwrap();
        client.wait().unwrap();
        answer
    }

    /// The serial number of the certificate that is shown.
    fn serial(&self) -> String {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "openssl s_client -connect 127.0.0.1:{} </dev/null 2>/dev/null | openssl x509 -noout -serial",
                self.http
            ))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn both_listeners_speak_tls_and_nothing_else() {
    let site = Site::new();
    let process = site.start();
    let record = "{\"cmd\":\"record\",\"event\":{\"event\":\"tls\"}}\n";
    assert!(site.ask(site.tcp, record, "\n").contains("\"success\":true"));
    let answer = site.ask(site.http, "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let sent = site.run("ca.pem", &["record", r#"{"event":"tls"}"#]);
    assert!(sent.status.success(), "{}", complaint(&sent));
    poll_until(PATIENCE, "both events are counted", || {
        let found = site.run("ca.pem", &["find", "add/event", "--days", "1"]);
        String::from_utf8_lossy(&found.stdout)
            .lines()
            .any(|line| line.contains("tls") && line.contains('2'))
            .then_some(())
    });

    let stranger = site.run("other.pem", &["find", "add/event", "--days", "1"]);
    assert_eq!(stranger.status.code(), Some(1));
    assert!(complaint(&stranger).contains("server.tls_ca_file"), "{}", complaint(&stranger));
    let mut plain = TcpStream::connect(("127.0.0.1", site.http)).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("https://"), "{answer}");
    // Whoever connects and says nothing is not waited for longer than for a header.
    for port in [site.http, site.tcp] {
        let mut silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
        silent.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(process.stop(), 0);
}

#[test]
fn a_renewed_certificate_is_shown_without_a_restart() {
    let site = Site::new();
    let process = site.start();
    let first = site.serial();
    assert!(first.starts_with("serial="), "{first}");
    // Another certificate, and for a while with the key of the old one.
    let renewed = tempfile::tempdir().unwrap();
    certificates::make(&renewed);
    let copy = |name: &str| std::fs::copy(renewed.path().join(name), site.file(name)).unwrap();
    copy("server.pem");
    process.wait_for_line("the certificate stays as it is");
    assert_eq!(site.serial(), first);
    copy("server.key");
    process.wait_for_line("the certificate was renewed");
    assert_ne!(site.serial(), first);
    assert_eq!(process.stop(), 0);
}

#[test]
fn files_that_do_not_fit_are_refused_at_the_start() {
    let site = Site::new();
    std::fs::copy(site.file("client.key"), site.file("server.key")).unwrap();
    let output = site.run("ca.pem", &["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("is not the key of the certificate"), "{}", complaint(&output));
    let nowhere = Path::new("/nowhere.pem");
    let output = traqq()
        .env("TRAQQ_SERVER__TLS_CERT_FILE", nowhere)
        .arg("--config")
        .arg(&site.config)
        .args(["config", "check"])
        .output()
        .unwrap();
    assert!(!output.status.success() && complaint(&output).contains("/nowhere.pem"), "{}", complaint(&output));
}
