//! How far the log had been acknowledged, in a small file beside the database: a log that comes
//! back shorter says so.
//!
//! It is written after every step and never synced, so after a loss of power it may be as old as
//! what it watches. A torn or damaged file watches nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use traqq_core::hll::murmur64a;
use traqq_disk::private;

const FILE: &str = "acknowledged";
const SEED: u64 = 0x7472_6171_715f_776d;

pub struct Watermark {
    file: File,
}

impl Watermark {
    /// The file, and the ends of the partitions that it has.
    pub fn open(directory: &Path) -> io::Result<(Self, Vec<i64>)> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{FILE}: {error}"));
        let file = private::open(&directory.join(FILE)).map_err(named)?;
        let mut row = vec![0; file.metadata()?.len() as usize];
        file.read_exact_at(&mut row, 0)?;
        Ok((Self { file }, parse(&row).unwrap_or_default()))
    }

    /// Should the disk refuse, the file is as it was: it watches less than it could.
    pub fn write(&self, ends: impl Iterator<Item = i64>) {
        if let Err(error) = self.file.write_all_at(&encode(ends), 0) {
            tracing::debug!(%error, "{FILE}");
        }
    }
}

pub fn encode(ends: impl Iterator<Item = i64>) -> Vec<u8> {
    let mut row: Vec<u8> = ends.flat_map(i64::to_le_bytes).collect();
    row.extend_from_slice(&murmur64a(&row, SEED).to_le_bytes());
    row
}

/// `None` when the file is torn or damaged.
pub fn parse(row: &[u8]) -> Option<Vec<i64>> {
    let (ends, checksum) = row.split_last_chunk::<8>()?;
    let is_whole = murmur64a(ends, SEED) == u64::from_le_bytes(*checksum);
    is_whole.then(|| ends.as_chunks::<8>().0.iter().map(|end| i64::from_le_bytes(*end)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_last_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let (watermark, ends) = Watermark::open(directory.path()).unwrap();
        assert!(ends.is_empty());
        watermark.write([1, 2].into_iter());
        watermark.write([5, 6].into_iter());
        assert_eq!(Watermark::open(directory.path()).unwrap().1, [5, 6]);
        watermark.file.write_all_at(b"x", 3).unwrap();
        assert!(Watermark::open(directory.path()).unwrap().1.is_empty());
    }
}
