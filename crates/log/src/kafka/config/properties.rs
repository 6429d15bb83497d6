//! The properties of librdkafka that may be set, and those whose values may be shown.
//!
//! Whoever writes a configuration says where to count from, and must not thereby run a program as
//! the user that counts: some properties load a library or are handed to a shell. So a property is
//! passed on only if it stands here as one that was looked at, by the exact name that librdkafka
//! knows it by; aliases stand here too. A value is shown only if its property is known to hold no
//! secret. What a new version of librdkafka brings is refused and hidden until it is listed here;
//! a test says what is missing.
//!
//! Of those that are passed on, some name files, which are only read: `*.location`,
//! `sasl.oauthbearer.assertion.*file`. `sasl.oauthbearer.token.endpoint.url` and
//! `...metadata.authentication.type` have a token fetched over HTTP, which is what they are for.

use traqq_core::error::ConfigError;

/// Passed on, and shown.
const SHOWN: &str = "\
    acks allow.auto.create.topics api.version.fallback.ms api.version.request \
    api.version.request.timeout.ms auto.commit.enable auto.commit.interval.ms auto.offset.reset \
    batch.num.messages batch.size bootstrap.servers broker.address.family broker.address.ttl \
    broker.version.fallback builtin.features check.crcs client.dns.lookup client.id client.rack \
    compression.codec compression.level compression.type connections.max.idle.ms \
    consume.callback.max.messages coordinator.query.interval.ms debug delivery.report.only.error \
    delivery.timeout.ms enable.auto.commit enable.auto.offset.store enable.gapless.guarantee \
    enable.idempotence enable.metrics.push enable.partition.eof enable.random.seed \
    enable.sasl.oauthbearer.unsecure.jwt enable.ssl.certificate.verification enabled_events \
    fetch.error.backoff.ms fetch.max.bytes fetch.message.max.bytes fetch.min.bytes \
    fetch.queue.backoff.ms fetch.wait.max.ms group.id group.instance.id group.protocol \
    group.protocol.type group.remote.assignor heartbeat.interval.ms https.ca.location \
    isolation.level linger.ms log.connection.close log.queue log.thread.name log_level \
    max.in.flight max.in.flight.requests.per.connection max.partition.fetch.bytes \
    max.poll.interval.ms message.copy.max.bytes message.max.bytes message.send.max.retries \
    message.timeout.ms metadata.broker.list metadata.max.age.ms \
    metadata.recovery.rebootstrap.trigger.ms metadata.recovery.strategy \
    partition.assignment.strategy partitioner produce.offset.report \
    queue.buffering.backpressure.threshold queue.buffering.max.kbytes \
    queue.buffering.max.messages queue.buffering.max.ms queued.max.messages.kbytes \
    queued.min.messages queuing.strategy receive.message.max.bytes reconnect.backoff.jitter.ms \
    reconnect.backoff.max.ms reconnect.backoff.ms request.required.acks request.timeout.ms \
    retries retry.backoff.max.ms retry.backoff.ms sasl.kerberos.min.time.before.relogin \
    sasl.kerberos.service.name sasl.mechanism sasl.mechanisms \
    sasl.oauthbearer.assertion.algorithm sasl.oauthbearer.assertion.claim.exp.seconds \
    sasl.oauthbearer.assertion.claim.jti.include sasl.oauthbearer.assertion.claim.nbf.seconds \
    sasl.oauthbearer.grant.type sasl.oauthbearer.metadata.authentication.type \
    sasl.oauthbearer.method sasl.username security.protocol session.timeout.ms \
    socket.blocking.max.ms socket.connection.setup.timeout.ms socket.keepalive.enable \
    socket.max.fails socket.nagle.disable socket.receive.buffer.bytes socket.send.buffer.bytes \
    socket.timeout.ms ssl.ca.certificate.stores ssl.ca.location ssl.certificate.location \
    ssl.cipher.suites ssl.crl.location ssl.curves.list ssl.endpoint.identification.algorithm \
    ssl.key.location ssl.keystore.location ssl.sigalgs.list statistics.interval.ms \
    sticky.partitioning.linger.ms topic.blacklist topic.metadata.propagation.max.ms \
    topic.metadata.refresh.fast.cnt topic.metadata.refresh.fast.interval.ms \
    topic.metadata.refresh.interval.ms topic.metadata.refresh.sparse transaction.timeout.ms \
    transactional.id";

/// Passed on, and never shown: secrets, and what is put together with them or may hold one.
const HIDDEN: &str = "\
    https.ca.pem sasl.oauthbearer.assertion.claim.aud sasl.oauthbearer.assertion.claim.iss \
    sasl.oauthbearer.assertion.claim.sub sasl.oauthbearer.assertion.file \
    sasl.oauthbearer.assertion.jwt.template.file sasl.oauthbearer.assertion.private.key.file \
    sasl.oauthbearer.assertion.private.key.passphrase sasl.oauthbearer.assertion.private.key.pem \
    sasl.oauthbearer.client.credentials.client.id \
    sasl.oauthbearer.client.credentials.client.secret sasl.oauthbearer.client.id \
    sasl.oauthbearer.client.secret sasl.oauthbearer.config sasl.oauthbearer.extensions \
    sasl.oauthbearer.scope sasl.oauthbearer.token.endpoint.url sasl.password ssl.ca.pem \
    ssl.certificate.pem ssl.key.password ssl.key.pem ssl.keystore.password";

/// Never passed on: what the property would do, and what to do instead.
const REFUSED: [(&str, &str); 11] = [
    ("plugin.library.paths", "it would load a library into traqq, which has everything built in that it needs"),
    ("ssl.engine.location", LOADS_ENGINE),
    ("ssl.engine.id", LOADS_ENGINE),
    // OpenSSL looks for a module of any name that it has not built in.
    ("ssl.providers", "it would load modules of OpenSSL into traqq; the built-in provider is used without it"),
    ("sasl.kerberos.kinit.cmd", RUNS_SHELL),
    // They become parts of the default command line.
    ("sasl.kerberos.keytab", RUNS_SHELL),
    ("sasl.kerberos.principal", RUNS_SHELL),
    ("offset.store.path", WRITES_OFFSETS),
    ("offset.store.method", WRITES_OFFSETS),
    ("offset.store.sync.interval.ms", WRITES_OFFSETS),
    ("internal.termination.signal", "it would have signals sent to traqq; its threads end without them"),
];

const LOADS_ENGINE: &str =
    "it would load an engine of OpenSSL into traqq; set ssl.key.location, or ssl.keystore.location";
const RUNS_SHELL: &str =
    "it would run a shell, and this build has no Kerberos; use SASL with SCRAM, or certificates of clients";
const WRITES_OFFSETS: &str = "it would write offsets to files; positions are in the store, beside the counts";

fn has(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|known| known == name)
}

/// Whether a property may be passed on.
pub fn is_allowed(name: &str) -> bool {
    has(SHOWN, name) || has(HIDDEN, name)
}

/// Whether a value may be shown.
pub fn is_shown(name: &str) -> bool {
    has(SHOWN, name)
}

/// `Err` says why a property is not passed on, and what to do instead; its value is not named.
pub fn check(name: &str) -> Result<(), ConfigError> {
    // Spelled otherwise librdkafka would not know it, but somebody means it.
    let meant = name.trim().to_ascii_lowercase().replace('_', ".");
    let key = format!("broker.kafka.properties.{name:?}");
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == meant) {
        return Err(format!("{key} is refused: {why}").into());
    }
    if is_allowed(name) {
        Ok(())
    } else {
        Err(format!("{key}: there is no such property, or none that traqq knows").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_property_stands_in_one_list() {
        let refused = REFUSED.iter().map(|(name, _)| *name);
        let mut all: Vec<&str> =
            SHOWN.split_ascii_whitespace().chain(HIDDEN.split_ascii_whitespace()).chain(refused).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_loads_runs_or_writes_something_is_refused_however_it_is_spelled() {
        for (name, _) in REFUSED {
            for name in [name.to_owned(), name.to_uppercase(), format!(" {name} "), name.replace('.', "_")] {
                let error = check(&name).unwrap_err().to_string();
                assert!(error.contains("is refused: it would "), "{error}");
                assert!(error.contains(&format!("{name:?}")) && !is_allowed(&name), "{error}");
            }
        }
        // Callbacks and what librdkafka tests itself with, and nothing of ours.
        for name in ["open_cb", "interceptors", "test.mock.num.brokers", "client.software.name", "", "sasl.pasword"] {
            assert!(check(name).unwrap_err().to_string().contains("no such property"), "{name}");
        }
        for name in ["ssl.ca.location", "sasl.password", "client.rack", "compression.type", "log_level", "debug"] {
            assert_eq!(check(name), Ok(()));
        }
    }
}
