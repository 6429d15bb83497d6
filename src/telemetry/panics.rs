//! Panics in the log, like everything else that goes wrong. Those of one place are reported once in
//! a while: a library may panic over each of many messages that somebody sends.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const REPORT_EVERY: Duration = Duration::from_secs(10);

/// When each place was reported last, and how often it was not since.
type Places = BTreeMap<String, (Instant, u64)>;

/// For processes that have a log. The default report is a text on standard error for each.
pub fn log_panics() {
    static PLACES: Mutex<Places> = Mutex::new(BTreeMap::new());
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let kept_back = {
            let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
            admit(&mut places, &place, Instant::now())
        };
        let Some(kept_back) = kept_back else { return };
        let thread = std::thread::current();
        let payload = info.payload();
        let reason = payload.downcast_ref::<&str>().copied();
        let reason = reason.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
        tracing::error!(place, thread = thread.name().unwrap_or_default(), reason, kept_back, "panicked");
    }));
}

/// Whether to report this one, with how many were not reported before. There are as many places as
/// there are in the program.
fn admit(places: &mut Places, place: &str, now: Instant) -> Option<u64> {
    match places.get_mut(place) {
        Some((at, kept_back)) if now.duration_since(*at) < REPORT_EVERY => {
            *kept_back += 1;
            None
        }
        Some((at, kept_back)) => {
            *at = now;
            Some(std::mem::take(kept_back))
        }
        None => {
            places.insert(place.to_owned(), (now, 0));
            Some(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_of_one_place_are_reported_now_and_then() {
        let (mut places, now) = (Places::new(), Instant::now());
        assert_eq!(admit(&mut places, "a", now), Some(0));
        assert_eq!(admit(&mut places, "b", now), Some(0));
        assert_eq!((0..7).filter_map(|_| admit(&mut places, "a", now)).count(), 0);
        assert_eq!(admit(&mut places, "a", now + REPORT_EVERY), Some(7));
        assert_eq!(admit(&mut places, "b", now + REPORT_EVERY), Some(0));
    }
}
