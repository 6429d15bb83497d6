//! Private keys in PEM.

use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use crate::error::ConfigError;

/// The key in the text of a file that a setting names. What is wrong with a text is not said, for
/// the parser says it with the line that it is in, which may be all of the key.
pub fn private_key(setting: &str, file: &str, text: &[u8]) -> Result<PrivateKeyDer<'static>, ConfigError> {
    PrivateKeyDer::from_pem_slice(text)
        .map_err(|_| format!("{setting} = {file:?} has no private key; it must be PEM, without a password").into())
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    /// A file that has lost its line ends is one line.
    #[test]
    fn an_error_over_a_key_has_nothing_of_it() {
        for text in ["-----BEGIN PRIVATE KEY-----c2VjcmV0-----END PRIVATE KEY-----", "c2VjcmV0", ""] {
            let error = private_key("server.tls_key_file", "key.pem", text.as_bytes()).unwrap_err();
            let line = "server.tls_key_file = \"key.pem\" has no private key; it must be PEM, without a password";
            assert_eq!(error.to_string(), line);
            assert!(error.source().is_none());
        }
        let key = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
        assert!(private_key("a", "b", key).is_ok());
    }
}
