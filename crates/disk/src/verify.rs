//! What the database does not check itself when it opens: the list of a tree's tables.
//!
//! `current` names the version of a tree that holds, with the XXH3 of its file `v<number>`;
//! lsm-tree 3.1 writes the checksum and does not look at it. A list that is damaged may leave
//! tables out, or ask for more memory than there is.

use std::fs;
use std::io;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

/// Checks every tree below the database's directory; `Err` names the file.
pub fn verify(database: &Path) -> io::Result<()> {
    let trees = database.join("keyspaces");
    if !trees.exists() {
        return Ok(());
    }
    for tree in fs::read_dir(&trees)? {
        let tree = tree?.path();
        // A tree that was being made when the process ended has none yet; the database deals with
        // that.
        if let Ok(current) = fs::read(tree.join("current")) {
            check(&tree, &current)?;
        }
    }
    Ok(())
}

fn check(tree: &Path, current: &[u8]) -> io::Result<()> {
    let parts = current.split_first_chunk::<8>().and_then(|(id, rest)| Some((id, rest.split_first_chunk::<16>()?.0)));
    let damaged = |file: &Path| io::Error::new(io::ErrorKind::InvalidData, file.display().to_string());
    let (id, checksum) = parts.ok_or_else(|| damaged(&tree.join("current")))?;
    let file = tree.join(format!("v{}", u64::from_le_bytes(*id)));
    if xxh3_128(&fs::read(&file)?) == u128::from_le_bytes(*checksum) { Ok(()) } else { Err(damaged(&file)) }
}
