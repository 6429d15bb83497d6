//! What stores read, by the first byte: of the embedded one `k` what is known of a key, `v` a
//! value, `n` the names in its keys; of all of them `c` a checkpoint, `p` the name of a partition,
//! and `m` meta, a field a line.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use traqq_core::model::{Checkpoint, TopicPartition};
use traqq_counts::mapping::metrics_of;
use traqq_counts::store::Meta;
use traqq_counts::store::embedded::rows::{KEYS, KeyRow, Value, label_of, name_of, named, value};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, row)) = bytes.split_first() else { return };
    match kind {
        b'k' => {
            if let Some(key) = KeyRow::decode(row) {
                assert_eq!(KeyRow::decode(&key.encode()), Some(key));
            }
        }
        b'v' => {
            same::<i64>(row);
            same::<(i64, i64)>(row);
        }
        b'n' => {
            if let Some(name) = name_of(row, KEYS) {
                assert_eq!(named(KEYS, name), row);
            }
            if let Some(label) = label_of(row) {
                assert_eq!(label_of(&value(7, label)), Some(label));
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(row) {
                text_row(*kind, text);
            }
        }
    }
});

fn same<V: Value>(row: &[u8]) {
    if let Some(value) = V::decode(row) {
        assert_eq!(value.encode(), row);
    }
}

fn text_row(kind: u8, text: &str) {
    match kind {
        b'c' => {
            if let Ok(checkpoint) = text.parse::<Checkpoint>() {
                assert_eq!(checkpoint.to_string(), text, "the fence compares texts, so there is one spelling");
            }
        }
        b'p' => {
            if let Ok(partition) = text.parse::<TopicPartition>() {
                assert_eq!(partition.to_string().parse(), Ok(partition.clone()));
                assert!(partition.lane(7) < 7);
            }
        }
        b'm' => {
            let field = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            let fields: BTreeMap<String, String> = text.lines().filter_map(field).collect();
            let Ok(meta) = Meta::of_fields(&fields) else { return };
            assert_eq!(Meta::of_fields(&meta.to_fields().into_iter().collect()).as_ref(), Ok(&meta));
            meta.first_positions();
            if let Ok(rules) = meta.valid_rules() {
                metrics_of(&rules.rules);
            }
        }
        _ => {}
    }
}
