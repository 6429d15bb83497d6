//! How many connections there are, in all and of one address. What an address is that may have
//! many: an IPv6 client commands a whole /64 network, so that it counts as one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places for connections to one listener.
pub(super) struct Connections {
    all: Arc<Semaphore>,
    per_address_max: usize,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The place of one connection; given back when dropped.
pub(super) struct Place {
    address: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    pub fn new(all_max: usize, per_address_max: usize) -> Self {
        let all = Arc::new(Semaphore::new(all_max.min(Semaphore::MAX_PERMITS)));
        Self { all, per_address_max, by_address: Arc::default() }
    }

    /// Waits for room for one more, of whatever address.
    pub async fn room(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.all).acquire_owned().await.expect("it is never closed")
    }

    /// `None` when all are taken, or all of this address.
    pub fn try_enter(&self, address: IpAddr) -> Option<Place> {
        self.enter(address, Arc::clone(&self.all).try_acquire_owned().ok()?)
    }

    /// `None` when all places of this address are taken.
    pub fn enter(&self, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Place> {
        let address = client_of(address);
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let known = by_address.entry(address).or_default();
        if *known >= self.per_address_max {
            return None;
        }
        *known += 1;
        drop(by_address);
        Some(Place { address, by_address: Arc::clone(&self.by_address), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_address.get_mut(&self.address) {
            *known -= 1;
            if *known == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            const NETWORK: u128 = u128::MAX << 64;
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_share_and_gives_it_back() {
        let connections = Connections::new(4, 2);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = connections.try_enter(address("2001:db8::1")).unwrap();
        let second = connections.try_enter(address("2001:db8::ffff:ffff:ffff:ffff")).unwrap();
        assert!(connections.try_enter(address("2001:db8::2")).is_none(), "the same /64");
        let third = connections.try_enter(address("2001:db8:0:1::1"));
        let fourth = connections.try_enter(address("192.0.2.1"));
        assert!(third.is_some() && fourth.is_some());
        assert!(connections.try_enter(address("192.0.2.2")).is_none(), "all are taken");
        drop((first, third));
        let mapped = connections.try_enter(address("::ffff:192.0.2.1"));
        assert!(mapped.is_some() && connections.try_enter(address("192.0.2.1")).is_none());
        drop((second, fourth, mapped));
        assert!(connections.by_address.lock().unwrap().is_empty(), "who has gone is forgotten");
        assert_eq!(connections.all.available_permits(), 4);
    }
}
