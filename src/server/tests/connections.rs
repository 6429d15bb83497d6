//! How long a connection lives, and what is said at its end.

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::guard::{Guard, guard};
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

/// Behind a load balancer that keeps its connections for a minute, one that was closed after the ten seconds of a header made
/// every request a 502 that was sent at that moment.
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
    let layer = axum::middleware::from_fn_with_state(Guard::new(&config), guard);
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
    let mut answer = String::new();
    let mut stream = half_closed("/slow").await;
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it is answered").unwrap();
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
