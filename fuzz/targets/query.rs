//! A path and its query string, such as `find?q=top/geo&days=7`: read, resolved and answered from
//! an empty store.

#![no_main]

use std::sync::{Arc, LazyLock};

use axum::http::Uri;
use libfuzzer_sys::fuzz_target;
use traqq::server::params;
use traqq_counts::query::{Answer, Engine, Pieces, Table, Text};
use traqq_fuzz::{NOW, engine, run};

static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(engine);

fuzz_target!(|text: &str| {
    let Ok(uri) = format!("/{text}").parse::<Uri>() else { return };
    let asked = match uri.path() {
        "/find" => params::find(&uri),
        "/query" => params::query(&uri),
        "/catalog" => params::catalog(&uri).map(|request| (request, None)),
        _ => {
            let is_bare = params::none(&uri).is_ok();
            assert!(!is_bare || params::letters(&uri) == Ok((None, None)));
            return;
        }
    };
    let Ok((request, _)) = asked else { return };
    let engine = &*ENGINE;
    run(async {
        let Ok(question) = engine.prepare(&request, NOW).await else { return };
        let answer = engine.answer(&question).await.expect("an empty store answers");
        let json = match &answer {
            Answer::Query(answer) => serde_json::to_string(answer),
            Answer::Find(answer) => serde_json::to_string(answer),
            Answer::Catalog(answer) => serde_json::to_string(answer),
        };
        json.expect("an answer is JSON");
        let table = || match answer.clone() {
            Answer::Query(answer) => Some(Table::of_query(answer)),
            Answer::Find(answer) => Some(Table::of_find(answer)),
            Answer::Catalog(_) => None,
        };
        let Some(rows) = table() else { return };
        let rows: Vec<u8> = Pieces::new(rows, Text::Json).flatten().collect();
        let rows: serde_json::Value = serde_json::from_slice(&rows).expect("rows are JSON");
        let csv: Vec<u8> = table().into_iter().flat_map(|table| Pieces::new(table, Text::Csv)).flatten().collect();
        let records = rows["rows"].as_array().map(Vec::len).expect("a list of rows") + 1;
        // Nothing was counted, so that no value has a line of its own.
        assert_eq!(csv.iter().filter(|byte| **byte == b'\n').count(), records);
    });
});
