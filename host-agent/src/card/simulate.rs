//! `host-agent card simulate`: the simulated card as a PCI device for QEMU.

use crate::arguments::VolumeFile;
use crate::error::Error;
use crate::output::Output;
use crate::replay::primary_open;
use clap::{Args, ValueEnum};
use sim::hesitant_target::HesitantTarget;
use sim::socket_target::SocketTarget;
use sim::target::{Target, VbladeModel};
use sim::uplink_capture::UplinkCapture;
use sim::verilator::user_cache;
use sim::vfio_user::{Link, Machine, Serving};
use sim::{CardOptions, SimulatedCard, Simulator};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub const EXAMPLES: &str = "\
Example: a card with one port on a socket, and QEMU (10.1 or later) with it in a slot:
  host-agent card simulate --socket card.sock --primary 1.0=disk.img --port 0=port0.sock:peer0.sock
  qemu-system-x86_64 -machine q35,memory-backend=ram -object memory-backend-memfd,id=ram,size=1G,share=on \\
      -device intel-iommu,intremap=on,caching-mode=on -device pcie-root-port,id=rp0,chassis=1,slot=1 \\
      -device '{\"driver\":\"vfio-user-pci\",\"bus\":\"rp0\",\"socket\":{\"type\":\"unix\",\"path\":\"card.sock\"},\"x-msg-timeout\":60000}' …

A port's socket takes and gives Ethernet frames, one a datagram, as QEMU's -netdev dgram does. In the guest give
--slower to `card selftest` and `card drain`.";

/// `card simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// Unix socket that QEMU connects to; it is made
    #[arg(long, value_name = "SOCKET")]
    pub socket: PathBuf,
    /// A volume (shelf.slot) behind the uplink, and the image that is its primary storage; it is read and written
    #[arg(long, value_name = "VOLUME=IMG", required_unless_present = "uplink")]
    pub primary: Vec<VolumeFile>,
    /// A target elsewhere, at the other end of Unix datagram sockets: frames out of the uplink go to PEER
    #[arg(long, value_name = "LOCAL:PEER", conflicts_with = "primary")]
    pub uplink: Option<Sockets>,
    /// A port on Unix datagram sockets: frames for it come to LOCAL, which is made, those out of it go to PEER
    #[arg(long, value_name = "PORT=LOCAL:PEER")]
    pub port: Vec<PortSockets>,
    /// What steps the gateware: RustHDL's kernel, or Verilator, several times as fast once it is compiled (docs/operations.md)
    #[arg(long, value_enum, value_name = "ENGINE", default_value_t = Engine::Card)]
    pub engine: Engine,
    /// Core cycles of 8 ns from a request to the target's answer
    #[arg(long, value_name = "CYCLES", default_value_t = sim::target::DEFAULT_ANSWER_CYCLES,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub answer_after: u64,
    /// Write what leaves the uplink, and the target's answers, into a pcap
    #[arg(long, value_name = "FILE")]
    pub uplink_capture: Option<PathBuf>,
    /// Lose one frame in N at each port, each way
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub lose: u64,
    /// Let one answer of the target in EVERY come CYCLES later
    #[arg(long, value_name = "EVERY:CYCLES")]
    pub hesitate: Option<Hesitation>,
}

/// `--engine`, with the names that `replay` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// RustHDL's kernel
    Card,
    /// Verilator's model of the generated Verilog
    Verilated,
}

/// `EVERY:CYCLES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hesitation {
    /// One answer in so many.
    pub every: u64,
    /// Is so many core cycles late.
    pub cycles: u64,
}

impl FromStr for Hesitation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "give EVERY:CYCLES, such as 40:100000";
        let (every, cycles) = text.split_once(':').ok_or(form)?;
        match (every.parse(), cycles.parse()) {
            (Ok(every), Ok(cycles)) if every > 0 => Ok(Self { every, cycles }),
            _ => Err(form.into()),
        }
    }
}

/// `LOCAL:PEER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// Socket that frames come to.
    pub local: PathBuf,
    /// Socket that frames go to.
    pub peer: PathBuf,
}

impl FromStr for Sockets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((local, peer)) if !local.is_empty() && !peer.is_empty() => {
                Ok(Self { local: local.into(), peer: peer.into() })
            }
            _ => Err("give LOCAL:PEER, such as port0.sock:peer0.sock".into()),
        }
    }
}

/// `PORT=LOCAL:PEER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSockets {
    /// Port of the card.
    pub port: usize,
    /// Its wire.
    pub sockets: Sockets,
}

impl FromStr for PortSockets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "give PORT=LOCAL:PEER, such as 0=port0.sock:peer0.sock";
        let (port, sockets) = text.split_once('=').ok_or(form)?;
        let sockets = sockets.parse().map_err(|_| form)?;
        let port: usize = port.parse().map_err(|error| format!("'{port}' is no port: {error}"))?;
        if port >= SimulatedCard::PORTS {
            return Err(format!(
                "there is no port {port}: the simulated card has ports 0 to {}",
                SimulatedCard::PORTS - 1
            ));
        }
        Ok(Self { port, sockets })
    }
}

/// Runs the command, until it is killed.
pub fn run(simulate: &Simulate) -> Result<(), Error> {
    let mut output = Output::new();
    let primaries = primary_open(&simulate.primary)?;
    let served = primaries.iter().map(|primary| primary.served()).collect::<Result<Vec<_>, _>>()?;
    let (ports, answer_after, lose) = (simulate.port.clone(), simulate.answer_after, simulate.lose);
    let hesitate = simulate.hesitate;
    let simulator = match simulate.engine {
        Engine::Card => Simulator::RustHdl,
        Engine::Verilated => Simulator::Verilator { cache: user_cache() },
    };
    let capture = match &simulate.uplink_capture {
        Some(path) => Some(File::create(path).map_err(|error| Error::io(path, "making the capture", error))?),
        None => None,
    };
    let uplink = simulate.uplink.clone();
    let named = |path: &Path, error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
    let make = move || -> io::Result<Machine> {
        let target: Box<dyn Target> = match uplink {
            Some(Sockets { local, peer }) => {
                Box::new(SocketTarget::new(&local, peer).map_err(|error| named(&local, error))?)
            }
            None => Box::new(VbladeModel::new(served).with_answer_cycles(answer_after)),
        };
        // Nobody hesitates unless told to: no answer comes so late.
        let Hesitation { every, cycles } = hesitate.unwrap_or(Hesitation { every: u64::MAX, cycles: 0 });
        let target = HesitantTarget::new(target, every, cycles);
        let target: Box<dyn Target> = match capture {
            Some(file) => Box::new(UplinkCapture::new(target, BufWriter::new(file))?),
            None => Box::new(target),
        };
        let card = SimulatedCard::new(CardOptions { simulator, ..CardOptions::default() }, target)?;
        let mut links = Vec::new();
        for PortSockets { port, sockets: Sockets { local, peer } } in ports {
            let link = Link::new(port, &local, peer).map_err(|error| named(&local, error))?;
            links.push(link.losing(lose));
        }
        Ok(Machine::new(card, links))
    };
    let tell = |what: String| eprintln!("card: {what}");
    let serving = Serving::start(&simulate.socket, make, tell);
    let serving = serving.map_err(|error| Error::io(&simulate.socket, "serving the card", error))?;
    output.line(format!("the card is at {}", simulate.socket.display()))?;
    output.flush()?;
    serving.wait();
    Err(Error::Failed("the card's thread has ended".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hesitation_parses_or_says_how() {
        assert_eq!("40:1000".parse(), Ok(Hesitation { every: 40, cycles: 1000 }));
        for bad in ["40", "0:5", "x:5", "5:x"] {
            assert!(bad.parse::<Hesitation>().unwrap_err().contains("EVERY:CYCLES"), "{bad}");
        }
    }

    #[test]
    fn ports_parse_or_say_how() {
        let expected = PortSockets { port: 1, sockets: Sockets { local: "a".into(), peer: "b".into() } };
        assert_eq!("1=a:b".parse(), Ok(expected));
        for bad in ["1", "1=a", "4=a:b", "x=a:b", "0=:b", "0=a:"] {
            assert!(bad.parse::<PortSockets>().is_err(), "{bad}");
        }
    }
}
