//! The body of `POST /api/v1/events`. The first byte says what its Content-Type did: `j` JSON, `l`
//! lines, anything else nothing. What begins like gzip or Zstandard is unpacked first.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use traqq::server::ingest::{Coding, Format, Ingest, unpack};
use traqq::server::unpack::Packing;
use traqq_core::decode::validate;

const BODY_BYTES_MAX: usize = 1 << 16;

static INGEST: LazyLock<std::sync::Arc<Ingest>> = LazyLock::new(|| traqq_fuzz::ingest().0);

fuzz_target!(|bytes: &[u8]| {
    let Some((first, body)) = bytes.split_first() else { return };
    let format = match first {
        b'j' => Format::Json,
        b'l' => Format::Lines,
        _ => Format::Unknown,
    };
    let coding = match Packing::of(body) {
        Some(Packing::Gzip) => Coding::Gzip,
        Some(Packing::Zstd) => Coding::Zstd,
        None => Coding::Plain,
    };
    let Ok(body) = unpack(body.to_vec(), coding, BODY_BYTES_MAX, &mut INGEST.hold()) else { return };
    assert!(coding == Coding::Plain || body.len() <= BODY_BYTES_MAX);
    let mut judge = INGEST.judge();
    let outcome = judge.body(&body, format);
    let judged = judge.finish();
    let report = &judged.report;
    assert_eq!(report.accepted, judged.events.len());
    assert_eq!(report.errors.len(), report.rejected.min(100));
    assert!(judged.events.bytes() <= body.len() * 2, "key and value of an event lie in the body");
    for (_, value) in judged.events.iter() {
        let text = if value[0] == 0 { &value[5..] } else { value };
        serde_json::from_slice::<&RawValue>(text)
            .expect("what was accepted is JSON, behind a prefix of a schema registry");
    }
    if format != Format::Lines && body.trim_ascii_start().first() == Some(&b'[') {
        let text = std::str::from_utf8(&body).ok().filter(|text| validate(text).is_ok());
        match text.map(|text| serde_json::from_str::<Vec<&RawValue>>(text).expect("an array")) {
            Some(elements) => assert_eq!((outcome, elements.len()), (Ok(()), report.accepted + report.rejected)),
            // An element may be too deep for an event, and the array is still one.
            None => assert!(outcome.is_err() || std::str::from_utf8(&body).is_ok_and(is_deep)),
        }
    }
});

fn is_deep(text: &str) -> bool {
    text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count() > 64
}
