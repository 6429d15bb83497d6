//! Every way to a Redis, with the permissions it takes, and what is looked at before anything is
//! counted.

use std::collections::BTreeSet;

use traqq_core::model::{Checkpoint, Finding, Secret};
use traqq_counts::mapping::WriteBatch;
use traqq_counts::mapping::metrics_of;
use traqq_counts::store::dump::{export, import};
use traqq_counts::store::redis::{Config, RedisStore, checks, lane_tags};
use traqq_counts::store::{Meta, Outcome, Read, Reply, Since, Store, StoreError, StoreResult};

use crate::certificates;
use crate::redis_store::{
    BUCKET, LABELS, RULES, commit, config, drawn_buckets, drawn_write, now, part, pattern, plan, reads_of, small,
    small_store,
};
use crate::servers::{Redis, free_port};

async fn finding(config: &Config, name: &str) -> Finding {
    let all = checks(config, now()).await;
    all.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}: {all:?}")).finding.clone()
}

/// Everything a worker does to a store.
pub async fn use_all(config: &Config) -> StoreResult<()> {
    let plan = plan(RULES);
    let metrics = metrics_of(&plan.rules.rules);
    let store = RedisStore::new(config).unwrap();
    let mut meta = Meta::new(&plan.rules, "g", lane_tags(config.lanes));
    meta.starts = [(part(0), 0)].into();
    assert_eq!(store.create(&meta).await?, meta);
    store.adopt(&[(part(1), 0)]).await?;
    meta.starts.insert(part(1), 0);
    assert_eq!(store.meta().await?, Some(meta.clone()));
    let lane = part(0).lane(config.lanes);
    let mut session = store.session(lane).await?;
    for from in 0..3 {
        let writes = (0..6).flat_map(|metric| (0..3).map(move |bucket| (metric, bucket))).map(|(metric, bucket)| {
            drawn_write(&metrics, now(), &(metric, bucket, (0..9).map(|l| (l, from, 1)).collect()))
        });
        let batch = WriteBatch { spans: small(0, from, &[]).spans, writes: writes.collect() };
        let Outcome::Applied(applied) = commit(&mut session, batch).await? else { panic!("not applied") };
        assert!(applied.values_folded > 0 && applied.quarantined.is_empty(), "{applied:?}");
    }
    assert_eq!(session.positions().await?[&part(0)].position, 3);
    let to = Checkpoint::start(9);
    assert!(store.set_position(&part(0), Some(small(0, 2, &[]).spans[0].to), to).await?);
    assert!(!store.set_position(&part(0), None, to).await?);
    assert!(store.set_position(&part(7), None, to).await?);
    assert_eq!(store.positions(lane).await?[&part(0)], to);
    assert_eq!(store.quarantined(lane).await?, []);
    meta.since.insert("add:event".to_owned(), Since { second: 1, positions: "t/0:9".to_owned() });
    assert!(!store.replace_rules(Some(&meta.plan), &meta).await?);
    let buckets = drawn_buckets(0).map(|(bucket, _)| bucket);
    for reply in store.read(lane, &reads_of(&metrics, &buckets, &LABELS)).await? {
        assert!(!matches!(reply, Reply::Unreadable(_)), "{reply:?}");
    }
    Ok(())
}

/// Permissions were looked at in the beginning, and a user who may not do that was only warned: a
/// script ended in its middle, positions moved and counts lost, again with every restart.
#[tokio::test]
async fn a_permission_that_the_script_lacks_costs_nothing() {
    let redis = Redis::start(&[]);
    let whole = config(&redis.url(), 1);
    let metrics = metrics_of(&plan(RULES).rules.rules);
    let store = RedisStore::new(&whole).unwrap();
    let mut meta = Meta::new(&plan(RULES).rules, "g", lane_tags(1));
    meta.starts = [(part(0), 0)].into();
    store.create(&meta).await.unwrap();
    redis.cli(&["ACL", "SETUSER", "worker", "on", ">secret", "~*", "+@all"]);
    let worker = Config { username: "worker".to_owned(), password: Secret("secret".to_owned()), ..whole };
    let batch = || {
        let writes =
            (0..6).map(|metric| drawn_write(&metrics, now(), &(metric, 0, (0..9).map(|l| (l, 0, 1)).collect())));
        WriteBatch { spans: small(0, 0, &[]).spans, writes: writes.collect() }
    };
    let script = include_str!("../../crates/counts/src/store/redis/commit.lua");
    let commands: BTreeSet<&str> = ["call('", "pcall_redis('"]
        .iter()
        .flat_map(|call| script.split(call).skip(1))
        .map(|rest| rest.split('\'').next().unwrap())
        .collect();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands {
        let mut session = RedisStore::new(&worker).unwrap().session(0).await.unwrap();
        redis.cli(&["ACL", "SETUSER", "worker", &format!("-{command}")]);
        let error = commit(&mut session, batch()).await.unwrap_err();
        redis.cli(&["ACL", "SETUSER", "worker", &format!("+{command}")]);
        assert_eq!(store.positions(0).await.unwrap()[&part(0)].position, 0, "{command}");
        // Of what comes before anything is written the server says it in its own words.
        let is_named = ["HGET", "TIME"].contains(&command) || error.to_string().contains(command);
        assert!(matches!(&error, StoreError::Stop(_)) && is_named, "{command}: {error}");
    }
    let mut session = RedisStore::new(&worker).unwrap().session(0).await.unwrap();
    assert!(matches!(commit(&mut session, batch()).await, Ok(Outcome::Applied(_))));
}

#[tokio::test]
async fn every_way_to_a_server() {
    let redis = Redis::start(&["--requirepass", "p@ss word"]);
    let good = Config { password: Secret("p@ss word".to_owned()), ..config(&redis.url(), 1) };
    use_all(&good).await.unwrap();
    // Database 3, password in the url; the others stay as they are.
    let url = format!("redis://:p%40ss%20word@127.0.0.1:{}/3", redis.port());
    use_all(&config(&url, 1)).await.unwrap();
    let info = redis.cli(&["--no-auth-warning", "-a", "p@ss word", "INFO", "keyspace"]);
    assert!(info.contains("db0:") && info.contains("db3:"), "{info}");
    // A Unix socket.
    redis.cli(&["--no-auth-warning", "-a", "p@ss word", "FLUSHALL"]);
    let socket = Config { url: Secret(format!("unix://{}", redis.socket().display())), ..good.clone() };
    use_all(&socket).await.unwrap();
    // What is wrong is said, and trying again is left to a person.
    for wrong in [
        config(&redis.url(), 1),
        Config { password: Secret("wrong".to_owned()), ..good.clone() },
        Config { username: "nobody".to_owned(), ..good.clone() },
    ] {
        for error in [
            RedisStore::new(&wrong).unwrap().meta().await.unwrap_err(),
            RedisStore::new(&wrong).unwrap().session(0).await.err().unwrap(),
        ] {
            let StoreError::Stop(line) = &error else { panic!("{wrong:?}: {error:?}") };
            assert!(
                line.to_string().contains("store.redis.username and password")
                    && line.to_string().contains(&redis.port().to_string()),
                "{line}"
            );
        }
        let all = checks(&wrong, now()).await;
        assert!(
            all.iter().any(|check| matches!(&check.finding, Finding::Bad(line) if line.contains("password"))),
            "{all:?}"
        );
    }
    let error =
        RedisStore::new(&Config { url: Secret(format!("{}/99", redis.url())), ..good.clone() }).unwrap().meta().await;
    assert!(matches!(&error, Err(StoreError::Stop(line)) if line.to_string().contains("DB index")), "{error:?}");
    // Nobody there: that may change.
    let nobody = config(&format!("redis://127.0.0.1:{}", free_port()), 1);
    let error = RedisStore::new(&nobody).unwrap().meta().await;
    assert!(
        matches!(&error, Err(StoreError::Reconnect(line)) if line.to_string().contains("cannot connect")),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_printed_acl_rule_is_enough() {
    let redis = Redis::start(&["--appendonly", "yes"]);
    let as_user = |user: &str, database: i64, lanes| Config {
        username: user.to_owned(),
        password: Secret("secret".to_owned()),
        ..config(&format!("{}/{database}", redis.url()), lanes)
    };
    let user = |name: &str, rule: &str| {
        let mut command = vec!["ACL", "SETUSER", name, "on", ">secret"];
        command.extend(rule.split_whitespace());
        assert_eq!(redis.cli(&command), "OK", "{rule}");
    };
    // Somebody who may look at himself and not more is told the rule.
    user("looker", "+info +acl|whoami +acl|dryrun");
    let Finding::Bad(line) = finding(&as_user("looker", 0, 1), "permissions").await else { panic!("not bad") };
    let (_, rule) = line.split_once("`ACL SETUSER looker ").expect("a command to run");
    let rule = rule.trim_end_matches('`');
    // Exactly that is enough, wherever the keys are; the server has an append-only file, so that it
    // is rewritten first.
    user("worker", rule);
    for (database, lanes) in [(0, 1), (5, 1), (6, 3)] {
        use_all(&as_user("worker", database, lanes)).await.unwrap();
    }
    assert!(!redis.cli(&["ACL", "LOG"]).contains("worker"), "{}", redis.cli(&["ACL", "LOG"]));
    user("other", rule);
    assert!(redis.cli(&["ACL", "DRYRUN", "other", "GET", "elsewhere:x"]).contains("no permissions"));
    let Finding::Warning(line) = finding(&as_user("worker", 0, 1), "permissions").await else {
        panic!("not a warning")
    };
    assert!(line.contains(rule), "{line}");
    user("whole", &format!("{rule} +acl|whoami +acl|dryrun"));
    assert_eq!(finding(&as_user("whole", 0, 1), "permissions").await, Finding::Good("user whole".to_owned()));
    // Whatever is taken away is missed, and named.
    for command in rule.split_whitespace().filter_map(|word| word.strip_prefix('+')) {
        if ["info", "ping", "select"].contains(&command) {
            continue;
        }
        let name = format!("no-{}", command.replace('|', "-"));
        user(&name, &format!("{rule} +acl|whoami +acl|dryrun -{command}"));
        let (Finding::Bad(line) | Finding::Warning(line)) = finding(&as_user(&name, 0, 1), "permissions").await else {
            panic!("{command} is not missed")
        };
        assert!(line.to_lowercase().contains(command.split('|').next().unwrap()), "{command}: {line}");
    }
    // Moving counts needs more, as the runbook has it; a command that is refused is named.
    let runbook = include_str!("../../deploy/README.md");
    let more = runbook.split("`traqq store` needs `").nth(1).unwrap().split('`').next().unwrap();
    user("mover", &format!("{rule} {more}"));
    let store_of = |name: &str, database: i64| RedisStore::new(&as_user(name, database, 1)).unwrap();
    let mut file = Vec::new();
    export(&store_of("mover", 0), &mut file).await.unwrap();
    import(&store_of("mover", 10), &file[..]).await.unwrap();
    for (number, command) in more.split_whitespace().map(|word| word.trim_start_matches('+')).enumerate() {
        user("mover", &format!("{rule} {more} -{command}"));
        let export = export(&store_of("mover", 0), &mut Vec::new()).await;
        let error = match export {
            Ok(_) => import(&store_of("mover", 11 + number as i64), &file[..]).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(&error, StoreError::Stop(line) if line.to_string().contains(command)), "{command}: {error}");
        user("mover", &format!("+{command}"));
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let error = import(&RedisStore::new(&config(&redis.url(), 1)).unwrap(), &file[..]).await.unwrap_err();
    assert!(error.to_string().contains("has counts already"), "{error}");
    let elsewhere = config(&format!("{}/9", redis.url()), 1);
    let error = import(&RedisStore::new(&elsewhere).unwrap(), &file[..]).await.unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    // Without the right to rewrite the append-only file counting goes on, at a risk that is named.
    use_all(&as_user("no-bgrewriteaof", 7, 1)).await.unwrap();
    // One that is taken away under a worker stops.
    user("worker", "-evalsha");
    redis.cli(&["ACL", "LOG", "RESET"]);
    let error = use_all(&as_user("worker", 8, 1)).await;
    assert!(matches!(&error, Err(StoreError::Stop(line)) if line.to_string().contains("evalsha")), "{error:?}");
}

#[tokio::test]
async fn an_evicting_server_and_a_replica_are_bad() {
    let redis = Redis::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let here = config(&redis.url(), 1);
    let Finding::Bad(line) = finding(&here, "eviction").await else { panic!("not bad") };
    assert!(line.contains("allkeys-lru") && line.contains("noeviction"), "{line}");
    // Nor is it taken later, in the place of another one.
    let store = small_store(&here).await;
    let error = store.session(0).await.err();
    assert!(matches!(&error, Some(StoreError::Stop(line)) if line.to_string().contains("allkeys-lru")), "{error:?}");
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    assert!(matches!(finding(&here, "eviction").await, Finding::Good(_)));
    assert!(matches!(finding(&here, "role").await, Finding::Good(_)));
    assert!(matches!(finding(&here, "version").await, Finding::Good(_)));
    assert!(matches!(finding(&here, "clock").await, Finding::Good(_)));
    let all = checks(&here, now() - 60).await;
    assert!(
        all.iter()
            .any(|check| check.name == "clock"
                && matches!(&check.finding, Finding::Warning(line) if line.contains("+60"))),
        "{all:?}"
    );

    let store = small_store(&here).await;
    let mut session = store.session(0).await.unwrap();
    assert!(matches!(commit(&mut session, small(0, 0, &["1"])).await, Ok(Outcome::Applied(_))));
    let primary = Redis::start(&[]);
    redis.cli(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
    let answer = commit(&mut session, small(0, 1, &["2"])).await;
    assert!(matches!(&answer, Err(StoreError::Reconnect(line)) if line.to_string().contains("replica")), "{answer:?}");
    let Finding::Bad(line) = finding(&here, "role").await else { panic!("not bad") };
    assert!(line.contains("replica"), "{line}");
}

#[tokio::test]
async fn tls_with_an_authority_of_our_own() {
    let dir = tempfile::tempdir().unwrap();
    certificates::make(&dir);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let redis = Redis::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-auth-clients",
        "optional",
    ]);
    let plain = config(&format!("rediss://127.0.0.1:{port}"), 1);
    let tls = Config { tls_ca_file: Some(dir.path().join("ca.pem")), ..plain.clone() };
    use_all(&tls).await.unwrap();
    for stranger in [plain, Config { tls_ca_file: Some(dir.path().join("other.pem")), ..tls.clone() }] {
        let error = RedisStore::new(&stranger).unwrap().meta().await;
        assert!(matches!(&error, Err(error) if error.to_string().contains("certificate")), "{error:?}");
    }
    // A server that asks for our certificate.
    redis.cli(&["FLUSHALL"]);
    redis.cli(&["CONFIG", "SET", "tls-auth-clients", "yes"]);
    assert!(RedisStore::new(&tls).unwrap().meta().await.is_err());
    let certified = Config {
        tls_cert_file: Some(dir.path().join("client.pem")),
        tls_key_file: Some(dir.path().join("client.key")),
        ..tls.clone()
    };
    use_all(&certified).await.unwrap();
    let half = RedisStore::new(&Config { tls_key_file: None, ..certified });
    assert!(half.err().unwrap().to_string().contains("go together"));
}

/// Queries were once answered with "unreadable", as if the key were broken, while the server was
/// loading or refused the command.
#[tokio::test]
async fn a_read_that_the_server_refuses_is_an_error_and_not_an_answer() {
    let redis = Redis::start(&[]);
    small_store(&config(&redis.url(), 1)).await;
    redis.cli(&["ACL", "SETUSER", "r", "on", ">secret", "~*", "+@all", "-hgetall"]);
    let reader = Config { username: "r".to_owned(), password: Secret("secret".to_owned()), ..config(&redis.url(), 1) };
    let reads = [Read::Counts { bucket: BUCKET, of: pattern("event") }];
    let answer = RedisStore::new(&reader).unwrap().read(0, &reads).await;
    assert!(matches!(&answer, Err(StoreError::Stop(line)) if line.to_string().contains("hgetall")), "{answer:?}");
    redis.cli(&["SET", "p:add:d:1699920000:event", "x"]);
    let answer = RedisStore::new(&config(&redis.url(), 1)).unwrap().read(0, &reads).await.unwrap();
    assert!(matches!(&answer[..], [Reply::Unreadable(_)]), "{answer:?}");
}
