//! Where an import reads: a file or standard input, decompressed by what its first bytes say.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;

const BUFFER_BYTES: usize = 256 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

pub type Input = Box<dyn BufRead + Send>;

/// Opens a file, or standard input for `-`. What is read of it, before it is decompressed, is added to `read`.
pub fn open(file: &str, read: &Arc<AtomicU64>) -> Result<Input> {
    let bytes: Box<dyn Read + Send> =
        if file == "-" { Box::new(std::io::stdin()) } else { Box::new(File::open(file)?) };
    decompressed(Counted { bytes, read: Arc::clone(read) })
}

fn decompressed(bytes: impl Read + Send + 'static) -> Result<Input> {
    let (start, bytes) = peek(bytes, ZSTD.len())?;
    let plain: Box<dyn Read + Send> = if start.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, bytes)))
    } else if start.starts_with(ZSTD) {
        Box::new(zstd::Decoder::new(bytes)?)
    } else {
        Box::new(bytes)
    };
    let (start, mut plain) = peek(plain, BYTE_ORDER_MARK.len())?;
    if start == BYTE_ORDER_MARK {
        plain.read_exact(&mut [0; BYTE_ORDER_MARK.len()])?;
    }
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, plain)))
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

    fn text(bytes: Vec<u8>) -> Result<String> {
        let mut text = String::new();
        decompressed(Cursor::new(bytes))?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn compression_is_seen_by_itself() {
        let zstd = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
        for bytes in [
            b"ab\ncd\n".to_vec(),
            gzip(b"ab\ncd\n"),
            zstd(b"ab\ncd\n"),
            [gzip(b"ab\n"), gzip(b"cd\n")].concat(),
            [zstd(b"ab\n"), zstd(b"cd\n")].concat(),
            [BYTE_ORDER_MARK, b"ab\ncd\n"].concat(),
            gzip(&[BYTE_ORDER_MARK, b"ab\ncd\n"].concat()),
        ] {
            assert_eq!(text(bytes).unwrap(), "ab\ncd\n");
        }
        for short in [&b""[..], b"a", b"{}\n"] {
            assert_eq!(text(short.to_vec()).unwrap().as_bytes(), short);
        }
    }

    #[test]
    fn a_cut_file_is_an_error() {
        let whole = gzip(&vec![b'x'; 10_000]);
        assert!(text(whole[..whole.len() - 6].to_vec()).is_err());
        let whole = zstd::encode_all(&vec![b'x'; 10_000][..], 1).unwrap();
        assert!(text(whole[..whole.len() - 2].to_vec()).is_err());
    }
}
