//! What traqq must never print: every secret of a configuration, wherever it was put, in every command, at the most talkative level,
//! over servers that answer and over servers that refuse.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::cli::{traqq, write_config};
use crate::process::PATIENCE;
use crate::servers::{Nats, Redis, free_port, poll_until};

/// What begins every secret here, and is part of no other word: finding it means that one was printed.
const MARK: &str = "zq";

const SECRETS: [(&str, &str); 6] = [
    ("TRAQQ_STORE__REDIS__PASSWORD", "zq1redis"),
    ("TRAQQ_STORE__REDIS__SENTINEL_PASSWORD", "zq2sentinel"),
    ("TRAQQ_BROKER__NATS__PASSWORD", "zq3nats"),
    ("TRAQQ_SERVER__TOKEN", "zq4token"),
    ("TRAQQ_SERVER__READ_TOKEN", "zq5read"),
    ("TRAQQ_SERVER__WRITE_TOKEN", "zq6write"),
];

const COMMANDS: [&[&str]; 13] = [
    &["config", "show"],
    &["config", "show", "--json"],
    &["config", "check"],
    &["config", "check", "--sidecar"],
    &["doctor"],
    &["doctor", "--json"],
    &["doctor", "--create"],
    &["run"],
    &["serve"],
    &["mapping", "show"],
    &["position", "show"],
    &["query", "--days", "1"],
    &["top"],
];

/// How long a worker is listened to.
const LISTEN: Duration = Duration::from_secs(2);
/// Everything of ours and of the clients.
const LEVEL: &str = "log.level=trace,async_nats=trace,async_nats::connection=trace,hyper=trace";

/// What the command printed until it ended or had been listened to, and what it answered meanwhile.
fn printed(config: &Path, http: u16, arguments: &[&str]) -> String {
    let mut command = traqq();
    command.envs(SECRETS);
    let (log, out) = (config.with_extension("err"), config.with_extension("out"));
    let file = |path| Stdio::from(std::fs::File::create(path).unwrap());
    command.arg("--config").arg(config).args(["--set", LEVEL]).args(arguments);
    let mut child = command.stdout(file(&out)).stderr(file(&log)).stdin(Stdio::null()).spawn().unwrap();
    let read = || [&log, &out].map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()).concat();
    let is_service = ["run", "serve"].contains(&arguments[0]);
    let began = Instant::now();
    poll_until(PATIENCE, &format!("{arguments:?} ends or works"), || {
        let has_ended = child.try_wait().unwrap().is_some();
        (has_ended || (is_service && began.elapsed() > LISTEN)).then_some(())
    });
    let mut text = String::new();
    if is_service {
        text.extend(["/readyz", "/api/v1/stats", "/metrics"].map(|path| answered(http, path).unwrap_or_default()));
    }
    _ = child.kill();
    child.wait().unwrap();
    text + &read()
}

fn answered(http: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", http))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let token = "authorization: Bearer zq4token\r\n";
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n{token}connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The lines that print a secret.
fn assert_tight(text: &str, context: &str) {
    let leaks: Vec<&str> = text.lines().filter(|line| line.contains(MARK)).collect();
    assert!(leaks.is_empty(), "{context} prints a secret:\n{}", leaks.join("\n"));
}

fn kafka(brokers: &str, properties: &str) -> String {
    format!(
        "[broker.kafka]\nbrokers = {brokers:?}\ntopics = [\"t\"]\ngroup = \"g\"\n[broker.kafka.properties]\n{properties}\n"
    )
}

fn nats(server: &str) -> String {
    format!("[broker.nats]\nservers = [\"nats://127.0.0.1:9\", {server:?}]\nstream = \"s\"\ngroup = \"g\"\n")
}

fn redis(url: &str) -> String {
    format!("[store.redis]\nurl = {url:?}\n")
}

/// Listens on a port of its own.
fn config(directory: &Path, more: &str) -> (std::path::PathBuf, u16) {
    let http = free_port();
    let server = format!("[mapping]\nadd = [\"event\"]\n[server]\nhttp = \"127.0.0.1:{http}\"\ntcp = \"off\"\n");
    (write_config(directory, &format!("{more}{server}")), http)
}

#[test]
fn secrets_are_printed_by_no_command_at_any_level() {
    let directory = tempfile::tempdir().unwrap();
    let open = Redis::start(&["--requirepass", "zq1redis"]);
    let strict = Redis::start(&["--requirepass", "another"]);
    let server = Nats::start_with("authorization { user: traqq, password: zq3nats }");
    let properties = "\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n\"sasl.username\" = \"u\"\n\
         \"sasl.password\" = \"zq7sasl\"\n\"ssl.key.password\" = \"zq8keypass\"\n\"debug\" = \"all\"\n";
    let kafka = kafka(&format!("127.0.0.1:{}", free_port()), properties);
    let jetstream = nats(&server.url()) + "username = \"traqq\"\n[broker.nats.create]\nreplicas = 1\n";
    let in_url = format!("redis://default:zq9url@127.0.0.1:{}", strict.port());
    let mut found = String::new();
    for (broker, store) in
        [(&kafka, redis(&open.url())), (&jetstream, redis(&strict.url())), (&jetstream, redis(&in_url))]
    {
        let (config, http) = config(directory.path(), &format!("{broker}{store}"));
        for arguments in COMMANDS {
            let text = printed(&config, http, arguments);
            assert_tight(&text, &format!("`traqq {}`", arguments.join(" ")));
            found += &text;
        }
    }
    // It looked where it mattered: servers were reached, and refused.
    for part in ["refuses the user name or password", "********"] {
        assert!(found.contains(part), "{part:?} was never printed");
    }
}

/// Every key that holds an address, a list of hosts or a client's property, with a secret where none belongs.
#[test]
fn secrets_in_wrong_places_are_printed_by_no_command() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    // User and password, a token alone, in percent-encoding, as a parameter, and behind what cuts a URL short.
    let user_infos = ["user:zqA@", "zqB@", ":zqC@", "us%40er:zq%44@", "user:zq/E@", "user:zq?F@", "user:zq#G@"];
    let parameters = ["?password=zqH", "?token=zqI&x=1", "?user=u&pass=zqJ", "?zqK", "#zqL", "/?auth=zqM"];
    let hosts = |prefix: &str| {
        let with_user = user_infos.iter().map(move |user| format!("{prefix}{user}127.0.0.1:{port}"));
        let prefix = prefix.to_owned();
        with_user.chain(parameters.iter().map(move |end| format!("{prefix}127.0.0.1:{port}{end}"))).collect::<Vec<_>>()
    };
    let quiet = redis(&format!("redis://127.0.0.1:{port}"));
    let mut configs: Vec<String> = Vec::new();
    for scheme in ["", "SASL_PLAINTEXT://", "kafka://"] {
        configs.extend(hosts(scheme).iter().map(|host| kafka(&format!("127.0.0.1:9,{host}"), "") + &quiet));
    }
    for scheme in ["", "nats://", "tls://"] {
        configs.extend(hosts(scheme).iter().map(|host| nats(host) + &quiet));
    }
    let local = "[broker]\nkind = \"local\"\n";
    for scheme in ["", "redis://", "rediss://", "unix://", "http://"] {
        configs.extend(hosts(scheme).iter().map(|url| local.to_owned() + &redis(url)));
    }
    for scheme in ["redis-sentinel://", "redis-cluster://"] {
        let end = if scheme.contains("sentinel") { "#main" } else { "" };
        for url in hosts(scheme) {
            let list = url.replacen("127.0.0.1", "127.0.0.1:9,127.0.0.1", 1);
            configs.push(local.to_owned() + &redis(&format!("{list}{end}")) + "lanes = 2\n");
        }
    }
    for (name, value) in [
        ("sasl.password", "zqN"),
        ("sasl.pasword", "zqO"),
        ("sasl.jaas.config", "org.apache.kafka.Login required password=\\\"zqP\\\";"),
        ("sasl.oauthbearer.config", "secret=zqQ"),
        ("sasl.oauthbearer.client.secret", "zqR"),
        ("sasl.oauthbearer.token.endpoint.url", "https://u:zqS@127.0.0.1/token"),
        ("sasl.kerberos.kinit.cmd", "echo zqT | kinit"),
        ("ssl.key.password", "zqU"),
        ("ssl.key.pem", "zqV"),
        ("ssl.keystore.password", "zqW"),
    ] {
        configs.push(kafka("127.0.0.1:9", &format!("{name:?} = \"{value}\"")) + &quiet);
    }
    let commands =
        [&["config", "show"][..], &["config", "show", "--json"], &["config", "check"], &["doctor"], &["run"], &["serve"]];
    // A server that is not there is waited for by these: one of each kind is enough.
    let waits = |text: &str| !text.contains("not usable") && !text.contains("do not belong") && !text.contains("looked at");
    for text in configs {
        let (config, http) = config(directory.path(), &text);
        let show = printed(&config, http, commands[0]);
        assert_tight(&show, &text);
        let check = printed(&config, http, commands[2]);
        assert_tight(&check, &text);
        let rest: &[&[&str]] = if waits(&check) { &[] } else { &commands[3..] };
        for arguments in rest {
            assert_tight(&printed(&config, http, arguments), &format!("`traqq {}` with\n{text}", arguments.join(" ")));
        }
    }
    for address in ["zqX@127.0.0.1:9877", "http://u:zqY@127.0.0.1:9877", "127.0.0.1:9877?token=zqZ"] {
        let server = format!("[mapping]\nadd = [\"event\"]\n[server]\nhttp = {address:?}\ntcp = {address:?}\n");
        let config = write_config(directory.path(), &server);
        for arguments in commands.iter().chain(&[&["find", "add/event"][..], &["record", "{}"], &["top"]]) {
            assert_tight(&printed(&config, port, arguments), &format!("`traqq {}` with\n{server}", arguments.join(" ")));
        }
    }
    let (config, http) = config(directory.path(), "");
    for url in hosts("http://").iter().chain(&hosts("")).chain(&hosts("https://")) {
        for arguments in [&["query"][..], &["find", "add/event"], &["record", "{\"event\":\"a\"}"], &["demo"]] {
            let text = printed(&config, http, &[arguments, &["--server", url]].concat());
            assert!(text.contains("--server"), "{url}: {text}");
            assert_tight(&text, &format!("`traqq {} --server {url}`", arguments.join(" ")));
        }
    }
}
