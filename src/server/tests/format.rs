//! Bounds as programs know them, and answers as tables.

use super::*;

/// What Grafana's Infinity data source sends for `from=${__from}&to=${__to}`, and what it reads by
/// the root selector `rows`.
#[tokio::test]
async fn a_dashboard_asks_in_milliseconds_and_reads_rows() {
    let server = start(&local()).await;
    let range = "from=1700000000000&to=1700006399999&align=out";
    let answer = server.get(&format!("/api/v1/find?q=top/geo&{range}&format=rows")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{}", answer.body);
    let answer = answer.json();
    assert_eq!((&answer["from"], &answer["to"]), (&json!("2023-11-14T00:00:00Z"), &json!("2023-11-15T00:00:00Z")));
    let row = json!({
        "time": "2023-11-14T00:00:00Z", "time_ms": DAY * 1000, "local_time": "2023-11-14T00:00:00Z", "end": "2023-11-15T00:00:00Z",
        "geo": "DE", "other": false, "rank": 1, "count": 5, "exact": true,
        "capped": false, "incomplete": false, "partial": false, "reason": null,
    });
    assert_eq!((answer["rows"].as_array().unwrap().len(), &answer["rows"][0]), (2, &row));
    let nested = server.get(&format!("/api/v1/find?q=top/geo&{range}")).await.json();
    assert_eq!((&nested["from_epoch"], &nested["results"][0]["start_epoch"]), (&json!(DAY), &json!(DAY)));
    for (path, columns) in [("query", "metric"), ("find?q=bitmap/ip&merge=true", "missing")] {
        let sign = if path.contains('?') { '&' } else { '?' };
        let answer = server.get(&format!("/api/v1/{path}{sign}{range}&format=rows")).await.json();
        assert!(answer["columns"].as_array().unwrap().contains(&json!(columns)), "{answer}");
        assert_eq!(answer["rows"][0]["time_ms"], DAY * 1000);
    }
    let catalog = server.get(&format!("/api/v1/catalog?{range}")).await.json();
    assert_eq!(catalog["from_epoch"], DAY);
    let now = server.get("/api/v1/find?q=top/geo&from=now-6h&to=now").await.json();
    assert_eq!((&now["from"], &now["buckets"]), (&json!("2023-11-13T00:00:00Z"), &json!(2)));
}

#[tokio::test]
async fn a_bound_inside_a_bucket_says_how_to_round_it() {
    let server = start(&local()).await;
    for (query, part) in [
        ("from=1700000000000&to=1700006400000", "2023-11-14T00:00:00Z and 2023-11-15T00:00:00Z, and align=out"),
        ("from=2023-11-14&to=1700006399", "2023-11-14T00:00:00Z and 2023-11-15T00:00:00Z, and align=out"),
        ("from=1700006399999&to=1700000000000&align=out", "empty"),
        ("from=1700000000000&align=outward", "align=outward"),
        ("from=now-6x&to=now", "like now-6h"),
        ("format=parquet", "format=parquet"),
    ] {
        for path in ["/api/v1/query?", "/api/v1/find?q=top/geo&"] {
            let answer = server.get(&format!("{path}{query}")).await;
            assert_eq!(answer.status, 400, "{path}{query}: {}", answer.body);
            assert!(answer.problem().contains(part), "{path}{query}: {}", answer.body);
        }
    }
    let catalog = server.get("/api/v1/catalog?format=csv").await;
    assert!(catalog.status == 400 && catalog.problem().contains("`format` is unknown"));
}

#[tokio::test]
async fn who_asks_for_csv_gets_it() {
    let server = start(&local()).await;
    let path = "/api/v1/find?q=top/geo";
    let by_name = server.get(&format!("{path}&format=csv")).await;
    let by_header = server.send("GET", path, "accept: text/csv\r\n").await;
    assert_eq!(by_name.body, by_header.body);
    assert_eq!(
        by_name.body,
        "time,time_ms,local_time,end,geo,other,rank,count,exact,capped,incomplete,partial,reason\r\n\
         2023-11-14T00:00:00Z,1699920000000,2023-11-14T00:00:00Z,2023-11-15T00:00:00Z,DE,false,1,5,true,false,false,false,\r\n\
         2023-11-14T00:00:00Z,1699920000000,2023-11-14T00:00:00Z,2023-11-15T00:00:00Z,US,false,2,4,true,false,false,false,\r\n"
    );
    assert_eq!(by_name.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    assert_eq!(by_name.header("content-disposition"), Some("attachment; filename=\"traqq-top-geo-2023-11-14.csv\""));
    assert_eq!(by_name.header("x-content-type-options"), Some("nosniff"));
    // The parameter is the question's, whatever a client takes.
    let json = server.send("GET", &format!("{path}&format=json"), "accept: text/csv\r\n").await;
    assert_eq!(json.header("content-type"), Some("application/json"));
    let query = server.send("GET", "/api/v1/query", "accept: text/csv\r\n").await;
    assert!(
        query.body.starts_with("time,time_ms,local_time,end,metric,pattern,add_key,of,geo,other,"),
        "{}",
        query.body
    );
    let sheet = server.get(&format!("{path}&format=spreadsheet")).await;
    assert_eq!(sheet.body, format!("\u{feff}{}", by_name.body));
    // What goes wrong is a problem document, also for who reads CSV.
    let wrong = server.send("GET", "/api/v1/find?q=top/ip", "accept: text/csv\r\n").await;
    assert_eq!(wrong.status, 404);
    wrong.problem();
}

/// Caches hold the forms of one answer apart.
#[tokio::test]
async fn each_form_of_an_answer_has_its_own_tag() {
    let server = start(&local()).await;
    let mut tags = BTreeSet::new();
    for path in ["/api/v1/find?q=top/geo", "/api/v1/query"] {
        let sign = if path.contains('?') { '&' } else { '?' };
        for format in ["json", "rows", "csv", "spreadsheet"] {
            let target = format!("{path}{sign}format={format}");
            let whole = server.get(&target).await;
            let tag = whole.header("etag").unwrap().to_owned();
            let again = server.send("GET", &target, &format!("if-none-match: {tag}\r\n")).await;
            assert_eq!((again.status, &*again.body, again.header("etag")), (304, "", Some(&*tag)), "{target}");
            let head = server.send("HEAD", &target, "").await;
            assert_eq!((head.status, &*head.body, head.header("etag")), (200, "", Some(&*tag)), "{target}");
            assert_eq!(head.header("content-type"), whole.header("content-type"), "{target}");
            assert_eq!(head.header("content-length"), whole.header("content-length"), "{target}");
            for answer in [&whole, &again, &head] {
                assert_eq!(answer.header("vary"), Some("Accept"), "{target}");
            }
            tags.insert(tag);
        }
        // The same address, another form.
        let plain = server.get(path).await;
        let known = format!("accept: text/csv\r\nif-none-match: {}\r\n", plain.header("etag").unwrap());
        let csv = server.send("GET", path, &known).await;
        assert!(csv.status == 200 && csv.header("content-type").unwrap().starts_with("text/csv"), "{}", csv.head);
    }
    assert_eq!(tags.len(), 4);
    assert_eq!(server.get("/api/v1/catalog").await.header("vary"), None);
}

/// Its length is not known before its end, and it is never held whole.
#[tokio::test]
async fn a_large_table_is_sent_while_it_is_made() {
    let server = start(&local()).await;
    let names: Vec<String> = (0..2000).map(|n| format!("place-{n}")).collect();
    let geos: Vec<(&str, i64)> = names.iter().map(|name| (&**name, 1)).collect();
    count(&server.store, 0, 1, &geos).await;
    let target = "/api/v1/find?q=top/geo&limit=3000&format=csv";
    let answer = server.get(target).await;
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, Some("chunked")), "{}", answer.head);
    let (mut rest, mut csv) = (&*answer.body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        csv.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    assert_eq!(csv.split_terminator("\r\n").count(), 1 + 2002);
    assert!(names.iter().all(|name| csv.contains(&format!(",{name},false,"))));
    let head = server.send("HEAD", target, "").await;
    assert_eq!((head.status, &*head.body, head.header("etag")), (200, "", answer.header("etag")));
}

#[tokio::test]
async fn bounds_over_tcp_are_those_of_http() {
    let server = start(&local()).await;
    let engine = Arc::new(Engine::new(Arc::new(server.store.clone()), Config::default().limits()));
    let mut conversation = Conversation::new(&local(), 0, engine, None, || DAY + 60);
    for (bounds, part) in [
        (
            r#""min":1700000000000,"max":1700006399999,"align":"out""#,
            r#""start":"2023-11-14T00:00:00Z","end":"2023-11-15"#,
        ),
        (r#""min":"now-1h","max":"now""#, r#""start":"2023-11-13T00:00:00Z""#),
        (r#""min":1700000000000,"max":1700006400000"#, "align=out"),
        (r#""min":1700000000000,"align":"up""#, "align=up"),
    ] {
        for command in [r#""cmd":"query""#, r#""cmd":"find","metric_type":"top","key":"geo""#] {
            let line = format!("{{{command},{bounds}}}\n");
            let answer = String::from_utf8(conversation.hear(line.as_bytes()).await.unwrap()).unwrap();
            assert!(answer.contains(part), "{line}: {answer}");
        }
    }
}
