//! UTF-16 as UTF-8.

use std::io::{Error, ErrorKind, Read, Result};

const CHUNK_BYTES: usize = 64 << 10;

pub struct Utf16<R> {
    bytes: R,
    unit: fn([u8; 2]) -> u16,
    /// What is not decoded yet: part of a character.
    pending: Vec<u8>,
    text: String,
    /// So much of the text was taken.
    taken: usize,
    /// Of the input, in front of `pending`.
    position: u64,
}

impl<R: Read> Utf16<R> {
    pub fn little_endian(bytes: R) -> Self {
        Self::new(bytes, u16::from_le_bytes)
    }

    pub fn big_endian(bytes: R) -> Self {
        Self::new(bytes, u16::from_be_bytes)
    }

    fn new(bytes: R, unit: fn([u8; 2]) -> u16) -> Self {
        Self { bytes, unit, pending: Vec::new(), text: String::new(), taken: 0, position: 0 }
    }

    /// Decodes a chunk. `false` at the end.
    fn fill(&mut self) -> Result<bool> {
        (self.taken, self.text) = (0, String::new());
        let start = self.pending.len();
        self.pending.resize(start + CHUNK_BYTES, 0);
        let read = self.bytes.read(&mut self.pending[start..]);
        self.pending.truncate(start + read.as_ref().map_or(0, |read| *read));
        let is_end = read? == 0;
        let mut units: Vec<u16> = self.pending.chunks_exact(2).map(|pair| (self.unit)([pair[0], pair[1]])).collect();
        if !is_end && units.last().is_some_and(|unit| (0xd800..0xdc00).contains(unit)) {
            units.pop();
        }
        let mut position = self.position;
        for decoded in char::decode_utf16(units.iter().copied()) {
            let Ok(character) = decoded else {
                let why = format!("UTF-16: half a character at byte {position}");
                return Err(Error::new(ErrorKind::InvalidData, why));
            };
            self.text.push(character);
            position += 2 * character.len_utf16() as u64;
        }
        self.position = position;
        self.pending.drain(..units.len() * 2);
        if is_end && !self.pending.is_empty() {
            return Err(Error::new(ErrorKind::UnexpectedEof, "UTF-16: the file ends with half a character"));
        }
        Ok(!is_end)
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        while self.taken == self.text.len() {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let rest = &self.text.as_bytes()[self.taken..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.taken += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    fn decoded(bytes: &[u8], pieces: usize) -> Result<String> {
        let mut text = String::new();
        // Reads that are no longer than the buffer's.
        let mut input = Utf16::little_endian(Pieces(BufReader::with_capacity(pieces, bytes)));
        input.read_to_string(&mut text)?;
        Ok(text)
    }

    struct Pieces<R>(BufReader<R>);

    impl<R: Read> Read for Pieces<R> {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
            let length = self.0.capacity().min(buffer.len());
            self.0.read(&mut buffer[..length])
        }
    }

    #[test]
    fn halves_of_characters_are_errors() {
        for (bytes, part) in [
            (&[b'a', 0, b'b'][..], "ends with half"),
            (&[b'a', 0, 0, 0xd8], "at byte 2"),
            (&[0, 0xdc, b'a', 0], "at byte 0"),
            (&[0, 0xd8, b'a', 0], "at byte 0"),
        ] {
            for pieces in [1, 2, 100] {
                let error = decoded(bytes, pieces).unwrap_err().to_string();
                assert!(error.contains(part), "{bytes:?}: {error}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "\\PC{0,40}", pieces in 1..9_usize) {
            let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            prop_assert_eq!(decoded(&bytes, pieces).unwrap(), text);
        }
    }
}
