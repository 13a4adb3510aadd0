//! One model over many machines.
//!
//! | room | what stands there |
//! |---|---|
//! | [`plan`] | which node holds which layers, what to expect of it, and why not |
//!
//! The crate thinks and does nothing else: no sockets, no clock, no model.

pub mod plan;
