//! The hostile corpus: valid JSON that is as unlike the standard one as it gets.
//!
//! Every value unique, unread fields of unique names, escapes in values and names, members in any
//! order, strings past every limit on a label, nesting of up to 63 levels with the event's own
//! object, and in one event of ten a member that appears twice (the last one wins).

use std::io::{Result, Write};

use super::{Random, ts_ms};

const DEPTH_MAX: u64 = 62;
const LABELS: [&str; 6] = ["event", "ip", "url", "utm_source", "utm_campaign", "geo"];

pub struct Hostile {
    random: Random,
}

impl Hostile {
    pub fn new(random: Random) -> Self {
        Self { random }
    }

    /// Writes event `index` of `count`, without the line's end.
    pub fn write(&mut self, out: &mut Vec<u8>, index: u64, count: u64) -> Result<()> {
        let twice = self.random.below(10) == 0;
        let mut members: Vec<Vec<u8>> = Vec::new();
        for name in LABELS {
            members.push(self.label(name, index)?);
        }
        members.push(self.amount(index)?);
        members.push(self.time(index, count)?);
        for unread in 0..2 {
            members.push(self.nested(unread, index)?);
        }
        for last in (1..members.len()).rev() {
            members.swap(last, self.random.below(last as u64 + 1) as usize);
        }
        if twice {
            let name = *self.random.pick(&LABELS);
            members.insert(0, self.label(name, count + index)?);
        }
        out.push(b'{');
        out.extend(members.join(&b','));
        out.push(b'}');
        Ok(())
    }

    fn label(&mut self, name: &str, index: u64) -> Result<Vec<u8>> {
        let mut member = Vec::new();
        self.name(&mut member, name)?;
        write!(member, "\"{index:x}")?;
        let chars = if self.random.below(24) == 0 { 600 } else { 12 };
        self.text(&mut member, chars)?;
        member.push(b'"');
        Ok(member)
    }

    fn amount(&mut self, index: u64) -> Result<Vec<u8>> {
        let mut member = Vec::new();
        self.name(&mut member, "amount")?;
        let fraction = self.random.below(1_000_000_000);
        match self.random.below(4) {
            0 => write!(member, "{index}.{fraction:09}"),
            1 => write!(member, "-{index}.{fraction:09}E-2"),
            2 => write!(member, "\"{index}.{fraction:09}\""),
            _ => write!(member, "{}e+3", index + 1),
        }?;
        Ok(member)
    }

    fn time(&mut self, index: u64, count: u64) -> Result<Vec<u8>> {
        let mut member = Vec::new();
        self.name(&mut member, "ts")?;
        let ts_ms = ts_ms(&mut self.random, index, count);
        match self.random.below(2) {
            0 => write!(member, "{ts_ms}"),
            _ => write!(member, "\"{ts_ms}\""),
        }?;
        Ok(member)
    }

    /// An unread member: arrays and objects down to a random depth, names of read fields among
    /// them.
    fn nested(&mut self, unread: u64, index: u64) -> Result<Vec<u8>> {
        let mut member = Vec::new();
        write!(member, "\"x{unread}_{index:x}\":")?;
        let depth = 1 + self.random.below(DEPTH_MAX);
        let mut closing = Vec::new();
        for _ in 0..depth {
            if self.random.below(2) == 0 {
                member.extend(b"[ null,-0.0e-7 , ");
                closing.push(b']');
            } else {
                member.push(b'{');
                let name = *self.random.pick(&LABELS);
                self.name(&mut member, name)?;
                closing.push(b'}');
            }
        }
        member.push(b'"');
        self.text(&mut member, 40)?;
        member.push(b'"');
        member.extend(closing.iter().rev());
        Ok(member)
    }

    /// A member's name and colon; one character of it escaped in half the cases.
    fn name(&mut self, out: &mut Vec<u8>, name: &str) -> Result<()> {
        let escaped = self.random.below(2 * name.len() as u64) as usize;
        out.push(b'"');
        for (at, byte) in name.bytes().enumerate() {
            if at == escaped {
                write!(out, "\\u{byte:04x}")?;
            } else {
                out.push(byte);
            }
        }
        out.extend(b"\" : ");
        Ok(())
    }

    fn text(&mut self, out: &mut Vec<u8>, chars: usize) -> Result<()> {
        const PIECES: [&str; 16] = [
            "\\\"",
            "\\\\",
            "\\/",
            "\\b",
            "\\f",
            "\\n",
            "\\r",
            "\\t",
            "\\u0000",
            "\\ud83d\\ude00",
            "\u{7f}",
            "\u{e9}",
            "\u{20ac}",
            "\u{1f4a9}",
            "~",
            ":",
        ];
        for _ in 0..chars {
            match self.random.below(3) {
                0 => out.push(b'a' + self.random.below(26) as u8),
                1 => write!(out, "\\u{:04X}", 0x21 + self.random.below(0x3000))?,
                _ => out.extend(self.random.pick(&PIECES).bytes()),
            }
        }
        Ok(())
    }
}
