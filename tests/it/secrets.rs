//! What traqq must never print: every secret of a configuration, in every command, at the most talkative level, over servers that answer and over
//! servers that refuse.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::cli::{traqq, write_config};
use crate::process::PATIENCE;
use crate::servers::{Nats, Redis, free_port, poll_until};

/// Each is part of no other word, so that finding it means that it was printed.
const SECRETS: [(&str, &str); 9] = [
    ("TRAQQ_STORE__REDIS__PASSWORD", "zq1redis"),
    ("TRAQQ_STORE__REDIS__SENTINEL_PASSWORD", "zq2sentinel"),
    ("TRAQQ_BROKER__NATS__PASSWORD", "zq3nats"),
    ("TRAQQ_SERVER__TOKEN", "zq4token"),
    ("TRAQQ_SERVER__READ_TOKEN", "zq5read"),
    ("TRAQQ_SERVER__WRITE_TOKEN", "zq6write"),
    // In the configuration below.
    ("", "zq7sasl"),
    ("", "zq8keypass"),
    ("", "zq9url"),
];

const COMMANDS: [&[&str]; 10] = [
    &["config", "show"],
    &["config", "show", "--json"],
    &["config", "check"],
    &["doctor"],
    &["doctor", "--json"],
    &["run"],
    &["serve"],
    &["mapping", "show"],
    &["position", "show"],
    &["query", "--days", "1"],
];

/// How long a worker is listened to.
const LISTEN: Duration = Duration::from_secs(2);

/// What the command printed until it ended or had been listened to.
fn printed(config: &Path, arguments: &[&str]) -> String {
    let mut command = traqq();
    command.envs(SECRETS.into_iter().filter(|(variable, _)| !variable.is_empty()));
    let (log, out) = (config.with_extension("err"), config.with_extension("out"));
    let file = |path| Stdio::from(std::fs::File::create(path).unwrap());
    command.arg("--config").arg(config).args(["--set", "log.level=trace"]).args(arguments);
    let mut child = command.stdout(file(&out)).stderr(file(&log)).stdin(Stdio::null()).spawn().unwrap();
    let read = || [&log, &out].map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()).concat();
    let is_service = ["run", "serve"].contains(&arguments[0]);
    let began = Instant::now();
    poll_until(PATIENCE, &format!("{arguments:?} ends or works"), || {
        let has_ended = child.try_wait().unwrap().is_some();
        (has_ended || (is_service && began.elapsed() > LISTEN)).then_some(())
    });
    _ = child.kill();
    child.wait().unwrap();
    read()
}

#[test]
fn secrets_are_printed_by_no_command_at_any_level() {
    let directory = tempfile::tempdir().unwrap();
    let open = Redis::start(&["--requirepass", "zq1redis"]);
    let strict = Redis::start(&["--requirepass", "another"]);
    let nats = Nats::start_with("authorization { user: traqq, password: zq3nats }");
    let kafka = format!(
        "[broker.kafka]\nbrokers = \"127.0.0.1:{}\"\ntopics = [\"t\"]\ngroup = \"g\"\n[broker.kafka.properties]\n\
         \"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n\"sasl.username\" = \"u\"\n\
         \"sasl.password\" = \"zq7sasl\"\n\"ssl.key.password\" = \"zq8keypass\"\n",
        free_port()
    );
    let jetstream = format!(
        "[broker.nats]\nservers = [{:?}]\nstream = \"s\"\ngroup = \"g\"\nusername = \"traqq\"\n[broker.nats.create]\nreplicas = 1\n",
        nats.url()
    );
    let place = |url: String| format!("[store.redis]\nurl = {url:?}\n");
    let in_url = format!("redis://default:zq9url@127.0.0.1:{}", strict.port());
    let mut found = String::new();
    for (broker, store) in
        [(&kafka, place(open.url())), (&jetstream, place(strict.url())), (&jetstream, place(in_url.clone()))]
    {
        let more = "[mapping]\nadd = [\"event\"]\n[server]\nhttp = \"127.0.0.1:0\"\ntcp = \"off\"\n";
        let config = write_config(directory.path(), &format!("{broker}{store}{more}"));
        for arguments in COMMANDS {
            let text = printed(&config, arguments);
            for (_, secret) in SECRETS {
                assert!(!text.contains(secret), "`traqq {}` prints {secret}:\n{text}", arguments.join(" "));
            }
            found += &text;
        }
    }
    // It looked where it mattered: servers were reached, and refused.
    for part in ["refuses the user name or password", "********"] {
        assert!(found.contains(part), "{part:?} was never printed");
    }
}
