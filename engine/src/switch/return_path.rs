//! Which port a MAC address was last seen on. What isn't known goes to every port.

use std::collections::HashMap;

/// Addresses that are kept; the one not heard of for longest makes room.
pub const ADDRESSES: usize = 1024;
/// An address that was not heard of for so long is forgotten, ns (300 s, IEEE 802.1Q table 8-3).
pub const AGEING: u64 = 300_000_000_000;

/// The table.
#[derive(Clone, Debug, Default)]
pub struct ReturnPath {
    /// Port, and when it was last heard of, ns.
    addresses: HashMap<[u8; 6], (usize, u64)>,
}

impl ReturnPath {
    /// A frame from `address` came in at `port`.
    pub fn learn(&mut self, address: [u8; 6], port: usize, now: u64) {
        let group = address[0] & 1 != 0;
        if group {
            return;
        }
        if self.addresses.len() >= ADDRESSES && !self.addresses.contains_key(&address) {
            let oldest = self.addresses.iter().min_by_key(|(address, (_, heard))| (*heard, **address));
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.addresses.remove(&oldest);
            }
        }
        self.addresses.insert(address, (port, now));
        assert!(self.addresses.len() <= ADDRESSES);
    }

    /// The port of `address`; `None`: every port.
    pub fn port(&self, address: [u8; 6], now: u64) -> Option<usize> {
        let (port, heard) = *self.addresses.get(&address)?;
        (now.saturating_sub(heard) < AGEING).then_some(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_moves_ages_and_is_bounded() {
        let mut path = ReturnPath::default();
        path.learn([2, 0, 0, 0, 0, 1], 1, 5);
        path.learn([3, 0, 0, 0, 0, 1], 1, 5);
        assert_eq!(path.port([2, 0, 0, 0, 0, 1], 6), Some(1));
        assert_eq!(path.port([3, 0, 0, 0, 0, 1], 6), None, "a group has no port");
        path.learn([2, 0, 0, 0, 0, 1], 2, 7);
        assert_eq!(path.port([2, 0, 0, 0, 0, 1], 7 + AGEING - 1), Some(2));
        assert_eq!(path.port([2, 0, 0, 0, 0, 1], 7 + AGEING), None);
        for n in 0..2 * ADDRESSES as u64 {
            let [.., a, b] = n.to_be_bytes();
            path.learn([4, 0, 0, 0, a, b], 3, 10 + n);
        }
        assert_eq!(path.port([2, 0, 0, 0, 0, 1], 11), None);
    }
}
