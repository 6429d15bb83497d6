//! The heads of requests, before hyper reads them. hyper takes some heads that others understand
//! otherwise: lines that end with LF alone, a length given twice, a length beside chunks. Whoever
//! passes such a request on may see its end elsewhere than we do, and take the rest for another
//! request. They are refused (RFC 9112, sections 2.2, 5.1, 5.2 and 6.3).
//!
//! A reader between the connection and hyper finds the lines of each head. Where one is wrong,
//! hyper gets a NUL instead of it, which no head may contain: it answers 400 and closes the
//! connection. Bodies are only counted. What is unclear here but not wrong is left to hyper, and so
//! is all that comes after it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use memchr::memchr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::listen::HEADER_BYTES_MAX;

/// A line is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Wrong;

/// Where the bytes of a connection are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    RequestLine,
    HeaderLine,
    /// Bytes of the body, or of a chunk, that are still to come.
    Body(u64),
    Chunk(u64),
    ChunkSize,
    /// The end of the line behind a chunk.
    ChunkEnd,
    Trailer,
    /// Nothing is looked at any more.
    Unclear,
}

/// What the head says about the body.
#[derive(Clone, Copy, Default)]
struct Framing {
    is_http_10: bool,
    length: Option<u64>,
    is_chunked: bool,
}

/// The scanner of a connection.
struct Scanner {
    place: Place,
    framing: Framing,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
}

impl Scanner {
    const fn new() -> Self {
        let framing = Framing { is_http_10: false, length: None, is_chunked: false };
        Self { place: Place::RequestLine, framing, line: Vec::new() }
    }

    /// `Err` is the index of the byte from which on they are wrong.
    fn scan(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while at < bytes.len() {
            let left = (bytes.len() - at) as u64;
            match &mut self.place {
                Place::Unclear => return Ok(()),
                Place::Body(rest) | Place::Chunk(rest) => {
                    let passed = left.min(*rest);
                    *rest -= passed;
                    at += passed as usize;
                    match self.place {
                        Place::Body(0) => self.place = Place::RequestLine,
                        Place::Chunk(0) => self.place = Place::ChunkEnd,
                        _ => {}
                    }
                }
                _ => {
                    let Some(end) = memchr(b'\n', &bytes[at..]) else {
                        self.line.extend_from_slice(&bytes[at..]);
                        // hyper refuses a head that is longer.
                        if self.line.len() > HEADER_BYTES_MAX {
                            self.give_up();
                        }
                        return Ok(());
                    };
                    self.line.extend_from_slice(&bytes[at..at + end]);
                    at += end;
                    let line = std::mem::take(&mut self.line);
                    let Some(text) = line.strip_suffix(b"\r").filter(|text| memchr(b'\r', text).is_none()) else {
                        return Err(at);
                    };
                    let is_end = text.is_empty();
                    self.take(text).map_err(|Wrong| at)?;
                    // A connection that is idle holds nothing.
                    if !is_end {
                        self.line = line;
                        self.line.clear();
                    }
                    at += 1;
                }
            }
        }
        Ok(())
    }

    fn give_up(&mut self) {
        *self = Self { place: Place::Unclear, ..Self::new() };
    }

    fn take(&mut self, line: &[u8]) -> Result<(), Wrong> {
        match self.place {
            // Some clients send an empty line after a body.
            Place::RequestLine if line.is_empty() => {}
            Place::RequestLine => {
                let is_http_10 = line.ends_with(b" HTTP/1.0");
                self.framing = Framing { is_http_10, ..Framing::default() };
                self.place = Place::HeaderLine;
            }
            Place::HeaderLine if line.is_empty() => {
                let Framing { length, is_chunked, .. } = self.framing;
                self.place = match length {
                    _ if is_chunked => Place::ChunkSize,
                    None | Some(0) => Place::RequestLine,
                    Some(length) => Place::Body(length),
                };
            }
            Place::HeaderLine => self.header(line)?,
            Place::ChunkSize => {
                let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
                self.place = match number(size.trim_ascii_end(), 16)? {
                    0 => Place::Trailer,
                    size => Place::Chunk(size),
                };
            }
            Place::ChunkEnd if line.is_empty() => self.place = Place::ChunkSize,
            Place::ChunkEnd => return Err(Wrong),
            Place::Trailer if line.is_empty() => self.place = Place::RequestLine,
            Place::Trailer | Place::Body(_) | Place::Chunk(_) | Place::Unclear => {}
        }
        Ok(())
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Wrong> {
        let colon = memchr(b':', line).ok_or(Wrong)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // A line that goes on (obs-fold) begins with a space, and one before the colon is none of
        // the name's.
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(Wrong);
        }
        let framing = &mut self.framing;
        if name.eq_ignore_ascii_case(b"content-length") {
            if framing.is_chunked || framing.length.replace(number(value, 10)?).is_some() {
                return Err(Wrong);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_known = value.eq_ignore_ascii_case(b"chunked") && !framing.is_http_10;
            if !is_known || framing.length.is_some() || std::mem::replace(&mut framing.is_chunked, true) {
                return Err(Wrong);
            }
        }
        Ok(())
    }
}

/// Digits and nothing else.
fn number(text: &[u8], radix: u32) -> Result<u64, Wrong> {
    let is_digits = !text.is_empty() && text.iter().all(u8::is_ascii_alphanumeric);
    let text = std::str::from_utf8(text).ok().filter(|_| is_digits).ok_or(Wrong)?;
    u64::from_str_radix(text, radix).map_err(|_| Wrong)
}

/// A connection whose heads are looked at before they are read.
pub(super) struct Checked<S> {
    stream: S,
    scanner: Scanner,
    is_wrong: bool,
}

impl<S> Checked<S> {
    pub const fn new(stream: S) -> Self {
        Self { stream, scanner: Scanner::new(), is_wrong: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Checked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, scanner, is_wrong } = &mut *self;
        if *is_wrong {
            return Poll::Ready(Ok(()));
        }
        let filled = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(context, buffer))?;
        if let Err(at) = scanner.scan(&buffer.filled()[filled..]) {
            buffer.set_filled(filled + at);
            buffer.put_slice(b"\0");
            *is_wrong = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 9] = [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "\r\nGET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost:a\r\nx:\r\nempty: \t \r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\na\nb\rc",
        "POST / HTTP/1.1\r\nhost: a\r\nContent-Length:0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n2\r\n\n\r\r\n1;x=y\r\na\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nA \r\n0123456789\r\n0\r\nx: y\r\n\r\n",
        "GET /a?b=c:d HTTP/1.1\r\nhost: [::1]:80\r\nx: a:b\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0",
    ];

    const BAD: [&str; 23] = [
        "GET / HTTP/1.1\n",
        "GET / HTTP/1.1\r\nhost: a\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\n",
        "\n",
        "GET / HTTP/1.1\r\nx: a\rb\r\n",
        "GET / HTTP/1.1\r\nhost : a\r\n",
        "GET / HTTP/1.1\r\nhost\t: a\r\n",
        "GET / HTTP/1.1\r\nx: a\r\n b\r\n",
        "GET / HTTP/1.1\r\nx: a\r\n\tb: c\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n",
        "GET / HTTP/1.1\r\n: a\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 5, 5\r\n",
        "POST / HTTP/1.1\r\ncontent-length: +5\r\n",
        "POST / HTTP/1.1\r\ncontent-length: \r\n",
        "POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n",
        "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\na",
    ];

    /// Scans pieces of a length, and says at which byte of all of them they are wrong.
    fn scan(bytes: &[u8], length: usize) -> Result<Place, usize> {
        let (mut scanner, mut passed) = (Scanner::new(), 0);
        for piece in bytes.chunks(length) {
            scanner.scan(piece).map_err(|at| passed + at)?;
            passed += piece.len();
        }
        Ok(scanner.place)
    }

    #[test]
    fn requests_follow_each_other_in_whatever_pieces_they_come() {
        let all = GOOD.concat();
        for length in 1..=all.len() {
            assert_eq!(scan(all.as_bytes(), length), Ok(Place::RequestLine), "pieces of {length}");
        }
    }

    #[test]
    fn a_head_that_others_read_otherwise_is_wrong_where_its_line_ends() {
        for good in ["", GOOD[0], GOOD[3], GOOD[5]] {
            for bad in BAD {
                let text = format!("{good}{bad}GET / HTTP/1.1\r\n\r\n");
                let found: Vec<_> = [1, 2, 7, text.len()].map(|length| scan(text.as_bytes(), length)).into();
                let end = good.len() + bad.rfind('\n').unwrap();
                assert!(found.iter().all(|at| *at == Err(end)), "{bad:?}: {found:?}, not {end}");
            }
        }
    }

    #[test]
    fn a_line_without_an_end_is_not_held_for_ever() {
        let mut scanner = Scanner::new();
        for _ in 0..HEADER_BYTES_MAX {
            scanner.scan(b"aaaa").unwrap();
        }
        assert_eq!((scanner.place, scanner.line.len()), (Place::Unclear, 0));
    }
}
