//! Addresses of servers, as people write them: perhaps with credentials, which belong elsewhere and
//! are never shown.

use crate::error::ConfigError;

/// An address, a URL or a list of them for a message: nothing of it if there may be credentials in
/// it.
pub fn shown(address: &str) -> &str {
    if has_credentials(address) { "********" } else { address }
}

/// Whether there may be credentials in it: in front of an `@`, as a parameter, or cut off by a `#`.
pub fn has_credentials(address: &str) -> bool {
    address.contains(['@', '?', '#'])
}

/// Refuses what none of our clients would look at; `keys` are where credentials belong.
pub fn refuse_more_than_hosts(key: &str, address: &str, keys: &str) -> Result<(), ConfigError> {
    if address.contains('@') {
        return Err(format!("{key}: credentials do not belong into an address; set {keys}").into());
    }
    let place = address.split_once("://").map_or(address, |(_, place)| place);
    if place.trim_end_matches('/').contains(['/', '?', '#']) {
        return Err(
            format!("{key}: an address is a host and a port; what stands behind them would not be looked at").into()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_not_shown_and_what_is_not_looked_at_is_refused() {
        for (address, is_shown, is_good) in [
            ("host:9092,other:9092", true, true),
            ("nats://host:4222", true, true),
            ("tls://[::1]:4222/", true, true),
            ("nats://user:secret@host", false, false),
            ("nats://secret@host", false, false),
            ("us%40er:sec%3Fret@host:1", false, false),
            ("nats://host?token=secret", false, false),
            ("nats://host:4222/path", true, false),
            ("nats://host#fragment", false, false),
        ] {
            assert_eq!(shown(address) == address, is_shown, "{address}");
            let checked = refuse_more_than_hosts("key", address, "keys");
            assert_eq!(checked.is_ok(), is_good, "{address}: {checked:?}");
            assert!(!checked.is_err_and(|error| error.to_string().contains("secret")), "{address}");
        }
    }
}
