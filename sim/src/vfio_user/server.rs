//! The vfio-user protocol (libvfio-user's specification 0.9.1), by the crate `vfio_user`.

use super::function::CONFIGURATION_BYTES;
use super::machine::{Counts, Machine};
use crate::simulated_card::PORTS;
use layout::pcie::BAR0_BYTES;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use vfio_bindings::bindings::vfio::{
    vfio_region_info, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

/// Cycles between two looks whether something is asked.
const ASK_CYCLES: u64 = 4;
/// Longest access to a region.
const MAXIMUM_ACCESS: usize = 64 * 1024;

type Job = Box<dyn FnOnce(&mut Machine) + Send>;

/// A card that is served. It ends when this is dropped.
pub struct Serving {
    path: PathBuf,
    machine: Asking,
    stepping: Option<JoinHandle<()>>,
}

/// Asks the thread that has the card.
#[derive(Clone)]
struct Asking(SyncSender<Job>);

impl Asking {
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Machine) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = sync_channel(1);
        let gone = || io::Error::other("the card's thread has ended");
        let job: Job = Box::new(move |machine| drop(answer.send(question(machine))));
        self.0.send(job).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())
    }
}

impl Serving {
    /// Makes a card in a thread of its own, where it stays, and serves it at the Unix socket `path` until this is
    /// dropped: one client after the other. What goes wrong is told to `tell`.
    pub fn start(
        path: &Path,
        make: impl FnOnce() -> io::Result<Machine> + Send + 'static,
        tell: impl FnMut(String) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, asked) = sync_channel(0);
        let (made, is_made) = sync_channel(1);
        let stepping = std::thread::Builder::new().name("card".into()).spawn(move || match make() {
            Ok(machine) => {
                let _ = made.send(Ok(()));
                step(machine, &asked, tell);
            }
            Err(error) => drop(made.send(Err(error))),
        })?;
        is_made.recv().map_err(|_| io::Error::other("the card's thread has ended"))??;
        let machine = Asking(jobs);
        let server = Server::new(path, true, irqs(), regions()).map_err(io::Error::other)?;
        let mut backend = Backend(machine.clone());
        std::thread::Builder::new().name("vfio-user".into()).spawn(move || {
            loop {
                // A client that breaks the protocol is gone like one that leaves.
                let _ = server.run(&mut backend);
                if backend.0.ask(Machine::unplug).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { path: path.into(), machine, stepping: Some(stepping) })
    }

    /// What happened so far.
    pub fn counts(&self) -> io::Result<Counts> {
        self.machine.ask(|machine| machine.counts())
    }

    /// Asks the card anything, or does anything to it, between two cycles.
    pub fn with<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Machine) -> T + Send + 'static,
    ) -> io::Result<T> {
        self.machine.ask(question)
    }

    /// Waits until the card's thread ends, which it does only by a defect.
    pub fn wait(mut self) {
        if let Some(stepping) = self.stepping.take() {
            let _ = stepping.join();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(stepping) = self.stepping.take() {
            let _ = self.machine.ask(Machine::end);
            let _ = stepping.join();
            // The server waits for a client, and then finds that the card is no more.
            drop(UnixStream::connect(&self.path));
        }
    }
}

fn step(mut machine: Machine, asked: &Receiver<Job>, mut tell: impl FnMut(String)) {
    loop {
        match asked.try_recv() {
            Ok(job) => job(&mut machine),
            Err(TryRecvError::Empty) => machine.pass(ASK_CYCLES),
            Err(TryRecvError::Disconnected) => return,
        }
        machine.take_told().into_iter().for_each(&mut tell);
        if machine.has_ended() {
            return;
        }
    }
}

fn irqs() -> Vec<IrqInfo> {
    let count = |index| match index {
        VFIO_PCI_MSIX_IRQ_INDEX => PORTS as u32,
        VFIO_PCI_ERR_IRQ_INDEX | VFIO_PCI_REQ_IRQ_INDEX => 1,
        _ => 0,
    };
    let irq = |index| IrqInfo { index, flags: VFIO_IRQ_INFO_EVENTFD, count: count(index) };
    (0..VFIO_PCI_NUM_IRQS).map(irq).collect()
}

fn regions() -> Vec<ServerRegion> {
    let size = |index| match index {
        VFIO_PCI_BAR0_REGION_INDEX => BAR0_BYTES,
        VFIO_PCI_CONFIG_REGION_INDEX => CONFIGURATION_BYTES,
        _ => 0,
    };
    let region = |index| {
        let size = size(index) as u64;
        let flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        ServerRegion {
            region_info: vfio_region_info {
                argsz: size_of::<vfio_region_info>() as u32,
                flags: if size > 0 { flags } else { 0 },
                index,
                cap_offset: 0,
                size,
                offset: 0,
            },
            sparse_areas: Vec::new(),
            mmap_fd: None,
        }
    };
    (0..VFIO_PCI_NUM_REGIONS).map(region).collect()
}

struct Backend(Asking);

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let bytes = data.len();
        if bytes > MAXIMUM_ACCESS {
            return Err(invalid(format!("a read of {bytes} bytes")));
        }
        let read = self.0.ask(move |machine| {
            let mut bytes = vec![0xFF; bytes];
            match region {
                VFIO_PCI_BAR0_REGION_INDEX => machine.read(offset, &mut bytes),
                VFIO_PCI_CONFIG_REGION_INDEX => machine.read_configuration(offset, &mut bytes),
                _ => {}
            }
            bytes
        })?;
        data.copy_from_slice(&read);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.len() > MAXIMUM_ACCESS {
            return Err(invalid(format!("a write of {} bytes", data.len())));
        }
        let bytes = data.to_vec();
        self.0.ask(move |machine| match region {
            VFIO_PCI_BAR0_REGION_INDEX => machine.write(offset, &bytes),
            VFIO_PCI_CONFIG_REGION_INDEX => machine.write_configuration(offset, &bytes),
            _ => {}
        })
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let writable = flags.contains(DmaMapFlags::WRITE);
        let file = fd.map(|file| (file, offset));
        self.0.ask(move |machine| machine.map(address, size, writable, file))?
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        let (address, size) = match flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            true => (0, u64::MAX),
            false => (address, size),
        };
        self.0.ask(move |machine| machine.unmap(address, size))?
    }

    fn reset(&mut self) -> io::Result<()> {
        self.0.ask(Machine::reset)
    }

    /// Signals of vectors; nobody is ever told of errors of the bus and of requests, for there are none.
    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        if index != VFIO_PCI_MSIX_IRQ_INDEX || flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
            return Ok(());
        }
        let (start, count) = (start as usize, count as usize);
        if start.checked_add(count).is_none_or(|end| end > PORTS) || fds.len() > count {
            return Err(invalid(format!("{count} vectors from {start} on, with {} eventfds", fds.len())));
        }
        self.0.ask(move |machine| {
            if count == 0 {
                (0..PORTS).for_each(|vector| machine.set_vector(vector, None));
            } else if flags & VFIO_IRQ_SET_DATA_EVENTFD != 0 {
                // One for each, or none: then nobody is told any more.
                let mut events = fds.into_iter();
                (start..start + count).for_each(|vector| machine.set_vector(vector, events.next()));
            } else if flags & VFIO_IRQ_SET_DATA_NONE != 0 {
                (start..start + count).for_each(|vector| machine.trigger(vector));
            }
        })
    }
}
