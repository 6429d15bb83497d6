//! `corpus OUT.ndjson [--events 200000] [--kind standard|hostile|small]` writes a corpus and
//! describes it in a line.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};

use traqq_compare::generate::{Drawn, Hostile, Random, Small, Standard};

const SEED: u64 = 0x7472_6171_7100_0001;
const USAGE: &str = "corpus OUT.ndjson [--events 200000] [--kind standard|hostile|small]";

fn main() -> std::io::Result<()> {
    let mut out = None;
    let mut events = 200_000u64;
    let mut kind = String::from("standard");
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--events" => events = arguments.next().and_then(|count| count.parse().ok()).expect(USAGE),
            "--kind" => kind = arguments.next().expect(USAGE),
            path => out = Some(path.to_string()),
        }
    }
    let mut out = BufWriter::with_capacity(1 << 20, File::create(out.expect(USAGE))?);

    let random = Random::new(SEED);
    match kind.as_str() {
        "standard" => {
            let mut standard = Standard::new(random);
            write(&mut out, &kind, events, |line, index| standard.write(line, index, events).map(Some))
        }
        "small" => {
            let mut small = Small::new(random);
            write(&mut out, &kind, events, |line, index| small.write(line, index, events).map(Some))
        }
        "hostile" => {
            let mut hostile = Hostile::new(random);
            write(&mut out, &kind, events, |line, index| hostile.write(line, index, events).map(|()| None))
        }
        _ => panic!("{USAGE}"),
    }?;
    out.flush()
}

fn write(
    out: &mut impl Write,
    kind: &str,
    events: u64,
    mut event: impl FnMut(&mut Vec<u8>, u64) -> std::io::Result<Option<Drawn>>,
) -> std::io::Result<()> {
    let mut bytes = 0;
    let mut seen = Seen::default();
    let mut line = Vec::new();
    for index in 0..events {
        line.clear();
        if let Some(drawn) = event(&mut line, index)? {
            seen.add(&drawn);
        }
        bytes += line.len() as u64;
        line.push(b'\n');
        out.write_all(&line)?;
    }
    println!(
        r#"{{"kind":"{kind}","events":{events},"bytes_per_event":{:.1}{}}}"#,
        bytes as f64 / events as f64,
        seen.describe(events)
    );
    Ok(())
}

#[derive(Default)]
struct Seen {
    ips: HashSet<u32>,
    users: HashSet<usize>,
    urls: HashSet<usize>,
    top_event: u64,
    top_geo: u64,
}

impl Seen {
    fn add(&mut self, drawn: &Drawn) {
        self.ips.insert(drawn.ip);
        self.users.insert(drawn.user);
        self.urls.insert(drawn.url);
        self.top_event += u64::from(drawn.event == 0);
        self.top_geo += u64::from(drawn.geo == 0);
    }

    fn describe(&self, events: u64) -> String {
        if self.ips.is_empty() {
            return String::new();
        }
        format!(
            r#","distinct_ips":{},"distinct_users":{},"distinct_urls":{},"top_event_share":{:.3},"top_geo_share":{:.3}"#,
            self.ips.len(),
            self.users.len(),
            self.urls.len(),
            self.top_event as f64 / events as f64,
            self.top_geo as f64 / events as f64,
        )
    }
}
