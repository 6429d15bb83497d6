//! `traqq demo`: a believable stream, so that there is something to look at, in a store of its own.

mod random;
mod shop;

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use chrono::{DateTime, Datelike};
use clap::Args;
use hyper::body::Bytes;
use tokio::time::MissedTickBehavior;

use self::random::Weighted;
use self::shop::{HOURS, Shop, WEEKDAYS};
use super::chart::{counted, grouped};
use super::client::{Client, ServerArgument};
use super::events::post_until_taken;
use super::run::{runtime, start_telemetry};
use super::status_line::StatusLine;
use super::{Failure, Outcome, block_on};
use crate::app::{self, now_ms};
use crate::config::{Config, starter};
use crate::telemetry;
use traqq_core::error::ErrorLine;
use traqq_disk::Database;

const DAY_MS: i64 = 86_400_000;
const HOUR_MS: i64 = 3_600_000;
/// Of an average day of the history.
const EVENTS_PER_DAY: f64 = 3000.0;
const BATCH_EVENTS: usize = 1000;
const TICK: Duration = Duration::from_millis(200);

/// Watch an invented web shop: a traqq with data of its own, some days of history, then live until
/// Ctrl-C
///
/// What is counted elsewhere is not touched: it runs a server of its own, with the mapping of
/// config/starter.toml whatever the configuration says. Only with --server do the events go to a
/// traqq that runs already.
#[derive(Args)]
pub struct Demo {
    /// Live events per second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,

    /// Days of history, today included
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u16).range(1..=365))]
    days: u16,

    /// The same seed has the same visitors, who do the same [default: a random one]
    #[arg(long)]
    seed: Option<u64>,

    /// Only live
    #[arg(long, conflicts_with = "days")]
    no_history: bool,

    /// Where the demo keeps its data; what is there already is gone on with, live
    #[arg(long, value_name = "DIRECTORY", default_value = "traqq-demo")]
    directory: PathBuf,

    /// Where the demo's own server listens
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9878")]
    listen: String,

    /// Count the invented events with the traqq that runs at http://HOST:PORT or https://HOST:PORT,
    /// among its own
    #[arg(long, value_name = "URL", conflicts_with_all = ["directory", "listen"])]
    server: Option<String>,
}

impl Demo {
    pub fn run(self, config: &Config) -> Outcome {
        match &self.server {
            Some(url) => {
                let client = ServerArgument::at(url.clone()).client(&config.server)?;
                let mut stream = self.stream(client);
                block_on(async {
                    // Cancel safety: what is under way when Ctrl-C comes may be counted or not;
                    // nobody relies on it.
                    let result = tokio::select! {
                        result = self.send(&mut stream, !self.no_history) => result,
                        _ = tokio::signal::ctrl_c() => Ok(()),
                    };
                    stream.end(result)
                })?
            }
            None => self.run_alone(config),
        }
    }

    /// A server and a store that nothing else is in.
    fn run_alone(&self, config: &Config) -> Outcome {
        let own = self.own(config);
        own.check_worker()?;
        // Whoever listens there already must not get the events.
        if let Err(error) = TcpListener::bind(&self.listen) {
            let listen = &self.listen;
            return Err(Failure::Failed(format!(
                "the demo cannot listen at {listen}: {error}; does one run already? Choose another place with --listen"
            )));
        }
        let has_data = Database::inspect(&own.data).map_err(|error| Failure::Failed(error.to_string()))?.is_some();
        let client = ServerArgument::default().client(&own.server)?;
        let url = own.server.url(port_of(&self.listen));
        let directory = self.directory.display();
        say!("an invented web shop, with data of its own in {directory}; delete that when you are done");
        say!("open {url}");
        let metrics = start_telemetry(&own.log, &[])?;
        let mut stream = self.stream(client);
        // It is waited for until it listens, which may be a moment after the first events are
        // there.
        stream.reached = true.into();
        if has_data {
            stream.line.say("its history is there from before; going on live");
        }
        runtime()?.block_on(async {
            // The mapping is this version's, also where another one made the data. Cancel safety:
            // the server ends by itself, with a signal or an error, and then nothing is sent any
            // more. Sending ends with an error only.
            let result = tokio::select! {
                served = app::run(&own, true, metrics) => served.map_err(|error| error.to_string().into()),
                sent = self.send(&mut stream, !self.no_history && !has_data) => sent,
            };
            stream.end(result)
        })
    }

    /// The configuration of the demo's own server. Of the user's nothing holds but how to log.
    fn own(&self, config: &Config) -> Config {
        let mut own = starter();
        own.data.directory.clone_from(&self.directory);
        own.server.http.clone_from(&self.listen);
        own.server.tcp = "off".to_owned();
        own.log = config.log.clone();
        if own.log == telemetry::Config::default() {
            // The line that says how far it is stands alone.
            own.log.level = "warn".to_owned();
        }
        own
    }

    fn stream(&self, client: Client) -> Stream {
        let seed = self.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()));
        Stream { client, shop: Shop::new(seed), line: StatusLine::new(), reached: false.into(), sent: 0 }
    }

    async fn send(&self, stream: &mut Stream, has_history: bool) -> Result<(), ErrorLine> {
        if has_history {
            stream.history(self.days.into(), now_ms()).await?;
        }
        stream.live(self.rate.into()).await
    }
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or_default()
}

struct Stream {
    client: Client,
    shop: Shop,
    line: StatusLine,
    reached: AtomicBool,
    sent: u64,
}

impl Stream {
    fn end(&mut self, result: Result<(), ErrorLine>) -> Outcome {
        self.line.clear();
        if self.sent > 0 {
            say!("sent {}", counted(self.sent, "event"));
        }
        result.map_err(Failure::from)
    }

    async fn history(&mut self, days: i64, now: i64) -> Result<(), ErrorLine> {
        let mut body = String::new();
        let mut in_body = 0;
        for day in (0..days).rev() {
            for ts in times_of_day(&mut self.shop, now / DAY_MS - day).into_iter().filter(|ts| *ts < now) {
                self.shop.event(ts, &mut body);
                in_body += 1;
                if in_body == BATCH_EVENTS {
                    self.send(&mut body, &mut in_body).await?;
                }
            }
            let (sent, past) = (self.sent, days - day);
            self.line.update(|_| format!("history: {past} of {days} days, {}", counted(sent, "event")));
        }
        self.send(&mut body, &mut in_body).await?;
        let days = counted(days.unsigned_abs(), "day");
        let (sent, url) = (counted(self.sent, "event"), self.client.url());
        let text = format!("{sent} of {days} sent, now live; `traqq top --server {url}` shows it");
        self.line.say(&text);
        Ok(())
    }

    async fn live(&mut self, rate: f64) -> Result<(), ErrorLine> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (begun, before) = (Instant::now(), self.sent);
        let (mut last, mut due) = (Instant::now(), 0.0);
        loop {
            tick.tick().await;
            // After a wait there is no rush: a second is made up for at most.
            let elapsed = last.elapsed().as_secs_f64().min(1.0);
            last = Instant::now();
            due += rate * elapsed * (0.6 + 0.8 * self.shop.random().unit());
            let (mut body, mut count) = (String::new(), due as usize);
            due -= count as f64;
            (0..count).for_each(|_| self.shop.event(now_ms(), &mut body));
            self.send(&mut body, &mut count).await?;
            let live = self.sent - before;
            let rate = (live as f64 / begun.elapsed().as_secs_f64().max(1.0)).round();
            self.line
                .update(|_| format!("live: {}, {}/s; Ctrl-C ends", counted(live, "event"), grouped(&rate.to_string())));
        }
    }

    /// Sends what is there, and empties it.
    async fn send(&mut self, body: &mut String, count: &mut usize) -> Result<(), ErrorLine> {
        if *count == 0 {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(body));
        let line = &mut self.line;
        let waiting = |why: String| line.update(|_| format!("waiting: {why}"));
        let taken = post_until_taken(&mut self.client, &bytes, None, &self.reached, waiting).await?;
        if let Some(rejection) = taken.errors.first() {
            return Err(format!("the server rejects the events of the demo: {}", rejection.text()).into());
        }
        self.sent += taken.accepted;
        *count = 0;
        Ok(())
    }
}

/// When the events of a day happen, in epoch milliseconds, in order; `day` is counted from 1970.
fn times_of_day(shop: &mut Shop, day: i64) -> Vec<i64> {
    let date = DateTime::from_timestamp_millis(day * DAY_MS).unwrap_or_default();
    let weekday = WEEKDAYS[date.weekday().num_days_from_monday() as usize];
    let (hours, random) = (Weighted::new(HOURS), shop.random());
    let count = (EVENTS_PER_DAY * weekday * (0.93 + 0.14 * random.unit())) as usize;
    let mut times: Vec<i64> = (0..count)
        .map(|_| {
            let hour = hours.pick(random) as i64;
            day * DAY_MS + hour * HOUR_MS + random.below(HOUR_MS as usize) as i64
        })
        .collect();
    times.sort_unstable();
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_weeks_have_their_rhythm() {
        let mut shop = Shop::new(3);
        // 2026-01-05 is a Monday.
        let monday = 20_458;
        let days: Vec<Vec<i64>> = (monday..monday + 28).map(|day| times_of_day(&mut shop, day)).collect();
        let all: usize = days.iter().map(Vec::len).sum();
        assert!((2_800..3_300).contains(&(all / 28)), "{}", all / 28);
        let of = |weekday: usize| days.iter().skip(weekday).step_by(7).map(Vec::len).sum::<usize>();
        assert!(of(6) > of(2) * 11 / 10, "{} {}", of(6), of(2));
        let in_hour = |hour: i64| days.iter().flatten().filter(|ts| **ts % DAY_MS / HOUR_MS == hour).count();
        assert!(in_hour(20) > 4 * in_hour(3), "{} {}", in_hour(20), in_hour(3));
        for (index, times) in days.iter().enumerate() {
            let start = (monday + index as i64) * DAY_MS;
            assert!(times.is_sorted() && times[0] >= start && times[times.len() - 1] < start + DAY_MS);
        }
    }
}
