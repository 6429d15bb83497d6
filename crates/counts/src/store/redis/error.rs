//! What an error of Redis means for the caller. The client library's own idea of what is retryable
//! is not asked.

use redis::RedisError;

use crate::store::StoreError;
use traqq_core::error::ErrorLine;

/// The code with which our own scripts answer when there is no meta.
pub const META_IS_GONE: &str = "TRAQQNOMETA";

/// What Redis says with the code `ERR`, which is for everything that has no code of its own: there
/// is nothing to tell it by but the text, which stays the same from version to version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    UnknownCommand,
    /// `BGREWRITEAOF` while something else keeps it from beginning.
    CannotExecute,
    /// `BGREWRITEAOF` while one is under way.
    InProgress,
    TooManyClients,
}

/// `None` for anything else.
pub fn says(error: &RedisError) -> Option<Said> {
    let text = error.detail().filter(|_| error.code() == Some("ERR"))?;
    let is = |part: &str| text.contains(part);
    match () {
        () if is("unknown command") => Some(Said::UnknownCommand),
        () if is("Can't execute") => Some(Said::CannotExecute),
        () if is("already in progress") => Some(Said::InProgress),
        () if is("max number of clients") => Some(Said::TooManyClients),
        () => None,
    }
}

/// What went wrong, where, and how to mend it.
pub fn classify(error: &RedisError, address: &str) -> StoreError {
    let detail = error.detail().unwrap_or_default();
    let code = error.code().unwrap_or_default();
    let line = |what: &str| ErrorLine::of(format!("redis {address}: {what}"), error.clone());
    match code {
        "OOM" => {
            StoreError::Retry(line("out of memory; raise maxmemory or free some (the policy must stay noeviction)"))
        }
        "MISCONF" => {
            StoreError::Retry(line("refuses writes because saving to disk fails; see its log and mend the disk"))
        }
        "LOADING" => StoreError::Retry(line("is loading its data set")),
        "BUSY" => StoreError::Retry(line("is busy running a script of somebody else")),
        "NOREPLICAS" => StoreError::Retry(line("has fewer good replicas than min-replicas-to-write")),
        "ERR" if says(error) == Some(Said::TooManyClients) => {
            StoreError::Retry(line("has no connection left; raise maxclients or find who holds them"))
        }
        // Flushed between two steps of a start: the next try begins anew.
        META_IS_GONE => StoreError::Retry(line("was emptied meanwhile")),
        // A slot on its way to another node: what is written to it waits until it has arrived.
        "TRYAGAIN" | "ASK" => {
            StoreError::Retry(line("is moving the slot of this lane to another node; waiting until it has arrived"))
        }
        "MOVED" => StoreError::Reconnect(line("has no longer the slot of this lane; looking for who has")),
        "CLUSTERDOWN" | "MASTERDOWN" => StoreError::Reconnect(line(&format!("{code} {detail}"))),
        "READONLY" => StoreError::Reconnect(line("is a replica now; connecting again to find the primary")),
        "NOSCRIPT" => StoreError::Reconnect(line("forgot the commit script; loading it again")),
        "WRONGPASS" | "NOAUTH" => {
            StoreError::Stop(line("refuses the user name or password; check store.redis.username and password"))
        }
        "NOPERM" => StoreError::Stop(line(&format!(
            "the user lacks a permission: {detail}; `traqq doctor` prints the ACL rule that is needed"
        ))),
        // Authentication failures during the handshake carry no code of their own.
        "" if matches!(error.kind(), redis::ErrorKind::AuthenticationFailed) => {
            StoreError::Stop(line("refuses the user name or password; check store.redis.username and password"))
        }
        "" => StoreError::Reconnect(line(&error.to_string())),
        _ => StoreError::Stop(line(&format!("{code} {detail}"))),
    }
}
