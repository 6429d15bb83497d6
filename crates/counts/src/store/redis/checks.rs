//! What `traqq doctor` looks at, and a worker before it starts.

use std::collections::BTreeSet;

use redis::cmd;

use super::RedisStore;
use super::config::Config;
use super::node::Node;
use super::place::Place;
use crate::store::StoreResult;
use traqq_core::model::escape::redis_cli;
use traqq_core::model::{Check, Finding};

/// The ACL rule a worker needs.
fn acl_rule(config: &Config, place: &Place) -> String {
    let more = if matches!(place, Place::Cluster(_)) { " +cluster|slots +asking" } else { "" };
    format!(
        "~{prefix}:* ~{prefix}{{*}}:* +evalsha +eval +script|load +hget +hmget +hgetall +hset +hsetnx +hexists +hlen +hincrby \
         +exists +sadd +scard +sismember +smembers +expireat +time +pfadd +zcard +zscore +zadd +zmscore +zrevrange \
         +zrevrangebyscore +get +info +ping +select +bgrewriteaof{more}",
        prefix = config.prefix
    )
}

/// Looks at everything a worker relies on: reachability, version, eviction, persistence,
/// permissions, clock; of every server that holds a part of the counts.
pub async fn checks(config: &Config, now: i64) -> Vec<Check> {
    let store = match RedisStore::new(config) {
        Ok(store) => store,
        Err(error) => return vec![Check { name: "configuration", finding: error.into() }],
    };
    let mut checks = Vec::new();
    let mut seen = BTreeSet::new();
    for keys in store.homes() {
        match store.connector.connect(&keys.meta()).await {
            Ok(node) if !seen.insert(node.address.to_string()) => {}
            Ok(mut node) => {
                checks.push(Check { name: "connection", finding: Finding::Good(node.address.to_string()) });
                if let Err(error) = look(&mut node, config, &store, now, &mut checks).await {
                    checks.push(Check { name: "permissions", finding: error.into() });
                }
            }
            Err(error) => {
                checks.push(Check { name: "connection", finding: error.into() });
                break;
            }
        }
    }
    checks
}

async fn look(
    node: &mut Node,
    config: &Config,
    store: &RedisStore,
    now: i64,
    checks: &mut Vec<Check>,
) -> StoreResult<()> {
    let place = &store.connector.place;
    let mut check = |name, finding| checks.push(Check { name, finding });
    let info = node.info().await?;
    check("version", version(info.field("redis_version").unwrap_or("?")));
    check(
        "role",
        match info.field("role") {
            Some("master") => Finding::Good("primary".to_owned()),
            _ => Finding::Bad("is a replica; point store.redis.url at the primary".to_owned()),
        },
    );
    if matches!(place, Place::Server) && info.field("cluster_enabled") == Some("1") {
        let text = format!(
            "redis {} is a node of a cluster; write store.redis.url = \"redis-cluster://HOST:PORT,HOST:PORT\" and store.redis.lanes = the \
             number of its primaries",
            node.address
        );
        check("cluster", Finding::Bad(text));
    }
    check("eviction", info.eviction(&node.address));
    let field = |name| info.field(name).unwrap_or("?");
    check("persistence", persistence(field("aof_enabled"), field("rdb_last_bgsave_status")));
    check("permissions", permissions(node, config, store).await);
    let (second, _) = node.query::<(i64, i64)>(&cmd("TIME")).await?;
    let text = format!("{:+} s", second - now);
    check(
        "clock",
        if (second - now).abs() <= 5 {
            Finding::Good(text)
        } else {
            Finding::Warning(format!("{text} from this machine's; keys expire by the server's"))
        },
    );
    Ok(())
}

fn version(version: &str) -> Finding {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap_or(0);
    if major >= 7 {
        Finding::Good(version.to_owned())
    } else {
        Finding::Bad(format!("{version} is too old; traqq needs Redis 7.0 or newer, or Valkey"))
    }
}

fn persistence(aof_enabled: &str, last_save: &str) -> Finding {
    match (aof_enabled, last_save) {
        ("1", _) => Finding::Good("append-only file".to_owned()),
        (_, "ok") => Finding::Warning(
            "no append-only file: a restart goes back to the last snapshot and is replayed from the log, if the log still reaches back that far; set appendonly yes".to_owned(),
        ),
        _ => Finding::Warning("the last snapshot failed; see the server's log".to_owned()),
    }
}

/// Tries each command with ACL DRYRUN where that is allowed; otherwise only what the checks above
/// have used is known to work.
async fn permissions(node: &mut Node, config: &Config, store: &RedisStore) -> Finding {
    let place = &store.connector.place;
    let user: Result<String, _> = cmd("ACL").arg("WHOAMI").query_async(&mut node.connection).await;
    let Ok(user) = user else {
        return Finding::Warning(format!(
            "cannot be looked at (no +acl|whoami); needed are: {}",
            acl_rule(config, place)
        ));
    };
    let (key, root) = (store.lanes[0].checkpoint(), store.root.meta());
    let mut commands: Vec<&[&str]> = vec![
        &["evalsha", "x", "1", ""],
        &["eval", "x", "1", ""],
        &["script", "load", "x"],
        &["hget", "", "f"],
        &["hset", "", "f", "v"],
        &["hsetnx", "", "f", "v"],
        &["hexists", "", "f"],
        &["hlen", ""],
        &["hincrby", "", "f", "1"],
        &["hmget", "", "f"],
        &["hgetall", ""],
        &["exists", ""],
        &["sadd", "", "m"],
        &["scard", ""],
        &["sismember", "", "m"],
        &["smembers", ""],
        &["expireat", "", "1"],
        &["time"],
        &["pfadd", "", "e"],
        &["zcard", ""],
        &["zscore", "", "m"],
        &["zadd", "", "1", "m"],
        &["zmscore", "", "m"],
        &["zrevrange", "", "0", "1"],
        &["zrevrangebyscore", "", "1", "0"],
        &["get", ""],
        &["bgrewriteaof"],
    ];
    // At the bare prefix, which another pattern covers.
    let (read_meta, write_meta) = (["hgetall", &*root], ["eval", "x", "1", &*root]);
    if matches!(place, Place::Cluster(_)) {
        commands.extend([&["cluster", "slots"][..], &["asking"], &read_meta, &write_meta]);
    }
    let mut denied = Vec::new();
    for command in commands {
        let mut dry_run = cmd("ACL");
        dry_run.arg("DRYRUN").arg(&user);
        for part in command {
            dry_run.arg(if part.is_empty() { &key } else { *part });
        }
        match dry_run.query_async::<String>(&mut node.connection).await {
            Ok(answer) if answer == "OK" => {}
            Ok(_) => denied.push(command[0]),
            Err(_) => {
                return Finding::Warning(format!(
                    "cannot be tried (no +acl|dryrun); needed are: {}",
                    acl_rule(config, place)
                ));
            }
        }
    }
    // Where it stands in a command.
    let user = redis_cli(&user);
    match denied[..] {
        [] => Finding::Good(format!("user {user}")),
        ["bgrewriteaof"] => Finding::Warning(format!(
            "user {user} may not run BGREWRITEAOF, without which a power cut can make counts double; `ACL SETUSER {user} +bgrewriteaof`"
        )),
        _ => Finding::Bad(format!(
            "user {user} may not run {}; `ACL SETUSER {user} {}`",
            denied.join(", "),
            acl_rule(config, place)
        )),
    }
}
