//! TLS of both listeners: a chain of certificates and its key, from files that are read again while
//! the server runs, because certificates are renewed more often than servers are started.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Config;
use traqq_core::error::ConfigError;
use traqq_core::pem::private_key;

const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What TLS decrypts in one piece at the most.
const RECORD_BYTES: usize = 16 << 10;

/// What turns an accepted connection into one with TLS. Clones show the same certificate.
#[derive(Clone)]
pub struct Tls {
    pub(super) acceptor: TlsAcceptor,
}

impl Tls {
    /// `None` if none is configured. `Err` says which file cannot be used, and why.
    pub fn load(config: &Config) -> Result<Option<Self>, ConfigError> {
        let (Some(certificates), Some(key)) = (&config.tls_cert_file, &config.tls_key_file) else { return Ok(None) };
        let files = Files { certificates: certificates.clone(), key: key.clone() };
        let read = files.read()?;
        let shown = Arc::new(Shown(RwLock::new(Arc::new(read.parse(&files)?))));
        let server = ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::clone(&shown) as Arc<_>);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(follow(files, read, Arc::downgrade(&shown)));
        }
        Ok(Some(Self { acceptor: TlsAcceptor::from(Arc::new(server)) }))
    }
}

struct Files {
    certificates: PathBuf,
    key: PathBuf,
}

#[derive(PartialEq, Eq)]
struct Read {
    certificates: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(&self) -> Result<Read, ConfigError> {
        let read = |name: &str, path: &Path| {
            std::fs::read(path)
                .map_err(|error| ConfigError::of(format!("server.{name} = {:?}: {error}", path.display()), error))
        };
        Ok(Read { certificates: read("tls_cert_file", &self.certificates)?, key: read("tls_key_file", &self.key)? })
    }
}

impl Read {
    fn parse(&self, files: &Files) -> Result<CertifiedKey, ConfigError> {
        let names = (files.certificates.display().to_string(), files.key.display().to_string());
        certified_key((&names.0, &self.certificates), (&names.1, &self.key))
    }
}

/// The chain of certificates and the key in two PEM files, each a name and what is in it.
pub fn certified_key(certificates: (&str, &[u8]), key: (&str, &[u8])) -> Result<CertifiedKey, ConfigError> {
    let ((certificates, chain), (key, private)) = (certificates, key);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|error| {
        ConfigError::of(format!("server.tls_cert_file = {certificates:?} is not PEM: {error}"), error)
    })?;
    if chain.is_empty() {
        return Err(format!("server.tls_cert_file = {certificates:?} has no certificate; it must be PEM").into());
    }
    let private = private_key("server.tls_key_file", key, private)?;
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
    CertifiedKey::from_der(chain, private, &provider).map_err(|error| {
        let text = match &error {
            rustls::Error::InconsistentKeys(_) => {
                format!("server.tls_key_file = {key:?} is not the key of the certificate in {certificates:?}")
            }
            error => format!("server.tls_cert_file = {certificates:?} and tls_key_file = {key:?}: {error}"),
        };
        ConfigError::of(text, error)
    })
}

/// The certificate that new connections are shown.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Shows what the files say now, until nobody listens any more. Whoever renews them writes two
/// files, one after the other: a pair that does not fit is looked at again, and the old one shown
/// meanwhile.
async fn follow(files: Files, mut last: Read, shown: std::sync::Weak<Shown>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(shown) = shown.upgrade() else { return };
        let read = match files.read() {
            Ok(read) if read == last => continue,
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "the certificate stays as it is");
                continue;
            }
        };
        match read.parse(&files) {
            Ok(key) => {
                *shown.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                last = read;
                tracing::info!("the certificate was renewed");
            }
            Err(error) => tracing::warn!(%error, "the certificate stays as it is"),
        }
    }
}

/// A connection of the TCP protocol, with TLS or without.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub async fn greet(stream: TcpStream, tls: Option<Tls>, patience: Duration) -> io::Result<Self> {
        _ = stream.set_nodelay(true);
        let Some(Tls { acceptor }) = tls else { return Ok(Self::Plain(stream)) };
        let session = tokio::time::timeout(patience, acceptor.accept(stream)).await;
        Ok(Self::Tls(Box::new(session.map_err(|_| io::ErrorKind::TimedOut)??)))
    }

    /// Appends what comes next, up to so many bytes; 0 when the other side says no more, whether it
    /// says goodbye as TLS wants it or not: a command shows by itself whether it is whole. Cancel
    /// safe: what was read is in `input`.
    pub async fn read(&mut self, input: &mut Vec<u8>, bytes_max: usize) -> io::Result<usize> {
        match self {
            // Nothing more is held for a connection until there is something to be read.
            Self::Plain(stream) => loop {
                // Bytes that are always there would keep the thread from all others.
                tokio::task::coop::consume_budget().await;
                input.reserve(bytes_max);
                match stream.try_read_buf(input) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
                input.shrink_to_fit();
                stream.readable().await?;
            },
            Self::Tls(stream) => {
                let room = RECORD_BYTES.min(bytes_max);
                if input.is_empty() {
                    input.shrink_to(room);
                }
                input.reserve(room);
                match stream.read_buf(input).await {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                    read => read,
                }
            }
        }
    }

    pub fn writer(&mut self) -> &mut (dyn AsyncWrite + Unpin + Send) {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let empty = file("empty.pem", "");
        let broken = file("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        for (tls_cert_file, tls_key_file, part) in [
            (None, None, None),
            (Some("/nowhere.pem".into()), empty.clone(), Some("/nowhere.pem\": No such file")),
            (empty.clone(), empty.clone(), Some("has no certificate")),
            (broken, empty, Some("has no private key")),
        ] {
            let config = Config { tls_cert_file, tls_key_file, ..Config::default() };
            let error = Tls::load(&config).map(|tls| assert!(tls.is_none())).err();
            assert_eq!(error.is_some(), part.is_some());
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(part.unwrap_or("")), "{error}");
        }
    }
}
