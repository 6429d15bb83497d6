//! A web shop: visitors who come back, look at pages, fill carts and sometimes buy.

use std::fmt::Write;

use super::random::{Random, Weighted};

const VISITORS: usize = 20_000;
const PRODUCTS: usize = 400;
/// Visits that are under way at the same time.
const OPEN_MAX: usize = 300;

const COUNTRIES: [&str; 16] =
    ["US", "DE", "GB", "FR", "IN", "BR", "JP", "CA", "ES", "NL", "PL", "IT", "AU", "SE", "CH", "AT"];
const SOURCES: [&str; 8] = ["google", "direct", "newsletter", "instagram", "bing", "facebook", "partner", "reddit"];
const CAMPAIGNS: [&str; 5] = ["summer_sale", "new_arrivals", "free_shipping", "loyalty", "last_chance"];
const CATEGORIES: [&str; 8] = ["shoes", "jackets", "bags", "shirts", "watches", "trousers", "hats", "socks"];
const PAGES: [&str; 6] = ["/", "/search", "/sale", "/account", "/about", "/help/returns"];
/// Type, operating system, browser, and how many have it.
const DEVICES: [(&str, &str, &str, f64); 9] = [
    ("mobile", "Android", "Chrome", 30.0),
    ("mobile", "iOS", "Safari", 25.0),
    ("desktop", "Windows", "Chrome", 17.0),
    ("desktop", "macOS", "Safari", 8.0),
    ("desktop", "Windows", "Edge", 7.0),
    ("mobile", "Android", "Firefox", 4.0),
    ("desktop", "macOS", "Chrome", 4.0),
    ("desktop", "Linux", "Firefox", 3.0),
    ("tablet", "iPadOS", "Safari", 2.0),
];

/// How busy each hour of a day is, in UTC: quiet at night, a peak in the evening.
pub const HOURS: [f64; 24] = [
    2.2, 1.6, 1.2, 1.0, 1.1, 1.5, 2.4, 3.5, 4.3, 4.8, 5.1, 5.3, 5.6, 5.3, 5.0, 4.9, 5.0, 5.4, 6.1, 6.8, 6.9, 6.0, 4.6,
    3.2,
];
/// How busy each day of a week is, from Monday.
pub const WEEKDAYS: [f64; 7] = [1.0, 0.95, 0.93, 0.98, 1.05, 1.12, 1.2];

pub struct Shop {
    random: Random,
    visitors: Weighted,
    products: Weighted,
    countries: Weighted,
    sources: Weighted,
    devices: Weighted,
    open: Vec<Visit>,
}

/// One visit of one visitor.
struct Visit {
    visitor: usize,
    session: u64,
    ip: String,
    country: &'static str,
    source: &'static str,
    campaign: Option<&'static str>,
    device: usize,
    is_member: bool,
    /// The product that is looked at.
    product: Option<usize>,
    /// In cents.
    cart: u64,
    events_left: usize,
}

impl Shop {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            visitors: Weighted::zipf(VISITORS, 0.6),
            products: Weighted::zipf(PRODUCTS, 1.0),
            countries: Weighted::zipf(COUNTRIES.len(), 0.9),
            sources: Weighted::zipf(SOURCES.len(), 0.8),
            devices: Weighted::new(DEVICES.map(|(.., weight)| weight)),
            open: Vec::new(),
        }
    }

    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Appends an event as a line of NDJSON. `ts` is in epoch milliseconds.
    pub fn event(&mut self, ts: i64, body: &mut String) {
        let is_new = self.open.is_empty() || (self.open.len() < OPEN_MAX && self.random.chance(0.2));
        let index = if is_new {
            let visit = self.arrive();
            self.open.push(visit);
            self.open.len() - 1
        } else {
            self.random.below(self.open.len())
        };
        let mut visit = self.open.swap_remove(index);
        let (event, url, amount) = if is_new { self.land(&mut visit) } else { self.go_on(&mut visit) };
        visit.write(ts, event, &url, amount, body);
        visit.events_left -= 1;
        if visit.events_left > 0 {
            self.open.push(visit);
        }
    }

    fn arrive(&mut self) -> Visit {
        let visitor = self.visitors.pick(&mut self.random);
        // What belongs to a visitor is the same at every visit.
        let mut own = Random::new(visitor as u64);
        let address = own.below(1 << 22);
        let source = SOURCES[self.sources.pick(&mut self.random)];
        let is_led = source != "direct" && self.random.chance(0.4);
        Visit {
            visitor,
            session: self.random.next() >> 16,
            // 100.64.0.0/10 belongs to nobody.
            ip: format!("100.{}.{}.{}", 64 + (address >> 16), address >> 8 & 255, address & 255),
            country: COUNTRIES[self.countries.pick(&mut own)],
            source,
            campaign: is_led.then(|| CAMPAIGNS[self.random.below(CAMPAIGNS.len())]),
            device: self.devices.pick(&mut own),
            is_member: own.chance(0.3),
            product: None,
            cart: 0,
            events_left: 1 + self.random.below(6) + self.random.below(6),
        }
    }

    fn land(&mut self, visit: &mut Visit) -> (&'static str, String, Option<u64>) {
        if self.random.chance(0.4) {
            return ("page_view", self.product(visit), None);
        }
        ("page_view", PAGES[0].to_owned(), None)
    }

    fn go_on(&mut self, visit: &mut Visit) -> (&'static str, String, Option<u64>) {
        if visit.cart > 0 && self.random.chance(0.3) {
            let amount = std::mem::take(&mut visit.cart);
            return ("purchase", "/checkout".to_owned(), Some(amount));
        }
        if let Some(product) = visit.product.filter(|_| self.random.chance(0.2)) {
            visit.cart += price(product);
            return ("add_to_cart", url(product), None);
        }
        if !visit.is_member && self.random.chance(0.02) {
            visit.is_member = true;
            return ("signup", "/signup".to_owned(), None);
        }
        let url = match self.random.below(10) {
            0..6 => self.product(visit),
            6..8 => format!("/{}", CATEGORIES[self.random.below(CATEGORIES.len())]),
            _ => PAGES[self.random.below(PAGES.len())].to_owned(),
        };
        ("page_view", url, None)
    }

    fn product(&mut self, visit: &mut Visit) -> String {
        let product = self.products.pick(&mut self.random);
        visit.product = Some(product);
        url(product)
    }
}

fn url(product: usize) -> String {
    format!("/{}/{}", CATEGORIES[product % CATEGORIES.len()], 1000 + product)
}

/// In cents; always the same for a product.
fn price(product: usize) -> u64 {
    let mut own = Random::new(product as u64);
    (5 + own.below(45) + own.below(3) * own.below(60)) as u64 * 100 + 99
}

impl Visit {
    /// Everything written is free of characters that JSON escapes.
    fn write(&self, ts: i64, event: &str, url: &str, amount: Option<u64>, body: &mut String) {
        let (kind, os, browser, _) = DEVICES[self.device];
        let _ = write!(
            body,
            r#"{{"event":"{event}","user_id":"u{}","session_id":"{:012x}","ip":"{}","url":"{url}","geo":"{}","source":"{}","#,
            self.visitor, self.session, self.ip, self.country, self.source,
        );
        if let Some(campaign) = self.campaign {
            let _ = write!(body, r#""campaign":"{campaign}","#);
        }
        if let Some(cents) = amount {
            let _ = write!(body, r#""amount":{}.{:02},"#, cents / 100, cents % 100);
        }
        let _ = writeln!(body, r#""device":{{"type":"{kind}","os":"{os}"}},"browser":"{browser}","ts":{ts}}}"#);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn events(seed: u64, count: i64) -> Vec<serde_json::Value> {
        let (mut shop, mut body) = (Shop::new(seed), String::new());
        (0..count).for_each(|ts| shop.event(1_700_000_000_000 + ts, &mut body));
        body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn the_seed_decides_everything() {
        assert_eq!(events(1, 500), events(1, 500));
        assert_ne!(events(1, 500), events(2, 500));
    }

    #[test]
    fn it_looks_like_a_shop() {
        let events = events(7, 50_000);
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut urls: HashMap<&str, usize> = HashMap::new();
        let (mut users, mut members): (HashSet<&str>, HashMap<&str, &str>) = (HashSet::new(), HashMap::new());
        for event in &events {
            let text = |name: &str| event[name].as_str().unwrap();
            *counts.entry(text("event")).or_default() += 1;
            *urls.entry(text("url")).or_default() += 1;
            users.insert(text("user_id"));
            assert_eq!(event["amount"].is_number(), text("event") == "purchase", "{event}");
            assert!(event["device"]["os"].is_string() && text("ip").starts_with("100."));
            // A visit is of one visitor, and a visitor has one country.
            assert_eq!(*members.entry(text("session_id")).or_insert(text("user_id")), text("user_id"));
        }
        let share = |event| counts[event] as f64 / events.len() as f64;
        assert!((0.7..0.92).contains(&share("page_view")), "{counts:?}");
        assert!((0.05..0.2).contains(&share("add_to_cart")), "{counts:?}");
        assert!((0.01..0.07).contains(&share("purchase")) && share("purchase") < share("add_to_cart"), "{counts:?}");
        assert!((0.002..0.02).contains(&share("signup")), "{counts:?}");
        assert!((3_000..VISITORS).contains(&users.len()), "{}", users.len());
        assert!(urls.len() > 300 && urls["/"] > urls["/about"]);
    }
}
