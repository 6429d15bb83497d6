//! A client of a running traqq: HTTP/1.1, with TLS if its URL says so, one connection that is kept
//! alive.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Failure;
use crate::config::beyond_loopback;
use crate::server;
use traqq_core::error::{ConfigError, ErrorLine};
use traqq_core::model::Secret;
use traqq_core::model::address::{has_credentials, shown};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longer than a server takes by default to give up by itself.
const ANSWER_MAX: Duration = Duration::from_secs(60);
const USER_AGENT: &str = concat!("traqq/", env!("CARGO_PKG_VERSION"));

/// Which server a client command asks.
#[derive(Args, Default)]
pub struct ServerArgument {
    /// Where traqq runs, as http://HOST:PORT or https://HOST:PORT [default: server.http of the
    /// configuration]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

impl ServerArgument {
    pub const fn at(url: String) -> Self {
        Self { server: Some(url) }
    }

    /// The server of `--server`, or else the one that the configuration describes; the token is the
    /// configuration's.
    pub fn client(&self, config: &server::Config) -> Result<Client, Failure> {
        let target = match &self.server {
            Some(url) => Target::parse(url),
            None => local_url(config).and_then(|url| Target::parse(&url)),
        };
        let bearer = |token: &Option<Secret>| {
            let token = config.token.as_ref().or(token.as_ref());
            let value = token.map(|token| HeaderValue::try_from(format!("Bearer {}", token.0)));
            let unusable = "server.token has characters that an Authorization header cannot carry";
            value.transpose().map_err(|_| Failure::Usage(unusable.to_owned()))
        };
        let (to_read, to_write) = (bearer(&config.read_token)?, bearer(&config.write_token)?);
        let target = target?;
        // A server of this configuration is on this machine.
        if self.server.is_some() && config.has_token() && !target.has_tls && beyond_loopback(&target.host) {
            super::warn(&format!(
                "the token is sent to {target} without TLS, where whoever is on the way reads it; use https://"
            ));
        }
        let trusted = target.has_tls.then(|| trusted(config.tls_ca_file.as_deref())).transpose();
        let tls = trusted?.map(|roots| {
            let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            TlsConnector::from(Arc::new(config))
        });
        Ok(Client { target: Arc::new(target), tls, to_read, to_write, connection: None })
    }
}

/// The authorities in a file, or else the system's.
fn trusted(file: Option<&Path>) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let wrong = |line: ErrorLine| ConfigError::from(line.within(&format!("server.tls_ca_file = {:?}", file.display())));
    let not_pem = |error: pem::Error| wrong(ErrorLine::from_error(error));
    for certificate in CertificateDer::pem_file_iter(file).map_err(not_pem)? {
        roots.add(certificate.map_err(not_pem)?).map_err(|error| wrong(ErrorLine::from_error(error)))?;
    }
    if roots.is_empty() { Err(wrong("there is no certificate in it; it must be PEM".into())) } else { Ok(roots) }
}

/// Where a server with this configuration is reached from its machine.
fn local_url(config: &server::Config) -> Result<String, ConfigError> {
    let address = &config.http;
    let (host, port) = address.rsplit_once(':').unwrap_or((address.as_str(), ""));
    if port.parse::<u16>().unwrap_or(0) == 0 {
        return Err(format!(
            "server.http = {:?} has no fixed port; say where traqq runs with --server",
            shown(address)
        )
        .into());
    }
    let host = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1",
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "[::1]",
        _ => host,
    };
    Ok(format!("{}://{host}:{port}", scheme(config.has_tls())))
}

const fn scheme(has_tls: bool) -> &'static str {
    if has_tls { "https" } else { "http" }
}

/// A parsed `http://HOST:PORT/PREFIX`, or `https`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    has_tls: bool,
    host: String,
    port: u16,
    /// As the `Host` header has it.
    authority: String,
    /// In front of every path; empty or without a slash at its end.
    prefix: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self, ConfigError> {
        if has_credentials(url) {
            let text = "--server: write a URL like http://127.0.0.1:9877; no credentials or parameters belong into it, a token is \
                        server.token or TRAQQ_SERVER__TOKEN_FILE";
            return Err(text.into());
        }
        let wrong = || ConfigError::from(format!("--server {url:?} is not a URL like http://127.0.0.1:9877"));
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let has_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        Ok(Self {
            has_tls,
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(if has_tls { 443 } else { 80 }),
            authority: authority.to_string(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", scheme(self.has_tls), self.authority, self.prefix)
    }
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// The request has not left this process.
    #[error(transparent)]
    Unreachable(ErrorLine),
    /// The request may have been taken.
    #[error(transparent)]
    Lost(ErrorLine),
}

impl ClientError {
    fn unreachable(line: impl Into<ErrorLine>) -> Self {
        Self::Unreachable(line.into())
    }

    fn lost(line: impl Into<ErrorLine>) -> Self {
        Self::Lost(line.into())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// One connection to a server, made when it is needed and again after it was lost. A clone has its
/// own.
pub struct Client {
    target: Arc<Target>,
    /// `None` for plain HTTP.
    tls: Option<TlsConnector>,
    to_read: Option<HeaderValue>,
    to_write: Option<HeaderValue>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Clone for Client {
    fn clone(&self) -> Self {
        let (to_read, to_write) = (self.to_read.clone(), self.to_write.clone());
        Self { target: Arc::clone(&self.target), tls: self.tls.clone(), to_read, to_write, connection: None }
    }
}

impl Client {
    /// `http://HOST:PORT` or `https`, for a person.
    pub fn url(&self) -> String {
        self.target.to_string()
    }

    /// A GET whose answer must be 200.
    pub async fn get(&mut self, path: &str) -> Result<Bytes, Failure> {
        let reply = self.send(Method::GET, path, &[], Bytes::new()).await?;
        if reply.status == StatusCode::OK { Ok(reply.body) } else { Err(Failure::Failed(reply.problem())) }
    }

    /// Sends one request. An answer of any status is `Ok`.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Reply, ClientError> {
        let mut authorization = if method == Method::POST { &self.to_write } else { &self.to_read };
        // How events are to be written is told to those who may send them.
        if authorization.is_none() {
            authorization = &self.to_write;
        }
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.target.prefix))
            .header(header::HOST, &self.target.authority)
            .header(header::USER_AGENT, USER_AGENT)
            .body(Full::new(body))
            .expect("a method, a path and known headers");
        request.headers_mut().extend(headers.iter().cloned());
        if let Some(authorization) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let mut connection = self.connection().await?;
        let answer = tokio::time::timeout(ANSWER_MAX, async {
            let response = connection.send_request(request).await?;
            let (head, body) = response.into_parts();
            Ok::<_, hyper::Error>(Reply {
                status: head.status,
                headers: head.headers,
                body: body.collect().await?.to_bytes(),
            })
        });
        let url = &self.target;
        match answer.await {
            Ok(Ok(reply)) => {
                self.connection = Some(connection);
                Ok(reply)
            }
            Ok(Err(error)) if error.is_parse() => {
                Err(ClientError::lost(format!("what answers at {url} does not speak HTTP; see --server")))
            }
            Ok(Err(error)) => {
                let text = format!("the connection to {url} was lost before the answer");
                Err(ClientError::Lost(ErrorLine::of(text, error)))
            }
            Err(_) => Err(ClientError::lost(format!("no answer from {url} within {} s", ANSWER_MAX.as_secs()))),
        }
    }

    /// The connection at hand if it can take a request, else a new one.
    async fn connection(&mut self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            return Ok(connection);
        }
        let url = &self.target;
        let connecting = TcpStream::connect((url.host.as_str(), url.port));
        let stream = match tokio::time::timeout(CONNECT_MAX, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                let text =
                    format!("nothing answers at {url}; start one with `traqq`, or say where it is with --server");
                return Err(ClientError::Unreachable(ErrorLine::of(text, error)));
            }
            Ok(Err(error)) => {
                return Err(ClientError::Unreachable(ErrorLine::of(
                    format!("{url} cannot be reached: {error}"),
                    error,
                )));
            }
            Err(_) => {
                let seconds = CONNECT_MAX.as_secs();
                return Err(ClientError::unreachable(format!("{url} cannot be reached: no connection in {seconds} s")));
            }
        };
        // Requests are whole: there is nothing to wait for.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return greet(stream).await };
        let name = ServerName::try_from(url.host.clone())
            .map_err(|_| ClientError::unreachable(format!("{url}: {:?} is no name of a server", url.host)))?;
        match tokio::time::timeout(CONNECT_MAX, tls.connect(name, stream)).await {
            Ok(Ok(stream)) => greet(stream).await,
            Ok(Err(error)) => {
                let text = format!(
                    "no TLS with {url}: {error}; is it https, does its certificate name {:?}, and does server.tls_ca_file have its authority?",
                    url.host
                );
                Err(ClientError::Unreachable(ErrorLine::of(text, error)))
            }
            Err(_) => Err(ClientError::unreachable(format!("no TLS with {url} in {} s", CONNECT_MAX.as_secs()))),
        }
    }
}

async fn greet(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, ClientError> {
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| ClientError::Unreachable(ErrorLine::from_error(error)))?;
    // It ends with the sender, or when the server closes; a request that it takes along sees the
    // error.
    tokio::spawn(connection);
    Ok(sender)
}

/// An answer, read to its end.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// What a person is told about an answer that is no success: the problem document's `detail`.
    pub fn problem(&self) -> String {
        #[derive(Deserialize)]
        struct Problem {
            detail: String,
        }
        if self.status == StatusCode::UNAUTHORIZED {
            return "the server wants its token; set server.token, or TRAQQ_SERVER__TOKEN in the environment"
                .to_owned();
        }
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(problem) => problem.detail,
            Err(_) => format!("the server answered {}; is it a traqq?", self.status),
        }
    }

    /// `Retry-After` in seconds; its other form, a date, is not read.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

/// A path with a query string of what is there.
pub fn path_with(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut text = path.to_owned();
    let given = parameters.iter().filter_map(|(name, value)| value.map(|value| (name, value)));
    for (index, (name, value)) in given.enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_reached_where_it_listens() {
        for (listens, url) in [
            ("127.0.0.1:9877", "http://127.0.0.1:9877"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:1", "http://[::1]:1"),
            ("[::1]:1", "http://[::1]:1"),
            ("localhost:1", "http://localhost:1"),
        ] {
            let config = server::Config { http: listens.to_owned(), ..server::Config::default() };
            assert_eq!(local_url(&config).unwrap(), url);
            let config = server::Config { tls_cert_file: Some("a.pem".into()), ..config };
            assert_eq!(local_url(&config).unwrap(), url.replace("http", "https"));
        }
        let config = server::Config { http: "127.0.0.1:0".to_owned(), ..server::Config::default() };
        assert!(local_url(&config).unwrap_err().to_string().contains("--server"));
    }

    #[test]
    fn urls_are_read() {
        let target = Target::parse("http://[::1]:8080/traqq/").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.prefix.as_str()), ("::1", 8080, "/traqq"));
        assert_eq!(target.to_string(), "http://[::1]:8080/traqq");
        assert_eq!(Target::parse("http://traqq.test").unwrap().port, 80);
        for wrong in ["", "localhost:9877", "127.0.0.1", "http://", "http://u:p@h", "http://h?x=1", "ftp://h"] {
            assert!(Target::parse(wrong).unwrap_err().to_string().contains("http://127.0.0.1:9877"), "{wrong}");
        }
        let target = Target::parse("https://traqq.test").unwrap();
        assert_eq!((target.has_tls, target.port, target.to_string().as_str()), (true, 443, "https://traqq.test"));
    }

    #[test]
    fn parameters_are_escaped() {
        let path = path_with("/p", &[("a", None), ("q", Some("add/x~y")), ("value", Some("ä &=+%"))]);
        assert_eq!(path, "/p?q=add%2Fx~y&value=%C3%A4%20%26%3D%2B%25");
        assert_eq!(path_with("/p", &[("a", None)]), "/p");
    }
}
