//! The one place that writes standard output, and what commands say on standard error.
//!
//! An answer that could not be written whole is an error, or half of it would be taken for all of
//! it. A reader that has seen enough, such as `head`, is none: the command ends there. Nobody is
//! told that a message cannot be written.
//!
//! A line is one line, and nothing in it acts on a terminal, whoever chose its words: `say!` and
//! `complain!` escape all of it. Lines with colours of ours are those of [`styled`], whose parts
//! are escaped before they are painted.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

use super::terminal::{Style, Terminal, with_styles};
use super::{Failure, Outcome};
use traqq_core::model::escape;

/// Prints a line of the answer; where that cannot be done, the function ends with the reason.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::output::line(&format!($($text)*))?
    };
}

/// A line on standard error, as far as anybody listens.
macro_rules! complain {
    ($($text:tt)*) => {
        $crate::cli::output::complain(&format!($($text)*))
    };
}

/// Standard output without a buffer, so that what was written has arrived. Somebody who shares it
/// may have made it non-blocking: it is waited for all the same.
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(&io::stdout(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(&io::stderr(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(file: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(file, bytes) {
            Err(rustix::io::Errno::AGAIN) => poll(&mut [PollFd::new(file, PollFlags::OUT)], None).map(drop)?,
            written => return Ok(written?),
        }
    }
}

/// A line of the answer.
pub fn line(text: &str) -> Outcome {
    print(&(escape::terminal(text).into_owned() + "\n"))
}

/// A line of the answer that may have styles.
pub fn styled(line: &str) -> Outcome {
    let line = with_styles(line, Terminal::stdout().has_colors());
    print(&(line.into_owned() + "\n"))
}

/// Writes a part of the answer as it is.
pub fn print(text: &str) -> Outcome {
    Stdout.write_all(text.as_bytes()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::NotRead,
        _ => unwritten(&error),
    })
}

/// What it means that standard output takes no more.
pub fn unwritten(error: &io::Error) -> Failure {
    Failure::Failed(format!("standard output: {error}; what was written is not all"))
}

/// A line on standard error.
pub fn complain(text: &str) {
    write_error(&(escape::terminal(text).into_owned() + "\n"));
}

/// A line on standard error behind a word that says what it is.
pub fn complain_of(style: Style, what: &str, text: &str) {
    write_error(&format!("{} {}\n", Terminal::stderr().paint(style, what), escape::terminal(text)));
}

/// Writes to standard error as it is.
pub fn write_error(text: &str) {
    _ = Stderr.write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Some programs that start others make a pipe non-blocking that both have: "Resource
    /// temporarily unavailable".
    #[test]
    fn a_pipe_that_does_not_block_is_waited_for() {
        struct Pipe(io::PipeWriter);
        impl Write for Pipe {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                write(&self.0, bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        let answer = vec![b'a'; 4 << 20];
        let expected = answer.len();
        let written = std::thread::spawn(move || Pipe(writer).write_all(&answer));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        written.join().unwrap().unwrap();
        assert_eq!(read.len(), expected);
    }
}
