//! What keeps a worker from reading Kafka, told by the worker while it lasts and by `doctor`
//! beforehand: its group, its rights, and brokers that are something else.

use std::process::{Child, Command, Stdio};

use crate::certificates;
use crate::cli::{traqq, write_config};
use crate::process::{PATIENCE, Process, wait_for_total};
use crate::scene::{Scene, numbered};
use crate::servers::{Nodes, poll_until};

/// A member of the scene's group that is no worker of ours; gone with the value.
struct Stranger(Child);

impl Stranger {
    fn join(scene: &Scene, assignors: &str) -> Self {
        let assignors = format!("partition.assignment.strategy={assignors}");
        let child = Command::new("kcat")
            .args([
                "-b",
                &scene.brokers,
                "-X",
                "session.timeout.ms=6000",
                "-X",
                &assignors,
                "-G",
                &scene.topic,
                &scene.topic,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("kcat is installed by tests/run");
        Self(child)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The group refuses a member with other assignors. The worker was ready with no lag, for ever.
#[test]
fn a_group_with_another_assignor_is_found_and_waited_for() {
    let scene = Scene::new("it-assignor", 2, "");
    scene.produce(&[], &numbered(0..700));
    let stranger = Stranger::join(&scene, "range");
    let text = poll_until(PATIENCE, "doctor sees the stranger", || {
        let (is_good, text) = scene.doctor();
        (!is_good).then_some(text)
    });
    assert!(text.contains("BAD   group") && text.contains("range") && text.contains("cooperative-sticky"), "{text}");
    let worker = Process::start(&scene.file);
    worker.wait_until_unready("InconsistentGroupProtocol");
    worker.wait_until_unready("partition.assignment.strategy");
    drop(stranger);
    worker.wait_until_ready();
    wait_for_total(&scene.redis, 700);
    assert_eq!(worker.stop(), 0);
}

/// What another program of the group reads is not counted, and nothing else says so.
#[test]
fn a_group_with_a_member_that_is_no_worker_is_pointed_out() {
    let scene = Scene::new("it-stranger", 2, "");
    let (is_good, text) = scene.doctor();
    assert!(is_good && text.contains("group: ") && text.contains("no members"), "{text}");
    let stranger = Stranger::join(&scene, "cooperative-sticky");
    let text = poll_until(PATIENCE, "doctor sees the stranger", || {
        let (is_good, text) = scene.doctor();
        assert!(is_good, "{text}");
        text.contains("warn  group").then_some(text)
    });
    assert!(text.contains("rdkafka") && text.contains("not counted"), "{text}");
    // Others have the partitions, which is no fault.
    let worker = Process::start(&scene.file);
    worker.wait_until_ready();
    drop(stranger);
    assert_eq!(worker.stop(), 0);
}

#[test]
fn more_workers_than_partitions_are_ready() {
    let scene = Scene::new("it-idle", 1, "");
    let workers: Vec<Process> = (0..3).map(|number| scene.worker(&format!("worker{number}"))).collect();
    workers.iter().for_each(Process::wait_until_ready);
    scene.produce(&[], &numbered(0..70));
    wait_for_total(&scene.redis, 70);
    poll_until(PATIENCE, "one of them has it", || {
        (workers.iter().map(|worker| worker.metric("traqq_partitions")).sum::<f64>() == 1.0).then_some(())
    });
    assert!(workers.iter().all(Process::is_ready));
    workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), 0));
}

/// The name of a static member that is used twice: the first of the two ends, and says what to do.
#[test]
fn a_member_whose_name_another_one_took_says_so() {
    let scene = Scene::new("it-twice", 1, "[broker.kafka.properties]\n\"group.instance.id\" = \"one\"\n");
    let first = scene.worker("first");
    first.wait_until_ready();
    scene.produce(&[], &numbered(0..70));
    wait_for_total(&scene.redis, 70);
    let second = scene.worker("second");
    let line = first.wait_for_line("another member has the same");
    assert!(line.contains("group.instance.id"), "{line}");
    scene.produce(&[], &numbered(70..140));
    wait_for_total(&scene.redis, 140);
    assert_eq!(second.stop(), 0);
}

/// A right that is taken back under a worker, and one that was never given; both heal by
/// themselves.
#[test]
fn rights_that_are_missing_are_named_and_waited_for() {
    let settings = [
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found=true",
    ];
    let mut arguments = vec!["--heap", "256m"];
    settings.iter().for_each(|setting| arguments.extend(["--kafka-set", setting]));
    let nodes = Nodes::up_with("kafka", &arguments);
    let scene = Scene::at(nodes.variable("KAFKA_BROKERS"), "it-rights", 1, "");
    let rule = |change: &str, operation: &str, of: &str| {
        let rule = ["--deny-principal", "User:ANONYMOUS", "--operation", operation, of, &scene.topic, "--force"];
        scene.tool("acls", &[&[change][..], &rule].concat());
    };
    // Everything but what is denied: with one rule for a thing, what no rule allows is not.
    let everybody = ["--add", "--allow-principal", "User:*", "--operation", "All", "--topic", &scene.topic];
    scene.tool("acls", &[&everybody[..], &["--group", &scene.topic]].concat());
    let worker = Process::start(&scene.file);
    scene.produce(&[], &numbered(0..70));
    wait_for_total(&scene.redis, 70);
    worker.wait_until_ready();

    rule("--add", "Read", "--topic");
    scene.produce(&[], &numbered(70..140));
    worker.wait_until_unready("grant it READ on");
    let (is_good, text) = scene.doctor();
    assert!(!is_good && text.contains("BAD   reading") && text.contains("grant it READ"), "{text}");
    rule("--remove", "Read", "--topic");
    wait_for_total(&scene.redis, 140);
    worker.wait_until_ready();
    assert_eq!(worker.stop(), 0);

    rule("--add", "Read", "--group");
    let worker = Process::start(&scene.file);
    worker.wait_until_unready("grant this user READ on the group");
    rule("--remove", "Read", "--group");
    scene.produce(&[], &numbered(140..210));
    wait_for_total(&scene.redis, 210);
    worker.wait_until_ready();
    assert_eq!(worker.stop(), 0);

    // It is there, and for this user it is not.
    rule("--add", "Describe", "--topic");
    let (is_good, text) = scene.doctor();
    assert!(!is_good && text.contains("may not see topic") && text.contains("DESCRIBE"), "{text}");
}

/// An HTTP server was an "ok connection", and of the others it was only said that there was no
/// answer.
#[test]
fn doctor_says_what_a_listener_that_is_no_fitting_kafka_answered() {
    let directory = tempfile::tempdir().unwrap();
    certificates::make(&directory);
    let path = directory.path();
    let web = |name: &str, more: &str| {
        let text = format!(
            "[data]\ndirectory = {:?}\n[server]\nhttp = \"127.0.0.1:0\"\ntcp = \"off\"\n{more}[mapping]\nadd = [\"event\"]\n\
             [log]\nformat = \"text\"\n",
            path.join(name)
        );
        let file = path.join(format!("{name}.toml"));
        std::fs::write(&file, text).unwrap();
        Process::start(&file)
    };
    let plain = web("plain", "");
    let tls = format!("tls_cert_file = {:?}\ntls_key_file = {:?}\n", path.join("server.pem"), path.join("server.key"));
    let tls = web("tls", &tls);
    let scene = Scene::new("it-listeners", 1, "");
    let (http, https) = (plain.address().to_string(), tls.address().to_string());
    let cases = [
        (http.as_str(), "", "esponse"),
        (https.as_str(), "", "security.protocol"),
        ("127.0.0.1:1", "", "refused"),
        (scene.brokers.as_str(), "\"security.protocol\" = \"ssl\"\n", "SSL handshake failed"),
        (
            scene.brokers.as_str(),
            "\"security.protocol\" = \"sasl_plaintext\"\n\"sasl.mechanism\" = \"PLAIN\"\n\
             \"sasl.username\" = \"me\"\n\"sasl.password\" = \"hush-hush\"\n",
            "SASL",
        ),
    ];
    std::thread::scope(|scope| {
        for (number, (brokers, properties, reason)) in cases.into_iter().enumerate() {
            let text = format!(
                "[broker.kafka]\nbrokers = \"{brokers}\"\ntopics = [\"t\"]\ndead_letter_topic = \"discard\"\n\
                 [broker.kafka.properties]\n{properties}[store.redis]\nurl = \"{}\"\n[mapping]\nadd = [\"event\"]\n",
                scene.redis.url()
            );
            let directory = path.join(number.to_string());
            std::fs::create_dir(&directory).unwrap();
            let file = write_config(&directory, &text);
            scope.spawn(move || {
                let output = traqq().arg("--config").arg(&file).arg("doctor").output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let line = text.lines().find(|line| line.contains("kafka ") && line.contains("connection: "));
                let line = line.unwrap_or_else(|| panic!("{text}"));
                assert!(line.contains("DOWN") && line.contains(reason), "{brokers} {properties}: {text}");
                assert!(!text.contains("hush-hush"), "{text}");
                assert_eq!(output.status.code(), Some(1), "{text}");
            });
        }
    });
}
