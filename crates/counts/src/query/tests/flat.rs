//! Answers as flat rows and as CSV.

use super::*;

fn text_of(engine: &Engine, request: &Request, now: i64, text: Text) -> String {
    let table = match block_on(engine.ask(request, now)).unwrap() {
        Answer::Query(answer) => Table::of_query(answer),
        Answer::Find(answer) => Table::of_find(answer),
        Answer::Catalog(_) => panic!("it has no rows"),
    };
    String::from_utf8(Pieces::new(table, text).flatten().collect()).unwrap()
}

fn rows_of(engine: &Engine, request: &Request, now: i64) -> Json {
    serde_json::from_str(&text_of(engine, request, now, Text::Json)).unwrap()
}

fn per_bucket(selector: &str) -> Find {
    Find { merge: false, ..find(selector) }
}

/// The header and the records of CSV whose values need no quotes.
fn records(csv: &str) -> Vec<Vec<&str>> {
    assert!(csv.ends_with("\r\n"));
    csv.trim_end().split("\r\n").map(|record| record.split(',').collect()).collect()
}

#[test]
fn every_kind_of_metric_has_its_columns() {
    let events = [event(DAY_0, 1), event(DAY_0, 1), event(DAY_0 + DAY, 2)];
    let engine = engine_of(&meta_of(&default_rules(), 3), &events);
    let times = "time,time_ms,local_time,end";
    let day = "2023-11-14T00:00:00Z,1699920000000,2023-11-14T00:00:00Z,2023-11-15T00:00:00Z";
    for (selector, value, columns, first) in [
        ("bitmap/ip", None, "unique,error", "1,0.0081"),
        ("bitmap_by/geo/ip", None, "geo,other,unique,error,values_seen", "US,false,1,0.0081,1"),
        ("bitmap_by/geo/ip", Some("US"), "geo,unique,error", "US,1,0.0081"),
        ("add/event", None, "event,other,count,all_count,values_seen", "view,false,2,2,1"),
        ("add/event~geo", None, "event,geo,other,count,all_count,values_seen", "view,US,false,2,2,1"),
        ("add/geo~event", Some("US~view"), "event,geo,count", "view,US,2"),
        (
            "add_value/event~geo/amount",
            None,
            "event,geo,other,count,sum,avg,all_count,all_sum,all_avg,all_min,all_max,values_seen",
            "view,US,false,2,3,1.5,2,3,1.5,1.5,1.5,1",
        ),
        ("add_value/event~geo", Some("view~US"), "event,geo,count,sum,avg", "view,US,2,3,1.5"),
        ("top/url", None, "url,other,rank,count,exact", "/1,false,1,2,true"),
        ("top/url", Some("/1"), "url,count", "/1,2"),
    ] {
        let find = Find { value: value.map(str::to_owned), ..per_bucket(selector) };
        let csv = text_of(&engine, &Request::Find(find.clone()), NOW, Text::Csv);
        let lines: Vec<&str> = csv.split("\r\n").collect();
        assert_eq!(lines[0], format!("{times},{columns},capped,incomplete,partial,reason"), "{selector}");
        assert_eq!(lines[1], format!("{day},{first},false,false,false,"), "{selector}");
        assert_eq!(lines.len(), 1 + DAYS as usize + 1, "{selector}: {csv}");
        let merged = text_of(&engine, &Request::Find(Find { merge: true, ..find }), NOW, Text::Csv);
        let header = format!("{times},{columns},capped,incomplete,partial,missing,reason");
        assert_eq!(merged.split("\r\n").next(), Some(&*header), "{selector}");
        assert!(merged.contains(",2023-11-18T00:00:00Z,"), "the end of the range: {merged}");
    }
}

#[test]
fn what_was_not_counted_is_zero_and_what_is_not_known_is_empty() {
    let mut meta = meta_of(&default_rules(), 1);
    meta.since.insert("top:url".to_owned(), Since { second: DAY_0 + DAY + 5, positions: String::new() });
    let engine = engine_of(&meta, &[event(DAY_0, 1), event(DAY_0 + DAY, 2)]);
    // The first day has expired.
    let now = DAY_0 + DAY + 10 * DAY;
    let csv = |find: Find, now| text_of(&engine, &Request::Find(find), now, Text::Csv);
    let ends = |csv: &str| -> Vec<String> {
        csv.split("\r\n").skip(1).map(|line| line.splitn(5, ',').nth(4).unwrap_or_default().to_owned()).collect()
    };
    let counts = csv(per_bucket("add/event"), now);
    let none = ",,0,0,0,false,false,false,";
    let unknown = ",,,,,false,false,false,expired";
    assert_eq!(ends(&counts)[..4], [unknown, "view,false,1,1,1,false,false,false,", none, none], "{counts}");
    let sums = csv(per_bucket("add_value/event~geo"), now);
    assert_eq!(ends(&sums)[0], ",,,,,,,,,,,,false,false,false,expired");
    assert_eq!(ends(&sums)[2], ",,,0,0,,0,0,,,,0,false,false,false,");
    assert_eq!(ends(&csv(per_bucket("bitmap_by/geo"), now))[2], ",,0,0.0081,0,false,false,false,");
    let top = csv(per_bucket("top/url"), NOW);
    assert_eq!(ends(&top)[0], ",,,,,false,false,false,before_since", "{top}");
    assert_eq!(ends(&top)[1], "/2,false,1,1,true,false,false,true,", "{top}");
    assert_eq!(ends(&top)[2], ",,,0,true,false,false,false,", "{top}");
    // A value that is asked for stands in its rows, also where nothing is known about it.
    let one = csv(Find { value: Some("view".to_owned()), ..per_bucket("add/event") }, now);
    assert_eq!(
        ends(&one)[..3],
        ["view,,false,false,false,expired", "view,1,false,false,false,", "view,0,false,false,false,"]
    );
    // Over a range: how many buckets are not in it.
    assert_eq!(ends(&csv(find("top/url"), now))[0], "/2,false,1,1,true,false,false,true,1,");
    assert_eq!(ends(&csv(find("top/url"), now + DAY))[0], ",,,0,true,false,false,false,2,");
    assert_eq!(ends(&csv(find("add/event"), now + 10 * DAY))[0], ",,,,,false,false,false,4,expired");
    let rows = rows_of(&engine, &Request::Find(per_bucket("add/event")), now);
    assert_eq!((&rows["rows"][0]["count"], &rows["rows"][0]["event"]), (&Json::Null, &Json::Null));
    assert_eq!((&rows["rows"][2]["count"], &rows["rows"][2]["event"]), (&json!(0), &Json::Null));
}

/// The flat numbers are those of the nested answer, in both forms.
#[test]
fn rows_say_what_the_nested_answer_says() {
    let events: Vec<Event> =
        (0..200).map(|n| Event { cents: i64::from(n % 7) * 33, ..event(DAY_0 + i64::from(n) * 900, n % 13) }).collect();
    let engine = engine_of(&meta_of(&default_rules(), 3), &events);
    let query = Request::Query { range: all_days(), bucket: BucketKind::Day, limit: Some(5) };
    let (nested, flat) = (json_of(&engine, &query, NOW), rows_of(&engine, &query, NOW));
    for name in ["bucket", "time_zone", "buckets", "from", "to", "from_epoch", "to_epoch"] {
        assert_eq!(flat[name], nested[name], "{name}");
    }
    let csv = text_of(&engine, &query, NOW, Text::Csv);
    let mut lines = records(&csv).into_iter();
    let names: Vec<Json> = lines.next().unwrap().into_iter().map(Json::from).collect();
    assert_eq!(flat["columns"], Json::from(names.clone()));
    let mut rows = flat["rows"].as_array().unwrap().iter();
    for bucket in nested["results"].as_array().unwrap() {
        for metric in bucket["metrics"].as_array().unwrap() {
            let values = metric["data"]["values"].as_array().cloned().unwrap_or_else(|| vec![metric["data"].clone()]);
            for (rank, value) in (1..).zip(if values.is_empty() { vec![Json::Null] } else { values }) {
                let (row, line) = (rows.next().unwrap(), lines.next().unwrap());
                assert_eq!(row.as_object().unwrap().len(), names.len());
                assert_eq!(row["time_ms"].as_i64().unwrap() / 1000, bucket["start_epoch"].as_i64().unwrap());
                for name in ["metric", "pattern", "add_key", "of"] {
                    assert_eq!(&row[name], metric.get(name).unwrap_or(&Json::Null), "{name}");
                }
                for name in ["unique", "count", "sum"].into_iter().filter(|_| !value.is_null()) {
                    assert_eq!(&row[name], value.get(name).unwrap_or(&Json::Null), "{name}: {row}");
                }
                assert_eq!(
                    row["rank"],
                    if metric["metric"] == "top" && !value.is_null() { json!(rank) } else { Json::Null }
                );
                for (name, cell) in names.iter().zip(line) {
                    let cell_of_row = match &row[name.as_str().unwrap()] {
                        Json::Null => String::new(),
                        Json::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    assert_eq!(cell, cell_of_row, "{name}");
                }
            }
        }
    }
    assert_eq!((rows.next(), lines.next()), (None, None));
}

#[test]
fn a_doubtful_number_says_so_in_its_row() {
    let events: Vec<Event> = (1..=400).map(|url| event(DAY_0 + i64::from(url % 4) * DAY, url)).collect();
    let store = faulty(&events, None, Some("p{x}:add:d:1700006400:event"));
    let engine = Engine::new(store, Limits { members_max: 100, ..Limits::default() });
    let flags = |find: Find, name: &str| -> BTreeSet<String> {
        let rows = rows_of(&engine, &Request::Find(find), NOW);
        rows["rows"].as_array().unwrap().iter().map(|row| row[name].to_string()).collect()
    };
    assert_eq!(flags(Find { limit: Some(5), ..find("top/url") }, "exact"), BTreeSet::from(["false".to_owned()]));
    let incomplete = rows_of(&engine, &Request::Find(per_bucket("add/event")), NOW);
    let incomplete: Vec<&Json> = incomplete["rows"].as_array().unwrap().iter().map(|row| &row["incomplete"]).collect();
    assert_eq!(incomplete, [&json!(false), &json!(true), &json!(false), &json!(false)]);

    let engine = Engine::new(faulty(&events, Some(DAY_0), None), Limits::default());
    let rows = rows_of(&engine, &Request::Find(per_bucket("add/event")), NOW);
    let first = &rows["rows"][0];
    assert_eq!(
        (&first["count"], &first["reason"], &first["incomplete"]),
        (&Json::Null, &json!("unreadable"), &json!(true))
    );
}

#[test]
fn what_is_counted_together_has_no_rank_and_is_told_from_a_users_own() {
    let mut rules = default_rules().rules;
    rules.events.max_values_per_key = 2;
    let own = Event { name: "__other__", ..event(DAY_0, 5) };
    let mut events = vec![own.clone(), own, event(DAY_0, 10)];
    events.extend((20..30).map(|url| Event { name: "buy", ..event(DAY_0, url) }));
    let engine = engine_of(&meta_of(&rules.validate().unwrap(), 1), &events);
    let rows = |selector: &str| rows_of(&engine, &Request::Find(find(selector)), NOW)["rows"].clone();
    let top: Vec<(Json, Json, Json)> = rows("top/url")
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["url"].clone(), row["other"].clone(), row["rank"].clone()))
        .collect();
    assert!(top.contains(&(json!("__other__"), json!(true), Json::Null)), "{top:?}");
    let ranks: Vec<&Json> = top.iter().map(|(_, _, rank)| rank).filter(|rank| !rank.is_null()).collect();
    assert_eq!(ranks, [&json!(1), &json!(2)]);
    let pairs = rows("add/event~geo");
    let other = pairs.as_array().unwrap().iter().find(|row| row["other"] == true).cloned();
    assert!(other.is_none_or(|row| row["event"] == "__other__" && row["geo"] == "__other__"));
    let names = rows("add/event");
    let own =
        names.as_array().unwrap().iter().find(|row| row["event"] == "__other__" && row["other"] == false).unwrap();
    assert_eq!((&own["count"], &own["capped"]), (&json!(2), &json!(true)));
}

/// Values are what anybody sends.
#[test]
fn values_survive_csv_and_do_nothing_in_a_spreadsheet() {
    let hostile = ["=1+1", "a,b", "say \"x\"", "two\nlines", "-5", "D~E", "F\\R", "@x;=y"];
    let events: Vec<Event> =
        hostile.iter().enumerate().map(|(n, geo)| Event { geo: (*geo).to_owned(), ..event(DAY_0, n as u32) }).collect();
    let engine = engine_of(&meta_of(&default_rules(), 1), &events);
    let request = Request::Find(find("add/event~geo"));
    let rows = rows_of(&engine, &request, NOW);
    let found: BTreeSet<&str> =
        rows["rows"].as_array().unwrap().iter().map(|row| row["geo"].as_str().unwrap()).collect();
    assert_eq!(found, BTreeSet::from(hostile));
    let csv = text_of(&engine, &request, NOW, Text::Csv);
    for cell in [",=1+1,", ",\"a,b\",", ",\"say \"\"x\"\"\",", ",\"two\nlines\",", ",-5,", ",D~E,", ",F\\R,", ",@x;=y,"]
    {
        assert!(csv.contains(cell), "{cell}: {csv}");
    }
    let sheet = text_of(&engine, &request, NOW, Text::Spreadsheet);
    assert!(sheet.starts_with("\u{feff}time,"), "{sheet}");
    for cell in [",'=1+1,", ",-5,", ",'@x;'=y,"] {
        assert!(sheet.contains(cell), "{cell}: {sheet}");
    }
}

/// Pieces of a large table are small, and together they are the table.
#[test]
fn a_large_table_comes_in_pieces() {
    let row = |n: u32| CountRow { value: Value::One(format!("/{n}")), other: false, count: 1 };
    let engine = engine_of(&meta_of(&default_rules(), 1), &[event(DAY_0, 1)]);
    let Answer::Find(mut answer) = block_on(engine.ask(&Request::Find(find("add/event")), NOW)).unwrap() else {
        panic!()
    };
    let values: Vec<CountRow> = (0..5000).map(row).collect();
    answer.results[0].cell.data = Some(Data::Count { count: 5000, values_seen: 5000, values });
    for (text, records) in [(Text::Csv, 5001), (Text::Json, 5000)] {
        let pieces: Vec<Vec<u8>> = Pieces::new(Table::of_find(answer.clone()), text).collect();
        assert!(pieces.len() > 5 && pieces.iter().all(|piece| piece.len() < 66 << 10), "{}", pieces.len());
        let whole = String::from_utf8(pieces.concat()).unwrap();
        match text {
            Text::Json => {
                assert_eq!(serde_json::from_str::<Json>(&whole).unwrap()["rows"].as_array().unwrap().len(), records);
            }
            _ => assert_eq!(whole.matches("\r\n").count(), records),
        }
    }
}

/// The pieces of a nested answer are what it is as a whole, whatever stands in it.
#[test]
fn a_nested_answer_in_pieces_is_the_same_answer() {
    let hostile = ["\"values\":[", "\\\"values\":[]}", "\u{1}\u{2}", "é日本", ""];
    let events: Vec<Event> =
        (0..400).map(|n| Event { geo: format!("{}{n}", hostile[n % 5]), ..event(DAY_0, n as u32) }).collect();
    let engine = engine_of(&meta_of(&default_rules(), 3), &events);
    let query = Request::Query { range: all_days(), bucket: BucketKind::Day, limit: Some(300) };
    let catalog = Request::Catalog { range: all_days(), bucket: BucketKind::Day };
    let finds = ["add/event~geo", "bitmap_by/geo/ip", "bitmap/ip", "add_value/event~geo/amount", "top/url"];
    let merged = finds.map(|selector| Request::Find(find(selector)));
    let bucketed = finds.map(|selector| Request::Find(per_bucket(selector)));
    let one = Request::Find(Find { value: Some("view".to_owned()), ..find("add/event") });
    for request in [query, catalog, one].into_iter().chain(merged).chain(bucketed) {
        let answer = block_on(engine.ask(&request, NOW)).unwrap();
        let whole = serde_json::to_string(&answer).unwrap();
        let results = match &answer {
            Answer::Query(answer) => serde_json::to_string(&answer.buckets).unwrap(),
            Answer::Find(answer) => serde_json::to_string(&answer.results).unwrap(),
            Answer::Catalog(_) => whole.clone(),
        };
        for (extent, expected) in [(Extent::Whole, whole), (Extent::Results, results)] {
            let pieces: Vec<Vec<u8>> = Nested::new(answer.clone(), extent).collect();
            assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() < 66 << 10), "{request:?}");
            assert!(pieces.len() > expected.len() / (66 << 10), "{request:?}");
            assert_eq!(String::from_utf8(pieces.concat()).unwrap(), expected, "{request:?}");
        }
    }
}

/// The labels of a merge and the rows of an answer count, and what a question held is given back
/// with its answer, or its error.
#[test]
fn what_a_question_holds_is_counted_and_given_back() {
    let events: Vec<Event> =
        (0..4000).map(|n| Event { geo: "x".repeat(400) + &n.to_string(), ..event(DAY_0, n) }).collect();
    let store = Arc::new(block_on(filled(&meta_of(&default_rules(), 3), &events)));
    let engine = |answers_bytes_max| {
        let limits = Limits { answers_bytes_max, ..Limits::default() };
        Arc::new(Engine::new(Arc::<MemoryStore>::clone(&store), limits))
    };
    let (roomy, tight) = (engine(64 << 20), engine(2 << 20));
    for (selector, has_text) in [("add/event~geo", true), ("add_value/event~geo/amount", true), ("top/url", false)] {
        let request = Request::Find(Find { limit: Some(10_000), ..find(selector) });
        let question = block_on(roomy.prepare(&request, NOW)).unwrap();
        let (answer, memory) = block_on(roomy.answer_with_memory(question)).unwrap();
        let text = serde_json::to_string(&answer).unwrap();
        let used = roomy.memory().used();
        assert!(used > text.len() / 2 && (!has_text || used > 4000 * 400), "{selector}: {used} for {}", text.len());
        drop(memory);
        assert_eq!(roomy.memory().used(), 0);
        if has_text {
            let refused = block_on(tight.ask(&request, NOW));
            assert!(matches!(&refused, Err(QueryError::TooLarge(text)) if text.contains("one `value`")), "{refused:?}");
            assert_eq!(tight.memory().used(), 0);
            let one = format!("view~{}", "x".repeat(400) + "7");
            let one = Request::Find(Find { value: Some(one), limit: None, ..find(selector) });
            assert!(block_on(tight.ask(&one, NOW)).is_ok());
        }
    }
}
