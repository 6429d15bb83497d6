//! Events and counts are other people's data: what is written belongs to its owner alone, and no
//! link leads a write elsewhere.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::traqq;
use crate::local::{NDJSON, Site, event};
use crate::process::{PATIENCE, Process};
use crate::servers::poll_until;

/// A directory and everything in it, with its rights.
fn rights(place: &Path) -> Vec<(PathBuf, u32)> {
    let metadata = fs::symlink_metadata(place).unwrap();
    let mut all = vec![(place.to_owned(), metadata.mode() & 0o7777)];
    if metadata.is_dir() {
        all.extend(fs::read_dir(place).unwrap().flat_map(|entry| rights(&entry.unwrap().path())));
    }
    all
}

fn assert_private(place: &Path) {
    for (place, mode) in rights(place) {
        assert_eq!(mode, if place.is_dir() { 0o700 } else { 0o600 }, "{} has {mode:o}", place.display());
    }
}

fn chmod(place: &Path, mode: u32) {
    fs::set_permissions(place, Permissions::from_mode(mode)).unwrap();
}

/// With the umask of a shell, under which others may read what is not said otherwise.
fn start(site: &Site) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 022; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_traqq")]);
    let process = Process::launch(&site.config, command, "log");
    process.wait_for_line("listening for TCP");
    process
}

#[test]
fn what_is_written_is_its_owners_alone() {
    let site = Site::new("", "");
    let data = site.data_directory();
    let process = start(&site);
    assert_eq!(site.post(NDJSON, event("a", 1).as_bytes()).unwrap().status, 200);
    site.wait_until_counted();
    assert!(rights(&data).len() > 8 && data.join("acknowledged").is_file());
    assert_private(&data);
    assert_eq!(process.stop(), 0);
    let export = site.config.with_file_name("counts.zst");
    let run = |arguments: &[&str]| {
        let output = traqq().arg("--config").arg(&site.config).args(arguments).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned())
    };
    let (code, text) = run(&["store", "export", export.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    assert_private(&export);
    assert!(!run(&["doctor"]).1.contains("rights"));
    // As an earlier version made it: it is said, and mended by the first process that opens it.
    rights(&data).iter().for_each(|(place, _)| chmod(place, if place.is_dir() { 0o755 } else { 0o644 }));
    let (_, text) = run(&["doctor"]);
    assert!(text.contains("every user of this machine may enter"), "{text}");
    let process = start(&site);
    for place in [data.clone(), data.join("database")] {
        assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o700, "{}", place.display());
    }
    assert_eq!(process.stop(), 0);
    // Nobody has given it to a group by accident.
    chmod(&data, 0o750);
    assert_eq!(start(&site).stop(), 0);
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o750);
}

/// A link in the place of `acknowledged` had a file of the user's overwritten.
#[test]
fn no_link_leads_a_write_out_of_the_data_directory() {
    let site = Site::new("", "");
    let data = site.data_directory();
    let elsewhere = site.config.with_file_name("elsewhere");
    fs::write(&elsewhere, "kept").unwrap();
    assert_eq!(start(&site).stop(), 0);
    let acknowledged = data.join("acknowledged");
    fs::remove_file(&acknowledged).unwrap();
    symlink(&elsewhere, &acknowledged).unwrap();
    let mut command = traqq();
    let output = command.arg("--config").arg(&site.config).arg("run").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("acknowledged"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(fs::read(&elsewhere).unwrap(), b"kept");
    fs::remove_file(&acknowledged).unwrap();
    // An export goes to a new file, and to nothing that is there already.
    let dangling = site.config.with_file_name("dangling");
    symlink(site.config.with_file_name("nowhere"), &dangling).unwrap();
    for file in [&dangling, &elsewhere] {
        let mut command = traqq();
        let output = command.arg("--config").arg(&site.config).args(["store", "export"]).arg(file).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", file.display());
    }
    assert!(!site.config.with_file_name("nowhere").exists());
    assert_eq!(fs::read(&elsewhere).unwrap(), b"kept");
    // In a new directory the same holds for the mark of its format.
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    symlink(&elsewhere, data.join("format.partial")).unwrap();
    let process = start(&site);
    poll_until(PATIENCE, "it is marked", || data.join("format").is_file().then_some(()));
    assert_eq!(process.stop(), 0);
    assert_eq!(fs::read(&elsewhere).unwrap(), b"kept");
}
