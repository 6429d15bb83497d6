//! The small corpus: six fields of the standard one, 150 bytes on average.

use std::io::{Result, Write};
use std::net::Ipv4Addr;

use super::standard::{EVENTS, GEOS, Standard};
use super::{Drawn, Random};

pub struct Small(Standard);

impl Small {
    pub fn new(random: Random) -> Self {
        Self(Standard::new(random))
    }

    /// Writes event `index` of `count`, without the line's end.
    pub fn write(&mut self, out: &mut Vec<u8>, index: u64, count: u64) -> Result<Drawn> {
        let drawn = self.0.draw();
        write!(
            out,
            r#"{{"event":"{}","ip":"{}","geo":"{}","url":"https://example.com/shop/by-category/products/{:07x}","amount":{},"ts":{}}}"#,
            EVENTS[drawn.event],
            Ipv4Addr::from_bits(drawn.ip),
            GEOS[drawn.geo],
            self.0.slug(&drawn),
            self.0.amount(),
            self.0.ts_ms(index, count),
        )?;
        Ok(drawn)
    }
}
