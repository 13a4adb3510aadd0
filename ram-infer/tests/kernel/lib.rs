//! `ram-infer`'s kernels and their tests, without the rest of the crate.

#![allow(dead_code, unreachable_pub, reason = "who uses the kernels is not here")]

#[path = "../../src/kernel/mod.rs"]
mod kernel;
