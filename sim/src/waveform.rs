//! A VCD of everything in the card, on request.

use hdl::block::Part;
use rust_hdl::core::vcd_probe::VCDProbe;
use rust_hdl::prelude::{write_vcd_change, write_vcd_dump, write_vcd_header, Block};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

/// An open waveform file.
///
/// Blocks that are idle aren't told that their clock falls (`hdl::block`), and show it high meanwhile.
pub struct Waveform {
    // RustHDL's writers take the probe and give it back.
    probe: Option<VCDProbe<BufWriter<File>>>,
}

impl Waveform {
    /// Begins a waveform of `block` at `path`.
    pub fn create<B: Block>(path: &Path, block: &B) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Self { probe: Some(write_vcd_dump(write_vcd_header(file, block), block)) })
    }

    /// Writes what changed up to `picoseconds`.
    pub fn change<B: Block + Part>(&mut self, picoseconds: u64, block: &mut B) -> io::Result<()> {
        if let Some(mut probe) = self.probe.take() {
            block.refresh();
            probe.timestamp(picoseconds)?;
            self.probe = Some(write_vcd_change(probe, block));
        }
        Ok(())
    }
}
