//! An image, and what has been written over it, as an NBD export.

use super::pointed::Pointed;
use super::scratch::Scratch;
use journal::image::Origin;
use layout::nbd::allocation;
use std::io;
use std::sync::Arc;

/// The metadata context that tells where the image differs from primary or base.
const CHANGED: &str = "chronoswitch:changed";
/// In [`CHANGED`]: it differs, or may.
const DIFFERS: u32 = 1;

/// See the module.
pub struct ImageExport {
    image: Arc<Pointed>,
    name: String,
    bytes: u64,
    scratch: Option<Scratch>,
}

impl ImageExport {
    /// `scratch`: what clients write goes there; without one they can't.
    pub fn new(image: Arc<Pointed>, scratch: Option<Scratch>) -> Self {
        let now = image.image();
        Self { name: now.volume().name(), bytes: now.bytes(), image, scratch }
    }

    fn read_image(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.image.read_at(buffer, offset).map_err(io::Error::other)
    }

    fn scratch(&self) -> io::Result<&Scratch> {
        self.scratch.as_ref().ok_or_else(|| io::ErrorKind::PermissionDenied.into())
    }

    /// Runs with a flag each, by origin and by whether it has been written over.
    fn runs(
        &self,
        offset: u64,
        bytes: u64,
        flags: impl Fn(Origin) -> u32,
        written: u32,
    ) -> io::Result<Vec<nbd::Extent>> {
        let mut extents: Vec<nbd::Extent> = Vec::new();
        let mut add = |bytes: u64, flags: u32| match extents.last_mut() {
            Some(last) if last.flags == flags => last.bytes += bytes,
            _ => extents.push(nbd::Extent { bytes, flags }),
        };
        for run in self.image.image().runs(offset, bytes).map_err(io::Error::other)? {
            let Some(scratch) = &self.scratch else {
                add(run.bytes, flags(run.origin));
                continue;
            };
            for (over, range) in scratch.runs(run.offset, run.bytes) {
                add(range.end - range.start, if over { written } else { flags(run.origin) });
            }
        }
        Ok(extents)
    }
}

impl nbd::Export for ImageExport {
    fn name(&self) -> &str {
        &self.name
    }

    fn description(&self) -> String {
        format!("volume {} just after order:{}", self.name, self.image.image().facts().order)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_only(&self) -> bool {
        self.scratch.is_none()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.scratch {
            Some(scratch) => scratch.read(buffer, offset, |buffer, offset| self.read_image(buffer, offset)),
            None => self.read_image(buffer, offset),
        }
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.scratch()?.write(data, offset, |buffer, offset| self.read_image(buffer, offset))
    }

    fn extents(&self, offset: u64, bytes: u64) -> io::Result<Vec<nbd::Extent>> {
        let of = |origin| if origin == Origin::Zero { allocation::HOLE | allocation::ZERO } else { 0 };
        self.runs(offset, bytes, of, 0)
    }

    fn contexts(&self) -> &[&str] {
        &[CHANGED]
    }

    fn context_extents(&self, _context: &str, offset: u64, bytes: u64) -> io::Result<Vec<nbd::Extent>> {
        self.runs(offset, bytes, |origin| if origin == Origin::Backing { 0 } else { DIFFERS }, DIFFERS)
    }
}
