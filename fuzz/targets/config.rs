//! The text of a configuration file, or a URL of Redis. Whatever is in it, there is a message or a
//! configuration.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traqq::config::{self, Config};
use traqq_core::model::Secret;
use traqq_counts::compile::Plan;
use traqq_counts::mapping::Rules;
use traqq_counts::store::redis::{self, RedisStore};

fuzz_target!(|text: &str| {
    if !text.contains('\n') && text.contains("://") {
        let _ = RedisStore::new(&redis::Config { url: Secret(text.to_owned()), lanes: 3, ..redis::Config::default() });
        return;
    }
    let Ok(loaded) = config::parse(text) else { return };
    let config = &loaded.config;
    loaded.values();
    config.store_place();
    if !is_harmless(config) {
        return;
    }
    let _ = config.check_server();
    if let Ok(rules) = config.check_worker() {
        // As they are kept in a store.
        let again = serde_json::from_str::<Rules>(&rules.to_json()).expect("rules read back").validate();
        assert_eq!(again.expect("and are as good as they were").to_json(), rules.to_json());
        if rules.rules.mapping.patterns() <= 200 {
            Plan::new(rules);
        }
    }
});

/// Checks read files whose names are in the text, and librdkafka loads libraries.
fn is_harmless(config: &Config) -> bool {
    let redis = &config.store.redis;
    let files = [&redis.tls_ca_file, &redis.tls_cert_file, &redis.tls_key_file];
    files.into_iter().all(Option::is_none) && config.broker.kafka.properties.is_empty()
}
