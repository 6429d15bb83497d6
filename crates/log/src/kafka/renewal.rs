//! A client that will not find its brokers again is replaced.
//!
//! A broker that its cluster has shut out for a moment (it was slow, say) still answers, and names
//! no brokers. librdkafka 2.12 then forgets all that it knew, those of its configuration too, and
//! connects to nobody any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;

use super::assignment::to_list;
use super::context::{give_back, lock};
use super::{Config, KafkaConsumer, connect};
use crate::Event;
use traqq_core::error::ErrorLine;

/// Longer than a session lasts by default: a member that was away for so long has lost its
/// partitions in any case.
const RENEW_AFTER: Duration = Duration::from_secs(15);
/// What a connection is given beyond the time that it may take to come about.
const SETUP_MARGIN: Duration = Duration::from_secs(5);

/// A client is not replaced while a connection of it may still come about.
fn renew_after(config: &Config) -> Duration {
    RENEW_AFTER.max(config.setup_timeout().saturating_add(SETUP_MARGIN))
}

impl KafkaConsumer {
    /// Makes another client when this one has had no connection for long. All partitions are lost
    /// with it; the group offers them again.
    pub(super) fn renew_if_cut_off(&mut self) -> Option<Event> {
        if !lock(&self.consumer.context().standing).is_away() {
            self.away_since = None;
            return None;
        }
        if self.away_since.get_or_insert_with(Instant::now).elapsed() < renew_after(&self.config) {
            return None;
        }
        self.away_since = None;
        self.renew()
            .unwrap_or_else(|error| Some(Event::Trouble(format!("kafka {}: another client: {error}", self.brokers))))
    }

    fn renew(&mut self) -> Result<Option<Event>, ErrorLine> {
        let (consumer, lookout) = connect(&self.config, self.buffer_bytes_max, &self.topics)?;
        // First what may fail: until then this client is what it was.
        if !self.subscribed.is_empty() {
            let names: Vec<&str> = self.subscribed.iter().map(String::as_str).collect();
            consumer.subscribe(&names).map_err(ErrorLine::from_error)?;
        }
        tracing::warn!(brokers = self.brokers, "no broker could be reached for long; trying with another client");
        let old = std::mem::replace(&mut self.consumer, consumer);
        self.lookout = lookout;
        {
            let (old, new) = (old.context(), self.consumer.context());
            old.is_closing.store(true, Ordering::SeqCst);
            *lock(&new.standing) = std::mem::take(&mut *lock(&old.standing)).without_connection();
            *lock(&new.ends) = std::mem::take(&mut *lock(&old.ends));
        }
        // The old client asked for these and waits for the answer, with its close too. The call is
        // due even when none of them was opened.
        let revoking = self.revoking.iter().filter(|partition| self.open.contains_key(partition));
        if let Err(error) = give_back(&old, &to_list(revoking)) {
            tracing::debug!(%error, "giving partitions back on the client that is replaced");
        }
        close_aside(old);
        self.open.clear();
        self.halted.clear();
        self.revoking.clear();
        let partitions: Vec<_> = std::mem::take(&mut self.assigned).into_iter().collect();
        Ok((!partitions.is_empty()).then_some(Event::Revoked { partitions, lost: true }))
    }
}

/// To close a client takes as long as its broker takes to answer.
fn close_aside<T: Send + Sync + 'static>(consumer: Arc<T>) {
    let closing = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || drop(consumer));
    closing.expect("a thread can be started");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_not_replaced_while_a_connection_may_still_come_about() {
        let mut config = Config::default();
        assert_eq!(renew_after(&config), RENEW_AFTER);
        for (ms, after) in [("1000", RENEW_AFTER), ("40000", Duration::from_secs(45))] {
            config.properties.insert("socket.connection.setup.timeout.ms".to_owned(), ms.to_owned());
            assert_eq!(renew_after(&config), after);
        }
    }
}
