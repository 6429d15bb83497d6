//! A TCP proxy that breaks things where a test wants them broken: after so many bytes, in either
//! direction, or by saying nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Requests, from the client to the server.
    Up,
    /// Replies.
    Down,
}

#[derive(Default)]
struct Faults {
    /// Direction and the bytes that still pass in it; then the connection that carries the next one
    /// is cut.
    cut: Option<(Direction, usize)>,
    is_stalled: bool,
    is_trickling: bool,
    is_closed: bool,
}

/// What passes at a time while the proxy trickles, and how long that takes.
const TRICKLE_BYTES: usize = 512;
const TRICKLE_EVERY: Duration = Duration::from_millis(50);

struct Shared {
    faults: Mutex<Faults>,
    changed: Condvar,
    cuts: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    accepted: AtomicU64,
    /// Connections that were accepted before this one have fallen silent.
    silent_before: AtomicU64,
}

pub struct Proxy {
    address: SocketAddrV4,
    upstream: Arc<AtomicU16>,
    shared: Arc<Shared>,
}

impl Proxy {
    pub fn start(upstream: u16) -> Self {
        let proxy = Self::at(Ipv4Addr::LOCALHOST);
        proxy.aim(upstream);
        proxy
    }

    /// In front of a server that is yet to be started, and told this address.
    pub fn at(address: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = SocketAddrV4::new(address, listener.local_addr().unwrap().port());
        let upstream = Arc::new(AtomicU16::new(0));
        let shared = Arc::new(Shared {
            faults: Mutex::default(),
            changed: Condvar::new(),
            cuts: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            silent_before: AtomicU64::new(0),
        });
        let (accepting, target) = (Arc::clone(&shared), Arc::clone(&upstream));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if accepting.faults.lock().unwrap().is_closed {
                    return;
                }
                let port = target.load(Ordering::SeqCst);
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let number = accepting.accepted.fetch_add(1, Ordering::SeqCst);
                let ends = [
                    (client.try_clone(), server.try_clone(), Direction::Up),
                    (Ok(server), Ok(client), Direction::Down),
                ];
                for (from, to, direction) in ends {
                    let (from, to, shared) = (from.unwrap(), to.unwrap(), Arc::clone(&accepting));
                    std::thread::spawn(move || pump(&from, &to, number, direction, &shared));
                }
            }
        });
        Self { address, upstream, shared }
    }

    /// The port of the server behind it.
    pub fn aim(&self, upstream: u16) {
        self.upstream.store(upstream, Ordering::SeqCst);
    }

    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Lets `bytes` more pass in a direction, and cuts the connection that carries the one behind
    /// them.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        self.shared.faults.lock().unwrap().cut = Some((direction, bytes));
    }

    /// Holds replies back until [`Self::resume`].
    pub fn stall(&self) {
        self.shared.faults.lock().unwrap().is_stalled = true;
    }

    /// From now on nothing passes over the connections there are, and nobody is told: both ends
    /// believe in them. New ones are as good as ever.
    pub fn silence(&self) {
        self.shared.silent_before.store(self.shared.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Lets replies through drop by drop until [`Self::resume`].
    pub fn trickle(&self) {
        self.shared.faults.lock().unwrap().is_trickling = true;
    }

    pub fn resume(&self) {
        let mut faults = self.shared.faults.lock().unwrap();
        faults.is_stalled = false;
        faults.is_trickling = false;
        faults.cut = None;
        self.shared.changed.notify_all();
    }

    /// Connections cut so far.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Bytes that have passed.
    pub fn passed(&self, direction: Direction) -> usize {
        match direction {
            Direction::Up => self.shared.up.load(Ordering::SeqCst) as usize,
            Direction::Down => self.shared.down.load(Ordering::SeqCst) as usize,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.faults.lock().unwrap().is_closed = true;
        self.resume();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn pump(mut from: &TcpStream, to: &TcpStream, number: u64, direction: Direction, shared: &Shared) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if number < shared.silent_before.load(Ordering::SeqCst) {
            continue;
        }
        let passing = admit(count, direction, shared);
        let counter = if direction == Direction::Up { &shared.up } else { &shared.down };
        counter.fetch_add(passing as u64, Ordering::SeqCst);
        let is_written = write(to, &buffer[..passing], direction, shared).is_ok();
        shared.cuts.fetch_add(u64::from(passing < count), Ordering::SeqCst);
        if !is_written || passing < count {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn write(mut to: &TcpStream, bytes: &[u8], direction: Direction, shared: &Shared) -> std::io::Result<()> {
    let mut left = bytes;
    while direction == Direction::Down && !left.is_empty() && shared.faults.lock().unwrap().is_trickling {
        let (some, rest) = left.split_at(left.len().min(TRICKLE_BYTES));
        to.write_all(some)?;
        std::thread::sleep(TRICKLE_EVERY);
        left = rest;
    }
    to.write_all(left)
}

/// How many of `count` bytes may pass; fewer than all of them means that the connection is to be
/// cut.
fn admit(count: usize, direction: Direction, shared: &Shared) -> usize {
    let mut faults = shared.faults.lock().unwrap();
    while direction == Direction::Down && faults.is_stalled {
        faults = shared.changed.wait(faults).unwrap();
    }
    match &mut faults.cut {
        Some((cut, left)) if *cut == direction => {
            if *left >= count {
                *left -= count;
                return count;
            }
            let passing = *left;
            faults.cut = None;
            passing
        }
        _ => count,
    }
}
