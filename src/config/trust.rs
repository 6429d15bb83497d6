//! Whose files they are that are used because they lie in the current directory.
//!
//! Nobody named it, and whoever wrote it decides where this process sends its tokens. So it is read
//! only if nobody else can have written it: the file, and the link to it if it is one, belong to
//! the user who runs us or to the superuser, and neither it nor the directories they are in may be
//! written by a group or by everybody. In a directory with the sticky bit, such as `/tmp`, others
//! cannot touch what is ours. A group is fine if it is the user's own: the one that many systems
//! make for each user, with the number of the user. The superuser reads the superuser's file, and
//! no other.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Config;
use traqq_core::error::ConfigError;

const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;
const SUPERUSER: u32 = 0;

/// Who runs us.
#[derive(Clone, Copy)]
struct User {
    id: u32,
    group: u32,
}

impl User {
    fn current() -> Self {
        Self { id: rustix::process::geteuid().as_raw(), group: rustix::process::getegid().as_raw() }
    }

    /// Whether it belongs to us, or to the superuser, who could make us do anything anyway.
    fn trusts(self, place: &Metadata) -> bool {
        place.uid() == self.id || place.uid() == SUPERUSER
    }

    /// Why somebody else may have written this; `None` if nobody else can have.
    fn doubts(self, place: &Metadata) -> Option<String> {
        if !self.trusts(place) {
            return Some(format!("belongs to user {}, and user {} runs this", place.uid(), self.id));
        }
        self.others_who_write(place)
    }

    fn others_who_write(self, place: &Metadata) -> Option<String> {
        let mode = place.mode();
        if mode & WRITABLE_BY_OTHERS != 0 {
            return Some("may be written by everybody".to_owned());
        }
        let is_own_group = place.gid() == self.group && self.group == self.id;
        let by_group = mode & WRITABLE_BY_GROUP != 0 && !is_own_group;
        by_group.then(|| format!("may be written by group {}", place.gid()))
    }
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRead {
    /// Somebody else may have written it; says in a line who.
    #[error("{0}")]
    Untrusted(String),
    #[error("it cannot be read: {0}")]
    Failed(#[from] std::io::Error),
}

/// The text of a file that nobody named.
pub(super) fn read_own(file: &Path) -> Result<String, NotRead> {
    let user = User::current();
    // One that cannot be opened is somebody else's, more often than not.
    judge(user, file, &fs::metadata(file)?)?;
    // What is looked at is what is read, whatever is put in its place meanwhile.
    let mut opened = File::open(file)?;
    judge(user, file, &opened.metadata()?)?;
    Ok(std::io::read_to_string(&mut opened)?)
}

fn judge(user: User, file: &Path, metadata: &Metadata) -> Result<(), NotRead> {
    if let Some(why) = user.doubts(metadata) {
        return Err(NotRead::Untrusted(format!("it {why}")));
    }
    let link = fs::symlink_metadata(file)?;
    // The rights of a link mean nothing.
    if link.is_symlink() && !user.trusts(&link) {
        let why = format!("it is a link that belongs to user {}, and user {} runs this", link.uid(), user.id);
        return Err(NotRead::Untrusted(why));
    }
    let target = if link.is_symlink() { fs::canonicalize(file)? } else { file.to_owned() };
    for directory in [directory_of(file), directory_of(&target)] {
        let metadata = fs::metadata(&directory)?;
        if metadata.mode() & STICKY == 0
            && let Some(why) = user.others_who_write(&metadata)
        {
            return Err(NotRead::Untrusted(format!("its directory {} {why}", directory.display())));
        }
    }
    Ok(())
}

impl Config {
    /// A data directory of the default name is found in the current directory like a configuration,
    /// and events that are kept in somebody else's are that user's to read.
    pub fn check_directory(&self) -> Result<(), ConfigError> {
        let directory = &self.data.directory;
        let Ok(metadata) = fs::metadata(directory) else { return Ok(()) };
        let (user, owner) = (User::current().id, metadata.uid());
        if *directory != traqq_disk::Config::default().directory || owner == user || owner == SUPERUSER {
            return Ok(());
        }
        let directory = directory.display();
        Err(format!(
            "./{directory} belongs to user {owner}, and user {user} runs this; data.directory = \"./{directory}\" uses \
             it all the same"
        )
        .into())
    }
}

fn directory_of(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn chmod(place: &Path, mode: u32) {
        fs::set_permissions(place, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_others_may_have_written_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("traqq.toml");
        fs::write(&file, "text").unwrap();
        let read = |mode, of_directory| {
            chmod(&file, mode);
            chmod(directory.path(), of_directory);
            read_own(&file)
        };
        for (mode, of_directory) in [(0o600, 0o700), (0o644, 0o755), (0o400, 0o1777), (0o644, 0o1775)] {
            assert_eq!(read(mode, of_directory).unwrap(), "text", "{mode:o} in {of_directory:o}");
        }
        for (mode, of_directory, why) in [
            (0o646, 0o700, "it may be written by everybody"),
            (0o602, 0o1777, "it may be written by everybody"),
            (0o600, 0o777, "may be written by everybody"),
        ] {
            let error = read(mode, of_directory).unwrap_err().to_string();
            assert!(error.contains(why), "{mode:o} in {of_directory:o}: {error}");
        }
        chmod(directory.path(), 0o700);
    }

    #[test]
    fn a_link_is_judged_by_what_it_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let [file, link] = ["other.toml", "traqq.toml"].map(|name| directory.path().join(name));
        fs::write(&file, "text").unwrap();
        symlink(&file, &link).unwrap();
        chmod(&file, 0o644);
        assert_eq!(read_own(&link).unwrap(), "text");
        chmod(&file, 0o666);
        assert!(read_own(&link).unwrap_err().to_string().contains("everybody"));
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        chmod(&open, 0o777);
        fs::rename(&file, open.join("other.toml")).unwrap();
        chmod(&open.join("other.toml"), 0o600);
        fs::remove_file(&link).unwrap();
        symlink(open.join("other.toml"), &link).unwrap();
        assert!(read_own(&link).unwrap_err().to_string().contains("its directory"));
    }

    /// With umask 002 everything of a user may be written by the group of that user alone.
    #[test]
    fn a_group_is_somebody_else_unless_it_is_the_users_own() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("traqq.toml");
        fs::write(&file, "text").unwrap();
        chmod(&file, 0o664);
        let metadata = fs::metadata(&file).unwrap();
        let (owner, group) = (metadata.uid(), metadata.gid());
        let of = |id, group| User { id, group }.doubts(&metadata);
        assert_eq!(
            of(owner, group),
            if owner == group { None } else { Some(format!("may be written by group {group}")) }
        );
        assert!(of(owner, group + 1).unwrap().contains("group"));
        let belongs = format!("belongs to user {owner}, and user {} runs this", owner + 1);
        let of_superuser = format!("may be written by group {group}");
        assert_eq!(of(owner + 1, group), Some(if owner == SUPERUSER { of_superuser } else { belongs }));
        assert!(User { id: owner, group }.others_who_write(&metadata).is_none() || owner != group);
    }
}
