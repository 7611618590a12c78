//! What the kernel tells by eventfd: the card's vectors, errors of the bus, and that the host wants the device
//! back.

use rustix::event::{epoll, poll, PollFd, PollFlags, Timespec};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use vfio_bindings::bindings::vfio::{VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX};
use vfio_ioctls::{VfioDevice, VfioError};
use vmm_sys_util::eventfd::{EventFd, EFD_CLOEXEC, EFD_NONBLOCK};

/// Vectors that a wait can tell apart (`Interrupts` is a mask of 64).
const MAXIMUM_VECTORS: usize = 64;

/// The eventfds, all readable through one descriptor.
pub struct Vectors {
    vectors: Vec<EventFd>,
    error: EventFd,
    request: EventFd,
    epoll: OwnedFd,
    is_enabled: bool,
    is_release_requested: bool,
}

/// What came since the last wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// One bit a vector.
    pub fired: u64,
    /// The bus reported an error.
    pub error: bool,
}

impl Vectors {
    /// Eventfds for `vectors` vectors of `device`, and for what the kernel has to say of it. The card's own
    /// vectors are not enabled yet.
    pub fn of(device: &VfioDevice, vectors: usize) -> io::Result<Self> {
        let made = Self::new(vectors)?;
        // Not every bus and kernel has these two.
        for (index, event) in [(VFIO_PCI_ERR_IRQ_INDEX, &made.error), (VFIO_PCI_REQ_IRQ_INDEX, &made.request)]
        {
            if device.get_irq_info(index).is_some_and(|irq| irq.count > 0) {
                device.enable_irq(index, vec![event]).map_err(|error| errno(&error))?;
            }
        }
        Ok(made)
    }

    fn new(vectors: usize) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let vectors = (0..vectors.min(MAXIMUM_VECTORS)).map(|_| event()).collect::<io::Result<Vec<_>>>()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let made = Self {
            vectors,
            error: event()?,
            request: event()?,
            epoll,
            is_enabled: false,
            is_release_requested: false,
        };
        for event in made.vectors.iter().chain([&made.error, &made.request]) {
            // SAFETY: the eventfd is open for as long as `made` is, longer than the borrow.
            let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
            epoll::add(&made.epoll, event, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        Ok(made)
    }

    /// Readable while there is any news.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Has the host asked for the device?
    pub fn is_release_requested(&self) -> bool {
        self.is_release_requested
    }

    /// Enables the card's vectors, from scratch if they were: the kernel writes the card's table.
    pub fn enable(&mut self, device: &VfioDevice) -> io::Result<()> {
        self.disable(device);
        device.enable_msix(self.vectors.iter().collect()).map_err(|error| errno(&error))?;
        self.is_enabled = true;
        Ok(())
    }

    /// Disables them.
    pub fn disable(&mut self, device: &VfioDevice) {
        if std::mem::take(&mut self.is_enabled) {
            // It may be gone; then there is nothing to disable.
            let _ = device.disable_msix();
        }
    }

    /// Waits for news, `timeout` at most, and takes it.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<News> {
        let until = Instant::now().checked_add(timeout);
        let was_requested = self.is_release_requested;
        loop {
            let news = self.take()?;
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            // The request alone ends a wait too: whoever waits has to look at it.
            let is_news = news != News::default() || self.is_release_requested != was_requested;
            if is_news || left.is_some_and(|left| left.is_zero()) {
                return Ok(news);
            }
            let left =
                left.map(|left| Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 }));
            let mut events = [PollFd::new(&self.epoll, PollFlags::IN)];
            match poll(&mut events, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self) -> io::Result<News> {
        let mut fired = 0;
        for (index, event) in self.vectors.iter().enumerate() {
            fired |= u64::from(has_fired(event)?) << index;
        }
        let error = has_fired(&self.error)?;
        self.is_release_requested |= has_fired(&self.request)?;
        Ok(News { fired, error })
    }
}

/// However often it fired: once.
fn has_fired(event: &EventFd) -> io::Result<bool> {
    match event.read() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn errno(error: &VfioError) -> io::Error {
    io::Error::other(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_told_apart_and_taken_once() {
        let mut vectors = Vectors::new(4).expect("eventfds");
        assert_eq!(vectors.wait(Duration::from_millis(1)).expect("a wait"), News::default());
        vectors.vectors[2].write(1).expect("an interrupt");
        vectors.vectors[2].write(1).expect("an interrupt");
        vectors.vectors[0].write(1).expect("an interrupt");
        assert_eq!(vectors.wait(Duration::MAX).expect("a wait"), News { fired: 0b101, error: false });
        assert_eq!(vectors.wait(Duration::ZERO).expect("a wait"), News::default());
        vectors.error.write(1).expect("an error");
        assert_eq!(vectors.wait(Duration::MAX).expect("a wait"), News { fired: 0, error: true });
    }

    #[test]
    fn a_request_ends_a_wait_and_stays() {
        let mut vectors = Vectors::new(1).expect("eventfds");
        vectors.request.write(1).expect("a request");
        assert!(!vectors.is_release_requested());
        let began = Instant::now();
        assert_eq!(vectors.wait(Duration::from_secs(600)).expect("a wait"), News::default());
        assert!(vectors.is_release_requested() && began.elapsed() < Duration::from_secs(300));
        assert_eq!(vectors.wait(Duration::ZERO).expect("a wait"), News::default());
        assert!(vectors.is_release_requested());
    }

    #[test]
    fn an_interrupt_while_waiting_ends_the_wait() {
        let mut vectors = Vectors::new(2).expect("eventfds");
        let event = vectors.vectors[1].try_clone().expect("a copy");
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            event.write(1).expect("an interrupt");
        });
        assert_eq!(vectors.wait(Duration::from_secs(600)).expect("a wait").fired, 0b10);
        other.join().expect("the thread");
    }
}
