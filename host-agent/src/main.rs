//! The Chronoswitch host agent.
fn main() {}
