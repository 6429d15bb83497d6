//! How long a connection lives, and what is said at its end.

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use std::net::IpAddr;

use super::super::guard::{Guard, guard};
use super::super::routes::right_of;
use super::*;

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Asks, and reads the answer; the connection stays.
async fn ask(stream: &TcpStream) -> String {
    write(stream, HEALTH).await.unwrap();
    let mut answer = Vec::new();
    let whole = async {
        while !answer.ends_with(b"ok\n") {
            stream.readable().await.unwrap();
            let mut chunk = [0; 1024];
            match stream.try_read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => answer.extend_from_slice(&chunk[..length]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    };
    timeout(PATIENCE, whole).await.expect("an answer");
    String::from_utf8(answer).unwrap()
}

/// Behind a load balancer that keeps its connections for a minute, one that was closed after the
/// ten seconds of a header made every request a 502 that was sent at that moment.
#[tokio::test]
async fn a_connection_outlives_the_timeout_of_a_header() {
    let server = start(&Config { header_timeout_ms: 100, ..local() }).await;
    let kept = server.connect().await;
    assert!(ask(&kept).await.starts_with("HTTP/1.1 200"));
    // It tells when that timeout has passed.
    let silent = server.connect().await;
    timeout(PATIENCE, read(&silent)).await.expect("it is cut off");
    assert!(ask(&kept).await.starts_with("HTTP/1.1 200"));
    // But a request that has begun has no more time than the first.
    write(&kept, &HEALTH[..10]).await.unwrap();
    timeout(PATIENCE, read(&kept)).await.expect("it is cut off");
}

#[tokio::test]
async fn a_connection_without_another_request_is_let_go() {
    let server = start(&Config { keep_alive_ms: 200, ..local() }).await;
    let idle = server.connect().await;
    assert!(ask(&idle).await.starts_with("HTTP/1.1 200"));
    let begun = Instant::now();
    timeout(PATIENCE, read(&idle)).await.expect("it is let go");
    assert!(begun.elapsed() >= Duration::from_millis(150));
}

/// A connection whose client said that it says no more was closed without the answer.
#[tokio::test]
async fn a_client_that_has_said_all_is_answered_and_one_that_has_gone_holds_nothing() {
    let config = Config { connections_max: 1, request_timeout_ms: 300, ..local() };
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        "late"
    };
    let layer = axum::middleware::from_fn_with_state(Guard::new(&config, right_of), guard);
    let router = axum::Router::new().route("/slow", get(slow));
    let router = router.route("/never", get(|| async { std::future::pending::<&str>().await })).layer(layer);
    let listening = serve(&config, None, router, std::future::pending()).await.unwrap();
    let address = listening.address();
    let half_closed = |path: &'static str| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    };
    drop(half_closed("/never").await);
    // It has the only connection that there is, when that one is given up.
    let answered = async {
        loop {
            let (mut answer, mut stream) = (String::new(), half_closed("/slow").await);
            stream.read_to_string(&mut answer).await.unwrap();
            if !answer.starts_with("HTTP/1.1 503") {
                return answer;
            }
        }
    };
    let answer = timeout(PATIENCE, answered).await.expect("it is answered");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
}

/// The last line of a client that does not end it was dropped with its event.
#[tokio::test]
async fn the_last_line_over_tcp_needs_no_end() {
    let engine = Arc::new(Engine::new(Arc::new(MemoryStore::new(1)), Config::default().limits()));
    for (said, answers) in [
        ("", &[][..]),
        ("\n \n", &[]),
        (r#"{"cmd":"auth"}"#, &["{\"success\":true}"]),
        ("{\"cmd\":\"auth\"}\n{\"cmd\":\"auth\"}\r", &["{\"success\":true}", "{\"success\":true}"]),
        (r#"{"cmd":"au"#, &["{\"error\":\"the line is no command: EOF"]),
        ("GET /", &["{\"error\":\"the line is no command"]),
    ] {
        let mut conversation = Conversation::new(&local(), 0, Arc::clone(&engine), None, || DAY);
        let mut answer = conversation.hear(said.as_bytes()).await.unwrap();
        answer.extend(conversation.end().await);
        let answer = String::from_utf8(answer).unwrap();
        let lines: Vec<&str> = answer.lines().collect();
        assert_eq!(lines.len(), answers.len(), "{said:?}: {answer}");
        assert!(lines.iter().zip(answers).all(|(line, expected)| line.starts_with(expected)), "{said:?}: {answer}");
    }
}

/// Fifty idle connections of one client kept `/livez` waiting until the orchestrator restarted the
/// process.
#[tokio::test]
async fn one_address_leaves_connections_to_others_and_probes_are_answered_when_all_are_taken() {
    let others: IpAddr = "127.0.0.2".parse().unwrap();
    for (config, is_other_served) in [
        (Config { connections_max: 8, ..local() }, true),
        (Config { connections_max: 4, connections_per_address_max: Some(4), ..local() }, false),
    ] {
        let server = start(&config).await;
        let idle: Vec<TcpStream> = timeout(PATIENCE, async {
            let mut idle = Vec::new();
            for _ in 0..4 {
                let stream = server.connect().await;
                assert!(ask(&stream).await.starts_with("HTTP/1.1 200"));
                idle.push(stream);
            }
            idle
        })
        .await
        .unwrap();
        for path in ["/livez", "/readyz", "/health"] {
            assert_eq!(server.get(path).await.status, 200, "{path}");
        }
        for path in ["/api/v1/stats", "/metrics", "/", "/nothing"] {
            let answer = server.get(path).await;
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{path}");
            assert!(answer.problem().contains("connections_per_address_max"), "{path}");
        }
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((others, 0).into()).unwrap();
        let stream = socket.connect(server.address).await.unwrap();
        let request = b"GET /api/v1/stats HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        write(&stream, request).await.unwrap();
        let answer = String::from_utf8(read(&stream).await).unwrap();
        assert_eq!(answer.starts_with("HTTP/1.1 200"), is_other_served, "{answer}");
        drop(idle);
        let served = async { while server.get("/api/v1/stats").await.status != 200 {} };
        timeout(PATIENCE, served).await.expect("what was given back can be had");
    }
}

/// Probes leave the places that are kept for them soon, also those that ask for nothing.
#[tokio::test]
async fn who_takes_the_places_of_probes_loses_them_soon() {
    let server = start(&Config { connections_max: 1, header_timeout_ms: 200, ..local() }).await;
    let kept = server.connect().await;
    assert!(ask(&kept).await.starts_with("HTTP/1.1 200"));
    let silent: Vec<TcpStream> = futures_util::future::join_all((0..50).map(|_| server.connect())).await;
    let served = async { while server.get("/livez").await.status != 200 {} };
    timeout(PATIENCE, served).await.expect("the silent ones are cut off");
    drop(silent);
}

#[tokio::test]
async fn one_address_leaves_connections_to_others_over_tcp() {
    let config = Config { tcp: "127.0.0.1:0".to_owned(), connections_max: 4, ..local() };
    let engine = Arc::new(Engine::new(Arc::new(MemoryStore::new(1)), config.limits()));
    let (address, task) = super::super::serve_tcp(&config, None, 0, engine, None, || DAY).await.unwrap();
    let auth = |stream: TcpStream| async move {
        write(&stream, b"{\"cmd\":\"auth\"}\n").await.unwrap();
        stream.readable().await.unwrap();
        let mut answer = [0; 256];
        let length = stream.try_read(&mut answer).unwrap_or(0);
        (stream, String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    let mut kept = Vec::new();
    for _ in 0..2 {
        let (stream, answer) = auth(TcpStream::connect(address).await.unwrap()).await;
        assert_eq!(answer, "{\"success\":true}\n");
        kept.push(stream);
    }
    let third = read(&TcpStream::connect(address).await.unwrap()).await;
    assert!(String::from_utf8_lossy(&third).contains("connections_per_address_max"), "{third:?}");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    assert_eq!(auth(socket.connect(address).await.unwrap()).await.1, "{\"success\":true}\n");
    task.abort();
}

/// A second `auth` was answered with success whatever its token was.
#[tokio::test]
async fn every_auth_over_tcp_has_its_token_looked_at() {
    let secret = |text: &str| Some(Secret(text.to_owned()));
    let config = Config { read_token: secret("ask"), write_token: secret("send"), ..local() };
    let engine = Arc::new(Engine::new(Arc::new(filled().await), Config::default().limits()));
    const OK: &str = "{\"success\":true}";
    for (config, said, answers) in [
        (&config, &["ask", "ask"][..], &[OK, OK][..]),
        // The rights of the token that was said last.
        (&config, &["ask", "?", "send", "?", "ask", "?"], &[OK, "\"data\":", OK, "something else", OK, "\"data\":"]),
        (&config, &["ask", "wrong", "ask"], &[OK, "a token that is right"]),
        (&config, &["ask", "", "ask"], &[OK, "a token that is right"]),
        (&config, &["wrong", "ask"], &["a token that is right"]),
        (&config, &["?", "ask"], &["a token that is right"]),
        // Without tokens there is none that is wrong.
        (&local(), &["wrong", "", "?"], &[OK, OK, "\"data\":"]),
    ] {
        let mut conversation = Conversation::new(config, 0, Arc::clone(&engine), None, || DAY + 60);
        let mut found = String::new();
        for word in said {
            let line = match *word {
                "?" => json!({"cmd": "query_days", "days": 1}),
                token => json!({"cmd": "auth", "token": token}),
            };
            let line = format!("{line}\n");
            found += &String::from_utf8(conversation.hear(line.as_bytes()).await.unwrap_or_default()).unwrap();
        }
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines.len(), answers.len(), "{said:?}: {found}");
        assert!(lines.iter().zip(answers).all(|(line, part)| line.contains(part)), "{said:?}: {found}");
    }
}
