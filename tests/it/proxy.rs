//! A TCP proxy that breaks things where a test wants them broken: after so many bytes, in either direction, or by saying nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Requests, from the client to the server.
    Up,
    /// Replies.
    Down,
}

#[derive(Default)]
struct Faults {
    /// Direction and the bytes that still pass in it; then the connection that carries the next one is cut.
    cut: Option<(Direction, usize)>,
    is_stalled: bool,
    is_closed: bool,
}

struct Shared {
    faults: Mutex<Faults>,
    changed: Condvar,
    cuts: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            faults: Mutex::default(),
            changed: Condvar::new(),
            cuts: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if accepting.faults.lock().unwrap().is_closed {
                    return;
                }
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)) else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let ends = [
                    (client.try_clone(), server.try_clone(), Direction::Up),
                    (Ok(server), Ok(client), Direction::Down),
                ];
                for (from, to, direction) in ends {
                    let (from, to, shared) = (from.unwrap(), to.unwrap(), Arc::clone(&accepting));
                    std::thread::spawn(move || pump(&from, &to, direction, &shared));
                }
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Lets `bytes` more pass in a direction, and cuts the connection that carries the one behind them.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        self.shared.faults.lock().unwrap().cut = Some((direction, bytes));
    }

    /// Holds replies back until [`Self::resume`].
    pub fn stall(&self) {
        self.shared.faults.lock().unwrap().is_stalled = true;
    }

    pub fn resume(&self) {
        let mut faults = self.shared.faults.lock().unwrap();
        faults.is_stalled = false;
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
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, direction: Direction, shared: &Shared) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let passing = admit(count, direction, shared);
        let counter = if direction == Direction::Up { &shared.up } else { &shared.down };
        counter.fetch_add(passing as u64, Ordering::SeqCst);
        let is_written = to.write_all(&buffer[..passing]).is_ok();
        shared.cuts.fetch_add(u64::from(passing < count), Ordering::SeqCst);
        if !is_written || passing < count {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// How many of `count` bytes may pass; fewer than all of them means that the connection is to be cut.
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
