//! What the system tests share: running the built `host-agent`, captures, and a naive model of a volume.
//!
//! Nothing here shares code with the agent or the journal but `layout`, and for raw frames `ports::interface`: pcap is read
//! and written anew, and a volume is a plain array of bytes that writes are copied into. [`images`] puts the journal's
//! images beside that.

pub mod agent;
pub mod capture;
pub mod daemon;
pub mod images;
pub mod initiator;
pub mod model;
pub mod nbd_client;
pub mod network;
pub mod served;
pub mod serving;

/// The seed of a random test: `CHRONO_SEED`, or the clock. Printed, so that a failure can be replayed.
pub fn seed() -> u64 {
    let given = std::env::var("CHRONO_SEED").ok().map(|text| text.parse().expect("CHRONO_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |time| time.as_nanos() as u64 % 1_000_000_007)
    });
    println!("CHRONO_SEED={seed}");
    seed
}

/// How often a test that takes samples does so: `variable` in the environment, or `default`.
pub fn samples(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number of samples"))
}
