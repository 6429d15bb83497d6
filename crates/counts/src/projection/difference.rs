//! How the mapping of a store differs from a configured one, in words.

use std::collections::BTreeSet;

use crate::mapping::{Rules, ValidRules};
use crate::mapping::{metric_name, metrics_of};
use crate::store::Meta;

/// How the plan of a prefix differs from these rules, and what to do about it.
pub fn plan_difference(meta: &Meta, rules: &ValidRules) -> Option<String> {
    if let Some(difference) = meta.other_zone(rules) {
        return Some(difference);
    }
    if meta.plan == rules.plan_hash() {
        let (stored, ours) = (&meta.tzdb, chrono_tz::IANA_TZDB_VERSION);
        let difference = || {
            format!("the time zone database is {stored} in the store and {ours} here; `traqq mapping apply` takes ours")
        };
        return (stored != ours).then(difference);
    }
    let names = |rules: &ValidRules| -> BTreeSet<String> { metrics_of(&rules.rules).iter().map(metric_name).collect() };
    let ours = names(rules);
    let stored_rules = meta.valid_rules();
    let stored = stored_rules.as_ref().map(names).unwrap_or_default();
    let list = |set: &BTreeSet<String>, other: &BTreeSet<String>| -> String {
        let items: Vec<&str> = set.difference(other).map(String::as_str).collect();
        items.join(", ")
    };
    let (added, removed) = (list(&ours, &stored), list(&stored, &ours));
    let what = match (added.is_empty(), removed.is_empty()) {
        (true, true) => match stored_rules {
            Ok(stored) => format!("in {}", settings_that_differ(&stored.rules, &rules.rules).join(", ")),
            Err(error) => error.to_string(),
        },
        (false, true) => format!("only here: {added}"),
        (true, false) => format!("only in the store: {removed}"),
        (false, false) => format!("only here: {added}; only in the store: {removed}"),
    };
    Some(format!("the mapping differs ({what}); `traqq mapping apply` makes ours the store's, once no old worker runs"))
}

fn settings_that_differ(stored: &Rules, ours: &Rules) -> Vec<String> {
    let [stored, ours] = [stored, ours].map(|rules| serde_json::to_value(rules).expect("rules are plain data"));
    let sections = ["events", "buckets"].into_iter();
    let settings = sections.flat_map(|section| {
        let keys = ours[section].as_object().into_iter().flat_map(|section| section.keys());
        keys.map(move |key| (section, key))
    });
    let differing = settings.filter(|(section, key)| stored[section].get(key) != ours[section].get(key));
    differing.map(|(section, key)| format!("{section}.{key}")).collect()
}
