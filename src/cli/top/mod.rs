//! `traqq top`: what a server does and what leads today, live.

mod view;

use std::collections::VecDeque;
use std::io::Read;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::view::Board;
use super::answer::{Both, CatalogAnswer, Cell, FindAnswer, MetricName, read};
use super::client::{Client, ServerArgument, path_with};
use super::stats::Stats;
use super::terminal::{Screen, Terminal};
use super::{Failure, Outcome, block_on, output};
use crate::config::Config;

/// A server that is slower is as good as gone for a live view.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The catalog changes with the mapping only.
const CATALOG_AGE_MAX: Duration = Duration::from_secs(60);
const RATES_MAX: usize = 600;
const LEADERS_MAX: usize = 6;
const LEADER_VALUES: &str = "10";
/// Kinds of metrics in the order in which they are shown.
const KINDS: [&str; 5] = ["top", "add", "bitmap", "add_value", "bitmap_by"];

/// Watch a running server: what it counts, how far behind it is, and what leads today
///
/// Where output is no terminal it prints what there is once.
#[derive(Args)]
pub struct Top {
    /// Seconds between two looks
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,

    #[command(flatten)]
    server: ServerArgument,
}

impl Top {
    pub fn run(self, config: &Config) -> Outcome {
        let client = self.server.client(&config.server)?;
        let interval = Duration::from_secs(self.interval);
        let watch = Watch::new(client);
        if Terminal::stdout().is_terminal { block_on(live(watch, interval))? } else { block_on(once(watch, interval))? }
    }
}

/// Two looks, for the rate between them.
async fn once(mut watch: Watch, interval: Duration) -> Outcome {
    watch.look().await?;
    tokio::time::sleep(interval).await;
    watch.look().await?;
    watch.board.lines(&Terminal::stdout(), usize::MAX).iter().try_for_each(|line| output::styled(line))
}

async fn live(mut watch: Watch, interval: Duration) -> Outcome {
    let watched = |kind| signal(kind).map_err(|error| Failure::Failed(error.to_string()));
    let mut interrupt = watched(SignalKind::interrupt())?;
    let mut terminate = watched(SignalKind::terminate())?;
    let mut resized = watched(SignalKind::window_change())?;
    let mut quit = quit_key();
    let screen = Screen::open();
    let mut next = tokio::time::interval(interval);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let terminal = Terminal::stdout();
        screen.show(&watch.board.lines(&terminal, terminal.rows));
        let look = async {
            next.tick().await;
            watch.look().await
        };
        // Cancel safety: a look that is given up leaves the last board, and the next one takes a
        // new connection.
        tokio::select! {
            seen = look => if let Err(failure) = seen {
                watch.fail(failure.text());
            },
            _ = resized.recv() => {}
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            Some(()) = quit.recv() => return Ok(()),
        }
    }
}

/// Says when q was pressed. Its thread waits for keys until the process ends.
fn quit_key() -> mpsc::Receiver<()> {
    let (sender, quit) = mpsc::channel(1);
    std::thread::spawn(move || {
        // Where keys end without one there is still Ctrl-C.
        if std::io::stdin().lock().bytes().map_while(Result::ok).any(|key| key.eq_ignore_ascii_case(&b'q')) {
            let _ = sender.blocking_send(());
        }
    });
    quit
}

struct Watch {
    client: Client,
    board: Board,
    /// What leads, and when the catalog said so.
    leaders: Option<(Instant, Vec<MetricName>)>,
    /// When so many events were counted.
    counted: Option<(Instant, u64)>,
}

impl Watch {
    fn new(client: Client) -> Self {
        let board = Board { url: client.url(), ..Board::default() };
        Self { client, board, leaders: None, counted: None }
    }

    /// Asks for everything that is shown.
    async fn look(&mut self) -> Outcome {
        let stats: Stats = self.ask("/api/v1/stats").await?;
        self.board.trouble = None;
        let (now, events) = (Instant::now(), stats.totals.events);
        if let Some((then, before)) = self.counted {
            // A server that was started anew counts from 0.
            let rate = events.checked_sub(before).map(|more| more as f64 / (now - then).as_secs_f64().max(0.001));
            self.remember(rate);
        }
        self.counted = Some((now, events));
        self.board.stats = Some(stats);
        let leaders = self.leaders().await;
        self.board.remark = leaders.as_ref().err().map(Failure::text);
        self.board.leaders = leaders.unwrap_or_default();
        Ok(())
    }

    async fn leaders(&mut self) -> Result<Vec<(MetricName, Cell)>, Failure> {
        if self.leaders.as_ref().is_none_or(|(since, _)| since.elapsed() > CATALOG_AGE_MAX) {
            let catalog: CatalogAnswer = self.ask("/api/v1/catalog?days=1").await?;
            self.leaders = Some((Instant::now(), choose(&catalog.metrics)));
        }
        let names = self.leaders.as_ref().map(|(_, names)| names.clone()).unwrap_or_default();
        let mut leaders = Vec::new();
        for name in names {
            leaders.extend(self.leader(&name).await?.map(|cell| (name, cell)));
        }
        Ok(leaders)
    }

    /// A look that failed. What was known stays, and says that it is old.
    fn fail(&mut self, why: String) {
        self.counted = None;
        self.leaders = None;
        self.remember(None);
        self.board.trouble = Some(why);
    }

    fn remember(&mut self, rate: Option<f64>) {
        let rates: &mut VecDeque<Option<f64>> = &mut self.board.rates;
        rates.push_back(rate);
        if rates.len() > RATES_MAX {
            rates.pop_front();
        }
    }

    /// Today's numbers of a metric.
    async fn leader(&mut self, name: &MetricName) -> Result<Option<Cell>, Failure> {
        let parameters = [
            ("metric", Some(name.metric.as_str())),
            ("pattern", Some(name.pattern.as_str())),
            ("add_key", name.add_key.as_deref()),
            ("of", name.of.as_deref()),
            ("days", Some("1")),
            ("merge", Some("true")),
            ("limit", Some(LEADER_VALUES)),
        ];
        let answer: FindAnswer = self.ask(&path_with("/api/v1/find", &parameters)).await?;
        Ok(answer.results.into_iter().next().map(|Both(_, cell)| cell))
    }

    async fn ask<T: serde::de::DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        let seconds = ANSWER_MAX.as_secs();
        let answer = tokio::time::timeout(ANSWER_MAX, self.client.get(path)).await;
        let body = answer.map_err(|_| Failure::Failed(format!("no answer within {seconds} s")))??;
        read(&body)
    }
}

/// The first metric of each kind, then the second of each, and so on.
fn choose(metrics: &[MetricName]) -> Vec<MetricName> {
    let of_kind = |kind: &str| metrics.iter().filter(|name| name.metric == kind).cloned().collect::<Vec<_>>();
    let kinds: Vec<Vec<MetricName>> = KINDS.iter().map(|kind| of_kind(kind)).collect();
    let rounds = kinds.iter().map(Vec::len).max().unwrap_or(0);
    let chosen = (0..rounds).flat_map(|round| kinds.iter().filter_map(move |kind| kind.get(round)));
    let mut chosen: Vec<MetricName> = chosen.take(LEADERS_MAX).cloned().collect();
    chosen.sort_by_key(|name| KINDS.iter().position(|kind| *kind == name.metric));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_leads_before_one_leads_twice() {
        let name = |text: &str| {
            let (metric, pattern) = text.split_once('/').unwrap();
            MetricName { metric: metric.to_owned(), pattern: pattern.to_owned(), add_key: None, of: None }
        };
        let all = ["bitmap/ip", "add/a", "add/b", "add/c", "add/d", "top/url", "top/geo", "add_value/event"];
        let chosen: Vec<String> = choose(&all.map(name)).iter().map(ToString::to_string).collect();
        assert_eq!(chosen, ["top/url", "top/geo", "add/a", "add/b", "bitmap/ip", "add_value/event"]);
        assert_eq!(choose(&[]), []);
    }
}
