//! `traqq_core::hll` against a real Redis: same elements, same registers, same counts, in both
//! directions.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use traqq_core::hll::{Hll, Observation, REGISTERS, union_count};

use crate::servers::Redis;

#[derive(PartialEq, Debug)]
enum Reply {
    Text(String),
    Error(String),
    Int(i64),
    Bulk(Option<Vec<u8>>),
}

/// Just enough of RESP2, blocking.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(redis: &Redis) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn call(&mut self, command: &[&[u8]]) -> Reply {
        let mut request = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&request).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" => Reply::Text(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Int(rest.parse().unwrap()),
            "$" if rest == "-1" => Reply::Bulk(None),
            "$" => {
                let mut bulk = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut bulk).unwrap();
                bulk.truncate(bulk.len() - 2);
                Reply::Bulk(Some(bulk))
            }
            _ => panic!("unexpected reply {line:?}"),
        }
    }

    fn get(&mut self, key: &str) -> Vec<u8> {
        match self.call(&[b"GET", key.as_bytes()]) {
            Reply::Bulk(Some(string)) => string,
            other => panic!("GET {key}: {other:?}"),
        }
    }

    fn set(&mut self, key: &str, string: &[u8]) {
        assert_eq!(self.call(&[b"SET", key.as_bytes(), string]), Reply::Text("OK".into()));
    }

    /// One element a call: the reply says whether it raised a register.
    fn pfadd(&mut self, key: &str, element: &[u8]) -> bool {
        match self.call(&[b"PFADD", key.as_bytes(), element]) {
            Reply::Int(raised) => raised == 1,
            other => panic!("PFADD {key}: {other:?}"),
        }
    }

    fn pfadd_all(&mut self, key: &str, elements: &[Vec<u8>]) {
        for some in elements.chunks(1000) {
            let command: Vec<&[u8]> =
                [b"PFADD", key.as_bytes()].into_iter().chain(some.iter().map(Vec::as_slice)).collect();
            assert!(matches!(self.call(&command), Reply::Int(_)));
        }
    }

    fn pfcount(&mut self, keys: &[&str]) -> u64 {
        match self.pfcount_reply(keys) {
            Reply::Int(count) => count as u64,
            other => panic!("PFCOUNT {keys:?}: {other:?}"),
        }
    }

    fn pfcount_reply(&mut self, keys: &[&str]) -> Reply {
        let command: Vec<&[u8]> = [&b"PFCOUNT"[..]].into_iter().chain(keys.iter().map(|key| key.as_bytes())).collect();
        self.call(&command)
    }

    fn pfmerge(&mut self, keys: &[&str]) {
        let command: Vec<&[u8]> = [&b"PFMERGE"[..]].into_iter().chain(keys.iter().map(|key| key.as_bytes())).collect();
        assert_eq!(self.call(&command), Reply::Text("OK".into()));
    }
}

/// Marsaglia's xorshift64*.
struct Xorshift(u64);

impl Xorshift {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In `[0, end)`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 32) as usize % end
    }
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// `user:123`, with repeats.
    Decimal,
    /// 32 hexadecimal digits.
    Hex,
    /// 0 to 40 bytes of any value: the empty string, zeros and line ends among them.
    Binary,
    /// One byte value repeated, so that lengths alone tell elements apart.
    Repeated,
}

const SHAPES: [Shape; 4] = [Shape::Decimal, Shape::Hex, Shape::Binary, Shape::Repeated];

fn elements(shape: Shape, size: usize, random: &mut Xorshift) -> Vec<Vec<u8>> {
    let element = |_| match shape {
        Shape::Decimal => format!("user:{}", random.below(2 * size)).into_bytes(),
        Shape::Hex => format!("{:016x}{:016x}", random.next(), random.next()).into_bytes(),
        Shape::Binary => {
            let length = random.below(41);
            (0..length).map(|_| random.below(256) as u8).collect()
        }
        Shape::Repeated => vec![random.below(256) as u8; random.below(300)],
    };
    (0..size).map(element).collect()
}

fn sketch(elements: &[Vec<u8>]) -> Hll {
    let mut hll = Hll::new();
    for element in elements {
        hll.add(element);
    }
    hll
}

/// What Redis holds under `key` is `ours`: registers by `GET`, count by `PFCOUNT`.
#[track_caller]
fn assert_same(client: &mut Client, key: &str, ours: &Hll, story: &str) {
    let theirs = Hll::decode(&client.get(key)).unwrap_or_else(|error| panic!("{error}; {story}"));
    assert!(theirs.registers() == ours.registers(), "registers of {key} differ; {story}");
    assert_eq!(theirs, *ours, "{story}");
    assert_eq!(client.pfcount(&[key]), ours.count(), "{story}");
    let string = client.get(key);
    assert_eq!(string[8..16], ours.encode()[8..16], "cached cardinality; {story}");
    assert_eq!(Hll::decode(&string).as_ref(), Ok(ours), "after PFCOUNT; {story}");
}

#[test]
fn the_same_elements_give_the_same_registers_and_count() {
    let redis = Redis::start(&[]);
    let mut client = Client::connect(&redis);
    for (size, seeds) in [(1, 40), (10, 40), (100, 20), (1000, 10), (1700, 10), (10_000, 4), (100_000, 1)] {
        for (shape, seed) in SHAPES.into_iter().flat_map(|shape| (0..seeds).map(move |seed| (shape, seed))) {
            let story = format!("{shape:?}, {size} elements, seed {seed}");
            let mut elements = elements(shape, size, &mut Xorshift::new(seed));
            elements[0] = if seed % 2 == 0 { Vec::new() } else { std::mem::take(&mut elements[0]) };
            let key = format!("{shape:?}:{size}:{seed}");
            client.pfadd_all(&key, &elements);
            let ours = sketch(&elements);
            assert_same(&mut client, &key, &ours, &story);

            // What we write, Redis takes for its own: it counts it (with and without the cached
            // cardinality) ...
            for (name, string) in [
                ("encode", Some(ours.encode())),
                ("dense", Some(ours.encode_dense())),
                ("sparse", ours.encode_sparse()),
            ] {
                let Some(string) = string else { continue };
                let story = format!("{name}, {story}");
                client.set("ours", &string);
                assert_same(&mut client, "ours", &ours, &story);
                let mut stale = string.clone();
                stale[15] |= 0x80;
                client.set("ours", &stale);
                assert_same(&mut client, "ours", &ours, &story);
                // ... and goes on adding to it.
                let more = self::elements(Shape::Hex, 50, &mut Xorshift::new(seed + 1000));
                client.set("ours", &string);
                client.pfadd_all("ours", &more);
                let mut larger = ours.clone();
                larger.merge(&sketch(&more));
                assert_same(&mut client, "ours", &larger, &story);
            }
        }
    }
}

#[test]
fn pfadd_answers_1_when_a_register_rises() {
    let redis = Redis::start(&[]);
    let mut client = Client::connect(&redis);
    for seed in 0..4 {
        let mut random = Xorshift::new(seed);
        let key = format!("key:{seed}");
        let mut ours = Hll::new();
        assert!(matches!(client.call(&[b"PFADD", key.as_bytes()]), Reply::Int(1)));
        for shape in SHAPES {
            for element in elements(shape, 800, &mut random) {
                let would = ours.would_raise(traqq_core::hll::observe(&element));
                let raised = ours.add(&element);
                assert_eq!(would, raised, "{element:?}, seed {seed}");
                assert_eq!(client.pfadd(&key, &element), raised, "{element:?}, seed {seed}");
            }
        }
        assert_same(&mut client, &key, &ours, &format!("seed {seed}"));
    }
}

/// The eight bytes whose hash under Redis's seed is `hash`: each step of `MurmurHash64A` taken
/// back.
fn element_of(hash: u64) -> Vec<u8> {
    const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
    const INVERSE: u64 = 0x5f7a_0ea7_e59b_19bd;
    let unshift = |n: u64| n ^ n >> 47;
    let state = unshift(unshift(hash).wrapping_mul(INVERSE)).wrapping_mul(INVERSE);
    let k = state ^ 0xadc8_3b19 ^ 8u64.wrapping_mul(MULTIPLIER);
    unshift(k.wrapping_mul(INVERSE)).wrapping_mul(INVERSE).to_le_bytes().to_vec()
}

#[test]
fn elements_of_every_rank_are_observed_alike() {
    let redis = Redis::start(&[]);
    let mut client = Client::connect(&redis);
    for register in [0, 1, 7000, REGISTERS as u64 - 1] {
        let mut ours = Hll::new();
        for run in (0..50).map(|zeros| 1 << zeros).chain([0]) {
            let element = element_of(run << 14 | register);
            let key = format!("{register}");
            assert!(client.pfadd(&key, &element) && ours.add(&element), "register {register}, run {run:b}");
            assert_same(&mut client, &key, &ours, &format!("register {register}, run {run:b}"));
        }
        assert_eq!(ours.rank(register as u16), 51);
    }
}

#[test]
fn unions_are_the_same() {
    let redis = Redis::start(&[]);
    let mut client = Client::connect(&redis);
    let sizes = [0, 1, 30, 900, 1300, 6000, 40_000];
    for seed in 0..60 {
        let mut random = Xorshift::new(seed);
        let keys: Vec<String> = (0..2 + seed % 2).map(|n| format!("{seed}:{n}")).collect();
        let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut ours = Vec::new();
        let mut story = format!("seed {seed}");
        for key in &keys {
            let (shape, size) = (SHAPES[random.below(4)], sizes[random.below(sizes.len())]);
            story += &format!(", {key}: {shape:?} {size}");
            let mut elements = elements(shape, size, &mut random);
            elements.push(Vec::new());
            client.pfadd_all(key, &elements);
            ours.push(sketch(&elements));
        }
        assert_eq!(client.pfcount(&keys), union_count(&ours), "{story}");
        let mut union = Hll::new();
        ours.iter().for_each(|hll| union.merge(hll));
        keys.insert(0, "into");
        client.call(&[b"DEL", b"into"]);
        client.pfmerge(&keys);
        assert_same(&mut client, "into", &union, &story);

        // Into a key that we wrote ourselves.
        client.set("written", &ours[0].encode());
        client.pfmerge(&["written", keys[2]]);
        let mut union = ours[0].clone();
        union.merge(&ours[1]);
        assert_same(&mut client, "written", &union, &story);
    }
}

#[test]
fn every_rank_and_both_ends_are_the_same() {
    let redis = Redis::start(&[]);
    let mut client = Client::connect(&redis);
    for seed in 0..200 {
        let mut random = Xorshift::new(seed);
        let mut ours = Hll::new();
        let raised = [1, 5, 500, 1500, REGISTERS][random.below(5)];
        let (lowest, highest) = [(1, 32), (1, 33), (1, 51), (1, 63), (30, 51), (48, 51), (40, 63)][random.below(7)];
        for register in 0..raised {
            let register = if raised == REGISTERS { register } else { random.below(REGISTERS) };
            let rank = lowest + random.below(highest - lowest + 1);
            ours.raise(Observation { register: register as u16, rank: rank as u8 });
        }
        ours.raise(Observation { register: 0, rank: highest as u8 });
        ours.raise(Observation { register: REGISTERS as u16 - 1, rank: lowest as u8 });
        client.set("ours", &ours.encode());
        client.set("none", &Hll::new().encode());
        let story = format!("seed {seed}, {raised} raised to {lowest}..={highest}");
        assert_eq!(client.pfcount(&["ours", "none"]), ours.count(), "{story}");
        client.call(&[b"DEL", b"copy"]);
        client.pfmerge(&["copy", "ours"]);
        assert_same(&mut client, "copy", &ours, &story);
    }
}

/// Redis and we refuse the same strings, and read the others alike. (Of several keys `PFCOUNT`
/// reads the registers; of one it would trust the cached cardinality.)
#[track_caller]
fn assert_same_verdict(client: &mut Client, string: &[u8], story: &str) -> bool {
    client.set("corrupt", string);
    let ours = Hll::decode(string);
    match (client.pfcount_reply(&["corrupt", "absent"]), &ours) {
        (Reply::Int(count), Ok(hll)) => assert_eq!(count as u64, hll.count(), "{story}"),
        (Reply::Error(_), Err(_)) => {}
        // Redis reads the zero byte that it keeps behind every string as the second half of an
        // XZERO; we do not.
        (Reply::Int(count), Err(_)) => {
            let completed = Hll::decode(&[string, b"\0"].concat());
            assert_eq!(completed.map(|hll| hll.count()), Ok(count as u64), "{story}");
        }
        (reply, ours) => panic!("Redis {reply:?}, we {ours:?}; {story}"),
    }
    ours.is_ok()
}

#[test]
fn the_same_corrupt_strings_are_refused() {
    let redis = Redis::start(&[]);
    let mut client = Client::connect(&redis);
    let originals: Vec<Vec<u8>> = [0, 1, 30, 1200, 20_000]
        .map(|size| sketch(&elements(Shape::Hex, size, &mut Xorshift::new(size as u64))).encode())
        .to_vec();
    for string in &originals {
        for end in 0..string.len().min(4000) {
            assert_same_verdict(&mut client, &string[..end], &format!("cut at {end} of {}", string.len()));
        }
    }
    let (mut read, mut refused) = (0, 0);
    for seed in 0..6000 {
        let mut random = Xorshift::new(seed);
        let mut string = originals[random.below(originals.len())].clone();
        for _ in 0..=random.below(3) {
            let at = random.below(string.len());
            string[at] ^= 1 << random.below(8);
        }
        match assert_same_verdict(&mut client, &string, &format!("bits flipped, seed {seed}")) {
            true => read += 1,
            false => refused += 1,
        }
    }
    assert!(read > 500 && refused > 500, "{read} read, {refused} refused");
}
