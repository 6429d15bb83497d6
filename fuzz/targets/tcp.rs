//! What a client says over TCP. A byte 0x1f is where the input is cut; in front of everything, a
//! `!` asks for a server with a token.
//!
//! What is answered and what is logged does not depend on the cuts, and no more than one line is
//! held.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use traqq::server::{Config, Conversation, Ingest};
use traqq_core::model::Secret;
use traqq_counts::query::Engine;
use traqq_fuzz::{Event, Log, NOW, engine, ingest, run};

const CUT: u8 = 0x1f;
/// So that a line can be too long.
const EVENT_BYTES_MAX: usize = 256;
/// Longer inputs are not said byte by byte.
const BY_BYTE_MAX: usize = 400;
const ENVELOPE_BYTES: usize = 4 << 10;

static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(engine);
static INGEST: LazyLock<(Arc<Ingest>, Arc<Log>)> = LazyLock::new(ingest);

type Outcome = (String, Vec<Event>);

fuzz_target!(|bytes: &[u8]| {
    let (has_token, bytes) = bytes.strip_prefix(b"!").map_or((false, bytes), |rest| (true, rest));
    let whole: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != CUT).collect();
    let at_once = talk(has_token, [&whole[..]].into_iter());
    assert_eq!(talk(has_token, bytes.split(|byte| *byte == CUT)), at_once);
    if whole.len() <= BY_BYTE_MAX {
        assert_eq!(talk(has_token, whole.chunks(1)), at_once);
    }
});

fn talk<'a>(has_token: bool, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let token = |text: &str| has_token.then(|| Secret(text.to_owned()));
    let config = Config { token: token("t"), read_token: token("r"), write_token: token("w"), ..Config::default() };
    let (ingest, log) = &*INGEST;
    let mut conversation =
        Conversation::new(&config, EVENT_BYTES_MAX, Arc::clone(&ENGINE), Some(Arc::clone(ingest)), || NOW);
    let answers = run(async {
        let mut answers = Vec::new();
        for piece in pieces.filter(|piece| !piece.is_empty()) {
            let Some(said) = conversation.hear(piece).await else { break };
            assert!(conversation.held() <= EVENT_BYTES_MAX + ENVELOPE_BYTES);
            answers.extend(said);
        }
        answers
    });
    let answers = String::from_utf8(answers).expect("answers are JSON");
    for line in answers.lines() {
        serde_json::from_str::<serde::de::IgnoredAny>(line).expect("an answer is JSON");
    }
    (answers, log.take())
}
