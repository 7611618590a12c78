//! See DESIGN: engine.
