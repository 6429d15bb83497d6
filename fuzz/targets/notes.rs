//! What any tool may write where a group keeps its notes, by the first byte: `k` a key of the
//! bucket, `l` the value of a lease, `m` that of a mark, `n` the note beside an offset that was
//! committed to Kafka.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traqq_log::nats::entries::{Key, mark, owner, parse_mark};
use traqq_pipeline::{note_of, start_in};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind {
        b'k' => {
            if let Ok(key) = std::str::from_utf8(rest)
                && let Some(Key::Lease(partition)) = Key::parse(key, 8)
            {
                assert!((0..8).contains(&partition));
            }
        }
        b'l' => _ = owner(rest),
        b'm' => {
            if let Some((position, note)) = parse_mark(rest) {
                assert!(position >= 0);
                assert_eq!(parse_mark(mark(position, note).as_bytes()), Some((position, note)));
            }
        }
        b'n' => {
            let Ok(note) = std::str::from_utf8(rest) else { return };
            if let Some(start) = start_in(note, "p") {
                assert_eq!(start_in(&note_of("p", start), "p"), Some(start));
            }
        }
        _ => {}
    }
});
