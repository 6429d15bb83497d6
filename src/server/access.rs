//! Who may do what: a token for everything, one that may only ask, and one that may only send
//! events; and what a route asks for, which is written beside it and does not follow from the
//! method: a question may be a `POST`.

use std::hint::black_box;
use std::sync::Arc;

use super::Config;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    All,
    Read,
    Write,
}

/// Who may use a route with a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Right {
    /// Everybody: what probes it has no token.
    Open,
    /// Everybody, from wherever they come: the files of the dashboard hold no data.
    Page,
    /// Who may ask, or everybody with `server.metrics_public`.
    Metrics,
    Ask,
    Send,
    AskOrSend,
}

impl Right {
    pub const fn is_given_by(self, access: Access) -> bool {
        match self {
            Self::Open | Self::Page | Self::AskOrSend => true,
            Self::Metrics | Self::Ask => access.may_read(),
            Self::Send => access.may_write(),
        }
    }

    /// As the description of the interface names it.
    #[cfg(test)]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Page => "page",
            Self::Metrics => "metrics",
            Self::Ask => "ask",
            Self::Send => "send",
            Self::AskOrSend => "ask-or-send",
        }
    }
}

impl Access {
    pub const fn may_read(self) -> bool {
        matches!(self, Self::All | Self::Read)
    }

    pub const fn may_write(self) -> bool {
        matches!(self, Self::All | Self::Write)
    }
}

#[derive(Clone)]
pub(super) struct Tokens(Arc<[(Box<str>, Access)]>);

impl Tokens {
    pub fn new(config: &Config) -> Self {
        let tokens =
            [(&config.token, Access::All), (&config.read_token, Access::Read), (&config.write_token, Access::Write)];
        Self(tokens.into_iter().filter_map(|(token, access)| Some((&*token.as_ref()?.0, access))).map(own).collect())
    }

    /// What somebody may do who says nothing.
    pub fn of_strangers(&self) -> Option<Access> {
        self.0.is_empty().then_some(Access::All)
    }

    /// What somebody may do who says this. All tokens are compared, whichever fits.
    pub fn of(&self, given: &[u8]) -> Option<Access> {
        self.0.iter().fold(None, |found, (token, access)| match is_equal(given, token.as_bytes()) {
            true => Some(*access),
            false => found,
        })
    }
}

fn own((token, access): (&str, Access)) -> (Box<str>, Access) {
    (token.into(), access)
}

/// Takes the same time wherever the first difference is.
fn is_equal(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let difference = left.iter().zip(right).fold(0, |difference, (left, right)| black_box(difference | (left ^ right)));
    black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use traqq_core::model::Secret;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(is_equal(b"secret", b"secret") && is_equal(b"", b""));
        assert!(!is_equal(b"secret", b"secreT") && !is_equal(b"secre", b"secret") && !is_equal(b"", b"s"));
    }

    #[test]
    fn a_token_gives_what_it_is_for() {
        let token = |text: &str| Some(Secret(text.to_owned()));
        assert_eq!(Tokens::new(&Config::default()).of_strangers(), Some(Access::All));
        let config =
            Config { token: token("all"), read_token: token("ask"), write_token: token("send"), ..Config::default() };
        let tokens = Tokens::new(&config);
        assert_eq!(tokens.of_strangers(), None);
        let found = ["all", "ask", "send", "other", ""].map(|given| tokens.of(given.as_bytes()));
        assert_eq!(found, [Some(Access::All), Some(Access::Read), Some(Access::Write), None, None]);
    }

    #[test]
    fn a_right_is_given_by_the_tokens_that_it_names() {
        for (right, given) in [
            (Right::Open, [true, true, true]),
            (Right::Page, [true, true, true]),
            (Right::Metrics, [true, true, false]),
            (Right::Ask, [true, true, false]),
            (Right::Send, [true, false, true]),
            (Right::AskOrSend, [true, true, true]),
        ] {
            let found = [Access::All, Access::Read, Access::Write].map(|access| right.is_given_by(access));
            assert_eq!(found, given, "{right:?}");
        }
    }
}
