//! What would keep a worker from reading all of its stream: limits and permissions. They are not
//! asked at the start: a worker reads what it can, is unready, and says why. `traqq doctor` knows
//! before.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::account::Account;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy};
use futures_util::TryStreamExt;

use super::config::Config;
use super::fetch::consumer_name;
use super::link::{Link, partition_filters};
use traqq_core::model::escape::shell;
use traqq_core::model::{Check, Finding};

/// How long the client may take to tell what the server has said.
const REFUSALS_WAIT: Duration = Duration::from_millis(300);

/// Nothing where the server or the stream cannot be reached, which the other checks say.
pub async fn limits(config: &Config) -> Vec<Check> {
    let Ok(link) = Link::reach(config).await else { return Vec::new() };
    let (Ok(account), Ok(stream)) = (link.jetstream().query_account().await, link.stream().await) else {
        return Vec::new();
    };
    let found = &stream.cached_info().config;
    let Ok(filters) = partition_filters(found, config) else { return Vec::new() };
    let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap_or_default();
    let is_ours =
        |name: &&String| (0..filters.len() as i32).any(|number| consumer_name(&config.group, number) == **name);
    let ours = names.iter().filter(is_ours).count() as i64;
    let demand = Demand { partitions: filters.len() as i64, ours, others: names.len() as i64 - ours };
    let mut checks = vec![Check { name: "consumers", finding: demand.consumers(found, &account) }];
    if let Some(text) = ack_pending(found, &account) {
        checks.push(Check { name: "acknowledgements", finding: Finding::Good(text) });
    }
    checks.push(Check { name: "leases", finding: leases(&link, &account).await });
    if let Some(text) = full(found) {
        checks.push(Check { name: "discard", finding: Finding::Warning(text) });
    }
    checks.push(Check { name: "permissions", finding: permissions(&link, filters[0].as_deref()).await });
    checks
}

/// Consumers that are needed on a stream, and that are there.
struct Demand {
    partitions: i64,
    ours: i64,
    others: i64,
}

impl Demand {
    fn consumers(&self, stream: &stream::Config, account: &Account) -> Finding {
        let Self { partitions, ours, others } = *self;
        let name = &stream.name;
        let of_stream = i64::from(stream.max_consumers);
        if of_stream > 0 && partitions + others > of_stream {
            let besides = if others > 0 { format!(", {others} others besides") } else { String::new() };
            return Finding::Bad(format!(
                "each of the {partitions} partitions needs one{besides}, and {name} takes {of_stream} (max_consumers): the rest is not read; \
                 delete those that nobody needs (`nats consumer ls {}`), or make the stream anew with more: it is fixed when it is made",
                shell(name)
            ));
        }
        // One more of each worker follows the leases.
        let (needed, there) = (partitions + 1, account.consumers as i64 - ours);
        let of_account = account.limits.max_consumers.filter(|max| *max > 0);
        if let Some(max) = of_account.filter(|max| needed + there > *max) {
            return Finding::Bad(format!(
                "a worker needs {needed}, the account has {there} others and may have {max} (max_consumers): the rest is not read; raise it"
            ));
        }
        Finding::Good(format!("one for each of {partitions} partitions fits the limits of {name} and of the account"))
    }
}

/// Whether consumers go without acknowledgements. Retention that needs them is another check's.
fn ack_pending(stream: &stream::Config, account: &Account) -> Option<String> {
    let of_stream = stream.consumer_limits.as_ref().map(|limits| limits.max_ack_pending);
    let max = [of_stream.unwrap_or(0), account.limits.max_ack_pending].into_iter().filter(|max| *max > 0).min()?;
    (stream.retention == RetentionPolicy::Limits && max < super::fetch::ACK_PENDING_MAX).then(|| {
        format!(
            "max_ack_pending is {max}, less than may be on its way: consumers go without, so NATS's tools show what was delivered, not what is counted"
        )
    })
}

async fn leases(link: &Link, account: &Account) -> Finding {
    let bucket = link.config.bucket();
    if link.jetstream().get_key_value(&bucket).await.is_ok() {
        return Finding::Good(format!("in key-value bucket {bucket}"));
    }
    let limits = &account.limits;
    if limits.max_bytes_required {
        return Finding::Bad(format!(
            "key-value bucket {bucket} is missing, and the account asks for a size (max_bytes_required): \
             `nats kv add {bucket} --history=1 --max-bucket-size=64MiB`"
        ));
    }
    if let Some(max) = limits.max_streams.filter(|max| *max > 0 && account.streams as i64 >= *max) {
        return Finding::Bad(format!(
            "key-value bucket {bucket} is missing, and the account has all of the {max} streams it may have (max_streams): raise it"
        ));
    }
    Finding::Good(format!("key-value bucket {bucket} is made by the first worker"))
}

/// What a stream refuses when it is full.
fn full(stream: &stream::Config) -> Option<String> {
    let name = &stream.name;
    let has_bound = stream.max_messages > 0 || stream.max_bytes > 0;
    let per_subject = stream.discard_new_per_subject && stream.max_messages_per_subject > 0;
    (stream.discard == DiscardPolicy::New && (has_bound || per_subject)).then(|| {
        format!("{name} refuses new messages when it is full (discard = new): events that come in are answered with 503 until there is room")
    })
}

/// Asks in vain for everything that a worker asks for: a server says at once what a user may not,
/// whatever the question.
async fn permissions(link: &Link, filter: Option<&str>) -> Finding {
    let config = &link.config;
    let (stream, name) = (&config.stream, consumer_name(&config.group, 0));
    let api = config.domain.as_ref().map_or_else(|| "$JS.API".to_owned(), |domain| format!("$JS.{domain}.API"));
    let filter = filter.map(|filter| format!(".{filter}")).unwrap_or_default();
    let mut subjects = vec![
        format!("{api}.CONSUMER.CREATE.{stream}.{name}{filter}"),
        format!("{api}.CONSUMER.MSG.NEXT.{stream}.{name}"),
        format!("{api}.STREAM.MSG.GET.{stream}"),
        format!("$JS.ACK.{stream}.{name}.none"),
    ];
    if config.domain.is_none() {
        subjects.push(format!("$KV.{}.none", config.bucket()));
    }
    // Nobody takes this: it is no question, no acknowledgement, and it is for another stream.
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Stream", "none");
    let client = link.client();
    for subject in &subjects {
        let sent = client.publish_with_headers(subject.clone(), headers.clone(), "{\"none\"".into()).await;
        if let Err(error) = sent {
            return Finding::Unavailable(format!("{subject}: {error}"));
        }
    }
    if let Err(error) = client.flush().await {
        return Finding::Unavailable(format!("{error}"));
    }
    tokio::time::sleep(REFUSALS_WAIT).await;
    let refused: Vec<&str> = subjects
        .iter()
        .filter(|subject| link.complaints.refusal(subject).is_some())
        .map(|subject| &**subject)
        .collect();
    if refused.is_empty() {
        return Finding::Good("this user may make consumers, pull from them and write leases".to_owned());
    }
    Finding::Bad(format!(
        "this user may not publish to {}: allow it, or what is there cannot be read",
        refused.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(max_consumers: i32) -> stream::Config {
        stream::Config { name: "s".to_owned(), max_consumers, ..stream::Config::default() }
    }

    fn account(max_consumers: Option<i64>, consumers: usize) -> Account {
        let mut account = Account { consumers, ..Account::default() };
        account.limits.max_consumers = max_consumers;
        account
    }

    #[test]
    fn every_limit_of_consumers_is_compared_with_the_partitions() {
        let demand = |partitions, ours, others| Demand { partitions, ours, others };
        let of = |demand: Demand, stream, account| demand.consumers(&stream, &account).to_string();
        let is_bad = |text: &str| text.contains("not read");
        assert!(of(demand(4, 0, 0), stream(1), account(None, 0)).contains("takes 1 (max_consumers)"));
        assert!(is_bad(&of(demand(4, 4, 1), stream(4), account(None, 5))));
        assert!(!is_bad(&of(demand(4, 4, 1), stream(5), account(None, 5))));
        assert!(!is_bad(&of(demand(4, 0, 9), stream(-1), account(None, 9))));
        assert!(is_bad(&of(demand(4, 0, 0), stream(-1), account(Some(4), 0))));
        assert!(!is_bad(&of(demand(4, 4, 0), stream(-1), account(Some(5), 4))));
    }

    #[test]
    fn a_small_limit_of_acknowledgements_is_worked_with() {
        let limits = |max_ack_pending| stream::ConsumerLimits { inactive_threshold: Duration::ZERO, max_ack_pending };
        let small = stream::Config { consumer_limits: Some(limits(10)), ..stream(-1) };
        assert!(ack_pending(&small, &Account::default()).unwrap().contains("max_ack_pending is 10"));
        assert_eq!(ack_pending(&stream(-1), &Account::default()), None);
        let queue = stream::Config { retention: RetentionPolicy::WorkQueue, ..small };
        assert_eq!(ack_pending(&queue, &Account::default()), None);
        let mut account = Account::default();
        account.limits.max_ack_pending = 500;
        assert!(ack_pending(&stream(-1), &account).unwrap().contains("is 500"));
    }
}
