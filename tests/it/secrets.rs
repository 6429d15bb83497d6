//! What traqq must never print: every secret of a configuration, wherever it was put, in every
//! command, at the most talkative level, over servers that answer and over servers that refuse.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::cli::{traqq, write_config};
use crate::process::PATIENCE;
use crate::servers::{Nats, Redis, free_port, poll_until};

/// What begins every secret here, and is part of no other word: finding it means that one was
/// printed.
const MARK: &str = "zq";

const SECRETS: [(&str, &str); 6] = [
    ("TRAQQ_STORE__REDIS__PASSWORD", "zq1redis"),
    ("TRAQQ_STORE__REDIS__SENTINEL_PASSWORD", "zq2sentinel"),
    ("TRAQQ_BROKER__NATS__PASSWORD", "zq3nats"),
    ("TRAQQ_SERVER__TOKEN", "zq4token"),
    ("TRAQQ_SERVER__READ_TOKEN", "zq5read"),
    ("TRAQQ_SERVER__WRITE_TOKEN", "zq6write"),
];

const COMMANDS: [&[&str]; 14] = [
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
    &["store", "drop"],
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

/// Where no secret belongs: user and password in front of a host, a token alone, in
/// percent-encoding, behind what cuts a URL short, and as a parameter.
fn addresses(prefix: &str, port: u16) -> Vec<String> {
    let users = ["user:zqA@", "zqB@", ":zqC@", "us%40er:zq%44@", "user:zq/E@", "user:zq?F@", "user:zq#G@"];
    let ends = ["?password=zqH", "?token=zqI&x=1", "?user=u&pass=zqJ", "?zqK", "#zqL", "/?auth=zqM"];
    let users = users.iter().map(|user| format!("{prefix}{user}127.0.0.1:{port}"));
    users.chain(ends.iter().map(|end| format!("{prefix}127.0.0.1:{port}{end}"))).collect()
}

/// Configurations with a secret in every key that holds an address, a list of hosts or a client's
/// property.
fn misplaced(port: u16) -> Vec<String> {
    let quiet = redis(&format!("redis://127.0.0.1:{port}"));
    let mut configs: Vec<String> = Vec::new();
    for scheme in ["", "SASL_PLAINTEXT://"] {
        let hosts = addresses(scheme, port);
        configs.extend(hosts.iter().map(|host| kafka(&format!("127.0.0.1:9,{host}"), "") + &quiet));
    }
    for scheme in ["", "nats://"] {
        configs.extend(addresses(scheme, port).iter().map(|host| nats(host) + &quiet));
    }
    let local = "[broker]\nkind = \"local\"\n".to_owned();
    for scheme in ["", "redis://", "unix://"] {
        configs.extend(addresses(scheme, port).iter().map(|url| local.clone() + &redis(url)));
    }
    for (scheme, end) in [("redis-sentinel://", "#main"), ("rediss-cluster://", "")] {
        for url in addresses(scheme, port) {
            let list = url.replacen("127.0.0.1", "127.0.0.1:9,127.0.0.1", 1);
            configs.push(local.clone() + &redis(&format!("{list}{end}")) + "lanes = 2\n");
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
        ("plugin.library.paths", "zqT"),
        ("of.a.later.version", "zqT"),
        ("SASL.PASSWORD", "zqT"),
        ("sasl.oauthbearer.extensions", "secret=zqT"),
        ("ssl.key.password", "zqU"),
        ("ssl.key.pem", "zqV"),
        ("ssl.keystore.password", "zqW"),
    ] {
        configs.push(kafka("127.0.0.1:9", &format!("{name:?} = \"{value}\"")) + &quiet);
    }
    configs
}

#[test]
fn secrets_in_wrong_places_are_printed_by_no_command() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    // One that is good is for servers that are not there, which these would wait for.
    let others = [&["config", "show", "--json"][..], &["doctor"], &["run"], &["serve"]];
    for (number, text) in misplaced(port).into_iter().enumerate() {
        let (config, http) = config(directory.path(), &text);
        let show = printed(&config, http, &["config", "show"]);
        let check = printed(&config, http, &["config", "check"]);
        assert_tight(&(show + &check), &text);
        // Each of them meets every kind of key.
        if check.contains("error:") {
            let arguments = others[number % others.len()];
            let context = format!("`traqq {}` with\n{text}", arguments.join(" "));
            assert_tight(&printed(&config, http, arguments), &context);
        }
    }
    for address in ["zqX@127.0.0.1:9877", "http://u:zqY@127.0.0.1:9877", "127.0.0.1:9877?token=zqZ"] {
        let server = format!("[mapping]\nadd = [\"event\"]\n[server]\nhttp = {address:?}\ntcp = {address:?}\n");
        let config = write_config(directory.path(), &server);
        for arguments in others.iter().chain(&[&["config", "check"][..], &["find", "add/event"], &["record", "{}"]]) {
            let context = format!("`traqq {}` with\n{server}", arguments.join(" "));
            assert_tight(&printed(&config, port, arguments), &context);
        }
    }
    let (config, http) = config(directory.path(), "");
    let clients = [&["query"][..], &["find", "add/event"], &["record", "{\"event\":\"a\"}"], &["demo"], &["top"]];
    let urls = addresses("http://", port).into_iter().chain(addresses("", port));
    for (number, url) in urls.enumerate() {
        let arguments = [clients[number % clients.len()], &["--server", &url]].concat();
        let text = printed(&config, http, &arguments);
        assert!(text.contains("--server"), "{url}: {text}");
        assert_tight(&text, &format!("`traqq {}`", arguments.join(" ")));
    }
}
