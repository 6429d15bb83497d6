//! Where an import reads: a file or standard input as UTF-8, unpacked and decoded by what its first
//! bytes say.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Error, ErrorKind, Read, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::foreign;
use super::utf16::Utf16;
use crate::server::unpack::{Gzip, MAGIC_BYTES, Packing, Zstd};

const BUFFER_BYTES: usize = 256 << 10;
/// A tar archive says what it is behind 257.
const START_BYTES: usize = 512;
/// What is packed more often is nothing that anybody made on purpose.
const LAYERS_MAX: usize = 3;
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

pub type Input = Box<dyn BufRead + Send>;

/// A text, and how it begins.
pub struct Source {
    pub input: Input,
    pub start: Vec<u8>,
}

/// Opens a file, or standard input for `-`. What is read of it, before it is unpacked, is added to
/// `read`.
pub fn open(file: &str, read: &Arc<AtomicU64>) -> Result<Source> {
    let bytes: Box<dyn Read + Send> =
        if file == "-" { Box::new(std::io::stdin()) } else { Box::new(File::open(file)?) };
    text(Counted { bytes, read: Arc::clone(read) })
}

fn text(bytes: impl Read + Send + 'static) -> Result<Source> {
    let (start, plain) = peek(unpacked(bytes)?, START_BYTES)?;
    if let Some(what) = foreign::recognise(&start) {
        return Err(Error::new(ErrorKind::InvalidData, what));
    }
    let text: Box<dyn Read + Send> = match start[..] {
        [0xff, 0xfe, ..] => Box::new(Utf16::little_endian(plain)),
        [0xfe, 0xff, ..] => Box::new(Utf16::big_endian(plain)),
        // Without a mark; no text in UTF-8 has such a byte.
        [1..=255, 0, 1..=255, 0, ..] => Box::new(Utf16::little_endian(plain)),
        [0, 1..=255, 0, 1..=255, ..] => Box::new(Utf16::big_endian(plain)),
        _ if start.contains(&0) => {
            let why = "it is neither NDJSON nor CSV, but something binary; convert it";
            return Err(Error::new(ErrorKind::InvalidData, why));
        }
        _ => Box::new(plain),
    };
    let (start, mut text) = peek(text, START_BYTES)?;
    let start = match start.strip_prefix(BYTE_ORDER_MARK) {
        Some(start) => {
            text.read_exact(&mut [0; BYTE_ORDER_MARK.len()])?;
            start.to_owned()
        }
        None => start,
    };
    Ok(Source { input: Box::new(BufReader::with_capacity(BUFFER_BYTES, text)), start })
}

/// Undoes gzip and Zstandard, also one within the other.
pub fn unpacked(bytes: impl Read + Send + 'static) -> Result<Box<dyn Read + Send>> {
    let mut bytes: Box<dyn Read + Send> = Box::new(bytes);
    for _ in 0..LAYERS_MAX {
        let (start, packed) = peek(bytes, MAGIC_BYTES)?;
        let packed = BufReader::with_capacity(BUFFER_BYTES, packed);
        bytes = match Packing::of(&start) {
            Some(Packing::Gzip) => Box::new(Gzip::new(packed)),
            Some(Packing::Zstd) => Box::new(Zstd::new(packed, None)?),
            None => return Ok(Box::new(packed)),
        };
    }
    Ok(bytes)
}

/// The first bytes, fewer if there are fewer, and a reader that begins with them.
fn peek<R: Read>(mut bytes: R, length: usize) -> Result<(Vec<u8>, impl Read + use<R>)> {
    let mut start = Vec::new();
    (&mut bytes).take(length as u64).read_to_end(&mut start)?;
    Ok((start.clone(), Cursor::new(start).chain(bytes)))
}

struct Counted<R> {
    bytes: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let length = self.bytes.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: Vec<u8>) -> Result<String> {
        let (mut read, mut source) = (String::new(), text(Cursor::new(bytes))?);
        source.input.read_to_string(&mut read)?;
        assert!(read.as_bytes().starts_with(&source.start));
        Ok(read)
    }

    fn utf16(text: &str, encode: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(encode).collect()
    }

    #[test]
    fn packing_and_encoding_are_seen_by_themselves() {
        let text = "aé\n𝄞d\n";
        let marked = format!("\u{feff}{text}");
        for bytes in [
            text.as_bytes().to_vec(),
            gzip(text.as_bytes()),
            zstd::encode_all(text.as_bytes(), 1).unwrap(),
            [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9][..], &zstd::encode_all(text.as_bytes(), 1).unwrap()].concat(),
            marked.as_bytes().to_vec(),
            gzip(marked.as_bytes()),
            utf16(&marked, u16::to_le_bytes),
            utf16(&marked, u16::to_be_bytes),
            gzip(&utf16(&marked, u16::to_le_bytes)),
        ] {
            assert_eq!(read(bytes).unwrap(), text);
        }
        for encode in [u16::to_le_bytes, u16::to_be_bytes] {
            assert_eq!(read(utf16("{\"event\":\"é\"}\n", encode)).unwrap(), "{\"event\":\"é\"}\n");
        }
        for short in ["", "a", "{}\n", "\u{feff}"] {
            assert_eq!(read(short.as_bytes().to_vec()).unwrap(), short.trim_start_matches('\u{feff}'));
        }
    }

    #[test]
    fn what_is_no_text_is_said() {
        let packed = |layers: usize| (0..layers).fold(b"ab\n".to_vec(), |bytes, _| gzip(&bytes));
        assert_eq!(read(packed(LAYERS_MAX)).unwrap(), "ab\n");
        for bytes in [b"ab\0c".to_vec(), packed(LAYERS_MAX + 1)] {
            let error = read(bytes).err().unwrap().to_string();
            assert!(error.contains("binary"), "{error}");
        }
    }
}
