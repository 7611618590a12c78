//! Linux's VFIO in this process, behind the C library's `open64`, `ioctl`, `pread64` and `pwrite64`: the driver and
//! the crates under it run as they are. Behind it is the scripted card; each register access lets it do the next
//! step of its script.
//!
//! One kernel at a time: [`Kernel::boot`] holds a lock until it is dropped.
#![allow(dead_code)] // each test takes what it needs

use driver::fake::{FakeCard, Step};
use driver::Card;
use layout::registers::{command, global};
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_ulong, c_void, CStr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The group's number.
pub const GROUP: u32 = 7;
/// What the IOMMU translates: 16 MiB from 16 MiB on, and 1 GiB above 4 GiB.
pub const RANGES: [(u64, u64); 2] = [(0x100_0000, 0x1FF_FFFF), (0x1_4000_0000, 0x1_7FFF_FFFF)];
/// Regions of vfio-pci begin at their index shifted by that.
const REGION_SHIFT: u32 = 40;
const CONFIG: u64 = 7;

/// What a test may change.
#[derive(Debug)]
pub struct World {
    /// The card; it reaches only what is mapped in the container.
    pub card: FakeCard,
    /// Its configuration space.
    pub config: [u8; 256],
    /// Memory behind the BAR for the case that it is mapped.
    pub bar: RawFd,
    /// The kernel lets the BAR be mapped.
    pub bar_mappable: bool,
    /// Size of BAR 0.
    pub bar_bytes: u64,
    /// Opening these fails with that errno.
    pub refuse: HashMap<&'static str, i32>,
    /// The group is viable.
    pub viable: bool,
    /// Bytes that may be mapped for DMA.
    pub memlock: u64,
    /// The kernel says which addresses the IOMMU translates.
    pub says_ranges: bool,
    /// Function-level resets that the kernel did.
    pub resets: u32,
    /// Interrupts get lost on their way.
    pub lose_interrupts: bool,
    /// Address and length of what is mapped.
    pub mapped: HashMap<u64, u64>,
    /// Eventfds of the card's vectors, of errors and of requests: by index of VFIO and vector.
    pub eventfds: HashMap<(u32, u32), RawFd>,
    /// The table of vectors in the card holds what the kernel wrote there.
    pub table_written: bool,
    files: HashMap<RawFd, File>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Container,
    Group,
    Device,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);
static ONE: Mutex<()> = Mutex::new(());

/// The kernel, while a test runs.
pub struct Kernel {
    directory: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Kernel {
    /// A kernel with a card of `ports` ports whose clocks lock at once.
    pub fn boot(ports: usize) -> Self {
        let one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let directory = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("../../kernel/iommu_groups/7", directory.path().join("iommu_group"))
            .expect("a link");
        // SAFETY: a name, no flags.
        let bar = unsafe { libc::memfd_create(c"bar".as_ptr(), 0) };
        // SAFETY: its own descriptor.
        assert_eq!(unsafe { libc::ftruncate(bar, 64 * 1024) }, 0);
        let mut card = FakeCard::new(ports);
        card.waits_to_lock = Some(0);
        *world() = Some(World {
            card,
            config: configuration(ports),
            bar,
            bar_mappable: false,
            bar_bytes: 64 * 1024,
            refuse: HashMap::new(),
            viable: true,
            memlock: u64::MAX,
            says_ranges: true,
            resets: 0,
            lose_interrupts: false,
            mapped: HashMap::new(),
            eventfds: HashMap::new(),
            table_written: false,
            files: HashMap::new(),
        });
        Self { directory, _one: one }
    }

    /// The device in sysfs.
    pub fn device(&self) -> PathBuf {
        self.directory.path().to_path_buf()
    }

    /// Looks at the world, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(world().as_mut().expect("a kernel"))
    }

    /// Makes the card do something now.
    pub fn run(&self, step: Step) {
        self.with(|world| {
            world.card.script.push_front(step);
            world.tick();
        });
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(world) = world().take() {
            // SAFETY: the memfd that `boot` made.
            unsafe { libc::close(world.bar) };
        }
    }
}

fn world() -> MutexGuard<'static, Option<World>> {
    WORLD.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// As `sim`'s server has it: PCI Express at 0x40, MSI-X at 0x80.
fn configuration(ports: usize) -> [u8; 256] {
    let mut bytes = [0; 256];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0x00, &layout::pcie::VENDOR_ID.to_le_bytes());
    put(0x02, &layout::pcie::DEVICE_ID.to_le_bytes());
    put(0x06, &[0x10]);
    put(0x34, &[0x40]);
    put(0x40, &[0x10, 0x80, 0x02]);
    put(0x44, &(1u32 << 28 | 1).to_le_bytes());
    put(0x48, &(1u16 << 5).to_le_bytes());
    put(0x80, &[0x11, 0x00, ports as u8 - 1]);
    put(0x84, &(layout::pcie::MSIX_TABLE_OFFSET as u32).to_le_bytes());
    put(0x88, &(layout::pcie::MSIX_PENDING_OFFSET as u32).to_le_bytes());
    bytes
}

impl World {
    /// Is the card allowed to reach memory and to send messages?
    pub fn is_bus_master(&self) -> bool {
        self.config[4] & 4 != 0
    }

    /// The next step of the script, and its interrupts on their way.
    fn tick(&mut self) {
        let fired = self.card.wait(Duration::ZERO).expect("the fake card");
        for vector in 0..64 {
            if fired.0 >> vector & 1 == 1 {
                self.interrupt(2, vector);
            }
        }
    }

    /// Signals a vector: index 2 of VFIO is MSI-X, 3 an error, 4 a request.
    pub fn interrupt(&self, index: u32, vector: u32) {
        let lost = index == 2 && (self.lose_interrupts || !self.table_written || !self.is_bus_master());
        if let Some(eventfd) = self.eventfds.get(&(index, vector)).filter(|_| !lost) {
            let one = 1u64;
            // SAFETY: eight bytes of `one`, to an eventfd that the driver has open while it is here.
            unsafe { libc::write(*eventfd, (&raw const one).cast(), 8) };
        }
    }

    fn open(&mut self, path: &str) -> Result<RawFd, i32> {
        if let Some(errno) = self.refuse.get(path) {
            return Err(*errno);
        }
        let file = match path {
            "/dev/vfio/vfio" => File::Container,
            _ => File::Group,
        };
        if file == File::Group && self.files.values().any(|other| *other == file) {
            return Err(libc::EBUSY);
        }
        self.new_file(file)
    }

    fn new_file(&mut self, file: File) -> Result<RawFd, i32> {
        // A descriptor of its own, of the memory behind the BAR: so the BAR can be mapped.
        // SAFETY: no pointers.
        let fd = unsafe { libc::fcntl(self.bar, libc::F_DUPFD_CLOEXEC, 100) };
        self.files.insert(fd, file);
        Ok(fd)
    }

    /// Descriptors that were closed are no more.
    fn forget_closed(&mut self) {
        // SAFETY: no pointers.
        self.files.retain(|fd, _| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0);
    }

    fn ioctl(&mut self, file: File, number: u64, argument: *mut u8) -> Result<i32, i32> {
        // SAFETY: the argument is what this ioctl is documented to take, made by the crates under test.
        let u32_at = |at: usize| unsafe { argument.add(at).cast::<u32>().read_unaligned() };
        // SAFETY: as above.
        let u64_at = |at: usize| unsafe { argument.add(at).cast::<u64>().read_unaligned() };
        // SAFETY: as above.
        let put32 = |at: usize, value: u32| unsafe { argument.add(at).cast::<u32>().write_unaligned(value) };
        // SAFETY: as above.
        let put64 = |at: usize, value: u64| unsafe { argument.add(at).cast::<u64>().write_unaligned(value) };
        match (file, number) {
            (File::Container, 0) => Ok(0),
            (File::Container, 1) => Ok(1),
            (File::Container, 2) => Ok(0),
            // IOMMU_GET_INFO
            (File::Container, 12) => {
                let wanted = if self.says_ranges { 24 + 16 + 16 * RANGES.len() as u32 } else { 24 };
                let given = u32_at(0);
                put32(0, wanted);
                put32(4, if self.says_ranges { 3 } else { 1 });
                put64(8, 0x4020_1000);
                put32(16, if self.says_ranges && given >= wanted { 24 } else { 0 });
                if self.says_ranges && given >= wanted {
                    put32(24, 1 << 16 | 1);
                    put32(28, 0);
                    put32(32, RANGES.len() as u32);
                    put32(36, 0);
                    for (index, (first, last)) in RANGES.iter().enumerate() {
                        put64(40 + index * 16, *first);
                        put64(48 + index * 16, *last);
                    }
                }
                Ok(0)
            }
            // MAP_DMA
            (File::Container, 13) => self.map(u64_at(8), u64_at(16), u64_at(24)),
            // UNMAP_DMA
            (File::Container, 14) => {
                let (address, bytes) = (u64_at(8), u64_at(16));
                match self.mapped.remove(&address) {
                    Some(length) => {
                        assert_eq!(bytes, length, "unmapped in another length");
                        assert_eq!(self.card.unmap_outside(address) as u64, length);
                        Ok(0)
                    }
                    None => {
                        put64(16, 0);
                        Ok(0)
                    }
                }
            }
            // GROUP_GET_STATUS
            (File::Group, 3) => {
                put32(4, u32::from(self.viable));
                Ok(0)
            }
            (File::Group, 4 | 5) => Ok(0),
            (File::Group, 6) => self.new_file(File::Device),
            // DEVICE_GET_INFO
            (File::Device, 7) => {
                put32(4, 3);
                put32(8, 9);
                put32(12, 5);
                Ok(0)
            }
            // DEVICE_GET_REGION_INFO
            (File::Device, 8) => {
                let index = u32_at(8);
                let (size, flags) = match u64::from(index) {
                    0 => (self.bar_bytes, 3 | u32::from(self.bar_mappable) << 2),
                    CONFIG => (256, 3),
                    _ => (0, 0),
                };
                put32(4, flags);
                put64(16, size);
                put64(24, u64::from(index) << REGION_SHIFT);
                Ok(0)
            }
            // DEVICE_GET_IRQ_INFO
            (File::Device, 9) => {
                let index = u32_at(8);
                put32(4, 1);
                put32(12, if index == 2 { u32::from(self.config[0x82]) + 1 } else { u32::from(index > 2) });
                Ok(0)
            }
            // DEVICE_SET_IRQS
            (File::Device, 10) => {
                let (flags, index, start, count) = (u32_at(4), u32_at(8), u32_at(12), u32_at(16));
                if count == 0 {
                    self.eventfds.retain(|(of, _), _| *of != index);
                }
                for vector in 0..count {
                    assert_eq!(flags, 4 | 1 << 5, "eventfds that trigger");
                    let eventfd = u32_at(20 + 4 * vector as usize) as i32;
                    self.eventfds.insert((index, start + vector), eventfd);
                }
                self.table_written |= index == 2 && count > 0;
                Ok(0)
            }
            (File::Device, 11) => {
                self.resets += 1;
                self.config[4] = 0;
                self.write(global::COMMAND, command::FUNCTION_RESET);
                Ok(0)
            }
            other => panic!("ioctl {other:?}"),
        }
    }

    fn map(&mut self, pointer: u64, address: u64, bytes: u64) -> Result<i32, i32> {
        let allowed = !self.says_ranges
            || RANGES.iter().any(|(first, last)| *first <= address && address + bytes - 1 <= *last);
        let aligned = [pointer, address, bytes].iter().all(|value| value.is_multiple_of(4096)) && bytes > 0;
        let overlaps =
            self.mapped.iter().any(|(other, length)| address < other + length && *other < address + bytes);
        match () {
            () if !allowed || !aligned => return Err(libc::EINVAL),
            () if overlaps => return Err(libc::EEXIST),
            () if self.mapped.values().sum::<u64>() + bytes > self.memlock => return Err(libc::ENOMEM),
            () => {}
        }
        self.mapped.insert(address, bytes);
        // SAFETY: the driver keeps the memory until it was unmapped, and doesn't write it.
        unsafe { self.card.map_outside(address, pointer as *mut u8, bytes as usize) };
        Ok(0)
    }

    fn read(&mut self, offset: u32) -> u32 {
        self.tick();
        self.card.read(offset).expect("the fake card")
    }

    fn write(&mut self, offset: u32, value: u32) {
        // A function reset clears the card's table, whatever the kernel thinks.
        if offset == global::COMMAND && value & command::FUNCTION_RESET != 0 {
            self.table_written = false;
        }
        self.card.write(offset, value).expect("the fake card");
    }

    fn region_read(&mut self, offset: u64, bytes: &mut [u8]) {
        let at = (offset & ((1 << REGION_SHIFT) - 1)) as usize;
        match offset >> REGION_SHIFT {
            0 => bytes.copy_from_slice(&self.read(at as u32).to_le_bytes()),
            CONFIG => bytes.copy_from_slice(&self.config[at..at + bytes.len()]),
            other => panic!("read of region {other}"),
        }
    }

    fn region_write(&mut self, offset: u64, bytes: &[u8]) {
        let at = (offset & ((1 << REGION_SHIFT) - 1)) as usize;
        match offset >> REGION_SHIFT {
            0 => self.write(at as u32, u32::from_le_bytes(bytes.try_into().expect("a register"))),
            // Only the command register can be written.
            CONFIG => self.config[at..at + bytes.len()].copy_from_slice(bytes),
            other => panic!("write of region {other}"),
        }
    }
}

fn refused(errno: i32) -> c_int {
    // SAFETY: this thread's own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

fn file_of(fd: c_int) -> Option<(MutexGuard<'static, Option<World>>, File)> {
    let mut guard = WORLD.try_lock().ok()?;
    let world = guard.as_mut()?;
    world.forget_closed();
    let file = *world.files.get(&fd)?;
    Some((guard, file))
}

/// # Safety
/// As the C library's.
#[no_mangle]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: by contract.
    let name = unsafe { CStr::from_ptr(path) }.to_str().unwrap_or("");
    if name.starts_with("/dev/vfio/") {
        if let Some(world) = world().as_mut() {
            world.forget_closed();
            return world.open(name).unwrap_or_else(refused);
        }
    }
    // SAFETY: by contract.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) as c_int }
}

/// # Safety
/// As the C library's.
#[no_mangle]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // VFIO's are of type ';', and number from 100 on.
    if request >> 8 & 0xFF == u64::from(b';') {
        if let Some((mut guard, file)) = file_of(fd) {
            let world = guard.as_mut().expect("a kernel");
            return world.ioctl(file, (request & 0xFF) - 100, argument.cast()).unwrap_or_else(refused);
        }
    }
    // SAFETY: by contract.
    unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) as c_int }
}

/// # Safety
/// As the C library's.
#[no_mangle]
pub unsafe extern "C" fn pread64(fd: c_int, buffer: *mut c_void, bytes: usize, offset: i64) -> isize {
    if let Some((mut guard, File::Device)) = file_of(fd) {
        // SAFETY: by contract.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), bytes) };
        guard.as_mut().expect("a kernel").region_read(offset as u64, buffer);
        return bytes as isize;
    }
    // SAFETY: by contract.
    unsafe { libc::syscall(libc::SYS_pread64, fd, buffer, bytes, offset) as isize }
}

/// # Safety
/// As the C library's.
#[no_mangle]
pub unsafe extern "C" fn pwrite64(fd: c_int, buffer: *const c_void, bytes: usize, offset: i64) -> isize {
    if let Some((mut guard, File::Device)) = file_of(fd) {
        // SAFETY: by contract.
        let buffer = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), bytes) };
        guard.as_mut().expect("a kernel").region_write(offset as u64, buffer);
        return bytes as isize;
    }
    // SAFETY: by contract.
    unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, bytes, offset) as isize }
}
