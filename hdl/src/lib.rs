//! See DESIGN: hdl.
