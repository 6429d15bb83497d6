//! Files of the data directory are their owner's alone: events and counts are other people's data.
//!
//! A directory is made with mode 0700 and a file with 0600. What an earlier version or somebody
//! else made keeps working. A directory that others of this machine may enter has the rights that
//! nobody chose, those of the umask: it becomes 0700 if it is ours and holds nothing that is not.
//! One that its group may write, or that is open to its group only, was given these rights on
//! purpose: the group keeps them, though not over the files that are made from now on.
//!
//! A name is not followed where it is a link: whoever may write into the directory could otherwise
//! have any file of ours overwritten.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, set_permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// What others than owner and group may do.
const OTHERS: u32 = 0o007;
/// That a group may write, or that it is inherited.
const SHARED: u32 = 0o2020;
const MODE: u32 = 0o7777;
/// Behind the name of a file that is being written.
const PARTIAL: &str = "partial";

/// Makes a directory and what is missing above it.
pub fn create_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)
}

/// Takes a directory of ours from others, if they may enter it and it has nothing in it but `known`
/// names.
pub fn close_to_others(directory: &Path, known: Option<&[&str]>) -> io::Result<()> {
    let metadata = directory.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & OTHERS == 0 {
        return Ok(());
    }
    if let Some(known) = known {
        for entry in std::fs::read_dir(directory)? {
            if !known.iter().any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name)) {
                return Ok(());
            }
        }
    }
    let mode = metadata.mode() & MODE;
    let closed = if mode & SHARED == 0 { DIRECTORY_MODE } else { mode & !OTHERS };
    let place = directory.display();
    // Some file systems have rights of their own.
    match set_permissions(directory, Permissions::from_mode(closed)) {
        Ok(()) if is_open_to_others(directory) => {}
        Ok(()) => tracing::info!(directory = %place, "the data directory was open to others, and is not any more"),
        Err(error) => tracing::warn!(%error, directory = %place, "the data directory is open to others"),
    }
    Ok(())
}

/// Whether others may enter a directory; `false` where there is none.
pub fn is_open_to_others(directory: &Path) -> bool {
    directory.metadata().is_ok_and(|metadata| metadata.mode() & OTHERS != 0)
}

/// For reading and writing; made if it is missing. A link is refused.
pub fn open(file: &Path) -> io::Result<File> {
    options().read(true).create(true).truncate(false).open(file)
}

/// Writes a small file whole or not at all, durably.
pub fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = file.with_extension(PARTIAL);
    // One that was cut off, or a link that somebody put there.
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut written = options().create_new(true).open(&partial)?;
    written.write_all(bytes)?;
    written.sync_all()?;
    std::fs::rename(&partial, file)?;
    sync_directory_of(file)
}

/// Makes it durable that a file is there.
pub fn sync_directory_of(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// A file that must not exist yet.
pub fn create_new(file: &Path) -> io::Result<File> {
    options().create_new(true).open(file)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(place: &Path) -> u32 {
        fs::symlink_metadata(place).unwrap().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_the_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (above, inner) = (directory.path().join("a"), directory.path().join("a/b"));
        create_directory(&inner).unwrap();
        create_directory(&inner).unwrap();
        assert_eq!((mode(&above), mode(&inner)), (0o700, 0o700));
        open(&inner.join("opened")).unwrap();
        create_new(&inner.join("new")).unwrap();
        replace(&inner.join("format"), b"x").unwrap();
        for file in ["opened", "new", "format"] {
            assert_eq!(mode(&inner.join(file)), 0o600, "{file}");
        }
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 3);
    }

    /// A link in the place of `acknowledged` had a file elsewhere overwritten.
    #[test]
    fn no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        fs::write(place("elsewhere"), "kept").unwrap();
        for name in ["opened", "new", "format", "format.partial"] {
            symlink(place("elsewhere"), place(name)).unwrap();
        }
        assert!(open(&place("opened")).is_err());
        assert!(create_new(&place("new")).is_err());
        replace(&place("format"), b"x").unwrap();
        assert_eq!(fs::read(place("elsewhere")).unwrap(), b"kept");
        assert_eq!(fs::read(place("format")).unwrap(), b"x");
        symlink(place("nowhere"), place("dangling")).unwrap();
        assert!(open(&place("dangling")).is_err() && !place("nowhere").exists());
    }

    #[test]
    fn a_directory_is_closed_to_others_and_left_to_its_group() {
        let directory = tempfile::tempdir().unwrap();
        for (before, after) in [(0o755, 0o700), (0o777, 0o770), (0o701, 0o700), (0o750, 0o750), (0o770, 0o770)] {
            set_permissions(directory.path(), Permissions::from_mode(before)).unwrap();
            assert_eq!(is_open_to_others(directory.path()), before != after);
            close_to_others(directory.path(), Some(&["format"])).unwrap();
            assert_eq!(mode(directory.path()), after, "{before:o}");
        }
        // A home, in which there is more than that.
        set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        for (name, after) in [("format", 0o700), ("mail", 0o755)] {
            fs::write(directory.path().join(name), "").unwrap();
            set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
            close_to_others(directory.path(), Some(&["format"])).unwrap();
            assert_eq!(mode(directory.path()), after, "{name}");
        }
    }
}
