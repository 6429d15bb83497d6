//! Clients that say all they have to say and close their half of the connection, as
//! `printf ... | nc` does: they are answered. Without an answer they send again, and what was taken
//! is counted twice.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::local::Site;
use crate::process::PATIENCE;
use crate::servers::poll_until;
use crate::tls;

const BODY: &str = "{\"event\":\"half\"}\n{\"event\":\"half\"}\n";
const RECORD: &str = r#"{"cmd":"record","event":{"event":"half"}}"#;

fn request(body: &str) -> String {
    format!(
        "POST /api/v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Says it, then that this is all; what is answered until the other side closes too.
fn ask(port: u16, said: &str) -> String {
    let mut stream = connect(port);
    stream.write_all(said.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The same over TLS, with its goodbye or without.
fn ask_tls(config: &Arc<ClientConfig>, port: u16, said: &str, says_goodbye: bool) -> String {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let session = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = StreamOwned::new(session, connect(port));
    stream.write_all(said.as_bytes()).unwrap();
    if says_goodbye {
        stream.conn.send_close_notify();
    }
    stream.flush().unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => panic!("{error}"),
        _ => String::from_utf8(answer).unwrap(),
    }
}

#[test]
fn whole_requests_are_answered_and_counted_once() {
    let site = Site::new("", "");
    let process = site.start();
    let answer = ask(site.http, &request(BODY));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"accepted\":2"), "{answer}");
    // Whatever its size, and several in a row.
    let large = BODY.repeat(50_000);
    let answer = ask(site.http, &request(&large));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"accepted\":100000"), "{answer}");
    let answer = ask(site.http, &request(BODY).repeat(3));
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
    let answer = ask(site.http, "GET /api/v1/find?q=add/event&days=1 HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Half a body is none.
    let half = request(BODY);
    let answer = ask(site.http, &half[..half.len() - 5]);
    assert!(!answer.contains("200 OK"), "{answer}");

    let success = "{\"success\":true}\n";
    assert_eq!(ask(site.tcp, RECORD), success);
    assert_eq!(ask(site.tcp, &format!("{RECORD}\n{RECORD}")), success.repeat(2));
    let answer = ask(site.tcp, r#"{"cmd":"query_days","days":1}"#);
    assert!(answer.starts_with("{\"success\":true,\"data\":["), "{answer}");
    let answer = ask(site.tcp, &RECORD[..RECORD.len() - 1]);
    assert!(answer.contains("the line is no command"), "{answer}");
    let expected = 2 + 100_000 + 6 + 1 + 2;
    poll_until(PATIENCE, "all is counted", || (site.events() >= expected).then_some(()));
    assert_eq!(site.events(), expected);
    assert_eq!(process.stop(), 0);
}

#[test]
fn over_tls_too_with_its_goodbye_or_without() {
    let site = tls::Site::new();
    let process = site.start();
    _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(site.file("ca.pem")).unwrap()).unwrap();
    let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    for says_goodbye in [true, false] {
        let answer = ask_tls(&config, site.http, &request(BODY), says_goodbye);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"accepted\":2"), "{answer}");
        assert_eq!(ask_tls(&config, site.tcp, RECORD, says_goodbye), "{\"success\":true}\n");
    }
    assert_eq!(process.stop(), 0);
}
