//! A corpus in memory, and the time a pass over it takes.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

pub struct CorpusFile {
    bytes: Vec<u8>,
    lines: Vec<Range<usize>>,
}

impl CorpusFile {
    /// Reads NDJSON; a line ends at `\n`, an empty one does not count.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let bytes = std::fs::read(path)?;
        let mut lines = Vec::new();
        let mut begin = 0;
        for line in bytes.split(|byte| *byte == b'\n') {
            let end = begin + line.len();
            if begin < end {
                lines.push(begin..end);
            }
            begin = end + 1;
        }
        assert!(!lines.is_empty(), "{} holds no events", path.display());
        Ok(Self { bytes, lines })
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(|line| &self.bytes[line.clone()])
    }

    /// The median of `passes` runs of `pass`, in seconds. One more run comes before and is not
    /// counted.
    pub fn median_seconds(&self, passes: usize, mut pass: impl FnMut(&Self)) -> f64 {
        assert!(passes > 0, "no passes asked for");
        pass(self);
        let mut seconds: Vec<f64> = (0..passes)
            .map(|_| {
                let began = Instant::now();
                pass(self);
                began.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        seconds[passes / 2]
    }
}
