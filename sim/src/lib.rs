//! See DESIGN: sim.
