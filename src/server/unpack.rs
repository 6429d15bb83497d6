//! gzip and Zstandard as readers. They take what the reference decoders take: several members or
//! frames one after the other, frames that are to be skipped, zeros behind the last member.
//! Anything else behind the end, and a stream that ends in the middle, is an error that says so.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

use flate2::bufread::GzDecoder;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Of a frame that is to be skipped, behind a byte from 0x50 to 0x5f. pzstd begins with one.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Bytes that tell what something is packed with.
pub const MAGIC_BYTES: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// By the first [`MAGIC_BYTES`] of something.
    pub fn of(start: &[u8]) -> Option<Self> {
        match start {
            _ if start.starts_with(&GZIP) => Some(Self::Gzip),
            _ if start.starts_with(&ZSTD) => Some(Self::Zstd),
            [0x50..=0x5f, rest @ ..] if rest.starts_with(&ZSTD_SKIPPABLE) => Some(Self::Zstd),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

pub struct Gzip<R>(Stream<R>);

enum Stream<R> {
    /// The number of members in front of it, and whether it has brought something.
    Member(GzDecoder<R>, usize, bool),
    Ended,
    Garbage,
}

impl<R: BufRead> Gzip<R> {
    pub fn new(bytes: R) -> Self {
        Self(Stream::Member(GzDecoder::new(bytes), 0, false))
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let (member, before, has_begun) = match &mut self.0 {
                Stream::Member(member, before, has_begun) => (member, before, has_begun),
                Stream::Ended => return Ok(0),
                Stream::Garbage => return Err(garbage()),
            };
            let length = match member.read(buffer) {
                Err(error) if *before > 0 && !*has_begun && member.header().is_none() && !is_cut(&error) => {
                    return Err(garbage());
                }
                result => result.map_err(|error| explained(error, Packing::Gzip))?,
            };
            *has_begun |= length > 0;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            let before = *before + 1;
            let Stream::Member(member, ..) = std::mem::replace(&mut self.0, Stream::Garbage) else { continue };
            let mut rest = member.into_inner();
            self.0 = match behind(&mut rest)? {
                Behind::Nothing => Stream::Ended,
                Behind::Something => Stream::Member(GzDecoder::new(rest), before, false),
                Behind::Garbage => return Err(garbage()),
            };
        }
    }
}

enum Behind {
    /// Or only zeros, with which tapes and block devices are filled up.
    Nothing,
    Something,
    Garbage,
}

fn behind(rest: &mut impl BufRead) -> Result<Behind> {
    let mut has_zeros = false;
    loop {
        let bytes = match rest.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        if bytes.is_empty() {
            return Ok(Behind::Nothing);
        }
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        if zeros == 0 {
            return Ok(if has_zeros || bytes[0] != GZIP[0] { Behind::Garbage } else { Behind::Something });
        }
        has_zeros = true;
        rest.consume(zeros);
    }
}

pub struct Zstd<R: BufRead>(zstd::stream::read::Decoder<'static, R>);

impl<R: BufRead> Zstd<R> {
    /// A frame that asks for a larger window than `window_log_max` says, if it is given, is an
    /// error.
    pub fn new(bytes: R, window_log_max: Option<u32>) -> Result<Self> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?;
        if let Some(window_log_max) = window_log_max {
            decoder.window_log_max(window_log_max)?;
        }
        Ok(Self(decoder))
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.0.read(buffer).map_err(|error| explained(error, Packing::Zstd))
    }
}

fn is_cut(error: &Error) -> bool {
    error.kind() == ErrorKind::UnexpectedEof
}

fn explained(error: Error, packing: Packing) -> Error {
    let name = packing.name();
    match error.kind() {
        ErrorKind::Interrupted => error,
        ErrorKind::UnexpectedEof => Error::new(error.kind(), format!("the {name} stream is cut short")),
        kind => Error::new(kind, format!("{name}: {error}")),
    }
}

fn garbage() -> Error {
    Error::new(ErrorKind::InvalidData, "behind the end of the gzip stream there is something that is no gzip")
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 1).unwrap()
    }

    fn skippable(number: u8, text: &[u8]) -> Vec<u8> {
        [&[0x50 + number][..], &ZSTD_SKIPPABLE, &(text.len() as u32).to_le_bytes(), text].concat()
    }

    /// What comes out, through a buffer of that size.
    fn unpacked(bytes: &[u8], buffer: usize) -> Result<Vec<u8>> {
        let (mut plain, input) = (Vec::new(), BufReader::with_capacity(buffer, bytes));
        match Packing::of(bytes).expect("it is packed") {
            Packing::Gzip => Gzip::new(input).read_to_end(&mut plain)?,
            Packing::Zstd => Zstd::new(input, None)?.read_to_end(&mut plain)?,
        };
        Ok(plain)
    }

    fn error(bytes: &[u8]) -> String {
        let errors = [1, 7, 1 << 16].map(|buffer| unpacked(bytes, buffer).expect_err("it is no good").to_string());
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        errors[0].clone()
    }

    /// pzstd writes a skippable frame in front of each frame: such a file was taken for text. bgzip
    /// ends with an empty member, and what comes from a tape or a block device with zeros, which
    /// were an "invalid gzip header".
    #[test]
    fn whatever_the_reference_decoders_take_is_taken() {
        let zeros = |count: usize| vec![0; count];
        for packed in [
            [gzip(b"ab\n"), gzip(b"cd\n")].concat(),
            [gzip(b"ab\ncd\n"), gzip(b"")].concat(),
            [gzip(b""), gzip(b"ab\n"), gzip(b""), gzip(b"cd\n")].concat(),
            [gzip(b"ab\ncd\n"), zeros(1)].concat(),
            [gzip(b"ab\n"), gzip(b"cd\n"), zeros(1000)].concat(),
            [zstd(b"ab\n"), zstd(b"cd\n")].concat(),
            [skippable(0, b"1234"), zstd(b"ab\n"), skippable(0, b"1234"), zstd(b"cd\n")].concat(),
            [skippable(15, b""), zstd(b"ab\ncd\n"), skippable(7, &[b'x'; 300])].concat(),
            [zstd(b""), zstd(b"ab\ncd\n"), zstd(b"")].concat(),
        ] {
            for buffer in [1, 3, 1 << 16] {
                assert_eq!(unpacked(&packed, buffer).unwrap(), b"ab\ncd\n");
            }
        }
        assert_eq!(unpacked(&skippable(3, b"nothing else"), 5).unwrap(), b"");
    }

    #[test]
    fn garbage_behind_the_end_is_an_error() {
        for garbage in [&b"x"[..], b"\x1f\x8cabcdefgh", b"\0\0x", b"{}\n", &zstd(b"ab")] {
            let error = error(&[&gzip(b"ab\n"), garbage].concat());
            assert!(error.contains("something that is no gzip"), "{garbage:?}: {error}");
        }
        assert_eq!(error(&[&gzip(b"ab\n"), &b"\x1f"[..]].concat()), "the gzip stream is cut short");
        assert!(error(&[gzip(b"ab\n"), vec![0; 10], gzip(b"cd\n")].concat()).contains("no gzip"));
        for garbage in [&b"x"[..], b"\0\0\0\0", b"{}\n\n", &gzip(b"ab")] {
            assert!(unpacked(&[&zstd(b"ab\n"), garbage].concat(), 9).is_err(), "{garbage:?}");
        }
    }

    /// Cut anywhere but behind a member or a frame.
    #[test]
    fn a_stream_that_is_cut_short_says_so() {
        let text: Vec<u8> = (0..3000_u32).flat_map(|number| (number * number).to_le_bytes()).collect();
        let (first, second) = (gzip(&text), gzip(b"ab"));
        let whole = [first.clone(), second].concat();
        for cut in (2..whole.len()).filter(|cut| *cut != first.len()) {
            let error = unpacked(&whole[..cut], 1 << 16).unwrap_err();
            assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::UnexpectedEof, "the gzip stream is cut short"));
        }
        let (skipped, first, second) = (skippable(0, b"1234"), zstd(&text), zstd(b"ab"));
        let good = [skipped.len(), skipped.len() + first.len()];
        let whole = [skipped, first, second].concat();
        for cut in (4..whole.len()).filter(|cut| !good.contains(cut)) {
            let error = unpacked(&whole[..cut], 1 << 16).unwrap_err();
            assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::UnexpectedEof, "the zstd stream is cut short"));
        }
    }

    /// What `gzip -dc` says of bytes: its output, if it has nothing to complain about.
    fn gunzipped(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut child = Command::new("gzip")
            .arg("-dc")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_owned());
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let output = child.wait_with_output().unwrap();
        // It does not read what it has no use for.
        let _ = writer.join().unwrap();
        output.status.success().then_some(output.stdout)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

        /// Members, zeros, garbage and flipped bytes, against the reference decoder.
        #[test]
        fn gzip_is_read_as_gzip_reads_it(
            members in prop::collection::vec("[a-c]{0,40}", 1..4),
            tail in prop_oneof![
                2 => Just(Vec::new()),
                2 => (0..600_usize).prop_map(|zeros| vec![0; zeros]),
                1 => prop::collection::vec(any::<u8>(), 1..4),
            ],
            cut in prop::option::of(any::<prop::sample::Index>()),
            flip in prop::option::of((any::<prop::sample::Index>(), 1..=255_u8)),
            buffer in 1..50_usize,
        ) {
            let mut bytes: Vec<u8> = members.iter().flat_map(|text| gzip(text.as_bytes())).chain(tail).collect();
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            // Within a header there are things that one of them looks at, and the other does not.
            if let Some((at, flip)) = flip && bytes.len() > 10 && members.len() == 1 {
                let at = 10 + at.index(bytes.len() - 10);
                bytes[at] ^= flip;
            }
            prop_assume!(bytes.starts_with(&GZIP));
            let found = unpacked(&bytes, buffer).ok();
            prop_assert_eq!(&found, &unpacked(&bytes, 1 << 16).ok());
            prop_assert_eq!(found, gunzipped(&bytes));
        }
    }
}
