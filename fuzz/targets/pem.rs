//! The two files of `server.tls_cert_file` and `tls_key_file`, in one text: the certificates, a
//! line of `=`, the key.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traqq::server::certified_key;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.windows(3).position(|part| part == b"\n=\n").unwrap_or(bytes.len());
    let (certificates, key) = (&bytes[..at], bytes.get(at + 3..).unwrap_or_default());
    if let Err(error) = certified_key(("c.pem", certificates), ("k.pem", key)) {
        assert!(error.to_string().starts_with("server.tls_"), "{error}");
        assert!(!error.to_string().contains(['\n', '\u{1b}']), "{error:?}");
    }
});
