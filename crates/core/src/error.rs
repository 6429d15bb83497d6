//! Errors that a person reads: one line that says what is wrong and what to do, with the error of a
//! library behind it.
//!
//! The line is complete by itself, and all that is shown. The source is for code that has to know
//! more, and for whoever looks with a debugger: a library may put into its errors what must not be
//! shown, and such an error is no source.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// One line, and the error it came of. Nobody branches on it: what a caller decides by is the type
/// or the variant around it.
#[derive(Clone)]
pub struct ErrorLine {
    text: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ErrorLine {
    /// The text says all that a person has to know of the source.
    pub fn of(text: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self { text: text.into(), source: Some(Arc::new(source)) }
    }

    /// With the text that the error itself has.
    pub fn from_error(source: impl Error + Send + Sync + 'static) -> Self {
        Self::of(source.to_string(), source)
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same with something in front of it.
    #[must_use]
    pub fn within(self, place: &str) -> Self {
        Self { text: format!("{place}: {}", self.text), ..self }
    }

    /// The same with something behind it.
    #[must_use]
    pub fn followed_by(self, text: &str) -> Self {
        Self { text: self.text + text, ..self }
    }
}

impl From<String> for ErrorLine {
    fn from(text: String) -> Self {
        Self { text, source: None }
    }
}

impl From<&str> for ErrorLine {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Display for ErrorLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ErrorLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// By the line.
impl PartialEq for ErrorLine {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ErrorLine {}

impl Error for ErrorLine {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// What is wrong with the configuration: the key, and what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(transparent)]
pub struct ConfigError(ErrorLine);

impl ConfigError {
    /// The text says all that a person has to know of the source.
    pub fn of(text: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self(ErrorLine::of(text, source))
    }

    /// With the text that the error itself has.
    pub fn from_error(source: impl Error + Send + Sync + 'static) -> Self {
        Self(ErrorLine::from_error(source))
    }

    /// The same with something in front of it.
    #[must_use]
    pub fn within(self, place: &str) -> Self {
        Self(self.0.within(place))
    }
}

impl From<String> for ConfigError {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for ConfigError {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<ErrorLine> for ConfigError {
    fn from(line: ErrorLine) -> Self {
        Self(line)
    }
}

impl From<ConfigError> for ErrorLine {
    fn from(error: ConfigError) -> Self {
        error.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(text: &str) -> std::io::Error {
        std::io::Error::other(text.to_owned())
    }

    #[test]
    fn a_line_keeps_its_source_wherever_it_goes() {
        let error = ConfigError::of("data.directory: no room", io("no room")).within("traqq.toml");
        assert_eq!(error.to_string(), "traqq.toml: data.directory: no room");
        let source = error.source().unwrap();
        assert!(source.downcast_ref::<std::io::Error>().is_some(), "{source:?}");
        let line = ErrorLine::from(error);
        assert_eq!(line.source().unwrap().to_string(), "no room");
        assert!(ErrorLine::from("alone").source().is_none());
    }
}
