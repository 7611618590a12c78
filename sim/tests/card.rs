//! The whole card from outside: frames in at the ports, records out of the driver.

use driver::{BringUp, Completions, Driver, Joined};
use layout::aoe::{self, Ata, AtaFrame, Header};
use layout::entry::Kind;
use layout::registers::Counter;
use sim::target::{Image, TargetVolume, VbladeModel};
use sim::{CardOptions, SimulatedCard};
use std::time::Duration;
use zerocopy::IntoBytes;

const TIME: u64 = 1_790_000_000_000_000_000;

fn write_frame(source: u8, tag: u32, lba: u64, data: &[u8]) -> Vec<u8> {
    let header = AtaFrame {
        header: Header {
            destination: [2, 0, 0, 0, 0, 0xFE],
            source: [2, 0, 0, 0, 0, source],
            ethertype: aoe::ETHERTYPE.into(),
            version_flags: aoe::VERSION << 4,
            error: 0,
            shelf: 1.into(),
            slot: 0,
            command: aoe::COMMAND_ATA,
            tag: tag.into(),
        },
        ata: Ata {
            flags: 0x41,
            error_feature: 0,
            sectors: (data.len() / 512) as u8,
            command_status: aoe::ATA_WRITE_EXT,
            lba: lba.to_le_bytes()[..6].try_into().unwrap(),
            reserved: [0; 2],
        },
    };
    [header.as_bytes(), data].concat()
}

#[test]
fn a_write_goes_to_target_and_journal() {
    let target = VbladeModel::new(vec![TargetVolume::new(1, 0, 4096, Image::Memory(vec![0; 4096 * 512]))]);
    let card = SimulatedCard::new(CardOptions::default(), Box::new(target)).unwrap();
    let mut settings = BringUp::new(1, TIME, 4);
    settings.volumes = vec![Some((1, 0))];
    settings.ports.iter_mut().for_each(|port| port.volumes = 1);
    let mut driver = Driver::bring_up(card, &settings).unwrap();
    println!("up after {} cycles", driver.card().cycles());
    for n in 0..8u8 {
        let data: Vec<u8> = (0..1024).map(|i| (i as u8).wrapping_mul(7).wrapping_add(n)).collect();
        driver.card_mut().offer(n as usize % 4, write_frame(n, 100 + n as u32, n as u64 * 2, &data));
    }
    let mut completions = Completions::new(4);
    let (mut entries, mut settled) = (0, 0);
    for _ in 0..100 {
        driver.wait(Duration::from_micros(100)).unwrap();
        driver.poll().unwrap();
        for port in 0..4 {
            let batch = driver.batch(port);
            let count = batch.len();
            for record in batch.records() {
                let joined = completions.take(&record).unwrap();
                settled += usize::from(matches!(joined, Joined::Settled { .. }));
                if record.kind == Kind::After {
                    entries += 1;
                }
            }
            driver.consume(port, count).unwrap();
        }
        if settled == 8 {
            break;
        }
    }
    assert_eq!((entries, settled), (8, 8));
    for port in 0..4 {
        let counters = driver.counters(port).unwrap();
        println!("{:?}", counters.iter().collect::<Vec<_>>());
        println!("{:?}", driver.sources(port).unwrap());
        assert_eq!(counters.get(Counter::Journaled), 2);
        assert_eq!(counters.get(Counter::Updated), 2);
        println!("{:?}", driver.leaf_clock(port).unwrap());
    }
    println!("{} cycles", driver.card().cycles());
}
