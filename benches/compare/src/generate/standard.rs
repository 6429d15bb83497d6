//! The standard corpus: 19 top-level fields, 768 bytes on average.

use std::io::{Result, Write};
use std::net::Ipv4Addr;

use super::random::{Random, Zipf};
use super::{Drawn, ts_ms};

const USERS: usize = 50_000;
const URLS: usize = 5_000;

pub const EVENTS: [&str; 29] = [
    "page_view",
    "click",
    "purchase",
    "add_to_cart",
    "form_submission",
    "video_play",
    "video_pause",
    "video_stop",
    "video_complete",
    "video_ad_start",
    "video_ad_complete",
    "video_ad_skip",
    "video_ad_click",
    "video_ad_impression",
    "video_ad_error",
    "video_ad_pause",
    "video_ad_resume",
    "video_ad_progress",
    "video_ad_buffer",
    "video_ad_fullscreen",
    "video_ad_exit_fullscreen",
    "video_ad_mute",
    "video_ad_unmute",
    "video_ad_volume_change",
    "video_ad_duration_change",
    "video_ad_user_action",
    "video_ad_loaded",
    "video_ad_end",
    "video_ad_close",
];
pub const GEOS: [&str; 60] = [
    "US", "GB", "DE", "FR", "IN", "BR", "CA", "JP", "AU", "ES", "IT", "MX", "NL", "PL", "TR", "ID", "SE", "KR", "AR",
    "CH", "BE", "AT", "NO", "DK", "FI", "IE", "PT", "CZ", "GR", "HU", "RO", "UA", "ZA", "NG", "EG", "KE", "IL", "AE",
    "SA", "SG", "MY", "TH", "VN", "PH", "NZ", "CL", "CO", "PE", "VE", "EC", "UY", "BG", "HR", "RS", "SK", "SI", "LT",
    "LV", "EE", "IS",
];
const SOURCES: [&str; 15] = [
    "google",
    "facebook",
    "twitter",
    "linkedin",
    "instagram",
    "youtube",
    "pinterest",
    "tiktok",
    "snapchat",
    "reddit",
    "tumblr",
    "whatsapp",
    "telegram",
    "signal",
    "wechat",
];
const MEDIUMS: [&str; 9] = ["cpc", "organic", "referral", "email", "social", "display", "affiliate", "direct", "other"];
const TERMS: [&str; 5] = ["loan", "credit", "insurance", "mortgage", "bank"];
const CAMPAIGNS: [&str; 18] = [
    "summer_sale",
    "black_friday",
    "spring_sale",
    "campaign_1",
    "campaign_2",
    "campaign_3",
    "campaign_4",
    "campaign_5",
    "campaign_6",
    "campaign_7",
    "campaign_8",
    "campaign_9",
    "campaign_10",
    "back_to_school",
    "holiday_sale",
    "cyber_monday",
    "new_year",
    "valentines_day",
];
const USER_AGENTS: [&str; 3] = [
    "Mozilla/5.0 (iPhone; CPU iPhone OS 14_7_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/14.1.2 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 11; SM-G991B) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/92.0.4515.131 Mobile Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/92.0.4515.131 Safari/537.36",
];
/// Name and version.
const BROWSERS: [[&str; 2]; 5] = [
    ["Chrome", "92.0.4515"],
    ["Safari", "14.1.2"],
    ["Firefox", "91.0.1"],
    ["Edge", "92.0.902"],
    ["Opera", "78.0.4093"],
];
/// Name, version, and the device it runs on: type, brand, model.
const SYSTEMS: [[&str; 5]; 5] = [
    ["Windows", "10.0", "desktop", "Dell", "XPS 15"],
    ["iOS", "14.7.1", "mobile", "Apple", "iPhone 12"],
    ["Android", "11", "mobile", "Samsung", "Galaxy S21"],
    ["macOS", "11.5.2", "desktop", "Apple", "MacBook Pro"],
    ["Linux", "5.13", "desktop", "Lenovo", "ThinkPad X1"],
];
/// City and region.
const PLACES: [[&str; 2]; 6] = [
    ["Springfield", "NY"],
    ["Riverside", "CA"],
    ["Franklin", "TX"],
    ["Greenville", "SC"],
    ["Bristol", "CT"],
    ["Clinton", "MA"],
];

pub struct Standard {
    random: Random,
    user_ips: Vec<u32>,
    user_ids: Vec<[u64; 2]>,
    slugs: Vec<u64>,
    event: Zipf,
    geo: Zipf,
    source: Zipf,
    medium: Zipf,
    term: Zipf,
    campaign: Zipf,
    url: Zipf,
    user: Zipf,
    five: Zipf,
    user_agent: Zipf,
}

impl Standard {
    pub fn new(mut random: Random) -> Self {
        Self {
            user_ips: (0..USERS).map(|_| random.ip()).collect(),
            user_ids: (0..USERS).map(|_| [random.bits(), random.bits()]).collect(),
            slugs: (0..URLS).map(|_| random.below(1 << 28)).collect(),
            event: Zipf::new(EVENTS.len(), 1.1),
            geo: Zipf::new(GEOS.len(), 1.2),
            source: Zipf::new(SOURCES.len(), 1.0),
            medium: Zipf::new(MEDIUMS.len(), 1.0),
            term: Zipf::new(TERMS.len(), 1.0),
            campaign: Zipf::new(CAMPAIGNS.len(), 0.8),
            url: Zipf::new(URLS, 1.0),
            user: Zipf::new(USERS, 0.6),
            five: Zipf::new(5, 1.0),
            user_agent: Zipf::new(USER_AGENTS.len(), 0.5),
            random,
        }
    }

    /// What all kinds of corpus draw alike: a user's address nine times of ten, a random one else.
    pub fn draw(&mut self) -> Drawn {
        let user = self.user.draw(&mut self.random);
        let roams = self.random.below(10) == 0;
        Drawn {
            ip: if roams { self.random.ip() } else { self.user_ips[user] },
            user,
            url: self.url.draw(&mut self.random),
            event: self.event.draw(&mut self.random),
            geo: self.geo.draw(&mut self.random),
        }
    }

    pub fn amount(&mut self) -> String {
        match self.random.below(4) {
            0 => "99.9".into(),
            1 => "199.9".into(),
            2 => "\"0.99\"".into(),
            _ => (1 + self.random.below(99)).to_string(),
        }
    }

    pub fn ts_ms(&mut self, index: u64, count: u64) -> u64 {
        ts_ms(&mut self.random, index, count)
    }

    pub fn slug(&self, drawn: &Drawn) -> u64 {
        self.slugs[drawn.url]
    }

    /// Writes event `index` of `count`, without the line's end.
    pub fn write(&mut self, out: &mut Vec<u8>, index: u64, count: u64) -> Result<Drawn> {
        let drawn = self.draw();
        let [user_high, user_low] = self.user_ids[drawn.user];
        let (slug, geo) = (self.slug(&drawn), GEOS[drawn.geo]);
        let random = &mut self.random;
        write!(
            out,
            r#"{{"_id":{},"user_id":"{user_high:016x}{user_low:016x}","session_id":"{:016x}{:016x}","event":"{}""#,
            100_000_000 + random.below(900_000_000),
            random.bits(),
            random.bits(),
            EVENTS[drawn.event],
        )?;
        write!(
            out,
            r#","url":"https://example.com/{slug:07x}","utm_source":"{}","utm_medium":"{}","utm_term":"{}""#,
            SOURCES[self.source.draw(random)],
            MEDIUMS[self.medium.draw(random)],
            TERMS[self.term.draw(random)],
        )?;
        let [browser, browser_version] = BROWSERS[self.five.draw(random)];
        let [os, os_version, device, brand, model] = SYSTEMS[self.five.draw(random)];
        write!(
            out,
            r#","utm_campaign":"{}","user_agent":"{}","ip":"{}","browser":"{browser}","os":"{os}","os_version":"{os_version}""#,
            CAMPAIGNS[self.campaign.draw(random)],
            USER_AGENTS[self.user_agent.draw(random)],
            Ipv4Addr::from_bits(drawn.ip),
        )?;
        write!(
            out,
            r#","amount":{},"device":{{"type":"{device}","brand":"{brand}","model":"{model}","os":"{os}","os_version":"{os_version}","browser":"{browser}","browser_version":"{browser_version}"}}"#,
            self.amount(),
        )?;
        let [city, region] = self.random.pick(&PLACES);
        write!(
            out,
            r#","location":{{"city":"{city}","region":"{region}","country":"{geo}","latitude":{}.{:04},"longitude":-{}.{:04}}},"geo":"{geo}","ts":{}}}"#,
            self.random.below(60),
            self.random.below(10_000),
            self.random.below(120),
            self.random.below(10_000),
            self.ts_ms(index, count),
        )?;
        Ok(drawn)
    }
}
