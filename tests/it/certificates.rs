//! Certificates for servers with TLS.

use std::process::Command;

use tempfile::TempDir;

/// Makes `server` for 127.0.0.1 and `client`, both signed by `ca`, and a stranger's authority
/// `other`: `.pem` and `.key` each.
pub fn make(dir: &TempDir) {
    let name = "ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for authority in ["ca", "other"] {
        openssl(
            dir,
            &format!("req -x509 -newkey {name} -keyout {authority}.key -out {authority}.pem -subj /CN={authority}"),
        );
    }
    for (end, extension) in [("server", "subjectAltName=IP:127.0.0.1"), ("client", "keyUsage=digitalSignature")] {
        std::fs::write(dir.path().join("extensions"), extension).unwrap();
        openssl(
            dir,
            &format!("req -new -newkey {name} -keyout {end}.key -out {end}.csr -subj /CN={end}")
                .replace(" -days 2", ""),
        );
        openssl(
            dir,
            &format!(
                "x509 -req -in {end}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {end}.pem -days 2 -extfile extensions"
            ),
        );
    }
}

fn openssl(dir: &TempDir, args: &str) {
    let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
}
