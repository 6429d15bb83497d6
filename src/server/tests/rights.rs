//! Who may do what: with which token, and from where.

use super::super::access::Right;
use super::*;

fn guarded() -> Config {
    let secret = |text: &str| Some(Secret(text.to_owned()));
    Config { token: secret("all"), read_token: secret("ask"), write_token: secret("send"), ..local() }
}

/// Who is admitted, as the description of the interface says it.
fn is_admitted(right: &str, token: &str) -> bool {
    match right {
        "open" | "page" => true,
        "metrics" | "ask" => matches!(token, "all" | "ask"),
        "send" => matches!(token, "all" | "send"),
        "ask-or-send" => !token.is_empty(),
        _ => panic!("there is no right {right:?}"),
    }
}

/// Every route is asked with every token and from another site, and does what its description says.
/// Rights had followed from the method, so that a question that is sent with `POST` would have been
/// one for the token that sends events.
#[tokio::test]
async fn every_route_admits_whom_its_description_says() {
    let server = start(&guarded()).await;
    let document = server.send("GET", "/api/v1/openapi.json", "authorization: Bearer all\r\n").await.json();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let (method, right) = (method.to_uppercase(), operation["x-traqq-right"].as_str().expect(path));
            let needs_none = operation["security"] == json!([]);
            assert_eq!(needs_none, matches!(right, "open" | "page"), "{method} {path}");
            for token in ["", "all", "ask", "send"] {
                let head = format!("authorization: Bearer {token}\r\ncontent-length: 0\r\n");
                let status = server.send(&method, path, &head).await.status;
                let expected = match (is_admitted(right, token), token) {
                    (true, _) => None,
                    (false, "") => Some(401),
                    (false, _) => Some(403),
                };
                let what = format!("{method} {path} with {token:?}: {status}");
                assert!(expected.map_or(!matches!(status, 401 | 403 | 405), |expected| status == expected), "{what}");
                let responses = &operation["responses"];
                assert!(responses.get(status.to_string()).is_some(), "{what} is not described");
                let foreign = format!("{head}origin: http://elsewhere.test\r\n");
                let status = server.send(&method, path, &foreign).await.status;
                assert_eq!(status == 403, right != "page", "{method} {path} from elsewhere: {status}");
            }
            described.insert((path.clone(), method, right.to_owned()));
        }
    }
    let routed = ROUTES.iter().flat_map(|route| {
        let name =
            |(method, right): &(&str, Right)| (route.path.to_owned(), (*method).to_owned(), right.name().to_owned());
        route.rights.iter().map(name)
    });
    assert_eq!(described, routed.collect());
}

/// One token asks, another one sends, and neither does what the other is for.
#[tokio::test]
async fn tokens_are_for_asking_or_for_sending() {
    let secret = |text: &str| Some(Secret(text.to_owned()));
    let config = Config { read_token: secret("ask"), write_token: secret("send"), ..local() };
    let server = start(&config).await;
    for (token, question, event) in
        [("ask", 200, Some(403)), ("send", 403, None), ("other", 401, Some(401)), ("", 401, Some(401))]
    {
        let head = format!("authorization: Bearer {token}\r\n");
        assert_eq!(server.send("GET", "/api/v1/stats", &head).await.status, question, "{token}");
        // How events are read, which is known where they come in.
        let rules = server.send("GET", "/api/v1/events", &head).await.status;
        assert_eq!(rules, if question == 401 { 401 } else { 501 }, "{token}");
        let answer = server.send("POST", "/api/v1/events", &format!("{head}content-length: 0\r\n")).await.status;
        assert!(event.map_or(![401, 403].contains(&answer), |expected| answer == expected), "{token}: {answer}");
    }
}

#[tokio::test]
async fn a_token_guards_everything_but_the_health_checks_and_the_page() {
    let config = Config { token: Some(Secret("s3cret".to_owned())), ..local() };
    let server = start(&config).await;
    for path in ["/api/v1/query", "/api/v1/openapi.json", "/metrics", "/nothing", "/page.js/"] {
        for header in
            ["", "authorization: Bearer s3cre\r\n", "authorization: Basic s3cret\r\n", "authorization: s3cret\r\n"]
        {
            let answer = server.send("GET", path, header).await;
            assert_eq!(answer.status, 401, "{path} {header}");
            assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
            answer.problem();
        }
    }
    for path in ["/health", "/livez", "/readyz", "/", "/page.css", "/page.js", "/uplot.css", "/uplot.js"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for header in ["Authorization: Bearer s3cret\r\n", "authorization: bearer s3cret\r\n"] {
        assert_eq!(server.send("GET", "/api/v1/query", header).await.status, 200);
    }
    let open = start(&Config { metrics_public: true, ..config }).await;
    assert_eq!((open.get("/metrics").await.status, open.get("/api/v1/stats").await.status), (200, 401));
}
