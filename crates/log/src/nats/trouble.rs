//! What stands in the way of something, told from one task to another.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long what the server said may be the reason of what fails.
const RECENT: Duration = Duration::from_secs(30);
/// So much of it is kept.
const COMPLAINTS_MAX: usize = 16;

/// Why something does not work; nothing while it does.
#[derive(Default)]
pub struct Trouble(Mutex<Option<String>>);

impl Trouble {
    /// Held for a few instructions; nothing panics meanwhile.
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn set(&self, why: &str) {
        *self.lock() = Some(why.to_owned());
    }

    pub fn clear(&self) {
        *self.lock() = None;
    }

    pub fn get(&self) -> Option<String> {
        self.lock().clone()
    }
}

/// What the client complained of lately. A server answers what it does not permit with a line to
/// the connection and not to whoever asked, who only sees that no answer comes.
#[derive(Default)]
pub struct Complaints(Mutex<VecDeque<(Instant, String)>>);

impl Complaints {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, String)>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether it is news.
    pub fn hear(&self, text: &str) -> bool {
        let mut all = self.lock();
        let known = all.iter().position(|(_, known)| known == text);
        let is_news = known.and_then(|at| all.remove(at)).is_none_or(|(at, _)| at.elapsed() >= RECENT);
        if all.len() == COMPLAINTS_MAX {
            all.pop_front();
        }
        all.push_back((Instant::now(), text.to_owned()));
        is_news
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The last one.
    pub fn last(&self) -> Option<String> {
        self.lock().back().filter(|(at, _)| at.elapsed() < RECENT).map(|(_, text)| text.clone())
    }

    /// That it may not publish to this very subject.
    pub fn refusal(&self, subject: &str) -> Option<String> {
        let quoted = format!("Publish to \"{subject}\"");
        let all = self.lock();
        let mut recent = all.iter().rev().filter(|(at, _)| at.elapsed() < RECENT);
        recent.find(|(_, text)| text.contains(&quoted)).map(|(_, text)| text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_does_not_permit_is_remembered_with_its_subject() {
        let complaints = Complaints::default();
        let refused = |subject: &str| format!("nats: Permissions Violation for Publish to \"{subject}\"");
        assert!(complaints.hear(&refused("events.a")));
        assert!(!complaints.hear(&refused("events.a")));
        assert!(complaints.hear("disconnected"));
        assert_eq!(complaints.last().as_deref(), Some("disconnected"));
        assert_eq!(complaints.refusal("events.a"), Some(refused("events.a")));
        assert_eq!(complaints.refusal("other"), None);
        (0..COMPLAINTS_MAX).for_each(|number| _ = complaints.hear(&number.to_string()));
        assert_eq!(complaints.refusal("events.a"), None);
    }

    #[test]
    fn a_refusal_of_a_subject_is_not_one_of_its_beginning() {
        let complaints = Complaints::default();
        let text = "nats: Permissions Violation for Publish to \"events.ab\"";
        assert!(complaints.hear(text));
        assert_eq!(complaints.refusal("events.a"), None);
        assert_eq!(complaints.refusal("events."), None);
        assert_eq!(complaints.refusal("events.ab").as_deref(), Some(text));
    }
}
