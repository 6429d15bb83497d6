//! What a configuration may have done to the user who runs traqq with it: nothing is loaded or run,
//! and one that somebody else may have put into the current directory is not read.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::cli::{traqq, write_config};
use crate::servers::free_port;

/// A library that leaves a file behind when it is loaded.
fn library(directory: &Path, left_behind: &Path) -> PathBuf {
    let (source, library) = (directory.join("evil.c"), directory.join("evil.so"));
    let path = left_behind.display();
    let text = format!(
        "#include <fcntl.h>\n__attribute__((constructor)) static void load(void) {{ creat(\"{path}\", 0600); }}\n"
    );
    fs::write(&source, text).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success());
    library
}

#[test]
fn no_configuration_loads_or_runs_anything() {
    let directory = tempfile::tempdir().unwrap();
    let left_behind = directory.path().join("left-behind");
    let library = library(directory.path(), &left_behind);
    let touch = format!("touch {}", left_behind.display());
    let path = library.display().to_string();
    let properties = [
        ("plugin.library.paths", &path, "it would load a library"),
        ("Plugin.Library.Paths", &path, "it would load a library"),
        ("ssl.engine.location", &path, "set ssl.key.location"),
        ("ssl.engine.id", &path, "set ssl.key.location"),
        ("ssl.providers", &path, "it would load modules"),
        ("sasl.kerberos.kinit.cmd", &touch, "it would run a shell"),
        ("sasl.kerberos.principal", &format!("$({touch})"), "it would run a shell"),
        ("sasl.kerberos.keytab", &format!("\"; {touch}; \""), "it would run a shell"),
        ("offset.store.path", &left_behind.display().to_string(), "it would write offsets"),
        ("internal.termination.signal", &"9".to_owned(), "it would have signals sent"),
        ("test.mock.num.brokers", &"1".to_owned(), "no such property"),
        ("interceptors", &"x".to_owned(), "no such property"),
    ];
    let security = "\"security.protocol\" = \"sasl_ssl\"\n\"sasl.mechanism\" = \"PLAIN\"\n\"sasl.username\" = \"u\"\n\"sasl.password\" = \"p\"\n";
    for (name, value, why) in properties {
        let text = format!(
            "[broker.kafka]\nbrokers = \"127.0.0.1:{}\"\ntopics = [\"t\"]\n[mapping]\nadd = [\"event\"]\n\
             [store.redis]\nurl = \"redis://127.0.0.1:{}\"\n[server]\nhttp = \"127.0.0.1:0\"\ntcp = \"off\"\n\
             [broker.kafka.properties]\n{security}{name:?} = {value:?}\n",
            free_port(),
            free_port()
        );
        let config = write_config(directory.path(), &text);
        for (arguments, code) in [
            (&["config", "check"][..], 2),
            (&["run"], 2),
            (&["doctor"], 1),
            (&["config", "show"], 0),
            (&["store", "drop", "--yes"], 1),
        ] {
            let output = traqq().arg("--config").arg(&config).args(arguments).stdin(Stdio::null()).output().unwrap();
            let said = text_of(&output);
            assert_eq!(output.status.code(), Some(code), "{arguments:?} with {name}: {said}");
            assert!(!left_behind.exists(), "{arguments:?} with {name} ran something");
            if ["check", "run", "doctor"].contains(arguments.last().unwrap()) {
                assert!(said.contains(&format!("{name:?}")) && said.contains(why), "{arguments:?} with {name}: {said}");
            }
        }
    }
    // The library does what it should if somebody loads it.
    let loaded = Command::new("true").env("LD_PRELOAD", &library).status().unwrap();
    assert!(loaded.success() && left_behind.exists());
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn chmod(place: &Path, mode: u32) {
    fs::set_permissions(place, Permissions::from_mode(mode)).unwrap();
}

/// A directory with a file that sends the token elsewhere.
struct Trap {
    directory: tempfile::TempDir,
    elsewhere: TcpListener,
}

impl Trap {
    fn new() -> Self {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let trap = Self { directory: tempfile::tempdir().unwrap(), elsewhere };
        let address = trap.elsewhere.local_addr().unwrap();
        fs::write(trap.file(), format!("[server]\nhttp = \"{address}\"\n[mapping]\nadd = [\"trap\"]\n")).unwrap();
        trap
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("traqq.toml")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = traqq();
        command.env("TRAQQ_SERVER__TOKEN", "0123456789abcdef").current_dir(&self.directory);
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn assert_read(&self, case: &str) {
        let output = self.run(&["config", "show"]);
        let (text, warnings) = (text_of(&output), String::from_utf8_lossy(&output.stderr).into_owned());
        assert!(text.contains("trap") && warnings.is_empty(), "{case}: {text}");
    }

    /// Nothing of it holds; one line says so, with why and how to read it all the same.
    fn assert_not_read(&self, case: &str, why: &str) {
        for arguments in [&["config", "show"][..], &["config", "check"], &["find", "add/event"], &["doctor"]] {
            let output = self.run(arguments);
            let (text, warnings) = (text_of(&output), String::from_utf8_lossy(&output.stderr).into_owned());
            assert!(!text.contains("trap"), "{case}: {arguments:?}: {text}");
            let first = warnings.lines().next().unwrap_or_default();
            let said = format!("warning: ./traqq.toml is not read: {why}");
            assert!(first.starts_with(&said), "{case}: {arguments:?}: {warnings}");
            assert!(first.ends_with("`--config ./traqq.toml` reads it all the same"), "{case}: {first}");
            assert_eq!(warnings.matches("is not read").count(), 1, "{case}: {arguments:?}: {warnings}");
            assert!(self.elsewhere.accept().is_err(), "{case}: {arguments:?} went where the file says");
        }
        // A worker that cannot begin without it says so too. What would count, change or remove
        // something else without it ends, and a store of its own is not begun.
        for arguments in [&["run"][..], &["serve"], &["store", "drop", "--yes"], &["mapping", "apply"]] {
            let output = self.run(arguments);
            let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(2) && warnings.contains("is not read"), "{case}: {warnings}");
            assert!(!self.directory.path().join("traqq-data").exists(), "{case}: {arguments:?}");
        }
        let output = self.run(&["--config", "./traqq.toml", "config", "show"]);
        assert!(text_of(&output).contains("trap") && output.stderr.is_empty(), "{case}");
    }
}

#[test]
fn a_configuration_that_others_may_have_written_is_not_read_unless_it_is_named() {
    let trap = Trap::new();
    for mode in [0o600, 0o644, 0o400] {
        chmod(&trap.file(), mode);
        trap.assert_read(&format!("{mode:o}"));
    }
    chmod(&trap.file(), 0o646);
    trap.assert_not_read("written by everybody", "it may be written by everybody");
    chmod(&trap.file(), 0o644);
    chmod(trap.directory.path(), 0o777);
    trap.assert_not_read("in a directory of everybody", "its directory . may be written by everybody");
    chmod(trap.directory.path(), 0o1777);
    trap.assert_read("in a directory like /tmp");
    chmod(trap.directory.path(), 0o755);
    let moved = trap.directory.path().join("moved.toml");
    fs::rename(trap.file(), &moved).unwrap();
    symlink(&moved, trap.file()).unwrap();
    trap.assert_read("a link");
    chmod(&moved, 0o666);
    trap.assert_not_read("a link to one of everybody", "it may be written by everybody");
    chmod(&moved, 0o644);
    // Only the superuser can make a file of somebody else's.
    if !is_root() {
        return;
    }
    let stranger = Some(64_321);
    chown(&moved, stranger, None).unwrap();
    trap.assert_not_read("a link to a stranger's", "it belongs to user 64321, and user 0 runs this");
    fs::remove_file(trap.file()).unwrap();
    fs::rename(&moved, trap.file()).unwrap();
    trap.assert_not_read("a stranger's", "it belongs to user 64321, and user 0 runs this");
    chown(trap.file(), Some(0), Some(64_321)).unwrap();
    trap.assert_read("of a group that may read");
    chmod(&trap.file(), 0o664);
    trap.assert_not_read("of a group that may write", "it may be written by group 64321");
    // The group that has the user's number is the user's own, as umask 002 wants it.
    chown(trap.file(), Some(0), Some(0)).unwrap();
    trap.assert_read("of the user's own group");
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

/// A directory that waits in `/tmp` under the name that everybody's data has by default.
#[test]
fn a_strangers_data_directory_is_not_used_unless_it_is_named() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("traqq-data");
    fs::create_dir(&data).unwrap();
    chmod(&data, 0o777);
    chown(&data, Some(64_321), None).unwrap();
    let run = |more: &[&str]| {
        let mut command = traqq();
        command.args(["--set", "server.http=nowhere.invalid:0", "--set", "server.token=x", "--set", "server.tcp=off"]);
        command.args(more).arg("run").current_dir(&directory).stdin(Stdio::null()).output().unwrap()
    };
    let said = text_of(&run(&[]));
    assert!(said.contains("./traqq-data belongs to user 64321, and user 0 runs this"), "{said}");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    // It gets as far as the address that it cannot listen at.
    let said = text_of(&run(&["--set", "data.directory=./traqq-data"]));
    assert!(!said.contains("belongs to") && data.join("format").is_file(), "{said}");
}

#[test]
fn tokens_that_can_be_guessed_or_read_on_the_way_are_said() {
    let directory = tempfile::tempdir().unwrap();
    let run = |server: &str, arguments: &[&str]| {
        let config = write_config(
            directory.path(),
            &format!("[mapping]\nadd = [\"event\"]\n[data]\ndirectory = \"none\"\n[server]\ntcp = \"off\"\n{server}"),
        );
        chmod(&config, 0o600);
        let output = traqq().arg("--config").arg(&config).args(arguments).current_dir(&directory).output().unwrap();
        (output.status.code(), text_of(&output))
    };
    let long = "0123456789abcdef";
    for (server, parts) in [
        (format!("http = \"127.0.0.1:9\"\ntoken = \"{long}\""), &[][..]),
        ("http = \"127.0.0.1:9\"\nread_token = \"x\"".to_owned(), &["server.read_token is shorter than 16"]),
        (
            format!("http = \"0.0.0.0:9\"\ntoken = \"{long}\""),
            &["server.http = \"0.0.0.0:9\" listens beyond this machine without TLS"],
        ),
    ] {
        for (arguments, mark) in [(&["config", "check"][..], "warning: "), (&["doctor"], "warn  secrets: ")] {
            let (code, text) = run(&server, arguments);
            assert_eq!(code, Some(0), "{server}: {text}");
            assert_eq!(text.matches(mark).count(), parts.len(), "{server}: {text}");
            assert!(parts.iter().all(|part| text.contains(&format!("{mark}{part}"))), "{server}: {text}");
            assert!(!text.contains(long), "{text}");
        }
    }
    // The clients too, before anything is sent.
    let token = format!("token = \"{long}\"");
    for (url, is_said) in
        [("http://traqq.invalid:9", true), ("http://127.0.0.1:9", false), ("https://traqq.invalid:9", false)]
    {
        let (_, text) = run(&token, &["find", "add/event", "--server", url]);
        assert_eq!(text.contains(&format!("the token is sent to {url} without TLS")), is_said, "{text}");
    }
    assert!(!run("", &["find", "add/event", "--server", "http://traqq.invalid:9"]).1.contains("without TLS"));
}

/// A new version of librdkafka may bring a property that loads or runs something: each is refused
/// until it was looked at.
#[test]
fn every_property_of_this_librdkafka_was_looked_at() {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    // Of packages for other systems nothing need be here.
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let rustc = String::from_utf8(rustc.stdout).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    cargo.args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host]);
    let output = cargo.output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let sys = packages.iter().find(|package| package["name"] == "rdkafka-sys").unwrap();
    let manifest = Path::new(sys["manifest_path"].as_str().unwrap());
    let document = fs::read_to_string(manifest.with_file_name("librdkafka").join("CONFIGURATION.md")).unwrap();
    let rows = document.lines().filter(|line| line.split(" | ").count() > 5 && !line.starts_with("Property "));
    // What only a program can set.
    let mut names: Vec<&str> = rows
        .filter(|line| !line.contains("see dedicated API"))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(names.len() > 150 && names.contains(&"plugin.library.paths"), "{names:?}");
    names.retain(|name| {
        let properties = [((*name).to_owned(), "x".to_owned())].into();
        let checked = traqq_log::kafka::Config { properties, ..Default::default() }.check_properties();
        checked.is_err_and(|error| error.to_string().contains("no such property"))
    });
    assert!(names.is_empty(), "not in src/broker/kafka/config/properties.rs: {names:?}");
}
