//! Requests that two readers understand differently, as hyper gets them from real sockets.

use super::*;

/// A request whose end or whose host is unclear was answered. Whoever passed it on could have taken
/// its rest for another request.
#[tokio::test]
async fn a_request_that_can_be_understood_in_two_ways_is_malformed() {
    let server = start(&local()).await;
    for request in [
        "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nHost: elsewhere.test\r\n\r\n",
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost, elsewhere.test\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost elsewhere.test\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: elsewhere.test@localhost\r\n\r\n",
        "GET http://elsewhere.test/health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET http://elsewhere.test@localhost/health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET /health HTTP/1.1\nhost: localhost\n\n",
        "GET /health HTTP/1.1\r\nhost: localhost\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\n\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\rb: c\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost : localhost\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\r\n\tcontent-length: 1\r\n\r\n",
        "POST /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
        "POST /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1, 1\r\n\r\na",
        "POST /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        "POST /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /health HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        for pipelined in ["", "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
            let answer = server.raw(format!("{pipelined}{request}").as_bytes()).await;
            let last = answer.head.clone() + &answer.body;
            let last = last.rsplit("HTTP/1.1 ").next().unwrap();
            assert!(last.starts_with("400 "), "{request:?}: {last}");
        }
    }
}

/// Bodies may hold anything, and those who are plain are understood, also one behind the other.
#[tokio::test]
async fn a_request_that_is_clear_is_answered() {
    let server = start(&local()).await;
    let address = server.address;
    let requests = [
        "GET /livez HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        format!("GET http://{address}/livez HTTP/1.1\r\nhost: {address}\r\n\r\n"),
        "GET http://LocalHost/livez HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\na\n\rb".to_owned(),
        "GET /livez HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\n\n\n\r\n0\r\n\r\n".to_owned(),
        "\r\nGET /livez HTTP/1.1\r\nhost: [::1]:80\r\nconnection: close\r\n\r\n".to_owned(),
    ];
    let answer = server.raw(requests.concat().as_bytes()).await;
    let all = answer.head + "\r\n\r\n" + &answer.body;
    assert_eq!(
        all.matches("HTTP/1.1 200 OK").count() + all.matches("HTTP/1.0 200 OK").count(),
        requests.len(),
        "{all}"
    );
}
