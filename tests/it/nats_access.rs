//! Who may talk to nats-server, and how: every way to log in, TLS, a domain, and the least that a
//! user needs.

use nkeys::KeyPair;

use crate::certificates;
use crate::cli::traqq;
use crate::nats::{STREAM, Scene};
use crate::process::post;
use crate::servers::{Nats, free_port};

/// Makes the stream, sends events through a worker and counts them, all with these lines of
/// `[broker.nats]`.
fn works(nats: Nats, access: &str) -> Scene {
    let http = free_port();
    let scene = Scene::on(nats, 2, access, &format!("127.0.0.1:{http}"), "");
    scene.create();
    let worker = scene.worker(0);
    worker.wait_for_line("listening");
    let lines: Vec<String> = (0..200).map(|number| format!(r#"{{"event":"e","ip":"10.0.0.{number}"}}"#)).collect();
    let answer = post(http, "content-type: application/x-ndjson\r\n", &lines.join("\n"));
    assert!(answer.contains("\"accepted\":200"), "{answer}");
    scene.wait_for_total(200);
    assert_eq!(worker.stop(), 0);
    scene
}

/// What `doctor` says with other lines instead.
fn doctor(scene: &Scene, access: &str, other: &str) -> String {
    let text = std::fs::read_to_string(&scene.file).unwrap();
    let file = scene.file.with_file_name("other.toml");
    std::fs::write(&file, text.replace(access, other)).unwrap();
    let output = traqq().arg("--config").arg(&file).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_password_is_asked_for() {
    let nats = Nats::start_with("authorization { users: [{ user: counter, password: \"s3cret\" }] }");
    let access = "username = \"counter\"\npassword = \"s3cret\"";
    let scene = works(nats, access);
    for other in ["", "username = \"counter\"\npassword = \"wrong-one\"", "token = \"wrong-one\""] {
        let text = doctor(&scene, access, other);
        assert!(text.contains("DOWN") && text.to_lowercase().contains("authorization violation"), "{other:?}: {text}");
        assert!(!text.contains("wrong-one"), "{text}");
    }
}

#[test]
fn a_token_is_asked_for() {
    works(Nats::start_with("authorization { token: \"t0ken\" }"), "token = \"t0ken\"");
}

#[test]
fn an_nkey_is_asked_for() {
    let user = KeyPair::new_user();
    let nats = Nats::start_with(&format!("authorization {{ users: [{{ nkey: {} }}] }}", user.public_key()));
    works(nats, &format!("nkey = \"{}\"", user.seed().unwrap()));
}

/// An operator's server, which knows accounts and users only by what was signed.
#[test]
fn credentials_are_a_file() {
    let (operator, account, system, user) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user());
    let unlimited = r#""limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1,
        "mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1}"#;
    let none = unlimited.replace("_storage\":-1", "_storage\":0");
    let of_operator = token(&operator, &operator, r#""type":"operator""#);
    let of_account = token(&operator, &account, &format!(r#"{unlimited},"type":"account""#));
    let of_system = token(&operator, &system, &format!(r#"{none},"type":"account""#));
    let of_user = token(&account, &user, r#""subs":-1,"data":-1,"payload":-1,"type":"user""#);
    let nats = Nats::start_with(&format!(
        "operator: {of_operator}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {of_account}, {}: {of_system} }}\n",
        system.public_key(),
        account.public_key(),
        system.public_key()
    ));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("user.creds");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    std::fs::write(&file, text).unwrap();
    let access = format!("credentials_file = \"{}\"", file.display());
    let scene = works(nats, &access);
    let text = doctor(&scene, &access, "credentials_file = \"missing.creds\"");
    assert!(text.contains("BAD") && text.contains("broker.nats.credentials_file: missing.creds"), "{text}");
}

/// A JSON web token as NATS's tools make them.
fn token(issuer: &KeyPair, subject: &KeyPair, claims: &str) -> String {
    let payload = format!(
        r#"{{"jti":"{}","iat":1700000000,"iss":"{}","name":"test","sub":"{}","nats":{{{claims},"version":2}}}}"#,
        subject.public_key(),
        issuer.public_key(),
        subject.public_key()
    );
    let signed = format!("{}.{}", base64url(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#), base64url(payload.as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", base64url(&signature))
}

fn base64url(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[test]
fn tls_with_certificates_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    certificates::make(&dir);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let nats = Nats::start_with(&format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    ));
    let authority = |name: &str| format!("tls_ca_file = \"{}\"", path(name));
    let ours = format!("\ntls_cert_file = \"{}\"\ntls_key_file = \"{}\"", path("client.pem"), path("client.key"));
    let access = authority("ca.pem") + &ours;
    let scene = works(nats, &access);
    let text = doctor(&scene, &access, &(authority("other.pem") + &ours));
    assert!(text.contains("DOWN") && text.contains("certificate"), "{text}");
    // Who has none is sent away after the handshake.
    let text = doctor(&scene, &access, &authority("ca.pem"));
    assert!(text.contains("DOWN"), "{text}");
}

#[test]
fn a_domain_is_asked_under_its_name() {
    let nats = Nats::start_with("jetstream { domain: hub }");
    let scene = works(nats, "domain = \"hub\"");
    let text = doctor(&scene, "domain = \"hub\"", "domain = \"elsewhere\"");
    assert!(text.contains("JetStream is off"), "{text}");
}

/// What deploy/README.md says a user needs is enough; less is missed, and said.
#[test]
fn a_user_with_the_least_permissions_counts() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md")).unwrap();
    let line = readme.lines().find(|line| line.contains("`$JS.API.>`")).expect("the line of permissions");
    let subjects: Vec<String> = line
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|subject| subject.replace("<group>", "traqq").replace("<stream>", STREAM))
        .collect();
    let user = |left_out: &str| {
        let publish: Vec<&str> = subjects.iter().map(String::as_str).filter(|subject| *subject != left_out).collect();
        let publish = format!("\"{}\", \"{STREAM}.*\", \"dead\"", publish.join("\", \""));
        format!(
            "authorization {{ users: [{{ user: counter, password: p, permissions: {{ publish: [{publish}], subscribe: \"_INBOX.>\" }} }}] }}"
        )
    };
    let access = "username = \"counter\"\npassword = \"p\"";
    works(Nats::start_with(&user("")), access);
    let scene = Scene::on(Nats::start_with(&user("$JS.API.>")), 1, access, "127.0.0.1:0", "");
    let text = doctor(&scene, access, access);
    assert!(text.contains("DOWN") && text.contains("$JS.API.>"), "{text}");
}
