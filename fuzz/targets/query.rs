//! A path and its query string, such as `find?q=top/geo&days=7`: read, resolved and answered from an empty store.

#![no_main]

use std::sync::{Arc, LazyLock};

use axum::http::Uri;
use libfuzzer_sys::fuzz_target;
use traqq::query::{Answer, Engine};
use traqq::server::params;
use traqq_fuzz::{NOW, engine, run};

static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(engine);

fuzz_target!(|text: &str| {
    let Ok(uri) = format!("/{text}").parse::<Uri>() else { return };
    let request = match uri.path() {
        "/find" => params::find(&uri),
        "/query" => params::query(&uri),
        "/catalog" => params::catalog(&uri),
        _ => {
            let is_bare = params::none(&uri).is_ok();
            assert!(!is_bare || params::limit_only(&uri) == Ok(None));
            return;
        }
    };
    let Ok(request) = request else { return };
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
    });
});
